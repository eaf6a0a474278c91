//! What a naive reader of the whole stream knows, put right by what the simulator says of itself.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use consumers::Directory;
use futures_util::StreamExt as _;
use schemas::{GuildInfo, GuildsRequest, ProxyEventKind, Snowflake, Subject};
use serde_json::Value;
use testkit::simulator::Simulator;

use crate::world::{World, held_within};

/// Every guild as the directory should know it, once every dispatch of the simulator is stored.
pub(super) async fn when_all_is_stored(
    world: &World,
    simulator: &Simulator,
    unavailable: usize,
    shards: u32,
) -> BTreeMap<Snowflake, GuildInfo> {
    let all = async || (dispatches(world).await >= made(simulator)).then_some(());
    if held_within(3, all).await.is_none() {
        panic!(
            "{} of {} events are stored: {:?}",
            dispatches(world).await,
            made(simulator),
            simulator.ledger().lifecycle
        );
    }
    judged(read(world).await, simulator, unavailable, shards)
}

/// How many dispatches the simulator has made.
pub(super) fn made(simulator: &Simulator) -> u64 {
    let sessions = simulator.progress();
    sessions.iter().map(|session| session.events).sum()
}

/// How many dispatches the stream holds: everything but what proxies add.
async fn dispatches(world: &World) -> u64 {
    let stream = world.jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    let mut dispatches = stream.cached_info().state.messages;
    for added in ProxyEventKind::ALL {
        let subject = world.prefix.event_of_all_shards(added.name());
        let mut of_shards = stream.info_with_subjects(subject).await.unwrap();
        while let Some(of_shard) = of_shards.next().await {
            dispatches -= u64::try_from(of_shard.unwrap().1).unwrap();
        }
    }
    dispatches
}

/// What all dispatches in the stream tell.
async fn read(world: &World) -> BTreeMap<String, Naive> {
    let mut guilds: BTreeMap<String, Naive> = BTreeMap::new();
    let stream = world.jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    let last = stream.cached_info().state.last_sequence;
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::All,
        ..pull::OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let seq = message.info().unwrap().stream_sequence;
        if let Ok(Subject::Event { event, .. }) = Subject::parse(&world.prefix, &message.subject) {
            let frame: Value = serde_json::from_slice(&message.payload).unwrap();
            fold(&mut guilds, event, &frame["d"]);
        }
        if seq >= last {
            break;
        }
    }
    guilds
}

fn judged(
    guilds: BTreeMap<String, Naive>,
    simulator: &Simulator,
    unavailable: usize,
    shards: u32,
) -> BTreeMap<Snowflake, GuildInfo> {
    let ids = simulator.guild_ids();
    assert_eq!(guilds.len(), ids.len(), "the stream tells of every guild");
    let out: BTreeSet<u64> = ids.iter().copied().take(unavailable).collect();
    let info = |(id, naive): (String, Naive)| {
        let id: Snowflake = id.parse().unwrap();
        assert_eq!(
            naive.available,
            !out.contains(&id.get()),
            "the simulator's own word"
        );
        (id, naive.info(id, shards))
    };
    let truth: BTreeMap<_, _> = guilds.into_iter().map(info).collect();
    assert!(
        ids.iter()
            .all(|id| truth.contains_key(&Snowflake::new(*id).unwrap()))
    );
    truth
}

/// Every guild as the directory knows it; `None` while it cannot say.
pub(super) async fn known(directory: &Directory) -> Option<BTreeMap<Snowflake, GuildInfo>> {
    let mut request = GuildsRequest {
        limit: Some(1000),
        ..GuildsRequest::default()
    };
    let mut known = BTreeMap::new();
    loop {
        let page = directory.guilds(&request).await.ok()?;
        known.extend(page.guilds.into_iter().map(|guild| (guild.id, guild)));
        let Some(next) = page.next else {
            return Some(known);
        };
        request.after = Some(next);
    }
}

#[derive(Default)]
struct Naive {
    d: Value,
    members: u64,
    channels: BTreeSet<String>,
    roles: BTreeSet<String>,
    available: bool,
}

impl Naive {
    fn info(self, id: Snowflake, shards: u32) -> GuildInfo {
        let text = |field: &str| self.d[field].as_str().map(str::to_owned);
        let features = self.d["features"].as_array().unwrap();
        let features = features
            .iter()
            .map(|item| item.as_str().unwrap().to_owned());
        GuildInfo {
            id,
            shard: id.as_guild().shard(shards),
            name: text("name"),
            owner_id: text("owner_id").map(|id| id.parse().unwrap()),
            member_count: Some(self.members),
            channels: self.channels.len() as u32,
            roles: self.roles.len() as u32,
            features: features.collect(),
            joined_at: text("joined_at").map(|at| at.parse().unwrap()),
            available: self.available,
            stale: false,
        }
    }
}

fn ids(list: &Value) -> BTreeSet<String> {
    let list = list.as_array().unwrap();
    let id = |item: &Value| item["id"].as_str().unwrap().to_owned();
    list.iter().map(id).collect()
}

fn fold(guilds: &mut BTreeMap<String, Naive>, event: &str, d: &Value) {
    let own = d["id"].as_str().unwrap_or_default().to_owned();
    let guild_id = d["guild_id"].as_str().unwrap_or_default();
    match event {
        "GUILD_CREATE" => {
            let naive = Naive {
                members: d["member_count"].as_u64().unwrap(),
                channels: ids(&d["channels"]),
                roles: ids(&d["roles"]),
                available: true,
                d: d.clone(),
            };
            guilds.insert(own, naive);
        }
        "GUILD_UPDATE" => {
            let guild = guilds.get_mut(&own).unwrap();
            for field in ["name", "owner_id", "features"] {
                guild.d[field] = d[field].clone();
            }
            guild.roles = ids(&d["roles"]);
        }
        "GUILD_DELETE" => guilds.get_mut(&own).unwrap().available = false,
        "CHANNEL_CREATE" | "CHANNEL_UPDATE" => {
            guilds.get_mut(guild_id).unwrap().channels.insert(own);
        }
        "CHANNEL_DELETE" => {
            guilds.get_mut(guild_id).unwrap().channels.remove(&own);
        }
        "GUILD_ROLE_CREATE" | "GUILD_ROLE_UPDATE" => {
            let role = d["role"]["id"].as_str().unwrap().to_owned();
            guilds.get_mut(guild_id).unwrap().roles.insert(role);
        }
        "GUILD_ROLE_DELETE" => {
            let role = d["role_id"].as_str().unwrap();
            guilds.get_mut(guild_id).unwrap().roles.remove(role);
        }
        "GUILD_MEMBER_ADD" => guilds.get_mut(guild_id).unwrap().members += 1,
        "GUILD_MEMBER_REMOVE" => {
            let guild = guilds.get_mut(guild_id).unwrap();
            guild.members = guild.members.saturating_sub(1);
        }
        _ => {}
    }
}
