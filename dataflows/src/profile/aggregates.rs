//! Aggregates: computed traits over events, and how often something was performed.
//!
//! A feed picks events and a value of each; the aggregates on it put the values together, each over its own window.
//! What a window lets go again stands on the feed's tape, so that an aggregate is a few numbers and a place on it.

use imbl::OrdMap;

use crate::definitions::SessionField;
use crate::number::{Number, divide_rounded};
use crate::plan::{Op, Plan, SessionOp, TraitSource, Window};
use crate::time::{DAY, Millis};
use crate::value::Value;

use super::{Instant, Left, Root, Seen, State};

/// What marks keep of aggregates.
#[derive(Clone, Debug)]
pub struct Aggregates {
    cells: Box<[Cell]>,
    bags: Box<[Bag]>,
}

/// How often each value is there.
type Bag = OrdMap<Value, u32>;

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    count: u32,
    /// The place on the feed's tape of the first event still in the window.
    head: u32,
    sum: i128,
}

/// Something seen, until its last window has let it go.
#[derive(Clone, Debug)]
pub struct Kept {
    at: Millis,
    accepted: bool,
    root: Root,
    value: Value,
}

/// What a computed trait says: sums can be larger than a value that an event may carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Figure {
    /// A number, in millionths.
    Number(i128),
    /// Any other value; null where there is none.
    Value(Value),
}

impl Figure {
    /// The same as conditions read it.
    pub fn value(self) -> Value {
        match self {
            Figure::Number(number) => match i64::try_from(number) {
                Ok(number) if number.abs() <= Number::MAX.0 => Value::Number(Number(number)),
                _ => Value::Huge(crate::number::print_millionths(number).into()),
            },
            Figure::Value(value) => value,
        }
    }

    fn of(value: Option<&Value>) -> Figure {
        match value {
            Some(Value::Number(number)) => Figure::Number(i128::from(number.0)),
            Some(value) => Figure::Value(value.clone()),
            None => Figure::Value(Value::Null),
        }
    }

    fn count(count: u64) -> Figure {
        Figure::Number(i128::from(count) * 1_000_000)
    }

    fn mean(sum: i128, count: i128) -> Figure {
        if count == 0 { Figure::Value(Value::Null) } else { Figure::Number(divide_rounded(sum, count)) }
    }
}

impl Aggregates {
    /// Nothing seen yet.
    pub fn new(plan: &Plan) -> Self {
        Aggregates {
            cells: vec![Cell::default(); plan.aggregates.len()].into(),
            bags: vec![Bag::new(); plan.bags].into(),
        }
    }

    /// How many events an aggregate counts.
    pub fn count(&self, aggregate: usize) -> u64 {
        u64::from(self.cells[aggregate].count)
    }
}

/// Whether an operation looks at a value at all.
fn counts(op: Op, value: &Value) -> bool {
    match op {
        Op::Count => true,
        op if op.is_numeric() => matches!(value, Value::Number(_)),
        Op::First | Op::Last => !matches!(value, Value::Null | Value::Object),
        _ => !matches!(value, Value::Null | Value::List(_) | Value::Object),
    }
}

impl Instant<'_> {
    /// Shows an event to the aggregates that look at its name.
    pub(super) fn feed(&mut self, seen: Seen<'_>) {
        let plan = self.plan;
        for feed in &plan.rules[seen.name.0 as usize].feeds {
            let looks = &plan.feeds[*feed];
            if (seen.kind.is_none() && !looks.emitted) || !self.holds(looks.rule.as_ref(), seen) {
                continue;
            }
            let value = match &looks.field {
                None => Value::Null,
                Some(field) => match self.read(field, seen) {
                    Some(value) if *value != Value::Null => value.clone(),
                    _ => continue,
                },
            };
            for aggregate in &looks.aggregates {
                self.take(*aggregate, &value);
            }
            if looks.kept {
                let kept = Kept { at: self.at, accepted: seen.kind.is_some(), root: seen.root, value };
                self.state.tapes.kept[*feed].push(kept);
            }
        }
    }

    fn take(&mut self, aggregate: usize, value: &Value) {
        let plan = self.plan;
        let of = &plan.aggregates[aggregate];
        if let Some(within) = of.within {
            let cell = &self.state.core.aggregates.cells[aggregate];
            if cell.head as usize == self.state.tapes.kept[of.feed].len() {
                self.due_by(self.at + within);
            }
        }
        if counts(of.op, value) {
            self.state.core.aggregates.add(of.op, aggregate, of.bag, value);
            self.wake_all(&of.readers);
        }
    }

    /// Everything that leaves the windows of aggregates at this instant.
    pub(super) fn aggregate_windows(&mut self, left: &mut Vec<(Window, Left)>) {
        let plan = self.plan;
        for (number, of) in plan.aggregates.iter().enumerate() {
            let Some(within) = of.within else { continue };
            let mut last = None;
            let state = &mut *self.state;
            while let Some(kept) = state.tapes.kept[of.feed].get(state.core.aggregates.cells[number].head as usize) {
                if kept.at + within > self.at {
                    break;
                }
                if counts(of.op, &kept.value) {
                    state.core.aggregates.remove(of.op, number, of.bag, &kept.value);
                    let leaves = Left { at: kept.at, accepted: kept.accepted, root: kept.root };
                    last = last.max(Some(leaves));
                }
                state.core.aggregates.cells[number].head += 1;
            }
            if let Some(last) = last {
                left.push((Window::Aggregate(number), last));
                self.wake_all(&of.readers);
            }
        }
    }

    pub(super) fn aggregate_due(&self) -> Millis {
        let due = |(number, of): (usize, &crate::plan::Aggregate)| {
            let head = self.state.core.aggregates.cells[number].head as usize;
            Some(self.state.tapes.kept[of.feed].get(head)?.at + of.within?)
        };
        self.plan
            .aggregates
            .iter()
            .enumerate()
            .filter(|(_, of)| of.within.is_some())
            .filter_map(due)
            .min()
            .unwrap_or(Millis::MAX)
    }
}

