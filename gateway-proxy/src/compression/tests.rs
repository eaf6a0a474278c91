//! The inflaters against real compressors.

use ::zstd::stream::raw::{CParameter, Encoder, InBuffer, Operation, OutBuffer};
use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::*;

const SUFFIX: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// The server's side of a connection: one compressor, one flushed message at a time.
enum Deflater {
    Zlib(Compress),
    Zstd(Encoder<'static>),
}

impl Deflater {
    fn zlib() -> Self {
        Self::Zlib(Compress::new(Compression::new(6), true))
    }

    fn zstd(window_log: u32) -> Self {
        let mut encoder = Encoder::new(6).unwrap();
        encoder
            .set_parameter(CParameter::WindowLog(window_log))
            .unwrap();
        Self::Zstd(encoder)
    }

    fn message(&mut self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len() * 2 + 1024);
        match self {
            Self::Zlib(compress) => {
                compress
                    .compress_vec(text, &mut out, FlushCompress::Sync)
                    .unwrap();
                assert!(out.len() < out.capacity() && out.ends_with(&SUFFIX));
            }
            Self::Zstd(encoder) => {
                let mut input = InBuffer::around(text);
                let mut output = OutBuffer::around(&mut out);
                while input.pos < text.len() {
                    encoder.run(&mut input, &mut output).unwrap();
                }
                while encoder.flush(&mut output).unwrap() > 0 {}
            }
        }
        out
    }
}

fn pairs() -> [(Deflater, Inflater); 2] {
    [
        (Deflater::zlib(), Inflater::zlib()),
        (Deflater::zstd(18), Inflater::zstd().unwrap()),
    ]
}

fn message(number: usize, length: usize) -> String {
    let words: String = (0..length)
        .map(|at| char::from(b'a' + (at * at % 23) as u8))
        .collect();
    format!(
        "{{\"t\":\"MESSAGE_CREATE\",\"s\":{number},\"op\":0,\"d\":{{\"content\":\"{words}\"}}}}"
    )
}

#[test]
fn messages_of_a_stream_come_out_as_they_went_in() {
    for (mut deflater, mut inflater) in pairs() {
        let mut output = OutputBuffer::new();
        for number in 0..300 {
            let text = message(number, number * 97 % 5000);
            let compressed = deflater.message(text.as_bytes());
            assert_eq!(inflater.push(&compressed, &mut output), Ok(text.as_bytes()));
        }
    }
}

#[test]
fn uncompressed_messages_are_passed_through() {
    let mut output = OutputBuffer::new();
    let mut inflater = Inflater::none().with_output_max(4);
    assert_eq!(inflater.push(b"{}", &mut output), Ok(&b"{}"[..]));
    assert_eq!(output.capacity(), 0);
    let too_large = InflateError::OutputTooLarge { limit: 4 };
    assert_eq!(inflater.push(b"{   }", &mut output), Err(too_large));
}

#[test]
fn large_messages_are_inflated_whatever_the_buffer_holds() {
    for (mut deflater, mut inflater) in pairs() {
        for length in [4095, 4096, 70_000, 3_000_000, 10] {
            let mut output = OutputBuffer::new();
            let text = message(1, length);
            let compressed = deflater.message(text.as_bytes());
            assert_eq!(inflater.push(&compressed, &mut output), Ok(text.as_bytes()));
        }
    }
}

#[test]
fn a_bomb_is_an_error_before_memory_is_spent() {
    let bomb = vec![b' '; 40 << 20];
    for (mut deflater, inflater) in pairs() {
        let compressed = deflater.message(&bomb);
        assert!(compressed.len() < 100_000);
        let mut inflater = inflater.with_output_max(1 << 20);
        let mut output = OutputBuffer::new();
        let too_large = InflateError::OutputTooLarge { limit: 1 << 20 };
        assert_eq!(inflater.push(&compressed, &mut output), Err(too_large));
        assert!(output.capacity() <= (1 << 20) + 1, "{}", output.capacity());
        assert_eq!(
            inflater.push(&compressed, &mut output),
            Err(InflateError::Broken)
        );
    }
}

#[test]
fn a_message_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let text = message(1, 50_000);
    for (limit, fits) in [(text.len(), true), (text.len() - 1, false)] {
        for (mut deflater, inflater) in pairs() {
            let mut inflater = inflater.with_output_max(limit);
            let compressed = deflater.message(text.as_bytes());
            assert_eq!(
                inflater.push(&compressed, &mut OutputBuffer::new()).is_ok(),
                fits
            );
        }
    }
}

