//! The door for events: bodies of the Segment tracking API, taken apart into calls.
//!
//! A bad call never spoils its batch. What can be refused without knowing the log is refused here; the time and the
//! message id that a call is to have are settled here. Nothing here waits for anything.

use std::borrow::Cow;
use std::io::Read;

use dataflows::event::{Call, Decoder, ID_BYTES_MAX, Kind, Reason, Rejection};
use dataflows::intake::Prepared;
use dataflows::json::{Next, Reader};
use dataflows::time::{self, DAY, Millis};
use ecow::{EcoString, eco_format};

use crate::pseudonyms::{self, NOT_KEPT};
use crate::record::{decode_event, encode_event};

/// The largest body, after unpacking.
pub const BODY_BYTES_MAX: usize = 512_000;
/// The largest event.
pub const EVENT_BYTES_MAX: usize = 32_768;
/// Clocks this far apart are corrected; a timestamp this far ahead is now.
const SKEW_MIN: Millis = 60_000;

/// A call on its way to the log.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The call.
    pub kind: Kind,
    /// Everything that the dataflow keeps of it.
    pub prepared: Prepared,
    /// Whether it has no time of its own, and takes that at which the log stamps it.
    pub undated: bool,
    /// By which definitions' vocabulary it was decoded.
    pub generation: u32,
    /// As it was sent, but for pseudonyms, in the log's form: made here, where there are many threads.
    pub payload: Vec<u8>,
}

impl Incoming {
    /// As it was sent, but for pseudonyms.
    pub fn body(&self) -> &str {
        decode_event(&self.payload).map_or("", |(.., body)| body)
    }
}

/// What becomes of one call at the door.
#[derive(Clone, Debug)]
pub enum Arrived {
    /// It goes on to the log.
    Good(Box<Incoming>),
    /// It goes to the dead letters.
    Bad {
        /// Why.
        rejection: Rejection,
        /// Its message id, where it has one.
        message_id: Option<EcoString>,
        /// As it was sent, but for pseudonyms; empty where what they are to replace cannot be found.
        body: Box<[u8]>,
    },
}

/// What is wrong with a body as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Larger than it may be.
    TooLarge(&'static str),
    /// Not what the door takes.
    Malformed(String),
}

/// What calls came in, and with which key.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// `writeKey`, if the body has one.
    pub write_key: Option<String>,
    /// The calls.
    pub calls: Vec<Arrived>,
}

/// How time is told at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// By the wall: this is now, ms; client clocks are corrected against it.
    Wall(Millis),
    /// By events: this is the clock so far, ms; timestamps are taken as they are.
    Events(Millis),
    /// By the broker that took the message: this is when, ms. Nobody says when it was sent, so nothing is corrected.
    Broker(Millis),
}

/// Unpacks a body, if it is packed: known by its first bytes, not by what its header says.
pub fn unpack(body: &[u8]) -> Result<Cow<'_, [u8]>, Unreadable> {
    if !body.starts_with(&[0x1f, 0x8b]) {
        return if body.len() > BODY_BYTES_MAX { Err(too_large()) } else { Ok(body.into()) };
    }
    let mut plain = Vec::new();
    let read = flate2::read::MultiGzDecoder::new(body).take(BODY_BYTES_MAX as u64 + 1).read_to_end(&mut plain);
    match read {
        Ok(_) if plain.len() > BODY_BYTES_MAX => Err(too_large()),
        Ok(_) => Ok(plain.into()),
        Err(error) => Err(Unreadable::Malformed(format!("the body begins as gzip but cannot be unpacked: {error}"))),
    }
}

fn too_large() -> Unreadable {
    Unreadable::TooLarge("a body may have 512,000 bytes after unpacking")
}

/// What taking a body apart needs.
pub struct Door<'d> {
    /// What of an event is kept.
    pub decoder: &'d mut Decoder,
    /// The key of the log's hashes.
    pub secret: &'d [u8; 16],
    /// How time is told.
    pub stamp: Stamp,
    /// Makes message ids for calls that have none, from their place in a body of several.
    pub fresh_id: &'d dyn Fn(Option<usize>) -> EcoString,
}

