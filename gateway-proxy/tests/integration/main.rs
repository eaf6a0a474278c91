//! The proxy as a process, against a simulated Discord and a real nats-server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod admin;
mod bad_input;
mod cli;
mod commands;
mod continuity;
mod exit_codes;
mod fleet;
mod flow;
mod harness;
mod nats_access;
mod nats_faults;
mod relay;
mod rig;
mod silence;
mod upstream;
