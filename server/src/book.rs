//! The book of definitions: what the file says and what was given since, document by document, each with its version.
//!
//! What was given at run time stands in place of what the file says under that name, also when the file changes. All of
//! it is written down in the log with each change, so the last such record is enough to have the book again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dataflows::definitions::{Definitions, Problem, document, is_by_name, line_of, written};
use dataflows::json::canonical;
use dataflows::plan::{Horizons, Plan};
use dataflows::protocol::Terms;
use dataflows::time::Millis;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::record::{Defined, Sight};
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
    /// What each of the documents speaks of.
    named: BTreeMap<Name, Vec<Name>>,
    versions: BTreeMap<Name, Version>,
    sight: Sight,
    /// Until the clock is known at which it comes: the definitions that are new, and how long things were kept before.
    unsettled: Option<(Vec<String>, Option<Millis>)>,
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
        let sight = last.map(|last| last.sight.clone());
        let text = composed(file, &given);
        let plan = Plan::new(Arc::new(checked(&text)?));
        if let Some((before, _)) = last.and_then(|last| Definitions::parse(&last.text).ok()) {
            keeps_ids(&before, &plan.definitions, &text)?;
        }
        Ok(Book::of(file.to_owned(), given, text, plan, versions, &before).after(&before, sight))
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
        let sight = Sight { retention: plan.definitions.retention, ..Sight::default() };
        let (plan, unsettled) = (Arc::new(plan), None);
        let named = documents.iter().map(|(name, json)| (name.clone(), named_in(json))).collect();
        Book { file, given, text, documents, named, versions, sight, unsettled, position: None, plan, templates }
    }

    /// The same where it comes after documents that saw this much: what stands goes on to, and what is new sees what is
    /// left when it comes. None: it is the first, and sees everything.
    fn after(mut self, before: &BTreeMap<Name, String>, sight: Option<Sight>) -> Book {
        if let Some(Sight { retention, gone, horizons }) = sight {
            let (carried, new) = carried(&horizons, before, &self.documents);
            self.unsettled = Some((new, retention));
            self.sees(Sight { gone, horizons: carried, ..self.sight.clone() });
        }
        self
    }

    fn sees(&mut self, sight: Sight) {
        if sight.horizons != self.plan.horizons {
            self.plan = Arc::new(self.plan.seeing(sight.horizons.clone()));
        }
        self.sight = sight;
    }

    /// It comes at a clock: what is new in it sees what retention leaves by then.
    pub fn settle(&mut self, clock: Millis) {
        let Some((new, before)) = self.unsettled.take() else { return };
        let mut sight = self.sight.clone();
        let left = |retention: Option<Millis>| retention.map(|retention| clock.saturating_sub(retention));
        sight.gone = sight.gone.max(left(before));
        if let Some(from) = sight.gone.max(left(sight.retention)) {
            sight.horizons.extend(new.into_iter().map(|name| (name, from)));
        }
        self.sees(sight);
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
        let mut book = self.followed_by(next.given.clone(), self.versions.clone(), next.text.clone())?;
        book.unsettled = None;
        book.sees(next.sight.clone());
        Ok(book)
    }

    fn followed_by(&self, given: Given, versions: BTreeMap<Name, Version>, text: String) -> Result<Book, Vec<Problem>> {
        let definitions = Arc::new(checked(&text)?);
        keeps_ids(&self.plan.definitions, &definitions, &text)?;
        let plan = self.plan.after(definitions, Horizons::new());
        let book = Book::of(self.file.clone(), given, text, plan, versions, &self.documents);
        Ok(book.after(&self.documents, Some(self.sight.clone())))
    }

    /// What is written down of it.
    pub fn defined(&self) -> Defined {
        let Terms { lateness, ids_max } = self.terms();
        let (given, versions) = (self.given.clone(), self.versions.clone());
        Defined { lateness, ids_max, text: self.text.clone(), given, versions, sight: self.sight.clone() }
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
        let found = self.with_read(&format!("campaigns/{campaign}")).into_iter().chain(settings);
        found.filter_map(|name| self.versions.get(&name)?.since).max().unwrap_or(0)
    }

    /// Up to when a document, or anything that it reads, sees no events, ms; none: it sees all of them.
    pub fn history_from(&self, name: &str) -> Option<Millis> {
        let all = self.with_read(name);
        // Of a list of rules, those of its places.
        let of = |definition: &String| {
            let list = definition.rsplit_once('/').map(|(list, _)| list);
            all.contains(definition) || list.is_some_and(|list| all.contains(list))
        };
        self.sight.horizons.iter().filter(|(definition, _)| of(definition)).map(|(_, from)| *from).max()
    }

    /// A document and those that it reads, directly or not.
    fn with_read(&self, name: &str) -> BTreeSet<Name> {
        let (mut found, mut open) = (BTreeSet::new(), vec![name.to_owned()]);
        while let Some(name) = open.pop() {
            let named = self.named.get(&name);
            if found.insert(name) {
                open.extend(named.into_iter().flatten().cloned());
            }
        }
        found
    }

    /// Documents that speak of another.
    pub fn referrers(&self, name: &str) -> Vec<&Name> {
        let others = self.named.iter().filter(|(other, _)| *other != name);
        others.filter(|(_, named)| named.iter().any(|named| named == name)).map(|(other, _)| other).collect()
    }
}

