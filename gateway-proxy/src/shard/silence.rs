//! Watches whether the shard still delivers, and does what `core::silence` advises.

use std::time::Instant;

use gateway_proxy_core::session::Phase;
use gateway_proxy_core::silence::{Advice, Others, Pulse, Silence};
use tracing::{info, warn};

use super::ShardTask;
use crate::metrics::SilenceStep;

impl ShardTask {
    /// When to look next.
    pub(super) fn silence_deadline(&self) -> Option<Instant> {
        self.silence.as_ref().and_then(Silence::poll_timeout)
    }

    /// Tells the watch whether events can come: the session is up and its socket is read.
    pub(super) fn note_listening(&mut self, reading: bool, now: Instant) {
        let Some(silence) = &mut self.silence else {
            return;
        };
        let listening = reading && self.session.phase() == Phase::Ready;
        silence.handle_listening(listening, self.intake.heard(), now);
        if !listening {
            self.parts.status.set_pulse(Pulse::Unknown);
        }
    }

    /// Looks, if it is time, and acts.
    pub(super) fn watch_silence(&mut self, now: Instant) {
        if self.silence_deadline().is_none_or(|due| now < due) {
            return;
        }
        let Some(mut silence) = self.silence.take() else {
            return;
        };
        let found = silence.handle_timeout(self.intake.heard(), now, || self.others());
        let status = &self.parts.status;
        status.set_pulse(silence.pulse());
        status.set_silent(silence.is_silent());
        status.set_patience(silence.patience());
        if found.suspected {
            self.shared.metrics.silences.add(SilenceStep::Suspected);
            warn!(
                shard = %self.shard(),
                silent_s = silence.silent_for().as_secs_f64(),
                "heartbeats are acknowledged, but events that usually come do not"
            );
        }
        self.silence = Some(silence);
        if let Some(advice) = found.advice {
            self.follow(advice, now);
        }
    }

    /// Every other shard of the process, and the limiter.
    fn others(&self) -> Others {
        let mut others = Others {
            awake: 0,
            asleep: 0,
            may_identify: self.shared.identifies.has_budget(),
        };
        for status in self.shared.process.shards() {
            match status.pulse() {
                _ if status.shard() == self.shard() => {}
                Pulse::Awake => others.awake += 1,
                Pulse::Asleep => others.asleep += 1,
                Pulse::Unknown => {}
            }
        }
        others
    }

    fn follow(&mut self, advice: Advice, now: Instant) {
        let shard = self.shard();
        let step = match advice {
            Advice::Resume => {
                warn!(%shard, "silent shard: resuming its session");
                self.session.leave_silent(false, now);
                SilenceStep::Resumed
            }
            Advice::Renew => {
                warn!(%shard, "silent shard: a RESUME did not help, starting a new session");
                self.session.leave_silent(true, now);
                SilenceStep::Reidentified
            }
            Advice::Outage => {
                warn!(%shard, "silent shard: so are most others, which is not theirs to mend");
                SilenceStep::Outage
            }
            Advice::Wait => {
                warn!(%shard, "silent shard: waits, it was helped not long ago or no session start is to spare");
                SilenceStep::Waiting
            }
            Advice::Recovered => {
                info!(%shard, "the shard that was silent delivers");
                SilenceStep::Recovered
            }
            Advice::Quiet => {
                info!(%shard, "as silent in a new session: there is nothing to deliver");
                SilenceStep::Quiet
            }
        };
        self.shared.metrics.silences.add(step);
    }
}
