//! Counters, gauges and a histogram made of plain atomics: no lock, no look-up, no allocation when
//! counting.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

impl Level {
    /// It is so high.
    pub fn set(&self, level: u64) {
        self.0.store(level, Ordering::Relaxed);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A label with few, known values.
pub trait Label: Copy {
    /// The label's name.
    const KEY: &'static str;
    /// How many values it has.
    const COUNT: usize;

    /// Which value this is, below [`Label::COUNT`].
    fn index(self) -> usize;

    /// The text of a value.
    fn value(index: usize) -> &'static str;
}

/// One counter per value of a label.
pub struct PerLabel<L> {
    counts: Box<[AtomicU64]>,
    label: PhantomData<L>,
}

impl<L: Label> PerLabel<L> {
    /// One more of this value.
    pub fn add(&self, label: L) {
        self.add_many(label, 1);
    }

    /// So many more of this value.
    pub fn add_many(&self, label: L, count: u64) {
        self.counts[label.index()].fetch_add(count, Ordering::Relaxed);
    }

    /// How many of this value.
    #[must_use]
    pub fn get(&self, label: L) -> u64 {
        self.counts[label.index()].load(Ordering::Relaxed)
    }

    /// How many of all values.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    /// The values that were ever counted.
    pub(super) fn counted(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.counts.iter().enumerate();
        counts
            .map(|(index, count)| (L::value(index), count.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
    }
}

impl<L: Label> Default for PerLabel<L> {
    fn default() -> Self {
        let counts = (0..L::COUNT).map(|_| AtomicU64::new(0)).collect();
        Self {
            counts,
            label: PhantomData,
        }
    }
}

impl<L: Label> fmt::Debug for PerLabel<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.counted()).finish()
    }
}

/// Upper bounds in seconds: acknowledgements take 0.2 ms on one machine and seconds while a cluster
/// elects a leader.
const BOUNDS_S: [f64; 14] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// How long something took.
#[derive(Debug, Default)]
pub struct Timing {
    /// The last one holds what is above every bound.
    buckets: [AtomicU64; BOUNDS_S.len() + 1],
    /// Enough for 584 years.
    sum_ns: AtomicU64,
}

impl Timing {
    /// It took so long.
    pub fn record(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS_S
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BOUNDS_S.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Sum in seconds, count, and per bucket its upper bound and own count.
    pub(super) fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = BOUNDS_S.into_iter().chain([f64::INFINITY]);
        let counts = self
            .buckets
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        (sum, count, buckets)
    }
}
