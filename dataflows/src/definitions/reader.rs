//! The tools that every reader of definitions uses: where we are, single values, and notes of what was named where.
//!
//! A reader takes a place [`At`] and gives `Some` of what is there. Whatever is wrong goes to [`Reader::problems`], and
//! what was read beside it is then thrown away as a whole: so a reader may carry on with a default after a problem,
//! and find the next one.

use std::collections::{BTreeMap, BTreeSet};

use super::nearest::nearest;
use super::yaml::{Entry, Kind, Node, Scalar};
use super::{Judged, Problem, Warning};
use crate::condition::{Condition, Path, Root, Term};
use crate::number::Number;
use crate::time::{self, Millis};
use crate::value::Value;

/// Longer names are refused, as longer ids are.
const NAME_BYTES_MAX: usize = 255;

/// So many names are compared to guess what was meant; a file that asks for more must do without.
const COMPARISONS_MAX: usize = 500_000;

/// A place in the file, as problems name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) path: String,
    pub(super) line: usize,
}

/// A place in the file with what stands there.
#[derive(Debug, Clone)]
pub(super) struct At<'n> {
    pub(super) node: &'n Node,
    pub(super) place: Place,
}

impl<'n> At<'n> {
    pub(super) fn root(node: &'n Node) -> At<'n> {
        At { node, place: Place { path: String::new(), line: node.line } }
    }

    fn under(&self, entry: &'n Entry) -> At<'n> {
        let parent = &self.place.path;
        let path = if parent.is_empty() { entry.key.clone() } else { format!("{parent}.{}", entry.key) };
        // A list, a map or nothing is best shown by its key; a text by where it begins.
        let shown =
            matches!(&entry.value.kind, Kind::Scalar { .. }) && !matches!(entry.value.scalar(), Some(Scalar::Null));
        At { node: &entry.value, place: Place { path, line: if shown { entry.value.line } else { entry.line } } }
    }

    /// The keys of a map; none if it is no map.
    pub(super) fn keys(&self) -> Vec<&'n str> {
        self.entries().iter().map(|entry| entry.key.as_str()).collect()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn get(&self, key: &str) -> Option<At<'n>> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| self.under(entry))
    }

    fn entries(&self) -> &'n [Entry] {
        if let Kind::Map(entries) = &self.node.kind { entries } else { &[] }
    }

    fn item(&self, index: usize, node: &'n Node) -> At<'n> {
        At { node, place: Place { path: format!("{}[{index}]", self.place.path), line: node.line } }
    }

    /// The line of a path that begins here.
    pub(super) fn find(&self, path: &str) -> Option<usize> {
        if self.place.path == path {
            return Some(self.place.line);
        }
        if !path.starts_with(&self.place.path) {
            return None;
        }
        match &self.node.kind {
            Kind::Scalar { .. } => None,
            Kind::List(items) => items.iter().enumerate().find_map(|(i, node)| self.item(i, node).find(path)),
            Kind::Map(entries) => entries.iter().find_map(|entry| self.under(entry).find(path)),
        }
    }
}

/// What is being read, as far as it decides what may be named there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Scope {
    /// Campaigns and the like: anything, and nothing depends on them.
    #[default]
    Leaf,
    /// Touchpoints, conversions, sessions, schemas: accepted events alone, and nothing computed.
    Facts,
    /// A definition that others may depend on.
    Judged(Judged),
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A computed trait.
    Computed,
    /// A computed trait, else a told one.
    Trait,
    Segment,
    Journey,
    /// A state of this journey.
    State(String),
    Channel,
    Tag,
}

/// A name that was written to mean a definition.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) from: Scope,
    pub(super) target: Target,
    pub(super) name: String,
    pub(super) place: Place,
}

/// A name that was written to mean an event.
#[derive(Debug)]
pub(super) struct EventUse {
    pub(super) from: Scope,
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) emitted: bool,
}

/// The names that the file defines, well or badly: a definition with a problem is still there to be named.
#[derive(Debug, Default)]
pub(super) struct Defined {
    pub(super) judged: BTreeMap<Judged, Place>,
    /// The states of each journey.
    pub(super) states: BTreeMap<String, BTreeSet<String>>,
    pub(super) channels: BTreeSet<String>,
    pub(super) tags: BTreeSet<String>,
}

