//! The `consumers` program; everything is in the library, so that other programs can embed it.

fn main() -> std::process::ExitCode {
    consumers::main_with(std::env::args_os())
}
