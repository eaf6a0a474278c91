//! A running contender: how each is started, when it is ready, and how it is stopped.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Part;
use super::args::{Args, Contender};
use super::bare::{self, Mode};
use super::child::{Child, Voice};
use super::http::Endpoint;
use super::peers;
use super::simulator::Announcement;
use super::twilight;

/// All shards of a large bot, whose identifies share windows of 5 s.
const READY_WITHIN: Duration = Duration::from_secs(300);
const ASK_EVERY: Duration = Duration::from_millis(50);

/// A process that is measured.
pub(crate) struct Running {
    contender: Contender,
    child: Child,
    // The proxy's endpoints.
    http: Option<Endpoint>,
}

impl Running {
    /// Starts the proxy.
    pub(crate) async fn proxy(args: &Args, nats: &str, discord: &Announcement) -> Result<Self> {
        let (shards, intents) = (args.shards.to_string(), args.mix.intents().to_string());
        let flags = [
            "run",
            "--http=0",
            "--log=json",
            "--shards",
            &shards,
            "--intents",
            &intents,
            "--compression",
            args.compression.name(),
        ];
        let flags = flags
            .into_iter()
            .chain(args.proxy_flags.iter().map(String::as_str));
        let flags: Vec<String> = flags.map(str::to_owned).collect();
        let env = [
            ("DISCORD_TOKEN", discord.token.clone()),
            ("DISCORD_API_URL", discord.api.clone()),
            ("NATS_URL", nats.to_owned()),
            ("RUST_LOG", "info".to_owned()),
        ];
        let mut child = Child::spawn(Part::Proxy.name(), &flags, &env, Voice::Stderr)?;
        let address = child.says(listen_address).await?;
        let http = Endpoint::parse(&format!("http://{address}"))?;
        Ok(Self {
            contender: Contender::Proxy,
            child,
            http: Some(http),
        })
    }

    /// Starts the peer.
    pub(crate) async fn twilight(args: &Args, nats: &str, discord: &Announcement) -> Result<Self> {
        let setup = twilight::Setup {
            gateway: discord.gateway.clone(),
            token: discord.token.clone(),
            shards: args.shards,
            intents: args.mix.intents(),
            nats: nats.to_owned(),
        };
        let mut child = Child::with_setup(Part::Twilight.name(), &setup)?;
        child.says(|line| (line == "ready").then_some(())).await?;
        Ok(Self {
            contender: Contender::Twilight,
            child,
            http: None,
        })
    }

    /// Starts a peer in another language.
    pub(crate) async fn foreign(
        args: &Args,
        contender: Contender,
        nats: &str,
        discord: &Announcement,
    ) -> Result<Self> {
        let program = peers::program(contender).await?;
        let setup = peers::Setup::new(args, discord, nats);
        let mut child = Child::foreign(contender.name(), &program, &setup)?;
        child.says(|line| (line == "ready").then_some(())).await?;
        Ok(Self {
            contender,
            child,
            http: None,
        })
    }

    /// Starts a publisher without a gateway; it waits for [`Running::go`].
    pub(crate) async fn bare(
        args: &Args,
        contender: Contender,
        port: u16,
        corpus: &Path,
        events: u64,
    ) -> Result<Self> {
        let setup = bare::Setup {
            port,
            corpus: corpus.to_owned(),
            events,
            mode: match contender {
                Contender::Path => Mode::Path,
                Contender::Single => Mode::Single {
                    rate: args.rate.unwrap_or_default(),
                },
                _ => Mode::Publish,
            },
            zstd: bare::Setup::compressed(args.compression),
        };
        let mut child = Child::with_setup(Part::Bare.name(), &setup)?;
        child.says(|line| (line == "ready").then_some(())).await?;
        Ok(Self {
            contender,
            child,
            http: None,
        })
    }

    pub(crate) const fn pid(&self) -> u32 {
        self.child.pid()
    }

    pub(crate) fn check(&mut self) -> Result<()> {
        self.child.check()
    }

    /// What it said last, for an error.
    pub(crate) fn complaint(&self) -> String {
        self.child.complaint()
    }

    pub(crate) async fn go(&mut self) -> Result<()> {
        self.child.go().await
    }

