//! Erasing in the log: the bodies of somebody who was erased are destroyed, and others' are struck of what names them.
//!
//! What is left of a record is what later ones are decided on by: that it was there, when, and the hash by which
//! admission knows it. The erasure itself gives up its ids last of all, so that what was cut short is found again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dataflows::admission;
use dataflows::engine::route;
use dataflows::event::{Call, Context, Decoder, Kind};
use dataflows::identity::Erasure;
use dataflows::place::place;
use dataflows::protocol::Destroyed;
use dataflows::strike;
use dataflows::time::Millis;
use ecow::EcoString;

use crate::log::{LogReader, Record};
use crate::record::{self, Correction, DESTROYED, DeadLetter, Dispatch, ERASE, Erase, Left, Pinned};

/// Bodies to be destroyed in a log.
pub struct Job {
    /// Whose.
    erasure: Erasure,
    ids: HashSet<EcoString>,
    /// The number of this process.
    process: usize,
    /// The key of hashes.
    secret: [u8; 16],
    /// Calls that, struck, tell otherwise where and on what they took place: place, payload.
    otherwise: Mutex<Vec<(u64, Vec<u8>)>>,
}

/// How soon a disk that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What stands in a record's place: its kind, what it says.
type Instead = Option<(u8, Vec<u8>)>;

impl Job {
    /// What an erasure asks of the log of a process.
    pub fn new(erasure: Erasure, process: usize, secret: [u8; 16]) -> Job {
        let ids = erasure.ids.iter().cloned().collect();
        Job { erasure, ids, process, secret, otherwise: Mutex::default() }
    }

    /// Does it, however often the disk fails. Gives calls that the engine cannot strike as their bodies were, since
    /// something else is read in the place of what went: where they stand, and what stands there now.
    pub fn run(self, log: &LogReader) -> Vec<(u64, Vec<u8>)> {
        let change = |time, index, record: &Record<'_>| self.instead(place(time, self.process, index), record);
        while let Err(error) = log.rewrite(0, i64::MAX, &change) {
            tracing::error!(%error, "bodies that are to be destroyed are not yet: tried again in {AGAIN:?}");
            std::thread::sleep(AGAIN);
        }
        self.otherwise()
    }

    /// Calls that the engine cannot strike as their bodies were, once all is done.
    pub(crate) fn otherwise(self) -> Vec<(u64, Vec<u8>)> {
        self.otherwise.into_inner().expect("nobody panics while holding it")
    }

    /// Whose bodies.
    pub(crate) fn erasure(&self) -> &Erasure {
        &self.erasure
    }

    /// What is to stand in the place of a record, if it does not stay.
    pub(crate) fn instead(&self, position: u64, record: &Record<'_>) -> Instead {
        match record.kind {
            record::EVENT => self.of_event(position, record.payload),
            record::DEAD_LETTER if position < self.erasure.position => self.of_dead_letter(record.payload),
            record::DISPATCH => {
                let dispatch: Dispatch = serde_json::from_slice(record.payload).ok()?;
                is_of(&self.erasure, &dispatch).then(|| (DESTROYED, Vec::new()))
            }
            ERASE => {
                let erase: Erase = serde_json::from_slice(record.payload).ok()?;
                let is_this = erase.of.unwrap_or(position) == self.erasure.position && !erase.ids.is_empty();
                is_this.then(|| (ERASE, json(&Erase { ids: Vec::new(), ..erase })))
            }
            // A correction of what is not there any more.
            record::CORRECTION if position < self.erasure.position => {
                let correction: Correction = serde_json::from_slice(record.payload).ok()?;
                self.corrects(&correction).then(|| (DESTROYED, Vec::new()))
            }
            _ => None,
        }
    }

