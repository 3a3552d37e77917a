//! The writer: the one thread that puts everything in order.
//!
//! Calls, clocks, questions and the ledger's entries come in by one queue. The writer gives each its place, stamps it,
//! writes the group to the log with one sync, answers those who wait, and hands the group to the engine as a step: so
//! an event is acknowledged only when it is durable, and a question asked after an answer sees what was answered.
//! What a place means, that an event was seen before or comes too late, is the engine's to find.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use dataflows::admission::Verdict;
use dataflows::engine::{Acceptance, Config, Engine};
use dataflows::event::Decoder;
use dataflows::place::place;
use dataflows::plan::Plan;
use dataflows::profile::answers::IntentRow;
use dataflows::protocol::{self, Answer, Question, Record, Response, Step};
use dataflows::time::Millis;
use tokio::sync::{mpsc, oneshot};

use crate::door::Incoming;
use crate::log::{Log, LogError};
use crate::record::{self, Clock, DeadLetter, Defined, Dispatch};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    work: SyncSender<Work>,
    shared: Arc<Shared>,
}

/// What the writer and the engine's threads share with those who ask.
#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Open>,
    closed: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    steps: BTreeMap<u64, Waiting>,
    /// The clock of the last step that closed.
    clock: Millis,
    dead_letters: BTreeMap<u64, Verdict>,
    verdicts: BTreeMap<&'static str, u64>,
}

/// Who waits until a step is closed.
#[derive(Debug, Default)]
struct Waiting {
    questions: HashMap<u64, oneshot::Sender<Answered>>,
    /// Calls whose verdicts the engine has to give: the first's place, and how many.
    receipts: Vec<(oneshot::Sender<Receipt>, u64, usize)>,
    clocks: Vec<oneshot::Sender<AsOf>>,
}

