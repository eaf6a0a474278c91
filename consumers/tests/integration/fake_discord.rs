//! Discord's REST endpoints that a worker uses, with a script for what goes wrong. Small on
//! purpose: it says 429, 5xx or nothing exactly when a test wants it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub(crate) const APPLICATION_ID: &str = "898710496221405185";
pub(crate) const TOKEN: &str = "fake.bot.token";

/// What a callback gets instead of Discord's usual answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Status(u16),
    /// 429 with the headers of a user limit.
    RateLimited {
        retry_after: f32,
    },
    /// 429 that does not say how long to wait.
    BareRateLimit,
    /// Takes the answer, but the response never comes.
    TakenThenSilent,
    AlreadyAcknowledged,
    Unknown,
}

/// An answer that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Callback {
    pub(crate) interaction: u64,
    pub(crate) body: Value,
}

impl Callback {
    pub(crate) fn content(&self) -> &str {
        self.body["data"]["content"].as_str().unwrap_or_default()
    }
}

#[derive(Default)]
struct Inner {
    /// Answers Discord took, in order.
    answers: Vec<Callback>,
    /// When callbacks were posted, refused ones included.
    posts: HashMap<u64, Vec<Instant>>,
    faults: VecDeque<Fault>,
    commands: Vec<Value>,
    command_writes: Vec<String>,
    refuse_token: bool,
    /// When guilds were asked for.
    gets: Vec<Instant>,
    get_faults: VecDeque<Fault>,
    /// The bot's guilds, and how often somebody asked which.
    guilds: Vec<u64>,
    lists: u32,
    /// Token and body of each edit of a response.
    edits: Vec<(String, Value)>,
    edit_faults: VecDeque<u16>,
}

#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Inner>>);

pub(crate) struct FakeDiscord {
    shared: Shared,
    url: String,
    server: JoinHandle<()>,
}

impl FakeDiscord {
    pub(crate) async fn start() -> Self {
        let shared = Shared::default();
        let api = Router::new()
            .route("/applications/@me", get(application))
            .route(
                "/applications/{id}/commands",
                get(list_commands).post(write_command),
            )
            .route("/users/@me/guilds", get(list_guilds))
            .route("/guilds/{id}", get(guild))
            .route("/guilds/{id}/channels", get(async || Json(json!([]))))
            .route("/webhooks/{id}/{token}/messages/@original", patch(edit))
            .route("/interactions/{id}/{token}/callback", post(callback))
            .with_state(shared.clone());
        let router = Router::new().nest("/api/v10", api);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/v10", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            shared,
            url,
            server,
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    fn inner<T>(&self, action: impl FnOnce(&mut Inner) -> T) -> T {
        action(&mut self.shared.0.lock().unwrap())
    }

    /// The next callbacks meet these faults, one each.
    pub(crate) fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner(|inner| inner.faults.extend(faults));
    }

    /// The guilds the bot is in, in the order of their ids.
    pub(crate) fn set_guilds(&self, guilds: impl IntoIterator<Item = u64>) {
        self.inner(|inner| inner.guilds = guilds.into_iter().collect());
    }

    /// Pages of the bot's guilds that were asked for.
    pub(crate) fn lists(&self) -> u32 {
        self.inner(|inner| inner.lists)
    }

    /// The next edits of responses get these statuses, one each.
    pub(crate) fn script_edits(&self, statuses: impl IntoIterator<Item = u16>) {
        self.inner(|inner| inner.edit_faults.extend(statuses));
    }

    /// Token and body of each edit of a response.
    pub(crate) fn edits(&self) -> Vec<(String, Value)> {
        self.inner(|inner| inner.edits.clone())
    }

    /// The same for requests for guilds.
    pub(crate) fn script_gets(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner(|inner| inner.get_faults.extend(faults));
    }

    /// When guilds were asked for.
    pub(crate) fn gets(&self) -> Vec<Instant> {
        self.inner(|inner| inner.gets.clone())
    }

    pub(crate) fn refuse_token(&self) {
        self.inner(|inner| inner.refuse_token = true);
    }

    pub(crate) fn answers(&self) -> Vec<Callback> {
        self.inner(|inner| inner.answers.clone())
    }

    pub(crate) fn answer_to(&self, interaction: u64) -> Option<Callback> {
        self.answers()
            .into_iter()
            .find(|answer| answer.interaction == interaction)
    }

    /// Callback requests for an interaction, refused ones included.
    pub(crate) fn requests(&self, interaction: u64) -> usize {
        self.posts(interaction).len()
    }

    /// When they came.
    pub(crate) fn posts(&self, interaction: u64) -> Vec<Instant> {
        self.inner(|inner| inner.posts.get(&interaction).cloned().unwrap_or_default())
    }

    pub(crate) fn commands(&self) -> Vec<Value> {
        self.inner(|inner| inner.commands.clone())
    }

    pub(crate) fn add_command(&self, command: Value) {
        self.inner(|inner| inner.commands.push(command));
    }

    /// Names of the commands in the order they were written.
    pub(crate) fn command_writes(&self) -> Vec<String> {
        self.inner(|inner| inner.command_writes.clone())
    }
}

