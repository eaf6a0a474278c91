//! A network cable between a proxy and NATS that can be cut and joined again.

use std::net::SocketAddr;
use std::pin::pin;

use futures_util::future::{Either, select};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::owners::Owners;

/// Bytes passed on at once.
const CHUNK: usize = 64 * 1024;
/// Chunks under way while the cable is cut; what is sent then arrives when it is joined again. More than a
/// proxy sends until it notices, at a thousand events a second: who has to wait here is heard too late.
const UNDER_WAY: usize = 16_384;

/// Passes bytes on as long as it is not cut. A cut closes nothing: both ends see silence.
pub(crate) struct Cable {
    address: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Cable {
    /// Between this proxy, who connects here, and the server at `nats_url`.
    pub(crate) async fn to(nats_url: &str, proxy: usize, owners: Owners) -> anyhow::Result<Self> {
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
                    owners.listen(proxy),
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

async fn connect(
    client: TcpStream,
    server: String,
    cable: watch::Receiver<bool>,
    listen: impl FnMut(&[u8]),
) {
    joined(&mut cable.clone()).await;
    // A server that is away refuses, and so does the cable.
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::join!(
        pass(client_read, server_write, cable.clone(), listen),
        pass(server_read, client_write, cable, |_| ())
    );
}

async fn joined(cable: &mut watch::Receiver<bool>) {
    // Without the sender nobody can cut it.
    drop(cable.wait_for(|cut| !cut).await);
}

/// `listen` takes the bytes when they are sent, not when they arrive.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut cable: watch::Receiver<bool>,
    mut listen: impl FnMut(&[u8]),
) {
    let (under_way, mut arriving) = mpsc::channel(UNDER_WAY);
    let read = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let bytes = &buffer[..read];
            listen(bytes);
            if under_way.send(bytes.to_vec()).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some(bytes) = arriving.recv().await {
            joined(&mut cable).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    // Whose reader is gone is read no more; what was sent before an end still arrives.
    if let Either::Left(((), write)) = select(pin!(read), pin!(write)).await {
        write.await;
    }
}
