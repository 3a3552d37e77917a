//! Histories by key, and a heap of what is due: the state of the keyed-history operator on one worker.
//!
//! Changes are gathered first and applied together, so that each history is stepped at most once per logical time.
//! It knows nothing of what a history means.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use std::hash::BuildHasher;

use ecow::EcoString;
use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::history::{Fold, History};
use crate::time::Millis;

/// One key's history.
pub struct Slot<F: Fold> {
    /// The key.
    pub key: EcoString,
    /// All ids that share the history, in order; none: the key alone.
    ids: Option<Box<[EcoString]>>,
    /// The history.
    pub history: History<F>,
    touched: bool,
    /// The earliest instant at which the heap will bring it up.
    scheduled: Millis,
}

impl<F: Fold> Slot<F> {
    /// All ids that share the history, in order.
    pub fn ids(&self) -> &[EcoString] {
        self.ids.as_deref().unwrap_or(std::slice::from_ref(&self.key))
    }
}

/// Histories by key.
pub struct Keyed<F: Fold> {
    slots: Vec<Slot<F>>,
    index: HashTable<u32>,
    hasher: FixedState,
    due: BinaryHeap<Reverse<(Millis, u32)>>,
    touched: Vec<u32>,
}

impl<F: Fold> Default for Keyed<F> {
    fn default() -> Self {
        Keyed {
            slots: Vec::new(),
            index: HashTable::new(),
            hasher: FixedState::default(),
            due: BinaryHeap::new(),
            touched: Vec::new(),
        }
    }
}

impl<F: Fold> Keyed<F> {
    /// All slots, in the order in which their keys first came.
    pub fn slots(&self) -> &[Slot<F>] {
        &self.slots
    }

    /// The slot of a key.
    pub fn get(&self, key: &str) -> Option<&Slot<F>> {
        let slot = self.index.find(self.hasher.hash_one(key), |slot| self.slots[*slot as usize].key == key)?;
        Some(&self.slots[*slot as usize])
    }

    /// An entry came for a key that was touched; it is folded when the histories are next advanced. What it unsettles
    /// is taken off at once.
    pub fn insert(
        &mut self,
        slot: u32,
        entry: F::Entry,
        fold: &F,
        effects: &mut F::Effects,
        unsettled: impl FnOnce(&mut Slot<F>, &mut F::Effects),
    ) {
        let slot = &mut self.slots[slot as usize];
        if slot.history.insert(entry, fold, effects) {
            unsettled(slot, effects);
        }
    }

    /// These ids share the history of this key from now on.
    pub fn share(&mut self, key: &EcoString, ids: Vec<EcoString>, fold: &F) {
        let slot = self.touch(key, fold);
        self.slots[slot as usize].ids = (ids.len() > 1).then(|| ids.into());
    }

    /// Takes entries out.
    pub fn extract(
        &mut self,
        key: &EcoString,
        leaves: impl Fn(&F::Entry) -> bool,
        fold: &F,
        effects: &mut F::Effects,
        unsettled: impl FnOnce(&mut Slot<F>, &mut F::Effects),
    ) -> Vec<F::Entry> {
        let slot = self.touch(key, fold);
        let slot = &mut self.slots[slot as usize];
        let gone = slot.history.extract(leaves, fold, effects);
        unsettled(slot, effects);
        gone
    }

    /// Brings every history up to the clock that changed or has something due; `settled` is called after each one.
    pub fn advance(
        &mut self,
        clock: Millis,
        fold: &F,
        effects: &mut F::Effects,
        mut settled: impl FnMut(&mut Slot<F>, &mut F::Effects),
    ) {
        while let Some(Reverse((at, slot))) = self.due.peek().copied().filter(|Reverse((at, _))| *at <= clock) {
            self.due.pop();
            // Others were superseded by an earlier one, which has already brought it up.
            if self.slots[slot as usize].scheduled == at {
                self.slots[slot as usize].scheduled = Millis::MAX;
                self.mark_touched(slot);
            }
        }
        for number in std::mem::take(&mut self.touched) {
            let slot = &mut self.slots[number as usize];
            slot.touched = false;
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
        mut unsettled: impl FnMut(&mut Slot<F>, &mut F::Effects),
    ) {
        for number in 0..self.slots.len() {
            let slot = &mut self.slots[number];
            slot.history.rewind(old, effects);
            unsettled(slot, effects);
            slot.history.begin(new);
            self.mark_touched(number as u32);
        }
    }

    /// The history of a key is about to change; gives its place.
    pub fn touch(&mut self, key: &EcoString, fold: &F) -> u32 {
        let hash = self.hasher.hash_one(key.as_str());
        let slot = match self.index.find(hash, |slot| self.slots[*slot as usize].key == *key) {
            Some(slot) => *slot,
            None => {
                let number = self.slots.len() as u32;
                let (slots, hasher) = (&self.slots, &self.hasher);
                let rehash = |slot: &u32| hasher.hash_one(slots[*slot as usize].key.as_str());
                self.index.insert_unique(hash, number, rehash);
                self.slots.push(Slot {
                    key: key.clone(),
                    ids: None,
                    history: History::new(fold),
                    touched: false,
                    scheduled: Millis::MAX,
                });
                number
            }
        };
        self.mark_touched(slot);
        slot
    }

    fn mark_touched(&mut self, slot: u32) {
        if !std::mem::replace(&mut self.slots[slot as usize].touched, true) {
            self.touched.push(slot);
        }
    }
}
