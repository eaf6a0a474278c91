//! Secrets: from the environment or a file, one line, never shown.

use std::path::Path;

use secrecy::SecretString;

use super::ConfigError;
use super::raw::{Given, read_bounded};

/// Largest secret file; a Discord token has about 72 characters, credentials a few thousand.
pub(crate) const SECRET_FILE_MAX_BYTES: u64 = 64 * 1024;

/// Reads the file that `given` names.
pub(crate) fn read_file(given: &Given) -> Result<String, ConfigError> {
    let path = Path::new(given.text.trim());
    read_bounded(path, SECRET_FILE_MAX_BYTES).map_err(|problem| referenced(given, problem))
}

/// A file some key names is not what it should be.
pub(crate) fn referenced(given: &Given, problem: impl Into<String>) -> ConfigError {
    let path = Path::new(given.text.trim()).to_owned();
    ConfigError::Referenced {
        origin: given.source.origin(),
        path,
        problem: problem.into(),
    }
}

/// The bot's token: white space around it and the prefix of the HTTP header are dropped, because
/// both are commonly copied along. IDENTIFY wants it bare.
pub(crate) fn bot_token(text: &str) -> Result<SecretString, String> {
    let text = text.trim();
    let bare = match text.split_once(char::is_whitespace) {
        Some(("Bot", token)) => token.trim(),
        None if text == "Bot" => "",
        Some(_) | None => text,
    };
    one_line(bare)
}

/// A password or token: one line, not empty.
pub(crate) fn one_line(text: &str) -> Result<SecretString, String> {
    let text = text.trim_end_matches(['\r', '\n']);
    if text.trim().is_empty() {
        return Err("not to be empty".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("a single line of text".to_owned());
    }
    Ok(SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn check(text: &str, expect: Option<&str>) {
        let got = bot_token(text).ok();
        assert_eq!(
            got.as_ref().map(|token| token.expose_secret()),
            expect,
            "{text:?}"
        );
    }

    #[test]
    fn a_token_loses_its_prefix_and_white_space() {
        check("abc.def", Some("abc.def"));
        check("  Bot abc.def \r\n", Some("abc.def"));
    }

    #[test]
    fn empty_and_multi_line_tokens_are_refused() {
        for bad in ["", "  ", "\n", "Bot ", "a\nb", "a\0b"] {
            check(bad, None);
        }
    }

    #[test]
    fn a_password_keeps_its_spaces() {
        assert_eq!(one_line(" p w \n").unwrap().expose_secret(), " p w ");
    }
}
