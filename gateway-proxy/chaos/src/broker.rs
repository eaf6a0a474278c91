//! The broker: one NATS server, or a cluster that keeps three copies.

use anyhow::bail;
use testkit::nats::{self, Cluster, Server};

pub(crate) enum Broker {
    Server(Box<Server>),
    Cluster(Cluster),
}

impl Broker {
    pub(crate) async fn start(servers: usize) -> anyhow::Result<Self> {
        Ok(match servers {
            1 => Self::Server(Box::new(nats::start(nats::Options::default()).await?)),
            3 => Self::Cluster(nats::start_cluster(servers).await?),
            _ => bail!("--nats-servers takes 1 or 3, not {servers}"),
        })
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Server(server) => server.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    /// Copies of everything: one on each server.
    pub(crate) fn replicas(&self) -> usize {
        match self {
            Self::Server(_) => 1,
            Self::Cluster(cluster) => cluster.servers().len(),
        }
    }

    /// The server of that number; numbers go round.
    pub(crate) fn server(&mut self, number: usize) -> &mut Server {
        match self {
            Self::Server(server) => server,
            Self::Cluster(cluster) => {
                let servers = cluster.servers_mut();
                let number = number % servers.len();
                &mut servers[number]
            }
        }
    }
}
