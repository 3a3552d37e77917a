//! Computed traits, such as `{ sum: properties.value, of: purchase, within: 90d }`, and how they are read.

use serde::{Deserialize, Serialize};

use super::reader::{At, Reader};
use super::yaml::Scalar;
use crate::condition::{Condition, Path};
use crate::time::Millis;

/// A value kept per profile, computed from its events or sessions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Trait {
    /// From what.
    pub of: Source,
    /// What must hold of an event (`where`); none with sessions.
    pub condition: Option<Condition>,
    /// Only what lies in `(t - within, t]`.
    pub within: Option<Millis>,
    /// What is made of it.
    pub op: TraitOp,
}

/// From what a trait is computed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Source {
    /// Events of these names: track, page and screen calls.
    Events(Vec<String>),
    /// Sessions.
    Sessions,
}

/// What a trait makes of its events or sessions. Those with a path are of events, those with a field of sessions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TraitOp {
    /// How many events or sessions.
    Count,
    /// The sum of the numbers.
    Sum(Path),
    /// The least number.
    Min(Path),
    /// The greatest number.
    Max(Path),
    /// The mean of the numbers.
    Average(Path),
    /// The value of the first event that has it.
    First(Path),
    /// The value of the last event that has it.
    Last(Path),
    /// How many different scalars.
    Unique(Path),
    /// The scalar seen most often; of several, the least.
    MostFrequent(Path),
    /// The sum over sessions.
    SessionSum(SessionField),
    /// The mean over sessions.
    SessionAverage(SessionField),
    /// On how many UTC days a session began.
    SessionUniqueDay,
}

/// A number that a session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SessionField {
    /// How many events.
    Events,
    /// From first to last event, in milliseconds.
    LengthMs,
    /// The value of its conversions.
    Value,
}

/// The ways to compute a trait.
const TRAIT_OPS: [&str; 9] = ["count", "sum", "min", "max", "average", "first", "last", "unique", "most_frequent"];

pub(super) fn computed_trait(reader: &mut Reader, at: &At<'_>) -> Option<Trait> {
    let fields = reader.fields(at, &[TRAIT_OPS.as_slice(), &["of", "where", "within"]].concat())?;
    let condition = fields.optional(reader, "where", Reader::condition);
    let within = fields.optional(reader, "within", Reader::window);
    let (op, value) = fields.one_of(reader, &TRAIT_OPS)?;
    let (of, op) = if op == "count" {
        if let Some(at) = fields.get("of") {
            reader.problem(&at.place, "`count` names its events itself, as in { count: purchase }; take out `of`");
        }
        (source(reader, &value)?, TraitOp::Count)
    } else {
        let of = fields.required(reader, "of", source);
        match of? {
            Source::Sessions => (Source::Sessions, session_op(reader, op, &value)?),
            events @ Source::Events(_) => (events, event_op(reader, op, &value)?),
        }
    };
    if let (Source::Sessions, Some(at)) = (&of, fields.get("where")) {
        reader.problem(&at.place, "`where` is about events; a trait of sessions has none");
    }
    Some(Trait { of, condition, within, op })
}

fn source(reader: &mut Reader, at: &At<'_>) -> Option<Source> {
    if at.node.scalar() == Some(Scalar::Text("session")) {
        return Some(Source::Sessions);
    }
    let events = reader.events(at)?;
    if events.is_empty() {
        reader.problem(&at.place, "name at least one event");
    } else if events.iter().any(|event| event == "session") {
        reader.problem(&at.place, "`session` stands alone; a trait is of sessions or of events");
    }
    Some(Source::Events(events))
}

fn session_op(reader: &mut Reader, op: &str, at: &At<'_>) -> Option<TraitOp> {
    let fields =
        [("events", SessionField::Events), ("length_ms", SessionField::LengthMs), ("value", SessionField::Value)];
    match op {
        "sum" => reader.choice(at, &fields).map(TraitOp::SessionSum),
        "average" => reader.choice(at, &fields).map(TraitOp::SessionAverage),
        "unique" => reader.choice(at, &[("day", ())]).map(|()| TraitOp::SessionUniqueDay),
        _ => {
            let there_are = "count, sum and average of events, length_ms or value, and unique: day";
            reader.problem(&at.place, format!("`{op}` is not for sessions; there are {there_are}"));
            None
        }
    }
}

fn event_op(reader: &mut Reader, op: &str, at: &At<'_>) -> Option<TraitOp> {
    let path = reader.path(at)?;
    Some(match op {
        "sum" => TraitOp::Sum(path),
        "min" => TraitOp::Min(path),
        "max" => TraitOp::Max(path),
        "average" => TraitOp::Average(path),
        "first" => TraitOp::First(path),
        "last" => TraitOp::Last(path),
        "unique" => TraitOp::Unique(path),
        _ => TraitOp::MostFrequent(path),
    })
}
