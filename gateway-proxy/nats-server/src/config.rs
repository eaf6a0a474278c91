//! What a server is started with, and the configuration file made of it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a server is started; `Options::default()` is one server for one test.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary; [`locate`](crate::locate()) finds one when `None`.
    pub binary: Option<PathBuf>,
    /// Server name; a unique one when `None`.
    pub name: Option<String>,
    /// Client port on 127.0.0.1; a free one when `None`.
    pub port: Option<u16>,
    /// Where JetStream keeps its files, kept when the server goes; a temporary directory that is
    /// removed with the server when `None`.
    pub store_dir: Option<PathBuf>,
    /// Largest message in bytes. Default 8 MiB: Discord's largest frames are a few MB, and NATS
    /// advises against more.
    pub max_payload: u32,
    /// When JetStream syncs its files to disk; NATS' default (two minutes) when `None`.
    pub sync_interval: Option<SyncInterval>,
    /// Membership in a cluster.
    pub routes: Option<Routes>,
    /// Further lines of the configuration file, verbatim.
    pub extra_config: String,
    /// Where the server logs, kept when the server goes; in the temporary directory when `None`.
    pub log_file: Option<PathBuf>,
    /// How long the server may take until JetStream answers.
    pub ready_within: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            binary: None,
            name: None,
            port: None,
            store_dir: None,
            max_payload: 8 << 20,
            sync_interval: None,
            routes: None,
            extra_config: String::new(),
            log_file: None,
            // Usually 0.2 s; a loaded CI machine recovering a large store takes long.
            ready_within: Duration::from_secs(60),
        }
    }
}

/// When JetStream syncs its files to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncInterval {
    /// After every write.
    Always,
    /// Every so often.
    Every(Duration),
}

/// Membership in a cluster of servers on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// The cluster's name.
    pub cluster: String,
    /// The port other members connect to.
    pub listen: u16,
    /// Their ports (its own may be among them).
    pub members: Vec<u16>,
}

/// The text of the configuration file.
pub(crate) fn render(options: &Options, name: &str, port: u16, store: &Path) -> String {
    let mut text = format!(
        "server_name: {}\nlisten: \"127.0.0.1:{port}\"\nmax_payload: {}\n",
        quoted(name),
        options.max_payload
    );
    let mut line = |args: std::fmt::Arguments<'_>| {
        text.write_fmt(args)
            .expect("writing to a String does not fail");
        text.push('\n');
    };
    line(format_args!(
        "jetstream {{\n  store_dir: {}",
        quoted(&store.to_string_lossy())
    ));
    match options.sync_interval {
        Some(SyncInterval::Always) => line(format_args!("  sync_interval: always")),
        Some(SyncInterval::Every(every)) => {
            line(format_args!(
                "  sync_interval: \"{}ms\"",
                every.as_millis().max(1)
            ));
        }
        None => {}
    }
    line(format_args!("}}"));
    if let Some(routes) = &options.routes {
        let members: Vec<String> = (routes.members.iter())
            .map(|port| format!("\"nats-route://127.0.0.1:{port}\""))
            .collect();
        line(format_args!(
            "cluster {{\n  name: {}\n  listen: \"127.0.0.1:{}\"\n  routes: [{}]\n}}",
            quoted(&routes.cluster),
            routes.listen,
            members.join(", ")
        ));
    }
    line(format_args!("{}", options.extra_config));
    text
}

/// A string of NATS' configuration language.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_reaches_the_file() {
        let options = Options {
            sync_interval: Some(SyncInterval::Every(Duration::from_secs(2))),
            routes: Some(Routes {
                cluster: "C".into(),
                listen: 7000,
                members: vec![7000, 7001],
            }),
            extra_config: "debug: true".into(),
            max_payload: 1024,
            ..Options::default()
        };
        let text = render(&options, "a \"name\"", 4000, Path::new("/store"));
        for part in [
            "server_name: \"a \\\"name\\\"\"",
            "listen: \"127.0.0.1:4000\"",
            "max_payload: 1024",
            "store_dir: \"/store\"",
            "sync_interval: \"2000ms\"",
            "listen: \"127.0.0.1:7000\"",
            "[\"nats-route://127.0.0.1:7000\", \"nats-route://127.0.0.1:7001\"]",
            "debug: true",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }
}
