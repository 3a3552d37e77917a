//! The profiles of one worker: what arrives for them in the first beat of a step, and what is true of them after it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::hashable::Hashable;
use ecow::EcoString;
use hashbrown::{HashMap, HashSet};

use super::assemble::{Ask, Assignment, Forward, Now};
use super::watch::{Change, Watch};
use super::what_if::WhatIf;
use crate::event::{Context, Event};
use crate::identity::{Erasure, Id, Move};
use crate::intake::Prepared;
use crate::keyed::{Folding, Keyed, Slot};
use crate::plan::Plan;
use crate::profile::answers::{Asked, IntentRow, Page, ProfileRow, Rows, SessionRow, View, intent_row, public_id};
use crate::profile::attribution::Credit;
use crate::profile::campaigns::{Intent, Meant, Status};
use crate::profile::explain::{INSTANTS_MAX, explain};
use crate::profile::sums::{Credited, Span, Visits};
use crate::profile::trial::Trial;
use crate::profile::{Effects, State};
use crate::protocol::{Answer, Deadline, Question, Record};
use crate::strike::{names, without};
use crate::time::Millis;
use crate::total::{Counted, Total};

/// All profiles whose histories are kept here.
pub(super) struct Profiles {
    keyed: Keyed<Plan>,
    /// Ids of this worker whose person has another key.
    away: HashMap<Id, Id>,
    intents: Vec<(IntentRow, i8)>,
    retracts: Vec<(Id, Id, EcoString)>,
    reread: Vec<(Id, Event)>,
    erasures: Vec<(Erasure, Vec<Id>)>,
    /// Hashes of all texts that events here carry, since somebody was erased: whose id is none of them, nobody names.
    texts: Option<HashSet<u64>>,
    /// By own id, how many events were taken back.
    retracted: HashMap<Id, u64>,
    /// How many plans came for which to prepare.
    plans: u64,
    /// The number of the one for which all is prepared, which every worker has to know; 0: there is none.
    ready: Rc<Cell<u64>>,
    /// That of the last step.
    clock: Millis,
    asked: Vec<(Ask, Option<Id>)>,
    watch: Watch,
    /// Definitions that are tried, by who asks.
    tried: BTreeMap<(usize, u64), WhatIf>,
}

/// What is told of a step.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Changes of totals.
    pub(super) totals: Vec<(Counted, i128)>,
    /// Intents that came and went.
    pub(super) intents: Vec<(IntentRow, i8)>,
    /// Whom intents came for that may go out at once.
    pub(super) people: Vec<ProfileRow>,
    /// Rows that are watched, and changed.
    pub(super) rows: Vec<Change>,
    /// Credit that is watched, and changed: to which worker, what, by how much.
    pub(super) credit: Vec<(usize, Total, i128)>,
    /// Which definitions hold from now on, if others do.
    pub(super) switched: Option<u64>,
    /// Profiles that are prepared for definitions to come, and all; none: there are none to come.
    pub(super) prepared: Option<(u64, u64)>,
    /// Events that erasures took from here, by their places.
    pub(super) gone: Vec<(u64, u64)>,
    /// Parts of answers: to which worker, to which question.
    pub(super) answers: Vec<(usize, u64, Answer)>,
}

impl Profiles {
    /// Nobody yet. For which plan all is prepared is noted in `ready`.
    pub(super) fn new(plan: Arc<Plan>, ready: Rc<Cell<u64>>) -> Self {
        Profiles {
            keyed: Keyed::new(folding(plan)),
            away: HashMap::new(),
            intents: Vec::new(),
            retracts: Vec::new(),
            reread: Vec::new(),
            erasures: Vec::new(),
            texts: None,
            retracted: HashMap::new(),
            plans: 0,
            ready,
            clock: 0,
            asked: Vec::new(),
            watch: Watch::default(),
            tried: BTreeMap::new(),
        }
    }

