//! `/stats`, `/find` and `/shards`: questions to the directory, answered as texts. Without a
//! directory they say so, to the user alone.

use std::fmt::Write as _;

use schemas::{
    DirectoryStats, GuildInfo, GuildsRequest, ShardLine, ShardsRequest, Snowflake, UserInfo,
};
use twilight_model::application::command::{CommandOption, CommandOptionType};
use twilight_model::application::interaction::Interaction;
use twilight_model::application::interaction::application_command::CommandOptionValue;

use super::{Definition, info_text, known, option};
use crate::context::Context;
use crate::interaction;
use crate::query::QueryError;
use crate::response::Response;
use crate::router::HandlerError;

/// Lines of one answer: with 2000 characters a message holds about this many.
const LINES_MAX: u32 = 20;

pub(super) fn find_definition() -> Definition {
    let guild = text_option("query", "Its id, or a part of its name");
    let user = text_option("id", "Its id");
    Definition::chat_input("find", "Finds a server or a user the bot knows")
        .option(subcommand("guild", "Finds a server", guild))
        .option(subcommand("user", "Finds a user", user))
}

pub(super) async fn stats(context: Context, _: Interaction) -> Result<Response, HandlerError> {
    match context.directory().aggregate_stats().await {
        Ok(stats) => Ok(Response::text(stats_text(&stats))),
        Err(error) => Ok(no_answer(&error)),
    }
}

pub(super) async fn shards(context: Context, _: Interaction) -> Result<Response, HandlerError> {
    let request = ShardsRequest {
        limit: Some(LINES_MAX),
        ..ShardsRequest::default()
    };
    match context.directory().shards(&request).await {
        Ok(page) => Ok(Response::text(shards_text(
            &page.shards,
            page.next.is_some(),
        ))),
        Err(error) => Ok(no_answer(&error)),
    }
}

pub(super) async fn find(
    context: Context,
    interaction: Interaction,
) -> Result<Response, HandlerError> {
    let (what, text) = asked(&interaction).ok_or("a /find without its options")?;
    match what {
        "guild" => find_guild(&context, text).await,
        "user" => find_user(&context, text).await,
        other => Err(format!("/find {other} is not one of ours").into()),
    }
}

async fn find_guild(context: &Context, text: &str) -> Result<Response, HandlerError> {
    let directory = context.directory();
    if let Ok(id) = text.parse::<Snowflake>() {
        match directory.find_guild(id.as_guild()).await {
            Ok(Some(guild)) => return Ok(Response::text(guild_text(&guild))),
            // A server may be called by a number.
            Ok(None) => {}
            Err(error) => return Ok(no_answer(&error)),
        }
    }
    let request = GuildsRequest {
        name: Some(text.to_owned()),
        limit: Some(LINES_MAX),
        ..GuildsRequest::default()
    };
    match directory.guilds(&request).await {
        Ok(page) => Ok(match page.guilds.as_slice() {
            [] => Response::text("No such server.").ephemeral(),
            [guild] => Response::text(guild_text(guild)),
            guilds => Response::text(guilds_text(guilds, page.next.is_some())),
        }),
        Err(error) => Ok(no_answer(&error)),
    }
}

async fn find_user(context: &Context, text: &str) -> Result<Response, HandlerError> {
    let Ok(id) = text.parse::<Snowflake>() else {
        return Ok(Response::text("That is no user's id.").ephemeral());
    };
    match context.directory().find_user(id).await {
        Ok(Some(user)) => Ok(Response::text(user_text(&user))),
        Ok(None) => Ok(Response::text("Nobody has seen this user.").ephemeral()),
        Err(QueryError::Refused { code: 501, .. }) => {
            Ok(Response::text("This bot keeps no users.").ephemeral())
        }
        Err(error) => Ok(no_answer(&error)),
    }
}

fn no_answer(error: &QueryError) -> Response {
    tracing::warn!(%error, "the directory was asked in vain");
    Response::text("The directory does not answer at the moment.").ephemeral()
}

/// The subcommand and its only option.
fn asked(interaction: &Interaction) -> Option<(&str, &str)> {
    let subcommand = interaction::command(interaction)?.options.first()?;
    let CommandOptionValue::SubCommand(options) = &subcommand.value else {
        return None;
    };
    match &options.first()?.value {
        CommandOptionValue::String(text) => Some((&subcommand.name, text.trim())),
        _ => None,
    }
}

fn stats_text(stats: &DirectoryStats) -> String {
    let mut guilds = stats.guilds.to_string();
    if stats.unavailable > 0 {
        // Cannot fail: a String takes any text.
        write!(guilds, " ({} unavailable)", stats.unavailable).unwrap_or_default();
    }
    let latencies = &stats.latency_ms;
    let mean = latencies.values().sum::<f64>() / latencies.len().max(1) as f64;
    let latency = (!latencies.is_empty()).then(|| format!("{mean:.0} ms"));
    let mut lines = vec![
        ("Servers", guilds),
        ("Members", stats.members.to_string()),
        ("Channels", stats.channels.to_string()),
        (
            "Shards",
            format!("{} of {} ready", stats.shards_ready, stats.shards),
        ),
        ("Latency", known(latency)),
    ];
    if let Some(users) = stats.users {
        lines.insert(2, ("Users seen", users.to_string()));
    }
    info_text(&lines)
}

