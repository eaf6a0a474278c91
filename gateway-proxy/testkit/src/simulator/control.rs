//! Control over HTTP: `/_sim/…` on the REST port mirrors the methods of `Simulator`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::actions;
use super::config::Load;
use super::faults::Action;
use super::state::Shared;
use super::stats::Stats;

type App = State<Arc<Shared>>;

pub(crate) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/urls", get(urls))
        .route("/stats", get(stats))
        .route("/ledger", get(ledger))
        .route("/violations", get(violations))
        .route("/actions", post(act))
        .route("/load", get(load).put(set_load))
        .route("/shutdown", post(shutdown))
}

async fn urls(State(shared): App) -> Response {
    let urls = &shared.urls;
    Json(json!({"gateway": urls.gateway, "resume": urls.resume, "api": urls.api})).into_response()
}

async fn stats(State(shared): App) -> Response {
    Json(Stats::of(&shared)).into_response()
}

async fn ledger(State(shared): App) -> Response {
    let text = shared.ledger().to_ndjson();
    ([(header::CONTENT_TYPE, "application/x-ndjson")], text).into_response()
}

async fn violations(State(shared): App) -> Response {
    Json(shared.ledger().violations).into_response()
}

async fn act(State(shared): App, body: Bytes) -> Response {
    with::<Action>(&body, |action| {
        let reached = actions::apply(&shared, action);
        Json(json!({"reached": reached})).into_response()
    })
}

async fn load(State(shared): App) -> Response {
    Json(shared.load().load).into_response()
}

async fn set_load(State(shared): App, body: Bytes) -> Response {
    with::<Load>(&body, |load| {
        shared.set_load(load);
        StatusCode::NO_CONTENT.into_response()
    })
}

async fn shutdown(State(shared): App) -> Response {
    shared.cancel.cancel();
    StatusCode::NO_CONTENT.into_response()
}

/// Answers 400 with the reason where the body is something else.
fn with<T: DeserializeOwned>(body: &[u8], answer: impl FnOnce(T) -> Response) -> Response {
    match serde_json::from_slice(body) {
        Ok(value) => answer(value),
        Err(e) => (StatusCode::BAD_REQUEST, format!("{e}\n")).into_response(),
    }
}
