//! W1 through the engine: decoded clicks in, the same figures out.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};

use dataflows::definitions::Definitions;
use dataflows::engine::{Acceptance, Config, Engine};
use dataflows::event::Decoder;
use dataflows::identity::Erasure;
use dataflows::intake::{Prepared, prepare};
use dataflows::plan::Plan;
use dataflows::protocol::{Answer, Closed, Question, Record, Response, Step};
use dataflows::total::Total;
use dataflows::value::Value;
use ecow::EcoString;
use hashbrown::{HashMap, HashSet};

use super::clicks::{CAMPAIGNS, CHANNELS, Click, EVENTS, Event, line};
use super::figures::{Credits, DIRECT, Figures};
use super::yardstick::Yardstick;

/// W1's definitions.
pub const DEFINITIONS: &str = include_str!("../w1.yaml");

pub const SECRET: [u8; 16] = [1; 16];
/// Steps that may be open at once, as in a replay.
const STEPS_OPEN_MAX: u64 = 8;

/// W1's definitions, ready to run.
pub fn plan() -> Arc<Plan> {
    plan_of(DEFINITIONS)
}

/// Definitions, ready to run.
pub fn plan_of(yaml: &str) -> Arc<Plan> {
    let (definitions, _) = Definitions::parse(yaml).expect("they are right");
    Arc::new(Plan::new(Arc::new(definitions)))
}

/// Clicks as the engine takes them.
pub fn decoded(plan: &Plan, clicks: &[Click]) -> Vec<Prepared> {
    let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
    let mut text = String::new();
    let prepared = clicks.iter().map(|click| {
        text.clear();
        line(click, &mut text);
        match prepare(&text, 0, &mut decoder, &SECRET) {
            Ok(Record::Event(prepared)) => prepared,
            other => panic!("a click is an event: {other:?}"),
        }
    });
    prepared.collect()
}

/// The yardstick on the events that the engine gets: ids are texts, and what is seen twice is known by its key.
pub struct ByHand {
    yardstick: Yardstick,
    names: Vec<Option<Event>>,
    seen: HashSet<u128>,
    users: HashMap<EcoString, u32>,
    campaigns: HashMap<(EcoString, EcoString), (u8, u8)>,
    batch: Vec<Click>,
}

impl ByHand {
    pub fn new(plan: &Plan) -> ByHand {
        let named = |(event, name): (Event, &str)| (plan.vocabulary.name(name), event);
        let mut names = vec![None; plan.vocabulary.len()];
        EVENTS.map(named).into_iter().for_each(|(name, event)| names[name.0 as usize] = Some(event));
        names[0] = Some(Event::SurveyResponse); // as all that W1 does not name
        ByHand {
            yardstick: Yardstick::new(),
            names,
            seen: HashSet::new(),
            users: HashMap::new(),
            campaigns: HashMap::new(),
            batch: Vec::new(),
        }
    }

    pub fn apply(&mut self, events: &[Prepared]) {
        for prepared in events {
            let event = &prepared.event;
            if !self.seen.insert(prepared.entry) {
                continue;
            }
            let next = self.users.len() as u32;
            let user = *self.users.entry_ref(event.own.as_str()).or_insert(next);
            let (mut value, mut channel, mut campaign) = (0, 0, 0);
            match event.values() {
                [(_, Value::Text(of)), (_, Value::Text(name))] => {
                    let key = || (CHANNELS.iter().position(|name| name == of), name.rsplit_once('-'));
                    let number = || match key() {
                        (Some(channel), Some((_, number))) => (channel as u8, number.parse().expect("a number")),
                        _ => panic!("a campaign of W1"),
                    };
                    (channel, campaign) = *self.campaigns.entry((of.clone(), name.clone())).or_insert_with(number);
                }
                [(_, Value::Number(number))] => value = number.0,
                _ => {}
            }
            let number = event.message_id[1..].parse().expect("messages are numbered");
            let name = self.names[event.name.0 as usize].expect("a name of W1");
            self.batch.push(Click { value, channel, campaign, ..Click::of(event.timestamp, user, number, name) });
        }
        self.yardstick.apply(&self.batch);
        self.batch.clear();
    }

    pub fn figures(&self) -> Figures {
        self.yardstick.figures()
    }
}

/// A running engine under W1's definitions.
pub struct Running {
    engine: Engine,
    step: Step,
    closed: Arc<AtomicU64>,
    asked: Receiver<Closed>,
}

impl Running {
    pub fn start(plan: Arc<Plan>, workers: usize) -> Running {
        let (told, asked) = channel();
        let closed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&closed);
        let driver = std::thread::current();
        let config = Config { workers, plan, acceptance: Acceptance::AnyTime, secret: [0; 16] };
        let engine = Engine::start(config, move |response| {
            let Response::Closed(step) = response else { return };
            let number = step.number;
            if !step.answers.is_empty() || step.switched.is_some() || !step.erased.is_empty() {
                let _ = told.send(step);
            }
            count.store(number, Ordering::Release);
            driver.unpark();
        });
        Running { engine, step: Step::first(), closed, asked }
    }

    /// One step.
    pub fn step(&mut self, clicks: impl IntoIterator<Item = Prepared>) {
        for mut prepared in clicks {
            self.step.position += 1;
            prepared.place(self.step.position);
            self.step.record(Record::Event(prepared));
        }
        self.close(STEPS_OPEN_MAX);
    }

    /// Something else in the step to come, made of its place.
    pub fn record(&mut self, record: impl FnOnce(u64) -> Record) {
        self.step.position += 1;
        self.step.record(record(self.step.position));
    }

    /// Somebody's ids are erased with the step to come.
    pub fn erase(&mut self, ids: Vec<EcoString>) {
        self.step.position += 1;
        let erasure = Erasure { position: self.step.position, until: self.step.clock, ids };
        self.engine.erasing(erasure).into_iter().for_each(|record| self.step.record(record));
    }

    /// These definitions are to hold, from the step to come on prepared for.
    pub fn change(&mut self, plan: Arc<Plan>) {
        self.step.plan = Some(plan);
    }

    /// Closed steps that tell more than that they are.
    pub fn told(&mut self) -> impl Iterator<Item = Closed> {
        self.asked.try_iter()
    }

    /// Waits until all steps are closed.
    pub fn wait(&mut self) {
        self.wait_for(0);
    }

    fn close(&mut self, open: u64) {
        self.engine.step(self.step.close());
        self.wait_for(open);
    }

    fn wait_for(&self, open: u64) {
        while self.closed.load(Ordering::Acquire) + open + 1 < self.step.number {
            std::thread::park();
        }
    }

    /// The figures, but for the digest of intents, which the engine does not keep.
    pub fn figures(&mut self) -> Figures {
        self.step.questions.push((0, Question::Totals));
        self.close(0);
        let closed = self.asked.recv().expect("what is asked is answered");
        let mut figures = Figures { clock: closed.clock, ..Figures::default() };
        for (_, part) in closed.answers {
            let Answer::Totals(totals) = part else { continue };
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

/// The key of a channel and a campaign, by their names.
pub fn key(channel: &str, campaign: &str) -> usize {
    let Some(channel) = CHANNELS.iter().position(|name| *name == channel) else { return DIRECT as usize };
    let (_, number) = campaign.rsplit_once('-').expect("campaigns are named channel-number");
    channel * CAMPAIGNS + number.parse::<usize>().expect("a number")
}
