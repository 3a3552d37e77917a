//! Erasing in the stream: what is left of messages is published first, then JetStream overwrites them.
//!
//! What names somebody who was erased is found by reading the stream again. A message that comes later and should not
//! have is found by the writer, which knows by their marks who was erased. Whatever ends in the middle is found again:
//! the erasure itself gives up its ids last of all, and a message that is replaced but still there when the stream is
//! read is destroyed then.

use std::sync::Arc;
use std::time::Duration;

use dataflows::event::Decoder;
use dataflows::place;
use dataflows::time::Millis;
use ecow::EcoString;
use memchr::memmem;
use nats::jetstream::ErrorCode;
use nats::jetstream::consumer::{AckPolicy, pull};
use serde::Deserialize;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

use super::config::{CALLS, DEAD_LETTERS, LOG, REST, STREAM, TRIGGER_STREAM};
use super::feed::{self, hold};
use super::{Entry, Info, Next, NotKept, Rest, Returned, Standing, Stream, StreamError, ask};
use crate::cluster::LEADER;
use crate::erasing::{Job, is_of, is_of_them};
use crate::hub::ClockMode;
use crate::log::Record;
use crate::record::{Correction, Dispatch, Erase};

/// Rests that are published as one message: so many, or so many bytes.
const TOGETHER_MAX: usize = 1_000;
const TOGETHER_BYTES_MAX: usize = 256 << 10;
/// Rests that wait to be published, in bytes.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// Messages that are on their way to be destroyed at once.
const DESTROYED_TOGETHER: usize = 64;
/// A broker that does not do what it is asked for is asked again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// What is to be replaced, or who is to be told when all before it is.
pub(super) enum Replacing {
    One(Rest),
    Told(oneshot::Sender<()>),
}

/// Replaces messages by what is left of them, for as long as the process lives.
pub(super) async fn replace(stream: Stream, key: [u8; 16], mut queue: mpsc::UnboundedReceiver<Replacing>) {
    let (mut rests, mut bytes, mut number) = (Vec::new(), 0, 0_u64);
    let life = crate::clock::nanos();
    while let Some(next) = queue.recv().await {
        let told = match next {
            Replacing::One(rest) => {
                bytes += rest.bytes();
                rests.push(rest);
                None
            }
            Replacing::Told(reply) => Some(reply),
        };
        let is_full = rests.len() >= TOGETHER_MAX || bytes >= TOGETHER_BYTES_MAX;
        if told.is_some() || is_full || queue.is_empty() {
            number += 1;
            replace_all(&stream, &key, &std::mem::take(&mut rests), format!("rest:{life:x}:{number}")).await;
            bytes = 0;
        }
        // Whoever waits may have gone.
        let _ = told.map(|reply| reply.send(()));
    }
}

/// Waits until all is replaced that was to be by now.
pub(super) async fn replaced(queue: &mpsc::UnboundedSender<Replacing>) {
    let (reply, replaced) = oneshot::channel();
    // The task is gone only when the process ends.
    let _ = queue.send(Replacing::Told(reply));
    let _ = replaced.await;
}

/// Has these rests stand in the place of their messages, however long the broker takes.
async fn replace_all(stream: &Stream, key: &[u8; 16], rests: &[Rest], id: String) {
    if rests.is_empty() {
        return;
    }
    let message = Rest::message(rests, id.clone(), key);
    while let Err(error) = stream.publish(&message).await {
        if rests.len() > 1 && matches!(error, NotKept::TooLarge(_)) {
            let (some, others) = rests.split_at(rests.len() / 2);
            Box::pin(replace_all(stream, key, some, format!("{id}:0"))).await;
            return Box::pin(replace_all(stream, key, others, format!("{id}:1"))).await;
        }
        tracing::error!(%error, "what is left of messages to be erased is not kept yet: tried again in {AGAIN:?}");
        tokio::time::sleep(AGAIN).await;
    }
    for some in rests.chunks(DESTROYED_TOGETHER) {
        let mut under_way = JoinSet::new();
        for sequence in some.iter().map(|rest| rest.sequence) {
            let stream = stream.clone();
            under_way.spawn(async move { destroy(&stream, STREAM, sequence).await });
        }
        under_way.join_all().await;
    }
}