    /// The first beat: who is whom. `send` takes what goes on to the worker of a key.
    pub(super) fn assign(&mut self, assignment: Assignment, send: &mut impl FnMut(Id, Forward)) {
        match assignment {
            Assignment::Home(id, key) if id == key => drop(self.away.remove(&id)),
            Assignment::Home(id, key) => drop(self.away.insert(id, key)),
            Assignment::Share(component) => self.keyed.share(&component.key, component.ids),
            // What comes in the same step has to be there first.
            Assignment::Strike(_, erasure, keys) => self.erasures.push((erasure, keys)),
            Assignment::Leave(Move { id, from, to }) => {
                for event in self.extract(&from, |event| event.own == id) {
                    send(to.clone(), Forward::Event(event));
                }
            }
        }
    }

    /// The first beat: something was decided on.
    pub(super) fn record(&mut self, record: Record, send: &mut impl FnMut(Id, Forward)) {
        match record {
            Record::Event(Prepared { event, .. }) => match self.home(&event.own) {
                Some(key) => send(key, Forward::Event(event)),
                None => {
                    let slot = self.keyed.touch(&event.own);
                    self.insert(slot, event);
                }
            },
            Record::Reread(event) => {
                send(self.home(&event.own).unwrap_or_else(|| event.own.clone()), Forward::Reread(event));
            }
            Record::Retract(_, _, own, message_id, _) => {
                send(self.home(&own).unwrap_or_else(|| own.clone()), Forward::Retract(own, message_id));
            }
            // What was not accepted, and what is not about events.
            _ => {}
        }
    }

    /// The first beat: something is asked.
    pub(super) fn ask(&mut self, ask: Ask, send: &mut impl FnMut(Id, Forward)) {
        match ask.question.about().cloned() {
            Some(id) => send(self.home(&id).unwrap_or(id), Forward::Ask(ask)),
            None => self.asked.push((ask, None)),
        }
    }

    /// The key of an id's person, if that is another id.
    fn home(&self, id: &Id) -> Option<Id> {
        if self.away.is_empty() { None } else { self.away.get(id).cloned() }
    }

