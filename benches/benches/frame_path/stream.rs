//! Streams of gateway events, the same at every run.

use flate2::{Compress, Compression, FlushCompress};
use zstd::stream::raw::{CParameter, Encoder, InBuffer, Operation, OutBuffer};

const FIXTURES: &str = include_str!("../../../gateway-proxy/core/tests/fixtures/frames.ndjson");
/// Discord's zstd window.
const WINDOW_LOG: u32 = 18;
/// What Discord's ratio comes closest to, for both codecs.
const LEVEL: u8 = 6;

/// Which events a stream is made of, in parts per thousand.
#[derive(Clone, Copy)]
pub(crate) enum Mix {
    /// A bot without the presence intent: messages and what goes with them.
    WithoutPresences,
    /// A bot with it: little else.
    WithPresences,
}

impl Mix {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::WithoutPresences => "presences_off",
            Self::WithPresences => "presences_on",
        }
    }

    const fn parts(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::WithoutPresences => &[
                ("MESSAGE_CREATE", 380),
                ("TYPING_START", 220),
                ("VOICE_STATE_UPDATE", 90),
                ("MESSAGE_REACTION_ADD", 80),
                ("GUILD_MEMBER_UPDATE", 70),
                ("MESSAGE_UPDATE", 60),
                ("MESSAGE_DELETE", 30),
                ("INTERACTION_CREATE", 20),
                ("GUILD_MEMBER_ADD", 12),
                ("GUILD_MEMBER_REMOVE", 12),
                ("CHANNEL_UPDATE", 10),
                ("THREAD_UPDATE", 8),
                ("GUILD_ROLE_UPDATE", 8),
            ],
            Self::WithPresences => &[
                ("PRESENCE_UPDATE", 930),
                ("MESSAGE_CREATE", 30),
                ("TYPING_START", 16),
                ("GUILD_MEMBER_UPDATE", 6),
                ("VOICE_STATE_UPDATE", 6),
                ("MESSAGE_REACTION_ADD", 4),
                ("MESSAGE_UPDATE", 4),
                ("MESSAGE_DELETE", 4),
            ],
        }
    }
}

/// How a connection is compressed.
#[derive(Clone, Copy)]
pub(crate) enum Codec {
    None,
    Zstd,
    Zlib,
}

impl Codec {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
            Self::Zlib => "zlib",
        }
    }

    /// One compressed WebSocket message per event.
    pub(crate) fn compress(self, events: &[Vec<u8>]) -> Vec<Vec<u8>> {
        match self {
            Self::None => events.to_vec(),
            Self::Zstd => {
                let mut encoder = Encoder::new(LEVEL.into()).expect("memory for a context");
                let window = CParameter::WindowLog(WINDOW_LOG);
                encoder.set_parameter(window).expect("a valid window");
                events
                    .iter()
                    .map(|event| zstd_message(&mut encoder, event))
                    .collect()
            }
            Self::Zlib => {
                let mut compress = Compress::new(Compression::new(LEVEL.into()), true);
                events
                    .iter()
                    .map(|event| zlib_message(&mut compress, event))
                    .collect()
            }
        }
    }
}

fn zstd_message(encoder: &mut Encoder<'static>, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 1024);
    let mut input = InBuffer::around(text);
    let mut output = OutBuffer::around(&mut out);
    while input.pos < text.len() {
        encoder.run(&mut input, &mut output).expect("compresses");
    }
    while encoder.flush(&mut output).expect("compresses") > 0 {}
    out
}

fn zlib_message(compress: &mut Compress, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 1024);
    compress
        .compress_vec(text, &mut out, FlushCompress::Sync)
        .expect("compresses");
    assert!(out.len() < out.capacity(), "the flush is complete");
    out
}

/// The events of a session, in order.
pub(crate) fn events(mix: Mix, count: usize) -> Vec<Vec<u8>> {
    let mut random = Random(0x5eed);
    let total: u32 = mix.parts().iter().map(|(_, part)| part).sum();
    (1..=count)
        .map(|seq| event(pick(mix, total, &mut random), seq, &mut random))
        .collect()
}

