//! Which shards a worker should take and which give up, from what it sees of its group. Pure.
//!
//! Every worker decides for itself and about itself. Claims are compare-and-set, so two that see
//! the group differently can both want a shard, and one gets it; what both decide from the same
//! view fits together, and after a few rounds every shard is held and the numbers differ by one.

use std::collections::{BTreeMap, BTreeSet};

/// A worker's view of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Who lives, and whether it is leaving.
    pub(crate) members: BTreeMap<String, bool>,
    /// Who holds which shard; holders that are no members are dead.
    pub(crate) holders: BTreeMap<u32, String>,
    /// All shards there are.
    pub(crate) shards: BTreeSet<u32>,
}

/// What one worker should do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Shards nobody holds, for this worker to claim.
    pub(crate) take: Vec<u32>,
    /// Shards it holds, for others.
    pub(crate) release: Vec<u32>,
}

/// Decides for one member.
pub(crate) fn plan(me: &str, view: &View) -> Plan {
    let held = |member: &str| {
        let of_member = view.holders.iter().filter(|(_, holder)| *holder == member);
        of_member.map(|(shard, _)| *shard).collect::<Vec<u32>>()
    };
    let mut mine = held(me);
    if view.members.get(me) != Some(&false) {
        // Leaving, or not a member any more.
        return Plan {
            take: Vec::new(),
            release: mine,
        };
    }
    // Whoever holds most keeps the one more that cannot be divided: the fewest moves.
    let staying = view.members.iter().filter(|(_, leaving)| !**leaving);
    let mut staying: Vec<(usize, &str)> = staying
        .map(|(member, _)| (held(member).len(), member.as_str()))
        .collect();
    staying.sort_by(|(a_held, a), (b_held, b)| b_held.cmp(a_held).then(a.cmp(b)));
    let (each, more) = (
        view.shards.len() / staying.len(),
        view.shards.len() % staying.len(),
    );
    let quota = |rank: usize| each + usize::from(rank < more);
    let rank = staying.iter().position(|(_, member)| *member == me);
    let rank = rank.expect("checked above: this member is staying");
    if mine.len() > quota(rank) {
        return Plan {
            take: Vec::new(),
            release: mine.split_off(quota(rank)),
        };
    }
    let free = view.shards.iter().copied().filter(|shard| {
        let holder = view.holders.get(shard);
        holder.is_none_or(|holder| !view.members.contains_key(holder))
    });
    // Those before us take theirs first, so that not everybody claims the same shard.
    let missing = |(rank, (held, _)): (usize, &(usize, &str))| quota(rank).saturating_sub(*held);
    let before: usize = staying.iter().enumerate().take(rank).map(missing).sum();
    Plan {
        take: free.skip(before).take(quota(rank) - mine.len()).collect(),
        release: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(members: &[&str], holders: &[(u32, &str)], shards: u32) -> View {
        View {
            members: members.iter().map(|m| ((*m).to_owned(), false)).collect(),
            holders: holders.iter().map(|(s, m)| (*s, (*m).to_owned())).collect(),
            shards: (0..shards).collect(),
        }
    }

    #[test]
    fn a_worker_alone_takes_everything() {
        let plan = plan("a", &view(&["a"], &[], 3));
        assert_eq!((plan.take, plan.release), (vec![0, 1, 2], vec![]));
    }

    #[test]
    fn workers_that_start_together_want_different_shards() {
        let view = view(&["a", "b", "c"], &[], 8);
        let takes = ["a", "b", "c"].map(|me| plan(me, &view).take);
        assert_eq!(takes, [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]);
    }

    #[test]
    fn a_newcomer_gets_its_share_and_nothing_else_moves() {
        let held: Vec<(u32, &str)> = (0..16).map(|s| (s, ["a", "b"][s as usize % 2])).collect();
        let view = view(&["a", "b", "c"], &held, 16);
        assert_eq!(plan("a", &view).release.len(), 2);
        assert_eq!(plan("b", &view).release.len(), 3);
        let nothing = plan("c", &view);
        assert_eq!(nothing, Plan::default(), "what is held is not taken");
    }

    #[test]
    fn the_shards_of_the_dead_go_to_the_living() {
        let view = view(
            &["a", "b"],
            &[(0, "a"), (1, "dead"), (2, "b"), (3, "dead")],
            4,
        );
        assert_eq!(plan("a", &view).take, [1]);
        assert_eq!(plan("b", &view).take, [3]);
    }

    #[test]
    fn who_leaves_gives_all_and_keeps_what_it_has_until_then() {
        let mut view = view(&["a", "b"], &[(0, "a"), (1, "b")], 2);
        view.members.insert("a".to_owned(), true);
        assert_eq!(plan("a", &view).release, [0]);
        assert_eq!(plan("b", &view), Plan::default());
        view.holders.remove(&0);
        assert_eq!(plan("b", &view).take, [0]);
        assert_eq!(plan("gone", &view), Plan::default());
    }

    /// Lets one member act on a view that may be old; claims are compare-and-set on the truth.
    fn act(truth: &mut View, seen: &View, me: &str) -> usize {
        let Plan { take, release } = plan(me, seen);
        let mut moves = 0;
        for shard in release {
            if truth.holders.get(&shard).is_some_and(|holder| holder == me) {
                truth.holders.remove(&shard);
                moves += 1;
            }
        }
        for shard in take {
            if truth.holders.get(&shard) == seen.holders.get(&shard) {
                truth.holders.insert(shard, me.to_owned());
                moves += 1;
            }
        }
        moves
    }

    #[test]
    fn any_group_comes_to_rest_balanced_whatever_came_and_went() {
        for seed in 1..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let shards = random.u32(1..=40);
            let mut truth = view(&["w0"], &[], shards);
            let mut old = truth.clone();
            for step in 0..200 {
                let worker = format!("w{}", random.usize(..6));
                match random.usize(..12) {
                    0 => drop(truth.members.insert(worker, false)),
                    1 if truth.members.len() > 1 => drop(truth.members.remove(&worker)),
                    2 if truth.members.len() > 1 && truth.members.contains_key(&worker) => {
                        truth.members.insert(worker, true);
                    }
                    _ if truth.members.contains_key(&worker) => {
                        let seen = if random.usize(..3) == 0 { &old } else { &truth };
                        let seen = seen.clone();
                        act(&mut truth, &seen, &worker);
                    }
                    _ => {}
                }
                if step % 5 == 0 {
                    old = truth.clone();
                }
            }
            truth.members.retain(|_, leaving| !*leaving);
            truth.members.entry("w9".to_owned()).or_insert(false);
            let mut moves = 1;
            for round in 0.. {
                assert!(round < 10, "seed {seed} does not come to rest: {truth:?}");
                if moves == 0 {
                    break;
                }
                moves = 0;
                for me in truth.members.clone().into_keys() {
                    let seen = truth.clone();
                    moves += act(&mut truth, &seen, &me);
                }
            }
            let counts: Vec<usize> = truth
                .members
                .keys()
                .map(|m| truth.holders.values().filter(|h| *h == m).count())
                .collect();
            let (least, most) = (counts.iter().min(), counts.iter().max());
            assert!(
                most.unwrap() - least.unwrap() <= 1,
                "seed {seed}: {counts:?}"
            );
            assert_eq!(counts.iter().sum::<usize>(), shards as usize, "seed {seed}");
        }
    }
}
