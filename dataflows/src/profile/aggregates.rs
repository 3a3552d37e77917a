//! Aggregates: computed traits over events, and how often something was performed.
//!
//! A feed picks events and a value of each; the aggregates on it put the values together, each over its own window.
//! What a window lets go again stands on the feed's tape, so that an aggregate is a few numbers and a place on it.

use std::collections::BTreeMap;

use crate::definitions::SessionField;
use crate::number::{Number, divide_rounded};
use crate::plan::{Op, Plan, SessionOp, TraitSource, Window};
use crate::time::{DAY, Millis};
use crate::value::Value;

use super::{Instant, Left, Root, Seen, State};

/// The words of an aggregate: how many it counts, the place on the feed's tape of the first event still in its window,
/// and the sum's low and high half.
pub(super) const WORDS: usize = 4;

/// How often each value is there.
pub(super) type Bag = BTreeMap<Value, u32>;

/// Something seen, until its last window has let it go.
#[derive(Clone, Debug)]
pub struct Kept {
    at: Millis,
    accepted: bool,
    root: Root,
    value: Value,
}

impl Kept {
    pub(super) fn event(&self) -> Left {
        Left { at: self.at, accepted: self.accepted, root: self.root }
    }
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
        for feed in &seen.rules.feeds {
            let looks = &plan.feeds[*feed];
            let is_seen = self.at > looks.after && (seen.kind.is_some() || looks.emitted);
            if !is_seen || !self.holds(looks.rule.as_ref(), seen) {
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
            if let Some(tape) = looks.kept {
                let kept = Kept { at: self.at, accepted: seen.kind.is_some(), root: seen.root, value };
                self.state.tapes.kept[tape].push(kept);
            }
        }
    }

    fn take(&mut self, aggregate: usize, value: &Value) {
        let plan = self.plan;
        let of = &plan.aggregates[aggregate];
        if let (Some(within), Some(window)) = (of.within, of.window)
            && self.state.head(plan, aggregate) == self.state.tapes.kept[of.tape].len()
        {
            self.state.set_window(plan, window, self.at + within);
            self.due_by(self.at + within);
        }
        if counts(of.op, value) {
            self.state.count(plan, aggregate, value, 1);
            self.wake_all(&of.readers);
        }
    }

    /// Everything that leaves the windows of aggregates at this instant.
    pub(super) fn aggregate_windows(&mut self, left: &mut Vec<(Window, Left)>) {
        let plan = self.plan;
        while let Some(window) = self.state.first_window(plan, self.at) {
            let number = plan.windowed[window];
            let of = &plan.aggregates[number];
            let within = of.within.expect("it has a window");
            let (mut last, mut next) = (None, Millis::MAX);
            let state = &mut *self.state;
            while let Some(kept) = state.tapes.kept[of.tape].get(state.head(plan, number)) {
                if kept.at + within > self.at {
                    next = kept.at + within;
                    break;
                }
                if counts(of.op, &kept.value) {
                    last = last.max(Some(kept.event()));
                    let value = kept.value.clone();
                    state.count(plan, number, &value, -1);
                }
                state.words[plan.layout.aggregates + number * WORDS + 1] += 1;
            }
            state.set_window(plan, window, next);
            if let Some(last) = last {
                left.push((Window::Aggregate(number), last));
                self.wake_all(&of.readers);
            }
        }
    }

    pub(super) fn aggregate_due(&self) -> Millis {
        let windows = &self.state.words[self.plan.layout.windows..];
        if self.plan.windowed.is_empty() { Millis::MAX } else { windows[1] }
    }
}

impl State {
    /// How many events an aggregate counts.
    pub fn counted(&self, plan: &Plan, aggregate: usize) -> u64 {
        self.words[plan.layout.aggregates + aggregate * WORDS] as u64
    }

    /// The events that an aggregate counts, where its feed keeps them.
    pub(super) fn inside(&self, plan: &Plan, aggregate: usize) -> impl DoubleEndedIterator<Item = Left> {
        let of = &plan.aggregates[aggregate];
        let inside = &self.tapes.kept[of.tape][self.head(plan, aggregate)..];
        inside.iter().filter(|kept| counts(of.op, &kept.value)).map(Kept::event)
    }

    fn head(&self, plan: &Plan, aggregate: usize) -> usize {
        self.words[plan.layout.aggregates + aggregate * WORDS + 1] as usize
    }

    /// A window lets something go at this instant. See [`super::Layout`] for the tree.
    fn set_window(&mut self, plan: &Plan, window: usize, due: Millis) {
        let tree = &mut self.words[plan.layout.windows..][..2 * plan.windowed.len()];
        let mut place = plan.windowed.len() + window;
        tree[place] = due;
        while place > 1 {
            place /= 2;
            let least = tree[2 * place].min(tree[2 * place + 1]);
            if tree[place] == least {
                break;
            }
            tree[place] = least;
        }
    }

