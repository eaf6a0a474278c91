//! The grant, IDENTIFY, READY.

use super::*;

#[test]
fn identify_is_sent_with_a_grant_and_never_without() {
    let mut shard = Shard::connected(None);
    assert!(!shard.session.handle_identify_granted(shard.now));
    shard.hello();
    assert_eq!(shard.actions(), [Action::RequestIdentify]);
    assert_eq!(shard.session.phase(), Phase::AwaitingGrant);
    assert!(shard.session.handle_identify_granted(shard.now));
    assert_eq!(shard.actions(), [Action::Identify]);
    assert!(!shard.session.handle_identify_granted(shard.now));
    assert_eq!(shard.actions(), []);
}

#[test]
fn a_grant_may_take_hours_while_the_heart_beats() {
    let mut shard = Shard::connected(None);
    shard.hello();
    shard.actions();
    for _ in 0..200 {
        shard.frame(Incoming::HeartbeatAck);
        let actions = shard.run(INTERVAL);
        assert_eq!(actions, [Action::Heartbeat { seq: None }]);
    }
    assert!(shard.session.handle_identify_granted(shard.now));
}

#[test]
fn a_connection_that_ends_while_waiting_gives_its_place_up() {
    let ends: [fn(&mut Shard); 6] = [
        |shard| shard.closed(None),
        |shard| shard.closed(Some(4004)),
        |shard| _ = shard.frame(Incoming::Reconnect),
        |shard| shard.invalid_session(false),
        |shard| shard.session.pause(Duration::ZERO, shard.now),
        |shard| shard.session.stop(),
    ];
    for end in ends {
        let mut shard = Shard::connected(None);
        shard.hello();
        shard.actions();
        end(&mut shard);
        let actions = shard.actions();
        let cancelled = actions
            .iter()
            .filter(|action| **action == Action::CancelIdentify);
        assert_eq!(cancelled.count(), 1, "{actions:?}");
        assert!(!shard.session.handle_identify_granted(shard.now));
    }
}

#[test]
fn a_grant_of_an_earlier_connection_serves_the_one_that_waits() {
    let mut shard = Shard::connected(None);
    shard.hello();
    shard.closed(None);
    shard.connect();
    shard.hello();
    shard.actions();
    assert!(shard.session.handle_identify_granted(shard.now));
    assert!(!shard.session.handle_identify_granted(shard.now));
    assert_eq!(shard.actions(), [Action::Identify]);
}

#[test]
fn ready_begins_a_session_that_is_acknowledged_up_to_nothing() {
    let mut shard = Shard::connected(None);
    assert_eq!(shard.identify("new"), publish(1));
    let resumable = shard.session.resumable().unwrap();
    assert_eq!((resumable.session_id.as_str(), resumable.seq), ("new", 0));
    assert_eq!(resumable.resume_url.as_deref(), Some(RESUME_URL));
    assert_eq!(shard.session.last_seq(), Some(1));
    assert_eq!(shard.dispatch(2), publish(2));
}

#[test]
fn events_before_ready_cannot_be_named() {
    let mut shard = Shard::connected(None);
    shard.hello();
    assert_eq!(shard.dispatch(1), Verdict::Unnameable);
    assert!(shard.session.handle_identify_granted(shard.now));
    assert_eq!(shard.dispatch(1), Verdict::Unnameable);
    assert_eq!(shard.resumed(1), Verdict::Unnameable);
    assert_eq!(shard.session.phase(), Phase::Identifying);
}

#[test]
fn a_ready_that_cannot_begin_a_session_leaves_the_connection() {
    let long = "x".repeat(1_000);
    let cases = [
        (Some(1), ""),
        (Some(1), "a:b"),
        (Some(1), "a b"),
        (Some(1), "a\r\nb"),
        (Some(1), long.as_str()),
        (None, "new"),
    ];
    for (seq, id) in cases {
        let mut shard = Shard::connected(None);
        shard.hello();
        assert!(shard.session.handle_identify_granted(shard.now));
        shard.actions();
        assert_eq!(shard.ready_frame(seq, id), Verdict::Unnameable, "{id}");
        assert_eq!(
            shard.actions(),
            [close_action(CloseReason::BadReady)],
            "{id}"
        );
        assert!(shard.await_connect().0 > Duration::ZERO, "{id}");
    }
}

#[test]
fn a_refused_identify_waits_one_to_five_seconds_then_longer() {
    let mut waits = Vec::new();
    let mut shard = Shard::connected(None);
    for _ in 0..6 {
        shard.hello();
        assert!(shard.session.handle_identify_granted(shard.now));
        shard.invalid_session(false);
        waits.push(shard.connect().0.as_millis());
        shard.actions();
    }
    assert_eq!(waits, [3_000, 3_000, 3_000, 6_000, 12_000, 24_000]);
    for (jitter, wait) in [(0.0, 1), (1.0, 5)] {
        let mut shard = Shard::connected(None);
        shard.jitter = jitter;
        shard.invalid_session(false);
        shard.actions();
        assert_eq!(shard.await_connect().0, secs(wait));
    }
}

#[test]
fn without_ready_the_connection_is_left_after_minutes_of_patience() {
    let mut shard = Shard::connected(None);
    shard.hello();
    assert!(shard.session.handle_identify_granted(shard.now));
    shard.actions();
    let deadline = shard.now + SESSION_START_TIMEOUT;
    while shard.now + secs(20) < deadline {
        shard.frame(Incoming::HeartbeatAck);
        let actions = shard.run(secs(20));
        assert!(!actions.contains(&close_action(CloseReason::StartTimeout)));
    }
    shard.frame(Incoming::HeartbeatAck);
    let actions = shard.run(secs(20));
    assert!(
        actions.contains(&close_action(CloseReason::StartTimeout)),
        "{actions:?}"
    );
}

#[test]
fn a_session_nobody_heard_of_is_owed_no_gap() {
    let mut shard = Shard::connected(None);
    shard.hello();
    assert!(shard.session.handle_identify_granted(shard.now));
    shard.closed(None);
    shard.connect();
    shard.actions();
    assert_eq!(shard.identify("new"), publish(1));
}

#[test]
fn however_many_heartbeats_the_server_wants_there_is_room_for_identify() {
    let mut shard = Shard::connected(None);
    let interval = Duration::from_millis(20);
    shard.frame(Incoming::Hello { interval });
    for _ in 0..500 {
        shard.frame(Incoming::HeartbeatRequest);
        shard.run(interval);
    }
    assert!(shard.session.handle_identify_granted(shard.now));
    assert_eq!(shard.actions(), [Action::Identify]);
}
