//! The writer: the one thread that puts everything in order.
//!
//! Calls, clocks, questions and the ledger's entries come in by one queue. The writer gives each its place, stamps it,
//! writes the group to the log with one sync, answers those who wait, and hands the group to the engine as a step: so
//! an event is acknowledged only when it is durable, and a question asked after an answer sees what was answered.
//! What a place means, that an event was seen before or comes too late, is the engine's to find.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use dataflows::admission::Verdict;
use dataflows::engine::{Acceptance, Config, Engine, Peers};
use dataflows::event::{Decoder, Reason};
use dataflows::place::place;
use dataflows::plan::Plan;
use dataflows::profile::answers::IntentRow;
use dataflows::protocol::{self, Answer, Question, Record, Response, Step};
use dataflows::time::Millis;
use tokio::sync::{mpsc, oneshot};

use crate::cluster::{LEADER, Letter, Others, Round, Team};
use crate::door::Incoming;
use crate::log::{Log, LogError};
use crate::metrics::Histogram;
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
    /// Calls, to be decided on and kept; and when they came.
    Events(Vec<Incoming>, Instant, oneshot::Sender<Receipt>),
    /// Calls that the door has refused, to be kept as dead letters.
    DeadLetters(Vec<DeadLetter>),
    /// The clock is to go on.
    Clock(Millis, oneshot::Sender<AsOf>),
    /// Something is asked.
    Ask(Question, oneshot::Sender<Answered>),
    /// What became of intents, to be kept before it is told.
    Dispatch(Vec<Dispatch>, oneshot::Sender<AsOf>),
    /// Another process writes.
    Letter(usize, Letter),
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

/// What those who act on what changed are told, in order.
#[derive(Clone, Debug)]
pub enum Told {
    /// A step is closed.
    Closed(Closed),
    /// The leading process has written down what became of intents.
    Dispatched(Vec<Dispatch>),
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
    work: Sender<Work>,
    shared: Arc<Shared>,
}

/// What the writer and the engine's threads share with those who ask.
#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Open>,
    closed: Condvar,
    /// Work that waits for the writer.
    queued: AtomicUsize,
    step_times: Histogram,
    receipt_times: Histogram,
}

#[derive(Debug, Default)]
struct Open {
    /// Steps, each with when it was handed to the engine.
    steps: BTreeMap<u64, (Instant, Waiting)>,
    /// The last step that closed.
    last: AsOf,
    log_is_read: bool,
    dead_letters: BTreeMap<u64, Verdict>,
    verdicts: BTreeMap<&'static str, u64>,
    reasons: BTreeMap<&'static str, u64>,
}

impl Open {
    /// A call was not taken as it is, and why. What it says may be personal: that is for who may read dead letters.
    fn refused(&mut self, reason: &'static str, position: u64) {
        *self.reasons.entry(reason).or_default() += 1;
        // What the log held is no news.
        if self.log_is_read {
            tracing::info!(reason, position, "a call was not taken as it is");
        }
    }
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

/// Who waits until a step is closed.
#[derive(Debug, Default)]
struct Waiting {
    questions: HashMap<u64, oneshot::Sender<Answered>>,
    /// Calls whose verdicts the engine has to give: the first's place, and how many.
    receipts: Vec<(oneshot::Sender<Receipt>, u64, usize)>,
    clocks: Vec<oneshot::Sender<AsOf>>,
    /// When its bodies of calls came.
    received: Vec<Instant>,
}

impl Hub {
    /// The way to a state that no longer changes: what is asked is answered, and nothing else is done.
    pub fn still(as_of: AsOf, mut answer: impl FnMut(Question) -> Vec<Answer> + Send + 'static) -> Hub {
        let (work, queue) = channel();
        let hub = Hub { work, shared: Arc::default() };
        let shared = Arc::clone(&hub.shared);
        let answers = move || {
            for work in queue {
                shared.queued.fetch_sub(1, Ordering::Relaxed);
                if let Work::Ask(question, reply) = work {
                    // Whoever asked may have gone.
                    let _ = reply.send(Answered { as_of, parts: answer(question) });
                }
            }
        };
        std::thread::Builder::new().name("answers".into()).spawn(answers).expect("the system gives a thread");
        hub
    }

    /// Gives work to the writer, unless its queue is full.
    pub fn give(&self, work: Work) -> Result<(), NotTaken> {
        if self.shared.queued.fetch_add(1, Ordering::Relaxed) >= QUEUE_MAX {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(NotTaken::Busy);
        }
        self.work.send(work).map_err(|_| NotTaken::Stopping)
    }

