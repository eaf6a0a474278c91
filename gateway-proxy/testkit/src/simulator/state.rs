//! What all connections share: guilds, sessions, routes, counters and the clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemas::ShardId;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::{Config, Load};
use super::connection::MemberRequests;
use super::events::Names;
use super::faults::{ConnectFault, Fault, Moment, Target};
use super::guilds::{World, shard_of, snowflake, splitmix};
use super::interactions::{self, Interactions};
use super::ledger::{LedgerSnapshot, Log, Rule, Step};
use super::load::{LoadState, Playback, Recorded};
use super::rest::RestState;
use super::session::{Body, RawFrame, Session};
use super::templates::{Command, Context, Templates};

/// Orders waiting for one connection; a script cannot run further ahead of it.
pub(crate) const ORDERS_MAX: usize = 64;

/// Ambushes that wait; a test has some dozens.
const AMBUSHES_MAX: usize = 1024;

/// What a connection is told from outside.
#[derive(Debug)]
pub(crate) enum Order {
    /// A fault.
    Fault(Fault),
    /// A fault within the next message that is split.
    Within(Ambush),
    /// Another socket resumed its session.
    TakenOver,
    /// The session budget was exceeded.
    Revoked,
}

/// A connection as others see it.
pub(crate) struct ConnectionHandle {
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) session: Option<Arc<Session>>,
}

/// A fault that waits for its moment.
#[derive(Clone, Debug)]
pub(crate) struct Ambush {
    pub(crate) target: Target,
    pub(crate) moment: Moment,
    pub(crate) fault: Fault,
}

impl Target {
    fn names(&self, session: &Session) -> bool {
        match self {
            Self::All => true,
            Self::Shard(id) => session.shard.id() == *id,
            Self::ShardOf(tuple) => <[u32; 2]>::from(session.shard) == *tuple,
            Self::Session(id) => session.id == *id,
        }
    }
}

/// Sessions by shard count and shard number.
pub(crate) type Routes = BTreeMap<u32, Vec<Vec<Arc<Session>>>>;

/// Where everything listens.
#[derive(Clone, Debug)]
pub(crate) struct Urls {
    pub(crate) gateway: String,
    pub(crate) resume: String,
    pub(crate) api: String,
}

/// Sessions and connections; one lock for all slow decisions.
#[derive(Default)]
pub(crate) struct Hub {
    /// Every session ever, in order: the ledger.
    pub(crate) sessions: Vec<Arc<Session>>,
    /// Positions of sessions that have not ended.
    pub(crate) live: HashMap<String, Arc<Session>>,
    pub(crate) connections: BTreeMap<u64, ConnectionHandle>,
    pub(crate) last_connection: u64,
    /// Last IDENTIFY of each bucket.
    pub(crate) buckets: HashMap<u32, Instant>,
    pub(crate) starts_left: u32,
    pub(crate) starts_reset: Option<Instant>,
    pub(crate) revoked: bool,
    pub(crate) flood_made: HashMap<ShardId, Arc<AtomicU64>>,
    pub(crate) connect_faults: Vec<(ConnectFault, u32)>,
    pub(crate) refuse_until: Option<Instant>,
    pub(crate) member_requests: MemberRequests,
    /// Not yet taken up by a connection.
    pub(crate) ambushes: Vec<Ambush>,
    /// Shard numbers whose sessions get no events.
    pub(crate) muted: BTreeSet<u32>,
}

/// Totals since the start.
#[derive(Default)]
pub(crate) struct Counters {
    queued: AtomicU64,
    written: AtomicU64,
    json_bytes: AtomicU64,
    pub(crate) wire_bytes: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) identifies: AtomicU64,
    pub(crate) resumes: AtomicU64,
    pub(crate) resumes_refused: AtomicU64,
    pub(crate) heartbeats: AtomicU64,
    /// Ambushes that a connection holds.
    pub(crate) armed: AtomicU64,
}

impl Counters {
    pub(crate) fn queued(&self, events: u64) {
        self.queued.fetch_add(events, Ordering::Relaxed);
    }

