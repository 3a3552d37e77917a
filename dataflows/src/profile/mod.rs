//! A profile: everything that is true of one person, folded from the history of their events.
//!
//! This file says what a profile's state is made of and in which order the items of one instant are applied:
//! windows that run out, timers, the events they emit, accepted events, schedules. After each item every view is judged
//! again. What a view means is in its own file; each has a few words of the [`State`], which marks copy, and keeps what
//! only grows on a tape, which going back cuts.

pub mod aggregates;
pub mod answers;
pub mod attribution;
pub mod campaigns;
pub mod explain;
pub mod journeys;
pub mod people;
pub mod segments;
pub mod sequences;
pub mod sessions;
pub mod sums;
pub mod trial;

use std::cmp::Ordering;
use std::ops::Range;

use ecow::EcoString;

use crate::event::{Event, Kind};
use crate::history::Fold;
use crate::plan::{Field, Plan, Rule, Rules, View, Window, counts, find};
use crate::time::Millis;
use crate::total::Counted;
use crate::value::Value;
use crate::vocabulary::{NameId, Slot};

use aggregates::{Bag, Kept};
use attribution::{Conversion, Credit, Refund, Touch};
use campaigns::{Candidate, Intent, Meant};
use journeys::Emitted;
use people::{Person, Was};
use segments::Change;
use sessions::Session;

/// An event of the history that an item goes back to, by its place; [`Root::SCHEDULE`] for what a date began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root(pub u32);

impl Root {
    /// No event: a schedule.
    pub const SCHEDULE: Root = Root(u32::MAX);
}

/// What every profile has, whatever the definitions: small, since marks copy it.
#[derive(Clone, Copy, Debug)]
pub struct Core {
    /// The first accepted event, ms; [`NEVER`] before it: the profile does not exist.
    pub first_seen: Millis,
    /// The last accepted event, ms.
    pub last_seen: Millis,
    /// Nothing happens before this instant without an event.
    pub due: Millis,
    /// The latest session; of no events: none yet.
    pub visit: Session,
    /// The latest activity.
    pub activity: Root,
    /// Conversions that stand: not refunded to nothing.
    pub standing: u32,
    class: [bool; 4],
}

/// In place of an instant: it has not come.
pub const NEVER: Millis = Millis::MIN;

/// Where in a state's words each definition has its own.
///
/// What a profile keeps for each definition is a few numbers. All of them stand in one block, so that a mark is one
/// copy and a step touches few lines of cache; the views know how to read theirs.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    journeys: Box<[usize]>,
    aggregates: usize,
    /// Of `n` windows over events the instants at which they let something go, as a tree of minima: the least of all
    /// is word 1, the two that word `i` is the least of are words `2i` and `2i + 1`, the windows' own are the last `n`.
    windows: usize,
    anchors: usize,
    session_windows: usize,
    sequences: Box<[usize]>,
    /// The words of a profile before its first event.
    start: Box<[i64]>,
}

impl Layout {
    /// The layout of a plan. Segments come first, a word each: since when, ms.
    pub fn of(plan: &Plan) -> Layout {
        let mut start = vec![segments::NOT_A_MEMBER; plan.segments.len()];
        let mut place = |words: &[i64]| {
            start.extend_from_slice(words);
            start.len() - words.len()
        };
        Layout {
            journeys: plan.journeys.iter().map(|journey| place(&journeys::words(journey))).collect(),
            aggregates: place(&vec![0; plan.aggregates.len() * aggregates::WORDS]),
            windows: place(&vec![Millis::MAX; 2 * plan.windowed.len()]),
            anchors: place(&journeys::Latest::NONE.repeat(plan.anchors)),
            session_windows: place(&vec![0; plan.session_windows.len()]),
            sequences: plan.sequences.iter().map(|of| place(&sequences::words(of))).collect(),
            start: start.into(),
        }
    }
}

/// What only grows as the history goes on.
#[derive(Clone, Debug, Default)]
pub struct Tapes {
    /// Sessions before the latest one.
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
    /// For each id that some event bore as `userId` the first such event.
    pub known: Vec<Root>,
    /// What was told before each change of it.
    pub told: Vec<Was>,
    /// What feeds keep of events, by feed.
    pub kept: Box<[Vec<Kept>]>,
    /// Completed sequences that wait for an event not to come, by sequence.
    pub waiting: Box<[Vec<Left>]>,
    /// How the step before stood at each event of a step of several, by step.
    pub before: Box<[Vec<Millis>]>,
}

