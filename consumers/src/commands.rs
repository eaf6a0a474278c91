//! The commands this crate ships: `/ping` and `/info`, which compute a text and do no I/O, and
//! `/stats`, `/find` and `/shards`, which ask the directory.

mod definition;
mod lookup;
mod registration;

use std::time::Duration;

use twilight_model::application::interaction::Interaction;

pub use definition::{Definition, option, to_write};
pub(crate) use registration::register;

use crate::context::Context;
use crate::response::Response;
use crate::router::{HandlerError, Router};

/// The shipped commands.
#[must_use]
pub fn router() -> Router {
    Router::new()
        .command(
            Definition::chat_input("ping", "Measures how long a command is on its way"),
            ping,
        )
        .command(
            Definition::chat_input("info", "Says which shard and worker answers"),
            info,
        )
        .command(
            Definition::chat_input("stats", "Sums up all servers the bot is in"),
            lookup::stats,
        )
        .command(lookup::find_definition(), lookup::find)
        .command(
            Definition::chat_input("shards", "Lists the bot's shards"),
            lookup::shards,
        )
}

async fn ping(context: Context, _: Interaction) -> Result<Response, HandlerError> {
    Ok(Response::text(ping_text(
        context.age(),
        context.shard().latency,
    )))
}

async fn info(context: Context, _: Interaction) -> Result<Response, HandlerError> {
    let (shard, worker) = (context.shard(), context.worker());
    Ok(Response::text(info_text(&[
        ("Shard", shard.id.to_string()),
        ("Total shards", known(shard.total)),
        ("Latency", milliseconds(shard.latency)),
        ("Worker", worker.id.to_string()),
        ("Uptime", uptime(worker.uptime())),
    ])))
}

fn ping_text(age: Duration, latency: Option<Duration>) -> String {
    format!(
        "Pong! Discord to worker: {} · gateway heartbeat: {}",
        milliseconds(Some(age)),
        milliseconds(latency)
    )
}

fn info_text(lines: &[(&str, String)]) -> String {
    let lines: Vec<String> = lines
        .iter()
        .map(|(name, value)| format!("**{name}:** {value}"))
        .collect();
    lines.join("\n")
}

fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| value.to_string())
}

fn milliseconds(value: Option<Duration>) -> String {
    known(value.map(|value| format!("{} ms", value.as_millis())))
}

fn uptime(uptime: Duration) -> String {
    let seconds = uptime.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_says_what_it_knows_and_what_it_does_not() {
        let (age, latency) = (Duration::from_millis(48), Duration::from_millis(103));
        assert_eq!(
            ping_text(age, Some(latency)),
            "Pong! Discord to worker: 48 ms · gateway heartbeat: 103 ms"
        );
        assert_eq!(
            ping_text(age, None),
            "Pong! Discord to worker: 48 ms · gateway heartbeat: unknown"
        );
    }

    #[test]
    fn an_uptime_has_two_units_at_most() {
        let text = |seconds| uptime(Duration::from_secs(seconds));
        assert_eq!(text(59), "59 s");
        assert_eq!(text(61), "1 min 1 s");
        assert_eq!(text(3 * 3600 + 125), "3 h 2 min");
        assert_eq!(text(2 * 86_400 + 3600), "2 d 1 h");
    }

    #[test]
    fn the_shipped_commands_have_their_names() {
        let router = router();
        let names: Vec<&str> = router.definitions().map(Definition::name).collect();
        assert_eq!(names, ["find", "info", "ping", "shards", "stats"]);
    }
}
