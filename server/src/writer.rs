//! The writer: the one thread that puts everything in order.
//!
//! Calls, clocks and corrections come in by one queue; questions and the ledger's entries by a lane beside it,
//! which each step empties, so that they wait behind no calls. The writer gives each its place, stamps it, hands
//! the group to the engine as a step, writes it to the log with one sync meanwhile, and answers those who wait for
//! that; what the engine makes of the step is told when the group is durable. So an event is acknowledged, and
//! anything told of it, only when it is durable, and a question asked after an answer sees what was answered. What
//! a place means, that an event was seen before or comes too late, is the engine's to find.

mod coming;
mod erasing;
mod own;
mod retaining;
mod stream;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use dataflows::admission::{Erased, Verdict};
use dataflows::engine::{Acceptance, Config, Engine, Peers};
use dataflows::event::Decoder;
use dataflows::identity::Settled;
use dataflows::place::place;
use dataflows::protocol::{Record, Response, Step};
use dataflows::time::Millis;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::book::{self, Book};
use crate::cluster::{LEADER, Letter, Others, Round, Team, lost};
use crate::desk::Desk;
use crate::hub::{AsOf, ClockMode, Hub, Open, Receipt, Shared, Told, Waiting, Work};
use crate::log::{Log, LogReader};
use crate::record::{self, Clock, Defined, Dispatch, Erase};
use crate::stream::feed::{self, Feed, Feeding};
use crate::stream::{Kept, Stream};

use coming::Coming;
use erasing::Erasing;
use retaining::Retaining;
use stream::Streamed;

/// Events in a step, about.
const STEP_EVENTS: usize = 1_000;
/// Steps that the engine may have open before the writer waits for it: one that it works on, and the next.
const STEPS_OPEN_MAX: usize = 2;
/// An idle stream's clock moves this often.
const TICK: Duration = Duration::from_millis(10);

/// While definitions to come are prepared for, steps follow each other sooner.
const PREPARING: Duration = Duration::from_millis(1);

/// What the writer begins with.
pub struct Start {
    /// The log.
    pub log: Store,
    /// Worker threads.
    pub workers: usize,
    /// How the clock moves.
    pub clock: ClockMode,
    /// The definitions.
    pub book: Book,
    /// Links that were decided on before somebody was erased.
    pub settled: Option<Settled>,
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
    let Start { log, workers, clock, book, settled, team, told, now } = start;
    let plan = Arc::clone(&book.plan);
    let ((work, queue), (to_lane, lane)) = (channel(), channel());
    let shared = Arc::new(Shared::new(Arc::new(book.clone())));
    shared.lock().ticks = clock == ClockMode::Wall;
    let hub = Hub { work: work.clone(), lane: to_lane, shared: Arc::clone(&shared) };
    let closes = Arc::clone(&shared);
    let acceptance = match clock {
        ClockMode::Wall => Acceptance::Stamped,
        ClockMode::Events => Acceptance::InOrder,
    };
    let (own, last_time) = log.identity();
    let (secret, last_time) = team.as_ref().map_or((own, last_time), |team| (team.secret, team.last_time));
    let config = Config { workers, plan: Arc::clone(&plan), acceptance, secret };
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
    let (engine, others) = match team {
        None => (Engine::start(config, heard), None),
        Some(Team { process, connections, hosts, .. }) => {
            let processes = connections.len();
            let lost = Box::new(move |peer: usize| lost(peer, &hosts[peer]));
            let engine = Engine::start_among(config, Peers { process, connections, lost }, heard);
            let others = Others::new(process, processes, engine.post());
            desk.iter().for_each(|desk| desk.reach(others.clone()));
            (engine, Some(others))
        }
    };
    let share = others.as_ref().map_or((LEADER, 1), |others| (others.process, others.processes));
    let leads = share.0 == LEADER;
    let (log, end) = match log {
        Store::Own(log) => (Backing::Own(log), 0),
        Store::Stream(stream, kept, end) => {
            let (plan, to) = (Arc::clone(&plan), work);
            shared.in_stream.store(true, Ordering::Relaxed);
            let settled = Handle::current().block_on(feed::last_settled(&stream, &secret));
            let settled = settled.map_err(|error| error.to_string())?.filter(|_| leads);
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
                    settled,
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
        lane,
        held: VecDeque::new(),
        wants: false,
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
        decoder: Decoder::new(Arc::clone(&plan.vocabulary)),
        carried: None,
        next: None,
        coming: None,
        life: crate::clock::nanos(),
        published: 0,
        erased: Erased::default(),
        erasing: BTreeMap::new(),
        retaining: Retaining::default(),
    };
    let found = match writer.log {
        Backing::Own(_) => writer.read_again(book, last_time, settled.as_ref()),
        Backing::Stream(_) => writer.read_stream(book, end),
    }?;
    // What the log held is no news.
    writer.step.sends = true;
    let thread = std::thread::Builder::new().name("writer".into()).spawn(move || writer.run());
    Ok(Started { hub, found, thread: thread.expect("the system gives a thread"), secret, desk })
}

/// A reply that waits until its group is durable.
enum Durable {
    Receipt(oneshot::Sender<Receipt>, usize),
    Dispatched(Vec<Dispatch>, oneshot::Sender<AsOf>),
    /// The place of an erasure.
    Erased(u64, oneshot::Sender<(u64, AsOf)>),
    /// The erasure of a place is written down, and bodies can be destroyed.
    Erasing(u64),
    Defined(u64, oneshot::Sender<AsOf>),
}

/// Where the writer's log is.
enum Backing {
    Own(Log),
    Stream(Box<Streamed>),
}

impl Store {
    /// A way to its records.
    fn reader(&self) -> Option<LogReader> {
        match self {
            Store::Own(log) => Some(log.handle()),
            Store::Stream(..) => None,
        }
    }

