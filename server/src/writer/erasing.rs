//! The writer where somebody is erased: what it writes down, and who has to destroy what.
//!
//! The process that was asked writes the erasure down; the engine tells all of it. Each process then writes down that
//! its own log has bodies to be destroyed, and destroys them; the one that was asked does so last, when all others have
//! it written down. So wherever any of them ends, what is left to do is found in its log, or told anew by the engine.

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
use crate::cluster::Letter;
use crate::erasing::Job;
use crate::hub::{self, AsOf, News};
use crate::record::{self, DeadLetter, Dispatch, Erase, Left, Pinned};

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
                    self.hear_of(here, at, 0, true);
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
                let open = self.shared.lock();
                let refused = open.dead_letters.iter().filter(|(_, verdict)| **verdict == Verdict::RefusedEdge);
                let refused = refused.map(|(position, _)| *position).collect();
                drop(open);
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
        let Event { timestamp, own, message_id, .. } = &prepared.event;
        if self.erased.covers(&self.secret, own, *timestamp) {
            // The engine says so too.
            return (record::DESTROYED, Left::Erased.encode());
        }
        let gone = |id: &str| self.erased.covers(&self.secret, id, *timestamp);
        let sent = Some(&payload).filter(|_| self.erased.reaches(*timestamp));
        let struck = sent.and_then(|sent| strike::call(record::decode_event(sent)?.3, &gone).ok().flatten());
        let Some(struck) = struck else { return (record::EVENT, payload) };
        let pinned = Pinned { entry: prepared.entry, is_old: false };
        let payload = record::encode_pinned(kind, pinned, *timestamp, message_id, &struck);
        if let Ok(again) = record::prepare(&payload, &mut self.decoder, &self.secret) {
            prepared.event.details = again.event.details;
        }
        (record::EVENT, payload)
    }

    /// A dead letter is to be written down: of whom nothing is taken any more its body is not kept.
    pub(super) fn without_erased(&self, letter: DeadLetter) -> DeadLetter {
        let gone = |id: &str| self.erased.covers(&self.secret, id, self.clock);
        let is_named = self.erased.reaches(self.clock) && strike::is_in_json(&letter.body, &gone) == Ok(true);
        if is_named { letter.destroyed() } else { letter }
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
