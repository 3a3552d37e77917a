//! The stream: NATS JetStream as the log, in place of the log's own files.
//!
//! One stream, `THALWEG`, holds all that decides an answer: events under `thalweg.events.>`, the engine's own records
//! under `thalweg.log.*`, calls that were not taken under `thalweg.dead_letters`. So one sequence orders them, and a
//! process that reads it from the first record knows what every other knows. Dead letters stand in it too: from them a
//! reader sees what was already told of bad calls, and tells nothing twice.
//!
//! What the broker says is not believed where it can be seen: its version, the configuration it echoes, and at each new
//! start and each new connection the last record that was read ([`Fingerprint`]).

pub mod config;
mod erasing;
pub mod feed;
mod fingerprint;
mod message;
mod reader;
mod rest;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dataflows::time::Millis;
use nats::jetstream::context::{ContextBuilder, PublishAckFuture, PublishError, PublishErrorKind};
use nats::jetstream::message::{PublishMessage, StreamMessage};
use nats::jetstream::response::Response;
use nats::jetstream::stream::{DirectGetErrorKind, RawMessageErrorKind};
use nats::jetstream::{self, ErrorCode};
use nats::{ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::timeout_at;

use crate::door::BODY_BYTES_MAX;
use config::{DEAD_LETTERS, STREAM, TRIGGER_STREAM, TRIGGERS, token};
use rest::Rests;

pub use fingerprint::{Fingerprint, Kept};
pub use message::{Came, Returned, Standing, dead_letter_id, take_apart};
pub use nats::HeaderMap;
pub use reader::{Next, Reader};
pub use rest::{Rest, is_sealed, seal};

/// Servers before this one drop parts of what is asked of them without a word, and cannot sync before they acknowledge.
const VERSION_MIN: (u64, u64) = (2, 10);
/// A message of ours is at most a body, with what the door has settled of each call in it.
const PAYLOAD_MIN: usize = 1_000_000;
/// What a message's headers take at most.
const HEADERS_MAX: usize = 65_536;
/// So long a start waits for a broker that is not there yet.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// So long an answer of the broker may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// So long an acknowledgement may take, on however many connections: well within the time for which the broker
/// remembers an id. A broker that syncs each message may have seconds of them before it; to send again would only add
/// to them.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(20);
/// Messages on their way that nobody has acknowledged yet: further ones are sent when there is room again. Servers have
/// room for 10,000.
const IN_FLIGHT_MAX: usize = 8_192;

/// How to reach NATS, and how its stream is to be made.
#[derive(Clone, Default, clap::Args)]
pub struct Options {
    /// Makes NATS JetStream the log: its servers, with commas, such as nats://127.0.0.1:4222 or tls://user:word@host.
    #[arg(long, env = "THALWEG_NATS", value_name = "URL", hide_env_values = true)]
    pub nats: Option<String>,
    /// A credentials file for NATS.
    #[arg(long, env = "THALWEG_NATS_CREDS", value_name = "FILE", requires = "nats")]
    pub nats_creds: Option<PathBuf>,
    /// Certificates that NATS servers are known by, if the system does not know them (PEM); demands TLS.
    #[arg(long, env = "THALWEG_NATS_TLS_CA", value_name = "FILE", requires = "nats")]
    pub nats_tls_ca: Option<PathBuf>,
    /// The certificate to show to NATS (PEM).
    #[arg(long, env = "THALWEG_NATS_TLS_CERT", value_name = "FILE", requires_all = ["nats", "nats_tls_key"])]
    pub nats_tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, env = "THALWEG_NATS_TLS_KEY", value_name = "FILE", requires_all = ["nats", "nats_tls_cert"])]
    pub nats_tls_key: Option<PathBuf>,
    /// On how many servers of a cluster each record is kept; 1 for a new stream, else what it has.
    #[arg(long, env = "THALWEG_NATS_REPLICAS", value_name = "N", requires = "nats",
        value_parser = clap::value_parser!(u8).range(1..=5))]
    pub nats_replicas: Option<u8>,
}

