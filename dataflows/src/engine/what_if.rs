//! What if: other definitions tried on all people beside those that hold, or those that hold without some events; some
//! people each time it is asked.
//!
//! Each person's entries are folded aside, and what that gives is kept; who was touched since, or had something due, is
//! folded again. So when nobody is left the whole is true of one logical time, that of the step which asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::profiles::{PREPARED_ENTRIES, person};
use crate::event::Event;
use crate::history::Folded;
use crate::identity::Id;
use crate::keyed::{Keyed, Slot};
use crate::plan::Plan;
use crate::profile::Effects;
use crate::profile::trial::{Outcome, Trial, Tried, Without};
use crate::protocol::Answer;
use crate::time::Millis;
use crate::total::{Counted, Total};

/// A trial under way.
pub(super) struct WhatIf {
    trial: Arc<Trial>,
    /// Those of the definitions tried; last the one that stands, where people are folded by that too.
    plans: Vec<Plan>,
    /// Ids whose person would be another one.
    apart: BTreeSet<Id>,
    /// By slot.
    found: Vec<Found>,
    /// Entries to fold the next time.
    budget: usize,
    events: u64,
}

/// One person under each of the plans, or without some events.
struct Found {
    tried: Box<[Tried]>,
    lacking: Option<Box<Lacking>>,
    /// Nothing changes before this instant unless they are touched.
    due: Millis,
    /// In which advance they had been touched last.
    stepped: u64,
}

/// What becomes of a person without events that they have.
struct Lacking {
    /// The events' places.
    events: Vec<u64>,
    /// What of the totals changes.
    change: BTreeMap<Counted, i128>,
    /// The rest of their events, if they would be other people.
    rest: Vec<Event>,
}

impl Found {
    fn is_stale(&self, slot: &Slot<Plan>, clock: Millis) -> bool {
        self.stepped != slot.stepped || self.due <= clock
    }
}

impl WhatIf {
    /// Nobody yet.
    pub(super) fn new(standing: &Plan, trial: Arc<Trial>) -> WhatIf {
        let mut plans = trial.plans(standing);
        if trial.without.is_some() || trial.reread.is_some() {
            plans.push(standing.clone());
        }
        let apart = trial.without.iter().flat_map(|without| without.people.iter().flatten().cloned()).collect();
        WhatIf { trial, plans, apart, found: Vec::new(), budget: PREPARED_ENTRIES, events: 0 }
    }

    /// Does some more of it; the outcome when all of it is true as of this step.
    pub(super) fn go_on(&mut self, keyed: &Keyed<Plan>, clock: Millis) -> Answer {
        let slots = keyed.slots();
        let mut effects: Vec<Effects> = self.plans.iter().map(Effects::new).collect();
        let mut left = self.budget as isize;
        while left > 0 && self.found.len() < slots.len() {
            let found = self.fold(&slots[self.found.len()], clock, &mut effects, &mut left);
            self.found.push(found);
        }
        if self.found.len() == slots.len() {
            let all = slots.iter().enumerate();
            let stale = all.filter(|(number, slot)| self.found[*number].is_stale(slot, clock));
            let stale: Vec<usize> = stale.map(|(number, _)| number).collect();
            let mut stale = stale.into_iter();
            while let Some(number) = stale.as_slice().first().copied().filter(|_| left > 0) {
                self.found[number] = self.fold(&slots[number], clock, &mut effects, &mut left);
                stale.next();
            }
            if stale.len() == 0 {
                return Answer::Tried(match &self.trial.without {
                    Some(_) => vec![self.lacking(keyed)],
                    None => self.outcome(keyed, clock),
                });
            }
            // However much happens meanwhile, it comes to an end.
            self.budget *= 2;
        }
        Answer::Trying(self.found.len() as u64, slots.len() as u64)
    }

    fn fold(&mut self, slot: &Slot<Plan>, clock: Millis, effects: &mut [Effects], left: &mut isize) -> Found {
        let trial = Arc::clone(&self.trial);
        let mut found = Found { tried: Box::default(), lacking: None, due: Millis::MAX, stepped: slot.stepped };
        *left -= 1;
        if let Some(without) = &trial.without {
            if let Some(effects) = effects.last_mut() {
                self.fold_without(without, slot, clock, effects, left, &mut found);
            }
            return found;
        }
        let (entries, until) = trial.entries(slot.history.entries(), clock);
        let tried = self.plans.iter().zip(effects).map(|(plan, effects)| {
            let folded = folded(&entries, until, plan, effects);
            // What happens later is not a part of what was read again.
            found.due = if trial.reread.is_some() { Millis::MAX } else { found.due.min(folded.due(&entries, plan)) };
            *left -= entries.len() as isize;
            self.events += folded.past(&entries).len() as u64;
            Tried::new(plan, folded.state(), folded.past(&entries), &trial)
        });
        found.tried = tried.collect();
        found
    }

