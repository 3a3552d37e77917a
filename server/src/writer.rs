//! The writer: the one thread that puts everything in order.
//!
//! Calls, clocks, questions and the ledger's entries come in by one queue. The writer decides on each, stamps it,
//! writes the group to the log with one sync, answers those who wait, and hands the group to the engine as a step: so
//! an event is acknowledged only when it is durable, and a question asked after an answer sees what was answered.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use dataflows::admission::Verdict;
use dataflows::engine::{Config, Engine};
use dataflows::event::{Decoder, Reason, Rejection};
use dataflows::intake::Sequencer;
use dataflows::plan::Plan;
use dataflows::profile::answers::IntentRow;
use dataflows::protocol::{Answer, Question, Response};
use dataflows::time::Millis;
use tokio::sync::{mpsc, oneshot};

use crate::door::Incoming;
use crate::log::{Log, LogError};
use crate::metrics::Histogram;
use crate::record::{self, Clock, DeadLetter, Dispatch};

/// How the clock moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ClockMode {
    /// With the wall: timers fire on an idle stream.
    Wall,
    /// With the events, and when it is told to.
    Events,
}

/// Something for the writer to do.
pub enum Work {
    /// Calls, to be decided on and kept.
    Events(Vec<Incoming>, oneshot::Sender<Receipt>),
    /// Calls that the door has refused, to be kept as dead letters.
    DeadLetters(Vec<DeadLetter>),
    /// The clock is to go on.
    Clock(Millis, oneshot::Sender<AsOf>),
    /// Something is asked.
    Ask(Question, oneshot::Sender<Answered>),
    /// What became of intents, to be kept before it is told.
    Dispatch(Vec<Dispatch>, oneshot::Sender<AsOf>),
    /// The process ends.
    Stop,
}

/// The one time at which an answer is true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AsOf {
    /// The last log position included.
    pub position: u64,
    /// The clock, ms.
    pub clock: Millis,
}

/// What became of calls, in their order.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// When they are included.
    pub as_of: AsOf,
    /// A verdict for each.
    pub verdicts: Vec<Verdict>,
}

/// The parts of an answer, one from each worker.
#[derive(Clone, Debug)]
pub struct Answered {
    /// When it is true.
    pub as_of: AsOf,
    /// The parts.
    pub parts: Vec<Answer>,
}

/// A closed step, for those who act on what changed.
#[derive(Clone, Debug)]
pub struct Closed {
    /// When it closed.
    pub as_of: AsOf,
    /// Intents that came (1) and went (-1).
    pub intents: Vec<(IntentRow, i8)>,
}

/// Why work was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// The queue is full: later.
    Busy,
    /// The process ends.
    Stopping,
}

/// The way to the writer, for everyone else.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Work, each with when it came.
    work: SyncSender<(Instant, Work)>,
    shared: Arc<Shared>,
}

/// What the writer and the engine's threads share with those who ask.
#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Open>,
    closed: Condvar,
    queued: AtomicUsize,
    step_times: Histogram,
    receipt_times: Histogram,
}

#[derive(Debug, Default)]
struct Open {
    workers: usize,
    log_is_read: bool,
    questions: HashMap<u64, Waiting>,
    steps: HashMap<u64, OpenStep>,
    /// The last step that closed.
    last: AsOf,
    /// The clock of the last group that was acknowledged.
    clock: Millis,
    dead_letters: Vec<(u64, DeadLetterAt)>,
    verdicts: BTreeMap<&'static str, u64>,
    reasons: BTreeMap<&'static str, u64>,
}

/// A step that some worker has not closed yet.
#[derive(Debug)]
struct OpenStep {
    as_of: AsOf,
    /// Workers that have closed it.
    closed: usize,
    intents: Vec<(IntentRow, i8)>,
    /// When it was handed to the engine.
    handed: Instant,
    /// When its bodies of calls came.
    received: Vec<Instant>,
}

/// How far the writer and the engine are.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Work that waits for the writer.
    pub queued: usize,
    /// Steps that the engine has not closed.
    pub steps_open: usize,
    /// The last step that it has.
    pub closed: AsOf,
}

