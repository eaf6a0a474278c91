//! What a command looks like to Discord, and whether what Discord has is the same. Pure.

use serde::Serialize;
use serde_json::{Map, Value};
use twilight_model::application::command::{CommandOption, CommandOptionType, CommandType};
use twilight_model::application::interaction::InteractionContextType;
use twilight_model::guild::Permissions;
use twilight_model::oauth::ApplicationIntegrationType;

/// A global command, declared next to its handler.
///
/// The fields are Discord's, except those only Discord writes (ids and version). What is not
/// declared and has a default that depends on the application (contexts, installation types) is
/// left as Discord has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Definition {
    #[serde(rename = "type")]
    kind: CommandType,
    name: String,
    description: String,
    options: Vec<CommandOption>,
    default_member_permissions: Option<Permissions>,
    nsfw: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    contexts: Option<Vec<InteractionContextType>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    integration_types: Option<Vec<ApplicationIntegrationType>>,
}

impl Definition {
    /// A slash command: `name` is 1 to 32 lower-case characters, `description` 1 to 100.
    #[must_use]
    pub fn chat_input(name: impl Into<String>, description: impl Into<String>) -> Self {
        Self::new(CommandType::ChatInput, name.into(), description.into())
    }

    /// A command in the menu of a user or a message.
    #[must_use]
    pub fn context_menu(name: impl Into<String>, kind: CommandType) -> Self {
        Self::new(kind, name.into(), String::new())
    }

    const fn new(kind: CommandType, name: String, description: String) -> Self {
        Self {
            kind,
            name,
            description,
            options: Vec::new(),
            default_member_permissions: None,
            nsfw: false,
            contexts: None,
            integration_types: None,
        }
    }

    /// Adds an option; required ones come first (Discord's rule).
    #[must_use]
    pub fn option(mut self, option: CommandOption) -> Self {
        self.options.push(option);
        self
    }

    /// Who may use the command unless a server's settings say otherwise.
    #[must_use]
    pub const fn default_member_permissions(mut self, permissions: Permissions) -> Self {
        self.default_member_permissions = Some(permissions);
        self
    }

    /// Marks the command as age-restricted.
    #[must_use]
    pub const fn nsfw(mut self) -> Self {
        self.nsfw = true;
        self
    }

    /// Where the command can be used.
    #[must_use]
    pub fn contexts(mut self, contexts: impl IntoIterator<Item = InteractionContextType>) -> Self {
        self.contexts = Some(contexts.into_iter().collect());
        self
    }

    /// For which kinds of installation the command exists.
    #[must_use]
    pub fn integration_types(
        mut self,
        types: impl IntoIterator<Item = ApplicationIntegrationType>,
    ) -> Self {
        self.integration_types = Some(types.into_iter().collect());
        self
    }

    /// Name of the command.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Type of the command.
    #[must_use]
    pub const fn kind(&self) -> CommandType {
        self.kind
    }

    /// The declaration as Discord takes it.
    fn to_object(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(object)) => object,
            Ok(_) | Err(_) => Map::new(),
        }
    }

    /// Whether `theirs`, an entry of Discord's list, is this command (same type and name).
    fn names(&self, theirs: &Value) -> bool {
        // A command without `type` is a slash command (Discord, Application Command Object).
        let kind = theirs.get("type").and_then(Value::as_u64).unwrap_or(1);
        kind == u64::from(u8::from(self.kind))
            && theirs.get("name").and_then(Value::as_str) == Some(&self.name)
    }

    /// Whether what Discord has differs in anything we declare.
    fn differs(&self, theirs: &Value) -> bool {
        self.to_object().into_iter().any(|(field, ours)| {
            normal(&ours) != normal(theirs.get(&field).unwrap_or(&Value::Null))
        })
    }
}

/// An option of a command, for [`Definition::option`]; set the rest with struct update syntax.
///
/// ```
/// use consumers::commands::{Definition, option};
/// use twilight_model::application::command::{CommandOption, CommandOptionType};
///
/// let sides = option(CommandOptionType::Integer, "sides", "How many sides it has");
/// let sides = CommandOption { required: Some(true), ..sides };
/// let roll = Definition::chat_input("roll", "Rolls a die").option(sides);
/// ```
#[must_use]
pub fn option(kind: CommandOptionType, name: &str, description: &str) -> CommandOption {
    CommandOption {
        autocomplete: None,
        channel_types: None,
        choices: None,
        description: description.to_owned(),
        description_localizations: None,
        file_types: None,
        kind,
        max_length: None,
        max_value: None,
        min_length: None,
        min_value: None,
        name: name.to_owned(),
        name_localizations: None,
        options: None,
        required: None,
    }
}

