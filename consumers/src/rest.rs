//! Discord's REST API: sends requests within the worker's share of the global rate limit, tries again
//! what can succeed, keeps Discord's ban at a distance, and posts the first response of an
//! interaction within its deadline. What an outcome means for the stored message is the worker's
//! decision.

mod base;
mod breaker;
mod gate;
mod member;
mod metrics;
mod shares;
mod window;

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, sleep_until, timeout_at};
use twilight_http::Client;
use twilight_http::api_error::ApiError;
use twilight_http::client::InteractionClient;
use twilight_http::error::{Error as HttpError, ErrorType};
use twilight_http::response::{Response as HttpResponse, ResponseFuture};
use twilight_http_ratelimiting::RateLimiter;
use twilight_model::application::interaction::Interaction;
use twilight_model::http::interaction::{InteractionResponse, InteractionResponseData};
use twilight_model::id::Id;
use twilight_model::id::marker::ApplicationMarker;

pub use base::{ApiBase, ApiBaseError};
use breaker::Purpose;
use gate::Gate;
use member::Member;
pub(crate) use member::Membership;
use metrics::RequestOutcome;
pub(crate) use metrics::RestMetrics;

use crate::nats::Link;
use crate::registry::Registry;

/// Tries per answer. With the pauses below they fill Discord's window; more would only add to the
/// invalid requests that Discord counts (10,000 of them in 10 minutes are a ban).
const TRIES_MAX: u32 = 4;
/// Pause after the first failed try; doubled after each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest time for one try: a connection that hangs must leave time for another.
const TRY_TIMEOUT: Duration = Duration::from_secs(1);

/// How long [`Rest::send`] tries unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest that it does: four times what the token of an interaction is good for.
const PATIENCE_MAX: Duration = Duration::from_secs(3600);
/// Tries of [`Rest::send`], with the pauses below 12 seconds and more.
const SEND_TRIES_MAX: u32 = 6;
/// Pause after the first failed try of [`Rest::send`]; doubled after each further one.
const SEND_FIRST_PAUSE: Duration = Duration::from_millis(400);
/// Longest wait for the response to one of its tries. Discord answers slow requests within a few
/// seconds or not at all.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// "Interaction has already been acknowledged" (Discord, JSON error codes).
const ALREADY_ACKNOWLEDGED: u64 = 40_060;

/// Discord's REST API. Cheap to clone.
///
/// [`Rest::send`] is for everything with the bot's token. Discord allows a bot 50 such requests per
/// second; the workers that are alive divide them among themselves, and a request waits for room in
/// its worker's share. Limits of single routes are kept by `twilight-http`. [`Rest::interact`] is for
/// interactions, whose endpoints the global limit does not count.
///
/// ```no_run
/// # use consumers::{Context, HandlerError};
/// # async fn example(context: Context) -> Result<(), HandlerError> {
/// use twilight_model::id::Id;
///
/// let channel = Id::new(81384788765712384);
/// let send = |api: &twilight_http::Client| api.create_message(channel).content("Hello").into_future();
/// let message = context.rest().send(send).await?.model().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Rest {
    api: Arc<Client>,
    /// For interactions, whose endpoints take no bot token: separate, because a client that has met
    /// a 401 refuses every later request, and answers need no valid token.
    callbacks: Arc<Client>,
    gate: Arc<Gate>,
    metrics: RestMetrics,
    patience: Duration,
}

impl Rest {
    /// Clients for this address; `budget` is what all workers together may send per second.
    pub(crate) fn new(
        base: &ApiBase,
        token: &SecretString,
        budget: Option<u32>,
        metrics: RestMetrics,
    ) -> Self {
        install_crypto();
        // The global limit is the gate's: what a client knows of it ends at its process.
        let builder = || {
            Client::builder()
                .proxy(base.host().to_owned(), base.plain_http())
                .ratelimiter(Some(RateLimiter::new(u16::MAX)))
                .timeout(RESPONSE_TIMEOUT)
        };
        Self {
            api: Arc::new(builder().token(token.expose_secret().to_owned()).build()),
            callbacks: Arc::new(builder().build()),
            gate: Arc::new(Gate::new(budget, metrics.clone())),
            metrics,
            patience: PATIENCE,
        }
    }

    /// The same, trying for this long instead of 15 seconds, an hour at most.
    #[must_use]
    pub fn within(&self, patience: Duration) -> Self {
        Self {
            patience,
            ..self.clone()
        }
    }

