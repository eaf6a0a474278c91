//! RESUME: from where, what a replay does, and what ends the session instead.

use super::*;

/// A gap marker's facts: session, last sequence, reason.
fn gap(verdict: &Verdict) -> Option<(&str, u64, EndReason)> {
    match verdict {
        Verdict::Publish { gap: Some(gap), .. } => {
            Some((&gap.session_id, gap.last_seq, gap.reason))
        }
        _ => None,
    }
}

#[test]
fn resume_starts_after_what_is_acknowledged_not_what_was_received() {
    let mut shard = Shard::ready();
    for seq in 2..=9 {
        assert_eq!(shard.dispatch(seq), publish(seq));
    }
    shard.ack(5);
    shard.closed(None);
    assert_eq!(shard.resume(), ("new".to_owned(), 5));
    for seq in 6..=9 {
        assert_eq!(shard.dispatch(seq), Verdict::Replayed, "{seq}");
    }
    assert_eq!(shard.dispatch(10), publish(10));
    assert_eq!(shard.session.phase(), Phase::Resuming);
    assert_eq!(shard.resumed(11), publish(11));
    assert_eq!(shard.session.phase(), Phase::Ready);
}

#[test]
fn acknowledgements_of_another_session_or_beyond_what_was_handed_over_do_not_count() {
    let mut shard = Shard::ready();
    shard.dispatch(2);
    shard
        .session
        .handle_acked(shard.session.generation() - 1, 2);
    assert_eq!(shard.session.resumable().unwrap().seq, 0);
    shard.ack(99);
    assert_eq!(shard.session.resumable().unwrap().seq, 2);
    shard.ack(1);
    assert_eq!(shard.session.resumable().unwrap().seq, 2);
}

#[test]
fn a_session_resumed_from_before_its_first_acknowledgement_replays_its_ready() {
    // In the same process READY was handed over already.
    let mut shard = Shard::ready();
    shard.closed(None);
    assert_eq!(shard.resume(), ("new".to_owned(), 0));
    assert_eq!(shard.ready_frame(Some(1), "new"), Verdict::Replayed);
    assert_eq!(shard.session.phase(), Phase::Resuming);
    // In another process it was not.
    let mut shard = Shard::resuming(0);
    assert_eq!(shard.ready_frame(Some(1), "old"), publish(1));
    assert_eq!(shard.dispatch(2), publish(2));
    assert_eq!(shard.resumed(3), publish(3));
}

#[test]
fn a_ready_of_another_session_leaves_the_connection_and_keeps_the_session() {
    for mut shard in [Shard::resuming(7), Shard::ready()] {
        let id = shard.session.id().unwrap().to_owned();
        assert_eq!(shard.ready_frame(Some(1), "stranger"), Verdict::Unnameable);
        assert_eq!(shard.actions(), [close_action(CloseReason::BadReady)]);
        assert_eq!(shard.resume().0, id);
    }
}

#[test]
fn resumed_without_a_sequence_still_makes_the_shard_ready() {
    let mut shard = Shard::resuming(7);
    let kind = DispatchKind::Resumed;
    assert_eq!(
        shard.frame(Incoming::Dispatch { seq: None, kind }),
        Verdict::Unnameable
    );
    assert_eq!(shard.session.phase(), Phase::Ready);
}

#[test]
fn a_replay_that_moves_is_not_a_start_that_hangs() {
    let mut shard = Shard::ready();
    for seq in 2..=40 {
        shard.dispatch(seq);
    }
    shard.closed(None);
    shard.resume();
    for seq in 1..=40 {
        assert_eq!(shard.dispatch(seq), Verdict::Replayed);
        let actions = shard.run(secs(40));
        assert!(
            !actions
                .iter()
                .any(|action| matches!(action, Action::Close { .. }))
        );
    }
}

#[test]
fn a_dispatch_without_a_sequence_or_going_backwards_is_not_published() {
    let mut shard = Shard::ready();
    shard.dispatch(2);
    let kind = DispatchKind::Other;
    assert_eq!(
        shard.frame(Incoming::Dispatch { seq: None, kind }),
        Verdict::Unnameable
    );
    assert_eq!(shard.dispatch(2), Verdict::Replayed);
    assert_eq!(shard.dispatch(1), Verdict::Replayed);
    assert_eq!(shard.dispatch(0), Verdict::Replayed);
    assert_eq!(shard.dispatch(3), publish(3));
}

#[test]
fn a_sequence_jump_is_asked_for_again() {
    let mut shard = Shard::ready();
    shard.dispatch(2);
    shard.ack(2);
    assert_eq!(shard.dispatch(5), Verdict::Consumed);
    assert_eq!(shard.actions(), [close_action(CloseReason::SequenceJump)]);
    assert_eq!(shard.resume(), ("new".to_owned(), 2));
    for seq in 3..=5 {
        assert_eq!(shard.dispatch(seq), publish(seq));
    }
    assert_eq!(shard.session.skipped(), 0);
}

