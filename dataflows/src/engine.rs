//! The engine: workers that turn the wheel, and the handle by which the server feeds them.
//!
//! ```text
//!  records ──exchange on own id──▶ Acceptance ──────────▶ Profiles ──▶ totals (arranged)
//!                                      │                   ▲  ▲  │
//!                                      └──links──▶ Identity─┘  └──┘ what belongs to a person kept by another worker
//!                                                  one worker
//! ```
//! Acceptance decides on each record by its place in the log, when all records of a step have arrived. Then a step has
//! two beats. In the first, what counts is at the worker of its own id, which most often keeps the person too; what
//! does not belong there, and histories whose person changed, is sent on. In the second, when all of that has arrived
//! on every worker, each history that changed or has something due is stepped once, and questions are answered. Outputs
//! belong to the second beat, so nobody ever sees a person twice or not at all.
//!
//! A step may be worked on before what it holds is durable. That it is, in every process, is one more input, on which
//! nothing arrives but progress: what a step says comes out when that has passed it too.

mod acceptance;
mod assemble;
mod profiles;
mod watch;
mod what_if;
pub mod wire;

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

use differential_dataflow::hashable::Hashable;
use timely::communication::AllocatorBuilder;
use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::zero_copy::stream::Stream;
use timely::execute::execute_from;
use timely::worker::Worker;
use timely::{CommunicationConfig, WorkerConfig};

use crate::admission::mark;
use crate::identity::{Erasure, Id};
use crate::plan::Plan;
use crate::protocol::{Bar, Closed, Command, Record, Response, Step};
use crate::time::Millis;

use assemble::{Now, Saying, assemble};

/// Logical time: the step's number and, last, its beat.
pub type Time = u64;

/// The first beat of a step.
fn time_of(step: &Step) -> Time {
    step.number << 1
}

/// By which an id finds its worker: enough of a hash to share ids out, and too little to tell which id it was.
pub fn route(id: &Id) -> u64 {
    id.hashed() & 0xffff
}

/// How the engine runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Worker threads.
    pub workers: usize,
    /// The definitions that hold at the start.
    pub plan: Arc<Plan>,
    /// What acceptance looks at.
    pub acceptance: Acceptance,
    /// The key of hashes, by which ids that were erased are known.
    pub secret: [u8; 16],
}

/// What the acceptance of a record looks at, beside those that were accepted before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// The clock with which the log stamped it. Each worker decides on the ids that are its own.
    Stamped,
    /// The clock as events move it, so that it takes all records before it to know what is too late: one worker decides
    /// on all.
    InOrder,
    /// Events move the clock, and none is too late. Each worker decides on the ids that are its own.
    AnyTime,
}

/// The other processes that make one engine with this one. All run the same definitions with as many workers.
pub struct Peers<S> {
    /// This process's number.
    pub process: usize,
    /// Connections to the others by their numbers; none to itself.
    pub connections: Vec<Option<S>>,
    /// Told, from any thread, that the connection to another is lost: nothing will close any more.
    pub lost: Box<dyn Fn(usize) + Send + Sync>,
}

/// The running engine. Dropping it stops the workers after what they were given.
#[derive(Debug)]
pub struct Engine {
    doors: Vec<Door>,
    /// Workers of all processes.
    peers: u64,
    secret: [u8; 16],
    workers: Option<JoinHandle<()>>,
}

/// The way to a worker: what it is to do, and its thread, which sleeps when it has nothing to do.
#[derive(Clone, Debug)]
struct Door {
    commands: Sender<Command>,
    thread: Thread,
}

impl Door {
    fn give(&self, command: Command) {
        // A worker that is gone has taken the process with it.
        let _ = self.commands.send(command);
        self.thread.unpark();
    }
}

/// The way to the engine for letters to other processes; cheap to clone.
#[derive(Clone, Debug)]
pub struct Post(Door);

impl Post {
    /// Sends a letter to a process.
    pub fn send(&self, to: usize, letter: Vec<u8>) {
        self.0.give(Command::Letter(to, letter));
    }
}