fn guild_text(guild: &GuildInfo) -> String {
    let state = match (guild.available, guild.stale) {
        (true, false) => "available",
        (true, true) => "available, being checked",
        (false, _) => "unavailable",
    };
    info_text(&[
        ("Server", plain(&known(guild.name.as_deref()))),
        ("Id", guild.id.to_string()),
        ("Owner", known(guild.owner_id)),
        ("Members", known(guild.member_count)),
        ("Channels", guild.channels.to_string()),
        ("Roles", guild.roles.to_string()),
        ("Joined", known(guild.joined_at)),
        ("Shard", guild.shard.to_string()),
        ("State", state.to_owned()),
    ])
}

fn guilds_text(guilds: &[GuildInfo], more: bool) -> String {
    let line = |guild: &GuildInfo| {
        let name = plain(&known(guild.name.as_deref()));
        format!("{} · {name} · shard {}", guild.id, guild.shard)
    };
    list(guilds.iter().map(line), more)
}

fn user_text(user: &UserInfo) -> String {
    let guilds: Vec<String> = user.guilds.iter().rev().map(ToString::to_string).collect();
    let shown = guilds.len().min(10);
    info_text(&[
        ("User", plain(&user.username)),
        ("Id", user.id.to_string()),
        ("Name", plain(&known(user.global_name.as_deref()))),
        ("Bot", if user.bot { "yes" } else { "no" }.to_owned()),
        ("Last seen", known(user.seen_at)),
        ("Servers", guilds[..shown].join(", ")),
    ])
}

fn shards_text(shards: &[ShardLine], more: bool) -> String {
    if shards.is_empty() {
        return "No shard is known.".to_owned();
    }
    let line = |line: &ShardLine| {
        let latency = line.latency_ms.map(|ms| format!("{ms:.0} ms"));
        format!(
            "**{}** · {} · {} · {} servers",
            line.shard,
            known(line.state),
            latency.unwrap_or_else(|| "no latency".to_owned()),
            line.guilds
        )
    };
    list(shards.iter().map(line), more)
}

fn list(lines: impl Iterator<Item = String>, more: bool) -> String {
    let mut lines: Vec<String> = lines.collect();
    if more {
        lines.push("… and more".to_owned());
    }
    lines.join("\n")
}

/// A name somebody chose, without what Discord would format or turn into a mention or link.
fn plain(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for letter in name.chars() {
        if matches!(
            letter,
            '\\' | '*' | '_' | '~' | '`' | '|' | '<' | '>' | '[' | ']' | '#'
        ) {
            text.push('\\');
        }
        text.push(if letter.is_control() { ' ' } else { letter });
    }
    text
}

fn text_option(name: &str, description: &str) -> CommandOption {
    CommandOption {
        required: Some(true),
        max_length: Some(100),
        ..option(CommandOptionType::String, name, description)
    }
}

fn subcommand(name: &str, description: &str, only: CommandOption) -> CommandOption {
    CommandOption {
        options: Some(vec![only]),
        ..option(CommandOptionType::SubCommand, name, description)
    }
}

#[cfg(test)]
mod tests {
    use schemas::ShardState;

    use super::*;

    #[test]
    fn stats_leave_out_what_is_not_kept() {
        let stats = DirectoryStats {
            guilds: 3,
            members: 40,
            channels: 9,
            shards: 2,
            shards_ready: 1,
            latency_ms: [(0, 40.0), (1, 50.0)].into(),
            ..DirectoryStats::default()
        };
        let text = stats_text(&stats);
        let expect = "**Servers:** 3\n**Members:** 40\n**Channels:** 9\n\
                      **Shards:** 1 of 2 ready\n**Latency:** 45 ms";
        assert_eq!(text, expect);
        let stats = DirectoryStats {
            unavailable: 1,
            users: Some(7),
            latency_ms: [].into(),
            ..stats
        };
        let text = stats_text(&stats);
        assert!(text.contains("3 (1 unavailable)") && text.contains("**Users seen:** 7"));
        assert!(text.ends_with("**Latency:** unknown"), "{text}");
    }

    #[test]
    fn a_server_nobody_has_described_is_shown_as_far_as_it_is_known() {
        let id = Snowflake::new(7).unwrap();
        let text = guild_text(&schemas::GuildEntry::stub(id, 3).info());
        assert!(
            text.starts_with("**Server:** unknown\n**Id:** 7\n"),
            "{text}"
        );
        assert!(
            text.ends_with("**Shard:** 3\n**State:** unavailable"),
            "{text}"
        );
    }

    #[test]
    fn names_cannot_format_the_answer() {
        assert_eq!(plain("**a** <@1>\n"), "\\*\\*a\\*\\* \\<@1\\> ");
    }

    #[test]
    fn shards_are_listed_with_what_is_known() {
        let line = ShardLine {
            shard: 3,
            count: Some(4),
            state: Some(ShardState::Ready),
            latency_ms: Some(41.5),
            guilds: 9,
            members: 90,
            read_by: None,
        };
        let unknown = ShardLine {
            state: None,
            latency_ms: None,
            ..line.clone()
        };
        assert_eq!(
            shards_text(&[line, unknown], true),
            "**3** · ready · 42 ms · 9 servers\n**3** · unknown · no latency · 9 servers\n… and more"
        );
        assert_eq!(shards_text(&[], false), "No shard is known.");
    }
}
