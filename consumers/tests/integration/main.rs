//! Workers against a real nats-server: what reaches Discord, and what the stream is told.

mod delivery;
mod fake_discord;
mod process;
mod registration;
mod resilience;
mod rest;
mod shards;
mod world;
