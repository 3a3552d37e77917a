//! The stream as the writer's log: what is to be kept goes out, what the stream has taken comes back in its order.
//!
//! Three tasks. One publishes, many messages at a time. One reads, takes calls apart, and hands all over in order;
//! where several processes share a stream, each takes its own part of the calls apart. One tells of what was not taken
//! under `thalweg.dead_letters`, once each.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::mpsc::{Sender, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dataflows::admission::Verdict;
use dataflows::definitions::Definitions;
use dataflows::event::{Call, Decoder, Event, Kind, Reason, Rejection};
use dataflows::intake::Prepared;
use dataflows::place;
use dataflows::plan::Plan;
use dataflows::time::Millis;
use dataflows::vocabulary::Vocabulary;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::config::{DEAD_LETTERS, LOG};
use super::{Entry, HeaderMap, Kept, Message, Next, NotKept, Returned, Stream, StreamError};
use super::{dead_letter_id, take_apart};
use crate::book;
use crate::cluster::LEADER;
use crate::desk::Records;
use crate::door::{Arrived, Incoming, Stamp};
use crate::hub::{ClockMode, Work};
use crate::log::OwnedRecord;
use crate::record::{self, Clock, Correction, DeadLetter, Defined, Dispatch};

/// Messages that are taken apart and wait for the writer, at most.
const WAITING_MAX: usize = 4_096;
/// Messages that are handed over together, at most.
const TOGETHER_MAX: usize = 256;
/// Messages that follow each other and are taken apart by one process.
const SHARE: u64 = 64;
/// How often the last record that was read is written down.
const KEPT_EVERY: Duration = Duration::from_secs(1);
/// A broker that has no room for a dead letter is asked again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// A message that was read.
pub struct Read {
    /// Its sequence.
    pub sequence: u64,
    /// When the stream took it, ms.
    pub received_at: Millis,
    /// Its `Nats-Msg-Id`.
    pub id: Option<String>,
    /// What it says.
    pub what: What,
    _room: OwnedSemaphorePermit,
}

/// What a message says.
pub enum What {
    /// Calls.
    Calls(Vec<Arrived>),
    /// Calls that another process takes apart, or nothing that is known.
    Nothing,
    /// A call that a door has refused, and why.
    Refused(Reason),
    /// Something is corrected.
    Corrected(Vec<Correction>),
    /// The clock goes on.
    Clock(Millis),
    /// Definitions hold from here on.
    Defined(Defined),
    /// What became of intents.
    Dispatched(Vec<Dispatch>),
}

/// A message to be kept, and whom to tell that it is: its sequence, none if it is not.
type Publication = (Message, Box<dyn FnOnce(Option<u64>) + Send>);

/// What a feed needs.
pub struct Feeding {
    /// The stream.
    pub stream: Stream,
    /// Where the last record that was read is written down.
    pub kept: Kept,
    /// What of calls is kept.
    pub plan: Arc<Plan>,
    /// The key of hashes.
    pub secret: [u8; 16],
    /// How the clock moves.
    pub clock: ClockMode,
    /// This process's number, and how many share the stream.
    pub share: (usize, usize),
    /// The writer's queue.
    pub to: Sender<Work>,
}

/// The way out: cheap to clone.
#[derive(Clone)]
pub struct Feed {
    stream: Stream,
    runtime: Handle,
    publications: mpsc::UnboundedSender<Publication>,
    letters: mpsc::UnboundedSender<(u64, Verdict)>,
    caught_up: watch::Sender<bool>,
    /// By which calls are read from now on.
    vocabulary: watch::Sender<Arc<Vocabulary>>,
    /// What it takes to take messages apart.
    secret: [u8; 16],
    clock: ClockMode,
    share: (usize, usize),
}

/// Ids of dead letters that stand in the stream.
type Told = Mutex<HashSet<String>>;

impl Feed {
    /// Starts the tasks on the runtime that it is called in.
    pub fn start(feeding: Feeding) -> Feed {
        let (publications, to_publish) = mpsc::unbounded_channel();
        let (letters, to_return) = mpsc::unbounded_channel();
        let told = Arc::new(Told::default());
        let stream = feeding.stream.clone();
        let records = Records::Stream(stream.clone(), Arc::clone(&feeding.plan), feeding.clock, feeding.secret);
        let (caught_up, is_known) = watch::channel(false);
        let runtime = Handle::current();
        let (secret, clock, share) = (feeding.secret, feeding.clock, feeding.share);
        let (vocabulary, latest) = watch::channel(Arc::clone(&feeding.plan.vocabulary));
        runtime.spawn(publish(stream.clone(), to_publish));
        runtime.spawn(give_back(stream.clone(), records, to_return, is_known, Arc::clone(&told)));
        runtime.spawn(read(feeding, told, latest));
        Feed { stream, runtime, publications, letters, caught_up, vocabulary, secret, clock, share }
    }

