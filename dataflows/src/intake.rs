//! Intake: from lines, as they stand in a file or in the log, to steps.
//!
//! [`prepare`] does what needs no order and can be done on many threads; [`Sequencer`] does what is decided by place
//! in the log: acceptance, the clock, the step. Live, replay and restart all go through here.

use std::sync::Arc;

use ecow::EcoString;
use sha2::{Digest, Sha256};

use crate::admission::{Admission, Verdict};
use crate::event::{Call, Decoder, Event, Link, Reason, Rejection};
use crate::identity::Change;
use crate::json::{Next, Reader};
use crate::plan::Plan;
use crate::protocol::{Question, Record, Step};
use crate::time::Millis;

/// A call that could be read: all of it that does not depend on its place in the log.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The event.
    pub event: Event,
    /// The link it states.
    pub link: Option<Box<Link>>,
    /// Its key for deduplication.
    pub key: u128,
    /// The fingerprint of its content.
    pub content: u64,
}

/// A line of a replay file.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // nearly all are events, which a box would only scatter
pub enum Line {
    /// A call.
    Event(Prepared),
    /// The clock goes on to this instant.
    Clock(Millis),
    /// An event is taken back: own id, message id.
    Retract(EcoString, EcoString),
    /// The edge between two ids is struck.
    Unlink(EcoString, EcoString),
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
        let key = Admission::key(secret, &event.own, &event.message_id);
        Ok(Prepared { event, link, key, content })
    }
}

impl Prepared {
    /// Gives a call that has no time of its own the time at which it came.
    pub fn date(&mut self, timestamp: Millis) {
        self.event.timestamp = timestamp;
        if let Some(link) = &mut self.link {
            link.timestamp = timestamp;
        }
    }
}

/// Reads one line of a replay file.
pub fn prepare(line: &str, decoder: &mut Decoder, secret: &[u8; 16]) -> Result<Line, Rejection> {
    let mut call = match Call::parse(line, None) {
        Ok(call) => call,
        // What is no call may be a control line.
        Err(rejection) => return control(line)?.ok_or(rejection),
    };
    decoder.check(&call)?;
    let timestamp = call.timestamp.ok_or_else(|| Rejection::new(Reason::BadTimestamp, "`timestamp` is missing"))?;
    let message_id = call.message_id.clone().unwrap_or_else(|| line_id(line));
    Ok(Line::Event(Prepared::new(&mut call, timestamp, message_id, decoder, secret)?))
}

/// The message id of a line that has none.
fn line_id(line: &str) -> EcoString {
    let digest = Sha256::digest(line.as_bytes());
    digest.iter().take(16).fold(String::from("line:"), |id, byte| id + &format!("{byte:02x}")).into()
}

/// A line that is no call but moves the clock or corrects.
fn control(line: &str) -> Result<Option<Line>, Rejection> {
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
            _ => {
                reader.skip()?;
            }
        }
        Ok(())
    })?;
    let wrong = |what: &str| Rejection::new(Reason::Invalid, what.to_owned());
    Ok(match (kind.as_deref(), texts) {
        (Some("clock"), _) => Some(Line::Clock(to.ok_or_else(|| wrong("a clock line needs `to`, an integer of ms"))?)),
        (Some("retract"), [Some(id), Some(message_id), ..]) => Some(Line::Retract(id, message_id)),
        (Some("retract"), _) => return Err(wrong("a retract line needs `id` and `messageId`")),
        (Some("unlink"), [_, _, Some(a), Some(b)]) => Some(Line::Unlink(a, b)),
        (Some("unlink"), _) => return Err(wrong("an unlink line needs `a` and `b`")),
        (Some("erase"), _) => return Err(wrong("`erase` is not in this version")),
        _ => None,
    })
}

/// What becomes of lines in their order: decides on each, moves the clock, gathers steps.
#[derive(Debug)]
pub struct Sequencer {
    admission: Admission,
    lateness: Option<Millis>,
    clock: Millis,
    step: Step,
    records: usize,
}

/// Records in a chunk.
const CHUNK: usize = 128;

impl Sequencer {
    /// Nothing came yet. The secret keys the hashes of ids.
    pub fn new(secret: [u8; 16], lateness: Option<Millis>) -> Self {
        Sequencer { admission: Admission::new(secret), lateness, clock: Millis::MIN, step: empty(1), records: 0 }
    }

    /// The clock, ms; before the first record it is 0.
    pub fn clock(&self) -> Millis {
        self.clock.max(0)
    }

    /// How many records, links and questions the step under way holds.
    pub fn len(&self) -> usize {
        self.records + self.step.links.len() + self.step.questions.len()
    }

    /// Whether the step under way holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records older than this are too late from now on; none: any may come.
    pub fn set_lateness(&mut self, lateness: Option<Millis>) {
        self.lateness = lateness;
    }

    /// The clock goes on; it never goes back.
    pub fn tick(&mut self, to: Millis) {
        self.clock = self.clock.max(to);
    }

    /// The next record, under a clock that stands at `received_at` when the log stamps it.
    pub fn admit(&mut self, position: u64, received_at: Millis, prepared: Prepared) -> Verdict {
        let Prepared { mut event, link, key, content } = prepared;
        let verdict = self.admission.decide(key, content, event.timestamp, received_at, self.lateness);
        if verdict == Verdict::Accepted {
            self.tick(received_at);
            event.position = position;
            if let Some(mut link) = link {
                link.position = position;
                self.step.links.push((position, Change::Link(*link)));
            }
            self.record(Record::Event(event));
        }
        verdict
    }

    /// The next record where events move the clock: it is stamped with the running maximum, its own time included.
    pub fn admit_by_its_time(&mut self, position: u64, prepared: Prepared) -> Verdict {
        let received_at = self.clock.max(prepared.event.timestamp);
        self.admit(position, received_at, prepared)
    }

    /// Chunks are of a size that allocators hand out again, and not so few that workers starve.
    fn record(&mut self, record: Record) {
        self.records += 1;
        match self.step.records.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(record),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(record);
                self.step.records.push(chunk);
            }
        }
    }

    /// An event is taken back.
    pub fn retract(&mut self, position: u64, own: EcoString, message_id: EcoString) {
        self.step.links.push((position, Change::Retract(own.clone(), message_id.clone())));
        self.record(Record::Retract(position, own, message_id));
    }

    /// An edge between two ids is struck.
    pub fn unlink(&mut self, position: u64, a: EcoString, b: EcoString) {
        self.step.links.push((position, Change::Unlink(a, b)));
    }

    /// Other definitions hold from the step under way on.
    pub fn define(&mut self, position: u64, plan: Arc<Plan>, lateness: Option<Millis>) {
        self.lateness = lateness;
        self.step.links.push((position, Change::Limit(plan.definitions.identity.max_ids as usize)));
        self.step.plan = Some(plan);
    }

    /// Something is asked as of the step under way.
    pub fn ask(&mut self, number: u64, question: Question) {
        self.step.questions.push((number, question));
    }

    /// Closes the step under way.
    pub fn close(&mut self) -> Step {
        let next = empty(self.step.number + 1);
        self.records = 0;
        Step { clock: self.clock(), ..std::mem::replace(&mut self.step, next) }
    }
}

fn empty(number: u64) -> Step {
    Step { number, clock: 0, records: Vec::new(), links: Vec::new(), plan: None, questions: Vec::new() }
}