    fn of_event(&self, position: u64, payload: &[u8]) -> Instead {
        let (kind, timestamp, message_id, body) = record::decode_event(payload)?;
        // Most bodies name nobody, and it is not necessary to read them to know that.
        if !body.contains('\\') && !self.ids.iter().any(|id| body.contains(id.as_str())) {
            return None;
        }
        let call = Call::parse(body, Some(kind)).ok()?;
        let own = call.user.as_ref().or(call.anonymous.as_ref())?;
        let entry = admission::entry(&self.secret, own, message_id, call.content);
        let entry = record::pinned(payload).map_or(entry, |pinned| pinned.entry);
        let is_before = position < self.erasure.position;
        if self.ids.contains(own) {
            let left = Destroyed { position, timestamp, is_late: false, route: route(own), entry };
            let left = if is_before { Left::Event(left) } else { Left::Erased };
            return (is_before || timestamp <= self.erasure.until).then(|| (DESTROYED, left.encode()));
        }
        if !is_before && timestamp > self.erasure.until {
            return None;
        }
        let struck = strike::call(body, &|id| self.ids.contains(id)).ok().flatten()?;
        let pinned = Pinned { entry, is_old: record::is_old(payload) };
        let payload = record::encode_pinned(kind, pinned, timestamp, message_id, &struck);
        if self.surroundings(kind, body) != self.surroundings(kind, &struck) {
            self.otherwise.lock().expect("nobody panics while holding it").push((position, payload.clone()));
        }
        Some((record::EVENT, payload))
    }

    /// Where and on what a call took place, without what names them.
    fn surroundings(&self, kind: Kind, body: &str) -> Context {
        let read = || {
            let mut call = Call::parse(body, Some(kind)).ok()?;
            Decoder::new(Arc::default()).event(&mut call, 0, EcoString::new()).ok()?.details
        };
        let Some(details) = read() else { return Context::default() };
        let struck = strike::without(&details, &|id| self.ids.contains(id));
        struck.map_or_else(|| details.context.clone(), |details| details.context)
    }

    fn of_dead_letter(&self, payload: &[u8]) -> Instead {
        let letter = self.letter(serde_json::from_slice(payload).ok()?)?;
        Some((record::DEAD_LETTER, json(&letter)))
    }

    /// What is left of a dead letter that names them.
    pub(crate) fn letter(&self, letter: DeadLetter) -> Option<DeadLetter> {
        names(&letter, &self.ids).then(|| letter.destroyed())
    }