    /// Has a message kept; tells its sequence, or nothing if it is not.
    pub fn publish(&self, message: Message, kept: impl FnOnce(Option<u64>) + Send + 'static) {
        // The task is gone only when the process ends.
        let _ = self.publications.send((message, Box::new(kept)));
    }

    /// A record was not taken as it is: that is told once all that was told before is known.
    pub fn give_back(&self, place: u64, verdict: Verdict) {
        let _ = self.letters.send((place, verdict));
    }

    /// A door has refused a call: that is kept as soon as there is room.
    pub fn refuse(&self, id: String, letter: DeadLetter, received_at: Millis) {
        let stream = self.stream.clone();
        let returned = Returned { letter, position: None, received_at };
        self.runtime.spawn(async move { keep(&stream, &id, &returned).await });
    }

    /// Calls that have yet to be read are read by this vocabulary.
    pub fn read_by(&self, vocabulary: Arc<Vocabulary>) {
        self.vocabulary.send_replace(vocabulary);
    }

    /// Reads this process's share of the stream again, up to a position: the events, by another decoder.
    pub fn read_again(&self, mut decoder: Decoder, until: u64, to: SyncSender<Vec<Event>>) {
        let Feed { stream, secret, clock, share, .. } = self.clone();
        let mut reader = stream.reader(stream.beginning());
        let told = Told::default();
        self.runtime.spawn(async move {
            // A stream that cannot be read any more ends the process where it is followed.
            while let Ok(next) = reader.next().await {
                let Next::Entry(entry) = next else { continue };
                if place::place(entry.sequence, 0, 0) >= until {
                    return;
                }
                let What::Calls(calls) = what(&entry, &mut decoder, &secret, clock, share, &told) else { continue };
                let mut events = Vec::with_capacity(calls.len());
                for (index, call) in calls.into_iter().enumerate() {
                    if let Arrived::Good(mut incoming) = call {
                        incoming.prepared.place(place::place(entry.sequence, 0, index));
                        events.push(incoming.prepared.event);
                    }
                }
                let to = to.clone();
                if !tokio::task::spawn_blocking(move || to.send(events).is_ok()).await.unwrap_or(false) {
                    return;
                }
            }
        });
    }

    /// All that stood in the stream at the start is read.
    pub fn caught_up(&self) {
        self.caught_up.send_replace(true);
    }
}

/// What an HTTP door has settled of a call: its kind, its time if it has one, its message id.
type Settled<'a> = (u8, Option<Millis>, Cow<'a, str>);

/// Where calls go that came in over HTTP. Whoever publishes there has done what a door does.
const DOOR: &str = "thalweg.events.http";

