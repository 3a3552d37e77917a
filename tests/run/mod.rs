//! The engine, driven by lines as a replay drives it, for tests.

pub mod totals;

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use dataflows::admission::Verdict;
use dataflows::definitions::{Definitions, Model};
use dataflows::engine::{Acceptance, Config, Engine, Peers};
use dataflows::event::Decoder;
use dataflows::intake::prepare;
use dataflows::plan::Plan;
use dataflows::profile::answers::{IntentRow, Page, Rows, View};
use dataflows::profile::sums::{Credited, Sought, Span, Visits};
use dataflows::protocol::{Answer, Closed, Question, Response, Step};

pub use totals::{Totals, totals};

/// A running engine, in one process or as several would run it, and what feeds it.
pub struct Run {
    /// By process. None once it has stalled: waiting for it to end would be in vain.
    engines: Vec<Engine>,
    closed: Vec<Receiver<Closed>>,
    /// What each process has of the step under way.
    steps: Vec<Step>,
    decoder: Decoder,
    plan: Arc<Plan>,
    position: u64,
    questions: u64,
    /// The sum of all changes of intents that were told.
    told: BTreeMap<IntentRow, i64>,
    /// How records were decided that were not simply taken, by position.
    pub verdicts: BTreeMap<u64, Verdict>,
}

/// All that can be listed and counted, at one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dump {
    /// Rows by view, in the order of [`VIEWS`], each sorted.
    pub rows: [Vec<String>; 5],
    pub totals: Totals,
    /// The intents that stand by what was told of them, step by step: the rows, and nothing twice.
    pub told: Vec<String>,
}

/// The engine has not finished a step in time.
#[derive(Debug)]
pub struct Stalled;

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the engine has not finished a step within {PATIENCE:?}")
    }
}

/// The views, by the names of their dumps.
pub const VIEWS: [(&str, View); 5] = [
    ("profiles", View::Profiles),
    ("sessions", View::Sessions),
    ("segment_changes", View::Changes),
    ("intents", View::Intents),
    ("credit", View::Credit),
];

const SECRET: [u8; 16] = [9; 16];
/// A step takes milliseconds. On a machine that is busy with other things it has been seen to take half a minute.
const PATIENCE: Duration = Duration::from_secs(60);

/// Definitions that are right.
fn parse(definitions: &str) -> Arc<Definitions> {
    let parsed = Definitions::parse(definitions);
    Arc::new(parsed.unwrap_or_else(|problems| panic!("{problems:#?}\n{definitions}")).0)
}

impl Run {
    /// Starts under definitions; what `later` ones name is kept of events too.
    pub fn start(definitions: &str, later: &str, lateness: Option<i64>, workers: usize) -> Run {
        Run::start_among(definitions, later, lateness, 1, workers)
    }

    /// The same in as many processes, each with as many workers.
    pub fn start_among(definitions: &str, later: &str, lateness: Option<i64>, processes: usize, workers: usize) -> Run {
        let plan = Arc::new(Plan::new(parse(later)).after(parse(definitions)));
        let acceptance = if lateness.is_none() { Acceptance::AnyTime } else { Acceptance::InOrder };
        let start = |(process, connections): (usize, Vec<Option<UnixStream>>)| {
            let (told, closed) = channel();
            let config = Config { workers, plan: Arc::clone(&plan), acceptance };
            let heard = move |response| match response {
                Response::Closed(step) => drop(told.send(step)),
                Response::Letter(from, letter) => panic!("{from} wrote {letter:?}"),
            };
            let lost = Box::new(|peer| panic!("the connection to {peer} is lost"));
            let engine = match connections.len() {
                1 => Engine::start(config, heard),
                _ => Engine::start_among(config, Peers { process, connections, lost }, heard),
            };
            (engine, closed)
        };
        let (engines, closed) = connections(processes).into_iter().enumerate().map(start).unzip();
        Run {
            engines,
            closed,
            steps: vec![Step { lateness, ..Step::first() }; processes],
            decoder: Decoder::new(Arc::clone(&plan.vocabulary)),
            plan,
            position: 0,
            questions: 0,
            told: BTreeMap::new(),
            verdicts: BTreeMap::new(),
        }
    }

    /// Takes one line; gives its position, if it can be read.
    pub fn push(&mut self, line: &str) -> Option<u64> {
        self.position += 1;
        let record = prepare(line, self.position, &mut self.decoder, &SECRET).ok()?;
        // Wherever it comes in, its place is the same.
        let process = self.position as usize % self.steps.len();
        self.steps[process].record(record);
        Some(self.position)
    }

