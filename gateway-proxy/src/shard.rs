//! One task per shard: drives the session machine of `core::session` against a socket, the identify
//! queue and the publisher. Waits for one cause, names it, decides, acts.
//!
//! It must not decide what a frame, a close or a deadline means, and it awaits no acknowledgement.

mod intake;
mod leave;
mod lost;
mod patience;
mod silence;

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gateway_proxy_core::close::FatalClose;
use gateway_proxy_core::fleet::limiter::Permit;
use gateway_proxy_core::outgoing::{self, IdentifyOptions};
use gateway_proxy_core::session::{
    Action, CloseReason, EndReason, Endpoint, Phase, Resumable, Session,
};
use gateway_proxy_core::silence::{Limits, Silence};
use schemas::control::{IdentifyOutcome, IdentifyPriority};
use schemas::{ProxyEvent, ProxyShard, ShardId, ShardState, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::commands::{Commands, Port};
use crate::compression::Inflater;
use crate::config::{Compression, EventFilter};
use crate::exit::{self, Fatal};
use crate::gateway_url::GatewayUrl;
use crate::identify::Identifies;
use crate::metrics::{CloseCode, Heartbeat, Metrics, ReconnectReason};
use crate::ownership::{Owner, Ownership};
use crate::publisher::{Lane, Outbound, Publisher, Turn};
use crate::status::{ProcessStatus, ShardStatus, unix_ms};
use crate::transport::{DialError, Dialer, Socket};
use intake::{Intake, Took};
pub(crate) use leave::{Leave, Stage};
pub(crate) use lost::Lost;
use patience::{AwaitedTurn, awaited_turn, next_turn, overloaded_at, passing_on};

/// What all shards of a process share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) dialer: Dialer,
    pub(crate) gateway: Arc<GatewayUrl>,
    pub(crate) token: SecretString,
    pub(crate) identify: IdentifyOptions,
    pub(crate) compression: Compression,
    pub(crate) filter: EventFilter,
    pub(crate) identifies: Arc<Identifies>,
    pub(crate) silent_after: Option<Duration>,
    pub(crate) process: Arc<ProcessStatus>,
    pub(crate) commands: Arc<Commands>,
    pub(crate) ownership: Ownership,
    pub(crate) metrics: Metrics,
    pub(crate) proxy: schemas::ProxyId,
    /// Where a shard that nothing but another configuration helps says so.
    pub(crate) fatal: mpsc::Sender<Fatal>,
}

/// What another process needs to carry the shard on; read by the recorder.
#[derive(Debug)]
pub(crate) struct SessionCell(Mutex<Option<(u16, Resumable)>>);

impl SessionCell {
    pub(crate) const fn new(session: Option<(u16, Resumable)>) -> Self {
        Self(Mutex::new(session))
    }

    pub(crate) fn get(&self) -> Option<(u16, Resumable)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, session: Option<(u16, Resumable)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = session;
    }
}

/// A shard's parts that others look at.
#[derive(Clone, Debug)]
pub(crate) struct ShardParts {
    pub(crate) lane: Arc<Lane>,
    pub(crate) status: Arc<ShardStatus>,
    pub(crate) session: Arc<SessionCell>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) lost: Arc<Lost>,
    pub(crate) leave: Leave,
}

/// The connection, as far as it is.
enum Link {
    Down,
    Dialing(Pin<Box<dyn Future<Output = Dialed> + Send>>),
    Up(Box<(Socket, Inflater)>),
}

/// How a dial ended.
enum Dialed {
    Connected(Box<Socket>),
    Failed(DialError),
    /// Another process took the shard.
    TakenOver(String),
}

/// What can happen.
enum Wake {
    Dialed(Dialed),
    Took(Took),
    Granted(Permit),
    Deadline,
    /// The publish buffer has room again, and it is our turn.
    Room(Turn),
    /// A user's command came in, or may be sent.
    Command,
    /// The publish buffer stayed full, perhaps for too long.
    Overloaded,
    Stage,
    /// Another process took the shard.
    TakenOver(String),
    /// An operator wants another connection.
    Ordered(Order),
}

/// What an operator may want of a running shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Connect anew and RESUME.
    Reconnect,
    /// End the session and begin another.
    Renew,
}

