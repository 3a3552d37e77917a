//! A strict JSON reader and printer. Numbers are kept as their text, so that nothing is lost before it is judged.
//! Printing is canonical (keys by UTF-8 bytes, numbers plain), so that equal JSON values print alike.

use super::number;
use std::collections::BTreeMap;

/// Nesting beyond this rejects the text; the outermost value is at depth 1.
const MAX_DEPTH: usize = 100;

#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Json>),
    Map(BTreeMap<String, Json>),
}

impl Json {
    /// The member `key` of an object; absent and null are both `Null`.
    pub fn get(&self, key: &str) -> &Json {
        match self {
            Json::Map(map) => map.get(key).unwrap_or(&Json::Null),
            _ => &Json::Null,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn list(&self) -> Option<&[Json]> {
        match self {
            Json::List(list) => Some(list),
            _ => None,
        }
    }

    pub fn map(&self) -> Option<&BTreeMap<String, Json>> {
        match self {
            Json::Map(map) => Some(map),
            _ => None,
        }
    }

    pub fn is_null(&self) -> bool {
        *self == Json::Null
    }

    /// An integer written as one (`12`, not `12.0`).
    pub fn integer(&self) -> Option<i64> {
        match self {
            Json::Number(text) if is_integer(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// Puts null for every text in it that is erased.
    pub fn strike(&mut self, is_erased: &impl Fn(&str) -> bool) {
        match self {
            Json::Text(text) if is_erased(text) => *self = Json::Null,
            Json::List(items) => items.iter_mut().for_each(|item| item.strike(is_erased)),
            Json::Map(map) => map.values_mut().for_each(|value| value.strike(is_erased)),
            _ => {}
        }
    }

    /// The canonical text: equal JSON values give equal texts.
    pub fn print(&self) -> String {
        match self {
            Json::Null => "null".to_string(),
            Json::Bool(value) => value.to_string(),
            Json::Number(text) => number::plain(text),
            Json::Text(text) => quote(text),
            Json::List(items) => array(&items.iter().map(Json::print).collect::<Vec<_>>()),
            Json::Map(map) => {
                let members: Vec<String> = map.iter().map(|(k, v)| format!("{}:{}", quote(k), v.print())).collect();
                format!("{{{}}}", members.join(","))
            }
        }
    }
}

/// True for the JSON numbers that are written as whole numbers.
pub fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// A JSON string literal: only what must be escaped is.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// An object of already printed members, in the order given.
pub fn object(members: &[(&str, String)]) -> String {
    let printed: Vec<String> = members.iter().map(|(k, v)| format!("{}:{}", quote(k), v)).collect();
    format!("{{{}}}", printed.join(","))
}

/// A list of already printed elements.
pub fn array(items: &[String]) -> String {
    format!("[{}]", items.join(","))
}

/// A string or null.
pub fn quote_or_null(text: Option<&str>) -> String {
    text.map_or("null".to_string(), quote)
}

pub fn parse(text: &str) -> Result<Json, String> {
    let mut reader = Reader { bytes: text.as_bytes(), text, at: 0 };
    let value = reader.value(1)?;
    reader.space();
    if reader.at < reader.bytes.len() {
        return reader.fail("something after the end");
    }
    Ok(value)
}

struct Reader<'a> {
    bytes: &'a [u8],
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn fail<T>(&self, why: &str) -> Result<T, String> {
        Err(format!("{why} at byte {}", self.at))
    }

    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    fn space(&mut self) {
        while matches!(self.peek(), b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
    }

    fn expect(&mut self, what: &str) -> Result<(), String> {
        if !self.text[self.at..].starts_with(what) {
            return self.fail(&format!("expected {what}"));
        }
        self.at += what.len();
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Json, String> {
        self.space();
        match self.peek() {
            b'{' => self.map(depth),
            b'[' => self.list(depth),
            b'"' => self.string().map(Json::Text),
            b't' => self.expect("true").map(|_| Json::Bool(true)),
            b'f' => self.expect("false").map(|_| Json::Bool(false)),
            b'n' => self.expect("null").map(|_| Json::Null),
            b'-' | b'0'..=b'9' => self.number(),
            _ => self.fail("no value"),
        }
    }

    fn map(&mut self, depth: usize) -> Result<Json, String> {
        if depth > MAX_DEPTH {
            return self.fail("nested too deep");
        }
        self.at += 1;
        let mut map = BTreeMap::new();
        self.space();
        if self.peek() == b'}' {
            self.at += 1;
            return Ok(Json::Map(map));
        }
        loop {
            self.space();
            if self.peek() != b'"' {
                return self.fail("expected a key");
            }
            let key = self.string()?;
            self.space();
            self.expect(":")?;
            map.insert(key, self.value(depth + 1)?);
            self.space();
            if self.peek() == b',' {
                self.at += 1;
                continue;
            }
            self.expect("}")?;
            return Ok(Json::Map(map));
        }
    }

    fn list(&mut self, depth: usize) -> Result<Json, String> {
        if depth > MAX_DEPTH {
            return self.fail("nested too deep");
        }
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.peek() == b']' {
            self.at += 1;
            return Ok(Json::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.peek() == b',' {
                self.at += 1;
                continue;
            }
            self.expect("]")?;
            return Ok(Json::List(items));
        }
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let start = self.at;
            while self.at < self.bytes.len() && !matches!(self.bytes[self.at], b'"' | b'\\' | 0..=0x1f) {
                self.at += 1;
            }
            out.push_str(&self.text[start..self.at]);
            match self.peek() {
                b'"' => {
                    self.at += 1;
                    return Ok(out);
                }
                b'\\' => out.push(self.escape()?),
                _ => return self.fail("a bare control character or an open string"),
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        self.at += 1;
        let c = self.peek();
        self.at += 1;
        Ok(match c {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(),
            _ => return self.fail("unknown escape"),
        })
    }

    fn unicode(&mut self) -> Result<char, String> {
        let mut code = self.hex4()?;
        if (0xd800..0xdc00).contains(&code) {
            self.expect("\\u")?;
            let low = self.hex4()?;
            if !(0xdc00..0xe000).contains(&low) {
                return self.fail("lone surrogate");
            }
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        char::from_u32(code).ok_or_else(|| "lone surrogate".to_string())
    }

    fn hex4(&mut self) -> Result<u32, String> {
        let digits = self.bytes.get(self.at..self.at + 4).unwrap_or(b"");
        if digits.len() != 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return self.fail("expected four hex digits");
        }
        let code = digits.iter().fold(0, |code, d| code * 16 + (*d as char).to_digit(16).unwrap_or(0));
        self.at += 4;
        Ok(code)
    }

    fn digits(&mut self) -> Result<(), String> {
        if !self.peek().is_ascii_digit() {
            return self.fail("expected a digit");
        }
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Json, String> {
        let start = self.at;
        if self.peek() == b'-' {
            self.at += 1;
        }
        if self.peek() == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        // 1e400 is refused as every JSON library that reads into doubles would.
        if text.parse::<f64>().map_or(true, |v| v.is_infinite()) {
            return self.fail("number out of range");
        }
        Ok(Json::Number(text.to_string()))
    }
}
