//! How the workers of a bot divide the global rate limit among themselves. Pure.
//!
//! Every worker states in a bucket what it claims, and reads what all state, in the bucket's order.
//! What it may use follows from that order alone, so that all agree without asking each other: a
//! claim holds once the claims that stand at that moment fit into the budget. Until then what the
//! worker had before holds, unless it claims less by now. So the sum of what holds never exceeds the
//! budget, however old the view of each worker is.

use std::collections::BTreeMap;

/// The claims as one worker has read them up to now.
#[derive(Clone, Debug)]
pub(crate) struct Shares {
    me: String,
    budget: u32,
    claims: BTreeMap<String, u32>,
    granted: u32,
}

impl Shares {
    /// For the worker of this name in the bucket; `budget` is what all have together.
    pub(crate) const fn new(me: String, budget: u32) -> Self {
        Self {
            me,
            budget,
            claims: BTreeMap::new(),
            granted: 0,
        }
    }

    /// Begins to read anew; what holds for this worker goes on to hold.
    pub(crate) fn reread(&mut self) {
        self.claims.clear();
    }

    /// Takes one entry of the bucket; `None`: the worker is gone. True if somebody else has less
    /// than before.
    pub(crate) fn read(&mut self, member: &str, claim: Option<u32>) -> bool {
        let before = match claim {
            Some(claim) => self.claims.insert(member.to_owned(), claim),
            None => self.claims.remove(member),
        };
        if member == self.me {
            self.granted = self.granted.min(claim.unwrap_or_default());
            return false;
        }
        // A worker that is gone without having been seen has left something too.
        claim.is_none() || before > claim
    }

    /// What holds for this worker now that everything up to a moment was read.
    pub(crate) fn grant(&mut self) -> u32 {
        if self.sum() <= u64::from(self.budget) {
            self.granted = self.claims.get(&self.me).copied().unwrap_or_default();
        }
        self.granted
    }

    /// What this worker should claim, if that is not what it claims: an equal part, and no more than
    /// is free at the moment.
    pub(crate) fn wanted(&self) -> Option<u32> {
        let claimed = self.claims.get(&self.me).copied()?;
        let members = u32::try_from(self.claims.len()).unwrap_or(u32::MAX);
        let rank = self.claims.keys().take_while(|member| **member < self.me);
        let rank = u32::try_from(rank.count()).unwrap_or(u32::MAX);
        let part = self.budget / members + u32::from(rank < self.budget % members);
        let others = self.sum() - u64::from(claimed);
        let fits = others + u64::from(part) <= u64::from(self.budget);
        (part < claimed || (part > claimed && fits)).then_some(part)
    }

    /// How many workers there are.
    pub(crate) fn members(&self) -> usize {
        self.claims.len()
    }

    fn sum(&self) -> u64 {
        self.claims.values().copied().map(u64::from).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: u32 = 50;

    #[test]
    fn a_worker_alone_has_everything_and_a_second_one_half() {
        let mut shares = Shares::new("a".to_owned(), BUDGET);
        shares.read("a", Some(0));
        assert_eq!((shares.grant(), shares.wanted()), (0, Some(50)));
        shares.read("a", Some(50));
        assert_eq!((shares.grant(), shares.wanted()), (50, None));
        assert!(!shares.read("b", Some(0)));
        assert_eq!(shares.wanted(), Some(25));
        shares.read("a", Some(25));
        assert!(!shares.read("b", Some(25)));
        assert_eq!((shares.grant(), shares.wanted()), (25, None));
        assert!(shares.read("b", None), "something became free");
        assert_eq!(shares.wanted(), Some(50));
    }

    #[test]
    fn a_newcomer_claims_nothing_before_it_is_free() {
        let mut shares = Shares::new("b".to_owned(), BUDGET);
        shares.read("a", Some(50));
        shares.read("b", Some(0));
        assert_eq!((shares.grant(), shares.wanted()), (0, None));
        assert!(shares.read("a", Some(25)));
        assert_eq!(shares.wanted(), Some(25));
    }

    #[test]
    fn what_cannot_be_divided_goes_to_the_first() {
        for (me, part) in [("a", 17), ("b", 17), ("c", 16)] {
            let mut shares = Shares::new(me.to_owned(), BUDGET);
            for member in ["a", "b", "c"] {
                shares.read(member, Some(0));
            }
            assert_eq!(shares.wanted(), Some(part), "{me}");
        }
        let mut shares = Shares::new("w99".to_owned(), BUDGET);
        for number in 0..=99 {
            shares.read(&format!("w{number:02}"), Some(0));
        }
        assert_eq!((shares.members(), shares.wanted()), (100, None));
    }

    #[test]
    fn a_claim_made_too_early_does_not_hold() {
        let mut shares = Shares::new("b".to_owned(), BUDGET);
        shares.read("b", Some(10));
        assert_eq!(shares.grant(), 10);
        shares.read("a", Some(30));
        shares.read("b", Some(25));
        assert_eq!(shares.grant(), 10, "30 and 25 are too much");
        shares.read("a", Some(25));
        assert_eq!(shares.grant(), 25);
    }

    /// A worker that has read the log up to a point, and uses what it found last.
    struct Worker {
        shares: Shares,
        read: usize,
        uses: u32,
    }

    type Log = Vec<(String, Option<u32>)>;

    impl Worker {
        fn catch_up(&mut self, log: &Log, to: usize) {
            while self.read < to {
                let (member, claim) = &log[self.read];
                self.shares.read(member, *claim);
                self.uses = self.shares.grant();
                self.read += 1;
            }
        }

        fn act(&mut self, log: &mut Log) {
            if let Some(wanted) = self.shares.wanted() {
                // Less is used before it is said.
                self.uses = self.uses.min(wanted);
                log.push((self.shares.me.clone(), Some(wanted)));
            }
        }
    }

    #[test]
    fn never_more_than_the_budget_is_used_however_late_each_worker_reads() {
        for seed in 1..400 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut log = Log::new();
            let mut workers: BTreeMap<String, Worker> = BTreeMap::new();
            for step in 0..600 {
                let name = format!("w{step}");
                match random.usize(..40) {
                    0 if workers.len() < 7 => {
                        log.push((name.clone(), Some(0)));
                        let shares = Shares::new(name.clone(), BUDGET);
                        let (read, uses) = (0, 0);
                        let worker = Worker { shares, read, uses };
                        workers.insert(name, worker);
                    }
                    1 if !workers.is_empty() => {
                        let gone = workers.keys().nth(random.usize(..workers.len()));
                        let gone = gone.unwrap().clone();
                        workers.remove(&gone);
                        log.push((gone, None));
                    }
                    _ if !workers.is_empty() => {
                        let which = random.usize(..workers.len());
                        let worker = workers.values_mut().nth(which).unwrap();
                        let to = worker.read + random.usize(..=log.len() - worker.read);
                        worker.catch_up(&log, to);
                        worker.act(&mut log);
                    }
                    _ => {}
                }
                let used: u32 = workers.values().map(|worker| worker.uses).sum();
                assert!(used <= BUDGET, "seed {seed}, step {step}: {used}");
            }
            // And once nothing happens any more, all of it is used.
            for _ in 0..20 {
                for worker in workers.values_mut() {
                    let to = log.len();
                    worker.catch_up(&log, to);
                    worker.act(&mut log);
                }
            }
            let used: u32 = workers.values().map(|worker| worker.uses).sum();
            assert!(workers.is_empty() || used == BUDGET, "seed {seed}: {used}");
        }
    }
}
