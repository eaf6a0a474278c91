//! The gateway's url: cached, and asked for again when connecting with it fails (Discord, Gateway,
//! Get Gateway Bot).

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{info, warn};

use crate::discord_api::DiscordApi;

/// The least time between two questions, however many connections fail.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// The url of `/gateway/bot`, shared by all shards.
#[derive(Debug)]
pub(crate) struct GatewayUrl {
    url: RwLock<String>,
    doubted: Notify,
}

impl GatewayUrl {
    pub(crate) fn new(url: String) -> Arc<Self> {
        Arc::new(Self {
            url: RwLock::new(url),
            doubted: Notify::new(),
        })
    }

    pub(crate) fn get(&self) -> String {
        self.url
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A connection to it failed.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Asks Discord when there is doubt.
    pub(crate) async fn run(self: Arc<Self>, api: DiscordApi) {
        loop {
            self.doubted.notified().await;
            match api.gateway_bot().await {
                Ok(answer) if answer.url != self.get() => {
                    info!(url = answer.url, "the gateway has another url");
                    *self.url.write().unwrap_or_else(PoisonError::into_inner) = answer.url;
                }
                Ok(_) => {}
                Err(error) => warn!(%error, "the gateway's url could not be asked for"),
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}