/// Orders that wait for a shard's task; more are refused.
pub(crate) const ORDERS_MAX: usize = 4;

/// Drives one shard until the process releases it or Discord refuses it for good.
pub(crate) struct ShardTask {
    shared: Arc<Shared>,
    parts: ShardParts,
    session: Session,
    intake: Intake,
    silence: Option<Silence>,
    grant: Option<Pin<Box<dyn Future<Output = Permit> + Send>>>,
    // Number of the grant whose IDENTIFY is to be sent, and of the one whose READY is awaited.
    permitted: Option<u64>,
    identified: Option<u64>,
    stage: Stage,
    full_since: Option<Instant>,
    // Our place in the queue for room, kept over other wake-ups.
    turn: Option<AwaitedTurn>,
    // The socket may hold more, and others wait for room.
    yields: bool,
    // What ended the last connection, for the counter and the state change.
    ended_by: String,
    connected_before: bool,
    had_session: bool,
    // Sequences that never came, as far as they are logged.
    skipped: u64,
    // The standstills of the process until which the shard is known to be ours.
    confirmed: Arc<AtomicU64>,
    orders: mpsc::Receiver<Order>,
    commands: Port,
}

impl ShardTask {
    /// `alive_ms`: when the session was last known to be followed, unix ms.
    pub(crate) fn new(
        shared: Arc<Shared>,
        parts: ShardParts,
        session: Session,
        alive_ms: u64,
        orders: mpsc::Receiver<Order>,
    ) -> Self {
        let intake = Intake::new(Arc::clone(&shared), parts.clone(), alive_ms);
        let had_session = session.id().is_some();
        let silence = shared.silent_after;
        let silence = silence.map(|shortest| Silence::new(Limits { shortest }));
        let commands = shared.commands.open(session.shard());
        Self {
            shared,
            parts,
            session,
            intake,
            silence,
            grant: None,
            permitted: None,
            identified: None,
            stage: Stage::Running,
            full_since: None,
            turn: None,
            yields: false,
            ended_by: "start".to_owned(),
            connected_before: false,
            had_session,
            skipped: 0,
            confirmed: Arc::default(),
            orders,
            commands,
        }
    }

    /// Runs to the end.
    pub(crate) async fn run(mut self) {
        let mut link = Link::Down;
        loop {
            if self.perform(&mut link).await.is_break() {
                return;
            }
            self.publish_state();
            let wake = self.wait(&mut link).await;
            self.handle(wake, &mut link);
        }
    }

    const fn shard(&self) -> ShardId {
        self.session.shard()
    }

    async fn wait(&mut self, link: &mut Link) -> Wake {
        let reading = self.update_reading();
        self.note_listening(reading, Instant::now());
        let deadline = earlier(self.session.poll_timeout(), self.silence_deadline());
        let deadline = until(deadline);
        let overloaded = until(self.overloaded_at());
        let next_stage = match self.stage {
            Stage::Running => Stage::Draining,
            Stage::Draining | Stage::Releasing => Stage::Releasing,
        };
        if self.full_since.is_some() && self.turn.is_none() {
            self.turn = Some(awaited_turn(&self.parts.publisher));
        }
        let ready = self.session.phase() == Phase::Ready;
        let Self {
            parts,
            session,
            intake,
            grant,
            turn,
            orders,
            commands,
            ..
        } = self;
        let turn = next_turn(turn);
        let commands = commands.due(ready);
        let grant = async {
            match grant {
                Some(grant) => grant.await,
                None => std::future::pending().await,
            }
        };
        let connection = async {
            match link {
                Link::Dialing(dial) => Wake::Dialed(dial.await),
                Link::Up(up) if reading => Wake::Took(intake.take_frames(up, session).await),
                Link::Up(_) | Link::Down => std::future::pending().await,
            }
        };
        tokio::select! {
            // 1: heartbeats and time-outs: late ones cost the connection.
            biased;
            () = deadline => Wake::Deadline,
            // 2: the shard is let go of.
            () = parts.leave.reached(next_stage) => Wake::Stage,
            proxy = parts.lost.lost() => Wake::TakenOver(proxy),
            Some(order) = orders.recv() => Wake::Ordered(order),
            // 3: the right to identify: its window passes.
            permit = grant => Wake::Granted(permit),
            // 4: users' commands: few, by their budget.
            () = commands => Wake::Command,
            // 5: frames and the dial. Frames that ask for no decision are taken without coming back here.
            wake = connection => wake,
            // 6: back-pressure.
            turn = turn => Wake::Room(turn),
            () = overloaded => Wake::Overloaded,
        }
    }

