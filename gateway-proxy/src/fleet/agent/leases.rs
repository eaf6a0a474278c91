//! The two leases of a member: its own, and the coordinator's.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use gateway_proxy_core::fleet::acts_for;
use gateway_proxy_core::fleet::fence::{self, Why};
use gateway_proxy_core::fleet::lease;
use gateway_proxy_core::fleet::view::Admission;
use schemas::{FleetKey, Leader, Load, Member};
use tracing::{debug, info, warn};

use super::{Agent, Done, LEAVE_TIMEOUT, SAY_EVERY, encode, is_member_of};
use crate::exit::Fatal;
use crate::fleet::write::{LeaseWrite, Outcome};
use crate::status::{rounded, unix_ms};

impl Agent {
    pub(super) fn keep_lease(&mut self, action: fence::Action, now: Instant) {
        match action {
            fence::Action::Join => self.join(now),
            fence::Action::Renew { .. } if self.fleet && self.means.ownership.stands_still() => {
                // Alive, but nobody serves the shards: the lease ends, and others take them.
                self.lease.handle_failed(now);
            }
            fence::Action::Renew { expected_revision } => self.write_member(expected_revision, now),
            fence::Action::Close(why) => self.close(why, now),
        }
    }

    fn join(&mut self, now: Instant) {
        match self.view.admission(now) {
            Admission::Free { expected_revision } => {
                if self.fleet {
                    let instance = self.means.ownership.rename().to_string();
                    self.joinings += 1;
                    self.handover.handle_fenced(instance);
                }
                let instance = self.means.ownership.instance().to_string();
                self.view.set_instance(instance);
                self.joined = false;
                self.beat = 0;
                self.write_member(expected_revision, now);
            }
            Admission::Wait(_) => self.lease.handle_failed(now),
            Admission::Taken(duplicate) => {
                self.lease.handle_failed(now);
                if self.fleet {
                    let fatal = Fatal::unfit(duplicate.to_string(), "or stop the other one");
                    // Somebody else's reason came first.
                    drop(self.means.fatal.try_send(fatal));
                } else if self
                    .said_duplicate
                    .is_none_or(|at| at.elapsed() >= SAY_EVERY)
                {
                    self.said_duplicate = Some(Instant::now());
                    warn!(%duplicate, "this process is no member as long as the other one lives");
                }
            }
        }
    }

    fn write_member(&mut self, expected_revision: u64, now: Instant) {
        self.beat += 1;
        self.view.handle_beat_sent(self.beat, now);
        let instance = self.means.ownership.instance();
        let member = self.member(&instance);
        let write = LeaseWrite {
            key: FleetKey::Member(self.me.clone()),
            value: encode(&member),
            expected_revision,
            ttl: self.means.config.lease_ttl(),
            within: self.lease.write_timeout(),
        };
        let (means, done) = (Arc::clone(&self.means), self.done.clone());
        self.beside(async move {
            let outcome = write
                .send(&means.bucket, |value| is_member_of(value, &instance))
                .await;
            drop(done.send(Done::Member(outcome)).await);
        });
    }

    fn lease_ttl_ms(&self) -> u64 {
        // At most a minute.
        u64::try_from(self.means.config.lease_ttl().as_millis()).unwrap_or(u64::MAX)
    }

    fn member(&self, instance: &str) -> Member {
        let (config, process) = (&self.means.config, &self.means.process);
        let shards = process.shards();
        let latency = shards.iter().filter_map(|shard| shard.latency()).max();
        Member {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            zone: config.fleet().and_then(|fleet| fleet.zone.clone()),
            max_shards: config
                .fleet()
                .and_then(|fleet| fleet.max_shards)
                .map(std::num::NonZeroU32::get),
            pinned: self
                .means
                .pinned
                .as_ref()
                .map(|pinned| pinned.iter().copied().collect()),
            coordinator_priority: config.coordinator_priority().into(),
            wants_shards: config.shards().fixed(),
            started_at_unix_ms: process.started_unix_ms(),
            load: Load {
                cpu_percent: rounded(process.cpu_percent()),
                memory_bytes: process.usage().memory_bytes,
                latency_ms: latency.map(|latency| rounded(latency.as_secs_f64() * 1e3)),
                events_per_second: rounded(
                    shards.iter().map(|shard| shard.events_per_second()).sum(),
                ),
            },
            shards: self.means.holder.shards(),
            http: Some(self.means.http.clone()),
            draining: self.draining,
            fleet: self.fleet,
            instance: Some(instance.to_owned()),
            lease_ttl_ms: Some(self.lease_ttl_ms()),
            beat: self.beat,
        }
    }

