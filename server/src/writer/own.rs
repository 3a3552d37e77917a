//! The writer where files are the log: what it writes there, and how it reads them again at the start.

use std::sync::Arc;

use dataflows::admission::Verdict;
use dataflows::event::Reason;
use dataflows::identity::Settled;
use dataflows::place::place;
use dataflows::protocol::{Destroyed, Record};
use tokio::sync::oneshot;

use super::{Backing, Durable, Found, STEP_EVENTS, Writer};
use crate::book::Book;
use crate::cluster::{Letter, Others};
use crate::door::Incoming;
use crate::hub::{ClockMode, Receipt, Work};
use crate::record::{self, Clock, Correction, DeadLetter, Defined, Dispatch, Left};

impl Writer {
    pub(super) fn events(&mut self, events: Vec<Incoming>, reply: oneshot::Sender<Receipt>) {
        let (first, count) = (self.next_position(), events.len());
        // Where events move the clock, the engine alone knows it.
        let mut may_be_late = self.mode == ClockMode::Events;
        for incoming in events {
            let Incoming { kind, mut prepared, undated, mut payload, .. } = self.current(incoming);
            if undated {
                prepared.date(self.clock);
                record::date(&mut payload, self.clock);
            }
            let timestamp = prepared.event.timestamp;
            if self.mode == ClockMode::Events {
                self.clock = self.clock.max(timestamp);
            }
            prepared.stamp(self.clock, self.step.terms.lateness);
            may_be_late |= prepared.is_late;
            prepared.place(self.next_position());
            let (kind, payload) = self.kept(kind, &mut prepared, payload);
            may_be_late |= kind == record::DESTROYED;
            self.group.push((kind, self.clock, payload));
            self.step.record(Record::Event(prepared));
        }
        if may_be_late {
            self.waiting.receipts.push((reply, first, count));
        } else {
            self.durable.push(Durable::Receipt(reply, count));
        }
    }

