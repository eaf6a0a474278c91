//! Three NATS servers: what workers keep has as many replicas as the events, so one of them may die.

use std::time::Duration;

use consumers::{
    DirectoryConfig, DirectoryOptions, DirectoryService, Events, HandlerError, Message, Options,
    Running, ShardMessages, Singleton, Turn, WorkerContext, commands,
};
use twilight_model::gateway::payload::incoming::MessageDelete;

use crate::event_world::{Seen, Stored};
use crate::fake_discord::TOKEN;
use crate::world::{World, metric, until};

const SECOND: Duration = Duration::from_secs(1);

/// Stores an event, if there is a leader at the moment.
async fn store(world: &World, seq: u64) -> Option<()> {
    let stored = Stored {
        shard: 0,
        guild: 7,
        event: "MESSAGE_DELETE",
        seq,
    };
    let d = format!(r#"{{"id":"{seq}","channel_id":"1","guild_id":"7"}}"#);
    world.try_store_event(stored, &d).await.ok()
}

async fn worker(world: &World, options: &Options, name: &str, seen: [&Seen; 3]) -> Running {
    async fn echo(_: WorkerContext, message: Message) -> Result<Vec<u8>, HandlerError> {
        Ok(message.payload.to_vec())
    }
    let [on_shared, on_ordered, runs] = seen.map(Seen::clone);
    let run = move |_: WorkerContext, _: Turn| {
        runs.add("run");
        async { Ok::<(), HandlerError>(()) }
    };
    let shared = Events::shared("log").on::<MessageDelete>(on_shared.notes());
    let ordered = Events::ordered("cache").shards([0]);
    let ordered = ordered.on::<MessageDelete>(on_ordered.notes());
    let router = commands::router()
        .events(shared)
        .events(ordered.on_message(echo))
        .singleton(Singleton::every("digest", SECOND, run));
    let mut options = options.clone();
    options.worker_id = Some(name.to_owned());
    world.try_worker(router, options).await.unwrap()
}

/// Replicas of a stream, and of a consumer of the events: their leader and its followers.
async fn replicas(world: &World, stream: &str, consumer: Option<&str>) -> usize {
    let found = world.jetstream.get_stream(stream).await.unwrap();
    let cluster = match consumer {
        Some(consumer) => found.consumer_info(consumer).await.unwrap().cluster,
        None => found.cached_info().cluster.clone(),
    };
    cluster.map_or(0, |cluster| 1 + cluster.replicas.len())
}

#[tokio::test]
async fn one_of_three_servers_dies_and_workers_go_on() {
    let mut cluster = testkit::nats::start_cluster(3).await.unwrap();
    let mut world = World::without_stream().await;
    world.jetstream = testkit::nats::jetstream(&cluster.url()).await.unwrap();
    world.create_stream_with(None, 3).await;
    let mut options = world.options();
    options.nats_url = Some(cluster.url());
    let (shared, ordered, runs) = (Seen::default(), Seen::default(), Seen::default());
    let seen = [&shared, &ordered, &runs];
    let one = worker(&world, &options, "one", seen).await;
    let two = worker(&world, &options, "two", seen).await;
    let env = |name: &str| (name == "DISCORD_TOKEN").then(|| TOKEN.into());
    let directory = DirectoryOptions {
        worker: options.clone(),
        users: true,
    };
    let directory = DirectoryConfig::with_environment(directory, &env).unwrap();
    let directory = DirectoryService::new(directory).start().await.unwrap();
    store(&world, 1).await.unwrap();
    shared.reaches(1).await;
    ordered.reaches(1).await;
    for stream in [
        "KV_discord_workers",
        "KV_discord_directory",
        "KV_discord_users",
        "DISCORD_DEAD",
    ] {
        assert_eq!(replicas(&world, stream, None).await, 3, "{stream}");
    }
    for consumer in ["commands", "log", "cache-0"] {
        let count = replicas(&world, "DISCORD_EVENTS", Some(consumer)).await;
        assert_eq!(count, 3, "{consumer}");
    }

    cluster.servers_mut()[0].kill9().unwrap();
    until("the stream to have a leader", async || {
        store(&world, 2).await
    })
    .await;
    shared.reaches(2).await;
    assert_eq!(ordered.reaches(2).await[..2], ["s0:1", "s0:2"]);
    let before = runs.all().len();
    runs.reaches(before + 2).await;
    let messages = ShardMessages::new(world.jetstream.client(), world.prefix.clone());
    until("the shard's holder to answer", async || {
        messages.request(0, "hello", SECOND).await.ok()
    })
    .await;
    until("a command to be answered", async || {
        let id = world.type_command("ping").await;
        tokio::time::timeout(SECOND * 3, world.answer(id))
            .await
            .ok()
    })
    .await;
    tokio::join!(
        metric(&one, "consumers_rest_workers 3"),
        metric(&two, "consumers_rest_workers 3")
    );
    tokio::join!(one.stop(), two.stop(), directory.stop());
}
