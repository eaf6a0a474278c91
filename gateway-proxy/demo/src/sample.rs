//! Looking at every part a few times a second: one consistent picture for whoever shows it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream::Stream};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, TryStreamExt as _};
use schemas::{Health, Prefix, ProxyEventKind, Readiness};
use serde_json::Value;
use testkit::simulator::{InteractionStats, Simulator};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::http;
use crate::member::{Card, Role};

/// The view shows two pictures a second.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// NATS answers within a millisecond; a picture does not wait longer than this for it.
const STORED_WITHIN: Duration = Duration::from_secs(2);
/// Rates are over so many pictures: three seconds.
const RATE_OVER: usize = 6;

/// One picture.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// Events written to sockets, each once.
    pub(crate) sent: u64,
    /// Of them in the stream.
    pub(crate) stored: u64,
    /// Sent per second.
    pub(crate) rate: f64,
    pub(crate) identifies: u64,
    pub(crate) resumes: u64,
    /// What is left of the day's session starts.
    pub(crate) starts_left: u32,
    /// Discord's rules broken.
    pub(crate) violations: u64,
    pub(crate) commands: InteractionStats,
    /// Proxies, then workers.
    pub(crate) members: Vec<MemberSample>,
}

/// One process.
#[derive(Clone, Debug)]
pub(crate) struct MemberSample {
    pub(crate) card: Card,
    pub(crate) http: Option<SocketAddr>,
    /// Why it is not ready; empty when it is.
    pub(crate) missing: Vec<String>,
    pub(crate) memory_bytes: Option<u64>,
    /// Of proxies, the last that was had.
    pub(crate) health: Option<Health>,
    /// Commands a worker has answered.
    pub(crate) answered: Option<u64>,
}

impl MemberSample {
    fn new(card: Card) -> Self {
        Self {
            card,
            http: None,
            missing: vec!["starting".into()],
            memory_bytes: None,
            health: None,
            answered: None,
        }
    }

    pub(crate) const fn is_ready(&self) -> bool {
        self.missing.is_empty()
    }
}

impl Sample {
    /// The picture before the first look.
    pub(crate) fn before(cards: Vec<Card>) -> Self {
        Self {
            members: cards.into_iter().map(MemberSample::new).collect(),
            ..Self::default()
        }
    }

    /// Sent and not yet stored.
    pub(crate) const fn lag(&self) -> u64 {
        self.sent.saturating_sub(self.stored)
    }

    /// Whether every process does its work.
    pub(crate) fn all_ready(&self) -> bool {
        self.members.iter().all(MemberSample::is_ready)
    }

    /// Who is not ready, and why.
    pub(crate) fn missing(&self) -> String {
        let missing = self.members.iter().filter(|member| !member.is_ready());
        let missing =
            missing.map(|member| format!("{} ({})", member.card.name, member.missing.join(", ")));
        missing.collect::<Vec<_>>().join("; ")
    }

    /// Shards that deliver.
    pub(crate) fn shards_ready(&self) -> usize {
        let healths = self.members.iter().filter_map(|m| m.health.as_ref());
        healths
            .flat_map(|health| &health.shards)
            .filter(|shard| shard.status.is_ready())
            .count()
    }
}

/// Takes the pictures.
pub(crate) struct Sampler<'a> {
    simulator: &'a Simulator,
    jetstream: jetstream::Context,
    stream: Option<Stream<()>>,
    sent: VecDeque<(Instant, u64)>,
    sample: Sample,
}

impl<'a> Sampler<'a> {
    pub(crate) fn new(
        simulator: &'a Simulator,
        client: async_nats::Client,
        cards: Vec<Card>,
    ) -> Self {
        Self {
            simulator,
            jetstream: jetstream::new(client),
            stream: None,
            sent: VecDeque::with_capacity(RATE_OVER + 1),
            sample: Sample::before(cards),
        }
    }

