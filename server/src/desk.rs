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
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dataflows::event::{Decoder, Event};
use dataflows::filter::Filter;
use dataflows::place;
use dataflows::plan::Plan;
use dataflows::time::Millis;
use ecow::EcoString;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tower::ServiceExt;

use crate::cluster::{LEADER, Letter, Others};
use crate::hub::ClockMode;
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
    /// Status, content type, body.
    Door(u16, String, String),
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

fn in_base64<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&BASE64_STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    BASE64_STANDARD.decode(String::deserialize(from)?).map_err(de::Error::custom)
}

/// One that does not answer for so long stands still.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer of a door that is passed on, bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One process's desk.
pub struct Desk {
    /// The log; none: it is a stream, which all can read.
    log: Option<LogReader>,
    runtime: Handle,
    others: OnceLock<Others>,
    doors: OnceLock<Router>,
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

    /// From now on it answers for these doors.
    pub fn open(&self, doors: Router) {
        let _ = self.doors.set(doors);
    }

    /// Asks a process; none if it answers something else, or nothing any more.
    async fn ask(&self, to: usize, ask: Ask) -> Option<Reply> {
        let (others, is_long) = (self.others.get()?, matches!(ask, Ask::Select(_)));
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
                Ask::Select(condition) => {
                    let process = desk.others.get().map_or(LEADER, |others| others.process);
                    Reply::Selected(match desk.log.clone() {
                        Some(log) => of_log(log, process, condition).await,
                        None => Err("its log is a stream".into()),
                    })
                }
                Ask::Door(method, path, body) => desk.door(&method, &path, body).await,
            };
            if let Some(others) = desk.others.get() {
                others.tell(from, &Letter::Reply(number, reply));
            }
        });
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
            (Ok(request), Some(doors)) => doors.clone().oneshot(request).await.into_response(),
            _ => Problem::not_yet("the process that sends messages is not ready").into_response(),
        };
        let status = response.status().as_u16();
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or("application/json").to_owned();
        let body = to_bytes(response.into_body(), ANSWER_BYTES_MAX).await.unwrap_or_default();
        Reply::Door(status, kind, String::from_utf8_lossy(&body).into_owned())
    }

    /// What a door of the leader answers.
    pub async fn of_leader(&self, method: &str, path: &str, body: String) -> Response {
        self.of(LEADER, method, path, body).await
    }

    /// What a door of a process answers.
    pub async fn of(&self, process: usize, method: &str, path: &str, body: String) -> Response {
        match self.ask(process, Ask::Door(method.to_owned(), path.to_owned(), body)).await {
            Some(Reply::Door(status, kind, body)) => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
                (status, [(header::CONTENT_TYPE, kind)], body).into_response()
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
                let mut all = of_log(own.clone(), *process, condition.to_owned()).await?;
                let Some((desk, others)) = desk.as_ref().and_then(|desk| Some((desk, desk.others.get()?))) else {
                    return Ok(all);
                };
                for other in (0..others.processes).filter(|other| other != process) {
                    match desk.ask(other, Ask::Select(condition.to_owned())).await {
                        Some(Reply::Selected(Ok(selected))) => all.extend(selected),
                        Some(Reply::Selected(Err(why))) => return Err(format!("process {other}: {why}")),
                        _ => return Err(format!("process {other} does not answer")),
                    }
                }
                Ok(all)
            }
            Records::Stream(stream, plan, clock, secret) => {
                let mut filter = Filter::parse(condition)?;
                let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
                let told = |error: StreamError| error.to_string();
                let (end, mut reader) =
                    (stream.last_sequence().await.map_err(told)?, stream.reader(stream.beginning()));
                let mut all = Vec::new();
                while reader.position() < end {
                    let Next::Entry(entry) = reader.next().await.map_err(told)? else { continue };
                    for (index, incoming) in feed::events(&entry, &mut decoder, *clock, secret) {
                        let event = &incoming.prepared.event;
                        let position = place::place(entry.sequence, LEADER, index);
                        let (kind, body) = (incoming.kind, &incoming.body);
                        let found = filter.select(kind, body, event.timestamp, &event.message_id, true);
                        all.extend(found.map(|found| Selected::new(found, position)));
                    }
                }
                Ok(all)
            }
        }
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

/// The events of a log that a condition selects, read on a thread that may wait for the disk.
async fn of_log(log: LogReader, process: usize, condition: String) -> Result<Vec<Selected>, String> {
    let select = move || selected(&log, process, &condition);
    tokio::task::spawn_blocking(select).await.map_err(|error| error.to_string())?
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
