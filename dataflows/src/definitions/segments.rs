//! Segments: the closed tree of conditions [`Segment`], and how it is read.

use serde::{Deserialize, Serialize};

use super::reader::{At, Fields, Reader, Target};
use crate::condition::Condition;
use crate::number::Number;
use crate::time::Millis;
use crate::value::Value;

/// Who belongs to a segment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Segment {
    /// A trait passes a test: the computed one of that name, else the told one.
    Trait {
        /// The trait's name.
        name: String,
        /// The test.
        test: TraitTest,
    },
    /// The profile is such a visitor.
    Visitor(Visitor),
    /// So many sessions.
    Sessions {
        /// How many.
        test: CountTest,
        /// Only those that began in `(t - within, t]`.
        within: Option<Millis>,
    },
    /// A journey is in a state.
    Journey {
        /// The journey.
        journey: String,
        /// The state.
        state: String,
    },
    /// A member of another segment.
    Segment(String),
    /// So many events; `not_performed` is this with exactly 0.
    Performed {
        /// The event's name.
        event: String,
        /// What must hold of each (`where`).
        condition: Option<Condition>,
        /// How many; when not written, at least 1.
        test: CountTest,
        /// Only those in `(t - within, t]`.
        within: Option<Millis>,
    },
    /// All of them; at least one is written.
    All(Vec<Segment>),
    /// One of them; at least one is written.
    Any(Vec<Segment>),
    /// Not this.
    Not(Box<Segment>),
    /// Events one after another.
    Sequence {
        /// The steps; at least one.
        steps: Vec<Step>,
        /// What must not follow the last step.
        absence: Option<Absence>,
        /// Only if completed in `(t - recent, t]`; none: once true it stays.
        recent: Option<Millis>,
    },
}

/// A step of a sequence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Step {
    /// The event's name.
    pub event: String,
    /// What must hold of each (`where`).
    pub condition: Option<Condition>,
    /// How many of them, at least 1.
    pub times: u64,
    /// The span, exclusive, from the last event of the step before (on the first step: from its own first event).
    pub within: Option<Millis>,
}

/// The end of a sequence that waits for an event not to come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Absence {
    /// The event's name.
    pub event: String,
    /// What must hold of it (`where`) to count.
    pub condition: Option<Condition>,
    /// How long it must not come.
    pub within: Millis,
}

/// A test of a trait's value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TraitTest {
    /// A number, this or more.
    AtLeast(Number),
    /// A number, this or less.
    AtMost(Number),
    /// A number, more than this.
    Above(Number),
    /// A number, less than this.
    Below(Number),
    /// This boolean, number or string.
    Equals(Value),
    /// One of these booleans, numbers or strings; at least one is written.
    OneOf(Vec<Value>),
    /// There and not null; `false`: absent or null.
    Exists(bool),
}

/// A test of a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CountTest {
    /// This or more.
    AtLeast(u64),
    /// This or less.
    AtMost(u64),
    /// Exactly this.
    Exactly(u64),
}

/// A kind of visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Visitor {
    /// Exactly one session, not known, not paying.
    FirstTime,
    /// Two or more sessions.
    Returning,
    /// Has a known id.
    Known,
    /// Has a conversion.
    Paying,
}

impl Visitor {
    /// Every kind with its name, in the order in which profiles list them.
    pub const ALL: [(&str, Visitor); 4] = [
        ("first_time", Visitor::FirstTime),
        ("returning", Visitor::Returning),
        ("known", Visitor::Known),
        ("paying", Visitor::Paying),
    ];
}

/// The kinds of condition, each by the key that only it has.
const KINDS: [&str; 11] = [
    "trait",
    "visitor",
    "sessions",
    "journey",
    "segment",
    "performed",
    "not_performed",
    "all",
    "any",
    "not",
    "sequence",
];

const TRAIT_TESTS: [&str; 7] = ["at_least", "at_most", "above", "below", "equals", "one_of", "exists"];
const COUNT_TESTS: [&str; 3] = ["at_least", "at_most", "exactly"];