/// Calls that came in over HTTP, as one message.
pub fn message(id: String, calls: &[Incoming]) -> Message {
    let mut body = String::from(r#"{"batch":["#);
    for (place, call) in calls.iter().enumerate() {
        if place > 0 {
            body.push(',');
        }
        body.push_str(call.body());
    }
    let settled = calls.iter().map(|call| {
        let event = &call.prepared.event;
        let timestamp = Some(event.timestamp).filter(|_| !call.undated);
        (call.kind as u8, timestamp, Cow::Borrowed(event.message_id.as_str()))
    });
    let settled: Vec<Settled<'_>> = settled.collect();
    body.push_str(r#"],"door":"#);
    body.push_str(&serde_json::to_string(&settled).expect("lists have no keys"));
    body.push('}');
    Message { subject: DOOR.to_owned(), id, headers: HeaderMap::new(), body: body.into() }
}

/// One of the engine's own records, as a message.
pub fn own(kind: u8, id: String, record: &impl serde::Serialize) -> Message {
    let subject = match kind {
        record::CLOCK => format!("{LOG}.clock"),
        record::CORRECTION => format!("{LOG}.corrections"),
        record::DEFINITIONS => format!("{LOG}.definitions"),
        _ => format!("{LOG}.dispatch"),
    };
    let body = serde_json::to_vec(record).expect("records have string keys").into();
    Message { subject, id, headers: HeaderMap::new(), body }
}

async fn publish(stream: Stream, mut publications: mpsc::UnboundedReceiver<Publication>) {
    while let Some(first) = publications.recv().await {
        let more = std::iter::from_fn(|| publications.try_recv().ok()).take(TOGETHER_MAX);
        let (messages, tell): (Vec<_>, Vec<_>) = std::iter::once(first).chain(more).unzip();
        for (outcome, kept) in stream.publish_all(&messages).await.into_iter().zip(tell) {
            if let Err(error) = &outcome {
                tracing::warn!(%error, "the broker has not kept a message");
            }
            kept(outcome.ok());
        }
    }
}

/// Reads the stream from its beginning, for as long as the process lives.
async fn read(feeding: Feeding, told: Arc<Told>, mut latest: watch::Receiver<Arc<Vocabulary>>) {
    let Feeding { stream, mut kept, secret, clock, share, to, .. } = feeding;
    let mut decoder = Decoder::new(latest.borrow_and_update().clone());
    let mut reader = stream.reader(stream.beginning());
    let room = Arc::new(Semaphore::new(WAITING_MAX));
    let mut written = Instant::now();
    let failed = |error: StreamError| {
        let _ = to.send(Work::Failed(error.to_string()));
    };
    loop {
        let mut reads = Vec::new();
        let first = reader.next().await;
        if latest.has_changed().unwrap_or(false) {
            decoder = Decoder::new(latest.borrow_and_update().clone());
        }
        let mut next = Some(first);
        while let Some(outcome) = next.take() {
            let Ok(room) = Arc::clone(&room).acquire_owned().await else { return };
            let (sequence, received_at, id, what) = match outcome {
                Ok(Next::Entry(entry)) => {
                    let what = what(&entry, &mut decoder, &secret, clock, share, &told);
                    if let What::Defined(defined) = &what
                        && let Ok((definitions, _)) = Definitions::parse(&defined.text)
                    {
                        // What is invalid is decided by the schemas that stood in the stream before it.
                        let mut vocabulary = Vocabulary::clone(decoder.vocabulary());
                        vocabulary.hold(definitions.schemas);
                        decoder = Decoder::new(Arc::new(vocabulary));
                    }
                    (entry.sequence, entry.received_at(), entry.id().map(str::to_owned), what)
                }
                Ok(Next::Lost(lost)) => {
                    tracing::error!(first = lost.start(), last = lost.end(), "records of the stream are lost");
                    (*lost.end(), 0, None, What::Nothing)
                }
                Err(error) => return failed(error),
            };
            reads.push(Read { sequence, received_at, id, what, _room: room });
            if reads.len() < TOGETHER_MAX {
                next = tokio::select! {
                    biased;
                    more = reader.next() => Some(more),
                    () = std::future::ready(()) => None,
                };
            }
        }
        if written.elapsed() > KEPT_EVERY {
            if let Err(error) = kept.keep(reader.seen()) {
                return failed(error);
            }
            written = Instant::now();
        }
        if to.send(Work::Read(reads)).is_err() {
            return;
        }
    }
}

/// The definitions that the stream holds last.
pub async fn last_defined(stream: &Stream) -> Result<Option<Defined>, StreamError> {
    let Some(entry) = stream.last_of(&format!("{LOG}.definitions")).await? else { return Ok(None) };
    let mut defined: Option<Defined> = serde_json::from_slice(&entry.body).ok();
    let position = place::place(entry.sequence, 0, 0);
    defined.iter_mut().for_each(|defined| book::stamp(&mut defined.versions, position, entry.received_at()));
    Ok(defined)
}

/// What a message says to this process.
fn what(
    entry: &Entry,
    decoder: &mut Decoder,
    secret: &[u8; 16],
    clock: ClockMode,
    (process, processes): (usize, usize),
    told: &Told,
) -> What {
    let subject = entry.subject.as_str();
    let is_ours = (entry.sequence / SHARE) as usize % processes == process;
    let own = |kind: &str| subject.strip_prefix(LOG).and_then(|rest| rest.strip_prefix('.')) == Some(kind);
    if subject == DEAD_LETTERS {
        let id = entry.id().filter(|id| id.starts_with("dead:"));
        let fresh = id.is_none();
        let id = id.map_or_else(|| dead_letter_id(entry.sequence, 0), str::to_owned);
        told.lock().expect("nobody panics while holding it").insert(id);
        let reason = || Returned::decode(&entry.body).map_or(Reason::Invalid, |returned| returned.letter.reason);
        return if fresh && is_ours { What::Refused(reason()) } else { What::Nothing };
    }
    if own("clock") {
        return serde_json::from_slice(&entry.body).map_or(What::Nothing, |Clock { to }| What::Clock(to));
    }
    if own("corrections") {
        // Once is enough.
        let corrections = serde_json::from_slice(&entry.body).ok().filter(|_| process == LEADER);
        return corrections.map_or(What::Nothing, What::Corrected);
    }
    if own("definitions") {
        return serde_json::from_slice(&entry.body).map_or(What::Nothing, What::Defined);
    }
    if own("dispatch") {
        return serde_json::from_slice(&entry.body).map_or(What::Nothing, What::Dispatched);
    }
    if !is_ours {
        return What::Nothing;
    }
    What::Calls(calls(entry, decoder, secret, stamp(entry, clock)))
}

/// The calls of a message.
pub fn calls(entry: &Entry, decoder: &mut Decoder, secret: &[u8; 16], stamp: Stamp) -> Vec<Arrived> {
    #[derive(serde::Deserialize)]
    struct Settles<'a> {
        #[serde(borrow)]
        batch: Vec<&'a RawValue>,
        #[serde(borrow)]
        door: Vec<Settled<'a>>,
    }
    if entry.subject.as_str() != DOOR {
        return take_apart(entry, decoder, secret, stamp);
    }
    let Ok(Settles { batch, door }) = serde_json::from_slice(&entry.body) else {
        return take_apart(entry, decoder, secret, stamp);
    };
    let taken = batch.into_iter().zip(door).map(|(call, (kind, timestamp, message_id))| {
        let body = call.get();
        let mut take = || {
            let kind = Kind::ALL.get(usize::from(kind)).copied();
            let mut call = Call::parse(body, kind)?;
            let kind = call.kind;
            let (undated, timestamp) = (timestamp.is_none(), timestamp.unwrap_or(entry.received_at()));
            let prepared = Prepared::new(&mut call, timestamp, (&*message_id).into(), decoder, secret)?;
            let generation = decoder.vocabulary().generation();
            let payload = record::encode_event(kind, timestamp, &message_id, body);
            Ok(Incoming { kind, prepared, undated, generation, payload })
        };
        take().map_or_else(
            |rejection: Rejection| Arrived::Bad { rejection, message_id: None, body: body.as_bytes().into() },
            |incoming| Arrived::Good(Box::new(incoming)),
        )
    });
    taken.collect()
}

/// The events of a message, each with its place in it, if it is one of calls.
pub fn events(entry: &Entry, decoder: &mut Decoder, clock: ClockMode, secret: &[u8; 16]) -> Vec<(usize, Incoming)> {
    let subject = entry.subject.as_str();
    if subject == DEAD_LETTERS || subject.starts_with(LOG) {
        return Vec::new();
    }
    let calls = calls(entry, decoder, secret, stamp(entry, clock)).into_iter().enumerate();
    let good = calls.filter_map(|(index, call)| match call {
        Arrived::Good(incoming) => Some((index, *incoming)),
        Arrived::Bad { .. } => None,
    });
    good.collect()
}

/// What stands at a place of a message, as a log of files would hold it.
pub fn record(
    entry: &Entry,
    index: usize,
    decoder: &mut Decoder,
    clock: ClockMode,
    secret: &[u8; 16],
) -> Option<OwnedRecord> {
    let (position, received_at) = (entry.sequence, entry.received_at());
    let own = |kind, payload| OwnedRecord { position, received_at, kind, payload };
    let letter = |letter: &DeadLetter| own(record::DEAD_LETTER, serde_json::to_vec(letter).unwrap_or_default());
    if entry.subject.as_str() == DEAD_LETTERS {
        return Some(letter(&Returned::decode(&entry.body)?.letter));
    }
    match calls(entry, decoder, secret, stamp(entry, clock)).into_iter().nth(index)? {
        Arrived::Good(incoming) => Some(own(record::EVENT, incoming.payload)),
        Arrived::Bad { rejection, body, .. } => Some(letter(&DeadLetter::new(&rejection, &body))),
    }
}

fn stamp(entry: &Entry, clock: ClockMode) -> Stamp {
    match clock {
        ClockMode::Wall => Stamp::Broker(entry.received_at()),
        // The writer dates what has no time of its own; any time will do until then.
        ClockMode::Events => Stamp::Events(entry.received_at()),
    }
}

/// Tells of what was not taken, once all that was told before is known.
async fn give_back(
    stream: Stream,
    records: Records,
    mut letters: mpsc::UnboundedReceiver<(u64, Verdict)>,
    mut is_known: watch::Receiver<bool>,
    told: Arc<Told>,
) {
    // The sender lives as long as the process.
    let _ = is_known.wait_for(|known| *known).await;
    while let Some((at, verdict)) = letters.recv().await {
        let id = dead_letter_id(place::time_of(at), place::index_of(at));
        if told.lock().expect("nobody panics while holding it").contains(&id) {
            continue;
        }
        let Some(record) = records.one(at).await else { continue };
        let Some(letter) = DeadLetter::of(&record, verdict) else { continue };
        let returned = Returned { letter, position: Some(at.to_string()), received_at: record.received_at };
        keep(&stream, &id, &returned).await;
    }
}

/// Publishes a dead letter, as soon as there is room for it.
async fn keep(stream: &Stream, id: &str, letter: &Returned) {
    while let Err(error) = stream.publish_dead_letter(id, letter).await {
        tracing::warn!(%error, id, "the broker has not kept a dead letter");
        if matches!(error, NotKept::TooLarge(_) | NotKept::Refused(_)) {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
