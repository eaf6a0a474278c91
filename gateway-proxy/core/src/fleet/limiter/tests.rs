use schemas::ProxyId;
use schemas::control::IdentifyPriority::{self, Failed, Growth, Start};

use super::*;

const MS: Duration = Duration::from_millis(1);
const UNIX_MS: u64 = 1_800_000_000_000;

fn budget(remaining: u32) -> SessionBudget {
    SessionBudget {
        total: 1_000,
        remaining,
        reset_at_unix_ms: UNIX_MS + 3_600_000,
    }
}

/// One coordinator with a bucket of its own, time that is told.
struct Rig {
    limiter: Limiter,
    start: Instant,
    at: Duration,
    stored: IdentifyState,
    revision: u64,
    tickets: u64,
    shards: BTreeMap<Ticket, u32>,
    asked_discord: u32,
}

impl Rig {
    fn new(max_concurrency: u32, remaining: u32) -> Self {
        let start = Instant::now();
        let mut limiter = Limiter::new(20);
        limiter.handle_budget(budget(remaining), max_concurrency, start);
        limiter.lead(1);
        let mut rig = Self {
            limiter,
            start,
            at: Duration::ZERO,
            stored: IdentifyState::default(),
            revision: 0,
            tickets: 0,
            shards: BTreeMap::new(),
            asked_discord: 0,
        };
        assert!(rig.run().is_empty());
        rig
    }

    fn now(&self) -> Instant {
        self.start + self.at
    }

    fn ask(&mut self, proxy: &str, id: u32, priority: IdentifyPriority) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.shards.insert(ticket, id);
        let request = IdentifyRequest {
            proxy: proxy.parse::<ProxyId>().unwrap(),
            shard: ShardId::new(id, 64).unwrap(),
            priority,
            reason: None,
            report: None,
        };
        self.limiter.handle_request(ticket, &request, self.now());
    }

    /// Carries out what is asked for; the shards that were granted, with their grants.
    fn run(&mut self) -> Vec<(u32, u64)> {
        let mut granted = Vec::new();
        let unix_ms = UNIX_MS + self.at.as_millis() as u64;
        while let Some(action) = self.limiter.poll_action(self.now(), unix_ms) {
            match action {
                Action::Store {
                    expected_revision,
                    state,
                } => {
                    assert_eq!(expected_revision, self.revision);
                    self.revision += 1;
                    self.stored = state;
                    self.limiter.handle_stored(self.revision, self.now());
                }
                Action::Answer { ticket, reply } => {
                    if let Some(grant) = reply.grant {
                        granted.push((self.shards[&ticket], grant));
                    }
                }
                Action::AskDiscord => self.asked_discord += 1,
            }
        }
        granted
    }

    fn granted(&mut self) -> Vec<u32> {
        self.run().into_iter().map(|(shard, _)| shard).collect()
    }

    fn report(&mut self, grant: u64, outcome: IdentifyOutcome) {
        let report = IdentifyReport { grant, outcome };
        self.limiter.handle_report(report, self.now());
    }

    /// Sent and ready at once, then past the period.
    fn finish(&mut self, granted: &[(u32, u64)]) {
        for (_, grant) in granted {
            self.report(*grant, IdentifyOutcome::Sent);
            self.report(*grant, IdentifyOutcome::Ready);
        }
        self.at += PERIOD;
    }
}

#[test]
fn nothing_is_granted_before_it_is_stored() {
    let mut rig = Rig::new(2, 1_000);
    rig.ask("a", 0, Start);
    let Some(Action::Store { state, .. }) = rig.limiter.poll_action(rig.now(), UNIX_MS) else {
        panic!("stored first");
    };
    assert_eq!(
        (state.grants, state.last_grant_unix_ms),
        (1, [(0, UNIX_MS)].into())
    );
    assert_eq!(state.budget.unwrap().remaining, 999);
    let next = rig.limiter.poll_action(rig.now(), UNIX_MS);
    assert!(matches!(next, None | Some(Action::AskDiscord)), "{next:?}");
    // Nobody knows whether it arrived: nobody is told, and the same bucket is tried again.
    rig.limiter.handle_store_failed(rig.now());
    assert_eq!(rig.limiter.budget().unwrap().remaining, 1_000);
    rig.at += RETRY_AFTER;
    assert_eq!(rig.granted(), [0]);
}

