//! The fast check of an object as Discord writes it: no white space between tokens.
//!
//! It looks at 64 bytes at once, as simdjson does, with a bit for each byte, and goes byte by byte
//! only through brackets, scalars and escapes. What may stand beside what is the same check for all
//! tokens of a block:
//!
//! - A string, bracket or scalar stands behind `{`, `[`, `,` or `:`, and nothing else does but the
//!   end of an empty container. So a comma or an end stands behind a value.
//! - A colon stands behind a string that does not itself stand behind a colon.
//! - Within `[]` there is no colon; within `{}` what follows `{` and `,` is a string and a colon.
//!
//! It says yes only to what [`Scanner`](super::json::Scanner) says yes to. Where it does not, nothing is decided: the
//! scanner reads again what is strange (white space, depth, escaped names) or wrong, and names it.

use std::ops::ControlFlow::{self, Break, Continue};

use super::block::{BLOCK, Block, backslashes, has_control};
use super::json::end_of_number;

/// An object that is JSON: where it ends, and where the values of two of its keys begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Object {
    /// Behind its `}`.
    pub(super) end: usize,
    /// Of a key given twice the last one.
    pub(super) id: Option<usize>,
    pub(super) guild_id: Option<usize>,
}

/// Reads the object whose `{` is at `start`. `None` when that is not decided here.
pub(super) fn read(text: &str, start: usize) -> Option<Object> {
    let bytes = text.as_bytes().get(start..)?;
    let mut walk = Walk::new(text);
    if !bytes.starts_with(b"{\"") {
        // An empty one would be no bracket to walk through.
        return bytes.starts_with(b"{}").then(|| walk.found(start + 2));
    }
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let mut base = start;
    for block in blocks {
        if let Break(end) = walk.block(base, block) {
            return end.map(|end| walk.found(end));
        }
        base += BLOCK;
    }
    // Filled up with what ends nothing.
    let mut last = [b' '; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    match walk.block(base, &last) {
        Break(end) => end.map(|end| walk.found(end)),
        // The text ends before the object.
        Continue(()) => None,
    }
}

/// What is known between two blocks. Of what concerns the next byte only, the lowest bit.
struct Walk<'a> {
    text: &'a str,
    /// All bits: whether a string goes on.
    in_string: u64,
    /// The next byte belongs to an escape.
    escaped: u64,
    /// The next byte is the first of what stands behind `{`, `[` or `,`.
    item: u64,
    /// … behind `{` or `[`.
    opened: u64,
    /// … behind a colon.
    field: u64,
    /// … behind a byte of a number, `true`, `false` or `null`.
    scalar: u64,
    /// … behind a string that may be a key.
    key: u64,
    /// The string that goes on is the value of a key.
    value: u64,
    /// The open containers, one bit each: 1 is an object. Below them stand a 1 and a 0.
    containers: u64,
    id: Option<usize>,
    guild_id: Option<usize>,
}

/// Nothing is open; the object itself stands where an array's item could.
const OUTSIDE: u64 = 0b10;
/// The object itself is open, and nothing within it.
const SHALLOW: u64 = OUTSIDE << 1 | 1;

/// From `{` to `}`, and from `[` to `]`.
const BRACKETS_APART: u8 = b'}' - b'{';
/// The bit that `{` and `}` have and square brackets do not.
const CURLED: u8 = 0x20;

/// What a block is made of, without the insides of strings.
struct Tokens {
    /// Opening quotes.
    strings: u64,
    /// Closing ones.
    ends: u64,
    openings: u64,
    closings: u64,
    commas: u64,
    colons: u64,
    /// Every byte of numbers and so on, and whatever has no place outside a string.
    scalars: u64,
    /// From each opening quote to before the closing one.
    insides: u64,
}

/// What may stand in one kind of container only.
struct Judged {
    array_only: u64,
    /// First bytes of scalars.
    scalars: u64,
    /// Opening quotes of strings which are keys when they stand in an object.
    keys: u64,
}

/// Which bytes of a block are in an object, and in the outermost object itself.
struct Places {
    objects: u64,
    shallow: u64,
    /// Up to the end of the outermost object.
    within: u64,
    end: Option<u32>,
}

impl<'a> Walk<'a> {
    const fn new(text: &'a str) -> Self {
        Self {
            text,
            in_string: 0,
            escaped: 0,
            item: 1,
            opened: 0,
            field: 0,
            scalar: 0,
            key: 0,
            value: 0,
            containers: OUTSIDE,
            id: None,
            guild_id: None,
        }
    }

    const fn found(&self, end: usize) -> Object {
        Object {
            end,
            id: self.id,
            guild_id: self.guild_id,
        }
    }

