//! Everything that Discord can do wrong, at every moment at which it hurts: one shard per fault, all
//! at once, and the stream is what Discord sent. What can be resumed spends no session.

use std::time::Duration;

use nix::sys::signal::Signal;
use testkit::audit::AuditReport;
use testkit::simulator::{
    Action, Compression, Config, Fault, GuildBytes, Load, Moment, Rule, SessionState, Target,
};

use crate::harness::{Proxy, eventually, patience};
use crate::rig::{Rig, until};

/// Guilds per shard, on average: what a start brings, and how much a burst adds.
const GUILDS: usize = 12;

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(20);

/// Says that heartbeats were missed; but as the answer to RESUME that the session is gone, which is
/// then replaced.
const SESSION_TIMED_OUT: Fault = Fault::Close { code: 4009 };

/// Faults after which the session goes on, whenever they come.
fn resumable() -> Vec<Fault> {
    let mut faults = vec![
        Fault::DropTcp,
        Fault::HalfOpen {
            read: true,
            write: true,
        },
        Fault::HalfOpen {
            read: false,
            write: true,
        },
        Fault::HalfOpen {
            read: true,
            write: false,
        },
        Fault::Reconnect,
        Fault::InvalidSession { resumable: true },
        Fault::DelayAcks { ms: 300 },
        Fault::SwallowAcks { count: None },
        Fault::SwallowAcks { count: Some(2) },
        Fault::RequestHeartbeat,
        Fault::CorruptCompression,
        Fault::MalformedJson,
        Fault::NonUtf8,
        Fault::TruncatedJson,
        Fault::TruncatedFrame,
        Fault::DecompressionBomb { bytes: 80 << 20 },
        Fault::UnknownOpcode,
        Fault::UnknownEvent,
        Fault::SeqBackwards { by: 0 },
        Fault::SeqBackwards { by: 4 },
        Fault::MissingFields,
        Fault::SlowWrites {
            bytes_per_second: 30_000,
        },
        Fault::SlowReads {
            bytes_per_second: 200,
        },
        Fault::Silent { ms: 1_500 },
    ];
    let codes = [1000, 1001, 1011, 3000, 4000, 4001, 4002, 4005, 4008, 4999];
    faults.extend(codes.map(|code| Fault::Close { code }));
    faults
}

/// Faults that end it.
fn fatal_to_the_session() -> Vec<Fault> {
    let mut faults = vec![Fault::InvalidSession { resumable: false }];
    faults.extend([4003, 4006, 4007].map(|code| Fault::Close { code }));
    faults
}

/// A shard per fault, all up.
struct Table {
    rig: Rig,
    proxy: Proxy,
    faults: Vec<Fault>,
    /// Faults from here on end the session.
    fatal_from: usize,
    /// Sessions begun before any fault: a start on a busy machine may need some more.
    begun: usize,
    http: std::net::SocketAddr,
}

impl Table {
    async fn start(extra: &[Fault], config: Config, args: &[&str]) -> Self {
        let mut faults = resumable();
        faults.extend_from_slice(extra);
        let fatal_from = faults.len();
        faults.extend(fatal_to_the_session());
        let shards = u32::try_from(faults.len()).unwrap();
        let rig = Rig::start(Config {
            guilds: GUILDS * faults.len(),
            shards,
            max_concurrency: shards,
            heartbeat_interval: Duration::from_secs(3),
            // A second for machines on which everything comes late.
            identify_window: Duration::from_secs(4),
            heartbeat_tolerance: 2.5,
            reconnect_grace: Duration::from_secs(2),
            guild_bytes: GuildBytes {
                median: 2_000,
                max: 20_000,
                ..GuildBytes::default()
            },
            // Sessions that end before the proxy knew them are resumed by nobody.
            replay_ttl: Duration::from_secs(20),
            ..config
        })
        .await;
        let proxy = rig.proxy().args(args).spawn();
        let http = proxy.http().await;
        eventually(http, "/ready", |status, _| status == 200).await;
        let mut table = Self {
            begun: 0,
            rig,
            proxy,
            faults,
            fatal_from,
            http,
        };
        table.rig.caught_up(&[&table.proxy]).await;
        table.begun = usize::try_from(table.rig.simulator.stats().identifies).unwrap();
        table
            .rig
            .simulator
            .set_load(Load::rate(4.0 * f64::from(shards)));
        table
    }

    fn cases(&self) -> impl Iterator<Item = (Target, Fault)> {
        let shards = 0_u32..;
        shards.map(Target::Shard).zip(self.faults.iter().cloned())
    }