impl Door<'_> {
    /// A body of one call, at the door of its kind.
    pub fn single(&mut self, body: &[u8], kind: Kind) -> Result<Calls, Unreadable> {
        if body.len() > EVENT_BYTES_MAX {
            return Err(Unreadable::TooLarge("an event may have 32,768 bytes"));
        }
        let text = text(body)?;
        let envelope = Envelope::read(text)?;
        let call = self.call(text, body, Some(kind), &envelope, None);
        Ok(Calls { write_key: envelope.write_key, calls: vec![call] })
    }

    /// A body of several calls.
    pub fn batch(&mut self, body: &[u8]) -> Result<Calls, Unreadable> {
        let text = masked(body);
        let envelope = Envelope::read(&text)?;
        let Some(batch) = &envelope.batch else {
            return Err(Unreadable::Malformed("`batch` is missing: it is a list of calls".into()));
        };
        let calls = self.calls(batch, &envelope, (&text, body), Some);
        Ok(Calls { write_key: envelope.write_key, calls })
    }

    /// A message of a broker: one call whose `type` says what it is, a batch, or one call a line.
    pub fn message(&mut self, body: &[u8]) -> Result<Vec<Arrived>, Unreadable> {
        let text = masked(body);
        let unreadable = match Envelope::read(&text) {
            Ok(envelope) => {
                return Ok(match &envelope.batch {
                    Some(batch) => self.calls(batch, &envelope, (&text, body), Some),
                    None => self.calls(&[text.trim()], &Envelope::default(), (&text, body), |_| None),
                });
            }
            Err(unreadable) => unreadable,
        };
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        // Where no line is a call, the body is one that broke, and is told of as one.
        if !lines.iter().any(|line| Envelope::read(line).is_ok()) {
            return Err(unreadable);
        }
        Ok(self.calls(&lines, &Envelope::default(), (&text, body), Some))
    }

    /// Calls that are parts of a text, and bytes of the same length as it was sent.
    fn calls(
        &mut self,
        calls: &[&str],
        envelope: &Envelope<'_>,
        (text, body): (&str, &[u8]),
        place: fn(usize) -> Option<usize>,
    ) -> Vec<Arrived> {
        let calls = calls.iter().enumerate().map(|(index, call)| {
            let start = call.as_ptr() as usize - text.as_ptr() as usize;
            self.call(call, &body[start..start + call.len()], None, envelope, place(index))
        });
        calls.collect()
    }

    /// A call, and the bytes that were sent for it.
    fn call(
        &mut self,
        text: &str,
        sent: &[u8],
        kind: Option<Kind>,
        envelope: &Envelope<'_>,
        place: Option<usize>,
    ) -> Arrived {
        let mut rejection = match self.take(text, kind, envelope, place) {
            Ok(incoming) => return Arrived::Good(Box::new(incoming)),
            Err(rejection) => rejection,
        };
        let privacy = self.decoder.vocabulary().privacy();
        let private = pseudonyms::call(text, privacy, self.secret);
        let body = match &private {
            _ if privacy.is_empty() => sent,
            Ok(private) => private.as_bytes(),
            Err(_) => {
                rejection.detail += NOT_KEPT;
                &[]
            }
        };
        Arrived::Bad { rejection, message_id: message_id(text), body: body.into() }
    }

    fn take(
        &mut self,
        text: &str,
        kind: Option<Kind>,
        envelope: &Envelope<'_>,
        place: Option<usize>,
    ) -> Result<Incoming, Rejection> {
        is_small(text, "")?;
        let mut call = Call::parse(text, kind)?;
        self.decoder.check(&call)?;
        let timestamp = settle(&call, call.sent_at.or(envelope.sent_at), self.stamp)?;
        let message_id = call.message_id.clone().unwrap_or_else(|| (self.fresh_id)(place));
        if message_id.len() > ID_BYTES_MAX {
            return Err(Rejection::new(
                Reason::Invalid,
                format!("its message id has {} bytes; it may have {ID_BYTES_MAX}", message_id.len()),
            ));
        }
        let undated = call.timestamp.is_none() && matches!(self.stamp, Stamp::Events(_));
        let kind = call.kind;
        // Whether it is right is asked of what was sent; all that is kept is of what is written down.
        let body = pseudonyms::call(text, self.decoder.vocabulary().privacy(), self.secret)?;
        if let Cow::Owned(body) = &body {
            is_small(body, " with pseudonyms")?;
            call = Call::parse(body, Some(kind))?;
        }
        let prepared = Prepared::new(&mut call, timestamp, message_id, self.decoder, self.secret)?;
        let generation = self.decoder.vocabulary().generation();
        let payload = encode_event(kind, timestamp, &prepared.event.message_id, &body);
        Ok(Incoming { kind, prepared, undated, generation, payload })
    }
}

