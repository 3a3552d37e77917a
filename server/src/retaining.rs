//! Retention in the log: of bodies that are older than they are kept, only what standing definitions see is left.
//!
//! So the log read again gives the same answers. What admission decides by is written beside the body, since it cannot
//! be reckoned from what is left of it.

use std::time::Duration;

use dataflows::admission;
use dataflows::event::Call;
use dataflows::plan::Plan;
use dataflows::retain::Keep;
use dataflows::time::Millis;

use crate::book::Book;
use crate::log::{LogReader, Record};
use crate::recommend;
use crate::record::{self, DEAD_LETTER, DeadLetter, EVENT, Pinned};

/// Bodies that are to give way in a log.
pub struct Job {
    /// None: messages may speak of all that a call says.
    keep: Option<Keep>,
    /// What was stamped, and is dated, up to here is old.
    until: Millis,
    /// The key of hashes.
    secret: [u8; 16],
}

/// How soon a disk that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

impl Job {
    /// What is old up to an instant keeps what a book of definitions sees of it.
    pub fn new(book: &Book, until: Millis, secret: [u8; 16]) -> Job {
        let definitions = &book.plan.definitions;
        let mut beside = book.templates.of_events();
        if definitions.campaigns.values().any(|campaign| campaign.recommend.is_some()) {
            beside.extend(recommend::READ.map(|key| vec!["properties".to_owned(), key.to_owned()]));
        }
        let is_all = beside.contains(&Vec::new());
        // Of a plan made anew: the one that holds knows what those before it named, too.
        let vocabulary = (*Plan::new(definitions.clone()).vocabulary).clone();
        Job { keep: (!is_all).then_some(Keep { vocabulary, beside }), until, secret }
    }

    /// Does it in the segments from a record on, however often the disk fails; gives the record to begin from the next
    /// time.
    pub fn run(&self, log: &LogReader, from: u64) -> u64 {
        loop {
            match log.rewrite(from, self.until, &|_, _, record| self.instead(record)) {
                Ok(next) => return next,
                Err(error) => {
                    tracing::error!(%error, "bodies beyond retention are still kept: tried again in {AGAIN:?}")
                }
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn instead(&self, record: &Record<'_>) -> Option<(u8, Vec<u8>)> {
        match record.kind {
            EVENT => self.of_event(record.payload),
            DEAD_LETTER => {
                let letter: DeadLetter = serde_json::from_slice(record.payload).ok()?;
                let letter = serde_json::to_vec(&letter.without_body()?).expect("records have string keys");
                Some((DEAD_LETTER, letter))
            }
            _ => None,
        }
    }

    fn of_event(&self, payload: &[u8]) -> Option<(u8, Vec<u8>)> {
        let (kind, timestamp, message_id, body) = record::decode_event(payload)?;
        let left = self.keep.as_ref().filter(|_| timestamp <= self.until)?.left(body, kind)?;
        if left == body {
            return None;
        }
        let pinned = record::pinned(payload).or_else(|| {
            let call = Call::parse(body, Some(kind)).ok()?;
            let own = call.user.as_ref().or(call.anonymous.as_ref())?;
            let entry = admission::entry(&self.secret, own, message_id, call.content);
            Some(Pinned { entry, is_old: true })
        });
        let pinned = Pinned { is_old: true, ..pinned? };
        Some((EVENT, record::encode_pinned(kind, pinned, timestamp, message_id, &left)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dataflows::event::{Decoder, Kind};

    use super::*;

    const FILE: &str = "version: 1
retention: 60d
traits: { spent: { sum: properties.value, of: purchase } }
campaigns:
  thanks: { when: { event: purchase }, channel: popup, template: '{{ event.properties.name }}, {{ event.groupId }}' }
channels: { popup: { deliver: sse } }
";

    fn instead(file: &str, payload: &[u8]) -> Option<Vec<u8>> {
        let job = Job::new(&Book::open(file, None).expect("it is right"), 50, [3; 16]);
        let record = Record { position: 1, received_at: 40, kind: EVENT, payload };
        job.instead(&record).map(|(kind, payload)| {
            assert_eq!(kind, EVENT);
            payload
        })
    }

    #[test]
    fn an_old_event_is_decided_on_and_folded_as_it_was() {
        let body =
            r#"{"event":"purchase","userId":"ada","groupId":"g","properties":{"value":5,"name":"n","secret":1}}"#;
        let whole = record::encode_event(Kind::Track, 50, "m", body);
        let left = instead(FILE, &whole).expect("something goes");
        let shown = record::decode_event(&left).expect("an event").3;
        assert_eq!(shown, r#"{"event":"purchase","userId":"ada","groupId":"g","properties":{"value":5,"name":"n"}}"#);
        assert!(record::is_old(&left) && !record::is_old(&whole));
        let plan = Book::open(FILE, None).expect("it is right").plan;
        let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        let [whole, again] = [&whole, &left].map(|of| record::prepare(of, &mut decoder, &[3; 16]).expect("an event"));
        assert_eq!((whole.entry, whole.event.details), (again.entry, again.event.details));
        assert_eq!(instead(FILE, &left), None);
        // Under definitions that see less, less is left; by what it is known does not change.
        let less = instead("version: 1", &left).expect("more goes");
        assert_eq!(
            record::decode_event(&less).expect("an event").3,
            r#"{"event":"purchase","userId":"ada","properties":{}}"#
        );
        assert_eq!(record::pinned(&less), record::pinned(&left));
    }

    #[test]
    fn what_is_dated_later_or_spoken_of_as_a_whole_stays() {
        let body = r#"{"event":"purchase","userId":"ada","properties":{"secret":1}}"#;
        assert_eq!(instead(FILE, &record::encode_event(Kind::Track, 51, "m", body)), None);
        let all = FILE.replace("event.properties.name", "event");
        assert_eq!(instead(&all, &record::encode_event(Kind::Track, 50, "m", body)), None);
        let properties = FILE.replace("event.properties.name", "event.properties[\"Order ID\"]");
        assert_eq!(instead(&properties, &record::encode_event(Kind::Track, 50, "m", body)), None);
    }
}
