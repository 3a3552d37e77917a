//! Conditions over one event and its person: the subset of CEL that `where:` speaks.
//!
//! In goes the text of a condition; out comes a tree that answers true or false and cannot fail at run time. Its
//! paths are names when it is parsed; [`Condition::map`] turns them into whatever finds a value fastest.
//!
//! Two-valued logic: a comparison with an absent, null or differently typed operand is false, and `!=` is exactly
//! `!(==)`. So every condition has an answer for every event, whatever it carries.

mod parse;

use std::fmt;

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use crate::value::Value;

/// Where a path begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Root {
    /// The event's name; no keys follow.
    Event,
    /// The call's type (`track`, `page`, …); no keys follow.
    Type,
    /// The event's properties.
    Properties,
    /// The event's context.
    Context,
    /// What the person was told to be, by `identify`.
    Traits,
    /// What is computed for the person; exactly one key, the computed trait's name.
    Computed,
}

impl Root {
    /// Every root with its name in the language.
    const ALL: [(&str, Root); 6] = [
        ("event", Root::Event),
        ("type", Root::Type),
        ("properties", Root::Properties),
        ("context", Root::Context),
        ("traits", Root::Traits),
        ("computed", Root::Computed),
    ];
}

/// A path to a value: a root and the keys below it, as in `properties.address["post code"]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Path {
    /// Where it begins.
    pub root: Root,
    /// The keys, outermost first; empty for [`Root::Event`] and [`Root::Type`] alone.
    pub keys: Box<[EcoString]>,
}

/// A condition over paths `P`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Condition<P = Path> {
    /// All of them hold; of none: true.
    All(Vec<Condition<P>>),
    /// One of them holds; of none: false.
    Any(Vec<Condition<P>>),
    /// It does not hold.
    Not(Box<Condition<P>>),
    /// The value is JSON true.
    True(P),
    /// The value is there and not null.
    Has(P),
    /// One value against another.
    Compare {
        /// What is compared.
        left: Term<P>,
        /// How.
        op: Comparison,
        /// With what.
        right: Term<P>,
    },
    /// A value equals one of a list's.
    In {
        /// What is looked for.
        item: Term<P>,
        /// Where.
        list: Members<P>,
    },
    /// A string starts with, ends with or contains another.
    Text {
        /// The whole string.
        text: Term<P>,
        /// How the part must lie in it.
        how: TextTest,
        /// The part.
        part: Term<P>,
    },
}

/// A value in a condition: looked up, or written there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Term<P = Path> {
    /// The value that the path leads to.
    Path(P),
    /// A boolean, number or string.
    Literal(Value),
}

/// The right side of `in`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Members<P = Path> {
    /// A path; what is no list has no members.
    Path(P),
    /// Literals.
    Literals(Vec<Value>),
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Comparison {
    /// `==`, of two booleans, numbers or strings.
    Equal,
    /// `!=`, exactly where `==` is false: so also where an operand is absent.
    NotEqual,
    /// `<`, of two numbers or strings.
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
}

/// How a part must lie in a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TextTest {
    /// `.startsWith`
    StartsWith,
    /// `.endsWith`
    EndsWith,
    /// `.contains`
    Contains,
}

/// Why a text is no condition: what is wrong at which character, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionError {
    /// The character where it goes wrong, counted from 1.
    pub column: usize,
    /// One sentence.
    pub message: String,
}

impl Condition {
    /// Reads a condition such as `properties.section == "shoes" && properties.value > 50`.
    ///
    /// The error says what is outside the subset, where, and what to write instead.
    pub fn parse(text: &str) -> Result<Condition, ConditionError> {
        parse::condition(text)
    }
}

impl<P> Condition<P> {
    /// The same condition over other paths, each turned by `turn`.
    pub fn map<Q>(self, turn: &mut impl FnMut(P) -> Q) -> Condition<Q> {
        match self {
            Condition::All(parts) => Condition::All(parts.into_iter().map(|part| part.map(turn)).collect()),
            Condition::Any(parts) => Condition::Any(parts.into_iter().map(|part| part.map(turn)).collect()),
            Condition::Not(part) => Condition::Not(Box::new(part.map(turn))),
            Condition::True(path) => Condition::True(turn(path)),
            Condition::Has(path) => Condition::Has(turn(path)),
            Condition::Compare { left, op, right } => {
                Condition::Compare { left: left.map(turn), op, right: right.map(turn) }
            }
            Condition::In { item, list } => Condition::In { item: item.map(turn), list: list.map(turn) },
            Condition::Text { text, how, part } => Condition::Text { text: text.map(turn), how, part: part.map(turn) },
        }
    }

