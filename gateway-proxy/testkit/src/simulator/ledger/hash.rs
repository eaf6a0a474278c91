//! A fast 64-bit hash of a frame: tells altered bytes, not attackers.

const K0: u64 = 0xa076_1d64_78bd_642f;
const K1: u64 = 0xe703_7ed1_a0b4_28db;

/// Hash of a frame's bytes. Never 0, which stands for "not written" in a ledger.
#[must_use]
pub fn content_hash(bytes: &[u8]) -> u64 {
    let mut state = K0 ^ bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(16);
    for chunk in &mut chunks {
        let (low, high) = chunk.split_at(8);
        state = fold(word(low) ^ state, word(high) ^ K1);
    }
    let rest = chunks.remainder();
    let mut last = [0_u8; 16];
    last[..rest.len()].copy_from_slice(rest);
    state = fold(word(&last[..8]) ^ state, word(&last[8..]) ^ K0);
    fold(state, K1).max(1)
}

fn word(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_length_shows() {
        let text =
            b"{\"t\":\"MESSAGE_CREATE\",\"s\":12,\"op\":0,\"d\":{\"content\":\"hi\"}}".to_vec();
        let hash = content_hash(&text);
        for at in 0..text.len() * 8 {
            let mut altered = text.clone();
            altered[at / 8] ^= 1 << (at % 8);
            assert_ne!(content_hash(&altered), hash, "bit {at}");
        }
        for end in 0..text.len() {
            assert_ne!(content_hash(&text[..end]), hash);
        }
        let mut longer = text;
        longer.push(0);
        assert_ne!(content_hash(&longer), hash);
    }
}