    fn fold_without(
        &self,
        without: &Without,
        slot: &Slot<Plan>,
        clock: Millis,
        effects: &mut Effects,
        left: &mut isize,
        found: &mut Found,
    ) {
        let is_apart = slot.ids().iter().any(|id| self.apart.contains(id));
        if !is_apart && !slot.ids().iter().any(|id| without.events.contains_key(id)) {
            return;
        }
        let entries = slot.history.entries();
        *left -= 2 * entries.len() as isize;
        let is_gone = |event: &&Event| without.has(event);
        let (gone, rest): (Vec<&Event>, Vec<&Event>) = entries.iter().partition(is_gone);
        if !is_apart && gone.is_empty() {
            return;
        }
        let (events, rest) = (gone.iter().map(|event| event.position).collect(), rest.into_iter().cloned().collect());
        let mut lacking = Lacking { events, change: BTreeMap::new(), rest };
        let with = [(-1, entries), (1, &*lacking.rest)];
        for (sign, entries) in with.into_iter().take(if is_apart { 1 } else { 2 }) {
            let plan = self.plans.last().expect("the one that stands");
            let folded = folded(entries, clock, plan, effects);
            found.due = found.due.min(folded.due(entries, plan));
            for (total, sum) in effects.take(plan) {
                *lacking.change.entry(total).or_default() += sign * sum;
            }
        }
        if !is_apart {
            lacking.rest = Vec::new();
        }
        found.lacking = Some(Box::new(lacking));
    }

    fn outcome(&self, keyed: &Keyed<Plan>, clock: Millis) -> Vec<Outcome> {
        let (holds, credit) = (&*keyed.now.fold, &keyed.now.effects.credit);
        let tried = &self.plans[..self.trial.definitions.len()];
        let standing = self.plans.get(tried.len()).unwrap_or(holds);
        let outcome = |(place, plan): (usize, &Plan)| {
            let mut outcome = Outcome::new(plan, standing);
            let numbers = outcome.numbers(plan, standing);
            for (slot, found) in keyed.slots().iter().zip(&self.found) {
                let Some(asked) = person(holds, slot, credit, clock) else { continue };
                let now = Tried::new(standing, asked.state, asked.past, &self.trial);
                let stands = found.tried.get(tried.len()).unwrap_or(&now);
                outcome.add(
                    (place, plan),
                    &numbers,
                    &found.tried[place],
                    (stands, standing),
                    &asked.public(),
                    &self.trial,
                );
            }
            outcome.cut(&self.trial);
            outcome.cost.events = self.events / self.plans.len() as u64;
            outcome
        };
        tried.iter().enumerate().map(outcome).collect()
    }

    /// What the totals are, and what becomes of them without the events.
    fn lacking(&self, keyed: &Keyed<Plan>) -> Outcome {
        let mut outcome = Outcome::default();
        let lacks = &mut outcome.lacks;
        let total = |counted: &Counted| Total::clone(&counted.total);
        for (counted, sum) in keyed.now.effects.taken(&keyed.now.fold) {
            lacks.totals.insert(total(&counted), (sum, sum));
        }
        for lacking in self.found.iter().filter_map(|found| found.lacking.as_ref()) {
            lacks.profiles += u64::from(!lacking.events.is_empty());
            lacks.events.extend(&lacking.events);
            lacks.rest.extend(lacking.rest.iter().cloned());
            for (counted, change) in &lacking.change {
                lacks.totals.entry(total(counted)).or_default().1 += change;
            }
        }
        outcome
    }
}

/// What entries up to a clock fold to, aside from everything else.
fn folded(entries: &[Event], clock: Millis, plan: &Plan, effects: &mut Effects) -> Folded<Plan> {
    let mut folded = Folded::new(plan);
    folded.advance(clock, entries, plan, effects);
    effects.intents.clear();
    folded
}
