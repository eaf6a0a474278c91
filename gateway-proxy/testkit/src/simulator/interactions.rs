//! Slash commands that somebody typed, and whether they were answered in time.

mod typed;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemas::ShardId;
use serde::Serialize;

pub(crate) use self::typed::{name, options};
use super::guilds::splitmix;

/// Discord takes the first answer for this long.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Follow-ups are taken for this long.
const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);
/// Most interactions remembered; older ones are unknown, as after a quarter of an hour.
const REMEMBERED_MAX: usize = 50_000;
/// Answers shown by [`InteractionStats::last`].
const LAST_SHOWN: usize = 20;
/// Upper bounds of the latency histogram in ms; one more bucket above them.
const BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 3000];

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// In time, the first one.
    Taken,
    /// 404 with code 10062: never typed, or too late.
    Unknown,
    /// 400 with code 40060: somebody else answered.
    Doubled,
}

/// Answers so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct InteractionStats {
    /// Slash commands typed.
    pub typed: u64,
    /// Answered in time.
    pub answered: u64,
    /// Answered after three seconds.
    pub late: u64,
    /// Answered twice.
    pub doubled: u64,
    /// Three seconds went by without an answer.
    pub unanswered: u64,
    /// Answers up to each bound in ms, the last without bound: `(bound, answers)`.
    pub histogram_ms: Vec<(Option<u64>, u64)>,
    /// Median latency of answers, µs.
    pub p50_us: u64,
    /// 99th percentile, µs.
    pub p99_us: u64,
    /// Slowest answer, µs.
    pub max_us: u64,
    /// The last commands, newest last.
    pub last: Vec<CommandRecord>,
}

/// One slash command and its answer.
#[derive(Clone, Debug, Serialize)]
pub struct CommandRecord {
    /// Snowflake of the interaction.
    pub id: u64,
    /// The command's name.
    pub name: String,
    /// Shard it came in on, in the smallest count connected.
    pub shard: ShardId,
    /// From typed to answered, µs; absent without an answer.
    pub latency_us: Option<u64>,
    /// Text of the answer.
    pub content: Option<String>,
}

struct Interaction {
    token: String,
    name: String,
    shard: ShardId,
    typed_us: u64,
    answered_us: Option<u64>,
    /// Counted in `unanswered`.
    given_up: bool,
    message: Option<serde_json::Value>,
}

/// All interactions of the last quarter of an hour.
pub(crate) struct Interactions {
    serial: AtomicU64,
    seed: u64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    // Snowflakes sort by age.
    known: BTreeMap<u64, Interaction>,
    stats: InteractionStats,
    latencies_us: VecDeque<u64>,
    last: VecDeque<CommandRecord>,
}

/// Latencies kept for percentiles.
const LATENCIES_MAX: usize = 100_000;

impl Interactions {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            serial: AtomicU64::new(0),
            seed,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// The token of an interaction, as long as real ones.
    pub(crate) fn token(&self, id: u64) -> String {
        let mut rng = fastrand::Rng::with_seed(splitmix(id ^ self.seed));
        let tail: String = (0..190).map(|_| rng.alphanumeric()).collect();
        format!("aW50ZXJhY3Rpb246{tail}")
    }

    /// The id of a registered command.
    pub(crate) fn command_id(&self, name: &str) -> u64 {
        let hash = name
            .bytes()
            .fold(self.seed, |hash, byte| splitmix(hash ^ u64::from(byte)));
        super::guilds::snowflake(super::guilds::DISCORD_EPOCH_MS + hash % (1 << 38), hash)
    }

    pub(crate) fn typed(&self, id: u64, token: String, name: &str, shard: ShardId, at: u64) {
        let mut inner = self.lock();
        inner.stats.typed += 1;
        let (answered_us, given_up, message) = (None, false, None);
        let record = Interaction {
            token,
            name: name.to_owned(),
            shard,
            typed_us: at,
            answered_us,
            given_up,
            message,
        };
        inner.known.insert(id, record);
        if inner.known.len() > REMEMBERED_MAX {
            inner.known.pop_first();
        }
    }

    /// Nobody was connected to see it.
    pub(crate) fn forget(&self, id: u64) {
        let mut inner = self.lock();
        if inner.known.remove(&id).is_some() {
            inner.stats.typed -= 1;
        }
    }

    /// The first answer, `POST /interactions/{id}/{token}/callback`.
    pub(crate) fn answer(&self, id: u64, token: &str, body: &serde_json::Value, at: u64) -> Answer {
        let mut inner = self.lock();
        let Some(known) = inner
            .known
            .get_mut(&id)
            .filter(|known| known.token == token)
        else {
            return Answer::Unknown;
        };
        if known.answered_us.is_some() {
            inner.stats.doubled += 1;
            return Answer::Doubled;
        }
        let latency_us = at.saturating_sub(known.typed_us);
        let taken = latency_us <= ANSWER_WITHIN.as_micros() as u64;
        let content = body["data"]["content"].as_str().map(str::to_owned);
        let record = CommandRecord {
            id,
            name: known.name.clone(),
            shard: known.shard,
            latency_us: Some(latency_us),
            content,
        };
        if taken {
            known.answered_us = Some(at);
            known.message = Some(body["data"].clone());
        }
        if inner.last.len() >= LAST_SHOWN {
            inner.last.pop_front();
        }
        inner.last.push_back(record);
        if !taken {
            inner.stats.late += 1;
            return Answer::Unknown;
        }
        inner.stats.answered += 1;
        if inner.latencies_us.len() >= LATENCIES_MAX {
            inner.latencies_us.pop_front();
        }
        inner.latencies_us.push_back(latency_us);
        Answer::Taken
    }

