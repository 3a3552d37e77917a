//! Trials: what other definitions would make of people, or what would be true without some events, held against what
//! stands, and added up over all of them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::answers::{IntentRow, intent_row};
use super::campaigns::{Meant, Status};
use super::sums::{Span, pairs};
use super::{Effects, State};
use crate::definitions::Definitions;
use crate::event::Event;
use crate::history::{Fold, Folded};
use crate::plan::{Horizons, Plan};
use crate::protocol::Answer;
use crate::time::Millis;
use crate::total::Total;

/// What to try, and what of the outcome is wanted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Trial {
    /// Definitions, each by itself, and those of them that do not see everything.
    pub definitions: Vec<(Arc<Definitions>, Horizons)>,
    /// What they name of events that is not kept of them; none: all that they name is.
    pub reread: Option<Reread>,
    /// In place of definitions: those that hold, without some events.
    pub without: Option<Without>,
    /// Intents that came about in this span.
    pub span: Span,
    /// Only those of these campaigns; none: of all.
    pub campaigns: Option<BTreeSet<EcoString>>,
    /// Rows only before this one: of which definitions, its instant, its id.
    pub before: Option<(usize, Millis, String)>,
    /// How many rows of intents at most, under each of the definitions.
    pub limit: usize,
}

/// Events as the definitions tried read them, taken from the log up to a place: what came later is not a part of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reread {
    /// The last place, and the clock then.
    pub until: (u64, Millis),
    /// Those of which they read more than is kept, by place.
    pub events: Vec<Event>,
}

/// Events that are taken as if they had never been.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Without {
    /// Their places, by own id.
    pub events: BTreeMap<EcoString, BTreeSet<u64>>,
    /// The ids of each person who would then be another one.
    pub people: Vec<BTreeSet<EcoString>>,
}

/// What becomes of one person under the definitions tried.
#[derive(Clone, Debug)]
pub struct Tried {
    exists: bool,
    /// Segments they are in, by number.
    segments: Box<[u32]>,
    /// Intents in the span.
    intents: Box<[Meant]>,
    bytes: usize,
}

/// What an intent is, whatever the definitions: campaign, instant, root, status, not before when.
type Key<'t> = (&'t EcoString, Millis, &'t Option<(EcoString, EcoString)>, Status, Millis);

/// What definitions make of people.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// By segment: those defined, and those that were and are not.
    pub segments: BTreeMap<EcoString, Shift>,
    /// By campaign, likewise.
    pub campaigns: BTreeMap<EcoString, Tally>,
    /// Intents, the newest first.
    pub intents: Vec<IntentRow>,
    /// What it takes.
    pub cost: Cost,
    /// In place of all these: what is true without some events.
    pub lacks: Lacks,
}

/// What becomes of the totals without some events.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Lacks {
    /// The places of those of the events that are there.
    pub events: Vec<u64>,
    /// How many people have any of them.
    pub profiles: u64,
    /// All totals: what they are, and what they would be.
    #[serde(with = "pairs")]
    pub totals: BTreeMap<Total, (i128, i128)>,
    /// What is left of the events of people who would be other ones.
    pub rest: Vec<Event>,
}

/// Who is in a segment, and who would come and go.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Shift {
    /// Who is in it under the definitions tried.
    pub members: People,
    /// Who is not in it now and would be.
    pub enter: People,
    /// Who is in it now and would not be.
    pub leave: People,
}

/// How many, and the first of them by public id.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct People {
    /// How many.
    pub count: u64,
    /// The first.
    pub sample: BTreeSet<EcoString>,
}

/// Intents of a campaign.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Under the definitions tried, by status.
    pub by_status: BTreeMap<EcoString, u64>,
    /// Those that do not stand so now.
    pub come: u64,
    /// Those that stand now and would not, or not so.
    pub go: u64,
}

/// What a trial took, and what standing definitions take.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Profiles that exist.
    pub profiles: u64,
    /// Events that were folded.
    pub events: u64,
    /// What would be kept of people besides their events, bytes.
    pub bytes: u64,
    /// What is kept now, bytes.
    pub standing_bytes: u64,
}

/// How many are shown of those who would come, go and stay.
const SAMPLE: usize = 10;

