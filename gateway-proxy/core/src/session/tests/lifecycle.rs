//! Letting go, pausing, ending the session by hand: in every phase.

use super::*;

/// A shard in each phase, all with the session `old` or `new` where there can be one.
fn every_phase() -> Vec<Shard> {
    let mut connecting = Shard::with(settings(), Some(saved(7)));
    connecting.await_connect();
    let mut awaiting_grant = Shard::connected(None);
    awaiting_grant.hello();
    awaiting_grant.actions();
    let mut identifying = Shard::connected(None);
    identifying.hello();
    assert!(identifying.session.handle_identify_granted(identifying.now));
    identifying.actions();
    vec![
        Shard::with(settings(), Some(saved(7))),
        connecting,
        Shard::connected(Some(saved(7))),
        awaiting_grant,
        identifying,
        Shard::resuming(7),
        Shard::ready(),
    ]
}

#[test]
fn letting_go_closes_resumably_and_keeps_what_another_process_needs() {
    for mut shard in every_phase() {
        let phase = shard.session.phase();
        let resumable = shard.session.resumable();
        shard.session.stop();
        let actions = shard.actions();
        let connected = !matches!(phase, Phase::Waiting | Phase::Connecting);
        let closes = actions.contains(&close_action(CloseReason::Drain));
        assert_eq!(closes, connected, "{phase:?}");
        assert_eq!(shard.session.resumable(), resumable, "{phase:?}");
        assert_eq!(shard.session.phase(), Phase::Stopped);
        // Nothing wakes it again.
        assert_eq!(shard.session.poll_timeout(), None);
        shard.session.handle_connected(shard.now);
        shard.session.renew(shard.now);
        shard.session.expire(EndReason::SessionExpired, shard.now);
        shard.session.pause(secs(1), shard.now);
        shard.closed(Some(4004));
        assert!(!shard.session.handle_identify_granted(shard.now));
        assert_eq!(shard.run(secs(1_000)), []);
        assert_eq!(shard.session.phase(), Phase::Stopped);
        assert_eq!(shard.session.resumable(), resumable, "{phase:?}");
    }
}

#[test]
fn what_was_decided_before_letting_go_is_not_done_after_it() {
    let mut shard = Shard::fresh();
    shard.session.handle_timeout(HALF, shard.now);
    shard.session.stop();
    assert_eq!(shard.actions(), []);
}

#[test]
fn acknowledgements_still_count_after_letting_go() {
    let mut shard = Shard::ready();
    shard.dispatch(2);
    shard.session.stop();
    shard.ack(2);
    assert_eq!(shard.session.resumable().unwrap().seq, 2);
}

#[test]
fn a_pause_closes_resumably_and_returns_after_its_delay() {
    for mut shard in every_phase() {
        let phase = shard.session.phase();
        let id = shard.session.id().map(str::to_owned);
        shard.session.pause(secs(9), shard.now);
        if matches!(phase, Phase::Waiting | Phase::Connecting) {
            assert_eq!(shard.actions(), [], "{phase:?}");
            assert_eq!(shard.session.phase(), phase);
            continue;
        }
        let overloaded = close_action(CloseReason::Overloaded);
        assert_eq!(shard.actions().last(), Some(&overloaded), "{phase:?}");
        assert_eq!(shard.await_connect().0, secs(9), "{phase:?}");
        assert_eq!(shard.session.id(), id.as_deref());
    }
}

#[test]
fn a_renewed_session_begins_at_the_gateways_url_behind_a_forced_gap() {
    for mut shard in every_phase() {
        let phase = shard.session.phase();
        let had = shard.session.id().map(str::to_owned);
        shard.session.renew(shard.now);
        if had.is_none() {
            assert_eq!(
                shard.actions(),
                [],
                "{phase:?}: a new session is on its way"
            );
            assert_eq!(shard.session.phase(), phase);
            continue;
        }
        assert_eq!(shard.session.id(), None);
        if phase == Phase::Connecting {
            shard.session.handle_connected(shard.now);
        }
        shard.actions();
        assert_eq!(
            shard.connect(),
            (Duration::ZERO, Endpoint::Gateway),
            "{phase:?}"
        );
        let Verdict::Publish { gap: Some(gap), .. } = shard.identify("next") else {
            panic!("{phase:?}: no gap");
        };
        assert_eq!((Some(gap.session_id), gap.reason), (had, EndReason::Forced));
    }
}

#[test]
fn a_session_known_to_be_over_is_announced_instead_of_resumed() {
    let mut shard = Shard::with(settings(), Some(saved(7)));
    shard.session.expire(EndReason::SessionExpired, shard.now);
    assert_eq!(shard.connect().1, Endpoint::Gateway);
    let Verdict::Publish { gap: Some(gap), .. } = shard.identify("new") else {
        panic!("no gap");
    };
    assert_eq!((gap.last_seq, gap.reason), (7, EndReason::SessionExpired));
    // Only before connecting.
    shard.session.expire(EndReason::SessionExpired, shard.now);
    assert_eq!(shard.session.id(), Some("new"));
}

#[test]
fn every_session_of_a_process_has_its_own_generation() {
    let mut shard = Shard::resuming(7);
    let mut generations = vec![shard.session.generation()];
    for id in ["a", "b", "c"] {
        shard.session.renew(shard.now);
        shard.connect();
        shard.actions();
        shard.identify(id);
        generations.push(shard.session.generation());
    }
    assert_eq!(generations, [0, 1, 2, 3]);
}

#[test]
fn every_close_of_ours_is_resumable() {
    for code in [1000, 1001] {
        assert_ne!(close::RESUMABLE, code);
    }
    for mut shard in every_phase() {
        shard.session.handle_undecodable(HALF, shard.now);
        for action in shard.actions() {
            if let Action::Close { code, .. } = action {
                assert_eq!(code, close::RESUMABLE);
            }
        }
    }
}
