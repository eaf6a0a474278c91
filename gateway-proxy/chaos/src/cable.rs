//! A network cable between a proxy and NATS that can be cut and joined again.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes passed on at once.
const CHUNK: usize = 64 * 1024;

/// Passes bytes on as long as it is not cut. A cut closes nothing: both ends see silence.
pub(crate) struct Cable {
    address: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Cable {
    /// Between whoever connects here and the server at `nats_url`.
    pub(crate) async fn to(nats_url: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = nats_url.trim_start_matches("nats://").to_owned();
        let (cut, _) = watch::channel(false);
        let cable = cut.clone();
        // Lives as long as this process.
        drop(tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                drop(tokio::spawn(connect(
                    client,
                    server.clone(),
                    cable.subscribe(),
                )));
            }
        }));
        Ok(Self { address, cut })
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

async fn connect(client: TcpStream, server: String, cable: watch::Receiver<bool>) {
    joined(&mut cable.clone()).await;
    // A server that is away refuses, and so does the cable.
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::join!(
        pass(client_read, server_write, cable.clone()),
        pass(server_read, client_write, cable)
    );
}

async fn joined(cable: &mut watch::Receiver<bool>) {
    // Without the sender nobody can cut it.
    drop(cable.wait_for(|cut| !cut).await);
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cable: watch::Receiver<bool>) {
    let mut buffer = vec![0; CHUNK];
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
