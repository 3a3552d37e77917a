//! What stands in the log: the payload of each kind of record.
//!
//! An event's body is kept as it was sent, with the time and message id that its door settled on in front of it, so
//! that live, replay and restart read the same call.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dataflows::admission::{self, Verdict};
use dataflows::event::{Call, Decoder, Kind, Reason, Rejection};
use dataflows::intake::Prepared;
use dataflows::profile::answers::IntentRow;
use dataflows::protocol::{Record, Terms};
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
    /// As the engine takes it, at a place.
    pub fn at(self, position: u64, secret: &[u8; 16]) -> Record {
        match self {
            Correction::Retract(own, message_id) => {
                let entry = admission::entry(secret, &own, &message_id, 0);
                Record::Retract(position, own, message_id, entry)
            }
            Correction::Unlink(a, b) => Record::Unlink(position, a, b),
        }
    }
}

/// The clock was moved to this instant.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Clock {
    /// Where to, ms.
    pub to: Millis,
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

    /// The dead letter that a record is, or that it became by how it was decided on.
    pub fn of(record: &OwnedRecord, verdict: Verdict) -> Option<Self> {
        if record.kind == DEAD_LETTER {
            return serde_json::from_slice(&record.payload).ok();
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
        Some(DeadLetter::new(&rejection, body.as_bytes()))
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

/// The parts of an event's payload.
pub fn decode_event(payload: &[u8]) -> Option<(Kind, Millis, &str, &str)> {
    let (kind, rest) = payload.split_first()?;
    let (timestamp, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first()?;
    let (message_id, body) = rest.split_at_checked(usize::from(*length))?;
    let texts = (std::str::from_utf8(message_id).ok()?, std::str::from_utf8(body).ok()?);
    Some((*Kind::ALL.get(usize::from(*kind))?, Millis::from_le_bytes(*timestamp), texts.0, texts.1))
}

/// An event of the log, ready for the engine.
pub fn prepare(payload: &[u8], decoder: &mut Decoder, secret: &[u8; 16]) -> Result<Prepared, Rejection> {
    let (kind, timestamp, message_id, body) =
        decode_event(payload).ok_or_else(|| Rejection::new(Reason::Invalid, "a record of the log is not an event"))?;
    let mut call = Call::parse(body, Some(kind))?;
    Prepared::new(&mut call, timestamp, message_id.into(), decoder, secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_as_they_went() {
        let payload = encode_event(Kind::Page, 1_767_225_600_000, "m1", r#"{"userId":"ada"}"#);
        assert_eq!(decode_event(&payload), Some((Kind::Page, 1_767_225_600_000, "m1", r#"{"userId":"ada"}"#)));
        assert_eq!(decode_event(&payload[..5]), None);
    }
}
