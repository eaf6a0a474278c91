//! Writes JSON values with their keys in a fixed order: what people look for first, then the rest
//! by the alphabet. The order of a map in memory depends on features other crates switch on.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::Value;

const FIRST: [&str; 22] = [
    "$schema",
    "$id",
    "$ref",
    "asyncapi",
    "info",
    "defaultContentType",
    "servers",
    "channels",
    "operations",
    "components",
    "name",
    "title",
    "version",
    "summary",
    "address",
    "action",
    "channel",
    "contentType",
    "description",
    "type",
    "format",
    "required",
];

pub(crate) struct Ordered<'a>(pub(crate) &'a Value);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => {
                let rank = |key: &str| FIRST.iter().position(|first| *first == key);
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_by_key(|(key, _)| (rank(key).unwrap_or(FIRST.len()), key.as_str()));
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, value) in fields {
                    map.serialize_entry(key, &Ordered(value))?;
                }
                map.end()
            }
            Value::Array(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(&Ordered(item))?;
                }
                list.end()
            }
            other => other.serialize(serializer),
        }
    }
}
