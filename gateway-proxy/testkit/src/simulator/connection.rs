//! One socket of the gateway: a task that reads ops, writes dispatches and keeps the timers.
//!
//! The loop waits for exactly one cause and then decides synchronously; writing never waits, so a
//! client that does not read still has its heartbeats seen.

mod acts;
mod handshake;
mod ops;
mod replies;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

pub(crate) use self::handshake::serve;
pub(crate) use self::replies::MemberRequests;
use super::compress::Encoder;
use super::identify::Asker;
use super::ledger::{Rule, Step};
use super::session::{Filled, Params, Session};
use super::state::{Ambush, Order, Shared};
use super::websocket::{Incoming, Reader, push_close};

/// Bytes read at once; clients send little.
const READ_BYTES: usize = 8 * 1024;
/// How long a closing server waits for the client's close frame and FIN.
const CLOSE_LINGER: Duration = Duration::from_secs(1);
/// A half-open socket is dropped after this long: nobody reads it any more.
const HALF_OPEN_MAX: Duration = Duration::from_secs(600);
/// Throttled transfers move a tenth of a second's bytes at a time.
const THROTTLE_SLICE: Duration = Duration::from_millis(100);
/// A requested heartbeat should come at once; this much is still "at once".
const HEARTBEAT_REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// Without any other deadline the timer sleeps this long.
const FAR: Duration = Duration::from_secs(3600);

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client sent a close frame.
    Client(Option<u16>),
    /// The server sent a close frame.
    Server(u16),
    /// The TCP connection is gone.
    Lost,
    /// A TCP reset on purpose.
    Reset,
}

/// Faults that last.
#[derive(Default)]
struct Lasting {
    stop_read: bool,
    stop_write: bool,
    ack_delay: Option<Duration>,
    swallow_acks: u32,
    silent_until: Option<Instant>,
    write_rate: Option<u64>,
    read_rate: Option<u64>,
    next_write: Option<Instant>,
    next_read: Option<Instant>,
}

struct Connection {
    shared: Arc<Shared>,
    id: u64,
    stream: TcpStream,
    orders: mpsc::Receiver<Order>,
    wake: Arc<Notify>,
    params: Params,
    on_resume_url: bool,
    reader: Reader,
    encoder: Encoder,
    out: Vec<u8>,
    sent: usize,
    scratch: Vec<u8>,
    session: Option<Arc<Session>>,
    /// The session has more to write than one batch.
    more: bool,
    /// The socket took no more bytes.
    blocked: bool,
    sends: VecDeque<Instant>,
    presence_updates: VecDeque<Instant>,
    last_heartbeat: Instant,
    heartbeat_wanted: Option<Instant>,
    late_acks: VecDeque<Instant>,
    /// After op 7: when the server closes by itself.
    grace: Option<Instant>,
    lasting: Lasting,
    /// When a half-open socket that missed its heartbeats is dropped.
    abandoned: Option<Instant>,
    end: Option<End>,
    /// A fault that strikes after so many more dispatches.
    ambush: Option<(u64, Ambush)>,
    /// A fault that strikes within the next split message.
    within: Option<Ambush>,
}

impl Connection {
    async fn run(mut self) {
        let timer = sleep_until(Instant::now() + FAR);
        tokio::pin!(timer);
        while self.end.is_none() {
            self.produce();
            self.transmit();
            if self.end.is_some() {
                break;
            }
            let deadline = self.deadline();
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let (reading, writing) = (self.may_read(), self.blocked && self.may_write());
            let interest = match (reading, writing) {
                (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
                (true, false) => Some(Interest::READABLE),
                (false, true) => Some(Interest::WRITABLE),
                (false, false) => None,
            };
            let more = self.more && !self.blocked && self.may_write();
            tokio::select! {
                biased;
                () = self.shared.cancel.cancelled() => self.end = Some(End::Lost),
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => self.end = Some(End::Lost),
                },
                ready = self.stream.ready(interest.unwrap_or(Interest::ERROR)),
                    if interest.is_some() =>
                {
                    match ready {
                        Ok(ready) => {
                            self.blocked &= !ready.is_writable();
                            if ready.is_readable() || ready.is_read_closed() {
                                self.receive();
                            }
                        }
                        Err(_) => self.end = Some(End::Lost),
                    }
                }
                () = self.wake.notified() => {}
                () = &mut timer => self.timers(),
                () = tokio::task::yield_now(), if more => {}
            }
        }
        self.finish().await;
    }

