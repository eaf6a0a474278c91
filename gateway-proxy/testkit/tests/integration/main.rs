//! The simulator from outside: raw WebSocket clients, HTTP, and foreign libraries.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod audit;
mod client;
mod command_line;
mod faults;
mod gateway;
mod limits;
mod refusals;
mod requests;
mod rest;
mod sessions;
mod twilight;