/// Reads one condition of a segment, with all that it holds.
pub(super) fn segment(reader: &mut Reader, at: &At<'_>) -> Option<Segment> {
    let kind = kind(reader, at)?;
    match kind {
        "trait" => trait_condition(reader, at),
        "visitor" => {
            let fields = reader.fields(at, &["visitor"])?;
            fields.required(reader, kind, |reader, at| reader.choice(at, &Visitor::ALL)).map(Segment::Visitor)
        }
        "sessions" => reader.fields(at, &["sessions"])?.required(reader, kind, sessions),
        "journey" => {
            let fields = reader.fields(at, &["journey", "state"])?;
            let (journey, state) = journey_state(reader, &fields)?;
            Some(Segment::Journey { journey, state })
        }
        "segment" => {
            reader.fields(at, &["segment"])?.required(reader, kind, Reader::segment_name).map(Segment::Segment)
        }
        "performed" => performed(reader, at),
        "not_performed" => not_performed(reader, at),
        "all" => reader.fields(at, &["all"])?.required(reader, kind, branches).map(Segment::All),
        "any" => reader.fields(at, &["any"])?.required(reader, kind, branches).map(Segment::Any),
        "not" => {
            let inner = reader.fields(at, &["not"])?.required(reader, kind, segment)?;
            Some(Segment::Not(Box::new(inner)))
        }
        _ => sequence(reader, at),
    }
}

