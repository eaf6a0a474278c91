//! What operators ask of a member, and what it shows of itself.

use std::time::Instant;

use schemas::health::FleetHealth;
use schemas::{Member, ProxyId, ShardId};
use tracing::info;

use super::{Agent, NO_MEMBER};
use crate::fleet::service::{Refusal, Wish};
use crate::shard::Order;
use crate::shutdown::Phase;

impl Agent {
    pub(super) fn grant_wish(&mut self, wish: Wish, now: Instant) {
        let leads = self.candidate.leads(now).is_some();
        match wish {
            Wish::Drain { proxy, answer } => {
                if proxy == self.me && !self.draining {
                    info!("an operator wants this proxy to drain and end");
                    self.means.shutdown.advance(Phase::Draining);
                }
                if leads {
                    answer.send(self.coordinator.drain(&proxy, &self.view, now));
                }
            }
            Wish::Migrate { shard, to, answer } => {
                if leads {
                    answer.send(self.coordinator.migrate(shard, to, &self.view, now));
                }
            }
            Wish::Restart {
                shard,
                fresh,
                answer,
            } => {
                let order = if fresh {
                    Order::Renew
                } else {
                    Order::Reconnect
                };
                if self.means.holder.order(shard, order) {
                    info!(shard, fresh, "an operator wants this shard to connect anew");
                }
                if leads {
                    answer.send(self.coordinator.restart(shard, self.holder_of(shard, now)));
                }
            }
            Wish::Reshard { answer } => {
                if leads {
                    answer.send(Err(Refusal::new(
                        501,
                        "start every proxy with the same --shards <count>: the number changes once all ask for it, and sessions begin anew",
                    )));
                }
            }
            Wish::State { answer } => {
                if leads {
                    let state = self.means.states.clone();
                    drop(self.among_shards(async move { answer.send(state.read().await) }));
                }
            }
        }
    }

    /// Who holds a shard: by its record in a fleet, by the heartbeats outside one.
    fn holder_of(&self, id: u32, now: Instant) -> Option<ProxyId> {
        let by_record = || {
            let count = self.handover.plan()?.shard_count;
            let owner = self.handover.owner(ShardId::new(id, count).ok()?)?;
            let lives = self.view.member(&owner.proxy, now).is_some();
            lives.then(|| owner.proxy.clone())
        };
        by_record().or_else(|| {
            let holds = |member: &Member| member.shards.iter().any(|held| held.id() == id);
            let mut members = self.view.live(now);
            let holder = members.find(|(_, member)| holds(member));
            holder.map(|(proxy, _)| proxy.clone())
        })
    }

    /// What this proxy waits for before it has what it shall have.
    fn lacks(&self) -> Option<String> {
        if self.lease.valid_until().is_none() {
            return Some(NO_MEMBER.to_owned());
        }
        let Some(plan) = self.handover.plan() else {
            return Some("there is no plan yet".to_owned());
        };
        if !plan.settled.contains(&self.me) {
            return Some("the plan gives this proxy its share of the shards".to_owned());
        }
        let planned = plan.shards.values().filter(|proxy| **proxy == self.me);
        let missing = planned
            .count()
            .saturating_sub(self.means.holder.ids().len());
        (missing > 0).then(|| format!("{missing} shards of this proxy are still elsewhere"))
    }

    pub(super) fn show(&mut self, now: Instant) {
        let members = self.view.live(now).count();
        let others = self
            .view
            .live(now)
            .filter(|(proxy, member)| **proxy != self.me && member.fleet && !member.draining)
            .count();
        let coordinates = self.candidate.leads(now).is_some();
        let metrics = &self.means.metrics;
        metrics.fleet_members.set(members as u64);
        metrics.fleet_coordinates.set(u64::from(coordinates));
        self.means.process.set_fleet(FleetHealth {
            follows: self.fleet,
            coordinator: self.candidate.leader().map(|leader| leader.proxy.clone()),
            members: u32::try_from(members).unwrap_or(u32::MAX),
            plan_epoch: self.handover.plan().map_or(0, |plan| plan.epoch),
            unplaced_shards: Vec::new(),
        });
        if !self.fleet {
            return;
        }
        match (self.lacks(), &self.waiting) {
            (Some(reason), None) => self.waiting = Some(self.means.process.hold(reason)),
            (Some(reason), Some(hold)) => hold.set_reason(reason),
            (None, Some(_)) => self.waiting = None,
            (None, None) => {}
        }
        self.others.send_if_modified(|known| {
            let changed = *known != others;
            *known = others;
            changed
        });
    }
}
