//! Where NATS is, who we are there and how the connection is protected. Used by both connections of
//! the process, so it carries everything a client needs and nothing of a particular one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nkeys::{KeyPair, KeyPairType};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::raw::{Given, read_bounded};
use super::secret::{self, referenced};
use super::setting::{
    NATS_CA, NATS_CERT, NATS_CREDS, NATS_KEY, NATS_NKEY, NATS_PASSWORD, NATS_PASSWORD_FILE,
    NATS_TOKEN, NATS_TOKEN_FILE, NATS_URL, NATS_USER, Setting,
};
use super::value::Shown;
use super::{ConfigError, Resolver};

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

/// Port of a URL that names none.
const DEFAULT_PORT: u16 = 4222;

/// Most servers in the list: far above a cluster's size.
const SERVERS_MAX: usize = 64;

/// Largest certificate bundle; the public one has about 220 kB.
const PEM_MAX_BYTES: u64 = 4 * 1024 * 1024;

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
        let server = server(url).map_err(|error| ConfigError::invalid(&source, url, error))?;
        let tls = client_config(public_roots(), None).map_err(|problem| ConfigError::Invalid {
            origin: "TLS".to_owned(),
            value: url.to_owned(),
            allowed: problem,
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

/// The list of `--nats-url`, credentials taken out.
struct Servers {
    servers: Vec<NatsServer>,
    auth: Option<NatsAuth>,
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

pub(crate) fn is_embedded(text: &str) -> bool {
    text.trim() == "embedded"
}

/// Builds the settings from all `nats-*` keys.
pub(crate) fn resolve(resolver: &mut Resolver) -> Result<NatsSettings, ConfigError> {
    let Servers {
        servers,
        auth: from_url,
    } = resolver.required(NATS_URL, servers)?;
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
    let (tls, custom_tls) = tls(resolver)?;
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

fn servers(text: &str) -> Result<Servers, String> {
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

fn server(text: &str) -> Result<(NatsServer, Option<NatsAuth>), String> {
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

fn tls(resolver: &mut Resolver) -> Result<(Arc<ClientConfig>, bool), ConfigError> {
    let ca = resolver.text(NATS_CA);
    let roots = match &ca {
        None => public_roots(),
        Some(given) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(given)? {
                let added = roots.add(certificate);
                added.map_err(|error| referenced(given, format!("is not usable: {error}")))?;
            }
            roots
        }
    };
    let cert = resolver.text(NATS_CERT);
    let key = resolver.text(NATS_KEY);
    let identity = match (&cert, &key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((certificates(cert)?, private_key(key)?)),
        (Some(given), None) => return Err(lonely(given, NATS_KEY.key)),
        (None, Some(given)) => return Err(lonely(given, NATS_CERT.key)),
    };
    let custom = ca.is_some() || identity.is_some();
    let config = client_config(roots, identity).map_err(|problem| match &cert {
        Some(given) => referenced(given, problem),
        None => ConfigError::Missing {
            key: NATS_CERT.key,
            allowed: problem,
        },
    })?;
    Ok((config, custom))
}

fn lonely(given: &Given, missing: &'static str) -> ConfigError {
    let allowed = format!("{} needs --{missing} too", given.source.origin());
    ConfigError::Missing {
        key: missing,
        allowed,
    }
}

fn public_roots() -> RootCertStore {
    RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_config(
    roots: RootCertStore,
    identity: Option<Identity>,
) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| format!("does not go with the key: {error}"))?,
    };
    Ok(Arc::new(config))
}

fn certificates(given: &Given) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let pem = pem(given)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match parsed {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(referenced(given, "holds no certificate (PEM)")),
        Err(error) => Err(referenced(given, format!("is not PEM: {error}"))),
    }
}

fn private_key(given: &Given) -> Result<PrivateKeyDer<'static>, ConfigError> {
    let pem = pem(given)?;
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| referenced(given, format!("holds no private key (PEM): {error}")))
}

fn pem(given: &Given) -> Result<String, ConfigError> {
    read_bounded(Path::new(given.text.trim()), PEM_MAX_BYTES)
        .map_err(|problem| referenced(given, problem))
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

    #[test]
    fn only_a_users_seed_is_a_key() {
        let user = KeyPair::new_user();
        let account = KeyPair::new_account();
        assert!(user_key(&user.seed().unwrap()).is_ok());
        assert!(user_key(&account.seed().unwrap()).is_err());
        assert!(user_key("SUNONSENSE").is_err());
    }
}