impl Engine {
    /// Starts the workers. `heard` is called from the thread of one of them: with each step that closes, in order.
    pub fn start(config: Config, heard: impl Fn(Response) + Send + Sync + 'static) -> Engine {
        let count = config.workers;
        Engine::run(config, (0, 1), Box::new(heard), move || CommunicationConfig::Process(count).try_build())
    }

    /// Starts the workers of one of several processes. It waits for none: what the others have yet to do is waited for
    /// where a step needs it.
    pub fn start_among<S: Stream + 'static>(
        config: Config,
        peers: Peers<S>,
        heard: impl Fn(Response) + Send + Sync + 'static,
    ) -> Engine {
        let Peers { process, connections, lost } = peers;
        let (count, processes) = (config.workers, connections.len());
        // The threads that read and write the connections end by a panic where the other side is gone.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            let peer = thread.name().and_then(|name| name.strip_prefix("timely:")?.rsplit_once('-')?.1.parse().ok());
            match peer {
                Some(peer) => lost(peer),
                None => before(panic),
            }
        }));
        Engine::run(config, (process, processes), Box::new(heard), move || {
            let hooks = timely::communication::Hooks::default();
            let inside = ProcessBuilder::new_typed_vector(count, hooks.refill.clone(), hooks.spill.clone());
            let (workers, guard) = initialize_networking_from_sockets(inside, connections, process, count, hooks)
                .map_err(|error| error.to_string())?;
            Ok((workers.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
        })
    }

    fn run(
        config: Config,
        (process, processes): (usize, usize),
        heard: Box<dyn Fn(Response) + Send + Sync>,
        allocate: impl FnOnce() -> Result<(Vec<AllocatorBuilder>, Box<dyn Any + Send>), String> + Send + 'static,
    ) -> Engine {
        let Config { workers: count, plan, acceptance, secret } = config;
        let (commands, inboxes): (Vec<_>, Vec<_>) = (0..count).map(|_| channel()).unzip();
        let (awake, threads) = channel();
        let inboxes: Vec<_> = inboxes.into_iter().map(|inbox| Mutex::new(Some(inbox))).collect();
        let workers = std::thread::Builder::new().name("engine".into()).spawn(move || {
            let (allocators, guard) = allocate().expect("threads of one process need no network, and others have it");
            let guards = execute_from(allocators, guard, WorkerConfig::default(), move |worker| {
                let local = worker.index() % count;
                let _ = awake.send((local, std::thread::current()));
                let inbox = inboxes[local].lock().expect("no worker holds this lock twice").take();
                let inbox = inbox.expect("each worker takes its own");
                let (mut inputs, mut outputs) = assemble(worker, Arc::clone(&plan), (acceptance, secret), count);
                turn(worker, process, &inbox, &mut inputs, &mut outputs, &*heard);
            });
            drop(guards.expect("the system gives threads"));
        });
        let mut threads: Vec<_> = threads.iter().take(count).collect();
        threads.sort_unstable_by_key(|(local, _)| *local);
        let doors = commands.into_iter().zip(threads).map(|(commands, (_, thread))| Door { commands, thread });
        let peers = (processes * count) as u64;
        Engine { doors: doors.collect(), peers, secret, workers: Some(workers.expect("the system gives a thread")) }
    }

    /// The way for letters to other processes.
    pub fn post(&self) -> Post {
        Post(self.doors[0].clone())
    }

    /// What is to be recorded when somebody is erased.
    pub fn erasing(&self, erasure: Erasure) -> Vec<Record> {
        let Erasure { position, until, ids } = &erasure;
        let marks = ids.iter().map(|id| mark(&self.secret, id)).collect();
        let bars = self.bars(*position, *until, marks);
        bars.into_iter().chain([Record::Erase(Box::new(erasure))]).collect()
    }

    /// What is to be recorded where somebody was erased of whom nothing is left.
    pub fn bars(&self, position: u64, until: Millis, marks: Vec<u128>) -> Vec<Record> {
        // Anybody may name them.
        let bar = |worker| Record::Bar(Box::new(Bar { position, worker, until, marks: marks.clone() }));
        (0..self.peers).map(bar).collect()
    }

    /// Closes a step. Chunks of its records are shared out among the workers; where they come in does not matter.
    pub fn step(&self, step: Step) {
        let Step { number, position, clock, terms, is_durable, sends, records, plan, mut questions } = step;
        let (mut chunks, workers) = (records.into_iter(), self.doors.len());
        for (index, door) in self.doors.iter().enumerate() {
            // What follows each other stays together, so that whoever gathers it finds it in order.
            let share = chunks.len().div_ceil(workers - index);
            let (records, questions) = (chunks.by_ref().take(share).collect(), std::mem::take(&mut questions));
            let plan = plan.clone();
            let step = Step { number, position, clock, terms, is_durable, sends, records, plan, questions };
            door.give(Command::Step(step));
        }
    }

    /// All that this process has of steps up to a number is durable.
    pub fn durable(&self, number: u64) {
        self.doors[0].give(Command::Durable(number));
    }

    /// The process is about to end without having made all durable: nothing more is told, here or elsewhere.
    pub fn abandon(self) {
        // To drop it would let others go on as if nothing more had come from here.
        std::mem::forget(self);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for door in &self.doors {
            door.give(Command::Stop);
        }
        if let Some(workers) = self.workers.take() {
            let _ = workers.join();
        }
    }
}

