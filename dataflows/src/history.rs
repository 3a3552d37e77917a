//! A key's history: its entries in order, and what they fold to, one instant after another.
//!
//! This is the one mechanism under everything that is true of a person, and it knows nothing of marketing. A [`Fold`]
//! says what an instant does to a state; [`History`] keeps entries in order, steps forward as the clock allows, and
//! when an entry comes late or is taken away, goes back to the last mark before it and steps forward again. A step
//! adds its consequences to the fold's `Effects`; going back takes them off. So after any sequence of changes the sum
//! of effects is that of a plain run over the entries that remain: arrival order cannot be seen.
//!
//! Marks are dense near the end and ever sparser before it: O(log n) of them, and a change at distance d from the end
//! costs O(d).

use std::cmp::Ordering;
use std::ops::Range;

use crate::time::Millis;

/// Entries between two marks, at the dense end. Builds that check have more of them, so that short histories too go
/// back to marks and not only to the start.
const MARK_EVERY: usize = if cfg!(debug_assertions) { 3 } else { 16 };

/// What a history folds to.
pub trait Fold {
    /// One entry of a history.
    type Entry;
    /// Everything that is true at one place in a history.
    type State;
    /// Enough to take a state back to where it was; small, since many are kept.
    type Mark;
    /// Where consequences are added up, and taken off again.
    type Effects;

    /// The instant of an entry.
    fn instant(entry: &Self::Entry) -> Millis;
    /// The order of entries, finer than their instants.
    fn order(a: &Self::Entry, b: &Self::Entry) -> Ordering;
    /// The state before the first entry; it has no effects.
    fn start(&self) -> Self::State;
    /// No instant before this one does anything without an entry. May be early, never late.
    fn due(&self, state: &Self::State) -> Millis;
    /// Applies one instant whole: what is due at it, and `present`, the entries of that instant.
    fn step(
        &self,
        state: &mut Self::State,
        at: Millis,
        entries: &[Self::Entry],
        present: Range<usize>,
        effects: &mut Self::Effects,
    );
    /// What `back` needs to return here.
    fn mark(&self, state: &Self::State) -> Self::Mark;
    /// Returns to `mark`, or to the start, taking off all effects since. `entries` are still those that were folded.
    fn back(
        &self,
        state: &mut Self::State,
        mark: Option<&Self::Mark>,
        entries: &[Self::Entry],
        effects: &mut Self::Effects,
    );
}

/// A place to return to: after `folded` entries and the instant `at`.
struct Place<M> {
    folded: usize,
    at: Millis,
    mark: M,
}

/// What entries fold to.
pub struct Folded<F: Fold> {
    folded: usize,
    at: Millis,
    state: F::State,
    places: Vec<Place<F::Mark>>,
}

/// Another fold of the same entries, if there is one, and where its consequences are added up.
pub type Other<'a, F> = Option<(&'a F, &'a mut <F as Fold>::Effects)>;

/// The history of one key: its entries, what they fold to, and what they will fold to when other rules hold.
pub struct History<F: Fold> {
    entries: Vec<F::Entry>,
    now: Folded<F>,
    next: Option<Box<Folded<F>>>,
}

impl<F: Fold> History<F> {
    /// A history without entries.
    pub fn new(fold: &F) -> Self {
        History { entries: Vec::new(), now: Folded::new(fold), next: None }
    }

    /// What is true after the last instant folded.
    pub fn state(&self) -> &F::State {
        &self.now.state
    }

    /// The same, to note there what is not folded.
    pub fn state_mut(&mut self) -> &mut F::State {
        &mut self.now.state
    }

    /// All entries, in order, those of the future too.
    pub fn entries(&self) -> &[F::Entry] {
        &self.entries
    }

    /// The entries that have been folded: those up to the clock.
    pub fn past(&self) -> &[F::Entry] {
        &self.entries[..self.now.folded]
    }

    /// The next instant at which something happens if no entry comes. May be early, never late.
    pub fn due(&self, fold: &F, next: Option<&F>) -> Millis {
        let then = self.next.as_ref().zip(next).map_or(Millis::MAX, |(folded, fold)| folded.due(&self.entries, fold));
        self.now.due(&self.entries, fold).min(then)
    }

    /// Puts an entry in its place; whether that was one that had been folded over.
    #[inline]
    pub fn insert(&mut self, entry: F::Entry, fold: &F, effects: &mut F::Effects, next: Other<'_, F>) -> bool {
        if self.entries.len() == self.entries.capacity() {
            // All entries are kept: doubling would leave a third of the memory empty.
            self.entries.reserve_exact(self.entries.len() / 2 + 2);
        }
        let place = match self.entries.last() {
            Some(last) if F::order(last, &entry).is_ge() => {
                self.entries.partition_point(|other| F::order(other, &entry).is_lt())
            }
            _ => self.entries.len(),
        };
        let late = self.now.unfold(place, F::instant(&entry), &self.entries, fold, effects);
        if let (Some(folded), Some((fold, effects))) = (&mut self.next, next) {
            folded.unfold(place, F::instant(&entry), &self.entries, fold, effects);
        }
        if place == self.entries.len() {
            self.entries.push(entry);
        } else {
            self.entries.insert(place, entry);
        }
        late
    }

