//! How `check-config` writes each kind of value, so that the file stage reads it back.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use schemas::{Intents, Prefix, ProxyId};
use url::Url;

use super::value::DurationText;
use super::{Compression, LogFormat};

/// A value that `check-config` prints in its effective form.
pub(crate) trait Shown {
    fn shown(&self) -> toml::Value;
}

impl Shown for Compression {
    fn shown(&self) -> toml::Value {
        toml::Value::String(self.to_string())
    }
}

impl Shown for LogFormat {
    fn shown(&self) -> toml::Value {
        toml::Value::String(self.to_string())
    }
}

impl Shown for Duration {
    fn shown(&self) -> toml::Value {
        toml::Value::String(DurationText(*self).to_string())
    }
}

impl Shown for bool {
    fn shown(&self) -> toml::Value {
        toml::Value::Boolean(*self)
    }
}

impl Shown for String {
    fn shown(&self) -> toml::Value {
        toml::Value::String(self.clone())
    }
}

impl Shown for SocketAddr {
    fn shown(&self) -> toml::Value {
        toml::Value::String(self.to_string())
    }
}

impl Shown for Url {
    fn shown(&self) -> toml::Value {
        toml::Value::String(self.as_str().trim_end_matches('/').to_owned())
    }
}

macro_rules! shown_as_integer {
    ($($number:ty),*) => {
        $(impl Shown for $number {
            fn shown(&self) -> toml::Value {
                toml::Value::Integer(i64::from(*self))
            }
        })*
    };
}
shown_as_integer!(u8, u16, u32, i32);

impl Shown for NonZeroU32 {
    fn shown(&self) -> toml::Value {
        toml::Value::Integer(i64::from(self.get()))
    }
}

impl Shown for Intents {
    fn shown(&self) -> toml::Value {
        toml::Value::String(self.to_string())
    }
}

impl Shown for Prefix {
    fn shown(&self) -> toml::Value {
        toml::Value::String(self.to_string())
    }
}

impl Shown for ProxyId {
    fn shown(&self) -> toml::Value {
        toml::Value::String(self.to_string())
    }
}