    /// What became of an event of a closed step, in the oracle's words.
    pub fn verdict(&self, position: u64) -> &'static str {
        self.verdicts.get(&position).map_or("accepted", |verdict| verdict.name())
    }

    /// Other definitions hold from now on. A step under way is closed first.
    pub fn redefine(&mut self, definitions: &str, lateness: Option<i64>) -> Result<(), Stalled> {
        if self.steps.iter().any(|step| !step.is_empty()) {
            self.close([], |_, _| {})?;
        }
        self.plan = Arc::new(self.plan.after(parse(definitions)));
        for step in &mut self.steps {
            step.plan = Some(Arc::clone(&self.plan));
            step.lateness = lateness;
        }
        Ok(())
    }

    /// Closes the step and gives all that is then true. What is added up when it is asked for must equal the totals.
    pub fn dump(&mut self) -> Result<Dump, Stalled> {
        let (mut dump, mut beside, mut visits) = (Dump::default(), Totals::default(), Visits::default());
        let plan = Arc::clone(&self.plan);
        let mut credit = vec![Credited::default(); plan.models().len()];
        let mut followed = vec![0; plan.campaigns.len()];
        let questions = VIEWS.map(|(_, view)| Question::Dump(view)).into_iter();
        let questions = questions.chain([Question::Totals, Question::Followed, Question::Visits(Span::default())]);
        let sought = |model: &Model| Sought { model: *model, conversion: None, span: Span::default() };
        let questions: Vec<_> = questions.chain(plan.models().iter().map(|of| Question::Credit(sought(of)))).collect();
        let models = questions.len() - credit.len();
        self.close(questions, |place, part| match part {
            Answer::Visits(part) => visits.add(part),
            Answer::Followed(part) => followed.iter_mut().zip(part).for_each(|(sum, part)| *sum += part),
            Answer::Credit(part) => credit[place - models].add(part),
            Answer::Rows(part) => dump.rows[place].extend(server::rows::lines(&part, &plan.definitions)),
            Answer::Totals(part) => {
                let totals = if place == VIEWS.len() { &mut dump.totals } else { &mut beside };
                part.into_iter().for_each(|(total, sum)| *totals.entry(total).or_default() += sum)
            }
            _ => {}
        })?;
        assert_eq!(beside, dump.totals, "those that come with the conversions that followed");
        let stands = self.told.iter().filter(|(_, times)| **times != 0);
        let stands = stands.flat_map(|(row, times)| vec![row.clone(); usize::try_from(*times).unwrap_or(99)]);
        dump.told = server::rows::lines(&Rows::Intents(stands.collect()), &plan.definitions);
        dump.rows.iter_mut().chain([&mut dump.told]).for_each(|rows| rows.sort());
        let models = plan.models().iter().map(|model| model.name());
        assert_eq!(totals::asked(visits, models.zip(credit)), totals::of_asked(&dump.totals));
        let names = plan.campaigns.iter().map(|campaign| campaign.name.to_string());
        let followed: BTreeMap<_, _> = names.zip(followed).filter(|(_, count)| *count > 0).collect();
        let lookback = plan.definitions.attribution.lookback;
        assert_eq!(followed, totals::followed(&dump.rows[3], &dump.rows[4], lookback));
        Ok(dump)
    }

    /// The credit of some conversions.
    pub fn credit(&mut self, sought: Sought) -> Result<Credited, Stalled> {
        let mut sum = Credited::default();
        self.close([Question::Credit(sought)], |_, part| {
            if let Answer::Credit(part) = part {
                sum.add(part);
            }
        })?;
        Ok(sum)
    }

    /// A profile's rows of one view, as parts of so many give them.
    pub fn history(&mut self, id: &str, view: View, limit: usize) -> Result<Vec<String>, Stalled> {
        let (mut all, mut before, plan) = (Vec::new(), None, Arc::clone(&self.plan));
        loop {
            let page = Page { before: before.take(), limit };
            self.close([Question::History { id: id.into(), view, page }], |_, part| {
                if let Answer::History(Rows::Events(rows), next) = part {
                    all.extend(rows.into_iter().map(|(_, position)| position.to_string()));
                    before = next;
                } else if let Answer::History(rows, next) = part {
                    all.extend(server::rows::lines(&rows, &plan.definitions));
                    before = next;
                }
            })?;
            if before.is_none() {
                return Ok(all);
            }
        }
    }

    /// Closes the step and waits for it; each part of an answer is told with the place of its question.
    pub fn close(
        &mut self,
        questions: impl IntoIterator<Item = Question>,
        mut tell: impl FnMut(usize, Answer),
    ) -> Result<(), Stalled> {
        let (first, processes) = (self.questions, self.steps.len());
        for question in questions {
            self.steps[self.questions as usize % processes].questions.push((self.questions, question));
            self.questions += 1;
        }
        if self.engines.is_empty() {
            return Err(Stalled);
        }
        for (step, engine) in self.steps.iter_mut().zip(&self.engines) {
            step.position = self.position;
            engine.step(step.close());
        }
        let mut said = Vec::new();
        for heard in &self.closed {
            let Ok(mut closed) = heard.recv_timeout(PATIENCE) else {
                self.engines.drain(..).for_each(std::mem::forget);
                return Err(Stalled);
            };
            let answers = std::mem::take(&mut closed.answers);
            answers.into_iter().for_each(|(question, part)| tell((question - first) as usize, part));
            closed.intents.sort();
            closed.verdicts.sort();
            said.push(closed);
        }
        let closed = said.pop().expect("there is a process");
        assert_eq!(closed.position, self.position);
        for other in said {
            let parts = |closed: &Closed| (closed.number, closed.position, closed.clock, closed.accepted);
            assert_eq!(parts(&closed), parts(&other), "processes do not agree");
            assert_eq!((&closed.intents, &closed.verdicts), (&other.intents, &other.verdicts));
        }
        self.verdicts.extend(closed.verdicts);
        for (row, change) in closed.intents {
            *self.told.entry(row).or_default() += i64::from(change);
        }
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Each ends when all do.
        std::thread::scope(|scope| {
            for engine in self.engines.drain(..) {
                scope.spawn(move || drop(engine));
            }
        });
    }
}

/// The connections that each of several processes has to the others.
fn connections(processes: usize) -> Vec<Vec<Option<UnixStream>>> {
    let mut all: Vec<Vec<_>> = (0..processes).map(|_| (0..processes).map(|_| None).collect()).collect();
    for (low, high) in (0..processes).flat_map(|high| (0..high).map(move |low| (low, high))) {
        let (a, b) = UnixStream::pair().expect("the system gives sockets");
        (all[low][high], all[high][low]) = (Some(a), Some(b));
    }
    all
}
