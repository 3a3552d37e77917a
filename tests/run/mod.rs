//! The engine, driven by lines as a replay drives it, for tests.

pub mod totals;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use dataflows::admission::Verdict;
use dataflows::definitions::{Definitions, Model};
use dataflows::engine::{Config, Engine};
use dataflows::event::Decoder;
use dataflows::intake::{Line, Sequencer, prepare};
use dataflows::plan::Plan;
use dataflows::profile::answers::{IntentRow, Page, Rows, View};
use dataflows::profile::sums::{Credited, Sought, Span, Visits};
use dataflows::protocol::{Answer, Question, Response};

pub use totals::{Totals, totals};

/// A running engine and what feeds it.
pub struct Run {
    /// None once it has stalled: waiting for it to end would be in vain.
    engine: Option<Engine>,
    responses: Receiver<Response>,
    sequencer: Sequencer,
    decoder: Decoder,
    plan: Arc<Plan>,
    position: u64,
    questions: u64,
    /// The sum of all changes of intents that were told.
    told: BTreeMap<IntentRow, i64>,
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
        let plan = Arc::new(Plan::new(parse(later)).after(parse(definitions)));
        let (told, responses) = channel();
        let engine = Some(Engine::start(Config { workers, plan: Arc::clone(&plan) }, move |response| {
            let _ = told.send(response);
        }));
        let decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        let (sequencer, told) = (Sequencer::new(SECRET, lateness), BTreeMap::new());
        Run { engine, responses, sequencer, decoder, plan, position: 0, questions: 0, told }
    }

    /// Takes one line; says what becomes of it, in the oracle's words.
    pub fn push(&mut self, line: &str) -> &'static str {
        self.position += 1;
        match prepare(line, &mut self.decoder, &SECRET) {
            Err(_) => "invalid",
            Ok(Line::Event(prepared)) => match self.sequencer.admit_by_its_time(self.position, prepared) {
                Verdict::Accepted => "accepted",
                Verdict::Duplicate => "duplicate",
                Verdict::Conflict => "conflict",
                Verdict::TooLate => "too_late",
            },
            Ok(Line::Clock(to)) => {
                self.sequencer.tick(to);
                ""
            }
            Ok(Line::Retract(id, message_id)) => {
                self.sequencer.retract(self.position, id, message_id);
                ""
            }
            Ok(Line::Unlink(a, b)) => {
                self.sequencer.unlink(self.position, a, b);
                ""
            }
        }
    }

    /// Other definitions hold from now on.
    pub fn redefine(&mut self, definitions: &str, lateness: Option<i64>) {
        self.position += 1;
        self.plan = Arc::new(self.plan.after(parse(definitions)));
        self.sequencer.define(self.position, Arc::clone(&self.plan), lateness);
    }

    /// Closes the step and gives all that is then true. What is added up when it is asked for must equal the totals.
    pub fn dump(&mut self) -> Result<Dump, Stalled> {
        let (mut dump, mut visits) = (Dump::default(), Visits::default());
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
            Answer::Followed(part, _) => followed.iter_mut().zip(part).for_each(|(sum, part)| *sum += part),
            Answer::Credit(part) => credit[place - models].add(part),
            Answer::Rows(part) => dump.rows[place].extend(server::rows::lines(&part, &plan.definitions)),
            Answer::Totals(part) => {
                part.into_iter().for_each(|(total, sum)| *dump.totals.entry(total).or_default() += sum)
            }
            _ => {}
        })?;
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
        let first = self.questions;
        for question in questions {
            self.sequencer.ask(self.questions, question);
            self.questions += 1;
        }
        let step = self.sequencer.close();
        let number = step.number;
        let engine = self.engine.as_ref().ok_or(Stalled)?;
        engine.step(step);
        let mut open = engine.workers();
        while open > 0 {
            match self.responses.recv_timeout(PATIENCE) {
                Ok(Response::Answer { question, part, .. }) => tell((question - first) as usize, part),
                Ok(Response::Closed { number: of, intents, .. }) => {
                    open -= usize::from(of == number);
                    for (row, change) in intents {
                        *self.told.entry(row).or_default() += i64::from(change);
                    }
                }
                Err(_) => {
                    std::mem::forget(self.engine.take());
                    return Err(Stalled);
                }
            }
        }
        Ok(())
    }
}
