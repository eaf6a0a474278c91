//! The endpoints behind the limits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::super::guilds::{Entity, entity, snowflake};
use super::super::identify::bot_user;
use super::super::interactions::Answer;
use super::super::state::Shared;
use super::failure;

type App = State<Arc<Shared>>;

/// Most commands in one scope (Discord: 100 slash commands, 5 of each other kind).
const COMMANDS_MAX: usize = 110;
/// Most guilds in a page, and how many there are unless asked for fewer (Get Current User Guilds).
const GUILDS_MAX: u64 = 200;

pub(super) fn router() -> Router<Arc<Shared>> {
    let global = get(list_commands).put(put_commands).post(post_command);
    let guild = get(list_guild_commands)
        .put(put_guild_commands)
        .post(post_guild_command);
    let original = get(original).patch(edit_original).delete(delete_original);
    Router::new()
        .route("/gateway", get(gateway))
        .route("/gateway/bot", get(gateway_bot))
        .route("/users/@me", get(me))
        .route("/users/@me/guilds", get(my_guilds))
        .route("/applications/@me", get(application))
        .route("/oauth2/applications/@me", get(application))
        .route("/applications/{app}/commands", global)
        .route("/applications/{app}/guilds/{guild}/commands", guild)
        .route("/interactions/{id}/{token}/callback", post(callback))
        .route("/webhooks/{app}/{token}", post(follow_up))
        .route("/webhooks/{app}/{token}/messages/@original", original)
        .route("/channels/{channel}/messages", post(create_message))
        .route("/guilds/{guild}", get(guild_object))
}

async fn gateway(State(shared): App) -> Response {
    Json(json!({"url": shared.urls.gateway})).into_response()
}

async fn gateway_bot(State(shared): App) -> Response {
    let mut hub = shared.hub();
    let reset_after = shared.refresh_budget(&mut hub);
    Json(json!({
        "url": shared.urls.gateway,
        "shards": shared.recommended.load(Ordering::Relaxed),
        "session_start_limit": {
            "total": shared.config.session_starts.total,
            "remaining": hub.starts_left,
            "reset_after": reset_after.as_millis() as u64,
            "max_concurrency": shared.config.max_concurrency,
        },
    }))
    .into_response()
}

async fn me(State(shared): App) -> Response {
    Json(bot_user(shared.config.application_id)).into_response()
}

