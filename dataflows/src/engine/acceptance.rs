//! The records of one worker, decided on: the first thing that happens to them.

use std::sync::Arc;

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::Acceptance;
use crate::admission::{Admission, Verdict};
use crate::event::Event;
use crate::identity::{Change, Id};
use crate::plan::Plan;
use crate::protocol::{Question, Record, Terms};
use crate::time::Millis;

/// What every worker knows of a step, beside its share of the records.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    /// The last log position of this process.
    pub(super) position: u64,
    /// The clock, as far as records do not move it.
    pub(super) clock: Millis,
    /// What is asked of its records.
    pub(super) terms: Terms,
    /// Definitions to come, to be prepared for from now on.
    pub(super) plan: Option<Arc<Plan>>,
    /// What is asked here.
    pub(super) questions: Vec<(u64, Question)>,
}

/// What counts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Admitted {
    /// An event.
    Event(Event),
    /// An event that was accepted before is taken back: own id, message id.
    Retract(Id, EcoString),
    /// An event that was accepted before, as definitions to come read it.
    Reread(Event),
}

/// Decides on records in their order.
pub(super) struct Accepting {
    acceptance: Acceptance,
    admission: Admission,
    clock: Millis,
    accepted: u64,
}

impl Accepting {
    /// Nothing came yet.
    pub(super) fn new(acceptance: Acceptance) -> Accepting {
        Accepting { acceptance, admission: Admission::default(), clock: 0, accepted: 0 }
    }

    /// The clock goes on.
    pub(super) fn tick(&mut self, to: Millis) -> Millis {
        self.clock = self.clock.max(to);
        self.clock
    }

    /// How many events were accepted since this was asked last.
    pub(super) fn accepted(&mut self) -> u64 {
        std::mem::take(&mut self.accepted)
    }

    /// Decides on one: what counts, whom it links, how it was decided if it was not simply taken.
    pub(super) fn decide(
        &mut self,
        record: Record,
        lateness: Option<Millis>,
        admit: &mut impl FnMut(Admitted),
        link: &mut impl FnMut(u64, Change),
    ) -> Option<(u64, Verdict)> {
        match record {
            Record::Event(prepared) => {
                let (position, timestamp) = (prepared.event.position, prepared.event.timestamp);
                let is_late = match self.acceptance {
                    Acceptance::Stamped => prepared.is_late,
                    Acceptance::InOrder => lateness.is_some_and(|lateness| timestamp < self.clock - lateness),
                    Acceptance::AnyTime => false,
                };
                let verdict = self.admission.decide(prepared.entry, is_late);
                if verdict != Verdict::Accepted {
                    return Some((position, verdict));
                }
                if self.acceptance != Acceptance::Stamped {
                    self.tick(timestamp);
                }
                self.accepted += 1;
                if let Some(stated) = prepared.link {
                    link(position, Change::Link(*stated));
                }
                admit(Admitted::Event(prepared.event));
            }
            Record::Retract(position, own, message_id, entry) => {
                // What was not accepted before cannot be taken back: what comes after stands.
                if !self.admission.has(entry) {
                    return Some((position, Verdict::Unknown));
                }
                link(position, Change::Retract(own.clone(), message_id.clone()));
                admit(Admitted::Retract(own, message_id));
            }
            Record::Reread(event) => admit(Admitted::Reread(event)),
            Record::Unlink(position, a, b) => link(position, Change::Unlink(a, b)),
            Record::Clock(_, to) => drop(self.tick(to)),
            Record::Unreadable(position) => return Some((position, Verdict::Invalid)),
        }
        None
    }
}

/// The records of a step in the order of their places, as chunks that are in order.
pub(super) fn in_order(mut chunks: Vec<Vec<Record>>) -> Vec<Vec<Record>> {
    chunks.retain(|chunk| !chunk.is_empty());
    chunks.sort_by_key(|chunk| chunk[0].position());
    let places = || chunks.iter().flatten().map(Record::position);
    if places().zip(places().skip(1)).all(|(a, b)| a <= b) {
        return chunks;
    }
    let mut all: Vec<Record> = chunks.into_iter().flatten().collect();
    all.sort_by_key(Record::position);
    vec![all]
}