    fn may_read(&self) -> bool {
        !self.lasting.stop_read && self.lasting.next_read.is_none()
    }

    fn may_write(&self) -> bool {
        !self.lasting.stop_write && self.lasting.next_write.is_none()
    }

    fn asker(&self) -> Asker {
        Asker {
            connection: self.id,
            params: self.params,
            on_resume_url: self.on_resume_url,
            wake: Arc::clone(&self.wake),
        }
    }

    /// Takes dispatches from the session once everything before is on its way.
    fn produce(&mut self) {
        self.more = false;
        let Some(session) = &self.session else { return };
        if session.is_overrun() {
            self.end = Some(End::Reset);
            return;
        }
        if self
            .lasting
            .silent_until
            .is_some_and(|until| until > Instant::now())
        {
            return;
        }
        if !self.out.is_empty() || !self.may_write() {
            // Once that is written there may be dispatches.
            self.more = true;
            return;
        }
        if let Some(ambush) = self.within.take() {
            self.cut(&Arc::clone(session), ambush);
            return;
        }
        let shared = &self.shared;
        let (scratch, out) = (&mut self.scratch, &mut self.out);
        let mut unlimited = u64::MAX;
        let limit = match &mut self.ambush {
            Some((left, _)) => left,
            None => &mut unlimited,
        };
        match session.fill(shared, self.id, &mut self.encoder, scratch, out, limit) {
            Filled::More => self.more = true,
            // Ended or resumed elsewhere: an order says so, or already did.
            Filled::Drained | Filled::Detached => {}
        }
        if let Some((_, ambush)) = self.ambush.take_if(|(left, _)| *left == 0) {
            // What came before it must be on its way before nothing is written any more.
            self.transmit();
            self.strike(&ambush);
        }
    }

