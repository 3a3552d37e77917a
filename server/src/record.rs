//! What stands in the log: the payload of each kind of record.
//!
//! An event's body is kept as it was sent, with the time and message id that its door settled on in front of it, so
//! that live, replay and restart read the same call.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dataflows::admission::{self, Verdict, mark};
use dataflows::event::{Call, Decoder, Kind, Reason, Rejection};
use dataflows::identity::Erasure;
use dataflows::intake::Prepared;
use dataflows::plan::Horizons;
use dataflows::profile::answers::IntentRow;
use dataflows::protocol::{Destroyed, Record, Terms};
use dataflows::time::Millis;
use ecow::EcoString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::book::{Given, Name, Version};
use crate::log::OwnedRecord;
use crate::outbox::Fate;

/// An accepted call.
pub const EVENT: u8 = 1;
/// The clock was moved.
pub const CLOCK: u8 = 2;
/// Definitions that hold from here on.
pub const DEFINITIONS: u8 = 3;
/// A call that was not taken.
pub const DEAD_LETTER: u8 = 4;
/// What became of an intent.
pub const DISPATCH: u8 = 5;
/// Somebody is erased, or their bodies are to be destroyed in this log.
pub const ERASE: u8 = 7;
/// What was destroyed since.
pub const DESTROYED: u8 = 8;

/// Something that was recorded is corrected.
pub const CORRECTION: u8 = 6;

/// A correction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Correction {
    /// An event is taken back: own id, message id.
    Retract(EcoString, EcoString),
    /// The edge between two ids is struck.
    Unlink(EcoString, EcoString),
}

impl Correction {
    /// As the engine takes it, at a place and a clock.
    pub fn at(self, position: u64, clock: Millis, secret: &[u8; 16]) -> Record {
        match self {
            Correction::Retract(own, message_id) => {
                let entry = admission::entry(secret, &own, &message_id, 0);
                Record::Retract(position, clock, own, message_id, entry)
            }
            Correction::Unlink(a, b) => Record::Unlink(position, clock, a, b),
        }
    }
}

/// The clock was moved to this instant.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Clock {
    /// Where to, ms.
    pub to: Millis,
}

/// What definitions see of the past.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// How long bodies and history are kept, ms; none: for good.
    pub retention: Option<Millis>,
    /// What is dated up to here may be gone, however long things are kept now, ms; none: all is there.
    pub gone: Option<Millis>,
    /// The definitions that do not see everything.
    pub horizons: Horizons,
}

/// Definitions, and what acceptance asks of them: what was accepted under them stays accepted, also where a later
/// version reads the text differently.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Defined {
    /// How late an event may be, ms; none: as late as it likes.
    pub lateness: Option<Millis>,
    /// No link makes a profile of more ids.
    pub ids_max: u32,
    /// All of them: the file, with what was given since in its place.
    pub text: String,
    /// What was given since.
    pub given: Given,
    /// The versions of all documents.
    pub versions: BTreeMap<Name, Version>,
    /// What they see.
    #[serde(default)]
    pub sight: Sight,
}

impl PartialEq for Defined {
    /// When a version began is not part of what it says.
    fn eq(&self, other: &Defined) -> bool {
        let said = |of: &Defined| (of.lateness, of.ids_max, of.text.clone());
        let given = |of: &Defined| {
            let text = |json: &Option<Box<RawValue>>| json.as_ref().map(|json| json.get().to_owned());
            of.given.iter().map(|(name, json)| (name.clone(), text(json))).collect::<Vec<_>>()
        };
        said(self) == said(other) && given(self) == given(other)
    }
}

impl Defined {
    /// What acceptance asks.
    pub fn terms(&self) -> Terms {
        Terms { lateness: self.lateness, ids_max: self.ids_max }
    }
}

/// A call that was not taken, with its body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Why.
    pub reason: Reason,
    /// What is wrong and where.
    pub detail: String,
    /// The body as it was sent; base64 if it is not UTF-8.
    pub body: String,
    /// `base64`, if the body is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
}

impl DeadLetter {
    /// A dead letter of the bytes that came.
    pub fn new(rejection: &Rejection, body: &[u8]) -> Self {
        let (body, encoding) = match std::str::from_utf8(body) {
            Ok(text) => (text.to_owned(), None),
            Err(_) => (BASE64_STANDARD.encode(body), Some("base64".to_owned())),
        };
        DeadLetter { reason: rejection.reason, detail: rejection.detail.clone(), body, encoding }
    }

    /// It without its body.
    pub fn destroyed(self) -> Self {
        DeadLetter { detail: DESTROYED_BODY.into(), body: String::new(), encoding: None, ..self }
    }

