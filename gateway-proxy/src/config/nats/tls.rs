//! Certificates: whom to trust, and our own.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::raw::{Given, read_bounded};
use crate::config::secret::referenced;
use crate::config::setting::{NATS_CA, NATS_CERT, NATS_KEY};
use crate::config::{ConfigError, Resolver};

/// Largest certificate bundle; the public one has about 220 kB.
const PEM_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// The client configuration, and whether anything of it was chosen.
pub(super) fn resolve(resolver: &mut Resolver) -> Result<(Arc<ClientConfig>, bool), ConfigError> {
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

pub(super) fn public_roots() -> RootCertStore {
    RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(super) fn client_config(
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
