//! The committed JSON Schemas and the AsyncAPI document are what the types say, and what an earlier
//! version wrote is still understood.
//!
//! `UPDATE_SCHEMAS=1 cargo test -p schemas --test generated` rewrites `schemas/generated`. The
//! fixtures in `schemas/tests/fixtures/v1` are frozen: a field may be added to a type, with a
//! default, but what stands there must always decode.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "generated/asyncapi.rs"]
mod asyncapi;
#[path = "generated/catalogue.rs"]
mod catalogue;
#[path = "generated/ordered.rs"]
mod ordered;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::mem::discriminant;
use std::path::{Path, PathBuf};

use catalogue::{DOCUMENTS, Document};
use ordered::Ordered;
use schemas::{DirectoryKey, FleetKey, Prefix, Subject, Timestamp, UserKey, WorkersKey};
use serde_json::Value;

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn file_names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn fixture_path(document: &Document) -> PathBuf {
    directory("tests/fixtures/v1").join(document.fixture_name())
}

fn fixture(document: &Document) -> Value {
    let path = fixture_path(document);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{} must have a fixture: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn asyncapi() -> Value {
    asyncapi::document(&|document| fixture(document))
}

/// Everything `schemas/generated` holds, by file name.
fn generated() -> BTreeMap<String, String> {
    let mut files: BTreeMap<_, _> = DOCUMENTS
        .iter()
        .map(|document| {
            let schema = document.schema();
            let text = serde_json::to_string_pretty(&Ordered(&schema)).unwrap() + "\n";
            (document.schema_name(), text)
        })
        .collect();
    let yaml = quote_times(&serde_yaml_ng::to_string(&Ordered(&asyncapi())).unwrap());
    let note =
        "# Generated from the types of the crate `schemas`; see schemas/tests/generated.rs.\n";
    files.insert("asyncapi.yaml".to_owned(), format!("{note}{yaml}"));
    files
}

/// YAML 1.1 readers take a bare time for a date value; in YAML 1.2, which is written here, it is a
/// text.
fn quote_times(yaml: &str) -> String {
    let quote = |line: &str| match line.rsplit_once(": ") {
        Some((key, value)) if value.parse::<Timestamp>().is_ok() => format!("{key}: '{value}'\n"),
        _ => format!("{line}\n"),
    };
    yaml.lines().map(quote).collect()
}

#[test]
fn the_committed_schemas_are_what_the_types_say() {
    let directory = directory("generated");
    let expected = generated();
    if std::env::var_os("UPDATE_SCHEMAS").is_some_and(|value| value == "1") {
        for stale in file_names(&directory)
            .iter()
            .filter(|name| !expected.contains_key(*name))
        {
            std::fs::remove_file(directory.join(stale)).unwrap();
        }
        for (name, text) in &expected {
            std::fs::write(directory.join(name), text).unwrap();
        }
    }
    let hint = "run UPDATE_SCHEMAS=1 cargo test -p schemas --test generated and commit the result";
    let names: BTreeSet<String> = expected.keys().cloned().collect();
    assert_eq!(
        file_names(&directory),
        names,
        "files missing or stale: {hint}"
    );
    for (name, text) in expected {
        let committed = std::fs::read_to_string(directory.join(&name)).unwrap();
        assert!(
            committed == text,
            "generated/{name} differs from the types: {hint}"
        );
    }
}

#[test]
fn every_document_has_its_fixture_and_every_fixture_its_document() {
    let expected: BTreeSet<String> = DOCUMENTS.iter().map(Document::fixture_name).collect();
    assert_eq!(
        expected.len(),
        DOCUMENTS.len(),
        "two documents share a name"
    );
    assert_eq!(file_names(&directory("tests/fixtures/v1")), expected);
}

#[test]
fn what_version_1_wrote_is_decoded_with_every_field() {
    for document in DOCUMENTS {
        let written = fixture(document);
        let understood = document.reencode(&written).unwrap_or_else(|error| {
            panic!(
                "{} is not decoded any more: {error}",
                document.fixture_name()
            )
        });
        assert_contains(&understood, &written, document.name);
    }
}

/// A field that decodes but does not come back was renamed or dropped: its default hid that.
fn assert_contains(whole: &Value, part: &Value, at: &str) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, value) in part {
                let found = whole
                    .get(key)
                    .unwrap_or_else(|| panic!("{at}.{key} is ignored"));
                assert_contains(found, value, &format!("{at}.{key}"));
            }
        }
        (Value::Array(whole), Value::Array(part)) => {
            assert_eq!(whole.len(), part.len(), "{at}");
            for (index, (whole, part)) in whole.iter().zip(part).enumerate() {
                assert_contains(whole, part, &format!("{at}[{index}]"));
            }
        }
        _ => assert_eq!(whole, part, "{at}"),
    }
}

