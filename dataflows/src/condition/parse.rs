//! From the text of a condition to its tree, or to the first thing wrong with it.
//!
//! Tokens first, then precedence as in CEL: `||`, `&&`, comparisons and `in`, `!` and `-`, members.

use ecow::EcoString;

use super::{Comparison, Condition, ConditionError, Members, Path, Root, Term, TextTest};
use crate::number::Number;
use crate::value::Value;

/// How deep parentheses may nest: the parser and everything after it recurse.
const DEPTH_MAX: usize = 64;

/// Words that CEL keeps for itself: as a key they are written in brackets.
const RESERVED: [&str; 4] = ["true", "false", "null", "in"];

const COMPARISONS: [(&str, Comparison); 6] = [
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<", Comparison::Less),
    ("<=", Comparison::AtMost),
    (">", Comparison::Greater),
    (">=", Comparison::AtLeast),
];

const TEXT_TESTS: [(&str, TextTest); 3] =
    [("startsWith", TextTest::StartsWith), ("endsWith", TextTest::EndsWith), ("contains", TextTest::Contains)];

type Parsed<T> = Result<T, ConditionError>;

pub(super) fn condition(text: &str) -> Parsed<Condition> {
    let mut parser = Parser::new(text)?;
    let part = parser.any()?;
    parser.end()?;
    part.truth()
}

pub(super) fn term(text: &str) -> Parsed<Term> {
    let mut parser = Parser::new(text)?;
    let part = parser.any()?;
    parser.end()?;
    part.term("write a path or a literal here")
}

pub(super) fn path(text: &str) -> Parsed<Path> {
    match term(text) {
        Ok(Term::Path(path)) => Ok(path),
        Ok(Term::Literal(_)) => fail(1, "write a path here, like properties.order"),
        Err(error) => Err(error),
    }
}

/// Whether a key can follow a dot; every other key goes in brackets.
pub(super) fn is_plain_key(key: &str) -> bool {
    let mut chars = key.chars();
    chars.next().is_some_and(starts_word) && chars.all(continues_word) && !RESERVED.contains(&key)
}

fn starts_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

fn continues_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn fail<T>(column: usize, message: impl Into<String>) -> Parsed<T> {
    Err(ConditionError { column, message: message.into() })
}

#[derive(Debug, Clone, PartialEq)]
enum Token<'t> {
    Word(&'t str),
    Number(Number),
    Text(EcoString),
    Symbol(&'static str),
    End,
}

/// Longer symbols first. Those that the language does not have are read too, so that their refusal can say more.
const SYMBOLS: [&str; 25] = [
    "==", "!=", "<=", ">=", "&&", "||", "(", ")", "[", "]", ".", ",", "!", "<", ">", "-", "+", "*", "/", "%", "?", ":",
    "{", "}", "=",
];

struct Lexer<'t> {
    rest: &'t str,
    /// The character that `rest` begins with, counted from 1.
    column: usize,
}

impl<'t> Lexer<'t> {
    fn tokens(text: &'t str) -> Parsed<Vec<(usize, Token<'t>)>> {
        let mut lexer = Lexer { rest: text, column: 1 };
        let mut tokens = Vec::new();
        loop {
            lexer.skip_space();
            let column = lexer.column;
            let token = lexer.token()?;
            let ended = token == Token::End;
            tokens.push((column, token));
            if ended {
                return Ok(tokens);
            }
        }
    }

