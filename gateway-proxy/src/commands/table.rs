//! Which subscription belongs to which shard, and what the server has to be told. No I/O.

use std::collections::{BTreeMap, VecDeque};

use schemas::{GuildId, Prefix, ShardId, Subject};

/// The subscription to the commands of all guilds. That of a shard has the shard's number + 1.
pub(super) const GUILDS_SID: u64 = 0;

/// Something the server does not know yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Guilds,
    Subscribe(u32),
    Unsubscribe(u32),
}

/// The ports of the shards that are held, by shard number: two shardings share their subjects.
#[derive(Debug)]
pub(super) struct Table<P> {
    ports: BTreeMap<u32, (ShardId, P)>,
    // In the order they came; empty without a connection. One per change of what is held, and written
    // at once: a connection that cannot write is given up within seconds.
    changes: VecDeque<Change>,
    linked: bool,
}

impl<P> Default for Table<P> {
    fn default() -> Self {
        Self {
            ports: BTreeMap::new(),
            changes: VecDeque::new(),
            linked: false,
        }
    }
}

impl<P> Table<P> {
    /// A shard takes commands; a port it had before gets none any more.
    pub(super) fn open(&mut self, shard: ShardId, port: P) {
        let before = self.ports.insert(shard.id(), (shard, port));
        if before.is_none() {
            self.change(Change::Subscribe(shard.id()));
        }
    }

    /// A shard takes none any more, if `is_own` says that its port is the one that is closed.
    pub(super) fn close(&mut self, shard: ShardId, is_own: impl FnOnce(&P) -> bool) {
        let own = self.ports.get(&shard.id());
        if own.is_some_and(|(_, port)| is_own(port)) {
            self.ports.remove(&shard.id());
            self.change(Change::Unsubscribe(shard.id()));
        }
    }

    /// A new connection, or one that refused a subscription: the server is told everything. To say what
    /// it knows already does no harm.
    pub(super) fn subscribe_all(&mut self) {
        self.linked = true;
        // An end of a subscription that is not told yet stays first.
        self.changes
            .retain(|change| matches!(change, Change::Unsubscribe(_)));
        self.changes.push_back(Change::Guilds);
        let held = self.ports.keys().copied().map(Change::Subscribe);
        self.changes.extend(held);
    }

    /// The connection is gone, and its subscriptions with it.
    pub(super) fn unlink(&mut self) {
        self.linked = false;
        self.changes = VecDeque::new();
    }

    /// Whether the server knows everything, or will learn it by the next connection.
    pub(super) fn is_told(&self) -> bool {
        self.changes.is_empty()
    }

    /// Appends lines of the protocol until `out` has `enough` bytes.
    pub(super) fn push_changes(&mut self, prefix: &Prefix, out: &mut Vec<u8>, enough: usize) {
        while out.len() < enough {
            let Some(change) = self.changes.pop_front() else {
                // What a start of many shards took.
                self.changes.shrink_to(0);
                return;
            };
            let line = match change {
                Change::Guilds => {
                    format!("SUB {} {GUILDS_SID}\r\n", prefix.all_guild_commands())
                }
                Change::Subscribe(shard) => {
                    let subject = Subject::ShardCommands { shard }.with_prefix(prefix);
                    format!("SUB {subject} {}\r\n", sid_of(shard))
                }
                Change::Unsubscribe(shard) => format!("UNSUB {}\r\n", sid_of(shard)),
            };
            out.extend_from_slice(line.as_bytes());
        }
    }

    /// The port of a shard's subscription.
    pub(super) fn of_sid(&self, sid: u64) -> Option<&P> {
        let shard = u32::try_from(sid.checked_sub(1)?).ok()?;
        self.ports.get(&shard).map(|(_, port)| port)
    }

    /// The port of a guild's shard.
    pub(super) fn of_guild(&self, guild: GuildId) -> Option<&P> {
        let mut ports = self.ports.values();
        ports.find_map(|(shard, port)| (guild.shard(shard.count()) == shard.id()).then_some(port))
    }

