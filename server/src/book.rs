//! The book of definitions: what the file says and what was given since, document by document, each with its version.
//!
//! What was given at run time stands in place of what the file says under that name, also when the file changes. All of
//! it is written down in the log with each change, so the last such record is enough to have the book again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dataflows::definitions::{Definitions, Problem, document, is_by_name, line_of, written};
use dataflows::plan::Plan;
use dataflows::protocol::Terms;
use dataflows::time::Millis;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::record::Defined;
use crate::templates::{self, Templates};

/// Documents given at run time, by kind and name, in place of the file's; none: taken away.
pub type Given = BTreeMap<Name, Option<Box<RawValue>>>;

/// `segments/vip`; `sessions` for a kind that has one document.
pub type Name = String;

/// How often a document has changed, and when it did last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its number, from 1.
    pub number: u32,
    /// Since when, ms; none: since the record that holds this.
    pub since: Option<Millis>,
    /// The log position of that record.
    pub position: Option<u64>,
}

/// Definitions, whole and document by document.
#[derive(Clone, Debug)]
pub struct Book {
    file: String,
    given: Given,
    text: String,
    documents: BTreeMap<Name, String>,
    versions: BTreeMap<Name, Version>,
    /// Where it is written down.
    position: Option<u64>,
    /// What it all says.
    pub plan: Arc<Plan>,
    /// The messages.
    pub templates: Arc<Templates>,
}

/// The name of a document; none: there is no such kind.
pub fn name_of(kind: &str, name: &str) -> Option<Name> {
    is_by_name(kind).map(|by_name| if by_name { format!("{kind}/{name}") } else { kind.to_owned() })
}

impl Book {
    /// The book of a file, with what the log says was given.
    pub fn open(file: &str, last: Option<&Defined>) -> Result<Book, Vec<Problem>> {
        let (given, versions, before) = match last {
            Some(last) => (last.given.clone(), last.versions.clone(), documents(&last.text)),
            None => Default::default(),
        };
        let text = composed(file, &given);
        let plan = Plan::new(Arc::new(checked(&text)?));
        if let Some((before, _)) = last.and_then(|last| Definitions::parse(&last.text).ok()) {
            keeps_ids(&before, &plan.definitions, &text)?;
        }
        Ok(Book::of(file.to_owned(), given, text, plan, versions, &before))
    }

    fn of(
        file: String,
        given: Given,
        text: String,
        plan: Plan,
        mut versions: BTreeMap<Name, Version>,
        before: &BTreeMap<Name, String>,
    ) -> Book {
        let documents = documents(&text);
        let names: BTreeSet<&Name> = documents.keys().chain(before.keys()).collect();
        for name in names.into_iter().filter(|name| documents.get(*name) != before.get(*name)) {
            let number = versions.get(name).map_or(0, |version| version.number) + 1;
            versions.insert(name.clone(), Version { number, since: None, position: None });
        }
        let templates = Arc::new(Templates::new(&plan.definitions));
        Book { file, given, text, documents, versions, position: None, plan: Arc::new(plan), templates }
    }

    /// The book after a document is given, or taken away.
    pub fn with(&self, name: &str, document: Option<Box<RawValue>>) -> Result<Book, Vec<Problem>> {
        self.with_all(Given::from([(name.to_owned(), document)]))
    }

    /// The book after several are.
    pub fn with_all(&self, documents: Given) -> Result<Book, Vec<Problem>> {
        let mut given = self.given.clone();
        given.extend(documents);
        let text = composed(&self.file, &given);
        self.followed_by(given, self.versions.clone(), text)
    }

    /// The book of another file, and nothing given.
    pub fn instead(&self, text: String) -> Result<Book, Vec<Problem>> {
        self.followed_by(Given::new(), self.versions.clone(), text)
    }

    /// The book after what another process, or the stream, says comes next.
    pub fn then(&self, next: &Defined) -> Result<Book, Vec<Problem>> {
        self.followed_by(next.given.clone(), self.versions.clone(), next.text.clone())
    }

    fn followed_by(&self, given: Given, versions: BTreeMap<Name, Version>, text: String) -> Result<Book, Vec<Problem>> {
        let definitions = Arc::new(checked(&text)?);
        keeps_ids(&self.plan.definitions, &definitions, &text)?;
        let plan = self.plan.after(definitions);
        Ok(Book::of(self.file.clone(), given, text, plan, versions, &self.documents))
    }

    /// What is written down of it.
    pub fn defined(&self) -> Defined {
        let Terms { lateness, ids_max } = self.terms();
        let (given, versions) = (self.given.clone(), self.versions.clone());
        Defined { lateness, ids_max, text: self.text.clone(), given, versions }
    }

