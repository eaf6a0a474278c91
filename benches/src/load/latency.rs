//! How long an event takes from the simulator's socket to a subscriber of the live feed, and of that
//! to the stream. One machine, one clock.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use hdrhistogram::Histogram;
use schemas::Prefix;
use schemas::message::NATS_MSG_ID;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinHandle;

use super::simulator::unix_us;

/// When a republished message was stored: a header NATS adds.
const NATS_TIME_STAMP: &str = "Nats-Time-Stamp";
/// µs, to three digits, up to a minute; more is a stall, not a latency.
const HIGHEST_US: u64 = 60_000_000;
const DIGITS: u8 = 3;
/// Events noted at most: some minutes at the rates this is meant for.
const ARRIVALS_MAX: usize = 5_000_000;

/// A subscriber of the live feed that notes when what arrives.
pub(crate) struct Listener {
    task: JoinHandle<Vec<Arrival>>,
    client: async_nats::Client,
}

struct Arrival {
    id: String,
    stored: String,
    received_us: u64,
}

/// Two distances in µs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    /// Events measured.
    events: u64,
    /// From the simulator's write to receipt by the subscriber.
    consumer: Quantiles,
    /// From the simulator's write to the time stamp of the stored message.
    stored: Quantiles,
}

#[derive(Clone, Debug, Serialize)]
struct Quantiles {
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
}

impl Listener {
    /// Subscribes with a connection of its own.
    pub(crate) async fn start(url: &str) -> Result<Self> {
        let client = testkit::nats::connect(url)
            .await
            .context("connect to NATS")?;
        let subject = Prefix::default().live_feed();
        let mut feed = client
            .subscribe(subject)
            .await
            .context("subscribe to the live feed")?;
        client.flush().await.context("subscribe to the live feed")?;
        let task = tokio::spawn(async move {
            let mut arrivals = Vec::new();
            while let Some(message) = feed.next().await {
                let received_us = unix_us();
                let Some(headers) = &message.headers else {
                    continue;
                };
                let header = |name| headers.get(name).map(|value| value.as_str().to_owned());
                if let (Some(id), Some(stored)) = (header(NATS_MSG_ID), header(NATS_TIME_STAMP))
                    && arrivals.len() < ARRIVALS_MAX
                {
                    arrivals.push(Arrival {
                        id,
                        stored,
                        received_us,
                    });
                }
            }
            arrivals
        });
        Ok(Self { task, client })
    }

    /// Ends the subscription and compares with when events were written. `None`: nothing arrived,
    /// as with the live feed switched off.
    pub(crate) async fn finish(self, written: &HashMap<String, u64>) -> Result<Option<Latency>> {
        self.client.drain().await.context("end the subscription")?;
        let arrivals = self.task.await.context("the subscriber's task")?;
        let histogram = || Histogram::<u64>::new_with_max(HIGHEST_US, DIGITS);
        let mut consumer = histogram().context("make a histogram")?;
        let mut stored = histogram().context("make a histogram")?;
        for arrival in &arrivals {
            // What a proxy adds was never on a socket.
            let Some(written) = written.get(&arrival.id) else {
                continue;
            };
            consumer.saturating_record(arrival.received_us.saturating_sub(*written));
            stored.saturating_record(stamp_us(&arrival.stored)?.saturating_sub(*written));
        }
        Ok((!consumer.is_empty()).then(|| Latency {
            events: consumer.len(),
            consumer: Quantiles::of(&consumer),
            stored: Quantiles::of(&stored),
        }))
    }
}

impl Quantiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }
}

fn stamp_us(text: &str) -> Result<u64> {
    let stamp = OffsetDateTime::parse(text, &Rfc3339);
    let stamp = stamp.with_context(|| format!("{text:?} as a time stamp"))?;
    u64::try_from(stamp.unix_timestamp_nanos() / 1000).context("a time stamp before 1970")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stamps_of_nats_are_read_to_the_microsecond() {
        assert_eq!(
            stamp_us("1970-01-01T00:00:02.000003999Z").unwrap(),
            2_000_003
        );
        assert!(stamp_us("yesterday").is_err());
    }

    #[tokio::test]
    async fn latency_is_from_the_write_to_the_receipt() {
        let server = testkit::nats::start(testkit::nats::Options::default())
            .await
            .unwrap();
        let listener = Listener::start(&server.url()).await.unwrap();
        let client = testkit::nats::connect(&server.url()).await.unwrap();
        let begun = unix_us();
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(NATS_MSG_ID, "abc:7");
        headers.insert(NATS_TIME_STAMP, "1970-01-01T00:00:00Z");
        let subject = "discord.shard.3.events";
        // Once the publisher has it, the server has sent it to the listener too.
        let mut own = client.subscribe(subject).await.unwrap();
        client
            .publish_with_headers(subject, headers, "x".into())
            .await
            .unwrap();
        own.next().await.unwrap();
        let written = HashMap::from([("abc:7".to_owned(), begun - 5_000)]);
        let latency = listener.finish(&written).await.unwrap().unwrap();
        assert_eq!(latency.events, 1);
        let took = unix_us() - begun + 5_000;
        let max = latency.consumer.max_us;
        assert!(
            (5_000..=took + took / 100).contains(&max),
            "{max} of {took}"
        );
        assert_eq!(latency.stored.max_us, 0, "before the write");
    }
}
