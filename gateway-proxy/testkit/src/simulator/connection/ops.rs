//! What clients send: opcodes, the order they may come in, and their limits.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::super::identify::{self, Verdict};
use super::super::ledger::Rule;
use super::Connection;

/// Op 11.
pub(super) const HEARTBEAT_ACK: &str = r#"{"t":null,"s":null,"op":11,"d":null}"#;
/// Op 9 with `d: false`.
pub(super) const INVALID_SESSION: &str = r#"{"t":null,"s":null,"op":9,"d":false}"#;
/// Op 9 with `d: true`.
pub(super) const INVALID_SESSION_RESUMABLE: &str = r#"{"t":null,"s":null,"op":9,"d":true}"#;

/// Payloads per connection and minute, heartbeats included (Discord, Gateway, Rate limiting).
const SENDS_MAX: usize = 120;
const SENDS_WINDOW: Duration = Duration::from_secs(60);
/// Presence updates per connection and 20 s.
const PRESENCES_MAX: usize = 5;
const PRESENCES_WINDOW: Duration = Duration::from_secs(20);

impl Connection {
    pub(super) fn message(&mut self, payload: &[u8]) {
        if exceeds(&mut self.sends, SENDS_MAX, SENDS_WINDOW) {
            self.violation(Rule::SendRate, "more than 120 payloads in 60 s");
            if self.shared.config.strict.send_rate {
                self.close(4008, "Rate limited.");
                return;
            }
        }
        let value = serde_json::from_slice::<Value>(payload).ok();
        let op = value.as_ref().and_then(|value| value["op"].as_u64());
        let (Some(value), Some(op)) = (value, op) else {
            self.violation(Rule::Undecodable, "not a JSON object with an op");
            self.close(4002, "Error while decoding payload.");
            return;
        };
        self.op(op, &value["d"]);
    }

    fn op(&mut self, op: u64, d: &Value) {
        match op {
            1 | 40 => self.heartbeat(op, d),
            2 if self.session.is_some() => {
                self.violation(Rule::AlreadyAuthenticated, "second identify");
                self.close(4005, "Already authenticated.");
            }
            6 if self.session.is_some() => {
                self.violation(
                    Rule::AlreadyAuthenticated,
                    "resume on an identified connection",
                );
                self.close(4005, "Already authenticated.");
            }
            2 => {
                let verdict = identify::identify(&self.shared, &self.asker(), d);
                if matches!(verdict, Verdict::Session(_)) && d["compress"] == true {
                    self.encoder.enable_payload_compression();
                }
                self.judge(verdict, false);
            }
            6 => {
                let verdict = identify::resume(&self.shared, &self.asker(), d);
                self.judge(verdict, true);
            }
            3 | 4 | 8 | 31 | 43 if self.session.is_none() => {
                self.violation(Rule::NotAuthenticated, format!("op {op}"));
                self.close(4003, "Not authenticated.");
            }
            3 => self.presence(d),
            4 => self.voice_state(d),
            8 => self.request_members(d),
            31 => self.request_sounds(d),
            43 => self.request_channel_info(d),
            _ => {
                self.violation(Rule::UnknownOpcode, format!("op {op}"));
                self.close(4001, "Unknown opcode.");
            }
        }
    }

    fn judge(&mut self, verdict: Verdict, resumed: bool) {
        match verdict {
            Verdict::Session(session) => {
                self.lie_in_wait(&session, resumed);
                self.session = Some(session);
            }
            Verdict::Invalid => self.control(INVALID_SESSION),
            Verdict::Close(code, reason) => self.close(code, reason),
        }
    }

    fn heartbeat(&mut self, op: u64, d: &Value) {
        self.shared
            .counters
            .heartbeats
            .fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        self.last_heartbeat = now;
        self.heartbeat_wanted = None;
        // The QoS heartbeat wraps the sequence.
        let seq = if op == 40 { &d["seq"] } else { d };
        if !seq.is_null() && seq.as_u64().is_none() {
            self.bad_payload("heartbeat with a d that is no number");
            return;
        }
        if let (Some(session), Some(seq)) = (&self.session, seq.as_u64())
            && !session.heartbeat(seq)
        {
            self.violation(Rule::HeartbeatSeq, format!("seq {seq}"));
        }
        if self.lasting.swallow_acks > 0 {
            // u32::MAX stands for all.
            if self.lasting.swallow_acks < u32::MAX {
                self.lasting.swallow_acks -= 1;
            }
        } else if let Some(delay) = self.lasting.ack_delay {
            self.late_acks.push_back(now + delay);
        } else {
            self.control(HEARTBEAT_ACK);
        }
    }

    fn presence(&mut self, d: &Value) {
        if !d.is_object() || !d["status"].is_string() || !d["activities"].is_array() {
            self.bad_payload("presence update without status or activities");
            return;
        }
        if exceeds(&mut self.presence_updates, PRESENCES_MAX, PRESENCES_WINDOW) {
            self.violation(Rule::PresenceRate, "more than 5 presence updates in 20 s");
        }
    }

    /// Closes for a `d` that does not fit its opcode.
    pub(super) fn bad_payload(&mut self, detail: &str) {
        self.violation(Rule::Undecodable, detail);
        self.close(4001, "Invalid payload for opcode.");
    }
}

/// Counts one more in a sliding window; true when there are too many.
fn exceeds(times: &mut VecDeque<Instant>, max: usize, window: Duration) -> bool {
    let now = Instant::now();
    while times.front().is_some_and(|time| *time + window <= now) {
        times.pop_front();
    }
    times.push_back(now);
    if times.len() > max {
        times.pop_front();
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_window_slides() {
        let mut times = VecDeque::new();
        let window = Duration::from_secs(60);
        for _ in 0..3 {
            assert!(!exceeds(&mut times, 3, window));
        }
        assert!(exceeds(&mut times, 3, window));
        tokio::time::advance(window).await;
        assert!(!exceeds(&mut times, 3, window));
    }
}
