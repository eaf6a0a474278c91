use super::*;
use crate::fleet::TTL;

const MS: Duration = Duration::from_millis(1);
const SETTLE: Duration = Duration::from_secs(3);

fn name(text: &str) -> ProxyId {
    text.parse().unwrap()
}

fn heartbeat(instance: &str, beat: u64) -> Vec<u8> {
    format!(r#"{{"version":"1","instance":"{instance}","beat":{beat},"http":"here:1"}}"#)
        .into_bytes()
}

fn put(view: &mut View, proxy: &str, revision: u64, instance: &str, beat: u64, now: Instant) {
    let value = heartbeat(instance, beat);
    view.handle_put(&name(proxy), revision, &value, now)
        .unwrap();
}

fn listed(now: Instant) -> View {
    let mut view = View::new(name("me"), TTL, SETTLE);
    view.set_instance("me-0".to_owned());
    view.handle_listed(now);
    view
}

fn owner(proxy: &str, instance: &str, revision: u64, seen_at: Instant) -> Owner {
    Owner {
        proxy: name(proxy),
        instance: Some(instance.to_owned()),
        revision,
        seen_at,
    }
}

/// A heartbeat of our own that came back at once.
fn sync(view: &mut View, revision: u64, at: Instant) {
    view.handle_beat_sent(revision, at);
    put(view, "me", revision, "me-0", revision, at + MS);
}

#[test]
fn an_expired_member_is_dead_once_its_silence_was_long_enough_here() {
    let now = Instant::now();
    let mut view = listed(now);
    put(&mut view, "a", 1, "a-0", 1, now);
    let owner = owner("a", "a-0", 2, now);
    assert!(!view.is_dead(&owner, now + 10 * TTL), "nothing says so");
    view.handle_gone(&name("a"), 3, Gone::Expired);
    assert!(view.member(&name("a"), now + 100 * MS).is_none());
    assert!(
        !view.is_dead(&owner, now + 100 * MS),
        "too early to be true"
    );
    assert!(view.is_dead(&owner, now + TTL));
}

#[test]
fn a_deleted_member_may_not_know_yet() {
    let now = Instant::now();
    let mut view = listed(now);
    put(&mut view, "a", 1, "a-0", 1, now);
    view.handle_gone(&name("a"), 3, Gone::Deleted);
    let owner = owner("a", "a-0", 2, now);
    assert!(!view.is_dead(&owner, now + TTL - MS));
    assert!(view.is_dead(&owner, now + TTL));
}

#[test]
fn silence_without_an_expiry_counts_only_when_the_watch_is_proven_alive() {
    let now = Instant::now();
    let mut view = listed(now);
    put(&mut view, "a", 1, "a-0", 1, now);
    let owner = owner("a", "a-0", 1, now);
    sync(&mut view, 2, now + TTL - MS);
    assert!(!view.is_dead(&owner, now + 2 * TTL));
    sync(&mut view, 3, now + TTL);
    assert!(view.is_dead(&owner, now + TTL + MS));
    assert!(
        view.live(now + TTL + MS)
            .all(|(proxy, _)| *proxy == name("me"))
    );
    // It was only slow.
    put(&mut view, "a", 4, "a-0", 2, now + TTL + 2 * MS);
    assert!(view.member(&name("a"), now + TTL + 2 * MS).is_some());
}

#[test]
fn an_echo_that_took_long_proves_nothing() {
    let now = Instant::now();
    let mut view = listed(now);
    put(&mut view, "a", 1, "a-0", 1, now);
    view.handle_beat_sent(7, now + TTL);
    put(&mut view, "me", 2, "me-0", 7, now + TTL + 300 * MS);
    assert!(!view.is_dead(&owner("a", "a-0", 1, now), now + 2 * TTL));
}

#[test]
fn an_instance_that_was_replaced_is_dead() {
    let now = Instant::now();
    let mut view = listed(now);
    put(&mut view, "a", 5, "a-1", 1, now);
    assert!(view.is_dead(&owner("a", "a-0", 4, now), now));
    assert!(!view.is_dead(&owner("a", "a-1", 4, now), now));
}

#[test]
fn a_record_newer_than_the_members_news_is_not_taken_from_it() {
    let now = Instant::now();
    let mut view = listed(now);
    put(&mut view, "a", 5, "a-0", 1, now);
    // The watch skipped the heartbeat with which a-1 joined.
    let newer = owner("a", "a-1", 6, now);
    assert!(!view.is_dead(&newer, now + MS));
    put(&mut view, "a", 7, "a-1", 2, now + 2 * MS);
    assert!(!view.is_dead(&newer, now + 2 * MS));
}

#[test]
fn who_is_nowhere_is_dead_once_the_watch_is_proven_alive() {
    let now = Instant::now();
    let mut view = listed(now);
    let owner = owner("a", "a-0", 1, now);
    assert!(!view.is_dead(&owner, now + 2 * TTL));
    sync(&mut view, 2, now + 10 * MS);
    assert!(view.is_dead(&owner, now + 11 * MS));
}

#[test]
fn a_new_watch_knows_nothing_and_settles_again() {
    let now = Instant::now();
    let mut view = listed(now);
    assert!(!view.is_settled(now + SETTLE - MS));
    assert!(view.is_settled(now + SETTLE));
    view.handle_reset();
    assert!(!view.is_settled(now + 2 * SETTLE));
    assert!(!view.is_dead(&owner("a", "a-0", 1, now), now + 2 * SETTLE));
    view.handle_listed(now + 2 * SETTLE);
    assert!(view.is_settled(now + 3 * SETTLE));
}

#[test]
fn garbage_is_named_and_does_not_count_as_a_sign_of_life() {
    let now = Instant::now();
    let mut view = listed(now);
    put(&mut view, "a", 1, "a-0", 1, now);
    let error = view
        .handle_put(&name("a"), 2, b"{\"version\":7}", now + TTL)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the value of member.a at revision 2 is no member: "),
        "{error}"
    );
    sync(&mut view, 3, now + TTL);
    assert!(view.is_dead(&owner("a", "a-0", 1, now), now + TTL + MS));
}

