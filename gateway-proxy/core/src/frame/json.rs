//! One validating pass over JSON text, without building anything.
//!
//! Written for frames of the gateway: no white space between tokens, strings of about ten bytes,
//! `d` to be skipped and not looked into. It accepts exactly the grammar of RFC 8259 (lone
//! surrogates in escapes included, as the RFC does) over text already known to be UTF-8.

use super::object::{self, Object};
use super::text::Text;

/// Where and why text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The text ends before its value does.
    #[error("the text ends after {at} bytes, inside a value")]
    Truncated {
        /// Length of the text.
        at: usize,
    },
    /// Something else stands where a token is expected.
    #[error("no {expected} at byte {at}")]
    Expected {
        /// The token.
        expected: &'static str,
        /// Where it should be.
        at: usize,
    },
}

/// A position in JSON text.
#[derive(Clone, Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The next byte that is not white space, without taking it.
    pub(super) fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.text.as_bytes().get(self.at).copied()
    }

    /// Where the scanner stands, counted in bytes.
    pub(super) const fn position(&self) -> usize {
        self.at
    }

    /// Takes exactly these bytes. `None` where others stand; like the two below, it tries what is
    /// usual, and a scanner that it failed on is of no use.
    #[inline]
    pub(super) fn plain(&mut self, bytes: &[u8]) -> Option<()> {
        let there = self.text.as_bytes().get(self.at..)?.starts_with(bytes);
        self.at += bytes.len();
        there.then_some(())
    }

    /// Takes what is left of a string before its closing quote, unless there are escapes.
    #[inline]
    pub(super) fn plain_string(&mut self) -> Option<&'a str> {
        let start = self.at;
        self.at = find_special(self.text.as_bytes(), start);
        let ends = self.text.as_bytes().get(self.at) == Some(&b'"');
        ends.then(|| &self.text[start..self.at])
    }

    /// Takes an integer of no more digits than always fit.
    #[inline]
    pub(super) fn plain_integer(&mut self) -> Option<u64> {
        const DIGITS_MAX: usize = 19;
        let start = self.at;
        self.skip_digits();
        let digits = self.text.as_bytes().get(start..self.at)?;
        let many = digits.len() > 1 && digits[0] == b'0';
        if digits.is_empty() || digits.len() > DIGITS_MAX || many {
            return None;
        }
        let number = digits
            .iter()
            .fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
        Some(number)
    }

    /// Takes an object; `None` also where only [`Self::object`] can tell.
    #[inline]
    pub(super) fn plain_object(&mut self) -> Option<Object> {
        let object = object::read(self.text, self.at)?;
        self.at = object.end;
        Some(object)
    }

    /// The value at a place where one was found to begin.
    pub(super) fn value_at(&self, at: usize) -> Option<&'a str> {
        let mut there = Self {
            text: self.text,
            at,
        };
        there.value().ok()
    }

    /// The text between two positions the scanner stood at.
    pub(super) fn between(&self, start: usize, end: usize) -> &'a str {
        &self.text[start..end]
    }

    /// Takes one value of any kind and returns it as it stands in the text.
    pub(super) fn value(&mut self) -> Result<&'a str, JsonError> {
        self.skip_space();
        let start = self.at;
        // Most values are strings and need no nesting.
        if self.eat(b'"') {
            self.rest_of_string()?;
            return Ok(&self.text[start..self.at]);
        }
        let mut nesting = Nesting::default();
        loop {
            if self.value_or_opening(&mut nesting)? {
                continue;
            }
            // A value has ended; so may the containers around it.
            loop {
                if nesting.is_empty() {
                    return Ok(&self.text[start..self.at]);
                }
                if self.comma_or_closing(&mut nesting)? {
                    break;
                }
            }
        }
    }

    /// Takes one object. `visit` gets each key with the scanner before the key's value, which it
    /// must take.
    pub(super) fn object(
        &mut self,
        mut visit: impl FnMut(Text<'a>, &mut Self) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.skip_space();
        self.take(b'{', "object")?;
        self.skip_space();
        if self.eat(b'}') {
            return Ok(());
        }
        loop {
            let key = self.key()?;
            visit(key, self)?;
            self.skip_space();
            match self.next() {
                Some(b',') => self.skip_space(),
                Some(b'}') => return Ok(()),
                byte => return Err(self.unexpected(byte, "`,` or `}`")),
            }
        }
    }

    /// Takes one array, like [`Self::object`].
    pub(super) fn array(
        &mut self,
        mut visit: impl FnMut(&mut Self) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.skip_space();
        self.take(b'[', "array")?;
        self.skip_space();
        if self.eat(b']') {
            return Ok(());
        }
        loop {
            visit(self)?;
            self.skip_space();
            match self.next() {
                Some(b',') => {}
                Some(b']') => return Ok(()),
                byte => return Err(self.unexpected(byte, "`,` or `]`")),
            }
        }
    }

    /// Takes one string.
    pub(super) fn string(&mut self) -> Result<Text<'a>, JsonError> {
        self.skip_space();
        self.take(b'"', "string")?;
        self.rest_of_string()
    }

    /// Takes a scalar or an empty container; or enters a container, then `true`.
    fn value_or_opening(&mut self, nesting: &mut Nesting) -> Result<bool, JsonError> {
        match self.next() {
            Some(b'"') => {
                self.rest_of_string()?;
            }
            Some(b'{') => {
                self.skip_space();
                if !self.eat(b'}') {
                    nesting.push(true);
                    self.key()?;
                    return Ok(true);
                }
            }
            Some(b'[') => {
                self.skip_space();
                if !self.eat(b']') {
                    nesting.push(false);
                    return Ok(true);
                }
            }
            Some(b't') => self.literal(b"rue")?,
            Some(b'f') => self.literal(b"alse")?,
            Some(b'n') => self.literal(b"ull")?,
            Some(byte @ (b'-' | b'0'..=b'9')) => self.number(byte)?,
            byte => return Err(self.unexpected(byte, "value")),
        }
        Ok(false)
    }

    /// After a value: `true` at a comma (the next value follows), `false` when a container ended.
    fn comma_or_closing(&mut self, nesting: &mut Nesting) -> Result<bool, JsonError> {
        self.skip_space();
        match (self.next(), nesting.in_object()) {
            (Some(b','), in_object) => {
                self.skip_space();
                if in_object {
                    self.key()?;
                }
                Ok(true)
            }
            (Some(b'}'), true) | (Some(b']'), false) => {
                nesting.pop();
                Ok(false)
            }
            (byte, true) => Err(self.unexpected(byte, "`,` or `}`")),
            (byte, false) => Err(self.unexpected(byte, "`,` or `]`")),
        }
    }

    /// A key and the colon and white space behind it.
    fn key(&mut self) -> Result<Text<'a>, JsonError> {
        self.take(b'"', "key")?;
        let key = self.rest_of_string()?;
        self.skip_space();
        self.take(b':', "`:`")?;
        self.skip_space();
        Ok(key)
    }

    /// The string whose opening quote was taken.
    #[inline(always)] // called for most tokens of a frame: 10 % of the whole scan
    fn rest_of_string(&mut self) -> Result<Text<'a>, JsonError> {
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at = find_special(self.text.as_bytes(), self.at);
            match self.next() {
                Some(b'"') => {
                    return Ok(Text {
                        raw: &self.text[start..self.at - 1],
                        escaped,
                    });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.rest_of_escape()?;
                }
                byte => return Err(self.unexpected(byte, "character that may stand in a string")),
            }
        }
    }

    fn rest_of_escape(&mut self) -> Result<(), JsonError> {
        match self.next() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(()),
            Some(b'u') => {
                for _ in 0..4 {
                    let byte = self.next();
                    if !byte.is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.unexpected(byte, "hexadecimal digit"));
                    }
                }
                Ok(())
            }
            byte => Err(self.unexpected(byte, "escape")),
        }
    }

    fn literal(&mut self, rest: &[u8]) -> Result<(), JsonError> {
        rest.iter()
            .try_for_each(|expected| self.take(*expected, "value"))
    }

    /// The number whose first byte was taken.
    fn number(&mut self, first: u8) -> Result<(), JsonError> {
        let first = if first == b'-' {
            self.next()
        } else {
            Some(first)
        };
        match first {
            // No digits follow a leading zero.
            Some(b'0') => {}
            Some(b'1'..=b'9') => self.skip_digits(),
            byte => return Err(self.unexpected(byte, "digit")),
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        match self.next() {
            Some(b'0'..=b'9') => {
                self.skip_digits();
                Ok(())
            }
            byte => Err(self.unexpected(byte, "digit")),
        }
    }

    fn skip_digits(&mut self) {
        while self
            .text
            .as_bytes()
            .get(self.at)
            .is_some_and(u8::is_ascii_digit)
        {
            self.at += 1;
        }
    }

    #[inline(always)] // one comparison between most tokens: 8 % of the whole scan
    fn skip_space(&mut self) {
        let next = self.text.as_bytes().get(self.at);
        if next.is_some_and(|byte| *byte <= b' ') {
            self.skip_more_space();
        }
    }

    /// Discord sends none.
    #[cold]
    fn skip_more_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.as_bytes().get(self.at) {
            self.at += 1;
        }
    }

    #[inline]
    fn next(&mut self) -> Option<u8> {
        let byte = self.text.as_bytes().get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    fn eat(&mut self, byte: u8) -> bool {
        let there = self.text.as_bytes().get(self.at) == Some(&byte);
        self.at += usize::from(there);
        there
    }

    #[inline]
    fn take(&mut self, byte: u8, name: &'static str) -> Result<(), JsonError> {
        match self.next() {
            Some(found) if found == byte => Ok(()),
            found => Err(self.unexpected(found, name)),
        }
    }

    /// The error for a byte that was taken, or for the end of the text.
    #[cold]
    fn unexpected(&self, byte: Option<u8>, expected: &'static str) -> JsonError {
        match byte {
            Some(_) => JsonError::Expected {
                expected,
                at: self.at - 1,
            },
            None => JsonError::Truncated {
                at: self.text.len(),
            },
        }
    }
}

