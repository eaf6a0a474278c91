//! A simulated Discord and a real nats-server, for tests, benches and the demo.

pub mod audit;
pub mod cli;
pub mod nats;
pub mod simulator;