    /// Writes what the socket takes without waiting.
    fn transmit(&mut self) {
        while self.sent < self.out.len() && self.may_write() {
            let limit = match self.lasting.write_rate {
                Some(rate) => ((rate as f64 * THROTTLE_SLICE.as_secs_f64()) as usize).max(1),
                None => usize::MAX,
            };
            let upto = self.out.len().min(self.sent.saturating_add(limit));
            match self.stream.try_write(&self.out[self.sent..upto]) {
                Ok(0) => self.end = Some(End::Lost),
                Ok(written) => {
                    self.sent += written;
                    let counter = &self.shared.counters.wire_bytes;
                    counter.fetch_add(written as u64, std::sync::atomic::Ordering::Relaxed);
                    if self.lasting.write_rate.is_some() {
                        self.lasting.next_write = Some(Instant::now() + THROTTLE_SLICE);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return;
                }
                Err(_) => self.end = Some(End::Lost),
            }
            if self.end.is_some() {
                return;
            }
        }
        if self.sent == self.out.len() {
            self.blocked = false;
            self.sent = 0;
            self.out.clear();
            // One large guild must not keep megabytes for each connection.
            self.out.shrink_to(2 * 64 * 1024);
            self.scratch.shrink_to(64 * 1024);
        }
    }

    /// Reads what is there and acts on each message.
    fn receive(&mut self) {
        loop {
            let limit = match self.lasting.read_rate {
                Some(rate) => ((rate as f64 * THROTTLE_SLICE.as_secs_f64()) as usize).max(1),
                None => READ_BYTES,
            };
            let mut chunk = [0_u8; READ_BYTES];
            let room = limit.min(READ_BYTES);
            match self.stream.try_read(&mut chunk[..room]) {
                Ok(0) => {
                    self.end = Some(End::Lost);
                    return;
                }
                Ok(read) => self.reader.push(&chunk[..read]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.end = Some(End::Lost);
                    return;
                }
            }
            self.messages();
            if self.lasting.read_rate.is_some() {
                self.lasting.next_read = Some(Instant::now() + THROTTLE_SLICE);
            }
            if self.end.is_some() || !self.may_read() {
                return;
            }
        }
    }

    fn messages(&mut self) {
        while self.end.is_none() {
            match self.reader.next() {
                Ok(None) => return,
                Ok(Some(Incoming::Message(payload))) => self.message(&payload),
                Ok(Some(Incoming::TooLarge(bytes))) => {
                    self.violation(Rule::PayloadTooLarge, format!("{bytes} bytes"));
                    self.close(4002, "Error while decoding payload.");
                }
                Ok(Some(Incoming::Ping(payload))) => {
                    let pong = super::websocket::Opcode::Pong;
                    self.encoder.raw(pong, &payload, &mut self.out);
                }
                Ok(Some(Incoming::Pong)) => {}
                Ok(Some(Incoming::Close(code))) => self.end = Some(End::Client(code)),
                Err(_) => {
                    self.violation(Rule::WebSocket, "broken framing");
                    self.close(1002, "");
                }
            }
        }
    }

    fn violation(&self, rule: Rule, detail: impl Into<String>) {
        let shard = self.session.as_ref().map(|session| session.shard);
        self.shared.violation(rule, shard, detail);
    }

    /// Sends a message that is no dispatch.
    fn control(&mut self, json: &str) {
        self.encoder.message(json.as_bytes(), &mut self.out);
        self.encoder.finish(&mut self.out);
    }

    /// Sends a close frame and ends the connection.
    fn close(&mut self, code: u16, reason: &str) {
        push_close(&mut self.out, code, reason);
        self.end = Some(End::Server(code));
    }

    /// When the next timer is due.
    fn deadline(&self) -> Instant {
        let far = Instant::now() + FAR;
        let heartbeat = self.abandoned.or_else(|| Some(self.heartbeat_deadline()));
        let silent = self.lasting.silent_until;
        [
            heartbeat,
            self.grace,
            self.heartbeat_wanted
                .map(|asked| asked + HEARTBEAT_REQUEST_WITHIN),
            self.late_acks.front().copied(),
            silent,
            self.lasting.next_write,
            self.lasting.next_read,
        ]
        .into_iter()
        .flatten()
        .fold(far, Instant::min)
    }

    fn heartbeat_deadline(&self) -> Instant {
        let config = &self.shared.config;
        self.last_heartbeat
            + config
                .heartbeat_interval
                .mul_f64(config.heartbeat_tolerance)
    }

    fn timers(&mut self) {
        let now = Instant::now();
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        due(&mut self.lasting.next_write);
        due(&mut self.lasting.next_read);
        due(&mut self.lasting.silent_until);
        while self.late_acks.front().is_some_and(|at| *at <= now) {
            self.late_acks.pop_front();
            self.control(ops::HEARTBEAT_ACK);
        }
        if self
            .heartbeat_wanted
            .is_some_and(|asked| asked + HEARTBEAT_REQUEST_WITHIN <= now)
        {
            self.heartbeat_wanted = None;
            self.violation(Rule::HeartbeatRequest, "no heartbeat within 5 s of op 1");
        }
        if due(&mut self.grace) {
            self.close(4000, "Reconnect.");
            return;
        }
        if self.abandoned.is_some() {
            if due(&mut self.abandoned) {
                self.end = Some(End::Reset);
            }
            return;
        }
        if self.heartbeat_deadline() <= now {
            self.missed_heartbeat(now);
        }
    }

    /// A half-open socket is only abandoned: the client must notice by itself.
    fn missed_heartbeat(&mut self, now: Instant) {
        if self.lasting.stop_read || self.lasting.stop_write {
            self.release(Step::Disconnected { code: None });
            self.abandoned = Some(now + HALF_OPEN_MAX);
            return;
        }
        self.violation(Rule::MissedHeartbeat, "");
        self.close(
            self.shared.config.strict.missed_heartbeat_code,
            "Session timed out.",
        );
    }

    /// Lets go of the session, which stays resumable.
    fn release(&mut self, step: Step) {
        let Some(session) = self.session.take() else {
            return;
        };
        if let Some(handle) = self.shared.hub().connections.get_mut(&self.id) {
            handle.session = None;
        }
        if session.detach(&self.shared, self.id) {
            self.shared.step(&session, step);
        }
    }

    /// Lets go of the session and ends it.
    fn destroy(&mut self, step: Step) {
        if let Some(session) = self.session.take()
            && session.connection() == Some(self.id)
        {
            self.shared.end_session(&session, step);
        }
    }

    async fn finish(mut self) {
        let end = self.end.unwrap_or(End::Lost);
        match end {
            End::Client(Some(code @ (1000 | 1001))) => self.destroy(Step::Destroyed { code }),
            End::Client(None) if self.shared.config.strict.close_without_code_ends_session => {
                self.destroy(Step::Destroyed { code: 1005 });
            }
            End::Client(code) => self.release(Step::Disconnected { code }),
            End::Server(code) if ends_session(code) => self.destroy(Step::Destroyed { code }),
            End::Server(code) => self.release(Step::Disconnected { code: Some(code) }),
            End::Lost | End::Reset => self.release(Step::Disconnected { code: None }),
        }
        self.shared.hub().connections.remove(&self.id);
        self.lift_ambush();
        match end {
            End::Lost => {}
            End::Reset => handshake::reset(&self.stream),
            End::Client(code) => {
                push_close(&mut self.out, code.unwrap_or(1000), "");
                self.linger(false).await;
            }
            End::Server(_) => self.linger(true).await,
        }
    }

    /// Writes what is left, and waits for the client's close frame where it is still due: closing
    /// with unread bytes would reset the connection and take the server's close frame with it.
    async fn linger(&mut self, mut close_due: bool) {
        let until = Instant::now() + CLOSE_LINGER;
        self.lasting = Lasting::default();
        self.end = None;
        loop {
            self.transmit();
            if self.end.is_some() || (self.out.is_empty() && !close_due) {
                return;
            }
            let mut interest = Interest::READABLE;
            if self.blocked {
                interest |= Interest::WRITABLE;
            }
            tokio::select! {
                () = self.shared.cancel.cancelled() => return,
                () = sleep_until(until) => return,
                ready = self.stream.ready(interest) => {
                    let Ok(ready) = ready else { return };
                    self.blocked &= !ready.is_writable();
                    match self.drain() {
                        Drained::Gone => return,
                        Drained::Closed => close_due = false,
                        Drained::Nothing => {}
                    }
                }
            }
        }
    }

    /// Reads and throws away.
    fn drain(&mut self) -> Drained {
        let mut chunk = [0_u8; READ_BYTES];
        match self.stream.try_read(&mut chunk) {
            Ok(0) => Drained::Gone,
            Ok(read) => {
                self.reader.push(&chunk[..read]);
                loop {
                    match self.reader.next() {
                        Ok(Some(Incoming::Close(_))) => return Drained::Closed,
                        Ok(None | Some(Incoming::TooLarge(_))) | Err(_) => {
                            return Drained::Nothing;
                        }
                        Ok(Some(_)) => {}
                    }
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Drained::Nothing,
            Err(_) => Drained::Gone,
        }
    }
}

/// What a closing connection read.
enum Drained {
    /// The client's close frame.
    Closed,
    /// The end.
    Gone,
    /// Something else.
    Nothing,
}

/// Close codes after which RESUME is of no use.
const fn ends_session(code: u16) -> bool {
    matches!(code, 4003 | 4004 | 4006 | 4007 | 4010..=4014)
}