/// What is found while reading: problems, and notes for the checks that need the whole file.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Warning>,
    pub(super) scope: Scope,
    pub(super) defined: Defined,
    pub(super) references: Vec<Reference>,
    pub(super) events: Vec<EventUse>,
    /// Spans that look back, and so cannot be longer than history is kept.
    pub(super) looks_back: Vec<(Place, Millis)>,
    /// How many names have been compared to guess what was meant.
    comparisons: usize,
}

impl Reader {
    /// The known name that was probably meant, as long as comparing is affordable.
    pub(super) fn nearest<'k>(&mut self, name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
        self.nearest_where(name, known, |_| true)
    }

    /// As [`Reader::nearest`], among the names that pass a test.
    pub(super) fn nearest_where<'k>(
        &mut self,
        name: &str,
        known: impl IntoIterator<Item = &'k str>,
        test: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let affordable = COMPARISONS_MAX.saturating_sub(self.comparisons);
        let counted = known.into_iter().take(affordable).inspect(|_| self.comparisons += 1);
        nearest(name, counted.filter(|other| test(other))).map(String::from)
    }

    pub(super) fn problem(&mut self, place: &Place, message: impl Into<String>) {
        self.problem_near(place, message, None);
    }

    pub(super) fn problem_near(&mut self, place: &Place, message: impl Into<String>, nearest: Option<&str>) {
        let Place { path, line } = place.clone();
        self.problems.push(Problem { path, line, message: message.into(), nearest: nearest.map(Into::into) });
    }

    pub(super) fn warning(&mut self, place: &Place, message: impl Into<String>, nearest: Option<&str>) {
        let Place { path, line } = place.clone();
        self.warnings.push(Warning { path, line, message: message.into(), nearest: nearest.map(Into::into) });
    }

    pub(super) fn not_in_this_version(&mut self, at: &At<'_>, name: &str) {
        self.problem(&at.place, format!("`{name}` is not in this version"));
    }

    fn expected<T>(&mut self, at: &At<'_>, what: &str) -> Option<T> {
        self.problem(&at.place, format!("expected {what}, found {}", at.node.describe()));
        None
    }

    pub(super) fn refers(&mut self, at: &At<'_>, target: Target, name: &str) {
        let (from, place) = (self.scope.clone(), at.place.clone());
        self.references.push(Reference { from, target, name: name.into(), place });
    }

    /// A map with these keys alone; nothing is an empty one.
    pub(super) fn fields<'n>(&mut self, at: &At<'n>, known: &[&str]) -> Option<Fields<'n>> {
        if !matches!(at.node.kind, Kind::Map(_)) && at.node.scalar() != Some(Scalar::Null) {
            return self.expected(at, "a map");
        }
        let mut slips = Vec::new();
        for entry in at.entries().iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let place = Place { line: entry.line, ..at.under(entry).place };
            let near = self.nearest(&entry.key, known.iter().copied());
            let all = if near.is_none() { format!("; known here: {}", known.join(", ")) } else { String::new() };
            self.problem_near(&place, format!("unknown key `{}`{all}", entry.key), near.as_deref());
            slips.extend(near);
        }
        Some(Fields { at: at.clone(), slips })
    }

    /// A map from names to things of one kind; nothing is an empty one.
    pub(super) fn named<'n>(&mut self, at: &At<'n>) -> Vec<(String, At<'n>)> {
        if !matches!(at.node.kind, Kind::Map(_)) && at.node.scalar() != Some(Scalar::Null) {
            return self.expected(at, "a map from names to what they mean").unwrap_or_default();
        }
        for entry in at.entries() {
            self.check_name(&Place { line: entry.line, ..at.under(entry).place }, &entry.key);
        }
        at.entries().iter().map(|entry| (entry.key.clone(), at.under(entry))).collect()
    }

    /// A list; nothing is an empty one.
    pub(super) fn items<'n>(&mut self, at: &At<'n>) -> Vec<At<'n>> {
        match &at.node.kind {
            Kind::List(items) => items.iter().enumerate().map(|(i, node)| at.item(i, node)).collect(),
            _ if at.node.scalar() == Some(Scalar::Null) => Vec::new(),
            _ => self.expected(at, "a list").unwrap_or_default(),
        }
    }

    /// Each item of a list, read; those that cannot be read are left out.
    pub(super) fn each<T>(&mut self, at: &At<'_>, read: impl Fn(&mut Reader, &At<'_>) -> Option<T>) -> Vec<T> {
        self.items(at).iter().filter_map(|item| read(self, item)).collect()
    }

    pub(super) fn text(&mut self, at: &At<'_>) -> Option<String> {
        match at.node.scalar() {
            Some(Scalar::Text(text)) => Some(text.into()),
            Some(Scalar::Number(_) | Scalar::Bool(_)) => self.expected(at, "a text (put it in quotes)"),
            _ => self.expected(at, "a text"),
        }
    }

    pub(super) fn name(&mut self, at: &At<'_>) -> Option<String> {
        let name = self.text(at)?;
        self.check_name(&at.place, &name);
        Some(name)
    }

    fn check_name(&mut self, place: &Place, name: &str) {
        if name.is_empty() {
            self.problem(place, "a name cannot be empty");
        } else if name.len() > NAME_BYTES_MAX {
            self.problem(place, format!("a name cannot be longer than {NAME_BYTES_MAX} bytes"));
        }
    }

    /// A name or a list of names.
    pub(super) fn names(&mut self, at: &At<'_>) -> Option<Vec<String>> {
        match at.node.kind {
            Kind::List(_) => Some(self.each(at, Reader::name)),
            _ => self.name(at).map(|name| vec![name]),
        }
    }

    pub(super) fn event(&mut self, at: &At<'_>) -> Option<String> {
        let name = self.name(at)?;
        self.uses_event(at, &name, false);
        Some(name)
    }

    /// An event's name or a list of them.
    pub(super) fn events(&mut self, at: &At<'_>) -> Option<Vec<String>> {
        match at.node.kind {
            Kind::List(_) => Some(self.each(at, Reader::event)),
            _ => self.event(at).map(|name| vec![name]),
        }
    }

    pub(super) fn uses_event(&mut self, at: &At<'_>, name: &str, emitted: bool) {
        let (from, place) = (self.scope.clone(), at.place.clone());
        self.events.push(EventUse { from, name: name.into(), place, emitted });
    }

    pub(super) fn segment_name(&mut self, at: &At<'_>) -> Option<String> {
        let name = self.name(at)?;
        self.refers(at, Target::Segment, &name);
        Some(name)
    }

    pub(super) fn boolean(&mut self, at: &At<'_>) -> Option<bool> {
        match at.node.scalar() {
            Some(Scalar::Bool(value)) => Some(value),
            _ => self.expected(at, "true or false"),
        }
    }

    pub(super) fn number(&mut self, at: &At<'_>) -> Option<Number> {
        let Some(Scalar::Number(text)) = at.node.scalar() else { return self.expected(at, "a number") };
        let number = Number::parse(text);
        if number.is_none() {
            self.problem(&at.place, "a number lies within ±9000000000000");
        }
        number
    }

    /// A whole number that is at least `least`.
    pub(super) fn whole(&mut self, at: &At<'_>, least: i64) -> Option<i64> {
        let Number(millionths) = self.number(at)?;
        let whole = millionths / Number::ONE.0;
        if millionths % Number::ONE.0 != 0 || whole < least {
            let bound = if least == i64::MIN { String::new() } else { format!(", at least {least}") };
            self.problem(&at.place, format!("expected a whole number{bound}"));
            return None;
        }
        Some(whole)
    }

    /// A whole number of things, at least `least`.
    pub(super) fn count(&mut self, at: &At<'_>, least: i64) -> Option<u64> {
        self.whole(at, least).and_then(|whole| whole.try_into().ok())
    }

    /// As [`Reader::count`], and small.
    pub(super) fn small_count(&mut self, at: &At<'_>, least: i64) -> Option<u32> {
        let count = self.count(at, least)?;
        let small = count.try_into().ok();
        if small.is_none() {
            self.problem(&at.place, format!("expected at most {}", u32::MAX));
        }
        small
    }

    /// A boolean, number or string.
    pub(super) fn scalar(&mut self, at: &At<'_>) -> Option<Value> {
        match at.node.scalar() {
            Some(Scalar::Bool(value)) => Some(Value::Bool(value)),
            Some(Scalar::Number(_)) => self.number(at).map(Value::Number),
            Some(Scalar::Text(text)) => Some(Value::text(text)),
            Some(Scalar::Null) | None => self.expected(at, "a text, a number, true or false"),
        }
    }

    /// A text in a small language of its own, whatever YAML takes it for.
    fn raw<'n>(&mut self, at: &At<'n>, what: &str) -> Option<&'n str> {
        match (&at.node.kind, at.node.scalar()) {
            (Kind::Scalar { text, .. }, Some(scalar)) if scalar != Scalar::Null => Some(text),
            _ => self.expected(at, what),
        }
    }

    /// A span of time, which may be 0.
    pub(super) fn span_or_zero(&mut self, at: &At<'_>) -> Option<Millis> {
        let text = self.raw(at, "a span of time like `30m`")?;
        let span = time::parse_duration(text);
        if span.is_none() {
            let longest = time::print_duration(time::SPAN_MAX);
            let form = format!("a whole number and one of ms, s, m, h, d, like `30m`, up to {longest}");
            self.problem(&at.place, format!("`{text}` is not a span of time: write {form}"));
        }
        span
    }

    /// A span of time longer than 0.
    pub(super) fn span(&mut self, at: &At<'_>) -> Option<Millis> {
        let span = self.span_or_zero(at)?;
        if span == 0 {
            self.problem(&at.place, "this span of time must be longer than 0");
        }
        Some(span)
    }

    /// A span of time longer than 0 that looks back over history.
    pub(super) fn window(&mut self, at: &At<'_>) -> Option<Millis> {
        let span = self.span(at)?;
        self.looks_back.push((at.place.clone(), span));
        Some(span)
    }

    /// An instant: RFC 3339 with offset, or milliseconds since the epoch.
    pub(super) fn instant(&mut self, at: &At<'_>) -> Option<Millis> {
        let text = self.raw(at, "an instant like `2026-01-05T09:00:00Z`")?;
        let instant = match at.node.scalar() {
            Some(Scalar::Number(text)) => text.parse().ok(),
            _ => time::parse_instant(text),
        };
        let valid = instant.filter(|instant| time::in_range(*instant));
        if valid.is_none() {
            let form = "an instant from 2000 to 2099 with its offset, like `2026-01-05T09:00:00Z`";
            self.problem(&at.place, format!("`{text}` is not {form}"));
        }
        valid
    }

    pub(super) fn clock_time(&mut self, at: &At<'_>) -> Option<u16> {
        let text = self.raw(at, "a clock time like \"22:00\"")?;
        let minutes = time::parse_clock_time(text);
        if minutes.is_none() {
            self.problem(&at.place, format!("`{text}` is not a clock time from \"00:00\" to \"23:59\""));
        }
        minutes
    }

    pub(super) fn condition(&mut self, at: &At<'_>) -> Option<Condition> {
        let text = self.raw(at, "a condition")?;
        let condition = self.parsed(at, Condition::parse(text))?;
        condition.paths(&mut |path| self.reads(at, path));
        Some(condition)
    }

    pub(super) fn path(&mut self, at: &At<'_>) -> Option<Path> {
        let text = self.raw(at, "a path like properties.order")?;
        let path = self.parsed(at, Path::parse(text))?;
        self.reads(at, &path);
        Some(path)
    }

    /// A path, or a text in quotes of its own.
    pub(super) fn text_term(&mut self, at: &At<'_>) -> Option<Term> {
        let text = self.raw(at, "a path like properties.channel, or a text like '\"email\"'")?;
        let term = self.parsed(at, Term::parse(text))?;
        match &term {
            Term::Path(path) => self.reads(at, path),
            Term::Literal(Value::Text(_)) => {}
            Term::Literal(_) => self.problem(&at.place, "expected a path or a text in quotes of its own: '\"email\"'"),
        }
        Some(term)
    }

    fn parsed<T>(&mut self, at: &At<'_>, parsed: Result<T, crate::condition::ConditionError>) -> Option<T> {
        parsed.map_err(|error| self.problem(&at.place, error.to_string())).ok()
    }

    fn reads(&mut self, at: &At<'_>, path: &Path) {
        let (Root::Computed, Some(name)) = (path.root, path.keys.first()) else { return };
        if self.scope == Scope::Facts {
            self.problem(&at.place, format!("`{path}`: touchpoints and conversions cannot read computed traits"));
        } else {
            self.refers(at, Target::Computed, name);
        }
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(&mut self, at: &At<'_>, choices: &[(&str, T)]) -> Option<T> {
        let word = self.text(at)?;
        let chosen = choices.iter().find(|(name, _)| *name == word);
        if chosen.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            let near = self.nearest(&word, names.iter().copied());
            self.problem_near(&at.place, format!("`{word}` is none of: {}", names.join(", ")), near.as_deref());
        }
        chosen.map(|(_, choice)| *choice)
    }

    /// Any value as JSON text, the keys of maps in order.
    pub(super) fn json(&mut self, at: &At<'_>) -> String {
        match (&at.node.kind, at.node.scalar()) {
            (_, Some(Scalar::Null)) => "null".into(),
            (_, Some(Scalar::Bool(value))) => value.to_string(),
            (_, Some(Scalar::Number(text))) => {
                // Readers of JSON refuse a number that their widest type cannot hold.
                if !text.parse::<f64>().is_ok_and(f64::is_finite) {
                    self.problem(&at.place, "this number is too large; put it in quotes");
                }
                text.into()
            }
            (_, Some(Scalar::Text(text))) => json_text(text),
            (Kind::Map(entries), _) => {
                let sorted: BTreeMap<&str, At<'_>> = entries.iter().map(|e| (e.key.as_str(), at.under(e))).collect();
                let parts = sorted.iter().map(|(key, value)| format!("{}:{}", json_text(key), self.json(value)));
                format!("{{{}}}", parts.collect::<Vec<String>>().join(","))
            }
            _ => {
                let parts = self.items(at).iter().map(|item| self.json(item)).collect::<Vec<String>>();
                format!("[{}]", parts.join(","))
            }
        }
    }
}

