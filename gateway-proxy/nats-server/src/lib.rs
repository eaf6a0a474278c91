//! A real nats-server as a child process: found or fetched once, started on a free port with
//! JetStream on, and never left behind.
//!
//! Blocking std only, so that tests, benches, the demo and `--nats-url embedded` share it whatever
//! runtime they use. It decides where the binary comes from and how the process lives and dies; it
//! speaks no NATS beyond asking whether JetStream answers.

mod cluster;
mod config;
mod fetch;
mod locate;
mod probe;
mod server;
mod watchdog;

pub use cluster::Cluster;
pub use config::{Options, Routes, SyncInterval};
pub use fetch::{FetchError, PINNED_VERSION};
pub use locate::{Binary, LocateError, MINIMUM_VERSION, NATS_SERVER_ENV, Version, locate};
pub use server::{Server, StartError};
