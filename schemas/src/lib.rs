//! The contract between proxies, consumers and everybody else: subjects, message headers, event
//! names, control-plane messages and KV values. No I/O, no clock; only this crate spells a subject,
//! a header or a key.

pub mod ids;
pub mod message;
pub mod subject;

pub use ids::{GuildId, IdError, ProxyId, ShardId};
pub use message::{MessageId, MessageIdError};
pub use subject::{Prefix, PrefixError, Subject, SubjectError};