#[test]
fn a_bucket_waits_for_the_report_and_without_it_until_the_grant_has_ended() {
    let mut rig = Rig::new(1, 1_000);
    rig.ask("a", 0, Start);
    let granted = rig.run();
    rig.at += 100 * MS;
    rig.report(granted[0].1, IdentifyOutcome::Sent);
    rig.at += PERIOD - MS;
    rig.ask("a", 1, Start);
    assert!(rig.run().is_empty());
    rig.at += MS;
    assert_eq!(rig.granted(), [1]);
    // No report this time.
    rig.at += GOOD_FOR + PERIOD - MS;
    rig.ask("a", 2, Start);
    assert!(rig.run().is_empty());
    rig.at += MS;
    assert_eq!(rig.granted(), [2]);
}

#[test]
fn a_grant_that_was_not_used_frees_the_bucket_and_costs_nothing() {
    let mut rig = Rig::new(1, 1_000);
    rig.ask("a", 0, Start);
    let granted = rig.run();
    rig.report(granted[0].1, IdentifyOutcome::Unused);
    assert_eq!(rig.limiter.budget().unwrap().remaining, 1_000);
    rig.ask("a", 1, Start);
    assert_eq!(rig.granted(), [1]);
    // Told twice, or of somebody else's grant: void.
    rig.report(granted[0].1, IdentifyOutcome::Unused);
    rig.report(77, IdentifyOutcome::Unused);
    assert_eq!(rig.limiter.budget().unwrap().remaining, 999);
}

#[test]
fn buckets_start_in_order_lost_sessions_first_growth_last() {
    let mut rig = Rig::new(4, 1_000);
    for id in (0..12).rev() {
        rig.ask("a", id, if id < 4 { Growth } else { Start });
    }
    rig.ask("a", 9, Failed);
    let first = rig.run();
    let mut shards: Vec<u32> = first.iter().map(|(shard, _)| *shard).collect();
    shards.sort_unstable();
    assert_eq!(shards, [4, 6, 7, 9]);
}

#[test]
fn lost_sessions_are_served_in_turns_between_the_proxies() {
    let mut rig = Rig::new(1, 1_000);
    let mut order = Vec::new();
    for _ in 0..6 {
        for id in 0..3 {
            rig.ask("a", id, Failed);
            rig.ask("b", 10 + id, Failed);
        }
        let granted = rig.run();
        order.push(if granted[0].0 < 10 { 'a' } else { 'b' });
        rig.finish(&granted);
    }
    assert_eq!(order.iter().collect::<String>(), "ababab");
}

#[test]
fn a_shard_that_fails_again_and_again_does_not_starve_the_others() {
    let mut rig = Rig::new(1, 1_000);
    let mut healthy = 0;
    for _ in 0..6 {
        rig.ask("a", 0, Failed);
        rig.ask("b", 1, Start);
        let granted = rig.run();
        healthy += usize::from(granted[0].0 == 1);
        let failed = granted[0].0 == 0;
        rig.report(granted[0].1, IdentifyOutcome::Sent);
        if failed {
            rig.report(granted[0].1, IdentifyOutcome::Failed);
        } else {
            rig.report(granted[0].1, IdentifyOutcome::Ready);
        }
        rig.at += PERIOD;
    }
    assert_eq!(healthy, 3);
}

#[test]
fn the_reserve_is_kept_and_the_wait_names_the_reset() {
    let mut rig = Rig::new(4, 202);
    for id in 0..4 {
        rig.ask("a", id, Failed);
    }
    assert_eq!(rig.granted(), [0, 1]);
    let reset = UNIX_MS + 3_600_000;
    assert_eq!(rig.limiter.hold(rig.now()), Hold::Reserve(reset));
    assert_eq!(rig.stored.budget.unwrap().remaining, 200);
    // The next day Discord is asked before anything is granted.
    rig.at = Duration::from_millis(3_600_000);
    rig.ask("a", 2, Failed);
    assert!(rig.run().is_empty());
    assert_eq!(rig.limiter.hold(rig.now()), Hold::BudgetUnknown);
    let fresh = SessionBudget {
        remaining: 1_000,
        reset_at_unix_ms: UNIX_MS + DAY_MS,
        ..budget(1_000)
    };
    rig.limiter.handle_budget(fresh, 4, rig.now());
    assert_eq!(rig.granted(), [2]);
}

#[test]
fn a_day_that_discord_cannot_be_asked_about_begins_all_the_same() {
    let mut rig = Rig::new(1, 200);
    rig.at = Duration::from_millis(3_600_000) + SKEW_MAX;
    rig.ask("a", 2, Failed);
    assert_eq!(rig.granted(), [2]);
}

#[test]
fn what_is_granted_while_discord_is_asked_is_not_in_its_answer() {
    let mut rig = Rig::new(4, 1_000);
    let asked_at = rig.now();
    rig.ask("a", 0, Start);
    rig.run();
    rig.limiter.handle_budget(budget(990), 4, asked_at);
    assert_eq!(rig.limiter.budget().unwrap().remaining, 989);
}