/// Without the URL, which may hold a password.
impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("nats_replicas", &self.nats_replicas).finish_non_exhaustive()
    }
}

/// What went wrong with the stream: a sentence for whoever runs it.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// What was typed cannot be used.
    #[error("cannot use {what}: {error}")]
    Options {
        /// What of it.
        what: &'static str,
        /// Why.
        error: String,
    },
    /// No server there, or it does not let us in.
    #[error("cannot connect to NATS at {servers}: {error}")]
    Connect {
        /// Where.
        servers: String,
        /// Why, and what to do.
        error: String,
    },
    /// A server too old.
    #[error(
        "the NATS server at {servers} is version {found}, and Thalweg needs {}.{} or newer: older ones drop parts of \
         the stream's configuration without a word. Install a newer nats-server, or start without --nats to keep the \
         log in --data",
        VERSION_MIN.0, VERSION_MIN.1
    )]
    Version {
        /// Where.
        servers: String,
        /// Its version.
        found: String,
    },
    /// It cannot do what the log needs.
    #[error("the NATS server cannot keep the log: {0}")]
    Unfit(String),
    /// The stream is not as it must be.
    #[error(
        "the stream {name} is not as the log needs it: {}. Change it with `nats stream edit {name}`, or move it away \
         and let Thalweg make its own", differences.join("; ")
    )]
    Differs {
        /// Its name.
        name: &'static str,
        /// What of it.
        differences: Vec<String>,
    },
    /// Somebody deleted it.
    #[error(
        "the stream {STREAM} is gone: somebody deleted it, or the server lost it. Restore it from a copy; or delete \
         stream.json in the data directory and start again: then a new one is made, and nothing is known of the old"
    )]
    Gone,
    /// It is not the stream that was read before.
    #[error(
        "the stream {STREAM} is not the one that was read up to sequence {sequence}: {what}. Restore it from a copy; \
         or, to go on with what it holds now, delete stream.json in the data directory and start again: answers will \
         then be those of what is left"
    )]
    Changed {
        /// Up to where it was read.
        sequence: u64,
        /// What shows it.
        what: String,
    },
    /// The fingerprint's file cannot be used.
    #[error("cannot keep or read {path}, which knows the stream again: {error}")]
    Kept {
        /// The file.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// The broker did not answer, or not as it should: it may do so later.
    #[error("cannot {what}: {error}")]
    Unavailable {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: String,
    },
}

/// Why a message is not known to be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    /// There is no room for it, or the broker has too much to do. It is not in the stream.
    #[error("the stream takes no more: {0}")]
    Busy(String),
    /// It is larger than the broker takes. It is not in the stream.
    #[error("the message is too large for the NATS server: {0}; raise its max_payload or the stream's max_msg_size")]
    TooLarge(String),
    /// The broker will not have it, now or later. It is not in the stream.
    #[error("the NATS server refuses the message: {0}")]
    Refused(String),
    /// Nobody answered: it may be in the stream or not, and may be published again under the same id.
    #[error("the NATS server has not acknowledged the message, which it may have kept or not: {0}")]
    Unknown(String),
}

/// A message on its way to the stream.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where to.
    pub subject: String,
    /// Its `Nats-Msg-Id`: the broker keeps one message of an id within two minutes.
    pub id: String,
    /// Further headers.
    pub headers: HeaderMap,
    /// What it says.
    pub body: Bytes,
}

/// A record as it stands in the stream.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its place in the stream.
    pub sequence: u64,
    /// When the stream took it, ns since the Unix epoch, by the broker's clock.
    pub nanos: i64,
    /// Where it came in.
    pub subject: nats::Subject,
    /// Its headers.
    pub headers: HeaderMap,
    /// What it says.
    pub body: Bytes,
}

