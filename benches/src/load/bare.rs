//! What the proxy's work costs without the proxy around it: fast ingest written by hand in one
//! thread, with the messages prepared (`publish`) or made from compressed gateway messages (`path`).

pub(crate) mod ingest;

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Write as _};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use gateway_proxy::compression::{Inflater, OutputBuffer};
use gateway_proxy_core::frame::Frames;
use schemas::{Prefix, subject};
use serde::{Deserialize, Serialize};
use zstd::stream::raw::{CParameter, Encoder, InBuffer, Operation as _, OutBuffer};

use super::args::Compression;
use super::corpus::{self, Message};
use ingest::FastIngest;

/// Discord's zstd window is 256 KiB.
const WINDOW_LOG: u32 = 18;
/// The simulator's effort.
const LEVEL: i32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Mode {
    Path,
    Publish,
    /// One write per message, so many per second.
    Single {
        rate: f64,
    },
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) port: u16,
    pub(crate) corpus: PathBuf,
    pub(crate) events: u64,
    pub(crate) mode: Mode,
    pub(crate) zstd: bool,
}

impl Setup {
    pub(crate) fn compressed(compression: Compression) -> bool {
        compression == Compression::Zstd
    }
}

/// In the part: prepares, waits for the word, publishes, and stays until standard input ends, so
/// that its account can be read.
pub(crate) fn part(setup: &Setup) -> Result<()> {
    let messages = corpus::read(&setup.corpus)?;
    let work = match setup.mode {
        Mode::Single { .. } => Work::Single(messages),
        Mode::Publish => Work::Publish(messages),
        Mode::Path => Work::Path(Wire::prepare(&messages, setup.zstd)?),
    };
    let mut ingest = FastIngest::connect(setup.port)?;
    let mut stdin = io::stdin().lock();
    let mut line = String::new();
    writeln!(io::stdout(), "ready").context("say ready")?;
    if stdin.read_line(&mut line).context("wait for the word")? == 0 {
        return Ok(());
    }
    drop(stdin);
    if let (Mode::Single { rate }, Work::Single(messages)) = (setup.mode, &work) {
        return single(messages, rate, &mut ingest);
    }
    let mut stdin = io::stdin().lock();
    work.run(&mut ingest, setup.events)?;
    ingest.finish()?;
    writeln!(io::stdout(), "done").context("say done")?;
    line.clear();
    stdin.read_line(&mut line).context("wait for the end")?;
    Ok(())
}

enum Work {
    Single(Vec<Message>),
    Publish(Vec<Message>),
    Path(Wire),
}

impl Work {
    fn run(&self, ingest: &mut FastIngest, events: u64) -> Result<()> {
        let mut left = events;
        // Each round is a session of its own: message ids never repeat.
        for round in 0_u64.. {
            if left == 0 {
                break;
            }
            let session = format!("{round:032x}");
            left -= match self {
                Self::Single(messages) | Self::Publish(messages) => {
                    publish(messages, &session, left, ingest)?
                }
                Self::Path(wire) => wire.publish(&session, left, ingest)?,
            };
        }
        Ok(())
    }
}

/// Publishes each message by itself when its time has come, until standard input ends.
fn single(messages: &[Message], rate: f64, ingest: &mut FastIngest) -> Result<()> {
    let (told, ended) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        // The end, or an error, which ends it too.
        while io::stdin().read_line(&mut line).is_ok_and(|read| read > 0) {}
        // Nobody waits any more: the part is ending by itself.
        told.send(()).ok();
    });
    ingest.ignore_answers()?;
    let begun = Instant::now();
    for (number, message) in (0_u64..).zip(messages.iter().cycle()) {
        let due = begun + Duration::from_secs_f64(number as f64 / rate.max(1.0));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if ended.try_recv() != Err(mpsc::TryRecvError::Empty) {
            break;
        }
        let session = format!("{:032x}", number >> 32);
        ingest.publish_alone(&message.subject, (&session, number + 1), &message.payload)?;
    }
    Ok(())
}

fn publish(messages: &[Message], session: &str, most: u64, ingest: &mut FastIngest) -> Result<u64> {
    let mut sent = 0;
    for (message, seq) in messages.iter().zip(1..=most) {
        ingest.publish(
            &message.subject,
            (session, seq),
            &message.payload,
            seq == most,
        )?;
        sent = seq;
    }
    Ok(sent)
}