/// Has the broker destroy a message, however long it takes.
pub(super) async fn destroy(stream: &Stream, of: &str, sequence: u64) {
    let mut was_interrupted = false;
    loop {
        match stream.destroy(of, sequence).await {
            Ok(was_there) if was_there || !was_interrupted => return,
            Ok(_) => {
                let what = "the broker was interrupted while it overwrote a message: nobody gets it from there any \
                            more, but its file may still hold the bytes until it compacts them";
                return tracing::error!(of, sequence, "{what}");
            }
            Err(error) => {
                was_interrupted = true;
                tracing::error!(%error, of, sequence, "a message to be erased is there: tried again in {AGAIN:?}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// What it takes to erase somebody.
pub(super) struct Erasing {
    pub(super) stream: Stream,
    pub(super) decoder: Decoder,
    pub(super) secret: [u8; 16],
    pub(super) clock: ClockMode,
    /// Where rests go.
    pub(super) queue: mpsc::UnboundedSender<Replacing>,
    /// Held while it is told of a call that was not taken.
    pub(super) telling: Arc<Mutex<()>>,
    /// Up to where it is written down what was read.
    pub(super) written: watch::Receiver<u64>,
    pub(super) job: Job,
    /// What stands in the erasure's place when all is done.
    pub(super) done: Erase,
}

impl Erasing {
    /// Does it, however often the broker is away; gives which calls read otherwise since. None: the stream cannot be
    /// read any more, which ends the process where it is followed.
    pub(super) async fn run(mut self) -> Option<Vec<(u64, Vec<u8>)>> {
        loop {
            match self.all().await {
                Ok(()) => return Some(self.job.otherwise()),
                Err(error @ StreamError::Unavailable { .. }) => {
                    tracing::error!(%error, "messages that are to be erased are not yet: tried again in {AGAIN:?}");
                    tokio::time::sleep(AGAIN).await;
                }
                Err(_) => return None,
            }
        }
    }

    async fn all(&mut self) -> Result<(), StreamError> {
        replaced(&self.queue).await;
        let mut reader = self.stream.reader(self.stream.beginning());
        // The second time for what was on its way while the first was read.
        for _ in 0..2 {
            let (end, mut bytes) = (self.stream.last_sequence().await?, 0);
            while reader.position() < end {
                let Next::Entry(entry) = reader.next().await? else { continue };
                for rest in self.left(&entry) {
                    bytes += rest.bytes();
                    let _ = self.queue.send(Replacing::One(rest));
                }
                // What waits stands in memory.
                if bytes >= WAITING_BYTES_MAX {
                    replaced(&self.queue).await;
                    bytes = 0;
                }
            }
            replaced(&self.queue).await;
            drop(self.telling.lock().await);
        }
        self.triggers().await?;
        // What is written down of the record that was read last may name somebody: it is of a later one now.
        let end = self.stream.last_sequence().await?;
        let _ = self.written.wait_for(|written| *written >= end).await;
        let sequence = place::time_of(self.job.erasure().position);
        if let Some(entry) = self.stream.get(sequence).await? {
            let rest = Rest::of(sequence, entry.nanos, &entry.subject, &self.done);
            replace_all(&self.stream, &self.secret, &[rest], format!("erased:{sequence}")).await;
        }
        Ok(())
    }

    /// What is left of a message, if anything of it has to go; of one that holds rests, all of them and itself.
    fn left(&mut self, entry: &Entry) -> Vec<Rest> {
        hold(&mut self.decoder, entry);
        if self.stream.is_replaced(entry.sequence) {
            // It is looked at where its rest stands.
            return Vec::new();
        }
        if entry.subject.as_str() != REST {
            return self.left_of(entry).into_iter().collect();
        }
        let mut is_changed = false;
        let mut rests: Vec<Rest> = Vec::new();
        for (rest, entry) in self.stream.current_rests(entry) {
            let left = self.left_of(&entry);
            is_changed |= left.is_some();
            rests.push(left.unwrap_or(rest));
        }
        rests.push(Rest::of(entry.sequence, entry.nanos, REST, &()));
        if is_changed { rests } else { Vec::new() }
    }

    fn left_of(&mut self, entry: &Entry) -> Option<Rest> {
        let erasure = self.job.erasure();
        let is_before = entry.sequence < place::time_of(erasure.position);
        let subject = entry.subject.as_str();
        let rest = Rest::of(entry.sequence, entry.nanos, subject, &());
        match subject.strip_prefix(LOG).and_then(|kind| kind.strip_prefix('.')) {
            None if subject == DEAD_LETTERS => {
                let mut returned = Returned::decode(&entry.body)?;
                let of = returned.position.as_ref().and_then(|position| position.parse::<u64>().ok());
                let is_before = is_before || of.is_some_and(|of| of < erasure.position);
                returned.letter = self.job.letter(returned.letter).filter(|_| is_before)?;
                let id = entry.id().filter(|id| id.starts_with("dead:"));
                Some(rest.saying(&returned).named(id))
            }
            Some("corrections") if is_before => {
                let said: Vec<Option<Correction>> = serde_json::from_slice(&entry.body).ok()?;
                let left = said.iter().map(|said| said.as_ref().filter(|said| !self.job.corrects(said)));
                let left: Vec<Option<&Correction>> = left.collect();
                left.iter().zip(&said).any(|(left, said)| left.is_some() != said.is_some()).then(|| rest.saying(&left))
            }
            Some("dispatch") => {
                let mut said: Vec<Dispatch> = serde_json::from_slice(&entry.body).ok()?;
                let all = said.len();
                said.retain(|dispatch| !is_of(erasure, dispatch));
                (said.len() < all).then(|| rest.saying(&said))
            }
            kind if is_before && (kind.is_none() || subject == CALLS) && self.may_name(entry) => {
                let calls = feed::calls(entry, &mut self.decoder, &self.secret, feed::stamp(entry, self.clock));
                let mut calls: Vec<Standing> = calls.iter().map(Standing::from).collect();
                let mut is_changed = false;
                for (index, call) in calls.iter_mut().enumerate().take(place::RECORDS_MAX) {
                    let record = Record { position: 0, received_at: 0, kind: call.kind, payload: &call.payload };
                    let position = place::place(entry.sequence, LEADER, index);
                    if let Some((kind, payload)) = self.job.instead(position, &record) {
                        (call.kind, call.payload, is_changed) = (kind, payload, true);
                    }
                }
                is_changed.then(|| Rest::of(entry.sequence, entry.nanos, CALLS, &calls))
            }
            _ => None,
        }
    }

    /// Most messages name nobody, and it is not necessary to take them apart to know that.
    fn may_name(&self, entry: &Entry) -> bool {
        let is_plain = !entry.body.starts_with(&[0x1f, 0x8b]) && !entry.body.contains(&b'\\');
        let is_clear = self.decoder.vocabulary().privacy().is_empty();
        let has = |id: &EcoString| memmem::find(&entry.body, id.as_bytes()).is_some();
        !is_plain || !is_clear || entry.subject.as_str() == CALLS || self.job.erasure().ids.iter().any(has)
    }

    /// Destroys the messages to them that still stand in the stream of triggers.
    async fn triggers(&self) -> Result<(), StreamError> {
        #[derive(Deserialize)]
        struct Told {
            profile: EcoString,
            at: Millis,
            cause: Cause,
        }
        #[derive(Deserialize)]
        struct Cause {
            root: Root,
        }
        #[derive(Deserialize)]
        struct Root {
            id: EcoString,
        }
        let failed = |error: &dyn std::fmt::Display| StreamError::Unavailable {
            what: "read the triggers",
            error: error.to_string(),
        };
        let jetstream = &self.stream.jetstream;
        match ask::<Info>(jetstream, "STREAM.INFO", TRIGGER_STREAM, &()).await {
            Ok(_) => {}
            Err(refusal) if refusal.is(ErrorCode::STREAM_NOT_FOUND) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: Duration::from_secs(60),
            ..pull::Config::default()
        };
        let triggers = jetstream.get_stream_no_info(TRIGGER_STREAM).await.map_err(|error| failed(&error))?;
        let consumer = triggers.create_consumer(config).await.map_err(|error| failed(&error))?;
        let mut pending = consumer.cached_info().num_pending;
        let mut messages = consumer.messages().await.map_err(|error| failed(&error))?;
        while pending > 0 {
            let next = tokio::time::timeout(AGAIN, messages.next()).await.map_err(|error| failed(&error))?;
            let message = next.ok_or_else(|| failed(&"it ends"))?.map_err(|error| failed(&error))?;
            let info = message.info().map_err(|error| failed(&error))?;
            pending = info.pending;
            let Ok(Told { profile, at, cause }) = serde_json::from_slice(&message.payload) else { continue };
            if [&profile, &cause.root.id].into_iter().any(|id| is_of_them(self.job.erasure(), id, at)) {
                destroy(&self.stream, TRIGGER_STREAM, info.stream_sequence).await;
            }
        }
        Ok(())
    }
}