impl Drop for FakeDiscord {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn problem(status: StatusCode, code: u64, message: &str) -> Response {
    (status, Json(json!({"code": code, "message": message}))).into_response()
}

/// What a request without the right token gets.
fn refusal(shared: &Shared, headers: &HeaderMap) -> Option<Response> {
    let refused = shared.0.lock().unwrap().refuse_token;
    let expected = format!("Bot {TOKEN}");
    let given = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    (refused || given != Some(&expected))
        .then(|| problem(StatusCode::UNAUTHORIZED, 0, "401: Unauthorized"))
}

async fn application(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    refusal(&shared, &headers)
        .unwrap_or_else(|| Json(json!({"id": APPLICATION_ID, "name": "test"})).into_response())
}

async fn list_commands(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    refusal(&shared, &headers)
        .unwrap_or_else(|| Json(shared.0.lock().unwrap().commands.clone()).into_response())
}

async fn write_command(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Json(mut command): Json<Value>,
) -> Response {
    if let Some(refusal) = refusal(&shared, &headers) {
        return refusal;
    }
    let mut inner = shared.0.lock().unwrap();
    let name = command["name"].as_str().unwrap().to_owned();
    inner.command_writes.push(name);
    let same = |other: &Value| {
        other["name"] == command["name"] && other["type"].as_u64().unwrap_or(1) == command["type"]
    };
    let known = inner.commands.iter().position(same);
    let status = if known.is_some() {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    // What Discord adds and leaves out.
    command["id"] = json!((1000 + inner.commands.len()).to_string());
    command["application_id"] = json!(APPLICATION_ID);
    command["version"] = json!("1");
    command["dm_permission"] = json!(true);
    if command["options"] == json!([]) {
        command.as_object_mut().unwrap().remove("options");
    }
    match known {
        Some(known) => inner.commands[known] = command.clone(),
        None => inner.commands.push(command.clone()),
    }
    (status, Json(command)).into_response()
}

async fn callback(
    State(shared): State<Shared>,
    Path((interaction, _token)): Path<(u64, String)>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    assert!(
        headers.get("authorization").is_none(),
        "callbacks carry no bot token"
    );
    let fault = {
        let mut inner = shared.0.lock().unwrap();
        let posts = inner.posts.entry(interaction).or_default();
        posts.push(Instant::now());
        inner.faults.pop_front()
    };
    match fault {
        Some(Fault::Status(status)) => {
            return problem(StatusCode::from_u16(status).unwrap(), 0, "scripted");
        }
        Some(Fault::RateLimited { retry_after }) => return user_limit(retry_after),
        Some(Fault::BareRateLimit) => return limited(HeaderMap::new(), 1.0),
        Some(Fault::AlreadyAcknowledged) => return acknowledged(),
        Some(Fault::Unknown) => {
            return problem(StatusCode::NOT_FOUND, 10_062, "Unknown interaction");
        }
        Some(Fault::TakenThenSilent) | None => {}
    }
    let first = {
        let mut inner = shared.0.lock().unwrap();
        let known = |answer: &Callback| answer.interaction == interaction;
        let first = !inner.answers.iter().any(known);
        if first {
            inner.answers.push(Callback { interaction, body });
        }
        first
    };
    if matches!(fault, Some(Fault::TakenThenSilent)) {
        return std::future::pending().await;
    }
    if first {
        StatusCode::NO_CONTENT.into_response()
    } else {
        acknowledged()
    }
}

fn limited(headers: HeaderMap, retry_after: f32) -> Response {
    let body = json!({"message": "slow down", "retry_after": retry_after, "global": false});
    (StatusCode::TOO_MANY_REQUESTS, headers, Json(body)).into_response()
}

/// 429 with the headers of a user limit.
fn user_limit(retry_after: f32) -> Response {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("x-ratelimit-scope", "user".to_owned()),
        ("x-ratelimit-bucket", "callbacks".to_owned()),
        ("x-ratelimit-limit", "5".to_owned()),
        ("x-ratelimit-remaining", "0".to_owned()),
        ("x-ratelimit-reset-after", retry_after.to_string()),
        ("retry-after", retry_after.ceil().to_string()),
    ] {
        headers.insert(name, value.parse().unwrap());
    }
    limited(headers, retry_after)
}

async fn guild(
    State(shared): State<Shared>,
    Path(guild): Path<u64>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = refusal(&shared, &headers) {
        return refusal;
    }
    let fault = {
        let mut inner = shared.0.lock().unwrap();
        inner.gets.push(Instant::now());
        inner.get_faults.pop_front()
    };
    match fault {
        Some(Fault::Status(status)) => {
            problem(StatusCode::from_u16(status).unwrap(), 50_001, "scripted")
        }
        Some(Fault::RateLimited { retry_after }) => user_limit(retry_after),
        Some(Fault::BareRateLimit) => limited(HeaderMap::new(), 1.0),
        Some(fault) => panic!("{fault:?} is for callbacks"),
        None => Json(json!({"id": guild.to_string(), "name": "A guild"})).into_response(),
    }
}

/// A page of the bot's guilds, of any length up to Discord's.
async fn list_guilds(
    State(shared): State<Shared>,
    Query(query): Query<HashMap<String, u64>>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = refusal(&shared, &headers) {
        return refusal;
    }
    let mut inner = shared.0.lock().unwrap();
    inner.lists += 1;
    let after = query.get("after").copied().unwrap_or(0);
    let page = inner.guilds.iter().filter(|guild| **guild > after);
    let page = page.take(usize::try_from(query["limit"]).unwrap());
    let line = |guild: &u64| json!({"id": guild.to_string(), "name": "Listed", "owner": false});
    Json(page.map(line).collect::<Vec<Value>>()).into_response()
}

async fn edit(
    State(shared): State<Shared>,
    Path((_, token)): Path<(u64, String)>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    assert!(
        headers.get("authorization").is_none(),
        "edits carry no bot token"
    );
    let mut inner = shared.0.lock().unwrap();
    if let Some(status) = inner.edit_faults.pop_front() {
        return problem(StatusCode::from_u16(status).unwrap(), 0, "scripted");
    }
    inner.edits.push((token, body));
    Json(json!({"id": "1"})).into_response()
}

fn acknowledged() -> Response {
    let text = "Interaction has already been acknowledged.";
    problem(StatusCode::BAD_REQUEST, 40_060, text)
}
