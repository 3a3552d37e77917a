//! Segments: who belongs, since when, and which event made it so.

use compact_str::CompactString;

use crate::definitions::{CountTest, TraitTest};
use crate::plan::{Cause, Test};
use crate::time::Millis;
use crate::value::Value;

use super::aggregates::Figure;
use super::{Instant, Item, Root, State};

/// In place of an instant: not a member.
pub const NOT_A_MEMBER: Millis = Millis::MIN;

/// An entry to or an exit from a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The segment, by number.
    pub segment: usize,
    /// Whether it is an entry.
    pub entered: bool,
    /// When, ms.
    pub at: Millis,
    /// The event that it goes back to.
    pub root: Root,
}

impl Instant<'_> {
    pub(super) fn judge_segment(&mut self, segment: usize, item: Item<'_>) {
        let plan = self.plan;
        let of = &plan.segments[segment];
        let member = self.state.passes(plan, &of.test);
        if member == (self.state.core.members[segment] != NOT_A_MEMBER) {
            return;
        }
        let root = match item {
            Item::Timer(root) | Item::Call(root) => root,
            Item::Event(seen) => seen.root,
            Item::Windows(left) => {
                let read = left.iter().filter(|(window, _)| of.windows.contains(window));
                read.map(|(_, left)| *left).max().expect("a window it reads ran out, or it would not have changed").root
            }
        };
        self.state.core.members[segment] = if member { self.at } else { NOT_A_MEMBER };
        self.effects.counts[of.total] += if member { 1 } else { -1 };
        self.state.tapes.changes.push(Change { segment, entered: member, at: self.at, root });
        self.wake_all(&of.readers);
        if member {
            for campaign in &of.campaigns {
                self.candidate(*campaign, Cause::Segment, root, None);
            }
        }
    }
}

impl State {
    /// Whether a segment's condition is met.
    pub fn passes(&self, plan: &crate::plan::Plan, test: &Test) -> bool {
        match test {
            Test::Computed(number, test) => trait_passes(test, &self.figure(plan, *number)),
            Test::Told(key, test) => {
                let value = self.core.person.told(key, &[]).cloned().unwrap_or(Value::Null);
                trait_passes(test, &figure_of(value))
            }
            Test::Visitor(class) => self.is(*class),
            Test::Sessions(window, test) => {
                let count = self.tapes.sessions.len() - self.core.visits.heads[*window] as usize;
                count_passes(*test, count as u64)
            }
            Test::Journey(journey, state) => {
                self.core.person.first_seen.is_some() && self.core.standings[*journey].state == *state
            }
            Test::Segment(segment) => self.core.members[*segment] != NOT_A_MEMBER,
            Test::Performed(aggregate, test) => count_passes(*test, self.core.aggregates.count(*aggregate)),
            Test::Sequence(number) => self.core.sequences[*number].is_complete(),
            Test::All(tests) => tests.iter().all(|test| self.passes(plan, test)),
            Test::Any(tests) => tests.iter().any(|test| self.passes(plan, test)),
            Test::Not(test) => !self.passes(plan, test),
        }
    }
}

fn figure_of(value: Value) -> Figure {
    match value {
        Value::Number(number) => Figure::Number(i128::from(number.0)),
        value => Figure::Value(value),
    }
}

fn count_passes(test: CountTest, count: u64) -> bool {
    match test {
        CountTest::AtLeast(least) => count >= least,
        CountTest::AtMost(most) => count <= most,
        CountTest::Exactly(number) => count == number,
    }
}

fn trait_passes(test: &TraitTest, figure: &Figure) -> bool {
    let number = match figure {
        Figure::Number(number) => Some(*number),
        Figure::Value(_) => None,
    };
    let than = |bound: &crate::number::Number| i128::from(bound.0);
    let equals = |value: &Value| match (figure, value) {
        (Figure::Number(number), Value::Number(other)) => *number == i128::from(other.0),
        (Figure::Value(found), value) => found == value && *value != Value::Null,
        _ => false,
    };
    match test {
        TraitTest::AtLeast(bound) => number.is_some_and(|number| number >= than(bound)),
        TraitTest::AtMost(bound) => number.is_some_and(|number| number <= than(bound)),
        TraitTest::Above(bound) => number.is_some_and(|number| number > than(bound)),
        TraitTest::Below(bound) => number.is_some_and(|number| number < than(bound)),
        TraitTest::Equals(value) => equals(value),
        TraitTest::OneOf(values) => values.iter().any(equals),
        TraitTest::Exists(exists) => *exists == (*figure != Figure::Value(Value::Null)),
    }
}

/// A segment's name and since when a profile is in it.
pub type Membership = (CompactString, Millis);
