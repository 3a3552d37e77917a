//! What corrections cost on a loaded state, and what live events notice of them: merges and their taking back, events
//! taken back, erasures, and definitions that are added, changed and taken away.
//!
//! `cargo bench --bench corrections [-- SESSIONS]`; the default is 200,000 sessions, about 2.2 million events. Each
//! step has one live event of somebody and the correction, and follows the one before after a millisecond; printed is
//! how long it takes to close. The figures are checked when all that was changed is as it was.

mod w1;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataflows::admission::entry;
use dataflows::event::Decoder;
use dataflows::intake::{Prepared, prepare};
use dataflows::plan::Plan;
use dataflows::protocol::Record;
use ecow::{EcoString, eco_format};
use mimalloc::MiMalloc;
use w1::clicks::{Arrival, Click, START, clicks};
use w1::engine::{DEFINITIONS, Running, SECRET, decoded, plan, plan_of};
use w1::figures::Figures;
use w1::yardstick::Yardstick;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Live steps of which the latencies are told.
const STEPS: u32 = 1_000;
/// Of the person with so many sessions, and of others who are not often there.
const PEOPLE: [u32; 2] = [0, 30_000];

fn main() {
    let args = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let sessions = args.map_or(200_000, |arg| arg.parse().expect("a number of sessions"));
    let arrivals = clicks(sessions, 7, Arrival::Disordered);
    println!("{} arrivals; a step of one live event and:", arrivals.len());
    println!("{:>44} {:>9} {:>9} {:>9}", "microseconds", "median", "99th", "longest");
    for workers in [1, 2] {
        println!("{workers} workers");
        Loaded::new(&arrivals, workers).correct(&arrivals);
    }
}

/// The engine with nine tenths of all, and what is still to come, live.
struct Loaded {
    running: Running,
    plan: Arc<Plan>,
    live: std::vec::IntoIter<Prepared>,
}

impl Loaded {
    fn new(arrivals: &[Click], workers: usize) -> Loaded {
        let plan = plan();
        let mut events = decoded(&plan, arrivals);
        let live = events.split_off(events.len() - events.len() / 10).into_iter();
        let mut running = Running::start(Arc::clone(&plan), workers);
        let mut events = events.into_iter();
        while events.len() > 0 {
            running.step(events.by_ref().take(10_000));
        }
        running.wait();
        Loaded { running, plan, live }
    }

    fn correct(mut self, arrivals: &[Click]) {
        self.steps("nothing", STEPS, |_, _| {});
        self.definitions();
        let users = arrivals.iter().map(|click| click.user).max().expect("there are some") + 1;
        let people = move |number: u32| (number * 2 % users, (number * 2 + 1) % users);
        let id = |user| eco_format!("user-{user:07}");
        let of = |number| (id(people(number).0), id(people(number).1));
        let mut decoder = Decoder::new(Arc::clone(&self.plan.vocabulary));
        self.steps("a merge of two", STEPS, |running, number| {
            let (one, other) = of(number);
            let line = format!(
                r#"{{"type":"alias","previousId":"{one}","userId":"{other}","messageId":"a{number}","timestamp":{START}}}"#
            );
            running.record(|position| prepare(&line, position, &mut decoder, &SECRET).expect("it is right"));
        });
        self.steps("the same taken back", STEPS, |running, number| {
            let (_, other) = of(number);
            running.record(|position| retract(position, other, eco_format!("a{number}")));
        });
        while self.live.len() > 0 {
            self.running.step(self.live.by_ref().take(10_000));
        }
        let mut yardstick = Yardstick::new();
        yardstick.apply(arrivals);
        let expected = Figures { come_back_digest: 0, ..yardstick.figures() };
        assert_eq!(self.running.figures(), expected, "all is as if nothing had been");

        self.live = Vec::new().into_iter();
        let step = arrivals.len() / STEPS as usize;
        self.steps("an event taken back", STEPS, |running, number| {
            let click = arrivals[number as usize * step];
            running.record(|position| retract(position, id(click.user), eco_format!("e{:09}", click.number)));
        });
        for first in PEOPLE.map(|first| first % users) {
            let erased = |number| (first + number) % users;
            self.steps(&format!("an erasure, from the user {first} on"), 100, |running, number| {
                running.erase(vec![id(erased(number))]);
            });
            let meant: HashSet<u32> = (0..100).map(erased).collect();
            let aliases = (0..STEPS).filter(|number| meant.contains(&people(*number).1)).count();
            let meant = arrivals.iter().filter(|click| meant.contains(&click.user));
            let meant: HashSet<u32> = meant.map(|click| click.number).collect();
            let erased: u64 = self.running.told().flat_map(|closed| closed.erased).map(|(_, events)| events).sum();
            assert_eq!(
                erased,
                (meant.len() + aliases) as u64,
                "all of theirs, those too that were taken back, and nothing else"
            );
        }
    }

    /// Definitions one after the other, back to the first.
    fn definitions(&mut self) {
        let with = |segment: &str| DEFINITIONS.replace("segments:\n", &format!("segments:\n  new: {segment}\n"));
        for (what, yaml) in [
            ("a new segment", with("{ trait: purchases, at_least: 2 }")),
            ("it has a window", with("{ performed: add_to_cart, times: 3, within: 24h }")),
            ("it is taken away", DEFINITIONS.to_owned()),
            ("a journey's timer is changed", DEFINITIONS.replace("after: 4h", "after: 2h")),
            ("and changed back", DEFINITIONS.to_owned()),
        ] {
            let definitions = Arc::clone(&plan_of(&yaml).definitions);
            self.plan = Arc::new(self.plan.after(definitions, Default::default()));
            self.running.change(Arc::clone(&self.plan));
            let started = Instant::now();
            let mut times = Vec::new();
            while !self.running.told().any(|closed| closed.switched.is_some()) {
                times.push(self.step());
            }
            let taken = started.elapsed().as_millis();
            tell(&format!("{what}: {taken} ms until it holds"), times);
        }
    }

    fn steps(&mut self, what: &str, count: u32, mut correct: impl FnMut(&mut Running, u32)) {
        let mut times = Vec::new();
        for number in 0..count {
            correct(&mut self.running, number);
            times.push(self.step());
        }
        tell(what, times);
    }

    /// Closes a step, with one live event if there is one. How long that took.
    fn step(&mut self) -> Duration {
        std::thread::sleep(Duration::from_millis(1));
        let started = Instant::now();
        self.running.step(self.live.next());
        self.running.wait();
        started.elapsed()
    }
}

fn retract(position: u64, own: EcoString, message_id: EcoString) -> Record {
    let known = entry(&SECRET, &own, &message_id, 0);
    Record::Retract(position, START, own, message_id, known)
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let [median, high, longest] =
        [times.len() / 2, times.len() * 99 / 100, times.len() - 1].map(|place| times[place].as_micros());
    println!("{what:>44} {median:>9} {high:>9} {longest:>9}");
}
