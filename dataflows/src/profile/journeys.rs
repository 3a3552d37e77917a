//! Journeys: where a person stands in each state machine, and the timers that move them.
//!
//! A timer is dated at its deadline, not when it is noticed; an event exactly at a deadline comes too late.

use crate::plan::{Anchor, Cause, Emission, JourneyPlan, Plan, Timer};
use crate::time::Millis;
use crate::value::Value;
use crate::vocabulary::{NameId, Slot};

use super::{Instant, Item, NEVER, Root, Seen, State};

/// Where a person stands in a journey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The state, by number.
    pub state: usize,
    /// Since when, ms.
    pub since: Millis,
    /// What the entry goes back to.
    pub root: Root,
}

/// The words of a standing before those of its timers.
const STANDING: usize = 3;
/// In place of a deadline: the timer is not armed.
const UNARMED: Millis = Millis::MAX;

/// The words of a journey before the first event: state, since, root; for each timer deadline and root.
pub(super) fn words(journey: &JourneyPlan) -> Vec<i64> {
    let timers = journey.states.iter().map(|state| state.timers.len()).max().unwrap_or(0);
    let mut words = vec![journey.start as i64, NEVER, i64::from(Root::SCHEDULE.0)];
    (0..timers).for_each(|_| words.extend([UNARMED, 0]));
    words
}

/// The latest event of a name that timers count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latest {
    /// When, ms.
    pub at: Millis,
    /// What it goes back to.
    pub root: Root,
}

impl Latest {
    /// The words of an anchor before its first event: when, root.
    pub(super) const NONE: [i64; 2] = [NEVER, 0];
}

impl State {
    /// Where the person stands in a journey.
    #[inline]
    pub fn standing(&self, plan: &Plan, journey: usize) -> Standing {
        let words = &self.words[plan.layout.journeys[journey]..];
        Standing { state: words[0] as usize, since: words[1], root: Root(words[2] as u32) }
    }

    /// When a timer of the present state is due, and its anchor's root; none: not armed.
    pub fn deadline(&self, plan: &Plan, journey: usize, timer: usize) -> Option<(Millis, Root)> {
        let words = &self.words[plan.layout.journeys[journey] + STANDING + 2 * timer..];
        (words[0] != UNARMED).then_some((words[0], Root(words[1] as u32)))
    }

    fn arm(&mut self, plan: &Plan, journey: usize, timer: usize, deadline: Option<(Millis, Root)>) {
        let words = &mut self.words[plan.layout.journeys[journey] + STANDING + 2 * timer..];
        (words[0], words[1]) = deadline.map_or((UNARMED, 0), |(at, root)| (at, i64::from(root.0)));
    }

    fn latest(&self, plan: &Plan, anchor: usize) -> Option<Latest> {
        let words = &self.words[plan.layout.anchors + 2 * anchor..];
        (words[0] != NEVER).then_some(Latest { at: words[0], root: Root(words[1] as u32) })
    }

    fn latest_activity(&self) -> Option<Latest> {
        let visit = &self.core.visit;
        (visit.events > 0).then_some(Latest { at: visit.end, root: self.core.activity })
    }
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
    #[inline]
    pub(super) fn anchor(&mut self, seen: Seen<'_>) {
        if let Some(anchor) = seen.rules.anchor {
            let words = &mut self.state.words[self.plan.layout.anchors + 2 * anchor..];
            (words[0], words[1]) = (self.at, i64::from(seen.root.0));
        }
    }

    /// An event takes the first transition that matches, or moves the anchors of the state's timers.
    pub(super) fn judge_journey(&mut self, journey: usize, item: Item<'_>) {
        let Item::Event(seen) = item else { return };
        let plan = self.plan;
        let of = &plan.journeys[journey];
        if !self.state.is_seen(of.after) {
            return;
        }
        let state = &of.states[self.state.standing(plan, journey).state];
        let taken = state.transitions.iter().find(|way| {
            way.name == seen.name
                && way.segment.is_none_or(|segment| self.state.is_member(segment))
                && self.holds(way.rule.as_ref(), seen)
        });
        if let Some(way) = taken {
            return self.go(journey, way.to, way.total, seen.root);
        }
        let anchor = seen.rules.anchor;
        for (number, timer) in state.timers.iter().enumerate() {
            let moved = match timer.since {
                Anchor::Entry => false,
                Anchor::Activity => seen.kind.is_some(),
                Anchor::Event(of) => anchor == Some(of),
            };
            if moved {
                let deadline = self.deadline(timer, self.at, seen.root);
                self.state.arm(plan, journey, number, deadline);
                self.due_by(deadline.map_or(Millis::MAX, |(at, _)| at));
            }
        }
    }

    /// (2) Timers due at this instant: journeys by name, in each all timers as listed, until one moves.
    pub(super) fn timers(&mut self) {
        let plan = self.plan;
        for journey in 0..plan.journeys.len() {
            let from = self.state.standing(plan, journey).state;
            for (number, timer) in plan.journeys[journey].states[from].timers.iter().enumerate() {
                let armed = self.state.deadline(plan, journey, number);
                let Some((_, root)) = armed.filter(|(deadline, _)| *deadline <= self.at) else { continue };
                self.state.arm(plan, journey, number, None);
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
        let plan = self.plan;
        let deadlines = plan.journeys.iter().enumerate().flat_map(|(number, journey)| {
            let timers = journey.states[self.state.standing(plan, number).state].timers.len();
            (0..timers).filter_map(move |timer| self.state.deadline(plan, number, timer))
        });
        deadlines.map(|(at, _)| at).min().unwrap_or(Millis::MAX)
    }

    fn go(&mut self, journey: usize, to: usize, total: usize, root: Root) {
        let plan = self.plan;
        let of = &plan.journeys[journey];
        self.effects.counts[of.states[self.state.standing(plan, journey).state].total] -= 1;
        self.effects.counts[total] += 1;
        self.state.tapes.moves.push(total as u32);
        self.stand(journey, to, root);
        self.wake_all(&of.readers);
        for campaign in &of.states[to].campaigns {
            self.candidate(*campaign, Cause::Journey, root, None);
        }
    }

    fn stand(&mut self, journey: usize, state: usize, root: Root) {
        let plan = self.plan;
        let JourneyPlan { states, after, .. } = &plan.journeys[journey];
        let of = &states[state];
        let seen = |latest: Option<Latest>| latest.filter(|latest| latest.at > *after);
        for (number, timer) in of.timers.iter().enumerate() {
            let deadline = match timer.since {
                Anchor::Entry => self.deadline(timer, self.at, root),
                Anchor::Activity => self.since_latest(timer, seen(self.state.latest_activity())),
                Anchor::Event(anchor) => self.since_latest(timer, seen(self.state.latest(plan, anchor))),
            };
            self.state.arm(plan, journey, number, deadline);
            self.due_by(deadline.map_or(Millis::MAX, |(at, _)| at));
        }
        self.effects.counts[of.total] += 1;
        let words = &mut self.state.words[plan.layout.journeys[journey]..];
        (words[0], words[1], words[2]) = (state as i64, self.at, i64::from(root.0));
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