impl Entry {
    /// Its `Nats-Msg-Id`, if it has one.
    pub fn id(&self) -> Option<&str> {
        self.headers.get(nats::header::NATS_MESSAGE_ID).map(|id| id.as_str()).filter(|id| !id.is_empty())
    }

    /// When the stream took it, ms.
    pub fn received_at(&self) -> Millis {
        self.nanos.div_euclid(1_000_000)
    }

    /// A delivered message as a record, its number at its consumer, and how many are yet to come.
    fn read(message: jetstream::Message) -> Option<(Entry, u64, u64)> {
        let info = message.info().ok()?;
        let (sequence, number, pending) = (info.stream_sequence, info.consumer_sequence, info.pending);
        let nanos = info.published.unix_timestamp_nanos() as i64;
        let nats::Message { subject, payload, headers, .. } = message.message;
        Some((Entry { sequence, nanos, subject, headers: headers.unwrap_or_default(), body: payload }, number, pending))
    }
}

impl From<StreamMessage> for Entry {
    fn from(message: StreamMessage) -> Self {
        let StreamMessage { subject, sequence, headers, payload, time } = message;
        Entry { sequence, nanos: time.unix_timestamp_nanos() as i64, subject, headers, body: payload }
    }
}

/// The log in a broker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stream {
    jetstream: Arc<jetstream::Context>,
    /// The same, with the patience for acknowledgements.
    publishing: Arc<jetstream::Context>,
    /// How often it was connected: what was sent on an earlier connection is not acknowledged on this one.
    connections: watch::Receiver<u64>,
    created: String,
    replicas: u64,
    /// What is left of messages that are not there any more.
    rests: Arc<Rests>,
}

/// A message that was sent, or was not: when, and on which connection.
struct Sent {
    at: Instant,
    connection: u64,
    /// The acknowledgement to come; or what is certain of the message; or why nothing is.
    outcome: Result<PublishAckFuture, Result<NotKept, String>>,
}

/// What a server says of a stream.
#[derive(Debug, Deserialize)]
struct Info {
    config: Map<String, Value>,
    created: String,
    state: State,
}

#[derive(Debug, Deserialize)]
struct State {
    last_seq: u64,
}

impl Stream {
    /// Connects, and finds the stream as it must be, and as it was when this record was read. Without one, a stream
    /// that is not there is made.
    pub async fn open(url: &str, options: &Options, known: Option<&Fingerprint>) -> Result<Stream, StreamError> {
        let (client, connections) = connect(url, options).await?;
        let jetstream = ContextBuilder::new()
            .timeout(ANSWER_PATIENCE)
            .max_ack_inflight(IN_FLIGHT_MAX)
            .backpressure_on_inflight(false)
            .build(client);
        let mut publishing = jetstream.clone();
        publishing.set_timeout(PUBLISH_PATIENCE);
        let replicas = options.nats_replicas.map(u64::from);
        let began = Instant::now();
        let found: Info = loop {
            let mut asked = ask(&jetstream, "STREAM.INFO", STREAM, &()).await;
            let is_missing = asked.as_ref().is_err_and(|refusal| refusal.is(ErrorCode::STREAM_NOT_FOUND));
            if is_missing && known.is_none() {
                let wanted = config::wanted(replicas.unwrap_or(1));
                asked = ask(&jetstream, "STREAM.CREATE", STREAM, &wanted).await;
            }
            match asked {
                Ok(info) => break info,
                Err(refusal) if refusal.may_pass() && began.elapsed() < START_PATIENCE => {
                    tracing::warn!(error = %StreamError::from(refusal), "NATS has no stream for us yet; trying again");
                    tokio::time::sleep(backoff(6)).await;
                }
                Err(refusal) => return Err(refusal.into()),
            }
        };
        let has = found.config.get("num_replicas").and_then(Value::as_u64).unwrap_or(1);
        let replicas = replicas.unwrap_or(has);
        let differences = config::differences(&config::wanted(replicas), &found.config);
        if !differences.is_empty() {
            return Err(StreamError::Differs { name: STREAM, differences });
        }
        let (jetstream, publishing) = (Arc::new(jetstream), Arc::new(publishing));
        let stream =
            Stream { jetstream, publishing, connections, created: found.created, replicas, rests: Arc::default() };
        if let Some(known) = known {
            known.check(&stream).await?;
        }
        Ok(stream)
    }