impl Trial {
    /// The plans of the definitions, which read events by one vocabulary, that of the last.
    pub fn plans(&self, standing: &Plan) -> Vec<Plan> {
        let mut plans: Vec<Plan> = Vec::with_capacity(self.definitions.len());
        for (definitions, horizons) in &self.definitions {
            plans.push(plans.last().unwrap_or(standing).after(Arc::clone(definitions), horizons.clone()));
        }
        plans
    }

    /// A person's entries as they are to be folded, and up to which clock.
    pub fn entries<'e>(&self, entries: &'e [Event], clock: Millis) -> (Cow<'e, [Event]>, Millis) {
        let Some(Reread { until: (last, clock), events }) = &self.reread else { return (entries.into(), clock) };
        let read = |event: &Event| {
            let again = events.binary_search_by_key(&event.position, |event| event.position).ok();
            let Event { name, details, .. } = again.map_or(event, |place| &events[place]);
            Event { name: *name, details: details.clone(), ..event.clone() }
        };
        (entries.iter().filter(|event| event.position <= *last).map(read).collect(), *clock)
    }

    /// What all workers found at one step, by the definitions tried; none: some are not done.
    pub fn whole(&self, parts: impl IntoIterator<Item = Answer>) -> Option<Vec<Outcome>> {
        let mut whole: Vec<Outcome> = Vec::new();
        for part in parts {
            let Answer::Tried(part) = part else { return None };
            whole.resize_with(part.len(), Outcome::default);
            whole.iter_mut().zip(part).for_each(|(whole, part)| whole.and(part, self));
        }
        (!whole.is_empty()).then_some(whole)
    }
}

impl Without {
    /// Whether an event is one of them.
    pub fn has(&self, event: &Event) -> bool {
        self.events.get(&event.own).is_some_and(|places| places.contains(&event.position))
    }
}

impl Lacks {
    /// Adds who would be other people: what is left of their events is folded as theirs.
    pub fn regroup(&mut self, plan: &Plan, clock: Millis, without: &Without) {
        let mut effects = Effects::new(plan);
        for ids in &without.people {
            let of_them = self.rest.iter().filter(|event| ids.contains(&event.own));
            let mut entries: Vec<Event> = of_them.cloned().collect();
            entries.sort_by(Plan::order);
            Folded::new(plan).advance(clock, &entries, plan, &mut effects);
            effects.intents.clear();
        }
        for (counted, sum) in effects.take(plan) {
            self.totals.entry(Total::clone(&counted.total)).or_default().1 += sum;
        }
        self.rest = Vec::new();
    }

    fn and(&mut self, other: Lacks) {
        self.events.extend(other.events);
        self.profiles += other.profiles;
        self.rest.extend(other.rest);
        for (total, (is, would_be)) in other.totals {
            let sum = self.totals.entry(total).or_default();
            *sum = (sum.0 + is, sum.1 + would_be);
        }
    }
}

impl People {
    fn add(&mut self, public: &EcoString) {
        self.count += 1;
        self.sample.insert(public.clone());
        self.cut();
    }

    fn cut(&mut self) {
        while self.sample.len() > SAMPLE {
            self.sample.pop_last();
        }
    }

    fn and(&mut self, other: People) {
        self.count += other.count;
        self.sample.extend(other.sample);
        self.cut();
    }
}

impl Tried {
    /// What a state is under a plan, as far as a trial asks.
    pub fn new(plan: &Plan, state: &State, past: &[Event], trial: &Trial) -> Tried {
        let members = (0..plan.segments.len()).filter(|number| state.is_member(*number));
        let intents = state.tapes.intents.iter().filter(|intent| trial.span.contains(intent.at));
        Tried {
            exists: state.core.exists(),
            segments: members.map(|number| number as u32).collect(),
            intents: intents.map(|intent| Meant::new(*intent, past)).collect(),
            bytes: state.bytes(),
        }
    }

    fn is_member(&self, number: usize) -> bool {
        self.segments.binary_search(&(number as u32)).is_ok()
    }
}

impl Outcome {
    /// Nobody yet: the names under a plan and under the one that stands.
    pub fn new(plan: &Plan, standing: &Plan) -> Outcome {
        let segments = plan.segments.iter().chain(&standing.segments).map(|of| (of.name.clone(), Shift::default()));
        let campaigns = plan.campaigns.iter().chain(&standing.campaigns);
        let campaigns = campaigns.map(|of| (of.name.clone(), Tally::default()));
        Outcome { segments: segments.collect(), campaigns: campaigns.collect(), ..Outcome::default() }
    }

