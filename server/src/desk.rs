//! The desk: what one process asks another, and the answers that come back.
//!
//! Records stand in the log of the process that took them, and messages leave by the leader; any process may be asked
//! about them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderName, HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dataflows::definitions::Definitions;
use dataflows::event::{Decoder, Event};
use dataflows::filter::Filter;
use dataflows::place;
use dataflows::plan::Plan;
use dataflows::profile::trial::Trial;
use dataflows::time::Millis;
use dataflows::vocabulary::Vocabulary;
use ecow::EcoString;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tower::ServiceExt;

use crate::cluster::{LEADER, Letter, Others};
use crate::door::Incoming;
use crate::hub::{ClockMode, Hub};
use crate::log::{LogReader, OwnedRecord};
use crate::problem::Problem;
use crate::record;
use crate::stream::{Entry, Next, Stream, StreamError, feed};

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// The records of places.
    Records(Vec<u64>),
    /// The events of its log that a condition selects.
    Select(String),
    /// The events of its log as definitions read them that are tried.
    Reread(Again),
    /// What a door answers: method, path with its query, body.
    Door(String, String, String),
}

/// What comes back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The records; none for what is not kept.
    Records(Vec<Option<Record>>),
    /// Those that are selected, or why there is no knowing.
    Selected(Result<Vec<Selected>, String>),
    /// Those of which the definitions name more than is kept, or why there is no knowing.
    Reread(Result<Vec<Event>, String>),
    /// Status, headers that say how it is to be read or when to come again, body.
    Door(u16, Vec<(String, String)>, String),
}

/// What is to be read again of a log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Again {
    /// The definitions that are tried, as they are written.
    pub tried: Vec<String>,
    /// Those that hold, by how many came before them.
    pub generation: u32,
    /// The last place to read.
    pub until: u64,
}

/// An event that a condition selects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Selected {
    /// Its own id.
    pub own: EcoString,
    /// Its message id.
    pub message_id: EcoString,
    /// When it happened, ms.
    pub timestamp: Millis,
    /// Its name; empty for calls that have none.
    pub event: EcoString,
    /// Its place in the log.
    pub position: u64,
    /// Whether it is sure that it is selected: what is left of a body may not say.
    pub is_sure: bool,
}

/// A record on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    position: u64,
    received_at: i64,
    kind: u8,
    #[serde(serialize_with = "in_base64", deserialize_with = "from_base64")]
    payload: Vec<u8>,
}

/// Bytes as text.
pub(crate) fn in_base64<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&BASE64_STANDARD.encode(bytes))
}

/// And back.
pub(crate) fn from_base64<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    BASE64_STANDARD.decode(String::deserialize(from)?).map_err(de::Error::custom)
}

/// One that does not answer for so long stands still.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events that are read again for what is tried, at most: they are kept beside all others as long as that takes. Builds
/// that check take fewer.
pub const REREAD_MAX: usize = if cfg!(debug_assertions) { 1_000 } else { 500_000 };
/// The largest answer of a door that is passed on, bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One process's desk.
pub struct Desk {
    /// The log; none: it is a stream, which all can read.
    log: Option<LogReader>,
    runtime: Handle,
    others: OnceLock<Others>,
    doors: OnceLock<(Router, Hub)>,
    number: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
}

