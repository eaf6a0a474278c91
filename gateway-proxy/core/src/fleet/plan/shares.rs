//! Fair shares: proportional to capacity, and never above it.

/// What one member counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weight {
    /// Most shards it takes, `None` for no limit.
    pub(super) capacity: Option<u32>,
    /// Its part of the whole. Without a limit: as much as the largest that has one.
    pub(super) weight: u64,
}

/// The weights of members with these capacities.
pub(super) fn weights(capacities: &[Option<u32>]) -> Vec<Weight> {
    let largest = capacities.iter().flatten().copied().max();
    let largest = largest.unwrap_or(1).max(1);
    let weight = |capacity: &Option<u32>| Weight {
        capacity: *capacity,
        weight: u64::from(capacity.unwrap_or(largest)),
    };
    capacities.iter().map(weight).collect()
}

/// How many of `total` shards each should have at least: its proportional part, rounded down; where
/// that is above the capacity, the capacity, and those without a limit share the rest evenly.
pub(super) fn shares(weights: &[Weight], total: u32) -> Vec<u32> {
    let total = u64::from(total);
    let sum: u64 = weights.iter().map(|member| member.weight).sum();
    let limited: u64 = weights
        .iter()
        .filter_map(|member| member.capacity)
        .map(u64::from)
        .sum();
    let unlimited = weights
        .iter()
        .filter(|member| member.capacity.is_none())
        .count() as u64;
    let share = |member: &Weight| {
        let share = match member.capacity {
            // Limits equal weights, so all limits are reached together, when the total is the sum.
            Some(capacity) if total >= sum => u64::from(capacity),
            None if total >= sum => (total - limited.min(total)) / unlimited.max(1),
            Some(capacity) => (total * member.weight / sum).min(u64::from(capacity)),
            None => total * member.weight / sum,
        };
        u32::try_from(share).unwrap_or(u32::MAX)
    };
    weights.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(capacities: &[Option<u32>], total: u32, expect: &[u32]) {
        assert_eq!(shares(&weights(capacities), total), expect);
    }

    #[test]
    fn shares_are_proportional_and_within_capacity() {
        check(&[None, None], 5, &[2, 2]);
        check(&[Some(10), Some(30)], 20, &[5, 15]);
        check(&[Some(10), Some(30)], 100, &[10, 30]);
        check(&[Some(10), None], 8, &[4, 4]);
        check(&[Some(10), None], 100, &[10, 90]);
        check(&[Some(10), None, None], 100, &[10, 45, 45]);
        check(&[Some(0), Some(4)], 4, &[0, 4]);
        check(&[], 4, &[]);
    }
}
