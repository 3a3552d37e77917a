//! The writer where somebody is erased: what it writes down, and who has to destroy what.
//!
//! The process that was asked writes the erasure down; the engine tells all of it. Each process then writes down that
//! its own log has bodies to be destroyed, and destroys them; the one that was asked does so last, when all others have
//! it written down. So wherever any of them ends, what is left to do is found in its log, or told anew by the engine.
//! Of a stream, which all share, the process that leads destroys what is to be destroyed.

use std::collections::BTreeSet;

use dataflows::admission::{Verdict, mark};
use dataflows::event::{Event, Kind};
use dataflows::identity::Erasure;
use dataflows::intake::Prepared;
use dataflows::place::process_of;
use dataflows::protocol::Record;
use dataflows::strike;
use dataflows::time::Millis;
use ecow::EcoString;
use tokio::sync::oneshot;

use super::retaining::Retaining;
use super::{Backing, Durable, Writer};
use crate::cluster::{LEADER, Letter};
use crate::door::Incoming;
use crate::erasing::Job;
use crate::hub::{self, AsOf, News, Shared, Work};
use crate::record::{self, DeadLetter, Dispatch, Erase, Left, Pinned};
use crate::stream::{Came, Standing, feed, seal};

/// An erasure, as far as it is known here.
#[derive(Debug, Default)]
pub(super) struct Erasing {
    /// Whose bodies are to be destroyed here; none: that is not known yet, or not any more.
    erasure: Option<Erasure>,
    events: u64,
    /// Processes that have it written down, and those where all is destroyed.
    noted: BTreeSet<usize>,
    done: BTreeSet<usize>,
    is_under_way: bool,
}

impl Writer {
    /// Somebody is to be erased.
    pub(super) fn erase(&mut self, ids: Vec<EcoString>, for_good: bool, reply: oneshot::Sender<(u64, AsOf)>) {
        let until = if for_good { Millis::MAX } else { self.clock };
        let erasure = Erasure { position: self.next_position(), until, ids };
        let position = self.write_json(record::ERASE, &Erase::new(&erasure, None, 0, &self.secret));
        self.bar(&erasure);
        self.shared.lock().erasures.insert(position, hub::Erasing::default());
        self.engine.erasing(erasure).into_iter().for_each(|record| self.step.record(record));
        self.durable.push(Durable::Erased(position, reply));
    }

    /// An erasure, or that bodies are to be destroyed, stands in the log.
    pub(super) fn found_erase(&mut self, position: u64, erase: Erase) {
        let Erase { of, until, events, ids, marks, .. } = erase;
        marks.iter().for_each(|mark| self.erased.add(*mark, until));
        let (here, at) = (self.process(), of.unwrap_or(position));
        let is_done = ids.is_empty();
        if of.is_none() {
            self.shared.lock().erasures.insert(at, hub::Erasing::default());
            self.engine.bars(position, until, marks).into_iter().for_each(|bar| self.step.record(bar));
        } else {
            let known = self.erasing.entry(at).or_default();
            known.events = events;
            known.noted.insert(here);
            if is_done {
                known.done.insert(here);
            }
        }
        if !is_done {
            // Not all bodies are destroyed, so the engine has yet to forget them.
            self.step.record(Record::Erase(Box::new(Erasure { position: at, until, ids })));
        }
    }

    /// An erasure stands in the stream, or how many events it took out.
    pub(super) fn read_erase(&mut self, position: u64, erase: Erase) {
        let Erase { of, until, events, ids, marks, .. } = erase;
        if let Some(at) = of {
            let known = self.erasing.entry(at).or_default();
            known.events = known.events.max(events);
            known.noted.insert(LEADER);
            return;
        }
        marks.iter().for_each(|mark| self.erased.add(*mark, until));
        // Once is enough.
        if self.leads() {
            let is_complete = ids.is_empty();
            self.shared.lock().erasures.insert(position, hub::Erasing { events, is_complete });
            self.engine.bars(position, until, marks).into_iter().for_each(|bar| self.step.record(bar));
            if !is_complete {
                self.step.record(Record::Erase(Box::new(Erasure { position, until, ids })));
            }
        }
    }

