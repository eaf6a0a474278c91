//! Welcomes new members, as often as you start it: each event goes to one of the processes. Start it
//! next to a gateway proxy that has the intent `GUILD_MEMBERS`:
//!
//! ```text
//! DISCORD_TOKEN=… cargo run -p consumers --example shared_events -- --http 0
//! ```

use std::process::ExitCode;

use consumers::{Context, Events, HandlerError, RawEvent, Router, Verdict};
use twilight_http::Client;
use twilight_model::gateway::payload::incoming::MemberAdd;

fn main() -> ExitCode {
    let events = Events::shared("welcome")
        .on::<MemberAdd>(welcome)
        // What `twilight-model` does not know comes as it is.
        .on_raw("GUILD_JOIN_REQUEST_UPDATE", look_at)
        .concurrency(32);
    let router = Router::new().events(events);
    consumers::run_worker("shared_events", router, std::env::args_os())
}

async fn welcome(context: Context, event: MemberAdd) -> Result<(), HandlerError> {
    let guild = event.guild_id;
    let get = |api: &Client| api.guild(guild).into_future();
    let guild = context.rest().send(get).await?.model().await?;
    let Some(channel) = guild.system_channel_id else {
        return Ok(());
    };
    let text = format!("Welcome, {}!", event.member.user.name);
    // An error leads to another attempt, and after the fifth to the dead-letter stream.
    // A nonce that Discord enforces would keep a repetition from coming twice; twilight's request
    // builder has no such field, so a rare second welcome is accepted here.
    let welcome = |api: &Client| api.create_message(channel).content(&text).into_future();
    context.rest().send(welcome).await?;
    Ok(())
}

async fn look_at(_: Context, event: RawEvent) -> Result<Verdict, HandlerError> {
    let frame = event.json()?;
    match frame["d"]["status"].as_str() {
        Some("SUBMITTED") => tracing::info!("somebody wants to join"),
        Some(_) => return Ok(Verdict::Discard),
        None => return Ok(Verdict::Dead("a join request without a status".to_owned())),
    }
    Ok(Verdict::Done)
}
