//! What a handler answers. A thin layer over `twilight-model`, whose full type stays reachable.

use twilight_model::channel::message::{AllowedMentions, MessageFlags};
use twilight_model::http::interaction::{
    InteractionResponse, InteractionResponseData, InteractionResponseType,
};

/// Longest text Discord takes in one message, in characters (Discord, Create Message).
const CONTENT_MAX_CHARS: usize = 2000;

/// The first response to an interaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Response(InteractionResponse);

impl Response {
    /// A message in the channel. Mentions in it notify nobody; text above Discord's 2000
    /// characters is cut, since a cut answer is better than a refused one.
    #[must_use]
    pub fn text(content: impl Into<String>) -> Self {
        let mut content = content.into();
        if let Some((cut, _)) = content.char_indices().nth(CONTENT_MAX_CHARS) {
            content.truncate(cut);
        }
        Self(InteractionResponse {
            kind: InteractionResponseType::ChannelMessageWithSource,
            data: Some(InteractionResponseData {
                content: Some(content),
                allowed_mentions: Some(AllowedMentions::default()),
                ..InteractionResponseData::default()
            }),
        })
    }

    /// The same answer, seen only by the user who asked.
    #[must_use]
    pub fn ephemeral(mut self) -> Self {
        let data = self.0.data.get_or_insert_default();
        data.flags = Some(data.flags.unwrap_or(MessageFlags::empty()) | MessageFlags::EPHEMERAL);
        self
    }

    /// The response as it is posted.
    #[must_use]
    pub const fn as_model(&self) -> &InteractionResponse {
        &self.0
    }
}

impl From<InteractionResponse> for Response {
    fn from(response: InteractionResponse) -> Self {
        Self(response)
    }
}

#[cfg(test)]
mod tests {
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
    fn a_text_too_long_for_discord_is_cut_between_characters() {
        let content = |response: Response| response.0.data.unwrap().content.unwrap();
        assert_eq!(content(Response::text("é".repeat(2001))), "é".repeat(2000));
        assert_eq!(content(Response::text("é".repeat(2000))), "é".repeat(2000));
    }
}
