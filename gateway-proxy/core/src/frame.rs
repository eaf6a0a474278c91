//! The borrowed view of a gateway frame: what a proxy must know of it, the rest left as bytes.
//!
//! One pass over the text checks that it is UTF-8 and JSON as a whole (a truncated or garbled frame
//! must not be stored) and notes `op`, `s`, `t`, where `d` is, and the two values the guild rule
//! looks at. Keys may come in any order, with white space, escaped; of a key given twice the last
//! one counts, as in most JSON parsers.

use std::borrow::Cow;
use std::mem;

use schemas::GuildId;

mod block;
pub mod control;
mod json;
mod object;
mod text;

pub use json::JsonError;

use json::Scanner;
use text::Text;

/// One gateway frame (Discord, Gateway, Gateway Events, payload structure).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// `op`: what kind of frame this is.
    pub op: u64,
    /// `s`: the event's number within its session. `None` when `null` or absent.
    pub seq: Option<u64>,
    /// `t`: the event's name. `None` when `null` or absent, but an empty name for a dispatch
    /// (op 0), which is stored in any case.
    pub event: Option<Cow<'a, str>>,
    /// `d` as it stands in the frame, valid JSON; `null` when absent.
    pub data: &'a [u8],
    /// The values of `d.id` and `d.guild_id` as they stand in the frame.
    id: Option<&'a str>,
    guild_id: Option<&'a str>,
}