    /// The message of an answered interaction, for follow-ups; `None` when the token is unknown,
    /// unanswered or too old.
    pub(crate) fn message(&self, token: &str, at: u64) -> Option<serde_json::Value> {
        let inner = self.lock();
        let known = inner.known.values().find(|known| known.token == token)?;
        let alive = at.saturating_sub(known.typed_us) <= TOKEN_LIFE.as_micros() as u64;
        (alive && known.answered_us.is_some())
            .then(|| known.message.clone())
            .flatten()
    }

    /// Replaces the message of an answered interaction.
    pub(crate) fn edit(&self, token: &str, message: serde_json::Value) {
        let mut inner = self.lock();
        if let Some(known) = inner.known.values_mut().find(|known| known.token == token) {
            known.message = Some(message);
        }
    }

    pub(crate) fn housekeep(&self, now_us: u64) {
        let mut inner = self.lock();
        let Inner {
            known, stats, last, ..
        } = &mut *inner;
        for (id, interaction) in known.iter_mut() {
            let age_us = now_us.saturating_sub(interaction.typed_us);
            let overdue = age_us > ANSWER_WITHIN.as_micros() as u64;
            if overdue && interaction.answered_us.is_none() && !interaction.given_up {
                interaction.given_up = true;
                stats.unanswered += 1;
                if last.len() >= LAST_SHOWN {
                    last.pop_front();
                }
                last.push_back(CommandRecord {
                    id: *id,
                    name: interaction.name.clone(),
                    shard: interaction.shard,
                    latency_us: None,
                    content: None,
                });
            }
        }
        let life_us = TOKEN_LIFE.as_micros() as u64;
        known.retain(|_, interaction| now_us.saturating_sub(interaction.typed_us) < life_us);
    }

    pub(crate) fn stats(&self) -> InteractionStats {
        let inner = self.lock();
        let mut sorted: Vec<u64> = inner.latencies_us.iter().copied().collect();
        sorted.sort_unstable();
        let at = |share: f64| {
            let index = (sorted.len() as f64 * share) as usize;
            sorted
                .get(index.min(sorted.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0)
        };
        let mut histogram = Vec::with_capacity(BOUNDS_MS.len() + 1);
        let mut below = 0;
        for bound in BOUNDS_MS {
            let up_to = sorted.partition_point(|us| *us <= bound * 1000);
            histogram.push((Some(bound), (up_to - below) as u64));
            below = up_to;
        }
        histogram.push((None, (sorted.len() - below) as u64));
        InteractionStats {
            histogram_ms: histogram,
            p50_us: at(0.5),
            p99_us: at(0.99),
            max_us: sorted.last().copied().unwrap_or(0),
            last: inner.last.iter().cloned().collect(),
            ..inner.stats.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(interactions: &Interactions, id: u64, at: u64) -> String {
        let token = interactions.token(id);
        interactions.typed(id, token.clone(), "ping", ShardId::new(0, 1).unwrap(), at);
        token
    }

    #[test]
    fn only_the_first_answer_in_time_is_taken() {
        let interactions = Interactions::new(1);
        let token = typed(&interactions, 5, 1000);
        let body = serde_json::json!({"type": 4, "data": {"content": "pong"}});
        assert_eq!(
            interactions.answer(5, "wrong", &body, 2000),
            Answer::Unknown
        );
        assert_eq!(interactions.answer(6, &token, &body, 2000), Answer::Unknown);
        assert_eq!(interactions.answer(5, &token, &body, 51_000), Answer::Taken);
        assert_eq!(
            interactions.answer(5, &token, &body, 52_000),
            Answer::Doubled
        );
        let late = typed(&interactions, 7, 0);
        assert_eq!(
            interactions.answer(7, &late, &body, 3_000_001),
            Answer::Unknown
        );
        let stats = interactions.stats();
        assert_eq!(
            (stats.typed, stats.answered, stats.late, stats.doubled),
            (2, 1, 1, 1)
        );
        assert_eq!(stats.p50_us, 50_000);
        assert!(stats.histogram_ms.contains(&(Some(50), 1)));
        assert_eq!(stats.last[0].content.as_deref(), Some("pong"));
    }

    #[test]
    fn what_nobody_answers_is_counted_once() {
        let interactions = Interactions::new(1);
        typed(&interactions, 5, 0);
        interactions.housekeep(2_900_000);
        assert_eq!(interactions.stats().unanswered, 0);
        interactions.housekeep(3_100_000);
        interactions.housekeep(3_200_000);
        assert_eq!(interactions.stats().unanswered, 1);
    }

    #[test]
    fn follow_ups_need_an_answer_and_a_fresh_token() {
        let interactions = Interactions::new(1);
        let token = typed(&interactions, 5, 0);
        assert!(interactions.message(&token, 1).is_none());
        let body = serde_json::json!({"type": 4, "data": {"content": "a"}});
        interactions.answer(5, &token, &body, 1);
        assert_eq!(interactions.message(&token, 2).unwrap()["content"], "a");
        interactions.edit(&token, serde_json::json!({"content": "b"}));
        assert_eq!(interactions.message(&token, 2).unwrap()["content"], "b");
        assert!(interactions.message(&token, 901_000_000).is_none());
    }
}
