//! Messages as a proxy stored them, to be published again by whoever has no gateway: the very same
//! bytes in the same order.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::stream::Config;
use futures_util::TryStreamExt as _;

use super::events::Events;

/// Messages kept; they are published over and over.
pub(crate) const EVENTS: u64 = 20_000;
/// What comes once per session and guild, not with the load.
const STARTUP: [&str; 3] = ["READY", "RESUMED", "GUILD_CREATE"];
/// No subject or event is larger.
const PART_MAX: u32 = 64 << 20;

/// One stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) shard: u32,
    pub(crate) subject: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// Where the messages are, and the stream they came from.
pub(crate) struct Corpus {
    pub(crate) path: PathBuf,
    pub(crate) stream: Config,
}

impl Corpus {
    /// Writes what a stream holds of the load to a file.
    pub(crate) async fn take(events: &Events) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("load-corpus-{}", std::process::id()));
        let info = events.info().await?;
        let corpus = Self {
            path,
            stream: info.config,
        };
        let mut file = BufWriter::new(File::create(&corpus.path).context("create the corpus")?);
        let consumer = events
            .stream()
            .create_consumer(OrderedConfig::default())
            .await;
        let consumer = consumer.context("make a consumer")?;
        let mut messages = consumer.messages().await.context("read the stream")?;
        let mut kept = 0;
        for _ in 0..info.state.messages {
            let message = messages.try_next().await.context("read the stream")?;
            let message = message.context("the stream ended early")?;
            let mut tokens = message.subject.split('.');
            let shard = tokens.nth(2).and_then(|token| token.parse().ok());
            let (Some(shard), Some(event)) = (shard, tokens.next_back()) else {
                bail!("{} is no subject of an event", message.subject);
            };
            if event.starts_with("PROXY_") || STARTUP.contains(&event) {
                continue;
            }
            write(
                &mut file,
                shard,
                message.subject.as_bytes(),
                &message.payload,
            )?;
            kept += 1;
        }
        file.flush().context("write the corpus")?;
        if kept == 0 {
            bail!("nothing of the load was stored");
        }
        Ok(corpus)
    }
}

impl Drop for Corpus {
    fn drop(&mut self) {
        // A file left in the temporary directory is no failure.
        drop(fs::remove_file(&self.path));
    }
}

fn write(out: &mut impl std::io::Write, shard: u32, subject: &[u8], payload: &[u8]) -> Result<()> {
    let len = |part: &[u8]| u32::try_from(part.len()).map(u32::to_le_bytes);
    let parts: [&[u8]; 5] = [
        &shard.to_le_bytes(),
        &len(subject)?,
        subject,
        &len(payload)?,
        payload,
    ];
    parts
        .into_iter()
        .try_for_each(|part| out.write_all(part))
        .context("write the corpus")
}

/// Reads what [`Corpus::take`] wrote.
pub(crate) fn read(path: &Path) -> Result<Vec<Message>> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let mut rest = &bytes[..];
    let mut messages = Vec::new();
    while !rest.is_empty() {
        messages.push(Message {
            shard: number(&mut rest)?,
            subject: part(&mut rest)?,
            payload: part(&mut rest)?,
        });
    }
    Ok(messages)
}

fn number(rest: &mut &[u8]) -> Result<u32> {
    let mut bytes = [0; 4];
    rest.read_exact(&mut bytes).context("a truncated corpus")?;
    Ok(u32::from_le_bytes(bytes))
}

fn part(rest: &mut &[u8]) -> Result<Vec<u8>> {
    let len = number(rest)?;
    if len > PART_MAX {
        bail!("a part of {len} bytes in the corpus");
    }
    let mut bytes = vec![0; len as usize];
    rest.read_exact(&mut bytes).context("a truncated corpus")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        write(&mut bytes, 7, b"a.b", b"{}").unwrap();
        write(&mut bytes, 8, b"c", b"").unwrap();
        let path = std::env::temp_dir().join(format!("load-corpus-test-{}", std::process::id()));
        fs::write(&path, &bytes).unwrap();
        let messages = read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let truncated = read(&path);
        fs::remove_file(&path).unwrap();
        let message = |shard, subject: &str, payload: &str| Message {
            shard,
            subject: subject.into(),
            payload: payload.into(),
        };
        assert_eq!(messages, [message(7, "a.b", "{}"), message(8, "c", "")]);
        assert!(truncated.is_err());
    }
}
