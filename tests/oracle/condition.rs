//! Conditions (`where:`): a subset of CEL that is two-valued and cannot fail at run time.

use super::json::{self, Json};
use super::value::Value;
use std::cmp::Ordering;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub enum Expr {
    Literal(Value),
    List(Vec<Value>),
    Path(Vec<String>),
    Has(Vec<String>),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Compare(&'static str, Box<Expr>, Box<Expr>),
    In(Box<Expr>, Box<Expr>),
    Call(&'static str, Box<Expr>, Box<Expr>),
}

/// What a condition is asked of: one event, and what was known of its profile as of it.
pub struct Subject<'a> {
    pub at: i64,
    pub event: Option<&'a str>,
    pub kind: Option<&'a str>,
    pub properties: &'a Json,
    pub context: &'a Json,
    pub told: &'a BTreeMap<String, Json>,
    pub computed: &'a BTreeMap<String, Value>,
}

impl Subject<'_> {
    pub fn read(&self, path: &[String]) -> Value {
        let text = |t: Option<&str>| t.map_or(Value::Nothing, |t| Value::Text(t.to_string()));
        let rest = &path[1..];
        match path[0].as_str() {
            "event" => text(self.event),
            "type" => text(self.kind),
            "properties" => Value::of(walk(self.properties, rest)),
            "context" => Value::of(walk(self.context, rest)),
            "traits" => match rest.split_first() {
                Some((name, inner)) => self.told.get(name).map_or(Value::Nothing, |v| Value::of(walk(v, inner))),
                None => Value::Other(Json::Map(self.told.clone())),
            },
            _ => self.computed(rest),
        }
    }

    fn computed(&self, path: &[String]) -> Value {
        match path.split_first().map(|(name, inner)| (self.computed.get(name), inner)) {
            Some((Some(value), [])) => value.clone(),
            Some((Some(Value::Other(json)), inner)) => Value::of(walk(json, inner)),
            _ => Value::Nothing,
        }
    }
}

/// The value at the end of a row of keys.
pub fn walk<'a>(json: &'a Json, keys: &[String]) -> &'a Json {
    keys.iter().fold(json, |at, key| at.get(key))
}

impl Expr {
    pub fn is_true(&self, subject: &Subject) -> bool {
        self.value(subject).is_true()
    }

    pub fn value(&self, subject: &Subject) -> Value {
        match self {
            Expr::Literal(value) => value.clone(),
            Expr::List(_) => Value::Nothing,
            Expr::Path(path) => subject.read(path),
            Expr::Has(path) => Value::Bool(!subject.read(path).is_nothing()),
            Expr::Not(a) => Value::Bool(!a.is_true(subject)),
            Expr::And(a, b) => Value::Bool(a.is_true(subject) && b.is_true(subject)),
            Expr::Or(a, b) => Value::Bool(a.is_true(subject) || b.is_true(subject)),
            Expr::Compare(op, a, b) => Value::Bool(compare(op, &a.value(subject), &b.value(subject))),
            Expr::In(a, list) => Value::Bool(is_in(&a.value(subject), list, subject)),
            Expr::Call(name, a, b) => Value::Bool(call(name, &a.value(subject), &b.value(subject))),
        }
    }

    /// Every path in it, for the checks.
    pub fn paths(&self) -> Vec<&[String]> {
        match self {
            Expr::Literal(_) | Expr::List(_) => vec![],
            Expr::Path(path) | Expr::Has(path) => vec![path],
            Expr::Not(a) => a.paths(),
            Expr::And(a, b) | Expr::Or(a, b) | Expr::Compare(_, a, b) | Expr::In(a, b) | Expr::Call(_, a, b) => {
                [a.paths(), b.paths()].concat()
            }
        }
    }
}

fn compare(op: &str, a: &Value, b: &Value) -> bool {
    let order = a.order(b);
    match op {
        "==" => a.same(b),
        "!=" => !a.same(b),
        "<" => order == Some(Ordering::Less),
        "<=" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        ">" => order == Some(Ordering::Greater),
        _ => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    }
}

