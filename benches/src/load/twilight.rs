//! The peer: twilight-gateway and async-nats, as somebody who knows both would set them up. Raw
//! messages, one current_thread runtime (measured faster than several threads), acknowledgements
//! awaited behind a window.
//!
//! Envelopes are read with what comes with it and sonic-rs, which is the quickest known for one field:
//! op, name and number by twilight's scan, the guild by a checked lazy get.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::context::PublishAckFuture;
use futures_util::StreamExt as _;
use schemas::message::NATS_MSG_ID;
use schemas::{GuildId, Prefix, subject};
use serde::{Deserialize, Serialize};
use sonic_rs::JsonValueTrait as _;
use tokio::sync::mpsc;
use twilight_gateway::queue::InMemoryQueue;
use twilight_gateway::{ConfigBuilder, Intents, Message, Shard, ShardId};
use twilight_model::gateway::event::GatewayEventDeserializer;

use super::child;
use super::events::ANSWER_WITHIN;

/// Messages whose acknowledgement is awaited at most.
const WINDOW: usize = 1024;
/// Session starts per day, which do not matter here.
const STARTS: u32 = 1_000_000;
const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) gateway: String,
    pub(crate) token: String,
    pub(crate) shards: u32,
    pub(crate) intents: u64,
    pub(crate) nats: String,
}

/// In the part: runs until standard input ends.
pub(crate) fn part(setup: &Setup) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("make a runtime")?;
    let outcome = runtime.block_on(async {
        let client = async_nats::connect(&setup.nats)
            .await
            .context("connect to NATS")?;
        let mut jetstream = jetstream::new(client);
        jetstream.set_timeout(ANSWER_WITHIN);
        let (acks, pending) = mpsc::channel(WINDOW);
        let concurrency = u16::try_from(setup.shards).unwrap_or(u16::MAX);
        let intents = Intents::from_bits_truncate(setup.intents);
        let config = ConfigBuilder::new(setup.token.clone(), intents)
            .proxy_url(setup.gateway.clone())
            .queue(InMemoryQueue::new(concurrency, STARTS, DAY, STARTS))
            .build();
        for id in 0..setup.shards {
            let shard_id = ShardId::new_checked(id, setup.shards).context("a shard id")?;
            let shard = Shard::with_config(shard_id, config.clone());
            tokio::spawn(forward(shard, jetstream.clone(), acks.clone()));
        }
        writeln!(io::stdout(), "ready").context("say ready")?;
        tokio::select! {
            outcome = acknowledge(pending) => outcome,
            () = child::told_to_end() => Ok(()),
        }
    });
    // Standard input is read by a thread that cannot be interrupted.
    runtime.shutdown_background();
    outcome
}

/// Publishes every dispatch of a shard.
async fn forward(
    mut shard: Shard<InMemoryQueue>,
    jetstream: jetstream::Context,
    acks: mpsc::Sender<PublishAckFuture>,
) {
    let root = subject::event_root(&Prefix::default(), shard.id().number());
    while let Some(message) = shard.next().await {
        let text = match message {
            Ok(Message::Text(text)) => text,
            Ok(Message::Close(_)) => continue,
            Err(error) => {
                super::say(&format!("twilight: {error}"));
                continue;
            }
        };
        let Some(event) = GatewayEventDeserializer::from_json(&text) else {
            super::say("twilight: a message that is no frame");
            continue;
        };
        let (0, Some(seq), Some(session)) = (event.op(), event.sequence(), shard.session()) else {
            continue;
        };
        let kind = event.event_type().unwrap_or_default();
        let mut name = Vec::new();
        subject::push_event_subject(&mut name, &root, guild_of(kind, &text), kind);
        let Ok(name) = String::from_utf8(name) else {
            continue;
        };
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MSG_ID, format!("{}:{seq}", session.id()));
        let payload = text.into_bytes().into();
        match jetstream.publish_with_headers(name, headers, payload).await {
            Ok(ack) => {
                if acks.send(ack).await.is_err() {
                    return;
                }
            }
            Err(error) => super::say(&format!("twilight: publish: {error}")),
        }
    }
}

/// The guild an event belongs to.
fn guild_of(kind: &str, text: &str) -> Option<GuildId> {
    let path = match kind {
        "GUILD_CREATE" | "GUILD_UPDATE" | "GUILD_DELETE" => ["d", "id"],
        _ => ["d", "guild_id"],
    };
    let value = sonic_rs::get(text, path).ok()?;
    GuildId::from_digits(value.as_str()?.as_bytes())
}

/// Awaits acknowledgements in the order of publishing.
async fn acknowledge(mut pending: mpsc::Receiver<PublishAckFuture>) -> Result<()> {
    while let Some(ack) = pending.recv().await {
        ack.await.context("an acknowledgement")?;
    }
    Ok(())
}
