//! What can be chosen.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use testkit::simulator::Mix;

/// Measures the proxy end to end, beside what it is compared with: CPU per event of every process,
/// memory per shard, events per second and latency.
#[derive(Clone, Debug, Parser)]
#[command(name = "load", version, args_override_self = true)]
pub(crate) struct Args {
    /// Gateway shards.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=16_000))]
    pub(crate) shards: u32,
    /// Transport compression of the gateway.
    #[arg(long, value_enum, default_value_t = Compression::Zstd)]
    pub(crate) compression: Compression,
    /// Flood: each shard gets this many events as fast as they are taken.
    #[arg(long, default_value_t = 20_000, conflicts_with_all = ["rate", "idle"])]
    pub(crate) events_per_shard: u64,
    /// Paced: events per second over all shards, for `--for`.
    #[arg(long, conflicts_with = "idle")]
    pub(crate) rate: Option<f64>,
    /// Idle: no events and no guilds, only memory.
    #[arg(long)]
    pub(crate) idle: bool,
    /// Cold start: the guilds of every shard come at once, some of them megabytes large.
    #[arg(long, conflicts_with_all = ["rate", "idle", "events_per_shard"])]
    pub(crate) storm: bool,
    /// How long a paced load is measured, in seconds.
    #[arg(long = "for", default_value = "20", value_parser = seconds)]
    pub(crate) duration: Duration,
    /// How long the latency of a paced load is measured after that, in seconds; 0: not at all.
    #[arg(long, default_value = "10", value_parser = seconds)]
    pub(crate) latency_for: Duration,
    /// Which events.
    #[arg(long, value_enum, default_value_t = MixArg::PresencesOff)]
    pub(crate) mix: MixArg,
    /// Guilds on each shard; each is a subject per kind of event.
    #[arg(long, default_value_t = 50)]
    pub(crate) guilds_per_shard: u32,
    /// What to measure; everything that the load makes sense for by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<Contender>,
    /// How often; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeat: u32,
    /// Write every run and the medians here.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Record a profile of each contender while it is measured: `DIR/<contender>-<n>.perf`.
    #[arg(long, value_name = "DIR")]
    pub(crate) perf: Option<PathBuf>,
    /// Measure everything that is promised, and print one table.
    #[arg(long)]
    pub(crate) goals: bool,
    /// With `--goals`: only loads whose name contains this.
    #[arg(long, requires = "goals")]
    pub(crate) goal: Option<String>,
    /// With `--goals`: once and briefly, to see that it works.
    #[arg(long, requires = "goals")]
    pub(crate) quick: bool,
    /// With `--goals`: where every figure (JSON) and a plot per goal (SVG) are written.
    #[arg(long, default_value = "target/goals", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Further flags for `gateway-proxy run`, such as `--proxy-flag=--live-feed=off`.
    #[arg(long = "proxy-flag", allow_hyphen_values = true)]
    pub(crate) proxy_flags: Vec<String>,
}

/// `--compression`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    /// `zstd-stream`.
    Zstd,
    /// `zlib-stream`.
    Zlib,
    /// None.
    None,
}

impl Compression {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Zlib => "zlib",
            Self::None => "none",
        }
    }
}

/// `--mix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MixArg {
    /// Without GUILD_PRESENCES.
    PresencesOff,
    /// With GUILD_PRESENCES.
    PresencesOn,
}

impl MixArg {
    pub(crate) const fn mix(self) -> Mix {
        match self {
            Self::PresencesOff => Mix::PresencesOff,
            Self::PresencesOn => Mix::PresencesOn,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::PresencesOff => "presences off",
            Self::PresencesOn => "presences on",
        }
    }

    /// Every intent the mix has events of, so that each contender gets the same ones.
    pub(crate) const fn intents(self) -> u64 {
        /// GUILD_PRESENCES (Discord, Gateway, List of intents).
        const PRESENCES: u64 = 1 << 8;
        match self {
            Self::PresencesOff => testkit::simulator::ALL_INTENTS & !PRESENCES,
            Self::PresencesOn => testkit::simulator::ALL_INTENTS,
        }
    }
}

