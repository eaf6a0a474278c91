//! The whole system on one machine: nats-server, a simulated Discord, two proxies, two workers, a
//! live view of them, and at the end a comparison of what Discord sent with what is stored.

mod args;
mod embedded;
mod exit;
mod finish;
mod http;
mod live;
mod member;
mod places;
mod plain;
mod sample;
mod scratch;
mod screen;
mod stop;
mod summary;
mod text;
mod view;
mod world;

use std::process::ExitCode;

use crate::args::Parsed;
use crate::exit::Fatal;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(code) = embedded::dispatch(&args) {
        return code;
    }
    let settings = match args::parse(args) {
        Parsed::Run(settings) => settings,
        Parsed::Exit(code) => return code,
    };
    exit::finish(run(&settings))
}

fn run(settings: &args::Settings) -> Result<(), Fatal> {
    screen::restore_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Fatal::System {
            action: "make a runtime",
            source,
        })?;
    let outcome = runtime.block_on(live::demo(settings));
    // Looking for a nats-server blocks a thread; a demo that was stopped does not wait for it.
    runtime.shutdown_background();
    outcome
}