impl Hub {
    /// The way to a state that no longer changes: what is asked is answered, and nothing else is done.
    pub fn still(as_of: AsOf, mut answer: impl FnMut(Question) -> Vec<Answer> + Send + 'static) -> Hub {
        let (work, queue) = sync_channel(QUEUE_MAX);
        let answers = move || {
            for work in queue {
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
        self.work.try_send(work).map_err(|error| match error {
            TrySendError::Full(_) => NotTaken::Busy,
            TrySendError::Disconnected(_) => NotTaken::Stopping,
        })
    }

    /// Asks, and waits for the answer of every worker.
    pub async fn ask(&self, question: Question) -> Result<Answered, NotTaken> {
        let (reply, answered) = oneshot::channel();
        self.give(Work::Ask(question, reply))?;
        answered.await.map_err(|_| NotTaken::Stopping)
    }

    /// The clock of the last step that closed, ms; 0 before the first.
    pub fn clock(&self) -> Millis {
        self.lock().clock
    }

    /// How many events of the log were decided on so; refused edges are accepted besides.
    pub fn verdicts(&self) -> BTreeMap<&'static str, u64> {
        self.lock().verdicts.clone()
    }

    /// Dead letters, newest first: where they stand in the log, and how they were decided on.
    pub fn dead_letters(&self, before: Option<u64>, limit: usize) -> Vec<(u64, Verdict)> {
        let open = self.lock();
        let older = open.dead_letters.range(..before.unwrap_or(u64::MAX)).rev();
        older.take(limit).map(|(position, verdict)| (*position, *verdict)).collect()
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
/// The number of this process.
const PROCESS: usize = 0;
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
    let (text, plan) = start.definitions;
    let told = start.told;
    let closes = Arc::clone(&shared);
    let acceptance = match start.clock {
        ClockMode::Wall => Acceptance::Stamped,
        ClockMode::Events => Acceptance::InOrder,
    };
    let config = Config { workers: start.workers, plan: Arc::clone(&plan), acceptance };
    let engine = Engine::start(config, move |response| {
        if let Response::Closed(closed) = response {
            closes.close(closed, &told);
        }
    });
    let mut writer = Writer {
        log: start.log,
        engine,
        shared,
        mode: start.clock,
        now: start.now,
        clock: 0,
        question: 0,
        step: Step::first(),
        group: Vec::new(),
        waiting: Waiting::default(),
        durable: Vec::new(),
    };
    let found = writer.read_again(text, &plan)?;
    let thread = std::thread::Builder::new().name("writer".into()).spawn(move || writer.run(&queue));
    Ok((hub, found, thread.expect("the system gives a thread")))
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().expect("nobody panics while holding it")
    }

    /// A step is closed: answers those who wait for that. Those who asked may have gone.
    fn close(&self, closed: protocol::Closed, told: &mpsc::UnboundedSender<Closed>) {
        let mut open = self.lock();
        let Some(waiting) = open.steps.remove(&closed.number) else { return };
        let as_of = AsOf { position: closed.position, clock: closed.clock };
        open.clock = closed.clock;
        let decided: HashMap<u64, Verdict> = closed.verdicts.into_iter().collect();
        for (position, verdict) in &decided {
            *open.verdicts.entry(verdict.name()).or_default() += 1;
            if *verdict != Verdict::Duplicate {
                open.dead_letters.insert(*position, *verdict);
            }
        }
        *open.verdicts.entry(Verdict::Accepted.name()).or_default() += closed.accepted;
        drop(open);
        self.closed.notify_all();
        let mut answers: HashMap<u64, Vec<Answer>> = HashMap::new();
        for (question, part) in closed.answers {
            answers.entry(question).or_default().push(part);
        }
        for (question, reply) in waiting.questions {
            let _ = reply.send(Answered { as_of, parts: answers.remove(&question).unwrap_or_default() });
        }
        for (reply, first, count) in waiting.receipts {
            let verdict = |position| decided.get(&position).copied().unwrap_or(Verdict::Accepted);
            let _ = reply.send(Receipt { as_of, verdicts: (first..).take(count).map(verdict).collect() });
        }
        for reply in waiting.clocks {
            let _ = reply.send(as_of);
        }
        let _ = told.send(Closed { as_of, intents: closed.intents });
    }
}

/// A reply that waits until its group is durable.
enum Durable {
    Receipt(oneshot::Sender<Receipt>, usize),
    AsOf(oneshot::Sender<AsOf>),
}

struct Writer {
    log: Log,
    engine: Engine,
    shared: Arc<Shared>,
    mode: ClockMode,
    now: fn() -> Millis,
    /// The clock as far as the writer knows it, ms: where events move it, at least that of the last step, and at most
    /// too far on by what turns out not to count.
    clock: Millis,
    question: u64,
    step: Step,
    group: Vec<(u8, Millis, Vec<u8>)>,
    waiting: Waiting,
    durable: Vec<Durable>,
}

impl Writer {
    /// The writer's life: a group at a time, until it is told to stop.
    fn run(mut self, queue: &Receiver<Work>) -> Result<(), LogError> {
        loop {
            let mut next = match queue.recv_timeout(TICK) {
                Ok(work) => Some(work),
                Err(RecvTimeoutError::Timeout) if self.mode == ClockMode::Wall => None,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            if self.mode == ClockMode::Wall {
                self.clock = self.clock.max((self.now)());
            }
            let mut stopping = false;
            while let Some(work) = next {
                match work {
                    Work::Stop => stopping = true,
                    work => self.take(work),
                }
                next = if self.step.len() < STEP_EVENTS { queue.try_recv().ok() } else { None };
            }
            self.commit()?;
            self.close();
            if stopping {
                return Ok(());
            }
        }
    }

    fn take(&mut self, work: Work) {
        match work {
            Work::Events(events, reply) => self.events(events, reply),
            Work::DeadLetters(letters) => {
                for letter in letters {
                    let position = self.write_json(record::DEAD_LETTER, &letter);
                    self.step.record(Record::Unreadable(position));
                }
            }
            Work::Clock(to, reply) => {
                if to > self.clock {
                    self.clock = to;
                    let position = self.write_json(record::CLOCK, &Clock { to });
                    self.step.record(Record::Clock(position, to));
                }
                self.waiting.clocks.push(reply);
            }
            Work::Ask(question, reply) => {
                self.question += 1;
                self.waiting.questions.insert(self.question, reply);
                self.step.questions.push((self.question, question));
            }
            Work::Dispatch(entries, reply) => {
                for entry in &entries {
                    self.write_json(record::DISPATCH, entry);
                }
                self.durable.push(Durable::AsOf(reply));
            }
            Work::Stop => {}
        }
    }

    fn events(&mut self, events: Vec<Incoming>, reply: oneshot::Sender<Receipt>) {
        let (first, count) = (self.next_position(), events.len());
        // Where events move the clock, the engine alone knows it.
        let mut may_be_late = self.mode == ClockMode::Events;
        for Incoming { kind, mut prepared, undated, body } in events {
            if undated {
                prepared.date(self.clock);
            }
            let timestamp = prepared.event.timestamp;
            if self.mode == ClockMode::Events {
                self.clock = self.clock.max(timestamp);
            }
            prepared.is_late = self.step.lateness.is_some_and(|lateness| timestamp < self.clock - lateness);
            may_be_late |= prepared.is_late;
            let payload = record::encode_event(kind, timestamp, &prepared.event.message_id, &body);
            prepared.place(self.next_position());
            self.group.push((record::EVENT, self.clock, payload));
            self.step.record(Record::Event(prepared));
        }
        if may_be_late {
            self.waiting.receipts.push((reply, first, count));
        } else {
            self.durable.push(Durable::Receipt(reply, count));
        }
    }

    /// Adds a record to the group; gives its position.
    fn write_json(&mut self, kind: u8, payload: &impl serde::Serialize) -> u64 {
        let position = self.next_position();
        let payload = serde_json::to_vec(payload).expect("records have string keys");
        self.group.push((kind, self.clock, payload));
        position
    }

    fn next_position(&self) -> u64 {
        place(self.step.number, PROCESS, self.group.len())
    }

    /// Makes the group durable, then answers those who wait for that alone.
    fn commit(&mut self) -> Result<(), LogError> {
        if !self.group.is_empty() {
            self.step.position = self.next_position() - 1;
            self.log.append(self.step.number, &self.group)?;
            self.group.clear();
        }
        let as_of = AsOf { position: self.step.position, clock: self.clock };
        for reply in self.durable.drain(..) {
            match reply {
                Durable::Receipt(reply, count) => {
                    let _ = reply.send(Receipt { as_of, verdicts: vec![Verdict::Accepted; count] });
                }
                Durable::AsOf(reply) => drop(reply.send(as_of)),
            }
        }
        Ok(())
    }

    /// Hands the step to the engine; waits while the engine is too far behind.
    fn close(&mut self) {
        if self.mode == ClockMode::Wall {
            self.step.clock = self.clock;
        }
        let step = self.step.close();
        self.shared.lock().steps.insert(step.number, std::mem::take(&mut self.waiting));
        self.engine.step(step);
        match self.mode {
            ClockMode::Wall => drop(self.wait(STEPS_OPEN_MAX)),
            ClockMode::Events => {
                let clock = self.wait(0).clock;
                self.clock = clock;
            }
        }
    }

    /// Waits until so many steps are open at most.
    fn wait(&self, open_max: usize) -> std::sync::MutexGuard<'_, Open> {
        let open = self.shared.lock();
        let behind = |open: &mut Open| open.steps.len() > open_max;
        self.shared.closed.wait_while(open, behind).expect("nobody panics while holding it")
    }