    fn change(&mut self, change: Change) {
        if self.linked {
            self.changes.push_back(change);
        }
    }
}

fn sid_of(shard: u32) -> u64 {
    u64::from(shard) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: u32) -> ShardId {
        ShardId::new(id, 4).unwrap()
    }

    fn told(table: &mut Table<char>) -> String {
        let mut out = Vec::new();
        table.push_changes(&Prefix::default(), &mut out, usize::MAX);
        String::from_utf8(out).unwrap()
    }

    const GUILDS: &str = "SUB discord.guild.*.commands 0\r\n";

    #[test]
    fn every_connection_is_told_of_the_shards_that_are_held_then() {
        let mut table = Table::default();
        table.open(shard(0), 'a');
        table.open(shard(3), 'b');
        assert_eq!(told(&mut table), "");
        table.subscribe_all();
        let all = "SUB discord.shard.0.commands 1\r\nSUB discord.shard.3.commands 4\r\n";
        assert_eq!(told(&mut table), format!("{GUILDS}{all}"));
        table.open(shard(1), 'c');
        table.close(shard(0), |port| *port == 'a');
        assert!(!table.is_told());
        assert_eq!(
            told(&mut table),
            "SUB discord.shard.1.commands 2\r\nUNSUB 1\r\n"
        );
        assert!(table.is_told());
        table.unlink();
        table.close(shard(3), |port| *port == 'b');
        table.subscribe_all();
        let left = "SUB discord.shard.1.commands 2\r\n";
        assert_eq!(told(&mut table), format!("{GUILDS}{left}"));
    }

    #[test]
    fn a_port_opened_again_keeps_the_subscription_and_outlives_the_old_one() {
        let mut table = Table::default();
        table.subscribe_all();
        table.open(shard(2), 'a');
        told(&mut table);
        table.open(shard(2), 'b');
        table.close(shard(2), |port| *port == 'a');
        assert_eq!(told(&mut table), "");
        assert_eq!(table.of_sid(3), Some(&'b'));
        table.close(shard(2), |port| *port == 'b');
        assert_eq!(told(&mut table), "UNSUB 3\r\n");
        assert_eq!(table.of_sid(3), None);
    }

    #[test]
    fn an_end_not_told_yet_is_told_before_everything_is_said_again() {
        let mut table = Table::default();
        table.subscribe_all();
        table.open(shard(2), 'a');
        told(&mut table);
        table.close(shard(2), |_| true);
        table.open(shard(1), 'b');
        table.subscribe_all();
        let rest = "SUB discord.shard.1.commands 2\r\n";
        assert_eq!(told(&mut table), format!("UNSUB 3\r\n{GUILDS}{rest}"));
    }

    #[test]
    fn messages_find_their_shard() {
        let mut table = Table::default();
        table.open(shard(0), 'a');
        table.open(shard(1), 'b');
        assert_eq!((table.of_sid(1), table.of_sid(2)), (Some(&'a'), Some(&'b')));
        for nobodys in [GUILDS_SID, 3, u64::MAX] {
            assert_eq!(table.of_sid(nobodys), None, "{nobodys}");
        }
        let guild = |shard: u64| GuildId::new((shard << 22) + 1).unwrap();
        assert_eq!(table.of_guild(guild(5)), Some(&'b'));
        assert_eq!(table.of_guild(guild(2)), None);
    }

    #[test]
    fn a_burst_ends_when_there_is_enough() {
        let mut table = Table::default();
        for id in 0..4 {
            table.open(shard(id), 'a');
        }
        table.subscribe_all();
        let mut out = Vec::new();
        table.push_changes(&Prefix::default(), &mut out, 1);
        assert_eq!(out, GUILDS.as_bytes());
        assert!(!table.is_told());
    }
}
