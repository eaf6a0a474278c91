//! What a handler answers. A thin layer over `twilight-model`, whose full type stays reachable.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use twilight_model::application::command::CommandOptionChoice;
use twilight_model::channel::message::{AllowedMentions, Component, MessageFlags};
use twilight_model::http::interaction::{
    InteractionResponse, InteractionResponseData, InteractionResponseType,
};

use crate::router::HandlerError;

/// Longest text Discord takes in one message, in characters (Discord, Create Message).
const CONTENT_MAX_CHARS: usize = 2000;
/// Most suggestions Discord takes (Discord, Autocomplete).
const CHOICES_MAX: usize = 25;

/// The rest of a deferred response.
pub(crate) type Later = Pin<Box<dyn Future<Output = Result<Response, HandlerError>> + Send>>;

/// The first response to an interaction.
pub struct Response {
    first: InteractionResponse,
    later: Option<Later>,
}

impl Response {
    /// A message in the channel. Mentions in it notify nobody; text above Discord's 2000
    /// characters is cut, since a cut answer is better than a refused one.
    #[must_use]
    pub fn text(content: impl Into<String>) -> Self {
        Self::message(
            InteractionResponseType::ChannelMessageWithSource,
            content.into(),
        )
    }

    /// The new text of the message that a component belongs to.
    #[must_use]
    pub fn update(content: impl Into<String>) -> Self {
        Self::message(InteractionResponseType::UpdateMessage, content.into())
    }

    fn message(kind: InteractionResponseType, mut content: String) -> Self {
        if let Some((cut, _)) = content.char_indices().nth(CONTENT_MAX_CHARS) {
            content.truncate(cut);
        }
        Self::new(
            kind,
            InteractionResponseData {
                content: Some(content),
                allowed_mentions: Some(AllowedMentions::default()),
                ..InteractionResponseData::default()
            },
        )
    }

    fn new(kind: InteractionResponseType, data: InteractionResponseData) -> Self {
        let data = Some(data);
        InteractionResponse { kind, data }.into()
    }

    /// Says "thinking …" at once, and what `work` returns when it is done, for up to 15 minutes.
    ///
    /// Only the message of what `work` returns counts: text, embeds, components. A worker that is
    /// stopped waits for it within its grace period; when it dies the user waits in vain.
    #[must_use]
    pub fn deferred(
        work: impl Future<Output = Result<Self, HandlerError>> + Send + 'static,
    ) -> Self {
        Self {
            later: Some(Box::pin(work)),
            ..Self::new(
                InteractionResponseType::DeferredChannelMessageWithSource,
                InteractionResponseData::default(),
            )
        }
    }

    /// The same for a component: its message stays as it is until `work` is done.
    #[must_use]
    pub fn deferred_update(
        work: impl Future<Output = Result<Self, HandlerError>> + Send + 'static,
    ) -> Self {
        Self {
            later: Some(Box::pin(work)),
            ..Self::new(
                InteractionResponseType::DeferredUpdateMessage,
                InteractionResponseData::default(),
            )
        }
    }

    /// Opens a form, whose submission comes to the handler of [`Router::modal`](crate::Router::modal)
    /// with this `custom_id`, or what stands before its first colon.
    #[must_use]
    pub fn modal(
        custom_id: impl Into<String>,
        title: impl Into<String>,
        components: impl IntoIterator<Item = Component>,
    ) -> Self {
        Self::new(
            InteractionResponseType::Modal,
            InteractionResponseData {
                custom_id: Some(custom_id.into()),
                title: Some(title.into()),
                components: Some(components.into_iter().collect()),
                ..InteractionResponseData::default()
            },
        )
    }

    /// Suggestions for the option that is being typed; those above Discord's 25 are left out.
    #[must_use]
    pub fn choices(choices: impl IntoIterator<Item = CommandOptionChoice>) -> Self {
        Self::new(
            InteractionResponseType::ApplicationCommandAutocompleteResult,
            InteractionResponseData {
                choices: Some(choices.into_iter().take(CHOICES_MAX).collect()),
                ..InteractionResponseData::default()
            },
        )
    }

    /// The same answer, seen only by the user who asked.
    #[must_use]
    pub fn ephemeral(mut self) -> Self {
        let data = self.first.data.get_or_insert_default();
        data.flags = Some(data.flags.unwrap_or(MessageFlags::empty()) | MessageFlags::EPHEMERAL);
        self
    }

    /// Adds buttons, menus and whatever else stands below a message.
    #[must_use]
    pub fn components(mut self, components: impl IntoIterator<Item = Component>) -> Self {
        let data = self.first.data.get_or_insert_default();
        data.components = Some(components.into_iter().collect());
        self
    }

    /// The response as it is posted.
    #[must_use]
    pub const fn as_model(&self) -> &InteractionResponse {
        &self.first
    }

    /// What must be done after it was posted.
    pub(crate) fn take_later(&mut self) -> Option<Later> {
        self.later.take()
    }
}

impl From<InteractionResponse> for Response {
    fn from(first: InteractionResponse) -> Self {
        Self { first, later: None }
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("first", &self.first)
            .field("deferred", &self.later.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use twilight_model::application::command::CommandOptionChoiceValue;

    use super::*;

    fn json(response: &Response) -> serde_json::Value {
        serde_json::to_value(response.as_model()).unwrap()
    }

    #[test]
    fn a_text_is_a_message_that_pings_nobody() {
        let value = json(&Response::text("hello @everyone"));
        assert_eq!(value["type"], 4);
        assert_eq!(value["data"]["content"], "hello @everyone");
        assert_eq!(
            value["data"]["allowed_mentions"]["parse"],
            serde_json::json!([])
        );
        assert_eq!(value["data"].get("flags"), None);
    }

    #[test]
    fn ephemeral_sets_the_flag_and_nothing_else() {
        let value = json(&Response::text("psst").ephemeral());
        assert_eq!(value["data"]["flags"], 64);
        assert_eq!(value["data"]["content"], "psst");
    }

    #[test]
    fn every_kind_of_response_has_discords_number() {
        let kind = |response: &Response| json(response)["type"].as_u64().unwrap();
        assert_eq!(kind(&Response::update("a")), 7);
        assert_eq!(kind(&Response::modal("id", "Title", [])), 9);
        let mut deferred = Response::deferred(async { Ok(Response::text("done")) }).ephemeral();
        assert_eq!(
            (kind(&deferred), json(&deferred)["data"]["flags"].as_u64()),
            (5, Some(64))
        );
        assert!(deferred.take_later().is_some() && deferred.take_later().is_none());
        let update = Response::deferred_update(async { Ok(Response::text("done")) });
        assert_eq!(kind(&update), 6);
    }

    #[test]
    fn more_suggestions_than_discord_takes_are_left_out() {
        let choice = |number: i64| CommandOptionChoice {
            name: number.to_string(),
            name_localizations: None,
            value: CommandOptionChoiceValue::Integer(number),
        };
        let value = json(&Response::choices((0..40).map(choice)));
        assert_eq!(
            (
                value["type"].as_u64(),
                value["data"]["choices"][24]["value"].as_i64()
            ),
            (Some(8), Some(24))
        );
        assert_eq!(value["data"]["choices"].as_array().unwrap().len(), 25);
    }

    #[test]
    fn a_text_too_long_for_discord_is_cut_between_characters() {
        let content = |response: Response| response.first.data.unwrap().content.unwrap();
        assert_eq!(content(Response::text("é".repeat(2001))), "é".repeat(2000));
        assert_eq!(content(Response::text("é".repeat(2000))), "é".repeat(2000));
    }
}
