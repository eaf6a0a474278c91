use super::*;
use crate::fleet::{Gone, TTL};

const MS: Duration = Duration::from_millis(1);

fn name(text: &str) -> ProxyId {
    text.parse().unwrap()
}

fn shard(id: u32) -> ShardId {
    ShardId::new(id, 4).unwrap()
}

fn plan(epoch: u64, shards: &[(u32, &str)]) -> Plan {
    Plan {
        epoch,
        shard_count: 4,
        shards: shards
            .iter()
            .map(|(id, proxy)| (*id, name(proxy)))
            .collect(),
        made_at_unix_ms: 0,
        settled: BTreeSet::new(),
        format: Plan::FORMAT,
    }
}

fn record(id: u32, owner: Option<(&str, &str)>) -> ShardRecord {
    let mut record = ShardRecord::new(shard(id));
    record.owner = owner.map(|(proxy, _)| name(proxy));
    record.owner_instance = owner.map(|(_, instance)| instance.to_owned());
    record
}

struct Rig {
    handover: Handover,
    members: View,
    now: Instant,
}

impl Rig {
    /// "me" as "me-0", with "a" as "a-0" and "b" as "b-0" alive; revisions up to 3 are theirs.
    fn new() -> Self {
        let now = Instant::now();
        let mut members = View::new(name("me"), TTL, Duration::ZERO);
        members.handle_listed(now);
        for (revision, proxy) in (1..).zip(["me", "a", "b"]) {
            let value = format!(r#"{{"version":"1","instance":"{proxy}-0"}}"#);
            let put = members.handle_put(&name(proxy), revision, value.as_bytes(), now);
            put.unwrap();
        }
        Self {
            handover: Handover::new(name("me"), "me-0".to_owned()),
            members,
            now,
        }
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.handover.poll_action(&self.members, true, self.now)).collect()
    }

    fn plan(&mut self, epoch: u64, shards: &[(u32, &str)]) -> Vec<Action> {
        self.handover.handle_plan(plan(epoch, shards)).unwrap();
        self.actions()
    }

    fn record(&mut self, id: u32, revision: u64, owner: Option<(&str, &str)>) -> Vec<Action> {
        let record = record(id, owner);
        self.handover
            .handle_record(shard(id), revision, Some(&record), self.now);
        self.actions()
    }

    fn running(&mut self) {
        assert_eq!(self.plan(1, &[(0, "me")]), [claim(shard(0), 0)]);
        self.handover.handle_written(shard(0), 10, self.now);
        assert_eq!(self.actions(), [Action::Start { shard: shard(0) }]);
        assert_eq!(self.handover.hold(shard(0)), Hold::Running);
    }

    fn stopped(&mut self) -> Vec<Action> {
        self.handover.handle_stopped(shard(0), self.now);
        self.actions()
    }
}

#[test]
fn a_free_shard_is_claimed_before_it_is_started() {
    let mut rig = Rig::new();
    rig.running();
    assert_eq!(rig.handover.revision(shard(0)), 10);
    assert_eq!(rig.handover.held().count(), 1);
}

#[test]
fn a_living_ones_shard_is_waited_for_and_a_released_one_is_taken() {
    let mut rig = Rig::new();
    rig.record(0, 10, Some(("a", "a-0")));
    assert_eq!(rig.plan(1, &[(0, "me")]), []);
    assert_eq!(rig.record(0, 11, None), [claim(shard(0), 11)]);
}

#[test]
fn a_dead_ones_shard_is_taken_when_its_lease_has_certainly_ended() {
    let mut rig = Rig::new();
    rig.record(0, 10, Some(("a", "a-0")));
    rig.plan(1, &[(0, "me")]);
    rig.members.handle_gone(&name("a"), 11, Gone::Expired);
    assert_eq!(rig.actions(), []);
    rig.now += TTL;
    assert_eq!(rig.actions(), [claim(shard(0), 10)]);
}

#[test]
fn nothing_happens_without_a_lease_or_before_the_view_is_complete() {
    let mut rig = Rig::new();
    rig.handover.handle_plan(plan(1, &[(0, "me")])).unwrap();
    assert_eq!(rig.handover.poll_action(&rig.members, false, rig.now), None);
    let unlisted = View::new(name("me"), TTL, Duration::ZERO);
    assert_eq!(rig.handover.poll_action(&unlisted, true, rig.now), None);
    assert_eq!(rig.actions(), [claim(shard(0), 0)]);
}

#[test]
fn a_shard_is_given_away_by_stopping_then_releasing() {
    let mut rig = Rig::new();
    rig.running();
    assert_eq!(rig.plan(2, &[(0, "a")]), [Action::Stop { shard: shard(0) }]);
    assert_eq!(rig.stopped(), [release(shard(0), 10)]);
    rig.handover.handle_written(shard(0), 11, rig.now);
    assert_eq!(rig.actions(), []);
    assert_eq!(rig.handover.held().count(), 0);
}

#[test]
fn a_shard_planned_for_one_that_is_not_there_goes_on_running() {
    let mut rig = Rig::new();
    rig.running();
    assert_eq!(rig.plan(2, &[(0, "nobody")]), []);
    assert_eq!(rig.handover.hold(shard(0)), Hold::Running);
    assert_eq!(rig.plan(3, &[(0, "b")]), [Action::Stop { shard: shard(0) }]);
}

