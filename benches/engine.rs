//! The engine on decoded events of W1 beside the hand-written yardstick, in the same run.
//!
//! `cargo bench --bench engine [-- SESSIONS [ROUNDS]]`; the default is 200,000 sessions, about 2.2 million events.
//! Prints millions of events a second, the median of the rounds: the yardstick on dense numbers, the same program on
//! the events that the engine gets (ids are texts, nothing is dense), and the engine with its ratio to that.

mod w1;

use std::sync::Arc;
use std::time::Instant;

use dataflows::intake::Prepared;
use dataflows::plan::Plan;
use mimalloc::MiMalloc;
use w1::clicks::{Arrival, Click, clicks};
use w1::engine::{ByHand, Running, decoded, plan};
use w1::figures::Figures;
use w1::yardstick::Yardstick;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let sessions = args.next().map_or(200_000, |arg| arg.parse().expect("a number of sessions"));
    let rounds = args.next().map_or(3, |arg| arg.parse().expect("a number of rounds"));
    let arrivals = clicks(sessions, 7, Arrival::Disordered);
    let plan = plan();
    let events = decoded(&plan, &arrivals);
    throughput(&plan, &arrivals, &events, rounds);
    latency(&plan, &events);
}

/// Steps on a loaded state, one after the other: from the step's first event to its answer.
fn latency(plan: &Arc<Plan>, events: &[Prepared]) {
    println!("steps on a loaded state: microseconds, median and 99th of a hundred");
    for workers in [1, 2] {
        let (loaded, rest) = events.split_at(events.len() - events.len() / 10);
        let mut running = Running::start(plan.clone(), workers);
        loaded.chunks(10_000).for_each(|chunk| running.step(chunk.iter().cloned()));
        running.wait();
        let mut rest = rest.iter().cloned();
        for size in [1, 1_000] {
            let mut times: Vec<u128> = Vec::new();
            for _ in 0..(if size == 1 { 2_000 } else { 100 }) {
                let step: Vec<Prepared> = rest.by_ref().take(size).collect();
                let started = Instant::now();
                running.step(step);
                running.wait();
                times.push(started.elapsed().as_micros());
            }
            times.sort_unstable();
            let (median, high) = (times[times.len() / 2], times[times.len() * 99 / 100]);
            println!("{workers} workers, {size:>5} events: {median:>6} {high:>6}");
        }
    }
}

fn throughput(plan: &Arc<Plan>, arrivals: &[Click], events: &[Prepared], rounds: usize) {
    let rate = |seconds: f64| arrivals.len() as f64 / seconds / 1e6;
    println!("{} arrivals, {rounds} rounds; millions of events a second, median", arrivals.len());
    println!(
        "{:>9} {:>10} {:>10} {:>9} {:>6} {:>9} {:>6}",
        "step", "yardstick", "same input", "1 worker", "", "2 workers", ""
    );
    for step in [1_000, 10_000] {
        let mut times: [Vec<f64>; 4] = Default::default();
        for _ in 0..rounds {
            let started = Instant::now();
            let mut yardstick = Yardstick::new();
            arrivals.chunks(step).for_each(|chunk| yardstick.apply(chunk));
            times[0].push(started.elapsed().as_secs_f64());
            let started = Instant::now();
            let mut by_hand = ByHand::new(plan);
            events.chunks(step).for_each(|chunk| by_hand.apply(chunk));
            times[1].push(started.elapsed().as_secs_f64());
            let expected = Figures { come_back_digest: 0, ..yardstick.figures() };
            assert_eq!(
                Figures { come_back_digest: 0, ..by_hand.figures() },
                expected,
                "the yardstick on the same input"
            );
            for workers in [1, 2] {
                let mut copy = Vec::from(events).into_iter();
                let mut running = Running::start(plan.clone(), workers);
                let started = Instant::now();
                while copy.len() > 0 {
                    running.step(copy.by_ref().take(step));
                }
                running.wait();
                times[workers + 1].push(started.elapsed().as_secs_f64());
                assert_eq!(running.figures(), expected, "the engine is exact");
            }
        }
        let [yardstick, same, one, two] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            rate(times[times.len() / 2])
        });
        let (first, second) = (one / same, two / same);
        println!("{step:>9} {yardstick:>10.2} {same:>10.2} {one:>9.2} {first:>6.2} {two:>9.2} {second:>6.2}");
    }
}