/// How long tapes were.
#[derive(Clone, Debug)]
struct Lengths {
    sessions: u32,
    changes: u32,
    moves: u32,
    touches: u32,
    conversions: u32,
    refunds: u32,
    intents: u32,
    known: u32,
    told: u32,
    /// Those of `kept`, `waiting`, `before`.
    rows: Box<[u32]>,
}

impl Tapes {
    fn lengths(&self) -> Lengths {
        let kept = self.kept.iter().map(Vec::len);
        let rows = kept.chain(self.waiting.iter().map(Vec::len)).chain(self.before.iter().map(Vec::len));
        Lengths {
            sessions: self.sessions.len() as u32,
            changes: self.changes.len() as u32,
            moves: self.moves.len() as u32,
            touches: self.touches.len() as u32,
            conversions: self.conversions.len() as u32,
            refunds: self.refunds.len() as u32,
            intents: self.intents.len() as u32,
            known: self.known.len() as u32,
            told: self.told.len() as u32,
            rows: rows.map(|length| length as u32).collect(),
        }
    }

    /// Cuts those tapes whose notes need no other undoing.
    fn cut(&mut self, lengths: &Lengths) {
        self.sessions.truncate(lengths.sessions as usize);
        self.changes.truncate(lengths.changes as usize);
        self.touches.truncate(lengths.touches as usize);
        self.conversions.truncate(lengths.conversions as usize);
        self.refunds.truncate(lengths.refunds as usize);
        self.known.truncate(lengths.known as usize);
        let mut rows = lengths.rows.iter().map(|length| *length as usize);
        self.kept.iter_mut().zip(rows.by_ref()).for_each(|(tape, length)| tape.truncate(length));
        self.waiting.iter_mut().zip(rows.by_ref()).for_each(|(tape, length)| tape.truncate(length));
        self.before.iter_mut().zip(rows.by_ref()).for_each(|(tape, length)| tape.truncate(length));
    }
}

/// Everything that is true of a person at one place in their history.
#[derive(Clone, Debug)]
pub struct State {
    /// What every profile has.
    pub core: Core,
    /// What it has for each definition; see [`Layout`].
    words: Box<[i64]>,
    /// What only grows.
    pub tapes: Tapes,
    /// What was told of them.
    pub person: Option<Box<Person>>,
    /// Values in windows, and how often each is there.
    bags: Box<[Bag]>,
    /// The public id under which its intents were told; empty: none were.
    pub told_as: EcoString,
}

impl State {
    /// Whether who sees only what is later than an instant sees this person.
    pub fn is_seen(&self, after: Millis) -> bool {
        self.core.last_seen > after
    }

    /// How much is kept of a profile besides its events, about, in bytes.
    pub fn bytes(&self) -> usize {
        let tapes = &self.tapes;
        let kept: usize = tapes.kept.iter().map(|tape| size_of_val(&**tape)).sum();
        let waiting: usize = tapes.waiting.iter().map(|tape| size_of_val(&**tape)).sum();
        let before: usize = tapes.before.iter().map(|tape| size_of_val(&**tape)).sum();
        let bags: usize = self.bags.iter().map(|bag| bag.len() * size_of::<(Value, u32)>()).sum();
        let views = size_of_val(&*tapes.sessions) + size_of_val(&*tapes.changes) + size_of_val(&*tapes.moves);
        let credit = size_of_val(&*tapes.touches) + size_of_val(&*tapes.conversions) + size_of_val(&*tapes.refunds);
        let rest = size_of_val(&*tapes.intents) + size_of_val(&*tapes.known) + size_of_val(&*tapes.told);
        size_of::<State>() + size_of_val(&*self.words) + kept + waiting + before + bags + views + credit + rest
    }
}

/// Enough to take a state back to where it was.
#[derive(Clone, Debug)]
pub struct Mark {
    core: Core,
    words: Box<[i64]>,
    lengths: Lengths,
}

/// Consequences of steps, added up over the profiles of a worker until they are sent on.
#[derive(Debug)]
pub struct Effects {
    /// Changes of the plan's dense counts.
    pub counts: Vec<i64>,
    /// Those that were taken, all together.
    taken: Vec<i64>,
    /// Changes of credit.
    pub credit: Credit,
    /// Intents that came, and those that went, of the profile at hand.
    pub intents: Vec<(Meant, i8)>,
    pending: Vec<u64>,
}

