//! A simulated Discord, a real nats-server and the means to compare them.

use std::time::Duration;

use schemas::Prefix;
use testkit::audit::{AuditReport, audit, wait_caught_up};
use testkit::nats::{Options, Server};
use testkit::simulator::{Config, Simulator};

use crate::harness::{Proxy, Run, patience};

/// Everything around the proxies of one test.
pub(crate) struct Rig {
    pub(crate) simulator: Simulator,
    pub(crate) nats: Server,
}

impl Rig {
    pub(crate) async fn start(config: Config) -> Self {
        Self::start_with(config, Options::default()).await
    }

    /// With a server of other options.
    pub(crate) async fn start_with(config: Config, options: Options) -> Self {
        let nats = testkit::nats::start(options).await.unwrap();
        let simulator = Simulator::start(config).await.unwrap();
        Self { simulator, nats }
    }

    /// A proxy that is to run against both.
    pub(crate) fn proxy(&self) -> Run {
        Run::proxy(&self.nats.url(), self.simulator.api_url())
    }

    pub(crate) async fn client(&self) -> async_nats::Client {
        testkit::nats::connect(&self.nats.url()).await.unwrap()
    }

    /// Waits until everything that Discord sent is stored.
    pub(crate) async fn caught_up(&self, proxies: &[&Proxy]) {
        caught_up(&self.nats.url(), &self.simulator, proxies).await;
    }

    /// Compares, without waiting.
    pub(crate) async fn audit(&self) -> AuditReport {
        audit_at(&self.nats.url(), &self.simulator).await
    }

    /// Waits for the stream, and expects it to be exactly what Discord sent.
    pub(crate) async fn expect_clean(&self, proxies: &[&Proxy]) -> AuditReport {
        expect_clean(&self.nats.url(), &self.simulator, proxies).await
    }
}

async fn caught_up(url: &str, simulator: &Simulator, proxies: &[&Proxy]) {
    let client = testkit::nats::connect(url).await.unwrap();
    let prefix = Prefix::default();
    if let Err(error) = wait_caught_up(&client, &prefix, simulator, patience()).await {
        let logs: Vec<_> = proxies.iter().map(|proxy| proxy.log()).collect();
        panic!("{error}\n{logs:#?}");
    }
}

async fn audit_at(url: &str, simulator: &Simulator) -> AuditReport {
    let client = testkit::nats::connect(url).await.unwrap();
    audit(&client, &Prefix::default(), &simulator.ledger())
        .await
        .unwrap()
}

/// Waits for the stream of any server or cluster, and expects it to be exactly what Discord sent.
pub(crate) async fn expect_clean(
    url: &str,
    simulator: &Simulator,
    proxies: &[&Proxy],
) -> AuditReport {
    caught_up(url, simulator, proxies).await;
    let report = audit_at(url, simulator).await;
    assert!(report.is_clean(), "{report}");
    report
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(patience(), wait).await;
    assert!(waited.is_ok(), "{what} did not happen");
}
