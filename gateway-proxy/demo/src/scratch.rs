//! The demo's temporary directory: logs, and the script that subscribes. Gone with the demo.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::exit::Fatal;

/// Begins the directory's name; nothing else is ever cleaned.
const PREFIX: &str = "gateway-proxy-demo-";
/// The file name of the script.
const SCRIPT: &str = "subscribe.py";
/// Subscribes to the live feed with nothing but Python; the address is filled in.
const SCRIPT_TEXT: &str = include_str!("subscribe.py");
const SCRIPT_ADDRESS: &str = "127.0.0.1:4222";

/// A directory that is removed with all that is in it when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes it.
    pub(crate) fn new() -> Result<Self, Fatal> {
        let unique = format!("{PREFIX}{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(unique);
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(Fatal::File {
                action: "create",
                path,
                source,
            }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes the script that subscribes at this port; where it is.
    pub(crate) fn write_script(&self, nats_port: u16) -> Result<PathBuf, Fatal> {
        let path = self.0.join(SCRIPT);
        let text = SCRIPT_TEXT.replace(SCRIPT_ADDRESS, &format!("127.0.0.1:{nats_port}"));
        fs::write(&path, text).map_err(|source| Fatal::File {
            action: "write",
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %self.0.display(), %error, "temporary directory not removed");
            }
            _ => {}
        }
    }
}

/// What a killed demo left behind, removed by the processes it had started: only what it had
/// written there, only in such a directory. They do it at the same time, so that errors are normal.
pub(crate) fn remove_leftovers(dir: &Path) {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    if !name.starts_with(PREFIX) {
        return;
    }
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.ends_with(SCRIPT) || path.extension().is_some_and(|ending| ending == "log") {
            drop(fs::remove_file(path));
        }
    }
    drop(fs::remove_dir(dir));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_gets_the_port() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.write_script(12_345).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("127.0.0.1:12345") && !text.contains(SCRIPT_ADDRESS));
        let dir = scratch.path().to_owned();
        drop(scratch);
        assert!(!dir.exists());
    }

    #[test]
    fn leftovers_are_removed_and_strangers_stay() {
        let scratch = Scratch::new().unwrap();
        scratch.write_script(1).unwrap();
        fs::write(scratch.path().join("proxy-1.log"), "x").unwrap();
        fs::write(scratch.path().join("thesis.tex"), "x").unwrap();
        remove_leftovers(scratch.path());
        let left: Vec<_> = fs::read_dir(scratch.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "thesis.tex");
        fs::remove_file(left[0].path()).unwrap();
        remove_leftovers(scratch.path());
        assert!(!scratch.path().exists());
    }

    #[test]
    fn other_directories_are_never_cleaned() {
        let scratch = Scratch::new().unwrap();
        let other = scratch.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("a.log"), "x").unwrap();
        remove_leftovers(&other);
        assert!(other.join("a.log").exists());
    }
}
