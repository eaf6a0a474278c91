//! Commands to shards through a real proxy, and members gathered from the stream.

use consumers::{CommandSender, MembersQuery, SendError};
use schemas::{CommandStatus, GuildId};
use serde_json::json;
use testkit::simulator::{Config, GuildBytes, Simulator};

use crate::proxy::Process;
use crate::world::World;

#[tokio::test]
async fn members_are_gathered_and_equal_requests_share_them() {
    let world = World::without_stream().await;
    let nats = world.nats.url();
    let simulator = Simulator::start(Config {
        guilds: 4,
        // 2505 members in each: three chunks.
        guild_bytes: GuildBytes {
            median: 250_000,
            max: 250_000,
            forced_max: 4,
            ..GuildBytes::default()
        },
        ..Config::default()
    })
    .await
    .unwrap();
    let proxy = Process::proxy(&nats, &simulator, &[]);
    proxy.logs("shard is ready").await;
    let client = testkit::nats::connect(&nats).await.unwrap();
    let sender = CommandSender::new(client, world.prefix.clone(), 1);
    let guild = GuildId::new(simulator.guild_ids()[0]).unwrap();

    let mut first = sender
        .request_members(guild, &MembersQuery::All, false)
        .await
        .unwrap();
    let chunk = first.next().await.unwrap().unwrap();
    assert_eq!((chunk.index, chunk.count), (0, 3));
    // Joins when chunks have passed already.
    let second = sender
        .request_members(guild, &MembersQuery::All, false)
        .await
        .unwrap();
    assert_eq!(second.nonce(), first.nonce());
    let all = second.collect().await.unwrap();
    assert_eq!(all.len(), 2505);
    let mut rest = chunk.members.len();
    while let Some(chunk) = first.next().await.unwrap() {
        rest += chunk.members.len();
    }
    assert_eq!(rest, 2505);

    let id: u64 = all[7]["user"]["id"].as_str().unwrap().parse().unwrap();
    let users = MembersQuery::Users(vec![id, 1]);
    let mut found = sender.request_members(guild, &users, false).await.unwrap();
    let chunk = found.next().await.unwrap().unwrap();
    assert_eq!(
        (chunk.members.len(), chunk.not_found.as_slice()),
        (1, ["1".to_owned()].as_slice())
    );
    assert!(found.next().await.unwrap().is_none());

    let presence = json!({"since": null, "activities": [], "status": "dnd", "afk": false});
    let presence = presence.as_object().unwrap().clone();
    let told = sender.set_presence([0, 9], presence).await;
    assert_eq!(told[0].1.as_ref().unwrap().status, CommandStatus::Sent);
    assert!(
        matches!(told[1], (9, Err(SendError::NobodyHolds))),
        "{told:?}"
    );
    assert_eq!(simulator.stats().violations, 0);
}
