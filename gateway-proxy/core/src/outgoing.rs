//! The payloads a proxy sends of its own accord: heartbeat, IDENTIFY, RESUME.

use schemas::ShardId;
use serde_json::{Value, json};

/// The most a client may send in one payload; more is closed with 4002 (Discord, Sending Events).
pub const MAX_BYTES: usize = 4096;

/// Everything IDENTIFY says besides the shard.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentifyOptions {
    /// Intent bits.
    pub intents: u64,
    /// Members above which a guild's offline members are left out, 50 to 250.
    pub large_threshold: Option<u8>,
    /// Initial presence, as op 3's `d`.
    pub presence: Option<Value>,
}

/// Op 1. `seq` is the last sequence, `null` before the first.
#[must_use]
pub fn heartbeat(seq: Option<u64>) -> String {
    match seq {
        Some(seq) => format!(r#"{{"op":1,"d":{seq}}}"#),
        None => r#"{"op":1,"d":null}"#.to_owned(),
    }
}

/// Op 2. The token goes bare, as in RESUME: a prefixed one in RESUME was once answered with 4006.
///
/// # Errors
/// [`TooLarge`] when the presence makes the payload exceed [`MAX_BYTES`].
pub fn identify(
    token: &str,
    shard: ShardId,
    options: &IdentifyOptions,
) -> Result<String, TooLarge> {
    let mut data = json!({
        "token": token,
        "intents": options.intents,
        "properties": {"os": std::env::consts::OS, "browser": "gateway-proxy", "device": "gateway-proxy"},
        "compress": false,
        "shard": shard,
    });
    if let Some(threshold) = options.large_threshold {
        data["large_threshold"] = threshold.into();
    }
    if let Some(presence) = &options.presence {
        data["presence"] = presence.clone();
    }
    let payload = json!({"op": 2, "d": data}).to_string();
    if payload.len() > MAX_BYTES {
        return Err(TooLarge {
            bytes: payload.len(),
        });
    }
    Ok(payload)
}

/// Op 6.
#[must_use]
pub fn resume(token: &str, session_id: &str, seq: u64) -> String {
    json!({"op": 6, "d": {"token": token, "session_id": session_id, "seq": seq}}).to_string()
}

/// A payload above [`MAX_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the payload has {bytes} bytes, discord takes {MAX_BYTES}")]
pub struct TooLarge {
    /// Its size.
    pub bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identify_carries_what_discord_requires() {
        let options = IdentifyOptions {
            intents: 513,
            large_threshold: Some(250),
            presence: None,
        };
        let shard = ShardId::new(3, 16).unwrap();
        let payload: Value =
            serde_json::from_str(&identify("abc", shard, &options).unwrap()).unwrap();
        assert_eq!(payload["op"], 2);
        assert_eq!(payload["d"]["token"], "abc");
        assert_eq!(payload["d"]["shard"], json!([3, 16]));
        assert_eq!(payload["d"]["large_threshold"], 250);
        assert!(payload["d"].get("presence").is_none());
    }

    #[test]
    fn a_presence_that_exceeds_the_payload_limit_is_refused() {
        let presence = json!({"status": "online", "activities": [{"name": "x".repeat(5_000)}]});
        let options = IdentifyOptions {
            intents: 1,
            large_threshold: None,
            presence: Some(presence),
        };
        let refused = identify("abc", ShardId::new(0, 1).unwrap(), &options).unwrap_err();
        assert!(refused.bytes > MAX_BYTES);
    }

    #[test]
    fn a_heartbeat_before_the_first_event_says_null() {
        assert_eq!(heartbeat(None), r#"{"op":1,"d":null}"#);
        assert_eq!(heartbeat(Some(251)), r#"{"op":1,"d":251}"#);
    }
}
