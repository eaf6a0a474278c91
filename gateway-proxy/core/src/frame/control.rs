//! The few things the session must read inside `d`, without building it.
//!
//! Every function takes [`Frame::data`](super::Frame::data); bytes that are not JSON of the
//! documented shape give `None` or an error.

use std::borrow::Cow;

use schemas::GuildId;

use super::json::{JsonError, Scanner};
use super::{guild_id, parse_string, parse_u64};

/// What READY says about the session (Discord, Gateway Events, Ready).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready<'a> {
    /// Names the session in RESUME and in message ids; never empty.
    pub session_id: Cow<'a, str>,
    /// Where to resume. `None` when absent or empty: the gateway's own url does, too.
    pub resume_gateway_url: Option<Cow<'a, str>>,
    /// How many guilds the shard has: the stubs that GUILD_CREATE will follow for.
    pub guilds: usize,
    /// `[id, count]`, as IDENTIFY named it.
    pub shard: Option<[u32; 2]>,
    /// `guilds` as it stands in the frame.
    stubs: &'a str,
}

/// Why a READY cannot begin a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadyError {
    /// Its `d` is not an object.
    #[error("READY's data is not a JSON object")]
    NotAnObject,
    /// Without a session id nothing can be resumed nor named.
    #[error("READY has no `session_id`")]
    NoSessionId,
}

impl From<JsonError> for ReadyError {
    fn from(_: JsonError) -> Self {
        Self::NotAnObject
    }
}

impl Ready<'_> {
    /// The ids of the shard's guilds. A later GUILD_CREATE of another guild is one the bot joined.
    #[must_use]
    pub fn guild_ids(&self) -> Vec<GuildId> {
        let mut ids = Vec::with_capacity(self.guilds);
        let listed = Scanner::new(self.stubs).array(|stub| {
            let stub = stub.value()?;
            ids.extend(field(stub, "id").and_then(guild_id));
            Ok(())
        });
        // Anything else than a list was counted as no guilds.
        if listed.is_err() {
            ids.clear();
        }
        ids
    }
}

/// Reads READY's `d`.
///
/// # Errors
/// [`ReadyError`] when it has no session id.
pub fn ready(data: &[u8]) -> Result<Ready<'_>, ReadyError> {
    let text = str::from_utf8(data).map_err(|_| ReadyError::NotAnObject)?;
    let (mut session_id, mut url, mut shard) = (None, None, None);
    let mut stubs = "[]";
    Scanner::new(text).object(|key, scanner| {
        let value = scanner.value()?;
        if key.is("session_id") {
            session_id = Some(value);
        } else if key.is("resume_gateway_url") {
            url = Some(value);
        } else if key.is("guilds") {
            stubs = value;
        } else if key.is("shard") {
            shard = Some(value);
        }
        Ok(())
    })?;
    let session_id = session_id
        .and_then(parse_string)
        .filter(|id| !id.is_empty());
    Ok(Ready {
        session_id: session_id.ok_or(ReadyError::NoSessionId)?,
        resume_gateway_url: url.and_then(parse_string).filter(|url| !url.is_empty()),
        guilds: count(stubs),
        shard: shard.and_then(parse_shard),
        stubs,
    })
}

/// HELLO's `d.heartbeat_interval` in milliseconds; `None` unless a positive integer.
#[must_use]
pub fn hello_interval(data: &[u8]) -> Option<u64> {
    let text = str::from_utf8(data).ok()?;
    field(text, "heartbeat_interval")
        .and_then(parse_u64)
        .filter(|interval| *interval > 0)
}

/// INVALID_SESSION's `d`: whether the session may be resumed. Anything but `true` is a no.
#[must_use]
pub fn invalid_session_resumable(data: &[u8]) -> bool {
    data.trim_ascii() == b"true"
}

/// `d.unavailable` of GUILD_CREATE and GUILD_DELETE: `None` when absent, else whether it is `true`.
///
/// A GUILD_DELETE with it is an outage, one without it means that the bot was removed; a
/// GUILD_CREATE with `true` is only a stub (Discord, Gateway Events, Guild Create, Guild Delete).
#[must_use]
pub fn unavailable(data: &[u8]) -> Option<bool> {
    let text = str::from_utf8(data).ok()?;
    field(text, "unavailable").map(|value| value == "true")
}