/// The definitions that Discord lacks or has differently, in their order: what must be written.
///
/// `theirs` is Discord's list of the application's global commands. Commands on it that nobody here
/// declares are left alone, since other workers may own them.
#[must_use]
pub fn to_write<'a>(
    ours: impl IntoIterator<Item = &'a Definition>,
    theirs: &[Value],
) -> Vec<&'a Definition> {
    let missing_or_different = |definition: &&Definition| {
        let registered = theirs.iter().find(|command| definition.names(command));
        registered.is_none_or(|command| definition.differs(command))
    };
    ours.into_iter().filter(missing_or_different).collect()
}

/// A value without what means the same as absence: null, false, and empty lists, texts and objects.
/// Discord fills some of these in and leaves others out.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter_map(|(name, value)| {
                let value = normal(value);
                (!value.is_null()).then(|| (name.clone(), value))
            });
            let kept: Map<String, Value> = kept.collect();
            if kept.is_empty() {
                Value::Null
            } else {
                Value::Object(kept)
            }
        }
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Array(items) => Value::Array(items.iter().map(normal).collect()),
        Value::Bool(false) => Value::Null,
        Value::String(text) if text.is_empty() => Value::Null,
        Value::Bool(true) | Value::Null | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn query() -> CommandOption {
        CommandOption {
            required: Some(true),
            ..option(CommandOptionType::String, "query", "What to look for")
        }
    }

    fn ping() -> Definition {
        Definition::chat_input("ping", "Measures")
    }

    /// What Discord lists for [`ping`], with everything it adds.
    fn listed_ping() -> Value {
        json!({
            "id": "1", "application_id": "2", "version": "3", "type": 1, "name": "ping",
            "description": "Measures", "default_member_permissions": null, "dm_permission": true,
            "nsfw": false, "contexts": null, "integration_types": [0], "name_localizations": null,
            "description_localizations": null,
        })
    }

    fn check(ours: &[Definition], theirs: &[Value], written: &[&str]) {
        let names: Vec<&str> = to_write(ours, theirs)
            .into_iter()
            .map(Definition::name)
            .collect();
        assert_eq!(names, written);
    }

    #[test]
    fn commands_that_discord_lacks_are_written() {
        check(&[ping()], &[], &["ping"]);
        check(&[], &[listed_ping()], &[]);
    }

    #[test]
    fn a_command_that_is_registered_as_declared_is_left_alone() {
        check(&[ping()], &[listed_ping()], &[]);
    }

    #[test]
    fn commands_of_other_workers_are_left_alone() {
        let other = json!({"id": "9", "type": 1, "name": "other", "description": "Not ours"});
        check(&[ping()], &[other, listed_ping()], &[]);
    }

    #[test]
    fn any_declared_field_that_differs_is_written() {
        for (field, value) in [
            ("description", json!("Something else")),
            ("nsfw", json!(true)),
            ("default_member_permissions", json!("8")),
            (
                "options",
                json!([{"type": 3, "name": "old", "description": "Gone"}]),
            ),
        ] {
            let mut theirs = listed_ping();
            theirs[field] = value;
            check(&[ping()], &[theirs], &["ping"]);
        }
    }

    #[test]
    fn a_menu_command_of_the_same_name_is_another_command() {
        let mut theirs = listed_ping();
        theirs["type"] = json!(2);
        check(&[ping()], &[theirs], &["ping"]);
    }

    #[test]
    fn options_are_compared_without_the_defaults_discord_fills_in() {
        let ours = Definition::chat_input("find", "Finds").option(query());
        let mut theirs = listed_ping();
        theirs["name"] = json!("find");
        theirs["description"] = json!("Finds");
        theirs["options"] = json!([{
            "type": 3, "name": "query", "description": "What to look for", "required": true,
            "autocomplete": false, "choices": [], "name_localizations": null,
        }]);
        check(std::slice::from_ref(&ours), &[theirs.clone()], &[]);
        theirs["options"][0]["required"] = json!(false);
        check(&[ours], &[theirs], &["find"]);
    }

    #[test]
    fn contexts_are_compared_only_if_declared() {
        let mut theirs = listed_ping();
        theirs["contexts"] = json!([0, 1]);
        check(&[ping()], &[theirs.clone()], &[]);
        check(
            &[ping().contexts([InteractionContextType::Guild])],
            &[theirs],
            &["ping"],
        );
    }

    #[test]
    fn rubbish_in_discords_list_does_not_matter() {
        check(
            &[ping()],
            &[json!(null), json!(7), json!({"name": 5}), listed_ping()],
            &[],
        );
    }
}
