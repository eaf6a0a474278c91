//! What a dispatch is made of, and its bytes.

use std::sync::Arc;

use bytes::Bytes;

use super::super::events::{GUILD_PRESENCES, MESSAGE_CONTENT};
use super::super::state::Shared;
use super::super::templates::{Context, VIRTUAL_EPOCH_MS};

/// Marks an event of no guild.
pub(crate) const NO_GUILD_INDEX: u32 = u32::MAX;

/// A dispatch's content: a recipe that renders the same bytes each time, or bytes.
#[derive(Clone)]
pub(crate) enum Body {
    Template {
        template: u16,
        guild: u32,
        seed: u64,
        moment: u32,
    },
    Guild {
        guild: u32,
    },
    Raw(Arc<RawFrame>),
}

impl Body {
    /// Appends the frame as a session with these intents gets it.
    pub(super) fn render(&self, shared: &Shared, intents: u64, seq: u64, out: &mut Vec<u8>) {
        match self {
            Self::Raw(raw) => {
                out.extend_from_slice(&raw.head);
                schemas::subject::push_decimal(out, seq);
                out.extend_from_slice(&raw.tail);
            }
            Self::Guild { guild } => {
                open_frame(out, "GUILD_CREATE", seq);
                let presences = intents & GUILD_PRESENCES != 0;
                shared
                    .templates
                    .render_guild(out, &shared.world, *guild, presences);
                out.push(b'}');
            }
            Self::Template {
                template,
                guild,
                seed,
                moment,
            } => {
                open_frame(
                    out,
                    shared.templates.events[usize::from(*template)].event,
                    seq,
                );
                let stripped = intents & MESSAGE_CONTENT == 0;
                let guild = match *guild {
                    NO_GUILD_INDEX => 0,
                    guild => shared.world.guild(guild).id,
                };
                let moment = VIRTUAL_EPOCH_MS + u64::from(*moment);
                let context = Context::new(guild, *seed, moment, None);
                shared.templates.render(out, *template, stripped, context);
                out.push(b'}');
            }
        }
    }
}

/// A frame without its sequence number.
pub(crate) struct RawFrame {
    /// Up to and including `"s":`.
    pub(crate) head: Bytes,
    /// From behind the number.
    pub(crate) tail: Bytes,
    pub(crate) name: u16,
    pub(crate) guild: u64,
    pub(crate) flags: u16,
}

impl RawFrame {
    /// A frame in the order real gateways use: `t`, `s`, `op`, `d`.
    pub(crate) fn new(shared: &Shared, t: &str, guild: u64, d: &[u8]) -> Self {
        let head = format!("{{\"t\":{},\"s\":", serde_json::Value::from(t));
        let mut tail = Vec::with_capacity(d.len() + 16);
        tail.extend_from_slice(b",\"op\":0,\"d\":");
        tail.extend_from_slice(d);
        tail.push(b'}');
        let name = shared.names.number(t);
        Self {
            head: head.into(),
            tail: tail.into(),
            name,
            guild,
            flags: 0,
        }
    }
}

fn open_frame(out: &mut Vec<u8>, event: &str, seq: u64) {
    out.extend_from_slice(b"{\"t\":\"");
    out.extend_from_slice(event.as_bytes());
    out.extend_from_slice(b"\",\"s\":");
    schemas::subject::push_decimal(out, seq);
    out.extend_from_slice(b",\"op\":0,\"d\":");
}
