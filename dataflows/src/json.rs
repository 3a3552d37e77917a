//! A pull reader over JSON text: the way every event comes in.
//!
//! It walks a text once, without building a tree: callers ask for the members they know and skip the rest, and what is
//! skipped is checked as strictly as what is read. Numbers stay text, since a decimal must not pass through a float.
//! Refused with a place and a sentence: what is not JSON, nesting beyond [`DEPTH_MAX`], lone surrogates, numbers whose
//! exponent leaves every sensible range. It never fails otherwise and never recurses deeper than [`DEPTH_MAX`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};

use foldhash::quality::FixedState;
use wide::u8x16;

/// Deeper nesting is a mistake or an attack; readers below recurse.
pub const DEPTH_MAX: usize = 100;

/// Largest decimal exponent accepted: 1e400 is no number that any consumer can hold.
const EXPONENT_MAX: i64 = 308;

/// What is wrong with a text, and at which byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Offset in bytes from the start of the text.
    pub at: usize,
    /// A sentence for the person who sent it.
    pub what: &'static str,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

/// What kind of value comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// a number
    Number,
    /// a string
    Text,
    /// `[`
    List,
    /// `{`
    Object,
}

/// A place in a JSON text.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    /// Stands at the beginning of `text`.
    pub fn new(text: &'a str) -> Self {
        Reader { text, at: 0, depth: 0 }
    }

    /// Nothing but white space may follow.
    pub fn end(&mut self) -> Result<(), Fault> {
        self.space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.fault("text after the end of the value")) }
    }

    /// The kind of the value that comes next.
    pub fn peek(&mut self) -> Result<Next, Fault> {
        self.space();
        match self.byte() {
            Some(b'{') => Ok(Next::Object),
            Some(b'[') => Ok(Next::List),
            Some(b'"') => Ok(Next::Text),
            Some(b't' | b'f') => Ok(Next::Bool),
            Some(b'n') => Ok(Next::Null),
            Some(b'-' | b'0'..=b'9') => Ok(Next::Number),
            Some(_) => Err(self.fault("a value was expected")),
            None => Err(self.fault("the text ends where a value was expected")),
        }
    }

    /// Reads an object; `member` is called with each key and must read or skip that key's value.
    pub fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.open(b'{', "an object was expected")?;
        if self.close(b'}') {
            return Ok(());
        }
        loop {
            self.space();
            let key = self.text()?;
            self.space();
            self.expect(b':', "':' was expected after a key")?;
            member(self, key)?;
            if self.more(b'}', "',' or '}' was expected")? {
                continue;
            }
            return Ok(());
        }
    }

    /// Reads a list; `item` is called before each item and must read or skip it.
    pub fn list(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), Fault>) -> Result<(), Fault> {
        self.open(b'[', "a list was expected")?;
        if self.close(b']') {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.more(b']', "',' or ']' was expected")? {
                continue;
            }
            return Ok(());
        }
    }

    /// Reads a string.
    #[inline]
    pub fn text(&mut self) -> Result<Cow<'a, str>, Fault> {
        self.expect(b'"', "a string was expected")?;
        let start = self.at;
        self.at = self.plain_end();
        match self.byte() {
            Some(b'"') => {
                self.at += 1;
                Ok(Cow::Borrowed(&self.text[start..self.at - 1]))
            }
            Some(b'\\') => self.text_with_escapes(start).map(Cow::Owned),
            Some(_) => Err(self.fault("a control character inside a string")),
            None => Err(self.fault("the text ends inside a string")),
        }
    }

    /// Where the next quote, backslash or control character stands; at the end of the text, if there is none.
    #[inline]
    fn plain_end(&self) -> usize {
        let bytes = self.text.as_bytes();
        let mut at = self.at;
        while let Some(chunk) = bytes[at..].first_chunk() {
            let hits = hits(*chunk);
            if hits != 0 {
                return at + hits.trailing_zeros() as usize;
            }
            at += CHUNK;
        }
        let hits = match bytes.last_chunk() {
            // What comes before is looked at again, and does not count.
            Some(last) => hits(*last) >> (at + CHUNK - bytes.len()),
            None => {
                let mut last = [b'"'; CHUNK];
                last[..bytes.len() - at].copy_from_slice(&bytes[at..]);
                hits(last)
            }
        };
        bytes.len().min(at + hits.trailing_zeros() as usize)
    }

    /// Reads a number and gives its text.
    pub fn number(&mut self) -> Result<&'a str, Fault> {
        self.space();
        let start = self.at;
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        match self.byte() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(self.fault("a digit was expected")),
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            let negative = self.byte() == Some(b'-');
            if let Some(b'+' | b'-') = self.byte() {
                self.at += 1;
            }
            let digits = self.at;
            self.digits()?;
            let exponent = self.text[digits..self.at].parse::<i64>().unwrap_or(i64::MAX);
            if !negative && exponent > EXPONENT_MAX {
                return Err(self.fault("a number beyond every range"));
            }
        }
        Ok(&self.text[start..self.at])
    }

    /// Reads `true` or `false`.
    pub fn bool(&mut self) -> Result<bool, Fault> {
        self.space();
        if self.byte() == Some(b't') { self.word("true").map(|()| true) } else { self.word("false").map(|()| false) }
    }

    /// Reads `null`.
    pub fn null(&mut self) -> Result<(), Fault> {
        self.space();
        self.word("null")
    }

    /// Passes over the next value, checking it, and gives its text.
    pub fn skip(&mut self) -> Result<&'a str, Fault> {
        let kind = self.peek()?;
        let start = self.at;
        match kind {
            Next::Null => self.null()?,
            Next::Bool => {
                self.bool()?;
            }
            Next::Number => {
                self.number()?;
            }
            Next::Text => {
                self.text()?;
            }
            Next::List => self.list(|reader| reader.skip().map(|_| ()))?,
            Next::Object => self.object(|reader, _| reader.skip().map(|_| ()))?,
        }
        Ok(&self.text[start..self.at])
    }

    /// Passes over the next value by its brackets and quotes alone, and gives its text: what is wrong inside is for
    /// whoever reads it.
    pub fn skip_roughly(&mut self) -> Result<&'a str, Fault> {
        if !matches!(self.peek()?, Next::List | Next::Object | Next::Text) {
            let start = self.at;
            let length =
                self.text[start..].find([',', ']', '}', ' ', '\n', '\r', '\t']).unwrap_or(self.text.len() - start);
            self.at += length;
            return Ok(&self.text[start..self.at]);
        }
        let (start, mut open) = (self.at, 0usize);
        loop {
            match self.byte() {
                Some(b'"') => self.skip_text_roughly()?,
                Some(b'[' | b'{') => {
                    open += 1;
                    self.at += 1;
                }
                Some(b']' | b'}') => {
                    open -= 1;
                    self.at += 1;
                }
                Some(_) => self.at += 1,
                None => return Err(self.fault("the text ends inside a value")),
            }
            if open == 0 {
                return Ok(&self.text[start..self.at]);
            }
        }
    }

    fn skip_text_roughly(&mut self) -> Result<(), Fault> {
        self.at += 1;
        loop {
            self.at = self.plain_end();
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                // What is escaped is one character; it may be longer than a byte, and none of its bytes is a quote.
                Some(b'\\') => self.at = (self.at + 2).min(self.text.len()),
                Some(_) => self.at += 1,
                None => return Err(self.fault("the text ends inside a string")),
            }
        }
    }

    /// Passes over the next value and gives a fingerprint of what it *means*: the order of members and the spelling of
    /// numbers and escapes do not count.
    pub fn fingerprint(&mut self) -> Result<u64, Fault> {
        Ok(match self.peek()? {
            Next::Null => {
                self.null()?;
                fingerprint_of(b'n', &[])
            }
            Next::Bool => fingerprint_of(b'b', &[u8::from(self.bool()?)]),
            Next::Number => fingerprint_of_number(self.number()?),
            Next::Text => fingerprint_of(b's', self.text()?.as_bytes()),
            Next::List => {
                let mut all = Vec::new();
                self.list(|reader| {
                    all.extend_from_slice(&reader.fingerprint()?.to_le_bytes());
                    Ok(())
                })?;
                fingerprint_of(b'l', &all)
            }
            Next::Object => {
                // A sum does not depend on the order of members.
                let mut sum = 0u64;
                self.object(|reader, key| {
                    let value = reader.fingerprint()?;
                    sum = sum.wrapping_add(fingerprint_of_member(&key, value));
                    Ok(())
                })?;
                fingerprint_of(b'o', &sum.to_le_bytes())
            }
        })
    }

    /// Reads an object's members as they stand, the keys unescaped, and gives a fingerprint of what it means.
    pub fn members(&mut self, into: &mut Vec<(Cow<'a, str>, &'a str)>) -> Result<u64, Fault> {
        let mut sum = 0u64;
        self.object(|reader, key| {
            reader.space();
            let start = reader.at;
            let meaning = reader.fingerprint()?;
            sum = sum.wrapping_add(fingerprint_of_member(&key, meaning));
            into.push((key, &reader.text[start..reader.at]));
            Ok(())
        })?;
        Ok(fingerprint_of(b'o', &sum.to_le_bytes()))
    }

    /// The byte at which the next value begins, or the last one ended.
    pub fn place(&self) -> usize {
        self.at
    }

    /// The text between an earlier place and this one.
    pub fn since(&self, earlier: &Reader<'a>) -> &'a str {
        &self.text[earlier.at..self.at]
    }

    fn text_with_escapes(&mut self, start: usize) -> Result<String, Fault> {
        let mut whole = self.text[start..self.at].to_owned();
        loop {
            let run = self.at;
            match memchr::memchr2(b'"', b'\\', &self.text.as_bytes()[self.at..]) {
                Some(length) => self.at += length,
                None => {
                    self.at = self.text.len();
                    return Err(self.fault("the text ends inside a string"));
                }
            }
            let plain = &self.text[run..self.at];
            if plain.bytes().any(|byte| byte < 0x20) {
                return Err(self.fault("a control character inside a string"));
            }
            whole.push_str(plain);
            let ends = self.byte() == Some(b'"');
            self.at += 1;
            if ends {
                return Ok(whole);
            }
            whole.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Result<char, Fault> {
        let byte = self.byte();
        self.at += 1;
        Ok(match byte {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.escaped_unit(),
            _ => return Err(self.fault("an unknown escape inside a string")),
        })
    }

    fn escaped_unit(&mut self) -> Result<char, Fault> {
        let first = self.four_digits()?;
        let code = match first {
            0xD800..=0xDBFF => {
                if !self.text[self.at..].starts_with("\\u") {
                    return Err(self.fault("a lone surrogate inside a string"));
                }
                self.at += 2;
                let second = self.four_digits()?;
                if !(0xDC00..=0xDFFF).contains(&second) {
                    return Err(self.fault("a lone surrogate inside a string"));
                }
                0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
            }
            code => code,
        };
        char::from_u32(code).ok_or_else(|| self.fault("a lone surrogate inside a string"))
    }

    fn four_digits(&mut self) -> Result<u32, Fault> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let code = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit)).and_then(|digits| {
            digits.iter().try_fold(0, |code, digit| Some(code * 16 + char::from(*digit).to_digit(16)?))
        });
        self.at += 4;
        code.ok_or_else(|| Fault { at: self.at.min(self.text.len()), what: "four hexadecimal digits were expected" })
    }

    fn open(&mut self, bracket: u8, what: &'static str) -> Result<(), Fault> {
        self.space();
        self.expect(bracket, what)?;
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(self.fault("nesting beyond 100 levels")) } else { Ok(()) }
    }

    fn close(&mut self, bracket: u8) -> bool {
        self.space();
        let closes = self.byte() == Some(bracket);
        if closes {
            self.at += 1;
            self.depth -= 1;
        }
        closes
    }

    /// After an item: true if another follows, false if the bracket closes.
    fn more(&mut self, bracket: u8, what: &'static str) -> Result<bool, Fault> {
        if self.close(bracket) {
            return Ok(false);
        }
        self.expect(b',', what).map(|()| true)
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.byte() {
            self.at += 1;
        }
        if self.at == start { Err(self.fault("a digit was expected")) } else { Ok(()) }
    }

    fn word(&mut self, word: &'static str) -> Result<(), Fault> {
        if self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.fault("a value was expected"))
        }
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), Fault> {
        if self.byte() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.fault(what))
        }
    }

    #[inline]
    fn space(&mut self) {
        // Mostly there is none.
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.byte() {
            self.at += 1;
        }
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn fault(&self, what: &'static str) -> Fault {
        Fault { at: self.at, what }
    }
}

