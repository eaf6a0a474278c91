//! Every decision of the gateway proxy: no tokio, no clock, no randomness, no I/O. Time and jitter
//! are arguments, so that hundreds of orderings can be tested without a socket.

pub mod budget;
pub mod checkpoint;
pub mod close;
pub mod commands;
pub mod fleet;
pub mod frame;
pub mod ingest;
pub mod outgoing;
pub mod session;
pub mod silence;
