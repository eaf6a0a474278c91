//! What consuming costs: see the README beside this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    benches::consume::main()
}
