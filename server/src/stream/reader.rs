//! Reading the stream in order, from any place, each sequence once.
//!
//! The broker keeps no state of it: a consumer of ours lives in its memory, wants no acknowledgements, and is made
//! anew behind the last record read whenever anything is not as it should be: a message missed on the way, a
//! heartbeat that did not come, a connection that broke, a broker that started again. Each time the last record read
//! is looked for first, so that a stream that changed behind our back is not read on.

use std::ops::RangeInclusive;
use std::time::Duration;

use nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use tokio_stream::StreamExt;

use super::config::STREAM;
use super::erasing::destroy;
use super::{Entry, Fingerprint, Stream, StreamError, backoff};

/// Messages asked for in one go; as many again are asked for when half of them have come.
const BATCH: usize = 8_192;
/// Bytes of them, at most: more than the largest message that any server takes.
const BATCH_BYTES: usize = 65 << 20;
/// On an idle stream the broker says so often that it is there; when it misses two, it is asked again.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// An idle request is made again after this time.
const EXPIRES: Duration = Duration::from_secs(30);
/// The broker forgets a consumer that asked for nothing so long.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// What comes next in a stream.
#[derive(Debug)]
pub enum Next {
    /// A record.
    Entry(Entry),
    /// A hole: these records were in the stream once, and are not any more, and nothing is left of them. Somebody
    /// deleted them, or the broker lost them.
    Lost(RangeInclusive<u64>),
}

/// Reads a stream in order.
pub struct Reader {
    stream: Stream,
    /// The last record read.
    seen: Fingerprint,
    /// Up to where records were read or told to be lost.
    told: u64,
    /// Up to here the next records are missing, or replaced.
    missing: u64,
    messages: Option<pull::Stream>,
    /// Where the stream ended when the consumer was made.
    last: u64,
    /// The consumer's own number of its next message: one that is left out was missed on the way.
    next: u64,
    /// A record that waits until the hole before it is told.
    waiting: Option<Entry>,
}

impl Reader {
    pub(super) fn new(stream: Stream, seen: Fingerprint) -> Self {
        Reader { stream, told: seen.sequence, missing: 0, seen, messages: None, last: 0, next: 1, waiting: None }
    }

    /// The last record read.
    pub fn seen(&self) -> &Fingerprint {
        &self.seen
    }

    /// Up to where the stream was read: the sequence of the last record, or of the last one told to be lost.
    pub fn position(&self) -> u64 {
        self.told
    }

    /// Waits for what comes next, as long as that takes. An error says that there is no reading on. May be dropped
    /// while it waits: nothing is left out then.
    pub async fn next(&mut self) -> Result<Next, StreamError> {
        loop {
            if self.told < self.missing {
                if let Some(next) = self.left().await? {
                    return Ok(next);
                }
                continue;
            }
            if let Some(entry) = self.waiting.take().filter(|entry| entry.sequence > self.told) {
                return Ok(self.give(entry));
            }
            let Some(messages) = &mut self.messages else {
                self.begin().await?;
                continue;
            };
            match messages.next().await {
                Some(Ok(message)) => {
                    let entry = Entry::read(message);
                    let entry = entry.filter(|(entry, number, _)| self.follows(entry, *number));
                    let Some((entry, number, pending)) = entry else {
                        tracing::debug!(after = self.told, "a message was missed on the way");
                        self.messages = None;
                        continue;
                    };
                    self.next = number + 1;
                    // What is missing behind the end is asked for.
                    if pending == 0 && entry.sequence < self.last {
                        self.messages = None;
                    }
                    self.missing = entry.sequence - 1;
                    if self.stream.is_replaced(entry.sequence) {
                        // It should be gone. Where the broker has not kept that, it is told again.
                        self.missing = entry.sequence;
                        let (stream, sequence) = (self.stream.clone(), entry.sequence);
                        tokio::spawn(async move { destroy(&stream, STREAM, sequence).await });
                    }
                    self.waiting = Some(entry);
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, after = self.told, "reading the stream was interrupted");
                    self.messages = None;
                }
                None => self.messages = None,
            }
        }
    }

    /// Whether this message is the consumer's next, and its record later than the last: else one was missed.
    fn follows(&self, entry: &Entry, number: u64) -> bool {
        number == self.next && entry.sequence > self.told
    }

    /// What is left of the next record that is missing, or how many are lost; none, if the broker does not say.
    async fn left(&mut self) -> Result<Option<Next>, StreamError> {
        let missing = self.told + 1..=self.missing;
        let find = async || {
            if !self.stream.is_replaced(*missing.start()) {
                self.stream.search_rests().await?;
            }
            match self.stream.first_replaced(missing.clone()) {
                Some(first) if first == *missing.start() => self.stream.rest(first).await,
                _ => Ok(None),
            }
        };
        match find().await {
            Ok(Some(entry)) => Ok(Some(self.give(entry))),
            Ok(None) => {
                let last = self.stream.first_replaced(missing.clone()).map_or(self.missing, |first| first - 1);
                self.told = last.max(*missing.start());
                Ok(Some(Next::Lost(*missing.start()..=self.told)))
            }
            Err(StreamError::Unavailable { what, error }) => {
                tracing::debug!(after = self.told, "cannot {what}: {error}; trying again");
                tokio::time::sleep(backoff(4)).await;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn give(&mut self, entry: Entry) -> Next {
        self.seen = Fingerprint::of(&self.seen.created, &entry);
        self.told = entry.sequence;
        Next::Entry(entry)
    }

    /// Makes a consumer behind the last record read, as soon as the broker lets it be made. A hole that ends with the
    /// stream is found here: no record that follows would tell of it.
    async fn begin(&mut self) -> Result<(), StreamError> {
        let mut attempt = 0;
        loop {
            match self.try_begin().await {
                Err(StreamError::Unavailable { what, error }) => {
                    if attempt % 10 == 3 {
                        tracing::warn!(after = self.told, "cannot {what}: {error}; trying again");
                    }
                    tokio::time::sleep(backoff(attempt)).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_begin(&mut self) -> Result<(), StreamError> {
        let failed = |what, error: &dyn std::fmt::Display| StreamError::Unavailable { what, error: error.to_string() };
        self.last = self.seen.check(&self.stream).await?;
        self.stream.search_rests().await?;
        let first = self.told + 1;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: first },
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = self.stream.handle().await?.create_consumer(config).await;
        let consumer = consumer.map_err(|error| failed("read the stream", &error))?;
        let messages = consumer.stream().max_messages_per_batch(BATCH).max_bytes_per_batch(BATCH_BYTES);
        let messages = messages.heartbeat(HEARTBEAT).expires(EXPIRES).messages().await;
        self.messages = Some(messages.map_err(|error| failed("read the stream", &error))?);
        self.next = 1;
        if consumer.cached_info().num_pending == 0 {
            self.missing = self.last;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("seen", &self.seen).finish_non_exhaustive()
    }
}