#[test]
fn the_default_limit_stops_a_bomb() {
    let bomb = vec![b' '; OUTPUT_MAX + 1];
    let compressed = Deflater::zstd(18).message(&bomb);
    let mut inflater = Inflater::zstd().unwrap();
    let result = inflater
        .push(&compressed, &mut OutputBuffer::new())
        .map(<[u8]>::len);
    assert_eq!(
        result,
        Err(InflateError::OutputTooLarge { limit: OUTPUT_MAX })
    );
}

#[test]
fn a_corrupt_stream_is_an_error_and_stays_one() {
    for (mut deflater, mut inflater) in pairs() {
        let mut output = OutputBuffer::new();
        inflater
            .push(&deflater.message(b"{\"op\":10}"), &mut output)
            .unwrap();
        // 0xff begins neither a deflate block nor a zstd block.
        let garbage = [&[0xff; 64][..], &SUFFIX].concat();
        let error = inflater.push(&garbage, &mut output).unwrap_err();
        assert!(matches!(error, InflateError::Corrupt { .. }), "{error:?}");
        let next = deflater.message(b"{\"op\":11}");
        assert_eq!(inflater.push(&next, &mut output), Err(InflateError::Broken));
    }
}

#[test]
fn garbage_from_the_start_is_an_error() {
    for (_, mut inflater) in pairs() {
        let text = [&b"{\"op\":10}"[..], &SUFFIX].concat();
        let error = inflater.push(&text, &mut OutputBuffer::new()).unwrap_err();
        assert!(matches!(error, InflateError::Corrupt { .. }), "{error:?}");
    }
}

#[test]
fn a_window_of_eight_mebibytes_is_taken_and_a_larger_one_refused() {
    let text = message(1, 100);
    let push = |window_log| {
        let compressed = Deflater::zstd(window_log).message(text.as_bytes());
        let mut output = OutputBuffer::new();
        Inflater::zstd()
            .unwrap()
            .push(&compressed, &mut output)
            .map(<[u8]>::len)
    };
    assert_eq!(push(18), Ok(text.len()));
    assert_eq!(push(23), Ok(text.len()));
    let error = push(24).unwrap_err();
    assert!(error.to_string().contains("too much memory"), "{error}");
}

#[test]
fn several_messages_in_one_are_given_together() {
    for (mut deflater, mut inflater) in pairs() {
        let mut both = deflater.message(b"{\"op\":10}");
        both.extend(deflater.message(b"{\"op\":11}"));
        let mut output = OutputBuffer::new();
        let text = inflater.push(&both, &mut output).unwrap();
        assert_eq!(text, b"{\"op\":10}{\"op\":11}");
    }
}

#[test]
fn a_suffix_inside_a_message_does_not_end_it() {
    // Stored blocks hold the text as it is: the suffix can be put where one likes.
    let text = b"{\"t\":\"a\x00\x00\xff\xffb\",\"op\":0}";
    let mut deflater = Deflater::Zlib(Compress::new(Compression::none(), true));
    let compressed = deflater.message(text);
    let inside = compressed
        .windows(4)
        .position(|bytes| bytes == SUFFIX)
        .unwrap()
        + 4;
    assert!(inside < compressed.len());
    let next = deflater.message(b"{\"op\":11}");

    let mut output = OutputBuffer::new();
    let mut whole = Inflater::zlib();
    assert_eq!(whole.push(&compressed, &mut output), Ok(&text[..]));
    assert_eq!(whole.push(&next, &mut output), Ok(&b"{\"op\":11}"[..]));

    // A WebSocket message that ends just there.
    let mut split = Inflater::zlib();
    assert_eq!(split.push(&compressed[..inside], &mut output), Ok(&b""[..]));
    assert_eq!(
        split.push(&compressed[inside..], &mut output),
        Ok(&text[..])
    );
    assert_eq!(split.push(&next, &mut output), Ok(&b"{\"op\":11}"[..]));
}

