//! The simulated Discord as a process of its own, controlled over its HTTP endpoints.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use testkit::simulator::{Config, GuildBytes, Load, SessionStarts};

use super::Part;
use super::args::Args;
use super::child::{self, Child};
use super::http::Endpoint;

/// Session starts of the simulated bot: thousands of shards start at once.
const SESSION_STARTS: u32 = 1_000_000;
/// Unsent events before the simulator drops a client that does not keep up: a contender that cannot
/// take the rate shall show it by what it stores, not by connecting anew.
const BACKLOG_EVENTS: usize = 1_000_000;
/// GUILD_CREATEs are small: they come before anything is measured.
const GUILD_BYTES: GuildBytes = GuildBytes {
    median: 2_000,
    max: 20_000,
    sigma: 0.5,
    forced_max: 0,
};
/// GUILD_CREATEs of a cold start: about 12 kB on average, the first ones megabytes large.
const STORM_BYTES: GuildBytes = GuildBytes {
    median: 6_000,
    max: 4_000_000,
    sigma: 1.2,
    forced_max: 64,
};
/// Readings of both clocks, of which the quickest counts.
const CLOCK_READINGS: usize = 32;

#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    shards: u32,
    guilds: u32,
    storm: bool,
}

/// What the process says once it listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Announcement {
    pub(crate) api: String,
    pub(crate) gateway: String,
    control: String,
    pub(crate) token: String,
    /// The moment the ledger's times count from, µs since 1970.
    epoch_unix_us: u64,
}

/// In the part: runs until standard input ends.
pub(crate) fn part(setup: &Setup) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("make a runtime")?;
    runtime.block_on(async {
        let simulator = testkit::simulator::Simulator::start(config(setup)).await?;
        let api = simulator.api_url().to_owned();
        let announcement = Announcement {
            gateway: simulator.gateway_url().to_owned(),
            control: api.replace("/api/v10", "/_sim"),
            api,
            token: simulator.token().to_owned(),
            epoch_unix_us: epoch(|| simulator.stats().uptime_us),
        };
        let line = serde_json::to_string(&announcement).context("write the announcement")?;
        writeln!(io::stdout(), "{line}").context("announce")?;
        child::told_to_end().await;
        simulator.shutdown().await;
        Ok(())
    })
}

fn config(setup: &Setup) -> Config {
    Config {
        guilds: setup.guilds as usize,
        guild_bytes: if setup.storm {
            STORM_BYTES
        } else {
            GUILD_BYTES
        },
        // As Discord's do: in batches everybody would be woken as rarely as we are.
        one_by_one: true,
        shards: setup.shards,
        max_concurrency: setup.shards,
        session_starts: SessionStarts {
            total: SESSION_STARTS,
            remaining: SESSION_STARTS,
            ..SessionStarts::default()
        },
        backlog_events: BACKLOG_EVENTS,
        ..Config::default()
    }
}

/// When a clock that counts µs began, µs since 1970.
fn epoch(uptime_us: impl Fn() -> u64) -> u64 {
    let readings = (0..CLOCK_READINGS).map(|_| {
        let before = unix_us();
        let uptime = uptime_us();
        let after = unix_us();
        (after.saturating_sub(before), (before + after) / 2 - uptime)
    });
    readings.min().map_or(0, |(_, epoch)| epoch)
}

/// Now, µs since 1970.
pub(crate) fn unix_us() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// Counters, as far as they are looked at.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Stats {
    pub(crate) events_queued: u64,
    pub(crate) events_written: u64,
    pub(crate) json_bytes: u64,
    pub(crate) resumes: u64,
    pub(crate) violations: u64,
    shards: BTreeMap<String, ShardStats>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct ShardStats {
    connected: u32,
    unsent: u64,
}

impl Stats {
    /// Shards with a session and a socket.
    pub(crate) fn connected(&self) -> usize {
        self.shards
            .values()
            .filter(|shard| shard.connected > 0)
            .count()
    }

    /// Events not yet written to a socket.
    pub(crate) fn unsent(&self) -> u64 {
        self.shards.values().map(|shard| shard.unsent).sum()
    }
}

#[derive(Deserialize)]
struct LedgerLine<'a> {
    kind: &'a str,
    session: Option<&'a str>,
    s: Option<u64>,
    written_us: Option<u64>,
}

/// A running simulator.
pub(crate) struct Simulator {
    child: Child,
    said: Announcement,
    control: Endpoint,
}

impl Simulator {
    pub(crate) async fn start(args: &Args) -> Result<Self> {
        let guilds = if args.idle {
            0
        } else {
            args.shards.saturating_mul(args.guilds_per_shard)
        };
        let setup = Setup {
            shards: args.shards,
            guilds,
            storm: args.storm,
        };
        let mut child = Child::with_setup(Part::Simulator.name(), &setup)?;
        let said: Announcement = child.says(|line| serde_json::from_str(line).ok()).await?;
        let control = Endpoint::parse(&said.control)?;
        Ok(Self {
            child,
            said,
            control,
        })
    }

    pub(crate) const fn said(&self) -> &Announcement {
        &self.said
    }

    pub(crate) const fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Its control endpoints.
    pub(crate) const fn control(&self) -> &Endpoint {
        &self.control
    }

    pub(crate) async fn stats(&self) -> Result<Stats> {
        self.control.json("/stats").await
    }

    pub(crate) async fn set_load(&self, load: Load) -> Result<()> {
        let body = serde_json::to_vec(&load).context("write a load")?;
        self.control.put("/load", &body).await
    }

    /// When each event was written to its socket, µs since 1970, by `session:s`.
    pub(crate) async fn written(&self) -> Result<HashMap<String, u64>> {
        let (_, ledger) = self.control.get("/ledger").await?;
        let mut written = HashMap::new();
        for line in ledger
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let Ok(line) = serde_json::from_slice::<LedgerLine<'_>>(line) else {
                // Records of other kinds, with what does not concern us.
                continue;
            };
            if let ("event", Some(session), Some(s), Some(us @ 1..)) =
                (line.kind, line.session, line.s, line.written_us)
            {
                written.insert(format!("{session}:{s}"), self.said.epoch_unix_us + us);
            }
        }
        Ok(written)
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.child.close().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_of_a_clock_is_found() {
        let begun = unix_us() - 5_000_000;
        let found = epoch(|| unix_us() - begun);
        assert!(found.abs_diff(begun) <= 2, "{found} {begun}");
    }

    #[tokio::test]
    async fn the_ledger_says_when_events_were_written() {
        let simulator = testkit::simulator::Simulator::start(config(&Setup {
            shards: 1,
            guilds: 1,
            storm: false,
        }))
        .await
        .unwrap();
        let ledger = simulator.ledger().to_ndjson();
        assert!(ledger.is_empty(), "nobody is connected");
        let line = r#"{"flags":1,"guild":"1","hash":"a","kind":"event","len":1,"queued_us":2,"s":9,"session":"x","shard":[0,1],"t":"A","written_us":7}"#;
        let line: LedgerLine<'_> = serde_json::from_str(line).unwrap();
        assert_eq!(
            (line.kind, line.session, line.s, line.written_us),
            ("event", Some("x"), Some(9), Some(7))
        );
    }
}