impl Effects {
    /// No effects yet, under `plan`.
    pub fn new(plan: &Plan) -> Self {
        Effects {
            counts: vec![0; plan.totals.len()],
            taken: vec![0; plan.totals.len()],
            credit: Credit::new(plan.models()),
            intents: Vec::new(),
            pending: vec![0; plan.views.len().div_ceil(64)],
        }
    }

    /// Takes the changes of all totals.
    pub fn take(&mut self, plan: &Plan) -> Vec<(Counted, i128)> {
        let mut changes = self.credit.take();
        for ((total, count), taken) in plan.totals.iter().zip(&mut self.counts).zip(&mut self.taken) {
            if *count != 0 {
                *taken += *count;
                changes.push((total.clone(), i128::from(std::mem::take(count))));
            }
        }
        changes
    }

    /// All that was ever taken.
    pub fn taken(&self, plan: &Plan) -> Vec<(Counted, i128)> {
        let counts = plan.totals.iter().zip(&self.taken).filter(|(_, taken)| **taken != 0);
        let counts = counts.map(|(total, taken)| (total.clone(), i128::from(*taken)));
        counts.chain(self.credit.taken()).collect()
    }
}

impl Fold for Plan {
    type Entry = Event;
    type State = Box<State>;
    type Mark = Mark;
    type Effects = Effects;

    fn instant(event: &Event) -> Millis {
        event.timestamp
    }

    fn order(a: &Event, b: &Event) -> Ordering {
        a.order(b)
    }

    fn start(&self) -> Box<State> {
        Box::new(State {
            core: Core::START,
            words: self.layout.start.clone(),
            tapes: Tapes {
                kept: vec![Vec::new(); self.keeps].into(),
                waiting: vec![Vec::new(); self.sequences.len()].into(),
                before: vec![Vec::new(); self.steps].into(),
                ..Tapes::default()
            },
            person: None,
            bags: vec![Bag::new(); self.bags].into(),
            told_as: EcoString::new(),
        })
    }

    fn due(&self, state: &Box<State>) -> Millis {
        state.core.due
    }

    fn step(
        &self,
        state: &mut Box<State>,
        at: Millis,
        entries: &[Event],
        present: Range<usize>,
        effects: &mut Effects,
    ) {
        let (emitted, candidates) = Default::default();
        Instant { plan: self, state, at, entries, effects, emitted, candidates, judged: 0, converted: None }
            .run(present);
    }

    fn mark(&self, state: &Box<State>) -> Mark {
        Mark { core: state.core, words: state.words.clone(), lengths: state.tapes.lengths() }
    }

    fn back(&self, state: &mut Box<State>, mark: Option<&Mark>, entries: &[Event], effects: &mut Effects) {
        let nothing;
        let (core, words, lengths) = match mark {
            Some(mark) => (&mark.core, &mark.words, &mark.lengths),
            None => {
                nothing = Lengths::none(self.keeps + self.sequences.len() + self.steps);
                (&Core::START, &self.layout.start, &nothing)
            }
        };
        self.count_standing(state, -1, effects);
        let restated = self.uncredit(state, lengths.conversions as usize, lengths.refunds as usize, effects);
        self.uncount_sessions(state, lengths.sessions as usize, effects);
        state.unbag(self, words, &lengths.rows);
        let tapes = &mut state.tapes;
        for total in tapes.moves.drain(lengths.moves as usize..) {
            effects.counts[total as usize] -= 1;
        }
        for intent in tapes.intents.drain(lengths.intents as usize..) {
            effects.counts[self.campaigns[intent.campaign].totals[intent.status as usize]] -= 1;
            effects.intents.push((Meant::new(intent, entries), -1));
        }
        for was in tapes.told.drain(lengths.told as usize..).rev() {
            state.person.as_deref_mut().expect("something was told").put_back(was);
        }
        tapes.cut(lengths);
        state.core = *core;
        state.words.copy_from_slice(words);
        self.recount_session(&state.core, effects);
        for conversion in restated {
            self.add_credit(state, conversion, &state.tapes.refunds, 1, effects);
        }
        self.count_standing(state, 1, effects);
    }
}