    fn take(&mut self, bytes: usize) -> &'t str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.column += taken.chars().count();
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'t str {
        self.take(self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len()))
    }

    fn skip_space(&mut self) {
        self.take_while(char::is_whitespace);
        while self.rest.starts_with("//") {
            self.take_while(|c| c != '\n');
            self.take_while(char::is_whitespace);
        }
    }

    fn token(&mut self) -> Parsed<Token<'t>> {
        let column = self.column;
        let Some(first) = self.rest.chars().next() else { return Ok(Token::End) };
        if starts_word(first) {
            return Ok(Token::Word(self.take_while(continues_word)));
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        if first == '"' || first == '\'' {
            return self.text(first);
        }
        match SYMBOLS.into_iter().find(|symbol| self.rest.starts_with(symbol)) {
            Some("=") => fail(column, "write `==` for equal"),
            Some(symbol) => {
                self.take(symbol.len());
                Ok(Token::Symbol(symbol))
            }
            None if first == '&' => fail(column, "write `&&` for and"),
            None if first == '|' => fail(column, "write `||` for or"),
            None => fail(column, format!("`{first}` has no meaning here; a text or an unusual key goes in quotes")),
        }
    }

    fn number(&mut self) -> Parsed<Token<'t>> {
        let column = self.column;
        let mut previous = '0';
        let mut length = 0;
        for c in self.rest.chars() {
            // A sign belongs to the number only right after its `e`.
            let exponent_sign = matches!(c, '+' | '-') && matches!(previous, 'e' | 'E');
            if !continues_word(c) && c != '.' && !exponent_sign {
                break;
            }
            previous = c;
            length += c.len_utf8();
        }
        match Number::parse(self.take(length)) {
            Some(number) => Ok(Token::Number(number)),
            None => fail(column, "write a number like 12, 0.5 or 1e3, within ±9000000000000"),
        }
    }

    fn text(&mut self, quote: char) -> Parsed<Token<'t>> {
        let start = self.column;
        self.take(1);
        let mut text = EcoString::default();
        loop {
            let column = self.column;
            text.push_str(self.take_while(|c| c != quote && c != '\\' && c != '\n' && c != '\r'));
            let mut chars = self.rest.chars();
            match chars.next() {
                Some('\\') => match escape(chars.as_str()) {
                    Some((c, length)) => {
                        text.push(c);
                        self.take(1 + length);
                    }
                    None => return fail(self.column, "unknown escape; write `\\\\` for a backslash"),
                },
                Some(c) if c == quote => {
                    self.take(1);
                    return if text.is_empty() && self.rest.starts_with(quote) && column == start + 1 {
                        fail(self.column, "write a text in plain quotes, 'like this'")
                    } else {
                        Ok(Token::Text(text))
                    };
                }
                _ => return fail(start, "the closing quote is missing; write `\\n` for a new line"),
            }
        }
    }
}

/// The character that an escape stands for, and how many bytes it takes after the backslash.
fn escape(text: &str) -> Option<(char, usize)> {
    let code = |digits: std::ops::Range<usize>, radix| {
        let end = digits.end;
        let digits = text.get(digits).filter(|digits| digits.chars().all(|c| c.is_digit(radix)))?;
        Some((char::from_u32(u32::from_str_radix(digits, radix).ok()?)?, end))
    };
    let plain = |c| Some((c, 1));
    match text.chars().next()? {
        c @ ('\\' | '"' | '\'' | '`' | '?') => plain(c),
        'n' => plain('\n'),
        'r' => plain('\r'),
        't' => plain('\t'),
        'a' => plain('\u{7}'),
        'b' => plain('\u{8}'),
        'f' => plain('\u{c}'),
        'v' => plain('\u{b}'),
        'x' | 'X' => code(1..3, 16),
        'u' => code(1..5, 16),
        'U' => code(1..9, 16),
        '0'..='3' => code(0..3, 8),
        _ => None,
    }
}

/// What a piece of the text has turned out to be, and where it began. Which of them may stand is for its place to say.
struct Part {
    column: usize,
    what: What,
}

enum What {
    Condition(Condition),
    Term(Term),
    List(Vec<Value>),
}

impl Part {
    fn truth(self) -> Parsed<Condition> {
        match self.what {
            What::Condition(condition) => Ok(condition),
            What::Term(Term::Path(path)) => Ok(Condition::True(path)),
            What::Term(Term::Literal(Value::Bool(true))) => Ok(Condition::All(Vec::new())),
            What::Term(Term::Literal(Value::Bool(false))) => Ok(Condition::Any(Vec::new())),
            What::Term(Term::Literal(_)) => {
                fail(self.column, "a value alone is neither true nor false; compare it, as in properties.value > 50")
            }
            What::List(_) => fail(self.column, LIST_MISPLACED),
        }
    }

