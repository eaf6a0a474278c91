//! Who may have a session: the rules of IDENTIFY and RESUME.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use schemas::ShardId;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::events::{KNOWN_INTENTS, PRIVILEGED};
use super::guilds::splitmix;
use super::ledger::{IdentifyRecord, Rule, Step};
use super::session::{Body, Params, RawFrame, Resumption, Session};
use super::state::{Hub, Order, Shared};

/// More shards than any bot has; keeps the routes small.
const SHARDS_MAX: u64 = 65_536;

/// The connection that asks.
pub(crate) struct Asker {
    pub(crate) connection: u64,
    pub(crate) params: Params,
    pub(crate) on_resume_url: bool,
    pub(crate) wake: Arc<Notify>,
}

/// Discord's answer.
pub(crate) enum Verdict {
    /// The session is this connection's.
    Session(Arc<Session>),
    /// Op 9 with `d: false`.
    Invalid,
    /// A close code.
    Close(u16, &'static str),
}

/// Judges an IDENTIFY.
pub(crate) fn identify(shared: &Shared, asker: &Asker, d: &Value) -> Verdict {
    if asker.on_resume_url {
        shared.violation(Rule::IdentifyOnResumeUrl, None, "");
    }
    let Some(token) = d["token"].as_str().filter(|_| d["properties"].is_object()) else {
        shared.violation(
            Rule::Undecodable,
            None,
            "identify without token or properties",
        );
        return Verdict::Close(4002, "Error while decoding payload.");
    };
    if let Some(refusal) = refuse_token(shared, token) {
        return refusal;
    }
    let shard = match shard_tuple(shared, d) {
        Ok(shard) => shard,
        Err(refusal) => return refusal,
    };
    let guilds: Arc<[u32]> = shared.world.of_shard(shard).into();
    if guilds.len() > shared.config.guilds_per_shard_max {
        shared.violation(
            Rule::ShardingRequired,
            Some(shard),
            format!("{} guilds", guilds.len()),
        );
        return Verdict::Close(4011, "Sharding required.");
    }
    let intents = match intents(shared, shard, d) {
        Ok(intents) => intents,
        Err(refusal) => return refusal,
    };
    let mut hub = shared.hub();
    if let Some(refusal) = spend(shared, &mut hub, shard) {
        return refusal;
    }
    let number = hub.sessions.len() as u64;
    let made = hub
        .flood_made
        .entry(shard)
        .or_insert_with(|| Arc::new(AtomicU64::new(0)));
    let made = Arc::clone(made);
    let id = session_id(shared.config.seed ^ shared.run, number);
    let session = Session::new(id, shard, intents, asker.params, guilds, made);
    let session = Arc::new(session);
    session.attach(asker.connection, Arc::clone(&asker.wake));
    session.push(shared, Body::Raw(Arc::new(ready(shared, &session))));
    if hub.muted.contains(&shard.id()) {
        session.set_muted(true);
    }
    hub.sessions.push(Arc::clone(&session));
    hub.live.insert(session.id.clone(), Arc::clone(&session));
    if let Some(handle) = hub.connections.get_mut(&asker.connection) {
        handle.session = Some(Arc::clone(&session));
    }
    shared.reroute(&hub);
    drop(hub);
    shared.step(&session, Step::Identified);
    Verdict::Session(session)
}

/// Judges a RESUME.
pub(crate) fn resume(shared: &Shared, asker: &Asker, d: &Value) -> Verdict {
    shared.counters.resumes.fetch_add(1, Ordering::Relaxed);
    if !asker.on_resume_url {
        shared.violation(Rule::ResumeOnMainUrl, None, "");
    }
    let fields = (
        d["token"].as_str(),
        d["session_id"].as_str(),
        d["seq"].as_u64(),
    );
    let (Some(token), Some(id), Some(seq)) = fields else {
        shared.violation(
            Rule::Undecodable,
            None,
            "resume without token, session_id or seq",
        );
        return Verdict::Close(4002, "Error while decoding payload.");
    };
    if let Some(refusal) = refuse_token(shared, token) {
        return refusal;
    }
    let verdict = resume_session(shared, asker, id, seq);
    if !matches!(verdict, Verdict::Session(_)) {
        shared
            .counters
            .resumes_refused
            .fetch_add(1, Ordering::Relaxed);
    }
    verdict
}

fn resume_session(shared: &Shared, asker: &Asker, id: &str, seq: u64) -> Verdict {
    let Some(session) = shared.hub().live.get(id).cloned() else {
        shared.violation(Rule::UnknownSession, None, id);
        return Verdict::Invalid;
    };
    if asker.params != session.params {
        let detail = format!("{:?} instead of {:?}", asker.params, session.params);
        shared.violation(Rule::ResumeParams, Some(session.shard), detail);
        if shared.config.strict.same_params_on_resume {
            return Verdict::Invalid;
        }
    }
    match session.resume(shared, seq, asker.connection, Arc::clone(&asker.wake)) {
        Resumption::InvalidSeq => {
            shared.violation(Rule::InvalidSeq, Some(session.shard), format!("seq {seq}"));
            Verdict::Close(4007, "Invalid seq.")
        }
        Resumption::TooLate(lost) => {
            let step = match lost {
                Some((first, last)) => Step::ReplayExceeded { first, last },
                None => Step::Expired,
            };
            shared.end_session(&session, step);
            Verdict::Invalid
        }
        Resumption::Accepted { replayed, previous } => {
            let mut hub = shared.hub();
            if let Some(handle) = hub.connections.get_mut(&asker.connection) {
                handle.session = Some(Arc::clone(&session));
            }
            let previous = previous.filter(|previous| *previous != asker.connection);
            let older = previous.and_then(|connection| hub.connections.get_mut(&connection));
            if let Some(older) = older {
                older.session = None;
                // A full queue means that the connection is being torn down anyway.
                drop(older.orders.try_send(Order::TakenOver));
            }
            drop(hub);
            if previous.is_some() {
                shared.step(&session, Step::TakenOver);
            }
            shared.step(
                &session,
                Step::Resumed {
                    from: seq,
                    replayed,
                },
            );
            Verdict::Session(session)
        }
    }
}

/// Both libraries that send `Bot ` and those that do not are around.
fn refuse_token(shared: &Shared, token: &str) -> Option<Verdict> {
    let bare = token.strip_prefix("Bot ").unwrap_or(token);
    let known = shared.config.tokens.iter().any(|valid| valid == bare);
    if known && !shared.hub().revoked {
        return None;
    }
    shared.violation(Rule::BadToken, None, "");
    Some(Verdict::Close(4004, "Authentication failed."))
}

fn shard_tuple(shared: &Shared, d: &Value) -> Result<ShardId, Verdict> {
    let bad = |detail: String| {
        shared.violation(Rule::BadShard, None, detail);
        Verdict::Close(4010, "Invalid shard.")
    };
    let (id, count) = match &d["shard"] {
        Value::Null => (0, 1),
        Value::Array(tuple) => match tuple.as_slice() {
            [id, count] => match (id.as_u64(), count.as_u64()) {
                (Some(id), Some(count)) => (id, count),
                _ => return Err(bad(format!("{tuple:?}"))),
            },
            _ => return Err(bad(format!("{tuple:?}"))),
        },
        other => return Err(bad(other.to_string())),
    };
    if count > SHARDS_MAX {
        return Err(bad(format!("{count} shards")));
    }
    let multiple = shared.config.shard_multiple.unwrap_or(1).max(1);
    if !count.is_multiple_of(u64::from(multiple)) {
        return Err(bad(format!("{count} is no multiple of {multiple}")));
    }
    // Both fit: they are at most SHARDS_MAX, or the tuple is out of range anyway.
    ShardId::new(id.min(SHARDS_MAX) as u32, count as u32).map_err(|e| bad(e.to_string()))
}

fn intents(shared: &Shared, shard: ShardId, d: &Value) -> Result<u64, Verdict> {
    let intents = d["intents"]
        .as_u64()
        .filter(|bits| bits & !KNOWN_INTENTS == 0);
    let Some(intents) = intents else {
        shared.violation(Rule::BadIntents, Some(shard), d["intents"].to_string());
        return Err(Verdict::Close(4013, "Invalid intent(s)."));
    };
    let disallowed = intents & PRIVILEGED & !shared.config.privileged_intents;
    if disallowed != 0 {
        shared.violation(
            Rule::DisallowedIntents,
            Some(shard),
            format!("{disallowed:#x}"),
        );
        return Err(Verdict::Close(4014, "Disallowed intent(s)."));
    }
    Ok(intents)
}

/// Counts the IDENTIFY against the budget and the bucket's window.
fn spend(shared: &Shared, hub: &mut Hub, shard: ShardId) -> Option<Verdict> {
    shared.refresh_budget(hub);
    shared.counters.identifies.fetch_add(1, Ordering::Relaxed);
    if hub.starts_left == 0 {
        shared.violation(Rule::SessionBudget, Some(shard), "");
        revoke(shared, hub);
        return Some(Verdict::Close(4004, "Authentication failed."));
    }
    hub.starts_left -= 1;
    let bucket = shard.bucket(shared.config.max_concurrency);
    let now = Instant::now();
    let window = shared.config.identify_window;
    let last = hub.buckets.get(&bucket).copied();
    let too_fast = last
        .filter(|last| now < *last + window)
        .map(|last| now - last);
    shared.log.identify(IdentifyRecord {
        at_us: shared.now_us(),
        shard,
        bucket,
        accepted: too_fast.is_none() || !shared.config.strict.identify_rate,
    });
    if let Some(after) = too_fast {
        let detail = format!("bucket {bucket}, {after:?} after the last");
        shared.violation(Rule::IdentifyTooFast, Some(shard), detail);
        if shared.config.strict.identify_rate {
            return Some(Verdict::Invalid);
        }
    }
    hub.buckets.insert(bucket, now);
    None
}

/// Discord terminates every session and resets the token.
fn revoke(shared: &Shared, hub: &mut Hub) {
    hub.revoked = true;
    for (_, session) in hub.live.drain() {
        session.end();
        shared.step(&session, Step::Revoked);
    }
    for handle in hub.connections.values_mut() {
        handle.session = None;
        // A full queue means that the connection is being torn down anyway.
        drop(handle.orders.try_send(Order::Revoked));
    }
    shared.reroute(hub);
}

/// 32 hexadecimal digits, another one for each session and run: a NATS that saw the same id would
/// drop the new session's events as duplicates.
fn session_id(seed: u64, number: u64) -> String {
    let high = splitmix(seed ^ splitmix(number));
    format!("{high:016x}{:016x}", splitmix(high ^ number))
}

fn ready(shared: &Shared, session: &Session) -> RawFrame {
    let application = shared.config.application_id;
    let stub = |guild: &u32| {
        let id = shared.world.guild(*guild).id;
        format!("{{\"unavailable\":true,\"id\":\"{id}\"}}")
    };
    let stubs: Vec<String> = session.guilds.iter().map(stub).collect();
    let d = format!(
        "{{\"v\":10,\"user_settings\":{{}},\"user\":{user},\"shard\":[{},{}],\
         \"session_type\":\"normal\",\"session_id\":\"{}\",\"resume_gateway_url\":\"{}\",\
         \"relationships\":[],\"private_channels\":[],\"presences\":[],\"guilds\":[{}],\
         \"guild_join_requests\":[],\"geo_ordered_rtc_regions\":[\"newark\",\"us-east\"],\
         \"game_relationships\":[],\"auth\":{{}},\"application\":{{\"id\":\"{application}\",\
         \"flags\":565248}},\"_trace\":[\"[\\\"gateway-sim-0000\\\",{{\\\"micros\\\":78351}}]\"]}}",
        session.shard.id(),
        session.shard.count(),
        session.id,
        shared.urls.resume,
        stubs.join(","),
        user = bot_user(application),
    );
    RawFrame::new(shared, "READY", 0, d.as_bytes())
}

/// The bot as READY and `/users/@me` show it.
pub(crate) fn bot_user(id: u64) -> Value {
    serde_json::json!({
        "verified": true, "username": "simulated", "primary_guild": null, "mfa_enabled": true,
        "id": id.to_string(), "global_name": null, "flags": 0, "email": null,
        "discriminator": "0001", "clan": null, "bot": true,
        "avatar": "6eba592913bcbacbb07b7df1db1afefc",
    })
}