/// Gateway messages as they come out of WebSocket frames: a compressed stream per shard.
struct Wire {
    // Place of the shard in `roots`, and the message.
    messages: Vec<(usize, Vec<u8>)>,
    roots: Vec<String>,
    zstd: bool,
}

impl Wire {
    fn prepare(messages: &[Message], zstd: bool) -> Result<Self> {
        let mut places = BTreeMap::new();
        let mut roots = Vec::new();
        let mut encoders = Vec::new();
        let mut wire = Vec::new();
        for message in messages {
            let place = match places.get(&message.shard) {
                Some(place) => *place,
                None => {
                    roots.push(subject::event_root(&Prefix::default(), message.shard));
                    encoders.push(encoder()?);
                    places.insert(message.shard, roots.len() - 1);
                    roots.len() - 1
                }
            };
            let bytes = if zstd {
                compress(&mut encoders[place], &message.payload)?
            } else {
                message.payload.clone()
            };
            wire.push((place, bytes));
        }
        Ok(Self {
            messages: wire,
            roots,
            zstd,
        })
    }

    fn publish(&self, session: &str, most: u64, ingest: &mut FastIngest) -> Result<u64> {
        let inflater = |_: &String| match self.zstd {
            true => Inflater::zstd(),
            false => Ok(Inflater::none()),
        };
        let inflaters: Result<Vec<_>, _> = self.roots.iter().map(inflater).collect();
        let mut inflaters = inflaters.context("make inflaters")?;
        let mut output = OutputBuffer::new();
        let mut name = Vec::new();
        let mut sent = 0;
        for ((place, bytes), seq) in self.messages.iter().zip(1..=most) {
            let text = inflaters[*place]
                .push(bytes, &mut output)
                .context("inflate")?;
            for frame in Frames::new(text) {
                let (payload, frame) = frame.context("read a frame")?;
                name.clear();
                let event = frame.event.as_deref().unwrap_or_default();
                subject::push_event_subject(&mut name, &self.roots[*place], frame.guild(), event);
                ingest.publish(&name, (session, seq), payload, seq == most)?;
            }
            sent = seq;
        }
        Ok(sent)
    }
}

fn encoder() -> Result<Encoder<'static>> {
    let mut encoder = Encoder::new(LEVEL).context("make a zstd encoder")?;
    let window = CParameter::WindowLog(WINDOW_LOG);
    encoder
        .set_parameter(window)
        .context("set the zstd window")?;
    Ok(encoder)
}

/// One message, flushed: complete when it is read.
fn compress(encoder: &mut Encoder<'static>, bytes: &[u8]) -> Result<Vec<u8>> {
    // zstd's own bound for what does not compress, and a block header.
    let mut out = vec![0; zstd::zstd_safe::compress_bound(bytes.len()) + 64];
    let mut output = OutBuffer::around(&mut out[..]);
    let mut input = InBuffer::around(bytes);
    while input.pos() < bytes.len() {
        encoder.run(&mut input, &mut output).context("compress")?;
    }
    while encoder.flush(&mut output).context("flush")? > 0 {}
    let len = output.pos();
    out.truncate(len);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_messages_inflate_to_what_was_stored() {
        let message = |shard, n: u64| Message {
            shard,
            subject: Vec::new(),
            payload: format!(r#"{{"t":"A","s":{n},"op":0,"d":{{"guild_id":"5"}}}}"#).into_bytes(),
        };
        let messages: Vec<_> = (0..200).map(|n| message((n % 3) as u32, n)).collect();
        let wire = Wire::prepare(&messages, true).unwrap();
        assert_eq!(wire.roots[2], "discord.shard.2.events.");
        let mut inflaters: Vec<_> = (0..3).map(|_| Inflater::zstd().unwrap()).collect();
        let mut output = OutputBuffer::new();
        for ((place, bytes), message) in wire.messages.iter().zip(&messages) {
            let text = inflaters[*place].push(bytes, &mut output).unwrap();
            assert_eq!(text, message.payload);
        }
    }
}