#[test]
fn numbers_missing_from_the_replay_too_are_let_go_and_counted() {
    let mut shard = Shard::ready();
    assert_eq!(shard.dispatch(5), Verdict::Consumed);
    shard.resume();
    // RESUMED takes a number of its own, so the hole does not end where it did.
    assert_eq!(shard.resumed(6), publish(6));
    assert_eq!(shard.session.skipped(), 4);
    assert_eq!(shard.dispatch(7), publish(7));
    assert_eq!(
        shard.dispatch(9),
        Verdict::Consumed,
        "another hole is asked for again"
    );
}

#[test]
fn what_a_replay_leaves_out_costs_no_reconnect() {
    // Connections that broke before their RESUMED came leave a hole each; asking again would make
    // another.
    let mut shard = Shard::resuming(7);
    for seq in [9, 11, 13] {
        assert_eq!(shard.dispatch(seq), publish(seq));
    }
    assert_eq!(shard.resumed(15), publish(15));
    assert_eq!(shard.session.skipped(), 4);
    assert_eq!(shard.dispatch(17), Verdict::Consumed, "no replay any more");
}

#[test]
fn a_replay_that_looks_live_is_asked_for_once_per_hole() {
    let mut shard = Shard::resuming(7);
    assert_eq!(shard.resumed(8), publish(8), "an old one");
    assert_eq!(shard.dispatch(10), Verdict::Consumed);
    shard.resume();
    assert_eq!(shard.resumed(8), Verdict::Replayed);
    assert_eq!(shard.dispatch(10), publish(10));
}

#[test]
fn extreme_sequences_do_not_overflow() {
    let mut shard = Shard::connected(None);
    shard.hello();
    assert!(shard.session.handle_identify_granted(shard.now));
    assert_eq!(shard.ready_frame(Some(u64::MAX), "new"), publish(u64::MAX));
    assert_eq!(shard.dispatch(u64::MAX), Verdict::Replayed);
    assert_eq!(shard.dispatch(0), Verdict::Replayed);
}

#[test]
fn op_9_false_to_a_resume_begins_a_new_session_behind_a_gap() {
    let mut shard = Shard::resuming(7);
    shard.dispatch(8);
    shard.invalid_session(false);
    assert_eq!(shard.actions(), [close_action(CloseReason::InvalidSession)]);
    assert_eq!(shard.session.ended().unwrap().last_seq, 8);
    assert_eq!(shard.connect(), (secs(3), Endpoint::Gateway));
    let verdict = shard.identify("new");
    assert_eq!(gap(&verdict), Some(("old", 8, EndReason::ReplayExceeded)));
    assert_eq!(shard.session.ended(), None);
}

#[test]
fn op_9_false_to_a_live_session_says_so_in_the_gap() {
    let mut shard = Shard::ready();
    shard.dispatch(2);
    shard.invalid_session(false);
    shard.connect();
    shard.actions();
    let verdict = shard.identify("next");
    assert_eq!(gap(&verdict), Some(("new", 2, EndReason::InvalidSession)));
}

#[test]
fn op_9_true_keeps_the_session() {
    for mut shard in [Shard::resuming(1), Shard::ready()] {
        let id = shard.session.id().unwrap().to_owned();
        shard.invalid_session(true);
        assert_eq!(shard.actions(), [close_action(CloseReason::InvalidSession)]);
        assert_eq!(shard.resume().0, id);
    }
}

#[test]
fn a_gap_stands_once_before_the_ready_that_follows_however_long_that_takes() {
    let mut shard = Shard::resuming(7);
    shard.invalid_session(false);
    for _ in 0..3 {
        shard.connect();
        shard.hello();
        assert!(shard.session.handle_identify_granted(shard.now));
        shard.invalid_session(false);
        shard.actions();
    }
    shard.connect();
    let verdict = shard.identify("new");
    assert_eq!(gap(&verdict), Some(("old", 7, EndReason::ReplayExceeded)));
    shard.closed(Some(4007));
    shard.connect();
    let verdict = shard.identify("newer");
    assert_eq!(gap(&verdict), Some(("new", 1, EndReason::SessionExpired)));
    shard.closed(None);
    shard.resume();
    assert_eq!(shard.resumed(2), publish(2), "a resumed session owes none");
}

