//! How long the shard waits before it connects again.

use super::*;

fn waits(shard: &mut Shard, count: usize, mut end: impl FnMut(&mut Shard)) -> Vec<u128> {
    let mut waits = Vec::new();
    for _ in 0..count {
        end(shard);
        shard.actions();
        waits.push(shard.connect().0.as_millis());
    }
    waits
}

#[test]
fn failures_double_the_wait_up_to_two_minutes() {
    let mut shard = Shard::connected(None);
    let waits = waits(&mut shard, 10, |shard| shard.closed(None));
    let expect = [
        750, 1_500, 3_000, 6_000, 12_000, 24_000, 48_000, 96_000, 96_000, 96_000,
    ];
    assert_eq!(waits, expect);
}

#[test]
fn the_upper_half_of_a_wait_is_jittered() {
    for (jitter, wait) in [(0.0, 500), (1.0, 1_000), (7.0, 1_000), (-1.0, 500)] {
        let mut shard = Shard::connected(None);
        shard.jitter = jitter;
        shard.closed(None);
        assert_eq!(
            shard.await_connect().0,
            Duration::from_millis(wait),
            "{jitter}"
        );
    }
}

/// Connections whose events flowed so long before they ended.
fn waits_after(flowed: Duration, end: impl Fn(&mut Shard)) -> Vec<u128> {
    let mut shard = Shard::ready();
    let mut seq = 1;
    waits(&mut shard, 5, |shard| {
        if shard.session.phase() == Phase::AwaitingHello {
            shard.hello();
            if shard.session.id().is_some() {
                seq += 1;
                shard.resumed(seq);
            } else {
                seq = 1;
                assert!(shard.session.handle_identify_granted(shard.now));
                shard.ready_frame(Some(1), "next");
            }
        }
        assert_eq!(shard.session.phase(), Phase::Ready);
        shard.pass(flowed);
        end(shard);
    })
}

#[test]
fn a_connection_that_lasted_is_replaced_at_once() {
    let at_once = [0; 5];
    assert_eq!(waits_after(secs(20), |shard| shard.closed(None)), at_once);
    let op_7 = |shard: &mut Shard| _ = shard.frame(Incoming::Reconnect);
    assert_eq!(waits_after(secs(20), op_7), at_once);
    let undecodable = |shard: &mut Shard| shard.session.handle_undecodable(HALF, shard.now);
    assert_eq!(waits_after(secs(61), undecodable), at_once);
}

#[test]
fn connections_that_end_right_after_their_events_began_to_flow_are_not_hammered() {
    let growing = [0, 750, 1_500, 3_000, 6_000];
    assert_eq!(
        waits_after(Duration::ZERO, |shard| shard.closed(None)),
        growing
    );
    let op_7 = |shard: &mut Shard| _ = shard.frame(Incoming::Reconnect);
    assert_eq!(waits_after(secs(14), op_7), growing);
    let undecodable = |shard: &mut Shard| shard.session.handle_undecodable(HALF, shard.now);
    assert_eq!(waits_after(secs(20), undecodable), growing);
    let void = |shard: &mut Shard| shard.closed(Some(4006));
    assert_eq!(waits_after(secs(20), void), growing);
    let op_9 = |shard: &mut Shard| shard.invalid_session(false);
    assert_eq!(
        waits_after(secs(20), op_9),
        [3_000, 3_000, 3_000, 3_000, 6_000]
    );
}

#[test]
fn what_we_did_wrong_is_never_repeated_at_once() {
    for code in [4001, 4002, 4005, 4008] {
        let end = |shard: &mut Shard| shard.closed(Some(code));
        assert_eq!(waits_after(secs(70), end), [750; 5], "{code}");
        assert_eq!(
            waits_after(secs(20), end),
            [750, 1_500, 3_000, 6_000, 12_000],
            "{code}"
        );
    }
}