fn is_in(value: &Value, list: &Expr, subject: &Subject) -> bool {
    match list {
        Expr::List(items) => items.iter().any(|item| item.same(value)),
        Expr::Path(path) => match subject.read(path) {
            Value::Other(Json::List(items)) => items.iter().any(|item| Value::of(item).same(value)),
            _ => false,
        },
        _ => false,
    }
}

fn call(name: &str, a: &Value, b: &Value) -> bool {
    let (Value::Text(a), Value::Text(b)) = (a, b) else {
        return false;
    };
    match name {
        "startsWith" => a.starts_with(b.as_str()),
        "endsWith" => a.ends_with(b.as_str()),
        _ => a.contains(b.as_str()),
    }
}

/// Reads a condition; an error says what is not in the subset.
pub fn parse(text: &str) -> Result<Expr, String> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let expr = parser.or().map_err(|why| format!("{why} in {text:?}"))?;
    if parser.at < parser.tokens.len() {
        return Err(format!("something after the end of {text:?}"));
    }
    Ok(expr)
}

/// Reads a path or literal, as in `channel:` and `value:`.
pub fn parse_operand(text: &str) -> Result<Expr, String> {
    match parse(text)? {
        expr @ (Expr::Path(_) | Expr::Literal(_)) => Ok(expr),
        _ => Err(format!("{text:?} is neither a path nor a literal")),
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Number(String),
    Sign(&'static str),
}

const SIGNS: [&str; 18] =
    ["==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "(", ")", "[", "]", ",", ".", "-", "+", "?"];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_ascii_alphabetic() || first == '_' {
            let length = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
            out.push(Token::Word(rest[..length].to_string()));
            length
        } else if first.is_ascii_digit() {
            let length = number_length(rest);
            out.push(Token::Number(rest[..length].to_string()));
            length
        } else if first == '"' || first == '\'' {
            let (value, length) = string(rest, first)?;
            out.push(Token::Text(value));
            length
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign)).ok_or(format!("unknown sign in {text:?}"))?;
            out.push(Token::Sign(sign));
            sign.len()
        };
        rest = rest[length..].trim_start();
    }
    Ok(out)
}

fn number_length(text: &str) -> usize {
    let count = |from: usize| text[from..].bytes().take_while(u8::is_ascii_digit).count();
    let mut length = count(0);
    if text[length..].starts_with('.') && count(length + 1) > 0 {
        length += 1 + count(length + 1);
    }
    if text[length..].starts_with(['e', 'E']) {
        let sign = usize::from(text[length + 1..].starts_with(['+', '-']));
        if count(length + 1 + sign) > 0 {
            length += 1 + sign + count(length + 1 + sign);
        }
    }
    length
}