    /// Asks, and waits for the answer of every worker.
    pub async fn ask(&self, question: Question) -> Result<Answered, NotTaken> {
        let (reply, answered) = oneshot::channel();
        self.give(Work::Ask(question, reply))?;
        answered.await.map_err(|_| NotTaken::Stopping)
    }

    /// The clock of the last step that closed, ms; 0 before the first.
    pub fn clock(&self) -> Millis {
        self.lock().last.clock
    }

    /// How many events of the log were decided on so; refused edges are accepted besides.
    pub fn verdicts(&self) -> BTreeMap<&'static str, u64> {
        self.lock().verdicts.clone()
    }

    /// How many calls of the log were not taken as they are, by reason.
    pub fn reasons(&self) -> BTreeMap<&'static str, u64> {
        self.lock().reasons.clone()
    }

    /// How far the writer and the engine are.
    pub fn progress(&self) -> Progress {
        let (open, queued) = (self.lock(), self.shared.queued.load(Ordering::Relaxed));
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
    /// The other processes, if there are any.
    pub team: Option<Team>,
    /// Told of every step that closes.
    pub told: mpsc::UnboundedSender<Told>,
    /// How wall time is told, ms; the clock's seam.
    pub now: fn() -> Millis,
}

/// What the log held at the start.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Whether messages leave by this process.
    pub leads: bool,
    /// Since when the definitions have been as they are, ms.
    pub active_since: Millis,
    /// The ledger's entries, in order.
    pub dispatched: Vec<Dispatch>,
    /// Up to where the log was read.
    pub position: u64,
}

/// Reads the log again, then starts the writer's thread. Gives the way to it and what the log held.
pub fn start(start: Start) -> Result<(Hub, Found, std::thread::JoinHandle<Result<(), LogError>>), LogError> {
    let Start { log, workers, clock, definitions: (text, plan), team, told, now } = start;
    let (work, queue) = channel();
    let shared = Arc::new(Shared::default());
    let hub = Hub { work: work.clone(), shared: Arc::clone(&shared) };
    let closes = Arc::clone(&shared);
    let acceptance = match clock {
        ClockMode::Wall => Acceptance::Stamped,
        ClockMode::Events => Acceptance::InOrder,
    };
    let config = Config { workers, plan: Arc::clone(&plan), acceptance };
    let tells = told.clone();
    // Alone it hears from nobody, and ends when all are gone who may give it work.
    let letters = team.as_ref().map(|_| work);
    let heard = move |response| match response {
        Response::Closed(closed) => closes.close(closed, &tells),
        Response::Letter(from, letter) => match serde_json::from_slice(&letter) {
            Ok(letter) => drop(letters.as_ref().map(|writer| writer.send(Work::Letter(from, letter)))),
            Err(error) => tracing::error!(from, %error, "a letter cannot be read"),
        },
    };
    let (secret, last_time) = (log.id(), log.last_time());
    let (engine, others, secret, last_time) = match team {
        None => (Engine::start(config, heard), None, secret, last_time),
        Some(Team { process, connections, secret, last_time, hosts }) => {
            let processes = connections.len();
            let lost = Box::new(move |peer: usize| lost(peer, &hosts[peer]));
            let engine = Engine::start_among(config, Peers { process, connections, lost }, heard);
            let others = Others::new(process, processes, engine.post());
            (engine, Some(others), secret, last_time)
        }
    };
    let mut writer = Writer {
        log,
        engine,
        others,
        secret,
        shared,
        told,
        queue,
        held: VecDeque::new(),
        mode: clock,
        now,
        clock: 0,
        question: 0,
        step: Step::first(),
        group: Vec::new(),
        waiting: Waiting::default(),
        durable: Vec::new(),
    };
    let found = writer.read_again(text, &plan, last_time)?;
    let thread = std::thread::Builder::new().name("writer".into()).spawn(move || writer.run());
    Ok((hub, found, thread.expect("the system gives a thread")))
}

/// The connection to another process is lost: no step will close any more, so this one ends too. What was acknowledged
/// is in the logs.
fn lost(peer: usize, host: &str) {
    eprintln!("thalweg: process {peer} at {host} is gone, so this one ends too; start all of them again");
    std::process::exit(1);
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().expect("nobody panics while holding it")
    }

    /// A step is closed: answers those who wait for that. Those who asked may have gone.
    fn close(&self, closed: protocol::Closed, told: &mpsc::UnboundedSender<Told>) {
        let mut open = self.lock();
        let Some((handed, waiting)) = open.steps.remove(&closed.number) else { return };
        let as_of = AsOf { position: closed.position, clock: closed.clock };
        open.last = as_of;
        let decided: HashMap<u64, Verdict> = closed.verdicts.into_iter().collect();
        for (position, verdict) in &decided {
            *open.verdicts.entry(verdict.name()).or_default() += 1;
            if *verdict != Verdict::Duplicate {
                open.dead_letters.insert(*position, *verdict);
            }
            // Why a call is no event is known where it is written down.
            if !matches!(verdict, Verdict::Duplicate | Verdict::Invalid) {
                open.refused(verdict.name(), *position);
            }
        }
        *open.verdicts.entry(Verdict::Accepted.name()).or_default() += closed.accepted;
        drop(open);
        self.closed.notify_all();
        self.step_times.observe(handed.elapsed());
        waiting.received.iter().for_each(|received| self.receipt_times.observe(received.elapsed()));
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
        let _ = told.send(Told::Closed(Closed { as_of, intents: closed.intents }));
    }
}

