//! The writer where a stream is the log: what it gives to the stream, and how it makes steps of what it reads there.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use dataflows::admission::Verdict;
use dataflows::identity::{Erasure, Settled};
use dataflows::place::{PROCESSES_MAX, RECORDS_MAX, place};
use dataflows::protocol::{Destroyed, Record};
use dataflows::time::Millis;
use tokio::sync::oneshot;

use super::{Backing, Durable, Found, STEP_EVENTS, Writer};
use crate::book::{self, Book};
use crate::cluster::{LEADER, Letter, Round};
use crate::door::Incoming;
use crate::hub::{AsOf, ClockMode, Receipt, Told, Work};
use crate::record::{self, Clock, Erase, Left};
use crate::stream::feed::{self, Feed, Read, What};
use crate::stream::{Came, seal};

/// The writer's side of a stream.
pub(super) struct Streamed {
    pub(super) feed: Feed,
    /// The writer's own queue, for those who wait elsewhere.
    pub(super) to: Sender<Work>,
    /// Messages that have yet to become part of a step.
    pub(super) reads: VecDeque<Read>,
    /// The sequence of the last that has.
    pub(super) read: u64,
    /// Who waits until a step is closed that holds the message of an id.
    pub(super) awaited: HashMap<String, Awaited>,
    /// Links that were decided on before somebody was erased last.
    pub(super) settled: Option<Settled>,
    /// When the bodies of calls came that have yet to become part of a step, by their messages' ids.
    pub(super) came: HashMap<String, Instant>,
}

pub(super) enum Awaited {
    Receipt(oneshot::Sender<Receipt>, usize),
    Clock(oneshot::Sender<AsOf>),
    Erased(oneshot::Sender<(u64, AsOf)>),
}

impl Writer {
    /// Waits until all is read that the leader's step holds of the stream, and makes it part of this one.
    pub(super) fn read_up_to(&mut self, round: Round) -> Result<(), String> {
        let Some(until) = round.until.filter(|_| matches!(self.log, Backing::Stream(_))) else { return Ok(()) };
        while self.read_on(until).is_some_and(|read| read < until) {
            match self.queue.recv() {
                Ok(Work::Letter(_, Letter::Stop)) | Err(_) => return Ok(()),
                Ok(Work::Letter(..)) => {}
                Ok(work) => self.hold(work)?,
            }
        }
        Ok(())
    }

    /// Makes messages of the stream part of the step, up to a sequence and as many as a step should hold; gives the
    /// sequence of the last. None: there is no stream.
    pub(super) fn read_on(&mut self, until: u64) -> Option<u64> {
        loop {
            let Backing::Stream(streamed) = &mut self.log else { return None };
            let is_full = until == u64::MAX && self.step.len() >= STEP_EVENTS;
            // Other definitions hold for whole steps.
            let begins = |read: &Read| matches!(read.what, What::Defined(_)) && !self.step.is_empty();
            let next = streamed.reads.front().filter(|read| read.sequence <= until && !is_full);
            let next = next.filter(|read| until < u64::MAX || !begins(read));
            if next.is_none() {
                return Some(streamed.read);
            }
            let read = streamed.reads.pop_front().expect("it was just seen");
            streamed.read = read.sequence;
            let awaited = read.id.as_ref().and_then(|id| streamed.awaited.remove(id));
            self.waiting.received.extend(read.id.as_ref().and_then(|id| streamed.came.remove(id)));
            self.read(read, awaited);
        }
    }

