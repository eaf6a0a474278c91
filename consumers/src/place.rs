//! How far a consumer had come, for making it again where it ended when somebody deletes it.

use async_nats::jetstream::Context as JetStream;
use async_nats::jetstream::consumer::DeliverPolicy;
use time::OffsetDateTime;

use crate::feed::Start;

/// A place in one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// When the stream was made: one that is made again counts from 1.
    pub(crate) created: OffsetDateTime,
    /// Everything up to this sequence is done.
    pub(crate) floor: u64,
}

/// Where a consumer has to begin, and when its stream was made. Without a place that is `start`.
pub(crate) async fn beginning(
    jetstream: &JetStream,
    stream: &str,
    place: Option<Place>,
    start: Start,
) -> Result<(DeliverPolicy, OffsetDateTime), String> {
    let found = jetstream.get_stream(stream).await;
    let created = found
        .map_err(|error| error.to_string())?
        .cached_info()
        .created;
    Ok((policy(place, created, start), created))
}

fn policy(place: Option<Place>, created: OffsetDateTime, start: Start) -> DeliverPolicy {
    match place {
        Some(place) if place.created == created => Start::Sequence(place.floor + 1).policy(),
        // Everything in a stream made since then is new.
        Some(_) => DeliverPolicy::All,
        None => start.policy(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_begins_again_where_it_ended_unless_the_stream_is_another() {
        let (created, later) = (
            OffsetDateTime::UNIX_EPOCH,
            OffsetDateTime::UNIX_EPOCH + time::Duration::SECOND,
        );
        let floor = 41;
        let place = Some(Place { created, floor });
        let start_sequence = 42;
        assert_eq!(
            policy(place, created, Start::New),
            DeliverPolicy::ByStartSequence { start_sequence }
        );
        assert_eq!(policy(place, later, Start::New), DeliverPolicy::All);
        assert_eq!(policy(None, created, Start::New), DeliverPolicy::New);
    }
}
