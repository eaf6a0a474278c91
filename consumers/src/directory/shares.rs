//! Which instance reads which shard. Pure: every instance that sees the same instances comes to the
//! same answer, and an instance that comes or goes moves no shard between the others.
//!
//! While instances disagree for a moment, the position's revision in the bucket decides who reads.

/// The instance that should read the shard: the highest score wins (rendezvous hashing).
pub(crate) fn reader(shard: u32, instances: &[String]) -> Option<&str> {
    let scored = instances.iter().map(|name| (score(shard, name), name));
    scored.max().map(|(_, name)| name.as_str())
}

/// FNV-1a over the name, stirred with the shard (`SplitMix64`): stable across versions and machines,
/// since instances of both must agree.
fn score(shard: u32, name: &str) -> u64 {
    let name = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let z = name ^ u64::from(shard).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whether no sharding known for the shard places the guild on it; `false` while none is known.
pub(crate) fn is_misplaced(guild: schemas::GuildId, shard: u32, counts: &[u32]) -> bool {
    !counts.is_empty() && counts.iter().all(|count| guild.shard(*count) != shard)
}

#[cfg(test)]
mod tests {
    use schemas::GuildId;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn nobody_reads_without_an_instance() {
        assert_eq!(reader(3, &[]), None);
    }

    #[test]
    fn shards_are_spread_and_the_order_of_the_names_does_not_matter() {
        let (one, other) = (names(&["a", "b", "c"]), names(&["c", "a", "b"]));
        let mut shares = [0; 3];
        for shard in 0..999 {
            let name = reader(shard, &one).unwrap();
            assert_eq!(Some(name), reader(shard, &other));
            shares[one.iter().position(|known| known == name).unwrap()] += 1;
        }
        assert!(
            shares.iter().all(|share| (250..420).contains(share)),
            "{shares:?}"
        );
    }

    #[test]
    fn an_instance_that_leaves_moves_its_own_shards_only() {
        let (before, after) = (names(&["a", "b", "c"]), names(&["a", "c"]));
        for shard in 0..500 {
            let was = reader(shard, &before).unwrap();
            if was != "b" {
                assert_eq!(reader(shard, &after), Some(was));
            }
        }
    }

    #[test]
    fn a_guild_is_misplaced_if_no_sharding_puts_it_here() {
        let guild = GuildId::new(5 << 22).unwrap();
        assert!(!is_misplaced(guild, 9, &[]));
        assert!(!is_misplaced(guild, 1, &[4]));
        assert!(is_misplaced(guild, 1, &[8]));
        assert!(!is_misplaced(guild, 1, &[8, 4]));
    }
}
