//! Messages taken apart: what comes in under `thalweg.events.>`, and what is told of what was not taken.

use std::io::{Read, Write};

use bytes::Bytes;
use dataflows::event::{Decoder, Reason, Rejection};
use dataflows::time::Millis;
use ecow::{EcoString, eco_format};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Entry, HEADERS_MAX, PAYLOAD_MIN};
use crate::desk::{from_base64, in_base64};
use crate::door::{self, Arrived, BODY_BYTES_MAX, Door, Incoming, Stamp, Unreadable};
use crate::pseudonyms::NOT_KEPT;
use crate::record::{self, DeadLetter, Left};

/// A dead letter is at most this long unpacked: a body's every byte may be six in JSON.
const LETTER_BYTES_MAX: u64 = 6 * BODY_BYTES_MAX as u64 + 65_536;
/// Calls as a log of files would hold them are at most so long unpacked: those that are wrong may be many, and short.
const CALLS_BYTES_MAX: u64 = 1 << 28;

/// The calls of a message: one, a batch, or one a line, perhaps packed. A call without a message id takes that of its
/// message if it is the message's only one, and a name by its place in the stream if not; so whoever reads the stream
/// again names it the same. What cannot be read at all is one bad call.
pub fn take_apart(entry: &Entry, decoder: &mut Decoder, secret: &[u8; 16], stamp: Stamp) -> Vec<Arrived> {
    let (sequence, is_private) = (entry.sequence, !decoder.vocabulary().privacy().is_empty());
    let name = |index: Option<usize>| -> EcoString {
        match index {
            Some(index) => eco_format!("nats:{sequence}:{index}"),
            None => entry.id().map_or_else(|| eco_format!("nats:{sequence}"), EcoString::from),
        }
    };
    let taken = door::unpack(&entry.body).and_then(|body| {
        if body.trim_ascii().is_empty() {
            return Err(Unreadable::Malformed("the message is empty".into()));
        }
        Door { decoder, secret, stamp, fresh_id: &name }.message(&body)
    });
    taken.unwrap_or_else(|unreadable| {
        let mut rejection = match unreadable {
            Unreadable::TooLarge(detail) => Rejection::new(Reason::TooLarge, detail),
            Unreadable::Malformed(detail) => Rejection::new(Reason::Invalid, detail),
        };
        let mut body = entry.body.to_vec();
        if is_private {
            rejection.detail += NOT_KEPT;
            body.clear();
        }
        vec![Arrived::Bad { rejection, message_id: None, body: body.into() }]
    })
}

/// The id of a dead letter about a call of the stream: the same whenever that call is read.
pub fn dead_letter_id(sequence: u64, index: usize) -> String {
    format!("dead:{sequence}:{index}")
}

/// A call that was not taken, as it is told under `thalweg.dead_letters`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Returned {
    /// Why, and its body.
    #[serde(flatten)]
    pub letter: DeadLetter,
    /// The sequence of the message that it came in; none, if it stands nowhere but here.
    pub position: Option<String>,
    /// When it came, ms.
    pub received_at: Millis,
}

impl Returned {
    /// As a body.
    pub(super) fn encode(&self) -> Bytes {
        pack(serde_json::to_vec(self).expect("it has string keys"))
    }

    /// From the body of a record.
    pub fn decode(body: &[u8]) -> Option<Self> {
        unpack(body, LETTER_BYTES_MAX)
    }
}

/// A body that any server takes, if packing brings it there: what was sent may grow in JSON, and packs as well.
pub(super) fn pack(json: Vec<u8>) -> Bytes {
    if json.len() <= PAYLOAD_MIN - HEADERS_MAX {
        return json.into();
    }
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(&json).expect("memory takes all");
    packer.finish().expect("memory takes all").into()
}

/// What a body says that is at most so long unpacked.
pub(super) fn unpack<T: DeserializeOwned>(body: &[u8], max: u64) -> Option<T> {
    if !body.starts_with(&[0x1f, 0x8b]) {
        return serde_json::from_slice(body).ok();
    }
    serde_json::from_reader(flate2::read::GzDecoder::new(body).take(max)).ok()
}

/// A call as it is read from the stream, or what is left of one.
pub enum Came {
    /// It was taken.
    Good(Box<Incoming>),
    /// Its body was destroyed; and whether it had no time of its own.
    Left(Left, bool),
    /// It is none that can be taken.
    Bad(DeadLetter),
}

/// The same as a log of files would hold it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Standing {
    /// What kind of record.
    pub kind: u8,
    /// Whether it has no time of its own, and takes that at which it is read.
    pub undated: bool,
    /// The record.
    #[serde(serialize_with = "in_base64", deserialize_with = "from_base64")]
    pub payload: Vec<u8>,
}

impl From<Arrived> for Came {
    fn from(arrived: Arrived) -> Self {
        match arrived {
            Arrived::Good(incoming) => Came::Good(incoming),
            Arrived::Bad { rejection, body, .. } => Came::Bad(DeadLetter::new(&rejection, &body)),
        }
    }
}

impl From<&Came> for Standing {
    fn from(came: &Came) -> Self {
        match came {
            Came::Good(incoming) => {
                let Incoming { undated, payload, .. } = &**incoming;
                Standing { kind: record::EVENT, undated: *undated, payload: payload.clone() }
            }
            Came::Left(left, undated) => {
                Standing { kind: record::DESTROYED, undated: *undated, payload: left.encode() }
            }
            Came::Bad(letter) => {
                let payload = serde_json::to_vec(letter).expect("it has string keys");
                Standing { kind: record::DEAD_LETTER, undated: false, payload }
            }
        }
    }
}

impl Standing {
    /// Calls as the body of a message.
    pub fn body(calls: &[Standing]) -> Bytes {
        pack(serde_json::to_vec(calls).expect("they have string keys"))
    }

    /// And back.
    pub fn all(body: &[u8]) -> Vec<Standing> {
        unpack(body, CALLS_BYTES_MAX).unwrap_or_default()
    }

    /// As it is read.
    pub fn read(&self, decoder: &mut Decoder, secret: &[u8; 16]) -> Came {
        let Standing { kind, undated, payload } = self;
        let came = match *kind {
            record::EVENT => record::prepare(payload, decoder, secret).ok().and_then(|prepared| {
                let (kind, ..) = record::decode_event(payload)?;
                let (undated, generation, payload) = (*undated, decoder.vocabulary().generation(), payload.clone());
                Some(Came::Good(Box::new(Incoming { kind, prepared, undated, generation, payload })))
            }),
            record::DESTROYED => Left::decode(payload).map(|left| Came::Left(left, *undated)),
            _ => serde_json::from_slice(payload).ok().map(Came::Bad),
        };
        // It was written by what reads it.
        came.unwrap_or_else(|| {
            let rejection = Rejection::new(Reason::Invalid, "a call of the stream cannot be read any more");
            Came::Bad(DeadLetter::new(&rejection, b""))
        })
    }
}
