//! Heartbeats, zombies, back-pressure, a process that was held up.

use super::*;

const BEAT: Action = Action::Heartbeat { seq: None };

fn zombie() -> Action {
    close_action(CloseReason::Zombie)
}

#[test]
fn the_first_heartbeat_comes_at_a_random_part_of_the_interval() {
    for (jitter, first) in [(0.0, Duration::ZERO), (0.5, INTERVAL / 2), (1.0, INTERVAL)] {
        let mut shard = Shard::connected(None);
        shard.jitter = jitter;
        shard.hello();
        shard.actions();
        assert_eq!(shard.session.poll_timeout(), Some(shard.now + first));
        assert_eq!(shard.run(first), [BEAT]);
        shard.frame(Incoming::HeartbeatAck);
        assert_eq!(shard.session.poll_timeout(), Some(shard.now + INTERVAL));
    }
}

#[test]
fn a_heartbeat_says_what_is_acknowledged() {
    let mut shard = Shard::ready();
    shard.dispatch(2);
    assert_eq!(shard.run(INTERVAL / 2), [BEAT]);
    shard.ack(2);
    shard.frame(Incoming::HeartbeatAck);
    assert_eq!(shard.run(INTERVAL), [Action::Heartbeat { seq: Some(2) }]);
}

#[test]
fn a_heartbeat_asked_for_is_sent_at_once_and_moves_nothing() {
    let mut shard = Shard::ready();
    let deadline = shard.session.poll_timeout();
    shard.pass(secs(1));
    shard.frame(Incoming::HeartbeatRequest);
    assert_eq!(shard.actions(), [BEAT]);
    assert_eq!(shard.session.poll_timeout(), deadline);
}

#[test]
fn latency_is_from_heartbeat_to_its_acknowledgement() {
    let mut shard = Shard::ready();
    assert_eq!(shard.session.latency(), None);
    shard.run(INTERVAL / 2);
    shard.pass(Duration::from_millis(40));
    shard.frame(Incoming::HeartbeatAck);
    assert_eq!(shard.session.latency(), Some(Duration::from_millis(40)));
}

#[test]
fn silence_between_two_heartbeats_closes_the_connection_resumably() {
    let mut shard = Shard::ready();
    assert_eq!(shard.run(INTERVAL / 2), [BEAT]);
    assert_eq!(shard.run(INTERVAL - secs(1)), []);
    let connect = Action::Connect(resume_endpoint());
    assert_eq!(shard.run(secs(1)), [zombie(), connect]);
    shard.session.handle_connected(shard.now);
    shard.hello();
    assert!(matches!(shard.actions()[..], [Action::Resume { .. }]));
}

#[test]
fn any_frame_is_a_sign_of_life() {
    let frames = [
        Incoming::HeartbeatAck,
        Incoming::Unknown,
        Incoming::HeartbeatRequest,
        Incoming::Dispatch {
            seq: None,
            kind: DispatchKind::Other,
        },
    ];
    for frame in frames {
        let mut shard = Shard::ready();
        shard.run(INTERVAL / 2);
        for _ in 0..5 {
            shard.pass(secs(1));
            shard.frame(frame);
            let actions = shard.run(INTERVAL - secs(1));
            assert!(
                actions.contains(&BEAT) && !actions.contains(&zombie()),
                "{frame:?}"
            );
        }
    }
}

#[test]
fn a_heartbeat_asked_for_just_before_a_regular_one_is_no_sign_of_death() {
    let mut shard = Shard::ready();
    shard.pass(INTERVAL / 2 - Duration::from_millis(1));
    shard.frame(Incoming::HeartbeatRequest);
    shard.actions();
    assert_eq!(shard.run(Duration::from_millis(1)), [BEAT]);
}

#[test]
fn silence_while_we_do_not_read_is_our_own() {
    let mut shard = Shard::ready();
    shard.session.handle_reading(false, shard.now);
    let actions = shard.run(INTERVAL * 4);
    assert_eq!(actions, [BEAT, BEAT, BEAT, BEAT]);
    shard.session.handle_reading(true, shard.now);
    let actions = shard.run(INTERVAL);
    assert_eq!(
        actions,
        [BEAT],
        "what waited in the socket is looked at first"
    );
    assert_eq!(shard.run(INTERVAL).first(), Some(&zombie()));
}

