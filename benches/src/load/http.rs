//! One HTTP request per connection: all that asking the parts of a run takes.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The ledger of a long run is tens of megabytes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server on this machine, and the path before what is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    authority: String,
    base: String,
}

impl Endpoint {
    /// Of `http://127.0.0.1:80/base`.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let rest = url
            .strip_prefix("http://")
            .with_context(|| format!("{url} is no http url"))?;
        let (authority, base) = rest.split_once('/').unwrap_or((rest, ""));
        let base = match base {
            "" => String::new(),
            base => format!("/{base}"),
        };
        Ok(Self {
            authority: authority.to_owned(),
            base,
        })
    }

    /// Status and body of a GET.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, Vec<u8>)> {
        self.request("GET", path, b"").await
    }

    /// The body of a GET, which must be JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let (status, body) = self.get(path).await?;
        if status != 200 {
            bail!("{path} answers {status}");
        }
        serde_json::from_slice(&body).with_context(|| format!("the answer of {path}"))
    }

    /// A PUT that must succeed.
    pub(crate) async fn put(&self, path: &str, body: &[u8]) -> Result<()> {
        let (status, answer) = self.request("PUT", path, body).await?;
        if status / 100 != 2 {
            bail!(
                "{path} answers {status}: {}",
                String::from_utf8_lossy(&answer)
            );
        }
        Ok(())
    }

    /// A POST of JSON that must succeed.
    pub(crate) async fn post(&self, path: &str, body: &[u8]) -> Result<()> {
        let (status, answer) = self.request("POST", path, body).await?;
        if status / 100 != 2 {
            bail!(
                "{path} answers {status}: {}",
                String::from_utf8_lossy(&answer)
            );
        }
        Ok(())
    }

    async fn request(&self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let Self { authority, base } = self;
        let ask = async {
            let mut stream = TcpStream::connect(authority).await?;
            let head = format!(
                "{method} {base}{path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\
                 content-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = timeout(PATIENCE, ask)
            .await
            .with_context(|| format!("{authority}{base}{path} does not answer"))?
            .with_context(|| format!("ask {authority}{base}{path}"))?;
        split(&answer).with_context(|| format!("{authority}{base}{path} answers no HTTP"))
    }
}

fn split(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer[end + 4..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_an_authority_and_a_base() {
        let endpoint = Endpoint::parse("http://127.0.0.1:80/_sim").unwrap();
        assert_eq!(
            (&*endpoint.authority, &*endpoint.base),
            ("127.0.0.1:80", "/_sim")
        );
        assert_eq!(Endpoint::parse("http://a:1").unwrap().base, "");
        assert!(Endpoint::parse("a:1").is_err());
    }

    #[test]
    fn an_answer_is_its_status_and_body() {
        let answer = b"HTTP/1.1 503 Service Unavailable\r\nx: y\r\n\r\n{\"a\":1}";
        assert_eq!(split(answer), Some((503, b"{\"a\":1}".to_vec())));
        assert_eq!(split(b"garbage"), None);
    }
}
