//! A cluster of three with three replicas: leaders step down and die.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Info;
use nats_server::{Cluster, Server};
use testkit::simulator::{Load, Simulator};

use super::{POLL, STREAM, expect_no_harm, four_shards, ready};
use crate::harness::{Proxy, Run, patience};
use crate::rig::expect_clean;

/// A leader that is elected anew may still know ids that it took in and never stored, and refuses these
/// messages until the duplicate window of two minutes has passed (nats-server 2.15 forgets only those
/// behind the last one stored). Nothing is lost; the events wait.
const ID_FORGOTTEN: Duration = Duration::from_secs(150);

/// The stream behind the fleet's bucket.
const BUCKET: &str = "KV_discord_fleet";

struct Three {
    cluster: Cluster,
    simulator: Simulator,
}

impl Three {
    async fn start(load: Load) -> Self {
        let cluster = testkit::nats::start_cluster(3).await.unwrap();
        let simulator = Simulator::start(four_shards(load)).await.unwrap();
        Self { cluster, simulator }
    }

    fn run(&self) -> Run {
        Run::proxy(&self.cluster.url(), self.simulator.api_url())
            .with("--replicas", "3")
            .with("--startup-timeout", "60s")
    }

    async fn proxy(&self) -> Proxy {
        ready(&self.run()).await
    }

    /// Asks any member until the stream of the events is as wanted.
    async fn stream(&self, what: &str, wanted: impl Fn(&Info) -> bool) -> Info {
        self.stream_of(STREAM, what, wanted).await
    }

    async fn stream_of(&self, name: &str, what: &str, wanted: impl Fn(&Info) -> bool) -> Info {
        let client = testkit::nats::connect(&self.cluster.url()).await.unwrap();
        let jetstream = jetstream::new(client);
        let mut last = String::new();
        let ask = async {
            loop {
                let info = jetstream.get_stream(name).await;
                match info.map(|stream| stream.cached_info().clone()) {
                    Ok(info) if wanted(&info) => return info,
                    Ok(info) => last = format!("{info:?}"),
                    Err(error) => last = error.to_string(),
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let asked = tokio::time::timeout(patience().max(ID_FORGOTTEN), ask).await;
        asked.unwrap_or_else(|_| panic!("{what}: {last}"))
    }

    async fn leader(&self) -> String {
        self.leader_of(STREAM).await
    }

    async fn leader_of(&self, name: &str) -> String {
        let leader = |info: &Info| info.cluster.as_ref().and_then(|it| it.leader.clone());
        let is_led = |info: &Info| leader(info).is_some();
        let info = self.stream_of(name, "a leader", is_led).await;
        leader(&info).unwrap()
    }

    async fn all_current(&self) {
        let all_current = |info: &Info| {
            let replicas = info.cluster.as_ref().map(|cluster| &cluster.replicas);
            replicas.is_some_and(|all| all.len() == 2 && all.iter().all(|one| one.current))
        };
        self.stream("all replicas", all_current).await;
    }

    /// Waits until so many messages more are stored.
    async fn stored_more(&self, messages: u64) {
        let now = self.stream("an answer", |_| true).await.state.last_sequence;
        let stored = |info: &Info| info.state.last_sequence >= now + messages;
        self.stream("more messages", stored).await;
    }

    fn member(&mut self, name: &str) -> &mut Server {
        let mut servers = self.cluster.servers_mut().iter_mut();
        servers.find(|server| server.name() == name).unwrap()
    }

    async fn step_down(&self) {
        let client = testkit::nats::connect(&self.cluster.url()).await.unwrap();
        let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}");
        let answer = client.request(subject, "".into()).await.unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!(answer["success"], true, "{answer}");
    }

    async fn finish(self, proxy: Proxy) {
        self.simulator.set_load(Load::quiet());
        let url = self.cluster.url();
        let report = expect_clean(&url, &self.simulator, &[&proxy]).await;
        assert!(report.is_complete(), "{report}");
        assert_eq!(report.identifies, 4, "{report}");
        expect_no_harm(&proxy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_of_the_stream_that_step_down_under_flow_lose_nothing() {
    let three = Three::start(Load::rate(1_500.0)).await;
    let proxy = three.proxy().await;
    for _ in 0..6 {
        three.leader().await;
        three.step_down().await;
        three.stored_more(300).await;
    }
    three.finish(proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_of_the_stream_takes_nothing_with_it() {
    let mut three = Three::start(Load::rate(1_000.0)).await;
    let proxy = three.proxy().await;
    for _ in 0..2 {
        let leader = three.leader().await;
        tokio::task::block_in_place(|| three.member(&leader).kill9().unwrap());
        three.stored_more(500).await;
        tokio::task::block_in_place(|| three.member(&leader).start_again().unwrap());
        three.all_current().await;
    }
    three.finish(proxy).await;
}

/// A cluster needs seconds to elect the bucket's leader, and nobody can renew a lease meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_of_the_bucket_costs_a_patient_fleet_no_connection() {
    let mut three = Three::start(Load::rate(300.0)).await;
    let mut proxies = Vec::new();
    for name in ["a", "b"] {
        let run = three.run().args(&["--fleet", "--proxy-id", name]);
        proxies.push(ready(&run.with("--lease-ttl", "60s")).await);
    }
    let leader = three.leader_of(BUCKET).await;
    tokio::task::block_in_place(|| three.member(&leader).kill9().unwrap());
    three.leader_of(BUCKET).await;
    three.stored_more(300).await;
    tokio::task::block_in_place(|| three.member(&leader).start_again().unwrap());
    three.all_current().await;
    three.simulator.set_load(Load::quiet());
    let both: Vec<&Proxy> = proxies.iter().collect();
    let report = expect_clean(&three.cluster.url(), &three.simulator, &both).await;
    assert_eq!((report.identifies, report.gaps.len()), (4, 0), "{report}");
    for line in proxies.iter().flat_map(Proxy::log) {
        assert!(!line.contains("it lets go of everything"), "{line}");
    }
}