    /// The second beat: all has arrived. Where intents may go out, whom they are for is told.
    pub(super) fn settle(
        &mut self,
        now: Now,
        forwarded: Vec<(Id, Forward)>,
        sends: bool,
        plan: Option<Arc<Plan>>,
    ) -> Settled {
        let clock = now.clock;
        for (key, forward) in forwarded {
            match forward {
                Forward::Event(event) => {
                    let slot = self.keyed.touch(&key);
                    self.insert(slot, event);
                }
                // The event may be on its way from another person, so it is looked for when all have arrived.
                Forward::Retract(own, message_id) => self.retracts.push((key, own, message_id)),
                Forward::Reread(event) => self.reread.push((key, event)),
                Forward::Ask(ask) => self.asked.push((ask, Some(key))),
            }
        }
        for (key, own, message_id) in std::mem::take(&mut self.retracts) {
            let gone = self.extract(&key, |event| event.own == own && event.message_id == message_id);
            if !gone.is_empty() {
                *self.retracted.entry(own).or_default() += 1;
            }
        }
        let nothing = Context::default();
        for (key, event) in std::mem::take(&mut self.reread) {
            let known = self.keyed.find_mut(&key, &event).filter(|known| known.position == event.position);
            let Some(known) = known else { continue };
            note(&mut self.texts, &event);
            if event.context().unwrap_or(&nothing) == known.context().unwrap_or(&nothing) {
                (known.name, known.details) = (event.name, event.details);
                continue;
            }
            // What names somebody who was erased was struck from it, and something else stands there instead.
            self.extract(&key, |known| known.position == event.position);
            let slot = self.keyed.touch(&key);
            self.insert(slot, event);
        }
        let mut settled = Settled::default();
        for (erasure, keys) in std::mem::take(&mut self.erasures) {
            settled.gone.push((erasure.position, self.strike(&erasure, keys)));
        }
        let (watch, intents, rows) = (&mut self.watch, &mut self.intents, &mut settled.rows);
        self.keyed.advance(clock, |plan, slot, effects| {
            let goes_out = |(Meant { intent, .. }, change): &(Meant, i8)| {
                *change > 0 && intent.status == Status::Due && intent.not_before <= clock
            };
            let is_told = sends && effects.intents.iter().any(goes_out);
            tell(plan, slot, effects, intents);
            if is_told {
                let one = person(plan, slot, &effects.credit, clock);
                settled.people.extend(one.map(|one| one.profile()));
            }
            if !watch.is_idle() {
                watch.touched(&slot.key, person(plan, slot, &effects.credit, clock), rows);
            }
        });
        for key in self.watch.due(clock) {
            let Folding { fold, effects } = &self.keyed.now;
            let asked = self.keyed.get(&key).and_then(|slot| person(fold, slot, &effects.credit, clock));
            self.watch.touched(&key, asked, rows);
        }
        settled.totals = self.keyed.now.effects.take(&self.keyed.now.fold);
        // What every worker was ready for when this step began, each of them does in this step.
        if now.ready == self.plans && self.ready.get() == self.plans {
            self.switch(clock, &mut settled);
        }
        if let Some(plan) = plan {
            self.keyed.begin(folding(plan));
            self.plans += 1;
            self.ready.set(0);
        }
        self.clock = clock;
        if self.keyed.coming().is_some() {
            self.prepare(PREPARED_ENTRIES);
            let (done, all) = self.keyed.progress();
            settled.prepared = Some((done as u64, all as u64));
        }
        let credit = self.watch.credit(&settled.totals);
        settled.credit = credit.map(|(to, total, change)| (to, total.clone(), change)).collect();
        settled.intents = consolidated(std::mem::take(&mut self.intents));
        let plan = Arc::clone(&self.keyed.now.fold);
        for (Ask { to, number, question }, of) in std::mem::take(&mut self.asked) {
            if let Question::Watch(view, follows) = question {
                let (slots, credit) = (self.keyed.slots().iter(), &self.keyed.now.effects.credit);
                let everyone = slots.filter_map(|slot| Some((&slot.key, person(&plan, slot, credit, clock)?)));
                let rows = self.watch.follow(view, to, follows, everyone);
                settled.answers.push((to, number, Answer::Watched(rows)));
                continue;
            }
            if let Question::WhatIf(trial, begins) = question {
                settled.answers.extend(self.what_if((to, trial), begins, clock).map(|part| (to, number, part)));
                continue;
            }
            if let Question::Forget(trial) = question {
                self.tried.remove(&(to, trial));
                continue;
            }
            settled.answers.extend(self.answer(question, of, clock).map(|part| (to, number, part)));
        }
        settled
    }

    /// No step is under way: does a little of what can wait. Whether there is more of it.
    pub(super) fn idle(&mut self) -> bool {
        // Builds that check leave every other change to the steps, so that many of those see it under way.
        let prepares = !cfg!(debug_assertions) || self.plans.is_multiple_of(2);
        self.keyed.give_back(GIVEN_BACK) | (prepares && self.prepare(IDLE_ENTRIES))
    }

    /// Prepares histories of so many entries for definitions to come. Whether there are more.
    fn prepare(&mut self, entries: usize) -> bool {
        let Some(next) = self.keyed.coming().filter(|_| self.ready.get() != self.plans) else { return false };
        // Nobody is told of them before they hold.
        next.effects.intents.clear();
        let is_ready = self.keyed.prepare(self.clock, entries);
        if is_ready {
            self.ready.set(self.plans);
        }
        !is_ready
    }

    /// What was prepared on every worker holds from now on: tells the difference.
    fn switch(&mut self, clock: Millis, settled: &mut Settled) {
        let intents = &mut self.intents;
        let before = self.keyed.switch(|old, new, slot, folded| retell(old, new, slot, folded.state(), intents));
        let Some(Folding { fold, effects }) = before else { return };
        let now = &mut self.keyed.now;
        now.effects.intents.clear();
        let mut changes: BTreeMap<Counted, i128> = BTreeMap::new();
        let gone = effects.taken(&fold).into_iter().map(|(total, sum)| (total, -sum));
        for (total, change) in gone.chain(now.effects.take(&now.fold)) {
            *changes.entry(total).or_default() += change;
        }
        settled.totals.extend(changes.into_iter().filter(|(_, change)| *change != 0));
        settled.switched = Some(self.plans);
        // They are as the definitions before say.
        settled.people.clear();
        self.ready.set(0);
        if !self.watch.is_idle() {
            let Folding { fold, effects } = &self.keyed.now;
            for slot in self.keyed.slots() {
                self.watch.touched(&slot.key, person(fold, slot, &effects.credit, clock), &mut settled.rows);
            }
        }
    }