    /// Has all destroyed in the stream that an erasure asks for: the process that leads does.
    fn go_on_in_stream(&mut self, at: u64) {
        let is_ours = self.is_ready && self.leads();
        let (Some(known), Backing::Stream(streamed)) = (self.erasing.get_mut(&at), &self.log) else { return };
        let Some(erasure) = known.erasure.clone().filter(|_| is_ours && !known.is_under_way) else { return };
        known.is_under_way = true;
        let events = known.events;
        let erase = Erase { ids: Vec::new(), ..Erase::new(&erasure, None, events, &self.secret) };
        // The clock is that of links which were decided on.
        let (until, refused) = (erasure.until.min(self.clock), refused(&self.shared));
        let note = Erase { of: Some(at), until, refused, ..erase.clone() };
        let note = feed::own(record::ERASE, format!("thalweg:{:x}:{at}", self.life), &note);
        let note = Some(seal(note, &self.secret)).filter(|_| !known.noted.contains(&LEADER));
        let shared = self.shared.clone();
        shared.lock().erasures.insert(at, hub::Erasing { events, is_complete: false });
        let done = move |otherwise| shared.lock().news.push(News::Destroyed(at, otherwise));
        streamed.feed.erase(Job::new(erasure, LEADER, self.secret), note, erase, done);
    }

    /// All is destroyed that an erasure asks for.
    fn erased_in_stream(&mut self, at: u64) {
        let events = self.erasing.remove(&at).map_or(0, |known| known.events);
        self.shared.lock().erasures.insert(at, hub::Erasing { events, is_complete: true });
    }

    /// All of the log is read: the others hear what is done here.
    pub(super) fn found_all(&mut self) {
        self.erasing.keys().copied().collect::<Vec<_>>().into_iter().for_each(|at| self.go_on(at));
    }

    /// Whether there is anything to be heard of erasures.
    pub(super) fn has_news(&self) -> bool {
        !self.shared.lock().news.is_empty()
    }

    /// Hears it.
    pub(super) fn heed(&mut self) {
        let news = std::mem::take(&mut self.shared.lock().news);
        for news in news {
            let here = self.process();
            match news {
                News::Destroyed(at, otherwise) => {
                    for (position, payload) in otherwise {
                        if let Ok(mut prepared) = record::prepare(&payload, &mut self.decoder, &self.secret) {
                            prepared.place(position);
                            self.step.record(Record::Reread(prepared.event));
                        }
                    }
                    match self.log {
                        Backing::Own(_) => self.hear_of(here, at, 0, true),
                        Backing::Stream(_) => self.erased_in_stream(at),
                    }
                }
                News::Retained(next) => self.retaining = Retaining { next, is_under_way: false, ..self.retaining },
                News::Erased(erasure, events) => {
                    self.bar(&erasure);
                    let at = erasure.position;
                    let known = self.erasing.entry(at).or_default();
                    known.events = known.events.max(events);
                    known.erasure = Some(erasure);
                    self.go_on(at);
                }
            }
        }
    }

    /// A process has an erasure written down, or has done with it.
    pub(super) fn hear_of(&mut self, from: usize, at: u64, events: u64, is_done: bool) {
        let known = self.erasing.entry(at).or_default();
        known.events = known.events.max(events);
        known.noted.insert(from);
        if is_done {
            known.done.insert(from);
        }
        self.go_on(at);
    }

    /// Does what can be done next for an erasure.
    fn go_on(&mut self, at: u64) {
        if matches!(self.log, Backing::Stream(_)) {
            return self.go_on_in_stream(at);
        }
        let (here, taker) = (self.process(), process_of(at));
        let all = self.others.as_ref().map_or(1, |others| others.processes);
        let Some(known) = self.erasing.get_mut(&at) else { return };
        let is_noted = known.noted.contains(&here);
        let may_note = here != taker || known.noted.len() == all - 1;
        if known.done.contains(&here) {
            known.erasure = None;
            if let Some(others) = self.others.as_ref().filter(|_| here != taker) {
                others.tell(taker, &Letter::Erasing(at, known.events, true));
            }
        } else if let Some(erasure) = known.erasure.as_ref().filter(|_| !known.is_under_way && (is_noted || may_note)) {
            known.is_under_way = true;
            if !is_noted {
                let refused = refused(&self.shared);
                let note = Erase { refused, ..Erase::new(erasure, Some(at), known.events, &self.secret) };
                self.write_json(record::ERASE, &note);
            }
            self.durable.push(Durable::Erasing(at));
        }
        if here == taker {
            let known = &self.erasing[&at];
            let (events, is_complete) = (known.events, known.done.len() == all);
            self.shared.lock().erasures.insert(at, hub::Erasing { events, is_complete });
        }
    }

    /// That bodies are to be destroyed is written down: destroys them.
    pub(super) fn destroy(&mut self, at: u64) -> Result<(), String> {
        let (here, taker, secret) = (self.process(), process_of(at), self.secret);
        let (Some(known), Backing::Own(log)) = (self.erasing.get_mut(&at), &mut self.log) else { return Ok(()) };
        let Some(erasure) = known.erasure.clone() else { return Ok(()) };
        known.noted.insert(here);
        if let Some(others) = self.others.as_ref().filter(|_| here != taker) {
            others.tell(taker, &Letter::Erasing(at, known.events, false));
        }
        log.roll().map_err(|error| error.to_string())?;
        let (job, log, shared) = (Job::new(erasure, here, secret), log.handle(), self.shared.clone());
        let work = move || {
            let otherwise = job.run(&log);
            shared.lock().news.push(News::Destroyed(at, otherwise));
        };
        std::thread::Builder::new().name("erasing".into()).spawn(work).expect("the system gives a thread");
        Ok(())
    }

