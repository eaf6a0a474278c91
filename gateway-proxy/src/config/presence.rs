//! The presence a session starts with (Discord, Gateway Events, Update Presence).

use serde_json::{Map, Value, json};

use super::shown::Shown;

/// Longest presence in bytes of JSON. An IDENTIFY may have 4096 bytes in all (Discord, Gateway,
/// Sending Events); token, properties and intents need a few hundred.
const PRESENCE_MAX_BYTES: usize = 3_000;

/// Longest text of an activity that Discord keeps.
const ACTIVITY_MAX_CHARS: usize = 128;

const STATUSES: [&str; 5] = ["online", "idle", "dnd", "invisible", "offline"];

/// A presence update's `d`, complete and small enough for an IDENTIFY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence(String);

impl Presence {
    /// The JSON object for IDENTIFY's `presence` and for op 3.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Reads `dnd`, `online:some text` or Discord's own object.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.starts_with('{') {
            Self::parse_object(text)
        } else {
            Self::parse_short(text)
        }
    }

    fn parse_short(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "online, idle, dnd or invisible, optionally with `:` and up to {ACTIVITY_MAX_CHARS} characters, or a JSON object"
            )
        };
        let (status, activity) = match text.split_once(':') {
            Some((status, activity)) => (status.trim(), Some(activity.trim())),
            None => (text, None),
        };
        if !STATUSES.contains(&status) {
            return Err(expected());
        }
        let activities = match activity {
            None => json!([]),
            Some(text) if text.is_empty() || text.chars().count() > ACTIVITY_MAX_CHARS => {
                return Err(expected());
            }
            // Type 4 (custom) shows `state` as it is; other types put a verb before the name.
            Some(text) => json!([{"name": "Custom Status", "type": 4, "state": text}]),
        };
        Self::complete(json!({"status": status, "activities": activities}))
    }

    fn parse_object(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            format!(
                "a JSON object (line {} column {}: {error})",
                error.line(),
                error.column()
            )
        })?;
        Self::complete(value)
    }

    fn complete(value: Value) -> Result<Self, String> {
        let Value::Object(mut fields) = value else {
            return Err("a JSON object".to_owned());
        };
        let known = ["status", "activities", "since", "afk"];
        if let Some(key) = fields.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(format!(
                "a JSON object with {}, not {key:?}",
                known.join(", ")
            ));
        }
        check_status(&fields)?;
        check_activities(&fields)?;
        // Discord requires all four fields.
        fields.entry("status").or_insert_with(|| json!("online"));
        fields.entry("activities").or_insert_with(|| json!([]));
        fields.entry("since").or_insert(Value::Null);
        fields.entry("afk").or_insert(json!(false));
        if !(fields["since"].is_null() || fields["since"].is_u64()) || !fields["afk"].is_boolean() {
            return Err("`since` null or unix milliseconds and `afk` a boolean".to_owned());
        }
        let json = Value::Object(fields).to_string();
        if json.len() > PRESENCE_MAX_BYTES {
            return Err(format!("at most {PRESENCE_MAX_BYTES} bytes of JSON"));
        }
        Ok(Self(json))
    }
}

fn check_status(fields: &Map<String, Value>) -> Result<(), String> {
    match fields.get("status") {
        None => Ok(()),
        Some(Value::String(status)) if STATUSES.contains(&status.as_str()) => Ok(()),
        Some(_) => Err(format!("a `status` of {}", STATUSES.join(", "))),
    }
}

fn check_activities(fields: &Map<String, Value>) -> Result<(), String> {
    let expected =
        || "`activities` as a list of objects, each with a `name` and a `type`".to_owned();
    let Some(activities) = fields.get("activities") else {
        return Ok(());
    };
    let list = activities.as_array().ok_or_else(expected)?;
    let good = |activity: &Value| activity["name"].is_string() && activity["type"].is_u64();
    if list.iter().all(good) {
        Ok(())
    } else {
        Err(expected())
    }
}

impl Shown for Presence {
    fn shown(&self) -> toml::Value {
        toml::Value::String(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Value {
        serde_json::from_str(Presence::parse(text).unwrap().as_json()).unwrap()
    }

    #[test]
    fn a_status_alone_gets_every_field_discord_requires() {
        let expect = json!({"status": "dnd", "activities": [], "since": null, "afk": false});
        assert_eq!(parsed("dnd"), expect);
    }

    #[test]
    fn text_after_the_colon_is_a_custom_activity() {
        let presence = parsed("online:over: you");
        assert_eq!(presence["activities"][0]["state"], "over: you");
        assert_eq!(presence["activities"][0]["type"], 4);
    }

    #[test]
    fn an_object_keeps_its_activities() {
        let presence = parsed(r#"{"activities":[{"name":"chess","type":0}],"status":"idle"}"#);
        assert_eq!(presence["activities"][0]["name"], "chess");
        assert_eq!(presence["afk"], false);
    }

    #[test]
    fn what_discord_would_refuse_is_refused() {
        let long = format!("online:{}", "x".repeat(129));
        let huge = format!(
            r#"{{"activities":[{{"name":"{}","type":0}}]}}"#,
            "x".repeat(3_000)
        );
        for bad in [
            "",
            "away",
            "online:",
            &long,
            &huge,
            "{",
            "{\"x\":1}",
            "{\"status\":\"away\"}",
            "{\"activities\":{}}",
            "{\"activities\":[1]}",
            "{\"since\":\"now\"}",
            "{\"afk\":1}",
        ] {
            assert!(Presence::parse(bad).is_err(), "{bad}");
        }
    }
}
