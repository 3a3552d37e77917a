//! Histories by key, and a heap of what is due: the state of the keyed-history operator on one worker.
//!
//! Changes are gathered first and applied together, so that each history is stepped at most once per logical time.
//! It knows nothing of what a history means.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;
use std::sync::Arc;

use ecow::EcoString;
use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::history::{Fold, Folded, History, Other};
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
    /// In which advance of all it was stepped last.
    pub stepped: u64,
}

impl<F: Fold> Slot<F> {
    /// All ids that share the history, in order.
    pub fn ids(&self) -> &[EcoString] {
        self.ids.as_deref().unwrap_or(std::slice::from_ref(&self.key))
    }

    /// Has the heap bring it up when something is due.
    fn schedule(
        &mut self,
        number: u32,
        fold: &F,
        next: Option<&Folding<F>>,
        heap: &mut BinaryHeap<Reverse<(Millis, u32)>>,
    ) {
        let due = self.history.due(fold, next.map(|next| &*next.fold));
        if due < self.scheduled {
            self.scheduled = due;
            heap.push(Reverse((due, number)));
        }
    }
}

fn other<F: Fold>(next: &mut Option<Folding<F>>) -> Other<'_, F> {
    next.as_mut().map(|Folding { fold, effects }| (&**fold, effects))
}

/// A fold of all histories, and where its consequences are added up.
pub struct Folding<F: Fold> {
    /// The fold.
    pub fold: Arc<F>,
    /// Consequences.
    pub effects: F::Effects,
}

/// Histories by key.
pub struct Keyed<F: Fold> {
    /// What the histories fold to.
    pub now: Folding<F>,
    /// What they will fold to, where it is being prepared.
    next: Option<Folding<F>>,
    /// Slots up to this one are prepared.
    prepared: usize,
    /// What does not hold any more. To give all of it back at once would keep a step waiting.
    outdated: Vec<Folded<F>>,
    slots: Vec<Slot<F>>,
    index: HashTable<u32>,
    hasher: FixedState,
    due: BinaryHeap<Reverse<(Millis, u32)>>,
    touched: Vec<u32>,
    advances: u64,
}

impl<F: Fold> Keyed<F> {
    /// No histories yet.
    pub fn new(now: Folding<F>) -> Self {
        Keyed {
            now,
            next: None,
            outdated: Vec::new(),
            prepared: 0,
            slots: Vec::new(),
            index: HashTable::new(),
            hasher: FixedState::default(),
            due: BinaryHeap::new(),
            touched: Vec::new(),
            advances: 0,
        }
    }

    /// All slots, in the order in which their keys first came.
    pub fn slots(&self) -> &[Slot<F>] {
        &self.slots
    }

    /// The slot of a key.
    pub fn get(&self, key: &str) -> Option<&Slot<F>> {
        Some(&self.slots[self.place(key)? as usize])
    }

    fn place(&self, key: &str) -> Option<u32> {
        self.index.find(self.hasher.hash_one(key), |slot| self.slots[*slot as usize].key == key).copied()
    }

    /// An entry came for a key that was touched; it is folded when the histories are next advanced. What it unsettles
    /// is taken off at once.
    pub fn insert(&mut self, slot: u32, entry: F::Entry, unsettled: impl FnOnce(&F, &mut Slot<F>, &mut F::Effects)) {
        let slot = &mut self.slots[slot as usize];
        let Folding { fold, effects } = &mut self.now;
        if slot.history.insert(entry, fold, effects, other(&mut self.next)) {
            unsettled(fold, slot, effects);
        }
    }

    /// These ids share the history of this key from now on.
    pub fn share(&mut self, key: &EcoString, ids: Vec<EcoString>) {
        let slot = self.touch(key);
        self.slots[slot as usize].ids = (ids.len() > 1).then(|| ids.into());
    }

    /// Takes entries out.
    pub fn extract(
        &mut self,
        key: &EcoString,
        leaves: impl Fn(&F::Entry) -> bool,
        unsettled: impl FnOnce(&F, &mut Slot<F>, &mut F::Effects),
    ) -> Vec<F::Entry> {
        let Some(slot) = self.place(key) else { return Vec::new() };
        self.mark_touched(slot);
        let slot = &mut self.slots[slot as usize];
        let Folding { fold, effects } = &mut self.now;
        let gone = slot.history.extract(leaves, fold, effects, other(&mut self.next));
        unsettled(fold, slot, effects);
        gone
    }

