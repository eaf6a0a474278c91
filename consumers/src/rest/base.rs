//! Where Discord's REST API is: the address split the way `twilight-http` wants it.

use std::fmt;
use std::str::FromStr;

use url::Url;

/// `--api-url`, for example `https://discord.com/api/v10`, a REST proxy in front of it, or a
/// simulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiBase {
    /// Host, port and whatever path stands before `/api/v10`.
    host: String,
    plain_http: bool,
}

impl ApiBase {
    /// Discord's own address.
    pub const DEFAULT: &'static str = "https://discord.com/api/v10";

    /// The version of the API that `twilight-http` speaks; it appends this path itself.
    const PATH: &'static str = "/api/v10";

    /// The part of the address that twilight calls its proxy.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Whether the token would travel a network unencrypted.
    pub(crate) fn exposes_token(&self) -> bool {
        let here = ["127.0.0.1", "[::1]", "localhost"];
        let is_here = |host: &str| {
            let rest = self.host.strip_prefix(host);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
        };
        self.plain_http && !here.into_iter().any(is_here)
    }

    /// Whether the address is `http://` instead of `https://`.
    pub(crate) const fn plain_http(&self) -> bool {
        self.plain_http
    }
}

impl FromStr for ApiBase {
    type Err = ApiBaseError;

    fn from_str(text: &str) -> Result<Self, ApiBaseError> {
        let refused = |reason| ApiBaseError {
            text: text.to_owned(),
            reason,
        };
        let url = Url::parse(text).map_err(|_| refused("is not a URL"))?;
        let plain_http = match url.scheme() {
            "http" => true,
            "https" => false,
            _ => return Err(refused("is neither http:// nor https://")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("has a user name or password in it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused("has a query or fragment"));
        }
        let path = url.path().trim_end_matches('/');
        let before = path.strip_suffix(Self::PATH);
        let before = before.ok_or_else(|| refused("does not end in /api/v10"))?;
        let host = url.host_str().ok_or_else(|| refused("has no host"))?;
        let port = url
            .port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        Ok(Self {
            host: format!("{host}{port}{before}"),
            plain_http,
        })
    }
}

impl fmt::Display for ApiBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.plain_http { "http" } else { "https" };
        write!(f, "{scheme}://{}{}", self.host, Self::PATH)
    }
}

/// An address that cannot be Discord's API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {reason}")]
pub struct ApiBaseError {
    text: String,
    reason: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, host: &str, plain_http: bool) {
        let base: ApiBase = text.parse().unwrap();
        assert_eq!(
            (base.host(), base.plain_http()),
            (host, plain_http),
            "{text}"
        );
        assert_eq!(base.to_string().parse(), Ok(base), "{text}");
    }

    #[test]
    fn an_address_is_split_into_host_and_scheme() {
        check(ApiBase::DEFAULT, "discord.com", false);
        check("http://127.0.0.1:8080/api/v10", "127.0.0.1:8080", true);
        check("http://[::1]:8080/api/v10/", "[::1]:8080", true);
        check(
            "https://rest.internal/discord/api/v10",
            "rest.internal/discord",
            false,
        );
    }

    #[test]
    fn plain_http_to_another_machine_exposes_the_token() {
        let exposes = |text: &str| text.parse::<ApiBase>().unwrap().exposes_token();
        assert!(exposes("http://rest.internal/api/v10"));
        assert!(exposes("http://localhost.example/api/v10"));
        assert!(!exposes("https://rest.internal/api/v10"));
        for here in ["127.0.0.1:80", "[::1]:1", "localhost", "localhost/x"] {
            assert!(!exposes(&format!("http://{here}/api/v10")), "{here}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "discord.com/api/v10",
            "ftp://discord.com/api/v10",
            "https://discord.com/api/v9",
            "https://discord.com",
            "https://discord.com/api/v10?x=1",
            "https://me:secret@discord.com/api/v10",
        ] {
            assert!(text.parse::<ApiBase>().is_err(), "{text}");
        }
    }
}
