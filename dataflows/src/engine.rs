//! The engine: workers that turn the wheel, and the handle by which the server feeds them.
//!
//! ```text
//!  records ──exchange on own id─────────▶ Profiles ──▶ totals (arranged)
//!                                         ▲  ▲  │
//!  links ──▶ Identity ──homes, moves──────┘  └──┘ what belongs to a person kept by another worker
//!            one worker
//! ```
//! A step has two beats. In the first, records reach the worker of their own id, which most often keeps their person
//! too; what does not belong there, and histories whose person changed, is sent on. In the second, when all of that has
//! arrived on every worker, each history that changed or has something due is stepped once, and questions are answered.
//! Outputs belong to the second beat, so nobody ever sees a person twice or not at all.

mod assemble;
mod profiles;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

use differential_dataflow::trace::cursor::cursor_list;
use differential_dataflow::trace::{Cursor, TraceReader};
use timely::progress::frontier::{Antichain, AntichainRef};
use timely::worker::Worker;

use crate::plan::Plan;
use crate::protocol::{Answer, Command, Question, Response, Step};
use crate::time::Millis;
use crate::total::Total;

use assemble::{Outputs, Totals};

/// Logical time: the clock in the high half; the step's number and, last, its beat in the low half.
pub type Time = u128;

/// The first beat of a step.
fn time_of(step: &Step) -> Time {
    (step.clock as u128) << 64 | u128::from(step.number) << 1
}

/// The clock of a time, ms.
fn clock_of(time: Time) -> Millis {
    (time >> 64) as Millis
}

/// How the engine runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Worker threads.
    pub workers: usize,
    /// The definitions that hold at the start.
    pub plan: Arc<Plan>,
}

/// The running engine. Dropping it stops the workers after what they were given.
#[derive(Debug)]
pub struct Engine {
    doors: Vec<Door>,
    workers: Option<JoinHandle<()>>,
}

/// The way to a worker: what it is to do, and its thread, which sleeps when it has nothing to do.
#[derive(Debug)]
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

impl Engine {
    /// Starts the workers. `respond` is called from their threads with everything they say, in the order of steps
    /// for each worker.
    pub fn start(config: Config, respond: impl Fn(Response) + Send + Sync + 'static) -> Engine {
        let (commands, inboxes): (Vec<_>, Vec<_>) = (0..config.workers).map(|_| channel()).unzip();
        let (awake, threads) = channel();
        let inboxes: Vec<_> = inboxes.into_iter().map(|inbox| Mutex::new(Some(inbox))).collect();
        let plan = config.plan;
        let workers = std::thread::Builder::new().name("engine".into()).spawn(move || {
            let respond = Arc::new(respond);
            let guards = timely::execute(timely::Config::process(config.workers), move |worker| {
                let _ = awake.send((worker.index(), std::thread::current()));
                let inbox = inboxes[worker.index()].lock().expect("no worker holds this lock twice").take();
                run(worker, inbox.expect("each worker takes its own"), Arc::clone(&plan), &*respond);
            });
            drop(guards.expect("threads of one process need no network"));
        });
        let mut threads: Vec<_> = threads.iter().take(config.workers).collect();
        threads.sort_unstable_by_key(|(index, _)| *index);
        let doors = commands.into_iter().zip(threads).map(|(commands, (_, thread))| Door { commands, thread });
        Engine { doors: doors.collect(), workers: Some(workers.expect("the system gives a thread")) }
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.doors.len()
    }

    /// Closes a step. Chunks of its records are shared out among the workers; where they come in does not matter.
    pub fn step(&self, step: Step) {
        let Step { number, clock, records, links, plan, questions } = step;
        let mut shares: Vec<Vec<_>> = self.doors.iter().map(|_| Vec::new()).collect();
        for (place, chunk) in records.into_iter().enumerate() {
            shares[place % self.doors.len()].push(chunk);
        }
        let mut links = Some(links);
        for (door, records) in self.doors.iter().zip(shares) {
            let step = Step {
                number,
                clock,
                records,
                links: links.take().unwrap_or_default(),
                plan: plan.clone(),
                questions: questions.clone(),
            };
            door.give(Command::Step(step));
        }
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
fn run(worker: &mut Worker, inbox: Receiver<Command>, plan: Arc<Plan>, respond: &(dyn Fn(Response) + Send + Sync)) {
    let (mut inputs, mut outputs) = assemble::assemble(worker, plan);
    let mut open: BTreeMap<Time, (u64, Vec<(u64, Question)>)> = BTreeMap::new();
    let mut stopping = false;
    loop {
        while open.len() < STEPS_OPEN_MAX && !stopping {
            match inbox.try_recv() {
                Ok(Command::Step(step)) => {
                    let time = time_of(&step);
                    open.insert(time, (step.number, step.questions.clone()));
                    inputs.give(worker.index(), time, step);
                }
                Err(TryRecvError::Empty) => break,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => stopping = true,
            }
        }
        if stopping && open.is_empty() {
            break;
        }
        worker.step_or_park(None);
        while let Some(first) = open.first_entry().filter(|first| outputs.is_closed(*first.key())) {
            let (time, (number, questions)) = first.remove_entry();
            close(worker.index(), time, number, questions, &mut outputs, respond);
        }
    }
    drop(inputs);
    while worker.step() {}
}

/// A step is closed: tells what it brought, answers what was asked at it, and lets the totals forget its time.
fn close(
    worker: usize,
    time: Time,
    number: u64,
    questions: Vec<(u64, Question)>,
    outputs: &mut Outputs,
    respond: &(dyn Fn(Response) + Send + Sync),
) {
    let said = outputs.take(time);
    let mut answers: BTreeMap<u64, Answer> = said.answers.into_iter().collect();
    for (number, question) in questions {
        let part = match question {
            Question::Totals => Answer::Totals(totals_at(&mut outputs.totals, time + 1)),
            Question::Deadlines { .. } => {
                let deadlines = match answers.remove(&number) {
                    Some(Answer::Deadlines(deadlines, _)) => deadlines,
                    _ => Vec::new(),
                };
                Answer::Deadlines(deadlines, totals_at(&mut outputs.totals, time + 1))
            }
            Question::Followed => {
                let followed = match answers.remove(&number) {
                    Some(Answer::Followed(followed, _)) => followed,
                    _ => Vec::new(),
                };
                Answer::Followed(followed, totals_at(&mut outputs.totals, time + 1))
            }
            _ => answers.remove(&number).unwrap_or(Answer::Nothing),
        };
        respond(Response::Answer { worker, question: number, part });
    }
    let frontier = Antichain::from_elem(time + 1);
    outputs.totals.set_logical_compaction(frontier.borrow());
    outputs.totals.set_physical_compaction(frontier.borrow());
    respond(Response::Closed { worker, number, intents: said.intents, refused: said.refused });
}

/// The totals that this worker keeps, as of a time.
fn totals_at(totals: &mut Totals, time: Time) -> Vec<(Total, i128)> {
    let batches = totals.batches_through(AntichainRef::new(&[])).expect("nothing reads beyond the whole");
    let (mut cursor, storage) = cursor_list(batches);
    let mut found = Vec::new();
    while cursor.key_valid(&storage) {
        let mut sum = 0;
        cursor.map_times(&storage, |at, change| {
            if *at <= time {
                sum += *change;
            }
        });
        if sum != 0 {
            found.push((Total::clone(&cursor.key(&storage).total), sum));
        }
        cursor.step_key(&storage);
    }
    found
}