    /// Whether the socket is read now; tells the session when that ends. Who waits for room does so
    /// until its turn.
    fn update_reading(&mut self) -> bool {
        let room = self.parts.publisher.has_room();
        if self.full_since.is_none() && (self.yields || !room) {
            let now = Instant::now();
            self.full_since = Some(now);
            self.session.handle_reading(false, now);
            if !room {
                self.shared.metrics.window_full.increment();
                debug!(shard = %self.shard(), "publish buffer full: the socket is not read");
            }
        }
        self.yields = false;
        self.full_since.is_none() && self.stage == Stage::Running
    }

    fn handle(&mut self, wake: Wake, link: &mut Link) {
        let now = Instant::now();
        let (generation, acked) = self.parts.lane.checkpoint();
        self.session.handle_acked(generation, acked);
        match wake {
            Wake::Dialed(Dialed::Connected(socket)) => {
                debug!(shard = %self.shard(), "connected");
                self.connected(*socket, link, now);
            }
            Wake::Dialed(Dialed::Failed(error)) => {
                *link = Link::Down;
                warn!(shard = %self.shard(), %error, "cannot connect to the gateway");
                self.note_end(ReconnectReason::ConnectFailed, error.to_string());
                self.shared.gateway.doubt();
                self.session.handle_connect_failed(fastrand::f64(), now);
            }
            Wake::Dialed(Dialed::TakenOver(proxy)) | Wake::TakenOver(proxy) => {
                self.taken_over(&proxy);
            }
            Wake::Took(Took::More) => self.yields = !self.parts.publisher.is_unclaimed(),
            Wake::Took(Took::Closed { code, reason }) => {
                *link = Link::Down;
                self.closed(code, &reason, now);
            }
            Wake::Granted(permit) => self.granted(permit, now),
            Wake::Deadline => {
                self.session.handle_timeout(fastrand::f64(), now);
                self.watch_silence(now);
            }
            Wake::Room(turn) => {
                self.turn = None;
                let more = self.take_turn(link, now);
                drop(turn);
                if more && !self.parts.publisher.is_open() {
                    // To the end of the queue.
                    self.full_since = Some(now);
                } else {
                    self.full_since = None;
                    self.session
                        .handle_reading(self.stage == Stage::Running, now);
                }
            }
            Wake::Command => {}
            Wake::Overloaded => {
                // Not if something was stored since the deadline was set.
                if self.overloaded_at().is_some_and(|at| at <= now) {
                    self.full_since = Some(now);
                    self.session.pause(Duration::ZERO, now);
                }
            }
            Wake::Stage => self.handle_stage(now),
            Wake::Ordered(order) => self.obey(order, now),
        }
        // While draining nothing new is begun: a session made now would be nobody's.
        if self.stage >= Stage::Draining && self.session.phase() != Phase::Ready {
            self.session.stop();
        }
    }

    /// When to let the connection go because nothing is stored any more.
    fn overloaded_at(&self) -> Option<Instant> {
        overloaded_at(self.full_since, self.parts.publisher.last_progress())
    }

    /// Takes what the socket holds already; the next shard waits. True: it may hold more. Who has read
    /// all leaves the queue, or shards without anything to read would take turns for ever.
    fn take_turn(&mut self, link: &mut Link, now: Instant) -> bool {
        let Link::Up(up) = link else { return false };
        if self.stage != Stage::Running {
            return false;
        }
        let took = self.intake.take_held(up, &mut self.session);
        if let Some(Took::Closed { code, reason }) = took {
            *link = Link::Down;
            self.closed(code, &reason, now);
            return false;
        }
        took.is_some()
    }

