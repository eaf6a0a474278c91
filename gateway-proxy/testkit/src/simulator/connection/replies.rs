//! Answers to ops 4, 8, 31 and 43.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::super::events::{GUILD_MEMBERS, GUILD_PRESENCES, GUILD_VOICE_STATES};
use super::super::guilds::{Entity, entity};
use super::super::session::{Body, RawFrame, Session};
use super::super::templates::Templates;
use super::Connection;

/// Members in one GUILD_MEMBERS_CHUNK.
const CHUNK_MEMBERS: u64 = 1000;
/// All members of a guild may be asked for once in this time.
const ALL_MEMBERS_EVERY: Duration = Duration::from_secs(30);
/// Longer nonces are dropped.
const NONCE_MAX: usize = 32;
/// Most ids and results of one member request.
const MEMBERS_ASKED_MAX: u64 = 100;
/// Most guilds in one soundboard request; real clients stay far below.
const SOUND_GUILDS_MAX: usize = 100;

/// When all members of a guild were last asked for, by guild.
pub(crate) type MemberRequests = HashMap<u64, Instant>;

impl Connection {
    fn dispatch(&self, session: &Session, t: &str, guild: u64, d: &[u8]) {
        let frame = RawFrame::new(&self.shared, t, guild, d);
        session.push(&self.shared, Body::Raw(Arc::new(frame)));
    }

    /// The guild a request names, where it is one of this shard; `None` closes the connection or
    /// ignores the request.
    fn asked_guild(&mut self, d: &Value) -> Option<(Arc<Session>, u32)> {
        let Some(id) = snowflake(&d["guild_id"]) else {
            self.bad_payload("request without a guild_id");
            return None;
        };
        let session = Arc::clone(self.session.as_ref()?);
        let guild = self.shared.world.index_of(id)?;
        // Discord ignores requests for guilds of other shards.
        session.guilds.contains(&guild).then_some((session, guild))
    }

    pub(super) fn voice_state(&mut self, d: &Value) {
        let Some((session, guild)) = self.asked_guild(d) else {
            return;
        };
        let id = self.shared.world.guild(guild).id;
        let bot = self.shared.config.application_id;
        let state = serde_json::json!({
            "user_id": bot.to_string(), "suppress": false, "session_id": session.id,
            "self_video": false, "self_mute": d["self_mute"] == true,
            "self_deaf": d["self_deaf"] == true, "request_to_speak_timestamp": null,
            "mute": false, "deaf": false, "channel_id": d["channel_id"],
            "guild_id": id.to_string(),
        });
        if session.intents & GUILD_VOICE_STATES != 0 {
            self.dispatch(
                &session,
                "VOICE_STATE_UPDATE",
                id,
                state.to_string().as_bytes(),
            );
        }
        if d["channel_id"].is_string() {
            let server = serde_json::json!({
                "token": "f34d1495db29f84d", "guild_id": id.to_string(),
                "endpoint": "127.0.0.1:443",
            });
            self.dispatch(
                &session,
                "VOICE_SERVER_UPDATE",
                id,
                server.to_string().as_bytes(),
            );
        }
    }

    pub(super) fn request_members(&mut self, d: &Value) {
        let named = d["user_ids"].is_array() || snowflake(&d["user_ids"]).is_some();
        let query = d["query"].as_str();
        if !named && (query.is_none() || d["limit"].as_u64().is_none()) {
            self.bad_payload("member request without query and limit, or user_ids");
            return;
        }
        let Some((session, guild)) = self.asked_guild(d) else {
            return;
        };
        let world = self.shared.world.guild(guild);
        let nonce = d["nonce"].as_str().filter(|nonce| nonce.len() <= NONCE_MAX);
        let limit = d["limit"].as_u64().unwrap_or(0);
        let count = Templates::member_count(world.bytes as usize);
        let all = !named && query == Some("") && limit == 0;
        if all && session.intents & GUILD_MEMBERS == 0 {
            return;
        }
        if d["presences"] == true && session.intents & GUILD_PRESENCES == 0 {
            return;
        }
        if all && let Some(wait) = self.all_members_wait(world.id) {
            let meta = serde_json::json!({"guild_id": world.id.to_string(), "nonce": nonce});
            let d = serde_json::json!({
                "opcode": 8, "retry_after": wait.as_secs_f64(), "meta": meta,
            });
            self.dispatch(&session, "RATE_LIMITED", 0, d.to_string().as_bytes());
            return;
        }
        if named {
            self.members_by_id(&session, world.id, nonce, &d["user_ids"]);
        } else {
            let count = if all {
                count
            } else {
                count.min(limit.clamp(1, MEMBERS_ASKED_MAX))
            };
            self.members_chunks(&session, world.id, nonce, count);
        }
    }

    /// Notes a request for all members; `Some` when it came too early.
    fn all_members_wait(&self, guild: u64) -> Option<Duration> {
        let now = Instant::now();
        let mut hub = self.shared.hub();
        match hub.member_requests.get(&guild) {
            Some(last) if *last + ALL_MEMBERS_EVERY > now => Some(*last + ALL_MEMBERS_EVERY - now),
            _ => {
                hub.member_requests.insert(guild, now);
                None
            }
        }
    }