#[test]
fn an_empty_flush_is_no_message() {
    let mut inflater = Inflater::zlib();
    let mut deflater = Deflater::zlib();
    let mut output = OutputBuffer::new();
    inflater
        .push(&deflater.message(b"{\"op\":10}"), &mut output)
        .unwrap();
    let empty_block = [&[0][..], &SUFFIX].concat();
    assert_eq!(inflater.push(&empty_block, &mut output), Ok(&b""[..]));
    let next = deflater.message(b"{\"op\":11}");
    assert_eq!(inflater.push(&next, &mut output), Ok(&b"{\"op\":11}"[..]));
}

#[test]
fn a_zlib_message_that_does_not_end_is_an_error() {
    let mut inflater = Inflater::zlib();
    let mut output = OutputBuffer::new();
    let piece = vec![0x55; INPUT_MAX / 4];
    for _ in 0..4 {
        assert_eq!(inflater.push(&piece, &mut output), Ok(&b""[..]));
    }
    let error = inflater.push(&piece, &mut output).unwrap_err();
    assert_eq!(error, InflateError::InputTooLarge { limit: INPUT_MAX });
}

#[test]
fn a_stream_that_ends_is_an_error() {
    let mut compress = Compress::new(Compression::new(6), true);
    let mut out = Vec::with_capacity(1024);
    compress
        .compress_vec(b"{\"op\":10}", &mut out, FlushCompress::Finish)
        .unwrap();
    out.extend(SUFFIX);
    let error = Inflater::zlib()
        .push(&out, &mut OutputBuffer::new())
        .unwrap_err();
    assert_eq!(error, InflateError::Ended { codec: "zlib" });
}

#[test]
fn the_buffer_shrinks_after_a_burst_and_not_within_it() {
    let mut deflater = Deflater::zstd(18);
    let mut inflater = Inflater::zstd().unwrap();
    let mut output = OutputBuffer::new();
    let mut push = |length, output: &mut OutputBuffer| {
        let compressed = deflater.message(message(1, length).as_bytes());
        inflater.push(&compressed, output).unwrap();
    };
    for _ in 0..3 {
        push(2_000_000, &mut output);
        push(100, &mut output);
    }
    assert!(output.capacity() >= 2_000_000);
    for _ in 0..QUIET_AFTER {
        push(100, &mut output);
    }
    assert!(output.capacity() <= KEEP);
    push(2_000_000, &mut output);
    output.release();
    assert!(output.capacity() <= KEEP);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn zlib_messages_split_anywhere_come_out_whole(
        lengths in proptest::collection::vec(0_usize..3000, 1..12),
        cuts in proptest::collection::vec(1_usize..700, 1..20),
        level in 0_u32..=9,
    ) {
        let mut deflater = Deflater::Zlib(Compress::new(Compression::new(level), true));
        let mut inflater = Inflater::zlib();
        let mut output = OutputBuffer::new();
        let mut cuts = cuts.into_iter().cycle();
        for (number, length) in lengths.into_iter().enumerate() {
            let text = message(number, length);
            let mut compressed = &deflater.message(text.as_bytes())[..];
            loop {
                let (piece, rest) = compressed.split_at(cuts.next().unwrap().min(compressed.len()));
                let given = inflater.push(piece, &mut output).unwrap();
                if rest.is_empty() {
                    prop_assert_eq!(given, text.as_bytes());
                    break;
                }
                prop_assert_eq!(given, b"");
                compressed = rest;
            }
        }
    }

    #[test]
    fn damaged_streams_neither_panic_nor_exceed_the_limit(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        zlib in any::<bool>(),
    ) {
        let [zlib_pair, zstd_pair] = pairs();
        let (mut deflater, inflater) = if zlib { zlib_pair } else { zstd_pair };
        let mut inflater = inflater.with_output_max(100_000);
        let mut output = OutputBuffer::new();
        for number in 0..4 {
            let mut compressed = deflater.message(message(number, 4000).as_bytes());
            for (at, byte) in &damage {
                let at = at.index(compressed.len());
                compressed[at] ^= byte;
            }
            if let Ok(text) = inflater.push(&compressed, &mut output) {
                prop_assert!(text.len() <= 100_000);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_neither_panic_nor_exceed_the_limit(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5),
    ) {
        for (_, inflater) in pairs() {
            let mut inflater = inflater.with_output_max(10_000);
            let mut output = OutputBuffer::new();
            for piece in &pieces {
                if let Ok(text) = inflater.push(piece, &mut output) {
                    prop_assert!(text.len() <= 10_000);
                }
            }
        }
    }
}
