//! What is promised: loads, and the limits of what is read from them.

use super::{Bound, Goal, Section, Take};

/// KiB are measured, kB are promised.
const KB_PER_KIB: f64 = 1.024;
const MIB_PER_KIB: f64 = 1.0 / 1024.0;
const MS_PER_US: f64 = 1e-3;

const CPU: &str = "/client/cpu_us_per_event";
const NATS_CPU: &str = "/nats/cpu_us_per_event";
const RATE: &str = "/events_per_second";
const RSS: &str = "/memory/rss_kib";
const PEAK_RSS: &str = "/memory/peak_rss_kib";
const RSS_PER_SHARD: &str = "/rss_per_shard_kib";
const TROUBLE: &str = "/trouble";
const STORED_P50: &str = "/latency/stored/p50_us";
const STORED_P99: &str = "/latency/stored/p99_us";
const CONSUMER_P50: &str = "/latency/consumer/p50_us";
const CONSUMER_P99: &str = "/latency/consumer/p99_us";

const PACED: &str = "5,000 events/s, 8 shards";

/// A unit, and how many digits of a figure are shown after the point.
type Unit = (&'static str, usize);

const TIMES: Unit = ("×", 2);
const MS: Unit = ("ms", 2);
const MIB: Unit = ("MiB", 0);
const COUNT: Unit = ("", 0);

const fn goal(what: &'static str, bound: Bound, (unit, digits): Unit, take: Take) -> Goal {
    Goal {
        what,
        unit,
        bound,
        digits,
        take,
    }
}

const fn at_most(what: &'static str, limit: f64, unit: Unit, take: Take) -> Goal {
    goal(what, Bound::AtMost(limit), unit, take)
}

const fn at_least(what: &'static str, limit: f64, unit: Unit, take: Take) -> Goal {
    goal(what, Bound::AtLeast(limit), unit, take)
}

/// CPU per event, by itself and beside the peer that costs least.
const fn cpu(limit: f64, digits: usize, times_less: f64) -> [Goal; 2] {
    let twilight = Take::PeerOverOwn("twilight", CPU);
    [
        at_most("CPU per event", limit, ("µs", digits), Take::Own(CPU, 1.0)),
        at_least(
            "CPU of twilight in units of ours",
            times_less,
            TIMES,
            twilight,
        ),
    ]
}

const fn flood(limit: f64) -> [Goal; 3] {
    let [own, beside] = cpu(limit, 2, 2.2);
    let bare = Take::OwnOverPeer("publish", RATE);
    let rate = at_least("events/s in units of a bare publisher", 0.9, TIMES, bare);
    [own, beside, rate]
}

const fn paced() -> [Goal; 7] {
    let [own, beside] = cpu(14.0, 1, 1.8);
    let single = "nats-server's CPU in units of one write per event";
    [
        own,
        beside,
        at_most(
            "socket → stored p99",
            2.0,
            MS,
            Take::Own(STORED_P99, MS_PER_US),
        ),
        at_most(single, 0.5, TIMES, Take::OwnOverPeer("single", NATS_CPU)),
        at_most(
            "socket → consumer p50",
            1.0,
            MS,
            Take::Own(CONSUMER_P50, MS_PER_US),
        ),
        at_most(
            "socket → consumer p99",
            3.0,
            MS,
            Take::Own(CONSUMER_P99, MS_PER_US),
        ),
        at_most(
            "of it until stored, p50",
            0.5,
            TIMES,
            Take::Share(STORED_P50, CONSUMER_P50),
        ),
    ]
}

const fn memory(limit: f64, digits: usize) -> [Goal; 1] {
    let take = Take::Own(RSS_PER_SHARD, KB_PER_KIB);
    [at_most("RSS per shard", limit, ("kB", digits), take)]
}

const NO_TROUBLE: Goal = at_most(
    "resumes and broken rules, late heartbeats among them",
    0.0,
    COUNT,
    Take::Own(TROUBLE, 1.0),
);

pub(super) const SECTIONS: &[Section] = &[
    Section {
        name: "flood, presences off",
        flags: "--only proxy,twilight,publish,discord-js,discord-py",
        quick: "--events-per-shard 5000",
        goals: &flood(3.6),
    },
    Section {
        name: "flood, presences on",
        flags: "--mix presences-on --only proxy,twilight,publish",
        quick: "--events-per-shard 5000",
        goals: &flood(2.3),
    },
    Section {
        name: PACED,
        flags: "--rate 5000 --only proxy,twilight,single,discord-js,discord-py",
        quick: "--for 6 --latency-for 4",
        goals: &paced(),
    },
    Section {
        name: "5,000 events/s, 1,024 shards",
        flags: "--rate 5000 --shards 1024 --only proxy,twilight",
        quick: "--for 6 --latency-for 0",
        goals: &[at_most(
            "CPU per event in units of that of 8 shards",
            1.25,
            TIMES,
            Take::OverSection(PACED, CPU),
        )],
    },
    Section {
        name: "1,000 idle shards, zstd",
        flags: "--idle --shards 1000 --only proxy,twilight",
        quick: "",
        goals: &memory(45.0, 1),
    },
    Section {
        name: "1,000 idle shards, zlib",
        flags: "--idle --shards 1000 --compression zlib --only proxy",
        quick: "",
        goals: &memory(35.0, 1),
    },
    Section {
        name: "400 warm shards, zstd",
        flags: "--shards 400 --events-per-shard 500 --proxy-flag=--buffer-bytes=8MiB --only proxy,twilight",
        quick: "",
        goals: &memory(440.0, 0),
    },
    Section {
        name: "400 warm shards, zlib",
        flags: "--shards 400 --events-per-shard 500 --proxy-flag=--buffer-bytes=8MiB --compression zlib --only proxy",
        quick: "",
        goals: &memory(80.0, 0),
    },
    Section {
        name: "4,000 shards, 5,000 events/s, 10 minutes",
        flags: "--rate 5000 --shards 4000 --guilds-per-shard 5 --for 600 --latency-for 0 --repeat 1 --only proxy",
        quick: "--for 60",
        goals: &[
            at_most("RSS", 2048.0, MIB, Take::Own(RSS, MIB_PER_KIB)),
            at_least("events/s", 4950.0, COUNT, Take::Own(RATE, 1.0)),
            NO_TROUBLE,
        ],
    },
    Section {
        name: "cold start of 2,150 guilds × 64 shards",
        // On average: the largest shard has nearly the 2,500 that Discord allows.
        flags: "--storm --shards 64 --guilds-per-shard 2150 --repeat 1 --only proxy",
        quick: "--shards 8",
        goals: &[
            at_least(
                "JSON per second of CPU",
                300.0,
                ("MB", 0),
                Take::Own("/json_mb_per_cpu_second", 1.0),
            ),
            at_most("peak RSS", 512.0, MIB, Take::Own(PEAK_RSS, MIB_PER_KIB)),
            NO_TROUBLE,
        ],
    },
];
