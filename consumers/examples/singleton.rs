//! A task that runs once a minute in one of the processes, however many there are: it logs how many
//! servers the bot is in. Start it several times and stop the one that logs:
//!
//! ```text
//! DISCORD_TOKEN=… cargo run -p consumers --example singleton -- --http 0
//! ```

use std::process::ExitCode;
use std::time::Duration;

use consumers::{HandlerError, Router, Singleton, Turn, WorkerContext};

fn main() -> ExitCode {
    let digest = Singleton::every("digest", Duration::from_secs(60), digest);
    let router = Router::new().singleton(digest);
    consumers::run_worker("singleton", router, std::env::args_os())
}

async fn digest(context: WorkerContext, turn: Turn) -> Result<(), HandlerError> {
    // Answers while a `consumers directory` runs; a run that fails is made up for by the next.
    let stats = context.directory().aggregate_stats().await?;
    // After a pause of any length: is this still the only one?
    if turn.is_valid() {
        let (guilds, members) = (stats.guilds, stats.members);
        tracing::info!(token = turn.token(), guilds, members, "the digest");
    }
    Ok(())
}
