//! Workers that talk to each other. `/uptime` asks all of them how long they have been running, and
//! `/forget` tells all of them to forget what they know. Start it several times:
//!
//! ```text
//! DISCORD_TOKEN=… cargo run -p consumers --example broadcast -- --consumer talk --http 0
//! ```

use std::process::ExitCode;
use std::time::Duration;

use consumers::{
    Context, Definition, HandlerError, Interaction, Message, Response, Router, WorkerContext,
};

/// Most workers to wait for, and how long: the answer must be at Discord within 3 seconds.
const WORKERS_MAX: usize = 100;
const WITHIN: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let router = Router::new()
        .command(
            Definition::chat_input("uptime", "How long every worker runs"),
            uptime,
        )
        .command(
            Definition::chat_input("forget", "Empties every worker's cache"),
            forget,
        )
        .on_broadcast("uptime", say_uptime)
        .on_broadcast("cache.forget", empty_cache);
    consumers::run_worker("broadcast", router, std::env::args_os())
}

async fn uptime(context: Context, _: Interaction) -> Result<Response, HandlerError> {
    let asked = context
        .broadcast()
        .gather("uptime", "", WITHIN, WORKERS_MAX);
    let lines: Vec<String> = asked
        .await?
        .into_iter()
        .map(|answer| match answer.result {
            Ok(text) => format!("{}: {}", answer.worker, String::from_utf8_lossy(&text)),
            Err(refusal) => format!("{}: {refusal}", answer.worker),
        })
        .collect();
    Ok(Response::text(lines.join("\n")))
}

async fn forget(context: Context, _: Interaction) -> Result<Response, HandlerError> {
    context
        .broadcast()
        .publish("cache.forget", "everything")
        .await?;
    Ok(Response::text("Forgotten.").ephemeral())
}

async fn say_uptime(context: WorkerContext, _: Message) -> Result<String, HandlerError> {
    Ok(format!("{} s", context.worker().uptime().as_secs()))
}

async fn empty_cache(_: WorkerContext, message: Message) -> Result<(), HandlerError> {
    // The messages of a topic come one after the other, in the order they were sent.
    tracing::info!(what = %String::from_utf8_lossy(&message.payload), "forgotten");
    Ok(())
}