    /// What has to be known before it is read: the definitions that it holds last, and links that were decided on
    /// before somebody was erased last.
    pub async fn last(&self) -> Result<(Option<Defined>, Option<Settled>), String> {
        match self {
            Store::Own(log) => {
                let (mut reader, mut last, mut settled) = (log.reader(), None, None);
                while let Some((record, (time, index))) = reader.next().map_err(|error| error.to_string())? {
                    if record.kind == record::DEFINITIONS {
                        let defined = serde_json::from_slice::<Defined>(record.payload);
                        let mut defined = defined.map_err(|error| {
                            format!("the definitions of the log at time {time} cannot be read: {error}")
                        })?;
                        book::stamp(&mut defined.versions, place(time, LEADER, index), record.received_at);
                        last = Some(defined);
                    }
                    if record.kind == record::ERASE
                        && let Ok(Erase { of: Some(before), until, refused, .. }) =
                            serde_json::from_slice(record.payload)
                        && settled.as_ref().is_none_or(|known: &Settled| known.before < before)
                    {
                        settled = Some(Settled { before, clock: until.min(record.received_at), refused });
                    }
                }
                Ok((last, settled))
            }
            Store::Stream(stream, ..) => {
                let last = feed::last_defined(stream).await.map_err(|error| error.to_string())?;
                Ok((last, None))
            }
        }
    }

    /// How far the clock has come, ms; none: where a stream has the events that move it, it has to be read first.
    pub fn clock(&self, mode: ClockMode, now: fn() -> Millis) -> Option<Millis> {
        match (self, mode) {
            (Store::Own(log), ClockMode::Wall) => Some(log.last_received_at().max(now())),
            (Store::Own(log), ClockMode::Events) => Some(log.last_received_at()),
            (Store::Stream(..), ClockMode::Wall) => Some(now()),
            (Store::Stream(..), ClockMode::Events) => None,
        }
    }