#[test]
fn a_second_process_with_a_living_ones_name_is_refused_by_name() {
    let now = Instant::now();
    let mut view = listed(now);
    put(&mut view, "me", 1, "other-0", 1, now);
    assert!(matches!(view.admission(now), Admission::Wait(_)));
    put(&mut view, "me", 2, "other-0", 2, now + 500 * MS);
    let Admission::Taken(error) = view.admission(now + 500 * MS) else {
        panic!("it is alive");
    };
    assert_eq!(
        error.to_string(),
        "another process with the proxy id me is alive at here:1; give this one another --proxy-id"
    );
}

#[test]
fn the_name_of_a_dead_process_is_free_once_its_lease_has_ended() {
    let now = Instant::now();
    let mut view = listed(now);
    put(&mut view, "me", 4, "other-0", 1, now);
    let Admission::Wait(until) = view.admission(now) else {
        panic!("it may be alive");
    };
    // The server never removed it.
    let free = |expected_revision| Admission::Free { expected_revision };
    assert_eq!(view.admission(until), free(4));
    // It did.
    view.handle_gone(&name("me"), 5, Gone::Expired);
    assert_eq!(view.admission(now + MS), free(5));
}

#[test]
fn a_process_is_not_refused_for_what_it_wrote_itself_in_an_earlier_life() {
    let now = Instant::now();
    let mut view = listed(now);
    put(&mut view, "me", 1, "me-0", 1, now);
    put(&mut view, "me", 2, "me-0", 2, now + MS);
    view.set_instance("me-1".to_owned());
    assert_eq!(
        view.admission(now + 2 * MS),
        Admission::Free {
            expected_revision: 2
        }
    );
}

#[test]
fn garbage_in_bulk_costs_no_memory() {
    let now = Instant::now();
    let mut view = listed(now);
    let mut refused = 0;
    for number in 0..MEMBERS_MAX + 10 {
        let proxy = name(&format!("x{number}"));
        let result = view.handle_put(&proxy, number as u64, b"", now);
        refused += usize::from(matches!(result, Err(ViewError::TooMany { .. })));
    }
    assert_eq!(refused, 10);
}
