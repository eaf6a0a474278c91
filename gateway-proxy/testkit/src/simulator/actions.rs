//! Carries out actions, at once or by a script.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::events::intents_for;
use super::faults::{Action, Fault, Moment, ScriptStep, Target};
use super::ledger::Step;
use super::load::Recorded;
use super::rest::RestFault;
use super::scan;
use super::session::{Body, RawFrame};
use super::state::{Ambush, Order, Shared};

/// How often a script looks whether its next step is due, and old sessions are dropped.
const HOUSEKEEPING: Duration = Duration::from_millis(20);

/// Does it and says how many connections, guilds or sessions it reached.
pub(crate) fn apply(shared: &Arc<Shared>, action: Action) -> usize {
    match action {
        Action::Fault { target, fault } => {
            let targets = shared.targets(&target);
            targets.iter().filter(|orders| send(orders, &fault)).count()
        }
        Action::Ambush {
            target,
            moment,
            fault,
        } => ambush(shared, target, moment, fault),
        Action::Wave {
            target,
            fault,
            over_ms,
        } => {
            let targets = shared.targets(&target);
            let count = targets.len();
            shared
                .runtime
                .spawn(wave(Arc::clone(shared), targets, fault, over_ms));
            count
        }
        Action::RefuseConnects { ms } => {
            shared.hub().refuse_until = Some(Instant::now() + Duration::from_millis(ms));
            1
        }
        Action::Connects { fault, count } => {
            shared.hub().connect_faults.push((fault, count.max(1)));
            count as usize
        }
        Action::Outage { guilds, ms } => outage(shared, guilds, ms),
        Action::Load { load } => {
            shared.set_load(load);
            1
        }
        Action::Burst { event, per_guild } => burst(shared, &event, per_guild),
        Action::Dispatch { t, d } => dispatch(shared, &t, &d),
        Action::Command { text, guild } => {
            let exists = (guild as usize) < shared.world.len();
            let typed = exists.then(|| shared.type_command(Some(guild), &text));
            usize::from(typed.flatten().is_some())
        }
        Action::RestFault {
            status,
            count,
            retry_after_ms,
        } => {
            shared.rest.fail(RestFault {
                status,
                count: count.max(1),
                retry_after_ms,
            });
            count as usize
        }
        Action::ExpireSessions => expire(shared),
        Action::SetRemaining { remaining } => {
            let mut hub = shared.hub();
            hub.starts_left = remaining;
            hub.revoked = false;
            1
        }
    }
}

fn ambush(shared: &Shared, target: Target, moment: Moment, fault: Fault) -> usize {
    let ambush = Ambush {
        target,
        moment,
        fault,
    };
    if moment != Moment::Message {
        return usize::from(shared.lay_ambush(ambush));
    }
    let within = |orders: &&mpsc::Sender<Order>| {
        shared.counters.armed.fetch_add(1, Ordering::Relaxed);
        let sent = orders.try_send(Order::Within(ambush.clone())).is_ok();
        if !sent {
            shared.counters.armed.fetch_sub(1, Ordering::Relaxed);
        }
        sent
    };
    shared.targets(&ambush.target).iter().filter(within).count()
}

/// False when the connection is gone or drowned in orders.
fn send(orders: &mpsc::Sender<Order>, fault: &Fault) -> bool {
    orders.try_send(Order::Fault(fault.clone())).is_ok()
}

async fn wave(shared: Arc<Shared>, targets: Vec<mpsc::Sender<Order>>, fault: Fault, over_ms: u64) {
    let steps = targets.len().saturating_sub(1).max(1) as u32;
    let pause = Duration::from_millis(over_ms) / steps;
    for orders in targets {
        send(&orders, &fault);
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

fn outage(shared: &Arc<Shared>, guilds: usize, ms: Option<u64>) -> usize {
    let count = guilds.min(shared.world.len()) as u32;
    (0..count).for_each(|guild| shared.set_outage(guild, true));
    if let Some(ms) = ms {
        let waiting = Arc::clone(shared);
        shared.runtime.spawn(async move {
            tokio::select! {
                () = waiting.cancel.cancelled() => return,
                () = sleep(Duration::from_millis(ms)) => {}
            }
            (0..count).for_each(|guild| waiting.set_outage(guild, false));
        });
    }
    count as usize
}

fn burst(shared: &Shared, event: &str, per_guild: u32) -> usize {
    let Some(template) = shared.templates.find(event) else {
        return 0;
    };
    for round in 0..per_guild {
        for guild in 0..shared.world.len() as u32 {
            let seed = u64::from(round) << 32 | u64::from(guild);
            shared.publish_template(&Body::Template {
                template,
                guild,
                seed,
                moment: round,
            });
        }
    }
    shared.world.len() * per_guild as usize
}

fn dispatch(shared: &Shared, t: &str, d: &serde_json::Value) -> usize {
    let d = d.to_string();
    let guild = scan::guild_of(t, d.as_bytes());
    let frame = Arc::new(RawFrame::new(shared, t, guild, d.as_bytes()));
    let recorded = Recorded {
        frame,
        intents: intents_for(t, guild == 0),
    };
    shared.publish_raw(&recorded);
    1
}

fn expire(shared: &Shared) -> usize {
    let live: Vec<_> = shared.hub().live.values().cloned().collect();
    let idle = live.iter().filter(|session| session.connection().is_none());
    idle.map(|session| shared.end_session(session, Step::Expired))
        .count()
}

/// Runs the script and keeps house until the simulator stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut script = shared.config.script.clone();
    let mut tick = tokio::time::interval(HOUSEKEEPING);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        shared.housekeep();
        let (now_ms, written) = (shared.now_us() / 1000, shared.counters.written_so_far());
        let due = |step: &mut ScriptStep| {
            step.at_ms.is_none_or(|at| now_ms >= at)
                && step.after_events.is_none_or(|events| written >= events)
        };
        for step in script.extract_if(.., due).collect::<Vec<_>>() {
            let reached = apply(&shared, step.action.clone());
            tracing::info!(action = ?step.action, reached, "script step");
        }
    }
}
