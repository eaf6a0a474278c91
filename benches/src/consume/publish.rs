//! Fills the stream: prepared messages by fast ingest, as fast as they are taken or at a rate.

use std::io::{self, BufRead as _, Write as _};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::load::bare::ingest::FastIngest;
use crate::load::corpus;

/// Between two bursts of a paced load.
const TICK: Duration = Duration::from_millis(1);

#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) port: u16,
    pub(crate) corpus: PathBuf,
    pub(crate) events: u64,
    /// Events per second; as fast as they are taken without.
    pub(crate) rate: Option<f64>,
}

/// In the part: publishes, says so, and ends with standard input.
pub(crate) fn part(setup: &Setup) -> Result<()> {
    let messages = corpus::read(&setup.corpus)?;
    let mut ingest = FastIngest::connect(setup.port)?;
    let mut stdin = io::stdin().lock();
    let mut line = String::new();
    writeln!(io::stdout(), "ready").context("say ready")?;
    if stdin.read_line(&mut line).context("wait for the word")? == 0 {
        return Ok(());
    }
    let begun = Instant::now();
    for (number, message) in (1..=setup.events).zip(messages.iter().cycle()) {
        if let Some(rate) = setup.rate {
            let due = Duration::from_secs_f64(number as f64 / rate);
            while begun.elapsed() < due {
                ingest.flush()?;
                sleep(TICK);
            }
        }
        // Ids never repeat: one session, numbered.
        let id = ("b0000000000000000000000000000000", number);
        let last = number == setup.events;
        ingest.publish(&message.subject, id, &message.payload, last)?;
    }
    ingest.finish()?;
    writeln!(io::stdout(), "done {}", begun.elapsed().as_secs_f64()).context("say done")?;
    line.clear();
    stdin.read_line(&mut line).context("wait for the end")?;
    Ok(())
}
