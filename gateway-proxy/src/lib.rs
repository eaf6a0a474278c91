//! The proxy: everything between a Discord gateway socket and NATS JetStream.
//!
//! Decisions are made in `gateway-proxy-core`; this crate reads the clock, opens the sockets and
//! drives them.

pub mod compression;
pub mod config;
pub mod exit;
pub mod metrics;
pub mod shutdown;
pub mod status;