    /// A call is to be written down: what is kept of it, now that some were erased. It is what it will be read as.
    pub(super) fn kept(&mut self, kind: Kind, prepared: &mut Prepared, payload: Vec<u8>) -> (u8, Vec<u8>) {
        let left = self.left(kind, prepared, prepared.event.timestamp, &payload);
        let Some((kind, payload)) = left else { return (record::EVENT, payload) };
        if kind == record::EVENT
            && let Ok(again) = record::prepare(&payload, &mut self.decoder, &self.secret)
        {
            prepared.event.details = again.event.details;
        }
        (kind, payload)
    }

    /// What is kept of a call that somebody who was erased sent, or that names them; none: all of it is.
    fn left(&self, kind: Kind, prepared: &Prepared, timestamp: Millis, payload: &[u8]) -> Option<(u8, Vec<u8>)> {
        if !self.erased.reaches(timestamp) {
            return None;
        }
        let Event { own, message_id, .. } = &prepared.event;
        let gone = |id: &str| self.erased.covers(&self.secret, id, timestamp);
        if gone(own) {
            // The engine says so too.
            return Some((record::DESTROYED, Left::Erased.encode()));
        }
        let struck = strike::call(record::decode_event(payload)?.3, &gone).ok().flatten()?;
        let pinned = Pinned { entry: prepared.entry, is_old: false };
        Some((record::EVENT, record::encode_pinned(kind, pinned, timestamp, message_id, &struck)))
    }

    /// Calls of a message as they are to be kept, if any of them is not as it came.
    pub(super) fn left_of(&self, calls: &[Came]) -> Option<Vec<Standing>> {
        let left = |call: &Came| match call {
            Came::Good(incoming) => {
                let Incoming { kind, prepared, undated, payload, .. } = &**incoming;
                let timestamp = if *undated { self.clock } else { prepared.event.timestamp };
                let (kind, payload) = self.left(*kind, prepared, timestamp, payload)?;
                Some(Standing { kind, undated: *undated, payload })
            }
            Came::Bad(letter) if self.names_erased(letter) => Some((&Came::Bad(letter.clone().destroyed())).into()),
            Came::Left(..) | Came::Bad(_) => None,
        };
        let is_changed = calls.iter().any(|call| left(call).is_some());
        is_changed.then(|| calls.iter().map(|call| left(call).unwrap_or_else(|| call.into())).collect())
    }

    /// The same of calls that come in over HTTP.
    pub(super) fn left_of_work(&self, work: &Work) -> Option<Vec<Standing>> {
        let Work::Events(events, ..) = work else { return None };
        let at = |event: &Incoming| if event.undated { self.clock } else { event.prepared.event.timestamp };
        let reaches = |event: &Incoming| self.erased.reaches(at(event));
        if !events.iter().any(reaches) {
            return None;
        }
        self.left_of(&events.iter().map(|event| Came::Good(Box::new(event.clone()))).collect::<Vec<_>>())
    }

    /// A dead letter is to be written down: of whom nothing is taken any more its body is not kept.
    pub(super) fn without_erased(&self, letter: DeadLetter) -> DeadLetter {
        if self.names_erased(&letter) { letter.destroyed() } else { letter }
    }

    fn names_erased(&self, letter: &DeadLetter) -> bool {
        let gone = |id: &str| self.erased.covers(&self.secret, id, self.clock);
        self.erased.reaches(self.clock) && strike::is_in_json(&letter.body, &gone) == Ok(true)
    }

    /// Nothing of these ids is written down any more that is dated before they were erased.
    fn bar(&mut self, Erasure { until, ids, .. }: &Erasure) {
        ids.iter().for_each(|id| self.erased.add(mark(&self.secret, id), *until));
    }

    /// Whether an intent was somebody's who was erased since.
    pub(super) fn is_erased(&self, Dispatch { row, .. }: &Dispatch) -> bool {
        [&row.profile, &row.root.id].into_iter().any(|id| self.erased.covers(&self.secret, id, row.at))
    }
}

/// Places of calls whose links were refused.
fn refused(shared: &Shared) -> Vec<u64> {
    let open = shared.lock();
    let refused = open.dead_letters.iter().filter(|(_, verdict)| **verdict == Verdict::RefusedEdge);
    refused.map(|(position, _)| *position).collect()
}
