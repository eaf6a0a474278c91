//! Orders about single shards: begun here, carried out by the holder one after the other per shard.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway_proxy_core::fleet::handover;
use schemas::ShardId;
use tracing::{debug, info, warn};

use super::{Agent, Done, Report, Work};
use crate::claim::ClaimAtError;

/// How long storing what a shard that moves has on its way may take; what is missing is replayed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long the record of a shard that moves may take.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
/// A shard that could not be started is tried again after this time.
const START_REST: Duration = Duration::from_secs(1);
/// Orders that are over and still remembered, before they are cleared away.
const AT_WORK_KEPT: usize = 256;

impl Agent {
    pub(super) fn follow(&mut self, action: handover::Action) {
        debug!(?action, "an order about a shard");
        let holder = Arc::clone(&self.means.holder);
        let (shard, work): (ShardId, Work) = match action {
            handover::Action::Claim {
                shard,
                expected_revision,
            } => (
                shard,
                Box::pin(async move {
                    let claim = holder.claim_at(shard, expected_revision).await;
                    Some(Report::Claimed(claim))
                }),
            ),
            handover::Action::Start { shard } => (
                shard,
                Box::pin(async move {
                    let error = holder.run(shard).await.err()?;
                    warn!(%error, "a shard was not started, trying again");
                    tokio::time::sleep(START_REST).await;
                    Some(Report::Stopped)
                }),
            ),
            handover::Action::Stop { shard } => (
                shard,
                Box::pin(async move {
                    if let Some(unstored @ 1..) = holder.stop(shard.id(), STOP_PATIENCE).await {
                        warn!(%shard, unstored, "not everything was stored in time; Discord replays it");
                    }
                    Some(Report::Stopped)
                }),
            ),
            handover::Action::Release { shard, .. } => (
                shard,
                Box::pin(async move {
                    Some(Report::Released(
                        holder.give_away(shard, RELEASE_PATIENCE).await,
                    ))
                }),
            ),
            handover::Action::Abandon { shard } => (
                shard,
                Box::pin(async move {
                    holder.abandon(shard.id()).await;
                    Some(Report::Stopped)
                }),
            ),
        };
        self.order(shard, work);
    }

    /// Carries an order out after the one before it about the same shard.
    fn order(&mut self, shard: ShardId, work: Work) {
        let before = self.at_work.remove(&shard);
        let (done, joining) = (self.done.clone(), self.joinings);
        let work = self.among_shards(async move {
            if let Some(before) = before {
                drop(before.await);
            }
            if let Some(report) = work.await {
                let done_with = Done::Shard {
                    joining,
                    shard,
                    report,
                };
                drop(done.send(done_with).await);
            }
        });
        self.at_work.insert(shard, work);
        if self.at_work.len() > AT_WORK_KEPT {
            self.at_work.retain(|_, work| !work.is_finished());
        }
    }

    pub(super) fn hear_of_shard(&mut self, shard: ShardId, report: Report, now: Instant) {
        match report {
            Report::Claimed(Ok(claim)) => {
                self.means.metrics.fleet_moves.increment();
                if let Some(from) = &claim.from {
                    info!(%shard, %from, "taking over the shard of a member that is gone");
                    self.means.metrics.fleet_takeovers.increment();
                }
                self.handover.handle_written(shard, claim.revision, now);
            }
            Report::Claimed(Err(ClaimAtError::Refused { revision, record })) => {
                let record = record.as_deref();
                self.handover.handle_record(shard, revision, record, now);
                self.handover.handle_unwritten(shard, now);
            }
            Report::Claimed(Err(ClaimAtError::Failed(reason))) => {
                warn!(%shard, reason, "a shard was not claimed, trying again");
                self.handover.handle_unwritten(shard, now);
            }
            Report::Stopped => self.handover.handle_stopped(shard, now),
            Report::Released(Some(revision)) => self.handover.handle_written(shard, revision, now),
            Report::Released(None) => self.handover.handle_unwritten(shard, now),
        }
    }
}