    /// Does some more of a trial. Whoever begins one has given up those before.
    fn what_if(&mut self, of: (usize, u64), begins: Option<Arc<Trial>>, clock: Millis) -> Option<Answer> {
        if let Some(trial) = begins.filter(|_| !self.tried.contains_key(&of)) {
            self.tried.retain(|(asks, _), _| *asks != of.0);
            self.tried.insert(of, WhatIf::new(&self.keyed.now.fold, trial));
        }
        Some(self.tried.get_mut(&of)?.go_on(&self.keyed, clock))
    }

    fn insert(&mut self, slot: u32, event: Event) {
        note(&mut self.texts, &event);
        let intents = &mut self.intents;
        self.keyed.insert(slot, event, |plan, slot, effects| took_back(plan, slot, effects, intents));
    }

    fn extract(&mut self, key: &Id, leaves: impl Fn(&Event) -> bool) -> Vec<Event> {
        let intents = &mut self.intents;
        self.keyed.extract(key, leaves, |plan, slot, effects| took_back(plan, slot, effects, intents))
    }

    /// Takes out what is kept here of somebody, and of others what names them; gives how many events were theirs.
    fn strike(&mut self, Erasure { position, ids, .. }: &Erasure, keys: Vec<Id>) -> u64 {
        let ids: HashSet<&str> = ids.iter().map(EcoString::as_str).collect();
        let gone = |id: &str| ids.contains(id);
        let is_meant = |event: &Event| event.position < *position && (gone(&event.own) || names(event, &gone));
        let has_any = |slot: &&Slot<Plan>| slot.history.entries().iter().any(is_meant);
        let everyone = self.keyed.slots();
        let texts = self.texts.get_or_insert_with(|| {
            let (mut texts, mut seen) = (Some(HashSet::new()), HashSet::new());
            let all = everyone.iter().flat_map(|slot| slot.history.entries());
            // What many carry alike they share.
            let different = all.filter(|event| event.details.as_ref().is_some_and(|of| seen.insert(Arc::as_ptr(of))));
            different.for_each(|event| note(&mut texts, event));
            texts.unwrap_or_default()
        });
        let keys: Vec<Id> = if ids.iter().any(|id| texts.contains(&id.hashed())) {
            everyone.iter().filter(has_any).map(|slot| slot.key.clone()).collect()
        } else {
            keys
        };
        // Those too that had been taken back.
        let mut count = ids.iter().filter_map(|id| self.retracted.remove(*id)).sum();
        for key in keys {
            for mut event in self.extract(&key, is_meant) {
                if gone(&event.own) {
                    count += 1;
                    continue;
                }
                event.details = event.details.map(|details| without(&details, &gone).map_or(details, Arc::new));
                let slot = self.keyed.touch(&key);
                self.insert(slot, event);
            }
        }
        count
    }