    pub(crate) fn written(&self, events: u64, json_bytes: u64) {
        self.written.fetch_add(events, Ordering::Relaxed);
        self.json_bytes.fetch_add(json_bytes, Ordering::Relaxed);
    }

    pub(crate) fn written_so_far(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub(crate) fn queued_so_far(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }

    pub(crate) fn json_bytes_so_far(&self) -> u64 {
        self.json_bytes.load(Ordering::Relaxed)
    }
}

/// Everything that is shared.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) urls: Urls,
    pub(crate) world: World,
    pub(crate) names: Names,
    pub(crate) templates: Templates,
    pub(crate) playback: Option<Playback>,
    pub(crate) log: Log,
    pub(crate) counters: Counters,
    pub(crate) interactions: Interactions,
    pub(crate) rest: RestState,
    pub(crate) cancel: CancellationToken,
    pub(crate) runtime: Handle,
    pub(crate) load_changed: Notify,
    /// `shards` of `/gateway/bot`.
    pub(crate) recommended: AtomicU32,
    /// Number of GUILD_CREATE in `names`.
    pub(crate) guild_create: u16,
    /// The frame of RESUMED.
    pub(crate) resumed: Arc<RawFrame>,
    /// Tells runs with the same seed apart.
    pub(crate) run: u64,
    command_template: u16,
    started: Instant,
    started_unix_ms: u64,
    load: Mutex<Arc<LoadState>>,
    load_generation: AtomicU64,
    routes: Mutex<Arc<Routes>>,
    hub: Mutex<Hub>,
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        urls: Urls,
        playback: Option<Playback>,
        names: Names,
    ) -> Self {
        let templates = Templates::new(&names, config.application_id);
        let command_template = templates
            .find("INTERACTION_CREATE")
            .expect("the templates hold slash commands");
        let resumed = RawFrame {
            head: bytes::Bytes::from_static(b"{\"t\":\"RESUMED\",\"s\":"),
            tail: bytes::Bytes::from_static(
                b",\"op\":0,\"d\":{\"_trace\":[\"[\\\"gateway-sim-0000\\\",{\\\"micros\\\":1542}]\"]}}",
            ),
            name: names.number("RESUMED"),
            guild: 0,
            flags: 0,
        };
        let hub = Hub {
            starts_left: config.session_starts.remaining,
            starts_reset: Some(Instant::now() + config.session_starts.reset_after),
            ..Hub::default()
        };
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            world: World::new(config.seed, config.guilds, config.guild_bytes),
            load: Mutex::new(Arc::new(LoadState {
                load: config.load,
                generation: 0,
            })),
            interactions: Interactions::new(config.seed),
            rest: RestState::default(),
            guild_create: names.number("GUILD_CREATE"),
            resumed: Arc::new(resumed),
            recommended: AtomicU32::new(config.shards),
            config,
            urls,
            names,
            templates,
            playback,
            command_template,
            log: Log::default(),
            counters: Counters::default(),
            cancel: CancellationToken::new(),
            runtime: Handle::current(),

            load_changed: Notify::new(),
            started: Instant::now(),
            started_unix_ms: unix.as_millis() as u64,
            run: splitmix(unix.as_nanos() as u64 ^ u64::from(std::process::id()) << 32),
            load_generation: AtomicU64::new(0),
            routes: Mutex::default(),
            hub: Mutex::new(hub),
        }
    }

    /// µs since the start.
    pub(crate) fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// The wall clock, as far as snowflakes carry it.
    pub(crate) fn unix_ms(&self) -> u64 {
        self.started_unix_ms + self.now_us() / 1000
    }

    pub(crate) fn replay_ttl_us(&self) -> u64 {
        self.config.replay_ttl.as_micros() as u64
    }

    pub(crate) fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn load(&self) -> Arc<LoadState> {
        Arc::clone(&self.load.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn load_generation(&self) -> u64 {
        self.load_generation.load(Ordering::Relaxed)
    }

    /// Replaces the load; floods count their events anew.
    pub(crate) fn set_load(&self, load: Load) {
        let sessions: Vec<Arc<Session>> = {
            let hub = self.hub();
            hub.flood_made
                .values()
                .for_each(|made| made.store(0, Ordering::Relaxed));
            hub.live.values().cloned().collect()
        };
        {
            let mut current = self.load.lock().unwrap_or_else(PoisonError::into_inner);
            let generation = current.generation + 1;
            *current = Arc::new(LoadState { load, generation });
            self.load_generation.store(generation, Ordering::Relaxed);
        }
        self.load_changed.notify_one();
        sessions.iter().for_each(|session| session.wake());
    }

    pub(crate) fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Recomputes the routes after sessions came or went.
    pub(crate) fn reroute(&self, hub: &Hub) {
        let mut routes = Routes::new();
        for session in hub
            .sessions
            .iter()
            .filter(|session| hub.live.contains_key(&session.id))
        {
            let count = session.shard.count();
            let shards = routes
                .entry(count)
                .or_insert_with(|| vec![Vec::new(); count as usize]);
            shards[session.shard.id() as usize].push(Arc::clone(session));
        }
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(routes);
    }

    /// Calls `each` with every session that a guild's events go to; guild 0 is no guild.
    pub(crate) fn route(&self, guild: u64, mut each: impl FnMut(&Session)) -> usize {
        let mut reached = 0;
        for (count, shards) in self.routes().iter() {
            for session in &shards[shard_of(guild, *count) as usize] {
                each(session);
                reached += 1;
            }
        }
        reached
    }

    pub(crate) fn publish_template(&self, body: &Body) {
        let Body::Template {
            template, guild, ..
        } = body
        else {
            return;
        };
        let template = &self.templates.events[usize::from(*template)];
        let guild = if template.direct {
            0
        } else {
            self.world.guild(*guild).id
        };
        self.route(guild, |session| {
            if template.intents == 0 || template.intents & session.intents != 0 {
                session.push(self, body.clone());
            }
        });
    }

    pub(crate) fn publish_raw(&self, recorded: &Recorded) {
        self.route(recorded.frame.guild, |session| {
            if recorded.intents == 0 || recorded.intents & session.intents != 0 {
                session.push(self, Body::Raw(Arc::clone(&recorded.frame)));
            }
        });
    }

    /// Somebody types a slash command, in a guild or in a direct message.
    pub(crate) fn type_command(&self, guild: Option<u32>, text: &str) -> Option<u64> {
        let name = interactions::name(text)?;
        let guild_id = guild.map_or(0, |guild| self.world.guild(guild).id);
        let routes = self.routes();
        let count = *routes.keys().next()?;
        let now_ms = self.unix_ms();
        let serial = self.interactions.next_serial();
        let id = snowflake(now_ms, serial);
        let token = self.interactions.token(id);
        let command_id = self.interactions.command_id(name);
        let options = interactions::options(text, self.registered(guild_id, name).as_ref());
        let command = Command {
            id,
            token: &token,
            name,
            command_id,
            options: &options,
        };
        let context = Context::new(guild_id, id, now_ms, Some(&command));
        let mut d = Vec::with_capacity(2048);
        self.templates
            .render(&mut d, self.command_template, false, context);
        let frame = Arc::new(RawFrame::new(self, "INTERACTION_CREATE", guild_id, &d));
        let shard = ShardId::new(shard_of(guild_id, count), count).ok()?;
        self.interactions
            .typed(id, token, name, shard, self.now_us());
        let reached = self.route(guild_id, |session| {
            session.push(self, Body::Raw(Arc::clone(&frame)));
        });
        if reached == 0 {
            self.interactions.forget(id);
            return None;
        }
        Some(id)
    }

    /// What the application registered under this name, for the guild or for all.
    fn registered(&self, guild: u64, name: &str) -> Option<serde_json::Value> {
        let all = self.rest.commands();
        let key = serde_json::Value::from(name).to_string();
        let scopes = [guild, 0].into_iter().filter_map(|scope| all.get(&scope));
        scopes.filter_map(|scope| scope.get(&key)).next().cloned()
    }

    /// GUILD_DELETE of a guild in an outage.
    pub(crate) fn guild_unavailable(&self, guild: u32) -> RawFrame {
        let id = self.world.guild(guild).id;
        let d = format!("{{\"unavailable\":true,\"id\":\"{id}\"}}");
        RawFrame::new(self, "GUILD_DELETE", id, d.as_bytes())
    }

    /// Puts a guild into an outage or brings it back.
    pub(crate) fn set_outage(&self, guild: u32, unavailable: bool) {
        if !self.world.set_unavailable(guild, unavailable) {
            return;
        }
        let gone = unavailable.then(|| Arc::new(self.guild_unavailable(guild)));
        self.route(self.world.guild(guild).id, |session| {
            if session.intents & super::events::GUILDS != 0 {
                let body = match &gone {
                    Some(frame) => Body::Raw(Arc::clone(frame)),
                    None => Body::Guild { guild },
                };
                session.push(self, body);
            }
        });
    }

    /// Connections that a target names, with their orders' way in.
    pub(crate) fn targets(&self, target: &Target) -> Vec<mpsc::Sender<Order>> {
        let hub = self.hub();
        let hit = |handle: &&ConnectionHandle| match &handle.session {
            Some(session) => target.names(session),
            None => *target == Target::All,
        };
        hub.connections
            .values()
            .filter(hit)
            .map(|handle| handle.orders.clone())
            .collect()
    }

    /// Lays an ambush; false when there are too many.
    pub(crate) fn lay_ambush(&self, ambush: Ambush) -> bool {
        let mut hub = self.hub();
        if hub.ambushes.len() >= AMBUSHES_MAX {
            return false;
        }
        hub.ambushes.push(ambush);
        true
    }

    /// The first ambush that waits for what this session just did.
    pub(crate) fn take_ambush(&self, session: &Session, resumed: bool) -> Option<Ambush> {
        let mut hub = self.hub();
        let meant = |ambush: &Ambush| {
            let moment = match ambush.moment {
                Moment::Resume(_) => resumed,
                Moment::Identify(_) => !resumed,
                Moment::Message => true,
            };
            moment && ambush.target.names(session)
        };
        let at = hub.ambushes.iter().position(meant)?;
        self.counters.armed.fetch_add(1, Ordering::Relaxed);
        Some(hub.ambushes.remove(at))
    }

    /// Ambushes that have not struck.
    pub(crate) fn ambushes(&self) -> usize {
        let hub = self.hub();
        hub.ambushes.len() + self.counters.armed.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn violation(&self, rule: Rule, shard: Option<ShardId>, detail: impl Into<String>) {
        self.log
            .violation(self.now_us(), rule, shard, detail.into());
    }

    pub(crate) fn step(&self, session: &Session, step: Step) {
        self.log
            .step(self.now_us(), &session.id, session.shard, step);
    }

    /// Ends a session and takes it off the routes.
    pub(crate) fn end_session(&self, session: &Session, step: Step) {
        let ended = session.end();
        let mut hub = self.hub();
        let was_live = hub.live.remove(&session.id).is_some();
        if was_live {
            self.reroute(&hub);
        }
        drop(hub);
        if ended || was_live {
            self.step(session, step);
        }
    }

    /// Drops old events and sessions.
    pub(crate) fn housekeep(&self) {
        let live: Vec<Arc<Session>> = self.hub().live.values().cloned().collect();
        for session in live {
            if let Some(step) = session.housekeep(self) {
                self.end_session(&session, step);
            }
        }
        self.interactions.housekeep(self.now_us());
    }

    pub(crate) fn ledger(&self) -> LedgerSnapshot {
        let sessions: Vec<Arc<Session>> = self.hub().sessions.clone();
        let mut snapshot = LedgerSnapshot {
            sessions: sessions.iter().map(|session| session.record()).collect(),
            names: self.names.all(),
            ..LedgerSnapshot::default()
        };
        self.log.copy_into(&mut snapshot);
        snapshot
    }

    /// The wall-clock budget period has ended: it begins anew.
    pub(crate) fn refresh_budget(&self, hub: &mut Hub) -> Duration {
        let now = Instant::now();
        let reset = hub.starts_reset.unwrap_or(now);
        if reset > now {
            return reset - now;
        }
        hub.starts_left = self.config.session_starts.total;
        hub.starts_reset = Some(now + self.config.session_starts.reset_after);
        self.config.session_starts.reset_after
    }
}
