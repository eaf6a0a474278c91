//! After an outage longer than the stream remembers message ids: asks the stream which of the
//! written messages it holds, since publishing those again would store them twice.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use schemas::MessageId;
use schemas::message::NATS_MSG_ID;

use super::Outbound;

/// How long one look-up may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How to ask the stream.
#[derive(Clone, Debug)]
pub(crate) struct Reconcile {
    /// The stream the messages go to.
    pub(crate) stream: Stream<()>,
    /// Written messages this old are asked for: well within the stream's duplicate window, because
    /// the server counts from when it stored them and clocks differ.
    pub(crate) after: Duration,
}

impl Reconcile {
    /// How many of these messages, which are written in this order, are stored. The stream holds a
    /// prefix of them, so the last one found settles those before it.
    pub(super) async fn stored<'a>(
        &self,
        written: impl Iterator<Item = &'a Outbound>,
    ) -> Result<usize, String> {
        let mut last_of_shard: HashMap<String, Option<(String, u64)>> = HashMap::new();
        let mut stored = 0;
        for (index, message) in written.enumerate() {
            // A marker has no sequence of its own; its neighbours settle it.
            let Some((session, seq)) = message.identity() else {
                continue;
            };
            let subjects = message.subjects_of_shard();
            if !last_of_shard.contains_key(&subjects) {
                let last = self.last(&subjects).await?;
                last_of_shard.insert(subjects.clone(), last);
            }
            let last = last_of_shard.get(&subjects).and_then(Option::as_ref);
            if last.is_some_and(|(known, at)| known == session && *at >= seq) {
                stored = index + 1;
            }
        }
        Ok(stored)
    }

    async fn last(&self, subjects: &str) -> Result<Option<(String, u64)>, String> {
        let lookup = self.stream.get_last_raw_message_by_subject(subjects);
        let message = match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
            Ok(Ok(message)) => message,
            Ok(Err(error)) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok(None);
            }
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())),
        };
        let id = message
            .headers
            .get(NATS_MSG_ID)
            .map(|id| id.as_str().to_owned());
        let id = id.unwrap_or_default();
        Ok(MessageId::parse(&id)
            .ok()
            .map(|id| (id.session.to_owned(), id.seq)))
    }
}