    fn connected(&mut self, socket: Socket, link: &mut Link, now: Instant) {
        let inflater = match self.shared.compression {
            Compression::Zstd => Inflater::zstd(),
            Compression::Zlib => Ok(Inflater::zlib()),
            Compression::None => Ok(Inflater::none()),
        };
        match inflater {
            Ok(inflater) => {
                *link = Link::Up(Box::new((socket, inflater)));
                self.session.handle_connected(now);
            }
            Err(error) => {
                warn!(shard = %self.shard(), %error, "cannot decompress");
                *link = Link::Down;
                self.session.handle_connect_failed(fastrand::f64(), now);
            }
        }
    }

    fn obey(&mut self, order: Order, now: Instant) {
        info!(shard = %self.shard(), ?order, "an operator wants another connection");
        match order {
            Order::Reconnect => self.session.reconnect(now),
            Order::Renew => self.session.renew(now),
        }
    }

    fn handle_stage(&mut self, now: Instant) {
        self.stage = self.parts.leave.stage();
        if self.stage >= Stage::Releasing {
            self.session.stop();
        } else {
            // Events stay in the socket, and Discord's replay buffer, for whoever comes next.
            self.session.handle_reading(false, now);
        }
    }

    fn closed(&mut self, code: Option<u16>, reason: &str, now: Instant) {
        self.shared.metrics.closes.add(CloseCode::of(code));
        info!(shard = %self.shard(), code, reason, "the gateway closed the connection");
        let (label, text) = match code {
            Some(code) => (ReconnectReason::ServerClosed, format!("closed with {code}")),
            None => (ReconnectReason::ConnectionLost, reason.to_owned()),
        };
        self.note_end(label, text);
        self.session.handle_closed(code, fastrand::f64(), now);
    }

    fn note_end(&mut self, reason: ReconnectReason, text: String) {
        self.shared.metrics.reconnects.add(reason);
        self.ended_by = text;
    }

