//! Segments: who belongs, since when, and which event made it so.

use ecow::EcoString;

use crate::definitions::{CountTest, TraitTest};
use crate::plan::{Cause, Plan, Test};
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
        if !self.state.is_seen(of.after) {
            return;
        }
        let member = self.state.passes(plan, &of.test);
        if member == self.state.is_member(segment) {
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
        self.state.words[segment] = if member { self.at } else { NOT_A_MEMBER };
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
    /// Whether the person is in a segment.
    pub fn is_member(&self, segment: usize) -> bool {
        self.words[segment] != NOT_A_MEMBER
    }

    /// Since when the person is in a segment, ms.
    pub fn member_since(&self, segment: usize) -> Option<Millis> {
        Some(self.words[segment]).filter(|since| *since != NOT_A_MEMBER)
    }

    /// Whether a segment's condition is met.
    pub fn passes(&self, plan: &Plan, test: &Test) -> bool {
        match test {
            Test::Computed(number, test) => trait_passes(test, &self.figure(plan, *number)),
            Test::Told(key, test) => {
                let value = self.told(key, &[]).cloned().unwrap_or(Value::Null);
                trait_passes(test, &figure_of(value))
            }
            Test::Visitor(class) => self.is(*class),
            Test::Sessions(window, test) => {
                let count = self.session_count() - self.session_head(plan, *window);
                count_passes(*test, count as u64)
            }
            Test::Journey(journey, state) => {
                self.is_seen(plan.journeys[*journey].after) && self.standing(plan, *journey).state == *state
            }
            Test::Segment(segment) => self.is_member(*segment),
            Test::Performed(aggregate, test) => count_passes(*test, self.counted(plan, *aggregate)),
            Test::Sequence(number) => self.is_complete(plan, *number),
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
pub type Membership = (EcoString, Millis);