/// Why bytes are not a gateway frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not text.
    #[error("the frame is not UTF-8 at byte {at}")]
    NotUtf8 {
        /// Where.
        at: usize,
    },
    /// Another JSON value, or no JSON at all.
    #[error("the frame is not a JSON object")]
    NotObject,
    /// Truncated or malformed.
    #[error("the frame is not JSON")]
    NotJson(#[from] JsonError),
    /// Something follows the object.
    #[error("the frame ends at byte {at}, but more follows")]
    Trailing {
        /// Where the object ends.
        at: usize,
    },
    /// Without `op` nobody knows what it is.
    #[error("the frame has no `op`")]
    MissingOp,
    /// A field of the envelope holds something else than Discord documents.
    #[error("the frame's `{field}` is not {expected}")]
    WrongType {
        /// `op`, `s` or `t`.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

impl<'a> Frame<'a> {
    /// Reads one frame.
    ///
    /// `op` must be, and `s` may be, a non-negative integer that fits 64 bits, written without
    /// fraction or exponent (`1e3` and `1.0` are refused: Discord never writes them, and a wrong
    /// sequence is worse than a new connection).
    ///
    /// # Errors
    /// [`FrameError`] says what is wrong with it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let mut scanner = Scanner::new(utf8(bytes)?);
        let frame = Self::scan(&mut scanner)?;
        let end = scanner.position();
        if scanner.peek().is_some() {
            return Err(FrameError::Trailing { at: end });
        }
        Ok(frame)
    }

    fn scan(scanner: &mut Scanner<'a>) -> Result<Self, FrameError> {
        let mut plain = scanner.clone();
        if let Some(frame) = Self::scan_plain(&mut plain) {
            *scanner = plain;
            return Ok(frame);
        }
        match scanner.peek() {
            Some(b'{') => {}
            Some(_) => return Err(FrameError::NotObject),
            None => {
                return Err(JsonError::Truncated {
                    at: scanner.position(),
                }
                .into());
            }
        }
        let mut envelope = Envelope::default();
        scanner.object(|key, scanner| envelope.visit(key, scanner))?;
        envelope.finish()
    }

    /// A dispatch as Discord writes them all. `None` for others, and when something is wrong with it.
    fn scan_plain(scanner: &mut Scanner<'a>) -> Option<Self> {
        scanner.plain(br#"{"t":""#)?;
        let event = scanner.plain_string()?;
        scanner.plain(br#"","s":"#)?;
        let seq = scanner.plain_integer()?;
        scanner.plain(br#","op":0,"d":"#)?;
        let start = scanner.position();
        let object = scanner.plain_object()?;
        let data = scanner.between(start, object.end).as_bytes();
        scanner.plain(b"}")?;
        Some(Self {
            op: 0,
            seq: Some(seq),
            event: Some(Cow::Borrowed(event)),
            data,
            id: object.id.and_then(|at| scanner.value_at(at)),
            guild_id: object.guild_id.and_then(|at| scanner.value_at(at)),
        })
    }

    /// The guild the event belongs to: `d.id` for `GUILD_CREATE`, `GUILD_UPDATE` and
    /// `GUILD_DELETE`, else `d.guild_id`; a string of digits or a non-negative integer that fits 64
    /// bits and is not 0. Only the keys of `d` itself count.
    #[must_use]
    pub fn guild(&self) -> Option<GuildId> {
        let value = match self.event.as_deref() {
            Some("GUILD_CREATE" | "GUILD_UPDATE" | "GUILD_DELETE") => self.id,
            _ => self.guild_id,
        };
        value.and_then(guild_id)
    }
}

/// The frames of a text that may hold several, one after the other: a zlib message may complete
/// more than one.
///
/// Yields each frame with its own bytes, which together are the whole text. After an error, which
/// cannot be told from the end of a frame, nothing follows.
#[derive(Debug)]
pub struct Frames<'a> {
    state: State<'a>,
}

#[derive(Debug)]
enum State<'a> {
    At(Scanner<'a>),
    Failed(FrameError),
    Done,
}

impl<'a> Frames<'a> {
    /// The frames in `bytes`; empty bytes hold none.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        let text = utf8(bytes);
        Self {
            state: text.map_or_else(State::Failed, |text| State::At(Scanner::new(text))),
        }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<(&'a [u8], Frame<'a>), FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        match mem::replace(&mut self.state, State::Done) {
            State::At(mut scanner) => {
                let start = scanner.position();
                scanner.peek()?;
                let frame = match Frame::scan(&mut scanner) {
                    Ok(frame) => frame,
                    Err(error) => return Some(Err(error)),
                };
                // White space after a frame goes with it.
                let more = scanner.peek().is_some();
                let raw = scanner.between(start, scanner.position()).as_bytes();
                if more {
                    self.state = State::At(scanner);
                }
                Some(Ok((raw, frame)))
            }
            State::Failed(error) => Some(Err(error)),
            State::Done => None,
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, FrameError> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| {
        // The fast check does not say where.
        let at = str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len);
        FrameError::NotUtf8 { at }
    })
}

/// The envelope's fields as they stand in the frame.
#[derive(Default)]
struct Envelope<'a> {
    op: Option<&'a str>,
    seq: Option<&'a str>,
    event: Option<&'a str>,
    data: Option<&'a str>,
    id: Option<&'a str>,
    guild_id: Option<&'a str>,
}

impl<'a> Envelope<'a> {
    fn visit(&mut self, key: Text<'a>, scanner: &mut Scanner<'a>) -> Result<(), JsonError> {
        if key.is("d") {
            return self.visit_data(scanner);
        }
        let value = scanner.value()?;
        if key.is("t") {
            self.event = Some(value);
        } else if key.is("s") {
            self.seq = Some(value);
        } else if key.is("op") {
            self.op = Some(value);
        }
        Ok(())
    }

    fn visit_data(&mut self, scanner: &mut Scanner<'a>) -> Result<(), JsonError> {
        // A second `d` replaces the first.
        (self.id, self.guild_id) = (None, None);
        if scanner.peek() != Some(b'{') {
            self.data = Some(scanner.value()?);
            return Ok(());
        }
        let start = scanner.position();
        if let Some(object) = scanner.plain_object() {
            self.data = Some(scanner.between(start, object.end));
            self.id = object.id.and_then(|at| scanner.value_at(at));
            self.guild_id = object.guild_id.and_then(|at| scanner.value_at(at));
            return Ok(());
        }
        scanner.object(|key, scanner| {
            let value = scanner.value()?;
            if key.is("guild_id") {
                self.guild_id = Some(value);
            } else if key.is("id") {
                self.id = Some(value);
            }
            Ok(())
        })?;
        self.data = Some(scanner.between(start, scanner.position()));
        Ok(())
    }

    fn finish(self) -> Result<Frame<'a>, FrameError> {
        let op = self.op.ok_or(FrameError::MissingOp)?;
        let integer = "a non-negative integer that fits 64 bits";
        let op = parse_u64(op).ok_or(FrameError::WrongType {
            field: "op",
            expected: integer,
        })?;
        let seq = match self.seq {
            None | Some("null") => None,
            Some(seq) => {
                let wrong = FrameError::WrongType {
                    field: "s",
                    expected: integer,
                };
                Some(parse_u64(seq).ok_or(wrong)?)
            }
        };
        let event = match self.event {
            None | Some("null") => (op == 0).then_some(Cow::Borrowed("")),
            Some(event) => {
                let wrong = FrameError::WrongType {
                    field: "t",
                    expected: "a string or null",
                };
                Some(parse_string(event).ok_or(wrong)?)
            }
        };
        let data = self.data.unwrap_or("null").as_bytes();
        Ok(Frame {
            op,
            seq,
            event,
            data,
            id: self.id,
            guild_id: self.guild_id,
        })
    }
}

/// A guild id from the text of a valid JSON value.
fn guild_id(value: &str) -> Option<GuildId> {
    match value.strip_prefix('"') {
        Some(string) => {
            // Nearly always digits, not escapes for them.
            let plain = string.strip_suffix('"').map(str::as_bytes);
            plain
                .and_then(GuildId::from_digits)
                .or_else(|| GuildId::from_digits(parse_string(value)?.as_bytes()))
        }
        // Digits only: neither fraction, exponent nor sign.
        None => GuildId::from_digits(value.as_bytes()),
    }
}

/// A non-negative integer from the text of a valid JSON value.
fn parse_u64(value: &str) -> Option<u64> {
    // `parse` would take a sign, but JSON numbers have no `+`, and `-0` is not parsed.
    value.parse().ok()
}

/// A string from the text of a valid JSON value.
fn parse_string(value: &str) -> Option<Cow<'_, str>> {
    Scanner::new(value).string().ok().map(Text::decode)
}

#[cfg(test)]
mod tests;
