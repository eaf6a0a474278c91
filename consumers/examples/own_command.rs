//! A worker with one command of its own, `/roll`. Start it next to a gateway proxy:
//!
//! ```text
//! DISCORD_TOKEN=… cargo run -p consumers --example own_command -- --consumer dice --http 0
//! ```

use std::process::ExitCode;

use consumers::{Context, Definition, HandlerError, Interaction, Response, Router};

fn main() -> ExitCode {
    let roll_command = Definition::chat_input("roll", "Rolls a die");
    let router = Router::new().command(roll_command, roll);
    consumers::run_worker("own_command", router, std::env::args_os())
}

async fn roll(_: Context, interaction: Interaction) -> Result<Response, HandlerError> {
    // Ids are unique, so their lowest bits serve as dice; and a redelivery rolls the same.
    let eyes = interaction.id.get() % 6 + 1;
    let user = interaction
        .author()
        .ok_or("an interaction without a user")?;
    Ok(Response::text(format!("{} rolls {eyes}", user.name)))
}
