//! What goes wrong when: a pure function of the seed.

use std::time::Duration;

use testkit::simulator::{Action, ConnectFault, Fault, Target};

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Trouble {
    /// A proxy is killed with SIGKILL and started again at once.
    KillProxy { proxy: usize },
    /// A proxy is asked to drain, and started again when it has.
    DrainProxy { proxy: usize },
    /// A proxy is stopped for a while and goes on.
    FreezeProxy { proxy: usize, lasts: Duration },
    /// A server of the broker is killed with SIGKILL and comes back after a while.
    KillNats { server: usize, away: Duration },
    /// A server of the broker stands still for a while.
    FreezeNats { server: usize, lasts: Duration },
    /// The line between a proxy and NATS passes nothing on for a while.
    CutProxy { proxy: usize, lasts: Duration },
    /// Discord does something.
    Discord(Action),
}

impl Trouble {
    /// What kind it is, for the summary.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::KillProxy { .. } => "kill proxy".to_owned(),
            Self::DrainProxy { .. } => "drain proxy".to_owned(),
            Self::FreezeProxy { .. } => "freeze proxy".to_owned(),
            Self::CutProxy { .. } => "cut proxy off".to_owned(),
            Self::KillNats { .. } => "kill nats".to_owned(),
            Self::FreezeNats { .. } => "freeze nats".to_owned(),
            Self::Discord(Action::Fault { fault, .. } | Action::Wave { fault, .. }) => {
                format!("discord: {}", fault.name())
            }
            Self::Discord(Action::RefuseConnects { .. }) => "discord: refuse_connects".to_owned(),
            Self::Discord(Action::Connects { fault, .. }) => format!("discord: {fault:?}"),
            Self::Discord(Action::Outage { .. }) => "discord: outage".to_owned(),
            Self::Discord(Action::Burst { .. }) => "discord: burst".to_owned(),
            Self::Discord(_) => "discord: other".to_owned(),
        }
    }
}

/// A trouble and its time after the start of the load.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) at: Duration,
    pub(crate) trouble: Trouble,
}

/// Close codes after which a session may be resumed, and two that void it.
const CLOSE_CODES: [u16; 12] = [
    1000, 1001, 4000, 4001, 4002, 4005, 4008, 4009, 4000, 4009, 4003, 4007,
];

/// What the schedule strikes at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Targets {
    pub(crate) proxies: usize,
    pub(crate) shards: u32,
    pub(crate) nats_servers: usize,
    pub(crate) fleet: bool,
}

/// The whole schedule. One in four troubles strikes within 300 ms of the one before: in the middle
/// of its resume, replay, restart or drain.
pub(crate) fn schedule(seed: u64, lasts: Duration, every: Duration, targets: Targets) -> Vec<Step> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut steps = Vec::new();
    let mut at = Duration::from_secs(2);
    while at < lasts {
        steps.push(Step {
            at,
            trouble: trouble(&mut rng, targets),
        });
        at += if rng.u8(0..4) == 0 {
            Duration::from_millis(rng.u64(0..300))
        } else {
            every.mul_f64(0.4 + 1.2 * rng.f64())
        };
    }
    steps
}

fn trouble(rng: &mut fastrand::Rng, targets: Targets) -> Trouble {
    let proxy = rng.usize(0..targets.proxies.max(1));
    // One in eight troubles of a fleet; other schedules draw nothing for it.
    if targets.fleet && rng.u8(0..8) == 0 {
        return Trouble::CutProxy {
            proxy,
            lasts: millis(rng, 200, 8_000),
        };
    }
    match rng.u8(0..100) {
        0..=9 => Trouble::KillProxy { proxy },
        10..=13 => Trouble::DrainProxy { proxy },
        14..=17 => Trouble::FreezeProxy {
            proxy,
            lasts: millis(rng, 200, 8_000),
        },
        18..=25 => Trouble::KillNats {
            server: rng.usize(0..targets.nats_servers.max(1)),
            away: millis(rng, 0, 4_000),
        },
        26..=29 => Trouble::FreezeNats {
            server: rng.usize(0..targets.nats_servers.max(1)),
            lasts: millis(rng, 200, 7_000),
        },
        30..=33 => Trouble::Discord(Action::RefuseConnects {
            ms: rng.u64(100..3_000),
        }),
        34..=39 => Trouble::Discord(Action::Connects {
            fault: connect_fault(rng),
            count: rng.u32(1..8),
        }),
        40..=43 => Trouble::Discord(Action::Outage {
            guilds: rng.usize(1..20),
            ms: Some(rng.u64(100..4_000)),
        }),
        44..=49 => Trouble::Discord(Action::Wave {
            target: Target::All,
            fault: Fault::Reconnect,
            over_ms: rng.u64(0..3_000),
        }),
        _ => {
            let target = if rng.bool() {
                Target::All
            } else {
                Target::Shard(rng.u32(0..targets.shards))
            };
            Trouble::Discord(Action::Fault {
                target,
                fault: fault(rng),
            })
        }
    }
}

fn connect_fault(rng: &mut fastrand::Rng) -> ConnectFault {
    match rng.u8(0..4) {
        0 => ConnectFault::ReconnectInsteadOfHello,
        1 => ConnectFault::ReconnectBeforeHello,
        2 => ConnectFault::NoHello,
        _ => ConnectFault::Unavailable,
    }
}

fn fault(rng: &mut fastrand::Rng) -> Fault {
    match rng.u8(0..24) {
        0..=2 => Fault::DropTcp,
        3 => Fault::HalfOpen {
            read: rng.bool(),
            write: true,
        },
        4..=5 => Fault::Reconnect,
        6..=7 => Fault::InvalidSession { resumable: true },
        8 => Fault::InvalidSession { resumable: false },
        9..=11 => Fault::Close {
            code: CLOSE_CODES[rng.usize(0..CLOSE_CODES.len())],
        },
        12..=13 => Fault::CorruptCompression,
        14 => Fault::MalformedJson,
        15 => Fault::NonUtf8,
        16 => Fault::TruncatedJson,
        17 => Fault::TruncatedFrame,
        18 => Fault::DecompressionBomb { bytes: 100 << 20 },
        19 => Fault::UnknownEvent,
        20 => Fault::OversizedEvent { bytes: 9 << 20 },
        21 => Fault::SeqBackwards { by: rng.u64(1..50) },
        22 => Fault::Silent {
            ms: rng.u64(100..3_000),
        },
        _ => Fault::RequestHeartbeat,
    }
}

fn millis(rng: &mut fastrand::Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.u64(from..=to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_schedule() {
        let make = |seed| {
            schedule(
                seed,
                Duration::from_secs(600),
                Duration::from_secs(4),
                Targets {
                    proxies: 2,
                    shards: 16,
                    nats_servers: 3,
                    fleet: true,
                },
            )
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
        for seed in 0..20 {
            let steps = make(seed);
            assert!(steps.len() >= 100, "seed {seed}: {}", steps.len());
            assert!(
                steps.windows(2).all(|pair| pair[0].at <= pair[1].at),
                "seed {seed}"
            );
        }
    }
}
