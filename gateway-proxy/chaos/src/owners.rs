//! Who owns a shard of a fleet, and who publishes its events: at any time one and the same.
//!
//! Owners are what JetStream accepted of the shards' records, by the server's clock. What a proxy
//! publishes is read off its line to NATS, in this process: one machine, so one clock.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::push;
use async_nats::jetstream::stream::Stream;
use async_nats::{Client, ConnectOptions, jetstream};
use futures_util::StreamExt as _;
use schemas::{Prefix, ShardRecord, Subject};
use time::OffsetDateTime;
use tokio::time::{sleep, timeout};

/// The fleet's bucket as NATS keeps it.
const BUCKET: &str = "KV_discord_fleet";
const RECORDS: &str = "$KV.discord_fleet.shard.>";
/// What a proxy that starts publishes for JetStream to refuse: it asks whether NATS lets it.
const PERMISSION: &str = "PROXY_PERMISSION";
/// Between two looks whether there is another record. Records are written every few seconds.
const PAUSE: Duration = Duration::from_millis(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// A proxy published an event of a shard.
#[derive(Clone, Copy, Debug)]
struct Published {
    at: OffsetDateTime,
    shard: u32,
    proxy: usize,
}

/// A record was accepted; without an owner, nobody holds the shard.
#[derive(Clone, Debug)]
struct Recorded {
    at: OffsetDateTime,
    shard: u32,
    owner: Option<String>,
}

/// Somebody published an event of a shard that was another's, or nobody's, at that moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Intrusion {
    at: OffsetDateTime,
    shard: u32,
    proxy: String,
    owner: Option<String>,
    /// How long it had been that owner's.
    after: time::Duration,
}

impl fmt::Display for Intrusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = self.owner.as_deref().unwrap_or("nobody");
        write!(
            f,
            "{} published an event of shard {} at {}, which had been {owner}'s for {}",
            self.proxy,
            self.shard,
            self.at.time(),
            self.after
        )
    }
}

#[derive(Debug, Default)]
struct Seen {
    published: Vec<Published>,
    recorded: Vec<Recorded>,
}

/// Notes both; clones note to the same place. Some 10⁵ events of a run of minutes are kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owners(Arc<Mutex<Seen>>);

impl Owners {
    /// Follows the shards' records on this NATS for as long as this process lives. In two ways, as a
    /// record is gone when the next one is there: a consumer has each within a millisecond, but takes
    /// seconds to notice that NATS was killed; asking for one after the other notices that at once, but
    /// misses what lasts for less than the time between two looks.
    pub(crate) async fn follow(&self, nats_url: &str) -> anyhow::Result<()> {
        // Sooner back than the first proxy whose record the next one might replace.
        let options = ConnectOptions::new().reconnect_delay_callback(|_| PAUSE);
        let client = options.connect(nats_url).await?;
        let owners = self.clone();
        drop(tokio::spawn(async move {
            let bucket = loop {
                // It comes with the first proxy.
                match jetstream::new(client.clone()).get_stream(BUCKET).await {
                    Ok(bucket) => break bucket,
                    Err(_) => sleep(PAUSE).await,
                }
            };
            tokio::join!(owners.listen_to(&bucket, &client), owners.ask(&bucket));
        }));
        Ok(())
    }

    async fn listen_to(&self, bucket: &Stream, client: &Client) {
        loop {
            let config = push::OrderedConfig {
                deliver_subject: client.new_inbox(),
                filter_subject: RECORDS.to_owned(),
                ..push::OrderedConfig::default()
            };
            let consumer = timeout(ANSWER_WITHIN, bucket.create_consumer(config)).await;
            if let Ok(Ok(consumer)) = consumer
                && let Ok(mut records) = consumer.messages().await
            {
                while let Some(Ok(message)) = records.next().await {
                    if let Ok(info) = message.info() {
                        self.record(info.published, &message.payload);
                    }
                }
            }
            sleep(PAUSE).await;
        }
    }