    /// The numbers of its segments, in their order, under a plan and under the one that stands.
    pub fn numbers(&self, plan: &Plan, standing: &Plan) -> Vec<[Option<usize>; 2]> {
        self.segments.keys().map(|name| [plan.segment(name), standing.segment(name)]).collect()
    }

    /// Adds one person, by their public id: what they would be under which of the definitions tried, and what they are.
    pub fn add(
        &mut self,
        (place, plan): (usize, &Plan),
        numbers: &[[Option<usize>; 2]],
        tried: &Tried,
        (stands, standing): (&Tried, &Plan),
        public: &EcoString,
        trial: &Trial,
    ) {
        if !stands.exists {
            return;
        }
        self.cost.profiles += 1;
        self.cost.bytes += tried.bytes as u64;
        self.cost.standing_bytes += stands.bytes as u64;
        for (shift, [tried_as, standing]) in self.segments.values_mut().zip(numbers) {
            let is = tried_as.is_some_and(|number| tried.is_member(number));
            let was = standing.is_some_and(|number| stands.is_member(number));
            if is {
                shift.members.add(public);
            }
            match (was, is) {
                (false, true) => shift.enter.add(public),
                (true, false) => shift.leave.add(public),
                _ => {}
            }
        }
        let is_wanted = |name: &EcoString| trial.campaigns.as_ref().is_none_or(|wanted| wanted.contains(name));
        fn keys<'t>(tried: &'t Tried, plan: &'t Plan) -> BTreeSet<Key<'t>> {
            let key = |Meant { intent, root, .. }: &'t Meant| {
                (&plan.campaigns[intent.campaign].name, intent.at, root, intent.status, intent.not_before)
            };
            tried.intents.iter().map(key).collect()
        }
        let (would, are) = (keys(tried, plan), keys(stands, standing));
        let mut tally = |name: &EcoString, change: fn(&mut Tally, Status), status| {
            if let Some(tally) = self.campaigns.get_mut(name).filter(|_| is_wanted(name)) {
                change(tally, status);
            }
        };
        for (name, .., status, _) in &would {
            tally(name, |tally, status| *tally.by_status.entry(status.name().into()).or_default() += 1, *status);
        }
        would.difference(&are).for_each(|(name, .., status, _)| tally(name, |tally, _| tally.come += 1, *status));
        are.difference(&would).for_each(|(name, .., status, _)| tally(name, |tally, _| tally.go += 1, *status));
        let is_before = |row: &IntentRow| match &trial.before {
            Some((of, at, id)) => place > *of || place == *of && (row.at, &row.id) < (*at, id),
            None => true,
        };
        let name = |meant: &&Meant| is_wanted(&plan.campaigns[meant.intent.campaign].name);
        let rows = tried.intents.iter().filter(|_| trial.limit > 0).filter(name);
        self.intents.extend(rows.map(|meant| intent_row(plan, public, meant)).filter(is_before));
        if self.intents.len() / 2 > trial.limit {
            self.cut(trial);
        }
    }

    /// No more rows than are wanted, the newest first.
    pub fn cut(&mut self, trial: &Trial) {
        self.intents.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
        self.intents.truncate(trial.limit);
    }

    /// Adds what another worker found.
    pub fn and(&mut self, other: Outcome, trial: &Trial) {
        for (name, shift) in other.segments {
            let sum = self.segments.entry(name).or_default();
            sum.members.and(shift.members);
            sum.enter.and(shift.enter);
            sum.leave.and(shift.leave);
        }
        for (name, tally) in other.campaigns {
            let sum = self.campaigns.entry(name).or_default();
            tally.by_status.into_iter().for_each(|(status, count)| *sum.by_status.entry(status).or_default() += count);
            (sum.come, sum.go) = (sum.come + tally.come, sum.go + tally.go);
        }
        self.intents.extend(other.intents);
        self.cut(trial);
        self.cost.profiles += other.cost.profiles;
        self.cost.events += other.cost.events;
        self.cost.bytes += other.cost.bytes;
        self.cost.standing_bytes += other.cost.standing_bytes;
        self.lacks.and(other.lacks);
    }
}