impl Core {
    /// Before the first event.
    const START: Core = Core {
        first_seen: NEVER,
        last_seen: NEVER,
        due: Millis::MAX,
        visit: Session::NONE,
        activity: Root::SCHEDULE,
        standing: 0,
        class: [false; 4],
    };

    /// Whether there is such a profile.
    pub fn exists(&self) -> bool {
        self.first_seen != NEVER
    }
}

impl Lengths {
    fn none(rows: usize) -> Lengths {
        Lengths { rows: vec![0; rows].into(), ..Tapes::default().lengths() }
    }
}

impl Plan {
    /// Adds what a state stands for in the counts over all profiles.
    fn count_standing(&self, state: &State, sign: i64, effects: &mut Effects) {
        if !state.core.exists() {
            return;
        }
        effects.counts[counts::PROFILES] += sign;
        for (number, segment) in self.segments.iter().enumerate() {
            if state.is_member(number) {
                effects.counts[segment.total] += sign;
            }
        }
        for (number, journey) in self.journeys.iter().enumerate().filter(|(_, of)| state.is_seen(of.after)) {
            effects.counts[journey.states[state.standing(self, number).state].total] += sign;
        }
    }
}

/// An event as rules see it, whether accepted or emitted.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    name: NameId,
    /// What happens at an event of that name.
    rules: &'a Rules,
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
    /// How many conversions and refunds there were before those of this instant, if it may have any.
    converted: Option<(usize, usize)>,
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
        for index in present {
            self.accepted(index);
        }
        // A first event arms schedules, perhaps one of its own instant.
        let due = due || self.state.core.due <= self.at;
        if due {
            self.schedules();
        }
        if let Some((conversions, refunds)) = self.converted {
            self.credit(conversions, refunds);
        }
        if !self.candidates.is_empty() {
            self.gates();
        }
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
        let rules = self.plan.rules(emitted.name);
        let seen = Seen { name: emitted.name, rules, kind: None, values: &emitted.values, root: emitted.root };
        self.seen(seen);
    }

    /// (4) An accepted event.
    fn accepted(&mut self, index: usize) {
        let entries = self.entries;
        let event = &entries[index];
        let root = Root(index as u32);
        if !self.state.is_seen(self.plan.in_full_sight) {
            self.begin(root);
        }
        self.tell(event, index);
        if !event.kind.is_activity() {
            self.classify();
            return self.judge(Item::Call(root));
        }
        let rules = self.plan.rules(event.name);
        let seen = Seen { name: event.name, rules, kind: Some(event.kind), values: event.values(), root };
        self.visit(event, seen);
        self.touch(event, seen);
        if !rules.conversions.is_empty() || !rules.refunds.is_empty() {
            let tapes = &self.state.tapes;
            self.converted.get_or_insert((tapes.conversions.len(), tapes.refunds.len()));
            self.convert(seen);
        }
        self.classify();
        self.seen(seen);
    }

    /// What an event is to the views, accepted or emitted.
    fn seen(&mut self, seen: Seen<'_>) {
        self.feed(seen);
        self.follow(seen);
        self.anchor(seen);
        self.judge(Item::Event(seen));
    }

    /// The first event of a profile: it exists, and stands at the start of each journey. So it does where a definition
    /// sees only what is later than some instant, at the first event that it sees.
    fn begin(&mut self, root: Root) {
        let (plan, before, at) = (self.plan, self.state.core.last_seen, self.at);
        let begins = |after: Millis| before <= after && after < at;
        if !self.state.core.exists() {
            self.state.core.first_seen = self.at;
            self.effects.counts[counts::PROFILES] += 1;
            self.arm_schedules();
        }
        for (number, journey) in plan.journeys.iter().enumerate() {
            if begins(journey.after) {
                self.enter_start(number, root);
            }
        }
        for (number, view) in plan.views.iter().enumerate() {
            let after = match view {
                View::Segment(segment) => plan.segments[*segment].after,
                View::Journey(journey) => plan.journeys[*journey].after,
            };
            if begins(after) {
                self.wake(number);
            }
        }
    }

    /// Judges segments and journeys that may have changed, each after what it reads; then campaigns.
    fn judge(&mut self, item: Item<'_>) {
        if let Item::Event(seen) = item {
            for view in &seen.rules.views {
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
        if self.judged < self.candidates.len() {
            self.judge_audience();
        }
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
            Field::Told(key, inside) => self.state.told(key, inside),
            Field::Computed(_) => None,
        }
    }
}
