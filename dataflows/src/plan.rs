//! The definitions, made ready to run: names and paths numbered, rules found by event, views in dependency order.
//!
//! A plan is plain data, compiled once from checked definitions and shared by all workers. The views under `profile`
//! interpret it; nothing is generated, so a new definition is a new plan and nothing else.

mod explaining;
mod make;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ecow::EcoString;

use crate::condition::{Condition, Term};
use crate::definitions::{self, Definitions, Model, SessionField};
use crate::profile::Layout;
use crate::time::Millis;
use crate::total::{Counted, Total};
use crate::value::Value;
use crate::vocabulary::{NameId, Slot, Vocabulary};

/// By definition, such as `segments/vip`, the instant up to which it sees no event, ms; those that see everything are
/// not in it. Touchpoints and conversions go by their place: `conversions/0`.
pub type Horizons = BTreeMap<String, Millis>;

/// What a path of a condition reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// The event's name.
    Event,
    /// The call's kind; emitted events have none.
    Type,
    /// A value of the event.
    Slot(Slot),
    /// A trait told by identify, and the path inside it.
    Told(EcoString, Box<[EcoString]>),
    /// A computed trait, by number.
    Computed(usize),
}

/// A condition over numbered paths, and the computed traits it reads.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The condition.
    pub condition: Condition<Field>,
    /// The computed traits that it reads, by number.
    pub computed: Box<[usize]>,
}

/// Events that some aggregates look at: those of certain names for which a rule holds.
#[derive(Clone, Debug)]
pub struct Feed {
    /// Holds for the events that count; none: all of the names.
    pub rule: Option<Rule>,
    /// The value looked at; none: the event itself.
    pub field: Option<Field>,
    /// Whether events emitted by timers are seen.
    pub emitted: bool,
    /// Only what is later than this is seen, ms.
    pub after: Millis,
    /// The tape on which what is seen is kept, where some aggregate needs more of it than a count or a sum.
    pub kept: Option<usize>,
    /// The aggregates that it feeds.
    pub aggregates: Vec<usize>,
}

/// How values are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// How many.
    Count,
    /// The sum of numbers.
    Sum,
    /// The least number.
    Min,
    /// The greatest number.
    Max,
    /// The mean of numbers.
    Average,
    /// The first value, by event order.
    First,
    /// The last value, by event order.
    Last,
    /// How many different values.
    Unique,
    /// The value seen most often; of several the least.
    MostFrequent,
}

impl Op {
    /// Whether it needs to know each value and how often it is there.
    pub fn needs_bag(self) -> bool {
        matches!(self, Op::Min | Op::Max | Op::Unique | Op::MostFrequent)
    }

    /// Whether only numbers count.
    pub fn is_numeric(self) -> bool {
        matches!(self, Op::Sum | Op::Min | Op::Max | Op::Average)
    }
}

/// A value kept over the events of one feed: a computed trait, or how often something was performed.
#[derive(Clone, Debug)]
pub struct Aggregate {
    /// The tape on which its feed keeps what is seen, where it does.
    pub tape: usize,
    /// How values are put together.
    pub op: Op,
    /// The window, ms; none: everything.
    pub within: Option<Millis>,
    /// Its place in [`Plan::windowed`], if it has a window.
    pub window: Option<usize>,
    /// Its place among the bags, for operations that need one.
    pub bag: Option<usize>,
    /// The segments to judge again when it changes, as places in [`Plan::views`].
    pub readers: Vec<usize>,
}

/// What a computed trait is read from.
#[derive(Clone, Debug)]
pub enum TraitSource {
    /// An aggregate over events.
    Aggregate(usize),
    /// Sessions that began in a window (by number) and what is taken of them.
    Sessions(usize, SessionOp),
}

/// What a trait over sessions takes of them.
#[derive(Clone, Copy, Debug)]
pub enum SessionOp {
    /// How many.
    Count,
    /// A sum.
    Sum(SessionField),
    /// A mean.
    Average(SessionField),
    /// How many different UTC days they began on.
    Days,
}

