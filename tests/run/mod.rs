//! The engine, driven by lines as a replay drives it, for tests.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use dataflows::admission::Verdict;
use dataflows::definitions::Definitions;
use dataflows::engine::{Config, Engine};
use dataflows::event::Decoder;
use dataflows::intake::{Line, Sequencer, prepare};
use dataflows::plan::Plan;
use dataflows::profile::answers::View;
use dataflows::protocol::{Answer, Question, Response};

/// A running engine and what feeds it.
pub struct Run {
    engine: Engine,
    responses: Receiver<Response>,
    sequencer: Sequencer,
    decoder: Decoder,
    plan: Arc<Plan>,
    position: u64,
    questions: u64,
}

const SECRET: [u8; 16] = [9; 16];

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
        let engine = Engine::start(Config { workers, plan: Arc::clone(&plan) }, move |response| {
            let _ = told.send(response);
        });
        let decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        Run { engine, responses, sequencer: Sequencer::new(SECRET, lateness), decoder, plan, position: 0, questions: 0 }
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

    /// Closes the step and gives all rows: profiles, sessions, segment changes, intents, credit.
    pub fn dump(&mut self) -> [Vec<String>; 5] {
        let views = [View::Profiles, View::Sessions, View::Changes, View::Intents, View::Credit];
        let first = self.questions;
        for view in views {
            self.sequencer.ask(self.questions, Question::Dump(view));
            self.questions += 1;
        }
        let step = self.sequencer.close();
        let number = step.number;
        self.engine.step(step);
        let mut rows: [Vec<String>; 5] = Default::default();
        let mut closed = 0;
        while closed < self.engine.workers() {
            match self.responses.recv().expect("the engine runs") {
                Response::Answer { question, part: Answer::Rows(part), .. } => {
                    rows[(question - first) as usize].extend(server::rows::lines(&part, &self.plan.definitions));
                }
                Response::Closed { number: of, .. } if of == number => closed += 1,
                _ => {}
            }
        }
        rows.iter_mut().for_each(|rows| rows.sort());
        rows
    }
}