/// Bytes of a string that are looked at together.
const CHUNK: usize = 16;

/// Which of these bytes are quotes, backslashes or control characters: a bit for each, the lowest for the first.
#[inline]
fn hits(chunk: [u8; CHUNK]) -> u32 {
    let bytes = u8x16::new(chunk);
    let is_control = bytes.min(u8x16::splat(0x1f)).simd_eq(bytes);
    (bytes.simd_eq(u8x16::splat(b'"')) | bytes.simd_eq(u8x16::splat(b'\\')) | is_control).to_bitmask()
}

/// A fingerprint only tells two calls of one sender apart that bear the same message id, so nobody gains by a clash: a
/// fast hash will do.
pub(crate) fn fingerprint_of(kind: u8, bytes: &[u8]) -> u64 {
    let mut hasher = FixedState::with_seed(u64::from(kind)).build_hasher();
    hasher.write(bytes);
    hasher.finish()
}

fn fingerprint_of_member(key: &str, value: u64) -> u64 {
    let mut hasher = FixedState::with_seed(value).build_hasher();
    hasher.write(key.as_bytes());
    hasher.finish()
}

/// The same value written in one way: keys in order, the last of a repeated one, plain numbers, no white space.
pub fn canonical(text: &str) -> Result<String, Fault> {
    let mut written = String::with_capacity(text.len());
    write_canonical(&mut Reader::new(text), &mut written)?;
    Ok(written)
}