    /// Where reading begins.
    pub fn beginning(&self) -> Fingerprint {
        Fingerprint::beginning(&self.created)
    }

    /// Reads all that stands behind a record, or behind the beginning.
    pub fn reader(&self, after: Fingerprint) -> Reader {
        Reader::new(self.clone(), after)
    }

    /// The last sequence in the stream: who has read up to there has caught up with the moment of asking.
    pub async fn last_sequence(&self) -> Result<u64, StreamError> {
        Ok(self.info().await?.state.last_seq)
    }

    async fn info(&self) -> Result<Info, StreamError> {
        Ok(ask(&self.jetstream, "STREAM.INFO", STREAM, &()).await?)
    }

    /// A single record, if it is there, or what is left of it: from whichever server is near.
    pub async fn get(&self, sequence: u64) -> Result<Option<Entry>, StreamError> {
        if self.is_replaced(sequence) {
            return self.rest(sequence).await;
        }
        match self.handle().await?.direct_get(sequence).await {
            Ok(found) => Ok(Some(found.into())),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => self.rest(sequence).await,
            Err(error) => Err(StreamError::Unavailable { what: "get a record", error: error.to_string() }),
        }
    }

    /// The same from the server that leads: the others may not have it yet.
    async fn get_from_leader(&self, sequence: u64) -> Result<Option<Entry>, StreamError> {
        match self.handle().await?.get_raw_message(sequence).await {
            Ok(found) => Ok(Some(found.into())),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(StreamError::Unavailable { what: "get a record", error: error.to_string() }),
        }
    }

    /// The last record of a subject, if there is any.
    pub async fn last_of(&self, subject: &str) -> Result<Option<Entry>, StreamError> {
        match self.handle().await?.get_last_raw_message_by_subject(subject).await {
            Ok(found) => Ok(Some(found.into())),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(StreamError::Unavailable { what: "get a record", error: error.to_string() }),
        }
    }

    async fn handle(&self) -> Result<jetstream::stream::Stream<()>, StreamError> {
        let found = self.jetstream.get_stream_no_info(STREAM).await;
        found.map_err(|error| StreamError::Unavailable { what: "find the stream", error: error.to_string() })
    }

    /// Publishes a message, and waits until it is kept: gives its sequence. What is not acknowledged is sent again
    /// under the same id. Many may do so at once.
    pub async fn publish(&self, message: &Message) -> Result<u64, NotKept> {
        let sent = self.send(message).await;
        self.settle(message, sent).await
    }

    /// Publishes messages in their order, all of them before the first is acknowledged. One that had to be sent again
    /// may stand later in the stream than those after it.
    pub async fn publish_all(&self, messages: &[Message]) -> Vec<Result<u64, NotKept>> {
        let mut open = VecDeque::with_capacity(messages.len().min(IN_FLIGHT_MAX));
        let mut settled = Vec::with_capacity(messages.len());
        let mut is_sending = true;
        for message in messages {
            // Room comes back only when an acknowledgement is fetched.
            if open.len() == IN_FLIGHT_MAX / 2
                && let Some((message, sent)) = open.pop_front()
            {
                settled.push(self.settle(message, sent).await);
                is_sending = true;
            }
            // Where one cannot be sent, those after it wait for their turn.
            let unsent = || Sent { at: Instant::now(), connection: 0, outcome: Err(Err("it waits for others".into())) };
            let sent = if is_sending { self.send(message).await } else { unsent() };
            is_sending = sent.outcome.is_ok();
            open.push_back((message, sent));
        }
        for (message, sent) in open {
            settled.push(self.settle(message, sent).await);
        }
        settled
    }