/// A computed trait.
#[derive(Clone, Debug)]
pub struct TraitPlan {
    /// Its name.
    pub name: EcoString,
    /// Where it comes from.
    pub source: TraitSource,
}

/// A segment's condition, ready to be judged.
#[derive(Clone, Debug)]
pub enum Test {
    /// A computed trait.
    Computed(usize, definitions::TraitTest),
    /// A told trait.
    Told(EcoString, definitions::TraitTest),
    /// A class of visitor.
    Visitor(definitions::Visitor),
    /// How many sessions began in a window.
    Sessions(usize, definitions::CountTest),
    /// A journey is in a state.
    Journey(usize, usize),
    /// Membership of another segment.
    Segment(usize),
    /// How often something was performed.
    Performed(usize, definitions::CountTest),
    /// A sequence is complete.
    Sequence(usize),
    /// Every one.
    All(Vec<Test>),
    /// At least one.
    Any(Vec<Test>),
    /// Not this.
    Not(Box<Test>),
}

/// A window by whose passing something changes: what it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Window {
    /// Of an aggregate.
    Aggregate(usize),
    /// Of sessions.
    Sessions(usize),
    /// Of a sequence: its recency, or its wait for an event not to come.
    Sequence(usize),
}

/// Events one after another.
#[derive(Clone, Debug)]
pub struct SequencePlan {
    /// The steps that happen.
    pub steps: Vec<StepPlan>,
    /// The place of the first of them among the steps of all sequences.
    pub first_step: usize,
    /// What must not happen after them.
    pub absence: Option<AbsencePlan>,
    /// How long a completion counts, ms; none: for ever.
    pub recent: Option<Millis>,
    /// Only what is later than this is seen, ms.
    pub after: Millis,
    /// The segments to judge again when it changes.
    pub readers: Vec<usize>,
}

/// A step of a sequence.
#[derive(Clone, Debug)]
pub struct StepPlan {
    /// The event.
    pub name: NameId,
    /// Holds for those that count.
    pub rule: Option<Rule>,
    /// How many.
    pub times: u64,
    /// Sooner than this after the step before, ms.
    pub within: Option<Millis>,
}

/// An event that must not come.
#[derive(Clone, Debug)]
pub struct AbsencePlan {
    /// The event.
    pub name: NameId,
    /// Holds for those that count.
    pub rule: Option<Rule>,
    /// For how long, ms.
    pub within: Millis,
}

/// A segment.
#[derive(Clone, Debug)]
pub struct SegmentPlan {
    /// Its name.
    pub name: EcoString,
    /// Its condition.
    pub test: Test,
    /// The windows it reads, directly or through traits and other segments.
    pub windows: BTreeSet<Window>,
    /// Whoever has no event later than this is not seen, ms.
    pub after: Millis,
    /// The views to judge again when it changes.
    pub readers: Vec<usize>,
    /// Campaigns that begin at an entry.
    pub campaigns: Vec<usize>,
    /// The count of its members.
    pub total: usize,
}

/// A transition of a journey.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The event.
    pub name: NameId,
    /// Holds for the events that move.
    pub rule: Option<Rule>,
    /// Moves only members of this segment.
    pub segment: Option<usize>,
    /// The state to enter.
    pub to: usize,
    /// The count of moves.
    pub total: usize,
}

/// What a timer counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The entry to the state.
    Entry,
    /// The latest activity.
    Activity,
    /// The latest event of a name, by its place among the anchors.
    Event(usize),
}

/// A timer of a state.
#[derive(Clone, Debug)]
pub struct Timer {
    /// The span, ms.
    pub after: Millis,
    /// What it counts from.
    pub since: Anchor,
    /// The event it emits.
    pub emit: Option<Emission>,
    /// The state it moves to, and the count of such moves.
    pub to: Option<(usize, usize)>,
}

/// An event that a timer emits.
#[derive(Clone, Debug)]
pub struct Emission {
    /// Its name.
    pub name: NameId,
    /// Those of its properties that definitions read.
    pub values: Box<[(Slot, Value)]>,
}