    /// The key of its hashes, and its last time.
    pub fn identity(&self) -> ([u8; 16], u64) {
        match self {
            Store::Own(log) => (log.id(), log.last_time()),
            Store::Stream(_, kept, _) => (kept.secret(), 0),
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
    /// What is taken into the next step, however much stands in the queue.
    lane: Receiver<Work>,
    /// Work that waits until the leader closes a step.
    held: VecDeque<Work>,
    /// Whether the leader has been told that a step is wanted.
    wants: bool,
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
    /// Reads events by the latest definitions.
    decoder: Decoder,
    /// Work that begins the next step.
    carried: Option<Work>,
    /// What the leader says comes next, until it closes the step that begins with that: its position and clock.
    next: Option<(Defined, u64, Millis)>,
    /// Definitions that are to hold.
    coming: Option<Coming>,
    /// Tells messages of this process's life from those of others.
    life: u128,
    /// Messages given to the stream.
    published: u64,
    /// Ids that were erased: what is theirs is not written down any more.
    erased: Erased,
    /// Erasures under way, by their places.
    erasing: BTreeMap<u64, Erasing>,
    /// How far bodies that are older than they are kept have given way.
    retaining: Retaining,
}

impl Writer {
    /// The writer's life: a step at a time, until it is told to stop. An error is a sentence on why it cannot go on.
    fn run(mut self) -> Result<(), String> {
        let lived = self.live();
        if lived.is_err() {
            // Whoever waits for a step hears that none closes any more.
            self.shared.lock().steps.clear();
            self.engine.abandon();
        }
        lived
    }

    fn live(&mut self) -> Result<(), String> {
        let leads = self.others.as_ref().is_none_or(Others::leads);
        loop {
            let goes_on = match leads {
                true => self.lead()?,
                false if self.follow()? => true,
                false => return Ok(()),
            };
            self.close()?;
            self.retain()?;
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Gathers what comes until a step is worth closing, and says so to the other processes. False: it was the last.
    fn lead(&mut self) -> Result<bool, String> {
        let mut goes_on = true;
        let is_behind = matches!(&self.log, Backing::Stream(streamed) if !streamed.reads.is_empty());
        let is_preparing = self.is_preparing();
        let patience = match () {
            () if is_behind || self.carried.is_some() => Duration::ZERO,
            () if is_preparing => PREPARING,
            () => TICK,
        };
        let is_due = !patience.is_zero() && self.mode == ClockMode::Events && !is_preparing;
        let mut next = loop {
            match self.carried.take().map_or_else(|| self.queue.recv_timeout(patience), Ok) {
                Ok(Work::Lane) => {
                    // Else a step before has it.
                    if let Ok(work) = self.lane.try_recv() {
                        break Some(work);
                    }
                }
                Ok(work) => break Some(work),
                Err(RecvTimeoutError::Timeout) if !is_due => break None,
                Err(RecvTimeoutError::Timeout) if self.has_news() => break None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
            }
        };
        if self.mode == ClockMode::Wall {
            self.clock = self.clock.max((self.now)());
        }
        self.heed();
        self.read_more();
        while let Some(work) = next {
            match work {
                Work::Stop | Work::Letter(_, Letter::Stop) => goes_on = false,
                Work::Letter(_, Letter::Reread) => self.reread_here(),
                Work::Letter(from, Letter::Erasing(of, events, done)) => self.hear_of(from, of, events, done),
                // That a step is wanted is all it says.
                Work::Letter(..) => {}
                // Records of a step are accepted as one set of definitions asks.
                Work::Define(..) if !self.step.records.is_empty() || !self.group.is_empty() => {
                    self.carried = Some(work);
                    break;
                }
                work => self.take(work)?,
            }
            next = if self.step.len() < STEP_EVENTS { self.queue.try_recv().ok() } else { None };
        }
        self.take_lane()?;
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
            let work = match self.queue.recv_timeout(TICK) {
                Ok(work) => work,
                Err(RecvTimeoutError::Timeout) => {
                    if self.has_news() {
                        self.want();
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
            };
            match work {
                Work::Letter(_, Letter::Round(round)) => {
                    self.begin(round);
                    self.read_more();
                    self.heed();
                    while self.step.len() < STEP_EVENTS
                        && let Some(work) = self.held.pop_front()
                    {
                        self.take(work)?;
                    }
                    self.read_up_to(round)?;
                    self.take_lane()?;
                    if !self.held.is_empty() {
                        self.want();
                    }
                    return Ok(true);
                }
                Work::Letter(_, Letter::Stop) => return Ok(false),
                Work::Letter(_, Letter::Define(defined, position, clock)) => {
                    self.next = Some((*defined, position, clock));
                }
                Work::Letter(_, Letter::Ledger(dispatched)) => drop(self.told.send(Told::Dispatched(dispatched))),
                Work::Letter(from, Letter::Erasing(of, events, done)) => {
                    self.hear_of(from, of, events, done);
                    self.want();
                }
                Work::Letter(..) => {}
                Work::Lane => self.want(),
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
        if matches!(self.log, Backing::Stream(_)) {
            return self.take(work);
        }
        self.want();
        self.held.push_back(work);
        Ok(())
    }

    /// The leader closes this step.
    fn begin(&mut self, round: Round) {
        self.wants = false;
        self.step.number = round.number;
        self.clock = self.clock.max(round.clock);
        if let Some((defined, position, clock)) = self.next.take() {
            self.write_json(record::DEFINITIONS, &defined);
            self.comes_next(&defined, position, clock);
        }
        if round.defines {
            self.give_plan();
        }
    }

    fn want(&mut self) {
        if !std::mem::replace(&mut self.wants, true) {
            self.others.iter().for_each(|others| others.tell(LEADER, &Letter::Want));
        }
    }

    /// Takes all that has come by the lane.
    fn take_lane(&mut self) -> Result<(), String> {
        while let Ok(work) = self.lane.try_recv() {
            self.take(work)?;
        }
        Ok(())
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
            Work::Lane => return Ok(()),
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
                    let letter = self.without_erased(letter);
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
            Work::Correct(corrections, reply) => {
                let (first, count) = (self.next_position(), corrections.len());
                for correction in corrections {
                    let position = self.write_json(record::CORRECTION, &correction);
                    self.step.record(correction.at(position, self.clock, &self.secret));
                }
                self.waiting.receipts.push((reply, first, count));
            }
            Work::Erase(ids, for_good, reply) => self.erase(ids, for_good, reply),
            Work::Define(mut book, reply) => {
                let clock = self.clock;
                book.settle(clock);
                let defined = book.defined();
                let position = self.write_json(record::DEFINITIONS, &defined);
                book.stamp(position, clock);
                if let Some(others) = &self.others {
                    others.tell_all(&Letter::Define(Box::new(defined), position, clock));
                }
                self.comes(*book, position);
                self.durable.push(Durable::Defined(position, reply));
            }
            Work::Dispatch(entries, reply) => {
                for entry in entries.iter().filter(|entry| !self.is_erased(entry)).cloned().collect::<Vec<_>>() {
                    self.write_json(record::DISPATCH, &entry);
                }
                self.durable.push(Durable::Dispatched(entries, reply));
            }
            Work::Stop | Work::Lane | Work::Letter(..) | Work::Read(_) | Work::NotKept(_) | Work::Failed(_) => {}
        }
        Ok(())
    }

    /// Adds a record to the group; gives its position.
    fn write_json(&mut self, kind: u8, payload: &impl serde::Serialize) -> u64 {
        let position = self.next_position();
        let payload = serde_json::to_vec(payload).expect("records have string keys");
        self.group.push((kind, self.clock, payload));
        position
    }

    fn leads(&self) -> bool {
        self.others.as_ref().is_none_or(Others::leads)
    }

    fn process(&self) -> usize {
        self.others.as_ref().map_or(LEADER, |others| others.process)
    }

    fn next_position(&self) -> u64 {
        place(self.step.number, self.process(), self.group.len())
    }

    /// Makes the group of a step durable, so that the step may be told; then answers those who wait for that alone.
    fn commit(&mut self, number: u64) -> Result<(), String> {
        if let Backing::Own(log) = &mut self.log
            && !self.group.is_empty()
        {
            log.append(number, &self.group).map_err(|error| error.to_string())?;
            self.engine.durable(number);
            self.group.clear();
        }
        let as_of = AsOf { position: self.step.position, clock: self.clock };
        let mut noted = Vec::new();
        for reply in self.durable.drain(..) {
            match reply {
                Durable::Receipt(reply, count) => {
                    let _ = reply.send(Receipt { as_of, verdicts: vec![Verdict::Accepted; count] });
                }
                Durable::Erased(position, reply) => drop(reply.send((position, as_of))),
                Durable::Erasing(position) => noted.push(position),
                Durable::Dispatched(entries, reply) => {
                    let _ = reply.send(as_of);
                    if let Some(others) = &self.others {
                        others.tell_all(&Letter::Ledger(entries));
                    }
                }
                Durable::Defined(position, reply) => drop(reply.send(AsOf { position, ..as_of })),
            }
        }
        noted.into_iter().try_for_each(|position| self.destroy(position))
    }

    /// Hands the step to the engine, and makes it durable meanwhile; waits while the engine is too far behind.
    fn close(&mut self) -> Result<(), String> {
        if self.mode == ClockMode::Wall {
            self.step.clock = self.clock;
        }
        if !self.group.is_empty() {
            self.step.position = self.next_position() - 1;
            self.step.is_durable = false;
        }
        let step = self.step.close();
        let number = step.number;
        let waiting = std::mem::take(&mut self.waiting);
        self.shared.lock().steps.insert(number, (Instant::now(), waiting));
        self.engine.step(step);
        self.commit(number)?;
        // What is prepared must not make those wait who are to be answered now.
        let open_max = if self.is_preparing() { 1 } else { STEPS_OPEN_MAX };
        match self.mode {
            ClockMode::Wall => drop(self.wait(open_max)),
            ClockMode::Events => {
                let clock = self.wait(0).last.clock;
                self.clock = clock;
            }
        }
        Ok(())
    }

    /// Waits until so many steps are open at most.
    fn wait(&self, open_max: usize) -> std::sync::MutexGuard<'_, Open> {
        let open = self.shared.lock();
        let behind = |open: &mut Open| open.steps.len() > open_max;
        self.shared.closed.wait_while(open, behind).expect("nobody panics while holding it")
    }

    /// The leader tells the others which step is to be closed.
    fn announce(&mut self, until: Option<u64>) {
        let defines = self.coming.as_ref().is_some_and(|coming| coming.waits_for == 0 && !coming.is_given);
        if defines {
            self.give_plan();
        }
        if let Some(others) = &self.others {
            let clock = if self.mode == ClockMode::Wall { self.clock } else { 0 };
            others.tell_all(&Letter::Round(Round { number: self.step.number, clock, until, defines }));
        }
    }
}
