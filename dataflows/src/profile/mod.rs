//! A profile: everything that is true of one person, folded from the history of their events.
//!
//! This file says what a profile's state is made of and in which order the items of one instant are applied:
//! windows that run out, timers, the events they emit, accepted events, schedules. After each item every view is judged
//! again. What a view means is in its own file; each has a small part of the [`Core`], which marks copy, and keeps what
//! only grows on a tape, which going back cuts.

pub mod aggregates;
pub mod answers;
pub mod attribution;
pub mod campaigns;
pub mod journeys;
pub mod people;
pub mod segments;
pub mod sequences;
pub mod sessions;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;

use crate::event::{Event, Kind};
use crate::history::Fold;
use crate::plan::{Field, Plan, Rule, View, Window, counts, find};
use crate::time::Millis;
use crate::total::Total;
use crate::value::Value;
use crate::vocabulary::{NameId, Slot};

use aggregates::{Aggregates, Kept};
use attribution::{Conversion, Money, Refund, Touch};
use campaigns::{Candidate, Intent, Meant};
use journeys::{Emitted, Latest, Standing};
use people::Person;
use segments::Change;
use sequences::Progress;
use sessions::{Session, Visits};

/// An event of the history that an item goes back to, by its place; [`Root::SCHEDULE`] for what a date began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root(pub u32);

impl Root {
    /// No event: a schedule.
    pub const SCHEDULE: Root = Root(u32::MAX);
}

/// The part of a state that marks copy.
#[derive(Clone, Debug)]
pub struct Core {
    /// Who this is.
    pub person: Person,
    /// Sessions.
    pub visits: Visits,
    /// Computed traits, and how often things were performed.
    pub aggregates: Aggregates,
    /// For each segment since when, ms, or `NOT_A_MEMBER`.
    pub members: Box<[Millis]>,
    /// For each journey where it stands.
    pub standings: Box<[Standing]>,
    /// For each sequence how far it has come.
    pub sequences: Box<[Progress]>,
    /// For each anchor its latest event.
    pub latest: Box<[Option<Latest>]>,
    /// The latest activity.
    pub activity: Option<Latest>,
    /// Conversions that stand.
    pub money: Money,
    /// Nothing happens before this instant without an event.
    pub due: Millis,
    lengths: Lengths,
}

/// How long each tape was.
#[derive(Clone, Debug, Default)]
struct Lengths {
    sessions: usize,
    changes: usize,
    moves: usize,
    touches: usize,
    conversions: usize,
    refunds: usize,
    intents: usize,
    kept: Box<[usize]>,
    waiting: Box<[usize]>,
}

/// What only grows as the history goes on.
#[derive(Clone, Debug, Default)]
pub struct Tapes {
    /// Sessions, the last one open.
    pub sessions: Vec<Session>,
    /// Entries to and exits from segments.
    pub changes: Vec<Change>,
    /// Moves of journeys: the counts they were added to.
    pub moves: Vec<u32>,
    /// Touches.
    pub touches: Vec<Touch>,
    /// Conversions.
    pub conversions: Vec<Conversion>,
    /// Refunds.
    pub refunds: Vec<Refund>,
    /// Intents.
    pub intents: Vec<Intent>,
    /// What aggregates with a window let go again, by feed.
    pub kept: Box<[Vec<Kept>]>,
    /// Completed sequences that wait for an event not to come, by sequence.
    pub waiting: Box<[Vec<Left>]>,
}

/// Everything that is true of a person at one place in their history.
#[derive(Clone, Debug)]
pub struct State {
    /// What marks copy.
    pub core: Core,
    /// What only grows.
    pub tapes: Tapes,
}

/// Consequences of steps, added up over the profiles of a worker until they are sent on.
#[derive(Debug, Default)]
pub struct Effects {
    /// Changes of the plan's dense counts.
    pub counts: Vec<i64>,
    /// Changes of credit.
    pub credit: BTreeMap<Total, i128>,
    /// Intents that came, and those that went, of the profile at hand.
    pub intents: Vec<(Meant, i8)>,
    pending: Vec<u64>,
}

