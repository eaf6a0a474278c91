//! The verbs of `discord.fleet.<verb>` as a NATS service. Every process hears every request; the
//! coordinator answers, and whom a request names acts on it. Decides nothing.

use std::sync::Arc;

use async_nats::Client;
use async_nats::service::{self, Request, ServiceExt as _};
use bytes::Bytes;
use futures_util::StreamExt as _;
use schemas::control::{
    DrainRequest, FleetReply, FleetVerb, IdentifyRequest, MigrateRequest, ReshardRequest,
    RestartRequest, StateRequest,
};
use schemas::health::ClusterState;
use schemas::{Prefix, ProxyId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use crate::identify::Ask;

/// Requests that wait for the agent or for the limiter; more are not answered, and asked again.
pub(crate) const WISHES_MAX: usize = 256;
/// Largest request that is read.
const REQUEST_MAX: usize = 64 * 1024;
/// The service's name in NATS' discovery.
const NAME: &str = "gateway-proxy";
/// Letters of a request that an error quotes.
const QUOTED_CHARS: usize = 80;

/// Why a request is not granted: for the NATS service error headers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Refusal {
    code: u16,
    text: String,
}

impl Refusal {
    /// `code` follows HTTP's.
    pub(crate) fn new(code: u16, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

/// Where an answer goes; dropped without one, the asker hears nothing from this process.
#[derive(Debug)]
pub(crate) struct Answer<T>(oneshot::Sender<Result<T, Refusal>>);

impl<T> Answer<T> {
    pub(crate) fn send(self, answer: Result<T, Refusal>) {
        // Who asked may have gone.
        drop(self.0.send(answer));
    }
}

/// What somebody wants of the fleet.
#[derive(Debug)]
pub(crate) enum Wish {
    Drain {
        proxy: ProxyId,
        answer: Answer<FleetReply>,
    },
    Migrate {
        shard: u32,
        to: ProxyId,
        answer: Answer<FleetReply>,
    },
    Restart {
        shard: u32,
        fresh: bool,
        answer: Answer<FleetReply>,
    },
    Reshard {
        answer: Answer<FleetReply>,
    },
    State {
        answer: Answer<ClusterState>,
    },
}

/// Where requests go.
#[derive(Clone, Debug)]
pub(crate) struct Inboxes {
    pub(crate) wishes: mpsc::Sender<Wish>,
    pub(crate) asks: mpsc::Sender<Ask>,
}

/// Answers until dropped.
pub(crate) async fn run(client: Client, prefix: Prefix, instance: Arc<str>, inboxes: Inboxes) {
    let service = client
        .service_builder()
        .description("Holds a Discord bot's gateway shards")
        // Each process is a group of its own, so that all hear everything.
        .queue_group(instance.to_string())
        .start(NAME, version())
        .await;
    let service = match service {
        Ok(service) => service,
        Err(error) => {
            warn!(%error, "the fleet's services cannot be offered");
            return;
        }
    };
    let mut requests = Vec::new();
    for verb in FleetVerb::ALL {
        let endpoint = service
            .endpoint_builder()
            .name(verb.as_str())
            .add(verb.subject(&prefix))
            .await;
        match endpoint {
            Ok(endpoint) => requests.push(endpoint.map(move |request| (verb, request)).boxed()),
            Err(error) => warn!(%verb, %error, "a verb of the fleet cannot be offered"),
        }
    }
    let mut requests = futures_util::stream::select_all(requests);
    while let Some((verb, request)) = requests.next().await {
        take(verb, request, &inboxes);
    }
}

/// A version that NATS takes: semantic, which ours is.
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn take(verb: FleetVerb, request: Request, inboxes: &Inboxes) {
    let payload = request.message.payload.clone();
    match verb {
        FleetVerb::Identify => {
            let Some(wanted) = read::<IdentifyRequest>(verb, &payload) else {
                return refuse(request, verb, &payload);
            };
            let (answer, answered) = oneshot::channel();
            let ask = Ask {
                request: wanted,
                answer,
            };
            if inboxes.asks.try_send(ask).is_ok() {
                respond(request, async move { answered.await.ok().map(Ok) });
            }
        }
        FleetVerb::Drain => pass_on(verb, request, inboxes, |wanted: DrainRequest, answer| {
            Wish::Drain {
                proxy: wanted.proxy,
                answer,
            }
        }),
        FleetVerb::Migrate => pass_on(verb, request, inboxes, |wanted: MigrateRequest, answer| {
            Wish::Migrate {
                shard: wanted.shard,
                to: wanted.to,
                answer,
            }
        }),
        FleetVerb::Restart => pass_on(verb, request, inboxes, |wanted: RestartRequest, answer| {
            Wish::Restart {
                shard: wanted.shard,
                fresh: wanted.fresh,
                answer,
            }
        }),
        FleetVerb::Reshard => pass_on(verb, request, inboxes, |_: ReshardRequest, answer| {
            Wish::Reshard { answer }
        }),
        FleetVerb::State => pass_on(verb, request, inboxes, |_: StateRequest, answer| {
            Wish::State { answer }
        }),
    }
}

fn pass_on<R: DeserializeOwned, T: Serialize + Send + 'static>(
    verb: FleetVerb,
    request: Request,
    inboxes: &Inboxes,
    wish: impl FnOnce(R, Answer<T>) -> Wish,
) {
    let payload = request.message.payload.clone();
    let Some(wanted) = read::<R>(verb, &payload) else {
        return refuse(request, verb, &payload);
    };
    let (answer, answered) = oneshot::channel();
    if inboxes
        .wishes
        .try_send(wish(wanted, Answer(answer)))
        .is_ok()
    {
        respond(request, async move { answered.await.ok() });
    } else {
        debug!(%verb, "too many requests: one is not heard");
    }
}

/// An empty request is one without fields.
fn read<R: DeserializeOwned>(verb: FleetVerb, payload: &[u8]) -> Option<R> {
    let payload = if payload.is_empty() { b"{}" } else { payload };
    if payload.len() > REQUEST_MAX {
        return None;
    }
    match serde_json::from_slice(payload) {
        Ok(wanted) => Some(wanted),
        Err(error) => {
            debug!(%verb, %error, "a request that nobody can read");
            None
        }
    }
}

fn refuse(request: Request, verb: FleetVerb, payload: &[u8]) {
    let quoted: String = String::from_utf8_lossy(payload)
        .chars()
        .take(QUOTED_CHARS)
        .collect();
    let refusal = Refusal::new(400, format!("this is no request for {verb}: {quoted:?}"));
    respond(request, std::future::ready(Some(Err::<(), _>(refusal))));
}

/// Answers with what comes, if something comes.
fn respond<T: Serialize + Send + 'static>(
    request: Request,
    answer: impl Future<Output = Option<Result<T, Refusal>>> + Send + 'static,
) {
    // Ends with the answer or with the parts that would have given it.
    drop(tokio::spawn(async move {
        let Some(answer) = answer.await else { return };
        let answer = match answer {
            Ok(answer) => serde_json::to_vec(&answer)
                .map(Bytes::from)
                .map_err(|error| service::error::Error {
                    status: error.to_string(),
                    code: 500,
                }),
            Err(refusal) => Err(service::error::Error {
                status: refusal.text,
                code: refusal.code.into(),
            }),
        };
        if let Err(error) = request.respond(answer).await {
            debug!(%error, "an answer was not sent");
        }
    }));
}
