//! Peers in other languages: fetched on demand by their own package managers, at pinned versions, into
//! a directory below `target`. What is not there is skipped with a word.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use tokio::process::Command;

use super::args::{Args, Contender};
use super::simulator::Announcement;

/// What is told to a peer as its only argument.
#[derive(Serialize)]
pub(crate) struct Setup<'a> {
    api: &'a str,
    gateway: &'a str,
    token: &'a str,
    shards: u32,
    intents: u64,
    nats: &'a str,
}

impl<'a> Setup<'a> {
    pub(crate) fn new(args: &Args, discord: &'a Announcement, nats: &'a str) -> Self {
        Self {
            api: &discord.api,
            gateway: &discord.gateway,
            token: &discord.token,
            shards: args.shards,
            intents: args.mix.intents(),
            nats,
        }
    }
}

/// A program and its first arguments.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) script: PathBuf,
}

/// Installs a peer if it is not there, and says how to start it.
pub(crate) async fn program(contender: Contender) -> Result<Program> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("peers")
        .join(contender.name());
    let home = target().join("peers").join(contender.name());
    std::fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
    match contender {
        Contender::DiscordJs => discord_js(&sources, &home).await,
        Contender::DiscordPy => discord_py(&sources, &home).await,
        _ => bail!("{} is no peer in another language", contender.name()),
    }
}

async fn discord_js(sources: &Path, home: &Path) -> Result<Program> {
    // Modules are looked for beside the script.
    for file in ["package.json", "main.mjs"] {
        std::fs::copy(sources.join(file), home.join(file))
            .with_context(|| format!("copy {file}"))?;
    }
    if !installed(home, &sources.join("package.json"))? {
        let npm = ["install", "--no-audit", "--no-fund", "--omit=optional"];
        run(Command::new("npm").args(npm).current_dir(home)).await?;
        note_installed(home, &sources.join("package.json"))?;
    }
    Ok(Program {
        path: PathBuf::from("node"),
        script: home.join("main.mjs"),
    })
}

async fn discord_py(sources: &Path, home: &Path) -> Result<Program> {
    let requirements = sources.join("requirements.txt");
    let python = home.join("venv/bin/python");
    if !installed(home, &requirements)? {
        let venv = home.join("venv");
        run(Command::new("python3").args(["-m", "venv"]).arg(venv)).await?;
        let pip = ["-m", "pip", "install", "--quiet", "--requirement"];
        run(Command::new(&python).args(pip).arg(&requirements)).await?;
        note_installed(home, &requirements)?;
    }
    Ok(Program {
        path: python,
        script: sources.join("main.py"),
    })
}

/// Whether what this list asks for was installed completely.
fn installed(home: &Path, list: &Path) -> Result<bool> {
    let wanted = std::fs::read(list).with_context(|| format!("read {}", list.display()))?;
    Ok(std::fs::read(home.join("installed")).is_ok_and(|found| found == wanted))
}

fn note_installed(home: &Path, list: &Path) -> Result<()> {
    std::fs::copy(list, home.join("installed")).context("note what is installed")?;
    Ok(())
}

async fn run(command: &mut Command) -> Result<()> {
    let program = command.as_std().get_program().to_owned();
    let program = program.to_string_lossy();
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{program} is not there"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let last = error.trim().lines().last().unwrap_or_default();
        bail!("{program}: {last}");
    }
    Ok(())
}

fn target() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| workspace.unwrap_or(Path::new(".")).join("target"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_installed_is_not_fetched_again_until_it_changes() {
        let home = std::env::temp_dir().join(format!("peer-{}", std::process::id()));
        std::fs::create_dir_all(&home).unwrap();
        let list = home.join("list");
        std::fs::write(&list, "a==1").unwrap();
        assert!(!installed(&home, &list).unwrap());
        note_installed(&home, &list).unwrap();
        assert!(installed(&home, &list).unwrap());
        std::fs::write(&list, "a==2").unwrap();
        assert!(!installed(&home, &list).unwrap());
        std::fs::remove_dir_all(&home).unwrap();
    }
}