/// Steps that a worker lets be under way at once: enough to overlap, too few to add delay.
const STEPS_OPEN_MAX: usize = 4;

/// One worker's life.
fn turn(
    worker: &mut Worker,
    process: usize,
    inbox: &Receiver<Command>,
    inputs: &mut assemble::Inputs,
    outputs: &mut assemble::Outputs,
    heard: &(dyn Fn(Response) + Send + Sync),
) {
    let mut waiting: VecDeque<Step> = VecDeque::new();
    let mut open: BTreeMap<Time, u64> = BTreeMap::new();
    let mut stopping = false;
    loop {
        while !stopping {
            match inbox.try_recv() {
                Ok(Command::Step(step)) => waiting.push_back(step),
                Ok(Command::Durable(number)) => inputs.durable(number),
                Ok(Command::Letter(to, letter)) => inputs.send(process, to, letter),
                Err(TryRecvError::Empty) => break,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => stopping = true,
            }
        }
        while let Some(step) = waiting.pop_front_if(|_| open.len() < STEPS_OPEN_MAX) {
            let time = time_of(&step);
            open.insert(time, step.number);
            inputs.give(time, step);
        }
        if stopping && open.is_empty() {
            return;
        }
        worker.step_or_park(None);
        outputs.letters().into_iter().for_each(|(from, letter)| heard(Response::Letter(from, letter)));
        while let Some(first) = open.first_entry().filter(|first| outputs.is_closed(*first.key())) {
            let (time, number) = first.remove_entry();
            let said = outputs.take(time);
            // The first worker of a process speaks for it.
            if !said.is_empty() {
                heard(Response::Closed(told(number, said)));
            }
        }
    }
}

/// A closed step, from all that was said of it.
fn told(number: u64, said: Vec<Saying>) -> Closed {
    let mut closed = Closed { number, ..Closed::default() };
    let mut gone: BTreeMap<u64, u64> = BTreeMap::new();
    for saying in said {
        match saying {
            Saying::Now(Now { position, clock, accepted, .. }) => {
                (closed.position, closed.clock, closed.accepted) = (position, clock, accepted);
            }
            Saying::Verdict(position, verdict) => closed.verdicts.push((position, verdict)),
            Saying::Intent(intent, change) => closed.intents.push((intent, change)),
            Saying::Person(person) => closed.people.push(*person),
            Saying::Erased(erasure) => closed.erased.push((erasure, 0)),
            Saying::Gone(position, events) => *gone.entry(position).or_default() += events,
            Saying::Row(view, row, change) => closed.rows.push((view, row, change)),
            Saying::Credit(total, change) => closed.credit.push((total, change)),
            Saying::Switched(number) => closed.switched = Some(number),
            Saying::Prepared(done, all) => closed.prepared = (closed.prepared.0 + done, closed.prepared.1 + all),
            Saying::Answer(number, part) => closed.answers.push((number, part)),
        }
    }
    for (erasure, events) in &mut closed.erased {
        *events = gone.remove(&erasure.position).unwrap_or_default();
    }
    closed
}
