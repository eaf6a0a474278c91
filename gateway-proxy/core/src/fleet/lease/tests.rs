use super::*;
use crate::fleet::TTL;

const MS: Duration = Duration::from_millis(1);

fn name(text: &str) -> ProxyId {
    text.parse().unwrap()
}

/// Members as (name, priority, started at), all alive.
fn view(members: &[(&str, i64, u64)], now: Instant) -> View {
    let mut view = View::new(name("me"), TTL, Duration::ZERO);
    view.handle_listed(now);
    for (number, (proxy, priority, started)) in members.iter().enumerate() {
        let value = format!(
            r#"{{"version":"1","coordinator_priority":{priority},"started_at_unix_ms":{started},
                "instance":"{proxy}"}}"#
        );
        let revision = number as u64 + 1;
        view.handle_put(&name(proxy), revision, value.as_bytes(), now)
            .unwrap();
    }
    view
}

fn leader(proxy: &str, epoch: u64) -> Option<Leader> {
    Some(Leader {
        proxy: name(proxy),
        epoch,
        lease_ttl_ms: None,
        priority: 0,
        since_unix_ms: 0,
    })
}

fn acquire(expected_revision: u64, epoch: u64) -> Action {
    Action::Acquire {
        expected_revision,
        epoch,
    }
}

/// Waits as long as told until something is to be done.
fn patiently(candidate: &mut Candidate, view: &View, mut now: Instant) -> (Action, Instant) {
    for _ in 0..20 {
        match candidate.observe(view, true, now) {
            Action::Wait(until) => now = until,
            action => return (action, now),
        }
    }
    panic!("it waits for ever");
}

#[test]
fn the_best_of_the_living_takes_a_vacant_lease_at_once() {
    let now = Instant::now();
    let best = [
        [("me", 1, 9), ("other", 0, 1)],
        [("me", 0, 1), ("other", 0, 2)],
        [("me", 0, 1), ("other", 0, 1)],
    ];
    for members in best {
        let mut candidate = Candidate::new(name("me"), TTL);
        let action = candidate.observe(&view(&members, now), true, now);
        assert_eq!(action, acquire(0, 1), "{members:?}");
        candidate.handle_written(5, now, now + MS);
        assert_eq!(candidate.leads(now + MS), Some(1));
    }
}

#[test]
fn the_second_best_waits_for_the_best_but_not_for_ever() {
    let now = Instant::now();
    let view = view(&[("me", 0, 5), ("old", 0, 1), ("high", 1, 9)], now);
    let mut candidate = Candidate::new(name("me"), TTL);
    let (action, at) = patiently(&mut candidate, &view, now);
    assert_eq!(action, acquire(0, 1));
    assert_eq!(at, now + 500 * MS);
}

#[test]
fn a_lease_is_dead_when_it_has_not_changed_for_a_ttl_here() {
    let now = Instant::now();
    let view = view(&[("me", 0, 5), ("old", 0, 1)], now);
    let mut candidate = Candidate::new(name("me"), TTL);
    candidate.handle_put(7, leader("old", 3), now);
    let (action, at) = patiently(&mut candidate, &view, now);
    // The one that let it end does not count as better.
    assert_eq!(action, acquire(7, 4));
    assert!(at >= now + TTL && at <= now + TTL + 300 * MS);
}

#[test]
fn an_expired_lease_is_taken_at_once_under_the_next_epoch() {
    let now = Instant::now();
    let view = view(&[("me", 0, 5), ("old", 0, 1)], now);
    let mut candidate = Candidate::new(name("me"), TTL);
    candidate.handle_put(7, leader("old", 3), now);
    candidate.handle_epoch(11);
    candidate.handle_gone(8, Gone::Expired);
    assert_eq!(candidate.observe(&view, true, now), acquire(8, 12));
}

