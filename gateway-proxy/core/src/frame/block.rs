//! 64 bytes at a time: which of them are quotes, brackets and so on, a bit for each.

use wide::u8x16;

/// How many bytes a block has: as many as a `u64` has bits.
pub(super) const BLOCK: usize = u64::BITS as usize;

/// What the bytes of a block are. The lowest bit stands for the first byte; bytes within strings
/// are not told from those outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) quotes: u64,
    /// `{` and `[`.
    pub(super) openings: u64,
    /// `}` and `]`.
    pub(super) closings: u64,
    pub(super) commas: u64,
    pub(super) colons: u64,
    /// Whether there is a backslash or a control character.
    pub(super) special: bool,
}

impl Block {
    #[inline(always)] // its constants stay in registers from block to block
    pub(super) fn of(bytes: &[u8; BLOCK]) -> Self {
        let parts = parts(bytes);
        // Brackets differ from each other by this bit only: `[` and `{`, `]` and `}`.
        let curled = parts.map(|part| part | u8x16::splat(0x20));
        let [a, b, c, d] = parts;
        // The lowest of the bytes at each place, so that one comparison will do.
        let lowest = a.min(b).min(c.min(d));
        let control = lowest.min(u8x16::splat(0x1f)).simd_eq(lowest);
        let [a, b, c, d] = parts.map(|part| part.simd_eq(u8x16::splat(b'\\')));
        Self {
            quotes: equal(parts, b'"'),
            openings: equal(curled, b'{'),
            closings: equal(curled, b'}'),
            commas: equal(parts, b','),
            colons: equal(parts, b':'),
            special: (a | b | (c | d) | control).to_bitmask() != 0,
        }
    }
}

/// The backslashes of a block.
#[cold]
pub(super) fn backslashes(bytes: &[u8; BLOCK]) -> u64 {
    equal(parts(bytes), b'\\')
}

/// Whether a byte is a control character.
#[cold]
pub(super) fn has_control(bytes: &[u8; BLOCK]) -> bool {
    bytes.iter().any(|byte| *byte < b' ')
}

#[inline(always)]
fn parts(bytes: &[u8; BLOCK]) -> [u8x16; 4] {
    let (parts, _) = bytes.as_chunks::<16>();
    [0, 1, 2, 3].map(|at| u8x16::new(parts[at]))
}

#[inline(always)]
fn equal(parts: [u8x16; 4], byte: u8) -> u64 {
    mask(parts.map(|part| part.simd_eq(u8x16::splat(byte))))
}

/// The highest bit of each byte.
#[inline(always)]
fn mask(parts: [u8x16; 4]) -> u64 {
    let [a, b, c, d] = parts.map(|part| u64::from(part.to_bitmask()));
    a | b << 16 | c << 32 | d << 48
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_place_is_what_it_is() {
        for byte in 0..=u8::MAX {
            for at in 0..BLOCK {
                let mut bytes = [b'a'; BLOCK];
                bytes[at] = byte;
                let block = Block::of(&bytes);
                let bit = |is: bool| u64::from(is) << at;
                assert_eq!(block.quotes, bit(byte == b'"'), "{byte}");
                assert_eq!(block.openings, bit(matches!(byte, b'{' | b'[')), "{byte}");
                assert_eq!(block.closings, bit(matches!(byte, b'}' | b']')), "{byte}");
                assert_eq!(block.commas, bit(byte == b','), "{byte}");
                assert_eq!(block.colons, bit(byte == b':'), "{byte}");
                assert_eq!(block.special, byte < b' ' || byte == b'\\', "{byte}");
                assert_eq!(backslashes(&bytes), bit(byte == b'\\'), "{byte}");
                assert_eq!(has_control(&bytes), byte < b' ', "{byte}");
            }
        }
    }
}
