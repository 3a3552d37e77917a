//! Messages taken apart: what comes in under `thalweg.events.>`, and what is told of what was not taken.

use std::io::{Read, Write};

use bytes::Bytes;
use dataflows::event::{Decoder, Reason, Rejection};
use dataflows::time::Millis;
use ecow::{EcoString, eco_format};
use serde::{Deserialize, Serialize};

use super::Entry;
use crate::door::{Arrived, BODY_BYTES_MAX, Door, Stamp, Unreadable, unpack};
use crate::pseudonyms::NOT_KEPT;
use crate::record::DeadLetter;

/// A dead letter is at most this long unpacked: a body's every byte may be six in JSON.
const LETTER_BYTES_MAX: u64 = 6 * BODY_BYTES_MAX as u64 + 65_536;

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
    let taken = unpack(&entry.body).and_then(|body| {
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
    /// As a body of at most so many bytes, if packing brings it there: a body may grow in JSON, and packs as well.
    pub(super) fn encode(&self, max: usize) -> Bytes {
        let json = serde_json::to_vec(self).expect("it has string keys");
        if json.len() <= max {
            return json.into();
        }
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(&json).expect("memory takes all");
        packer.finish().expect("memory takes all").into()
    }

    /// From the body of a record.
    pub fn decode(body: &[u8]) -> Option<Self> {
        if !body.starts_with(&[0x1f, 0x8b]) {
            return serde_json::from_slice(body).ok();
        }
        serde_json::from_reader(flate2::read::GzDecoder::new(body).take(LETTER_BYTES_MAX)).ok()
    }
}