#[test]
fn who_is_no_member_takes_nothing_and_gives_up_what_it_has() {
    let now = Instant::now();
    let view = view(&[("me", 0, 5)], now);
    let mut candidate = Candidate::new(name("me"), TTL);
    assert!(matches!(
        candidate.observe(&view, false, now),
        Action::Wait(_)
    ));
    assert_eq!(candidate.observe(&view, true, now), acquire(0, 1));
    candidate.handle_written(1, now, now);
    let down = candidate.observe(&view, false, now + MS);
    assert_eq!(down, Action::StepDown { delete: None });
    assert_eq!(candidate.leads(now + MS), None);
}

#[test]
fn a_coordinator_that_cannot_renew_stops_before_its_lease_ends() {
    let now = Instant::now();
    let view = view(&[("me", 0, 5)], now);
    let mut candidate = Candidate::new(name("me"), TTL);
    candidate.observe(&view, true, now);
    candidate.handle_written(1, now, now);
    let renew = Action::Renew {
        expected_revision: 1,
        epoch: 1,
    };
    assert_eq!(candidate.observe(&view, true, now + 500 * MS), renew);
    candidate.handle_failed(now + 1_000 * MS);
    assert_eq!(candidate.observe(&view, true, now + 1_200 * MS), renew);
    assert_eq!(candidate.leads(now + 1_500 * MS), None);
    let down = candidate.observe(&view, true, now + 1_500 * MS);
    assert_eq!(down, Action::StepDown { delete: None });
}

#[test]
fn a_lease_that_another_took_is_lost_at_once() {
    let now = Instant::now();
    let view = view(&[("me", 0, 5), ("other", 0, 9)], now);
    let mut candidate = Candidate::new(name("me"), TTL);
    candidate.observe(&view, true, now);
    candidate.handle_written(1, now, now);
    candidate.handle_put(2, leader("other", 2), now + MS);
    assert_eq!(candidate.leads(now + MS), None);
    let down = candidate.observe(&view, true, now + MS);
    assert_eq!(down, Action::StepDown { delete: None });
}

#[test]
fn a_higher_priority_that_stays_gets_the_lease_and_an_older_one_does_not() {
    let now = Instant::now();
    let lead = |members: &[(&str, i64, u64)]| {
        let mut candidate = Candidate::new(name("me"), TTL);
        candidate.observe(&view(&[("me", 0, 5)], now), true, now);
        candidate.handle_written(1, now, now);
        let view = view(members, now);
        let mut at = now;
        loop {
            at += 400 * MS;
            match candidate.observe(&view, true, at) {
                Action::Renew {
                    expected_revision, ..
                } => candidate.handle_written(expected_revision + 1, at, at),
                Action::StepDown { delete } => return Some((delete, at)),
                _ => {}
            }
            if at > now + 2 * HAND_BACK_AFTER {
                return None;
            }
        }
    };
    assert_eq!(lead(&[("me", 0, 5), ("older", 0, 1)]), None);
    let (delete, at) = lead(&[("me", 0, 5), ("higher", 1, 9)]).unwrap();
    assert!(delete.is_some());
    assert!(at >= now + HAND_BACK_AFTER);
}

#[test]
fn garbage_in_the_key_ends_like_a_lease() {
    let now = Instant::now();
    let view = view(&[("me", 0, 5)], now);
    let mut candidate = Candidate::new(name("me"), TTL);
    candidate.handle_put(4, None, now);
    let (action, at) = patiently(&mut candidate, &view, now);
    assert_eq!(action, acquire(4, 1));
    assert!(at >= now + TTL);
}

#[test]
fn a_coordinator_to_be_whose_answer_got_lost_tries_again() {
    let now = Instant::now();
    let view = view(&[("me", 0, 5)], now);
    let mut candidate = Candidate::new(name("me"), TTL);
    assert_eq!(candidate.observe(&view, true, now), acquire(0, 1));
    let (action, at) = patiently(&mut candidate, &view, now);
    assert_eq!(action, acquire(0, 1));
    assert!(at >= now + TTL && at < now + 2 * TTL);
}