    /// It is written down at a position and at a clock.
    pub fn stamp(&mut self, position: u64, clock: Millis) {
        self.position = Some(position);
        stamp(&mut self.versions, position, clock);
    }

    /// The same, with its versions as they were written down.
    pub fn kept_as(&self, kept: &Defined) -> Book {
        Book { versions: kept.versions.clone(), ..self.clone() }
    }

    /// Where it is written down, if it is.
    pub fn position(&self) -> Option<u64> {
        self.position
    }

    /// What acceptance asks under it.
    pub fn terms(&self) -> Terms {
        Terms::of(&self.plan.definitions)
    }

    /// A document as JSON, and its version; the latter alone of one that was taken away.
    pub fn document(&self, name: &str) -> (Option<&str>, Option<Version>) {
        (self.documents.get(name).map(String::as_str), self.versions.get(name).copied())
    }

    /// A version's number.
    pub fn version(&self, kind: &str, name: &str) -> u32 {
        self.versions.get(&format!("{kind}/{name}")).map_or(1, |version| version.number)
    }

    /// All of it as it is written down: the file, with what was given in its place.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Documents whose last change is not written down yet.
    pub fn changed(&self) -> impl Iterator<Item = &Name> {
        self.versions.iter().filter(|(_, version)| version.position.is_none()).map(|(name, _)| name)
    }

    /// Documents that were given at run time, or taken away.
    pub fn given(&self) -> impl Iterator<Item = &Name> {
        self.given.keys()
    }

    /// Since when a campaign, and everything that it reads, means what it does, ms.
    pub fn active_since(&self, campaign: &str) -> Millis {
        let settings = ["sessions", "identity", "conversions", "timezone"].map(str::to_owned);
        let mut found = BTreeSet::from(settings);
        let mut open = vec![format!("campaigns/{campaign}")];
        while let Some(name) = open.pop() {
            let json = self.documents.get(&name).and_then(|json| serde_json::from_str(json).ok());
            if found.insert(name) {
                json.iter().for_each(|json| named_in("", json, &mut open));
            }
        }
        let since = found.iter().filter_map(|name| self.versions.get(name)?.since);
        since.max().unwrap_or(0)
    }

    /// Documents that speak of another.
    pub fn referrers(&self, name: &str) -> Vec<&Name> {
        let speaks = |json: &String| {
            let mut named = Vec::new();
            serde_json::from_str(json).iter().for_each(|json| named_in("", json, &mut named));
            named.iter().any(|other| other == name)
        };
        self.documents.iter().filter(|(other, json)| *other != name && speaks(json)).map(|(other, _)| other).collect()
    }
}

/// The documents that a value under a key speaks of.
fn named_in(key: &str, value: &Value, found: &mut Vec<Name>) {
    match value {
        Value::String(text) => {
            let kind = match key {
                "trait" => Some("traits"),
                "segment" | "audience" => Some("segments"),
                "journey" => Some("journeys"),
                "channel" => Some("channels"),
                _ => None,
            };
            found.extend(kind.map(|kind| format!("{kind}/{text}")));
            found.extend(text.split("computed.").skip(1).map(|rest| {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                format!("traits/{}", &rest[..end])
            }));
        }
        Value::Array(items) => items.iter().for_each(|item| named_in(key, item, found)),
        Value::Object(map) => map.iter().for_each(|(key, value)| named_in(key, value, found)),
        _ => {}
    }
}

/// Versions that began with a record that stands at a position and was written at a clock.
pub fn stamp(versions: &mut BTreeMap<Name, Version>, position: u64, clock: Millis) {
    for version in versions.values_mut() {
        version.since.get_or_insert(clock);
        version.position.get_or_insert(position);
    }
}

/// Definitions without fault, their templates too.
fn checked(text: &str) -> Result<Definitions, Vec<Problem>> {
    let mut problems = templates::faults(text);
    let definitions = Definitions::parse(text).map_or_else(
        |others| {
            problems.extend(others);
            None
        },
        |(definitions, _)| Some(definitions),
    );
    problems.sort();
    definitions.filter(|_| problems.is_empty()).ok_or(problems)
}