/// Single frames of typical sizes, from a reaction to a large guild.
pub(crate) fn by_size() -> Vec<(&'static str, Vec<u8>)> {
    let fixture = |event: &'static str| (event, templates(event)[0].as_bytes().to_vec());
    let guild = templates("GUILD_CREATE")
        .into_iter()
        .max_by_key(|template| template.len())
        .expect("a GUILD_CREATE among the fixtures");
    let member = templates("GUILD_MEMBER_UPDATE")[0];
    let member = &member[member.find("\"d\":").expect("has d") + 4..member.len() - 1];
    let members = |count: usize| {
        let members = vec![member; count].join(",");
        let open = guild.trim_end().strip_suffix("}}").expect("ends with d");
        format!("{open},\"more\":[{members}]}}}}").into_bytes()
    };
    let stubs: Vec<String> = (0..2500_u64)
        .map(|n| {
            format!(
                "{{\"unavailable\":true,\"id\":\"{}\"}}",
                1_235_680_858_241_376_258 + n * 977
            )
        })
        .collect();
    let ready = format!(
        "{{\"t\":\"READY\",\"s\":1,\"op\":0,\"d\":{{\"v\":10,\"session_id\":\"a\",\"guilds\":[{}]}}}}",
        stubs.join(",")
    );
    vec![
        fixture("MESSAGE_REACTION_REMOVE"),
        fixture("MESSAGE_CREATE"),
        ("GUILD_CREATE", guild.as_bytes().to_vec()),
        ("READY", ready.into_bytes()),
        ("GUILD_CREATE", members(2500)),
    ]
}

/// Every fixture of an event.
fn templates(event: &str) -> Vec<&'static str> {
    let start = format!("{{\"t\":\"{event}\",");
    FIXTURES
        .lines()
        .filter(|line| line.starts_with(&start))
        .collect()
}

fn pick(mix: Mix, total: u32, random: &mut Random) -> &'static str {
    let mut at = random.below(total as usize) as u32;
    for (event, part) in mix.parts() {
        if at < *part {
            let templates = templates(event);
            return templates[random.below(templates.len())];
        }
        at -= part;
    }
    unreachable!("the parts add up to the total")
}

/// One event like the template, with ids, hashes, text and sequence of its own.
fn event(template: &str, seq: usize, random: &mut Random) -> Vec<u8> {
    let text = with_content(template, random);
    let mut out = text.into_bytes();
    let mut at = 0;
    while at < out.len() {
        let run = out[at..]
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let digits = out[at..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if digits >= 15 {
            // The first digits of snowflakes are alike: they are times.
            out[at + 6..at + digits].fill_with(|| b"0123456789"[random.below(10)]);
        } else if run >= 24 {
            out[at..at + run].fill_with(|| b"0123456789abcdef"[random.below(16)]);
        }
        at += run.max(1);
    }
    let text = String::from_utf8(out).expect("only ASCII was replaced");
    let (before, rest) = text.split_once("\"s\":").expect("has a sequence");
    let (_, after) = rest.split_once(',').expect("more follows");
    format!("{before}\"s\":{seq},{after}").into_bytes()
}

/// Replaces a message's text by other words.
fn with_content(template: &str, random: &mut Random) -> String {
    const WORDS: [&str; 48] = [
        "the", "and", "you", "that", "it", "was", "for", "on", "are", "with", "as", "his", "they",
        "be", "at", "one", "have", "this", "from", "or", "had", "by", "hot", "but", "some", "what",
        "there", "we", "can", "out", "other", "were", "all", "your", "when", "up", "use", "word",
        "how", "said", "an", "each", "she", "which", "lol", "gg", "thx", "👍",
    ];
    let Some((before, rest)) = template.split_once("\"content\":\"") else {
        return template.to_owned();
    };
    let Some((_, after)) = rest.split_once("\",\"") else {
        return template.to_owned();
    };
    let count = 1 + random.below(24);
    let words: Vec<&str> = (0..count)
        .map(|_| WORDS[random.below(WORDS.len())])
        .collect();
    format!("{before}\"content\":\"{}\",\"{after}", words.join(" "))
}

/// splitmix64: the stream must not change with a library's version.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}
