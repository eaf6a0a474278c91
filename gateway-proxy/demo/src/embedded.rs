//! `demo gateway-proxy …` and `demo consumers …`: the real programs, in real processes, without
//! other binaries to be built.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use crate::scratch;

/// Set for processes that the demo starts: their standard input is a pipe whose other end only the
/// demo holds, and this names the demo's temporary directory.
pub(crate) const PARENT_ENV: &str = "DEMO_SCRATCH_DIR";

/// Nobody is left to read it; not one of the programs' own codes.
const EXIT_ORPHANED: i32 = 1;

/// Runs an embedded program if the arguments name one.
pub(crate) fn dispatch(args: &[OsString]) -> Option<ExitCode> {
    let (_, rest) = args.split_first()?;
    let program: fn(Vec<OsString>) -> ExitCode = match rest.first()?.to_str()? {
        "gateway-proxy" => |args| gateway_proxy::main_with(args),
        "consumers" => |args| consumers::main_with(args),
        _ => return None,
    };
    if let Some(dir) = std::env::var_os(PARENT_ENV) {
        end_with_parent(PathBuf::from(dir));
    }
    Some(program(rest.to_vec()))
}

/// Ends this process when the demo has gone, in whatever way: then the pipe ends. (The kernel's
/// parent-death signal would need unsafe code, and fires when the spawning *thread* ends.)
fn end_with_parent(dir: PathBuf) {
    let watch = move || {
        // An error means the same as the end: nobody is there.
        drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
        scratch::remove_leftovers(&dir);
        std::process::exit(EXIT_ORPHANED);
    };
    let watching = thread::Builder::new().name("parent".into()).spawn(watch);
    drop(watching.expect("a process at its start can have a second thread"));
}