    /// Shows every path in it, in the order written.
    pub fn paths(&self, see: &mut impl FnMut(&P)) {
        match self {
            Condition::All(parts) | Condition::Any(parts) => parts.iter().for_each(|part| part.paths(see)),
            Condition::Not(part) => part.paths(see),
            Condition::True(path) | Condition::Has(path) => see(path),
            Condition::Compare { left: first, right: second, .. }
            | Condition::Text { text: first, part: second, .. } => {
                first.paths(see);
                second.paths(see);
            }
            Condition::In { item, list } => {
                item.paths(see);
                if let Members::Path(path) = list {
                    see(path);
                }
            }
        }
    }

    /// Whether it holds where some paths lead to what nobody knows any more; none: that depends on it.
    pub fn judge<'v>(&self, look: &impl Fn(&P) -> Option<&'v Value>, gone: &impl Fn(&P) -> bool) -> Option<bool> {
        // Whatever part is this decides it.
        let settled = |parts: &[Condition<P>], by: bool| {
            let mut whole = Some(!by);
            for part in parts {
                match part.judge(look, gone) {
                    Some(part) if part == by => return Some(by),
                    Some(_) => {}
                    None => whole = None,
                }
            }
            whole
        };
        match self {
            Condition::All(parts) => settled(parts, false),
            Condition::Any(parts) => settled(parts, true),
            Condition::Not(part) => part.judge(look, gone).map(|holds| !holds),
            plain => {
                let mut is_known = true;
                plain.paths(&mut |path| is_known &= !gone(path));
                is_known.then(|| plain.holds(look))
            }
        }
    }

    /// Whether it holds, where `look` finds the value of a path, or none.
    pub fn holds<'v>(&self, look: &impl Fn(&P) -> Option<&'v Value>) -> bool {
        match self {
            Condition::All(parts) => parts.iter().all(|part| part.holds(look)),
            Condition::Any(parts) => parts.iter().any(|part| part.holds(look)),
            Condition::Not(part) => !part.holds(look),
            Condition::True(path) => matches!(look(path), Some(Value::Bool(true))),
            Condition::Has(path) => look(path).is_some_and(|value| *value != Value::Null),
            Condition::Compare { left, op, right } => compare(left.value(look), *op, right.value(look)),
            Condition::In { item, list } => {
                let members = match list {
                    Members::Literals(values) => values.as_slice(),
                    Members::Path(path) => match look(path) {
                        Some(Value::List(values)) => values,
                        _ => return false,
                    },
                };
                item.value(look).is_some_and(|item| members.iter().any(|member| equal(item, member)))
            }
            Condition::Text { text, how, part } => match (text.value(look), part.value(look)) {
                (Some(Value::Text(text)), Some(Value::Text(part))) => match how {
                    TextTest::StartsWith => text.starts_with(part.as_str()),
                    TextTest::EndsWith => text.ends_with(part.as_str()),
                    TextTest::Contains => text.contains(part.as_str()),
                },
                _ => false,
            },
        }
    }
}

impl Term {
    /// Reads a single path or literal: `properties.channel`, `"email"`.
    pub fn parse(text: &str) -> Result<Term, ConditionError> {
        parse::term(text)
    }
}

impl<P> Term<P> {
    /// The same term over another path, turned by `turn`.
    pub fn map<Q>(self, turn: &mut impl FnMut(P) -> Q) -> Term<Q> {
        match self {
            Term::Path(path) => Term::Path(turn(path)),
            Term::Literal(value) => Term::Literal(value),
        }
    }

    /// Shows the path, if it is one.
    pub fn paths(&self, see: &mut impl FnMut(&P)) {
        if let Term::Path(path) = self {
            see(path);
        }
    }

    /// Its value, where `look` finds the value of a path, or none.
    pub fn value<'a, 'v: 'a>(&'a self, look: &impl Fn(&P) -> Option<&'v Value>) -> Option<&'a Value> {
        match self {
            Term::Path(path) => look(path),
            Term::Literal(value) => Some(value),
        }
    }
}

impl<P> Members<P> {
    fn map<Q>(self, turn: &mut impl FnMut(P) -> Q) -> Members<Q> {
        match self {
            Members::Path(path) => Members::Path(turn(path)),
            Members::Literals(values) => Members::Literals(values),
        }
    }
}