impl Open {
    fn count(&mut self, verdict: Verdict) {
        let word = match verdict {
            Verdict::Accepted => "accepted",
            Verdict::Duplicate => "duplicate",
            Verdict::Conflict => "conflict",
            Verdict::TooLate => "too_late",
        };
        *self.verdicts.entry(word).or_default() += 1;
    }

    fn keep(&mut self, position: u64, reason: Reason, at: DeadLetterAt) {
        self.dead_letters.push((position, at));
        *self.reasons.entry(reason.name()).or_default() += 1;
    }
}

/// Where a dead letter stands.
#[derive(Clone, Debug)]
pub enum DeadLetterAt {
    /// In the log, as a dead letter.
    Own,
    /// In the log, as an event that was accepted without its link.
    RefusedEdge,
}

#[derive(Debug)]
struct Waiting {
    as_of: AsOf,
    parts: Vec<Answer>,
    reply: oneshot::Sender<Answered>,
}

impl Hub {
    /// The way to a state that no longer changes: what is asked is answered, and nothing else is done.
    pub fn still(as_of: AsOf, mut answer: impl FnMut(Question) -> Vec<Answer> + Send + 'static) -> Hub {
        let (work, queue) = sync_channel::<(Instant, Work)>(QUEUE_MAX);
        let answers = move || {
            for (_, work) in queue {
                if let Work::Ask(question, reply) = work {
                    // Whoever asked may have gone.
                    let _ = reply.send(Answered { as_of, parts: answer(question) });
                }
            }
        };
        std::thread::Builder::new().name("answers".into()).spawn(answers).expect("the system gives a thread");
        Hub { work, shared: Arc::default() }
    }

    /// Gives work to the writer, unless its queue is full.
    pub fn give(&self, work: Work) -> Result<(), NotTaken> {
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        self.work.try_send((Instant::now(), work)).map_err(|error| {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => NotTaken::Busy,
                TrySendError::Disconnected(_) => NotTaken::Stopping,
            }
        })
    }

    /// Asks, and waits for the answer of every worker.
    pub async fn ask(&self, question: Question) -> Result<Answered, NotTaken> {
        let (reply, answered) = oneshot::channel();
        self.give(Work::Ask(question, reply))?;
        answered.await.map_err(|_| NotTaken::Stopping)
    }

    /// The clock of the last group that was acknowledged, ms; 0 before the first.
    pub fn clock(&self) -> Millis {
        self.lock().clock
    }

    /// How many records were decided on so since the process started; refused edges are accepted besides.
    pub fn verdicts(&self) -> BTreeMap<&'static str, u64> {
        let open = self.lock();
        let refused = open.dead_letters.iter().filter(|(_, at)| matches!(at, DeadLetterAt::RefusedEdge)).count();
        let mut verdicts = open.verdicts.clone();
        verdicts.insert("refused_edge", refused as u64);
        verdicts
    }

    /// How many dead letters the log has, by reason.
    pub fn reasons(&self) -> BTreeMap<&'static str, u64> {
        self.lock().reasons.clone()
    }

    /// How far the writer and the engine are.
    pub fn progress(&self) -> Progress {
        let open = self.lock();
        let queued = self.shared.queued.load(Ordering::Relaxed);
        Progress { queued, steps_open: open.steps.len(), closed: open.last }
    }

    /// From handing a step to the engine until all of it is true.
    pub fn step_times(&self) -> &Histogram {
        &self.shared.step_times
    }

    /// From the receipt of a body of calls until every answer includes them.
    pub fn receipt_times(&self) -> &Histogram {
        &self.shared.receipt_times
    }

    /// Dead letters, newest first: log positions.
    pub fn dead_letters(&self, before: Option<u64>, limit: usize) -> Vec<(u64, DeadLetterAt)> {
        let open = self.lock();
        let older =
            open.dead_letters.iter().rev().filter(|(position, _)| before.is_none_or(|before| *position < before));
        older.take(limit).cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.shared.open.lock().expect("nobody panics while holding it")
    }
}

