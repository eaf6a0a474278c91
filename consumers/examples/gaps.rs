//! Follows the events of all shards and says where some are missing. Start it next to a gateway
//! proxy; the first argument is the address of NATS, `nats://127.0.0.1:4222` unless given:
//!
//! ```text
//! cargo run -p consumers --example gaps
//! ```

use std::error::Error;
use std::io::Write as _;

use consumers::{Feed, Start};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("nats://127.0.0.1:4222");
    let jetstream = async_nats::jetstream::new(async_nats::connect(url).await?);
    let mut feed = Feed::open(&jetstream, &"discord".parse()?, 1, Start::Oldest).await?;
    let mut out = std::io::stdout();
    while let Some(item) = feed.next().await {
        let item = item?;
        if let Some(gap) = item.gap() {
            let lost = gap
                .lost
                .map_or("maybe some".to_owned(), |lost| lost.to_string());
            let (shard, last, reason) = (gap.shard, gap.last_seq, gap.reason);
            writeln!(
                out,
                "shard {shard}: {lost} events lost after {last}: {reason:?}"
            )?;
            // Here a cache asks Discord's REST API again for what it knows of this shard's guilds.
        } else if let Some(change) = item.shard_change() {
            let (shard, state, reason) = (change.shard, change.state, &change.reason);
            writeln!(out, "shard {shard}: {state:?} ({reason})")?;
        }
    }
    Ok(())
}