    /// The dead letter that a record is, or that it became by how it was decided on.
    pub fn of(record: &OwnedRecord, verdict: Verdict) -> Option<Self> {
        if record.kind == DEAD_LETTER {
            return serde_json::from_slice(&record.payload).ok();
        }
        // Where bodies are destroyed later than they are decided on, one may still be there.
        if record.kind == DESTROYED || verdict == Verdict::Erased {
            let reason = match verdict {
                Verdict::TooLate => Reason::TooLate,
                Verdict::RefusedEdge => Reason::RefusedEdge,
                Verdict::Erased => Reason::Erased,
                _ => Reason::Conflict,
            };
            return Some(DeadLetter::new(&Rejection::new(reason, DESTROYED_BODY), b""));
        }
        let (_, _, message_id, body) = decode_event(&record.payload)?;
        let rejection = match verdict {
            Verdict::TooLate => Rejection::new(Reason::TooLate, "the event is earlier than the lateness allows"),
            Verdict::RefusedEdge => Rejection::new(
                Reason::RefusedEdge,
                "accepted, but its link would make a profile of more ids than identity.max_ids",
            ),
            _ => {
                let detail = format!("message id {message_id:?} was taken before, with other content");
                Rejection::new(Reason::Conflict, detail)
            }
        };
        let letter = DeadLetter::new(&rejection, body.as_bytes());
        if is_old(&record.payload) { letter.without_body() } else { Some(letter) }
    }

    /// The same without its body, which is older than bodies are kept; none: it has none.
    pub fn without_body(self) -> Option<Self> {
        let detail = format!("{} (its body is older than `retention` keeps it)", self.detail);
        let is_there = !self.body.is_empty();
        is_there.then(|| DeadLetter { detail, body: String::new(), encoding: None, ..self })
    }
}

/// What is said of a body that is not there any more.
pub const DESTROYED_BODY: &str = "its body was destroyed, since it was of somebody who was erased, or named them";

/// Somebody is erased.
///
/// The ids stand in it in clear until all bodies of this log that it asks for are destroyed; then their marks alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erase {
    /// The place of the erasure whose bodies are to be destroyed in this log; none: this is the erasure.
    pub of: Option<u64>,
    /// Later records of these ids that are dated up to this instant do not come in.
    pub until: Millis,
    /// How many events had been accepted, where that is known.
    pub events: u64,
    /// The ids; none: all is destroyed.
    pub ids: Vec<EcoString>,
    /// The mark of each.
    pub marks: Vec<u128>,
    /// Places of calls whose links had been refused, in any log, where bodies are to be destroyed in this one: what is
    /// left then does not say so any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<u64>,
}

impl Erase {
    /// What is written down of an erasure.
    pub fn new(erasure: &Erasure, of: Option<u64>, events: u64, secret: &[u8; 16]) -> Erase {
        let Erasure { until, ids, .. } = erasure;
        let marks = ids.iter().map(|id| mark(secret, id)).collect();
        Erase { of, until: *until, events, ids: ids.clone(), marks, refused: Vec::new() }
    }
}

/// What became of an intent: the ledger's entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dispatch {
    /// The intent, by the law as it was.
    pub row: IntentRow,
    /// `sent`, `parked`, `revoked`, `consent_withdrawn`.
    pub status: Fate,
    /// The message, fixed at its first attempt.
    pub body: Option<String>,
    /// The data with what was recommended, if its campaign recommends: fixed likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
    /// What carries it to its channel, where somebody has to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// What takes it back there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<Trigger>,
    /// When, ms.
    pub at: Millis,
}

/// A message that has to be carried, and where it is. Its text is fixed once; when it is delivered nobody needs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// On its way.
    Pending(String),
    /// No attempt follows, unless it is sent again; the text, and why.
    Parked(String, String),
    /// There.
    Delivered,
}

/// An event's payload: kind, time, message id, body.
pub fn encode_event(kind: Kind, timestamp: Millis, message_id: &str, body: &str) -> Vec<u8> {
    let mut payload = Vec::with_capacity(body.len() + message_id.len() + 10);
    payload.push(kind as u8);
    payload.extend(timestamp.to_le_bytes());
    // A message id is at most 255 bytes; its door has seen to that.
    payload.push(message_id.len() as u8);
    payload.extend(message_id.as_bytes());
    payload.extend(body.as_bytes());
    payload
}

/// Gives an event's payload another time.
pub fn date(payload: &mut [u8], timestamp: Millis) {
    payload[1..9].copy_from_slice(&timestamp.to_le_bytes());
}

/// An event whose body is not what it was when it was decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// By what admission knows it.
    pub entry: u128,
    /// Whether its body is older than bodies are kept, and only as much of it left as definitions see.
    pub is_old: bool,
}

/// Says of an event's kind that its body changed after it was decided on, and that by what admission knows it follows.
const PINNED: u8 = 0x80;

/// The payload of an event whose body is not what it was.
pub fn encode_pinned(kind: Kind, pinned: Pinned, timestamp: Millis, message_id: &str, body: &str) -> Vec<u8> {
    let mut payload = encode_event(kind, timestamp, message_id, body);
    payload[0] |= PINNED;
    let Pinned { entry, is_old } = pinned;
    payload.splice(1..1, entry.to_le_bytes().into_iter().chain([u8::from(is_old)]));
    payload
}