    /// The entry that stands where this one would, to be changed in what no fold has read of it.
    pub fn find_mut(&mut self, key: &str, entry: &F::Entry) -> Option<&mut F::Entry> {
        let slot = self.place(key)?;
        self.slots[slot as usize].history.find_mut(entry)
    }

    /// Brings every history up to the clock that changed or has something due; `settled` is called after each one.
    pub fn advance(&mut self, clock: Millis, mut settled: impl FnMut(&F, &mut Slot<F>, &mut F::Effects)) {
        while let Some(Reverse((at, slot))) = self.due.peek().copied().filter(|Reverse((at, _))| *at <= clock) {
            self.due.pop();
            // Others were superseded by an earlier one, which has already brought it up.
            if self.slots[slot as usize].scheduled == at {
                self.slots[slot as usize].scheduled = Millis::MAX;
                self.mark_touched(slot);
            }
        }
        self.advances += 1;
        let Folding { fold, effects } = &mut self.now;
        for number in std::mem::take(&mut self.touched) {
            let slot = &mut self.slots[number as usize];
            slot.touched = false;
            slot.stepped = self.advances;
            slot.history.advance(clock, fold, effects, other(&mut self.next));
            settled(fold, slot, effects);
            slot.schedule(number, fold, self.next.as_ref(), &mut self.due);
        }
    }

    /// From now on another fold is prepared, beside the one that holds. One that was being prepared is forgotten.
    pub fn begin(&mut self, next: Folding<F>) {
        self.slots[..self.prepared].iter_mut().for_each(|slot| slot.history.forget());
        (self.next, self.prepared) = (Some(next), 0);
    }

    /// Gives back what so many histories folded to under a fold that does not hold any more. Whether there are more.
    pub fn give_back(&mut self, histories: usize) -> bool {
        self.outdated.truncate(self.outdated.len().saturating_sub(histories));
        !self.outdated.is_empty()
    }

    /// Prepares histories of so many entries up to the clock, which those that hold have reached; whether all are.
    /// Histories that begin later have nothing to prepare before they do.
    pub fn prepare(&mut self, clock: Millis, entries: usize) -> bool {
        let Some(next) = &mut self.next else { return true };
        let mut left = entries as isize;
        while left > 0 && self.prepared < self.slots.len() {
            let slot = &mut self.slots[self.prepared];
            slot.history.prepare(clock, &next.fold, &mut next.effects);
            slot.schedule(self.prepared as u32, &self.now.fold, Some(&*next), &mut self.due);
            left -= slot.history.entries().len() as isize + 1;
            self.prepared += 1;
        }
        self.prepared == self.slots.len()
    }

    /// Histories that are prepared, and all there are.
    pub fn progress(&self) -> (usize, usize) {
        (self.prepared, self.slots.len())
    }

    /// Where what is prepared adds up its consequences.
    pub fn coming(&mut self) -> Option<&mut Folding<F>> {
        self.next.as_mut()
    }

    /// What is prepared, for every history, holds from now on. `switched` is told what held before of each. Gives the
    /// fold that held, and all that is left of its consequences.
    pub fn switch(&mut self, mut switched: impl FnMut(&F, &F, &mut Slot<F>, &Folded<F>)) -> Option<Folding<F>> {
        let next = self.next.take()?;
        let before = std::mem::replace(&mut self.now, next);
        for slot in &mut self.slots {
            if let Some(folded) = slot.history.switch() {
                switched(&before.fold, &self.now.fold, slot, &folded);
                self.outdated.push(folded);
            }
        }
        self.prepared = 0;
        Some(before)
    }

    /// The history of a key is about to change; gives its place.
    pub fn touch(&mut self, key: &EcoString) -> u32 {
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
                    history: History::new(&self.now.fold),
                    touched: false,
                    scheduled: Millis::MAX,
                    stepped: 0,
                });
                // Where all others are prepared it is too.
                if let Some(next) = self.next.as_mut().filter(|_| self.prepared == number as usize) {
                    let slot = &mut self.slots[number as usize];
                    slot.history.prepare(Millis::MIN, &next.fold, &mut next.effects);
                    self.prepared += 1;
                }
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