#[test]
fn a_shard_that_another_holds_by_the_record_is_abandoned_without_a_write() {
    let mut rig = Rig::new();
    rig.running();
    let actions = rig.record(0, 11, Some(("a", "a-0")));
    assert_eq!(actions, [Action::Abandon { shard: shard(0) }]);
    assert_eq!(rig.stopped(), []);
    assert_eq!(rig.handover.hold(shard(0)), Hold::Away);
}

#[test]
fn a_claim_that_arrives_after_all_is_used_or_given_back() {
    let mut rig = Rig::new();
    rig.plan(1, &[(0, "me")]);
    rig.handover.handle_unwritten(shard(0), rig.now);
    assert_eq!(rig.actions(), []);
    rig.now += RETRY_AFTER;
    let seen = rig.record(0, 10, Some(("me", "me-0")));
    assert_eq!(seen, [Action::Start { shard: shard(0) }]);

    let mut rig = Rig::new();
    rig.plan(1, &[(0, "me")]);
    rig.handover.handle_unwritten(shard(0), rig.now);
    rig.now += RETRY_AFTER;
    rig.plan(2, &[(0, "a")]);
    let seen = rig.record(0, 10, Some(("me", "me-0")));
    assert_eq!(seen, [release(shard(0), 10)]);
}

#[test]
fn a_shard_that_comes_back_while_its_release_may_still_arrive_is_claimed_again() {
    let mut rig = Rig::new();
    rig.running();
    rig.plan(2, &[(0, "a")]);
    rig.stopped();
    rig.handover.handle_unwritten(shard(0), rig.now);
    rig.now += RETRY_AFTER;
    assert_eq!(rig.plan(3, &[(0, "me")]), [claim(shard(0), 10)]);
    rig.handover.handle_written(shard(0), 11, rig.now);
    assert_eq!(rig.actions(), [Action::Start { shard: shard(0) }]);
}

#[test]
fn a_regular_write_answered_late_is_not_taken_for_the_release() {
    let mut rig = Rig::new();
    rig.running();
    rig.plan(2, &[(0, "a")]);
    assert_eq!(rig.stopped(), [release(shard(0), 10)]);
    rig.handover.handle_recorded(shard(0), 11, rig.now);
    assert_eq!(rig.handover.hold(shard(0)), Hold::Releasing);
    rig.handover.handle_unwritten(shard(0), rig.now);
    rig.now += RETRY_AFTER;
    assert_eq!(rig.actions(), [release(shard(0), 11)]);
}

#[test]
fn a_fenced_member_starts_from_nothing_under_its_new_name() {
    let mut rig = Rig::new();
    rig.running();
    rig.handover.handle_fenced("me-1".to_owned());
    assert_eq!(rig.handover.held().count(), 0);
    // Its old name is dead once the new one is seen.
    assert_eq!(rig.actions(), []);
    let value = br#"{"version":"1","instance":"me-1"}"#;
    rig.members
        .handle_put(&name("me"), 12, value, rig.now)
        .unwrap();
    assert_eq!(rig.actions(), [claim(shard(0), 10)]);
}

#[test]
fn only_so_many_shards_stop_at_the_same_moment() {
    let mut rig = Rig::new();
    let count = 40;
    let wide = |epoch, proxy: &str| Plan {
        shard_count: count,
        shards: (0..count).map(|id| (id, name(proxy))).collect(),
        ..plan(epoch, &[])
    };
    rig.handover.handle_plan(wide(1, "me")).unwrap();
    assert_eq!(rig.actions().len(), count as usize);
    for id in 0..count {
        let shard = ShardId::new(id, count).unwrap();
        rig.handover
            .handle_written(shard, 100 + u64::from(id), rig.now);
    }
    assert_eq!(rig.actions().len(), count as usize);
    rig.handover.handle_plan(wide(2, "a")).unwrap();
    let stops = rig.actions();
    assert_eq!(stops.len(), STOPPING_MAX);
    let Action::Stop { shard } = stops[0] else {
        panic!("{stops:?}");
    };
    rig.handover.handle_stopped(shard, rig.now + MS);
    let next = rig.actions();
    assert_eq!(next.len(), 2, "one is released, another stops: {next:?}");
}

#[test]
fn plans_that_cannot_be_followed_are_named_and_change_nothing() {
    let mut rig = Rig::new();
    rig.running();
    let mut newer = plan(2, &[]);
    newer.format = 2;
    let beyond = plan(3, &[(4, "me")]);
    let mut empty = plan(4, &[]);
    empty.shard_count = 0;
    for (plan, text) in [
        (
            newer,
            "the plan has format 2, this version knows 1: it is not followed",
        ),
        (
            beyond,
            "the plan names shard 4 of 4 shards and is not followed",
        ),
        (
            empty,
            "the plan names shard 0 of 0 shards and is not followed",
        ),
    ] {
        let error = rig.handover.handle_plan(plan).unwrap_err();
        assert_eq!(error.to_string(), text);
        assert_eq!(rig.actions(), []);
    }
    // One put back by hand is followed, and the next is newer than all.
    rig.plan(9, &[(0, "me")]);
    rig.plan(3, &[(0, "me")]);
    assert_eq!(rig.handover.next_epoch(), 10);
}