    /// Whether a correction is of something of theirs.
    pub(crate) fn corrects(&self, correction: &Correction) -> bool {
        let (Correction::Retract(a, b) | Correction::Unlink(a, b)) = correction;
        self.ids.contains(a) || self.ids.contains(b)
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records have string keys")
}

/// Whether a dead letter names one of these ids: as a text or an id where its body can be read, else anywhere.
pub fn names(letter: &DeadLetter, ids: &HashSet<EcoString>) -> bool {
    let decoded = letter.encoding.as_ref().and_then(|_| BASE64_STANDARD.decode(&letter.body).ok());
    let body = decoded.as_deref().map_or(letter.body.as_str().into(), String::from_utf8_lossy);
    let anywhere = || ids.iter().any(|id| body.contains(id.as_str()));
    strike::is_in_json(&body, &|id| ids.contains(id)).unwrap_or_else(|_| anywhere())
}

/// Whether an intent was somebody's who was erased, and not of one who came after under the same id.
pub fn is_of(erasure: &Erasure, Dispatch { row, .. }: &Dispatch) -> bool {
    is_of_them(erasure, &row.profile, row.at) || is_of_them(erasure, &row.root.id, row.at)
}

/// The same of an id under which an intent was told, or came about.
pub fn is_of_them(erasure: &Erasure, id: &EcoString, at: Millis) -> bool {
    at <= erasure.until && erasure.ids.contains(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 16] = [3; 16];

    fn job(until: Millis) -> Job {
        let erasure = Erasure { position: place(5, 0, 0), until, ids: vec!["ada".into(), "7".into()] };
        Job::new(erasure, 0, SECRET)
    }

    fn event(body: &str) -> Vec<u8> {
        record::encode_event(dataflows::event::Kind::Track, 50, "m", body)
    }

    fn of(job: &Job, time: u64, index: usize, payload: &[u8]) -> Instead {
        let record = Record { position: 1, received_at: 0, kind: record::EVENT, payload };
        job.instead(place(time, 0, index), &record)
    }

    #[test]
    fn events_of_who_was_erased_leave_what_later_ones_are_decided_on_by() {
        let body = event(r#"{"event":"x","anonymousId":7,"properties":{"secret":1}}"#);
        let call = Call::parse(r#"{"event":"x","anonymousId":7,"properties":{"secret":1}}"#, Some(Default::default()));
        let entry = admission::entry(&SECRET, "7", "m", call.expect("a call").content);
        let (kind, left) = of(&job(60), 4, 0, &body).expect("it is destroyed");
        let Some(Left::Event(left)) = Left::decode(&left) else { panic!("it was an event") };
        assert_eq!((kind, left.timestamp, left.entry, left.route), (DESTROYED, 50, entry, route(&"7".into())));
        // After the erasure: what is dated up to it had been refused, what is dated after it is another's.
        assert_eq!(of(&job(50), 6, 0, &body), Some((DESTROYED, Left::Erased.encode())));
        assert_eq!(of(&job(49), 6, 0, &body), None);
    }

    #[test]
    fn what_others_say_of_them_is_struck_and_known_by_what_it_was() {
        let body = r#"{"event":"x","userId":"bob","anonymousId":"ada","properties":{"by":"ada","is":"adamant"}}"#;
        let (kind, struck) = of(&job(60), 2, 1, &event(body)).expect("it is struck");
        let pinned = record::pinned(&struck).expect("it is pinned");
        let call = Call::parse(body, Some(Default::default())).expect("a call");
        let entry = admission::entry(&SECRET, "bob", "m", call.content);
        assert_eq!((kind, pinned), (record::EVENT, Pinned { entry, is_old: false }));
        let expected = r#"{"event":"x","userId":"bob","anonymousId":null,"properties":{"by":null,"is":"adamant"}}"#;
        assert_eq!(record::decode_event(&struck).expect("an event").3, expected);
        // Struck again, for another, it is known by what it was at first.
        let again = Job { ids: HashSet::from(["adamant".into()]), ..job(60) };
        let (_, twice) = of(&again, 2, 1, &struck).expect("it is struck again");
        assert_eq!(record::pinned(&twice), Some(pinned));
        // What is dated later means who comes after.
        assert!(of(&job(50), 6, 0, &event(body)).is_some());
        assert_eq!(of(&job(49), 6, 0, &event(body)), None);
        assert_eq!(of(&job(60), 2, 0, &event(r#"{"event":"x","userId":"bob","properties":{"n":7}}"#)), None);
    }

    #[test]
    fn what_reads_otherwise_is_told() {
        let job = job(60);
        for (number, (body, is_told)) in [
            (r#"{"userId":"bob","properties":{"page":"ada","path":"/"}}"#, true),
            (r#"{"userId":"bob","properties":{"page":"/","path":"ada"}}"#, false),
            (r#"{"userId":"bob","properties":{"page":"ada"},"name":"ada"}"#, false),
            (r#"{"userId":"bob","context":{"campaign":{"medium":"ada","source":"mail"}}}"#, true),
            (r#"{"userId":"bob","context":{"userAgent":"ada iPhone","device":{"type":"ada"}}}"#, true),
            (r#"{"userId":"bob","context":{"device":{"type":"ada"}},"traits":{"of":"ada"}}"#, false),
        ]
        .into_iter()
        .enumerate()
        {
            let payload = record::encode_event(Kind::Page, 50, "m", body);
            let (_, struck) = of(&job, 2, number, &payload).expect("it is struck");
            let told = job.otherwise.lock().expect("nobody panics").pop();
            assert_eq!(told, is_told.then(|| (place(2, 0, number), struck)), "{body}");
        }
    }

    #[test]
    fn dead_letters_that_name_them_lose_their_bodies() {
        let ids = HashSet::from(["ada".into(), "7".into()]);
        let letter = |body: &[u8]| {
            let rejection = dataflows::event::Rejection::new(dataflows::event::Reason::Invalid, "wrong");
            DeadLetter::new(&rejection, body)
        };
        for (body, is_named) in [
            (&br#"{"batch":[{"userId":"\u0061da"}]}"#[..], true),
            (br#"{"batch":[{"userId":7}]}"#, true),
            (br#"{"batch":[{"n":7,"of":"adamant"}]}"#, false),
            (b"{\"batch\":[{\"userId\":\"ada\"", true),
            (b"\xff{\"userId\":\"ada\"}", true),
            (b"nobody", false),
        ] {
            assert_eq!(names(&letter(body), &ids), is_named, "{body:?}");
        }
    }
}