/// Where the number that begins at `at` ends.
pub(super) fn end_of_number(text: &str, at: usize) -> Option<usize> {
    let mut scanner = Scanner { text, at };
    let first = scanner.next()?;
    scanner.number(first).ok()?;
    Some(scanner.at)
}

/// Which containers are open, one bit each: 1 is an object.
///
/// Depth is bounded by the text's length only: a limit would turn a strange but valid event into
/// one that every RESUME replays and none can pass.
#[derive(Debug, Default)]
struct Nesting {
    top: u64,
    depth: usize,
    /// Full words of the outer levels.
    spill: Vec<u64>,
}

impl Nesting {
    const WORD: usize = u64::BITS as usize;

    #[inline]
    fn push(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(Self::WORD) {
            self.spill.push(self.top);
        }
        self.top = self.top << 1 | u64::from(object);
        self.depth += 1;
    }

    #[inline]
    fn pop(&mut self) {
        self.depth -= 1;
        self.top >>= 1;
        if self.depth > 0 && self.depth.is_multiple_of(Self::WORD) {
            self.top = self.spill.pop().unwrap_or_default();
        }
    }

    const fn in_object(&self) -> bool {
        self.top & 1 == 1
    }

    const fn is_empty(&self) -> bool {
        self.depth == 0
    }
}

