//! The writer: the one thread that puts everything in order.
//!
//! Calls, clocks, questions and the ledger's entries come in by one queue. The writer gives each its place, stamps it,
//! writes the group to the log with one sync, answers those who wait, and hands the group to the engine as a step: so
//! an event is acknowledged only when it is durable, and a question asked after an answer sees what was answered.
//! What a place means, that an event was seen before or comes too late, is the engine's to find.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use dataflows::admission::Verdict;
use dataflows::engine::{Acceptance, Config, Engine, Peers};
use dataflows::event::{Decoder, Reason};
use dataflows::place::{PROCESSES_MAX, RECORDS_MAX, place};
use dataflows::plan::Plan;
use dataflows::profile::answers::IntentRow;
use dataflows::protocol::{self, Answer, Question, Record, Response, Step};
use dataflows::time::Millis;
use tokio::sync::{mpsc, oneshot};

use crate::cluster::{LEADER, Letter, Others, Round, Team, lost};
use crate::desk::Desk;
use crate::door::Arrived;
use crate::door::Incoming;
use crate::follow::Follows;
use crate::log::{Log, LogReader};
use crate::metrics::Histogram;
use crate::record::{self, Clock, DeadLetter, Defined, Dispatch};
use crate::stream::feed::{self, Feed, Feeding, Read, What};
use crate::stream::{Kept, Stream};

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
    /// The stream that is the log has these next.
    Read(Vec<Read>),
    /// What was given to the stream under this id is not kept there.
    NotKept(String),
    /// The stream cannot be read any more, and why.
    Failed(String),
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
    /// The number of the step that it belongs to.
    pub number: u64,
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
#[derive(Clone)]
pub struct Hub {
    work: Sender<Work>,
    shared: Arc<Shared>,
}

/// What the writer and the engine's threads share with those who ask.
#[derive(Default)]
struct Shared {
    open: Mutex<Open>,
    closed: Condvar,
    /// Work that waits for the writer.
    queued: AtomicUsize,
    step_times: Histogram,
    receipt_times: Histogram,
    /// Views that somebody follows here.
    follows: Follows,
    /// By which it is told what was not taken, where the log is a stream and this process leads.
    feed: OnceLock<Feed>,
}

#[derive(Debug, Default)]
struct Open {
    /// Steps, each with when it was handed to the engine.
    steps: BTreeMap<u64, (Instant, Waiting)>,
    /// The last step that closed.
    last: AsOf,
    log_is_read: bool,
    /// When the last step closed.
    closed_at: Option<Instant>,
    /// Whether steps close also when nothing comes.
    ticks: bool,
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

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("queued", &self.shared.queued).finish_non_exhaustive()
    }
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
                    let _ = reply.send(Answered { as_of, number: 0, parts: answer(question) });
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

    /// For how long no step has closed though one should have.
    pub fn stands_still(&self) -> Duration {
        let open = self.lock();
        let due = open.ticks || !open.steps.is_empty();
        open.closed_at.filter(|_| due).map_or(Duration::ZERO, |closed| closed.elapsed())
    }

    /// Views that somebody follows here.
    pub(crate) fn follows(&self) -> &Follows {
        &self.shared.follows
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
    pub log: Store,
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

/// Where the log is.
pub enum Store {
    /// In files of this process.
    Own(Log),
    /// In a stream that was opened: where the last record that was read is written down, and up to where the stream
    /// stands.
    Stream(Stream, Kept, u64),
}

/// What the log held at the start.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The number of this process.
    pub process: usize,
    /// Since when the definitions have been as they are, ms.
    pub active_since: Millis,
    /// The ledger's entries, in order.
    pub dispatched: Vec<Dispatch>,
    /// Up to where the log was read.
    pub position: u64,
}

/// A writer at work.
pub struct Started {
    /// The way to it.
    pub hub: Hub,
    /// What the log held.
    pub found: Found,
    /// Its thread.
    pub thread: std::thread::JoinHandle<Result<(), String>>,
    /// The key of hashes.
    pub secret: [u8; 16],
    /// What reaches the other processes, if there are any.
    pub desk: Option<Arc<Desk>>,
}

