//! `load` with an allocator that counts: the proxy says at its end how often it allocated.

use std::alloc::System;
use std::process::ExitCode;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    benches::load::main_counting(|| {
        let stats = ALLOCATOR.stats();
        // A buffer that grows is an allocation as well.
        (stats.allocations + stats.reallocations) as u64
    })
}
