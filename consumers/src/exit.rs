//! The end of the process: the reason on standard error, and its exit code.

use std::io::Write as _;
use std::process::ExitCode;

pub use schemas::exit::{Fatal, Signal};

/// Writes the reason to standard error as one line and turns it into the exit code.
pub(crate) fn finish(program: &str, outcome: Result<(), Fatal>) -> ExitCode {
    let Err(fatal) = outcome else {
        return ExitCode::SUCCESS;
    };
    // A reader that went away is no reason to fail.
    drop(writeln!(
        std::io::stderr().lock(),
        "{}",
        fatal.line(program)
    ));
    ExitCode::from(fatal.code())
}
