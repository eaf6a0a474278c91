//! How many shards the bot has. A session belongs to one count, so that changing it ends every session:
//! it happens when operators agree on it, and by itself only where no session is left to lose.

use std::collections::BTreeMap;
use std::fmt;

use schemas::ProxyId;

/// Discord recommends about one shard per 1,000 guilds and refuses (4011) more than 2,500 on one. From
/// this multiple of the old count on, a start follows the recommendation although sessions end.
const TOO_FEW: u32 = 2;

/// What a member of the fleet is started with: `Some` of `--shards <count>`, `None` of `auto`, which takes
/// what there is.
pub type Wish = Option<u32>;

/// What a coordinator knows.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The coordinator's own wish.
    pub own: Wish,
    /// What the living members of the fleet want that stay, the coordinator included.
    pub wishes: &'a [(&'a ProxyId, Wish)],
    /// The count that sessions belong to: the plan's, unless nothing of it is left.
    pub kept: Option<u32>,
    /// What a start with `--shards auto` takes ([`at_start`]).
    pub first: u32,
}

/// What operators have to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Another count from here on.
    Changed {
        /// Before.
        was: u32,
        /// From now on.
        to: u32,
    },
    /// Proxies were started with other counts than the one that stays.
    Disagreement {
        /// The count that stays.
        stays: u32,
        /// Who wants which other one.
        others: BTreeMap<u32, Vec<ProxyId>>,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { was, to } => write!(
                f,
                "the number of shards changes from {was} to {to}: every session begins anew"
            ),
            Self::Disagreement { stays, others } => {
                write!(f, "the bot has {stays} shards, but ")?;
                for (index, (count, proxies)) in others.iter().enumerate() {
                    let comma = if index > 0 { "; " } else { "" };
                    let names: Vec<&str> = proxies.iter().map(ProxyId::as_str).collect();
                    let names = names.join(", ");
                    write!(
                        f,
                        "{comma}--shards {count} is what {names} was started with"
                    )?;
                }
                write!(
                    f,
                    ". The number changes once all proxies are started with the same --shards"
                )
            }
        }
    }
}

/// The count to plan with, and what is odd about it.
#[must_use]
pub fn of_fleet(facts: &Facts<'_>) -> (u32, Option<Notice>) {
    let mut wanted = facts.wishes.iter().map(|(_, wish)| *wish);
    let first = wanted.next().flatten();
    let unanimous = first.filter(|_| wanted.all(|wish| wish == first));
    let count = match (facts.kept, unanimous) {
        (_, Some(count)) => count,
        (Some(kept), None) => kept,
        (None, None) => {
            let fixed = facts.wishes.iter().find_map(|(_, wish)| *wish);
            facts.own.or(fixed).unwrap_or(facts.first).max(1)
        }
    };
    let mut others: BTreeMap<u32, Vec<ProxyId>> = BTreeMap::new();
    for (proxy, wish) in facts.wishes {
        if let Some(wish) = wish.filter(|wish| *wish != count) {
            others.entry(wish).or_default().push((*proxy).clone());
        }
    }
    let notice = match facts.kept.filter(|kept| *kept != count) {
        Some(was) => Some(Notice::Changed { was, to: count }),
        None => (!others.is_empty()).then_some(Notice::Disagreement {
            stays: count,
            others,
        }),
    };
    (count, notice)
}

/// What the bucket tells a process that starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The plan's count, if a member of a fleet lives that follows it.
    pub followed: Option<u32>,
    /// The count of shards that living processes hold.
    pub held: Option<u32>,
    /// The count of the newest session that nobody holds and that may still be resumed.
    pub resumable: Option<u32>,
}

/// The count a start with `--shards auto` goes on with. A plan that is not [`Found::followed`] and has
/// another one is void: nothing of it is left.
#[must_use]
pub fn at_start(found: Found, recommended: u32) -> u32 {
    let enough = |count: &u32| recommended < count.saturating_mul(TOO_FEW);
    found
        .followed
        .or(found.held)
        .or(found.resumable.filter(enough))
        .unwrap_or(recommended)
}

/// True when Discord may refuse this count (close code 4010): bots beyond 150,000 guilds are given a
/// number that their count must be a multiple of. It shows as `max_concurrency`, which is 1 for all others.
#[must_use]
pub const fn may_be_refused(count: u32, max_concurrency: u32) -> bool {
    max_concurrency > 1 && !count.is_multiple_of(max_concurrency)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wishes: &[Wish], kept: Option<u32>, expect: u32, notice: Option<&str>) {
        let names: Vec<ProxyId> = (0..wishes.len())
            .map(|number| format!("p{number}").parse().unwrap())
            .collect();
        let wishes: Vec<(&ProxyId, Wish)> = names.iter().zip(wishes.iter().copied()).collect();
        let facts = Facts {
            own: wishes.first().and_then(|(_, wish)| *wish),
            wishes: &wishes,
            kept,
            first: 10,
        };
        let (count, said) = of_fleet(&facts);
        assert_eq!(count, expect, "{facts:?}");
        let said = said.map(|said| said.to_string());
        assert_eq!(
            said.is_some(),
            notice.is_some(),
            "{facts:?} said {said:?}, not {notice:?}"
        );
        if let (Some(said), Some(notice)) = (said, notice) {
            assert!(said.contains(notice), "{said}");
        }
    }

    #[test]
    fn the_first_plan_takes_what_was_asked_for_or_recommended() {
        check(&[None, None], None, 10, None);
        check(&[Some(4), Some(4)], None, 4, None);
        check(&[None, Some(4)], None, 4, None);
        check(&[Some(4), Some(6)], None, 4, Some("--shards 6 is what p1"));
        check(&[], None, 10, None);
    }

    #[test]
    fn a_count_that_runs_stays_until_every_proxy_is_started_with_another() {
        check(&[None, None], Some(8), 8, None);
        check(&[Some(8), Some(8)], Some(8), 8, None);
        check(
            &[Some(16), Some(8)],
            Some(8),
            8,
            Some("--shards 16 is what p0 was"),
        );
        check(&[Some(16), None], Some(8), 8, Some("16"));
        check(&[Some(16), Some(16)], Some(8), 16, Some("from 8 to 16"));
    }

    #[test]
    fn a_start_keeps_the_count_of_sessions_unless_discord_would_soon_refuse_it() {
        let resumable = |count| Found {
            resumable: Some(count),
            ..Found::default()
        };
        assert_eq!(at_start(Found::default(), 10), 10);
        assert_eq!(at_start(resumable(8), 15), 8);
        assert_eq!(at_start(resumable(8), 16), 16);
        assert_eq!(at_start(resumable(12), 10), 12);
        let held = Found {
            held: Some(8),
            ..resumable(9)
        };
        assert_eq!(at_start(held, 16), 8, "others hold shards of it");
        let followed = Found {
            followed: Some(7),
            ..held
        };
        assert_eq!(at_start(followed, 16), 7);
    }

    #[test]
    fn counts_of_very_large_bots_are_multiples_of_what_discord_gave_them() {
        assert!(!may_be_refused(7, 1));
        assert!(!may_be_refused(160, 16));
        assert!(may_be_refused(161, 16));
    }
}