    /// Goes through the block at `base`. Breaks with the end of the outermost object, or with `None`
    /// where something is undecided.
    #[inline(always)] // two callers, and one of them for most bytes there are
    fn block(&mut self, base: usize, bytes: &[u8; BLOCK]) -> ControlFlow<Option<usize>> {
        let block = Block::of(bytes);
        let mut escaped = self.escaped;
        if block.special {
            escaped = self.escapes(base, bytes)?;
        } else {
            self.escaped = 0;
        }
        let tokens = self.tokens(&block, escaped);
        let (judged, wrong) = self.judge(&tokens);
        let places = self.places(&tokens, bytes)?;
        let misplaced = judged.array_only & places.objects | tokens.colons & !places.objects;
        if (wrong | misplaced) & places.within != 0 {
            return Break(None);
        }
        self.scalars(base, judged.scalars & places.within)?;
        self.keys(base, judged.keys & places.shallow, tokens.ends);
        match places.end {
            Some(at) => Break(Some(base + at as usize + 1)),
            None => Continue(()),
        }
    }

    /// Which bytes stand directly behind backslashes, after checking that they may.
    #[cold]
    fn escapes(&mut self, base: usize, bytes: &[u8; BLOCK]) -> ControlFlow<Option<usize>, u64> {
        if has_control(bytes) {
            return Break(None);
        }
        let mut escaped = self.escaped;
        self.escaped = 0;
        let mut left = backslashes(bytes) & !escaped;
        while left != 0 {
            let at = left.trailing_zeros();
            if !is_escape(self.text.as_bytes(), base + at as usize + 1) {
                return Break(None);
            }
            let behind = (1_u64 << at) << 1;
            if behind == 0 {
                self.escaped = 1;
            }
            escaped |= behind;
            left &= (left - 1) & !behind;
        }
        Continue(escaped)
    }

    #[inline(always)]
    const fn tokens(&mut self, block: &Block, escaped: u64) -> Tokens {
        let quotes = block.quotes & !escaped;
        let insides = up_to_each(quotes) ^ self.in_string;
        self.in_string = 0_u64.wrapping_sub(insides >> 63);
        let outside = !insides;
        let (openings, closings) = (block.openings & outside, block.closings & outside);
        let (commas, colons) = (block.commas & outside, block.colons & outside);
        Tokens {
            strings: quotes & insides,
            ends: quotes & outside,
            openings,
            closings,
            commas,
            colons,
            scalars: outside & !(quotes | openings | closings | commas | colons),
            insides,
        }
    }

    /// Checks what stands beside what.
    #[inline(always)]
    fn judge(&mut self, tokens: &Tokens) -> (Judged, u64) {
        let item = behind(tokens.openings | tokens.commas, &mut self.item);
        let opened = behind(tokens.openings, &mut self.opened);
        let field = behind(tokens.colons, &mut self.field);
        let scalars = tokens.scalars & !behind(tokens.scalars, &mut self.scalar);
        let values = tokens.strings | tokens.openings | scalars;
        let mut wrong = (values ^ (item | field)) & !(tokens.closings & opened);

        // A one added where a value begins is carried through it and comes out at its closing quote.
        let values_begin = tokens.strings & field | self.value;
        let (sum, goes_on) = tokens.insides.overflowing_add(values_begin);
        self.value = u64::from(goes_on);
        // Other strings' ends are not in the sum, since they are not inside.
        let key = behind(tokens.ends & !sum, &mut self.key);
        wrong |= tokens.colons & !key;

        let judged = Judged {
            array_only: item & (tokens.openings | scalars) | key & !tokens.colons,
            scalars,
            keys: tokens.strings & item,
        };
        (judged, wrong)
    }

    /// Goes through the brackets.
    #[inline(always)]
    fn places(
        &mut self,
        tokens: &Tokens,
        bytes: &[u8; BLOCK],
    ) -> ControlFlow<Option<usize>, Places> {
        let mut brackets = tokens.openings | tokens.closings;
        // Those of empty containers contain nothing to be judged.
        let empty = tokens.openings & (tokens.closings >> 1);
        let (mut objects, mut shallow, mut left) = (0, 0, !0);
        while brackets != 0 {
            let at = brackets.trailing_zeros();
            let here = brackets & brackets.wrapping_neg();
            let bracket = bytes[at as usize];
            brackets ^= here;
            if empty & here != 0 {
                if bytes[at as usize + 1] != bracket + BRACKETS_APART {
                    return Break(None);
                }
                brackets ^= here << 1;
                continue;
            }
            // A bracket itself belongs to what was open before it.
            let gap = left & (here | (here - 1));
            left &= !gap;
            objects |= gap & self.if_in_object();
            shallow |= gap & self.if_shallow();
            let curly = u64::from(bracket & CURLED != 0);
            if tokens.openings & here != 0 {
                if self.containers >> 63 != 0 {
                    return Break(None);
                }
                self.containers = self.containers << 1 | curly;
                continue;
            }
            if (self.containers ^ curly) & 1 != 0 {
                return Break(None);
            }
            self.containers >>= 1;
            if self.containers == OUTSIDE {
                return Continue(Places {
                    objects,
                    shallow,
                    within: !left,
                    end: Some(at),
                });
            }
        }
        Continue(Places {
            objects: objects | left & self.if_in_object(),
            shallow: shallow | left & self.if_shallow(),
            within: !0,
            end: None,
        })
    }

