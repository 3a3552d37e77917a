//! Intake: lines, as they stand in a file or in the log, become records.
//!
//! What is done here needs no order and can be done on many threads: what is decided by the place in the log is the
//! engine's to decide. Live, replay and restart all go through here.

use ecow::EcoString;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::admission;
use crate::event::{Call, Decoder, Event, Link, Reason, Rejection, integer};
use crate::identity::Erasure;
use crate::json::{Next, Reader};
use crate::protocol::Record;
use crate::time::Millis;

/// A call that could be read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// The event.
    pub event: Event,
    /// The link it states.
    pub link: Option<Box<Link>>,
    /// Whether it is too late by its stamp; where events move the clock, the engine finds that.
    pub is_late: bool,
    /// By what admission knows it.
    pub entry: u128,
}

impl Prepared {
    /// Makes a call ready, with the time and message id that its door settled on.
    pub fn new(
        call: &mut Call<'_>,
        timestamp: Millis,
        message_id: EcoString,
        decoder: &mut Decoder,
        secret: &[u8; 16],
    ) -> Result<Prepared, Rejection> {
        let link = call.link(timestamp, &message_id).map(Box::new);
        let content = call.content;
        let event = decoder.event(call, timestamp, message_id)?;
        let entry = admission::entry(secret, &event.own, &event.message_id, content);
        Ok(Prepared { event, link, is_late: false, entry })
    }

    /// Gives a call its place in the log.
    pub fn place(&mut self, position: u64) {
        self.event.position = position;
        if let Some(link) = &mut self.link {
            link.position = position;
        }
    }

    /// Says with which clock the log stamped a call, where that decides whether it is too late or of the future.
    pub fn stamp(&mut self, clock: Millis, lateness: Option<Millis>) {
        self.is_late = lateness.is_some_and(|lateness| self.event.timestamp < clock - lateness);
        if let Some(link) = &mut self.link {
            link.stamp = clock;
        }
    }

    /// Gives a call that has no time of its own the time at which it came.
    pub fn date(&mut self, timestamp: Millis) {
        self.event.timestamp = timestamp;
        if let Some(link) = &mut self.link {
            link.timestamp = timestamp;
        }
    }
}

/// Reads the line of a replay file that stands at a position.
pub fn prepare(line: &str, position: u64, decoder: &mut Decoder, secret: &[u8; 16]) -> Result<Record, Rejection> {
    let mut call = match Call::parse(line, None) {
        Ok(call) => call,
        // What is no call may be a control line.
        Err(rejection) => return control(line, position, secret)?.ok_or(rejection),
    };
    decoder.check(&call)?;
    let timestamp = call.timestamp.ok_or_else(|| Rejection::new(Reason::BadTimestamp, "`timestamp` is missing"))?;
    let message_id = call.message_id.clone().unwrap_or_else(|| line_id(line));
    let mut prepared = Prepared::new(&mut call, timestamp, message_id, decoder, secret)?;
    prepared.place(position);
    Ok(Record::Event(prepared))
}

/// The message id of a line that has none.
fn line_id(line: &str) -> EcoString {
    let digest = Sha256::digest(line.as_bytes());
    digest.iter().take(16).fold(String::from("line:"), |id, byte| id + &format!("{byte:02x}")).into()
}

/// A line that is no call but moves the clock or corrects.
fn control(line: &str, position: u64, secret: &[u8; 16]) -> Result<Option<Record>, Rejection> {
    let (mut kind, mut to) = (None, None);
    let mut texts: [Option<EcoString>; 4] = [const { None }; 4];
    let mut reader = Reader::new(line);
    if reader.peek()? != Next::Object {
        return Ok(None);
    }
    reader.object(|reader, key| {
        let place = ["id", "messageId", "a", "b"].iter().position(|wanted| *wanted == key);
        match (&*key, reader.peek()?) {
            ("type", Next::Text) => kind = Some(reader.text()?),
            ("to", Next::Number) => to = reader.number()?.parse().ok(),
            (_, Next::Text) if place.is_some() => texts[place.unwrap_or(0)] = Some(reader.text()?.into()),
            ("id" | "a" | "b", Next::Number) => texts[place.unwrap_or(0)] = integer(reader.number()?).map(Into::into),
            _ => {
                reader.skip()?;
            }
        }
        Ok(())
    })?;
    let wrong = |what: &str| Rejection::new(Reason::Invalid, what.to_owned());
    Ok(match (kind.as_deref(), texts) {
        (Some("clock"), _) => {
            let to = to.ok_or_else(|| wrong("a clock line needs `to`, an integer of ms"))?;
            Some(Record::Clock(position, to))
        }
        (Some("retract"), [Some(id), Some(message_id), ..]) => {
            let entry = admission::entry(secret, &id, &message_id, 0);
            Some(Record::Retract(position, Millis::MAX, id, message_id, entry))
        }
        (Some("retract"), _) => return Err(wrong("a retract line needs `id` and `messageId`")),
        (Some("unlink"), [_, _, Some(a), Some(b)]) => Some(Record::Unlink(position, Millis::MAX, a, b)),
        (Some("unlink"), _) => return Err(wrong("an unlink line needs `a` and `b`")),
        // Of the others whoever reads the file has to ask.
        (Some("erase"), [Some(id), ..]) => {
            Some(Record::Erase(Box::new(Erasure { position, until: Millis::MIN, ids: vec![id] })))
        }
        (Some("erase"), _) => return Err(wrong("an erase line needs `id`")),
        _ => None,
    })
}