fn write_canonical(reader: &mut Reader<'_>, into: &mut String) -> Result<(), Fault> {
    match reader.peek()? {
        Next::Null | Next::Bool => into.push_str(reader.skip()?),
        Next::Number => into.push_str(&plain(reader.number()?)),
        Next::Text => write_text(&reader.text()?, into),
        Next::List => {
            into.push('[');
            reader.list(|reader| {
                if !into.ends_with('[') {
                    into.push(',');
                }
                write_canonical(reader, into)
            })?;
            into.push(']');
        }
        Next::Object => {
            let mut members = BTreeMap::new();
            reader.object(|reader, key| {
                let mut value = String::new();
                write_canonical(reader, &mut value)?;
                members.insert(key, value);
                Ok(())
            })?;
            into.push('{');
            for (place, (key, value)) in members.iter().enumerate() {
                if place > 0 {
                    into.push(',');
                }
                write_text(key, into);
                into.push(':');
                into.push_str(value);
            }
            into.push('}');
        }
    }
    Ok(())
}

fn write_text(text: &str, into: &mut String) {
    into.push('"');
    for char in text.chars() {
        match char {
            '"' => into.push_str("\\\""),
            '\\' => into.push_str("\\\\"),
            '\n' => into.push_str("\\n"),
            '\r' => into.push_str("\\r"),
            '\t' => into.push_str("\\t"),
            '\u{8}' => into.push_str("\\b"),
            '\u{c}' => into.push_str("\\f"),
            char if u32::from(char) < 0x20 => into.push_str(&format!("\\u{:04x}", u32::from(char))),
            char => into.push(char),
        }
    }
    into.push('"');
}

