//! The list of servers, and the credentials that may stand in it.

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::{NatsAuth, NatsServer};
use crate::config::shown::Shown;

/// Port of a URL that names none.
const DEFAULT_PORT: u16 = 4222;

/// Most servers in the list: far above a cluster's size.
const SERVERS_MAX: usize = 64;

/// The list of `--nats-url`, credentials taken out.
pub(super) struct Servers {
    pub(super) servers: Vec<NatsServer>,
    pub(super) auth: Option<NatsAuth>,
}

impl Shown for Servers {
    fn shown(&self) -> toml::Value {
        let urls = self
            .servers
            .iter()
            .map(|server| toml::Value::String(server.url()));
        let mut urls: Vec<_> = urls.collect();
        match urls.pop() {
            Some(only) if urls.is_empty() => only,
            last => toml::Value::Array(urls.into_iter().chain(last).collect()),
        }
    }
}

pub(super) fn servers(text: &str) -> Result<Servers, String> {
    let mut servers = Vec::new();
    let mut auth = None;
    for part in text.split(',') {
        let (server, credentials) = server(part)?;
        servers.push(server);
        match (&auth, credentials) {
            (_, None) => {}
            (None, Some(credentials)) => auth = Some(credentials),
            (Some(first), Some(second)) if same(first, &second) => {}
            (Some(_), Some(_)) => return Err("the same credentials in all URLs".to_owned()),
        }
    }
    if servers.len() > SERVERS_MAX {
        return Err(format!("at most {SERVERS_MAX} servers"));
    }
    Ok(Servers { servers, auth })
}

pub(super) fn server(text: &str) -> Result<(NatsServer, Option<NatsAuth>), String> {
    let expected = || {
        "`embedded` or URLs such as `nats://host:4222` or `tls://host`, separated by commas"
            .to_owned()
    };
    let text = text.trim();
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("nats://{text}")
    };
    let url = Url::parse(&with_scheme).map_err(|_| expected())?;
    let tls = match url.scheme() {
        "nats" => false,
        "tls" => true,
        _ => return Err(expected()),
    };
    let rest = !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some();
    let host = url
        .host_str()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_owned();
    if host.is_empty() || rest {
        return Err(expected());
    }
    let port = url.port().unwrap_or(DEFAULT_PORT);
    let user = decoded(url.username()).ok_or_else(expected)?;
    let auth = match (user.is_empty(), url.password()) {
        (true, _) => None,
        (false, None) => Some(NatsAuth::Token(SecretString::from(user))),
        (false, Some(password)) => {
            let password = SecretString::from(decoded(password).ok_or_else(expected)?);
            Some(NatsAuth::UserPassword { user, password })
        }
    };
    Ok((NatsServer { host, port, tls }, auth))
}

fn same(first: &NatsAuth, second: &NatsAuth) -> bool {
    match (first, second) {
        (NatsAuth::Token(a), NatsAuth::Token(b)) => a.expose_secret() == b.expose_secret(),
        (
            NatsAuth::UserPassword {
                user: a,
                password: x,
            },
            NatsAuth::UserPassword {
                user: b,
                password: y,
            },
        ) => a == b && x.expose_secret() == y.expose_secret(),
        _ => false,
    }
}

/// Undoes a URL's percent-encoding; `None` when the result is not text.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escape = (first == b'%').then(|| tail.get(..2)).flatten();
        let value = escape
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(text: &str) -> Option<Vec<String>> {
        let list = servers(text).ok()?;
        Some(list.servers.iter().map(NatsServer::url).collect())
    }

    #[test]
    fn several_urls_with_and_without_scheme_and_port() {
        let expect = [
            "nats://a:4222",
            "tls://b:1",
            "nats://c:4222",
            "nats://[::1]:9",
        ];
        assert_eq!(urls("nats://a, tls://b:1,c,[::1]:9").unwrap(), expect);
    }

    #[test]
    fn what_is_no_nats_url_is_refused() {
        for bad in [
            "",
            "http://a",
            "ws://a",
            "nats://",
            "nats://a/path",
            "a,,b",
            "nats://a:99999",
        ] {
            assert!(urls(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_decoded_and_never_shown() {
        let list = servers("nats://u%40x:p%3Aw@a,nats://b").unwrap();
        let Some(NatsAuth::UserPassword { user, password }) = &list.auth else {
            panic!("no user and password in {:?}", list.auth);
        };
        assert_eq!((user.as_str(), password.expose_secret()), ("u@x", "p:w"));
        assert!(!list.shown().to_string().contains("p%3Aw"));
        assert!(!format!("{:?}", list.auth).contains("p:w"));
        assert!(servers("nats://u:p@a,nats://u:q@b").is_err());
        assert!(matches!(
            servers("nats://tok@a").unwrap().auth,
            Some(NatsAuth::Token(_))
        ));
    }
}
