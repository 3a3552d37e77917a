//! Acceptance alone, and the histories of persons alone, on one thread and without the dataflow around them, beside the
//! yardstick.
//!
//! `cargo bench --bench fold [-- SESSIONS [ROUNDS]]`; prints nanoseconds an event, the least of the rounds.

mod w1;

use std::sync::Arc;
use std::time::Instant;

use dataflows::admission::{Admission, Verdict};
use dataflows::intake::Prepared;
use dataflows::keyed::{Folding, Keyed};
use dataflows::plan::Plan;
use dataflows::profile::Effects;
use mimalloc::MiMalloc;
use w1::clicks::{Arrival, clicks};
use w1::engine::{decoded, plan};
use w1::yardstick::Yardstick;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let sessions = args.next().map_or(100_000, |arg| arg.parse().expect("a number of sessions"));
    let rounds = args.next().map_or(5, |arg| arg.parse().expect("a number of rounds"));
    let arrivals = clicks(sessions, 7, Arrival::Disordered);
    let plan = plan();
    let mut events = decoded(&plan, &arrivals);
    let mut admission = Admission::default();
    events.retain(|event| admission.decide(event.entry, false) == Verdict::Accepted);
    for step in [1_000, 10_000] {
        let (mut yardstick, mut decided, mut folds) = (f64::MAX, f64::MAX, f64::MAX);
        for _ in 0..rounds {
            let started = Instant::now();
            let mut hand = Yardstick::new();
            arrivals.chunks(step).for_each(|chunk| hand.apply(chunk));
            yardstick = yardstick.min(started.elapsed().as_secs_f64());
            let copies: Vec<Vec<Prepared>> = events.chunks(step).map(<[Prepared]>::to_vec).collect();
            let started = Instant::now();
            decide(copies);
            decided = decided.min(started.elapsed().as_secs_f64());
            let copies: Vec<Vec<Prepared>> = events.chunks(step).map(<[Prepared]>::to_vec).collect();
            let started = Instant::now();
            fold(&plan, copies);
            folds = folds.min(started.elapsed().as_secs_f64());
        }
        let each = |seconds: f64| seconds * 1e9 / events.len() as f64;
        let [yardstick, decided, folds] = [yardstick, decided, folds].map(each);
        println!("step {step}: yardstick {yardstick:.0} ns, acceptance {decided:.0} ns, folds {folds:.0} ns");
    }
}

fn decide(steps: Vec<Vec<Prepared>>) {
    let mut admission = Admission::default();
    for prepared in steps.into_iter().flatten() {
        assert_eq!(admission.decide(prepared.entry, false), Verdict::Accepted);
    }
}

fn fold(plan: &Arc<Plan>, steps: Vec<Vec<Prepared>>) {
    let mut keyed = Keyed::new(Folding { fold: Arc::clone(plan), effects: Effects::new(plan) });
    let mut clock = 0;
    for step in steps {
        for prepared in step {
            clock = clock.max(prepared.event.timestamp);
            let slot = keyed.touch(&prepared.event.own);
            keyed.insert(slot, prepared.event, |_, _, effects| effects.intents.clear());
        }
        keyed.advance(clock, |_, _, effects| effects.intents.clear());
        drop(keyed.now.effects.take(plan));
    }
}
