//! Workers that consume the events of the gateway proxy, and the library to write your own.
//!
//! A worker is a [`Router`] of commands with their handlers and a `main` of one line:
//!
//! ```no_run
//! use consumers::{Context, Definition, HandlerError, Interaction, Response, Router};
//!
//! async fn hello(context: Context, _: Interaction) -> Result<Response, HandlerError> {
//!     Ok(Response::text(format!("Hello from shard {}", context.shard().id)))
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     let router = Router::new().command(Definition::chat_input("hello", "Says hello"), hello);
//!     consumers::run_worker("my-worker", router, std::env::args_os())
//! }
//! ```
//!
//! Interactions come from the stream that the proxies fill. Workers with the same `--consumer`
//! share them: start another one to answer more. The first response of a handler is posted within
//! Discord's 3 seconds or not at all; an interaction that arrives too late is terminated and
//! counted. A handler runs at least once per interaction: [`Context::message_id`] is the key to
//! tell repetitions.
//!
//! [`Feed`] reads everything in order, with the [`Gap`]s a proxy could not prevent. The [`tutorial`]
//! has an example of everything else.

mod admin;
mod broadcast;
mod cli;
pub mod commands;
pub mod config;
mod context;
mod dead;
mod directory;
mod durable;
pub mod event;
mod events;
pub mod exit;
pub mod feed;
mod intake;
pub mod interaction;
mod lease;
mod messages;
mod metrics;
mod nats;
mod ordered;
mod place;
mod query;
mod receipt;
mod registry;
mod response;
mod rest;
mod router;
mod sender;
mod shards;
mod singleton;
mod status;
mod streams;
mod telemetry;
mod throttle;
mod verdict;
mod worker;

pub use broadcast::{Broadcast, WorkerAnswer, WorkerRefusal};
#[doc = include_str!("../TUTORIAL.md")]
pub mod tutorial {}

pub use cli::{main_with, run_worker};
pub use commands::Definition;
pub use config::{Config, Options};
pub use context::{Context, Event, WorkerContext, WorkerInfo};
pub use directory::{DirectoryConfig, DirectoryOptions, DirectoryService, RunningDirectory};
pub use event::{RawEvent, TypedEvent};
pub use events::{EventHandler, Events, VerdictFuture};
pub use exit::Fatal;
pub use feed::{Feed, FeedItem, Gap, Reshard, ShardChange, Start};
pub use interaction::InteractionEvent;
pub use messages::{
    Address, Answer, AnswerFuture, Message, MessageError, MessageHandler, ShardMessages,
};
pub use query::{Directory, QueryError};
pub use response::Response;
pub use rest::{ApiBase, ApiBaseError, Rest, RestError};
pub use router::{Handler, HandlerError, HandlerFuture, Router};
pub use sender::{CommandSender, Members, MembersChunk, MembersQuery, SendError};
pub use shards::ShardInfo;
pub use singleton::{RunFuture, Singleton, SingletonHandler, Turn};
pub use twilight_model::application::interaction::Interaction;
pub use verdict::Verdict;
pub use worker::{Running, Worker};
