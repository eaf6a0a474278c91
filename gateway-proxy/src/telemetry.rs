//! Logs on standard error, and traces to an OpenTelemetry collector when one is configured.
//!
//! Nothing here formats a secret: secrets are [`secrecy`] values everywhere, whose `Debug` hides
//! them, and payloads are only ever logged at TRACE.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use schemas::ProxyId;
use tokio::runtime::Handle;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};
use url::Url;

use crate::config::{Config, LogFormat};
use crate::discord_api;
use crate::exit::Fatal;

/// One export of spans may take this long.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a flush at the end may take, so that a collector that is away does not keep us.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Keeps the exporter; [`Telemetry::flush`] is owed before the process ends.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Installs the subscriber. To be called within the runtime, which carries the exports.
///
/// # Errors
/// [`Fatal::Usage`] when the exporter cannot be made of `--otlp-endpoint`.
pub fn init(config: &Config) -> Result<Telemetry, Fatal> {
    let provider = config
        .otlp_endpoint()
        .map(|url| tracer(url, config.proxy_id()))
        .transpose()?;
    let spans = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer().with_tracer(provider.tracer("gateway-proxy"))
    });
    // Config has parsed the same text, so this cannot fail; `info` is the default all the same.
    let filter = EnvFilter::try_new(config.log_filter()).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(true);
    let lines: Box<dyn Layer<_> + Send + Sync> = match config.log_format() {
        // On a terminal tracing-subscriber itself asks NO_COLOR.
        LogFormat::Text if is_terminal() => lines.boxed(),
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // Another subscriber is there only when a test or an embedding program installed its own.
    drop(
        Registry::default()
            .with(filter)
            .with(spans)
            .with(lines)
            .try_init(),
    );
    Ok(Telemetry { provider })
}

impl Telemetry {
    /// Sends what is left and ends the exporter.
    pub async fn flush(self) {
        let Some(provider) = self.provider else {
            return;
        };
        // Ending blocks until the exports are done, and the exports need this thread's runtime.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown());
        match tokio::time::timeout(FLUSH_TIMEOUT, ended).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "traces were not all sent"),
            Ok(Err(error)) => tracing::warn!(%error, "traces were not all sent"),
            Err(_) => tracing::warn!("the collector did not take the last traces in time"),
        }
    }
}

fn is_terminal() -> bool {
    use std::io::IsTerminal as _;
    std::io::stderr().is_terminal()
}

fn tracer(endpoint: &Url, proxy: &ProxyId) -> Result<SdkTracerProvider, Fatal> {
    let unusable = |error: String| {
        Fatal::usage(
            format!("--otlp-endpoint: {error}"),
            "give the base URL of an OTLP/HTTP collector, such as http://127.0.0.1:4318",
        )
    };
    let base = endpoint.as_str().trim_end_matches('/');
    let client = HyperClient::new(discord_api::connector(), EXPORT_TIMEOUT, None);
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        // The variable and the flag name the collector; the path is the standard's.
        .with_endpoint(format!("{base}/v1/traces"))
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let exporter = OnRuntime {
        exporter: Arc::new(exporter),
        runtime: Handle::current(),
    };
    let resource = Resource::builder()
        .with_service_name("gateway-proxy")
        .with_attribute(opentelemetry::KeyValue::new(
            "service.version",
            env!("CARGO_PKG_VERSION"),
        ))
        .with_attribute(opentelemetry::KeyValue::new(
            "service.instance.id",
            proxy.to_string(),
        ))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

/// The SDK exports from a thread of its own, without a runtime; the HTTP client needs one.
#[derive(Debug)]
struct OnRuntime {
    exporter: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: Handle,
}

impl SpanExporter for OnRuntime {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporter = Arc::clone(&self.exporter);
        let sent = self
            .runtime
            .spawn(async move { exporter.export(batch).await });
        sent.await
            .map_err(|error| OTelSdkError::InternalFailure(error.to_string()))?
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Called once, before the first export: nobody else holds the exporter yet.
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Bytes;
    use axum::extract::State;
    use axum::http::Uri;
    use opentelemetry::trace::{Span as _, Tracer as _};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    type Requests = mpsc::Sender<(Uri, Bytes)>;

    async fn collector() -> (Url, mpsc::Receiver<(Uri, Bytes)>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/base/", listener.local_addr().unwrap())).unwrap();
        let (requests, received) = mpsc::channel(8);
        let take = |State(requests): State<Requests>, uri: Uri, body: Bytes| async move {
            requests.send((uri, body)).await.unwrap();
        };
        let router = Router::new().fallback(take).with_state(requests);
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, received)
    }

    // One thread, as in the program: an export that needed another one would never finish.
    #[tokio::test(flavor = "current_thread")]
    async fn a_flush_sends_the_last_spans_to_the_collector() {
        let (url, mut received) = collector().await;
        let provider = tracer(&url, &"proxy-1".parse().unwrap()).unwrap();
        provider.tracer("test").start("the-span").end();
        Telemetry {
            provider: Some(provider),
        }
        .flush()
        .await;
        let (uri, body) = received.try_recv().expect("the collector was asked");
        assert_eq!(uri.path(), "/base/v1/traces");
        let text = String::from_utf8_lossy(&body).into_owned();
        assert!(
            text.contains("the-span") && text.contains("proxy-1"),
            "{text}"
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_collector_that_is_away_does_not_keep_the_process() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let provider = tracer(&url, &"proxy-1".parse().unwrap()).unwrap();
        provider.tracer("test").start("the-span").end();
        let began = std::time::Instant::now();
        Telemetry {
            provider: Some(provider),
        }
        .flush()
        .await;
        assert!(began.elapsed() < FLUSH_TIMEOUT * 3, "{:?}", began.elapsed());
    }
}