    fn answer(&self, question: Question, of: Option<Id>, clock: Millis) -> Option<Answer> {
        let slot = of.and_then(|key| self.keyed.get(&key));
        let one = slot.and_then(|slot| self.person(slot, clock));
        match question {
            Question::Profile(_) | Question::Person(_) => Some(Answer::Profile(Box::new(one?.profile()))),
            Question::Whole(_) => {
                let one = one?;
                let all = Page { before: None, limit: usize::MAX };
                let public = public_of(slot?);
                // Those of the future too.
                let events = slot?.history.entries().iter().rev();
                let event = |event: &Event| (public.clone(), event.timestamp, event.position);
                let events = Rows::Events(events.map(event).collect());
                let rows = View::HISTORIES.map(|view| match view {
                    View::Events => events.clone(),
                    view => one.page(view, &all).0,
                });
                Some(Answer::Whole(Box::new(one.profile()), rows.into()))
            }
            Question::ProfileAt(_, at) => {
                let (of, mut effects) = (one.filter(|_| at <= clock)?, Effects::new(self.plan()));
                let history = &slot?.history;
                let folded = history.aside(at, self.plan(), &mut effects);
                let (state, past) = (&**folded.state(), folded.past(history.entries()));
                let asked = Asked { state, past, credit: &effects.credit, clock: at, ..of };
                state.core.exists().then(|| Answer::Profile(Box::new(asked.profile())))
            }
            Question::Explain { segment, at, .. } => {
                let (public, number) = (one?.public(), self.plan().segment(&segment)?);
                let at = at.unwrap_or(clock);
                let explained = explain(self.plan(), number, &slot?.history, &public, at).filter(|_| at <= clock);
                explained.map(|explained| Answer::Explained(Box::new(explained)))
            }
            Question::History { view, page, .. } => {
                let (rows, next) = one?.page(view, &page);
                Some(Answer::History(rows, next))
            }
            Question::Members { segment, after, limit } => {
                let segment = self.plan().segment(&segment)?;
                Some(Answer::Members(self.members(segment, after.as_ref(), limit)))
            }
            Question::Deadlines { journey, within, after, limit } => {
                let journey = self.plan().journey(&journey)?;
                if let Some(within) = within {
                    return Some(Answer::Deadlines(self.timers(journey, clock, within, after.as_ref(), limit)));
                }
                let mut all: Vec<Deadline> = Vec::new();
                for asked in self.everyone(clock) {
                    let public = asked.public();
                    let due = asked.deadlines(journey).into_iter();
                    let due = due.map(|(at, emit, to)| (at, public.clone(), emit, to));
                    all.extend(due.filter(|due| after.as_ref().is_none_or(|after| due > after)));
                }
                all.sort();
                all.truncate(limit);
                Some(Answer::Deadlines(all))
            }
            Question::Sessions { span, before, limit } => {
                Some(Answer::Sessions(self.sessions(clock, span, before.as_ref(), limit)))
            }
            Question::Visits(span) => {
                let mut sum = Visits::default();
                self.everyone(clock).for_each(|asked| asked.add_visits(span, &mut sum));
                Some(Answer::Visits(sum))
            }
            Question::Credit(sought) => {
                let mut sum = Credited::default();
                self.everyone(clock).for_each(|asked| asked.add_credit(&sought, &mut sum));
                Some(Answer::Credit(sum))
            }
            Question::Followed => {
                let mut sum = vec![0; self.plan().campaigns.len()];
                self.everyone(clock).for_each(|asked| asked.add_followed(&mut sum));
                Some(Answer::Followed(sum))
            }
            Question::Standing(events) => Some(Answer::Standing(self.standing(&events))),
            Question::Totals
            | Question::Watch(..)
            | Question::WhatIf(..)
            | Question::Forget(_)
            | Question::Linked(..)
            | Question::Apart(_)
            | Question::Unlinked { .. } => None,
            Question::Dump(view) => {
                self.everyone(clock).map(|asked| asked.rows(view)).reduce(Rows::and).map(Answer::Rows)
            }
        }
    }

    pub(super) fn person<'a>(&'a self, slot: &'a Slot<Plan>, clock: Millis) -> Option<Asked<'a>> {
        person(self.plan(), slot, &self.keyed.now.effects.credit, clock)
    }

    fn plan(&self) -> &Plan {
        &self.keyed.now.fold
    }