/// The last value of a key of an object, `None` for anything but an object that has it.
fn field<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let mut found = None;
    let scanned = Scanner::new(object).object(|key, scanner| {
        let value = scanner.value()?;
        if key.is(name) {
            found = Some(value);
        }
        Ok(())
    });
    scanned.ok().and(found)
}

/// How many values an array has; 0 for anything else.
fn count(array: &str) -> usize {
    let mut count = 0;
    let counted = Scanner::new(array).array(|scanner| {
        count += 1;
        scanner.value().map(|_| ())
    });
    if counted.is_ok() { count } else { 0 }
}

fn parse_shard(value: &str) -> Option<[u32; 2]> {
    let mut numbers = [None; 2];
    let mut at = 0;
    let scanned = Scanner::new(value).array(|scanner| {
        let number = scanner.value()?.parse::<u32>().ok();
        if let Some(slot) = numbers.get_mut(at) {
            *slot = number;
        }
        at += 1;
        Ok(())
    });
    match (scanned, at, numbers) {
        (Ok(()), 2, [Some(id), Some(shards)]) => Some([id, shards]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_gives_session_url_guilds_and_shard() {
        let data = br#"{"v":10,"guilds":[{"unavailable":true,"id":"81"},{"id":"82"},{"id":"x"}],
            "session_id":"abc","shard":[3,16],"resume_gateway_url":"wss:\/\/r.example"}"#;
        let ready = ready(data).unwrap();
        assert_eq!(
            (&*ready.session_id, ready.guilds, ready.shard),
            ("abc", 3, Some([3, 16]))
        );
        assert_eq!(ready.resume_gateway_url.as_deref(), Some("wss://r.example"));
        assert_eq!(
            ready.guild_ids(),
            [81, 82].map(|id| GuildId::new(id).unwrap())
        );
    }

    #[test]
    fn a_ready_without_session_id_is_an_error_and_the_rest_is_optional() {
        for bad in [&b"{}"[..], br#"{"session_id":""}"#, br#"{"session_id":7}"#] {
            assert_eq!(ready(bad), Err(ReadyError::NoSessionId));
        }
        for bad in [&b"null"[..], b"[]", b"", b"{", b"\xff"] {
            assert_eq!(ready(bad), Err(ReadyError::NotAnObject));
        }
        let odd = br#"{"session_id":"a","guilds":7,"shard":[1],"resume_gateway_url":null}"#;
        let ready = ready(odd).unwrap();
        assert_eq!(
            (ready.guilds, ready.shard, ready.resume_gateway_url.clone()),
            (0, None, None)
        );
        assert!(ready.guild_ids().is_empty());
    }

    #[test]
    fn hello_wants_a_positive_integer() {
        assert_eq!(
            hello_interval(br#"{"heartbeat_interval":41250,"_trace":["x"]}"#),
            Some(41_250)
        );
        for bad in ["{}", "null", "[]", "7", ""] {
            assert_eq!(hello_interval(bad.as_bytes()), None, "{bad}");
        }
        for bad in [
            "0",
            "-1",
            "1.5",
            "1e3",
            "\"41250\"",
            "null",
            "99999999999999999999",
        ] {
            let data = format!("{{\"heartbeat_interval\":{bad}}}");
            assert_eq!(hello_interval(data.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn only_true_makes_an_invalid_session_resumable() {
        assert!(invalid_session_resumable(b"true"));
        for no in [&b"false"[..], b"null", b"1", b"\"true\"", b""] {
            assert!(!invalid_session_resumable(no));
        }
    }

    #[test]
    fn unavailable_is_absent_true_or_something_else() {
        assert_eq!(unavailable(br#"{"id":"1"}"#), None);
        assert_eq!(unavailable(br#"{"id":"1","unavailable":true}"#), Some(true));
        assert_eq!(
            unavailable(br#"{"unavailable":false,"id":"1"}"#),
            Some(false)
        );
        assert_eq!(unavailable(br#"{"guild":{"unavailable":true}}"#), None);
        assert_eq!(unavailable(b"null"), None);
    }
}
