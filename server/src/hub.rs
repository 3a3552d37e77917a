//! The hub: how everyone else reaches the writer, and what is told when a step is closed.
//!
//! Work goes in by one queue, and by a lane beside it what should not stand behind bodies of calls. Who waits for a
//! step to close waits here, and is answered from the engine's thread that says that it did.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use dataflows::admission::Verdict;
use dataflows::identity::Erasure;
use dataflows::profile::answers::{IntentRow, ProfileRow};
use dataflows::protocol::{self, Answer, Question};
use dataflows::time::Millis;
use ecow::EcoString;
use tokio::sync::{mpsc, oneshot};

use crate::book::Book;
use crate::cluster::Letter;
use crate::door::Incoming;
use crate::follow::Follows;
use crate::metrics::Histogram;
use crate::record::{Correction, DeadLetter, Dispatch};
use crate::stream::feed::{Feed, Read};

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
    /// All of these ids, who are one, is to be erased; and whether nothing of theirs is taken any more.
    Erase(Vec<EcoString>, bool, oneshot::Sender<(u64, AsOf)>),
    /// The clock is to go on.
    Clock(Millis, oneshot::Sender<AsOf>),
    /// Something is asked.
    Ask(Question, oneshot::Sender<Answered>),
    /// Corrections, to be kept and made.
    Correct(Vec<Correction>, oneshot::Sender<Receipt>),
    /// Other definitions are to hold; the position of the record that says so.
    Define(Box<Book>, oneshot::Sender<AsOf>),
    /// What became of intents, to be kept before it is told.
    Dispatch(Vec<Dispatch>, oneshot::Sender<AsOf>),
    /// Something has come by the lane.
    Lane,
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
    /// The definitions that hold then.
    pub book: Arc<Book>,
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
    /// Whom intents came for that may go out at once.
    pub people: Vec<ProfileRow>,
    /// The definitions, if others hold from now on.
    pub book: Option<Arc<Book>>,
    /// Who was erased.
    pub erased: Vec<Erasure>,
}

/// What the writer has to hear of erasures, and of what else is done in the log.
#[derive(Clone, Debug)]
pub(crate) enum News {
    /// Somebody is erased, and so many events of theirs had been accepted.
    Erased(Erasure, u64),
    /// The bodies that the erasure of a place asks for are destroyed in this log; calls that read otherwise since.
    Destroyed(u64, Vec<(u64, Vec<u8>)>),
    /// In the log's segments before this record bodies that are older than they are kept have given way.
    Retained(u64),
}

/// How far an erasure is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erasing {
    /// Events that had been accepted.
    pub events: u64,
    /// Whether nothing is left in any log.
    pub is_complete: bool,
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
    /// The stream that is the log has not kept it, as far as is known.
    NotKept,
}

/// The way to the writer, for everyone else.
#[derive(Clone)]
pub struct Hub {
    pub(crate) work: Sender<Work>,
    /// For what is no call, and waited for.
    pub(crate) lane: Sender<Work>,
    pub(crate) shared: Arc<Shared>,
}

/// What the writer and the engine's threads share with those who ask.
pub(crate) struct Shared {
    pub(crate) open: Mutex<Open>,
    pub(crate) closed: Condvar,
    /// Work that waits for the writer.
    pub(crate) queued: AtomicUsize,
    pub(crate) step_times: Histogram,
    pub(crate) receipt_times: Histogram,
    /// Views that somebody follows here.
    pub(crate) follows: Follows,
    /// Whether the log is a stream.
    pub(crate) in_stream: AtomicBool,
    /// By which it is told what was not taken, where the log is a stream and this process leads.
    pub(crate) feed: OnceLock<Feed>,
}

#[derive(Debug)]
pub(crate) struct Open {
    /// The definitions that hold.
    pub(crate) book: Arc<Book>,
    /// Those to come, and the position of the record that says so.
    pub(crate) coming: Option<(Arc<Book>, u64)>,
    /// Profiles that are prepared for them, and all.
    pub(crate) prepared: (u64, u64),
    /// Steps, each with when it was handed to the engine.
    pub(crate) steps: BTreeMap<u64, (Instant, Waiting)>,
    /// The last step that closed.
    pub(crate) last: AsOf,
    pub(crate) log_is_read: bool,
    /// When the last step closed.
    pub(crate) closed_at: Option<Instant>,
    /// Whether steps close also when nothing comes.
    pub(crate) ticks: bool,
    pub(crate) dead_letters: BTreeMap<u64, Verdict>,
    /// By their places, erasures that were asked for here.
    pub(crate) erasures: BTreeMap<u64, Erasing>,
    pub(crate) news: Vec<News>,
    pub(crate) verdicts: BTreeMap<&'static str, u64>,
    pub(crate) reasons: BTreeMap<&'static str, u64>,
}

impl Open {
    fn new(book: Arc<Book>) -> Open {
        Open {
            book,
            coming: None,
            prepared: (0, 0),
            steps: BTreeMap::new(),
            last: AsOf::default(),
            log_is_read: false,
            closed_at: None,
            ticks: false,
            dead_letters: BTreeMap::new(),
            erasures: BTreeMap::new(),
            news: Vec::new(),
            verdicts: BTreeMap::new(),
            reasons: BTreeMap::new(),
        }
    }

