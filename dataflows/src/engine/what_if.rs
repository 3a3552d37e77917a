//! What if: other definitions tried on all people beside those that hold, some of them each time it is asked.
//!
//! Each person's entries are folded aside, and what that gives is kept; who was touched since, or had something due, is
//! folded again. So when nobody is left the whole is true of one logical time, that of the step which asks.

use std::sync::Arc;

use super::profiles::{PREPARED_ENTRIES, person};
use crate::keyed::{Keyed, Slot};
use crate::plan::{Horizons, Plan};
use crate::profile::Effects;
use crate::profile::trial::{Outcome, Trial, Tried};
use crate::protocol::Answer;
use crate::time::Millis;

/// A trial under way.
pub(super) struct WhatIf {
    trial: Arc<Trial>,
    plans: Vec<Plan>,
    /// By slot.
    found: Vec<Found>,
    /// Entries to fold the next time.
    budget: usize,
    events: u64,
}

/// One person under each of the plans.
struct Found {
    tried: Box<[Tried]>,
    /// Nothing changes before this instant unless they are touched.
    due: Millis,
    /// In which advance they had been touched last.
    stepped: u64,
}

impl Found {
    fn is_stale(&self, slot: &Slot<Plan>, clock: Millis) -> bool {
        self.stepped != slot.stepped || self.due <= clock
    }
}

impl WhatIf {
    /// Nobody yet. What is tried names nothing that the standing plan does not know.
    pub(super) fn new(standing: &Plan, trial: Arc<Trial>) -> WhatIf {
        let plan = |(of, horizons): &(_, _)| standing.after(Arc::clone(of), Horizons::clone(horizons));
        let plans = trial.definitions.iter().map(plan).collect();
        WhatIf { trial, plans, found: Vec::new(), budget: PREPARED_ENTRIES, events: 0 }
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
                return Answer::Tried(self.outcome(keyed, clock));
            }
            // However much happens meanwhile, it comes to an end.
            self.budget *= 2;
        }
        Answer::Trying(self.found.len() as u64, slots.len() as u64)
    }

    fn fold(&mut self, slot: &Slot<Plan>, clock: Millis, effects: &mut [Effects], left: &mut isize) -> Found {
        let (history, mut due) = (&slot.history, Millis::MAX);
        let tried = self.plans.iter().zip(effects).map(|(plan, effects)| {
            let folded = history.aside(clock, plan, effects);
            effects.intents.clear();
            due = due.min(folded.due(history.entries(), plan));
            *left -= history.entries().len() as isize + 1;
            self.events += folded.past(history.entries()).len() as u64;
            Tried::new(plan, folded.state(), &self.trial)
        });
        let tried = tried.collect();
        Found { tried, due, stepped: slot.stepped }
    }

    fn outcome(&self, keyed: &Keyed<Plan>, clock: Millis) -> Vec<Outcome> {
        let (standing, credit) = (&*keyed.now.fold, &keyed.now.effects.credit);
        let outcome = |(place, plan): (usize, &Plan)| {
            let mut outcome = Outcome::new(plan, standing);
            let numbers = outcome.numbers(plan, standing);
            for (slot, found) in keyed.slots().iter().zip(&self.found) {
                if let Some(asked) = person(standing, slot, credit, clock) {
                    outcome.add((place, plan), &numbers, &found.tried[place], &asked, &self.trial);
                }
            }
            outcome.cut(&self.trial);
            outcome.cost.events = self.events / self.plans.len() as u64;
            outcome
        };
        self.plans.iter().enumerate().map(outcome).collect()
    }
}
