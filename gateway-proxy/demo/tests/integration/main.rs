//! The program as a person runs it: it ends well, says when something is wrong, and whatever ends
//! it, nothing is left behind.
//!
//! What is left is looked for in `/proc`.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ends;
mod harness;
mod terminal;