/// By what admission knows an event, and how much of it is left, if its body has changed since.
pub fn pinned(payload: &[u8]) -> Option<Pinned> {
    let (kind, rest) = payload.split_first()?;
    let (entry, rest) = rest.split_first_chunk()?;
    let is_old = *rest.first()? != 0;
    (kind & PINNED != 0).then(|| Pinned { entry: u128::from_le_bytes(*entry), is_old })
}

/// Whether only as much is left of an event's body as definitions see.
pub fn is_old(payload: &[u8]) -> bool {
    pinned(payload).is_some_and(|pinned| pinned.is_old)
}

/// What is left of a call whose body was destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// As much as later calls are decided on by.
    Event(Destroyed),
    /// That it came too late: its person had been erased.
    Erased,
}

impl Left {
    /// What is written in its place.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Left::Erased => vec![0],
            Left::Event(Destroyed { timestamp, route, entry, .. }) => {
                let route = (*route as u16).to_le_bytes();
                [&[1], &timestamp.to_le_bytes()[..], &route, &entry.to_le_bytes()].concat()
            }
        }
    }

    /// What was written. Place and lateness are filled in by whoever reads it; none: it was no call.
    pub fn decode(payload: &[u8]) -> Option<Left> {
        let (is_event, rest) = payload.split_first()?;
        if *is_event == 0 {
            return Some(Left::Erased);
        }
        let (timestamp, rest) = rest.split_first_chunk()?;
        let (route, rest) = rest.split_first_chunk()?;
        let entry = u128::from_le_bytes(*rest.first_chunk()?);
        let (timestamp, route) = (Millis::from_le_bytes(*timestamp), u16::from_le_bytes(*route).into());
        Some(Left::Event(Destroyed { position: 0, timestamp, is_late: false, route, entry }))
    }
}

/// The parts of an event's payload.
pub fn decode_event(payload: &[u8]) -> Option<(Kind, Millis, &str, &str)> {
    let (kind, mut rest) = payload.split_first()?;
    if kind & PINNED != 0 {
        rest = rest.get(size_of::<u128>() + 1..)?;
    }
    let kind = kind & !PINNED;
    let (timestamp, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first()?;
    let (message_id, body) = rest.split_at_checked(usize::from(*length))?;
    let texts = (std::str::from_utf8(message_id).ok()?, std::str::from_utf8(body).ok()?);
    Some((*Kind::ALL.get(usize::from(kind))?, Millis::from_le_bytes(*timestamp), texts.0, texts.1))
}

/// An event of the log, ready for the engine.
pub fn prepare(payload: &[u8], decoder: &mut Decoder, secret: &[u8; 16]) -> Result<Prepared, Rejection> {
    let (kind, timestamp, message_id, body) =
        decode_event(payload).ok_or_else(|| Rejection::new(Reason::Invalid, "a record of the log is not an event"))?;
    let mut call = Call::parse(body, Some(kind))?;
    let mut prepared = Prepared::new(&mut call, timestamp, message_id.into(), decoder, secret)?;
    prepared.entry = pinned(payload).map_or(prepared.entry, |pinned| pinned.entry);
    Ok(prepared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_as_they_went() {
        let payload = encode_event(Kind::Page, 1_767_225_600_000, "m1", r#"{"userId":"ada"}"#);
        assert_eq!(decode_event(&payload), Some((Kind::Page, 1_767_225_600_000, "m1", r#"{"userId":"ada"}"#)));
        assert_eq!(decode_event(&payload[..5]), None);
        assert_eq!(pinned(&payload), None);
        let how = Pinned { entry: 1 << 127 | 5, is_old: false };
        let struck = encode_pinned(Kind::Page, how, 1_767_225_600_000, "m1", r#"{"userId":"ada"}"#);
        assert_eq!((decode_event(&struck), pinned(&struck)), (decode_event(&payload), Some(how)));
        assert_eq!(decode_event(&struck[..9]), None);
        let old = Pinned { is_old: true, ..how };
        assert_eq!(pinned(&encode_pinned(Kind::Track, old, 0, "m1", "{}")), Some(old));
    }

    #[test]
    fn what_is_left_comes_back_too() {
        let left = Destroyed { position: 0, timestamp: -5, is_late: false, route: 65_535, entry: u128::MAX - 7 };
        for left in [Left::Erased, Left::Event(left)] {
            assert_eq!(Left::decode(&left.encode()), Some(left));
        }
        assert_eq!(Left::decode(&[]), None);
        let erasure = Erasure { position: 9, until: i64::MAX, ids: vec!["ada".into()] };
        let erase = Erase { refused: vec![4, 7], ..Erase::new(&erasure, Some(9), 3, &[1; 16]) };
        let text = serde_json::to_vec(&erase).expect("it has string keys");
        assert_eq!(serde_json::from_slice::<Erase>(&text).expect("it was written so"), erase);
    }
}
