//! Brings Discord's list of commands in line with ours at start: reads it, writes only what
//! differs. Writing a command is an upsert by name, so workers that start together do no harm to
//! each other, and commands of others are never touched.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use twilight_http::request::Request;
use twilight_http::response::marker::EmptyBody;
use twilight_http::routing::Route;
use twilight_model::id::Id;
use twilight_model::id::marker::ApplicationMarker;

use super::definition::{Definition, to_write};
use crate::exit::Fatal;
use crate::rest::{Rest, RestError, Verdict};

/// Longest time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed request; doubled up to [`PAUSE_MAX`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What registering did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registered {
    /// Commands that were created or changed.
    pub(crate) written: usize,
    /// Commands that Discord had as declared.
    pub(crate) unchanged: usize,
}

/// Registers the commands, trying again until `deadline` while Discord cannot be reached.
pub(crate) async fn register<'a>(
    rest: &Rest,
    definitions: impl IntoIterator<Item = &'a Definition>,
    deadline: Instant,
) -> Result<Registered, Fatal> {
    let definitions: Vec<&Definition> = definitions.into_iter().collect();
    let application_id = application_id(rest, deadline).await?;
    let list = Route::GetGlobalCommands {
        application_id: application_id.get(),
        with_localizations: None,
    };
    let theirs = read(rest, &list, "the list of commands", deadline).await?;
    let Value::Array(theirs) = theirs else {
        return Err(unexpected("the list of commands"));
    };
    let missing = to_write(definitions.iter().copied(), &theirs);
    let written = missing.len();
    for definition in missing {
        let route = Route::CreateGlobalCommand {
            application_id: application_id.get(),
        };
        let request = Request::builder(&route)
            .json(definition)
            .build()
            .map_err(|error| {
                Fatal::bug(format!(
                    "the command {:?} is no JSON: {error}",
                    definition.name()
                ))
            })?;
        let what = format!("the command {:?}", definition.name());
        send(rest, &request, &what, deadline).await?;
        tracing::info!(command = definition.name(), "registered a command");
    }
    Ok(Registered {
        written,
        unchanged: definitions.len() - written,
    })
}

async fn application_id(rest: &Rest, deadline: Instant) -> Result<Id<ApplicationMarker>, Fatal> {
    let route = Route::GetCurrentUserApplicationInfo;
    let application = read(rest, &route, "the application", deadline).await?;
    let id = application
        .get("id")
        .and_then(Value::as_str)
        .and_then(|id| id.parse().ok());
    id.and_then(Id::new_checked)
        .ok_or_else(|| unexpected("the application"))
}

/// Reads a resource untyped: an entry with a field the model does not know must not keep a worker
/// from starting.
async fn read(
    rest: &Rest,
    route: &Route<'_>,
    what: &str,
    deadline: Instant,
) -> Result<Value, Fatal> {
    let body = send(rest, &Request::from_route(route), what, deadline).await?;
    serde_json::from_slice(&body).map_err(|_| unexpected(what))
}

async fn send(
    rest: &Rest,
    request: &Request,
    what: &str,
    deadline: Instant,
) -> Result<Vec<u8>, Fatal> {
    let mut pause = FIRST_PAUSE;
    let mut earlier = None;
    loop {
        let limit = deadline.min(Instant::now() + REQUEST_TIMEOUT);
        let failure = match attempt(rest, request, limit).await {
            Ok(body) => return Ok(body),
            Err(failure) => failure,
        };
        if failure.is_unauthorized() {
            return Err(Fatal::refused(
                format!("Discord refuses the token: {failure}"),
                "set the bot's current token (--token-file or DISCORD_TOKEN)",
            ));
        }
        if failure.verdict() != Verdict::TryAgain {
            return Err(Fatal::unfit(
                format!("Discord refuses {what}: {failure}"),
                "check the command's definition and --api-url",
            ));
        }
        let failure = failure.or_earlier(earlier.take());
        let next = Instant::now() + pause;
        if next >= deadline {
            return Err(Fatal::unreachable(
                format!("Discord did not answer for {what} within --startup-timeout: {failure}"),
                "check the network and --api-url",
            ));
        }
        tracing::warn!(what, error = %failure, "Discord does not answer, trying again");
        earlier = Some(failure);
        sleep_until(next).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn attempt(rest: &Rest, request: &Request, limit: Instant) -> Result<Vec<u8>, RestError> {
    let send = |api: &twilight_http::Client| api.request::<EmptyBody>(request.clone());
    let response = rest.attempt(send, limit).await?;
    match tokio::time::timeout_at(limit, response.bytes()).await {
        Ok(Ok(body)) => Ok(body),
        // A body that broke off: as if there had been no response.
        Ok(Err(_)) | Err(_) => Err(RestError::TimedOut),
    }
}

fn unexpected(what: &str) -> Fatal {
    Fatal::unfit(
        format!("Discord's answer for {what} has another shape"),
        "check --api-url",
    )
}
