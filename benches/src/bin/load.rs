//! End to end over real sockets and a real nats-server: see the README beside this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    benches::load::main()
}