fn json_text(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            '\0'..='\u{1f}' => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => json.push(c),
        }
    }
    json.push('"');
    json
}

/// A map whose keys are known.
#[derive(Debug)]
pub(super) struct Fields<'n> {
    at: At<'n>,
    /// Known keys that unknown ones were meant to be: to call them missing too would be to say it twice.
    slips: Vec<String>,
}

impl<'n> Fields<'n> {
    pub(super) fn get(&self, key: &str) -> Option<At<'n>> {
        self.at.get(key)
    }

    /// What is at `key`, if the key is there.
    pub(super) fn optional<T>(
        &self,
        reader: &mut Reader,
        key: &str,
        read: impl FnOnce(&mut Reader, &At<'n>) -> Option<T>,
    ) -> Option<T> {
        self.get(key).and_then(|at| read(reader, &at))
    }

    /// What is at `key`, which must be there.
    pub(super) fn required<T>(
        &self,
        reader: &mut Reader,
        key: &str,
        read: impl FnOnce(&mut Reader, &At<'n>) -> Option<T>,
    ) -> Option<T> {
        if self.get(key).is_none() && !self.slips.iter().any(|slip| slip == key) {
            reader.problem(&self.at.place, format!("`{key}` is missing"));
        }
        self.optional(reader, key, read)
    }

    /// The list at `key`, each item read; those that cannot be read are left out.
    pub(super) fn list<T>(
        &self,
        reader: &mut Reader,
        key: &str,
        read: impl Fn(&mut Reader, &At<'_>) -> Option<T>,
    ) -> Vec<T> {
        self.get(key).map(|at| reader.each(&at, read)).unwrap_or_default()
    }

    /// The things by name at `key`, each read; those that cannot be read are left out.
    pub(super) fn section<T>(
        &self,
        reader: &mut Reader,
        key: &str,
        read: impl Fn(&mut Reader, &str, &At<'_>) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let named = self.get(key).map(|at| reader.named(&at)).unwrap_or_default();
        named.into_iter().filter_map(|(name, at)| Some((name.clone(), read(reader, &name, &at)?))).collect()
    }

    /// The one of `keys` that is there; it is a problem if none or several are.
    pub(super) fn one_of<'k>(&self, reader: &mut Reader, keys: &[&'k str]) -> Option<(&'k str, At<'n>)> {
        let mut present = keys.iter().filter_map(|key| Some((*key, self.get(key)?)));
        match (present.next(), present.next()) {
            (Some(one), None) => Some(one),
            (None, _) => {
                if !self.slips.iter().any(|slip| keys.contains(&slip.as_str())) {
                    reader.problem(&self.at.place, format!("one of these is missing: {}", keys.join(", ")));
                }
                None
            }
            (Some((first, _)), Some((second, at))) => {
                reader.problem(&at.place, format!("`{first}` and `{second}` exclude each other; write one of them"));
                None
            }
        }
    }
}
