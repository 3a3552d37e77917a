//! The writer while definitions are to come: what they name is read again from the log, on a thread of its own, and
//! goes to the engine a little with each step; when all processes have done that, the plan does.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use dataflows::event::{Decoder, Event};
use dataflows::intake::Prepared;
use dataflows::place::place;
use dataflows::protocol::Record;
use dataflows::time::Millis;

use super::{Backing, Writer};
use crate::book::Book;
use crate::cluster::{LEADER, Letter};
use crate::door::Incoming;
use crate::log::Reader;
use crate::pseudonyms;
use crate::record::{self, Defined};

/// Definitions that are to hold.
pub(super) struct Coming {
    book: Arc<Book>,
    /// What is read again; none: all is.
    chunks: Option<Receiver<Vec<Event>>>,
    /// Processes that have yet to read theirs again, where this one leads.
    pub(super) waits_for: usize,
    /// Whether the engine has the plan.
    pub(super) is_given: bool,
}

/// Events that are read again with one step.
const CHUNK: usize = 2_000;

impl Writer {
    /// What another process or the stream says comes next.
    pub(super) fn comes_next(&mut self, defined: &Defined, position: u64, clock: Millis) {
        let latest = self.latest();
        match latest.then(defined) {
            Ok(mut book) => {
                book.stamp(position, clock);
                self.comes(book, position);
            }
            Err(problems) => tracing::error!(?problems, "definitions of another version are passed over"),
        }
    }

    /// Other definitions are to hold: what comes in from now on is read by them, and what came before is read again if
    /// they name more of it.
    pub(super) fn comes(&mut self, book: Book, position: u64) {
        let (book, before) = (Arc::new(book), self.latest());
        let vocabulary = Arc::clone(&book.plan.vocabulary);
        self.decoder = Decoder::new(Arc::clone(&vocabulary));
        self.retaining.again = Millis::MIN;
        self.step.terms = book.terms();
        self.shared.lock().coming = Some((Arc::clone(&book), position));
        let waits_for = self.others.as_ref().map_or(1, |others| others.processes);
        let chunks = vocabulary.wants_more_than(&before.plan.vocabulary).then(|| {
            let (to, chunks) = sync_channel(2);
            let decoder = Decoder::new(Arc::clone(&vocabulary));
            match &self.log {
                Backing::Own(log) => {
                    let (reader, secret, process) = (log.reader(), self.secret, self.process());
                    let read = move || read_own(reader, decoder, secret, process, position, &to);
                    std::thread::Builder::new().name("reread".into()).spawn(read).expect("the system gives a thread");
                }
                Backing::Stream(streamed) => streamed.feed.read_again(decoder, position, to),
            }
            chunks
        });
        if let Backing::Stream(streamed) = &self.log {
            streamed.feed.read_by(vocabulary);
        }
        let is_all = chunks.is_none();
        self.coming = Some(Coming { book, chunks, waits_for, is_given: false });
        if is_all {
            self.all_read_again();
        }
    }

    /// Whether definitions are to hold that do not yet. The engine says when they do.
    pub(super) fn is_preparing(&mut self) -> bool {
        if self.coming.as_ref().is_some_and(|coming| coming.is_given) && self.shared.lock().coming.is_none() {
            self.coming = None;
        }
        self.coming.is_some()
    }

    /// Puts what was read again at the beginning of the step, if anything was.
    pub(super) fn read_more(&mut self) {
        let Some(chunks) = self.coming.as_ref().and_then(|coming| coming.chunks.as_ref()) else { return };
        match chunks.try_recv() {
            Ok(events) => events.into_iter().for_each(|event| self.step.record(Record::Reread(event))),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                self.coming.as_mut().expect("it was just seen").chunks = None;
                self.all_read_again();
            }
        }
    }

    /// This process has read again what it has to.
    fn all_read_again(&mut self) {
        match &self.others {
            Some(others) if !others.leads() => others.tell(LEADER, &Letter::Reread),
            _ => self.reread_here(),
        }
    }

    /// A process has read again what it has to.
    pub(super) fn reread_here(&mut self) {
        self.coming.iter_mut().for_each(|coming| coming.waits_for -= 1);
    }

    /// The engine is to prepare for them from this step on.
    pub(super) fn give_plan(&mut self) {
        if let Some(coming) = &mut self.coming {
            coming.is_given = true;
            self.step.plan = Some(Arc::clone(&coming.book.plan));
        }
    }

    /// A call as the latest definitions read it: one that was decoded by others is decoded again.
    pub(super) fn current(&mut self, incoming: Incoming) -> Incoming {
        if incoming.generation == self.decoder.vocabulary().generation() {
            return incoming;
        }
        let private = pseudonyms::call(incoming.body(), self.decoder.vocabulary().privacy(), &self.secret);
        let event = &incoming.prepared.event;
        let payload = match private {
            Ok(Cow::Owned(body)) => record::encode_event(incoming.kind, event.timestamp, &event.message_id, &body),
            _ => incoming.payload.clone(),
        };
        let again = record::prepare(&payload, &mut self.decoder, &self.secret);
        let prepared: Prepared = again.unwrap_or(incoming.prepared);
        Incoming { prepared, generation: self.decoder.vocabulary().generation(), payload, ..incoming }
    }

    fn latest(&self) -> Arc<Book> {
        let open = self.shared.lock();
        Arc::clone(open.coming.as_ref().map_or(&open.book, |(book, _)| book))
    }
}

/// Reads the events of a log again, up to a position.
fn read_own(
    mut reader: Reader,
    mut decoder: Decoder,
    secret: [u8; 16],
    process: usize,
    until: u64,
    to: &SyncSender<Vec<Event>>,
) {
    let mut chunk = Vec::with_capacity(CHUNK);
    // A log that cannot be read any more ends the process where it is written.
    while let Ok(Some((record, (time, index)))) = reader.next() {
        let position = place(time, process, index);
        if position >= until {
            break;
        }
        if record.kind == record::EVENT
            && let Ok(mut prepared) = record::prepare(record.payload, &mut decoder, &secret)
        {
            prepared.place(position);
            chunk.push(prepared.event);
        }
        if chunk.len() == CHUNK && to.send(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK))).is_err() {
            return;
        }
    }
    let _ = to.send(chunk);
}
