//! `/live /ready /health /metrics` of the directory. Reads what the parts report; decides nothing.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use schemas::Readiness;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Shared;

/// Body of `/health`.
#[derive(Debug, Serialize)]
struct Health {
    version: &'static str,
    instance: String,
    ready: bool,
    uptime_s: u64,
    nats_connected: bool,
    shards: i64,
    guilds: u64,
    stale: u64,
}

/// Serves until `closed`.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, closed: CancellationToken) {
    let router = Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(shared);
    let serving = axum::serve(listener, router).into_future();
    tokio::select! {
        served = serving => {
            if let Err(error) = served {
                tracing::error!(%error, "the HTTP endpoints ended");
            }
        }
        // Nothing here is worth finishing for.
        () = closed.cancelled() => {}
    }
}

async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let readiness = readiness(&shared);
    let code = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, Json(readiness))
}

fn readiness(shared: &Shared) -> Readiness {
    let mut reasons = Vec::new();
    if !shared.is_answering() {
        reasons.push("loading what is known, or stopping".to_owned());
    }
    if !shared.link.state.borrow().connected {
        reasons.push("NATS is away".to_owned());
    }
    Readiness {
        ready: reasons.is_empty(),
        reasons,
    }
}

async fn health(State(shared): State<Arc<Shared>>) -> Json<Health> {
    let stats = shared.view.stats();
    Json(Health {
        version: env!("CARGO_PKG_VERSION"),
        instance: shared.name.clone(),
        ready: readiness(&shared).ready,
        uptime_s: shared.started.elapsed().as_secs(),
        nats_connected: shared.link.state.borrow().connected,
        shards: shared.metrics.shards.get(),
        guilds: stats.guilds,
        stale: stats.stale,
    })
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let stats = shared.view.stats();
    match shared.metrics.text(stats.guilds, stats.stale) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            error.to_string(),
        ),
    }
}
