//! What a real nats-server answers to fast-ingest batches, and that [`Ingest`] against it neither
//! loses, nor doubles, nor reorders.
//!
//! The model of the server in `simulation` is only as good as what is shown here.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may panic; clippy knows only the test functions themselves"
)]

mod answers;
mod client;
mod cluster;
mod publishing;

use nats_server::{Options, Server};

fn start() -> Server {
    Server::start(Options::default()).unwrap()
}
