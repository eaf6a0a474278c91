//! Recorded gateway frames (NDJSON), played back with each session's own sequence numbers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::super::events::{Names, intents_for};
use super::super::guilds::shard_of;
use super::super::scan;
use super::super::session::{Body, RawFrame, Session};

/// Dispatches that belong to one session and make no sense in another.
const SESSION_BOUND: [&str; 2] = ["READY", "RESUMED"];

/// A recording.
pub(crate) struct Playback {
    frames: Vec<Recorded>,
}

/// One dispatch of a recording.
pub(crate) struct Recorded {
    pub(crate) frame: Arc<RawFrame>,
    pub(crate) intents: u64,
}

/// A recording that cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum PlaybackError {
    /// The file cannot be read.
    #[error("read the recording {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line is no dispatch frame.
    #[error("line {line} of {path} is no gateway frame with t, s, op and d")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

impl Playback {
    pub(crate) fn read(path: &Path, names: &Names) -> Result<Self, PlaybackError> {
        let text = std::fs::read(path).map_err(|source| PlaybackError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, names).map_err(|line| PlaybackError::Line {
            path: path.to_owned(),
            line,
        })
    }

    /// The frames of a recording, or the number of the first line that is none. Other opcodes than
    /// 0 are control frames of the recorded connection and left out.
    fn parse(text: &[u8], names: &Names) -> Result<Self, usize> {
        let text = Bytes::copy_from_slice(text);
        let mut frames = Vec::new();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let frame = text.slice_ref(line);
            match recorded(&frame, names) {
                Some(Some(recorded)) => frames.push(recorded),
                Some(None) => {}
                None => return Err(index + 1),
            }
        }
        Ok(Self { frames })
    }

    /// The n-th frame of an endless repetition.
    pub(crate) fn cycle(&self, number: u64) -> Option<&Recorded> {
        self.frames.get(number as usize % self.frames.len().max(1))
    }

    /// What of the recording reaches a session.
    pub(crate) fn for_session(&self, session: &Session) -> Vec<Body> {
        let reaches = |recorded: &&Recorded| {
            shard_of(recorded.frame.guild, session.shard.count()) == session.shard.id()
                && (recorded.intents == 0 || recorded.intents & session.intents != 0)
        };
        let mine = self.frames.iter().filter(reaches);
        mine.map(|recorded| Body::Raw(Arc::clone(&recorded.frame)))
            .collect()
    }
}

/// `None` for something else than a frame, `Some(None)` for a frame that is not played.
fn recorded(line: &Bytes, names: &Names) -> Option<Option<Recorded>> {
    let op = scan::member(line, "op")?;
    if &line[op] != b"0" {
        return Some(None);
    }
    let (t, s, d) = (
        scan::member(line, "t")?,
        scan::member(line, "s")?,
        scan::member(line, "d")?,
    );
    let t: String = serde_json::from_slice(&line[t]).ok()?;
    if SESSION_BOUND.contains(&t.as_str()) {
        return Some(None);
    }
    let guild = scan::guild_of(&t, &line[d]);
    let frame = RawFrame {
        head: line.slice(..s.start),
        tail: line.slice(s.end..),
        name: names.number(&t),
        guild,
        flags: 0,
    };
    Some(Some(Recorded {
        frame: Arc::new(frame),
        intents: intents_for(&t, guild == 0),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sequence_is_replaced() {
        let text = br#"{"op":0, "d":{"guild_id":"77"},"s" : 41 ,"t":"CHANNEL_UPDATE"}
{"t":null,"s":null,"op":11,"d":null}

{"t":"READY","s":1,"op":0,"d":{}}
"#;
        let names = Names::default();
        let playback = Playback::parse(text, &names).unwrap();
        assert_eq!(playback.frames.len(), 1);
        let frame = &playback.cycle(5).unwrap().frame;
        assert_eq!(frame.guild, 77);
        assert_eq!(&frame.head[..], br#"{"op":0, "d":{"guild_id":"77"},"s" : "#);
        assert_eq!(&frame.tail[..], br#" ,"t":"CHANNEL_UPDATE"}"#);
    }

    #[test]
    fn a_broken_line_is_named() {
        let names = Names::default();
        let text = b"{\"t\":\"X\",\"s\":1,\"op\":0,\"d\":{}}\n{\"t\":\"X\"}\n";
        assert_eq!(Playback::parse(text, &names).err(), Some(2));
    }
}