    /// Does what the session decided. `Break`: the shard is done.
    async fn perform(&mut self, link: &mut Link) -> std::ops::ControlFlow<()> {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Connect(endpoint) => self.connect(&endpoint, link),
                Action::RequestIdentify => self.request_grant(),
                Action::CancelIdentify => self.grant = None,
                Action::Heartbeat { seq } => {
                    self.shared.metrics.heartbeats.add(Heartbeat::Sent);
                    self.send(outgoing::heartbeat(seq), link).await;
                }
                Action::Identify => self.identify(link).await,
                Action::Resume { session_id, seq } => {
                    info!(shard = %self.shard(), session_id, seq, "resuming");
                    let token = self.shared.token.expose_secret();
                    self.send(outgoing::resume(token, &session_id, seq), link)
                        .await;
                }
                Action::Close { code, reason } => self.close(code, reason, link).await,
                Action::Fatal(fatal) => {
                    self.refused(fatal);
                    return std::ops::ControlFlow::Break(());
                }
            }
        }
        self.send_commands(link).await;
        if self.session.phase() == Phase::Stopped {
            if let Some(proxy) = self.parts.lost.to() {
                self.parts.status.set_state(ShardState::Failed);
                // Not `ended_by`: that is the closing of the connection which followed.
                let reason = format!("taken over by {proxy}");
                self.parts.status.set_reason(reason);
            } else {
                self.publish_state();
            }
            return std::ops::ControlFlow::Break(());
        }
        std::ops::ControlFlow::Continue(())
    }

    fn connect(&mut self, endpoint: &Endpoint, link: &mut Link) {
        let url = match endpoint {
            Endpoint::Gateway => self.shared.gateway.get(),
            Endpoint::Resume(url) => url.clone(),
        };
        if self.connected_before {
            self.parts.status.count_reconnect();
        }
        self.connected_before = true;
        debug!(shard = %self.shard(), url, "connecting");
        let shared = Arc::clone(&self.shared);
        let publisher = Arc::clone(&self.parts.publisher);
        let shard = self.shard();
        let confirmed = Arc::clone(&self.confirmed);
        *link = Link::Dialing(Box::pin(async move {
            // Without room nothing could be read, and Discord keeps the events meanwhile.
            drop(publisher.room().await);
            let standstills = shared.ownership.standstills();
            if !shared.ownership.fence().holds() {
                let reason = "the lease of this process ended".to_owned();
                return Dialed::Failed(DialError::NotConfirmed { reason });
            }
            match shared.ownership.of(shard).await {
                Owner::Us => confirmed.store(standstills, Ordering::Release),
                Owner::Other { proxy } => return Dialed::TakenOver(proxy),
                // While NATS is away nobody takes the shard from its checkpoint, and Discord's events
                // are better in our buffer than in none. Not so when it may be taken already.
                Owner::Unknown(reason) if confirmed.load(Ordering::Acquire) == standstills => {
                    debug!(%shard, reason, "nobody says whose the shard is: still ours");
                }
                Owner::Unknown(reason) => {
                    return Dialed::Failed(DialError::NotConfirmed { reason });
                }
            }
            match shared.dialer.dial(&url).await {
                Ok(socket) => Dialed::Connected(Box::new(socket)),
                Err(error) => Dialed::Failed(error),
            }
        }));
    }

    /// The successor has the session now; taking it back would be a fight without an end.
    fn taken_over(&mut self, proxy: &str) {
        warn!(shard = %self.shard(), proxy, "another process took the shard: letting it go");
        self.parts.lost.lose(proxy.to_owned());
        self.ended_by = format!("taken over by {proxy}");
        self.session.stop();
    }

    fn request_grant(&mut self) {
        let priority = if self.had_session {
            IdentifyPriority::Failed
        } else {
            IdentifyPriority::Start
        };
        let identifies = Arc::clone(&self.shared.identifies);
        let shard = self.shard();
        self.grant = Some(Box::pin(
            async move { identifies.grant(shard, priority).await },
        ));
    }

    /// A grant ends, and so may the right to act at all: whoever has the shard then identifies it.
    fn granted(&mut self, permit: Permit, now: Instant) {
        self.grant = None;
        let grant = permit.grant;
        if !permit.is_good(now) || !self.shared.ownership.fence().holds() {
            self.report(grant, IdentifyOutcome::Unused);
            self.request_grant();
        } else if self.session.handle_identify_granted(now) {
            self.permitted = Some(grant);
        } else {
            self.report(grant, IdentifyOutcome::Unused);
        }
    }

    fn report(&self, grant: u64, outcome: IdentifyOutcome) {
        self.shared.identifies.report(self.shard(), grant, outcome);
    }

    /// Tells what became of the last IDENTIFY, once that is clear.
    fn settle_identify(&mut self) {
        let Some(grant) = self.identified else { return };
        let outcome = match self.session.phase() {
            Phase::Identifying => return,
            Phase::Ready => IdentifyOutcome::Ready,
            Phase::Waiting
            | Phase::Connecting
            | Phase::AwaitingHello
            | Phase::AwaitingGrant
            | Phase::Resuming
            | Phase::Stopped
            | Phase::Fatal => IdentifyOutcome::Failed,
        };
        self.identified = None;
        self.report(grant, outcome);
    }

    async fn identify(&mut self, link: &mut Link) {
        info!(shard = %self.shard(), "identifying");
        self.shared.metrics.identifies.increment();
        self.parts.status.count_identify();
        self.had_session = true;
        let token = self.shared.token.expose_secret();
        match outgoing::identify(token, self.shard(), &self.shared.identify) {
            Ok(payload) => self.send(payload, link).await,
            // Checked at start; a presence cannot grow meanwhile.
            Err(error) => warn!(shard = %self.shard(), %error, "IDENTIFY was not sent"),
        }
        self.identified = self.permitted.take();
        if let Some(grant) = self.identified {
            self.shared.identifies.report_sent(self.shard(), grant);
        }
    }

    async fn send(&mut self, payload: String, link: &mut Link) {
        let Link::Up(up) = link else { return };
        let sent = passing_on(&mut self.turn, up.0.send(payload)).await;
        if let Err(reason) = sent {
            *link = Link::Down;
            self.closed(None, &reason, Instant::now());
        }
    }

    async fn send_commands(&mut self, link: &mut Link) {
        while let Some((ticket, payload)) = self.commands.next(&mut self.session) {
            self.send(payload, link).await;
            self.commands.sent(ticket, matches!(link, Link::Up(_)));
        }
    }

    async fn close(&mut self, code: u16, reason: CloseReason, link: &mut Link) {
        info!(shard = %self.shard(), code, reason = reason.as_str(), "closing the connection");
        self.note_end(reason.into(), reason.as_str().to_owned());
        if let Link::Up(up) = std::mem::replace(link, Link::Down) {
            passing_on(&mut self.turn, up.0.close(code)).await;
        }
    }

    fn refused(&mut self, fatal: FatalClose) {
        let fatal_text = fatal.to_string();
        error!(shard = %self.shard(), reason = fatal_text, "Discord refuses the shard for good");
        self.ended_by = fatal_text;
        self.publish_state();
        // The first reason ends the process; it may have been said already.
        drop(
            self.shared
                .fatal
                .try_send(exit::gateway_close(self.shard(), fatal)),
        );
    }

    /// Shows the session's state, and stores a marker when the shard comes up or goes down.
    fn publish_state(&mut self) {
        self.settle_identify();
        let state = state_of(self.session.phase());
        let status = &self.parts.status;
        if let Some(latency) = self.session.latency() {
            status.set_latency(latency);
        }
        match self.session.acked() {
            Some(acked) => status.set_acked_seq(acked),
            None => status.clear_session(),
        }
        let skipped = self.session.skipped();
        if skipped > self.skipped {
            let sequences = skipped - self.skipped;
            error!(shard = %self.shard(), sequences, "Discord skipped sequences, also when asked again: events may be lost");
            self.skipped = skipped;
        }
        let previous = status.state();
        if previous == state {
            return;
        }
        self.parts.session.set(
            self.session
                .resumable()
                .map(|known| (self.session.generation(), known)),
        );
        debug!(shard = %self.shard(), %previous, %state, "shard state");
        if state.is_ready() {
            info!(shard = %self.shard(), session_id = self.session.id(), "shard is ready");
        }
        status.set_state(state);
        if !state.is_ready() {
            status.set_reason(self.ended_by.clone());
        }
        let told = |state: ShardState| {
            matches!(
                state,
                ShardState::Ready | ShardState::Disconnected | ShardState::Failed
            )
        };
        if told(state) && !(previous == ShardState::Connecting && state == ShardState::Disconnected)
        {
            self.store_state_change(state, previous);
        }
    }

    fn store_state_change(&self, state: ShardState, previous: ShardState) {
        let at = Timestamp::from_unix_ms(unix_ms());
        let event = ProxyEvent::Shard(ProxyShard {
            shard: self.shard(),
            state,
            previous,
            reason: if state.is_ready() {
                String::new()
            } else {
                self.ended_by.clone()
            },
            proxy: Some(self.shared.proxy.clone()),
            at,
        });
        let seq = self.session.last_seq().unwrap_or(0);
        // A session that just ended is still where the shard's events end.
        let ended = self.session.ended();
        let checkpoint = self
            .session
            .id()
            .map(|id| (id, seq))
            .or_else(|| ended.map(|ended| (ended.session_id.as_str(), ended.last_seq)));
        let unique = format!("{}-{:x}", at.unix_ms(), fastrand::u32(..));
        let marker = Outbound::synthetic(
            &self.parts.lane,
            checkpoint,
            &unique,
            &event,
            Instant::now(),
        );
        self.parts.publisher.hand_over(marker);
    }
}

const fn state_of(phase: Phase) -> ShardState {
    match phase {
        Phase::Waiting | Phase::Stopped => ShardState::Disconnected,
        Phase::Connecting | Phase::AwaitingHello => ShardState::Connecting,
        Phase::AwaitingGrant => ShardState::Queued,
        Phase::Identifying => ShardState::Identifying,
        Phase::Resuming => ShardState::Resuming,
        Phase::Ready => ShardState::Ready,
        Phase::Fatal => ShardState::Failed,
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The reason of a gap marker.
pub(crate) const fn gap_reason(reason: EndReason) -> schemas::GapReason {
    match reason {
        EndReason::InvalidSession => schemas::GapReason::InvalidSession,
        EndReason::ReplayExceeded => schemas::GapReason::ReplayExceeded,
        EndReason::SessionExpired => schemas::GapReason::SessionExpired,
        EndReason::Forced => schemas::GapReason::Forced,
    }
}
