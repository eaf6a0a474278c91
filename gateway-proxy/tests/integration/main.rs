//! The proxy as a process, against a simulated Discord and a real nats-server.

mod admin;
mod cli;
mod continuity;
mod exit_codes;
mod flow;
mod harness;
mod rig;
