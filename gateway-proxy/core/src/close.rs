//! What a close means for the session: the close-code table, and the code we close with.

/// The code we close with whenever the session must live on.
///
/// Discord keeps a session for every code but 1000 and 1001; libraries use 4000 for "reconnecting".
pub const RESUMABLE: u16 = 4000;

/// Session timed out. While events flow it says that heartbeats were missed, and RESUME may work; as
/// the answer to RESUME, instead of events, it says that the session is gone.
pub const SESSION_TIMED_OUT: u16 = 4009;

/// No code came: WebSocket libraries report so a connection that broke. Never on the wire.
pub const ABNORMAL: u16 = 1006;

/// What to do after the server closed the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterClose {
    /// Connect again and RESUME.
    Resume,
    /// As [`AfterClose::Resume`], but the close was our fault: wait longer each time.
    ResumeSlowly,
    /// The session is gone: connect again and IDENTIFY.
    Identify,
    /// Connecting again cannot help before somebody changes the configuration.
    Fatal(FatalClose),
}

/// A close code that no reconnect mends (Discord, Gateway Close Event Codes, "Reconnect: false").
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FatalClose {
    /// 4004.
    #[error("discord refuses the token (close code 4004)")]
    AuthenticationFailed,
    /// 4010.
    #[error("discord refuses the shard (close code 4010: invalid shard)")]
    InvalidShard,
    /// 4011.
    #[error("the shard would hold too many guilds (close code 4011: more shards are required)")]
    ShardingRequired,
    /// 4012.
    #[error("discord refuses the gateway version (close code 4012)")]
    InvalidVersion,
    /// 4013.
    #[error("the intents are invalid (close code 4013)")]
    InvalidIntents,
    /// 4014.
    #[error("privileged intents are not enabled for this application (close code 4014)")]
    DisallowedIntents,
}

/// Reads a close code (`None`: the connection ended without one).
///
/// Unknown codes and even 1000/1001 from the server try a RESUME first: it costs nothing, and op 9
/// says so if the session is gone.
#[must_use]
pub const fn after_close(code: Option<u16>) -> AfterClose {
    match code {
        Some(4004) => AfterClose::Fatal(FatalClose::AuthenticationFailed),
        Some(4010) => AfterClose::Fatal(FatalClose::InvalidShard),
        Some(4011) => AfterClose::Fatal(FatalClose::ShardingRequired),
        Some(4012) => AfterClose::Fatal(FatalClose::InvalidVersion),
        Some(4013) => AfterClose::Fatal(FatalClose::InvalidIntents),
        Some(4014) => AfterClose::Fatal(FatalClose::DisallowedIntents),
        // 4003: not authenticated or session invalidated; 4006 and 4007: session or sequence unknown.
        Some(4003 | 4006 | 4007) => AfterClose::Identify,
        // 4001: opcode, 4002: decode, 4005: identified twice, 4008: rate limited. All are something
        // we sent, so doing it again at once would repeat it.
        Some(4001 | 4002 | 4005 | 4008) => AfterClose::ResumeSlowly,
        _ => AfterClose::Resume,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_that_allows_resume_resumes() {
        for code in [
            None,
            Some(1000),
            Some(1001),
            Some(1006),
            Some(4000),
            Some(4009),
            Some(4999),
        ] {
            assert_eq!(after_close(code), AfterClose::Resume, "{code:?}");
        }
        for code in [4001, 4002, 4005, 4008] {
            assert_eq!(after_close(Some(code)), AfterClose::ResumeSlowly, "{code}");
        }
    }

    #[test]
    fn codes_that_void_the_session_identify() {
        for code in [4003, 4006, 4007] {
            assert_eq!(after_close(Some(code)), AfterClose::Identify, "{code}");
        }
    }

    #[test]
    fn codes_that_discord_marks_final_are_fatal() {
        for code in [4004, 4010, 4011, 4012, 4013, 4014] {
            assert!(
                matches!(after_close(Some(code)), AfterClose::Fatal(_)),
                "{code}"
            );
        }
    }
}
