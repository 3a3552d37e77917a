//! What is left of messages that an erasure takes out of the stream.
//!
//! JetStream overwrites a message that is deleted, whole. So before that its rest - what others said in it, what later
//! calls are decided on by - is published again under [`REST`], with the place and the time that the message had:
//! whoever reads the stream takes it from there, at that place. Rests are sealed with the log's key, so that who may
//! only publish cannot say what stands in the place of others' messages.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, OnceLock};

use nats::jetstream::stream::RawMessageErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::config::REST;
use super::message::{pack, unpack};
use super::{Entry, HeaderMap, Message, Stream, StreamError};
use crate::pseudonyms;

/// Rests are at most this long unpacked: a message of calls that are all wrong may leave as many dead letters.
const REST_BYTES_MAX: u64 = 1 << 28;
/// The header in which a seal stands.
const SEAL: &str = "Thalweg-Seal";

/// What stands in the place of a message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rest {
    /// The message's sequence.
    pub sequence: u64,
    /// When the stream took it, ns since the Unix epoch.
    pub nanos: i64,
    subject: String,
    /// Its id, if it names nobody.
    id: Option<String>,
    body: Box<RawValue>,
}

impl Rest {
    /// What is left of a message, to be read as one of this subject.
    pub fn of(sequence: u64, nanos: i64, subject: &str, body: &impl Serialize) -> Rest {
        let body = to_raw_value(body).expect("bodies have string keys");
        Rest { sequence, nanos, subject: subject.to_owned(), id: None, body }
    }

    /// The same with another body.
    pub fn saying(self, body: &impl Serialize) -> Rest {
        Rest { body: to_raw_value(body).expect("bodies have string keys"), ..self }
    }

    /// The same under an id.
    pub fn named(self, id: Option<&str>) -> Rest {
        Rest { id: id.map(str::to_owned), ..self }
    }

    /// How long it is, about.
    pub fn bytes(&self) -> usize {
        self.body.get().len() + 128
    }

    /// Rests as one message.
    pub fn message(rests: &[Rest], id: String, key: &[u8; 16]) -> Message {
        let body = pack(serde_json::to_vec(rests).expect("rests have string keys"));
        seal(Message { subject: REST.to_owned(), id, headers: HeaderMap::new(), body }, key)
    }

    fn all(entry: &Entry) -> Vec<Rest> {
        unpack(&entry.body, REST_BYTES_MAX).unwrap_or_default()
    }

    /// As the message that it stands for.
    fn entry(&self, key: &[u8; 16]) -> Entry {
        let Rest { sequence, nanos, subject, id, body } = self.clone();
        let message =
            Message { subject, id: String::new(), headers: HeaderMap::new(), body: body.get().to_owned().into() };
        let Message { subject, mut headers, body, .. } = seal(message, key);
        if let Some(id) = id {
            headers.insert(nats::header::NATS_MESSAGE_ID, id.as_str());
        }
        Entry { sequence, nanos, subject: subject.into(), headers, body }
    }
}

/// A message with the seal of whoever has the key.
pub fn seal(mut message: Message, key: &[u8; 16]) -> Message {
    let seal = pseudonyms::hash(&message.subject, &message.body, key);
    message.headers.insert(SEAL, seal.as_str());
    message
}

/// Whether a record was published by who has the key. One that was not is passed over, and that is told.
pub fn is_sealed(entry: &Entry, key: &[u8; 16]) -> bool {
    let seal = entry.headers.get(SEAL).map(|seal| seal.as_str());
    let is_sealed = seal == Some(&pseudonyms::hash(&entry.subject, &entry.body, key));
    if !is_sealed {
        let (sequence, subject) = (entry.sequence, &*entry.subject);
        tracing::error!(
            sequence,
            subject,
            "passed over: this record was not written with the key of this log. Either somebody else published it, or \
             the file `secret` in the data directory is another than it was: restore it then"
        );
    }
    is_sealed
}

