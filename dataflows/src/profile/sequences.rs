//! Sequences: events one after another, within spans, perhaps followed by one that does not come.
//!
//! For each step the latest way to have completed it is enough, since a later completion of a step allows everything
//! that an earlier one does. A step of n events keeps, for each of its last n events, how the step before stood then.

use std::collections::VecDeque;

use crate::plan::{Plan, SequencePlan, Window};
use crate::time::Millis;

use super::{Instant, Left, Seen};

/// What marks keep of a sequence.
#[derive(Clone, Debug)]
pub struct Progress {
    steps: Box<[StepState]>,
    /// The latest completion, while it counts: when, and the event it goes back to.
    completed: Option<(Millis, Left)>,
    /// The place on the tape of the first completion that still waits for an event not to come.
    waiting: u32,
}

#[derive(Clone, Debug, Default)]
struct StepState {
    /// The latest completion of this step.
    done: Option<Millis>,
    /// For the last events of this step: the completion of the step before, as it was then.
    before: VecDeque<Option<Millis>>,
}

impl Progress {
    /// For each sequence of a plan, nothing seen yet.
    pub fn none(plan: &Plan) -> Box<[Progress]> {
        let steps = |of: &SequencePlan| of.steps.iter().map(|_| StepState::default()).collect();
        plan.sequences.iter().map(|of| Progress { steps: steps(of), completed: None, waiting: 0 }).collect()
    }

    /// Whether the sequence is complete, as far as it counts now.
    pub fn is_complete(&self) -> bool {
        self.completed.is_some()
    }
}

impl Instant<'_> {
    /// Shows an event to the sequences that look at its name.
    pub(super) fn follow(&mut self, seen: Seen<'_>) {
        let plan = self.plan;
        let left = Left { at: self.at, accepted: seen.kind.is_some(), root: seen.root };
        for number in &plan.rules[seen.name.0 as usize].sequences {
            let of = &plan.sequences[*number];
            if let Some(absence) = &of.absence
                && absence.name == seen.name
                && self.holds(absence.rule.as_ref(), seen)
            {
                self.state.core.sequences[*number].waiting = self.state.tapes.waiting[*number].len() as u32;
            }
            // From the last step to the first, so that no event serves two steps.
            for step in (0..of.steps.len()).rev() {
                if of.steps[step].name != seen.name || !self.holds(of.steps[step].rule.as_ref(), seen) {
                    continue;
                }
                let complete = self.state.core.sequences[*number].advance(of, step, self.at);
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
        let of = &self.plan.sequences[number];
        self.state.core.sequences[number].completed = Some((self.at, left));
        self.due_by(of.recent.map_or(Millis::MAX, |recent| self.at + recent));
        self.wake_all(&self.plan.sequences[number].readers);
    }

    /// Completions by waiting, and completions that are no longer recent, at this instant.
    pub(super) fn sequence_windows(&mut self, left: &mut Vec<(Window, Left)>) {
        let plan = self.plan;
        for (number, of) in plan.sequences.iter().enumerate() {
            if let Some((at, event)) = self.state.core.sequences[number].completed
                && of.recent.is_some_and(|recent| at + recent <= self.at)
            {
                self.state.core.sequences[number].completed = None;
                left.push((Window::Sequence(number), event));
                self.wake_all(&of.readers);
            }
            let Some(absence) = &of.absence else { continue };
            loop {
                let waiting = self.state.core.sequences[number].waiting as usize;
                let first = self.state.tapes.waiting[number].get(waiting).copied();
                let Some(event) = first.filter(|event| event.at + absence.within <= self.at) else { break };
                self.state.core.sequences[number].waiting += 1;
                left.push((Window::Sequence(number), event));
                self.complete(number, event);
            }
        }
    }

    pub(super) fn sequence_due(&self) -> Millis {
        let due = |(number, of): (usize, &SequencePlan)| {
            let progress = &self.state.core.sequences[number];
            let recent = progress.completed.zip(of.recent).map_or(Millis::MAX, |((at, _), recent)| at + recent);
            let waiting = self.state.tapes.waiting[number].get(progress.waiting as usize);
            let absent =
                waiting.zip(of.absence.as_ref()).map_or(Millis::MAX, |(event, absence)| event.at + absence.within);
            recent.min(absent)
        };
        self.plan.sequences.iter().enumerate().map(due).min().unwrap_or(Millis::MAX)
    }
}

impl Progress {
    /// One more event of a step; whether it completes the step.
    fn advance(&mut self, of: &SequencePlan, step: usize, at: Millis) -> bool {
        let before = if step == 0 { Some(at) } else { self.steps[step - 1].done };
        let state = &mut self.steps[step];
        state.before.push_back(before);
        if (state.before.len() as u64) < of.steps[step].times {
            return false;
        }
        // How the step before stood when the first of the last n events came.
        let since = state.before.pop_front().flatten();
        let complete = since.is_some_and(|since| of.steps[step].within.is_none_or(|within| at - since < within));
        if complete {
            state.done = Some(at);
        }
        complete
    }
}
