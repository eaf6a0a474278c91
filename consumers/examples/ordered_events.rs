//! Counts the messages that each guild has at the moment: deleting one only makes sense after
//! creating it, so each guild's events must come in order. Start it several times and stop some: the
//! shards are spread over the processes that are there. `nats request discord.shard.0.messages ""`
//! asks whichever process holds shard 0 for its counts.
//!
//! ```text
//! DISCORD_TOKEN=… cargo run -p consumers --example ordered_events -- --http 0
//! ```

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use consumers::{Answer, Context, Events, Gap, HandlerError, Message, Router, WorkerContext};
use twilight_model::gateway::payload::incoming::{MessageCreate, MessageDelete};

/// Messages by guild. A real one would lie in a database, as a shard may move to another process.
#[derive(Clone, Default)]
struct Counts(Arc<Mutex<BTreeMap<u64, i64>>>);

impl Counts {
    fn add(&self, context: &Context, change: i64) {
        let Some(guild) = context.event().guild else {
            return;
        };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(guild.get()).or_default();
        *count += change;
        let (shard, id) = (context.shard().id, context.message_id());
        tracing::info!(%guild, count, shard, %id, "messages");
    }
}

fn main() -> ExitCode {
    let counts = Counts::default();
    let (created, deleted, asked) = (counts.clone(), counts.clone(), counts);
    let events = Events::ordered("message-counts")
        .on::<MessageCreate>(move |context: Context, _: MessageCreate| {
            created.add(&context, 1);
            async { Ok::<(), HandlerError>(()) }
        })
        .on::<MessageDelete>(move |context: Context, _: MessageDelete| {
            deleted.add(&context, -1);
            async { Ok::<(), HandlerError>(()) }
        })
        .on_message(move |_: WorkerContext, _: Message| {
            let counts = asked.0.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = Answer::json(&*counts).map_err(HandlerError::from);
            std::future::ready(answer)
        })
        .on_gap(gap);
    let router = Router::new().events(events);
    consumers::run_worker("ordered_events", router, std::env::args_os())
}

async fn gap(_: Context, gap: Gap) -> Result<(), HandlerError> {
    // No other event of the shard is handled at this moment: a good time to count anew.
    tracing::warn!(shard = %gap.shard, lost = ?gap.lost, "the counts of this shard may be wrong");
    Ok(())
}
