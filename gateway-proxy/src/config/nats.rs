//! Where NATS is, who we are there and how the connection is protected. Used by all connections of
//! the process, so it carries everything a client needs and nothing of a particular one.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use nkeys::{KeyPair, KeyPairType};
use rustls::ClientConfig;
use secrecy::SecretString;

use super::raw::Given;
use super::secret::{self, referenced};
use super::setting::{
    NATS_CA, NATS_CREDS, NATS_NKEY, NATS_PASSWORD, NATS_PASSWORD_FILE, NATS_TOKEN, NATS_TOKEN_FILE,
    NATS_URL, NATS_USER, Setting,
};
use super::{ConfigError, Resolver};

mod tls;
mod url;

use self::url::Servers;

/// Settings that make no sense for a server of our own.
pub(crate) const SERVER_ONLY: [&Setting; 8] = [
    NATS_CREDS,
    NATS_NKEY,
    NATS_USER,
    NATS_PASSWORD,
    NATS_PASSWORD_FILE,
    NATS_TOKEN,
    NATS_TOKEN_FILE,
    NATS_CA,
];

/// `--nats-url`: servers, or one of our own.
#[derive(Clone, Debug)]
pub enum NatsTarget {
    /// Start a local server that keeps its streams here.
    Embedded {
        /// The store directory.
        store: PathBuf,
    },
    /// Connect to these.
    Servers(NatsSettings),
}

/// One NATS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsServer {
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `tls://`: the connection must be encrypted. Without it, it is when the server asks for it.
    pub tls: bool,
}

impl NatsServer {
    /// The URL, without credentials.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls { "tls" } else { "nats" };
        if self.host.contains(':') {
            format!("{scheme}://[{}]:{}", self.host, self.port)
        } else {
            format!("{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// Who we are to NATS.
#[derive(Clone)]
pub enum NatsAuth {
    /// Nobody in particular.
    None,
    /// User and password.
    UserPassword {
        /// The user.
        user: String,
        /// The password.
        password: SecretString,
    },
    /// One token.
    Token(SecretString),
    /// A user JWT; the server's nonce is signed with the key.
    Creds {
        /// The JWT.
        jwt: SecretString,
        /// The user's key.
        key: Arc<KeyPair>,
    },
    /// A bare key; the server's nonce is signed with it.
    Nkey {
        /// The user's key.
        key: Arc<KeyPair>,
    },
}

impl fmt::Debug for NatsAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::UserPassword { .. } => "UserPassword",
            Self::Token(_) => "Token",
            Self::Creds { .. } => "Creds",
            Self::Nkey { .. } => "Nkey",
        })
    }
}

/// Servers, credentials and TLS, all checked.
#[derive(Clone, Debug)]
pub struct NatsSettings {
    servers: Vec<NatsServer>,
    auth: NatsAuth,
    tls: Arc<ClientConfig>,
    custom_tls: bool,
}

impl NatsSettings {
    /// The settings for a server on this machine that asks for nothing.
    ///
    /// # Errors
    /// [`ConfigError`] when the URL is not one of NATS.
    pub fn local(url: &str) -> Result<Self, ConfigError> {
        let source = super::raw::Source::Default(NATS_URL.key);
        let server = url::server(url).map_err(|error| ConfigError::invalid(&source, url, error))?;
        let tls = tls::client_config(tls::public_roots(), None).map_err(|problem| {
            ConfigError::Invalid {
                origin: "TLS".to_owned(),
                value: url.to_owned(),
                allowed: problem,
            }
        })?;
        Ok(Self {
            servers: vec![server.0],
            auth: NatsAuth::None,
            tls,
            custom_tls: false,
        })
    }

    /// The servers to try, in the order given; never empty.
    #[must_use]
    pub fn servers(&self) -> &[NatsServer] {
        &self.servers
    }

    /// Who we are.
    #[must_use]
    pub const fn auth(&self) -> &NatsAuth {
        &self.auth
    }

    /// TLS for servers that demand it, by their URL or their INFO.
    #[must_use]
    pub const fn tls(&self) -> &Arc<ClientConfig> {
        &self.tls
    }

    /// True when certificates were configured: the connection must be encrypted even where neither
    /// URL nor server demands it.
    #[must_use]
    pub const fn requires_tls(&self) -> bool {
        self.custom_tls
    }