#[test]
fn fields_of_a_newer_version_are_ignored() {
    for document in DOCUMENTS {
        let known = fixture(document);
        let newer = with_unknown_fields(&known);
        assert_ne!(newer, known);
        let understood = document.reencode(&newer).unwrap_or_else(|error| {
            panic!(
                "{} does not tolerate an unknown field: {error}",
                document.name
            )
        });
        if !document.is_open() {
            assert_eq!(
                understood,
                document.reencode(&known).unwrap(),
                "{}",
                document.name
            );
        }
    }
}

/// The value with one more field in each object that is a struct; maps have numbers for keys.
fn with_unknown_fields(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let is_map = fields.keys().any(|key| key.parse::<u64>().is_ok());
            let mut fields: serde_json::Map<_, _> = fields
                .iter()
                .map(|(key, value)| (key.clone(), with_unknown_fields(value)))
                .collect();
            if !is_map {
                fields.insert("from_the_future".to_owned(), serde_json::json!({"a": [1]}));
            }
            Value::Object(fields)
        }
        Value::Array(items) => items.iter().map(with_unknown_fields).collect(),
        other => other.clone(),
    }
}

#[test]
fn every_reference_in_the_asyncapi_document_leads_somewhere() {
    let document = asyncapi();
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(references.len() > DOCUMENTS.len());
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(
            document.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
}

fn collect_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                found.push(reference.clone());
            }
            fields
                .values()
                .for_each(|value| collect_references(value, found));
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect_references(item, found)),
        _ => {}
    }
}

#[test]
fn the_addresses_in_the_asyncapi_document_are_all_that_the_types_build() {
    let prefix = Prefix::default();
    let addresses = sample_addresses(&asyncapi());
    let mut subjects = HashSet::new();
    let mut keys = HashSet::new();
    let mut directory_keys = HashSet::new();
    let mut workers_keys = HashSet::new();
    for address in &addresses {
        if let Some(key) = address.strip_prefix("$KV.discord_fleet.") {
            let key: FleetKey = key.parse().unwrap();
            assert_eq!(&key.subject(&prefix), address);
            keys.insert(discriminant(&key));
        } else if let Some(key) = address.strip_prefix("$KV.discord_directory.") {
            let key: DirectoryKey = key.parse().unwrap();
            assert_eq!(&key.subject(&prefix), address);
            directory_keys.insert(discriminant(&key));
        } else if let Some(key) = address.strip_prefix("$KV.discord_workers.") {
            let key: WorkersKey = key.parse().unwrap();
            assert_eq!(&key.subject(&prefix), address);
            workers_keys.insert(discriminant(&key));
        } else if let Some(key) = address.strip_prefix("$KV.discord_users.") {
            let id = asyncapi::sample("id").parse().unwrap();
            assert_eq!(UserKey(id).to_string(), key);
        } else {
            subjects.insert(discriminant(&Subject::parse(&prefix, address).unwrap()));
        }
    }
    assert_eq!(
        (
            subjects.len(),
            keys.len(),
            directory_keys.len(),
            workers_keys.len()
        ),
        (9, 5, 3, 6),
        "a kind is missing in {addresses:?}"
    );
}

/// Every channel's address with a value for each parameter.
fn sample_addresses(document: &Value) -> Vec<String> {
    let mut addresses = Vec::new();
    for (name, channel) in document["channels"].as_object().unwrap() {
        // Replies go to an inbox, whose address only the asker knows.
        let Some(address) = channel["address"].as_str() else {
            continue;
        };
        let mut address = address.to_owned();
        for parameter in channel["parameters"]
            .as_object()
            .into_iter()
            .flat_map(|all| all.keys())
        {
            let placeholder = format!("{{{parameter}}}");
            assert!(
                address.contains(&placeholder),
                "{name} has no {placeholder}"
            );
            address = address.replace(&placeholder, asyncapi::sample(parameter));
        }
        addresses.push(address);
    }
    addresses
}