    /// A message of the stream becomes part of the step.
    fn read(&mut self, read: Read, awaited: Option<Awaited>) {
        let Read { sequence, nanos, what, .. } = read;
        let received_at = nanos.div_euclid(1_000_000);
        let first = place(sequence, LEADER, 0);
        self.step.position = place(sequence, PROCESSES_MAX - 1, RECORDS_MAX - 1);
        if self.mode == ClockMode::Wall {
            self.clock = self.clock.max(received_at);
        }
        match what {
            What::Calls(mut calls) => {
                let earliest = self.step.terms.lateness.map(|lateness| received_at - lateness);
                if let Some(left) = self.left_of(&calls)
                    && let Backing::Stream(streamed) = &self.log
                {
                    streamed.feed.replace(sequence, nanos, &left);
                    // They are what they will be read as.
                    calls = left.iter().map(|call| call.read(&mut self.decoder, &self.secret)).collect();
                }
                for (index, call) in calls.into_iter().enumerate().take(RECORDS_MAX) {
                    let position = place(sequence, LEADER, index);
                    let incoming = match call {
                        Came::Good(incoming) => incoming,
                        Came::Left(Left::Event(left), undated) => {
                            let timestamp = if undated { self.clock } else { left.timestamp };
                            if self.mode == ClockMode::Events {
                                self.clock = self.clock.max(timestamp);
                            }
                            let is_late = earliest.is_some_and(|earliest| timestamp < earliest);
                            self.step.record(Record::Destroyed(Destroyed { position, timestamp, is_late, ..left }));
                            if self.was_refused(position) {
                                self.step.record(Record::Decided(position, Verdict::RefusedEdge));
                            }
                            continue;
                        }
                        Came::Left(Left::Erased, _) => {
                            self.step.record(Record::Decided(position, Verdict::Erased));
                            continue;
                        }
                        Came::Bad(letter) => {
                            self.step.record(Record::Unreadable(position));
                            self.shared.lock().refused(letter.reason.name(), position);
                            continue;
                        }
                    };
                    let Incoming { mut prepared, undated, .. } = self.current(*incoming);
                    // What links nobody any more does not say that its link was refused.
                    if prepared.link.is_none() && self.was_refused(position) {
                        self.step.record(Record::Decided(position, Verdict::RefusedEdge));
                    }
                    if undated {
                        prepared.date(self.clock);
                    }
                    let timestamp = prepared.event.timestamp;
                    if self.mode == ClockMode::Events {
                        self.clock = self.clock.max(timestamp);
                    }
                    prepared.stamp(received_at, self.step.terms.lateness);
                    prepared.place(position);
                    self.step.record(Record::Event(prepared));
                }
            }
            What::Nothing => {}
            What::Refused(reason) => {
                self.step.record(Record::Unreadable(first));
                self.shared.lock().refused(reason.name(), first);
            }
            What::Clock(to) => {
                self.clock = self.clock.max(to);
                self.step.record(Record::Clock(first, to));
            }
            What::Corrected(corrections) => {
                for (index, correction) in corrections.into_iter().enumerate().take(RECORDS_MAX) {
                    let Some(correction) = correction else { continue };
                    self.step.record(correction.at(place(sequence, LEADER, index), self.clock, &self.secret));
                }
            }
            What::Defined(mut defined) => {
                self.step.terms = defined.terms();
                let clock = if self.mode == ClockMode::Wall { received_at } else { self.clock };
                book::stamp(&mut defined.versions, first, clock);
                // At the start those that hold last hold from the beginning.
                if self.is_ready {
                    self.comes_next(&defined, first, clock);
                }
                self.defined = Some(defined);
            }
            What::Erased(erase) => self.read_erase(first, erase),
            What::Dispatched(mut dispatched) => {
                if dispatched.iter().any(|entry| self.is_erased(entry)) {
                    // It was on its way when they were erased.
                    dispatched.retain(|entry| !self.is_erased(entry));
                    if let Backing::Stream(streamed) = &self.log
                        && self.leads()
                    {
                        streamed.feed.replace_dispatched(sequence, nanos, &dispatched);
                    }
                }
                match &self.others {
                    _ if !self.is_ready => self.found.dispatched.append(&mut dispatched),
                    Some(others) if !others.leads() => drop(self.told.send(Told::Dispatched(dispatched))),
                    _ => {}
                }
            }
        }
        match awaited {
            Some(Awaited::Receipt(reply, count)) => self.waiting.receipts.push((reply, first, count)),
            Some(Awaited::Clock(reply)) => self.waiting.clocks.push(reply),
            Some(Awaited::Erased(reply)) => self.durable.push(Durable::Erased(first, reply)),
            None => {}
        }
    }

    /// Whether the link of a call was refused before somebody was erased last.
    fn was_refused(&self, position: u64) -> bool {
        let Backing::Stream(streamed) = &self.log else { return false };
        streamed.settled.as_ref().is_some_and(|settled| settled.refused.binary_search(&position).is_ok())
    }