fn is_small(event: &str, how: &str) -> Result<(), Rejection> {
    let large = || {
        let detail = format!("the event has {} bytes{how}; it may have 32,768", event.len());
        Err(Rejection::new(Reason::TooLarge, detail))
    };
    if event.len() > EVENT_BYTES_MAX { large() } else { Ok(()) }
}

/// When a call happened, by the client's clock and ours.
fn settle(call: &Call<'_>, sent_at: Option<Millis>, stamp: Stamp) -> Result<Millis, Rejection> {
    let now = match stamp {
        Stamp::Wall(now) | Stamp::Broker(now) => now,
        Stamp::Events(clock) => {
            let timestamp = call.timestamp.or(Some(clock).filter(|clock| time::in_range(*clock)));
            let missing = "`timestamp` is missing, and the clock of events has not begun";
            return timestamp.ok_or_else(|| Rejection::new(Reason::BadTimestamp, missing));
        }
    };
    let Some(written) = call.timestamp else { return Ok(now) };
    let is_corrected = matches!(stamp, Stamp::Wall(_));
    let timestamp = match (sent_at.filter(|_| is_corrected), call.original.or(call.timestamp)) {
        (Some(sent_at), Some(original)) if (now - sent_at).abs() > SKEW_MIN => now - (sent_at - original),
        _ => written,
    };
    if timestamp > now + DAY {
        return Err(Rejection::new(Reason::BadTimestamp, "the event is more than 24 hours in the future"));
    }
    if !time::in_range(timestamp) {
        return Err(Rejection::new(Reason::BadTimestamp, "the event is not in the years 2000 to 2099"));
    }
    Ok(if is_corrected && timestamp > now && timestamp <= now + SKEW_MIN { now } else { timestamp })
}

/// The body as a text of the same length: what is not UTF-8 becomes a control character, which no string may hold, so
/// that only the call it stands in is refused.
fn masked(body: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(body) {
        return text.into();
    }
    let mut text = String::with_capacity(body.len());
    for chunk in body.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '\u{1}'));
    }
    text.into()
}

fn text(body: &[u8]) -> Result<&str, Unreadable> {
    std::str::from_utf8(body)
        .map_err(|error| Unreadable::Malformed(format!("the body is not UTF-8 at byte {}", error.valid_up_to())))
}

/// What stands around calls.
#[derive(Debug, Default)]
struct Envelope<'a> {
    batch: Option<Vec<&'a str>>,
    write_key: Option<String>,
    sent_at: Option<Millis>,
}

impl<'a> Envelope<'a> {
    fn read(text: &'a str) -> Result<Self, Unreadable> {
        let mut envelope = Envelope::default();
        let mut reader = Reader::new(text);
        let read = reader
            .object(|reader, key| {
                match &*key {
                    "batch" if reader.peek()? == Next::List => {
                        let calls = envelope.batch.insert(Vec::new());
                        // Roughly: what is wrong inside a call is that call's own fault.
                        return reader.list(|reader| reader.skip_roughly().map(|call| calls.push(call)));
                    }
                    "writeKey" if reader.peek()? == Next::Text => {
                        envelope.write_key = Some(reader.text()?.into_owned())
                    }
                    "sentAt" if reader.peek()? == Next::Text => envelope.sent_at = time::parse_instant(&reader.text()?),
                    _ => {
                        reader.skip_roughly()?;
                    }
                }
                Ok(())
            })
            .and_then(|()| reader.end());
        match read {
            Ok(()) => Ok(envelope),
            Err(fault) => Err(Unreadable::Malformed(format!("the body is not JSON that can be read: {fault}"))),
        }
    }
}

