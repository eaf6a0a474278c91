//! Who owns a shard of a fleet, and who publishes its events: at any time one and the same.
//!
//! Owners are what JetStream accepted of the shards' records, by the server's clock. What a proxy
//! publishes is read off its line to NATS, in this process: one machine, so one clock.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::{ConnectOptions, jetstream};
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
    /// Follows the shards' records on this NATS for as long as this process lives.
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
            let mut next = 1;
            loop {
                // One by one and not by a consumer: that takes seconds to notice that NATS was killed,
                // and a record is gone when the next one is there.
                let record = bucket.direct_get_next_for_subject(RECORDS, Some(next));
                match timeout(ANSWER_WITHIN, record).await {
                    Ok(Ok(message)) => {
                        next = message.sequence + 1;
                        owners.record(&message);
                    }
                    // None yet, or NATS is away: nothing is written then.
                    Ok(Err(_)) | Err(_) => sleep(PAUSE).await,
                }
            }
        }));
        Ok(())
    }

    fn record(&self, message: &StreamMessage) {
        // Nobody deletes records here, nor writes them by hand.
        if let Ok(record) = serde_json::from_slice::<ShardRecord>(&message.payload) {
            self.seen().recorded.push(Recorded {
                at: message.time,
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
}