/// Calls waiting in the queue before the door says that it is busy.
const QUEUE_MAX: usize = 4_096;
/// Events in a step, about.
const STEP_EVENTS: usize = 1_000;
/// Steps that the engine may have open before the writer waits for it.
const STEPS_OPEN_MAX: usize = 8;
/// An idle stream's clock moves this often.
const TICK: Duration = Duration::from_millis(10);

/// What the writer begins with.
pub struct Start {
    /// The log.
    pub log: Log,
    /// Worker threads.
    pub workers: usize,
    /// How the clock moves.
    pub clock: ClockMode,
    /// The definitions file's text, and what it says.
    pub definitions: (String, Arc<Plan>),
    /// Told of every step that closes.
    pub told: mpsc::UnboundedSender<Closed>,
    /// How wall time is told, ms; the clock's seam.
    pub now: fn() -> Millis,
}

/// What the log held at the start.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Since when the definitions have been as they are, ms.
    pub active_since: Millis,
    /// The ledger's entries, in order.
    pub dispatched: Vec<Dispatch>,
    /// Up to where the log was read.
    pub position: u64,
}

/// Reads the log again, then starts the writer's thread. Gives the way to it and what the log held.
pub fn start(start: Start) -> Result<(Hub, Found, std::thread::JoinHandle<Result<(), LogError>>), LogError> {
    let (work, queue) = sync_channel(QUEUE_MAX);
    let shared = Arc::new(Shared::default());
    let hub = Hub { work, shared: Arc::clone(&shared) };
    shared.open.lock().expect("nobody holds it yet").workers = start.workers;
    let (text, plan) = start.definitions;
    let told = start.told;
    let responds = Arc::clone(&shared);
    let engine = Engine::start(Config { workers: start.workers, plan: Arc::clone(&plan) }, move |response| {
        responds.respond(response, &told);
    });
    let sequencer = Sequencer::new(start.log.id(), plan.definitions.lateness);
    let mut writer = Writer {
        log: start.log,
        engine,
        sequencer,
        shared,
        clock: start.clock,
        now: start.now,
        question: 0,
        group: Vec::new(),
        replies: Vec::new(),
        received: Vec::new(),
    };
    let found = writer.read_again(&text, &plan)?;
    let thread = std::thread::Builder::new().name("writer".into()).spawn(move || writer.run(&queue));
    Ok((hub, found, thread.expect("the system gives a thread")))
}

impl Shared {
    /// What the engine says, from its threads.
    fn respond(&self, response: Response, told: &mpsc::UnboundedSender<Closed>) {
        let mut open = self.open.lock().expect("nobody panics while holding it");
        match response {
            Response::Answer { question, part, .. } => {
                let workers = open.workers;
                let Some(waiting) = open.questions.get_mut(&question) else { return };
                waiting.parts.push(part);
                if waiting.parts.len() == workers
                    && let Some(Waiting { as_of, parts, reply }) = open.questions.remove(&question)
                {
                    // Whoever asked may have gone.
                    let _ = reply.send(Answered { as_of, parts });
                }
            }
            Response::Closed { number, mut intents, refused, .. } => {
                for position in refused {
                    // What the log held is no news.
                    if open.log_is_read {
                        let reason = Reason::RefusedEdge.name();
                        tracing::info!(reason, position, "a call was taken without its link");
                    }
                    open.keep(position, Reason::RefusedEdge, DeadLetterAt::RefusedEdge);
                }
                let workers = open.workers;
                let Some(step) = open.steps.get_mut(&number) else { return };
                step.closed += 1;
                step.intents.append(&mut intents);
                if step.closed == workers
                    && let Some(OpenStep { as_of, intents, handed, received, .. }) = open.steps.remove(&number)
                {
                    open.last = as_of;
                    self.step_times.observe(handed.elapsed());
                    received.iter().for_each(|received| self.receipt_times.observe(received.elapsed()));
                    let _ = told.send(Closed { as_of, intents });
                    self.closed.notify_all();
                }
            }
        }
    }
}

/// A reply that waits until its group is durable.
enum Reply {
    Receipt(oneshot::Sender<Receipt>, Vec<Verdict>),
    AsOf(oneshot::Sender<AsOf>),
}

