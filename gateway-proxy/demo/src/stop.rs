//! Being asked to end: Ctrl-C as a signal or as a key, `q`, SIGTERM, a closed terminal.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::exit::Fatal;

/// Counts how often the demo was asked to end; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Sender<u32>);

impl Stop {
    /// Listens for signals from here on.
    pub(crate) fn listen() -> Result<Self, Fatal> {
        let stop = Self(watch::Sender::new(0));
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        for kind in kinds {
            let mut signals = signal(kind).map_err(|source| Fatal::System {
                action: "listen for signals",
                source,
            })?;
            let stop = stop.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    stop.ask();
                }
            });
        }
        Ok(stop)
    }

    /// Asks once more.
    pub(crate) fn ask(&self) {
        self.0.send_modify(|asked| *asked = asked.saturating_add(1));
    }

    /// Asks if nobody has: pressing `q` twice is no reason to hurry.
    pub(crate) fn ask_once(&self) {
        self.0.send_modify(|asked| *asked = (*asked).max(1));
    }

    /// Completes once somebody has asked.
    pub(crate) async fn asked(&self) {
        self.reached(1).await;
    }

    /// Completes once somebody has asked twice: at once, then.
    pub(crate) async fn insisted(&self) {
        self.reached(2).await;
    }

    async fn reached(&self, times: u32) {
        let mut asked = self.0.subscribe();
        // The sender lives as long as self, so this cannot fail.
        drop(asked.wait_for(|asked| *asked >= times).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn q_twice_does_not_insist_and_ctrl_c_twice_does() {
        let stop = Stop::listen().unwrap();
        stop.ask_once();
        stop.ask_once();
        stop.asked().await;
        assert_eq!(*stop.0.borrow(), 1);
        stop.ask();
        stop.insisted().await;
    }
}