    /// Takes all entries out that `leaves` names, in order.
    pub fn extract(
        &mut self,
        leaves: impl Fn(&F::Entry) -> bool,
        fold: &F,
        effects: &mut F::Effects,
        next: Other<'_, F>,
    ) -> Vec<F::Entry> {
        let Some(first) = self.entries.iter().position(&leaves) else { return Vec::new() };
        let instant = F::instant(&self.entries[first]);
        self.now.unfold(first, instant, &self.entries, fold, effects);
        if let (Some(folded), Some((fold, effects))) = (&mut self.next, next) {
            folded.unfold(first, instant, &self.entries, fold, effects);
        }
        self.entries.extract_if(first.., |entry| leaves(entry)).collect()
    }

    /// The entry that stands where this one would, to be changed in what no fold has read of it.
    pub fn find_mut(&mut self, entry: &F::Entry) -> Option<&mut F::Entry> {
        let place = self.entries.binary_search_by(|other| F::order(other, entry)).ok()?;
        Some(&mut self.entries[place])
    }

    /// Steps through all instants up to and including `clock`.
    pub fn advance(&mut self, clock: Millis, fold: &F, effects: &mut F::Effects, next: Other<'_, F>) {
        self.now.advance(clock, &self.entries, fold, effects);
        if let (Some(folded), Some((fold, effects))) = (&mut self.next, next) {
            folded.advance(clock, &self.entries, fold, effects);
        }
    }

    /// What the entries up to `clock` fold to under a fold, aside from what holds.
    pub fn aside(&self, clock: Millis, fold: &F, effects: &mut F::Effects) -> Folded<F> {
        let mut folded = Folded::new(fold);
        folded.advance(clock, &self.entries, fold, effects);
        folded
    }

    /// A copy of what holds, to be taken further on.
    pub fn ahead(&self) -> Folded<F>
    where
        F::State: Clone,
    {
        let Folded { folded, at, state, .. } = &self.now;
        Folded { folded: *folded, at: *at, state: state.clone(), places: Vec::new() }
    }

    /// Folds all up to `clock` anew, as it will be under another fold.
    pub fn prepare(&mut self, clock: Millis, next: &F, effects: &mut F::Effects) {
        self.next = Some(Box::new(self.aside(clock, next, effects)));
    }

    /// What was prepared holds from now on. Gives what held before.
    pub fn switch(&mut self) -> Option<Folded<F>> {
        self.next.take().map(|next| std::mem::replace(&mut self.now, *next))
    }

    /// What was prepared will not hold.
    pub fn forget(&mut self) {
        self.next = None;
    }
}

impl<F: Fold> Folded<F> {
    /// What no entry folds to.
    pub fn new(fold: &F) -> Self {
        Folded { folded: 0, at: Millis::MIN, state: fold.start(), places: Vec::new() }
    }

    /// What is true after the last instant folded.
    pub fn state(&self) -> &F::State {
        &self.state
    }