impl Effects {
    /// No effects yet, under `plan`.
    pub fn new(plan: &Plan) -> Self {
        Effects {
            counts: vec![0; plan.totals.len()],
            pending: vec![0; plan.views.len().div_ceil(64)],
            ..Effects::default()
        }
    }

    fn add_credit(&mut self, total: Total, change: i128) {
        if change != 0 {
            *self.credit.entry(total).or_default() += change;
        }
    }
}

impl Fold for Plan {
    type Entry = Event;
    type State = State;
    type Mark = Core;
    type Effects = Effects;

    fn instant(event: &Event) -> Millis {
        event.timestamp
    }

    fn order(a: &Event, b: &Event) -> Ordering {
        a.order(b)
    }

    fn start(&self) -> State {
        State {
            core: Core {
                person: Person::default(),
                visits: Visits::new(self),
                aggregates: Aggregates::new(self),
                members: vec![segments::NOT_A_MEMBER; self.segments.len()].into(),
                standings: vec![Standing::default(); self.journeys.len()].into(),
                sequences: Progress::none(self),
                latest: vec![None; self.anchors].into(),
                activity: None,
                money: Money::default(),
                due: Millis::MAX,
                lengths: Lengths {
                    kept: vec![0; self.feeds.len()].into(),
                    waiting: vec![0; self.sequences.len()].into(),
                    ..Lengths::default()
                },
            },
            tapes: Tapes {
                kept: vec![Vec::new(); self.feeds.len()].into(),
                waiting: vec![Vec::new(); self.sequences.len()].into(),
                ..Tapes::default()
            },
        }
    }

    fn due(&self, state: &State) -> Millis {
        state.core.due
    }

    fn step(&self, state: &mut State, at: Millis, entries: &[Event], present: Range<usize>, effects: &mut Effects) {
        Instant { plan: self, state, at, entries, effects, emitted: Vec::new(), candidates: Vec::new(), judged: 0 }
            .run(present);
    }

    fn mark(&self, state: &State) -> Core {
        let tapes = &state.tapes;
        Core {
            lengths: Lengths {
                sessions: tapes.sessions.len(),
                changes: tapes.changes.len(),
                moves: tapes.moves.len(),
                touches: tapes.touches.len(),
                conversions: tapes.conversions.len(),
                refunds: tapes.refunds.len(),
                intents: tapes.intents.len(),
                kept: tapes.kept.iter().map(Vec::len).collect(),
                waiting: tapes.waiting.iter().map(Vec::len).collect(),
            },
            ..state.core.clone()
        }
    }

    fn back(&self, state: &mut State, mark: &Core, entries: &[Event], effects: &mut Effects) {
        self.count_standing(&state.core, -1, effects);
        let restated = self.uncredit(state, mark, effects);
        let (tapes, lengths) = (&mut state.tapes, &mark.lengths);
        for total in tapes.moves.drain(lengths.moves..) {
            effects.counts[total as usize] -= 1;
        }
        for intent in tapes.intents.drain(lengths.intents..) {
            effects.counts[self.campaigns[intent.campaign].totals[intent.status as usize]] -= 1;
            effects.intents.push((Meant::new(intent, entries), -1));
        }
        self.uncount_sessions(&tapes.sessions[..], lengths.sessions, effects);
        tapes.sessions.truncate(lengths.sessions);
        tapes.changes.truncate(lengths.changes);
        tapes.touches.truncate(lengths.touches);
        tapes.conversions.truncate(lengths.conversions);
        tapes.refunds.truncate(lengths.refunds);
        for (kept, length) in tapes.kept.iter_mut().zip(&lengths.kept) {
            kept.truncate(*length);
        }
        for (waiting, length) in tapes.waiting.iter_mut().zip(&lengths.waiting) {
            waiting.truncate(*length);
        }
        state.core.clone_from(mark);
        if let (Some(last), Some(open)) = (state.tapes.sessions.last_mut(), state.core.visits.open) {
            *last = open;
        }
        self.recount_sessions(&state.tapes.sessions, effects);
        for conversion in restated {
            self.add_credit(state, conversion, &state.tapes.refunds, 1, effects);
        }
        self.count_standing(&state.core, 1, effects);
    }
}

