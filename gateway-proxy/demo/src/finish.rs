//! The end of a run: everything that was sent is waited for, every part ends as an operator would
//! end it, and then ledger and stream are compared.

use std::time::{Duration, Instant};

use async_nats::Client;
use futures_util::future::join_all;
use schemas::Prefix;
use testkit::audit::{audit, wait_caught_up};
use testkit::simulator::{ANSWER_WITHIN, Load, Simulator};
use tokio::time::sleep;

use crate::exit::Fatal;
use crate::member::{Member, first_death};
use crate::plain::say;
use crate::summary::Summary;
use crate::text::count;
use crate::world::World;

/// A healthy system is caught up within milliseconds; a machine under load may take long.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(60);
/// Longer than the grace period of the programs.
const DRAINED_WITHIN: Duration = Duration::from_secs(40);
/// An answer that is due has come by then, or the simulator has given it up.
const ANSWERED_WITHIN: Duration = ANSWER_WITHIN.saturating_add(Duration::from_secs(3));
const POLL_EVERY: Duration = Duration::from_millis(20);

/// Ends a run that was under load for `ran`; an error when not all was well.
pub(crate) async fn finish(mut world: World, ran: Duration) -> Result<(), Fatal> {
    let World {
        members,
        simulator,
        client,
        kept_logs,
        ..
    } = &mut world;
    let mut troubles = Vec::new();
    simulator.set_load(Load::quiet());
    let began = Instant::now();
    tokio::select! {
        settled = settle(simulator, client) => troubles.extend(settled.err()),
        death = first_death(members, kept_logs.is_some()) => troubles.push(death.to_string()),
    }
    if troubles.is_empty() {
        say(&format!(
            "load stopped; everything was stored {}",
            after(began)
        ));
    }
    let began = Instant::now();
    troubles.extend(drain(members).await);
    say(&format!("proxies and workers have ended {}", after(began)));
    let ledger = simulator.ledger();
    say(&format!(
        "comparing {} events with the stream …",
        count(ledger.events())
    ));
    let report = audit(client, &Prefix::default(), &ledger).await;
    let stats = simulator.stats();
    let summary = Summary {
        ran,
        audit: report.map_err(|error| error.to_string()),
        commands: stats.interactions,
        starts_left: stats.starts_left,
        troubles,
    };
    say(summary.to_string().trim_end());
    if let Some(logs) = kept_logs {
        say(&format!("logs are kept in {}", logs.display()));
    }
    let reasons = summary.reasons();
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Fatal::Unclean { reasons })
    }
}

fn after(began: Instant) -> String {
    format!("{:.1} s later", began.elapsed().as_secs_f64())
}

/// Waits for what is still on its way: answers, then events.
async fn settle(simulator: &Simulator, client: &Client) -> Result<(), String> {
    let deadline = Instant::now() + ANSWERED_WITHIN;
    while Instant::now() < deadline {
        let commands = simulator.stats().interactions;
        // Late ones count as unanswered too.
        if commands.answered + commands.unanswered >= commands.typed {
            break;
        }
        sleep(POLL_EVERY).await;
    }
    let caught_up = wait_caught_up(client, &Prefix::default(), simulator, CAUGHT_UP_WITHIN).await;
    caught_up.map_err(|error| error.to_string())
}

/// Ends every part as an operator does, all at once; who did not end well.
async fn drain(members: &mut [Member]) -> Vec<String> {
    let drained = members.iter_mut().map(|member| async {
        let name = member.card.name.clone();
        match member.drain(DRAINED_WITHIN).await {
            Ok(status) if status.success() => None,
            Ok(status) => Some(format!(
                "{name} ended with {status}; the end of its log:\n{}",
                member.card.log_end()
            )),
            Err(error) => Some(format!("{name} {error}")),
        }
    });
    join_all(drained).await.into_iter().flatten().collect()
}