    fn close(&mut self, why: Why, now: Instant) {
        if !self.fleet {
            debug!(?why, "this process is no member for the moment");
            self.lease.handle_closed(now);
            return;
        }
        let shards = self.means.holder.ids().len();
        warn!(
            ?why,
            shards, "the lease of this proxy ended: it lets go of everything"
        );
        self.gate.lower();
        self.means.metrics.fleet_fenced.increment();
        let (means, done) = (Arc::clone(&self.means), self.done.clone());
        drop(self.among_shards(async move {
            means.holder.abandon_all().await;
            drop(done.send(Done::Abandoned).await);
        }));
    }

    pub(super) fn hear_of_lease(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Written { revision, sent_at } => {
                self.written.fetch_max(revision, Ordering::AcqRel);
                self.lease.handle_written(revision, sent_at, now);
                let Some(until) = self.lease.valid_until() else {
                    return;
                };
                if !self.joined {
                    self.joined = true;
                    info!(instance = %self.means.ownership.instance(), "this proxy is a member of the fleet");
                    if self.fleet {
                        self.gate.raise(until);
                    }
                } else if self.fleet && !self.gate.extend(until) {
                    // Somebody has seen the end of the right and acted on it.
                    self.lease.handle_lost(u64::MAX);
                }
            }
            Outcome::Refused(current) => self.lease.handle_refused(current, now),
            Outcome::Failed => self.lease.handle_failed(now),
        }
    }

    // ---- the coordinator's lease ----

    pub(super) fn lead(&mut self, may_act: bool, now: Instant) {
        // Acquire and Renew are said once until answered, and a step down ends in a wait.
        loop {
            match self.candidate.observe(&self.view, may_act, now) {
                lease::Action::Acquire {
                    expected_revision,
                    epoch,
                }
                | lease::Action::Renew {
                    expected_revision,
                    epoch,
                } => self.write_leader(expected_revision, epoch),
                lease::Action::StepDown { delete } => self.step_down(delete),
                lease::Action::Wait(at) => {
                    self.candidate_waits = Some(at);
                    return;
                }
            }
        }
    }

    fn write_leader(&mut self, expected_revision: u64, epoch: u64) {
        let me = self.me.clone();
        let leader = Leader {
            proxy: me.clone(),
            epoch,
            lease_ttl_ms: Some(self.lease_ttl_ms()),
            priority: self.means.config.coordinator_priority().into(),
            since_unix_ms: *self.leads_since.get_or_insert_with(unix_ms),
        };
        let write = LeaseWrite {
            key: FleetKey::Leader,
            value: encode(&leader),
            expected_revision,
            ttl: self.means.config.lease_ttl(),
            within: self.lease.write_timeout(),
        };
        let (means, done) = (Arc::clone(&self.means), self.done.clone());
        self.beside(async move {
            let ours = |value: &[u8]| {
                serde_json::from_slice::<Leader>(value)
                    .is_ok_and(|leader| leader.proxy == me && leader.epoch == epoch)
            };
            let outcome = write.send(&means.bucket, ours).await;
            drop(done.send(Done::Leader { epoch, outcome }).await);
        });
    }

    fn step_down(&mut self, delete: Option<u64>) {
        self.leadership.end();
        self.leads_since = None;
        info!("this proxy coordinates no longer");
        if let Some(revision) = delete {
            let means = Arc::clone(&self.means);
            self.beside(async move {
                let delete = means
                    .bucket
                    .delete(&FleetKey::Leader, revision, LEAVE_TIMEOUT);
                if let Err(error) = delete.await {
                    debug!(%error, "the coordinator's lease ends by itself");
                }
            });
        }
    }

    pub(super) fn hear_of_leader(&mut self, epoch: u64, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Written { revision, sent_at } => {
                self.written.fetch_max(revision, Ordering::AcqRel);
                let led = self.candidate.leads(now);
                self.candidate.handle_written(revision, sent_at, now);
                if self.candidate.leads(now) == Some(epoch) {
                    if led != Some(epoch) {
                        info!(epoch, "this proxy coordinates");
                    }
                    self.leadership
                        .hold(epoch, sent_at + acts_for(self.means.config.lease_ttl()));
                }
            }
            Outcome::Refused(current) => self.candidate.handle_refused(current, now),
            Outcome::Failed => self.candidate.handle_failed(now),
        }
        if self.candidate.leads(now).is_none() && self.leadership.epoch().is_none() {
            self.leads_since = None;
        }
    }
}