    fn everyone(&self, clock: Millis) -> impl Iterator<Item = Asked<'_>> {
        self.keyed.slots().iter().filter_map(move |slot| self.person(slot, clock))
    }

    /// The newest sessions, of all profiles; no more than the limit are ever held.
    fn sessions(
        &self,
        clock: Millis,
        span: Span,
        before: Option<&(Millis, EcoString)>,
        limit: usize,
    ) -> Vec<SessionRow> {
        let mut newest = BTreeMap::new();
        for asked in self.everyone(clock) {
            let public = public_id(asked.state, asked.past, asked.ids);
            for session in asked.state.sessions_from(0).filter(|session| span.contains(session.start)) {
                if before.is_none_or(|(start, profile)| (session.start, public) < (*start, profile)) {
                    newest.insert((session.start, public), (asked, session));
                }
                if newest.len() > limit {
                    newest.pop_first();
                }
            }
        }
        newest.into_values().rev().map(|(asked, session)| asked.session(&session)).collect()
    }

    /// Those of these events that are there, also if their time is yet to come: position, public id.
    fn standing(&self, events: &[(Id, u64)]) -> Vec<(u64, EcoString)> {
        let mut sought: HashMap<&Id, HashSet<u64>> = HashMap::new();
        for (own, position) in events {
            sought.entry(own).or_default().insert(*position);
        }
        let mut found = Vec::new();
        for slot in self.keyed.slots().iter().filter(|slot| slot.ids().iter().any(|id| sought.contains_key(id))) {
            let is_sought =
                |event: &&Event| sought.get(&event.own).is_some_and(|places| places.contains(&event.position));
            let there = slot.history.entries().iter().filter(is_sought);
            found.extend(there.map(|event| (event.position, public_of(slot).clone())));
        }
        found
    }

    /// The timers of a journey that fire within a span of the clock if nothing happens, in their order.
    fn timers(
        &self,
        journey: usize,
        clock: Millis,
        within: Millis,
        after: Option<&Deadline>,
        limit: usize,
    ) -> Vec<Deadline> {
        let (plan, until) = (self.plan().unscheduled(), clock.saturating_add(within));
        let first = |slot| {
            let asked: Asked<'_> = self.person(slot, clock)?;
            // What another journey's timer emits may set one of this.
            let first = (0..plan.journeys.len()).filter_map(|of| Some(asked.deadlines(of).first()?.0)).min();
            Some((first?, slot, asked))
        };
        let people = self.keyed.slots().iter().filter_map(first).filter(|(at, ..)| *at <= until);
        let mut people: Vec<_> = people.collect();
        people.sort_by_key(|(at, ..)| *at);
        let (mut all, mut effects): (Vec<Deadline>, _) = (Vec::new(), Effects::new(&plan));
        for (first, slot, asked) in people {
            // Nobody's timers come before the first of them.
            if all.get(limit).is_some_and(|(at, ..)| *at < first) {
                break;
            }
            let (public, mut folded) = (asked.public(), slot.history.ahead());
            for _ in 0..INSTANTS_MAX {
                let at = folded.due(asked.past, &plan);
                if at > until {
                    break;
                }
                let fires = Asked { state: folded.state(), ..asked }.firing(journey, at).into_iter();
                let fires = fires.map(|(at, emit, to)| (at, public.clone(), emit, to));
                all.extend(fires.filter(|fires| after.is_none_or(|after| fires > after)));
                folded.advance(at, asked.past, &plan, &mut effects);
                effects.intents.clear();
            }
            all.sort();
        }
        all.truncate(limit);
        all
    }

    fn members(&self, segment: usize, after: Option<&EcoString>, limit: usize) -> Vec<(EcoString, Millis)> {
        let all = self.keyed.slots().iter().filter_map(|slot| {
            let since = slot.history.state().member_since(segment)?;
            let public = public_of(slot);
            after.is_none_or(|after| public > after).then(|| (public.clone(), since))
        });
        let mut all: Vec<_> = all.collect();
        all.sort();
        all.truncate(limit);
        all
    }
}

/// Notes the texts that an event carries, if any are noted.
fn note(texts: &mut Option<HashSet<u64>>, event: &Event) {
    if let Some(texts) = texts {
        let texts = RefCell::new(texts);
        names(event, &|text| {
            texts.borrow_mut().insert(text.hashed());
            false
        });
    }
}

/// Somebody as they are asked, if they are there.
pub(super) fn person<'a>(plan: &'a Plan, slot: &'a Slot<Plan>, credit: &'a Credit, clock: Millis) -> Option<Asked<'a>> {
    let state = slot.history.state();
    let past = slot.history.past();
    let asked = Asked { plan, state, past, credit, ids: slot.ids(), known_by: (state, past), clock };
    state.core.exists().then_some(asked)
}

