//! Sequences: events one after another, within spans, perhaps followed by one that does not come.
//!
//! For each step the latest way to have completed it is enough, since a later completion of a step allows everything
//! that an earlier one does. A step of n events keeps, for each of its last n events, how the step before stood then.

use crate::plan::{Plan, SequencePlan, Window};
use crate::time::Millis;
use crate::vocabulary::NameId;

use super::aggregates::Kept;
use super::{Instant, Left, NEVER, Root, Seen, State};

/// The words of a sequence before those of its steps: when it was completed; the event that this goes back to (when,
/// whether accepted, root); the place on the tape of the first completion that still waits for an event not to come.
const SEQUENCE: usize = 5;

/// The words of a sequence before the first event; for each step its latest completion.
pub(super) fn words(of: &SequencePlan) -> Vec<i64> {
    let mut words = vec![NEVER, 0, 0, 0, 0];
    words.resize(SEQUENCE + of.steps.len(), NEVER);
    words
}

impl State {
    /// Whether a sequence is complete, as far as it counts now.
    pub fn is_complete(&self, plan: &Plan, sequence: usize) -> bool {
        self.completed(plan, sequence).is_some()
    }

    /// The latest completion, while it counts: when, and the event it goes back to.
    fn completed(&self, plan: &Plan, sequence: usize) -> Option<(Millis, Left)> {
        let words = &self.words[plan.layout.sequences[sequence]..];
        let left = Left { at: words[1], accepted: words[2] == 1, root: Root(words[3] as u32) };
        (words[0] != NEVER).then_some((words[0], left))
    }

    /// The instant of the latest completion, while it counts; and the events that made it, in order, where each step's
    /// are kept on a tape of its own.
    pub(super) fn completion(&self, plan: &Plan, sequence: usize) -> Option<(Millis, Vec<(NameId, Left)>)> {
        let (at, last) = self.completed(plan, sequence)?;
        let steps = &plan.sequences[sequence].steps;
        let tapes: Vec<Vec<Left>> =
            plan.step_tapes(sequence).map(|tape| self.tapes.kept[tape].iter().map(Kept::event).collect()).collect();
        // For each event of a step that completes it, which one had completed the step before: the latest does.
        let mut ways: Vec<Vec<Option<usize>>> = Vec::new();
        for (number, (step, tape)) in steps.iter().zip(&tapes).enumerate() {
            let way = |end: usize| {
                let first = tape[(end + 1).checked_sub(step.times as usize)?];
                let (before, since) = match number.checked_sub(1) {
                    None => (0, first.at),
                    Some(number) => {
                        let earlier = tapes[number].partition_point(|event| *event < first);
                        let before = ways[number][..earlier].iter().rposition(Option::is_some)?;
                        (before, tapes[number][before].at)
                    }
                };
                step.within.is_none_or(|within| tape[end].at - since < within).then_some(before)
            };
            let found = (0..tape.len()).map(way).collect();
            ways.push(found);
        }
        let mut events = Vec::new();
        let mut end = tapes.last().and_then(|tape| tape.iter().rposition(|event| *event == last));
        for ((step, tape), ways) in steps.iter().zip(&tapes).zip(&ways).rev() {
            let Some(reached) = end else { break };
            let first = (reached + 1).saturating_sub(step.times as usize);
            events.extend(tape[first..=reached].iter().rev().map(|event| (step.name, *event)));
            end = ways[reached];
        }
        events.reverse();
        Some((at, events))
    }

    /// The first completion of the steps that still waits.
    fn waiting(&self, plan: &Plan, sequence: usize) -> Option<Left> {
        let place = self.words[plan.layout.sequences[sequence] + SEQUENCE - 1];
        self.tapes.waiting[sequence].get(place as usize).copied()
    }