/// What is known of rests; the same for all that read the stream.
#[derive(Debug, Default)]
pub(super) struct Rests {
    key: OnceLock<[u8; 16]>,
    index: Mutex<Index>,
    searching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Index {
    /// The last message of rests that is known.
    last: u64,
    /// By the sequences of messages, in which one their rests stand.
    places: BTreeMap<u64, u64>,
    /// What was read last.
    read: Option<(u64, Vec<Rest>)>,
}

impl Rests {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("nobody panics while holding it")
    }

    fn open(&self, entry: &Entry) -> Option<Vec<Rest>> {
        self.key.get().filter(|key| is_sealed(entry, key)).map(|_| Rest::all(entry))
    }
}

impl Stream {
    /// From now on rests are known by this key.
    pub fn hold_key(&self, key: [u8; 16]) {
        let _ = self.rests.key.set(key);
    }

    /// Whether a message is known to be replaced.
    pub(super) fn is_replaced(&self, sequence: u64) -> bool {
        self.rests.lock().places.contains_key(&sequence)
    }

    /// The first message of these whose rest is known.
    pub(super) fn first_replaced(&self, sequences: RangeInclusive<u64>) -> Option<u64> {
        self.rests.lock().places.range(sequences).next().map(|(sequence, _)| *sequence)
    }

    /// Looks for rests that were published since.
    pub(super) async fn search_rests(&self) -> Result<(), StreamError> {
        let _alone = self.rests.searching.lock().await;
        loop {
            let last = self.rests.lock().last;
            let Some(entry) = self.next_of(REST, last + 1).await? else { return Ok(()) };
            let rests = self.rests.open(&entry).unwrap_or_default();
            let mut index = self.rests.lock();
            index.last = entry.sequence;
            index.places.extend(rests.iter().map(|rest| (rest.sequence, entry.sequence)));
        }
    }

    /// What is left of a message; none, if nothing is known of it.
    pub(super) async fn rest(&self, sequence: u64) -> Result<Option<Entry>, StreamError> {
        if !self.is_replaced(sequence) {
            self.search_rests().await?;
        }
        loop {
            let at = {
                let index = self.rests.lock();
                let Some((at, key)) = index.places.get(&sequence).zip(self.rests.key.get()) else { return Ok(None) };
                if let Some((_, rests)) = index.read.as_ref().filter(|(read, _)| read == at) {
                    return Ok(rests.iter().find(|rest| rest.sequence == sequence).map(|rest| rest.entry(key)));
                }
                *at
            };
            match self.get_from_leader(at).await? {
                Some(entry) => self.rests.lock().read = Some((at, Rest::all(&entry))),
                // It was replaced itself meanwhile, by one that tells all that it did.
                None => {
                    self.rests.lock().places.retain(|_, place| *place != at);
                    self.search_rests().await?;
                }
            }
        }
    }

    /// The rests that stand in a message of them, and nowhere later.
    pub(super) fn current_rests(&self, entry: &Entry) -> Vec<(Rest, Entry)> {
        let Some((key, rests)) = self.rests.key.get().zip(self.rests.open(entry)) else { return Vec::new() };
        let index = self.rests.lock();
        let current = rests.into_iter().filter(|rest| index.places.get(&rest.sequence) == Some(&entry.sequence));
        current.map(|rest| (rest.clone(), rest.entry(key))).collect()
    }

    /// Whether a rest stands for a record that is not there any more. The key may not be known yet: that what a rest
    /// says is not forged is asked when it is read.
    pub(super) async fn has_left(&self, sequence: u64, nanos: i64) -> Result<bool, StreamError> {
        let mut after = sequence;
        while let Some(entry) = self.next_of(REST, after + 1).await? {
            if Rest::all(&entry).iter().any(|rest| (rest.sequence, rest.nanos) == (sequence, nanos)) {
                return Ok(true);
            }
            after = entry.sequence;
        }
        Ok(false)
    }

    /// The first record of a subject from a sequence on.
    pub(super) async fn next_of(&self, subject: &str, from: u64) -> Result<Option<Entry>, StreamError> {
        match self.handle().await?.get_first_raw_message_by_subject(subject, from).await {
            Ok(found) => Ok(Some(found.into())),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(StreamError::Unavailable { what: "look for what is left", error: error.to_string() }),
        }
    }
}
