//! `/live /ready /health /metrics` of a worker. Reads what the parts report; decides nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use schemas::Readiness;
use schemas::health::ProcessStatus;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::context::WorkerInfo;
use crate::exit::Fatal;
use crate::metrics::Metrics;
use crate::status::Status;
use crate::worker::Outcome;

/// How long open requests may hold up the end of the process.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

/// What the endpoints show.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    worker: WorkerInfo,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
}

impl Admin {
    pub(crate) fn new(worker: &WorkerInfo, status: &Arc<Status>, metrics: &Arc<Metrics>) -> Self {
        let (status, metrics) = (Arc::clone(status), Arc::clone(metrics));
        Self {
            worker: worker.clone(),
            status,
            metrics,
        }
    }
}

/// Body of `/health`.
#[derive(Debug, Serialize)]
struct Health {
    version: &'static str,
    worker: String,
    status: ProcessStatus,
    uptime_s: u64,
    nats_connected: bool,
    in_flight: i64,
    answered: u64,
    stale: u64,
    failed: u64,
    memory_bytes: Option<u64>,
}

/// Binds the endpoints' address.
pub(crate) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Fatal> {
    let unusable = |error: std::io::Error| {
        Fatal::unfit(
            format!("cannot listen on {address}: {error}"),
            "set another --http address",
        )
    };
    let listener = TcpListener::bind(address).await.map_err(unusable)?;
    let bound = listener.local_addr().map_err(unusable)?;
    Ok((listener, bound))
}

/// Serves until `closed`.
pub(crate) async fn serve(listener: TcpListener, admin: Admin, closed: CancellationToken) {
    let router = Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(admin);
    let until = closed.clone();
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(async move { until.cancelled().await });
    let overdue = async {
        closed.cancelled().await;
        tokio::time::sleep(CLOSE_WITHIN).await;
    };
    tokio::select! {
        ended = server => {
            if let Err(error) = ended {
                tracing::error!(%error, "the HTTP endpoints ended");
            }
        }
        () = overdue => {}
    }
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, Json<Readiness>) {
    let readiness = admin.status.readiness();
    let code = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, Json(readiness))
}

async fn health(State(admin): State<Admin>) -> Json<Health> {
    Json(Health {
        version: env!("CARGO_PKG_VERSION"),
        worker: admin.worker.id.to_string(),
        status: admin.status.process(),
        uptime_s: admin.worker.uptime().as_secs(),
        nats_connected: admin.status.connected(),
        in_flight: admin.metrics.in_flight(),
        answered: admin.metrics.count(Outcome::Answered),
        stale: admin.metrics.count(Outcome::Stale),
        failed: admin.metrics.count(Outcome::Failed),
        memory_bytes: resident_bytes(),
    })
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match admin.metrics.text() {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            error.to_string(),
        ),
    }
}

/// Resident memory; `None` where the system does not have Linux' process files.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn resident_memory_is_read_from_the_system() {
        let bytes = resident_bytes().unwrap();
        assert!((100_000..10_000_000_000).contains(&bytes), "{bytes}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_refused_with_the_flag_to_change() {
        let (listener, address) = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let fatal = bind(address).await.err().unwrap();
        assert_eq!(fatal.code(), 78);
        assert!(fatal.to_string().contains("--http"), "{fatal}");
        drop(listener);
    }
}
