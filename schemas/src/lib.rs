//! The contract between proxies, consumers and everybody else: subjects, message headers, event
//! names, control-plane messages and KV values. No I/O, no clock; only this crate spells a subject,
//! a header or a key.
//!
//! Two rules for times: KV values, which machines compare, carry Unix milliseconds in fields named
//! `…_unix_ms`; events and HTTP answers, which people read, carry RFC 3339 texts ([`Timestamp`]).

pub mod control;
pub mod directory;
pub mod event;
pub mod exit;
pub mod fleet;
pub mod health;
pub mod ids;
pub mod intents;
pub mod message;
pub mod subject;
pub mod timestamp;
pub mod workers;

pub use control::{CommandOp, CommandReply, CommandStatus, FleetVerb, GatewayCommand};
pub use directory::{
    DirectoryInstance, DirectoryKey, DirectoryStats, GuildEntry, GuildInfo, GuildPage,
    GuildsRequest, QueryKind, ShardLine, ShardPage, ShardPosition, ShardsRequest, UserInfo,
    UserKey,
};
pub use event::{
    Dispatch, EventKind, EventName, GapReason, ProxyEvent, ProxyEventKind, ProxyGap, ProxyReshard,
    ProxyShard,
};
pub use fleet::{
    Compression, FleetKey, IdentifyState, Leader, Load, Member, Plan, SessionBudget, ShardRecord,
    ShardState,
};
pub use health::{ClusterState, Health, Readiness};
pub use ids::{GuildId, IdError, ProxyId, ShardId, Snowflake};
pub use intents::{Intents, IntentsError};
pub use message::{MessageId, MessageIdError};
pub use subject::{Prefix, PrefixError, Subject, SubjectError};
pub use timestamp::Timestamp;
pub use workers::{
    ShardClaim, ShareClaim, SingletonLease, SingletonRun, WorkerGroup, WorkerMember, WorkersKey,
};