/// A quoted string: its value and how many bytes it takes.
fn string(text: &str, mark: char) -> Result<(String, usize), String> {
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == mark {
            return Ok((out, at + 1));
        }
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next().map(|(_, c)| c) {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some(c @ ('"' | '\'' | '\\')) => out.push(c),
            _ => return Err(format!("unknown escape in {text:?}")),
        }
    }
    Err(format!("open string in {text:?}"))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn take(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(s)) if *s == sign);
        self.at += usize::from(found);
        found
    }

    fn need(&mut self, sign: &str) -> Result<(), String> {
        if self.take(sign) { Ok(()) } else { Err(format!("expected {sign}")) }
    }

    fn next(&mut self) -> Result<Token, String> {
        let token = self.tokens.get(self.at).cloned().ok_or("ends too early")?;
        self.at += 1;
        Ok(token)
    }

    fn or(&mut self) -> Result<Expr, String> {
        let mut left = self.and()?;
        while self.take("||") {
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr, String> {
        let mut left = self.relation()?;
        while self.take("&&") {
            left = Expr::And(Box::new(left), Box::new(self.relation()?));
        }
        Ok(left)
    }

    fn relation(&mut self) -> Result<Expr, String> {
        let left = self.unary()?;
        for op in ["==", "!=", "<=", ">=", "<", ">"] {
            if self.take(op) {
                return Ok(Expr::Compare(op, Box::new(left), Box::new(self.unary()?)));
            }
        }
        if self.tokens.get(self.at) == Some(&Token::Word("in".to_string())) {
            self.at += 1;
            return Ok(Expr::In(Box::new(left), Box::new(self.haystack()?)));
        }
        Ok(left)
    }

    /// What `in` takes: a literal list, or a path.
    fn haystack(&mut self) -> Result<Expr, String> {
        if !self.take("[") {
            return match self.unary()? {
                path @ Expr::Path(_) => Ok(path),
                _ => Err("`in` takes a list or a path".to_string()),
            };
        }
        let mut items = Vec::new();
        while !self.take("]") {
            if !items.is_empty() {
                self.need(",")?;
            }
            match self.unary()? {
                Expr::Literal(value) => items.push(value),
                _ => return Err("a list holds literals".to_string()),
            }
        }
        Ok(Expr::List(items))
    }

    fn unary(&mut self) -> Result<Expr, String> {
        if self.take("!") {
            return Ok(Expr::Not(Box::new(self.unary()?)));
        }
        if self.take("-") {
            return match self.next()? {
                Token::Number(text) => literal(&format!("-{text}")),
                _ => Err("a minus stands before a number".to_string()),
            };
        }
        let mut expr = self.primary()?;
        while self.take(".") {
            expr = self.method(expr)?;
        }
        Ok(expr)
    }

    fn primary(&mut self) -> Result<Expr, String> {
        if self.take("(") {
            let inner = self.or()?;
            self.need(")")?;
            return Ok(inner);
        }
        match self.next()? {
            Token::Text(text) => Ok(Expr::Literal(Value::Text(text))),
            Token::Number(text) => literal(&text),
            Token::Word(word) => self.word(&word),
            Token::Sign(sign) => Err(format!("unexpected {sign}")),
        }
    }

    fn word(&mut self, word: &str) -> Result<Expr, String> {
        match word {
            "true" => Ok(Expr::Literal(Value::Bool(true))),
            "false" => Ok(Expr::Literal(Value::Bool(false))),
            "has" => {
                self.need("(")?;
                let root = match self.next()? {
                    Token::Word(word) => word,
                    _ => return Err("`has` takes a path".to_string()),
                };
                let path = self.path(&root)?;
                self.need(")")?;
                Ok(Expr::Has(path))
            }
            root => Ok(Expr::Path(self.path(root)?)),
        }
    }

    fn path(&mut self, root: &str) -> Result<Vec<String>, String> {
        if !matches!(root, "event" | "type" | "properties" | "context" | "traits" | "computed") {
            return Err(format!("unknown name {root:?}"));
        }
        let mut path = vec![root.to_string()];
        loop {
            if self.take("[") {
                match self.next()? {
                    Token::Text(key) => path.push(key),
                    _ => return Err("a key is a string".to_string()),
                }
                self.need("]")?;
                continue;
            }
            // A dot before `word(` calls a method, and ends the path.
            match (self.tokens.get(self.at), self.tokens.get(self.at + 1), self.tokens.get(self.at + 2)) {
                (Some(Token::Sign(".")), Some(Token::Word(key)), after) if after != Some(&Token::Sign("(")) => {
                    path.push(key.clone());
                    self.at += 2;
                }
                _ => return Ok(path),
            }
        }
    }

    fn method(&mut self, left: Expr) -> Result<Expr, String> {
        let Token::Word(word) = self.next()? else {
            return Err("expected a name after the dot".to_string());
        };
        let name = ["startsWith", "endsWith", "contains"].into_iter().find(|name| *name == word);
        let name = name.ok_or(format!("unknown method {word:?}"))?;
        self.need("(")?;
        let argument = self.unary()?;
        self.need(")")?;
        Ok(Expr::Call(name, Box::new(left), Box::new(argument)))
    }
}

fn literal(text: &str) -> Result<Expr, String> {
    match json::parse(text) {
        Ok(json) => Ok(Expr::Literal(Value::of(&json))),
        Err(why) => Err(why),
    }
}
