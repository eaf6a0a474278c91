//! Before publishing again what the stream may hold already: after an outage longer than it remembers
//! message ids, and after this process stood still, when a successor may have taken its shards and
//! stored their events.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use schemas::MessageId;
use schemas::message::NATS_MSG_ID;

use super::Outbound;
use crate::ownership::{Owner, Ownership};

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
    /// Whose the shards are.
    pub(crate) ownership: Ownership,
    /// The stream has replicas.
    pub(crate) replicated: bool,
}

/// What the stream and the records say about shards.
#[derive(Debug, Default)]
pub(super) struct Standing {
    // The id of the last message, by the shard's subjects.
    last: HashMap<String, String>,
    // Shards that another process took.
    lost: HashSet<u32>,
}

/// What becomes of a queued message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is still to be published.
    Publish,
    /// The stream has it.
    Stored,
    /// Its shard is another process', which has it from Discord.
    Foreign,
}

impl Standing {
    pub(super) fn of(&self, message: &Outbound) -> Fate {
        if self.lost.contains(&message.shard().id()) {
            return Fate::Foreign;
        }
        match self.last.get(&message.subjects_of_shard()) {
            Some(last) if reaches(last, message) => Fate::Stored,
            _ => Fate::Publish,
        }
    }
}

/// Whether a shard whose last stored message has this id holds the message. Messages of a shard are
/// stored in order, and a marker carries the sequence of the event before it.
fn reaches(last: &str, message: &Outbound) -> bool {
    let wanted = message.message_id();
    if last == wanted {
        return true;
    }
    let (Ok(last), Ok(wanted)) = (MessageId::parse(last), MessageId::parse(wanted)) else {
        return false;
    };
    let further = if message.is_synthetic() {
        last.seq > wanted.seq
    } else {
        last.seq >= wanted.seq
    };
    last.session == wanted.session && further
}

impl Reconcile {
    /// How many of these messages, which are written in this order, are stored. The stream holds a
    /// prefix of them, so the last one found settles those before it.
    pub(super) async fn stored<'a>(
        &self,
        written: impl Iterator<Item = &'a Outbound>,
    ) -> Result<usize, String> {
        let mut last_of_shard: HashMap<String, Option<String>> = HashMap::new();
        let mut stored = 0;
        for (index, message) in written.enumerate() {
            let subjects = message.subjects_of_shard();
            if !last_of_shard.contains_key(&subjects) {
                let last = self.last(&subjects).await?;
                last_of_shard.insert(subjects.clone(), last);
            }
            let last = last_of_shard.get(&subjects).and_then(Option::as_ref);
            if last.is_some_and(|last| reaches(last, message)) {
                stored = index + 1;
            }
        }
        Ok(stored)
    }

    /// Asks about every shard that these messages belong to.
    pub(super) async fn standing<'a>(
        &self,
        messages: impl Iterator<Item = &'a Outbound>,
    ) -> Result<Standing, String> {
        let shards: HashMap<_, _> = messages
            .map(|message| (message.shard(), message.subjects_of_shard()))
            .collect();
        let mut standing = Standing::default();
        for (shard, subjects) in shards {
            match self.ownership.of(shard).await {
                Owner::Us => {}
                Owner::Other { .. } => drop(standing.lost.insert(shard.id())),
                Owner::Unknown(reason) => return Err(reason),
            }
            if let Some(last) = self.last(&subjects).await? {
                standing.last.insert(subjects, last);
            }
        }
        Ok(standing)
    }

    /// The id of the last message.
    async fn last(&self, subjects: &str) -> Result<Option<String>, String> {
        let lookup = self.stream.get_last_raw_message_by_subject(subjects);
        let message = match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
            Ok(Ok(message)) => message,
            Ok(Err(error)) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok(None);
            }
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())),
        };
        Ok(message
            .headers
            .get(NATS_MSG_ID)
            .map(|id| id.as_str().to_owned()))
    }
}
