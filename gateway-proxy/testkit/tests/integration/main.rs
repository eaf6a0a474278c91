//! The simulator from outside: raw WebSocket clients, HTTP, and foreign libraries.

mod client;
mod gateway;
