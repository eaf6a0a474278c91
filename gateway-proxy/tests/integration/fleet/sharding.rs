//! How many shards there are: sessions keep their count until all proxies ask for another one.

use nix::sys::signal::Signal;
use schemas::FleetKey;
use testkit::simulator::{Config, Load};

use super::{Fleet, twelve_shards};
use crate::harness::{Proxy, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn another_recommended_number_of_shards_ends_no_session() {
    let mut fleet = Fleet::empty(twelve_shards()).await;
    let single = fleet.rig.proxy().spawn();
    eventually(single.http().await, "/ready", |status, _| status == 200).await;
    single.signal(Signal::SIGTERM);
    assert_eq!(single.exit_code().await, Some(0));
    // A few guilds more, and Discord recommends another shard: the sessions of twelve go on.
    fleet.rig.simulator.recommend(13);
    let single = fleet.rig.proxy().spawn();
    eventually(single.http().await, "/ready", |status, _| status == 200).await;
    single
        .logged("Discord recommends another number of shards")
        .await;
    single.signal(Signal::SIGTERM);
    assert_eq!(single.exit_code().await, Some(0));
    fleet.join("a", &[]);
    fleet.join("b", &[]);
    fleet.all_ready().await;
    assert_eq!(fleet.plan().await.shard_count, 12);
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_of_a_fleet_that_is_gone_ends_no_session_of_another_count() {
    let mut fleet = Fleet::empty(twelve_shards()).await;
    let plan = r#"{"epoch":7,"shard_count":8,"shards":{"0":"gone"},"made_at_unix_ms":0}"#;
    let single = fleet.rig.proxy().spawn();
    eventually(single.http().await, "/ready", |status, _| status == 200).await;
    let jetstream = testkit::nats::jetstream(&fleet.rig.nats.url())
        .await
        .unwrap();
    let bucket = jetstream.get_key_value("discord_fleet").await.unwrap();
    let put = bucket.put(FleetKey::Plan.to_string(), plan.into()).await;
    put.unwrap();
    // The fleet begins while twelve shards are held by a process outside it.
    fleet.join("a", &[]);
    single.signal(Signal::SIGTERM);
    assert_eq!(single.exit_code().await, Some(0));
    fleet.all_ready().await;
    assert_eq!(fleet.plan().await.shard_count, 12);
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_shards_changes_once_every_proxy_is_started_with_the_new_one() {
    let config = Config {
        shards: 4,
        ..twelve_shards()
    };
    let mut fleet = Fleet::empty(config).await;
    for name in ["a", "b"] {
        fleet.join(name, &["--shards", "4"]);
    }
    fleet.all_ready().await;
    // A rolling restart, one proxy after the other.
    fleet.join("c", &["--shards", "6"]);
    fleet.all_ready().await;
    assert_eq!(fleet.plan().await.shard_count, 4, "a and b want four");
    // What sessions of the old count would deliver after their end is owed by nobody.
    fleet.rig.simulator.set_load(Load::quiet());
    let proxies: Vec<&Proxy> = fleet.proxies.values().collect();
    fleet.rig.expect_clean(&proxies).await;
    for name in ["a", "b"] {
        let proxy = fleet.proxies.remove(name).unwrap();
        proxy.signal(Signal::SIGTERM);
        assert_eq!(proxy.exit_code().await, Some(0));
    }
    fleet
        .until("six shards", |state| {
            (state.total_shards, state.ready_shards) == (6, 6)
        })
        .await;
    let report = fleet.rig.expect_clean(&[fleet.proxy("c")]).await;
    assert_eq!(report.identifies, 4 + 6, "{report}");
    // The four numbers that were sessions before say so.
    assert_eq!(report.gaps.len(), 4, "{report}");
}
