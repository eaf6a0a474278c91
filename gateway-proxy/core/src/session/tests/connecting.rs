//! From the first connection to HELLO, and what ends it.

use super::*;

#[test]
fn a_new_shard_connects_to_the_gateway_at_once() {
    let mut shard = Shard::fresh();
    assert_eq!(shard.await_connect(), (Duration::ZERO, Endpoint::Gateway));
    assert_eq!(shard.session.phase(), Phase::Connecting);
}

#[test]
fn a_shard_with_a_session_connects_to_its_resume_url() {
    let mut shard = Shard::with(settings(), Some(saved(7)));
    assert_eq!(shard.await_connect(), (Duration::ZERO, resume_endpoint()));
    let url_unknown = Resumable {
        resume_url: None,
        ..saved(7)
    };
    let mut shard = Shard::with(settings(), Some(url_unknown));
    assert_eq!(shard.await_connect().1, Endpoint::Gateway);
}

#[test]
fn a_resume_url_that_cannot_be_reached_alternates_with_the_gateways() {
    let mut shard = Shard::with(settings(), Some(saved(7)));
    let mut attempts = Vec::new();
    for _ in 0..6 {
        attempts.push(shard.await_connect());
        shard.session.handle_connect_failed(HALF, shard.now);
    }
    let (resume, gateway) = (resume_endpoint(), Endpoint::Gateway);
    let expect = [
        (Duration::ZERO, resume.clone()),
        (Duration::ZERO, gateway.clone()),
        (Duration::from_millis(750), resume.clone()),
        (Duration::ZERO, gateway.clone()),
        (Duration::from_millis(1_500), resume),
        (Duration::ZERO, gateway),
    ];
    assert_eq!(attempts, expect);
}

#[test]
fn at_the_gateways_url_the_session_is_still_resumed() {
    let mut shard = Shard::with(settings(), Some(saved(7)));
    shard.await_connect();
    shard.session.handle_connect_failed(HALF, shard.now);
    assert_eq!(shard.resume(), ("old".to_owned(), 7));
}

#[test]
fn a_resume_url_that_answers_but_does_not_work_is_left_too() {
    let ends: [fn(&mut Shard); 4] = [
        |shard| shard.closed(None),
        |shard| shard.session.handle_undecodable(HALF, shard.now),
        |shard| _ = shard.run(HELLO_TIMEOUT),
        |shard| {
            shard.hello();
            shard.closed(Some(4000));
        },
    ];
    for end in ends {
        let mut shard = Shard::connected(Some(saved(7)));
        end(&mut shard);
        assert_eq!(shard.await_connect().1, Endpoint::Gateway);
        shard.session.handle_connected(shard.now);
        shard.closed(None);
        assert_eq!(shard.await_connect().1, resume_endpoint());
    }
}

#[test]
fn without_hello_the_connection_is_left_resumably() {
    let mut shard = Shard::connected(None);
    assert_eq!(shard.run(HELLO_TIMEOUT - secs(1)), []);
    assert_eq!(
        shard.run(secs(1)),
        [close_action(CloseReason::HelloTimeout)]
    );
    assert_eq!(shard.await_connect().0, Duration::from_millis(750));
}

#[test]
fn op_7_instead_of_hello_reconnects_and_backs_off_when_it_goes_on() {
    let mut shard = Shard::connected(Some(saved(7)));
    let mut waits = Vec::new();
    for _ in 0..4 {
        shard.frame(Incoming::Reconnect);
        assert_eq!(shard.actions(), [close_action(CloseReason::Reconnect)]);
        waits.push(shard.connect().0.as_millis());
    }
    assert_eq!(waits, [750, 1_500, 3_000, 6_000]);
    assert_eq!(shard.session.id(), Some("old"));
}

#[test]
fn before_hello_nothing_is_sent_and_nothing_published() {
    let mut shard = Shard::connected(Some(saved(7)));
    assert_eq!(shard.frame(Incoming::HeartbeatRequest), Verdict::Consumed);
    assert_eq!(shard.frame(Incoming::HeartbeatAck), Verdict::Consumed);
    assert_eq!(shard.frame(Incoming::Unknown), Verdict::Consumed);
    assert_eq!(shard.dispatch(8), Verdict::Unnameable);
    assert_eq!(shard.resumed(8), Verdict::Unnameable);
    assert_eq!(shard.ready_frame(Some(1), "new"), Verdict::Unnameable);
    assert_eq!(shard.actions(), []);
    assert_eq!(shard.session.phase(), Phase::AwaitingHello);
}

#[test]
fn op_9_before_resume_does_not_cost_the_session() {
    for resumable in [true, false] {
        let mut shard = Shard::connected(Some(saved(7)));
        shard.invalid_session(resumable);
        assert_eq!(shard.actions(), [close_action(CloseReason::InvalidSession)]);
        assert_eq!(shard.resume(), ("old".to_owned(), 7));
    }
}

#[test]
fn a_close_code_before_resume_does_not_cost_the_session() {
    for code in [4003, 4006, 4007, 4009] {
        let mut shard = Shard::connected(Some(saved(7)));
        shard.closed(Some(code));
        assert_eq!(shard.session.id(), Some("old"), "{code}");
    }
}

#[test]
fn a_second_hello_changes_nothing() {
    let mut shard = Shard::ready();
    let deadline = shard.session.poll_timeout();
    shard.pass(secs(1));
    shard.frame(Incoming::Hello { interval: secs(1) });
    assert_eq!(shard.session.poll_timeout(), deadline);
    assert_eq!(shard.actions(), []);
}

#[test]
fn what_comes_while_there_is_no_connection_is_ignored() {
    let mut shard = Shard::fresh();
    assert_eq!(shard.dispatch(1), Verdict::Consumed);
    shard.closed(Some(4004));
    shard.session.handle_undecodable(HALF, shard.now);
    shard.session.handle_connected(shard.now);
    shard.session.handle_connect_failed(HALF, shard.now);
    shard.session.pause(secs(9), shard.now);
    shard.session.handle_reading(false, shard.now);
    assert!(!shard.session.handle_identify_granted(shard.now));
    assert_eq!(shard.actions(), []);
    assert_eq!(shard.await_connect(), (Duration::ZERO, Endpoint::Gateway));
}
