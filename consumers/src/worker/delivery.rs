//! One delivery from arrival to acknowledgement: type it, judge its age, let the handler answer,
//! post the answer, tell the stream.

use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;
use twilight_model::application::interaction::{Interaction, InteractionType};

use super::outcome::Outcome;
use super::shared::Shared;
use crate::context::Context;
use crate::durable::{ACK_WAIT, MAX_DELIVER};
use crate::interaction::{
    Freshness, InteractionEvent, Key, RESPONSE_WINDOW, TOKEN_LIFE, created_ms, freshness,
};
use crate::registry::unix_ms;
use crate::response::{Later, Response};
use crate::rest::{AnswerError, Answered};
use crate::router::HandlerError;

/// How often JetStream is told that a delivery is still being worked on.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(ACK_WAIT.as_millis() as u64 / 3);
/// Time kept back from the handler for posting the answer: one round trip to Discord with margin.
const ANSWER_RESERVE: Duration = Duration::from_millis(500);
/// Time that must be left for another delivery to be worth it: pause, pull, handler and answer.
const GIVE_BACK_MIN: Duration = Duration::from_millis(400);
/// Time kept back from deferred work for posting what it has.
const EDIT_RESERVE: Duration = Duration::from_secs(15);
/// What the user sees when a handler fails.
const APOLOGY: &str = "Something went wrong while handling this command.";

/// What one delivery has led to besides its outcome.
#[derive(Default)]
struct Progress {
    /// The interaction's age when the first response was posted, or not.
    answered: Option<Duration>,
    deferred: Option<Deferred>,
}

/// Handles one delivery and settles it with the stream; what is left to do after that, if anything.
pub(crate) async fn handle(shared: &Shared, message: Message) -> Option<Deferred> {
    let span = tracing::info_span!("interaction", subject = %message.subject);
    async {
        shared.metrics.started();
        let mut done = Progress::default();
        let outcome = {
            let work = process(shared, &message, &mut done);
            tokio::pin!(work);
            let mut progress = interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
            progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    outcome = &mut work => break outcome,
                    _ = progress.tick() => tell(&message, AckKind::Progress).await,
                }
            }
        };
        tell(&message, outcome.settlement()).await;
        tracing::debug!(outcome = outcome.as_str(), age = ?done.answered, "interaction settled");
        shared.metrics.finished(outcome, done.answered);
        done.deferred
    }
    .instrument(span)
    .await
}

/// A settlement that does not reach the server leads to another delivery, which Discord answers
/// with "already acknowledged": nothing is lost by it.
async fn tell(message: &Message, settlement: AckKind) {
    if let Err(error) = message.ack_with(settlement).await {
        tracing::warn!(%error, "the stream could not be told about an interaction");
    }
}

async fn process(shared: &Shared, message: &Message, progress: &mut Progress) -> Outcome {
    let now_ms = unix_ms();
    let event = match InteractionEvent::decode(message.payload.clone()) {
        Ok(event) => event,
        Err(error) => {
            if let Some(more) = shared.warnings.undecodable.admit(Instant::now().into_std()) {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, more, "an interaction cannot be read, it is given up");
            }
            return Outcome::Undecodable;
        }
    };
    let id = event.interaction.id.get();
    let Some(left) = left(shared, message, id, now_ms) else {
        return Outcome::Stale;
    };
    let age = RESPONSE_WINDOW.saturating_sub(left);
    shared.metrics.arrived(age);
    let deadline = Instant::now() + left;
    let context = match context(shared, message, &event, age) {
        Ok(context) => context,
        Err(error) => {
            tracing::warn!(%error, "an interaction has a subject that is not ours");
            return Outcome::Undecodable;
        }
    };
    let deliveries = context.event.deliveries;
    let Some(handler) = shared.router.route(&event.interaction) else {
        let last = left < GIVE_BACK_MIN || deliveries >= MAX_DELIVER.unsigned_abs();
        tracing::debug!(id, last, "an interaction has no handler here");
        return match last {
            true => Outcome::Unhandled,
            false => Outcome::LeftToOthers,
        };
    };
    // Even a late handler gets half of what is left.
    let reserve = ANSWER_RESERVE.min(left / 2);
    let asked = event.interaction.clone();
    let handling = async move { handler.handle(context, asked).await };
    let answer = run(handling, deadline - reserve).await;
    let (mut response, failed) = match answer {
        Ok(response) => (response, false),
        Err(failure) => {
            let asked = Key::of(&event.interaction);
            tracing::error!(id, ?asked, %failure, "a handler failed");
            (apology(&event.interaction), true)
        }
    };
    let rest = &shared.rest;
    let posted = rest
        .answer(&event.interaction, response.as_model(), deadline)
        .await;
    progress.answered = Some(age_of(id));
    if let (Some(later), Ok(_)) = (response.take_later(), &posted) {
        let interaction = event.interaction;
        progress.deferred = Some(Deferred { interaction, later });
    }
    match failed {
        true => Outcome::Failed,
        false => judge(posted, id, deliveries, deadline),
    }
}