/// A reply that waits until its group is durable.
enum Durable {
    Receipt(oneshot::Sender<Receipt>, usize),
    Dispatched(Vec<Dispatch>, oneshot::Sender<AsOf>),
}

struct Writer {
    log: Log,
    engine: Engine,
    others: Option<Others>,
    /// The key of hashes.
    secret: [u8; 16],
    shared: Arc<Shared>,
    told: mpsc::UnboundedSender<Told>,
    queue: Receiver<Work>,
    /// Work that waits until the leader closes a step.
    held: VecDeque<Work>,
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
    fn run(mut self) -> Result<(), LogError> {
        loop {
            let leads = self.others.as_ref().is_none_or(Others::leads);
            if !leads && !self.follow() {
                return Ok(());
            }
            let goes_on = !leads || self.lead();
            self.commit()?;
            self.close();
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Gathers what comes until a step is worth closing, and says so to the other processes. False: it was the last.
    fn lead(&mut self) -> bool {
        let mut goes_on = true;
        let mut next = loop {
            match self.queue.recv_timeout(TICK) {
                Ok(work) => break Some(work),
                Err(RecvTimeoutError::Timeout) if self.mode == ClockMode::Wall => break None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        };
        if self.mode == ClockMode::Wall {
            self.clock = self.clock.max((self.now)());
        }
        while let Some(work) = next {
            match work {
                Work::Stop | Work::Letter(_, Letter::Stop) => goes_on = false,
                // That a step is wanted is all it says.
                Work::Letter(..) => {}
                work => self.take(work),
            }
            next = if self.step.len() < STEP_EVENTS { self.queue.try_recv().ok() } else { None };
        }
        self.announce(None);
        if !goes_on && let Some(others) = &self.others {
            others.tell_all(&Letter::Stop);
        }
        goes_on
    }

    /// Waits until the leader closes a step, and gives it what has come until then. False: there is none any more.
    fn follow(&mut self) -> bool {
        loop {
            let Ok(work) = self.queue.recv() else { return false };
            match work {
                Work::Letter(_, Letter::Round(round)) => {
                    self.step.number = round.number;
                    self.clock = self.clock.max(round.clock);
                    while self.step.len() < STEP_EVENTS
                        && let Some(work) = self.held.pop_front()
                    {
                        self.take(work);
                    }
                    if !self.held.is_empty() {
                        self.want();
                    }
                    return true;
                }
                Work::Letter(_, Letter::Stop) => return false,
                Work::Letter(_, Letter::Ledger(_, dispatched)) => drop(self.told.send(Told::Dispatched(dispatched))),
                Work::Letter(..) => {}
                Work::Stop => {
                    // The leader closes what is under way, and then tells everyone.
                    self.others.iter().for_each(|others| others.tell(LEADER, &Letter::Stop));
                }
                work => {
                    if self.held.is_empty() {
                        self.want();
                    }
                    self.held.push_back(work);
                }
            }
        }
    }

    fn want(&self) {
        self.others.iter().for_each(|others| others.tell(LEADER, &Letter::Want));
    }

    fn take(&mut self, work: Work) {
        self.shared.queued.fetch_sub(1, Ordering::Relaxed);
        match work {
            Work::Events(events, received, reply) => {
                self.waiting.received.push(received);
                self.events(events, reply);
            }
            Work::DeadLetters(letters) => {
                for letter in letters {
                    let position = self.write_json(record::DEAD_LETTER, &letter);
                    self.step.record(Record::Unreadable(position));
                    self.shared.lock().refused(letter.reason.name(), position);
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
                self.durable.push(Durable::Dispatched(entries, reply));
            }
            Work::Stop | Work::Letter(..) => {}
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

    fn process(&self) -> usize {
        self.others.as_ref().map_or(LEADER, |others| others.process)
    }

    fn next_position(&self) -> u64 {
        place(self.step.number, self.process(), self.group.len())
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
                Durable::Dispatched(entries, reply) => {
                    let _ = reply.send(as_of);
                    if let Some(others) = &self.others {
                        others.tell_all(&Letter::Ledger(0, entries));
                    }
                }
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
        let waiting = std::mem::take(&mut self.waiting);
        self.shared.lock().steps.insert(step.number, (Instant::now(), waiting));
        self.engine.step(step);
        match self.mode {
            ClockMode::Wall => drop(self.wait(STEPS_OPEN_MAX)),
            ClockMode::Events => {
                let clock = self.wait(0).last.clock;
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
    /// Where several processes read theirs, the leader says how far each step goes, so that all records are decided on
    /// in the order of their places.
    fn read_again(&mut self, text: String, plan: &Arc<Plan>, last_time: u64) -> Result<Found, LogError> {
        let leads = self.others.as_ref().is_none_or(Others::leads);
        let mut found = Found { leads, ..Found::default() };
        let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        let mut last = None;
        let mut until = if leads { u64::MAX } else { self.next_slice(&mut found) };
        let mut reader = self.log.reader();
        let mut at = 0;
        while let Some((record, (time, index))) = reader.next()? {
            // Steps end where groups do.
            if leads && time > at && self.step.len() >= STEP_EVENTS {
                self.slice(at);
            }
            while !leads && time > until {
                self.close();
                until = self.next_slice(&mut found);
            }
            at = time;
            let position = place(time, self.process(), index);
            self.clock = self.clock.max(record.received_at);
            match record.kind {
                record::EVENT => {
                    if let Ok(mut prepared) = record::prepare(record.payload, &mut decoder, &self.secret) {
                        let earliest = last.as_ref().and_then(|defined: &Defined| defined.lateness);
                        let earliest = earliest.map(|lateness| record.received_at - lateness);
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
                        // What came before was accepted by what held then. It is the first of its group.
                        if leads {
                            self.slice(time - 1);
                        }
                        self.step.lateness = defined.lateness;
                        last = Some(defined);
                    }
                }
                record::DEAD_LETTER => {
                    self.step.record(Record::Unreadable(position));
                    let letter = serde_json::from_slice::<DeadLetter>(record.payload);
                    let reason = letter.map_or(Reason::Invalid, |letter| letter.reason);
                    self.shared.lock().refused(reason.name(), position);
                }
                record::DISPATCH => found.dispatched.extend(serde_json::from_slice::<Dispatch>(record.payload).ok()),
                _ => {}
            }
            self.step.position = position;
        }
        if leads {
            if let Some(others) = &self.others {
                others.tell_all(&Letter::Ledger(found.active_since, found.dispatched.clone()));
            }
            self.slice(u64::MAX);
        } else {
            while until < u64::MAX {
                self.close();
                until = self.next_slice(&mut found);
            }
            self.close();
        }
        // What is recorded from now on comes after all that is in any log.
        self.step.number = self.step.number.max(last_time + 1);
        let defined = Defined { lateness: plan.definitions.lateness, text };
        if last.as_ref() != Some(&defined) {
            if self.mode == ClockMode::Wall {
                self.clock = self.clock.max((self.now)());
            }
            if leads {
                found.active_since = self.clock;
            }
            self.write_json(record::DEFINITIONS, &defined);
        }
        self.step.lateness = defined.lateness;
        if leads {
            if let Some(others) = &self.others {
                others.tell_all(&Letter::Ledger(found.active_since, Vec::new()));
            }
            self.announce(None);
        } else {
            self.next_slice(&mut found);
        }
        self.commit()?;
        self.close();
        found.position = self.step.position;
        self.wait(0).log_is_read = true;
        Ok(found)
    }

    /// The leader closes a step of what stands in the logs up to a time.
    fn slice(&mut self, until: u64) {
        self.announce(Some(until));
        self.close();
    }

    /// The leader tells the others which step is to be closed.
    fn announce(&self, until: Option<u64>) {
        if let Some(others) = &self.others {
            let clock = if self.mode == ClockMode::Wall { self.clock } else { 0 };
            others.tell_all(&Letter::Round(Round { number: self.step.number, clock, until }));
        }
    }

    /// Another process waits until the leader says how far the next step goes.
    fn next_slice(&mut self, found: &mut Found) -> u64 {
        loop {
            match self.queue.recv() {
                Ok(Work::Letter(_, Letter::Round(round))) => {
                    self.step.number = round.number;
                    self.clock = self.clock.max(round.clock);
                    return round.until.unwrap_or(u64::MAX);
                }
                Ok(Work::Letter(_, Letter::Ledger(active_since, mut dispatched))) => {
                    found.active_since = active_since;
                    found.dispatched.append(&mut dispatched);
                }
                // Nobody else has the way to the writer yet.
                _ => {}
            }
        }
    }
}