/// `--only`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Contender {
    /// The gateway proxy.
    Proxy,
    /// twilight-gateway and `js.publish` with a window of acknowledgements.
    Twilight,
    /// Inflate, frame, subject and fast ingest in one thread, without gateway sockets.
    Path,
    /// Fast ingest of the same messages, prepared beforehand.
    Publish,
    /// The same messages at the asked rate, one write and one acknowledgement each.
    Single,
    /// @discordjs/ws and nats.js.
    DiscordJs,
    /// discord.py and nats-py.
    DiscordPy,
}

impl Contender {
    /// Those that need nothing beside this program.
    const USUAL: [Self; 5] = [
        Self::Proxy,
        Self::Twilight,
        Self::Path,
        Self::Publish,
        Self::Single,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Twilight => "twilight",
            Self::Path => "path",
            Self::Publish => "publish",
            Self::Single => "single",
            Self::DiscordJs => "discord-js",
            Self::DiscordPy => "discord-py",
        }
    }

    /// Whether it is a gateway client, and not only a publisher of prepared messages.
    pub(crate) const fn has_shards(self) -> bool {
        matches!(
            self,
            Self::Proxy | Self::Twilight | Self::DiscordJs | Self::DiscordPy
        )
    }
}

impl Args {
    /// What is measured, and for each that is not why.
    pub(crate) fn contenders(&self) -> (Vec<Contender>, Vec<String>) {
        let asked = if self.only.is_empty() {
            &Contender::USUAL[..]
        } else {
            &self.only
        };
        let mut chosen = Vec::new();
        let mut left_out = Vec::new();
        for contender in asked {
            match self.unfit(*contender) {
                None => chosen.push(*contender),
                // Not a word about what nobody asked for.
                Some(_) if self.only.is_empty() && self.is_paced_or_idle() => {}
                Some(why) => left_out.push(format!("{} is left out: {why}", contender.name())),
            }
        }
        (chosen, left_out)
    }

    const fn is_paced_or_idle(&self) -> bool {
        self.idle || self.storm || self.rate.is_some()
    }

    fn unfit(&self, contender: Contender) -> Option<&'static str> {
        match contender {
            Contender::Twilight if self.compression != Compression::Zstd => {
                Some("twilight-gateway is built for zstd here")
            }
            Contender::Path if self.compression == Compression::Zlib => {
                Some("its messages are prepared as zstd or plain")
            }
            Contender::Path | Contender::Publish if self.is_paced_or_idle() => {
                Some("it only floods")
            }
            Contender::Single if self.rate.is_none() => Some("it only keeps a rate"),
            Contender::DiscordJs | Contender::DiscordPy
                if self.compression == Compression::None =>
            {
                Some("it always compresses")
            }
            _ => None,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    let seconds: f64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contenders(flags: &[&str]) -> Vec<&'static str> {
        let args = Args::try_parse_from(std::iter::once("load").chain(flags.iter().copied()));
        let (chosen, _) = args.unwrap().contenders();
        chosen.into_iter().map(Contender::name).collect()
    }

    #[test]
    fn each_load_has_the_contenders_that_fit_it() {
        assert_eq!(contenders(&[]), ["proxy", "twilight", "path", "publish"]);
        assert_eq!(
            contenders(&["--rate", "5000"]),
            ["proxy", "twilight", "single"]
        );
        assert_eq!(contenders(&["--compression", "zlib"]), ["proxy", "publish"]);
        assert_eq!(contenders(&["--only", "path,proxy"]), ["path", "proxy"]);
        assert!(contenders(&["--idle", "--only", "path"]).is_empty());
    }

    #[test]
    fn seconds_may_have_their_unit() {
        assert_eq!(seconds("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").is_err() && seconds("soon").is_err());
    }
}