/// Which kind of condition this is: exactly one of the keys that name one.
fn kind(reader: &mut Reader, at: &At<'_>) -> Option<&'static str> {
    let keys = at.keys();
    if KINDS.iter().any(|kind| keys.contains(kind)) || keys.is_empty() {
        // All keys are allowed here: those that the kind does not have are found when it is read.
        return reader.fields(at, &keys)?.one_of(reader, &KINDS).map(|(kind, _)| kind);
    }
    // Without a kind the first key that is close to one is the slip to show.
    let slip = keys.iter().find_map(|key| Some((at.get(key)?, key, reader.nearest(key, KINDS)?)));
    match slip {
        Some((slip, key, near)) => reader.problem_near(&slip.place, format!("unknown key `{key}`"), Some(&near)),
        None => reader.problem(&at.place, format!("a condition has one of these keys: {}", KINDS.join(", "))),
    }
    None
}

/// The names of a journey and of one of its states, noted as such.
pub(super) fn journey_state(reader: &mut Reader, fields: &Fields<'_>) -> Option<(String, String)> {
    let journey = fields.required(reader, "journey", |reader, at| {
        let name = reader.name(at)?;
        reader.refers(at, Target::Journey, &name);
        Some(name)
    });
    let state = fields.required(reader, "state", |reader, at| {
        let name = reader.name(at)?;
        if let Some(journey) = &journey {
            reader.refers(at, Target::State(journey.clone()), &name);
        }
        Some(name)
    });
    Some((journey?, state?))
}

fn trait_condition(reader: &mut Reader, at: &At<'_>) -> Option<Segment> {
    let fields = reader.fields(at, &[["trait"].as_slice(), &TRAIT_TESTS].concat())?;
    let name = fields.required(reader, "trait", |reader, at| {
        let name = reader.name(at)?;
        reader.refers(at, Target::Trait, &name);
        Some(name)
    });
    let (test, at) = fields.one_of(reader, &TRAIT_TESTS)?;
    let test = match test {
        "at_least" => TraitTest::AtLeast(reader.number(&at)?),
        "at_most" => TraitTest::AtMost(reader.number(&at)?),
        "above" => TraitTest::Above(reader.number(&at)?),
        "below" => TraitTest::Below(reader.number(&at)?),
        "equals" => TraitTest::Equals(reader.scalar(&at)?),
        "one_of" => {
            let values = reader.each(&at, Reader::scalar);
            if reader.items(&at).is_empty() {
                reader.problem(&at.place, "name at least one value");
            }
            TraitTest::OneOf(values)
        }
        _ => TraitTest::Exists(reader.boolean(&at)?),
    };
    Some(Segment::Trait { name: name?, test })
}

fn sessions(reader: &mut Reader, at: &At<'_>) -> Option<Segment> {
    let fields = reader.fields(at, &[COUNT_TESTS.as_slice(), &["within"]].concat())?;
    let within = fields.optional(reader, "within", Reader::window);
    Some(Segment::Sessions { test: count_test(reader, &fields)?, within })
}

fn count_test(reader: &mut Reader, fields: &Fields<'_>) -> Option<CountTest> {
    let (test, at) = fields.one_of(reader, &COUNT_TESTS)?;
    let count = reader.count(&at, 0)?;
    Some(match test {
        "at_least" => CountTest::AtLeast(count),
        "at_most" => CountTest::AtMost(count),
        _ => CountTest::Exactly(count),
    })
}

/// `times: 3` is at least 3; else a map with one test.
fn times(reader: &mut Reader, at: &At<'_>) -> Option<CountTest> {
    if at.node.scalar().is_some() {
        return reader.count(at, 0).map(CountTest::AtLeast);
    }
    let fields = reader.fields(at, &COUNT_TESTS)?;
    count_test(reader, &fields)
}

fn performed(reader: &mut Reader, at: &At<'_>) -> Option<Segment> {
    let fields = reader.fields(at, &["performed", "where", "times", "within"])?;
    let event = fields.required(reader, "performed", Reader::event);
    let condition = fields.optional(reader, "where", Reader::condition);
    let test = fields.optional(reader, "times", times).unwrap_or(CountTest::AtLeast(1));
    let within = fields.optional(reader, "within", Reader::window);
    Some(Segment::Performed { event: event?, condition, test, within })
}

fn not_performed(reader: &mut Reader, at: &At<'_>) -> Option<Segment> {
    let fields = reader.fields(at, &["not_performed", "where", "within"])?;
    let event = fields.required(reader, "not_performed", Reader::event);
    let condition = fields.optional(reader, "where", Reader::condition);
    let within = fields.optional(reader, "within", Reader::window);
    Some(Segment::Performed { event: event?, condition, test: CountTest::Exactly(0), within })
}

fn branches(reader: &mut Reader, at: &At<'_>) -> Option<Vec<Segment>> {
    let branches = reader.each(at, segment);
    if reader.items(at).is_empty() {
        reader.problem(&at.place, "write at least one condition");
    }
    Some(branches)
}

fn sequence(reader: &mut Reader, at: &At<'_>) -> Option<Segment> {
    let fields = reader.fields(at, &["sequence", "recent"])?;
    let recent = fields.optional(reader, "recent", Reader::span);
    let list = fields.get("sequence")?;
    let mut items = reader.items(&list);
    // Only the last step may be one that waits for nothing to happen.
    let absence = items.pop_if(|last| last.has("not_performed")).map(|last| absence(reader, &last));
    let count = items.len();
    let steps: Vec<Step> = items.iter().filter_map(|item| step(reader, item)).collect();
    if count == 0 {
        reader.problem(&list.place, "a sequence begins with a step that is performed");
    }
    let absence = match absence {
        Some(absence) => Some(absence?),
        None => None,
    };
    Some(Segment::Sequence { steps, absence, recent })
}

fn step(reader: &mut Reader, at: &At<'_>) -> Option<Step> {
    if at.has("not_performed") {
        reader.problem(&at.place, "`not_performed` can only be the last step of a sequence");
        return None;
    }
    let fields = reader.fields(at, &["performed", "where", "times", "within"])?;
    let event = fields.required(reader, "performed", Reader::event);
    let condition = fields.optional(reader, "where", Reader::condition);
    let times = fields.optional(reader, "times", step_times).unwrap_or(1);
    let within = fields.optional(reader, "within", Reader::window);
    Some(Step { event: event?, condition, times, within })
}

/// A step asks for some events or more, never for few.
fn step_times(reader: &mut Reader, at: &At<'_>) -> Option<u64> {
    if at.node.scalar().is_some() {
        return reader.count(at, 1);
    }
    let fields = reader.fields(at, &["at_least"])?;
    fields.required(reader, "at_least", |reader, at| reader.count(at, 1))
}

fn absence(reader: &mut Reader, at: &At<'_>) -> Option<Absence> {
    let fields = reader.fields(at, &["not_performed", "where", "within"])?;
    let event = fields.required(reader, "not_performed", Reader::event);
    let condition = fields.optional(reader, "where", Reader::condition);
    let within = fields.required(reader, "within", Reader::window);
    Some(Absence { event: event?, condition, within: within? })
}
