//! Who a person is: the ids they are known by, what was told of them, their consent, the class of visitor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use compact_str::CompactString;

use crate::definitions::Visitor;
use crate::event::{Event, Kind};
use crate::json::{Next, Reader, canonical};
use crate::time::Millis;
use crate::value::Value;

use super::{Instant, State};

/// What marks keep of a person.
#[derive(Clone, Debug, Default)]
pub struct Person {
    /// Their first accepted event, ms.
    pub first_seen: Option<Millis>,
    /// Their last accepted event, ms.
    pub last_seen: Millis,
    /// The latest `context.timezone`.
    pub timezone: Option<CompactString>,
    /// Ids that some event bore as `userId`.
    known: Arc<BTreeSet<CompactString>>,
    told: Arc<BTreeMap<CompactString, Told>>,
    consent: Arc<BTreeMap<CompactString, Consent>>,
    class: [bool; 4],
}

/// A trait told by identify: its JSON text, and its value as rules read it.
#[derive(Clone, Debug)]
struct Told {
    json: Box<str>,
    value: Value,
    /// Values at the paths inside it that conditions read.
    inside: Box<[(Box<[CompactString]>, Value)]>,
}

/// An answer to a question of consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consent {
    /// The answer.
    pub granted: bool,
    /// Since when it has been this answer, ms.
    pub since: Millis,
}

/// The kind of a call as rules read it.
pub(super) fn kind_value(kind: Kind) -> &'static Value {
    static VALUES: std::sync::LazyLock<[Value; 6]> =
        std::sync::LazyLock::new(|| Kind::ALL.map(|kind| Value::text(kind.name())));
    &VALUES[kind as usize]
}

impl Person {
    /// What was told under a top-level key, or at a path inside it.
    pub fn told(&self, key: &str, inside: &[CompactString]) -> Option<&Value> {
        let told = self.told.get(key)?;
        if inside.is_empty() {
            return Some(&told.value);
        }
        told.inside.iter().find(|(path, _)| **path == *inside).map(|(_, value)| value)
    }

    /// All that was told, as JSON texts by key.
    pub fn all_told(&self) -> impl Iterator<Item = (&CompactString, &str)> {
        self.told.iter().map(|(key, told)| (key, &*told.json))
    }

    /// Whether some event bore this id as `userId`.
    pub fn is_known(&self, id: &CompactString) -> bool {
        self.known.contains(id)
    }

    /// All answers of consent, by purpose.
    pub fn all_consent(&self) -> impl Iterator<Item = (&CompactString, &Consent)> {
        self.consent.iter()
    }

    /// Whether a purpose was granted; what was never answered is not.
    pub fn consents(&self, purpose: &str) -> bool {
        self.consent.get(purpose).is_some_and(|consent| consent.granted)
    }
}

impl State {
    /// Whether the person is of a class.
    pub fn is(&self, class: Visitor) -> bool {
        let sessions = self.tapes.sessions.len();
        let paying = self.core.money.standing > 0;
        match class {
            Visitor::FirstTime => sessions == 1 && self.core.person.known.is_empty() && !paying,
            Visitor::Returning => sessions >= 2,
            Visitor::Known => !self.core.person.known.is_empty(),
            Visitor::Paying => paying,
        }
    }
}

impl Instant<'_> {
    /// Notes what an event tells of its person.
    pub(super) fn tell(&mut self, event: &Event) {
        let plan = self.plan;
        let person = &mut self.state.core.person;
        person.last_seen = self.at;
        if event.known && !person.known.contains(&event.own) {
            Arc::make_mut(&mut person.known).insert(event.own.clone());
        }
        if let Some(told) = event.context.as_ref().map(|context| &context.told).filter(|told| !told.is_empty()) {
            let all = Arc::make_mut(&mut person.told);
            for (key, json) in told {
                let value = crate::event::value(&mut Reader::new(json)).expect("it was read when it came in");
                if value == Value::Null {
                    all.remove(key);
                } else {
                    let paths = plan.told_paths.iter().filter(|(wanted, _)| wanted == key);
                    let inside =
                        paths.filter_map(|(_, path)| Some((path.clone(), value_inside(json, path)?))).collect();
                    all.insert(
                        key.clone(),
                        Told { json: canonical(json).expect("it was read when it came in").into(), value, inside },
                    );
                }
            }
            self.wake_all(&plan.told_readers);
        }
        let person = &mut self.state.core.person;
        if let Some(context) = &event.context {
            if context.timezone.is_some() {
                person.timezone.clone_from(&context.timezone);
            }
            for (purpose, granted) in &context.consent {
                if person.consent.get(purpose).is_none_or(|consent| consent.granted != *granted) {
                    let consent = Consent { granted: *granted, since: self.at };
                    Arc::make_mut(&mut person.consent).insert(purpose.clone(), consent);
                }
            }
        }
        self.classify();
    }

    /// Has segments judged again that read the class of visitor, if it changed.
    pub(super) fn classify(&mut self) {
        let class =
            [Visitor::FirstTime, Visitor::Returning, Visitor::Known, Visitor::Paying].map(|class| self.state.is(class));
        if class != self.state.core.person.class {
            self.state.core.person.class = class;
            self.wake_all(&self.plan.visitor_readers);
        }
    }
}

/// The value at a path inside a JSON text.
fn value_inside(json: &str, path: &[CompactString]) -> Option<Value> {
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