/// Where the next quote, backslash or control character stands, or the end of the text.
#[inline]
fn find_special(text: &[u8], mut at: usize) -> usize {
    // Eight bytes at a time: most strings of a frame end within two steps, too early for memchr.
    while let Some(chunk) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let special = special(u64::from_le_bytes(*chunk));
        if special != 0 {
            return at + (special.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while text
        .get(at)
        .is_some_and(|byte| *byte >= b' ' && *byte != b'"' && *byte != b'\\')
    {
        at += 1;
    }
    at
}

/// The high bit of each byte that is a quote, a backslash or below 0x20. Exact for the lowest such
/// byte; bytes above it may be marked wrongly by borrows.
#[inline]
const fn special(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    const QUOTES: u64 = ONES * b'"' as u64;
    const BACKSLASHES: u64 = ONES * b'\\' as u64;
    const SPACES: u64 = ONES * b' ' as u64;
    let quote = word ^ QUOTES;
    let backslash = word ^ BACKSLASHES;
    let zero_in_quote = quote.wrapping_sub(ONES) & !quote;
    let zero_in_backslash = backslash.wrapping_sub(ONES) & !backslash;
    let control = word.wrapping_sub(SPACES) & !word;
    (zero_in_quote | zero_in_backslash | control) & HIGH
}