    /// One more event of a step; whether it completes the step.
    fn follows(&mut self, plan: &Plan, sequence: usize, step: usize, at: Millis) -> bool {
        let place = plan.layout.sequences[sequence] + SEQUENCE + step;
        let of = &plan.sequences[sequence];
        let mut since = if step == 0 { at } else { self.words[place - 1] };
        let times = of.steps[step].times as usize;
        if times > 1 {
            // How the step before stood when the first of the last n events came.
            let before = &mut self.tapes.before[of.first_step + step];
            before.push(since);
            let Some(first) = before.len().checked_sub(times) else { return false };
            since = before[first];
        }
        let complete = since != NEVER && of.steps[step].within.is_none_or(|within| at - since < within);
        if complete {
            self.words[place] = at;
        }
        complete
    }
}

impl Instant<'_> {
    /// Shows an event to the sequences that look at its name.
    pub(super) fn follow(&mut self, seen: Seen<'_>) {
        let plan = self.plan;
        let left = Left { at: self.at, accepted: seen.kind.is_some(), root: seen.root };
        for number in &seen.rules.sequences {
            let of = &plan.sequences[*number];
            if self.at <= of.after {
                continue;
            }
            if let Some(absence) = &of.absence
                && absence.name == seen.name
                && self.holds(absence.rule.as_ref(), seen)
            {
                let length = self.state.tapes.waiting[*number].len();
                self.state.words[plan.layout.sequences[*number] + SEQUENCE - 1] = length as i64;
            }
            // From the last step to the first, so that no event serves two steps.
            for step in (0..of.steps.len()).rev() {
                if of.steps[step].name != seen.name || !self.holds(of.steps[step].rule.as_ref(), seen) {
                    continue;
                }
                let complete = self.state.follows(plan, *number, step, self.at);
                if complete && step + 1 == of.steps.len() {
                    self.end_of_steps(*number, left);
                }
            }
        }
    }

    fn end_of_steps(&mut self, number: usize, left: Left) {
        let plan = self.plan;
        let of = &plan.sequences[number];
        match &of.absence {
            None => self.complete(number, left),
            Some(absence) => {
                self.state.tapes.waiting[number].push(left);
                self.due_by(self.at + absence.within);
            }
        }
    }

    fn complete(&mut self, number: usize, left: Left) {
        let plan = self.plan;
        let words = &mut self.state.words[plan.layout.sequences[number]..];
        words[..4].copy_from_slice(&[self.at, left.at, i64::from(left.accepted), i64::from(left.root.0)]);
        let of = &plan.sequences[number];
        self.due_by(of.recent.map_or(Millis::MAX, |recent| self.at + recent));
        self.wake_all(&of.readers);
    }

    /// Completions by waiting, and completions that are no longer recent, at this instant.
    pub(super) fn sequence_windows(&mut self, left: &mut Vec<(Window, Left)>) {
        let plan = self.plan;
        for (number, of) in plan.sequences.iter().enumerate() {
            if let Some((at, event)) = self.state.completed(plan, number)
                && of.recent.is_some_and(|recent| at + recent <= self.at)
            {
                self.state.words[plan.layout.sequences[number]] = NEVER;
                left.push((Window::Sequence(number), event));
                self.wake_all(&of.readers);
            }
            let Some(absence) = &of.absence else { continue };
            while let Some(event) = self.state.waiting(plan, number)
                && event.at + absence.within <= self.at
            {
                self.state.words[plan.layout.sequences[number] + SEQUENCE - 1] += 1;
                left.push((Window::Sequence(number), event));
                self.complete(number, event);
            }
        }
    }

    pub(super) fn sequence_due(&self) -> Millis {
        let due = |(number, of): (usize, &SequencePlan)| {
            let completed = self.state.completed(self.plan, number).zip(of.recent);
            let waiting = self.state.waiting(self.plan, number).zip(of.absence.as_ref());
            let recent = completed.map_or(Millis::MAX, |((at, _), recent)| at + recent);
            recent.min(waiting.map_or(Millis::MAX, |(event, absence)| event.at + absence.within))
        };
        self.plan.sequences.iter().enumerate().map(due).min().unwrap_or(Millis::MAX)
    }
}
