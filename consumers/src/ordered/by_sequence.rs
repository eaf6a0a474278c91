//! What is known of events by their place in the stream. Places mostly come in ascending order and
//! mostly go in it too, so a queue serves where a tree would cost as much as handling the event. Pure.

use std::collections::VecDeque;

/// Entries that may stand empty besides as many as there are values: an event that takes long holds
/// up nobody's removal, so they must be swept away now and then.
const EMPTY_MAX: usize = 256;

/// A map whose keys are places in a stream.
#[derive(Debug)]
pub(crate) struct BySequence<T> {
    /// In ascending order; `None` is what was removed. The first one never is.
    entries: VecDeque<(u64, Option<T>)>,
    len: usize,
}

impl<T> BySequence<T> {
    pub(crate) const fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            len: 0,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The lowest place.
    pub(crate) fn first(&self) -> Option<u64> {
        self.entries.front().map(|(sequence, _)| *sequence)
    }

    pub(crate) fn insert(&mut self, sequence: u64, value: T) {
        let last = self.entries.back().map(|(last, _)| *last);
        if last.is_none_or(|last| last < sequence) {
            self.entries.push_back((sequence, Some(value)));
            self.len += 1;
            return;
        }
        match self.find(sequence) {
            Ok(index) => {
                let known = self.entries[index].1.replace(value);
                self.len += usize::from(known.is_none());
            }
            Err(index) => {
                self.entries.insert(index, (sequence, Some(value)));
                self.len += 1;
            }
        }
    }

    pub(crate) fn get_mut(&mut self, sequence: u64) -> Option<&mut T> {
        let index = self.find(sequence).ok()?;
        self.entries[index].1.as_mut()
    }

    pub(crate) fn remove(&mut self, sequence: u64) -> Option<T> {
        let index = self.find(sequence).ok()?;
        let value = self.entries[index].1.take()?;
        self.len -= 1;
        while self
            .entries
            .front()
            .is_some_and(|(_, value)| value.is_none())
        {
            self.entries.pop_front();
        }
        if self.entries.len() > 2 * self.len + EMPTY_MAX {
            self.entries.retain(|(_, value)| value.is_some());
        }
        Some(value)
    }

    /// In ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let entries = self.entries.iter();
        entries.filter_map(|(sequence, value)| Some((*sequence, value.as_ref()?)))
    }

    /// Where the place is, or would have to be.
    fn find(&self, sequence: u64) -> Result<usize, usize> {
        match self.entries.front() {
            Some((first, _)) if *first == sequence => Ok(0),
            // A new one comes last.
            _ if self.entries.back().is_none_or(|(last, _)| *last < sequence) => {
                Err(self.entries.len())
            }
            _ => self.entries.binary_search_by_key(&sequence, |(at, _)| *at),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_is_a_map_whatever_the_order() {
        for seed in 1..200_u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut map, mut model) = (BySequence::new(), BTreeMap::new());
            for step in 0..500 {
                let sequence = step / 4 + random.u64(..40);
                match random.u8(..3) {
                    0 => {
                        map.insert(sequence, step);
                        model.insert(sequence, step);
                    }
                    1 => assert_eq!(map.remove(sequence), model.remove(&sequence), "{seed}"),
                    _ => assert_eq!(map.get_mut(sequence), model.get_mut(&sequence), "{seed}"),
                }
                assert_eq!(map.len(), model.len(), "{seed}");
                assert_eq!(map.first(), model.keys().next().copied(), "{seed}");
            }
            let all: Vec<_> = map.iter().map(|(at, value)| (at, *value)).collect();
            assert_eq!(all, model.into_iter().collect::<Vec<_>>(), "{seed}");
        }
    }

    #[test]
    fn one_that_stays_does_not_keep_the_place_of_those_that_went() {
        let mut map = BySequence::new();
        map.insert(1, ());
        for sequence in 2..100_000 {
            map.insert(sequence, ());
            map.remove(sequence);
            assert!(map.entries.len() <= 2 + EMPTY_MAX + 1);
        }
        assert_eq!((map.len(), map.first()), (1, Some(1)));
    }
}