    /// Lays each shard's fault in ambush.
    fn lay(&self, moment: Moment) {
        for (target, fault) in self.cases() {
            let action = Action::Ambush {
                target,
                moment,
                fault,
            };
            assert_eq!(self.rig.simulator.apply(action), 1);
        }
    }

    async fn struck(&self) {
        self.wait("every fault has struck", || {
            self.rig.simulator.ambushes() == 0
        })
        .await;
    }

    /// Waits; shows what the proxy saw should it not happen.
    async fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = std::time::Instant::now() + patience();
        while !condition() {
            assert!(
                std::time::Instant::now() < deadline,
                "{what}: did not happen\n{:#?}",
                self.proxy.log()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until all is well again, and compares. Sessions that end are replaced.
    async fn ends_well(self) {
        let lost = self.faults.len() - self.fatal_from;
        let expected = self.begun + lost;
        self.wait("the sessions that ended are replaced", || {
            self.rig.simulator.stats().identifies >= expected as u64
        })
        .await;
        let report = self.settled().await;
        assert!(report.is_honest(), "{report}");
        assert_eq!(report.identifies, expected, "{report}");
        assert_eq!(report.gaps.len(), lost, "{report}");
    }

    async fn settled(&self) -> AuditReport {
        eventually(self.http, "/ready", |status, _| status == 200).await;
        for (shard, fault) in self.cases() {
            // In the quiet that follows it would end one connection after the other.
            if matches!(fault, Fault::SwallowAcks { .. }) {
                self.rig.simulator.inject(shard, Fault::Heal);
            }
        }
        self.rig.simulator.set_load(Load::quiet());
        self.wait("everything is sent", || {
            let sessions = self.rig.simulator.progress();
            let mut live = sessions
                .iter()
                .filter(|one| one.state != SessionState::Ended);
            live.all(|one| one.unsent == 0)
        })
        .await;
        self.rig.caught_up(&[&self.proxy]).await;
        let report = self.rig.audit().await;
        expect_polite(&self.rig, &report);
        report
    }
}

/// Whatever Discord does, its limits are kept.
fn expect_polite(rig: &Rig, report: &AuditReport) {
    for rule in [
        Rule::SendRate,
        Rule::IdentifyTooFast,
        Rule::SessionBudget,
        Rule::IdentifyOnResumeUrl,
        Rule::PayloadTooLarge,
        Rule::AlreadyAuthenticated,
    ] {
        let broken = rig.simulator.ledger().violations;
        let broken: Vec<_> = broken.iter().filter(|one| one.rule == rule).collect();
        assert!(broken.is_empty(), "{broken:#?}\n{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_while_events_flow() {
    let live = [SESSION_TIMED_OUT, Fault::SeqForwards { by: 3 }];
    let table = Table::start(&live, Config::default(), &[]).await;
    for (target, fault) in table.cases() {
        assert_eq!(table.rig.simulator.inject(target, fault), 1);
    }
    table.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_in_the_middle_of_a_resume() {
    let table = Table::start(&[], Config::default(), &[]).await;
    table.lay(Moment::Resume(0));
    table.rig.simulator.inject(Target::All, Fault::DropTcp);
    table.struck().await;
    table.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_in_the_middle_of_a_replay() {
    let table = Table::start(&[SESSION_TIMED_OUT], Config::default(), &[]).await;
    table.lay(Moment::Resume(4));
    let sim = &table.rig.simulator;
    sim.apply(Action::RefuseConnects { ms: 1_500 });
    sim.inject(Target::All, Fault::DropTcp);
    until("nobody is connected", || {
        let sessions = sim.progress();
        sessions
            .iter()
            .all(|one| one.state != SessionState::Connected)
    })
    .await;
    // More to replay than the fault waits for.
    sim.apply(Action::Burst {
        event: "MESSAGE_CREATE".to_owned(),
        per_guild: 2,
    });
    table.struck().await;
    table.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_in_the_middle_of_a_split_zlib_message() {
    let config = Config {
        compression: Compression {
            zlib_split: Some(100),
            ..Compression::default()
        },
        ..Config::default()
    };
    let table = Table::start(&[SESSION_TIMED_OUT], config, &["--compression", "zlib"]).await;
    for (target, fault) in table.cases() {
        let action = Action::Ambush {
            target,
            moment: Moment::Message,
            fault,
        };
        assert_eq!(table.rig.simulator.apply(action), 1);
    }
    table.struck().await;
    table.ends_well().await;
}

/// Every session ends, and the fault strikes the start of the next.
async fn in_the_middle_of_ready(dispatches: u64) {
    let table = Table::start(&[SESSION_TIMED_OUT], Config::default(), &[]).await;
    let shards = table.faults.len();
    table.lay(Moment::Identify(dispatches));
    let ends = Fault::InvalidSession { resumable: false };
    assert_eq!(table.rig.simulator.inject(Target::All, ends), shards);
    table.struck().await;
    let sessions = |state| {
        let progress = table.rig.simulator.progress();
        progress.iter().filter(|one| one.state == state).count()
    };
    until("nobody waits for a session that nobody knows", || {
        sessions(SessionState::Disconnected) == 0 && sessions(SessionState::Connected) == shards
    })
    .await;
    let report = table.settled().await;
    assert!(report.is_honest(), "{report}");
    // The one that is struck, and one in its place.
    let starts = table.begun + shards..=table.begun + 2 * shards;
    assert!(starts.contains(&report.identifies), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_before_ready() {
    in_the_middle_of_ready(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_right_behind_ready() {
    in_the_middle_of_ready(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_between_ready_and_the_last_guild() {
    in_the_middle_of_ready(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_in_the_middle_of_a_drain() {
    let mut table = Table::start(&[SESSION_TIMED_OUT], Config::default(), &[]).await;
    let (before, after): (Vec<_>, Vec<_>) =
        table.cases().enumerate().partition(|(at, _)| at % 2 == 0);
    let strike = |cases: Vec<(usize, (Target, Fault))>| {
        for (_, (target, fault)) in cases {
            table.rig.simulator.inject(target, fault);
        }
    };
    strike(before);
    table.proxy.signal(Signal::SIGTERM);
    strike(after);
    let first = std::mem::replace(&mut table.proxy, table.rig.proxy().spawn());
    assert_eq!(first.exit_code().await, Some(0));
    table.http = table.proxy.http().await;
    let report = table.settled().await;
    assert!(report.is_honest(), "{report}");
    // A session that Discord ends while nobody listens is only lost to the successor.
    let lost = table.faults.len() - table.fatal_from;
    let starts = table.begun..=table.begun + lost;
    assert!(starts.contains(&report.identifies), "{report}");
}

/// Two at a time, a third into the resume that follows.
#[tokio::test(flavor = "multi_thread")]
async fn random_faults_at_random_moments() {
    let seed = std::env::var("TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("TEST_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let table = Table::start(&[], Config::default(), &[]).await;
    let shards = u32::try_from(table.faults.len()).unwrap();
    let faults = &table.faults[..table.fatal_from];
    let sim = &table.rig.simulator;
    for shard in (0..shards).map(Target::Shard) {
        let moment = Moment::Resume(rng.u64(0..6));
        let mut any = || rng.choice(faults).cloned().unwrap();
        let [first, second, fault] = [any(), any(), any()];
        eprintln!("{shard:?}: {first:?} and {second:?}, {fault:?} at {moment:?}");
        sim.apply(Action::Ambush {
            target: shard.clone(),
            moment,
            fault,
        });
        sim.inject(shard.clone(), first);
        sim.inject(shard, second);
    }
    let written = sim.stats().events_written;
    until("events flow again", || {
        sim.stats().events_written >= written + 4 * u64::from(shards)
    })
    .await;
    // Where nothing was resumed the third strikes now.
    sim.inject(Target::All, Fault::DropTcp);
    table.struck().await;
    sim.inject(Target::All, Fault::Heal);
    let report = table.settled().await;
    assert!(report.is_honest(), "seed {seed}: {report}");
    assert_eq!(report.identifies, table.begun, "seed {seed}: {report}");
    assert_eq!(report.gaps.len(), 0, "seed {seed}: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_right_behind_identify_is_not_followed_by_another_too_early() {
    let rig = Rig::start(Config {
        shards: 8,
        max_concurrency: 8,
        identify_window: Duration::from_secs(4),
        replay_ttl: Duration::from_secs(5),
        ..Config::default()
    })
    .await;
    let identifies = || rig.simulator.stats().identifies;
    for _ in 0..2 {
        let before = identifies();
        let proxy = rig.proxy().args(&["--fresh"]).spawn();
        let began = std::time::Instant::now();
        while identifies() == before {
            assert!(began.elapsed() < patience(), "{:#?}", proxy.log());
            tokio::task::yield_now().await;
        }
        proxy.signal(Signal::SIGKILL);
        proxy.exit_code().await;
    }
    let proxy = rig.proxy().spawn();
    eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    expect_polite(&rig, &rig.audit().await);
}