impl Aggregates {
    fn add(&mut self, op: Op, aggregate: usize, bag: Option<usize>, value: &Value) {
        let cell = &mut self.cells[aggregate];
        cell.count += 1;
        if let Value::Number(number) = value {
            cell.sum += i128::from(number.0);
        }
        let Some(bag) = bag else { return };
        match op {
            // Of a window the tape knows; of everything only one value is needed.
            Op::First if cell.count > 1 => {}
            Op::First | Op::Last => self.bags[bag] = Bag::unit(value.clone(), 1),
            _ => *self.bags[bag].entry(value.clone()).or_insert(0) += 1,
        }
    }

    fn remove(&mut self, op: Op, aggregate: usize, bag: Option<usize>, value: &Value) {
        let cell = &mut self.cells[aggregate];
        cell.count -= 1;
        if let Value::Number(number) = value {
            cell.sum -= i128::from(number.0);
        }
        let Some(bag) = bag.filter(|_| op.needs_bag()) else { return };
        match self.bags[bag].get_mut(value) {
            Some(times) if *times > 1 => *times -= 1,
            _ => {
                self.bags[bag].remove(value);
            }
        }
    }
}

impl State {
    /// What a computed trait says now, as conditions read it.
    pub fn computed(&self, plan: &Plan, number: usize) -> Value {
        self.figure(plan, number).value()
    }

    /// What a computed trait says now.
    pub fn figure(&self, plan: &Plan, number: usize) -> Figure {
        match plan.traits[number].source {
            TraitSource::Aggregate(aggregate) => self.aggregate_figure(plan, aggregate),
            TraitSource::Sessions(window, op) => self.session_figure(plan, window, op),
        }
    }

    fn aggregate_figure(&self, plan: &Plan, aggregate: usize) -> Figure {
        let of = &plan.aggregates[aggregate];
        let cell = &self.core.aggregates.cells[aggregate];
        let bag = of.bag.map(|bag| &self.core.aggregates.bags[bag]);
        let inside = || {
            self.tapes.kept[of.feed][cell.head as usize..]
                .iter()
                .map(|kept| &kept.value)
                .filter(|value| counts(of.op, value))
        };
        match (of.op, bag) {
            (Op::Count, _) => Figure::count(u64::from(cell.count)),
            (Op::Sum, _) => Figure::Number(cell.sum),
            (Op::Average, _) => Figure::mean(cell.sum, i128::from(cell.count)),
            (Op::First | Op::Min, Some(bag)) => Figure::of(bag.get_min().map(|(value, _)| value)),
            (Op::Last | Op::Max, Some(bag)) => Figure::of(bag.get_max().map(|(value, _)| value)),
            (Op::Unique, Some(bag)) => Figure::count(bag.len() as u64),
            // The first of the greatest count, so of several the least value.
            (Op::MostFrequent, Some(bag)) => {
                let best = bag.iter().fold(None, |best: Option<(&Value, u32)>, (value, times)| match best {
                    Some((_, most)) if most >= *times => best,
                    _ => Some((value, *times)),
                });
                Figure::of(best.map(|(value, _)| value))
            }
            (Op::First, None) => Figure::of(inside().next()),
            (Op::Last, None) => Figure::of(inside().next_back()),
            (Op::Min | Op::Max | Op::Unique | Op::MostFrequent, None) => unreachable!("the plan gives these a bag"),
        }
    }

    fn session_figure(&self, plan: &Plan, window: usize, op: SessionOp) -> Figure {
        let sessions = &self.tapes.sessions[self.core.visits.heads[window] as usize..];
        let count = sessions.len() as u64;
        let sum = |field| {
            sessions
                .iter()
                .map(|session| match field {
                    SessionField::Events => i128::from(session.events) * 1_000_000,
                    SessionField::LengthMs => i128::from(session.end - session.start) * 1_000_000,
                    SessionField::Value => self.session_money(plan, session).1,
                })
                .sum::<i128>()
        };
        match op {
            SessionOp::Count => Figure::count(count),
            SessionOp::Sum(field) => Figure::Number(sum(field)),
            SessionOp::Average(field) => Figure::mean(sum(field), i128::from(count)),
            SessionOp::Days => {
                let mut days: Vec<Millis> = sessions.iter().map(|session| session.start.div_euclid(DAY)).collect();
                days.dedup();
                Figure::count(days.len() as u64)
            }
        }
    }
}
