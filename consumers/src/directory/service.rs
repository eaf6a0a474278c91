//! Answers `discord.query.*` as a NATS service: any instance answers any question, from its copy of
//! the bucket.

use std::sync::Arc;

use async_nats::service::error::Error as ServiceError;
use async_nats::service::{Request, Service, ServiceExt as _};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use schemas::{
    DirectoryStats, GuildsRequest, QueryKind, ShardLine, ShardPage, ShardRecord, ShardsRequest,
    Snowflake, Subject,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Shared;
use super::batch::Known as _;
use super::view::Page;

/// Questions answered at the same time; more wait at the NATS client.
const QUESTIONS: usize = 64;
/// What a page leaves of `max_payload` for what stands around its lines.
const ENVELOPE_BYTES: usize = 1024;
/// Longest request read.
const REQUEST_MAX: usize = 4096;

/// Name of the service at NATS; the prefix tells bots apart.
fn service_name(prefix: &schemas::Prefix) -> String {
    format!("{prefix}-directory")
}

/// A running service; dropping it leaves the questions to other instances.
#[derive(Debug)]
pub(crate) struct Answers {
    service: Service,
    task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Answers {
    /// Registers the service and its endpoints.
    pub(crate) async fn start(shared: &Arc<Shared>) -> Result<Self, async_nats::Error> {
        let prefix = &shared.prefix;
        let service = shared
            .link
            .client
            .service_builder()
            .description("What is known of the bot's guilds, over all shards")
            .start(service_name(prefix), env!("CARGO_PKG_VERSION"))
            .await?;
        let mut endpoints = Vec::with_capacity(QueryKind::ALL.len());
        for kind in QueryKind::ALL {
            let what = kind.as_str();
            let subject = if kind.takes_id() {
                prefix.query_by_any_id(what)
            } else {
                Subject::Query { what, id: None }.with_prefix(prefix)
            };
            let endpoint = service.endpoint_builder().name(what).add(subject).await?;
            endpoints.push(endpoint.map(move |request| (kind, request)));
        }
        let shared = Arc::clone(shared);
        let answering = async move {
            let questions = stream::select_all(endpoints);
            questions
                .for_each_concurrent(QUESTIONS, |(kind, request)| {
                    let shared = Arc::clone(&shared);
                    async move { respond(&shared, kind, request).await }
                })
                .await;
        };
        let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(answering));
        Ok(Self { service, task })
    }

    /// Leaves the queue group, then ends what is left.
    pub(crate) async fn stop(self) {
        if let Err(error) = self.service.stop().await {
            tracing::debug!(%error, "the query service did not stop cleanly");
        }
        drop(self.task);
    }
}

async fn respond(shared: &Shared, kind: QueryKind, request: Request) {
    let reply = answer(shared, kind, &request).await;
    if let Err(error) = &reply {
        tracing::debug!(subject = %request.message.subject, %error, "a question was refused");
    }
    shared.metrics.queries.inc();
    // Nobody waits for a question without a reply subject.
    if let Err(error) = request.respond(reply).await {
        tracing::debug!(%error, "an answer could not be sent");
    }
}

async fn answer(
    shared: &Shared,
    kind: QueryKind,
    request: &Request,
) -> Result<Bytes, ServiceError> {
    let max = shared.link.client.server_info().max_payload;
    let page_max = max.saturating_sub(ENVELOPE_BYTES);
    let payload = &request.message.payload;
    match kind {
        QueryKind::Stats => encode(&stats(shared).await, max),
        QueryKind::Guilds => {
            let asked: GuildsRequest = decode(payload)?;
            encode(&shared.view.page(&asked, page_max), max)
        }
        QueryKind::Guild => {
            let id = id_of(shared, request)?;
            let entry = shared.view.guild(id.as_guild());
            let entry = entry.ok_or_else(|| not_found(format!("no guild {id}")))?;
            encode(&entry.info(), max)
        }
        QueryKind::User => {
            let id = id_of(shared, request)?;
            let users = shared.users.as_ref().ok_or_else(|| {
                refuse(501, "users are not kept; start the directory with --users")
            })?;
            let found = users
                .find(id)
                .await
                .map_err(|problem| refuse(503, problem))?;
            encode(
                &found.ok_or_else(|| not_found(format!("no user {id}")))?,
                max,
            )
        }
        QueryKind::Shards => {
            let asked: ShardsRequest = decode(payload)?;
            encode(&shard_page(shared, &asked, page_max), max)
        }
    }
}

async fn stats(shared: &Shared) -> DirectoryStats {
    let records = newest(shared.shards.records());
    let ready = |record: &&ShardRecord| record.state.is_ready();
    let latencies = records.iter().filter_map(|record| {
        let latency = record.latency_ms.filter(|ms| ms.is_finite())?;
        Some((record.shard.id(), latency))
    });
    let users = match &shared.users {
        Some(users) => users.count().await,
        None => None,
    };
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    DirectoryStats {
        users,
        shards: count(records.len()),
        shards_ready: count(records.iter().filter(ready).count()),
        latency_ms: latencies.take(DirectoryStats::LATENCIES_MAX).collect(),
        ..shared.view.stats()
    }
}

/// The records of one sharding: during a reshard two stand side by side, and the one with more
/// shards that deliver is the bot's.
fn newest(records: Vec<ShardRecord>) -> Vec<ShardRecord> {
    let mut shardings: std::collections::BTreeMap<u32, Vec<ShardRecord>> = Default::default();
    for record in records {
        shardings
            .entry(record.shard.count())
            .or_default()
            .push(record);
    }
    let weight = |records: &Vec<ShardRecord>| {
        let ready = records.iter().filter(|record| record.state.is_ready());
        let changed = records.iter().map(|record| record.changed_at_unix_ms);
        (ready.count(), changed.max())
    };
    let bot = shardings.into_values().max_by_key(weight);
    bot.unwrap_or_default()
}

fn shard_page(shared: &Shared, asked: &ShardsRequest, bytes_max: usize) -> ShardPage {
    let sums = shared.view.shard_sums();
    let records = newest(shared.shards.records());
    let mut numbers: std::collections::BTreeSet<u32> = sums.keys().copied().collect();
    numbers.extend(records.iter().map(|record| record.shard.id()));
    let mut page = Page::new(asked.limit, bytes_max);
    let wanted = numbers
        .into_iter()
        .filter(|number| asked.after.is_none_or(|after| *number > after));
    page.fill(wanted.map(|shard| {
        let record = records.iter().find(|record| record.shard.id() == shard);
        let sums = sums.get(&shard).copied().unwrap_or_default();
        ShardLine {
            shard,
            count: record.map(|record| record.shard.count()),
            state: record.map(|record| record.state),
            latency_ms: record
                .and_then(|record| record.latency_ms)
                .filter(|ms| ms.is_finite()),
            guilds: sums.guilds,
            members: sums.members,
            read_by: shared
                .view
                .position(shard)
                .and_then(|position| position.holder),
        }
    }));
    let next = page.more.then(|| page.lines.last().map(|line| line.shard));
    ShardPage {
        next: next.flatten(),
        shards: page.lines,
    }
}

fn id_of(shared: &Shared, request: &Request) -> Result<Snowflake, ServiceError> {
    let subject = request.message.subject.as_str();
    let id = match Subject::parse(&shared.prefix, subject) {
        Ok(Subject::Query { id: Some(id), .. }) => id,
        Ok(_) | Err(_) => "",
    };
    id.parse()
        .map_err(|error: schemas::ids::SnowflakeError| refuse(400, error.to_string()))
}

fn decode<R: DeserializeOwned + Default>(payload: &[u8]) -> Result<R, ServiceError> {
    if payload.is_empty() {
        return Ok(R::default());
    }
    if payload.len() > REQUEST_MAX {
        let bytes = payload.len();
        return Err(refuse(
            413,
            format!("a request of {bytes} bytes is too long"),
        ));
    }
    serde_json::from_slice(payload)
        .map_err(|error| refuse(400, format!("the request cannot be read: {error}")))
}

fn encode(reply: &impl Serialize, max: usize) -> Result<Bytes, ServiceError> {
    let text = serde_json::to_vec(reply).map_err(|error| refuse(500, error.to_string()))?;
    if text.len() > max {
        let bytes = text.len();
        return Err(refuse(
            413,
            format!("the reply has {bytes} bytes, NATS takes {max}; ask for a smaller page"),
        ));
    }
    Ok(text.into())
}

fn not_found(what: String) -> ServiceError {
    refuse(404, what)
}

fn refuse(code: usize, status: impl Into<String>) -> ServiceError {
    // The text becomes a header.
    let status = status.into().replace(['\r', '\n'], " ");
    ServiceError { status, code }
}

#[cfg(test)]
mod tests {
    use schemas::{ShardId, ShardState};

    use super::*;

    #[test]
    fn an_empty_request_asks_for_the_first_page() {
        assert_eq!(
            decode::<GuildsRequest>(b"").unwrap(),
            GuildsRequest::default()
        );
        assert_eq!(decode::<ShardsRequest>(b"7").unwrap_err().code, 400);
        assert_eq!(
            decode::<GuildsRequest>(&[b' '; 5000]).unwrap_err().code,
            413
        );
    }

    #[test]
    fn a_reply_above_max_payload_is_refused_in_words() {
        let error = encode(&"x".repeat(100), 50).unwrap_err();
        assert_eq!(error.code, 413);
        assert!(
            error.status.contains("102 bytes") && error.status.contains("50"),
            "{error}"
        );
        assert!(encode(&"x".repeat(48), 50).is_ok());
    }

    #[test]
    fn an_error_stays_one_header_line() {
        assert_eq!(
            refuse(400, "a\r\nNats-Forged: b").status,
            "a  Nats-Forged: b"
        );
    }

    #[test]
    fn of_two_shardings_the_one_that_delivers_is_the_bots() {
        let record = |id, count, state| ShardRecord {
            state,
            ..ShardRecord::new(ShardId::new(id, count).unwrap())
        };
        let (ready, queued) = (ShardState::Ready, ShardState::Queued);
        let records = vec![
            record(0, 2, ready),
            record(1, 2, ready),
            record(0, 4, ready),
            record(1, 4, queued),
            record(2, 4, queued),
            record(3, 4, queued),
        ];
        assert_eq!(newest(records).len(), 2);
        assert!(newest(Vec::new()).is_empty());
    }
}