    /// Takes one picture after another.
    pub(crate) async fn run(mut self, pictures: watch::Sender<Arc<Sample>>) -> Infallible {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.look().await;
            pictures.send_replace(Arc::new(self.sample.clone()));
        }
    }

    async fn look(&mut self) {
        let stored = timeout(STORED_WITHIN, stored(&self.jetstream, &mut self.stream));
        let looks = join_all(self.sample.members.iter_mut().map(look_at));
        let (stored, _) = tokio::join!(stored, looks);
        // Before `sent`: what is stored in between is not missing.
        if let Ok(Some(stored)) = stored {
            self.sample.stored = stored;
        }
        let stats = self.simulator.stats();
        let progress = self.simulator.progress();
        let sample = &mut self.sample;
        sample.sent = progress
            .iter()
            .map(|p| p.events.saturating_sub(p.unsent))
            .sum();
        sample.identifies = stats.identifies;
        sample.resumes = stats.resumes;
        sample.starts_left = stats.starts_left;
        sample.violations = stats.violations;
        sample.commands = stats.interactions;
        let now = (Instant::now(), sample.sent);
        self.sent.push_back(now);
        if self.sent.len() > RATE_OVER {
            self.sent.pop_front();
        }
        sample.rate = rate(self.sent.front().copied().unwrap_or(now), now);
    }
}

fn rate(from: (Instant, u64), to: (Instant, u64)) -> f64 {
    let seconds = (to.0 - from.0).as_secs_f64();
    if seconds > 0.0 {
        to.1.saturating_sub(from.1) as f64 / seconds
    } else {
        0.0
    }
}

/// Discord's events in the stream; `None` while there is no stream or no answer.
async fn stored(jetstream: &jetstream::Context, stream: &mut Option<Stream<()>>) -> Option<u64> {
    let prefix = Prefix::default();
    if stream.is_none() {
        let found = jetstream
            .get_stream_no_info(prefix.event_stream(None))
            .await;
        *stream = found.ok();
    }
    let stream = stream.as_ref()?;
    let mut stored = None;
    let mut synthetic = 0;
    for kind in ProxyEventKind::ALL {
        let subjects = prefix.event_of_all_shards(kind.name());
        let info = stream.info_with_subjects(subjects).await.ok()?;
        // The first answer, so that what the proxies add meanwhile is not subtracted twice.
        stored.get_or_insert(info.info.state.messages);
        let counts = info.map_ok(|(_, count)| count as u64).boxed();
        synthetic += counts.try_fold(0, async |sum, n| Ok(sum + n)).await.ok()?;
    }
    stored.map(|stored| stored.saturating_sub(synthetic))
}

async fn look_at(member: &mut MemberSample) {
    if member.http.is_none() {
        member.http = member.card.find_http();
    }
    let Some(address) = member.http else {
        return;
    };
    let (ready, health) = tokio::join!(http::get(address, "/ready"), http::get(address, "/health"));
    member.missing = match ready {
        Ok((_, body)) => match serde_json::from_slice::<Readiness>(&body) {
            Ok(readiness) if readiness.ready => Vec::new(),
            Ok(readiness) if readiness.reasons.is_empty() => vec!["not ready".into()],
            Ok(readiness) => readiness.reasons,
            Err(error) => vec![format!("/ready is unreadable: {error}")],
        },
        Err(error) => vec![format!("does not answer: {error}")],
    };
    let Ok((_, body)) = health else {
        return;
    };
    match member.card.role {
        Role::Proxy { .. } => {
            if let Ok(health) = serde_json::from_slice::<Health>(&body) {
                member.memory_bytes = Some(health.memory_bytes);
                member.health = Some(health);
            }
        }
        Role::Worker => {
            let health: Value = serde_json::from_slice(&body).unwrap_or_default();
            member.memory_bytes = health["memory_bytes"].as_u64();
            member.answered = health["answered"].as_u64();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_per_second_and_never_negative() {
        let start = Instant::now();
        let later = start + Duration::from_millis(500);
        assert!((rate((start, 100), (later, 350)) - 500.0).abs() < 1e-9);
        assert!(rate((start, 100), (later, 50)).abs() < 1e-9);
        assert!(rate((start, 0), (start, 50)).abs() < 1e-9);
    }
}
