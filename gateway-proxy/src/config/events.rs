//! Which events are published.

use std::collections::BTreeSet;

use schemas::event::{EventKind, EventName};

/// Most names a list may have: all documented ones and as many again.
const NAMES_MAX: usize = 2 * EventKind::COUNT;

/// Longest event name; Discord's longest has 38 characters.
const NAME_MAX_BYTES: usize = 64;

// One bit per documented event.
const _: () = assert!(EventKind::COUNT <= u128::BITS as usize);

/// The choice of `--publish-events` and `--drop-events`.
///
/// `PROXY_*` events are always published: they say what was lost, and silence about it is what the
/// product promises not to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventFilter {
    /// Documented events that are published, by [`EventKind::index`].
    known: u128,
    /// Whether events outside the documentation are published unless listed in `exceptions`.
    others: bool,
    exceptions: BTreeSet<String>,
}

impl EventFilter {
    /// Publishes everything.
    #[must_use]
    pub const fn everything() -> Self {
        Self {
            known: u128::MAX,
            others: true,
            exceptions: BTreeSet::new(),
        }
    }

    /// Only `publish` if given, without `drop`.
    pub(crate) fn new(publish: Option<&EventNames>, drop: Option<&EventNames>) -> Self {
        let mut filter = Self::everything();
        if let Some(publish) = publish {
            filter = Self {
                known: 0,
                others: false,
                exceptions: BTreeSet::new(),
            };
            for name in &publish.0 {
                filter.set(name, true);
            }
        }
        for name in drop.iter().flat_map(|names| &names.0) {
            filter.set(name, false);
        }
        filter
    }

    fn set(&mut self, name: &str, published: bool) {
        match EventKind::from_name(name) {
            Some(kind) if published => self.known |= bit(kind),
            Some(kind) => self.known &= !bit(kind),
            None if published == self.others => drop(self.exceptions.remove(name)),
            None => drop(self.exceptions.insert(name.to_owned())),
        }
    }

    /// True when the event goes to the stream.
    #[must_use]
    pub fn publishes(&self, event: &EventName<'_>) -> bool {
        match event {
            EventName::Known(kind) => self.known & bit(*kind) != 0,
            EventName::Proxy(_) => true,
            EventName::Other(name) => self.others != self.exceptions.contains(*name),
        }
    }

    /// True when nothing is ever dropped.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::everything()
    }
}

const fn bit(kind: EventKind) -> u128 {
    1 << kind.index()
}

/// A list of event names as given; not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventNames(BTreeSet<String>);

impl EventNames {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let expected = || {
            "event names of letters, digits and `_`, separated by commas, as in `MESSAGE_CREATE,INTERACTION_CREATE`".to_owned()
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let mut names = BTreeSet::new();
        for name in text.split(',').map(str::trim) {
            if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.bytes().all(plain) {
                return Err(expected());
            }
            let name = name.to_ascii_uppercase();
            if let EventName::Proxy(_) = EventName::parse(&name) {
                return Err(format!("Discord's events only: {name} is never filtered"));
            }
            names.insert(name);
            if names.len() > NAMES_MAX {
                return Err(format!("at most {NAMES_MAX} event names"));
            }
        }
        Ok(Self(names))
    }

    /// A name that stands in both lists.
    pub(crate) fn overlap<'a>(&'a self, other: &'a Self) -> Option<&'a str> {
        self.0.intersection(&other.0).next().map(String::as_str)
    }

    /// Names Discord does not document: newer events, or slips of the pen.
    pub(crate) fn undocumented(&self) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .map(String::as_str)
            .filter(|name| EventKind::from_name(name).is_none())
    }
}

impl super::shown::Shown for EventNames {
    fn shown(&self) -> toml::Value {
        toml::Value::Array(self.0.iter().cloned().map(toml::Value::String).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(publish: Option<&str>, drop: Option<&str>, passes: &[&str], stops: &[&str]) {
        let list = |text: Option<&str>| text.map(|text| EventNames::parse(text).unwrap());
        let filter = EventFilter::new(list(publish).as_ref(), list(drop).as_ref());
        for name in passes {
            assert!(
                filter.publishes(&EventName::parse(name)),
                "{name} should pass"
            );
        }
        for name in stops {
            assert!(
                !filter.publishes(&EventName::parse(name)),
                "{name} should stop"
            );
        }
    }

    #[test]
    fn without_lists_everything_passes() {
        check(
            None,
            None,
            &["READY", "MESSAGE_CREATE", "BRAND_NEW", "", "PROXY_GAP"],
            &[],
        );
        assert!(EventFilter::new(None, None).is_everything());
    }

    #[test]
    fn a_publish_list_stops_the_rest_but_never_the_proxys_own_events() {
        let passes = ["MESSAGE_CREATE", "BRAND_NEW", "PROXY_GAP", "PROXY_SHARD"];
        check(
            Some("message_create, BRAND_NEW"),
            None,
            &passes,
            &["READY", "OTHER_NEW", ""],
        );
    }

    #[test]
    fn a_drop_list_stops_exactly_its_names() {
        let drop = Some("PRESENCE_UPDATE,TYPING_START,BRAND_NEW");
        let passes = ["READY", "OTHER_NEW", "PROXY_RESHARD"];
        check(
            None,
            drop,
            &passes,
            &["PRESENCE_UPDATE", "TYPING_START", "BRAND_NEW"],
        );
    }

    #[test]
    fn proxy_events_and_malformed_names_cannot_be_listed() {
        for bad in [
            "",
            "A,,B",
            "PROXY_GAP",
            "MESSAGE-CREATE",
            "A B",
            &"X".repeat(65),
        ] {
            assert!(EventNames::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_slip_of_the_pen_is_recognised_as_undocumented() {
        let names = EventNames::parse("MESAGE_CREATE,MESSAGE_CREATE").unwrap();
        assert_eq!(names.undocumented().collect::<Vec<_>>(), ["MESAGE_CREATE"]);
    }
}
