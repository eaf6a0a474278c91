//! Pull requests to one durable consumer over an inbox that lives as long as the connection.
//!
//! async-nats' own batches subscribe and unsubscribe for every request, and know no request by a
//! pinned client; here a request is one message. Counts what has been asked for and not come yet.

use std::time::Duration;

use async_nats::header::NATS_PIN_ID;
use async_nats::{HeaderMap, Message, Subscriber};
use futures_util::StreamExt as _;
use serde::Serialize;
use tokio::time::Instant;

use crate::durable::HOLDER;
use crate::nats::{Link, LinkState};

/// Time after a request's expiry within which the server says that it is over.
const EXPIRY_MARGIN: Duration = Duration::from_millis(500);
/// What the server says is left of a request.
const PENDING_MESSAGES: &str = "Nats-Pending-Messages";
/// What comes in.
#[derive(Debug)]
pub(crate) enum Arrival {
    Message(Message),
    /// A request is over; asking again is all there is to do.
    Over,
    /// Another server leads the consumer, and what the old one sent last may be lost.
    Moved,
    /// The consumer or its stream is gone.
    Gone(String),
    /// The server has another holder, or none since its leader changed.
    PinLost,
    /// The request was refused.
    Refused(String),
}

#[derive(Serialize)]
struct Request<'a> {
    batch: usize,
    /// In nanoseconds.
    expires: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

/// An open way to one consumer, on one connection.
pub(crate) struct Intake {
    link: Link,
    connection: LinkState,
    /// Where requests go.
    api: String,
    inbox: String,
    arrivals: Subscriber,
    requests: u64,
    outstanding: usize,
    overdue: Instant,
    /// Whether messages say by what the server knows their receiver.
    pinned: bool,
    pin: Option<String>,
}

impl Intake {
    /// Opens the inbox on the present connection; waits for one.
    pub(crate) async fn open(link: &Link, stream: &str, consumer: &str) -> Result<Self, String> {
        let connection = link.connected().await.ok_or("the connection is closed")?;
        let inbox = link.client.new_inbox();
        let arrivals = link.client.subscribe(format!("{inbox}.*")).await;
        Ok(Self {
            link: link.clone(),
            connection,
            api: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            inbox,
            arrivals: arrivals.map_err(|error| error.to_string())?,
            requests: 0,
            outstanding: 0,
            overdue: Instant::now(),
            pinned: false,
            pin: None,
        })
    }

    /// Messages asked for that may still come.
    pub(crate) const fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// When what was asked for has been forgotten by the server without a word.
    pub(crate) const fn overdue(&self) -> Instant {
        self.overdue
    }

    /// Whether the server knows us as the one client.
    pub(crate) const fn is_pinned(&self) -> bool {
        self.pin.is_some()
    }

    /// Asks for messages, as anybody or, `pinned`, as the one client of the consumer.
    pub(crate) async fn request(
        &mut self,
        batch: usize,
        expires: Duration,
        pinned: bool,
    ) -> Result<(), String> {
        let request = Request {
            batch,
            expires: u64::try_from(expires.as_nanos()).unwrap_or(u64::MAX),
            group: pinned.then_some(HOLDER),
            id: self.pin.as_deref(),
        };
        let body = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
        self.requests += 1;
        self.pinned |= pinned;
        let reply = format!("{}.{}", self.inbox, self.requests);
        let client = &self.link.client;
        client
            .publish_with_reply(self.api.clone(), reply, body.into())
            .await
            .map_err(|error| error.to_string())?;
        self.outstanding += batch;
        self.overdue = Instant::now() + expires + EXPIRY_MARGIN;
        Ok(())
    }

    /// Forgets what was asked for; what still comes is welcome.
    pub(crate) fn forget(&mut self) {
        self.outstanding = 0;
    }

    /// What the server knows us by as the one client; survives a connection, but not a new leader.
    pub(crate) fn pin(&self) -> Option<String> {
        self.pin.clone()
    }

    pub(crate) fn set_pin(&mut self, pin: Option<String>) {
        self.pin = pin;
    }

    /// The connection it is open on: requests do not survive another one.
    pub(crate) const fn connection(&self) -> LinkState {
        self.connection
    }

    /// The next arrival; `None` when the client is closed. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Arrival> {
        let message = self.arrivals.next().await?;
        Some(match message.status {
            None => self.take(message),
            Some(status) => {
                let text = message.description.clone().unwrap_or_default();
                let left = message.headers.as_ref().and_then(pending);
                // A refusal does not say how much it refuses.
                self.outstanding = left.map_or(0, |left| self.outstanding.saturating_sub(left));
                judge(status.as_u16(), &text)
            }
        })
    }

    fn take(&mut self, message: Message) -> Arrival {
        self.outstanding = self.outstanding.saturating_sub(1);
        // What tells the holder of a shard from others is on each message of its consumer.
        if self.pinned
            && let Some(pin) = message
                .headers
                .as_ref()
                .and_then(|all| all.get(NATS_PIN_ID))
            && self.pin.as_deref() != Some(pin.as_str())
        {
            self.pin = Some(pin.to_string());
        }
        Arrival::Message(message)
    }
}

fn pending(headers: &HeaderMap) -> Option<usize> {
    headers.get(PENDING_MESSAGES)?.as_str().parse().ok()
}

/// What a status means (NATS, JetStream wire API, pull consumers).
fn judge(status: u16, text: &str) -> Arrival {
    match status {
        404 | 408 => Arrival::Over,
        423 => Arrival::PinLost,
        // No responders: nobody serves this consumer.
        503 => Arrival::Gone("nobody serves the consumer".to_owned()),
        409 if text.contains("Consumer Deleted") => Arrival::Gone(text.to_owned()),
        409 if text.contains("Batch Completed") => Arrival::Over,
        409 if text.contains("Leadership Change") || text.contains("Server Shutdown") => {
            Arrival::Moved
        }
        _ => Arrival::Refused(format!("{status} {text}")),
    }
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake")
            .field("api", &self.api)
            .field("outstanding", &self.outstanding)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_to_do_next() {
        assert!(matches!(judge(408, "Request Timeout"), Arrival::Over));
        assert!(matches!(judge(404, "No Messages"), Arrival::Over));
        assert!(matches!(judge(409, "Leadership Change"), Arrival::Moved));
        assert!(matches!(judge(409, "Consumer Deleted"), Arrival::Gone(_)));
        assert!(matches!(judge(503, ""), Arrival::Gone(_)));
        assert!(matches!(
            judge(423, "Nats-Pin-Id mismatch"),
            Arrival::PinLost
        ));
        assert!(matches!(
            judge(409, "Exceeded MaxWaiting"),
            Arrival::Refused(_)
        ));
    }

    #[test]
    fn a_request_is_spelled_as_the_server_reads_it() {
        let text = |group, id| {
            let (batch, expires) = (5, 1_000);
            let request = Request {
                batch,
                expires,
                group,
                id,
            };
            serde_json::to_string(&request).unwrap()
        };
        assert_eq!(text(None, None), r#"{"batch":5,"expires":1000}"#);
        assert_eq!(
            text(Some("holder"), Some("x")),
            r#"{"batch":5,"expires":1000,"group":"holder","id":"x"}"#
        );
    }
}
