//! The profiles of one worker: what arrives for them in the first beat of a step, and what is true of them after it.

use std::collections::BTreeMap;
use std::sync::Arc;

use compact_str::CompactString;

use super::assemble::{Routed, Said};
use crate::event::Event;
use crate::identity::Id;
use crate::keyed::{Keyed, Slot};
use crate::plan::Plan;
use crate::profile::Effects;
use crate::profile::answers::{Asked, IntentRow, Page, Rows, intent_row, public_id};
use crate::profile::segments::NOT_A_MEMBER;
use crate::protocol::{Answer, Question};
use crate::time::Millis;
use crate::total::Total;

/// All profiles whose histories are kept here.
pub(super) struct Profiles {
    plan: Arc<Plan>,
    keyed: Keyed<Plan>,
    effects: Effects,
    intents: BTreeMap<IntentRow, i8>,
    retracts: Vec<(Id, u64, Id, CompactString)>,
    asked: Vec<(u64, Question, Option<Id>)>,
}

impl Profiles {
    /// Nobody yet.
    pub(super) fn new(plan: Arc<Plan>) -> Self {
        let effects = Effects::new(&plan);
        Profiles {
            plan,
            keyed: Keyed::default(),
            effects,
            intents: BTreeMap::new(),
            retracts: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// The first beat: something arrives; `leave` is called with each event whose person is now another.
    pub(super) fn arrive(&mut self, routed: Routed, mut leave: impl FnMut(Id, Event)) {
        match routed {
            Routed::Event(None, event) => {
                let key = event.own.clone();
                self.keyed.insert(&key, event, &self.plan);
            }
            Routed::Event(Some(key), event) => self.keyed.insert(&key, event, &self.plan),
            Routed::Share(component) => self.keyed.share(&component.key, component.ids, &self.plan),
            Routed::Leave(from, id, to) => {
                for event in self.extract(&from, |event| event.own == id) {
                    leave(to.clone(), event);
                }
            }
            // The event may be on its way from another person, so it is looked for when all have arrived.
            Routed::Retract(key, position, own, message_id) => self.retracts.push((key, position, own, message_id)),
            Routed::Ask(_, number, question, of) => self.asked.push((number, question, of)),
            Routed::Tick(_) => {}
        }
    }

    /// The second beat: all has arrived. Gives the changes of totals; the rest is said.
    pub(super) fn settle(
        &mut self,
        clock: Millis,
        moved: Vec<(Id, Event)>,
        plan: Option<Arc<Plan>>,
        said: &mut Said,
    ) -> Vec<(Total, i128)> {
        for (key, event) in moved {
            self.keyed.insert(&key, event, &self.plan);
        }
        for (key, position, own, message_id) in std::mem::take(&mut self.retracts) {
            self.extract(&key, |event| event.position < position && event.own == own && event.message_id == message_id);
        }
        let mut totals = Vec::new();
        if let Some(plan) = plan {
            let old = std::mem::replace(&mut self.plan, Arc::clone(&plan));
            let intents = &mut self.intents;
            self.keyed.refold(&old, &plan, &mut self.effects, |slot, effects| gather(&old, slot, effects, intents));
            totals = self.take_totals(&old);
            self.effects = Effects::new(&plan);
        }
        let (plan, intents) = (Arc::clone(&self.plan), &mut self.intents);
        self.keyed.advance(clock, &plan, &mut self.effects, |slot, effects| gather(&plan, slot, effects, intents));
        totals.extend(self.take_totals(&plan));
        said.intents = std::mem::take(&mut self.intents).into_iter().filter(|(_, change)| *change != 0).collect();
        for (number, question, of) in std::mem::take(&mut self.asked) {
            if let Some(part) = self.answer(question, of, clock) {
                said.answers.push((number, part));
            }
        }
        totals
    }

    fn extract(&mut self, key: &Id, leaves: impl Fn(&Event) -> bool) -> Vec<Event> {
        let (plan, intents) = (&self.plan, &mut self.intents);
        self.keyed.extract(key, leaves, plan, &mut self.effects, |slot, effects| gather(plan, slot, effects, intents))
    }

    fn take_totals(&mut self, plan: &Plan) -> Vec<(Total, i128)> {
        let counts = plan.totals.iter().zip(&mut self.effects.counts).filter(|(_, count)| **count != 0);
        let counts = counts.map(|(total, count)| (total.clone(), i128::from(std::mem::take(count))));
        counts.chain(std::mem::take(&mut self.effects.credit)).collect()
    }

    fn answer(&self, question: Question, of: Option<Id>, clock: Millis) -> Option<Answer> {
        let one = of.and_then(|key| self.keyed.get(&key)).and_then(|slot| self.ask(slot, clock));
        match question {
            Question::Profile(_) => Some(Answer::Profile(Box::new(one?.profile()))),
            Question::History { view, page, .. } => {
                let one = one?;
                Some(Answer::History(one.rows(view, page), one.places(view)))
            }
            Question::Members { segment, after, limit } => {
                let segment = self.plan.segment(&segment)?;
                Some(Answer::Members(self.members(segment, after.as_ref(), limit)))
            }
            Question::Deadlines { journey, limit } => {
                let journey = self.plan.journey(&journey)?;
                let mut all = Vec::new();
                for asked in self.everyone(clock) {
                    let public = asked.public();
                    all.extend(
                        asked.deadlines(journey).into_iter().map(|(at, emit, to)| (at, public.clone(), emit, to)),
                    );
                }
                all.sort();
                all.truncate(limit);
                Some(Answer::Deadlines(all, Vec::new()))
            }
            Question::Totals => None,
            Question::Dump(view) => {
                let page = Page { before: None, limit: usize::MAX };
                let rows = self.everyone(clock).map(|asked| asked.rows(view, page)).reduce(Rows::and);
                Some(rows.map_or(Answer::Nothing, Answer::Rows))
            }
        }
    }

    fn ask<'a>(&'a self, slot: &'a Slot<Plan>, clock: Millis) -> Option<Asked<'a>> {
        let state = slot.history.state();
        state.core.person.first_seen?;
        Some(Asked { plan: &self.plan, state, past: slot.history.past(), ids: &slot.ids, clock })
    }

    fn everyone(&self, clock: Millis) -> impl Iterator<Item = Asked<'_>> {
        self.keyed.slots().iter().filter_map(move |slot| self.ask(slot, clock))
    }

    fn members(&self, segment: usize, after: Option<&CompactString>, limit: usize) -> Vec<(CompactString, Millis)> {
        let all = self.keyed.slots().iter().filter_map(|slot| {
            let since = slot.history.state().core.members[segment];
            let public = (since != NOT_A_MEMBER).then(|| public_id(slot.history.state(), &slot.ids))?;
            after.is_none_or(|after| public > after).then(|| (public.clone(), since))
        });
        let mut all: Vec<_> = all.collect();
        all.sort();
        all.truncate(limit);
        all
    }
}

/// Takes what a history's steps meant to be sent, and what they took back of it.
fn gather(plan: &Plan, slot: &Slot<Plan>, effects: &mut Effects, intents: &mut BTreeMap<IntentRow, i8>) {
    for (meant, change) in effects.intents.drain(..) {
        let row = intent_row(plan, public_id(slot.history.state(), &slot.ids), &meant);
        *intents.entry(row).or_default() += change;
    }
}