fn public_of(slot: &Slot<Plan>) -> &EcoString {
    public_id(slot.history.state(), slot.history.past(), slot.ids())
}

/// A history went back: takes off the intents that it took back, under the id by which they were told.
fn took_back(plan: &Plan, slot: &mut Slot<Plan>, effects: &mut Effects, intents: &mut Vec<(IntentRow, i8)>) {
    let told_as = &slot.history.state().told_as;
    let rows = effects.intents.drain(..).map(|(meant, change)| (intent_row(plan, told_as, &meant), change));
    intents.extend(rows);
}

/// A history is up to the clock: tells the intents that came. Under another id than before all are told anew.
fn tell(plan: &Plan, slot: &mut Slot<Plan>, effects: &mut Effects, intents: &mut Vec<(IntentRow, i8)>) {
    let state = slot.history.state();
    let public = public_of(slot);
    if effects.intents.is_empty() && (state.tapes.intents.is_empty() || state.told_as == *public) {
        return;
    }
    let (public, before) = (public.clone(), state.told_as.clone());
    let came = std::mem::take(&mut effects.intents);
    intents.extend(came.iter().map(|(meant, change)| (intent_row(plan, &public, meant), *change)));
    if before != public {
        let stood = state.tapes.intents.iter().map(|intent| Meant::new(*intent, slot.history.past()));
        let stood = stood.filter(|meant| !came.iter().any(|(other, _)| other == meant));
        for meant in stood {
            intents.push((intent_row(plan, &before, &meant), -1));
            intents.push((intent_row(plan, &public, &meant), 1));
        }
        slot.history.state_mut().told_as = public;
    }
}

/// Other definitions hold of a history: what of its intents did, and does not any more, and the other way round.
fn retell(old: &Plan, new: &Plan, slot: &mut Slot<Plan>, before: &State, intents: &mut Vec<(IntentRow, i8)>) {
    let (were, are) = (&before.tapes.intents, &slot.history.state().tapes.intents);
    if were.is_empty() && are.is_empty() {
        return;
    }
    let public = public_of(slot).clone();
    let name = |plan: &Plan, intent: &Intent| plan.campaigns[intent.campaign].name.clone();
    let same = |(was, is): (&Intent, &Intent)| {
        name(old, was) == name(new, is) && *was == Intent { campaign: was.campaign, ..*is }
    };
    if were.len() != are.len() || public != before.told_as || !were.iter().zip(are).all(same) {
        let past = slot.history.past();
        let row = |plan, id, intent: &Intent| intent_row(plan, id, &Meant::new(*intent, past));
        intents.extend(were.iter().map(|intent| (row(old, &before.told_as, intent), -1)));
        intents.extend(are.iter().map(|intent| (row(new, &public, intent), 1)));
    }
    slot.history.state_mut().told_as = public;
}

/// Entries of histories that are prepared for definitions to come in one step: as many as delay nobody who waits for
/// it. Builds that check take fewer, so that short histories too are prepared in several.
pub(super) const PREPARED_ENTRIES: usize = if cfg!(debug_assertions) { 20 } else { 1_000 };

/// The same between steps, again and again.
const IDLE_ENTRIES: usize = 250;

/// What so many histories were under definitions that do not hold any more is given back at once.
const GIVEN_BACK: usize = 50;

fn folding(plan: Arc<Plan>) -> Folding<Plan> {
    let effects = Effects::new(&plan);
    Folding { fold: plan, effects }
}

/// Rows with the sum of their changes, where it is not nothing.
fn consolidated(mut rows: Vec<(IntentRow, i8)>) -> Vec<(IntentRow, i8)> {
    rows.sort_unstable();
    rows.dedup_by(|(row, change), (kept, sum)| {
        let same = row == kept;
        *sum += if same { *change } else { 0 };
        same
    });
    rows.retain(|(_, change)| *change != 0);
    rows
}