impl Desk {
    /// A desk that answers from this log. It works on the runtime that it is made in.
    pub fn new(log: Option<LogReader>) -> Desk {
        Desk {
            log,
            runtime: Handle::current(),
            others: OnceLock::new(),
            doors: OnceLock::new(),
            number: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    /// From now on it reaches the others.
    pub fn reach(&self, others: Others) {
        let _ = self.others.set(others);
    }

    /// Whether a process is another of those that work together.
    pub fn has(&self, process: usize) -> bool {
        self.others.get().is_some_and(|others| process != others.process && process < others.processes)
    }

    /// Whether messages leave by this process.
    pub fn leads(&self) -> bool {
        self.others.get().is_none_or(Others::leads)
    }

    /// From now on it answers for these doors, and by the definitions that hold here.
    pub fn open(&self, doors: Router, hub: Hub) {
        let _ = self.doors.set((doors, hub));
    }

    /// Asks a process; none if it answers something else, or nothing any more.
    async fn ask(&self, to: usize, ask: Ask) -> Option<Reply> {
        let (others, is_long) = (self.others.get()?, matches!(ask, Ask::Select(_) | Ask::Reread(_)));
        let (reply, answered) = oneshot::channel();
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().expect("nobody panics while holding it").insert(number, reply);
        others.tell(to, &Letter::Ask(number, ask));
        // Reading a log takes as long as the log is long.
        let patience = if is_long { Duration::MAX } else { PATIENCE };
        let answered = tokio::time::timeout(patience, answered).await;
        self.waiting.lock().expect("nobody panics while holding it").remove(&number);
        answered.ok()?.ok()
    }

    /// Another process asks.
    pub fn asked(self: &Arc<Self>, from: usize, number: u64, ask: Ask) {
        let desk = Arc::clone(self);
        self.runtime.spawn(async move {
            let reply = match ask {
                Ask::Records(places) => {
                    let record = |place: &u64| desk.log.as_ref()?.get(*place).ok().flatten().map(Record::from);
                    Reply::Records(places.iter().map(record).collect())
                }
                Ask::Select(condition) => Reply::Selected(match desk.own() {
                    Some((log, process)) => waiting(move || selected(&log, process, &condition)).await,
                    None => Err("its log is a stream".into()),
                }),
                Ask::Reread(again) => Reply::Reread(match desk.own().zip(desk.doors.get()) {
                    Some(((log, process), (_, hub))) => {
                        let plan = Arc::clone(&hub.latest().plan);
                        waiting(move || reread(&log, process, &again, &plan)).await
                    }
                    None => Err("it is not ready".into()),
                }),
                Ask::Door(method, path, body) => desk.door(&method, &path, body).await,
            };
            if let Some(others) = desk.others.get() {
                others.tell(from, &Letter::Reply(number, reply));
            }
        });
    }

    /// Its log, and of which process it is.
    fn own(&self) -> Option<(LogReader, usize)> {
        self.log.clone().zip(Some(self.others.get().map_or(LEADER, |others| others.process)))
    }

    /// Asks all other processes for their part of something.
    async fn ask_all<T>(
        &self,
        ask: &Ask,
        part: impl Fn(Reply) -> Option<Result<Vec<T>, String>>,
    ) -> Result<Vec<T>, String> {
        let (mut all, Some(others)) = (Vec::new(), self.others.get()) else { return Ok(Vec::new()) };
        for other in (0..others.processes).filter(|other| *other != others.process) {
            let answered = self.ask(other, ask.clone()).await.and_then(&part);
            let answered = answered.ok_or_else(|| format!("process {other} does not answer"))?;
            all.extend(answered.map_err(|why| format!("process {other}: {why}"))?);
        }
        Ok(all)
    }

    /// Another process has answered.
    pub fn answered(&self, number: u64, reply: Reply) {
        let waiting = self.waiting.lock().expect("nobody panics while holding it").remove(&number);
        // Whoever asked may have gone.
        let _ = waiting.map(|waiting| waiting.send(reply));
    }

    async fn door(&self, method: &str, path: &str, body: String) -> Reply {
        let request = Request::builder().method(method).uri(path).body(Body::from(body));
        let response = match (request, self.doors.get()) {
            (Ok(request), Some((doors, _))) => doors.clone().oneshot(request).await.into_response(),
            _ => Problem::not_yet("the process that sends messages is not ready").into_response(),
        };
        let status = response.status().as_u16();
        let text =
            |name: HeaderName| Some((name.to_string(), response.headers().get(&name)?.to_str().ok()?.to_owned()));
        let headers = [header::CONTENT_TYPE, header::RETRY_AFTER].into_iter().filter_map(text).collect();
        let body = to_bytes(response.into_body(), ANSWER_BYTES_MAX).await.unwrap_or_default();
        Reply::Door(status, headers, String::from_utf8_lossy(&body).into_owned())
    }

    /// What a door of the leader answers.
    pub async fn of_leader(&self, method: &str, path: &str, body: String) -> Response {
        self.of(LEADER, method, path, body).await
    }

    /// What a door of a process answers.
    pub async fn of(&self, process: usize, method: &str, path: &str, body: String) -> Response {
        match self.ask(process, Ask::Door(method.to_owned(), path.to_owned(), body)).await {
            Some(Reply::Door(status, headers, body)) => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
                let mut response = (status, body).into_response();
                for (name, value) in headers {
                    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                        response.headers_mut().insert(name, value);
                    }
                }
                response
            }
            _ => Problem::not_yet("the process that knows the answer does not give it").into_response(),
        }
    }
}

impl From<OwnedRecord> for Record {
    fn from(OwnedRecord { position, received_at, kind, payload }: OwnedRecord) -> Self {
        Record { position, received_at, kind, payload }
    }
}