struct Writer {
    log: Log,
    engine: Engine,
    sequencer: Sequencer,
    shared: Arc<Shared>,
    clock: ClockMode,
    now: fn() -> Millis,
    question: u64,
    group: Vec<(u8, Millis, Vec<u8>)>,
    replies: Vec<Reply>,
    /// When the step's bodies of calls came.
    received: Vec<Instant>,
}

impl Writer {
    /// The writer's life: a group at a time, until it is told to stop.
    fn run(mut self, queue: &Receiver<(Instant, Work)>) -> Result<(), LogError> {
        loop {
            let mut next = match queue.recv_timeout(TICK) {
                Ok(work) => Some(work),
                Err(RecvTimeoutError::Timeout) if self.clock == ClockMode::Wall => None,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            if self.clock == ClockMode::Wall {
                self.sequencer.tick((self.now)());
            }
            let mut stopping = false;
            while let Some((came, work)) = next {
                self.shared.queued.fetch_sub(1, Ordering::Relaxed);
                match work {
                    Work::Stop => stopping = true,
                    work => self.take(came, work),
                }
                next = if self.sequencer.len() < STEP_EVENTS { queue.try_recv().ok() } else { None };
            }
            self.commit()?;
            self.close();
            if stopping {
                return Ok(());
            }
        }
    }

    fn take(&mut self, came: Instant, work: Work) {
        match work {
            Work::Events(events, reply) => {
                let verdicts = events.into_iter().map(|incoming| self.admit(incoming)).collect();
                self.replies.push(Reply::Receipt(reply, verdicts));
                self.received.push(came);
            }
            Work::DeadLetters(letters) => letters.iter().for_each(|letter| self.dead_letter(letter)),
            Work::Clock(to, reply) => {
                if to > self.sequencer.clock() {
                    self.sequencer.tick(to);
                    self.write_json(record::CLOCK, &Clock { to });
                }
                self.replies.push(Reply::AsOf(reply));
            }
            Work::Ask(question, reply) => {
                self.question += 1;
                let waiting = Waiting { as_of: self.as_of(), parts: Vec::new(), reply };
                self.shared
                    .open
                    .lock()
                    .expect("nobody panics while holding it")
                    .questions
                    .insert(self.question, waiting);
                self.sequencer.ask(self.question, question);
            }
            Work::Dispatch(entries, reply) => {
                for entry in &entries {
                    self.write_json(record::DISPATCH, entry);
                }
                self.replies.push(Reply::AsOf(reply));
            }
            Work::Stop => {}
        }
    }

    fn admit(&mut self, incoming: Incoming) -> Verdict {
        let Incoming { kind, mut prepared, undated, body } = incoming;
        if undated {
            prepared.date(self.sequencer.clock());
        }
        let (timestamp, message_id) = (prepared.event.timestamp, prepared.event.message_id.clone());
        let received_at = match self.clock {
            ClockMode::Wall => self.sequencer.clock(),
            ClockMode::Events => self.sequencer.clock().max(timestamp),
        };
        let verdict = self.sequencer.admit(self.position() + 1, received_at, prepared);
        self.shared.open.lock().expect("nobody panics while holding it").count(verdict);
        let rejected = match verdict {
            Verdict::Accepted => {
                self.group.push((
                    record::EVENT,
                    received_at,
                    record::encode_event(kind, timestamp, &message_id, &body),
                ));
                return verdict;
            }
            Verdict::Duplicate => return verdict,
            Verdict::Conflict => Rejection::new(
                Reason::Conflict,
                format!("message id {message_id:?} was taken before, with other content"),
            ),
            Verdict::TooLate => Rejection::new(Reason::TooLate, "the event is earlier than the lateness allows"),
        };
        self.dead_letter(&DeadLetter::new(&rejected, body.as_bytes()));
        verdict
    }

    fn dead_letter(&mut self, letter: &DeadLetter) {
        self.write_json(record::DEAD_LETTER, letter);
        let position = self.position();
        // What it says may be personal: that is for who may read dead letters.
        tracing::info!(reason = letter.reason.name(), position, "a call was not taken");
        let mut open = self.shared.open.lock().expect("nobody panics while holding it");
        open.keep(position, letter.reason, DeadLetterAt::Own);
    }

    fn write_json(&mut self, kind: u8, payload: &impl serde::Serialize) {
        let payload = serde_json::to_vec(payload).expect("records have string keys");
        self.group.push((kind, self.sequencer.clock(), payload));
    }

    /// The last position, with the group under way.
    fn position(&self) -> u64 {
        self.log.last_position() + self.group.len() as u64
    }

    fn as_of(&self) -> AsOf {
        AsOf { position: self.position(), clock: self.sequencer.clock() }
    }

    /// Makes the group durable, then answers those who wait for that.
    fn commit(&mut self) -> Result<(), LogError> {
        let as_of = self.as_of();
        if !self.group.is_empty() {
            self.log.append(&self.group)?;
            self.group.clear();
        }
        self.shared.open.lock().expect("nobody panics while holding it").clock = as_of.clock;
        for reply in self.replies.drain(..) {
            match reply {
                Reply::Receipt(reply, verdicts) => drop(reply.send(Receipt { as_of, verdicts })),
                Reply::AsOf(reply) => drop(reply.send(as_of)),
            }
        }
        Ok(())
    }

    /// Hands the step to the engine; waits while the engine is too far behind.
    fn close(&mut self) {
        let as_of = self.as_of();
        let step = self.sequencer.close();
        let mut open = self.shared.open.lock().expect("nobody panics while holding it");
        // A question of this step is true with all of it.
        for (number, _) in &step.questions {
            if let Some(waiting) = open.questions.get_mut(number) {
                waiting.as_of = as_of;
            }
        }
        let received = std::mem::take(&mut self.received);
        let open_step = OpenStep { as_of, closed: 0, intents: Vec::new(), handed: Instant::now(), received };
        open.steps.insert(step.number, open_step);
        drop(open);
        self.engine.step(step);
        let mut open = self.shared.open.lock().expect("nobody panics while holding it");
        while open.steps.len() > STEPS_OPEN_MAX {
            open = self.shared.closed.wait(open).expect("nobody panics while holding it");
        }
    }

    /// Reads the log from its beginning, as if all of it came now; then writes the definitions down, if they are new.
    fn read_again(&mut self, text: &str, plan: &Arc<Plan>) -> Result<Found, LogError> {
        let mut found = Found::default();
        let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        let secret = self.log.id();
        let mut last_text = None;
        // What stands in the log was accepted; what is too late by now is no matter.
        self.sequencer.set_lateness(None);
        let mut reader = self.log.reader();
        while let Some(record) = reader.next()? {
            found.position = record.position;
            self.sequencer.tick(record.received_at);
            match record.kind {
                record::EVENT => {
                    if let Ok(prepared) = record::prepare(record.payload, &mut decoder, &secret) {
                        self.sequencer.admit(record.position, record.received_at, prepared);
                    }
                }
                record::DEFINITIONS => {
                    last_text = Some(record.payload.to_vec());
                    found.active_since = record.received_at;
                }
                record::DEAD_LETTER => {
                    let letter = serde_json::from_slice::<DeadLetter>(record.payload);
                    let reason = letter.map_or(Reason::Invalid, |letter| letter.reason);
                    let mut open = self.shared.open.lock().expect("nobody panics while holding it");
                    open.keep(record.position, reason, DeadLetterAt::Own);
                }
                record::DISPATCH => found.dispatched.extend(serde_json::from_slice::<Dispatch>(record.payload).ok()),
                _ => {}
            }
            if self.sequencer.len() >= STEP_EVENTS {
                self.close();
            }
        }
        drop(reader);
        self.sequencer.set_lateness(plan.definitions.lateness);
        if last_text.as_deref() != Some(text.as_bytes()) {
            if self.clock == ClockMode::Wall {
                self.sequencer.tick((self.now)());
            }
            found.active_since = self.sequencer.clock();
            self.group.push((record::DEFINITIONS, self.sequencer.clock(), text.as_bytes().to_vec()));
        }
        self.commit()?;
        self.close();
        let mut open = self.shared.open.lock().expect("nobody panics while holding it");
        while !open.steps.is_empty() {
            open = self.shared.closed.wait(open).expect("nobody panics while holding it");
        }
        open.log_is_read = true;
        Ok(found)
    }
}