/// Get Current User Guilds: in the order of their ids, by `after`, `before`, `limit`, `with_counts`.
async fn my_guilds(State(shared): App, RawQuery(query): RawQuery) -> Response {
    let (mut after, mut before, mut limit, mut counts) = (0, None, GUILDS_MAX, false);
    for pair in query.as_deref().unwrap_or_default().split('&') {
        let (field, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = value.parse::<u64>();
        match (field, number) {
            ("after", Ok(id)) => after = id,
            ("before", Ok(id)) => before = Some(id),
            ("limit", Ok(number)) if (1..=GUILDS_MAX).contains(&number) => limit = number,
            ("after" | "before" | "limit", _) => return invalid_body(),
            ("with_counts", _) => counts = value == "true",
            _ => {}
        }
    }
    let mut body = vec![b'['];
    for index in shared.world.page(after, before, limit as usize) {
        let guild = shared.world.guild(*index);
        shared.templates.render_listed(&mut body, guild, counts);
        body.push(b',');
    }
    if body.len() > 1 {
        body.pop();
    }
    body.push(b']');
    json_text(body)
}

async fn application(State(shared): App) -> Response {
    let id = shared.config.application_id.to_string();
    let user = bot_user(shared.config.application_id);
    Json(json!({
        "id": id, "name": "simulated", "icon": null, "description": "A simulated bot",
        "summary": "", "type": null, "bot": user, "bot_public": true,
        "bot_require_code_grant": false, "verify_key": "00".repeat(32), "flags": 565_248,
        "owner": user, "team": null, "rpc_origins": [], "hook": true,
        "approximate_guild_count": shared.config.guilds, "integration_types_config": {},
        "redirect_uris": [], "interactions_endpoint_url": null,
    }))
    .into_response()
}

async fn list_commands(State(shared): App) -> Response {
    commands_of(&shared, 0)
}

async fn list_guild_commands(State(shared): App, Path((_, guild)): Path<(u64, u64)>) -> Response {
    commands_of(&shared, guild)
}

async fn put_commands(State(shared): App, body: Bytes) -> Response {
    overwrite_commands(&shared, 0, &body)
}

async fn put_guild_commands(
    State(shared): App,
    Path((_, guild)): Path<(u64, u64)>,
    body: Bytes,
) -> Response {
    overwrite_commands(&shared, guild, &body)
}

async fn post_command(State(shared): App, body: Bytes) -> Response {
    add_command(&shared, 0, &body)
}

async fn post_guild_command(
    State(shared): App,
    Path((_, guild)): Path<(u64, u64)>,
    body: Bytes,
) -> Response {
    add_command(&shared, guild, &body)
}

fn commands_of(shared: &Shared, guild: u64) -> Response {
    let all = shared.rest.commands();
    let commands = all
        .get(&guild)
        .map(|scope| scope.values().cloned().collect::<Vec<_>>());
    Json(commands.unwrap_or_default()).into_response()
}

fn overwrite_commands(shared: &Shared, guild: u64, body: &[u8]) -> Response {
    let Ok(Value::Array(wanted)) = serde_json::from_slice(body) else {
        return invalid_body();
    };
    let made: Option<Vec<Value>> = wanted
        .into_iter()
        .map(|command| command_object(shared, guild, command))
        .collect();
    let Some(made) = made.filter(|made| made.len() <= COMMANDS_MAX) else {
        return invalid_body();
    };
    let named = |command: &Value| (command["name"].to_string(), command.clone());
    shared
        .rest
        .commands()
        .insert(guild, made.iter().map(named).collect());
    Json(made).into_response()
}

fn add_command(shared: &Shared, guild: u64, body: &[u8]) -> Response {
    let command = serde_json::from_slice(body).ok();
    let Some(made) = command.and_then(|command| command_object(shared, guild, command)) else {
        return invalid_body();
    };
    let mut all = shared.rest.commands();
    let scope = all.entry(guild).or_default();
    if scope.len() >= COMMANDS_MAX {
        return failure(
            StatusCode::BAD_REQUEST,
            30_032,
            "Maximum number of commands reached",
        );
    }
    let known = scope.insert(made["name"].to_string(), made.clone());
    let status = if known.is_some() {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    (status, Json(made)).into_response()
}

/// A registered command; `None` where the name or description breaks the rules.
fn command_object(shared: &Shared, guild: u64, mut command: Value) -> Option<Value> {
    let name = command["name"]
        .as_str()
        .filter(|name| (1..=32).contains(&name.chars().count()))?;
    let kind = command["type"].as_u64().unwrap_or(1);
    let description = command["description"].as_str().unwrap_or_default();
    let described = (1..=100).contains(&description.chars().count());
    if kind == 1 && !described {
        return None;
    }
    let id = shared.interactions.command_id(name).to_string();
    let fields = command.as_object_mut()?;
    // Libraries send what is absent as null; Discord answers with the default.
    fields.retain(|_, value| !value.is_null());
    for (key, default) in [
        ("default_member_permissions", Value::Null),
        ("description", "".into()),
        ("nsfw", false.into()),
        ("options", json!([])),
    ] {
        fields.entry(key).or_insert(default);
    }
    fields.insert("id".to_owned(), id.clone().into());
    fields.insert("type".to_owned(), kind.into());
    fields.insert("version".to_owned(), id.into());
    let application = shared.config.application_id.to_string();
    fields.insert("application_id".to_owned(), application.into());
    if guild != 0 {
        fields.insert("guild_id".to_owned(), guild.to_string().into());
    }
    Some(command)
}

fn invalid_body() -> Response {
    failure(StatusCode::BAD_REQUEST, 50_035, "Invalid Form Body")
}

async fn callback(
    State(shared): App,
    Path((id, token)): Path<(u64, String)>,
    RawQuery(query): RawQuery,
    body: Bytes,
) -> Response {
    let Some(body) = json_body(&body).filter(|body| body["type"].is_u64()) else {
        return invalid_body();
    };
    match shared
        .interactions
        .answer(id, &token, &body, shared.now_us())
    {
        Answer::Unknown => failure(StatusCode::NOT_FOUND, 10_062, "Unknown interaction"),
        Answer::Doubled => failure(
            StatusCode::BAD_REQUEST,
            40_060,
            "Interaction has already been acknowledged.",
        ),
        Answer::Taken if query.is_some_and(|query| query.contains("with_response=true")) => {
            let interaction = json!({"id": id.to_string(), "type": 2});
            Json(json!({"interaction": interaction})).into_response()
        }
        Answer::Taken => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn follow_up(
    State(shared): App,
    Path((_, token)): Path<(u64, String)>,
    body: Bytes,
) -> Response {
    let Some(body) = json_body(&body) else {
        return invalid_body();
    };
    if shared
        .interactions
        .message(&token, shared.now_us())
        .is_none()
    {
        return unknown_webhook();
    }
    Json(message(&shared, 0, &body)).into_response()
}

async fn original(State(shared): App, Path((_, token)): Path<(u64, String)>) -> Response {
    match shared.interactions.message(&token, shared.now_us()) {
        Some(body) => Json(message(&shared, 0, &body)).into_response(),
        None => unknown_webhook(),
    }
}

async fn edit_original(
    State(shared): App,
    Path((_, token)): Path<(u64, String)>,
    body: Bytes,
) -> Response {
    let Some(body) = json_body(&body) else {
        return invalid_body();
    };
    if shared
        .interactions
        .message(&token, shared.now_us())
        .is_none()
    {
        return unknown_webhook();
    }
    let edited = message(&shared, 0, &body);
    shared.interactions.edit(&token, body);
    Json(edited).into_response()
}

async fn delete_original(State(shared): App, Path((_, token)): Path<(u64, String)>) -> Response {
    match shared.interactions.message(&token, shared.now_us()) {
        Some(_) => StatusCode::NO_CONTENT.into_response(),
        None => unknown_webhook(),
    }
}

fn unknown_webhook() -> Response {
    failure(StatusCode::NOT_FOUND, 10_015, "Unknown Webhook")
}

async fn create_message(State(shared): App, Path(channel): Path<u64>, body: Bytes) -> Response {
    let Some(body) = json_body(&body) else {
        return invalid_body();
    };
    let empty = ["content", "embeds", "sticker_ids", "components", "poll"]
        .iter()
        .all(|field| body[field].is_null() || body[field] == "" || body[field] == json!([]));
    if empty {
        return failure(
            StatusCode::BAD_REQUEST,
            50_006,
            "Cannot send an empty message",
        );
    }
    Json(message(&shared, channel, &body)).into_response()
}

async fn guild_object(
    State(shared): App,
    Path(guild): Path<u64>,
    RawQuery(query): RawQuery,
) -> Response {
    let Some(index) = shared.world.index_of(guild) else {
        return failure(StatusCode::NOT_FOUND, 10_004, "Unknown Guild");
    };
    let counts = query.is_some_and(|query| query.contains("with_counts=true"));
    let guild = shared.world.guild(index);
    let mut body = Vec::with_capacity(8192);
    shared.templates.render_object(&mut body, guild, counts);
    json_text(body)
}

fn json_text(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn json_body(body: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Value>(body)
        .ok()
        .filter(Value::is_object)
}

/// A message the bot wrote.
fn message(shared: &Shared, channel: u64, body: &Value) -> Value {
    let id = snowflake(shared.unix_ms(), shared.interactions.next_serial());
    let channel = if channel == 0 {
        entity(Entity::Channel, 0, 1)
    } else {
        channel
    };
    let list = |field: &str| {
        if body[field].is_array() {
            body[field].clone()
        } else {
            json!([])
        }
    };
    json!({
        "id": id.to_string(), "type": 0, "channel_id": channel.to_string(),
        "author": bot_user(shared.config.application_id),
        "content": body["content"].as_str().unwrap_or_default(),
        "timestamp": "2026-11-20T07:00:00.000000+00:00", "edited_timestamp": null, "tts": false,
        "mention_everyone": false, "mentions": [], "mention_roles": [], "attachments": [],
        "embeds": list("embeds"), "components": list("components"), "pinned": false,
        "flags": body["flags"].as_u64().unwrap_or(0),
    })
}