/// A state of a journey.
#[derive(Clone, Debug)]
pub struct StatePlan {
    /// Its name.
    pub name: EcoString,
    /// The ways out by event, in the order of the file.
    pub transitions: Vec<Transition>,
    /// The ways out by time, in the order of the file.
    pub timers: Vec<Timer>,
    /// Campaigns that begin at an entry.
    pub campaigns: Vec<usize>,
    /// The count of profiles in it.
    pub total: usize,
}

/// A journey.
#[derive(Clone, Debug)]
pub struct JourneyPlan {
    /// Its name.
    pub name: EcoString,
    /// The state everyone begins in.
    pub start: usize,
    /// Whoever has no event later than this is not seen, ms.
    pub after: Millis,
    /// Its states, by name.
    pub states: Vec<StatePlan>,
    /// The segments to judge again when it moves.
    pub readers: Vec<usize>,
}

/// What begins a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An event.
    Event,
    /// An entry to a journey's state.
    Journey,
    /// An entry to a segment.
    Segment,
    /// A date.
    Schedule,
}

/// When a scheduled campaign is due.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// The first time, ms.
    pub from: Millis,
    /// The span between times; none: once.
    pub every: Option<Millis>,
    /// Who gets it.
    pub segment: usize,
}

impl Schedule {
    /// The first time after `at`.
    pub fn after(&self, at: Millis) -> Millis {
        match self.every {
            _ if at < self.from => self.from,
            Some(every) => self.from + ((at - self.from) / every + 1) * every,
            None => Millis::MAX,
        }
    }
}

/// A campaign.
#[derive(Clone, Debug)]
pub struct CampaignPlan {
    /// Its name.
    pub name: EcoString,
    /// What begins it.
    pub cause: Cause,
    /// Whoever has no event later than this is not seen, ms.
    pub after: Millis,
    /// For an event: holds for those that count.
    pub rule: Option<Rule>,
    /// For a date: when, and who.
    pub schedule: Option<Schedule>,
    /// Only members of this segment.
    pub audience: Option<usize>,
    /// Only with this consent.
    pub consent: Option<EcoString>,
    /// At most so many in so long, counted over these campaigns.
    pub cap: Option<(u64, Millis, Vec<usize>)>,
    /// Sent no sooner than so long after, ms.
    pub hold: Millis,
    /// Not sent between these minutes of the person's day.
    pub quiet_hours: Option<(u16, u16)>,
    /// Higher comes first where a cap lets only some through.
    pub priority: i64,
    /// The counts of intents, by status of the law.
    pub totals: [usize; 4],
}

/// A rule that makes touches.
#[derive(Clone, Debug)]
pub struct TouchRule {
    /// Only what is later than this is seen, ms.
    pub after: Millis,
    /// Holds for the events that count.
    pub rule: Option<Rule>,
    /// The channel.
    pub channel: Option<Term<Field>>,
    /// The campaign.
    pub campaign: Option<Term<Field>>,
}

/// A rule that makes conversions.
#[derive(Clone, Debug)]
pub struct ConversionRule {
    /// Only what is later than this is seen, ms.
    pub after: Millis,
    /// Its name.
    pub name: EcoString,
    /// Holds for the events that count.
    pub rule: Option<Rule>,
    /// What tells one conversion from another.
    pub id: Option<Field>,
    /// What it is worth.
    pub value: Option<Field>,
    /// The refund's id and value.
    pub refund: Option<(Field, Option<Field>)>,
}

/// What happens at an event of a name: places in the plan's lists.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Feeds to add to.
    pub feeds: Vec<usize>,
    /// Sequences to follow.
    pub sequences: Vec<usize>,
    /// Touch rules, in the order of the file.
    pub touches: Vec<usize>,
    /// Conversion rules.
    pub conversions: Vec<usize>,
    /// Conversion rules whose refund it is.
    pub refunds: Vec<usize>,
    /// Campaigns it begins.
    pub campaigns: Vec<usize>,
    /// Its place among the anchors of timers.
    pub anchor: Option<usize>,
    /// Journeys that may move, as places in [`Plan::views`].
    pub views: Vec<usize>,
    /// Whether it makes a session one of buying.
    pub buying: bool,
}