/// The rest of a deferred response.
pub(crate) struct Deferred {
    interaction: Interaction,
    later: Later,
}

/// How long Discord still waits for the answer to an interaction, if it does.
fn left(shared: &Shared, message: &Message, id: u64, now_ms: u64) -> Option<Duration> {
    match freshness(id, now_ms) {
        Freshness::Fresh { left } => Some(left),
        Freshness::Stale { age } => {
            if let Some(more) = shared.warnings.stale.admit(Instant::now().into_std()) {
                // In the stream for a short time only: a proxy was late or a clock is wrong.
                let stored_s = stored_seconds(message, now_ms);
                tracing::warn!(
                    id,
                    ?age,
                    stored_s,
                    more,
                    "an interaction came too late to answer"
                );
            }
            None
        }
    }
}

/// What a user sees when a handler fails.
fn apology(interaction: &Interaction) -> Response {
    match interaction.kind {
        // Nothing but suggestions can be answered.
        InteractionType::ApplicationCommandAutocomplete => Response::choices([]),
        _ => Response::text(APOLOGY).ephemeral(),
    }
}

impl Deferred {
    /// Waits for it, and puts it in the place of "thinking …".
    pub(crate) async fn finish(self, shared: &Shared) {
        let Self { interaction, later } = self;
        let id = interaction.id.get();
        let left = TOKEN_LIFE.saturating_sub(age_of(id) + EDIT_RESERVE);
        let (response, failed) = match run(later, Instant::now() + left).await {
            Ok(response) => (response, false),
            Err(failure) => {
                let asked = Key::of(&interaction);
                tracing::error!(id, ?asked, %failure, "the rest of a deferred response failed");
                (Response::text(APOLOGY), true)
            }
        };
        let model = response.as_model();
        let edited = shared.rest.edit(&interaction, model, EDIT_RESERVE).await;
        if let Err(error) = &edited {
            tracing::error!(id, %error, "the rest of a deferred response could not be posted");
        }
        shared.metrics.deferred(edited.is_ok() && !failed);
    }
}

fn age_of(id: u64) -> Duration {
    Duration::from_millis(unix_ms().saturating_sub(created_ms(id)))
}

/// How long the stream has had a message, by its clock and ours.
fn stored_seconds(message: &Message, now_ms: u64) -> Option<i64> {
    let stored_s = message.info().ok()?.published.unix_timestamp();
    i64::try_from(now_ms / 1000).ok()?.checked_sub(stored_s)
}

fn judge(
    posted: Result<Answered, AnswerError>,
    id: u64,
    deliveries: u64,
    deadline: Instant,
) -> Outcome {
    match posted {
        Ok(Answered::ByUs) => Outcome::Answered,
        Ok(Answered::Before) => Outcome::AlreadyAnswered,
        Err(AnswerError::Gone) => {
            tracing::warn!(
                id,
                deliveries,
                "Discord does not know the interaction any more"
            );
            Outcome::Expired
        }
        Err(AnswerError::Refused(error)) => {
            tracing::error!(id, %error, "Discord refuses an answer");
            Outcome::Refused
        }
        Err(AnswerError::Unavailable(error)) => {
            let left = deadline.saturating_duration_since(Instant::now());
            let again = left >= GIVE_BACK_MIN && deliveries < MAX_DELIVER.unsigned_abs();
            tracing::error!(id, %error, ?left, again, "Discord could not be reached in time");
            if again {
                Outcome::GivenBack
            } else {
                Outcome::Unreachable
            }
        }
    }
}

/// What the handler of an interaction is told: its age is that of the interaction.
fn context(
    shared: &Shared,
    message: &Message,
    event: &InteractionEvent,
    age: Duration,
) -> Result<Context, schemas::SubjectError> {
    let mut context = shared.context(message)?;
    context.event.seq = event.seq;
    context.age = age;
    Ok(context)
}

/// Why a handler has no answer.
#[derive(Debug, thiserror::Error)]
enum HandlerFailure {
    #[error("{0}")]
    Error(HandlerError),
    #[error("panicked: {0}")]
    Panicked(String),
    #[error("did not answer in time")]
    TimedOut,
}

/// Runs a handler in a task of its own, so that its panic is its own too, and drops it at the
/// deadline.
async fn run(
    handling: impl Future<Output = Result<Response, HandlerError>> + Send + 'static,
    deadline: Instant,
) -> Result<Response, HandlerFailure> {
    let task = AbortOnDropHandle::new(tokio::spawn(handling.in_current_span()));
    match timeout_at(deadline, task).await {
        Ok(Ok(answer)) => answer.map_err(HandlerFailure::Error),
        Ok(Err(ended)) => Err(HandlerFailure::Panicked(panic_text(ended))),
        Err(_) => Err(HandlerFailure::TimedOut),
    }
}

fn panic_text(ended: tokio::task::JoinError) -> String {
    match ended.try_into_panic() {
        Ok(payload) => {
            let text = payload.downcast_ref::<&str>().map(ToString::to_string);
            text.or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_default()
        }
        Err(cancelled) => cancelled.to_string(),
    }
}
