//! W1 through the engine: decoded clicks in, the same figures out.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};

use dataflows::definitions::Definitions;
use dataflows::engine::{Config, Engine};
use dataflows::event::Decoder;
use dataflows::intake::{Line, Prepared, Sequencer, prepare};
use dataflows::plan::Plan;
use dataflows::protocol::{Answer, Question, Response};
use dataflows::total::Total;

use super::clicks::{CAMPAIGNS, CHANNELS, Click, line};
use super::figures::{Credits, DIRECT, Figures};

const SECRET: [u8; 16] = [1; 16];
/// Steps that may be open at once, as in a replay.
const STEPS_OPEN_MAX: u64 = 8;

/// W1's definitions, ready to run.
pub fn plan() -> Arc<Plan> {
    let (definitions, _) = Definitions::parse(include_str!("../w1.yaml")).expect("W1's definitions are right");
    Arc::new(Plan::new(Arc::new(definitions)))
}

/// Clicks as the engine takes them.
pub fn decoded(plan: &Plan, clicks: &[Click]) -> Vec<Prepared> {
    let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
    let mut text = String::new();
    let prepared = clicks.iter().map(|click| {
        text.clear();
        line(click, &mut text);
        match prepare(&text, &mut decoder, &SECRET) {
            Ok(Line::Event(prepared)) => prepared,
            other => panic!("a click is an event: {other:?}"),
        }
    });
    prepared.collect()
}

/// A running engine under W1's definitions.
pub struct Running {
    engine: Engine,
    sequencer: Sequencer,
    closed: Arc<AtomicU64>,
    answers: Receiver<Answer>,
    steps: u64,
    position: u64,
}

impl Running {
    pub fn start(plan: Arc<Plan>, workers: usize) -> Running {
        let (told, answers) = channel();
        let closed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&closed);
        let driver = std::thread::current();
        let engine = Engine::start(Config { workers, plan }, move |response| match response {
            Response::Closed { .. } => {
                count.fetch_add(1, Ordering::Release);
                driver.unpark();
            }
            Response::Answer { part, .. } => drop(told.send(part)),
        });
        Running { engine, sequencer: Sequencer::new(SECRET, None), closed, answers, steps: 0, position: 0 }
    }

    /// One step.
    pub fn step(&mut self, clicks: impl IntoIterator<Item = Prepared>) {
        for prepared in clicks {
            self.position += 1;
            self.sequencer.admit_by_its_time(self.position, prepared);
        }
        self.close(STEPS_OPEN_MAX);
    }

    /// Waits until all steps are closed.
    pub fn wait(&mut self) {
        self.wait_for(0);
    }

    fn close(&mut self, open: u64) {
        self.engine.step(self.sequencer.close());
        self.steps += 1;
        self.wait_for(open);
    }

    fn wait_for(&self, open: u64) {
        let workers = self.engine.workers() as u64;
        while self.closed.load(Ordering::Acquire) + open * workers < self.steps * workers {
            std::thread::park();
        }
    }

    /// The figures, but for the digest of intents, which the engine does not keep.
    pub fn figures(&mut self) -> Figures {
        self.sequencer.ask(0, Question::Totals);
        let clock = self.sequencer.clock();
        self.close(0);
        let mut figures = Figures { clock, ..Figures::default() };
        while let Ok(Answer::Totals(totals)) = self.answers.try_recv() {
            for (total, sum) in totals {
                count(&mut figures, &total, sum);
            }
        }
        figures
    }
}

fn count(figures: &mut Figures, total: &Total, sum: i128) {
    let number = sum as u64;
    match total {
        Total::Sessions => figures.sessions = number,
        Total::SessionEvents => figures.session_events = number,
        Total::SessionMillis => figures.session_ms = sum as i64,
        Total::Members(name) if name == "paying" => figures.paying = number,
        Total::Members(name) if name == "vip" => figures.vip = number,
        Total::Members(name) if name == "logged_in" => figures.logged_in = number,
        Total::Inside(_, state) => {
            let states = ["none", "landed", "browsing", "carted", "checkout", "purchased", "abandoned"];
            let place = states.iter().position(|name| state == name).expect("a state of the journey");
            figures.states[place] = number;
        }
        Total::Intents(_, _) => figures.come_back += number,
        Total::CreditConversions(model, channel, campaign) => {
            credit(figures, model)[key(channel, campaign)].conversions = sum as i64
        }
        Total::CreditValue(model, channel, campaign) => credit(figures, model)[key(channel, campaign)].value = sum,
        _ => {}
    }
}

fn credit<'f>(figures: &'f mut Figures, model: &str) -> &'f mut [super::figures::Credit] {
    let Credits(credits) = if model == "linear" { &mut figures.linear } else { &mut figures.last_touch };
    credits
}

fn key(channel: &str, campaign: &str) -> usize {
    let Some(channel) = CHANNELS.iter().position(|name| *name == channel) else { return DIRECT as usize };
    let (_, number) = campaign.rsplit_once('-').expect("campaigns are named channel-number");
    channel * CAMPAIGNS + number.parse::<usize>().expect("a number")
}
