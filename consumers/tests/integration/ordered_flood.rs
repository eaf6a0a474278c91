//! Ordered mode with more coming in than a worker can look at.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use consumers::{Context, Events, HandlerError, Message, Router, WorkerContext};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::Notify;
use twilight_model::gateway::payload::incoming::MessageDelete;

use crate::event_world::Seen;
use crate::world::{World, patience, until};

/// Messages per write of the flood.
const CHUNK: usize = 20_000;
/// Chunks on their way at most, so that the server does not give up the connection as too slow.
const CHUNKS_AHEAD: u64 = 3;
/// What a worker broadcasts to itself behind each chunk.
const TOPIC: &str = "flood";

/// Fills the way to a worker's inbox without an end, until dropped. What it sends is what the server says
/// when a request is over: nothing costs a worker less, so nothing comes in faster.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn start(nats: &str, inbox: &str, arrived: Arc<AtomicU64>) -> Self {
        let mut socket = TcpStream::connect(nats.strip_prefix("nats://").unwrap()).unwrap();
        let headers = "NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 0\r\n\r\n";
        let length = headers.len();
        let over = format!("HPUB {inbox} {length} {length}\r\n{headers}\r\n");
        let chunk = over.repeat(CHUNK) + &format!("PUB discord.broadcast.{TOPIC} 0\r\n\r\n");
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let connect = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n";
            socket.write_all(connect).unwrap();
            let mut sent = 0;
            while !stopping.load(Ordering::Relaxed) {
                if sent < arrived.load(Ordering::Relaxed) + CHUNKS_AHEAD {
                    socket.write_all(chunk.as_bytes()).unwrap();
                    sent += 1;
                } else {
                    std::thread::yield_now();
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// One thread for everything: the worker is never ahead of what comes in.
#[tokio::test]
async fn a_flood_does_not_keep_the_server_from_hearing_of_events_in_work() {
    let world = World::start().await;
    let client = async_nats::connect(world.nats.url()).await.unwrap();
    let asked = "$JS.API.CONSUMER.MSG.NEXT.DISCORD_EVENTS.cache-0";
    let mut asked = client.subscribe(asked).await.unwrap();
    let told = client.subscribe("$JS.ACK.DISCORD_EVENTS.cache-0.>").await;
    let mut told = told.unwrap();
    client.flush().await.unwrap();

    let (seen, gate) = (Seen::default(), Arc::new(Notify::new()));
    let (note, open) = (seen.clone(), Arc::clone(&gate));
    let handler = move |context: Context, _: MessageDelete| {
        let (note, open) = (note.clone(), Arc::clone(&open));
        async move {
            note.add(context.message_id());
            open.notified().await;
            Ok::<(), HandlerError>(())
        }
    };
    let arrived = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&arrived);
    let count = move |_: WorkerContext, _: Message| {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok::<(), HandlerError>(()))
    };
    let events = Events::ordered("cache").shards([0]);
    let events = events.on::<MessageDelete>(handler);
    let router = Router::new().events(events).on_broadcast(TOPIC, count);
    let worker = world.worker(router).await;
    world.store_delete(0, 1, 1).await;
    seen.reaches(1).await;
    // The inbox of the newest request is the one that the worker reads.
    let mut inbox = asked.next().await.unwrap().reply.unwrap();
    while let Some(Some(request)) = asked.next().now_or_never() {
        inbox = request.reply.unwrap();
    }

    let flood = Flood::start(&world.nats.url(), &inbox, Arc::clone(&arrived));
    until("the flood to come in", async || {
        (arrived.load(Ordering::Relaxed) >= 5).then_some(())
    })
    .await;
    let before = arrived.load(Ordering::Relaxed);
    for _ in 0..5 {
        // Three of these in the time after which the server delivers again.
        let next = tokio::time::timeout(patience(), told.next());
        let said = next.await.expect("the server hears of the event").unwrap();
        assert_eq!(&said.payload[..], b"+WPI");
    }
    assert!(
        arrived.load(Ordering::Relaxed) > before,
        "it came in all the time"
    );
    drop(flood);
    gate.notify_one();
    // Once is not asked for: on a machine that is busy as well a lease may end, and the shard begins again.
    world.drained("cache-0").await;
    worker.stop().await;
}
