//! How the cost of an event depends on what is there already: on the length of one history, on the number of segments
//! with windows, on the number of events of everybody. Histories alone, on one thread, without the dataflow around.
//!
//! `cargo bench --bench shape [-- EVENTS]`; prints nanoseconds an event. EVENTS of everybody, 2,000,000 unless told.

mod w1;

use std::sync::Arc;
use std::time::{Duration, Instant};

use dataflows::admission::{Admission, Verdict};
use dataflows::definitions::Definitions;
use dataflows::intake::Prepared;
use dataflows::keyed::{Folding, Keyed};
use dataflows::plan::Plan;
use dataflows::profile::Effects;
use mimalloc::MiMalloc;
use w1::clicks::{Arrival, Click, Dice, EVENTS, START, clicks};
use w1::engine::{decoded, plan};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// A session of W1 makes about so many events.
const EVENTS_OF_A_SESSION: usize = 10;
/// Events decoded at once, so that not all of them are in memory twice.
const CHUNK: usize = 100_000;

fn main() {
    let events = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let events = events.map_or(2_000_000, |arg| arg.parse().expect("a number of events"));
    one_person();
    segments();
    everybody(events);
}

/// Histories, and how long they took.
struct Run {
    plan: Arc<Plan>,
    keyed: Keyed<Plan>,
    admission: Admission,
    clock: i64,
    events: usize,
    taken: Duration,
}

impl Run {
    fn new(plan: Arc<Plan>) -> Run {
        let keyed = Keyed::new(Folding { fold: Arc::clone(&plan), effects: Effects::new(&plan) });
        Run { plan, keyed, admission: Admission::default(), clock: 0, events: 0, taken: Duration::ZERO }
    }

    /// Takes clicks in steps; neither decoding nor the search for duplicates is timed.
    fn take(&mut self, clicks: &[Click], step: usize) {
        let mut events = decoded(&self.plan, clicks);
        events.retain(|event| self.admission.decide(event.entry, false) == Verdict::Accepted);
        self.events += events.len();
        let mut events = events.into_iter();
        let started = Instant::now();
        loop {
            let step: Vec<Prepared> = events.by_ref().take(step).collect();
            if step.is_empty() {
                break;
            }
            for prepared in step {
                self.clock = self.clock.max(prepared.event.timestamp);
                let slot = self.keyed.touch(&prepared.event.own);
                self.keyed.insert(slot, prepared.event, |_, _, effects| effects.intents.clear());
            }
            self.keyed.advance(self.clock, |_, _, effects| effects.intents.clear());
            drop(self.keyed.now.effects.take(&self.plan));
        }
        self.taken += started.elapsed();
    }

    /// Nanoseconds an event since this was asked last.
    fn each(&mut self) -> f64 {
        let each = self.taken.as_secs_f64() * 1e9 / self.events as f64;
        (self.taken, self.events) = (Duration::ZERO, 0);
        each
    }
}

/// One person's history as it grows, each event a step of its own, as on a quiet stream.
fn one_person() {
    for (late, name) in [(10 * MINUTE, "ten minutes"), (DAY, "a day")] {
        println!("one person, 5 % up to {name} late");
        let clicks = of_one_person(1_000_000, late);
        let mut folding = Run::new(plan());
        let mut from = 0;
        for to in [1_000, 10_000, 100_000, 1_000_000] {
            clicks[from..to].chunks(CHUNK).for_each(|clicks| folding.take(clicks, 1));
            println!("  events {from:>9} to {to:>9}: {:>8.0} ns", folding.each());
            from = to;
        }
    }
}

/// Clicks of one person, ten in as many minutes and then a pause of five hours, some late.
fn of_one_person(count: usize, late: i64) -> Vec<Click> {
    let mut dice = Dice(7);
    let mut arrivals: Vec<(i64, Click)> = (0..count as i64)
        .map(|number| {
            let timestamp = START + number * MINUTE + number / 10 * 5 * HOUR;
            let event = EVENTS[dice.range(0, EVENTS.len() as u64) as usize].0;
            let waits = if dice.range(0, 20) == 0 { dice.range(1, late as u64) as i64 } else { 0 };
            (timestamp + waits, Click { value: 10_000_000, ..Click::of(timestamp, 0, number as u32, event) })
        })
        .collect();
    arrivals.sort_by_key(|(arrives, _)| *arrives);
    arrivals.into_iter().map(|(_, click)| click).collect()
}

/// W1 with segments over windows besides its own.
fn segments() {
    println!("segments with windows");
    let clicks = clicks(100_000, 7, Arrival::Disordered);
    for count in [0, 1, 10, 100] {
        let mut folding = Run::new(with_segments(count));
        clicks.chunks(CHUNK).for_each(|clicks| folding.take(clicks, 1_000));
        println!("  {count:>3}: {:>8.0} ns", folding.each());
    }
}

/// W1's definitions with so many segments of people who did something some times in some hours.
fn with_segments(count: usize) -> Arc<Plan> {
    let segment = |number: usize| {
        let (event, times) = (EVENTS[number % EVENTS.len()].1, 1 + number % 3);
        format!("  s{number}: {{ performed: {event}, times: {times}, within: {}h }}\n", 1 + number)
    };
    let segments = (0..count).map(segment).collect::<String>();
    let text = include_str!("w1.yaml").replace("segments:\n", &format!("segments:\n{segments}"));
    let (definitions, _) = Definitions::parse(&text).expect("they are right");
    Arc::new(Plan::new(Arc::new(definitions)))
}

/// Everybody's histories as they grow.
fn everybody(events: usize) {
    println!("everybody");
    let clicks = clicks((events / EVENTS_OF_A_SESSION) as u32, 7, Arrival::Disordered);
    let mut folding = Run::new(plan());
    let mut from = 0;
    for part in [20, 10, 4, 2, 1] {
        let to = clicks.len() / part;
        clicks[from..to].chunks(CHUNK).for_each(|clicks| folding.take(clicks, 1_000));
        println!("  events {from:>9} to {to:>9}: {:>8.0} ns", folding.each());
        from = to;
    }
}