    /// Gives work to the stream. Who waits is answered when that is kept; where only the engine knows the answer, when
    /// a step is closed that holds it.
    pub(super) fn publish(&mut self, work: Work) {
        let (clock, lateness, mode) = (self.clock, self.step.terms.lateness, self.mode);
        let (secret, left) = (self.secret, self.left_of_work(&work));
        let work = match work {
            Work::Dispatch(mut entries, reply) => {
                entries.retain(|entry| !self.is_erased(entry));
                Work::Dispatch(entries, reply)
            }
            Work::DeadLetters(letters) => {
                Work::DeadLetters(letters.into_iter().map(|letter| self.without_erased(letter)).collect())
            }
            work => work,
        };
        let Backing::Stream(streamed) = &mut self.log else { return };
        self.published += 1;
        let id = format!("thalweg:{:x}:{}", self.life, self.published);
        let await_it = |streamed: &mut Streamed, id: &str, awaited: Awaited| {
            streamed.awaited.insert(id.to_owned(), awaited);
            let (to, id) = (streamed.to.clone(), id.to_owned());
            move |kept: Option<u64>| {
                if kept.is_none() {
                    let _ = to.send(Work::NotKept(id));
                }
            }
        };
        match work {
            Work::Events(events, _, reply) if events.is_empty() => {
                let as_of = AsOf { position: self.step.position, clock };
                let _ = reply.send(Receipt { as_of, verdicts: Vec::new() });
            }
            Work::Events(events, received, reply) => {
                streamed.came.insert(id.clone(), received);
                let count = events.len();
                let message = match &left {
                    Some(left) => feed::standing(id.clone(), left),
                    None => feed::message(id.clone(), &events),
                };
                // A minute more than needed: the broker's clock is not ours.
                let late = |lateness: Millis| {
                    events.iter().any(|event| event.prepared.event.timestamp < clock - lateness + 60_000)
                };
                if mode == ClockMode::Events || left.is_some() || lateness.is_some_and(late) {
                    let kept = await_it(streamed, &id, Awaited::Receipt(reply, count));
                    streamed.feed.publish(message, kept);
                } else {
                    let to = streamed.to.clone();
                    streamed.feed.publish(message, move |kept| {
                        let Some(sequence) = kept else { return drop(to.send(Work::NotKept(id))) };
                        let as_of = AsOf { position: place(sequence, LEADER, count - 1), clock };
                        let _ = reply.send(Receipt { as_of, verdicts: vec![Verdict::Accepted; count] });
                    });
                }
            }
            Work::DeadLetters(letters) => {
                for (number, letter) in letters.into_iter().enumerate() {
                    streamed.feed.refuse(format!("{id}:{number}"), letter, clock);
                }
            }
            Work::Clock(to, reply) => {
                let message = feed::own(record::CLOCK, id.clone(), &Clock { to });
                let kept = await_it(streamed, &id, Awaited::Clock(reply));
                streamed.feed.publish(message, kept);
            }
            Work::Correct(corrections, reply) => {
                let message = feed::own(record::CORRECTION, id.clone(), &corrections);
                let kept = await_it(streamed, &id, Awaited::Receipt(reply, corrections.len()));
                streamed.feed.publish(message, kept);
            }
            Work::Erase(ids, for_good, reply) => {
                let until = if for_good { Millis::MAX } else { clock };
                // Its place is where the stream puts it.
                let erase = Erase::new(&Erasure { position: 0, until, ids }, None, 0, &secret);
                let message = seal(feed::own(record::ERASE, id.clone(), &erase), &secret);
                let kept = await_it(streamed, &id, Awaited::Erased(reply));
                streamed.feed.publish(message, kept);
            }
            Work::Define(mut book, reply) => {
                book.settle(clock);
                let message = feed::own(record::DEFINITIONS, id, &book.defined());
                streamed.feed.publish(message, move |kept| {
                    let Some(sequence) = kept else { return };
                    let _ = reply.send(AsOf { position: place(sequence, LEADER, 0), clock });
                });
            }
            Work::Dispatch(entries, reply) => {
                let message = feed::own(record::DISPATCH, id, &entries);
                streamed.feed.publish(message, move |kept| {
                    let Some(sequence) = kept else { return };
                    let _ = reply.send(AsOf { position: place(sequence, LEADER, 0), clock });
                });
            }
            _ => {}
        }
    }

    /// Reads the stream from its beginning up to where it stood when it was opened; then has the definitions written
    /// down, if they are new, and reads on until they are there.
    pub(super) fn read_stream(&mut self, book: Book, end: u64) -> Result<Found, String> {
        let leads = self.leads();
        let defined = book.defined();
        self.found.process = self.process();
        let mut is_asked = false;
        if let Backing::Stream(streamed) = &self.log {
            let settled = streamed.settled.clone().map(|settled| vec![Record::Settled(Box::new(settled))]);
            self.step.records.extend(settled);
        }
        loop {
            let Backing::Stream(streamed) = &self.log else { return Ok(Found::default()) };
            let is_read = streamed.read >= end;
            if let Some(kept) = self.defined.as_ref().filter(|kept| is_read && **kept == defined) {
                self.shared.lock().book = Arc::new(book.kept_as(kept));
                break;
            }
            if is_read && leads && !is_asked {
                is_asked = true;
                let id = format!("thalweg:{:x}:definitions", self.life);
                let (to, message) = (streamed.to.clone(), feed::own(record::DEFINITIONS, id, &defined));
                streamed.feed.publish(message, move |kept| {
                    if kept.is_none() {
                        let why = "the broker has not kept the definitions; see its limits and its disk";
                        let _ = to.send(Work::Failed(why.into()));
                    }
                });
            }
            match leads {
                true => drop(self.lead()?),
                false if self.follow()? => {}
                false => return Err("the leading process ends".into()),
            }
            self.close()?;
        }
        self.wait(0).log_is_read = true;
        self.is_ready = true;
        if let Backing::Stream(streamed) = &self.log {
            streamed.feed.caught_up();
        }
        self.found_all();
        self.found.position = self.step.position;
        Ok(std::mem::take(&mut self.found))
    }
}
