//! Which guilds the bot is in, asked of Discord when the stream cannot say: its READY and the
//! GUILD_CREATEs after it have aged out, and a RESUME brings none again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use schemas::{GuildEntry, GuildId, Snowflake};
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use twilight_http::request::Request;
use twilight_http::response::marker::EmptyBody;
use twilight_http::routing::Route;

use super::batch::{Changes, Revised};
use crate::registry::unix_ms;
use crate::rest::Rest;

/// Guilds per request, Discord's most (Get Current User Guilds).
const PAGE: u16 = 200;
/// More pages than any bot has guilds for.
const PAGES_MAX: usize = 10_000;
/// Pause after Discord could not be reached or refused the token.
const TROUBLE_PAUSE: Duration = Duration::from_secs(30);

/// Every guild of the bot.
#[derive(Debug)]
pub(crate) struct Listing {
    /// When Discord was asked for the first of them.
    asked: Instant,
    guilds: BTreeMap<GuildId, Option<String>>,
}

/// Where listings are wished for, and found.
#[derive(Debug)]
pub(crate) struct Listings {
    wanted: AtomicBool,
    wish: Notify,
    latest: watch::Sender<Option<Arc<Listing>>>,
}

impl Listings {
    pub(crate) fn new() -> Self {
        Self {
            wanted: AtomicBool::new(false),
            wish: Notify::new(),
            latest: watch::Sender::new(None),
        }
    }

    /// A listing that was asked for at this moment or later; has one made if need be.
    pub(crate) async fn after(&self, moment: Instant) -> Arc<Listing> {
        let mut latest = self.latest.subscribe();
        loop {
            if let Some(listing) = &*latest.borrow_and_update()
                && listing.asked >= moment
            {
                return Arc::clone(listing);
            }
            self.wanted.store(true, Ordering::Relaxed);
            self.wish.notify_one();
            if latest.changed().await.is_err() {
                // The sender is our own.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Makes listings when they are wished for, until dropped.
    pub(crate) async fn run(&self, rest: &Rest) {
        loop {
            if !self.wanted.swap(false, Ordering::Relaxed) {
                self.wish.notified().await;
                continue;
            }
            match list(rest).await {
                Ok(listing) => {
                    tracing::info!(
                        guilds = listing.guilds.len(),
                        "asked Discord for all guilds"
                    );
                    // Whoever wished meanwhile for a later one wishes again.
                    self.wanted.store(false, Ordering::Relaxed);
                    self.latest.send_replace(Some(Arc::new(listing)));
                }
                Err(problem) => {
                    tracing::warn!(problem, "Discord does not say which guilds there are");
                    self.wanted.store(true, Ordering::Relaxed);
                    sleep(TROUBLE_PAUSE).await;
                }
            }
        }
    }
}

impl Listing {
    /// The guilds of a shard that are not known, as entries that must be asked for at once.
    pub(crate) fn missing(
        &self,
        shard: u32,
        count: u32,
        known: impl Fn(GuildId) -> Revised,
        (stream, seq): (&str, u64),
        due_after: Duration,
    ) -> Changes {
        let due_ms = u64::try_from(due_after.as_millis()).unwrap_or(u64::MAX);
        let since = unix_ms().saturating_sub(due_ms.saturating_add(1));
        let here = self.guilds.iter();
        let here = here.filter(|(guild, _)| guild.shard(count) == shard);
        let missing = here.filter_map(|(guild, name)| {
            let Revised { entry, revision } = known(*guild);
            if entry.is_some() {
                return None;
            }
            let entry = GuildEntry {
                name: name.clone(),
                available: true,
                stale_since_unix_ms: Some(since),
                stream: stream.to_owned(),
                seq,
                ..GuildEntry::stub((*guild).into(), shard)
            };
            let entry = Some(entry);
            Some((*guild, Revised { entry, revision }))
        });
        missing.collect()
    }
}

async fn list(rest: &Rest) -> Result<Listing, String> {
    #[derive(Deserialize)]
    struct Line {
        id: Snowflake,
        #[serde(default)]
        name: Option<String>,
    }
    let asked = Instant::now();
    let mut guilds = BTreeMap::new();
    let mut after: Option<GuildId> = None;
    for _ in 0..PAGES_MAX {
        let route = Route::GetGuilds {
            after: after.map(GuildId::get),
            before: None,
            limit: Some(PAGE),
            shard: None,
        };
        let request = Request::from_route(&route);
        let send = |api: &twilight_http::Client| api.request::<EmptyBody>(request.clone());
        let response = rest.send(send).await.map_err(|error| error.to_string())?;
        let body = response.bytes().await.map_err(|error| error.to_string())?;
        let page: Vec<Line> = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let last = page.iter().map(|line| line.id.as_guild()).max();
        let whole = page.len() < usize::from(PAGE);
        guilds.extend(page.into_iter().map(|line| (line.id.as_guild(), line.name)));
        if whole || last <= after {
            return Ok(Listing { asked, guilds });
        }
        after = last;
    }
    Err("the list of guilds has no end".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guild(id: u64) -> GuildId {
        GuildId::new(id << 22).unwrap()
    }

    #[test]
    fn the_guilds_of_the_shard_that_nobody_knows_are_asked_for() {
        let names = (1..=12).map(|id| (guild(id), Some(format!("Guild {id}"))));
        let listing = Listing {
            asked: Instant::now(),
            guilds: names.collect(),
        };
        let known = |known: GuildId| Revised {
            entry: (known == guild(5)).then(|| GuildEntry::stub(known.into(), 1)),
            revision: 7,
        };
        let due = Duration::from_secs(60);
        let missing = listing.missing(1, 4, known, ("0-1", 77), due);
        let ids: Vec<GuildId> = missing.keys().copied().collect();
        assert_eq!(ids, [guild(1), guild(9)]);
        assert_eq!(missing[&guild(9)].revision, 7);
        let entry = missing[&guild(9)].entry.as_ref().unwrap();
        assert_eq!(entry.name.as_deref(), Some("Guild 9"));
        assert_eq!((entry.shard, entry.seq, &*entry.stream), (1, 77, "0-1"));
        let since = entry.stale_since_unix_ms.unwrap();
        assert!(since + 60_000 < unix_ms(), "it is due");
    }

    #[tokio::test]
    async fn a_listing_older_than_the_wish_is_not_enough() {
        let listings = Arc::new(Listings::new());
        let made = |asked| {
            let guilds = BTreeMap::new();
            Some(Arc::new(Listing { asked, guilds }))
        };
        let moment = Instant::now();
        let earlier = moment.checked_sub(Duration::from_millis(1)).unwrap();
        listings.latest.send_replace(made(earlier));
        let asking = Arc::clone(&listings);
        let asking = tokio::spawn(async move { asking.after(moment).await });
        tokio::task::yield_now().await;
        assert!(listings.wanted.load(Ordering::Relaxed) && !asking.is_finished());
        listings.latest.send_replace(made(moment));
        assert_eq!(asking.await.unwrap().asked, moment);
    }
}