    /// Sends a request with the bot's token, once there is room in this worker's share. 429, 5xx and
    /// lost connections are tried again while there is time: `build` is called for each try, and
    /// Discord may have taken a try whose response got lost, so that a message can come twice.
    ///
    /// # Errors
    /// [`RestError`].
    pub async fn send<T: Unpin>(
        &self,
        build: impl Fn(&Client) -> ResponseFuture<T> + Send + Sync,
    ) -> Result<HttpResponse<T>, RestError> {
        let mut tries = Tries::new(self.patience);
        loop {
            match self.attempt(&build, tries.deadline).await {
                Ok(response) => return Ok(response),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    /// Sends a request about an interaction, by its token: edit the response, add a message to it.
    /// It waits for nobody's share, and is tried again like [`Rest::send`].
    ///
    /// # Errors
    /// [`RestError`].
    pub async fn interact<T: Unpin>(
        &self,
        application: Id<ApplicationMarker>,
        build: impl Fn(&InteractionClient<'_>) -> ResponseFuture<T> + Send + Sync,
    ) -> Result<HttpResponse<T>, RestError> {
        let mut tries = Tries::new(self.patience);
        loop {
            let request = build(&self.callbacks.interaction(application));
            match self.callback(request, tries.deadline).await {
                Ok(response) => return Ok(response),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    /// Requests per second that this worker may send at the moment; `None` when nobody counts
    /// (`--rest-budget off`).
    #[must_use]
    pub fn share(&self) -> Option<u32> {
        self.gate.share()
    }

    /// Begins to share the budget with the other workers; `None` without one.
    pub(crate) fn join(
        &self,
        link: &Link,
        registry: &Registry,
        worker: &str,
    ) -> Option<Membership> {
        let member = Member {
            link: link.clone(),
            registry: registry.clone(),
            worker: worker.to_owned(),
            gate: Arc::clone(&self.gate),
            metrics: self.metrics.clone(),
        };
        member.start()
    }

    /// Sends a request with the bot's token once.
    pub(crate) async fn attempt<T: Unpin>(
        &self,
        build: impl Fn(&Client) -> ResponseFuture<T> + Send + Sync,
        deadline: Instant,
    ) -> Result<HttpResponse<T>, RestError> {
        let sent = loop {
            if let Some(closed) = self.gate.closed_for(Purpose::Anything) {
                break Err(RestError::Halted(closed));
            }
            if !self.gate.wait(deadline).await {
                break Err(RestError::NoRoom);
            }
            match once(build(&self.api), Some(&self.gate), deadline).await {
                // Others were faster, or the route's own limit has taken longer.
                Err(RestError::NoRoom) => {}
                sent => break sent,
            }
        };
        self.note(&sent);
        sent
    }

    async fn callback<T: Unpin>(
        &self,
        request: ResponseFuture<T>,
        limit: Instant,
    ) -> Result<HttpResponse<T>, RestError> {
        let sent = match self.gate.closed_for(Purpose::Interaction) {
            Some(closed) => Err(RestError::Halted(closed)),
            None => once(request, None, limit).await,
        };
        self.note(&sent);
        sent
    }

    /// Puts a message in the place of a deferred response.
    pub(crate) async fn edit(
        &self,
        interaction: &Interaction,
        response: &InteractionResponse,
        within: Duration,
    ) -> Result<(), RestError> {
        let data = response.data.clone().unwrap_or_default();
        // Whether a message is ephemeral was decided by the first response.
        let data = InteractionResponseData {
            flags: None,
            ..data
        };
        let body = serde_json::to_vec(&data).expect("a response is made of texts and numbers");
        let token = &interaction.token;
        let edit = |client: &InteractionClient<'_>| {
            let request = client.update_response(token);
            request.payload_json(&body).into_future()
        };
        let patient = self.within(within);
        patient
            .interact(interaction.application_id, edit)
            .await
            .map(drop)
    }

    fn note<T>(&self, sent: &Result<T, RestError>) {
        let outcome = match sent {
            Ok(_) => RequestOutcome::Done,
            Err(RestError::NoRoom) => RequestOutcome::NoRoom,
            Err(RestError::Halted(_)) => RequestOutcome::Halted,
            Err(RestError::RateLimited) => RequestOutcome::RateLimited,
            Err(RestError::TimedOut) => RequestOutcome::Failed,
            Err(error) => match error.verdict() {
                Verdict::TryAgain => RequestOutcome::Failed,
                Verdict::Acknowledged | Verdict::Gone | Verdict::Refused => RequestOutcome::Refused,
            },
        };
        self.metrics.request(outcome);
        if let Err(error) = sent
            && error.is_invalid()
        {
            self.gate.count_invalid();
        }
    }

    /// Posts the first response; tries again while that can help and `deadline` is not over.
    pub(crate) async fn answer(
        &self,
        interaction: &Interaction,
        response: &InteractionResponse,
        deadline: Instant,
    ) -> Result<Answered, AnswerError> {
        let client = self.callbacks.interaction(interaction.application_id);
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        loop {
            let post = client.create_response(interaction.id, &interaction.token, response);
            let limit = deadline.min(Instant::now() + TRY_TIMEOUT);
            let Err(failure) = self.callback(post.into_future(), limit).await else {
                return Ok(Answered::ByUs);
            };
            match failure.verdict() {
                Verdict::Acknowledged => return Ok(Answered::Before),
                Verdict::Gone => return Err(AnswerError::Gone),
                Verdict::Refused => return Err(AnswerError::Refused(failure)),
                Verdict::TryAgain => {}
            }
            tries += 1;
            let next = Instant::now() + pause;
            if tries == TRIES_MAX || next >= deadline {
                return Err(AnswerError::Unavailable(failure));
            }
            tracing::debug!(error = %failure, tries, "posting an answer failed, trying again");
            sleep_until(next).await;
            pause *= 2;
        }
    }
}

/// The tries of one request.
struct Tries {
    deadline: Instant,
    made: u32,
    pause: Duration,
    /// The last failed try.
    failed: Option<RestError>,
}

impl Tries {
    fn new(patience: Duration) -> Self {
        Self {
            deadline: Instant::now() + patience.min(PATIENCE_MAX),
            made: 0,
            pause: SEND_FIRST_PAUSE,
            failed: None,
        }
    }

    /// Waits for the next try after a failed one; the failure if there is none.
    async fn again(&mut self, failure: RestError) -> Result<(), RestError> {
        self.made += 1;
        let next = Instant::now() + self.pause;
        let hopeless = failure.verdict() != Verdict::TryAgain;
        if hopeless || self.made == SEND_TRIES_MAX || next >= self.deadline {
            return Err(failure.or_earlier(self.failed.take()));
        }
        tracing::debug!(error = %failure, tries = self.made, "a request failed, trying again");
        self.failed = Some(failure.or_earlier(self.failed.take()));
        sleep_until(next).await;
        self.pause *= 2;
        Ok(())
    }
}

/// How an interaction came to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// Discord took the response.
    ByUs,
    /// Discord had a response already: an earlier delivery of the same interaction.
    Before,
}

/// Why an interaction has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    /// Discord does not know the interaction, or not any more.
    #[error("Discord does not know the interaction any more")]
    Gone,
    /// Discord refuses this response; repeating it is pointless.
    #[error("Discord refuses the response")]
    Refused(#[source] RestError),
    /// No try got through.
    #[error("Discord could not be reached in time")]
    Unavailable(#[source] RestError),
}

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestError {
    /// No response came in time.
    #[error("no response in time")]
    TimedOut,
    /// Discord says 429, and said it again.
    #[error("rate limited")]
    RateLimited,
    /// All requests that this worker may send were sent.
    #[error("no room in this worker's share of the global rate limit in time")]
    NoRoom,
    /// So many requests were invalid that Discord is about to ban the address.
    #[error("kept back for {0:?}: too many answers of 401, 403 and 429 in the last 10 minutes")]
    Halted(Duration),
    /// Discord says no, or could not be reached.
    // For a refused connection twilight's own text says no more than that receiving the response failed.
    #[error("{}", schemas::exit::with_causes(.0))]
    Http(HttpError),
}

/// What a failed request means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Acknowledged,
    Gone,
    Refused,
    TryAgain,
}

impl RestError {
    /// What to tell of a request that ends with this failure after an `earlier` one: that there was no
    /// room any more for a last try is no reason, why the tries before failed is.
    pub(crate) fn or_earlier(self, earlier: Option<Self>) -> Self {
        match (self, earlier) {
            (Self::NoRoom, Some(earlier)) => earlier,
            (failure, _) => failure,
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let error = match self {
            Self::Http(error) => error,
            Self::TimedOut | Self::RateLimited | Self::NoRoom => return Verdict::TryAgain,
            Self::Halted(_) => return Verdict::Refused,
        };
        match error.kind() {
            ErrorType::Response { error, status, .. } => judge(status.get(), code(error)),
            // A body that is no JSON comes from something before Discord (a proxy, Cloudflare),
            // and twilight keeps no status for it.
            ErrorType::Parsing { .. }
            | ErrorType::RequestError
            | ErrorType::RequestTimedOut
            | ErrorType::RequestCanceled => Verdict::TryAgain,
            // What is left fails before anything is sent, and would again.
            _ => Verdict::Refused,
        }
    }

    /// Whether Discord counts it towards a ban.
    const fn is_invalid(&self) -> bool {
        match self {
            Self::RateLimited => true,
            Self::Http(error) => match error.kind() {
                ErrorType::Response { status, .. } => matches!(status.get(), 401 | 403),
                _ => false,
            },
            Self::TimedOut | Self::NoRoom | Self::Halted(_) => false,
        }
    }

    /// Whether Discord does not accept the token.
    pub(crate) const fn is_unauthorized(&self) -> bool {
        let Self::Http(error) = self else {
            return false;
        };
        match error.kind() {
            ErrorType::Response { status, .. } => matches!(status.get(), 401 | 403),
            ErrorType::Unauthorized => true,
            _ => false,
        }
    }
}

const fn code(error: &ApiError) -> Option<u64> {
    match error {
        ApiError::General(error) => Some(error.code),
        _ => None,
    }
}

const fn judge(status: u16, code: Option<u64>) -> Verdict {
    match (status, code) {
        (_, Some(ALREADY_ACKNOWLEDGED)) => Verdict::Acknowledged,
        (404, _) => Verdict::Gone,
        (408 | 429 | 500.., _) => Verdict::TryAgain,
        _ => Verdict::Refused,
    }
}

/// How far a request has come.
const WAITING: u8 = 0;
const SENT: u8 = 1;
/// It could be sent but for the gate.
const HELD: u8 = 2;

/// Sends a request once, if the gate has room for it at that moment.
///
/// Left alone, twilight repeats a 429 at once and without end when its headers do not say how long
/// to wait, which runs into Discord's ban; here a second sending is the caller's decision. Where the
/// headers do say it, twilight's rate limiter has waited before this returns.
async fn once<T: Unpin>(
    mut request: ResponseFuture<T>,
    gate: Option<&Arc<Gate>>,
    limit: Instant,
) -> Result<HttpResponse<T>, RestError> {
    let progress = Arc::new(AtomicU8::new(WAITING));
    let (stage, gate) = (Arc::clone(&progress), gate.cloned());
    // Called when the route's own limit lets the request go, right before it is sent.
    let first = move || {
        if stage.load(Ordering::Relaxed) != WAITING {
            return false;
        }
        let passes = gate.as_ref().is_none_or(|gate| gate.try_pass());
        stage.store(if passes { SENT } else { HELD }, Ordering::Relaxed);
        passes
    };
    // False only if the request failed before sending; awaiting it says why.
    let _guarded: bool = request.set_pre_flight(first);
    match timeout_at(limit, request).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) if matches!(error.kind(), ErrorType::RequestCanceled) => {
            match progress.load(Ordering::Relaxed) {
                HELD => Err(RestError::NoRoom),
                _ => Err(RestError::RateLimited),
            }
        }
        Ok(Err(error)) => Err(RestError::Http(error)),
        Err(_) => Err(RestError::TimedOut),
    }
}

/// Chooses the TLS implementation of the process, unless the program has one.
fn install_crypto() {
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::trace!("the process has a TLS provider already");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interaction_that_discord_has_acknowledged_counts_as_done() {
        assert_eq!(judge(400, Some(40_060)), Verdict::Acknowledged);
    }

    #[test]
    fn an_unknown_interaction_is_gone() {
        assert_eq!(judge(404, Some(10_062)), Verdict::Gone);
        assert_eq!(judge(404, None), Verdict::Gone);
    }

    #[test]
    fn faults_of_the_way_are_tried_again_and_faults_of_ours_are_not() {
        for status in [408, 429, 500, 502, 503, 504, 520] {
            assert_eq!(judge(status, Some(0)), Verdict::TryAgain, "{status}");
        }
        for status in [400, 401, 403, 405, 413] {
            assert_eq!(judge(status, Some(50_035)), Verdict::Refused, "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn patience_without_an_end_does_not_panic_and_is_an_hour() {
        let tries = Tries::new(Duration::MAX);
        assert_eq!(tries.deadline, Instant::now() + Duration::from_secs(3600));
    }

    #[test]
    fn a_request_that_never_got_through_is_not_said_to_have_had_no_room() {
        let told = RestError::NoRoom.or_earlier(Some(RestError::TimedOut));
        assert!(matches!(told, RestError::TimedOut));
        let told = RestError::NoRoom.or_earlier(None);
        assert!(matches!(told, RestError::NoRoom));
        let told = RestError::RateLimited.or_earlier(Some(RestError::TimedOut));
        assert!(matches!(told, RestError::RateLimited));
    }
}
