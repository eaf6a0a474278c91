//! Several servers on one machine, for streams with replicas.

use crate::config::{Options, Routes};
use crate::server::{Server, StartError, free_port};

/// A member's port may be taken between picking and binding; then all start anew.
const ATTEMPTS: u32 = 3;

/// Servers that form one JetStream cluster.
#[derive(Debug)]
pub struct Cluster {
    servers: Vec<Server>,
}

impl Cluster {
    /// Starts `size` servers and waits until they have elected a JetStream leader: three hold
    /// streams with three replicas.
    ///
    /// # Errors
    /// [`StartError`] of the first member that does not start.
    pub fn start(size: usize) -> Result<Self, StartError> {
        Self::start_with(size, &Options::default())
    }

    /// The same with options for every member; their name, port, store and routes are the
    /// cluster's own matter.
    ///
    /// # Errors
    /// [`StartError`] of the first member that does not start.
    pub fn start_with(size: usize, options: &Options) -> Result<Self, StartError> {
        let mut attempt = 1;
        loop {
            match Self::attempt(size, options) {
                Err(StartError::PortInUse { .. }) if attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    fn attempt(size: usize, options: &Options) -> Result<Self, StartError> {
        let cluster = format!("cluster-{:08x}", fastrand::u32(..));
        let mut ports = Vec::with_capacity(size);
        while ports.len() < size {
            let port = free_port().map_err(|source| StartError::Io {
                action: "find a free port",
                source,
            })?;
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        let spawn = |(index, listen): (usize, &u16)| {
            let routes = Routes {
                cluster: cluster.clone(),
                listen: *listen,
                members: ports.clone(),
            };
            Server::spawn(Options {
                name: Some(format!("{cluster}-{index}")),
                port: None,
                store_dir: None,
                log_file: None,
                routes: Some(routes),
                ..options.clone()
            })
        };
        let mut servers = ports
            .iter()
            .enumerate()
            .map(spawn)
            .collect::<Result<Vec<Server>, StartError>>()?;
        servers.iter_mut().try_for_each(Server::wait_ready)?;
        Ok(Self { servers })
    }

    /// The members.
    #[must_use]
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// The members, to kill and start them.
    pub fn servers_mut(&mut self) -> &mut [Server] {
        &mut self.servers
    }

    /// All members' URLs, separated by commas, as clients take them.
    #[must_use]
    pub fn url(&self) -> String {
        self.servers
            .iter()
            .map(Server::url)
            .collect::<Vec<_>>()
            .join(",")
    }
}