impl Core {
    /// How many conversions and refunds there were at this mark.
    fn money_lengths(&self) -> (usize, usize) {
        (self.lengths.conversions, self.lengths.refunds)
    }
}

impl Plan {
    /// Adds what a state stands for in the counts over all profiles.
    fn count_standing(&self, core: &Core, sign: i64, effects: &mut Effects) {
        if core.person.first_seen.is_none() {
            return;
        }
        effects.counts[counts::PROFILES] += sign;
        for (segment, since) in self.segments.iter().zip(&core.members) {
            if *since != segments::NOT_A_MEMBER {
                effects.counts[segment.total] += sign;
            }
        }
        for (journey, standing) in self.journeys.iter().zip(&core.standings) {
            effects.counts[journey.states[standing.state].total] += sign;
        }
    }
}

/// An event as rules see it, whether accepted or emitted.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    name: NameId,
    kind: Option<Kind>,
    values: &'a [(Slot, Value)],
    root: Root,
}

/// What an item is, for the views that ask.
#[derive(Clone, Copy)]
enum Item<'a> {
    /// Windows ran out: those left, each with the last event that left it.
    Windows(&'a [(Window, Left)]),
    /// A timer came due; its anchor's root.
    Timer(Root),
    /// An event.
    Event(Seen<'a>),
    /// A call that no rule sees: identify, group, alias.
    Call(Root),
}

/// The event that left a window: ordered as events are, emitted ones before accepted ones of their instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Left {
    at: Millis,
    accepted: bool,
    root: Root,
}

/// One instant of one profile, while it is applied.
struct Instant<'a> {
    plan: &'a Plan,
    state: &'a mut State,
    at: Millis,
    entries: &'a [Event],
    effects: &'a mut Effects,
    emitted: Vec<Emitted>,
    candidates: Vec<Candidate>,
    /// Candidates of earlier items: their first gates are judged.
    judged: usize,
}

