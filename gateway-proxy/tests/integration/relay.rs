//! A network cable between a proxy and NATS that can be cut and joined again.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes bytes on as long as it is not cut. A cut closes nothing: both ends see silence.
pub(crate) struct Relay {
    address: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Relay {
    /// Between whoever connects here and `nats_url`.
    pub(crate) async fn to(nats_url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = nats_url.trim_start_matches("nats://").to_owned();
        let (cut, _) = watch::channel(false);
        let cable = cut.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, cable) = (server.clone(), cable.subscribe());
                tokio::spawn(async move {
                    let mut accepting = cable.clone();
                    joined(&mut accepting).await;
                    let Ok(server) = TcpStream::connect(server).await else {
                        return;
                    };
                    let (client_read, client_write) = client.into_split();
                    let (server_read, server_write) = server.into_split();
                    tokio::join!(
                        pass(client_read, server_write, cable.clone()),
                        pass(server_read, client_write, cable)
                    );
                });
            }
        });
        Self { address, cut }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub(crate) fn join(&self) {
        self.cut.send_replace(false);
    }
}

async fn joined(cable: &mut watch::Receiver<bool>) {
    // The sender lives as long as the test.
    drop(cable.wait_for(|cut| !cut).await);
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cable: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        joined(&mut cable).await;
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = cable.changed() => continue,
        };
        let Ok(read @ 1..) = read else { return };
        joined(&mut cable).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
