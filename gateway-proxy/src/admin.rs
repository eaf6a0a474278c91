//! The HTTP endpoints of the process: `/live`, `/ready`, `/health`, `/metrics`. They read the shared
//! state; no request changes anything.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use axum::{Router, serve};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::exit::Fatal;
use crate::metrics::Metrics;
use crate::shutdown::{Phase, Shutdown};
use crate::status::{ProcessStatus, SAMPLE_EVERY};

/// OpenMetrics, as `Metrics::render` writes it.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A bound address, not yet answering.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

/// What handlers read.
#[derive(Clone, Debug)]
struct Shared {
    process: Arc<ProcessStatus>,
    metrics: Metrics,
}

impl Admin {
    /// Binds `--http`.
    ///
    /// # Errors
    /// [`Fatal::Usage`] names the flag when the address cannot be bound.
    pub async fn bind(address: SocketAddr) -> Result<Self, Fatal> {
        let failed = |error: std::io::Error| {
            Fatal::usage(
                format!("--http: cannot listen on {address}: {error}"),
                "choose another address, or `0` for a free port",
            )
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// The address, with the real port.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the process has stopped; also takes the samples that rates are made of.
    pub fn spawn(
        self,
        process: Arc<ProcessStatus>,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> JoinHandle<()> {
        tracing::info!(address = %self.address, "HTTP endpoints: /live /ready /health /metrics");
        tokio::spawn(async move {
            let app = router(Shared {
                process: Arc::clone(&process),
                metrics,
            });
            tokio::select! {
                served = serve(self.listener, app) => {
                    if let Err(error) = served {
                        tracing::error!(%error, "the HTTP endpoints ended");
                    }
                }
                () = sample(&process) => {}
                () = drained(&process, &shutdown) => {}
            }
        })
    }
}

async fn sample(process: &ProcessStatus) {
    let mut tick = tokio::time::interval(SAMPLE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await;
        process.sample(now.into_std());
    }
}

/// `/ready` turns 503 the moment the drain begins; the endpoints answer until the end.
async fn drained(process: &ProcessStatus, shutdown: &Shutdown) {
    shutdown.cancelled().await;
    process.set_draining();
    shutdown.reached(Phase::Stopped).await;
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/cluster/state", get(cluster_state))
        .with_state(shared)
}

async fn index(State(shared): State<Shared>) -> Html<String> {
    let proxy = shared.process.proxy();
    let version = env!("CARGO_PKG_VERSION");
    Html(format!(
        "<!doctype html><title>{proxy}</title><h1>gateway-proxy {version}: {proxy}</h1><ul>\
         <li><a href=\"/live\">/live</a> the process runs\
         <li><a href=\"/ready\">/ready</a> all its shards are up, or why not\
         <li><a href=\"/health\">/health</a> process and shards as JSON\
         <li><a href=\"/cluster/state\">/cluster/state</a> the whole fleet as JSON, on its coordinator\
         <li><a href=\"/metrics\">/metrics</a> Prometheus</ul>\n"
    ))
}

/// Touches nothing but the runtime: whoever asks wants to know whether to restart us.
async fn live() -> &'static str {
    "live\n"
}

async fn ready(State(shared): State<Shared>) -> Response {
    let readiness = shared.process.readiness();
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness)).into_response()
}

async fn health(State(shared): State<Shared>) -> Response {
    Json(shared.process.health()).into_response()
}

/// What the whole fleet does; the coordinator knows.
async fn cluster_state(State(shared): State<Shared>) -> Response {
    let unavailable = |text: String| (StatusCode::SERVICE_UNAVAILABLE, text + "\n").into_response();
    let Some(cluster) = shared.process.cluster() else {
        return unavailable("this process is still starting".to_owned());
    };
    if cluster.leadership.epoch().is_none() {
        let who = shared.process.coordinator();
        return unavailable(who.map_or_else(
            || "nobody coordinates at the moment".to_owned(),
            |who| format!("{who} coordinates: ask there"),
        ));
    }
    match cluster.states.read().await {
        Ok(state) => Json(state).into_response(),
        Err(refusal) => unavailable(refusal.to_string()),
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
