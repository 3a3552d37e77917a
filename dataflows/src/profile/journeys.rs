//! Journeys: where a person stands in each state machine, and the timers that move them.
//!
//! A timer is dated at its deadline, not when it is noticed; an event exactly at a deadline comes too late.

use crate::plan::{Anchor, Cause, Emission, Timer};
use crate::time::Millis;
use crate::value::Value;
use crate::vocabulary::{NameId, Slot};

use super::{Instant, Item, Root, Seen};

/// Where a person stands in a journey.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The state, by number.
    pub state: usize,
    /// Since when, ms.
    pub since: Millis,
    /// What the entry goes back to.
    pub root: Root,
    /// For each timer of the state its deadline and its anchor's root; none: not armed.
    pub deadlines: Box<[Option<(Millis, Root)>]>,
}

impl Default for Root {
    fn default() -> Self {
        Root::SCHEDULE
    }
}

/// The latest event of a name that timers count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latest {
    /// When, ms.
    pub at: Millis,
    /// What it goes back to.
    pub root: Root,
}

/// An event emitted by a timer at this instant, before it is applied.
pub(super) struct Emitted {
    pub(super) name: NameId,
    pub(super) values: Box<[(Slot, Value)]>,
    pub(super) root: Root,
}

impl Instant<'_> {
    /// A profile begins: it stands in the start state, and no campaign begins with that.
    pub(super) fn enter_start(&mut self, journey: usize, root: Root) {
        let start = self.plan.journeys[journey].start;
        self.stand(journey, start, root);
    }

    /// Notes an event that timers count from.
    pub(super) fn anchor(&mut self, seen: Seen<'_>) {
        if let Some(anchor) = self.plan.rules[seen.name.0 as usize].anchor {
            self.state.core.latest[anchor] = Some(Latest { at: self.at, root: seen.root });
        }
        if seen.kind.is_some() {
            self.state.core.activity = Some(Latest { at: self.at, root: seen.root });
        }
    }

    /// An event takes the first transition that matches, or moves the anchors of the state's timers.
    pub(super) fn judge_journey(&mut self, journey: usize, item: Item<'_>) {
        let Item::Event(seen) = item else { return };
        let plan = self.plan;
        let state = &plan.journeys[journey].states[self.state.core.standings[journey].state];
        let taken = state.transitions.iter().find(|way| {
            way.name == seen.name
                && way.segment.is_none_or(|segment| self.state.core.members[segment] != super::segments::NOT_A_MEMBER)
                && self.holds(way.rule.as_ref(), seen)
        });
        if let Some(way) = taken {
            return self.go(journey, way.to, way.total, seen.root);
        }
        let anchor = plan.rules[seen.name.0 as usize].anchor;
        for (number, timer) in state.timers.iter().enumerate() {
            let moved = match timer.since {
                Anchor::Entry => false,
                Anchor::Activity => seen.kind.is_some(),
                Anchor::Event(of) => anchor == Some(of),
            };
            if moved {
                let deadline = self.deadline(timer, self.at, seen.root);
                self.state.core.standings[journey].deadlines[number] = deadline;
                self.due_by(deadline.map_or(Millis::MAX, |(at, _)| at));
            }
        }
    }

    /// (2) Timers due at this instant: journeys by name, in each all timers as listed, until one moves.
    pub(super) fn timers(&mut self) {
        let plan = self.plan;
        for journey in 0..plan.journeys.len() {
            let from = self.state.core.standings[journey].state;
            for (number, timer) in
                plan.journeys[journey].states.get(from).map_or(&[][..], |state| &state.timers).iter().enumerate()
            {
                let armed = self.state.core.standings[journey].deadlines.get(number).copied().flatten();
                let Some((_, root)) = armed.filter(|(deadline, _)| *deadline <= self.at) else { continue };
                self.state.core.standings[journey].deadlines[number] = None;
                if let Some(Emission { name, values, .. }) = &timer.emit {
                    self.emitted.push(Emitted { name: *name, values: values.clone(), root });
                }
                if let Some((to, total)) = timer.to {
                    self.go(journey, to, total, root);
                    self.judge(Item::Timer(root));
                    break;
                }
            }
        }
    }

    pub(super) fn timer_due(&self) -> Millis {
        let deadlines = self.state.core.standings.iter().flat_map(|standing| standing.deadlines.iter().flatten());
        deadlines.map(|(at, _)| *at).min().unwrap_or(Millis::MAX)
    }

    fn go(&mut self, journey: usize, to: usize, total: usize, root: Root) {
        let plan = self.plan;
        let of = &plan.journeys[journey];
        self.effects.counts[of.states[self.state.core.standings[journey].state].total] -= 1;
        self.effects.counts[total] += 1;
        self.state.tapes.moves.push(total as u32);
        self.stand(journey, to, root);
        self.wake_all(&of.readers);
        for campaign in &of.states[to].campaigns {
            self.candidate(*campaign, Cause::Journey, root, None);
        }
    }

    fn stand(&mut self, journey: usize, state: usize, root: Root) {
        let of = &self.plan.journeys[journey].states[state];
        let deadlines: Box<[_]> = of
            .timers
            .iter()
            .map(|timer| match timer.since {
                Anchor::Entry => self.deadline(timer, self.at, root),
                Anchor::Activity => self.since_latest(timer, self.state.core.activity),
                Anchor::Event(anchor) => self.since_latest(timer, self.state.core.latest[anchor]),
            })
            .collect();
        self.effects.counts[of.total] += 1;
        for (deadline, _) in deadlines.iter().flatten() {
            self.due_by(*deadline);
        }
        self.state.core.standings[journey] = Standing { state, since: self.at, root, deadlines };
    }

    fn since_latest(&self, timer: &Timer, latest: Option<Latest>) -> Option<(Millis, Root)> {
        self.deadline(timer, latest?.at, latest?.root)
    }

    /// Armed only if strictly later than now.
    fn deadline(&self, timer: &Timer, anchor: Millis, root: Root) -> Option<(Millis, Root)> {
        let deadline = anchor.checked_add(timer.after)?;
        (deadline > self.at).then_some((deadline, root))
    }
}