    /// A call was not taken as it is, and why. What it says may be personal: that is for who may read dead letters.
    pub(crate) fn refused(&mut self, reason: &'static str, position: u64) {
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
pub(crate) struct Waiting {
    pub(crate) questions: HashMap<u64, oneshot::Sender<Answered>>,
    /// Calls whose verdicts the engine has to give: the first's place, and how many.
    pub(crate) receipts: Vec<(oneshot::Sender<Receipt>, u64, usize)>,
    pub(crate) clocks: Vec<oneshot::Sender<AsOf>>,
    /// When its bodies of calls came.
    pub(crate) received: Vec<Instant>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("queued", &self.shared.queued).finish_non_exhaustive()
    }
}

impl Hub {
    /// The way to a state that no longer changes: what is asked is answered, and nothing else is done.
    pub fn still(
        book: Arc<Book>,
        as_of: AsOf,
        mut answer: impl FnMut(Question) -> Vec<Answer> + Send + 'static,
    ) -> Hub {
        let ((work, queue), (lane, asked)) = (channel(), channel());
        let hub = Hub { work, lane, shared: Arc::new(Shared::new(Arc::clone(&book))) };
        let shared = Arc::clone(&hub.shared);
        let answers = move || {
            for _ in queue {
                shared.queued.fetch_sub(1, Ordering::Relaxed);
                if let Ok(Work::Ask(question, reply)) = asked.try_recv() {
                    // Whoever asked may have gone.
                    let _ = reply.send(Answered { as_of, number: 0, book: Arc::clone(&book), parts: answer(question) });
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
        let taken = match work {
            Work::Ask(..) | Work::Dispatch(..) => self.lane.send(work).and_then(|()| self.work.send(Work::Lane)),
            work => self.work.send(work),
        };
        taken.map_err(|_| NotTaken::Stopping)
    }

    /// Why work that was taken is not answered.
    pub fn unanswered(&self) -> NotTaken {
        if self.shared.in_stream.load(Ordering::Relaxed) { NotTaken::NotKept } else { NotTaken::Stopping }
    }

    /// Asks, and waits for the answer of every worker.
    pub async fn ask(&self, question: Question) -> Result<Answered, NotTaken> {
        let (reply, answered) = oneshot::channel();
        self.give(Work::Ask(question, reply))?;
        answered.await.map_err(|_| NotTaken::Stopping)
    }

    /// The definitions that hold.
    pub fn book(&self) -> Arc<Book> {
        Arc::clone(&self.lock().book)
    }

    /// Those by which what comes in now is decoded: the ones to come, if any are.
    pub fn latest(&self) -> Arc<Book> {
        let open = self.lock();
        Arc::clone(open.coming.as_ref().map_or(&open.book, |(book, _)| book))
    }

    /// How far the preparation for definitions to come is, and the position of the record that they stand in: profiles
    /// that are prepared, and all. None: none are to come.
    pub fn preparing(&self) -> Option<(u64, (u64, u64))> {
        let open = self.lock();
        open.coming.as_ref().map(|(_, position)| (*position, open.prepared))
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

    /// How far the erasure of a place is; none: there was none here.
    pub fn erasure(&self, position: u64) -> Option<Erasing> {
        self.lock().erasures.get(&position).copied()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.shared.open.lock().expect("nobody panics while holding it")
    }
}

/// Calls waiting in the queue before the door says that it is busy.
const QUEUE_MAX: usize = 4_096;

impl Shared {
    pub(crate) fn new(book: Arc<Book>) -> Shared {
        Shared {
            open: Mutex::new(Open::new(book)),
            closed: Condvar::new(),
            queued: AtomicUsize::new(0),
            step_times: Histogram::default(),
            receipt_times: Histogram::default(),
            follows: Follows::default(),
            in_stream: AtomicBool::new(false),
            feed: OnceLock::new(),
        }
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().expect("nobody panics while holding it")
    }

    /// A step is closed: answers those who wait for that. Those who asked may have gone.
    pub(crate) fn close(&self, mut closed: protocol::Closed, told: &mpsc::UnboundedSender<Told>) {
        self.follows.close(&mut closed);
        let number = closed.number;
        let mut open = self.lock();
        let Some((handed, waiting)) = open.steps.remove(&closed.number) else { return };
        let as_of = AsOf { position: closed.position, clock: closed.clock };
        open.last = as_of;
        open.closed_at = Some(Instant::now());
        open.prepared = closed.prepared;
        let switched = closed.switched.and_then(|_| open.coming.take()).map(|(book, _)| book);
        if let Some(book) = &switched {
            open.book = Arc::clone(book);
        }
        let book = Arc::clone(&open.book);
        let decided: HashMap<u64, Verdict> = closed.verdicts.into_iter().collect();
        // What takes back nothing is no call.
        for (position, verdict) in decided.iter().filter(|(_, verdict)| **verdict != Verdict::Unknown) {
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
        open.news.extend(closed.erased.iter().map(|(erasure, events)| News::Erased(erasure.clone(), *events)));
        drop(open);
        self.closed.notify_all();
        self.step_times.observe(handed.elapsed());
        waiting.received.iter().for_each(|received| self.receipt_times.observe(received.elapsed()));
        let mut answers: HashMap<u64, Vec<Answer>> = HashMap::new();
        for (question, part) in closed.answers {
            answers.entry(question).or_default().push(part);
        }
        for (question, reply) in waiting.questions {
            let _ = reply.send(Answered {
                as_of,
                number,
                book: Arc::clone(&book),
                parts: answers.remove(&question).unwrap_or_default(),
            });
        }
        for (reply, first, count) in waiting.receipts {
            let verdict = |position| decided.get(&position).copied().unwrap_or(Verdict::Accepted);
            let _ = reply.send(Receipt { as_of, verdicts: (first..).take(count).map(verdict).collect() });
        }
        for reply in waiting.clocks {
            let _ = reply.send(as_of);
        }
        let erased = closed.erased.into_iter().map(|(erasure, _)| erasure).collect();
        let protocol::Closed { intents, people, .. } = closed;
        let _ = told.send(Told::Closed(Closed { as_of, intents, people, erased, book: switched }));
    }
}