impl From<Record> for OwnedRecord {
    fn from(Record { position, received_at, kind, payload }: Record) -> Self {
        OwnedRecord { position, received_at, kind, payload }
    }
}

/// Records by their places, whatever log holds them; cheap to clone.
#[derive(Clone)]
pub enum Records {
    /// A process's own log, and those that its desk reaches.
    Logs(LogReader, usize, Option<Arc<Desk>>),
    /// A stream, and what it takes to take its messages apart: definitions, how time is told, the key of hashes.
    Stream(Stream, Arc<Plan>, ClockMode, [u8; 16]),
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Records::Logs(own, process, _) => f.debug_tuple("Logs").field(own).field(process).finish(),
            Records::Stream(stream, ..) => f.debug_tuple("Stream").field(stream).finish(),
        }
    }
}

impl Records {
    /// The records of places, in their order; none for what is not kept.
    pub async fn get(&self, places: &[u64]) -> Vec<Option<OwnedRecord>> {
        match self {
            Records::Logs(own, process, desk) => of_logs(own, *process, desk.as_ref(), places).await,
            Records::Stream(stream, plan, clock, secret) => of_stream(stream, plan, *clock, secret, places).await,
        }
    }

    /// The events that a condition selects, whether or not they were accepted. An error says why there is no knowing.
    pub async fn select(&self, condition: &str) -> Result<Vec<Selected>, String> {
        match self {
            Records::Logs(own, process, desk) => {
                let (log, process, of) = (own.clone(), *process, condition.to_owned());
                let mut all = waiting(move || selected(&log, process, &of)).await?;
                if let Some(desk) = desk {
                    let part = |reply| if let Reply::Selected(part) = reply { Some(part) } else { None };
                    all.extend(desk.ask_all(&Ask::Select(condition.to_owned()), part).await?);
                }
                Ok(all)
            }
            Records::Stream(stream, plan, clock, secret) => {
                let (mut filter, mut all) = (Filter::parse(condition)?, Vec::new());
                let decoder = Decoder::new(Arc::clone(&plan.vocabulary));
                let end = stream.last_sequence().await.map_err(|error| error.to_string())?;
                events_of(stream, end, decoder, *clock, secret, |incoming, position| {
                    let event = &incoming.prepared.event;
                    let (kind, body) = (incoming.kind, incoming.body());
                    let found = filter.select(kind, body, event.timestamp, &event.message_id, true);
                    all.extend(found.map(|found| Selected::new(found, position)));
                    true
                })
                .await?;
                Ok(all)
            }
        }
    }

    /// The events, by their places, of which definitions that are tried name more than is kept under those that hold;
    /// no more of them than [`REREAD_MAX`] and one. An error says why there is no knowing.
    pub async fn reread(&self, again: &Again, holds: &Arc<Plan>) -> Result<Vec<Event>, String> {
        let mut all = match self {
            Records::Logs(own, process, desk) => {
                let (log, process, of, plan) = (own.clone(), *process, again.clone(), Arc::clone(holds));
                let mut all = waiting(move || reread(&log, process, &of, &plan)).await?;
                if let Some(desk) = desk {
                    let part = |reply| if let Reply::Reread(part) = reply { Some(part) } else { None };
                    all.extend(desk.ask_all(&Ask::Reread(again.clone()), part).await?);
                }
                all
            }
            Records::Stream(stream, _, clock, secret) => {
                let (vocabulary, mut all) = (again.vocabulary(holds)?, Vec::new());
                let (decoder, end) = (Decoder::new(Arc::clone(&vocabulary)), place::time_of(again.until));
                events_of(stream, end, decoder, *clock, secret, |incoming, position| {
                    let event = Event { position, ..incoming.prepared.event };
                    all.extend(Some(event).filter(|of| vocabulary.wants_more_of(of.name, &holds.vocabulary)));
                    all.len() <= REREAD_MAX
                })
                .await?;
                all
            }
        };
        all.sort_unstable_by_key(|event| event.position);
        all.truncate(REREAD_MAX + 1);
        Ok(all)
    }

    /// The record of a place, if it is kept.
    pub async fn one(&self, place: u64) -> Option<OwnedRecord> {
        self.get(&[place]).await.pop().flatten()
    }
}

impl Selected {
    fn new((event, name, is_sure): (Event, EcoString, bool), position: u64) -> Selected {
        let Event { own, message_id, timestamp, .. } = event;
        Selected { own, message_id, timestamp, event: name, position, is_sure }
    }
}