    /// Reads the log from its beginning, as if all of it came now; then writes the definitions down, if they are new.
    fn read_again(&mut self, text: String, plan: &Arc<Plan>) -> Result<Found, LogError> {
        let mut found = Found::default();
        let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        let secret = self.log.id();
        let mut last = None;
        let mut reader = self.log.reader();
        while let Some((record, (time, index))) = reader.next()? {
            let position = place(time, PROCESS, index);
            self.clock = self.clock.max(record.received_at);
            match record.kind {
                record::EVENT => {
                    if let Ok(mut prepared) = record::prepare(record.payload, &mut decoder, &secret) {
                        let earliest = self.step.lateness.map(|lateness| record.received_at - lateness);
                        prepared.is_late = earliest.is_some_and(|earliest| prepared.event.timestamp < earliest);
                        prepared.place(position);
                        self.step.record(Record::Event(prepared));
                    }
                }
                record::CLOCK => {
                    let clock = serde_json::from_slice::<Clock>(record.payload).ok();
                    clock.into_iter().for_each(|clock| self.step.record(Record::Clock(position, clock.to)));
                }
                record::DEFINITIONS => {
                    found.active_since = record.received_at;
                    if let Ok(defined) = serde_json::from_slice::<Defined>(record.payload) {
                        // What came before was accepted by what held then.
                        self.close();
                        self.step.lateness = defined.lateness;
                        last = Some(defined);
                    }
                }
                record::DEAD_LETTER => self.step.record(Record::Unreadable(position)),
                record::DISPATCH => found.dispatched.extend(serde_json::from_slice::<Dispatch>(record.payload).ok()),
                _ => {}
            }
            self.step.position = position;
            if self.step.len() >= STEP_EVENTS {
                self.close();
            }
        }
        self.close();
        // What is recorded from now on comes after all that is in the log.
        self.step.number = self.step.number.max(self.log.last_time() + 1);
        let defined = Defined { lateness: plan.definitions.lateness, text };
        if last.as_ref() != Some(&defined) {
            if self.mode == ClockMode::Wall {
                self.clock = self.clock.max((self.now)());
            }
            found.active_since = self.clock;
            self.write_json(record::DEFINITIONS, &defined);
        }
        self.step.lateness = defined.lateness;
        self.commit()?;
        self.close();
        found.position = self.step.position;
        drop(self.wait(0));
        Ok(found)
    }
}
