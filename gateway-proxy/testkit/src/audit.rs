//! Compares what a simulator sent with what a JetStream stream holds, event by event.

mod reader;
mod report;

use std::time::Duration;

use async_nats::Client;
use schemas::Prefix;
use tokio::time::{Instant, sleep};

use self::reader::Reader;
pub use self::report::{AuditReport, Gap, Tally};
use crate::simulator::{LedgerSnapshot, Progress, SessionState, Simulator};

/// Pause between two looks at a stream that is not caught up.
const POLL: Duration = Duration::from_millis(20);

/// An audit that could not be made, or a stream that did not catch up.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// There is no stream for the prefix.
    #[error("no stream {name}")]
    NoStream {
        /// Its name.
        name: String,
    },
    /// NATS answered with an error.
    #[error("read the stream {name}: {reason}")]
    Nats {
        /// Its name.
        name: String,
        /// What it said.
        reason: String,
    },
    /// The deadline passed.
    #[error("{stored} of {expected} events stored within {within:?}; first behind: {behind}")]
    Behind {
        /// Events of sessions that live.
        expected: u64,
        /// Of them in the stream.
        stored: u64,
        /// The deadline.
        within: Duration,
        /// A session that waits, and for what.
        behind: String,
    },
}

/// Reads the whole stream and compares.
///
/// Events that the ledger gained after the snapshot count as unexpected: stop the load and
/// [`wait_caught_up`] first.
///
/// # Errors
/// [`AuditError`] when the stream cannot be read.
pub async fn audit(
    client: &Client,
    prefix: &Prefix,
    ledger: &LedgerSnapshot,
) -> Result<AuditReport, AuditError> {
    let mut reader = Reader::open(client, prefix).await?;
    reader.read_on().await?;
    Ok(report::compare(prefix, ledger, reader.stored()))
}

/// Waits until every event of every session that lives is in the stream.
///
/// # Errors
/// [`AuditError::Behind`] at the deadline; other variants when the stream cannot be read.
pub async fn wait_caught_up(
    client: &Client,
    prefix: &Prefix,
    simulator: &Simulator,
    within: Duration,
) -> Result<(), AuditError> {
    let deadline = Instant::now() + within;
    let mut reader = None;
    loop {
        let caught_up = match &mut reader {
            Some(reader) => look(reader, &simulator.progress()).await?,
            None => match Reader::open(client, prefix).await {
                Ok(opened) => {
                    reader = Some(opened);
                    continue;
                }
                // The proxy makes the stream when it starts.
                Err(AuditError::NoStream { name }) => Err((0, 0, format!("no stream {name}"))),
                Err(e) => return Err(e),
            },
        };
        let Err((expected, stored, behind)) = caught_up else {
            return Ok(());
        };
        if Instant::now() >= deadline {
            return Err(AuditError::Behind {
                expected,
                stored,
                within,
                behind,
            });
        }
        sleep(POLL).await;
    }
}

type Behind = (u64, u64, String);

/// `Err` says how far behind the stream is.
async fn look(
    reader: &mut Reader,
    progress: &[Progress],
) -> Result<Result<(), Behind>, AuditError> {
    reader.read_on().await?;
    let live = progress
        .iter()
        .filter(|session| session.state != SessionState::Ended);
    let (mut expected, mut stored, mut behind) = (0, 0, None);
    for session in live {
        let have = reader.stored().distinct(&session.id).min(session.events);
        expected += session.events;
        stored += have;
        if have < session.events && behind.is_none() {
            let (id, shard) = (&session.id, session.shard);
            behind = Some(format!(
                "session {id} of shard {shard}: {have} of {}",
                session.events
            ));
        }
    }
    Ok(match behind {
        None => Ok(()),
        Some(behind) => Err((expected, stored, behind)),
    })
}
