//! Discord's REST API: builds the clients and posts the first response of an interaction within
//! its deadline. Everything about retrying stands here; what an outcome means for the stored
//! message is the worker's decision.

mod base;

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, sleep_until, timeout_at};
use twilight_http::Client;
use twilight_http::api_error::ApiError;
use twilight_http::error::{Error as HttpError, ErrorType};
use twilight_http::response::{Response as HttpResponse, ResponseFuture};
use twilight_model::application::interaction::Interaction;

pub use base::{ApiBase, ApiBaseError};

use crate::response::Response;

/// Tries per answer. With the pauses below they fill Discord's window; more would only add to the
/// invalid requests that Discord counts (10,000 of them in 10 minutes are a ban).
const TRIES_MAX: u32 = 4;
/// Pause after the first failed try; doubled after each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest time for one try: a connection that hangs must leave time for another.
const TRY_TIMEOUT: Duration = Duration::from_secs(1);

/// "Interaction has already been acknowledged" (Discord, JSON error codes).
const ALREADY_ACKNOWLEDGED: u64 = 40_060;

/// The clients of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Rest {
    api: Arc<Client>,
    /// For interaction callbacks, which carry no bot token: separate, because a client that has
    /// met a 401 refuses every later request, and answers need no valid token.
    callbacks: Arc<Client>,
}

impl Rest {
    pub(crate) fn new(base: &ApiBase, token: &SecretString) -> Self {
        install_crypto();
        let builder = || Client::builder().proxy(base.host().to_owned(), base.plain_http());
        Self {
            api: Arc::new(builder().token(token.expose_secret().to_owned()).build()),
            callbacks: Arc::new(builder().build()),
        }
    }

    /// The client with the bot's token.
    pub(crate) const fn api(&self) -> &Arc<Client> {
        &self.api
    }

    /// Posts the first response; tries again while that can help and `deadline` is not over.
    pub(crate) async fn answer(
        &self,
        interaction: &Interaction,
        response: &Response,
        deadline: Instant,
    ) -> Result<Answered, AnswerError> {
        let client = self.callbacks.interaction(interaction.application_id);
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        loop {
            let post =
                client.create_response(interaction.id, &interaction.token, response.as_model());
            let limit = deadline.min(Instant::now() + TRY_TIMEOUT);
            let Err(failure) = once(post.into_future(), limit).await else {
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
    Refused(#[source] RequestError),
    /// No try got through.
    #[error("Discord could not be reached in time")]
    Unavailable(#[source] RequestError),
}

/// One request that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("no response in time")]
    TimedOut,
    #[error("rate limited")]
    RateLimited,
    #[error("{0}")]
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

impl RequestError {
    pub(crate) fn verdict(&self) -> Verdict {
        let Self::Http(error) = self else {
            return Verdict::TryAgain;
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

/// Sends a request once.
///
/// Left alone, twilight repeats a 429 at once and without end when its headers do not say how long
/// to wait, which runs into Discord's ban; here a second sending is the caller's decision. Where the
/// headers do say it, twilight's rate limiter has waited before this returns.
pub(crate) async fn once<T: Unpin>(
    mut request: ResponseFuture<T>,
    limit: Instant,
) -> Result<HttpResponse<T>, RequestError> {
    let sent = AtomicBool::new(false);
    let first = move || !sent.swap(true, Ordering::Relaxed);
    // False only if the request failed before sending; awaiting it says why.
    let _guarded: bool = request.set_pre_flight(first);
    match timeout_at(limit, request).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) if matches!(error.kind(), ErrorType::RequestCanceled) => {
            Err(RequestError::RateLimited)
        }
        Ok(Err(error)) => Err(RequestError::Http(error)),
        Err(_) => Err(RequestError::TimedOut),
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
}