    /// Some window that lets something go by an instant.
    fn first_window(&self, plan: &Plan, by: Millis) -> Option<usize> {
        let tree = &self.words[plan.layout.windows..][..2 * plan.windowed.len()];
        let mut place = 1;
        if *tree.get(place)? > by {
            return None;
        }
        while place < plan.windowed.len() {
            place *= 2;
            if tree[place] > by {
                place += 1;
            }
        }
        Some(place - plan.windowed.len())
    }

    fn sum(&self, plan: &Plan, aggregate: usize) -> i128 {
        let place = plan.layout.aggregates + aggregate * WORDS;
        i128::from(self.words[place + 3]) << 64 | i128::from(self.words[place + 2] as u64)
    }

    /// A value comes into an aggregate (1) or leaves it (-1).
    fn count(&mut self, plan: &Plan, aggregate: usize, value: &Value, sign: i64) {
        let place = plan.layout.aggregates + aggregate * WORDS;
        self.words[place] += sign;
        if let Value::Number(number) = value {
            let sum = self.sum(plan, aggregate) + i128::from(sign * number.0);
            (self.words[place + 2], self.words[place + 3]) = (sum as i64, (sum >> 64) as i64);
        }
        if let Some(bag) = plan.aggregates[aggregate].bag {
            put(&mut self.bags[bag], value, sign);
        }
    }

    /// Before going back to a mark: the bags hold what they held there. Nothing but the tape and the window's place on
    /// it decides what is in a bag.
    pub(super) fn unbag(&mut self, plan: &Plan, words: &[i64], lengths: &[u32]) {
        for (number, of) in plan.aggregates.iter().enumerate() {
            let Some(bag) = of.bag else { continue };
            let (head, length) =
                (words[plan.layout.aggregates + number * WORDS + 1] as usize, lengths[of.tape] as usize);
            let now = self.head(plan, number);
            let tape = &self.tapes.kept[of.tape];
            let came = tape[now.max(length)..].iter().map(|kept| (kept, -1));
            let left = tape[head..now.min(length)].iter().map(|kept| (kept, 1));
            for (kept, sign) in came.chain(left).filter(|(kept, _)| counts(of.op, &kept.value)) {
                put(&mut self.bags[bag], &kept.value, sign);
            }
        }
    }
}

fn put(bag: &mut Bag, value: &Value, sign: i64) {
    if sign > 0 {
        *bag.entry(value.clone()).or_insert(0) += 1;
        return;
    }
    match bag.get_mut(value) {
        Some(times) if *times > 1 => *times -= 1,
        _ => drop(bag.remove(value)),
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
        let (count, sum) = (self.counted(plan, aggregate), self.sum(plan, aggregate));
        let bag = of.bag.map(|bag| &self.bags[bag]);
        let inside = || {
            let kept = &self.tapes.kept[of.tape][self.head(plan, aggregate)..];
            kept.iter().map(|kept| &kept.value).filter(|value| counts(of.op, value))
        };
        match (of.op, bag) {
            (Op::Count, _) => Figure::count(count),
            (Op::Sum, _) => Figure::Number(sum),
            (Op::Average, _) => Figure::mean(sum, i128::from(count)),
            (Op::First, _) => Figure::of(inside().next()),
            (Op::Last, _) => Figure::of(inside().next_back()),
            (Op::Min, Some(bag)) => Figure::of(bag.first_key_value().map(|(value, _)| value)),
            (Op::Max, Some(bag)) => Figure::of(bag.last_key_value().map(|(value, _)| value)),
            (Op::Unique, Some(bag)) => Figure::count(bag.len() as u64),
            // The first of the greatest count, so of several the least value.
            (Op::MostFrequent, Some(bag)) => {
                let best = bag.iter().fold(None, |best: Option<(&Value, u32)>, (value, times)| match best {
                    Some((_, most)) if most >= *times => best,
                    _ => Some((value, *times)),
                });
                Figure::of(best.map(|(value, _)| value))
            }
            (Op::Min | Op::Max | Op::Unique | Op::MostFrequent, None) => unreachable!("the plan gives these a bag"),
        }
    }

    fn session_figure(&self, plan: &Plan, window: usize, op: SessionOp) -> Figure {
        let sessions = || self.sessions_from(self.session_head(plan, window));
        let count = sessions().count() as u64;
        let sum = |field| {
            sessions()
                .map(|session| match field {
                    SessionField::Events => i128::from(session.events) * 1_000_000,
                    SessionField::LengthMs => i128::from(session.end - session.start) * 1_000_000,
                    SessionField::Value => self.session_money(plan, &session).1,
                })
                .sum::<i128>()
        };
        match op {
            SessionOp::Count => Figure::count(count),
            SessionOp::Sum(field) => Figure::Number(sum(field)),
            SessionOp::Average(field) => Figure::mean(sum(field), i128::from(count)),
            SessionOp::Days => {
                let mut days: Vec<Millis> = sessions().map(|session| session.start.div_euclid(DAY)).collect();
                days.dedup();
                Figure::count(days.len() as u64)
            }
        }
    }
}
