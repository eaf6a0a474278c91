//! Workers against a real nats-server: what reaches Discord, and what the stream is told.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod ahead;
mod delivery;
mod directory;
mod event_world;
mod fake_discord;
mod feed;
mod interactions;
mod lookup;
mod messages;
mod ordered_events;
mod ordered_flood;
mod ordered_load;
mod process;
mod proxy;
mod registration;
mod replicas;
mod resilience;
mod rest;
mod rest_budget;
mod sender;
mod shards;
mod shared_events;
mod simulator;
mod singletons;
mod together;
mod world;