    fn term(self, otherwise: &str) -> Parsed<Term> {
        match self.what {
            What::Term(term) => Ok(term),
            What::Condition(_) => fail(self.column, otherwise),
            What::List(_) => fail(self.column, LIST_MISPLACED),
        }
    }

    fn members(self) -> Parsed<Members> {
        match self.what {
            What::List(values) => Ok(Members::Literals(values)),
            What::Term(Term::Path(path)) => Ok(Members::Path(path)),
            _ => fail(self.column, "right of `in` stands a list of literals, or a path that is a list"),
        }
    }
}

const LIST_MISPLACED: &str = "a list stands only to the right of `in`";

struct Parser<'t> {
    tokens: Vec<(usize, Token<'t>)>,
    next: usize,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn new(text: &'t str) -> Parsed<Parser<'t>> {
        Ok(Parser { tokens: Lexer::tokens(text)?, next: 0, depth: 0 })
    }

    fn ahead(&self, by: usize) -> &Token<'t> {
        self.tokens.get(self.next + by).map_or(&Token::End, |(_, token)| token)
    }

    fn column(&self) -> usize {
        self.tokens.get(self.next).or(self.tokens.last()).map_or(1, |(column, _)| *column)
    }

    fn at(&self, symbol: &'static str) -> bool {
        *self.ahead(0) == Token::Symbol(symbol)
    }

    fn accept(&mut self, symbol: &'static str) -> bool {
        let accepted = self.at(symbol);
        self.next += usize::from(accepted);
        accepted
    }

    fn expect(&mut self, symbol: &'static str) -> Parsed<()> {
        if self.accept(symbol) { Ok(()) } else { fail(self.column(), format!("`{symbol}` is missing here")) }
    }

    /// What may follow a complete piece: a closing bracket, a comma or the end. All else gets its own advice.
    fn end(&self) -> Parsed<()> {
        let message = match self.ahead(0) {
            Token::End => return Ok(()),
            Token::Word("and") => "write `&&` for and",
            Token::Word("or") => "write `||` for or",
            _ => "the condition ends before this; join two conditions with && or ||",
        };
        fail(self.column(), message)
    }

    fn any(&mut self) -> Parsed<Part> {
        let part = self.join("||", Parser::all, Condition::Any)?;
        if self.at("?") {
            return fail(self.column(), "`? :` is not part of the language; write it with && and ||");
        }
        Ok(part)
    }

    fn all(&mut self) -> Parsed<Part> {
        self.join("&&", Parser::relation, Condition::All)
    }

    /// Pieces joined by `symbol`; a single piece stays what it is, so that `(properties.a)` is still a path.
    fn join(
        &mut self,
        symbol: &'static str,
        piece: impl Fn(&mut Self) -> Parsed<Part>,
        build: impl Fn(Vec<Condition>) -> Condition,
    ) -> Parsed<Part> {
        let first = piece(self)?;
        if !self.at(symbol) {
            return Ok(first);
        }
        let column = first.column;
        let mut conditions = vec![first.truth()?];
        while self.accept(symbol) {
            conditions.push(piece(self)?.truth()?);
        }
        Ok(Part { column, what: What::Condition(build(conditions)) })
    }

    fn relation(&mut self) -> Parsed<Part> {
        let left = self.operand()?;
        let column = left.column;
        let what = if let Some(op) = self.comparison() {
            self.next += 1;
            let left = left.term(COMPARE_VALUES)?;
            let right = self.operand()?.term(COMPARE_VALUES)?;
            Condition::Compare { left, op, right }
        } else if *self.ahead(0) == Token::Word("in") {
            self.next += 1;
            let item = left.term(COMPARE_VALUES)?;
            Condition::In { item, list: self.operand()?.members()? }
        } else {
            return Ok(left);
        };
        if self.comparison().is_some() || *self.ahead(0) == Token::Word("in") {
            return fail(self.column(), "comparisons do not chain; join two of them with &&");
        }
        Ok(Part { column, what: What::Condition(what) })
    }

    fn comparison(&self) -> Option<Comparison> {
        let Token::Symbol(symbol) = self.ahead(0) else { return None };
        COMPARISONS.iter().find(|(name, _)| name == symbol).map(|(_, op)| *op)
    }

    fn operand(&mut self) -> Parsed<Part> {
        let operand = self.unary()?;
        match self.ahead(0) {
            Token::Symbol("+" | "-" | "*" | "/" | "%") => fail(self.column(), NO_ARITHMETIC),
            _ => Ok(operand),
        }
    }

    fn unary(&mut self) -> Parsed<Part> {
        let column = self.column();
        let mut negations = 0;
        while self.accept("!") {
            negations += 1;
        }
        if negations > 0 {
            let inner = self.member()?.truth()?;
            // Counted, not nested: a row of `!` must not deepen the tree.
            let condition = if negations % 2 == 1 { Condition::Not(Box::new(inner)) } else { inner };
            return Ok(Part { column, what: What::Condition(condition) });
        }
        if self.at("-") {
            let Token::Number(number) = *self.ahead(1) else { return fail(column, NO_ARITHMETIC) };
            self.next += 2;
            return Ok(Part { column, what: What::Term(Term::Literal(Value::Number(Number(-number.0)))) });
        }
        self.member()
    }

    fn member(&mut self) -> Parsed<Part> {
        let start = self.column();
        let mut part = self.primary()?;
        while self.accept(".") {
            let column = self.column();
            let Token::Word(name) = *self.ahead(0) else { return fail(column, KEY_MISSING) };
            let Some((_, how)) = TEXT_TESTS.iter().find(|(test, _)| *test == name) else {
                return fail(column, cannot_be_called(name));
            };
            let text = part.term("this is already true or false; only a string has .startsWith and the like")?;
            self.next += 1;
            self.expect("(")?;
            let inner = self.nested(Parser::any)?.term("write a path or a literal here")?;
            self.expect(")")?;
            part = Part { column: start, what: What::Condition(Condition::Text { text, how: *how, part: inner }) };
        }
        Ok(part)
    }

    fn primary(&mut self) -> Parsed<Part> {
        let column = self.column();
        let token = self.ahead(0).clone();
        self.next += 1;
        let what = match token {
            Token::Word("has") if self.at("(") => self.has()?,
            Token::Word(word) => return self.word(column, word),
            Token::Text(text) => What::Term(Term::Literal(Value::Text(text))),
            Token::Number(number) => What::Term(Term::Literal(Value::Number(number))),
            Token::Symbol("(") => {
                let inner = self.nested(Parser::any)?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Symbol("[") => self.nested(Parser::list)?,
            Token::Symbol("+" | "-" | "*" | "/" | "%") => return fail(column, NO_ARITHMETIC),
            Token::Symbol(symbol @ ("{" | "}" | "?" | ":")) => {
                return fail(column, format!("`{symbol}` is not part of the language"));
            }
            Token::Symbol(_) | Token::End => return fail(column, "a value is missing here: a path or a literal"),
        };
        Ok(Part { column, what })
    }

    fn nested<T>(&mut self, inner: impl Fn(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == DEPTH_MAX {
            let opened = self.tokens.get(self.next.saturating_sub(1)).map_or(1, |(column, _)| *column);
            return fail(opened, format!("parentheses nest deeper than {DEPTH_MAX}; split the condition"));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn has(&mut self) -> Parsed<What> {
        self.expect("(")?;
        let column = self.column();
        let inner = self.nested(Parser::any)?.term("has takes a path, as in has(properties.order)")?;
        let Term::Path(path) = inner else { return fail(column, "has takes a path, as in has(properties.order)") };
        self.expect(")")?;
        Ok(What::Condition(Condition::Has(path)))
    }

    fn word(&mut self, column: usize, word: &str) -> Parsed<Part> {
        let literal = |value| Ok(Part { column, what: What::Term(Term::Literal(Value::Bool(value))) });
        match (word, self.ahead(0)) {
            ("true", _) => literal(true),
            ("false", _) => literal(false),
            ("null", _) => fail(column, "null is no literal; write !has(properties.x) for absent or null"),
            ("in", _) => fail(column, "a value is missing before `in`"),
            ("not", _) => fail(column, "write `!` for not"),
            (_, Token::Symbol("(")) => fail(column, cannot_be_called(word)),
            (_, Token::Text(_)) => fail(column, "write a text in plain quotes, 'like this'"),
            _ => match Root::ALL.iter().find(|(name, _)| *name == word) {
                Some((_, root)) => self.path(column, *root),
                None => fail(
                    column,
                    format!(
                        "`{word}` is no path; it begins with event, type, properties, context, traits or computed, \
                        and a text stands in quotes, like '{word}'"
                    ),
                ),
            },
        }
    }

    fn path(&mut self, column: usize, root: Root) -> Parsed<Part> {
        let mut keys = Vec::new();
        let first_key = self.column();
        while let Some(key) = self.key()? {
            keys.push(key);
        }
        match (root, keys.len()) {
            (Root::Event | Root::Type, 1..) => fail(first_key, "event and type are texts, and have no keys"),
            (Root::Properties | Root::Context | Root::Traits, 0) => {
                fail(column, "name a key, as in properties.section or properties[\"Order ID\"]")
            }
            (Root::Computed, 0 | 2..) => fail(column, "computed takes one key, the name of the computed trait"),
            _ => Ok(Part { column, what: What::Term(Term::Path(Path { root, keys: keys.into() })) }),
        }
    }

    /// One more key of a path: `.key` or `["any key"]`. A `.name(` is left alone: it is a call.
    fn key(&mut self) -> Parsed<Option<EcoString>> {
        if self.at("[") {
            let Token::Text(key) = self.ahead(1).clone() else {
                self.next += 1;
                return fail(self.column(), "only a key in quotes stands in brackets, as in properties[\"Order ID\"]");
            };
            self.next += 2;
            self.expect("]")?;
            return Ok(Some(key));
        }
        if !self.at(".") || (matches!(self.ahead(1), Token::Word(_)) && *self.ahead(2) == Token::Symbol("(")) {
            return Ok(None);
        }
        self.next += 1;
        match *self.ahead(0) {
            Token::Word(word) if RESERVED.contains(&word) => {
                fail(self.column(), format!("`{word}` is a word of the language; write properties[\"{word}\"]"))
            }
            Token::Word(word) => {
                self.next += 1;
                Ok(Some(word.into()))
            }
            _ => fail(self.column(), KEY_MISSING),
        }
    }

    fn list(&mut self) -> Parsed<What> {
        let mut values = Vec::new();
        while !self.accept("]") {
            let column = self.column();
            match self.unary()?.what {
                What::Term(Term::Literal(value)) => values.push(value),
                _ => return fail(column, "a list holds literals alone: texts, numbers, true and false"),
            }
            if !self.accept(",") && !self.at("]") {
                return fail(self.column(), "`,` or `]` is missing here");
            }
        }
        Ok(What::List(values))
    }
}

const COMPARE_VALUES: &str = "compare values, not conditions: a path or a literal on each side; for not, write !( … )";
const NO_ARITHMETIC: &str = "arithmetic is not part of the language; send the result as a property";
const KEY_MISSING: &str = "a key is missing here; an unusual one goes in brackets, as in properties[\"Order ID\"]";

fn cannot_be_called(name: &str) -> String {
    format!("`{name}` cannot be called; there are has(path), .startsWith(text), .endsWith(text) and .contains(text)")
}