/// The message id of a call that was refused, as far as it can be read.
fn message_id(call: &str) -> Option<EcoString> {
    let mut found = None;
    let read = Reader::new(call).object(|reader, key| {
        if key == "messageId" && reader.peek()? == Next::Text {
            found = Some(eco_format!("{}", reader.text()?));
            return Ok(());
        }
        reader.skip_roughly().map(|_| ())
    });
    read.ok().and(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dataflows::definitions::Definitions;
    use dataflows::plan::Plan;

    use super::*;

    const NOW: Millis = 1_767_225_600_000;

    fn batch(body: &str, stamp: Stamp) -> Result<Vec<Result<Millis, Reason>>, Unreadable> {
        let plan = Plan::new(Arc::new(Definitions::default()));
        let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        let mut door = Door { decoder: &mut decoder, secret: &[0; 16], stamp, fresh_id: &|_| "fresh".into() };
        let body = door.batch(body.as_bytes())?;
        Ok(body
            .calls
            .into_iter()
            .map(|call| match call {
                Arrived::Good(incoming) => Ok(incoming.prepared.event.timestamp),
                Arrived::Bad { rejection, .. } => Err(rejection.reason),
            })
            .collect())
    }

    #[test]
    fn a_bad_call_never_spoils_its_batch() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        let good = r#"{"type":"page","userId":"ada"}"#;
        let calls = format!(
            r#"{{"batch":[{good},{{"type":"track","userId":"a","event":"x","properties":{{"d":{deep}}}}},
            {{"type":"page"}},{{"type":"page","userId":"\ud800"}},{{"type":"page","userId":"a","x":1e400}},7,{good}]}}"#
        );
        let invalid = Err(Reason::Invalid);
        let expected = vec![Ok(NOW), invalid, Err(Reason::NoId), invalid, invalid, invalid, Ok(NOW)];
        assert_eq!(batch(&calls, Stamp::Wall(NOW)), Ok(expected));
        for body in ["", "[]", "{", r#"{"batch":7}"#, r#"{"batch":[{]}"#] {
            assert!(batch(body, Stamp::Wall(NOW)).is_err(), "{body}");
        }
    }

    #[test]
    fn client_clocks_are_corrected() {
        let at = |timestamp: &str, sent_at: &str| {
            let body = format!(
                r#"{{"batch":[{{"type":"page","userId":"a","timestamp":"{timestamp}"}}],"sentAt":"{sent_at}"}}"#
            );
            batch(&body, Stamp::Wall(NOW)).unwrap()[0]
        };
        // The client's clock is an hour behind; the event was ten seconds old when it was sent.
        assert_eq!(at("2025-12-31T22:59:50Z", "2025-12-31T23:00:00Z"), Ok(NOW - 10_000));
        assert_eq!(at("2025-12-31T22:59:50Z", "2026-01-01T00:00:30Z"), Ok(NOW - 3_610_000));
        assert_eq!(at("2026-01-01T00:00:30Z", "2026-01-01T00:00:30Z"), Ok(NOW));
        assert_eq!(at("2026-01-02T00:00:01Z", "2026-01-01T00:00:00Z"), Err(Reason::BadTimestamp));
    }

    #[test]
    fn packed_bodies_are_known_by_their_bytes() {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packer, &vec![b' '; BODY_BYTES_MAX + 1]).unwrap();
        assert_eq!(unpack(&packer.finish().unwrap()), Err(too_large()));
        assert!(unpack(&[0x1f, 0x8b, 1, 2, 3]).is_err());
        assert_eq!(unpack(b"{}").unwrap().as_ref(), b"{}");
    }
}
