//! A slash command as its user sees it, `/find guild query:7`, and what Discord's client makes of it:
//! a name, and options nested as the application registered them. Pure.

use serde_json::{Value, json};

/// Longest name of a command, subcommand or option (Discord, Application Commands, Naming).
const NAME_MAX: usize = 32;
/// A group and a subcommand in it: Discord nests no deeper.
const PATH_MAX: usize = 2;

/// Option types (Discord, Application Commands, Application Command Option Type).
const SUB_COMMAND: u64 = 1;
const SUB_COMMAND_GROUP: u64 = 2;
const STRING: u64 = 3;
const INTEGER: u64 = 4;
const BOOLEAN: u64 = 5;
const NUMBER: u64 = 10;

/// The command's name; `None` where it is none.
pub(crate) fn name(text: &str) -> Option<&str> {
    let first = text.split_whitespace().next()?;
    let name = first.strip_prefix('/').unwrap_or(first);
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '\'');
    let fits = (1..=NAME_MAX).contains(&name.chars().count());
    (fits && name.chars().all(plain)).then_some(name)
}

/// What follows the name, as the `options` of an interaction. Words without a colon are a
/// subcommand, before it its group; `name:` begins a value, which lasts until the next one. Types are
/// those of the registered `definition`; what it does not know is a string.
pub(crate) fn options(text: &str, definition: Option<&Value>) -> Vec<Value> {
    let mut words = text.split_whitespace().skip(1).peekable();
    let mut path = Vec::new();
    let mut known = definition.map(|definition| &definition["options"]);
    while path.len() < PATH_MAX
        && let Some(word) = words.next_if(|word| !word.contains(':'))
    {
        path.push(word);
        known = known
            .and_then(|options| named(options, word))
            .map(|inner| &inner["options"]);
    }
    let mut values: Vec<(&str, String)> = Vec::new();
    for word in words {
        let begins = word.split_once(':').filter(|(name, _)| {
            let any = known.is_none_or(|options| options.as_array().is_none_or(Vec::is_empty));
            any || known.and_then(|options| named(options, name)).is_some()
        });
        match (begins, values.last_mut()) {
            (Some((name, value)), _) => values.push((name, value.to_owned())),
            (None, Some((_, value))) => {
                value.push(' ');
                value.push_str(word);
            }
            // A word before any option: nobody can have typed that.
            (None, None) => {}
        }
    }
    let values = values.into_iter().map(|(name, text)| {
        let known = known.and_then(|options| named(options, name));
        let kind = known.and_then(|option| option["type"].as_u64());
        let kind = kind.unwrap_or(STRING);
        json!({"name": name, "type": kind, "value": value(kind, &text)})
    });
    let inner = values.collect();
    path.iter()
        .rev()
        .enumerate()
        .fold(inner, |inner, (depth, name)| {
            let kind = if depth == 0 {
                SUB_COMMAND
            } else {
                SUB_COMMAND_GROUP
            };
            vec![json!({"name": name, "type": kind, "options": inner})]
        })
}

fn named<'a>(options: &'a Value, name: &str) -> Option<&'a Value> {
    options
        .as_array()?
        .iter()
        .find(|option| option["name"] == name)
}

fn value(kind: u64, text: &str) -> Value {
    let typed = match kind {
        INTEGER => text.parse::<i64>().ok().map(Value::from),
        NUMBER => text.parse::<f64>().ok().map(Value::from),
        BOOLEAN => text.parse::<bool>().ok().map(Value::from),
        _ => None,
    };
    typed.unwrap_or_else(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, definition: Option<&Value>, expect: &Value) {
        assert_eq!(&json!(options(text, definition)), expect, "{text}");
    }

    #[test]
    fn options_are_nested_as_discord_sends_them() {
        check("ping", None, &json!([]));
        let query = json!({"name": "query", "type": 3, "value": "7"});
        check("/say query:7", None, &json!([query]));
        let guild = json!({"name": "guild", "type": 1, "options": [query]});
        check("/find guild query:7", None, &json!([guild]));
        let group = json!([{"name": "by", "type": 2, "options": [guild]}]);
        check("/find by guild query:7", None, &group);
    }

    #[test]
    fn values_have_spaces_and_the_types_that_were_registered() {
        let definition = json!({"name": "roll", "options": [
            {"name": "times", "type": 4}, {"name": "secret", "type": 5}, {"name": "why", "type": 3},
        ]});
        check(
            "/roll times:3 why:see http://x now secret:true",
            Some(&definition),
            &json!([
                {"name": "times", "type": 4, "value": 3},
                {"name": "why", "type": 3, "value": "see http://x now"},
                {"name": "secret", "type": 5, "value": true},
            ]),
        );
    }

    #[test]
    fn a_name_is_what_discord_allows() {
        assert_eq!(name("/find guild"), Some("find"));
        assert_eq!(name("ping"), Some("ping"));
        for text in [
            "",
            "/",
            "a\"b",
            "a b\u{0}".trim_start_matches("a "),
            &"x".repeat(33),
        ] {
            assert_eq!(name(text), None, "{text:?}");
        }
    }
}