/// Whether ids stand in the log as pseudonyms or as they were sent is so for good: people would be two otherwise, and
/// those of before found by nobody.
fn keeps_ids(before: &Definitions, after: &Definitions, text: &str) -> Result<(), Vec<Problem>> {
    if before.privacy.ids == after.privacy.ids {
        return Ok(());
    }
    let stand = if before.privacy.ids { "as pseudonyms" } else { "as they were sent" };
    let path = "privacy.pseudonymise".to_owned();
    let message =
        format!("ids stand in this log {stand}, and cannot come otherwise from now on; begin another log with --data");
    Err(vec![Problem { line: line_of(text, &path).unwrap_or(1), path, message, nearest: None }])
}

/// The documents of a text.
fn documents(text: &str) -> BTreeMap<Name, String> {
    let mut documents = BTreeMap::new();
    for (section, json) in sections(text) {
        match is_by_name(&section) {
            Some(true) => {
                let named = written(text, &section).into_iter();
                documents.extend(named.map(|(name, json)| (format!("{section}/{name}"), json)));
            }
            _ => drop(documents.insert(section, json.get().to_owned())),
        }
    }
    documents
}

fn sections(text: &str) -> BTreeMap<String, Box<RawValue>> {
    let json = document(text).unwrap_or_default();
    serde_json::from_str(&json).unwrap_or_default()
}

/// The file with what was given in place of what it says.
fn composed(file: &str, given: &Given) -> String {
    if given.is_empty() {
        return file.to_owned();
    }
    let raw = |json: String| RawValue::from_string(json).expect("what was read as JSON is written as JSON");
    let mut whole = sections(file);
    let mut named: BTreeMap<&str, BTreeMap<String, Box<RawValue>>> = BTreeMap::new();
    for (name, document) in given {
        let (section, name) = name.split_once('/').unwrap_or((name, ""));
        if is_by_name(section) == Some(true) {
            let things = named.entry(section).or_insert_with(|| {
                let written = written(file, section).into_iter();
                written.map(|(name, json)| (name, raw(json))).collect()
            });
            match document {
                Some(document) => drop(things.insert(name.to_owned(), document.clone())),
                None => drop(things.remove(name)),
            }
        } else if let Some(document) = document {
            whole.insert(section.to_owned(), document.clone());
        } else {
            whole.remove(section);
        }
    }
    for (section, things) in named {
        whole.insert(section.to_owned(), raw(serde_json::to_string(&things).expect("keys are strings")));
    }
    serde_json::to_string(&whole).expect("keys are strings")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "version: 1
traits: { spent: { sum: properties.value, of: purchase } }
segments:
  vip: { trait: spent, at_least: 3 }
  known: { visitor: known }
campaigns:
  thanks: { when: { segment: vip }, channel: popup, template: 'thanks' }
  hello: { when: { event: page_view }, audience: known, channel: popup, template: 'hello' }
channels: { popup: { deliver: sse } }
";

    fn json(text: &str) -> Option<Box<RawValue>> {
        RawValue::from_string(text.to_owned()).ok()
    }

    #[test]
    fn what_was_given_stands_over_the_file_and_counts_versions() {
        let mut first = Book::open(FILE, None).unwrap();
        first.stamp(5, 100);
        assert_eq!((first.version("segments", "vip"), first.active_since("thanks")), (1, 100));
        let mut next = first.with("traits/spent", json(r#"{"count":"purchase"}"#)).unwrap();
        next.stamp(9, 200);
        assert_eq!((next.version("traits", "spent"), next.version("segments", "vip")), (2, 1));
        // A campaign means something else when what its segment reads does; another does not.
        assert_eq!((next.active_since("thanks"), next.active_since("hello")), (200, 100));
        let kept = next.defined();
        let again = Book::open(FILE, Some(&kept)).unwrap();
        assert_eq!(again.defined(), kept);
        assert_eq!(again.document("traits/spent").0, Some(r#"{"count":"purchase"}"#));
        // The file changes under it.
        let other = Book::open(&FILE.replace("at_least: 3", "at_least: 4"), Some(&kept)).unwrap();
        assert_eq!((other.version("segments", "vip"), other.version("traits", "spent")), (2, 2));
        assert_eq!(other.document("segments/vip").1.and_then(|version| version.since), None);
    }

    #[test]
    fn what_others_speak_of_cannot_be_taken_away() {
        let book = Book::open(FILE, None).unwrap();
        assert_eq!(book.referrers("segments/vip"), ["campaigns/thanks"]);
        assert_eq!(book.referrers("traits/spent"), ["segments/vip"]);
        assert_eq!(book.referrers("channels/popup"), ["campaigns/hello", "campaigns/thanks"]);
        let gone = book.with("campaigns/thanks", None).unwrap().with("segments/vip", None).unwrap();
        assert_eq!(gone.document("segments/vip").0, None);
        assert!(gone.plan.segment("vip").is_none());
    }
}