    async fn send(&self, message: &Message) -> Sent {
        let (at, connection) = (Instant::now(), *self.connections.borrow());
        let publish = PublishMessage::build().headers(message.headers.clone()).payload(message.body.clone());
        let sending = self.publishing.send_publish(message.subject.clone(), publish.message_id(&message.id));
        Sent { at, connection, outcome: sending.await.map_err(|error| verdict(&error).ok_or(error.to_string())) }
    }

    /// Waits for what becomes of a message that was sent, and sends it again when nobody will know.
    async fn settle(&self, message: &Message, mut sent: Sent) -> Result<u64, NotKept> {
        let mut connections = self.connections.clone();
        let deadline = (sent.at + PUBLISH_PATIENCE).into();
        let mut attempt = 0;
        loop {
            let outcome = match sent.outcome {
                Ok(acknowledged) => tokio::select! {
                    biased;
                    outcome = timeout_at(deadline, acknowledged.into_future()) => match outcome {
                        Ok(Ok(acknowledged)) => return Ok(acknowledged.sequence),
                        Ok(Err(error)) => verdict(&error).ok_or(error.to_string()),
                        Err(_) => Err(format!("no word within {PUBLISH_PATIENCE:?}")),
                    },
                    _ = connections.wait_for(|connection| *connection != sent.connection) => {
                        Err("the connection broke".into())
                    }
                },
                Err(outcome) => outcome,
            };
            let error = match outcome {
                Ok(verdict) => return Err(verdict),
                Err(error) if deadline <= tokio::time::Instant::now() => return Err(NotKept::Unknown(error)),
                Err(error) => error,
            };
            tracing::debug!(error, id = message.id, "not acknowledged; sending it again");
            if attempt > 0 {
                tokio::time::sleep(backoff(attempt)).await;
            }
            attempt += 1;
            sent = self.send(message).await;
        }
    }

    /// Publishes a call that was not taken. Told again under the same id it is kept once.
    pub async fn publish_dead_letter(&self, id: &str, letter: &Returned) -> Result<u64, NotKept> {
        let (subject, id) = (DEAD_LETTERS.to_owned(), id.to_owned());
        self.publish(&Message { subject, id, headers: HeaderMap::new(), body: letter.encode() }).await
    }

