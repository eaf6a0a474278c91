//! The REST endpoints a bot uses, with their rate limits.

mod limits;
mod routes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::limits::{Bucket, Limits, Usage};
use super::ledger::Rule;
use super::state::Shared;

/// Registered commands by guild (0 for global) and name.
pub(crate) type Commands = BTreeMap<u64, BTreeMap<String, Value>>;

/// What REST remembers.
#[derive(Default)]
pub(crate) struct RestState {
    limits: Mutex<Limits>,
    commands: Mutex<Commands>,
    faults: Mutex<VecDeque<RestFault>>,
    pub(crate) requests: AtomicU64,
    pub(crate) limited: AtomicU64,
    pub(crate) invalid: AtomicU64,
}

/// Requests that fail on purpose.
pub(crate) struct RestFault {
    pub(crate) status: u16,
    pub(crate) count: u32,
    pub(crate) retry_after_ms: u64,
}

impl RestState {
    pub(crate) fn fail(&self, fault: RestFault) {
        lock(&self.faults).push_back(fault);
    }

    fn next_fault(&self) -> Option<(u16, u64)> {
        let mut faults = lock(&self.faults);
        let fault = faults.front_mut()?;
        let answer = (fault.status, fault.retry_after_ms);
        fault.count = fault.count.saturating_sub(1);
        if fault.count == 0 {
            faults.pop_front();
        }
        Some(answer)
    }

    pub(crate) fn commands(&self) -> MutexGuard<'_, Commands> {
        lock(&self.commands)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `/api/v10/…` and `/_sim/…`.
pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let api = routes::router()
        .fallback(|| async { failure(StatusCode::NOT_FOUND, 0, "404: Not Found") })
        .layer(from_fn_with_state(Arc::clone(shared), gate));
    Router::new()
        .nest("/api/v10", api)
        .nest("/_sim", super::control::router())
        .with_state(Arc::clone(shared))
}

/// An error as Discord writes it.
fn failure(status: StatusCode, code: u32, message: &str) -> Response {
    (
        status,
        axum::Json(json!({"message": message, "code": code})),
    )
        .into_response()
}

/// Token, limits and injected failures, before a request is looked at.
async fn gate(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let rest = &shared.rest;
    rest.requests.fetch_add(1, Ordering::Relaxed);
    let bucket = Bucket::of(request.method().as_str(), request.uri().path());
    if let Some((status, retry_after_ms)) = rest.next_fault() {
        return injected(status, retry_after_ms);
    }
    if lock(&rest.limits).is_banned(Instant::now()) {
        return (
            StatusCode::FORBIDDEN,
            "banned for too many invalid requests",
        )
            .into_response();
    }
    let authorized = !bucket.needs_token || is_authorized(&shared, request.headers());
    if !authorized {
        shared.violation(Rule::RestUnauthorized, None, request.uri().path());
        invalid(&shared);
        return failure(StatusCode::UNAUTHORIZED, 0, "401: Unauthorized");
    }
    let per_second = shared.config.rest_per_second;
    let usage = lock(&rest.limits).take(&bucket, per_second, Instant::now());
    if usage.is_exceeded() {
        rest.limited.fetch_add(1, Ordering::Relaxed);
        shared.violation(Rule::RestRateLimit, None, request.uri().path());
        invalid(&shared);
        return limited(&bucket, &usage);
    }
    let mut response = next.run(request).await;
    describe(response.headers_mut(), &bucket, &usage);
    response
}

/// Counts 401, 403 and 429: ten thousand of them in ten minutes get an address banned.
fn invalid(shared: &Shared) {
    shared.rest.invalid.fetch_add(1, Ordering::Relaxed);
    lock(&shared.rest.limits).count_invalid(Instant::now());
}

fn is_authorized(shared: &Shared, headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| value.strip_prefix("Bot "));
    let known = token.is_some_and(|token| shared.config.tokens.iter().any(|known| known == token));
    known && !shared.hub().revoked
}

fn injected(status: u16, retry_after_ms: u64) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status != StatusCode::TOO_MANY_REQUESTS {
        return failure(status, 0, "injected");
    }
    let seconds = retry_after_ms as f64 / 1000.0;
    let body =
        json!({"message": "You are being rate limited.", "retry_after": seconds, "global": false});
    let mut response = (status, axum::Json(body)).into_response();
    set(
        response.headers_mut(),
        "retry-after",
        &seconds.ceil().to_string(),
    );
    set(response.headers_mut(), "x-ratelimit-scope", "shared");
    response
}

fn limited(bucket: &Bucket, usage: &Usage) -> Response {
    let seconds = usage.reset_after().as_secs_f64();
    let global = usage.is_global();
    let body = json!({
        "message": "You are being rate limited.", "retry_after": seconds, "global": global,
    });
    let mut response = (StatusCode::TOO_MANY_REQUESTS, axum::Json(body)).into_response();
    let headers = response.headers_mut();
    describe(headers, bucket, usage);
    set(headers, "retry-after", &seconds.ceil().to_string());
    set(
        headers,
        "x-ratelimit-scope",
        if global { "global" } else { "user" },
    );
    if global {
        set(headers, "x-ratelimit-global", "true");
    }
    response
}

fn describe(headers: &mut HeaderMap, bucket: &Bucket, usage: &Usage) {
    let reset_after = usage.reset_after();
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let reset = unix.unwrap_or_default() + reset_after;
    set(headers, "x-ratelimit-limit", &bucket.limit.to_string());
    set(
        headers,
        "x-ratelimit-remaining",
        &usage.remaining().to_string(),
    );
    set(
        headers,
        "x-ratelimit-reset",
        &format!("{:.3}", reset.as_secs_f64()),
    );
    set(
        headers,
        "x-ratelimit-reset-after",
        &format!("{:.3}", reset_after.as_secs_f64()),
    );
    set(headers, "x-ratelimit-bucket", &bucket.hash());
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