#[test]
fn failing_identifies_pause_all_and_one_try_opens_again() {
    let mut rig = Rig::new(1, 1_000);
    for id in 0..FAILURES_MAX {
        rig.ask("a", id, Start);
        let granted = rig.run();
        rig.report(granted[0].1, IdentifyOutcome::Failed);
        rig.at += PERIOD;
    }
    rig.ask("a", 40, Start);
    rig.ask("a", 41, Start);
    assert!(rig.run().is_empty());
    let Hold::Failing(until) = rig.limiter.hold(rig.now()) else {
        panic!("it does not pause");
    };
    rig.at = until - rig.start;
    rig.ask("a", 40, Start);
    let tried = rig.run();
    assert_eq!(tried.len(), 1);
    rig.at += 2 * PERIOD;
    rig.ask("a", 41, Start);
    assert!(rig.run().is_empty(), "one at a time");
    rig.report(tried[0].1, IdentifyOutcome::Ready);
    assert_eq!(rig.granted(), [41]);
}

#[test]
fn a_failed_try_pauses_longer_and_a_successor_knows() {
    let mut rig = Rig::new(1, 1_000);
    let mut pauses = Vec::new();
    for id in 0..FAILURES_MAX + 4 {
        if let Hold::Failing(until) = rig.limiter.hold(rig.now()) {
            pauses.push((until - rig.now()).as_secs());
            rig.at = until - rig.start;
        }
        rig.ask("a", id, Start);
        let granted = rig.run();
        rig.ask("a", 63, Growth);
        rig.report(granted[0].1, IdentifyOutcome::Failed);
        rig.at += PERIOD;
    }
    assert_eq!(pauses.len(), 4);
    assert!(pauses.is_sorted() && pauses[0] < pauses[3], "{pauses:?}");
    let mut successor = Limiter::new(20);
    successor.handle_state(9, Some(rig.stored.clone()), rig.now(), UNIX_MS);
    assert!(rig.stored.failures >= FAILURES_MAX);
    assert_eq!(successor.breaker.room(rig.now()), 1);
}

#[test]
fn a_change_of_max_concurrency_keeps_every_pause() {
    let mut rig = Rig::new(1, 1_000);
    rig.ask("a", 0, Start);
    let granted = rig.run();
    rig.report(granted[0].1, IdentifyOutcome::Sent);
    rig.limiter.handle_budget(budget(999), 16, rig.now());
    rig.ask("a", 5, Start);
    assert!(rig.run().is_empty());
    rig.at += PERIOD;
    rig.ask("a", 5, Start);
    rig.ask("a", 6, Start);
    assert_eq!(rig.granted(), [5, 6]);
    rig.limiter.handle_budget(budget(999), 2, rig.now());
    rig.at += 100 * MS;
    rig.ask("a", 7, Start);
    assert!(rig.run().is_empty());
}

#[test]
fn a_successor_waits_for_what_it_saw_and_not_for_what_it_saw_long_ago() {
    let start = Instant::now();
    let mut state = IdentifyState {
        epoch: 4,
        max_concurrency: 2,
        last_grant_unix_ms: [(0, UNIX_MS)].into(),
        budget: Some(budget(900)),
        grants: 7,
        failures: 0,
    };
    let mut watcher = Limiter::new(20);
    // Its clock is an hour off: the grant is taken for an old one, but the next is seen to come.
    let off = UNIX_MS + 3_000_000;
    watcher.handle_state(1, Some(state.clone()), start, off);
    assert!(watcher.buckets.is_free(0, start));
    state.last_grant_unix_ms.insert(1, UNIX_MS + 5);
    watcher.handle_state(2, Some(state.clone()), start + MS, off);
    assert!(!watcher.buckets.is_free(1, start + GOOD_FOR + PERIOD));
    assert!(watcher.buckets.is_free(1, start + MS + GOOD_FOR + PERIOD));
    // One that sees it for the first time, with a clock that is minutes off, waits.
    let mut newcomer = Limiter::new(20);
    newcomer.handle_state(2, Some(state), start, UNIX_MS + 300_000);
    assert!(!newcomer.buckets.is_free(0, start + GOOD_FOR));
    assert_eq!(newcomer.stored_epoch(), 4);
    assert_eq!(newcomer.budget().unwrap().remaining, 900);
}

