//! Asks Discord about guilds of which events may be missing, slowly: most are described again by
//! their own GUILD_CREATE before their turn comes.

use std::sync::Arc;
use std::time::Duration;

use schemas::{GuildEntry, GuildId};
use tokio::time::{Instant, sleep};
use twilight_http::error::ErrorType;
use twilight_http::request::Request;
use twilight_http::response::marker::EmptyBody;
use twilight_http::routing::Route;

use super::Shared;
use super::batch::{Known as _, Revised, adopt};
use super::event::{self, Facts};
use crate::registry::unix_ms;
use crate::rest::{Rest, RestError, Verdict};

/// Time for the GUILD_CREATE that follows a new session: Discord sends them within seconds, for
/// large bots within a minute.
const DUE_AFTER: Duration = Duration::from_secs(60);
/// Pause before it is looked again when nothing is due.
const IDLE_PAUSE: Duration = Duration::from_millis(500);
/// Requests for one guild.
const REQUESTS: u32 = 2;
/// The part of this process' share of the global rate limit that refreshing may use: half.
const SHARE_PART: u32 = 2;
/// Pause after Discord could not be reached or refused the token.
const TROUBLE_PAUSE: Duration = Duration::from_secs(30);
/// Longest time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What Discord says about a guild.
enum Answer {
    Facts(Facts),
    /// The bot is not in it.
    Gone,
}

/// The task.
pub(crate) struct Refresh {
    pub(crate) shared: Arc<Shared>,
    pub(crate) rest: Rest,
}

impl Refresh {
    /// How long a guild waits for its own events unless a test is in a hurry.
    pub(crate) const DUE_AFTER: Duration = DUE_AFTER;

    /// Runs until dropped.
    pub(crate) async fn run(self) {
        loop {
            let due_ms = u64::try_from(self.shared.refresh_after.as_millis()).unwrap_or(u64::MAX);
            let before = unix_ms().saturating_sub(due_ms);
            let due = self.shared.view.stale_before(before, &self.shared.name);
            let pause = match due {
                Some(entry) => self.refresh(entry).await,
                None => IDLE_PAUSE,
            };
            sleep(pause).await;
        }
    }

    async fn refresh(&self, entry: GuildEntry) -> Duration {
        let guild = entry.id.as_guild();
        let answer = match self.ask(guild).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(%guild, %error, "Discord does not describe the guild");
                // It is not asked for again at once: the others come first.
                self.postpone(&entry).await;
                // Whatever it is, it is not the guild.
                return TROUBLE_PAUSE;
            }
        };
        let Shared { view, store, .. } = &*self.shared;
        // What came in while Discord was asked may or may not be in its answer.
        let now = view.revised(guild);
        if now.entry.as_ref() != Some(&entry) {
            return self.pause();
        }
        let changed = match answer {
            Answer::Gone => None,
            Answer::Facts(facts) => {
                let mut fresh = entry;
                adopt(&mut fresh, facts);
                fresh.stale_since_unix_ms = None;
                Some(fresh)
            }
        };
        let changed = Revised {
            entry: changed,
            ..now
        };
        match store.write_guild(view, guild, changed).await {
            Ok(()) => {
                self.shared.metrics.refreshed.inc();
                tracing::debug!(%guild, "asked Discord about a guild");
            }
            Err(error) => tracing::debug!(%error, "a guild changed while Discord was asked"),
        }
        self.pause()
    }

    /// Time between two guilds.
    fn pause(&self) -> Duration {
        match self.rest.share() {
            Some(share) if share > 0 => Duration::from_secs(1) * REQUESTS * SHARE_PART / share,
            // Nobody counts, or there is nothing to share.
            _ => IDLE_PAUSE,
        }
    }

    async fn ask(&self, guild: GuildId) -> Result<Answer, RestError> {
        let route = Route::GetGuild {
            guild_id: guild.get(),
            with_counts: true,
        };
        let Some(body) = self.get(&route).await? else {
            return Ok(Answer::Gone);
        };
        let Ok(mut facts) = event::from_rest(&body) else {
            return Err(RestError::TimedOut);
        };
        facts.id = guild;
        let route = Route::GetChannels {
            guild_id: guild.get(),
        };
        // Its channels may be hidden from the bot; what is known of them stays.
        if let Ok(Some(body)) = self.get(&route).await {
            facts.channels = event::channels_from_rest(&body).ok();
        }
        Ok(Answer::Facts(facts))
    }

    /// The body; `None` when the guild is not there for this bot.
    async fn get(&self, route: &Route<'_>) -> Result<Option<Vec<u8>>, RestError> {
        let request = Request::from_route(route);
        let limit = Instant::now() + REQUEST_TIMEOUT;
        let send = |api: &twilight_http::Client| api.request::<EmptyBody>(request.clone());
        match self.rest.within(REQUEST_TIMEOUT).send(send).await {
            Ok(response) => match tokio::time::timeout_at(limit, response.bytes()).await {
                Ok(Ok(body)) => Ok(Some(body)),
                Ok(Err(_)) | Err(_) => Err(RestError::TimedOut),
            },
            Err(error) if error.verdict() == Verdict::Gone || is_missing_access(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn postpone(&self, entry: &GuildEntry) {
        let later = GuildEntry {
            stale_since_unix_ms: Some(unix_ms()),
            ..entry.clone()
        };
        let Shared { view, store, .. } = &*self.shared;
        let now = view.revised(entry.id.as_guild());
        if now.entry.as_ref() == Some(entry) {
            let later = Revised {
                entry: Some(later),
                ..now
            };
            let written = store.write_guild(view, entry.id.as_guild(), later);
            if let Err(error) = written.await {
                tracing::debug!(%error, "a guild changed while Discord was asked");
            }
        }
    }
}

/// Discord's own 403, which a guild that removed the bot answers (50001, Missing Access); a refused
/// token is a 401, and a ban of the address has no JSON.
fn is_missing_access(error: &RestError) -> bool {
    let RestError::Http(error) = error else {
        return false;
    };
    matches!(error.kind(), ErrorType::Response { status, .. } if status.get() == 403)
}