/// A view judged after each item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// A segment, by number.
    Segment(usize),
    /// A journey, by number.
    Journey(usize),
}

/// The definitions, made ready to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The definitions it was made of.
    pub definitions: Arc<Definitions>,
    /// Those that do not see everything.
    pub horizons: Horizons,
    /// Whoever has an event later than this is seen by all of them, ms.
    pub in_full_sight: Millis,
    /// What of an event is kept.
    pub vocabulary: Arc<Vocabulary>,
    /// What happens at an event, by name.
    rules: Vec<Rules>,
    /// What aggregates look at.
    pub feeds: Vec<Feed>,
    /// Values kept over events.
    pub aggregates: Vec<Aggregate>,
    /// The aggregates that have a window.
    pub windowed: Vec<usize>,
    /// How many aggregates have a bag.
    pub bags: usize,
    /// How many feeds keep what they see.
    pub keeps: usize,
    /// How many steps all sequences have.
    pub steps: usize,
    /// Where a profile has what it keeps for each definition.
    pub layout: Layout,
    /// Computed traits, by name.
    pub traits: Vec<TraitPlan>,
    /// Windows over sessions: spans, ms; the first is everything.
    pub session_windows: Vec<Option<Millis>>,
    /// Segments to judge again when sessions of a window change.
    pub session_readers: Vec<Vec<usize>>,
    /// Paths inside told traits that conditions read, by top-level key.
    pub told_paths: Vec<(EcoString, Box<[EcoString]>)>,
    /// Segments to judge again when what is told changes.
    pub told_readers: Vec<usize>,
    /// Segments to judge again when the class of visitor changes.
    pub visitor_readers: Vec<usize>,
    /// Sequences.
    pub sequences: Vec<SequencePlan>,
    /// Segments, by name.
    pub segments: Vec<SegmentPlan>,
    /// Journeys, by name.
    pub journeys: Vec<JourneyPlan>,
    /// Segments and journeys, each after what it reads.
    pub views: Vec<View>,
    /// Journeys with a timer since the latest activity, as places in `views`.
    pub activity_views: Vec<usize>,
    /// How many events are anchors of timers.
    pub anchors: usize,
    /// Campaigns, by name.
    pub campaigns: Vec<CampaignPlan>,
    /// Rules that make touches.
    pub touches: Vec<TouchRule>,
    /// Rules that make conversions.
    pub conversions: Vec<ConversionRule>,
    /// What each dense count counts.
    pub totals: Vec<Counted>,
}

/// The places of the counts that every plan has.
pub mod counts {
    /// Profiles that exist.
    pub const PROFILES: usize = 0;
    /// Sessions.
    pub const SESSIONS: usize = 1;
    /// Events in sessions.
    pub const EVENTS: usize = 2;
    /// Milliseconds in sessions.
    pub const MILLIS: usize = 3;
    /// Sessions of one event.
    pub const BOUNCES: usize = 4;
}

impl Plan {
    /// The number of a segment.
    pub fn segment(&self, name: &str) -> Option<usize> {
        self.segments.iter().position(|segment| segment.name == name)
    }

    /// The number of a journey.
    pub fn journey(&self, name: &str) -> Option<usize> {
        self.journeys.iter().position(|journey| journey.name == name)
    }

    /// What happens at an event of a name. One that only later definitions say is as one that none says.
    pub fn rules(&self, name: NameId) -> &Rules {
        self.rules.get(name.0 as usize).unwrap_or(&self.rules[NameId::NONE.0 as usize])
    }

    /// The models of attribution, in the order of the file.
    pub fn models(&self) -> &[Model] {
        &self.definitions.attribution.models
    }
}

/// The value of a slot.
pub fn find(values: &[(Slot, Value)], slot: Slot) -> Option<&Value> {
    values.iter().find(|(other, _)| *other == slot).map(|(_, value)| value)
}