    /// Waits until it says that all shards are up, if it can.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        let Some(http) = &self.http else {
            return Ok(());
        };
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let (status, body) = match http.get("/ready").await {
                Ok(answer) => answer,
                Err(error) => {
                    // If it ended, its own words say more.
                    sleep(ASK_EVERY).await;
                    self.child.check()?;
                    return Err(error);
                }
            };
            if status == 200 {
                return Ok(());
            }
            self.child.check()?;
            if Instant::now() > deadline {
                bail!("the proxy is not ready: {}", String::from_utf8_lossy(&body));
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// The proxy's account of acknowledgements so far.
    pub(crate) async fn acks(&self) -> Result<Option<Acks>> {
        let Some(http) = &self.http else {
            return Ok(None);
        };
        let (_, body) = http.get("/metrics").await?;
        let text = String::from_utf8(body).context("metrics that are text")?;
        Acks::read(&text)
            .context("no ack_latency in /metrics")
            .map(Some)
    }

    /// Ends it. Returns how often it allocated, if it counts that.
    pub(crate) async fn stop(self) -> Result<Option<u64>> {
        if self.contender == Contender::Proxy {
            return self.child.terminate().await;
        }
        self.child.close().await.map(|()| None)
    }
}

/// From the line the proxy logs.
fn listen_address(line: &str) -> Option<String> {
    if !line.contains("HTTP endpoints") {
        return None;
    }
    let line: Value = serde_json::from_str(line).ok()?;
    let address = line
        .get("address")
        .or_else(|| line.get("fields")?.get("address"))?;
    address.as_str().map(str::to_owned)
}

/// The histogram `ack_latency` of `/metrics`: from handing a message over to its acknowledgement.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Acks {
    sum_s: f64,
    count: f64,
    // Upper bound in seconds, and how many took no longer.
    buckets: Vec<(f64, f64)>,
}

/// Quantiles are upper bounds of the proxy's buckets.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AckLatency {
    mean_us: f64,
    p50_at_most_us: f64,
    p99_at_most_us: f64,
}

impl Acks {
    const NAME: &str = "gateway_proxy_ack_latency_seconds";

    fn read(metrics: &str) -> Option<Self> {
        let mut acks = Self::default();
        let mut found = false;
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix(Self::NAME) else {
                continue;
            };
            let (name, value) = rest.rsplit_once(' ')?;
            let value: f64 = value.parse().ok()?;
            if name == "_sum" {
                acks.sum_s = value;
            } else if name == "_count" {
                acks.count = value;
                found = true;
            } else if let Some(bound) = name.strip_prefix("_bucket{le=\"") {
                let bound = bound.trim_end_matches("\"}");
                let bound = if bound == "+Inf" {
                    f64::INFINITY
                } else {
                    bound.parse().ok()?
                };
                acks.buckets.push((bound, value));
            }
        }
        found.then_some(acks)
    }

    pub(crate) fn since(&self, before: &Self) -> Option<AckLatency> {
        let count = self.count - before.count;
        if count <= 0.0 {
            return None;
        }
        let quantile = |share: f64| {
            let pairs = self.buckets.iter().zip(&before.buckets);
            let mut reached = pairs.filter(|(now, then)| now.1 - then.1 >= share * count);
            reached.next().map_or(f64::INFINITY, |(now, _)| now.0) * 1e6
        };
        Some(AckLatency {
            mean_us: (self.sum_s - before.sum_s) / count * 1e6,
            p50_at_most_us: quantile(0.5),
            p99_at_most_us: quantile(0.99),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(fast: u32, slow: u32) -> String {
        format!(
            "gateway_proxy_ack_latency_seconds_sum {}\n\
             gateway_proxy_ack_latency_seconds_count {}\n\
             gateway_proxy_ack_latency_seconds_bucket{{le=\"0.001\"}} {fast}\n\
             gateway_proxy_ack_latency_seconds_bucket{{le=\"+Inf\"}} {}\n",
            f64::from(fast) * 0.0005 + f64::from(slow) * 2.0,
            fast + slow,
            fast + slow
        )
    }

    #[test]
    fn latency_is_what_came_in_between() {
        let before = Acks::read(&metrics(10, 90)).unwrap();
        let after = Acks::read(&metrics(109, 91)).unwrap();
        let latency = after.since(&before).unwrap();
        assert!(
            (latency.p50_at_most_us - 1000.0).abs() < 1e-6,
            "{latency:?}"
        );
        assert!(
            (latency.p99_at_most_us - 1000.0).abs() < 1e-6,
            "{latency:?}"
        );
        assert!((latency.mean_us - 20_495.0).abs() < 1.0, "{latency:?}");
        assert!(after.since(&after).is_none());
        assert!(Acks::read("other 1\n").is_none());
    }

    #[test]
    fn the_address_is_read_from_either_shape_of_log_line() {
        let flat = r#"{"message":"HTTP endpoints: /live","address":"127.0.0.1:5"}"#;
        let nested = r#"{"fields":{"message":"HTTP endpoints: /live","address":"127.0.0.1:6"}}"#;
        assert_eq!(listen_address(flat).as_deref(), Some("127.0.0.1:5"));
        assert_eq!(listen_address(nested).as_deref(), Some("127.0.0.1:6"));
        assert_eq!(listen_address(r#"{"message":"other"}"#), None);
    }
}