#[test]
fn codes_that_void_the_session_identify_anew() {
    for code in [4003, 4006, 4007] {
        for mut shard in [Shard::resuming(1), Shard::ready()] {
            shard.closed(Some(code));
            assert_eq!(shard.connect().1, Endpoint::Gateway, "{code}");
            let verdict = shard.identify("next");
            assert_eq!(
                gap(&verdict).unwrap().2,
                EndReason::SessionExpired,
                "{code}"
            );
        }
    }
}

#[test]
fn every_other_code_resumes() {
    for code in [
        None,
        Some(1000),
        Some(1001),
        Some(1006),
        Some(4000),
        Some(4001),
        Some(4002),
    ]
    .into_iter()
    .chain([
        Some(4005),
        Some(4008),
        Some(4009),
        Some(4015),
        Some(4999),
        Some(3000),
    ]) {
        let mut shard = Shard::ready();
        shard.closed(code);
        assert_eq!(shard.actions(), [], "{code:?}");
        assert_eq!(shard.resume().0, "new", "{code:?}");
    }
}

#[test]
fn session_timed_out_in_answer_to_a_resume_means_what_it_says() {
    let mut shard = Shard::resuming(7);
    shard.closed(Some(4009));
    shard.connect();
    let verdict = shard.identify("new");
    assert_eq!(gap(&verdict), Some(("old", 7, EndReason::SessionExpired)));
}

#[test]
fn session_timed_out_in_the_middle_of_a_replay_keeps_the_session() {
    let mut shard = Shard::resuming(7);
    assert_eq!(shard.dispatch(8), publish(8));
    shard.closed(Some(4009));
    assert_eq!(shard.resume(), ("old".to_owned(), 7));
    // The next answer counts anew.
    shard.closed(Some(4009));
    shard.connect();
    let verdict = shard.identify("new");
    assert_eq!(gap(&verdict), Some(("old", 8, EndReason::SessionExpired)));
}

#[test]
fn fatal_codes_stop_the_shard_in_every_phase() {
    let codes = [
        (4004, FatalClose::AuthenticationFailed),
        (4010, FatalClose::InvalidShard),
        (4011, FatalClose::ShardingRequired),
        (4012, FatalClose::InvalidVersion),
        (4013, FatalClose::InvalidIntents),
        (4014, FatalClose::DisallowedIntents),
    ];
    for (code, fatal) in codes {
        for mut shard in [Shard::connected(None), Shard::resuming(1), Shard::ready()] {
            shard.closed(Some(code));
            assert_eq!(shard.actions(), [Action::Fatal(fatal)]);
            assert_eq!(shard.session.phase(), Phase::Fatal);
            assert_eq!(shard.session.poll_timeout(), None);
        }
    }
}

#[test]
fn a_resume_that_meets_only_close_codes_is_given_up_after_minutes() {
    let attempts = |code: Option<u16>| {
        let mut shard = Shard::resuming(7);
        let start = shard.now;
        for attempt in 1..100 {
            shard.closed(code);
            if shard.session.id().is_none() {
                return Some((attempt, shard.now.duration_since(start)));
            }
            shard.resume();
        }
        None
    };
    let (refused, after) = attempts(Some(4000)).unwrap();
    assert_eq!(refused, REFUSED_RESUMES_MAX);
    assert!(after > secs(60) && after < secs(300), "{after:?}");
    assert_eq!(attempts(Some(1000)).unwrap().0, REFUSED_RESUMES_MAX);
    assert_eq!(attempts(Some(4002)).unwrap().0, REFUSED_RESUMES_MAX);
    // A network that fails says nothing about the session.
    assert_eq!(attempts(None), None);
    assert_eq!(attempts(Some(1006)), None);
}

#[test]
fn a_replay_that_gets_on_between_two_closes_is_never_given_up() {
    let mut shard = Shard::resuming(7);
    for seq in 8..200 {
        assert_eq!(shard.dispatch(seq), publish(seq));
        shard.ack(seq);
        shard.closed(Some(4000));
        assert_eq!(shard.resume(), ("old".to_owned(), seq));
    }
}

#[test]
fn bytes_that_are_no_frame_reconnect_and_resume() {
    let mut shard = Shard::ready();
    shard.session.handle_undecodable(HALF, shard.now);
    assert_eq!(shard.actions(), [close_action(CloseReason::Undecodable)]);
    assert_eq!(shard.resume().0, "new");
}

#[test]
fn op_7_reconnects_at_the_resume_url() {
    let mut shard = Shard::ready();
    shard.frame(Incoming::Reconnect);
    assert_eq!(shard.actions(), [close_action(CloseReason::Reconnect)]);
    assert_eq!(
        shard.dispatch(2),
        Verdict::Consumed,
        "replayed after RESUME"
    );
    assert_eq!(shard.await_connect(), (Duration::ZERO, resume_endpoint()));
}