#[test]
fn reading_on_does_not_forgive_a_silence_that_was_heard() {
    let mut shard = Shard::ready();
    shard.run(INTERVAL / 2);
    shard.session.handle_reading(true, shard.now);
    assert_eq!(shard.run(INTERVAL).first(), Some(&zombie()));
}

#[test]
fn a_process_that_was_held_up_beats_once_and_does_not_blame_the_peer() {
    let mut shard = Shard::ready();
    assert_eq!(shard.run(INTERVAL / 2), [BEAT]);
    shard.pass(INTERVAL * 10);
    assert_eq!(shard.timeout(), [BEAT]);
    assert_eq!(shard.timeout(), []);
    assert_eq!(
        shard.run(INTERVAL).first(),
        Some(&zombie()),
        "once it is on time again"
    );
}

#[test]
fn a_start_that_timed_out_while_the_process_was_held_up_gets_time_to_be_read() {
    let mut shard = Shard::connected(None);
    shard.pass(HELLO_TIMEOUT * 5);
    assert_eq!(shard.timeout(), []);
    assert_eq!(shard.run(GRACE), [close_action(CloseReason::HelloTimeout)]);
    let mut shard = Shard::resuming(7);
    shard.pass(SESSION_START_TIMEOUT * 2);
    assert_eq!(shard.timeout(), [Action::Heartbeat { seq: Some(7) }]);
    shard.resumed(8);
    assert_eq!(shard.session.phase(), Phase::Ready);
}

#[test]
fn a_configured_timeout_is_probed_and_kept() {
    let timeout = secs(30);
    let settings = Settings {
        heartbeat_timeout: Some(timeout),
        ..settings()
    };
    let mut shard = Shard::with(settings, None);
    shard.connect();
    shard.hello();
    shard.actions();
    let mut beats = 0;
    for _ in 0..50 {
        let actions = shard.run(secs(5));
        assert!(!actions.contains(&zombie()), "a quiet connection lives");
        if actions.contains(&BEAT) {
            beats += 1;
            shard.frame(Incoming::HeartbeatAck);
        }
    }
    assert!(beats >= 250 / 15, "{beats}");
    let silent_since = shard.now;
    while shard.session.phase() == Phase::AwaitingGrant {
        shard.run(secs(1));
    }
    assert!(shard.now.duration_since(silent_since) <= timeout + secs(1));
}

#[test]
fn absurd_intervals_neither_spin_nor_stop_the_heart() {
    for millis in [0, 1, 50, u64::MAX] {
        let mut shard = Shard::connected(Some(saved(7)));
        shard.frame(Incoming::Hello {
            interval: Duration::from_millis(millis),
        });
        shard.resumed(8);
        let mut sent = shard.actions().len();
        for _ in 0..600 {
            let actions = shard.run(Duration::from_millis(100));
            assert!(!actions.contains(&zombie()), "{millis}");
            sent += actions.len();
            shard.frame(Incoming::HeartbeatAck);
        }
        assert!(sent <= 2 * crate::budget::LIMIT, "{millis}: {sent}");
        assert!(shard.session.poll_timeout().unwrap() < shard.now + secs(1_000));
    }
}

#[test]
fn a_flood_of_requests_leaves_room_for_regular_heartbeats() {
    let mut shard = Shard::ready();
    let mut sent = 2; // IDENTIFY, and the heartbeat below.
    for _ in 0..500 {
        shard.frame(Incoming::HeartbeatRequest);
        sent += shard.actions().len();
    }
    assert_eq!(shard.run(INTERVAL / 2), [BEAT]);
    assert!(sent <= crate::budget::LIMIT, "{sent}");
}

#[test]
fn commands_wait_for_a_ready_shard_and_for_room() {
    let mut shard = Shard::connected(None);
    assert_eq!(shard.session.reserve_command(shard.now), Err(None));
    shard.identify("new");
    let sent = (0..200)
        .take_while(|_| shard.session.reserve_command(shard.now).is_ok())
        .count();
    assert!((100..crate::budget::LIMIT).contains(&sent), "{sent}");
    assert_eq!(
        shard.session.reserve_command(shard.now),
        Err(Some(crate::budget::WINDOW))
    );
    assert_eq!(shard.run(INTERVAL / 2), [BEAT]);
}
