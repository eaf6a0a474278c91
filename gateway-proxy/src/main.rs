//! The program; everything is in the library, so that others can embed it.

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway_proxy::main_with(std::env::args_os())
}