/// Kinds of documents that see events, by name; touchpoints and conversions do rule by rule.
const SEEING: [&str; 4] = ["traits/", "segments/", "journeys/", "campaigns/"];

/// The horizons that stand on after a change, and the definitions that are new.
fn carried(
    horizons: &Horizons,
    before: &BTreeMap<Name, String>,
    after: &BTreeMap<Name, String>,
) -> (Horizons, Vec<String>) {
    let rules = |json: &String| -> Vec<String> {
        let rules: Vec<&RawValue> = serde_json::from_str(json).unwrap_or_default();
        rules.into_iter().map(|rule| canonical(rule.get()).unwrap_or_default()).collect()
    };
    let (mut carried, mut new) = (Horizons::new(), Vec::new());
    let mut see = |name: String, stood: Option<String>| match stood {
        Some(stood) => carried.extend(horizons.get(&stood).map(|from| (name, *from))),
        None => new.push(name),
    };
    for (name, json) in after {
        if SEEING.iter().any(|kind| name.starts_with(kind)) {
            see(name.clone(), (before.get(name) == Some(json)).then(|| name.clone()));
        } else if ["touchpoints", "conversions"].contains(&name.as_str()) {
            let stood = before.get(name).map(rules).unwrap_or_default();
            for (place, rule) in rules(json).into_iter().enumerate() {
                let stood = stood.iter().position(|other| *other == rule).map(|stood| format!("{name}/{stood}"));
                see(format!("{name}/{place}"), stood);
            }
        }
    }
    (carried, new)
}

/// The documents that a document speaks of.
fn named_in(json: &str) -> Vec<Name> {
    let mut named = Vec::new();
    serde_json::from_str(json).iter().for_each(|json| gather("", json, &mut named));
    named
}

fn gather(key: &str, value: &Value, found: &mut Vec<Name>) {
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
        Value::Array(items) => items.iter().for_each(|item| gather(key, item, found)),
        Value::Object(map) => map.iter().for_each(|(key, value)| gather(key, value, found)),
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
    fn what_is_new_sees_what_retention_has_left() {
        let day = |number: Millis| number * dataflows::time::DAY;
        let file = FILE.replace("version: 1", "version: 1\nretention: 60d\ntouchpoints: [ { event: click } ]");
        let mut first = Book::open(&file, None).unwrap();
        first.settle(day(100));
        assert!(first.plan.horizons.is_empty());
        let mut next = first.with("traits/spent", json(r#"{"count":"purchase"}"#)).unwrap();
        next.settle(day(200));
        next.settle(day(300));
        assert_eq!(next.plan.horizons, Horizons::from([("traits/spent".to_owned(), day(140))]));
        // Whatever reads it knows no more; what it is read from again is the same.
        let from = ["segments/vip", "campaigns/thanks", "segments/known"].map(|name| next.history_from(name));
        assert_eq!(from, [Some(day(140)), Some(day(140)), None]);
        assert_eq!(first.then(&next.defined()).unwrap().plan.horizons, next.plan.horizons);
        let mut again = Book::open(&file, Some(&next.defined())).unwrap();
        again.settle(day(400));
        assert_eq!(again.plan.horizons, next.plan.horizons);
        // Rules stand by themselves, wherever in their list.
        let mut rules = next.with("touchpoints", json(r#"[{"event":"tap"},{ "event": "click" }]"#)).unwrap();
        rules.settle(day(210));
        assert_eq!(rules.plan.horizons.get("touchpoints/0"), Some(&day(150)));
        assert_eq!((rules.plan.horizons.len(), rules.history_from("touchpoints")), (2, Some(day(150))));
        // What was gone before does not come back when everything is to be kept.
        let unlimited = file.replace("60d", "unlimited");
        let mut unlimited = Book::open(&unlimited, Some(&rules.defined())).unwrap();
        unlimited.settle(day(220));
        let mut last = unlimited.with("segments/known", json(r#"{"visitor":"paying"}"#)).unwrap();
        last.settle(day(500));
        assert_eq!(last.plan.horizons.get("segments/known"), Some(&day(160)));
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
