//! Who a person is: the ids they are known by, what was told of them, their consent, the class of visitor.

use std::collections::BTreeMap;

use ecow::EcoString;

use crate::definitions::Visitor;
use crate::event::{self, ConsentSource, Context, Event, Kind};
use crate::json::{Next, Reader, canonical};
use crate::plan::Plan;
use crate::time::Millis;
use crate::value::Value;

use super::{Instant, Root, State};

/// What was told of a person.
#[derive(Clone, Debug, Default)]
pub struct Person {
    told: BTreeMap<EcoString, Told>,
    consent: BTreeMap<EcoString, Consent>,
    timezone: Option<EcoString>,
}

/// Nothing was told.
static NOBODY: Person = Person { told: BTreeMap::new(), consent: BTreeMap::new(), timezone: None };

/// What was there before a change of what is told.
#[derive(Clone, Debug)]
pub enum Was {
    /// A trait.
    Told(EcoString, Option<Told>),
    /// An answer of consent.
    Consent(EcoString, Option<Consent>),
    /// The time zone.
    Timezone(Option<EcoString>),
}

/// A trait told by identify: its JSON text, and its value as rules read it.
#[derive(Clone, Debug)]
pub struct Told {
    json: Box<str>,
    value: Value,
    /// Values at the paths inside it that conditions read.
    inside: Box<[(Box<[EcoString]>, Value)]>,
}

/// An answer to a question of consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consent {
    /// The answer.
    pub granted: bool,
    /// Since when it has been this answer, ms.
    pub since: Millis,
    /// Whose field of the call that first said so.
    pub source: ConsentSource,
    /// That call.
    pub root: Root,
}

/// The kind of a call as rules read it.
pub(crate) fn kind_value(kind: Kind) -> &'static Value {
    static VALUES: std::sync::LazyLock<[Value; 6]> =
        std::sync::LazyLock::new(|| Kind::ALL.map(|kind| Value::text(kind.name())));
    &VALUES[kind as usize]
}

impl Person {
    /// Takes one change back.
    pub(super) fn put_back(&mut self, was: Was) {
        match was {
            Was::Told(key, was) => drop(set(&mut self.told, key, was)),
            Was::Consent(purpose, was) => drop(set(&mut self.consent, purpose, was)),
            Was::Timezone(was) => self.timezone = was,
        }
    }

    /// Notes what a call tells; gives what was there before.
    fn hear(&mut self, context: &Context, at: Millis, root: Root, plan: &Plan, was: &mut Vec<Was>) {
        for (key, json) in &context.told {
            let value = crate::event::value(&mut Reader::new(json)).expect("it was read when it came in");
            let told = (value != Value::Null).then(|| Told::new(key, json, value, plan));
            was.push(Was::Told(key.clone(), set(&mut self.told, key.clone(), told)));
        }
        if context.timezone.is_some() && context.timezone != self.timezone {
            was.push(Was::Timezone(std::mem::replace(&mut self.timezone, context.timezone.clone())));
        }
        for event::Consent { purpose, granted, source } in &context.consent {
            if self.consent.get(purpose).is_none_or(|consent| consent.granted != *granted) {
                let consent = Consent { granted: *granted, since: at, source: *source, root };
                was.push(Was::Consent(purpose.clone(), self.consent.insert(purpose.clone(), consent)));
            }
        }
    }
}

impl Told {
    fn new(key: &str, json: &str, value: Value, plan: &Plan) -> Told {
        let paths = plan.told_paths.iter().filter(|(wanted, _)| wanted == key);
        let inside = paths.filter_map(|(_, path)| Some((path.clone(), value_inside(json, path)?))).collect();
        Told { json: canonical(json).expect("it was read when it came in").into(), value, inside }
    }
}

fn set<V>(map: &mut BTreeMap<EcoString, V>, key: EcoString, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}

impl State {
    fn person(&self) -> &Person {
        self.person.as_deref().unwrap_or(&NOBODY)
    }

    /// What was told under a top-level key, or at a path inside it.
    pub fn told(&self, key: &str, inside: &[EcoString]) -> Option<&Value> {
        let told = self.person().told.get(key)?;
        if inside.is_empty() {
            return Some(&told.value);
        }
        told.inside.iter().find(|(path, _)| **path == *inside).map(|(_, value)| value)
    }

    /// All that was told, as JSON texts by key.
    pub fn all_told(&self) -> impl Iterator<Item = (&EcoString, &str)> {
        self.person().told.iter().map(|(key, told)| (key, &*told.json))
    }

    /// All answers of consent, by purpose.
    pub fn all_consent(&self) -> impl Iterator<Item = (&EcoString, &Consent)> {
        self.person().consent.iter()
    }

    /// Whether a purpose was granted; what was never answered is not.
    pub fn consents(&self, purpose: &str) -> bool {
        self.person().consent.get(purpose).is_some_and(|consent| consent.granted)
    }

    /// The latest `context.timezone`.
    pub fn timezone(&self) -> Option<&str> {
        self.person().timezone.as_deref()
    }

    /// Whether some event bore this id as `userId`.
    pub fn is_known(&self, id: &str, entries: &[Event]) -> bool {
        self.tapes.known.iter().any(|root| entries[root.0 as usize].own == id)
    }

    /// Whether the person is of a class.
    pub fn is(&self, class: Visitor) -> bool {
        let (sessions, known, paying) = (self.session_count(), !self.tapes.known.is_empty(), self.core.standing > 0);
        match class {
            Visitor::FirstTime => sessions == 1 && !known && !paying,
            Visitor::Returning => sessions >= 2,
            Visitor::Known => known,
            Visitor::Paying => paying,
        }
    }
}

impl Instant<'_> {
    /// Notes what an event tells of its person.
    pub(super) fn tell(&mut self, event: &Event, place: usize) {
        self.state.core.last_seen = self.at;
        if event.known {
            // The event before is near, and most often of the same id.
            let again = place.checked_sub(1).map(|before| &self.entries[before]);
            let again = again.is_some_and(|before| before.known && before.own == event.own);
            if !again && !self.state.is_known(&event.own, self.entries) {
                self.state.tapes.known.push(Root(place as u32));
            }
        }
        if let Some(details) = event.details.as_deref().filter(|details| details.tells) {
            let state = &mut *self.state;
            let person = state.person.get_or_insert_default();
            person.hear(&details.context, self.at, Root(place as u32), self.plan, &mut state.tapes.told);
            if !details.context.told.is_empty() {
                self.wake_all(&self.plan.told_readers);
            }
        }
    }

    /// Has segments judged again that read the class of visitor, if it changed.
    pub(super) fn classify(&mut self) {
        if self.plan.visitor_readers.is_empty() {
            return;
        }
        let sessions = self.state.session_count();
        let (known, paying) = (!self.state.tapes.known.is_empty(), self.state.core.standing > 0);
        let class = [sessions == 1, sessions >= 2, known, paying];
        if class != self.state.core.class {
            self.state.core.class = class;
            self.wake_all(&self.plan.visitor_readers);
        }
    }
}

/// The value at a path inside a JSON text.
fn value_inside(json: &str, path: &[EcoString]) -> Option<Value> {
    let mut reader = Reader::new(json);
    let Some((first, rest)) = path.split_first() else { return crate::event::value(&mut reader).ok() };
    if reader.peek().ok()? != Next::Object {
        return None;
    }
    let mut found = None;
    reader
        .object(|reader, key| {
            let text = reader.skip()?;
            if key == first.as_str() {
                found = Some(text);
            }
            Ok(())
        })
        .ok()?;
    value_inside(found?, rest)
}