impl Path {
    /// Reads a path alone: `properties.order`, `properties["Order ID"]`.
    pub fn parse(text: &str) -> Result<Path, ConditionError> {
        parse::path(text)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Root::ALL.iter().find(|(_, root)| *root == self.root);
        f.write_str(name.map_or("", |(name, _)| name))?;
        for key in &self.keys {
            if parse::is_plain_key(key) {
                write!(f, ".{key}")?;
            } else {
                write!(f, "[\"{}\"]", key.as_str().replace('\\', "\\\\").replace('"', "\\\""))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ConditionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: {}", self.column, self.message)
    }
}

impl std::error::Error for ConditionError {}

fn compare(left: Option<&Value>, op: Comparison, right: Option<&Value>) -> bool {
    let (Some(left), Some(right)) = (left, right) else { return op == Comparison::NotEqual };
    match op {
        Comparison::Equal => equal(left, right),
        Comparison::NotEqual => !equal(left, right),
        Comparison::Less => ordered(left, right) && left < right,
        Comparison::AtMost => ordered(left, right) && left <= right,
        Comparison::Greater => ordered(left, right) && left > right,
        Comparison::AtLeast => ordered(left, right) && left >= right,
    }
}

/// Only booleans, numbers and strings can be equal: null, lists, objects and numbers beyond range equal nothing.
fn equal(left: &Value, right: &Value) -> bool {
    matches!(left, Value::Bool(_) | Value::Number(_) | Value::Text(_)) && left == right
}

fn ordered(left: &Value, right: &Value) -> bool {
    matches!((left, right), (Value::Number(_), Value::Number(_)) | (Value::Text(_), Value::Text(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// One event: every path that leads somewhere.
    fn event() -> BTreeMap<String, Value> {
        let number = Value::number;
        BTreeMap::from([
            ("event".into(), Value::text("purchase")),
            ("type".into(), Value::text("track")),
            ("properties.value".into(), number("50.5")),
            ("properties.items".into(), number("3")),
            ("properties.zero".into(), number("0")),
            ("properties.huge".into(), number("1e20")),
            ("properties.section".into(), Value::text("shoes")),
            ("properties.gift".into(), Value::Bool(true)),
            ("properties.sale".into(), Value::Bool(false)),
            ("properties.none".into(), Value::Null),
            ("properties.nested".into(), Value::Object),
            ("properties[\"Order ID\"]".into(), Value::text("A-1")),
            ("properties.tags".into(), Value::List([Value::text("red"), number("42"), Value::Null].into())),
            ("traits.address.city".into(), Value::text("Köln")),
            ("computed.spend".into(), number("300")),
        ])
    }

    fn holds(text: &str) -> bool {
        let event = event();
        let condition = Condition::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        condition.holds(&|path: &Path| event.get(&path.to_string()))
    }

    const ANSWERS: &[(&str, bool)] = &[
        (r#"event == "purchase""#, true),
        (r#"type == 'track' && event != 'refund'"#, true),
        ("properties.value > 50", true),
        ("properties.value >= 50.5 && properties.value <= 50.5", true),
        ("properties.value == 50.5000001", true),
        ("50 < properties.value", true),
        ("properties.value > properties.items", true),
        ("properties.zero > -1 && properties.zero < 1e-3", true),
        ("properties.zero == -0", true),
        ("properties.gift", true),
        ("properties.sale", false),
        ("!properties.sale", true),
        ("!!properties.gift", true),
        ("properties.section", false),
        ("properties.gift == true", true),
        ("properties.gift > false", false),
        ("properties.gift != properties.sale", true),
        // Absent, null and differently typed: false, and `!=` is its opposite.
        ("properties.absent == 1", false),
        ("properties.absent != 1", true),
        ("properties.absent == properties.absent", false),
        ("properties.absent != properties.absent", true),
        ("properties.absent < 1 || properties.absent >= 1", false),
        ("properties.absent", false),
        ("properties.none == properties.none", false),
        ("properties.none != 1", true),
        ("properties.value == '50.5'", false),
        ("properties.value < 'z' || properties.value > 'z'", false),
        ("properties.nested == properties.nested", false),
        ("properties.tags == properties.tags", false),
        // A number beyond range is there, and is not a number.
        ("has(properties.huge)", true),
        ("properties.huge > 1 || properties.huge <= 1", false),
        ("properties.huge == properties.huge", false),
        ("properties.huge != properties.huge", true),
        ("has(properties.none)", false),
        ("has(properties.nested) && has(properties.tags) && has(event)", true),
        ("has(properties.absent)", false),
        ("!has(properties.absent)", true),
        // Membership.
        ("properties.section in ['hats', 'shoes']", true),
        ("properties.section in ['hats', 1, true]", false),
        ("properties.section in []", false),
        ("3 in [1, 2, 3,]", true),
        ("properties.items in [-3, 3.0]", true),
        ("'red' in properties.tags", true),
        ("42 in properties.tags", true),
        ("'42' in properties.tags", false),
        ("properties.none in properties.tags", false),
        ("properties.absent in properties.tags", false),
        ("'shoes' in properties.section", false),
        ("'a' in properties.absent", false),
        ("!('blue' in properties.tags)", true),
        // Strings.
        ("properties.section.startsWith('sh')", true),
        ("properties.section.endsWith('oes') && properties.section.contains('hoe')", true),
        ("properties.section.startsWith('oes')", false),
        ("properties.section.contains('')", true),
        ("properties.value.contains('5')", false),
        ("properties.absent.startsWith('')", false),
        ("properties.section.startsWith(5)", false),
        ("'red shoes'.endsWith(properties.section)", true),
        ("(properties.section).contains('o')", true),
        ("properties.section < 'shop' && properties.section > 'Shoes'", true),
        ("'é' > 'z'", true),
        // Paths.
        (r#"properties["Order ID"] == "A-1""#, true),
        (r#"properties["section"] == 'shoes'"#, true),
        ("traits.address.city == 'K\\u00f6ln'", true),
        ("traits['address']['city'].startsWith('K')", true),
        ("computed.spend >= 300", true),
        // Precedence: && before ||, comparison before both, ! before all.
        ("true || false && false", true),
        ("(true || false) && false", false),
        ("false && false || true", true),
        ("!properties.sale && properties.gift", true),
        ("!(properties.sale || properties.gift)", false),
        ("  properties.gift\n  && // only gifts\n  true ", true),
        ("((properties.value)) > (50)", true),
        ("'it\\'s \"\\x41\\101\\U0001F600\\n\"' == \"it's \\\"AA😀\\n\\\"\"", true),
    ];

    #[test]
    fn answers() {
        for (text, expected) in ANSWERS {
            assert_eq!(holds(text), *expected, "{text}");
        }
    }

    /// What is refused: the text, the column, part of the advice.
    const REFUSALS: &[(&str, usize, &str)] = &[
        ("", 1, "a value is missing"),
        ("properties.", 12, "a key is missing"),
        ("properties", 1, "name a key"),
        ("event.name", 6, "no keys"),
        ("computed.a.b", 1, "one key"),
        ("propertis.x == 1", 1, "properties, context"),
        ("email", 1, "in quotes"),
        ("properties.in == 1", 12, "properties[\"in\"]"),
        ("properties.items[0] == 1", 18, "key in quotes"),
        ("properties.a + 1 > 2", 14, "arithmetic"),
        ("properties.a -1 > 2", 14, "arithmetic"),
        ("-properties.a > 2", 1, "arithmetic"),
        ("1 + 1 == 2", 3, "arithmetic"),
        ("properties.a ? true : false", 14, "? :"),
        ("properties.a == null", 17, "has("),
        ("null == properties.a", 1, "has("),
        ("size(properties.a) > 1", 1, "`size` cannot be called"),
        ("properties.a.matches('x')", 14, "`matches` cannot be called"),
        ("properties.tags.exists(t, t == 'x')", 17, "`exists` cannot be called"),
        ("has(properties.a) == true", 1, "compare values"),
        ("!properties.a == true", 1, "compare values"),
        ("(properties.a == 1) != true", 2, "compare values"),
        ("1 < properties.a < 3", 18, "&&"),
        ("properties.a == [1]", 17, "`in`"),
        ("[1] == properties.a", 1, "`in`"),
        ("[1]", 1, "`in`"),
        ("properties.a in 'abc'", 17, "list"),
        ("properties.a in [properties.b]", 18, "literals"),
        ("properties.a in [1", 19, "]"),
        ("properties.a in [1 2]", 20, "]"),
        ("has('x')", 5, "a path"),
        ("has(properties.a", 17, ")"),
        ("(properties.a", 14, ")"),
        ("properties.a)", 13, "ends before"),
        ("properties.a properties.b", 14, "ends before"),
        ("properties.a = 1", 14, "=="),
        ("properties.a & properties.b", 14, "&&"),
        ("properties.a | properties.b", 14, "||"),
        ("properties.a and properties.b", 14, "&&"),
        ("not properties.a", 1, "!"),
        ("properties.a == 'abc", 17, "closing quote"),
        ("properties.a == 'a\nb'", 17, "closing quote"),
        ("properties.a == '\\q'", 18, "escape"),
        ("properties.a == '\\ud800'", 18, "escape"),
        ("properties.a == '\\x4'", 18, "escape"),
        ("properties.a == r'x'", 17, "plain quotes"),
        ("properties.a == '''x'''", 19, "plain quotes"),
        ("properties.a == 1e30", 17, "9000000000000"),
        ("properties.a == 12u", 17, "9000000000000"),
        ("properties.a == 0x1f", 17, "9000000000000"),
        ("properties.a == 1.", 17, "9000000000000"),
        ("'text'", 1, "true nor false"),
        ("1", 1, "true nor false"),
        ("properties.gift && 1", 20, "true nor false"),
        ("{'a': 1} == properties.a", 1, "`{`"),
        ("properties.a == #", 17, "`#`"),
        ("properties.é == 1", 12, "`é`"),
        ("properties.a.startsWith()", 25, "a value is missing"),
        ("properties.a.startsWith('a', 'b')", 28, "`)`"),
        ("properties.a.startsWith(true || true)", 25, "a path or a literal"),
        ("'a'.startsWith('a').contains('b')", 1, "true or false"),
        ("properties.a in [[1]]", 18, "literals"),
    ];

    #[test]
    fn refusals_say_what_to_do() {
        let deep = "(".repeat(65) + "true" + &")".repeat(65);
        for (text, column, fragment) in REFUSALS.iter().chain(&[(deep.as_str(), 65, "64")]) {
            let error = Condition::parse(text).expect_err(text);
            assert!(error.message.contains(fragment), "{text}: {error}");
            assert_eq!(error.column, *column, "{text}: {error}");
        }
    }

    #[test]
    fn reads_terms_and_paths() {
        assert_eq!(Term::parse("'email'"), Ok(Term::Literal(Value::text("email"))));
        assert_eq!(Term::parse("-1.5"), Ok(Term::Literal(Value::number("-1.5"))));
        assert!(matches!(Term::parse(" properties.channel "), Ok(Term::Path(_))));
        assert!(Term::parse("email").unwrap_err().message.contains("in quotes"));
        assert!(Term::parse("properties.a == 1").unwrap_err().message.contains("a path or a literal"));
        for text in
            ["event", "properties.a.b", r#"properties["Order ID"]"#, r#"traits["a\"\\b"].c["in"]"#, "computed.x"]
        {
            assert_eq!(Path::parse(text).unwrap().to_string(), text);
        }
        assert!(Path::parse("'email'").unwrap_err().message.contains("a path"));
        assert!(Path::parse("has(properties.a)").unwrap_err().message.contains("a path"));
    }

    #[test]
    fn map_and_paths_reach_every_path() {
        let text = "has(properties.a) && !properties.b && (properties.c < properties.d || \
            properties.e in properties.f || properties.g in [1] || properties.h.contains(properties.i))";
        let condition = Condition::parse(text).unwrap();
        let mut seen = Vec::new();
        condition.paths(&mut |path| seen.push(path.to_string()));
        let all = ["a", "b", "c", "d", "e", "f", "g", "h", "i"].map(|key| format!("properties.{key}"));
        assert_eq!(seen, all);
        let numbered: Condition<usize> =
            condition.map(&mut |path| all.iter().position(|p| *p == path.to_string()).unwrap());
        let mut numbers = Vec::new();
        numbered.paths(&mut |path| numbers.push(*path));
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn never_panics() {
        let pieces = [
            "(",
            ")",
            "[",
            "]",
            "!",
            "-",
            "&&",
            "||",
            "==",
            "<",
            "in",
            ".",
            ",",
            "has",
            "has(",
            "properties",
            ".a",
            "'x'",
            "\"",
            "'",
            "\\",
            "1",
            "1e9",
            "event",
            "true",
            " ",
            "é",
            "😀",
            "?",
            "+",
            "\n",
            "//",
            ".contains(",
            "[\"k\"]",
        ];
        let mut state = 1u64;
        for _ in 0..50_000 {
            let mut text = String::new();
            for _ in 0..12 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(pieces[(state >> 33) as usize % pieces.len()]);
            }
            if let Ok(condition) = Condition::parse(&text) {
                condition.holds(&|_: &Path| None);
            }
            let _ = (Term::parse(&text), Path::parse(&text));
        }
        let long = "!".repeat(100_000) + "true" + &" && true".repeat(100_000);
        assert!(Condition::parse(&long).unwrap().holds(&|_: &Path| None));
        assert!(Condition::parse(&"(".repeat(100_000)).is_err());
        for opening in ["-", "[", "has(", "true in [", "event.contains(", "!("] {
            assert!(Condition::parse(&opening.repeat(100_000)).is_err());
        }
    }
}
