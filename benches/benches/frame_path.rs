//! CPU per event from the compressed WebSocket message to the subject and message id: what one
//! thread of the proxy spends before NATS.
//!
//! The streams are made from the frame fixtures by a fixed seed, in the mixes a bot sees with and
//! without presences; ids, hashes and texts differ from event to event as they do in reality.

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gateway_proxy::compression::{Inflater, OutputBuffer};
use gateway_proxy_core::frame::{Frame, Frames};
use schemas::{Prefix, subject};

#[path = "frame_path/stream.rs"]
mod stream;

use stream::{Codec, Mix};

const EVENTS: usize = 2000;
const SESSION: &str = "29161cfaa0dee8643b703eafc0195864";

criterion_group!(benches, whole_path, inflate_only, scan_only);
criterion_main!(benches);

/// Inflate, read the frame, name it.
fn whole_path(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for mix in [Mix::WithoutPresences, Mix::WithPresences] {
        let events = stream::events(mix, EVENTS);
        group.throughput(Throughput::Elements(EVENTS as u64));
        for codec in [Codec::None, Codec::Zstd, Codec::Zlib] {
            let messages = codec.compress(&events);
            let root = subject::event_root(&Prefix::default(), 7);
            let mut output = OutputBuffer::new();
            let (mut name, mut id) = (Vec::new(), String::new());
            group.bench_function(BenchmarkId::new(codec.name(), mix.name()), |bencher| {
                bencher.iter_batched_ref(
                    || inflater(codec),
                    |inflater| {
                        for message in &messages {
                            let text = inflater.push(message, &mut output).expect("intact");
                            for frame in Frames::new(text) {
                                let (payload, frame) = frame.expect("a frame");
                                name_it(&frame, &root, &mut name, &mut id);
                                black_box((payload, &name, &id));
                            }
                        }
                    },
                    BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

/// The codec alone.
fn inflate_only(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("inflate");
    for mix in [Mix::WithoutPresences, Mix::WithPresences] {
        let events = stream::events(mix, EVENTS);
        group.throughput(Throughput::Elements(EVENTS as u64));
        for codec in [Codec::Zstd, Codec::Zlib] {
            let messages = codec.compress(&events);
            let mut output = OutputBuffer::new();
            group.bench_function(BenchmarkId::new(codec.name(), mix.name()), |bencher| {
                bencher.iter_batched_ref(
                    || inflater(codec),
                    |inflater| {
                        for message in &messages {
                            black_box(inflater.push(message, &mut output).expect("intact"));
                        }
                    },
                    BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

/// The frame view alone: whole streams, and single frames by size.
fn scan_only(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scan");
    for mix in [Mix::WithoutPresences, Mix::WithPresences] {
        let events = stream::events(mix, EVENTS);
        group.throughput(Throughput::Elements(EVENTS as u64));
        group.bench_function(BenchmarkId::new("stream", mix.name()), |bencher| {
            bencher.iter(|| {
                for event in &events {
                    black_box(Frame::parse(event).expect("a frame").guild());
                }
            });
        });
    }
    for (name, frame) in stream::by_size() {
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(BenchmarkId::new(name, frame.len()), |bencher| {
            bencher.iter(|| black_box(Frame::parse(black_box(&frame)).expect("a frame").guild()));
        });
    }
    group.finish();
}

fn inflater(codec: Codec) -> Inflater {
    match codec {
        Codec::None => Inflater::none(),
        Codec::Zstd => Inflater::zstd().expect("memory for a context"),
        Codec::Zlib => Inflater::zlib(),
    }
}

fn name_it(frame: &Frame<'_>, root: &str, name: &mut Vec<u8>, id: &mut String) {
    name.clear();
    let event = frame.event.as_deref().unwrap_or_default();
    subject::push_event_subject(name, root, frame.guild(), event);
    id.clear();
    let seq = frame.seq.unwrap_or_default();
    write!(id, "{SESSION}:{seq}").expect("writing to a String does not fail");
}
