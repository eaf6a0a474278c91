//! Compares a stream that is there with the one the contract asks for.

use std::fmt::{Debug, Display, Formatter, Result};
use std::time::Duration;

use async_nats::jetstream::stream::{Config as Stream, PersistenceMode, Republish};

/// Every setting that differs, as `field: is X, must be Y`. Settings that change nothing for us
/// (description, metadata, placement, compression, limits on consumers) may be anything.
pub(super) fn differences(is: &Stream, must: &Stream) -> Vec<String> {
    let mut found = Differences(Vec::new());
    let mut subjects = (is.subjects.clone(), must.subjects.clone());
    subjects.0.sort_unstable();
    subjects.1.sort_unstable();
    found.check("subjects", &Subjects(&subjects.0), &Subjects(&subjects.1));
    found.check_debug("storage", &is.storage, &must.storage);
    found.check_debug("retention", &is.retention, &must.retention);
    found.check_debug("discard", &is.discard, &must.discard);
    found.check("max_age", &Age(is.max_age), &Age(must.max_age));
    found.check("max_bytes", &Limit(is.max_bytes), &Limit(must.max_bytes));
    found.check(
        "max_msgs",
        &Limit(is.max_messages),
        &Limit(must.max_messages),
    );
    let per_subject = (is.max_messages_per_subject, must.max_messages_per_subject);
    found.check(
        "max_msgs_per_subject",
        &Limit(per_subject.0),
        &Limit(per_subject.1),
    );
    let size = (
        i64::from(is.max_message_size),
        i64::from(must.max_message_size),
    );
    found.check("max_msg_size", &Limit(size.0), &Limit(size.1));
    found.check(
        "duplicate_window",
        &Age(is.duplicate_window),
        &Age(must.duplicate_window),
    );
    found.check("num_replicas", &is.num_replicas, &must.num_replicas);
    found.check("allow_direct", &is.allow_direct, &must.allow_direct);
    found.check(
        "allow_batched",
        &is.allow_batch_publish,
        &must.allow_batch_publish,
    );
    found.check(
        "allow_msg_ttl",
        &is.allow_message_ttl,
        &must.allow_message_ttl,
    );
    let marker = |ttl: Option<Duration>| Age(ttl.unwrap_or_default());
    let ttl = (
        marker(is.subject_delete_marker_ttl),
        marker(must.subject_delete_marker_ttl),
    );
    found.check("subject_delete_marker_ttl", &ttl.0, &ttl.1);
    found.check("allow_rollup_hdrs", &is.allow_rollup, &must.allow_rollup);
    found.check("deny_delete", &is.deny_delete, &must.deny_delete);
    found.check("deny_purge", &(is.deny_purge && !must.deny_purge), &false);
    found.check(
        "republish",
        &Feed(is.republish.as_ref()),
        &Feed(must.republish.as_ref()),
    );
    found.check("no_ack", &is.no_ack, &must.no_ack);
    found.check("sealed", &is.sealed, &must.sealed);
    let transform = is
        .subject_transform
        .as_ref()
        .map(|transform| transform.destination.as_str());
    found.check("subject_transform", &transform.unwrap_or("none"), &"none");
    let copies = is.mirror.is_some() || is.sources.as_ref().is_some_and(|list| !list.is_empty());
    found.check("mirror or sources", &copies, &false);
    // Acknowledged messages would be lost by a crash of the server.
    let lossy = is.persist_mode == Some(PersistenceMode::Async);
    found.check("persist_mode async", &lossy, &false);
    found.0
}

struct Differences(Vec<String>);

impl Differences {
    fn check<T: PartialEq + Display>(&mut self, field: &str, is: &T, must: &T) {
        if is != must {
            self.0.push(format!("{field}: is {is}, must be {must}"));
        }
    }

    fn check_debug<T: PartialEq + Debug>(&mut self, field: &str, is: &T, must: &T) {
        let word = |value: &T| format!("{value:?}").to_ascii_lowercase();
        self.check(field, &word(is), &word(must));
    }
}

/// Subjects in a message: all of a few, the number of many.
#[derive(PartialEq)]
struct Subjects<'a>(&'a [String]);

impl Display for Subjects<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        const NAMED_MAX: usize = 4;
        let named: Vec<_> = self.0.iter().take(NAMED_MAX).map(String::as_str).collect();
        write!(f, "[{}", named.join(" "))?;
        if self.0.len() > NAMED_MAX {
            write!(f, " and {} more", self.0.len() - NAMED_MAX)?;
        }
        f.write_str("]")
    }
}

#[derive(PartialEq)]
struct Age(Duration);

impl Display for Age {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if self.0.is_zero() {
            f.write_str("none")
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

/// A limit; NATS writes "none" as -1, and reads 0 the same.
struct Limit(i64);

impl PartialEq for Limit {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 || (self.0 <= 0 && other.0 <= 0)
    }
}

impl Display for Limit {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if self.0 <= 0 {
            f.write_str("none")
        } else {
            Display::fmt(&self.0, f)
        }
    }
}

struct Feed<'a>(Option<&'a Republish>);

impl PartialEq for Feed<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self.0, other.0) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                (&a.source, &a.destination, a.headers_only)
                    == (&b.source, &b.destination, b.headers_only)
            }
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
}

impl Display for Feed<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.0 {
            None => f.write_str("none"),
            Some(feed) => {
                let what = if feed.headers_only {
                    " (headers only)"
                } else {
                    ""
                };
                write!(f, "{} to {}{what}", feed.source, feed.destination)
            }
        }
    }
}