    /// Reads the log from its beginning, as if all of it came now; then writes the definitions down, if they are new.
    /// Where several processes read theirs, the leader says how far each step goes, so that all records are decided on
    /// in the order of their places. What was decided before somebody was erased is not decided again.
    pub(super) fn read_again(
        &mut self,
        mut book: Book,
        last_time: u64,
        settled: Option<&Settled>,
    ) -> Result<Found, String> {
        let leads = self.others.as_ref().is_none_or(Others::leads);
        let mut found = Found { process: self.process(), ..Found::default() };
        let mut last = None;
        let mut until = if leads { u64::MAX } else { self.next_slice(&mut found) };
        let Backing::Own(log) = &self.log else { return Ok(found) };
        let mut reader = log.reader();
        let mut at = 0;
        let was_refused = |position| settled.is_some_and(|settled| settled.refused.binary_search(&position).is_ok());
        self.step.records.extend(settled.map(|settled| vec![Record::Settled(Box::new(settled.clone()))]));
        while let Some((record, (time, index))) = reader.next().map_err(|error| error.to_string())? {
            // Steps end where groups do.
            if leads && time > at && self.step.len() >= STEP_EVENTS {
                self.slice(at)?;
            }
            while !leads && time > until {
                self.close()?;
                until = self.next_slice(&mut found);
            }
            at = time;
            let position = place(time, self.process(), index);
            self.clock = self.clock.max(record.received_at);
            match record.kind {
                record::EVENT => {
                    if let Ok(mut prepared) = record::prepare(record.payload, &mut self.decoder, &self.secret) {
                        // What links nobody any more does not say that its link was refused.
                        if prepared.link.is_none() && was_refused(position) {
                            self.step.record(Record::Decided(position, Verdict::RefusedEdge));
                        }
                        let lateness = last.as_ref().and_then(|defined: &Defined| defined.lateness);
                        prepared.stamp(record.received_at, lateness);
                        prepared.place(position);
                        self.step.record(Record::Event(prepared));
                    }
                }
                record::DESTROYED => match Left::decode(record.payload) {
                    Some(Left::Event(left)) => {
                        let earliest = last.as_ref().and_then(|defined: &Defined| defined.lateness);
                        let earliest = earliest.map(|lateness| record.received_at - lateness);
                        let is_late = earliest.is_some_and(|earliest| left.timestamp < earliest);
                        self.step.record(Record::Destroyed(Destroyed { position, is_late, ..left }));
                        if was_refused(position) {
                            self.step.record(Record::Decided(position, Verdict::RefusedEdge));
                        }
                    }
                    Some(Left::Erased) => self.step.record(Record::Decided(position, Verdict::Erased)),
                    None => {}
                },
                record::ERASE => {
                    if let Ok(erase) = serde_json::from_slice(record.payload) {
                        self.found_erase(position, erase);
                    }
                }
                record::CLOCK => {
                    let clock = serde_json::from_slice::<Clock>(record.payload).ok();
                    clock.into_iter().for_each(|clock| self.step.record(Record::Clock(position, clock.to)));
                }
                record::CORRECTION => {
                    let correction = serde_json::from_slice::<Correction>(record.payload).ok();
                    let taken = |correction: Correction| correction.at(position, self.clock, &self.secret);
                    let corrections = correction.into_iter().map(taken);
                    corrections.for_each(|correction| self.step.record(correction));
                }
                record::DEFINITIONS => {
                    if let Ok(defined) = serde_json::from_slice::<Defined>(record.payload) {
                        // What came before was accepted by what held then. It is the first of its group.
                        if leads {
                            self.slice(time - 1)?;
                        }
                        self.step.terms = defined.terms();
                        last = Some(defined);
                    }
                }
                record::DEAD_LETTER => {
                    self.step.record(Record::Unreadable(position));
                    let letter = serde_json::from_slice::<DeadLetter>(record.payload);
                    let reason = letter.map_or(Reason::Invalid, |letter| letter.reason);
                    self.shared.lock().refused(reason.name(), position);
                }
                record::DISPATCH => found.dispatched.extend(serde_json::from_slice::<Dispatch>(record.payload).ok()),
                _ => {}
            }
            self.step.position = position;
        }
        if leads {
            if let Some(others) = &self.others {
                others.tell_all(&Letter::Ledger(found.dispatched.clone()));
            }
            self.slice(u64::MAX)?;
        } else {
            while until < u64::MAX {
                self.close()?;
                until = self.next_slice(&mut found);
            }
            self.close()?;
        }
        // What is recorded from now on comes after all that is in any log.
        self.step.number = self.step.number.max(last_time + 1);
        let defined = book.defined();
        if last.as_ref() != Some(&defined) {
            if self.mode == ClockMode::Wall {
                self.clock = self.clock.max((self.now)());
            }
            book.stamp(self.write_json(record::DEFINITIONS, &defined), self.clock);
        }
        self.step.terms = defined.terms();
        self.shared.lock().book = Arc::new(book);
        if leads {
            self.announce(None);
        } else {
            self.next_slice(&mut found);
        }
        self.found_all();
        self.close()?;
        found.position = self.step.position;
        self.wait(0).log_is_read = true;
        Ok(found)
    }

    /// The leader closes a step of what stands in the logs up to a time.
    fn slice(&mut self, until: u64) -> Result<(), String> {
        self.announce(Some(until));
        self.close()
    }

    /// Another process waits until the leader says how far the next step goes.
    fn next_slice(&mut self, found: &mut Found) -> u64 {
        loop {
            match self.queue.recv() {
                Ok(Work::Letter(_, Letter::Round(round))) => {
                    self.begin(round);
                    return round.until.unwrap_or(u64::MAX);
                }
                Ok(Work::Letter(_, Letter::Ledger(mut dispatched))) => found.dispatched.append(&mut dispatched),
                Ok(Work::Letter(from, Letter::Erasing(at, events, done))) => self.hear_of(from, at, events, done),
                // Nobody else has the way to the writer yet.
                _ => {}
            }
        }
    }
}