/// Reads the log again, then starts the writer's thread.
pub fn start(start: Start) -> Result<Started, String> {
    let Start { log, workers, clock, definitions: (text, plan), team, told, now } = start;
    let (work, queue) = channel();
    let shared = Arc::new(Shared::default());
    shared.lock().ticks = clock == ClockMode::Wall;
    let hub = Hub { work: work.clone(), shared: Arc::clone(&shared) };
    let closes = Arc::clone(&shared);
    let acceptance = match clock {
        ClockMode::Wall => Acceptance::Stamped,
        ClockMode::Events => Acceptance::InOrder,
    };
    let config = Config { workers, plan: Arc::clone(&plan), acceptance };
    let tells = told.clone();
    // Alone it hears from nobody, and ends when all are gone who may give it work.
    let desk = team.as_ref().map(|_| Arc::new(Desk::new(log.reader())));
    let letters = desk.clone().zip(Some(work.clone()).filter(|_| team.is_some()));
    let heard = move |response| match (response, &letters) {
        (Response::Closed(closed), _) => closes.close(closed, &tells),
        (Response::Letter(from, letter), Some((desk, writer))) => match serde_json::from_slice(&letter) {
            Ok(Letter::Ask(number, ask)) => desk.asked(from, number, ask),
            Ok(Letter::Reply(number, reply)) => desk.answered(number, reply),
            Ok(letter) => drop(writer.send(Work::Letter(from, letter))),
            Err(error) => tracing::error!(from, %error, "a letter cannot be read"),
        },
        (Response::Letter(..), None) => {}
    };
    let (secret, last_time) = log.identity();
    let (engine, others, secret, last_time) = match team {
        None => (Engine::start(config, heard), None, secret, last_time),
        Some(Team { process, connections, secret, last_time, hosts }) => {
            let processes = connections.len();
            let lost = Box::new(move |peer: usize| lost(peer, &hosts[peer]));
            let engine = Engine::start_among(config, Peers { process, connections, lost }, heard);
            let others = Others::new(process, processes, engine.post());
            desk.iter().for_each(|desk| desk.reach(others.clone()));
            (engine, Some(others), secret, last_time)
        }
    };
    let share = others.as_ref().map_or((LEADER, 1), |others| (others.process, others.processes));
    let leads = share.0 == LEADER;
    let (log, end) = match log {
        Store::Own(log) => (Backing::Own(log), 0),
        Store::Stream(stream, kept, end) => {
            let (plan, to) = (Arc::clone(&plan), work);
            let feed = Feed::start(Feeding { stream, kept, plan, secret, clock, share, to: to.clone() });
            if leads {
                let _ = shared.feed.set(feed.clone());
            }
            (
                Backing::Stream(Box::new(Streamed {
                    feed,
                    to,
                    reads: VecDeque::new(),
                    read: 0,
                    awaited: HashMap::new(),
                    came: HashMap::new(),
                })),
                end,
            )
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
        found: Found::default(),
        defined: None,
        is_ready: false,
        life: crate::clock::nanos(),
        published: 0,
    };
    let found = match writer.log {
        Backing::Own(_) => writer.read_again(text, &plan, last_time),
        Backing::Stream(_) => writer.read_stream(text, &plan, end),
    }?;
    let thread = std::thread::Builder::new().name("writer".into()).spawn(move || writer.run());
    Ok(Started { hub, found, thread: thread.expect("the system gives a thread"), secret, desk })
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().expect("nobody panics while holding it")
    }

    /// A step is closed: answers those who wait for that. Those who asked may have gone.
    fn close(&self, mut closed: protocol::Closed, told: &mpsc::UnboundedSender<Told>) {
        self.follows.close(&mut closed);
        let number = closed.number;
        let mut open = self.lock();
        let Some((handed, waiting)) = open.steps.remove(&closed.number) else { return };
        let as_of = AsOf { position: closed.position, clock: closed.clock };
        open.last = as_of;
        open.closed_at = Some(Instant::now());
        let decided: HashMap<u64, Verdict> = closed.verdicts.into_iter().collect();
        for (position, verdict) in &decided {
            *open.verdicts.entry(verdict.name()).or_default() += 1;
            if *verdict != Verdict::Duplicate {
                open.dead_letters.insert(*position, *verdict);
                self.feed.get().into_iter().for_each(|feed| feed.give_back(*position, *verdict));
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
            let _ = reply.send(Answered { as_of, number, parts: answers.remove(&question).unwrap_or_default() });
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

/// Where the writer's log is.
enum Backing {
    Own(Log),
    Stream(Box<Streamed>),
}

/// The writer's side of a stream.
struct Streamed {
    feed: Feed,
    /// The writer's own queue, for those who wait elsewhere.
    to: Sender<Work>,
    /// Messages that have yet to become part of a step.
    reads: VecDeque<Read>,
    /// The sequence of the last that has.
    read: u64,
    /// Who waits until a step is closed that holds the message of an id.
    awaited: HashMap<String, Awaited>,
    /// When the bodies of calls came that have yet to become part of a step, by their messages' ids.
    came: HashMap<String, Instant>,
}

enum Awaited {
    Receipt(oneshot::Sender<Receipt>, usize),
    Clock(oneshot::Sender<AsOf>),
}

impl Store {
    /// A way to its records.
    fn reader(&self) -> Option<LogReader> {
        match self {
            Store::Own(log) => Some(log.handle()),
            Store::Stream(..) => None,
        }
    }

    /// The key of its hashes, and its last time.
    pub fn identity(&self) -> ([u8; 16], u64) {
        match self {
            Store::Own(log) => (log.id(), log.last_time()),
            Store::Stream(..) => (crate::log::fresh_id(), 0),
        }
    }
}

struct Writer {
    log: Backing,
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
    /// What the stream held at the start.
    found: Found,
    /// The definitions that the stream holds last.
    defined: Option<Defined>,
    /// Whether all that the log held is read.
    is_ready: bool,
    /// Tells messages of this process's life from those of others.
    life: u128,
    /// Messages given to the stream.
    published: u64,
}

impl Writer {
    /// The writer's life: a step at a time, until it is told to stop. An error is a sentence on why it cannot go on.
    fn run(mut self) -> Result<(), String> {
        let leads = self.others.as_ref().is_none_or(Others::leads);
        loop {
            let goes_on = match leads {
                true => self.lead()?,
                false if self.follow()? => true,
                false => return Ok(()),
            };
            self.commit()?;
            self.close();
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Gathers what comes until a step is worth closing, and says so to the other processes. False: it was the last.
    fn lead(&mut self) -> Result<bool, String> {
        let mut goes_on = true;
        let is_behind = matches!(&self.log, Backing::Stream(streamed) if !streamed.reads.is_empty());
        let mut next = loop {
            match self.queue.recv_timeout(if is_behind { Duration::ZERO } else { TICK }) {
                Ok(work) => break Some(work),
                Err(RecvTimeoutError::Timeout) if is_behind || self.mode == ClockMode::Wall => break None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
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
                work => self.take(work)?,
            }
            next = if self.step.len() < STEP_EVENTS { self.queue.try_recv().ok() } else { None };
        }
        let until = self.read_on(u64::MAX);
        self.announce(until);
        if !goes_on && let Some(others) = &self.others {
            others.tell_all(&Letter::Stop);
        }
        Ok(goes_on)
    }

    /// Waits until the leader closes a step, and gives it what has come until then. False: there is none any more.
    fn follow(&mut self) -> Result<bool, String> {
        loop {
            let Ok(work) = self.queue.recv() else { return Ok(false) };
            match work {
                Work::Letter(_, Letter::Round(round)) => {
                    self.begin(round);
                    while self.step.len() < STEP_EVENTS
                        && let Some(work) = self.held.pop_front()
                    {
                        self.take(work)?;
                    }
                    self.read_up_to(round)?;
                    if !self.held.is_empty() {
                        self.want();
                    }
                    return Ok(true);
                }
                Work::Letter(_, Letter::Stop) => return Ok(false),
                Work::Letter(_, Letter::Ledger(_, dispatched)) => drop(self.told.send(Told::Dispatched(dispatched))),
                Work::Letter(..) => {}
                Work::Stop => {
                    // The leader closes what is under way, and then tells everyone.
                    self.others.iter().for_each(|others| others.tell(LEADER, &Letter::Stop));
                }
                work => self.hold(work)?,
            }
        }
    }

    /// Keeps work until the leader closes a step; what a stream has to keep need not wait for that.
    fn hold(&mut self, work: Work) -> Result<(), String> {
        let waits = matches!(self.log, Backing::Own(_)) || matches!(work, Work::Ask(..));
        if !waits {
            return self.take(work);
        }
        if self.held.is_empty() {
            self.want();
        }
        self.held.push_back(work);
        Ok(())
    }

    /// The leader closes this step.
    fn begin(&mut self, round: Round) {
        self.step.number = round.number;
        self.clock = self.clock.max(round.clock);
    }

    /// Waits until all is read that the leader's step holds of the stream, and makes it part of this one.
    fn read_up_to(&mut self, round: Round) -> Result<(), String> {
        let Some(until) = round.until.filter(|_| matches!(self.log, Backing::Stream(_))) else { return Ok(()) };
        while self.read_on(until).is_some_and(|read| read < until) {
            match self.queue.recv() {
                Ok(Work::Letter(_, Letter::Stop)) | Err(_) => return Ok(()),
                Ok(Work::Letter(..)) => {}
                Ok(work) => self.hold(work)?,
            }
        }
        Ok(())
    }

    /// Makes messages of the stream part of the step, up to a sequence and as many as a step should hold; gives the
    /// sequence of the last. None: there is no stream.
    fn read_on(&mut self, until: u64) -> Option<u64> {
        loop {
            let Backing::Stream(streamed) = &mut self.log else { return None };
            let is_full = until == u64::MAX && self.step.len() >= STEP_EVENTS;
            // Other definitions hold for whole steps.
            let begins = |read: &Read| matches!(read.what, What::Defined(_)) && !self.step.is_empty();
            let next = streamed.reads.front().filter(|read| read.sequence <= until && !is_full);
            let next = next.filter(|read| until < u64::MAX || !begins(read));
            if next.is_none() {
                return Some(streamed.read);
            }
            let read = streamed.reads.pop_front().expect("it was just seen");
            streamed.read = read.sequence;
            let awaited = read.id.as_ref().and_then(|id| streamed.awaited.remove(id));
            self.waiting.received.extend(read.id.as_ref().and_then(|id| streamed.came.remove(id)));
            self.read(read, awaited);
        }
    }

    /// A message of the stream becomes part of the step.
    fn read(&mut self, read: Read, awaited: Option<Awaited>) {
        let Read { sequence, received_at, what, .. } = read;
        let first = place(sequence, LEADER, 0);
        self.step.position = place(sequence, PROCESSES_MAX - 1, RECORDS_MAX - 1);
        if self.mode == ClockMode::Wall {
            self.clock = self.clock.max(received_at);
        }
        match what {
            What::Calls(calls) => {
                let earliest = self.step.terms.lateness.map(|lateness| received_at - lateness);
                for (index, call) in calls.into_iter().enumerate().take(RECORDS_MAX) {
                    let position = place(sequence, LEADER, index);
                    let incoming = match call {
                        Arrived::Good(incoming) => incoming,
                        Arrived::Bad { rejection, .. } => {
                            self.step.record(Record::Unreadable(position));
                            self.shared.lock().refused(rejection.reason.name(), position);
                            continue;
                        }
                    };
                    let Incoming { mut prepared, undated, .. } = *incoming;
                    if undated {
                        prepared.date(self.clock);
                    }
                    let timestamp = prepared.event.timestamp;
                    if self.mode == ClockMode::Events {
                        self.clock = self.clock.max(timestamp);
                    }
                    prepared.is_late = earliest.is_some_and(|earliest| timestamp < earliest);
                    prepared.place(position);
                    self.step.record(Record::Event(prepared));
                }
            }
            What::Nothing => {}
            What::Refused(reason) => {
                self.step.record(Record::Unreadable(first));
                self.shared.lock().refused(reason.name(), first);
            }
            What::Clock(to) => {
                self.clock = self.clock.max(to);
                self.step.record(Record::Clock(first, to));
            }
            What::Defined(defined) => {
                self.step.terms.lateness = defined.lateness;
                self.found.active_since = if self.mode == ClockMode::Wall { received_at } else { self.clock };
                self.defined = Some(defined);
            }
            What::Dispatched(mut dispatched) => match &self.others {
                _ if !self.is_ready => self.found.dispatched.append(&mut dispatched),
                Some(others) if !others.leads() => drop(self.told.send(Told::Dispatched(dispatched))),
                _ => {}
            },
        }
        match awaited {
            Some(Awaited::Receipt(reply, count)) => self.waiting.receipts.push((reply, first, count)),
            Some(Awaited::Clock(reply)) => self.waiting.clocks.push(reply),
            None => {}
        }
    }

    fn want(&self) {
        self.others.iter().for_each(|others| others.tell(LEADER, &Letter::Want));
    }

    fn take(&mut self, work: Work) -> Result<(), String> {
        match work {
            Work::Read(reads) => {
                if let Backing::Stream(streamed) = &mut self.log {
                    streamed.reads.extend(reads);
                }
                return Ok(());
            }
            Work::NotKept(id) => {
                if let Backing::Stream(streamed) = &mut self.log {
                    // Whoever waits is told by the reply that goes.
                    streamed.awaited.remove(&id);
                    streamed.came.remove(&id);
                }
                return Ok(());
            }
            Work::Failed(why) => return Err(why),
            _ => {}
        }
        self.shared.queued.fetch_sub(1, Ordering::Relaxed);
        if matches!(self.log, Backing::Stream(_)) && !matches!(work, Work::Ask(..)) {
            self.publish(work);
            return Ok(());
        }
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
            Work::Stop | Work::Letter(..) | Work::Read(_) | Work::NotKept(_) | Work::Failed(_) => {}
        }
        Ok(())
    }

    /// Gives work to the stream. Who waits is answered when that is kept; where only the engine knows the answer, when
    /// a step is closed that holds it.
    fn publish(&mut self, work: Work) {
        let (clock, lateness, mode) = (self.clock, self.step.terms.lateness, self.mode);
        let Backing::Stream(streamed) = &mut self.log else { return };
        self.published += 1;
        let id = format!("thalweg:{:x}:{}", self.life, self.published);
        let await_it = |streamed: &mut Streamed, id: &str, awaited: Awaited| {
            streamed.awaited.insert(id.to_owned(), awaited);
            let (to, id) = (streamed.to.clone(), id.to_owned());
            move |kept: Option<u64>| {
                if kept.is_none() {
                    let _ = to.send(Work::NotKept(id));
                }
            }
        };
        match work {
            Work::Events(events, _, reply) if events.is_empty() => {
                let as_of = AsOf { position: self.step.position, clock };
                let _ = reply.send(Receipt { as_of, verdicts: Vec::new() });
            }
            Work::Events(events, received, reply) => {
                streamed.came.insert(id.clone(), received);
                let (count, message) = (events.len(), feed::message(id.clone(), &events));
                // A minute more than needed: the broker's clock is not ours.
                let late = |lateness: Millis| {
                    events.iter().any(|event| event.prepared.event.timestamp < clock - lateness + 60_000)
                };
                if mode == ClockMode::Events || lateness.is_some_and(late) {
                    let kept = await_it(streamed, &id, Awaited::Receipt(reply, count));
                    streamed.feed.publish(message, kept);
                } else {
                    let to = streamed.to.clone();
                    streamed.feed.publish(message, move |kept| {
                        let Some(sequence) = kept else { return drop(to.send(Work::NotKept(id))) };
                        let as_of = AsOf { position: place(sequence, LEADER, count - 1), clock };
                        let _ = reply.send(Receipt { as_of, verdicts: vec![Verdict::Accepted; count] });
                    });
                }
            }
            Work::DeadLetters(letters) => {
                for (number, letter) in letters.into_iter().enumerate() {
                    streamed.feed.refuse(format!("{id}:{number}"), letter, clock);
                }
            }
            Work::Clock(to, reply) => {
                let message = feed::own(record::CLOCK, id.clone(), &Clock { to });
                let kept = await_it(streamed, &id, Awaited::Clock(reply));
                streamed.feed.publish(message, kept);
            }
            Work::Dispatch(entries, reply) => {
                let message = feed::own(record::DISPATCH, id, &entries);
                streamed.feed.publish(message, move |kept| {
                    let Some(sequence) = kept else { return };
                    let _ = reply.send(AsOf { position: place(sequence, LEADER, 0), clock });
                });
            }
            _ => {}
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
            prepared.is_late = self.step.terms.lateness.is_some_and(|lateness| timestamp < self.clock - lateness);
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
    fn commit(&mut self) -> Result<(), String> {
        let next = self.next_position();
        if let Backing::Own(log) = &mut self.log
            && !self.group.is_empty()
        {
            self.step.position = next - 1;
            log.append(self.step.number, &self.group).map_err(|error| error.to_string())?;
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
    fn read_again(&mut self, text: String, plan: &Arc<Plan>, last_time: u64) -> Result<Found, String> {
        let leads = self.others.as_ref().is_none_or(Others::leads);
        let mut found = Found { process: self.process(), ..Found::default() };
        let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        let mut last = None;
        let mut until = if leads { u64::MAX } else { self.next_slice(&mut found) };
        let Backing::Own(log) = &self.log else { return Ok(found) };
        let mut reader = log.reader();
        let mut at = 0;
        while let Some((record, (time, index))) = reader.next().map_err(|error| error.to_string())? {
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
                        self.step.terms.lateness = defined.lateness;
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
        self.step.terms.lateness = defined.lateness;
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

    /// Reads the stream from its beginning up to where it stood when it was opened; then has the definitions written
    /// down, if they are new, and reads on until they are there.
    fn read_stream(&mut self, text: String, plan: &Arc<Plan>, end: u64) -> Result<Found, String> {
        let leads = self.others.as_ref().is_none_or(Others::leads);
        let defined = Defined { lateness: plan.definitions.lateness, text };
        self.found.process = self.process();
        let mut is_asked = false;
        loop {
            let Backing::Stream(streamed) = &self.log else { return Ok(Found::default()) };
            let is_read = streamed.read >= end;
            if is_read && self.defined.as_ref() == Some(&defined) {
                break;
            }
            if is_read && leads && !is_asked {
                is_asked = true;
                let id = format!("thalweg:{:x}:definitions", self.life);
                let (to, message) = (streamed.to.clone(), feed::own(record::DEFINITIONS, id, &defined));
                streamed.feed.publish(message, move |kept| {
                    if kept.is_none() {
                        let why = "the broker has not kept the definitions; see its limits and its disk";
                        let _ = to.send(Work::Failed(why.into()));
                    }
                });
            }
            match leads {
                true => drop(self.lead()?),
                false if self.follow()? => {}
                false => return Err("the leading process ends".into()),
            }
            self.commit()?;
            self.close();
        }
        self.wait(0).log_is_read = true;
        self.is_ready = true;
        if let Backing::Stream(streamed) = &self.log {
            streamed.feed.caught_up();
        }
        self.found.position = self.step.position;
        Ok(std::mem::take(&mut self.found))
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
                    self.begin(round);
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
