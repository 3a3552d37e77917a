//! The writer and retention: when bodies that are older than they are kept give way.

use std::sync::Arc;

use dataflows::time::{DAY, Millis};

use super::{Backing, Writer};
use crate::hub::News;
use crate::retaining::Job;

/// How far bodies that are older than they are kept have given way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retaining {
    /// At which clock to look again.
    pub(super) again: Millis,
    /// The first record of the first segment that is to be looked at.
    pub(super) next: u64,
    pub(super) is_under_way: bool,
}

impl Default for Retaining {
    fn default() -> Self {
        Retaining { again: Millis::MIN, next: 0, is_under_way: false }
    }
}

/// This part of the retention a segment spans at most, and as often it is looked what is old.
const PART: Millis = 8;
/// But not less than this: segments are files.
const LEAST: Millis = DAY / 24;

impl Writer {
    /// Has bodies give way in those segments all of whose records are older than bodies are kept.
    pub(super) fn retain(&mut self) -> Result<(), String> {
        // Definitions that are to go stand until those to come hold.
        if self.clock < self.retaining.again || self.retaining.is_under_way || self.is_preparing() {
            return Ok(());
        }
        let open = self.shared.lock();
        let (book, clock) = (Arc::clone(&open.book), open.last.clock);
        drop(open);
        let retention = book.plan.definitions.retention;
        let (Some(retention), Backing::Own(log)) = (retention, &mut self.log) else {
            self.retaining.again = Millis::MAX;
            return Ok(());
        };
        let told = |error: crate::log::LogError| error.to_string();
        let span = (retention / PART).max(LEAST);
        if log.last_began().map_err(told)?.is_some_and(|began| began <= clock - span) {
            log.roll().map_err(told)?;
        }
        (self.retaining.again, self.retaining.is_under_way) = (clock + span, true);
        let (log, next, secret, shared) = (log.handle(), self.retaining.next, self.secret, self.shared.clone());
        let work = move || {
            let next = Job::new(&book, clock - retention, secret).run(&log, next);
            shared.lock().news.push(News::Retained(next));
        };
        std::thread::Builder::new().name("retaining".into()).spawn(work).expect("the system gives a thread");
        Ok(())
    }
}
