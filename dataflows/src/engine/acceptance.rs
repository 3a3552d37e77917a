//! The records of one worker, decided on: the first thing that happens to them.

use std::sync::Arc;

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::Acceptance;
use crate::admission::{Admission, Erased, Verdict};
use crate::event::{Event, Link};
use crate::identity::{Change, Id};
use crate::plan::Plan;
use crate::protocol::{Destroyed, Question, Record, Terms};
use crate::strike::without;
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
    /// Whether intents may go out.
    pub(super) sends: bool,
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
    pub(super) acceptance: Acceptance,
    admission: Admission,
    erased: Erased,
    /// The key of hashes.
    secret: [u8; 16],
    clock: Millis,
    accepted: u64,
}

impl Accepting {
    /// Nothing came yet.
    pub(super) fn new(acceptance: Acceptance, secret: [u8; 16]) -> Accepting {
        let (admission, erased) = Default::default();
        Accepting { acceptance, admission, erased, secret, clock: 0, accepted: 0 }
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
        link: &mut impl FnMut(u64, Millis, Change),
    ) -> Option<(u64, Verdict)> {
        // Where events move the clock none is ever ahead of it.
        let is_stamped = self.acceptance == Acceptance::Stamped;
        let mut link = |position, stamp, change| link(position, if is_stamped { stamp } else { Millis::MAX }, change);
        match record {
            Record::Event(mut prepared) => {
                let (position, timestamp) = (prepared.event.position, prepared.event.timestamp);
                if self.erased.covers(&self.secret, &prepared.event.own, timestamp) {
                    return Some((position, Verdict::Erased));
                }
                let verdict = self.admit(prepared.entry, timestamp, prepared.is_late, lateness);
                if verdict != Verdict::Accepted {
                    return Some((position, verdict));
                }
                self.accepted += 1;
                self.strike(&mut prepared.event);
                if let Some(stated) = prepared.link.and_then(|link| self.struck(*link)) {
                    link(position, stated.stamp, Change::Link(stated));
                }
                admit(Admitted::Event(prepared.event));
            }
            Record::Retract(position, stamp, own, message_id, entry) => {
                // What was not accepted before cannot be taken back: what comes after stands.
                if !self.admission.has(entry) {
                    return Some((position, Verdict::Unknown));
                }
                link(position, stamp, Change::Retract(own.clone(), message_id.clone()));
                admit(Admitted::Retract(own, message_id));
            }
            Record::Reread(mut event) => {
                self.strike(&mut event);
                admit(Admitted::Reread(event));
            }
            Record::Unlink(position, stamp, a, b) => link(position, stamp, Change::Unlink(a, b)),
            Record::Clock(_, to) => drop(self.tick(to)),
            Record::Unreadable(position) => return Some((position, Verdict::Invalid)),
            Record::Bar(bar) => bar.marks.iter().for_each(|mark| self.erased.add(*mark, bar.until)),
            Record::Erase(erasure) => {
                // Of whom nothing is taken any more, the clock is that of the step.
                link(erasure.position, erasure.until.min(self.clock), Change::Erase(*erasure));
            }
            Record::Settled(settled) => link(0, Millis::MIN, Change::Settled(*settled)),
            Record::Destroyed(Destroyed { position, timestamp, is_late, entry, .. }) => {
                let verdict = self.admit(entry, timestamp, is_late, lateness);
                return Some((position, verdict)).filter(|_| verdict != Verdict::Accepted);
            }
            Record::Decided(position, verdict) => return Some((position, verdict)),
        }
        None
    }

    /// Takes out of an event that is dated before somebody was erased what names them.
    fn strike(&self, event: &mut Event) {
        if self.erased.reaches(event.timestamp) {
            let gone = |id: &str| self.erased.covers(&self.secret, id, event.timestamp);
            event.details = event.details.take().map(|details| without(&details, &gone).map_or(details, Arc::new));
        }
    }

    /// What such an event still links.
    fn struck(&self, mut link: Link) -> Option<Link> {
        let gone = |id: &mut EcoString| self.erased.covers(&self.secret, id, link.timestamp);
        link.anonymous.take_if(gone);
        link.previous.take_if(gone);
        (link.anonymous.is_some() || link.previous.is_some()).then_some(link)
    }

    /// Decides on the next record by what admission knows it by; if it is accepted, the clock follows where it does.
    fn admit(&mut self, entry: u128, timestamp: Millis, is_late: bool, lateness: Option<Millis>) -> Verdict {
        let is_late = match self.acceptance {
            Acceptance::Stamped => is_late,
            Acceptance::InOrder => lateness.is_some_and(|lateness| timestamp < self.clock - lateness),
            Acceptance::AnyTime => false,
        };
        let verdict = self.admission.decide(entry, is_late);
        if verdict == Verdict::Accepted && self.acceptance != Acceptance::Stamped {
            self.tick(timestamp);
        }
        verdict
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