    async fn ask(&self, bucket: &Stream) {
        let mut next = 1;
        loop {
            let record = bucket.direct_get_next_for_subject(RECORDS, Some(next));
            match timeout(ANSWER_WITHIN, record).await {
                Ok(Ok(message)) => {
                    next = message.sequence + 1;
                    self.record(message.time, &message.payload);
                }
                // None yet, or NATS is away: nothing is written then.
                Ok(Err(_)) | Err(_) => sleep(PAUSE).await,
            }
        }
    }

    fn record(&self, at: OffsetDateTime, payload: &[u8]) {
        // Nobody deletes records here, nor writes them by hand.
        if let Ok(record) = serde_json::from_slice::<ShardRecord>(payload) {
            self.seen().recorded.push(Recorded {
                at,
                shard: record.shard.id(),
                owner: record.owner.map(|owner| owner.to_string()),
            });
        }
    }

    /// Listens to one connection of this proxy: takes the bytes as they are sent.
    pub(crate) fn listen(&self, proxy: usize) -> impl FnMut(&[u8]) + Send + 'static {
        let (owners, mut line, prefix) = (self.clone(), Line::default(), Prefix::default());
        move |bytes| {
            let at = OffsetDateTime::now_utc();
            line.push(bytes, |subject| {
                let subject = Subject::parse(&prefix, subject);
                if let Ok(Subject::Event { shard, event, .. }) = subject
                    && event != PERMISSION
                {
                    owners.seen().published.push(Published { at, shard, proxy });
                }
            });
        }
    }

    /// How many events were published, and which of them not by the owner. Proxies are called by `name`.
    pub(crate) fn compare(&self, name: impl Fn(usize) -> String) -> (usize, Vec<Intrusion>) {
        let Seen {
            published,
            recorded,
        } = mem::take(&mut *self.seen());
        let intrusions = intrusions(&published, recorded, name);
        (published.len(), intrusions)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn intrusions(
    published: &[Published],
    mut recorded: Vec<Recorded>,
    name: impl Fn(usize) -> String,
) -> Vec<Intrusion> {
    let mut owners: BTreeMap<u32, Vec<Recorded>> = BTreeMap::new();
    recorded.sort_by_key(|record| record.at);
    for record in recorded {
        let known = owners.entry(record.shard).or_default();
        // Records are written again and again; since when it is whose counts.
        if known.last().is_none_or(|last| last.owner != record.owner) {
            known.push(record);
        }
    }
    let intruded = |published: &Published| {
        let known = owners.get(&published.shard).map_or(&[][..], Vec::as_slice);
        let index = known.partition_point(|record| record.at <= published.at);
        let last = index.checked_sub(1).map(|index| &known[index]);
        let (proxy, owner) = (
            name(published.proxy),
            last.and_then(|last| last.owner.clone()),
        );
        (owner.as_ref() != Some(&proxy)).then(|| Intrusion {
            at: published.at,
            shard: published.shard,
            proxy,
            owner,
            after: last.map_or(time::Duration::ZERO, |last| published.at - last.at),
        })
    };
    published.iter().filter_map(intruded).collect()
}

/// What a client tells a NATS server, read as far as needed: which subjects it publishes to.
#[derive(Debug, Default)]
struct Line {
    // Of a control line that is not complete.
    begun: Vec<u8>,
    // Bytes of a payload that are still to come.
    payload: usize,
}

impl Line {
    fn push(&mut self, mut bytes: &[u8], mut published: impl FnMut(&str)) {
        loop {
            let payload = self.payload.min(bytes.len());
            self.payload -= payload;
            bytes = &bytes[payload..];
            let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
                // Control lines are short: the server takes 4 kB.
                self.begun.extend_from_slice(bytes);
                return;
            };
            self.begun.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = String::from_utf8_lossy(&self.begun);
            let mut words = line.split_ascii_whitespace();
            if let Some("PUB" | "HPUB") = words.next()
                && let (Some(subject), Some(length)) = (words.next(), words.next_back())
            {
                published(subject);
                let length: usize = length.parse().unwrap_or_default();
                self.payload = length + "\r\n".len();
            }
            self.begun.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::ShardId;
    use testkit::nats::Options;

    use super::*;

    fn at(ms: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::milliseconds(ms)
    }

    fn published(ms: i64, shard: u32, proxy: usize) -> Published {
        Published {
            at: at(ms),
            shard,
            proxy,
        }
    }

    fn recorded(ms: i64, shard: u32, owner: Option<&str>) -> Recorded {
        Recorded {
            at: at(ms),
            shard,
            owner: owner.map(str::to_owned),
        }
    }

    #[test]
    fn who_publishes_after_another_took_the_shard_is_found() {
        let records = vec![
            recorded(20, 3, Some("b")),
            recorded(0, 3, Some("a")),
            recorded(10, 3, Some("a")),
            recorded(40, 3, None),
            recorded(0, 4, Some("a")),
        ];
        let events = [
            published(5, 3, 0),
            published(15, 3, 0),
            published(25, 3, 0),
            published(30, 3, 1),
            published(50, 3, 1),
            published(60, 4, 0),
            published(60, 5, 0),
        ];
        let name = |proxy: usize| ["a", "b"][proxy].to_owned();
        let found = intrusions(&events, records, name);
        let found: Vec<String> = found.iter().map(Intrusion::to_string).collect();
        assert_eq!(
            found,
            [
                "a published an event of shard 3 at 0:00:00.025, which had been b's for 5ms",
                "b published an event of shard 3 at 0:00:00.05, which had been nobody's for 10ms",
                "a published an event of shard 5 at 0:00:00.06, which had been nobody's for 0s",
            ]
        );
    }

    #[test]
    fn subjects_are_read_off_a_line_cut_anywhere() {
        let told = b"CONNECT {\"verbose\":false}\r\nHPUB a.b reply 5 12\r\nhead\nPUB x 1\nPING\r\n\
            PUB c 0\r\n\r\nSUB d 1\r\nPUB e 3\r\nabc\r\n";
        for chunk in 1..told.len() {
            let (mut line, mut subjects) = (Line::default(), Vec::new());
            for bytes in told.chunks(chunk) {
                line.push(bytes, |subject| subjects.push(subject.to_owned()));
            }
            assert_eq!(subjects, ["a.b", "c", "e"], "by {chunk}");
        }
    }

    /// Such a one was missed, and its owner's events were counted as somebody else's.
    #[tokio::test]
    async fn a_record_that_lasts_for_a_moment_is_seen() {
        const MOMENT: Duration = Duration::from_millis(2);
        const RECORDS: usize = 20;
        let nats = testkit::nats::start(Options::default()).await.unwrap();
        let client = async_nats::connect(nats.url()).await.unwrap();
        let config = jetstream::kv::Config {
            bucket: "discord_fleet".to_owned(),
            ..jetstream::kv::Config::default()
        };
        let context = jetstream::new(client);
        let bucket = context.create_key_value(config).await.unwrap();
        let put = async |owner: &str| {
            let record = ShardRecord {
                owner: Some(owner.parse().unwrap()),
                ..ShardRecord::new(ShardId::new(2, 16).unwrap())
            };
            let record = serde_json::to_vec(&record).unwrap();
            bucket.put("shard.16.2", record.into()).await.unwrap();
        };
        let owners = Owners::default();
        owners.follow(&nats.url()).await.unwrap();
        let seen = |owner: &str| {
            let recorded = &owners.seen().recorded;
            let by = |record: &&Recorded| record.owner.as_deref() == Some(owner);
            recorded.iter().any(|record| by(&record))
        };
        // It has begun to listen once what comes in the middle of two looks is known.
        let mut number = 0;
        let mut known = 0;
        timeout(Duration::from_secs(30), async {
            while known < RECORDS {
                let owner = format!("proxy-{number}");
                put(&owner).await;
                sleep(MOMENT).await;
                put("another").await;
                sleep(PAUSE).await;
                known = if seen(&owner) { known + 1 } else { 0 };
                number += 1;
            }
        })
        .await
        .unwrap();
    }
}
