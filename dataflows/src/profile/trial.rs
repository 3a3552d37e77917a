//! Trials: what other definitions would make of people, held against what stands, and added up over all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::State;
use super::answers::{Asked, IntentRow, intent_row};
use super::campaigns::{Intent, Meant, Status};
use super::sums::Span;
use crate::definitions::Definitions;
use crate::plan::{Horizons, Plan};
use crate::protocol::Answer;
use crate::time::Millis;

/// Definitions to try, and what of the outcome is wanted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Trial {
    /// The definitions, each by itself, and those of them that do not see everything. What they name stands on all
    /// events.
    pub definitions: Vec<(Arc<Definitions>, Horizons)>,
    /// Intents that came about in this span.
    pub span: Span,
    /// Only those of these campaigns; none: of all.
    pub campaigns: Option<BTreeSet<EcoString>>,
    /// Rows only before this one: of which definitions, its instant, its id.
    pub before: Option<(usize, Millis, String)>,
    /// How many rows of intents at most, under each of the definitions.
    pub limit: usize,
}

/// What becomes of one person under the definitions tried.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Segments they are in, by number.
    segments: Box<[u32]>,
    /// Intents in the span.
    intents: Box<[Intent]>,
    bytes: usize,
}

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
    pub fn new(plan: &Plan, state: &State, trial: &Trial) -> Tried {
        let members = (0..plan.segments.len()).filter(|number| state.is_member(*number));
        let intents = state.tapes.intents.iter().filter(|intent| trial.span.contains(intent.at));
        Tried {
            segments: members.map(|number| number as u32).collect(),
            intents: intents.copied().collect(),
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

    /// Adds one person: what stands of them, and what would, under which of the definitions tried.
    pub fn add(
        &mut self,
        (place, plan): (usize, &Plan),
        numbers: &[[Option<usize>; 2]],
        tried: &Tried,
        asked: &Asked<'_>,
        trial: &Trial,
    ) {
        let public = asked.public();
        self.cost.profiles += 1;
        self.cost.bytes += tried.bytes as u64;
        self.cost.standing_bytes += asked.state.bytes() as u64;
        for (shift, [tried_as, standing]) in self.segments.values_mut().zip(numbers) {
            let is = tried_as.is_some_and(|number| tried.is_member(number));
            let was = standing.is_some_and(|number| asked.state.is_member(number));
            if is {
                shift.members.add(&public);
            }
            match (was, is) {
                (false, true) => shift.enter.add(&public),
                (true, false) => shift.leave.add(&public),
                _ => {}
            }
        }
        self.add_intents((place, plan), tried, asked, trial);
    }

    fn add_intents(&mut self, (place, plan): (usize, &Plan), tried: &Tried, asked: &Asked<'_>, trial: &Trial) {
        let is_wanted = |name: &EcoString| trial.campaigns.as_ref().is_none_or(|wanted| wanted.contains(name));
        let named = |plan: &Plan, intent: &Intent| plan.campaigns[intent.campaign].name.clone();
        let standing = asked.state.tapes.intents.iter().filter(|intent| trial.span.contains(intent.at));
        let key = |plan, of: &Intent| (named(plan, of), of.at, of.root, of.status, of.not_before);
        let stood: BTreeSet<_> = standing.map(|intent| key(asked.plan, intent)).collect();
        let stands: BTreeSet<_> = tried.intents.iter().map(|intent| key(plan, intent)).collect();
        let mut tally = |name: &EcoString, change: fn(&mut Tally, Status), status| {
            if let Some(tally) = self.campaigns.get_mut(name).filter(|_| is_wanted(name)) {
                change(tally, status);
            }
        };
        for (name, .., status, _) in &stands {
            tally(name, |tally, status| *tally.by_status.entry(status.name().into()).or_default() += 1, *status);
        }
        stands.difference(&stood).for_each(|(name, .., status, _)| tally(name, |tally, _| tally.come += 1, *status));
        stood.difference(&stands).for_each(|(name, .., status, _)| tally(name, |tally, _| tally.go += 1, *status));
        let is_before = |row: &IntentRow| match &trial.before {
            Some((of, at, id)) => place > *of || place == *of && (row.at, &row.id) < (*at, id),
            None => true,
        };
        let public = asked.public();
        let wanted = tried.intents.iter().filter(|intent| trial.limit > 0 && is_wanted(&named(plan, intent)));
        let rows = wanted.map(|intent| intent_row(plan, &public, &Meant::new(*intent, asked.past)));
        self.intents.extend(rows.filter(is_before));
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
    }
}