/// Digits written out beyond this are no help to anyone, and could fill the memory.
const PLAIN_DIGITS_MAX: usize = 400;

/// A number without exponent, trailing zeros or a sign on zero.
fn plain(number: &str) -> Cow<'_, str> {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent = exponent.parse::<i64>().unwrap_or(i64::MIN);
    if exponent.unsigned_abs() as usize > PLAIN_DIGITS_MAX {
        return Cow::Borrowed(number);
    }
    let point = whole.len() as i64 + exponent;
    let digits = [whole, fraction].concat();
    let before = point.max(0) as usize;
    let mut all = "0".repeat((-point).max(0) as usize) + &digits;
    all.extend(std::iter::repeat_n('0', before.saturating_sub(all.len())));
    let (whole, fraction) = all.split_at(before);
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    match (whole, fraction) {
        ("0", "") => Cow::Borrowed("0"),
        (whole, "") => Cow::Owned(format!("{sign}{whole}")),
        (whole, fraction) => Cow::Owned(format!("{sign}{whole}.{fraction}")),
    }
}

/// Numbers are equal when their decimals are: 1, 1.0 and 10e-1 are one.
pub(crate) fn fingerprint_of_number(text: &str) -> u64 {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or((b'+', mantissa), |rest| (b'-', rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return fingerprint_of(b'#', b"0");
    }
    let trailing = digits.len() - digits.trim_end_matches('0').len();
    let scale = exponent.parse::<i128>().unwrap_or(i128::from(i64::MIN)) - fraction.len() as i128 + trailing as i128;
    fingerprint_of(b'#', &[&[sign], significant.as_bytes(), &scale.to_le_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), &'static str> {
        let mut reader = Reader::new(text);
        reader.skip().and_then(|_| reader.end()).map_err(|fault| fault.what)
    }

    fn same(a: &str, b: &str) -> bool {
        Reader::new(a).fingerprint().unwrap() == Reader::new(b).fingerprint().unwrap()
    }

    #[test]
    fn takes_what_is_json() {
        for text in ["null", " true ", "-0.5e-3", "[]", "{}", r#"{"a":[1,{"b":"\u00e9\ud83d\ude00"}],"c":null}"#] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        let mut reader = Reader::new(r#""a\u00e9\ud83d\ude00\n""#);
        assert_eq!(reader.text().unwrap(), "aé😀\n");
    }

    #[test]
    fn a_string_ends_where_its_quote_stands_however_long_it_is() {
        for length in 0..50 {
            for after in ["", " ", "                    "] {
                let plain = "é".repeat(length / 2) + &"x".repeat(length % 2);
                assert_eq!(Reader::new(&format!("\"{plain}\"{after}")).text(), Ok(Cow::Borrowed(&*plain)));
                let end = |what| Err(Fault { at: 1 + plain.len(), what });
                let control = format!("\"{plain}\u{1f}{after}");
                assert_eq!(Reader::new(&control).text(), end("a control character inside a string"));
                let cut = format!("{after}\"{plain}");
                let at = cut.len();
                let cut = Reader { text: &cut, at: after.len(), depth: 0 }.text();
                assert_eq!(cut, Err(Fault { at, what: "the text ends inside a string" }));
                let escaped = format!("\"{plain}\\n\"{after}");
                assert_eq!(Reader::new(&escaped).text().unwrap(), format!("{plain}\n"));
                // Roughly: neither an escape that is none nor a control character ends it.
                let wrong = format!("\"{plain}\\\"\\é\u{1f}\"");
                assert_eq!(Reader::new(&(wrong.clone() + after)).skip_roughly(), Ok(&*wrong));
                assert!(Reader::new(&format!("\"{plain}\\")).skip_roughly().is_err());
            }
        }
    }

    #[test]
    fn refuses_what_is_not() {
        for text in
            ["", "{", "[1,]", "{\"a\"}", "01", "1.", "+1", "nul", "\"\\ud800\"", "\"\\ud800\\u0041\"", "1e400", "1 2"]
        {
            assert!(check(text).is_err(), "{text}");
        }
        assert_eq!(check(&"[".repeat(1_000_000)), Err("nesting beyond 100 levels"));
        assert!(check("\"\\ude00\"").is_err());
    }

    #[test]
    fn canonical_is_one_way_to_write_a_value() {
        let written =
            canonical(r#" { "b" : [ 1.50, 1e2, -0.0, 12e-3, -0.5e1 ], "a" : "\u0041\n\"" , "a" : null } "#).unwrap();
        assert_eq!(written, r#"{"a":null,"b":[1.5,100,0,0.012,-5]}"#);
        assert_eq!(canonical(r#""\u0001\u00e9\/""#).unwrap(), "\"\\u0001é/\"");
    }

    #[test]
    fn fingerprints_follow_meaning() {
        assert!(same(r#"{"a":1,"b":[true,"x"]}"#, r#"{ "b" : [ true , "\u0078" ], "a" : 1.0 }"#));
        assert!(same("100", "1e2") && same("0", "-0.00") && same("0.5", "50e-2"));
        assert!(!same("[1,2]", "[2,1]") && !same("1", "\"1\"") && !same("{}", "[]") && !same("1", "-1"));
        assert!(!same(r#"{"a":1,"b":2}"#, r#"{"a":2,"b":1}"#));
    }
}
