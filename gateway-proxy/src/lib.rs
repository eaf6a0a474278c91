//! The proxy: everything between a Discord gateway socket and NATS JetStream.
//!
//! Decisions are made in `gateway-proxy-core`; this crate reads the clock, opens the sockets and
//! drives them.

pub mod admin;
pub mod cli;
pub mod compression;
pub mod config;
pub mod discord_api;
pub mod embedded;
pub mod exit;
pub mod metrics;
pub mod nats;
pub mod shutdown;
pub mod status;
pub mod stream;
pub mod telemetry;

pub use cli::main_with;

mod app;
mod checkpoint;
mod claim;
mod commands;
mod fence;
mod fleet;
mod gateway_url;
mod holder;
mod identify;
mod membership;
mod ownership;
mod progress;
mod publisher;
mod recorder;
mod rhythm;
mod shard;
mod transport;
mod wire;