    fn members_chunks(&self, session: &Session, guild: u64, nonce: Option<&str>, count: u64) {
        let chunks = count.div_ceil(CHUNK_MEMBERS).max(1);
        for chunk in 0..chunks {
            let mut d = Vec::with_capacity(512 * 1024);
            d.extend_from_slice(b"{\"not_found\":[],");
            push_nonce(&mut d, nonce);
            d.extend_from_slice(b"\"members\":[");
            let (from, to) = (
                chunk * CHUNK_MEMBERS,
                count.min((chunk + 1) * CHUNK_MEMBERS),
            );
            self.shared
                .templates
                .render_members(&mut d, guild, from, to);
            let tail = format!(
                "],\"guild_id\":\"{guild}\",\"chunk_index\":{chunk},\"chunk_count\":{chunks}}}"
            );
            d.extend_from_slice(tail.as_bytes());
            self.dispatch(session, "GUILD_MEMBERS_CHUNK", guild, &d);
        }
    }

    fn members_by_id(&self, session: &Session, guild: u64, nonce: Option<&str>, ids: &Value) {
        let ids: Vec<u64> = match ids {
            Value::Array(ids) => ids.iter().filter_map(snowflake).collect(),
            id => snowflake(id).into_iter().collect(),
        };
        let asked = ids.len().min(MEMBERS_ASKED_MAX as usize);
        let of_guild: HashMap<u64, u64> = (0..CHUNK_MEMBERS)
            .map(|n| (entity(Entity::User, guild, n), n))
            .collect();
        let (mut missing, mut members) = (Vec::new(), Vec::new());
        for id in &ids[..asked] {
            match of_guild.get(id) {
                Some(number) => {
                    if !members.is_empty() {
                        members.push(b',');
                    }
                    let templates = &self.shared.templates;
                    templates.render_members(&mut members, guild, *number, number + 1);
                }
                None => missing.push(id.to_string()),
            }
        }
        let mut d = format!("{{\"not_found\":{},", serde_json::json!(missing)).into_bytes();
        push_nonce(&mut d, nonce);
        d.extend_from_slice(b"\"members\":[");
        d.extend_from_slice(&members);
        let tail = format!("],\"guild_id\":\"{guild}\",\"chunk_index\":0,\"chunk_count\":1}}");
        d.extend_from_slice(tail.as_bytes());
        self.dispatch(session, "GUILD_MEMBERS_CHUNK", guild, &d);
    }

    pub(super) fn request_sounds(&mut self, d: &Value) {
        let Some(ids) = d["guild_ids"].as_array() else {
            self.bad_payload("soundboard request without guild_ids");
            return;
        };
        let Some(session) = self.session.clone() else {
            return;
        };
        for id in ids.iter().take(SOUND_GUILDS_MAX) {
            let guild = snowflake(id).and_then(|id| self.shared.world.index_of(id));
            let Some(guild) = guild else {
                continue;
            };
            if !session.guilds.contains(&guild) {
                continue;
            }
            let guild = self.shared.world.guild(guild).id;
            let sounds: Vec<Value> = (0..4).map(|n| sound(guild, n)).collect();
            let d = serde_json::json!({
                "soundboard_sounds": sounds, "guild_id": guild.to_string(),
            });
            self.dispatch(
                &session,
                "SOUNDBOARD_SOUNDS",
                guild,
                d.to_string().as_bytes(),
            );
        }
    }

    pub(super) fn request_channel_info(&mut self, d: &Value) {
        if !d["fields"].is_array() {
            self.bad_payload("channel info request without fields");
            return;
        }
        let Some((session, guild)) = self.asked_guild(d) else {
            return;
        };
        let guild = self.shared.world.guild(guild).id;
        let asked = |field: &str| {
            d["fields"]
                .as_array()
                .is_some_and(|fields| fields.iter().any(|name| name == field))
        };
        let mut channel = serde_json::json!({"id": entity(Entity::Channel, guild, 4).to_string()});
        if asked("status") {
            channel["status"] = "listening".into();
        }
        if asked("voice_start_time") {
            channel["voice_start_time"] = (self.shared.unix_ms() / 1000).into();
        }
        let d = serde_json::json!({"guild_id": guild.to_string(), "channels": [channel]});
        self.dispatch(&session, "CHANNEL_INFO", guild, d.to_string().as_bytes());
    }
}

/// An id: libraries send text or, as discord.py, a number.
fn snowflake(value: &Value) -> Option<u64> {
    match value {
        Value::String(digits) => digits.parse().ok(),
        number => number.as_u64(),
    }
}

fn push_nonce(d: &mut Vec<u8>, nonce: Option<&str>) {
    if let Some(nonce) = nonce {
        d.extend_from_slice(format!("\"nonce\":{},", Value::from(nonce)).as_bytes());
    }
}

fn sound(guild: u64, number: u64) -> Value {
    serde_json::json!({
        "name": format!("sound {number}"), "sound_id": (guild + number).to_string(),
        "volume": 1.0, "emoji_id": null, "emoji_name": "🎺", "guild_id": guild.to_string(),
        "available": true, "user_id": entity(Entity::User, guild, number).to_string(),
    })
}