impl Again {
    /// By which they are read.
    fn vocabulary(&self, holds: &Plan) -> Result<Arc<Vocabulary>, String> {
        if holds.vocabulary.generation() != self.generation {
            return Err("definitions are changing there".into());
        }
        let parsed = |text: &String| {
            Definitions::parse(text).map(|(definitions, _)| (Arc::new(definitions), Default::default()))
        };
        let definitions = self.tried.iter().map(parsed).collect::<Result<_, _>>();
        let definitions = definitions.map_err(|_| "it is of another version".to_owned())?;
        let last = Trial { definitions, ..Trial::default() }.plans(holds).pop();
        Ok(last.map_or_else(|| Arc::clone(&holds.vocabulary), |plan| plan.vocabulary))
    }
}

/// What reading a log comes to, on a thread that may wait for the disk.
async fn waiting<T: Send + 'static>(read: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?
}

/// Reads the events of a stream up to a sequence, each with its place, for as long as more are wanted.
async fn events_of(
    stream: &Stream,
    end: u64,
    mut decoder: Decoder,
    clock: ClockMode,
    secret: &[u8; 16],
    mut take: impl FnMut(Incoming, u64) -> bool,
) -> Result<(), String> {
    let mut reader = stream.reader(stream.beginning());
    while reader.position() < end {
        let Next::Entry(entry) = reader.next().await.map_err(|error: StreamError| error.to_string())? else { continue };
        for (index, incoming) in feed::events(&entry, &mut decoder, clock, secret) {
            if !take(incoming, place::place(entry.sequence, LEADER, index)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn reread(log: &LogReader, process: usize, again: &Again, holds: &Plan) -> Result<Vec<Event>, String> {
    let vocabulary = again.vocabulary(holds)?;
    let (mut decoder, mut reader, mut all) = (Decoder::new(Arc::clone(&vocabulary)), log.read(), Vec::new());
    while let Some((record, (time, index))) = reader.next().map_err(|error| error.to_string())? {
        let position = place::place(time, process, index);
        if position > again.until || all.len() > REREAD_MAX {
            break;
        }
        // By what admission would know it is not asked here.
        if record.kind == record::EVENT
            && let Ok(prepared) = record::prepare(record.payload, &mut decoder, &[0; 16])
            && vocabulary.wants_more_of(prepared.event.name, &holds.vocabulary)
        {
            all.push(Event { position, ..prepared.event });
        }
    }
    Ok(all)
}

fn selected(log: &LogReader, process: usize, condition: &str) -> Result<Vec<Selected>, String> {
    let (mut filter, mut reader, mut all) = (Filter::parse(condition)?, log.read(), Vec::new());
    while let Some((record, (time, index))) = reader.next().map_err(|error| error.to_string())? {
        if record.kind == record::EVENT
            && let Some((kind, timestamp, message_id, body)) = record::decode_event(record.payload)
        {
            let found = filter.select(kind, body, timestamp, message_id, !record::is_old(record.payload));
            all.extend(found.map(|found| Selected::new(found, place::place(time, process, index))));
        }
    }
    Ok(all)
}

async fn of_logs(own: &LogReader, here: usize, desk: Option<&Arc<Desk>>, places: &[u64]) -> Vec<Option<OwnedRecord>> {
    let mut found: Vec<Option<OwnedRecord>> = places.iter().map(|_| None).collect();
    let mut away: HashMap<usize, Vec<usize>> = HashMap::new();
    for (index, at) in places.iter().enumerate() {
        match place::process_of(*at) {
            process if process == here => found[index] = own.get(*at).ok().flatten(),
            process => away.entry(process).or_default().push(index),
        }
    }
    for (process, indices) in away {
        let Some(desk) = desk else { continue };
        let asked = Ask::Records(indices.iter().map(|index| places[*index]).collect());
        if let Some(Reply::Records(records)) = desk.ask(process, asked).await {
            for (index, record) in indices.into_iter().zip(records) {
                found[index] = record.map(OwnedRecord::from);
            }
        }
    }
    found
}

async fn of_stream(
    stream: &Stream,
    plan: &Plan,
    clock: ClockMode,
    secret: &[u8; 16],
    places: &[u64],
) -> Vec<Option<OwnedRecord>> {
    let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
    let mut found = Vec::with_capacity(places.len());
    let mut last: Option<Entry> = None;
    for at in places {
        let sequence = place::time_of(*at);
        if last.as_ref().is_none_or(|entry| entry.sequence != sequence) {
            last = stream.get(sequence).await.ok().flatten();
        }
        let record = |entry| feed::record(entry, place::index_of(*at), &mut decoder, clock, secret);
        found.push(last.as_ref().and_then(record));
    }
    found
}
