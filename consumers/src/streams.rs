//! Which streams hold the events, by the proxies' `--event-streams`. Pure.

use schemas::Prefix;

/// Names of all of them; 0 streams are taken for one.
pub(crate) fn all(prefix: &Prefix, count: u32) -> Vec<String> {
    if count <= 1 {
        return vec![prefix.event_stream(None)];
    }
    let names = (0..count).map(|index| prefix.event_stream(Some(index)));
    names.collect()
}

/// Name of the one that holds a shard's events.
pub(crate) fn of_shard(prefix: &Prefix, count: u32, shard: u32) -> String {
    prefix.event_stream((count > 1).then(|| shard % count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stream_has_no_number_and_several_share_the_shards() {
        let prefix = Prefix::default();
        for one in [0, 1] {
            assert_eq!(all(&prefix, one), ["DISCORD_EVENTS"]);
            assert_eq!(of_shard(&prefix, one, 7), "DISCORD_EVENTS");
        }
        let two = ["DISCORD_EVENTS_0", "DISCORD_EVENTS_1"];
        assert_eq!(all(&prefix, 2), two);
        assert_eq!([4, 7].map(|shard| of_shard(&prefix, 2, shard)), two);
    }
}