    /// Has the server overwrite a record and forget it; false: it is not there.
    async fn destroy(&self, stream: &str, sequence: u64) -> Result<bool, StreamError> {
        let gone: Result<Value, Refusal> =
            ask(&self.jetstream, "STREAM.MSG.DELETE", stream, &json!({"seq": sequence})).await;
        match gone {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.is(ErrorCode::SEQUENCE_NOT_FOUND) => Ok(false),
            Err(refusal) if refusal.is(ErrorCode::STREAM_MESSAGE_DELETE_FAILED) => {
                let found = ask::<Value>(&self.jetstream, "STREAM.MSG.GET", stream, &json!({"seq": sequence})).await;
                match found {
                    Err(other) if other.is(ErrorCode::NO_MESSAGE_FOUND) => Ok(false),
                    _ => Err(refusal.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the stream of triggers, unless one takes them already: whoever made that one knows how they are wanted.
    pub async fn open_triggers(&self) -> Result<(), StreamError> {
        let taken = [ErrorCode::STREAM_NAME_EXIST, ErrorCode::STREAM_SUBJECT_OVERLAP];
        let wanted = config::wanted_triggers(self.replicas);
        match ask::<Info>(&self.jetstream, "STREAM.CREATE", TRIGGER_STREAM, &wanted).await {
            Ok(_) => Ok(()),
            Err(refusal) if taken.into_iter().any(|code| refusal.is(code)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Publishes a trigger of a campaign under its intent's id.
    pub async fn publish_trigger(&self, campaign: &str, id: &str, body: Bytes) -> Result<u64, NotKept> {
        let (subject, id) = (format!("{TRIGGERS}.{}", token(campaign)), id.to_owned());
        self.publish(&Message { subject, id, headers: HeaderMap::new(), body }).await
    }
}

/// What an error says for certain: that the message was not kept. Nothing, where it may have been, or may be now.
fn verdict(error: &PublishError) -> Option<NotKept> {
    use std::error::Error;
    if error.kind() == PublishErrorKind::MaxPayloadExceeded {
        return Some(NotKept::TooLarge(error.to_string()));
    }
    let api = error.source()?.downcast_ref::<jetstream::Error>()?;
    let said = api.to_string();
    Some(match api.error_code() {
        ErrorCode::CLUSTER_NOT_AVAILABLE | ErrorCode::CLUSTER_NOT_LEADER | ErrorCode::STREAM_TOO_MANY_REQUESTS => {
            return None;
        }
        ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => NotKept::Busy(said),
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => NotKept::TooLarge(said),
        _ => NotKept::Refused(said),
    })
}

/// Why a request to JetStream was not answered as it should be.
enum Refusal {
    /// JetStream says no.
    Api(jetstream::Error),
    /// Nobody says anything.
    Request(jetstream::context::RequestError),
}

impl Refusal {
    /// Whether JetStream says this.
    fn is(&self, code: ErrorCode) -> bool {
        matches!(self, Refusal::Api(error) if error.error_code() == code)
    }

    /// Whether it is what servers of a cluster say, or do not say, that have yet to agree on who leads.
    fn may_pass(&self) -> bool {
        let leaderless = [ErrorCode::CLUSTER_NOT_AVAILABLE, ErrorCode::CLUSTER_NOT_LEADER, ErrorCode::CLUSTER_NO_PEERS];
        match self {
            Refusal::Api(_) => leaderless.into_iter().any(|code| self.is(code)),
            Refusal::Request(error) => error.kind() == jetstream::context::RequestErrorKind::TimedOut,
        }
    }
}

impl From<Refusal> for StreamError {
    fn from(refusal: Refusal) -> Self {
        let what = "ask for the stream";
        match refusal {
            Refusal::Api(error) => match error.error_code() {
                ErrorCode::STREAM_NOT_FOUND => StreamError::Gone,
                ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => StreamError::Unfit(
                    format!("{error}; start nats-server with --jetstream, or enable it for this account"),
                ),
                ErrorCode::CLUSTER_NOT_AVAILABLE | ErrorCode::CLUSTER_NOT_LEADER => {
                    StreamError::Unavailable { what, error: error.to_string() }
                }
                _ => StreamError::Unfit(error.to_string()),
            },
            Refusal::Request(error) => StreamError::Unavailable { what, error: error.to_string() },
        }
    }
}

/// A request to JetStream's own doors. Plain JSON both ways, so that no field is left out that a type does not know.
async fn ask<T: DeserializeOwned>(
    jetstream: &jetstream::Context,
    verb: &str,
    stream: &str,
    request: &impl serde::Serialize,
) -> Result<T, Refusal> {
    match jetstream.request(format!("{verb}.{stream}"), request).await {
        Ok(Response::Ok(answer)) => Ok(answer),
        Ok(Response::Err { error }) => Err(Refusal::Api(error)),
        Err(error) => Err(Refusal::Request(error)),
    }
}

/// How long to wait before trying again.
fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(20 << attempt.min(6))
}

/// Connects to a server that can keep the log. Waits a while for one that is not there yet.
async fn connect(url: &str, options: &Options) -> Result<(nats::Client, watch::Receiver<u64>), StreamError> {
    let servers: Result<Vec<ServerAddr>, _> = url.split(',').map(|url| url.trim().parse()).collect();
    // What is wrong with the URL is told without it: it may hold a password.
    let servers = servers.map_err(|error: std::io::Error| StreamError::Options {
        what: "the URL of --nats",
        error: error.to_string(),
    })?;
    let shown: Vec<String> = servers.iter().map(|server| format!("{}:{}", server.host(), server.port())).collect();
    let shown = shown.join(", ");
    let began = Instant::now();
    let mut attempt = 0;
    let (connected, connections) = watch::channel(0);
    let connected = Arc::new(connected);
    let client = loop {
        let connecting = connecting(&servers, options, Arc::clone(&connected)).await?;
        let error = match connecting.connect(servers.as_slice()).await {
            Ok(client) => break client,
            Err(error) => error,
        };
        let failed = |what: &str| StreamError::Connect { servers: shown.clone(), error: format!("{error}; {what}") };
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                return Err(failed(
                    "give the user in the URL, as nats://user:password@host or nats://token@host, or --nats-creds",
                ));
            }
            _ if is_tls(&error) => {
                return Err(failed(
                    "give the server's certificates with --nats-tls-ca, and --nats-tls-cert and \
                                   --nats-tls-key if it asks for ours",
                ));
            }
            _ if began.elapsed() > START_PATIENCE => return Err(failed("is it running?")),
            _ => {}
        }
        tracing::warn!(servers = shown, %error, "cannot connect to NATS yet; trying again");
        tokio::time::sleep(backoff(attempt)).await;
        attempt += 1;
    };
    let server = client.server_info();
    let mut numbers = server.version.split(['.', '-']).map_while(|number| number.parse().ok());
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < VERSION_MIN {
        return Err(StreamError::Version { servers: shown, found: server.version });
    }
    if !server.jetstream {
        return Err(StreamError::Unfit(format!("JetStream is off at {shown}; start nats-server with --jetstream")));
    }
    if server.max_payload < PAYLOAD_MIN {
        return Err(StreamError::Unfit(format!(
            "its max_payload is {}, and bodies of {BODY_BYTES_MAX} bytes need at least {PAYLOAD_MIN}",
            server.max_payload
        )));
    }
    tracing::info!(servers = shown, version = server.version, "this NATS server can keep the log");
    Ok((client, connections))
}

/// Whether one of the two does not like what the other shows.
fn is_tls(error: &nats::ConnectError) -> bool {
    use std::error::Error;
    let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    error.kind() == ConnectErrorKind::Tls
        || source.and_then(std::io::Error::get_ref).is_some_and(|inner| inner.is::<nats::rustls::Error>())
}

/// How to connect, and to connect again: without end, since what is in the stream is all there is.
async fn connecting(
    servers: &[ServerAddr],
    options: &Options,
    connected: Arc<watch::Sender<u64>>,
) -> Result<ConnectOptions, StreamError> {
    let mut connecting = ConnectOptions::new()
        .name("thalweg")
        .reconnect_delay_callback(|attempt| backoff(attempt as u32))
        .event_callback(move |event| {
            match event {
                Event::Connected => {
                    connected.send_modify(|connections| *connections += 1);
                    tracing::info!("connected to NATS");
                }
                event => tracing::warn!("NATS: {event}"),
            }
            std::future::ready(())
        });
    // The client leaves what stands before a host to whoever uses it.
    if let Some((user, password)) = servers.iter().find_map(|server| Some((server.username()?, server.password()))) {
        let plain = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
        connecting = match password {
            Some(password) => connecting.user_and_password(plain(user), plain(password)),
            None => connecting.token(plain(user)),
        };
    }
    if let Some(file) = &options.nats_creds {
        let failed = |error: std::io::Error| StreamError::Options { what: "--nats-creds", error: error.to_string() };
        connecting = connecting.credentials_file(file).await.map_err(failed)?;
    }
    if let Some(file) = &options.nats_tls_ca {
        connecting = connecting.add_root_certificates(file.clone()).require_tls(true);
    }
    if let (Some(cert), Some(key)) = (&options.nats_tls_cert, &options.nats_tls_key) {
        connecting = connecting.add_client_certificate(cert.clone(), key.clone()).require_tls(true);
    }
    Ok(connecting)
}