    /// Those of the entries that were folded.
    pub fn past<'e>(&self, entries: &'e [F::Entry]) -> &'e [F::Entry] {
        &entries[..self.folded]
    }

    /// The next instant at which something happens if no entry comes beside these. May be early, never late.
    pub fn due(&self, entries: &[F::Entry], fold: &F) -> Millis {
        let next = entries.get(self.folded).map_or(Millis::MAX, F::instant);
        if self.folded == 0 { next } else { next.min(fold.due(&self.state)) }
    }

    /// Steps through all instants up to and including `clock`.
    pub fn advance(&mut self, clock: Millis, entries: &[F::Entry], fold: &F, effects: &mut F::Effects) {
        loop {
            let at = self.due(entries, fold);
            if at > clock || at == Millis::MAX {
                return;
            }
            // A fold that is due at an instant it has stepped would be stepped for ever.
            assert!(at > self.at, "the instant {at} was stepped, and is due again");
            let start = self.folded;
            while entries.get(self.folded).is_some_and(|entry| F::instant(entry) == at) {
                self.folded += 1;
            }
            fold.step(&mut self.state, at, entries, start..self.folded, effects);
            self.at = at;
            if self.folded >= self.places.last().map_or(0, |place| place.folded) + MARK_EVERY {
                self.places.push(Place { folded: self.folded, at, mark: fold.mark(&self.state) });
                self.thin();
            }
        }
    }

    /// Before something changes at a place and an instant: goes back to before them, if they were folded over. Whether
    /// they were: an instant is stepped whole, so the last one counts too.
    #[inline]
    fn unfold(
        &mut self,
        place: usize,
        instant: Millis,
        entries: &[F::Entry],
        fold: &F,
        effects: &mut F::Effects,
    ) -> bool {
        let late = instant <= self.at;
        if late {
            while self.places.last().is_some_and(|last| last.folded > place || last.at >= instant) {
                self.places.pop();
            }
            let last = self.places.last();
            fold.back(&mut self.state, last.map(|last| &last.mark), entries, effects);
            (self.folded, self.at) = last.map_or((0, Millis::MIN), |last| (last.folded, last.at));
        }
        late
    }

    /// Drops marks so that the gap around a distance is at most about half that distance.
    fn thin(&mut self) {
        let mut index = self.places.len().saturating_sub(2);
        while index > 0 {
            let gap = self.places[index + 1].folded - self.places[index - 1].folded;
            if gap * 2 <= self.folded - self.places[index + 1].folded {
                self.places.remove(index);
            }
            index -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds numbers; each number leaves again so much later. Its effect is the sum of all that the sum ever was.
    struct Rolling(Millis);

    #[derive(Clone, Default)]
    struct Sum {
        total: i64,
        head: usize,
        seen: Vec<(Millis, i64)>,
    }

    impl Fold for Rolling {
        type Entry = (Millis, i64);
        type State = Sum;
        type Mark = (i64, usize, usize, i64);
        type Effects = i64;

        fn instant(entry: &Self::Entry) -> Millis {
            entry.0
        }
        fn order(a: &Self::Entry, b: &Self::Entry) -> Ordering {
            a.cmp(b)
        }
        fn start(&self) -> Sum {
            Sum::default()
        }
        fn due(&self, state: &Sum) -> Millis {
            state.seen.get(state.head).map_or(Millis::MAX, |(at, _)| at + self.0)
        }
        fn step(&self, state: &mut Sum, at: Millis, entries: &[Self::Entry], present: Range<usize>, effects: &mut i64) {
            let before = state.total;
            while state.seen.get(state.head).is_some_and(|(seen, _)| seen + self.0 <= at) {
                state.total -= state.seen[state.head].1;
                state.head += 1;
            }
            for (at, number) in &entries[present] {
                state.seen.push((*at, *number));
                state.total += number;
            }
            *effects += state.total - before;
        }
        fn mark(&self, state: &Sum) -> Self::Mark {
            (state.total, state.head, state.seen.len(), state.total)
        }
        fn back(&self, state: &mut Sum, mark: Option<&Self::Mark>, _: &[Self::Entry], effects: &mut i64) {
            let mark = mark.unwrap_or(&(0, 0, 0, 0));
            *effects += mark.0 - state.total;
            (state.total, state.head) = (mark.0, mark.1);
            state.seen.truncate(mark.2);
        }
    }

    fn plain(entries: &[(Millis, i64)], clock: Millis, fold: &Rolling) -> i64 {
        entries.iter().filter(|(at, _)| *at <= clock && clock < at + fold.0).map(|(_, number)| number).sum()
    }

    #[test]
    fn any_order_of_arrival_gives_the_plain_sum() {
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let (mut now, mut next) = (Rolling(10), Rolling(4));
            let (mut history, mut effects, mut coming, mut clock) = (History::new(&now), 0, 0, 0);
            let mut entries = Vec::new();
            for _ in 0..150 {
                match random(9) {
                    0 if !entries.is_empty() => {
                        let gone = entries.swap_remove(random(entries.len() as u64) as usize);
                        let is_gone = |entry: &(Millis, i64)| *entry == gone;
                        let mut left = history.extract(is_gone, &now, &mut effects, Some((&next, &mut coming)));
                        for again in left.drain(1..) {
                            history.insert(again, &now, &mut effects, Some((&next, &mut coming)));
                        }
                    }
                    1 => clock += random(7) as Millis,
                    2 if history.next.is_some() && random(3) == 0 => {
                        assert_eq!(coming, plain(&entries, clock, &next));
                        history.switch();
                        std::mem::swap(&mut now, &mut next);
                        (effects, coming) = (coming, 0);
                    }
                    2 if history.next.is_none() => history.prepare(clock, &next, &mut coming),
                    _ => {
                        let entry = (clock - 20 + random(25) as Millis, random(100) as i64);
                        entries.push(entry);
                        history.insert(entry, &now, &mut effects, Some((&next, &mut coming)));
                    }
                }
                history.advance(clock, &now, &mut effects, Some((&next, &mut coming)));
                assert_eq!(effects, plain(&entries, clock, &now));
                assert!(history.due(&now, Some(&next)) > clock);
            }
        }
    }

    #[test]
    fn marks_stay_few() {
        let (mut history, mut effects) = (History::new(&Rolling(10)), 0);
        for at in 0..100_000 {
            history.insert((at, 1), &Rolling(10), &mut effects, None);
            history.advance(at, &Rolling(10), &mut effects, None);
        }
        assert!(history.now.places.len() < 80, "{} marks", history.now.places.len());
    }
}