    /// The servers' URLs for messages, without credentials.
    #[must_use]
    pub fn display_urls(&self) -> String {
        let urls: Vec<_> = self.servers.iter().map(NatsServer::url).collect();
        urls.join(",")
    }
}

pub(crate) fn is_embedded(text: &str) -> bool {
    text.trim() == "embedded"
}

/// Builds the settings from all `nats-*` keys.
pub(crate) fn resolve(resolver: &mut Resolver) -> Result<NatsSettings, ConfigError> {
    let Servers {
        servers,
        auth: from_url,
    } = resolver.required(NATS_URL, url::servers)?;
    let mut methods = Vec::new();
    if let Some(auth) = from_url
        && let Some(given) = resolver.given(NATS_URL)
    {
        methods.push((given.source.clone(), auth));
    }
    if let Some(given) = resolver.text(NATS_CREDS) {
        methods.push((given.source.clone(), creds(&given)?));
    }
    if let Some(given) = resolver.text(NATS_NKEY) {
        let seed = secret::read_file(&given)?;
        let key = user_key(&seed).map_err(|problem| referenced(&given, problem))?;
        methods.push((given.source, NatsAuth::Nkey { key }));
    }
    let password = resolver.secret(NATS_PASSWORD, NATS_PASSWORD_FILE, secret::one_line)?;
    if let Some(given) = resolver.text(NATS_USER) {
        let (_, password) = password.ok_or_else(|| ConfigError::Missing {
            key: NATS_PASSWORD.key,
            allowed: "a user needs NATS_PASSWORD or --nats-password-file".to_owned(),
        })?;
        methods.push((
            given.source,
            NatsAuth::UserPassword {
                user: given.text,
                password,
            },
        ));
    } else if let Some((given, _)) = password {
        return Err(ConfigError::Missing {
            key: NATS_USER.key,
            allowed: format!("{} needs a user", given.source.origin()),
        });
    }
    if let Some((given, token)) = resolver.secret(NATS_TOKEN, NATS_TOKEN_FILE, secret::one_line)? {
        methods.push((given.source, NatsAuth::Token(token)));
    }
    let auth = only_one(methods)?;
    let (tls, custom_tls) = tls::resolve(resolver)?;
    Ok(NatsSettings {
        servers,
        auth,
        tls,
        custom_tls,
    })
}

fn only_one(methods: Vec<(super::raw::Source, NatsAuth)>) -> Result<NatsAuth, ConfigError> {
    let mut methods = methods.into_iter();
    let Some((first, auth)) = methods.next() else {
        return Ok(NatsAuth::None);
    };
    match methods.next() {
        None => Ok(auth),
        Some((second, _)) => Err(ConfigError::conflict(
            &first,
            &second,
            "only one way to authenticate is possible",
        )),
    }
}

/// The parts of a credentials file, between lines of dashes (`nsc generate creds`).
fn creds(given: &Given) -> Result<NatsAuth, ConfigError> {
    let text = secret::read_file(given)?;
    let part = |name: &str| {
        let mut lines = text.lines().map(str::trim);
        let begin = format!("BEGIN {name}");
        lines.find(|line| line.starts_with("---") && line.contains(&begin))?;
        lines
            .find(|line| !line.is_empty())
            .filter(|line| !line.starts_with('-'))
    };
    let missing = |what: &str| referenced(given, format!("is not a credentials file: no {what}"));
    let jwt = part("NATS USER JWT").ok_or_else(|| missing("user JWT"))?;
    let seed = part("USER NKEY SEED").ok_or_else(|| missing("user nkey seed"))?;
    let key = user_key(seed).map_err(|problem| referenced(given, problem))?;
    Ok(NatsAuth::Creds {
        jwt: SecretString::from(jwt),
        key,
    })
}

fn user_key(seed: &str) -> Result<Arc<KeyPair>, String> {
    let key = KeyPair::from_seed(seed.trim())
        .map_err(|error| format!("does not hold a valid nkey seed: {error}"))?;
    if key.key_pair_type() != KeyPairType::User {
        return Err("holds an nkey that is not a user's".to_owned());
    }
    Ok(Arc::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_users_seed_is_a_key() {
        let user = KeyPair::new_user();
        let account = KeyPair::new_account();
        assert!(user_key(&user.seed().unwrap()).is_ok());
        assert!(user_key(&account.seed().unwrap()).is_err());
        assert!(user_key("SUNONSENSE").is_err());
    }
}
