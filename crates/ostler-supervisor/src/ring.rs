//! Texts in one ring of bytes, oldest first, each with what is known of it.
//!
//! As many small strings, made while a burst of clients was served, they would keep nearly as many pages of that
//! burst's memory resident for as long as they are remembered.

use std::collections::VecDeque;

/// A bounded ring: when there is no room, the oldest texts go.
#[derive(Debug)]
pub(crate) struct TextRing<T> {
    /// What is known of each text, and its length in bytes.
    slots: VecDeque<(T, usize)>,
    texts: VecDeque<u8>,
    max_texts: usize,
    max_bytes: usize,
}

impl<T> TextRing<T> {
    /// A ring of at most `max_texts` texts with `max_bytes` bytes in all.
    pub(crate) fn new(max_texts: usize, max_bytes: usize) -> Self {
        Self { slots: VecDeque::new(), texts: VecDeque::new(), max_texts: max_texts.max(1), max_bytes }
    }

    /// Adds a text and says how many had to go for it. A text longer than the whole ring is cut at its end.
    pub(crate) fn push(&mut self, about: T, text: &str) -> usize {
        let text = &text[..text.floor_char_boundary(self.max_bytes)];
        let gone = self.make_room(1, text.len());
        self.texts.extend(text.as_bytes());
        self.slots.push_back((about, text.len()));
        gone
    }

    /// What is known of the latest text.
    pub(crate) fn latest(&self) -> Option<&T> {
        self.slots.back().map(|(about, _)| about)
    }

    /// Makes room for so many texts of so many bytes in all, and says how many had to go for it. Once for many is
    /// cheaper than for each.
    pub(crate) fn make_room(&mut self, texts: usize, bytes: usize) -> usize {
        if texts >= self.max_texts {
            let gone = self.slots.len();
            self.slots.clear();
            self.texts.clear();
            return gone;
        }
        let (mut gone, mut length) = (0, 0);
        for (_, one) in &self.slots {
            let fits = self.slots.len() - gone + texts <= self.max_texts
                && self.texts.len() - length + bytes <= self.max_bytes;
            if fits {
                break;
            }
            gone += 1;
            length += one;
        }
        self.slots.drain(..gone);
        self.texts.drain(..length);
        gone
    }

    /// How many texts it holds at most.
    pub(crate) fn max_texts(&self) -> usize {
        self.max_texts
    }

    /// The last `most` of those that `newer` accepts, oldest first. What follows an accepted one is accepted, too.
    pub(crate) fn last<U>(
        &self,
        most: usize,
        newer: impl Fn(&T) -> bool,
        take: impl FnMut(&T, String) -> U,
    ) -> Vec<U> {
        let known = self.slots.partition_point(|(about, _)| !newer(about));
        self.take(known.max(self.slots.len().saturating_sub(most))..self.slots.len(), take)
    }

    /// The first `most` of those that `newer` accepts, oldest first. What follows an accepted one is accepted, too.
    pub(crate) fn first<U>(
        &self,
        most: usize,
        newer: impl Fn(&T) -> bool,
        take: impl FnMut(&T, String) -> U,
    ) -> Vec<U> {
        let known = self.slots.partition_point(|(about, _)| !newer(about));
        self.take(known..self.slots.len().min(known.saturating_add(most)), take)
    }

    fn take<U>(&self, which: std::ops::Range<usize>, mut take: impl FnMut(&T, String) -> U) -> Vec<U> {
        let mut at: usize = self.slots.range(..which.start).map(|(_, length)| length).sum();
        let text = |(about, length): &(T, usize)| {
            let bytes = self.texts.range(at..at + length).copied().collect();
            at += length;
            take(about, String::from_utf8(bytes).expect("whole texts went in"))
        };
        self.slots.range(which).map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(ring: &TextRing<u32>, most: usize, after: u32) -> Vec<(u32, String)> {
        ring.last(most, |number| *number > after, |number, text| (*number, text))
    }

    #[test]
    fn the_latest_are_kept_whole_and_in_order() {
        let mut ring = TextRing::new(3, 1000);
        let gone: usize = (1..=10).map(|number| ring.push(number, &format!("é{number}"))).sum();
        assert_eq!(gone, 7);
        let kept = [(8, "é8".to_owned()), (9, "é9".to_owned()), (10, "é10".to_owned())];
        assert_eq!(texts(&ring, 100, 0), kept);
        assert_eq!(texts(&ring, 2, 0), kept[1..]);
        assert_eq!(texts(&ring, 100, 9), kept[2..]);
        assert_eq!(texts(&ring, 100, 10), []);
        let first = |most, after| ring.first(most, |number| *number > after, |number, text| (*number, text));
        assert_eq!(first(2, 0), kept[..2]);
        assert_eq!(first(usize::MAX, 8), kept[1..]);
        assert_eq!(first(2, 10), []);
    }

    #[test]
    fn room_for_many_is_what_they_would_have_made_one_by_one() {
        for (count, length) in [(1, 1), (2, 4), (3, 2), (5, 1), (9, 0), (1, 20), (20, 20)] {
            let mut ring = TextRing::new(4, 12);
            (1..=4).for_each(|number| assert_eq!(ring.push(number, "abc"), 0));
            let gone = ring.make_room(count, count * length);
            let mut expected = 4;
            while expected > 0 && (expected + count > 4 || expected * 3 + count * length > 12) {
                expected -= 1;
            }
            assert_eq!(gone, 4 - expected, "{count} texts of {length}");
            assert_eq!(texts(&ring, 100, 0).len(), expected);
        }
    }

    #[test]
    fn bytes_are_bounded_and_a_long_text_is_cut_between_characters() {
        let mut ring = TextRing::new(100, 9);
        ring.push(1, "abcd");
        ring.push(2, "efgh");
        assert_eq!(ring.push(3, "ijkl"), 1);
        assert_eq!(texts(&ring, 100, 0), [(2, "efgh".to_owned()), (3, "ijkl".to_owned())]);
        assert_eq!(ring.push(4, &"é".repeat(9)), 2);
        assert_eq!(texts(&ring, 100, 0), [(4, "é".repeat(4))]);
    }
}
