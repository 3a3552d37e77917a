//! Histories by key, and a heap of what is due: the state of the keyed-history operator on one worker.
//!
//! Changes are gathered first and applied together, so that each history is stepped at most once per logical time.
//! It knows nothing of what a history means.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use compact_str::CompactString;
use hashbrown::HashMap;

use crate::history::{Fold, History};
use crate::time::Millis;

/// One key's history.
pub struct Slot<F: Fold> {
    /// The key.
    pub key: CompactString,
    /// All ids that share the history, the key among them, in order.
    pub ids: Box<[CompactString]>,
    /// The history.
    pub history: History<F>,
    arrived: Vec<F::Entry>,
    touched: bool,
    /// The earliest instant at which the heap will bring it up.
    scheduled: Millis,
}

/// Histories by key.
pub struct Keyed<F: Fold> {
    slots: Vec<Slot<F>>,
    index: HashMap<CompactString, usize>,
    due: BinaryHeap<Reverse<(Millis, usize)>>,
    touched: Vec<usize>,
}

impl<F: Fold> Default for Keyed<F> {
    fn default() -> Self {
        Keyed { slots: Vec::new(), index: HashMap::new(), due: BinaryHeap::new(), touched: Vec::new() }
    }
}

impl<F: Fold> Keyed<F> {
    /// All slots, in the order in which their keys first came.
    pub fn slots(&self) -> &[Slot<F>] {
        &self.slots
    }

    /// The slot of a key.
    pub fn get(&self, key: &str) -> Option<&Slot<F>> {
        self.index.get(key).map(|slot| &self.slots[*slot])
    }

    /// An entry came; it takes its place when the histories are next advanced.
    pub fn insert(&mut self, key: &CompactString, entry: F::Entry, fold: &F) {
        let slot = self.touch(key, fold);
        self.slots[slot].arrived.push(entry);
    }

    /// These ids share the history of this key from now on.
    pub fn share(&mut self, key: &CompactString, ids: Vec<CompactString>, fold: &F) {
        let slot = self.touch(key, fold);
        self.slots[slot].ids = ids.into();
    }

    /// Takes entries out, those too that came at this time.
    pub fn extract(
        &mut self,
        key: &CompactString,
        leaves: impl Fn(&F::Entry) -> bool,
        fold: &F,
        effects: &mut F::Effects,
        mut settled: impl FnMut(&Slot<F>, &mut F::Effects),
    ) -> Vec<F::Entry> {
        let slot = self.touch(key, fold);
        let slot = &mut self.slots[slot];
        let mut gone = slot.history.extract(&leaves, fold, effects);
        settled(slot, effects);
        gone.extend(slot.arrived.extract_if(.., |entry| leaves(entry)));
        gone
    }

    /// Brings every history up to the clock that changed or has something due; `settled` is called after each one.
    pub fn advance(
        &mut self,
        clock: Millis,
        fold: &F,
        effects: &mut F::Effects,
        mut settled: impl FnMut(&Slot<F>, &mut F::Effects),
    ) {
        while let Some(Reverse((at, slot))) = self.due.peek().copied().filter(|Reverse((at, _))| *at <= clock) {
            self.due.pop();
            // Others were superseded by an earlier one, which has already brought it up.
            if self.slots[slot].scheduled == at {
                self.slots[slot].scheduled = Millis::MAX;
                self.mark_touched(slot);
            }
        }
        for number in std::mem::take(&mut self.touched) {
            let slot = &mut self.slots[number];
            slot.touched = false;
            slot.arrived.sort_unstable_by(F::order);
            for entry in slot.arrived.drain(..) {
                slot.history.insert(entry, fold, effects);
            }
            slot.history.advance(clock, fold, effects);
            settled(slot, effects);
            let due = slot.history.due(fold);
            if due < slot.scheduled {
                slot.scheduled = due;
                self.due.push(Reverse((due, number)));
            }
        }
    }

    /// Goes back to the beginning with every history: what is folded next is another fold.
    pub fn refold(
        &mut self,
        old: &F,
        new: &F,
        effects: &mut F::Effects,
        mut settled: impl FnMut(&Slot<F>, &mut F::Effects),
    ) {
        for number in 0..self.slots.len() {
            self.slots[number].history.restart(old, new, effects);
            settled(&self.slots[number], effects);
            self.mark_touched(number);
        }
    }

    fn touch(&mut self, key: &CompactString, fold: &F) -> usize {
        let slot = match self.index.get(key) {
            Some(slot) => *slot,
            None => {
                self.slots.push(Slot {
                    key: key.clone(),
                    ids: Box::new([key.clone()]),
                    history: History::new(fold),
                    arrived: Vec::new(),
                    touched: false,
                    scheduled: Millis::MAX,
                });
                self.index.insert(key.clone(), self.slots.len() - 1);
                self.slots.len() - 1
            }
        };
        self.mark_touched(slot);
        slot
    }

    fn mark_touched(&mut self, slot: usize) {
        if !std::mem::replace(&mut self.slots[slot].touched, true) {
            self.touched.push(slot);
        }
    }
}