impl Instant<'_> {
    fn run(mut self, present: Range<usize>) {
        let due = self.state.core.due <= self.at;
        if due {
            self.windows();
            self.timers();
            for emitted in std::mem::take(&mut self.emitted) {
                self.emission(&emitted);
            }
        }
        let (conversions, refunds) = (self.state.tapes.conversions.len(), self.state.tapes.refunds.len());
        for index in present {
            self.accepted(index);
        }
        if due {
            self.schedules();
        }
        self.credit(conversions, refunds);
        self.gates();
        if due {
            self.state.core.due = self.next_due();
        }
    }

    /// (1) All windows that run out at this instant, as one item.
    fn windows(&mut self) {
        let mut left = Vec::new();
        self.aggregate_windows(&mut left);
        self.session_windows(&mut left);
        self.sequence_windows(&mut left);
        if !left.is_empty() {
            self.judge(Item::Windows(&left));
        }
    }

    /// (3) An event that a timer emitted.
    fn emission(&mut self, emitted: &Emitted) {
        let seen = Seen { name: emitted.name, kind: None, values: &emitted.values, root: emitted.root };
        self.feed(seen);
        self.follow(seen);
        self.anchor(seen);
        self.judge(Item::Event(seen));
    }

    /// (4) An accepted event.
    fn accepted(&mut self, index: usize) {
        let entries = self.entries;
        let event = &entries[index];
        let root = Root(index as u32);
        if self.state.core.person.first_seen.is_none() {
            self.begin(root);
        }
        self.tell(event);
        if !event.kind.is_activity() {
            return self.judge(Item::Call(root));
        }
        let seen = Seen { name: event.name, kind: Some(event.kind), values: &event.values, root };
        self.visit(event, root);
        self.touch(event, seen);
        self.convert(seen);
        self.classify();
        self.feed(seen);
        self.follow(seen);
        self.anchor(seen);
        self.judge(Item::Event(seen));
    }

    /// The first event of a profile: it exists, and stands at the start of each journey.
    fn begin(&mut self, root: Root) {
        self.state.core.person.first_seen = Some(self.at);
        self.effects.counts[counts::PROFILES] += 1;
        for journey in 0..self.plan.journeys.len() {
            self.enter_start(journey, root);
        }
        for view in 0..self.plan.views.len() {
            self.wake(view);
        }
        self.arm_schedules();
    }

    /// Judges segments and journeys that may have changed, each after what it reads; then campaigns.
    fn judge(&mut self, item: Item<'_>) {
        if let Item::Event(seen) = item {
            for view in &self.plan.rules[seen.name.0 as usize].views {
                self.wake(*view);
            }
            if seen.kind.is_some() {
                for view in &self.plan.activity_views {
                    self.wake(*view);
                }
            }
        }
        while let Some(view) = self.next_awake() {
            match self.plan.views[view] {
                View::Segment(segment) => self.judge_segment(segment, item),
                View::Journey(journey) => self.judge_journey(journey, item),
            }
        }
        if let Item::Event(seen) = item {
            self.event_campaigns(seen);
        }
        self.judge_audience();
    }

    /// A view is to be judged again at this item.
    fn wake(&mut self, view: usize) {
        self.effects.pending[view / 64] |= 1 << (view % 64);
    }

    fn wake_all(&mut self, views: &[usize]) {
        for view in views {
            self.wake(*view);
        }
    }

    /// The first view, in dependency order, that is to be judged. Judging wakes only later ones.
    fn next_awake(&mut self) -> Option<usize> {
        let (word, bits) = self.effects.pending.iter_mut().enumerate().find(|(_, bits)| **bits != 0)?;
        let bit = bits.trailing_zeros() as usize;
        *bits &= *bits - 1;
        Some(word * 64 + bit)
    }

    /// Nothing happens before this without an event.
    fn due_by(&mut self, at: Millis) {
        self.state.core.due = self.state.core.due.min(at);
    }

    /// The earliest instant at which some window, timer or schedule is due, all looked through.
    fn next_due(&self) -> Millis {
        self.aggregate_due()
            .min(self.session_due())
            .min(self.sequence_due())
            .min(self.timer_due())
            .min(self.schedule_due())
    }

    /// Whether a rule holds for an event, as of it.
    fn holds(&self, rule: Option<&Rule>, seen: Seen<'_>) -> bool {
        let Some(rule) = rule else { return true };
        // Computed traits are worked out before, since a condition borrows what it reads.
        let computed: Vec<(usize, Value)> =
            rule.computed.iter().map(|number| (*number, self.state.computed(self.plan, *number))).collect();
        rule.condition.holds(&|field| match field {
            Field::Computed(number) => computed.iter().find(|(other, _)| other == number).map(|(_, value)| value),
            field => self.read(field, seen),
        })
    }

    /// What a field reads of an event and of what was told of its profile.
    fn read<'v>(&'v self, field: &Field, seen: Seen<'v>) -> Option<&'v Value> {
        match field {
            Field::Event => Some(self.plan.vocabulary.text(seen.name)),
            Field::Type => seen.kind.map(people::kind_value),
            Field::Slot(slot) => find(seen.values, *slot),
            Field::Told(key, inside) => self.state.core.person.told(key, inside),
            Field::Computed(_) => None,
        }
    }
}
