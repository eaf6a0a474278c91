//! Where values come from: flag, then environment variable; secrets from files. Knows names and
//! precedence, not what a value means.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use secrecy::SecretString;

use crate::exit::Fatal;

/// Largest secret file; tokens have well below 200 bytes.
const SECRET_FILE_MAX: u64 = 64 * 1024;

/// A value as text, and where a person finds it.
pub(super) struct Given {
    pub(super) text: String,
    origin: String,
}

impl Given {
    pub(super) fn default(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            origin: "default".to_owned(),
        }
    }

    pub(super) fn read<T>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Fatal> {
        parse(&self.text).map_err(|allowed| {
            Fatal::usage(
                format!("{} is {:?}", self.origin, self.text),
                format!("allowed is {allowed}"),
            )
        })
    }
}

/// The environment variables of the process, or those of a test.
pub(super) struct Environment<'a>(pub(super) &'a dyn Fn(&str) -> Option<OsString>);

impl Environment<'_> {
    /// An empty variable counts as unset: compose files pass through variables nobody set.
    fn variable(&self, name: &str) -> Result<Option<String>, Fatal> {
        match (self.0)(name) {
            None => Ok(None),
            Some(value) if value.is_empty() => Ok(None),
            Some(value) => value.into_string().map(Some).map_err(|_| {
                Fatal::usage(
                    format!("environment variable {name} is not UTF-8"),
                    "set it to plain text",
                )
            }),
        }
    }

    /// A flag's value, or its variable's.
    pub(super) fn setting(
        &self,
        flag: Option<String>,
        key: &str,
        name: &str,
    ) -> Result<Option<Given>, Fatal> {
        if let Some(text) = flag {
            return Ok(Some(Given {
                text,
                origin: format!("--{key}"),
            }));
        }
        let from_env = self.variable(name)?;
        let origin = format!("environment variable {name}");
        Ok(from_env.map(|text| Given { text, origin }))
    }

    /// A secret: from the file that a flag or variable names, else from a variable of its own.
    pub(super) fn secret(
        &self,
        flag: Option<String>,
        key: &str,
        file_name: &str,
        names: &[&str],
    ) -> Result<Option<SecretString>, Fatal> {
        if let Some(path) = self.setting(flag, key, file_name)? {
            return secret_file(&path).map(Some);
        }
        for name in names {
            if let Some(text) = self.variable(name)? {
                return Ok(Some(SecretString::from(text.trim().to_owned())));
            }
        }
        Ok(None)
    }
}

fn secret_file(given: &Given) -> Result<SecretString, Fatal> {
    let path = Path::new(&given.text);
    let unusable = |why: &dyn fmt::Display| {
        let problem = format!("{} names {}, which {why}", given.origin, path.display());
        Fatal::usage(problem, "name a readable text file with the secret in it")
    };
    let size = std::fs::metadata(path)
        .map_err(|error| unusable(&error))?
        .len();
    if size > SECRET_FILE_MAX {
        return Err(unusable(&format_args!(
            "is larger than {SECRET_FILE_MAX} bytes"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unusable(&error))?;
    if text.trim().is_empty() {
        return Err(unusable(&"is empty"));
    }
    Ok(SecretString::from(text.trim().to_owned()))
}