#[test]
fn a_coordinator_whose_epoch_is_over_gives_nothing_more() {
    let mut rig = Rig::new(1, 1_000);
    rig.ask("a", 0, Start);
    let store = rig.limiter.poll_action(rig.now(), UNIX_MS);
    assert!(matches!(store, Some(Action::Store { .. })));
    let newer = IdentifyState {
        epoch: 2,
        max_concurrency: 1,
        ..rig.stored.clone()
    };
    rig.limiter.handle_state(9, Some(newer), rig.now(), UNIX_MS);
    rig.limiter.handle_store_refused(rig.now());
    assert!(!rig.limiter.is_leading());
    assert!(rig.run().is_empty());
}

#[test]
fn our_own_write_seen_before_its_answer_is_not_anothers() {
    let mut rig = Rig::new(1, 1_000);
    rig.ask("a", 0, Start);
    let Some(Action::Store { state, .. }) = rig.limiter.poll_action(rig.now(), UNIX_MS) else {
        panic!("stored first");
    };
    rig.limiter.handle_state(2, Some(state), rig.now(), UNIX_MS);
    rig.limiter.handle_stored(2, rig.now());
    rig.revision = 2;
    let granted = rig.run();
    rig.finish(&granted);
    rig.ask("a", 1, Start);
    assert_eq!(rig.granted(), [1]);
}

#[test]
fn who_waits_is_told_when_to_come_again_and_keeps_its_place() {
    let mut rig = Rig::new(1, 1_000);
    for id in 0..3 {
        rig.ask("a", id, Start);
    }
    let granted = rig.run();
    assert_eq!(granted.len(), 1);
    rig.report(granted[0].1, IdentifyOutcome::Sent);
    rig.at += HELD_FOR;
    let mut waits = Vec::new();
    while let Some(action) = rig.limiter.poll_action(rig.now(), UNIX_MS) {
        if let Action::Answer { reply, .. } = action {
            assert_eq!(reply.status, IdentifyStatus::Wait);
            waits.push(Duration::from_millis(reply.wait_ms.unwrap()));
        }
    }
    let first = PERIOD - HELD_FOR - COME_EARLIER;
    assert_eq!(waits, [first, first + PERIOD]);
    assert_eq!(rig.limiter.waiting(), 2);
    // Who never comes again loses it.
    rig.at += Duration::from_secs(60);
    rig.run();
    assert_eq!(rig.limiter.waiting(), 0);
}

#[test]
fn whoever_stopped_waiting_is_not_granted() {
    let mut rig = Rig::new(1, 1_000);
    rig.ask("a", 0, Start);
    rig.limiter.handle_cancelled(Ticket(1));
    assert!(rig.run().is_empty());
    assert_eq!(rig.limiter.hold(rig.now()), Hold::None);
}

#[test]
fn a_permit_counts_from_when_it_was_asked_for() {
    let start = Instant::now();
    let mut reply = IdentifyReply {
        status: IdentifyStatus::Granted,
        wait_ms: Some(60_000),
        reason: None,
        epoch: 1,
        remaining: None,
        reset_at_unix_ms: None,
        grant: Some(3),
    };
    let permit = Permit::of(&reply, start).unwrap();
    assert!(permit.is_good(start + GOOD_FOR - MS));
    assert!(!permit.is_good(start + GOOD_FOR));
    reply.status = IdentifyStatus::Wait;
    assert_eq!(Permit::of(&reply, start), None);
}

#[test]
fn the_time_to_the_full_start_counts_the_waves() {
    let rig = Rig::new(16, 1_000);
    let time = rig.limiter.time_for(0..256, rig.now());
    assert_eq!(time, PERIOD * 15);
    assert_eq!(rig.limiter.time_for(0..0, rig.now()), Duration::ZERO);
}

#[test]
fn ten_thousand_that_ask_at_once_do_not_hold_the_coordinator_up() {
    let mut limiter = Limiter::new(0);
    let now = Instant::now();
    let all = SessionBudget {
        total: 20_000,
        remaining: 20_000,
        reset_at_unix_ms: UNIX_MS + DAY_MS,
    };
    limiter.handle_budget(all, 64, now);
    limiter.lead(1);
    let mut stores = 0;
    let mut answers = 0;
    for id in 0..10_000 {
        let request = IdentifyRequest {
            proxy: "a".parse::<ProxyId>().unwrap(),
            shard: ShardId::new(id, 10_000).unwrap(),
            priority: Start,
            reason: None,
            report: None,
        };
        limiter.handle_request(Ticket(u64::from(id)), &request, now);
        while let Some(action) = limiter.poll_action(now, UNIX_MS) {
            match action {
                Action::Store { .. } => {
                    stores += 1;
                    limiter.handle_stored(stores, now);
                }
                Action::Answer { .. } => answers += 1,
                Action::AskDiscord => {}
            }
        }
    }
    assert_eq!(answers, 64);
    assert!(stores <= 65);
}
