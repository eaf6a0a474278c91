//! A worker with one command of its own, `/roll`. Start it next to a gateway proxy:
//!
//! ```text
//! DISCORD_TOKEN=… cargo run -p consumers --example own_command -- --consumer dice --http 0
//! ```

use std::process::ExitCode;

use consumers::commands::option;
use consumers::{Context, Definition, HandlerError, Interaction, Response, Router};
use twilight_model::application::command::{CommandOptionType, CommandOptionValue as Bound};
use twilight_model::application::interaction::application_command::CommandOptionValue;

fn main() -> ExitCode {
    let mut sides = option(CommandOptionType::Integer, "sides", "How many sides it has");
    sides.min_value = Some(Bound::Integer(2));
    let roll_command = Definition::chat_input("roll", "Rolls a die").option(sides);
    let router = Router::new().command(roll_command, roll);
    consumers::run_worker("own_command", router, std::env::args_os())
}

async fn roll(_: Context, interaction: Interaction) -> Result<Response, HandlerError> {
    let sides = match consumers::interaction::option(&interaction, "sides") {
        Some(CommandOptionValue::Integer(sides)) => u64::try_from(*sides)?.max(1),
        _ => 6,
    };
    // The id's milliseconds serve as dice (its last bits are mostly the same), and a redelivery rolls
    // the same.
    let eyes = (interaction.id.get() >> 22) % sides + 1;
    let user = interaction
        .author()
        .ok_or("an interaction without a user")?;
    Ok(Response::text(format!("{} rolls {eyes}", user.name)))
}
