//! Rate limits: a fixed window per bucket, one per second over all, and a ban for abuse.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::super::guilds::splitmix;

/// Window of the limit over all routes.
const GLOBAL_WINDOW: Duration = Duration::from_secs(1);
/// Ten thousand 401, 403 and 429 answers in this time ban an address.
const INVALID_WINDOW: Duration = Duration::from_secs(600);
const INVALID_MAX: usize = 10_000;
/// Windows kept; the oldest are forgotten when they are over.
const WINDOWS_MAX: usize = 10_000;

/// The limit a request falls under: its route and top-level resource.
pub(super) struct Bucket {
    pub(super) key: String,
    pub(super) limit: u32,
    pub(super) window: Duration,
    /// Interaction endpoints do not count against the limit over all routes.
    pub(super) counts_globally: bool,
    pub(super) needs_token: bool,
}

impl Bucket {
    /// The figures are of the order of Discord's, which are unpublished.
    pub(super) fn of(method: &str, path: &str) -> Self {
        let path = path.strip_prefix("/api/v10").unwrap_or(path);
        let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let bucket = |key: String, limit, seconds| Self {
            key,
            limit,
            window: Duration::from_secs(seconds),
            counts_globally: true,
            needs_token: true,
        };
        match segments.as_slice() {
            ["gateway"] => Self {
                needs_token: false,
                ..bucket("gateway".to_owned(), 50, 1)
            },
            ["interactions", id, ..] => Self {
                counts_globally: false,
                needs_token: false,
                ..bucket(format!("{method} interactions {id}"), 5, 5)
            },
            ["webhooks", _, token, ..] => Self {
                counts_globally: false,
                needs_token: false,
                ..bucket(format!("{method} webhooks {token}"), 5, 2)
            },
            ["channels", id, "messages"] => bucket(format!("{method} messages {id}"), 5, 5),
            ["applications", _, "guilds", guild, ..] => {
                bucket(format!("{method} guild commands {guild}"), 20, 5)
            }
            ["applications", _, "commands", ..] => bucket(format!("{method} commands"), 20, 5),
            ["guilds", id, ..] => bucket(format!("{method} guilds {id}"), 10, 5),
            _ => bucket(format!("{method} {path}"), 20, 5),
        }
    }

    /// What `X-RateLimit-Bucket` says.
    pub(super) fn hash(&self) -> String {
        let route = self.key.split(' ').take(2).flat_map(str::bytes);
        format!(
            "{:016x}",
            route.fold(0, |hash, byte| splitmix(hash ^ u64::from(byte)))
        )
    }
}

struct Window {
    ends: Instant,
    used: u32,
}

/// All windows.
#[derive(Default)]
pub(super) struct Limits {
    windows: HashMap<String, Window>,
    global: Option<Window>,
    invalid: VecDeque<Instant>,
}

/// A request counted against its limits.
pub(super) struct Usage {
    used: u32,
    limit: u32,
    ends_in: Duration,
    global_ends_in: Option<Duration>,
}

impl Usage {
    pub(super) const fn is_exceeded(&self) -> bool {
        self.used > self.limit || self.global_ends_in.is_some()
    }

    pub(super) const fn is_global(&self) -> bool {
        self.global_ends_in.is_some()
    }

    pub(super) const fn remaining(&self) -> u32 {
        self.limit.saturating_sub(self.used)
    }

    pub(super) fn reset_after(&self) -> Duration {
        self.global_ends_in.unwrap_or(self.ends_in)
    }
}

impl Limits {
    /// Counts a request.
    pub(super) fn take(&mut self, bucket: &Bucket, per_second: u32, now: Instant) -> Usage {
        if self.windows.len() >= WINDOWS_MAX {
            self.windows.retain(|_, window| window.ends > now);
        }
        let mut global_ends_in = None;
        if bucket.counts_globally {
            let global = self.global.take().filter(|window| window.ends > now);
            let mut global = global.unwrap_or(Window {
                ends: now + GLOBAL_WINDOW,
                used: 0,
            });
            global.used += 1;
            if global.used > per_second {
                global_ends_in = Some(global.ends - now);
            }
            self.global = Some(global);
        }
        let fresh = || Window {
            ends: now + bucket.window,
            used: 0,
        };
        let window = self.windows.entry(bucket.key.clone()).or_insert_with(fresh);
        if window.ends <= now {
            *window = fresh();
        }
        if global_ends_in.is_none() {
            window.used += 1;
        }
        Usage {
            used: window.used,
            limit: bucket.limit,
            ends_in: window.ends - now,
            global_ends_in,
        }
    }

    pub(super) fn count_invalid(&mut self, now: Instant) {
        self.invalid.push_back(now);
        if self.invalid.len() > INVALID_MAX {
            self.invalid.pop_front();
        }
    }

    pub(super) fn is_banned(&self, now: Instant) -> bool {
        self.invalid.len() == INVALID_MAX
            && self
                .invalid
                .front()
                .is_some_and(|oldest| *oldest + INVALID_WINDOW > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_is_exceeded_until_its_window_ends() {
        let mut limits = Limits::default();
        let bucket = Bucket::of("POST", "/api/v10/channels/5/messages");
        for remaining in (0..5).rev() {
            let usage = limits.take(&bucket, 50, Instant::now());
            assert!(!usage.is_exceeded());
            assert_eq!(usage.remaining(), remaining);
        }
        assert!(limits.take(&bucket, 50, Instant::now()).is_exceeded());
        let other = Bucket::of("POST", "/api/v10/channels/6/messages");
        assert!(!limits.take(&other, 50, Instant::now()).is_exceeded());
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(!limits.take(&bucket, 50, Instant::now()).is_exceeded());
    }

    #[tokio::test(start_paused = true)]
    async fn interaction_endpoints_skip_the_global_limit() {
        let mut limits = Limits::default();
        for id in 0..10 {
            let bucket = Bucket::of("GET", &format!("/api/v10/guilds/{id}"));
            let usage = limits.take(&bucket, 8, Instant::now());
            assert_eq!(usage.is_global(), id >= 8, "{id}");
        }
        let callback = Bucket::of("POST", "/api/v10/interactions/1/tok/callback");
        assert!(!callback.needs_token);
        assert!(!limits.take(&callback, 8, Instant::now()).is_exceeded());
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_invalid_requests_ban() {
        let mut limits = Limits::default();
        for _ in 0..INVALID_MAX {
            assert!(!limits.is_banned(Instant::now()));
            limits.count_invalid(Instant::now());
        }
        assert!(limits.is_banned(Instant::now()));
        tokio::time::advance(INVALID_WINDOW).await;
        assert!(!limits.is_banned(Instant::now()));
    }
}
