use super::*;
use crate::close::FatalClose;

mod backoff;
mod connecting;
mod heartbeat;
mod identify;
mod lifecycle;
mod resume;

const INTERVAL: Duration = Duration::from_millis(41_250);
const RESUME_URL: &str = "wss://resume";
/// The middle of the jitter: delays are three quarters of the full step.
const HALF: f64 = 0.5;

/// A session and a clock, driven by sentences.
struct Shard {
    session: Session,
    now: Instant,
    jitter: f64,
}

fn settings() -> Settings {
    Settings {
        shard: ShardId::new(0, 1).unwrap(),
        heartbeat_timeout: None,
    }
}

fn saved(seq: u64) -> Resumable {
    Resumable {
        session_id: "old".to_owned(),
        resume_url: Some(RESUME_URL.to_owned()),
        seq,
    }
}

impl Shard {
    fn with(settings: Settings, resumable: Option<Resumable>) -> Self {
        let now = Instant::now();
        let session = Session::new(settings, resumable, now);
        Self {
            session,
            now,
            jitter: HALF,
        }
    }

    fn fresh() -> Self {
        Self::with(settings(), None)
    }

    /// A shard at HELLO, with the session of an earlier process if there is one.
    fn connected(resumable: Option<Resumable>) -> Self {
        let mut shard = Self::with(settings(), resumable);
        shard.connect();
        shard
    }

    /// A shard whose session `new` is at its READY.
    fn ready() -> Self {
        let mut shard = Self::connected(None);
        shard.identify("new");
        shard
    }

    /// A shard that has sent RESUME for the session `old` at this sequence.
    fn resuming(seq: u64) -> Self {
        let mut shard = Self::connected(Some(saved(seq)));
        shard.hello();
        shard.actions();
        shard
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.session.poll_action()).collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Runs the timers for this long, each exactly at its deadline, and returns what was done.
    fn run(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = self.actions();
        while let Some(deadline) = self.session.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(deadline);
            self.session.handle_timeout(self.jitter, self.now);
            actions.extend(self.actions());
        }
        self.now = end;
        actions
    }

    /// The timer rings now, however late that is.
    fn timeout(&mut self) -> Vec<Action> {
        self.session.handle_timeout(self.jitter, self.now);
        self.actions()
    }

    /// Waits for the back-off and returns how long it was and where it connects to. What was done
    /// before is not looked at.
    fn await_connect(&mut self) -> (Duration, Endpoint) {
        self.actions();
        assert_eq!(self.session.phase(), Phase::Waiting);
        let deadline = self.session.poll_timeout().unwrap();
        let waited = deadline.saturating_duration_since(self.now);
        self.now = self.now.max(deadline);
        match &self.timeout()[..] {
            [Action::Connect(endpoint)] => (waited, endpoint.clone()),
            other => panic!("not a connect: {other:?}"),
        }
    }

    fn connect(&mut self) -> (Duration, Endpoint) {
        let connect = self.await_connect();
        self.session.handle_connected(self.now);
        connect
    }

    fn frame(&mut self, frame: Incoming<'_>) -> Verdict {
        self.session.handle_frame(frame, self.jitter, self.now)
    }

    fn hello(&mut self) {
        self.frame(Incoming::Hello { interval: INTERVAL });
    }

    fn dispatch(&mut self, seq: u64) -> Verdict {
        let seq = Some(seq);
        self.frame(Incoming::Dispatch {
            seq,
            kind: DispatchKind::Other,
        })
    }

    fn resumed(&mut self, seq: u64) -> Verdict {
        let seq = Some(seq);
        self.frame(Incoming::Dispatch {
            seq,
            kind: DispatchKind::Resumed,
        })
    }

    fn ready_frame(&mut self, seq: Option<u64>, session_id: &str) -> Verdict {
        let resume_url = Some(RESUME_URL);
        let kind = DispatchKind::Ready {
            session_id,
            resume_url,
        };
        self.frame(Incoming::Dispatch { seq, kind })
    }

    /// HELLO, grant, IDENTIFY, READY with sequence 1.
    fn identify(&mut self, session_id: &str) -> Verdict {
        self.hello();
        assert_eq!(self.actions(), [Action::RequestIdentify]);
        assert!(self.session.handle_identify_granted(self.now));
        assert_eq!(self.actions(), [Action::Identify]);
        let verdict = self.ready_frame(Some(1), session_id);
        assert_eq!(self.session.phase(), Phase::Ready);
        verdict
    }

    fn invalid_session(&mut self, resumable: bool) {
        self.frame(Incoming::InvalidSession { resumable });
    }

    fn closed(&mut self, code: Option<u16>) {
        self.session.handle_closed(code, self.jitter, self.now);
    }

    /// Connects, says HELLO, and returns the RESUME that follows.
    fn resume(&mut self) -> (String, u64) {
        self.connect();
        self.hello();
        match &self.actions()[..] {
            [Action::Resume { session_id, seq }] => (session_id.clone(), *seq),
            other => panic!("not a resume: {other:?}"),
        }
    }

    fn ack(&mut self, seq: u64) {
        let generation = self.session.generation();
        self.session.handle_acked(generation, seq);
    }
}

const fn publish(seq: u64) -> Verdict {
    Verdict::Publish { seq, gap: None }
}

const fn close_action(reason: CloseReason) -> Action {
    Action::Close {
        code: close::RESUMABLE,
        reason,
    }
}

fn resume_endpoint() -> Endpoint {
    Endpoint::Resume(RESUME_URL.to_owned())
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