    #[inline(always)]
    const fn if_in_object(&self) -> u64 {
        0_u64.wrapping_sub(self.containers & 1)
    }

    #[inline(always)]
    const fn if_shallow(&self) -> u64 {
        if self.containers == SHALLOW { !0 } else { 0 }
    }

    #[inline(always)]
    fn scalars(&self, base: usize, mut starts: u64) -> ControlFlow<Option<usize>> {
        while starts != 0 {
            let at = base + starts.trailing_zeros() as usize;
            if !is_scalar(self.text, at) {
                return Break(None);
            }
            starts &= starts - 1;
        }
        Continue(())
    }

    /// Notes the keys that are asked for.
    #[inline(always)]
    fn keys(&mut self, base: usize, keys: u64, ends: u64) {
        const ID: &[u8] = b"\"id\"";
        const GUILD_ID: &[u8] = b"\"guild_id\"";
        // Those that may end where it would; of the last ones that is not known here.
        let ends = ends >> (ID.len() - 1)
            | ends >> (GUILD_ID.len() - 1)
            | !0 << (BLOCK - GUILD_ID.len() + 1);
        let mut left = keys & ends;
        while left != 0 {
            let at = base + left.trailing_zeros() as usize;
            // A colon stands between a key and its value.
            if let Some(key) = self.text.as_bytes().get(at..) {
                if key.starts_with(ID) {
                    self.id = Some(at + ID.len() + 1);
                } else if key.starts_with(GUILD_ID) {
                    self.guild_id = Some(at + GUILD_ID.len() + 1);
                }
            }
            left &= left - 1;
        }
    }
}

/// The bytes behind those given; `first` says it of the block's first, and is left for the next's.
#[inline(always)]
const fn behind(bytes: u64, first: &mut u64) -> u64 {
    let behind = bytes << 1 | *first;
    *first = bytes >> 63;
    behind
}

/// From each first to before each second bit: whether the bits up to each are odd in number.
#[inline(always)]
const fn up_to_each(bits: u64) -> u64 {
    let mut odd = bits;
    odd ^= odd << 1;
    odd ^= odd << 2;
    odd ^= odd << 4;
    odd ^= odd << 8;
    odd ^= odd << 16;
    odd ^= odd << 32;
    odd
}

/// Whether what begins at `at` may stand behind a backslash. `false` also for letters that names are
/// made of: the keys here are compared as they stand.
fn is_escape(text: &[u8], at: usize) -> bool {
    match text.get(at) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => true,
        Some(b'u') => text.get(at + 1..at + 5).is_some_and(|digits| {
            digits.iter().all(u8::is_ascii_hexdigit)
                && !matches!(digits, [b'0', b'0', b'5'..=b'7', _])
        }),
        _ => false,
    }
}

/// Whether a number, `true`, `false` or `null` is at `at`, and a container goes on behind it.
#[inline(always)]
fn is_scalar(text: &str, at: usize) -> bool {
    let bytes = text.as_bytes();
    let end = match bytes.get(at..).and_then(<[u8]>::first_chunk) {
        Some(b"null" | b"true") => at + 4,
        Some(b"fals") if bytes.get(at + 4) == Some(&b'e') => at + 5,
        // `0` may be all of a number, but not its beginning.
        Some([b'0', ..]) => at + 1,
        Some([b'1'..=b'9', ..]) => end_of_digits(bytes, at + 1),
        _ => return is_number(text, at),
    };
    goes_on(bytes, end) || is_number(text, at)
}

#[inline]
fn end_of_digits(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    at
}

/// The same for a number with more to it than digits, or near the end of the text.
#[cold]
fn is_number(text: &str, at: usize) -> bool {
    end_of_number(text, at).is_some_and(|end| goes_on(text.as_bytes(), end))
}

#[inline]
fn goes_on(bytes: &[u8], at: usize) -> bool {
    matches!(bytes.get(at), Some(b',' | b'}' | b']'))
}

#[cfg(test)]
mod tests;
