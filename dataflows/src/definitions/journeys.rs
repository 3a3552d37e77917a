//! Journeys: states, transitions and timers; how they are read, and what can be checked inside one journey alone.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::reader::{At, Place, Reader};
use crate::condition::Condition;
use crate::time::Millis;

/// A state machine per profile.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Journey {
    /// The state of a new profile; always one of `states`.
    pub start: String,
    /// The states by name; at least one.
    pub states: BTreeMap<String, State>,
}

/// One state of a journey.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct State {
    /// Ways out by event; the first that matches is taken.
    pub transitions: Vec<Transition>,
    /// Ways out by time, and events emitted by time.
    pub timers: Vec<Timer>,
}

/// A way out of a state by an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Transition {
    /// The event's name.
    pub event: String,
    /// What must hold of it (`where`).
    pub condition: Option<Condition>,
    /// The segment that the profile must be in.
    pub segment: Option<String>,
    /// The state entered; always one of the journey's.
    pub to: String,
}

/// What happens some time after an anchor. At least one of `emit` and `to` is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timer {
    /// How long after the anchor; more than 0.
    pub after: Millis,
    /// The anchor; when not written, entry to the state.
    pub since: Since,
    /// The event emitted.
    pub emit: Option<String>,
    /// The state entered; always one of the journey's.
    pub to: Option<String>,
}

/// From when a timer counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Since {
    /// Entry to the state.
    Entry,
    /// The profile's latest activity.
    AnyEvent,
    /// The profile's latest event of this name.
    Event(String),
}

/// Reads the journey called `name`.
pub(super) fn journey(reader: &mut Reader, name: &str, at: &At<'_>) -> Option<Journey> {
    let fields = reader.fields(at, &["start", "states"])?;
    let named = fields.required(reader, "states", |reader, at| {
        let named = reader.named(at);
        if named.is_empty() {
            reader.problem(&at.place, "a journey has at least one state");
        }
        Some(named)
    })?;
    let names: BTreeSet<String> = named.iter().map(|(name, _)| name.clone()).collect();
    reader.defined.states.insert(name.into(), names.clone());
    let start = fields.required(reader, "start", |reader, at| state_name(reader, at, &names));
    let mut journey = Journey { start: String::new(), states: BTreeMap::new() };
    let mut places = Vec::new();
    for (name, at) in named {
        places.push((name.clone(), at.place.clone()));
        journey.states.extend(state(reader, &at, &names).map(|state| (name, state)));
    }
    journey.start = start?;
    warn_of_unreachable(reader, &journey, &places);
    Some(journey)
}

fn state_name(reader: &mut Reader, at: &At<'_>, names: &BTreeSet<String>) -> Option<String> {
    let name = reader.name(at)?;
    // Without any states that itself is the problem.
    if !names.is_empty() && !names.contains(&name) {
        let near = reader.nearest(&name, names.iter().map(String::as_str));
        reader.problem_near(&at.place, format!("there is no state `{name}` in this journey"), near.as_deref());
    }
    Some(name)
}

fn state(reader: &mut Reader, at: &At<'_>, names: &BTreeSet<String>) -> Option<State> {
    let fields = reader.fields(at, &["transitions", "timers"])?;
    let transitions = fields.list(reader, "transitions", |reader, at| transition(reader, at, names));
    let timers = fields.list(reader, "timers", |reader, at| timer(reader, at, names));
    Some(State { transitions, timers })
}

fn transition(reader: &mut Reader, at: &At<'_>, names: &BTreeSet<String>) -> Option<Transition> {
    let fields = reader.fields(at, &["event", "where", "segment", "to"])?;
    let event = fields.required(reader, "event", Reader::event);
    let condition = fields.optional(reader, "where", Reader::condition);
    let segment = fields.optional(reader, "segment", Reader::segment_name);
    let to = fields.required(reader, "to", |reader, at| state_name(reader, at, names));
    Some(Transition { event: event?, condition, segment, to: to? })
}

fn timer(reader: &mut Reader, at: &At<'_>, names: &BTreeSet<String>) -> Option<Timer> {
    let fields = reader.fields(at, &["after", "since", "emit", "to"])?;
    let after = fields.required(reader, "after", Reader::window);
    let since = fields.optional(reader, "since", since).unwrap_or(Since::Entry);
    let emit = fields.optional(reader, "emit", |reader, at| {
        let name = reader.name(at)?;
        reader.uses_event(at, &name, true);
        Some(name)
    });
    let to = fields.optional(reader, "to", |reader, at| state_name(reader, at, names));
    if fields.get("emit").is_none() && fields.get("to").is_none() {
        reader.problem(&at.place, "a timer does something: give it `emit`, `to` or both");
    }
    Some(Timer { after: after?, since, emit, to })
}

fn since(reader: &mut Reader, at: &At<'_>) -> Option<Since> {
    let name = reader.name(at)?;
    Some(match name.as_str() {
        "entry" => Since::Entry,
        "any_event" => Since::AnyEvent,
        _ => {
            reader.uses_event(at, &name, false);
            Since::Event(name)
        }
    })
}

fn warn_of_unreachable(reader: &mut Reader, journey: &Journey, places: &[(String, Place)]) {
    let mut reached = BTreeSet::new();
    let mut waiting = vec![&journey.start];
    while let Some(name) = waiting.pop() {
        if let (true, Some(state)) = (reached.insert(name), journey.states.get(name)) {
            waiting.extend(state.transitions.iter().map(|transition| &transition.to));
            waiting.extend(state.timers.iter().filter_map(|timer| timer.to.as_ref()));
        }
    }
    for (name, place) in places.iter().filter(|(name, _)| !reached.contains(name)) {
        reader.warning(place, format!("nothing leads from `{}` to the state `{name}`", journey.start), None);
    }
}
