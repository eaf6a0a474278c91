//! The fuzz targets' bodies over their seeds and over random mutations of them, the same ones at
//! every run. `FUZZ_ITERATIONS` sets another number of mutations per target.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::path::Path;
use std::{env, fs, thread};

#[path = "../../fuzz/src/lib.rs"]
pub mod targets;

/// About a second per target without optimisation.
const ITERATIONS: u32 = 30_000;
/// Mutations stay near the size of real small frames.
const LENGTH_MAX: usize = 8192;

#[test]
fn frame() {
    run("frame", targets::frame);
}

#[test]
fn subjects() {
    run("subjects", targets::subjects);
}

#[test]
fn inflate_zlib() {
    run("inflate_zlib", targets::inflate_zlib);
}

#[test]
fn inflate_zstd() {
    run("inflate_zstd", targets::inflate_zstd);
}

fn run(target: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let mut files: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    let mut seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    if target == "frame" {
        let fixtures = include_str!("../../core/tests/fixtures/frames.ndjson");
        seeds.extend(fixtures.lines().map(|line| line.as_bytes().to_vec()));
    }
    assert!(!seeds.is_empty(), "no seeds in {}", dir.display());
    for seed in &seeds {
        check(body, seed);
    }
    let iterations = env::var("FUZZ_ITERATIONS").map_or(ITERATIONS, |n| n.parse().unwrap());
    let mut rng = fastrand::Rng::with_seed(0x5eed);
    for _ in 0..iterations {
        let mut data = rng.choice(&seeds).unwrap().clone();
        for _ in 0..rng.u32(1..5) {
            mutate(&mut data, &mut rng, &seeds);
        }
        data.truncate(LENGTH_MAX);
        check(body, &data);
    }
}

fn check(body: fn(&[u8]), data: &[u8]) {
    /// Names the input of a finding.
    struct Input<'a>(&'a [u8]);
    impl Drop for Input<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                eprintln!("input: {}", self.0.escape_ascii());
            }
        }
    }
    let input = Input(data);
    body(input.0);
}

fn mutate(data: &mut Vec<u8>, rng: &mut fastrand::Rng, seeds: &[Vec<u8>]) {
    /// What the grammars care about.
    const PIECES: [&[u8]; 12] = [
        b"\"guild_id\":\"5\",",
        b"\\u005f",
        b"{",
        b"}",
        b"[",
        b"\"",
        b"\\",
        b",",
        b".",
        b"\"d\":",
        &[0x00, 0x00, 0xff, 0xff],
        &[0x28, 0xb5, 0x2f, 0xfd],
    ];
    let at = rng.usize(0..=data.len());
    let end = rng.usize(at..=data.len()).min(at + 64);
    match rng.u32(0..7) {
        0 if at < data.len() => data[at] = rng.u8(..),
        1 if at < data.len() => data[at] ^= 1 << rng.u32(0..8),
        2 => data.truncate(at),
        3 => drop(data.drain(at..end)),
        4 => {
            let copy = data[at..end].to_vec();
            let to = rng.usize(0..=data.len());
            data.splice(to..to, copy);
        }
        5 => {
            let piece = PIECES[rng.usize(0..PIECES.len())];
            data.splice(at..at, piece.iter().copied());
        }
        _ => {
            let other = &seeds[rng.usize(0..seeds.len())];
            let from = rng.usize(0..=other.len());
            data.truncate(at);
            data.extend_from_slice(&other[from..]);
        }
    }
}
