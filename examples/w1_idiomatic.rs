//! W1 in idiomatic differential dataflow: collections, `reduce`, `count`, `join`. A readable second oracle.
//!
//! A figure is a sum of multiplicities: a session is one `Sessions`, a credit of 10^-9 is one `Linear`. Logical time
//! is `clock << 16 | step`; what a timer changes is dated at its deadline, and waits in the dataflow until then.

#[path = "../benches/w1/mod.rs"]
mod w1;

use differential_dataflow::{VecCollection, input::InputSession};
use std::sync::{Arc, Mutex};
use timely::worker::Worker;
use w1::clicks::{Arrival, Click, Event, clicks};
use w1::{brute, figures::*};

/// `clock << 16 | step`: all arrivals of a step are dated at its end.
type Time = u64;
/// A user's click: timestamp, number, event, attribution key, value. They sort in event order.
type Past = (i64, u32, Event, u16, i64);
type Clicks<'s> = VecCollection<'s, Time, (u32, Past)>;
type Facts<'s> = VecCollection<'s, Time, Fact>;

fn facts<'s>(arrivals: Clicks<'s>) -> Facts<'s> {
    let clicks = arrivals.distinct(); // a resend equals its original: distinct records are distinct (user, number)
    sessions(clicks.clone()).concatenate([segments(clicks.clone()), journey(clicks.clone()), credit(clicks)])
}

fn sessions<'s>(clicks: Clicks<'s>) -> Facts<'s> {
    let facts = clicks.reduce(|_, history, facts| {
        for session in history.chunk_by(|(a, _), (b, _)| b.0 - a.0 <= GAP) {
            let length = session[session.len() - 1].0.0 - session[0].0.0;
            facts.extend([(Fact::Sessions, 1), (Fact::SessionEvents, session.len() as isize)]);
            facts.push((Fact::SessionMs, length as isize));
        }
    });
    facts.map(|(_, fact)| fact)
}

fn segments<'s>(clicks: Clicks<'s>) -> Facts<'s> {
    let traits = clicks.explode(|(user, (_, _, event, _, value))| match event {
        Event::Purchase => Some((user, (1, value as isize, 0))),
        Event::Login => Some((user, (0, 0, 1))),
        _ => None,
    });
    traits.count().flat_map(|(_, (purchases, spend, logins)): (u32, (isize, isize, isize))| {
        let vip = spend >= VIP_SPEND as isize || purchases >= VIP_PURCHASES as isize;
        let of = [(purchases >= 1, Fact::Paying), (vip, Fact::Vip), (logins >= 1, Fact::LoggedIn)];
        of.into_iter().filter_map(|(is, fact)| is.then_some(fact))
    })
}

fn journey<'s>(clicks: Clicks<'s>) -> Facts<'s> {
    let rows = clicks.reduce(|user, history, rows| {
        let (mut state, mut anchor, mut timer) = (State::None, None, None);
        for ((at, number, event, ..), _) in history {
            if let Some((due, root)) = timer.filter(|(due, _)| due <= at) {
                rows.push(((Fact::ComeBack(*user, due, root), due), 1));
                state = State::Abandoned;
            }
            state = next(state, *event);
            anchor = if *event == Event::AddToCart { Some((at + ABANDONED_AFTER, *number)) } else { anchor };
            timer = anchor.filter(|_| matches!(state, State::Carted | State::Checkout));
        }
        rows.push(((Fact::In(state), 0), 1));
        if let Some((due, root)) = timer {
            rows.extend([((Fact::In(state), due), -1), ((Fact::In(State::Abandoned), due), 1)]);
            rows.push(((Fact::ComeBack(*user, due, root), due), 1));
        }
    });
    // a row counts from when it is derived, or from its own instant if that is later
    rows.join_function(|(_, (fact, from))| [(fact, (from as Time) << 16, 1isize)])
}

fn next(state: State, event: Event) -> State {
    match (event, state) {
        (Event::AddToCart, _) => State::Carted,
        (Event::CheckoutStarted, State::Carted) => State::Checkout,
        (Event::Purchase, State::Carted | State::Checkout) => State::Purchased,
        (_, State::Carted | State::Checkout) => state,
        (Event::PageView, _) => State::Landed,
        (Event::SectionView, State::Landed | State::Purchased | State::Abandoned) => State::Browsing,
        _ => state,
    }
}

fn credit<'s>(clicks: Clicks<'s>) -> Facts<'s> {
    let touches = clicks.clone().filter(|(_, past)| past.2 == Event::AdClick);
    let purchases = clicks.filter(|(_, past)| past.2 == Event::Purchase);
    let within = touches.join(purchases.clone()).filter(|(_, (t, p))| (0..=LOOKBACK).contains(&(p.0 - t.0)));
    let within = within.map(|(user, (touch, purchase))| ((user, purchase), Some(touch)));
    // a purchase without a touch has a path too: `None` keeps it in the reduction, and sorts first
    let paths = within.concat(purchases.map(|purchase| (purchase, None)));
    let facts = paths.reduce(|(_, purchase), path, facts| {
        let keys: Vec<u16> = path.iter().filter_map(|(touch, _)| touch.map(|t| t.3)).collect();
        let keys = if keys.is_empty() { &[DIRECT] } else { &keys[keys.len().saturating_sub(PATH_MAX)..] };
        for (of_value, whole) in [(false, 1_000_000_000), (true, i128::from(purchase.4.max(0)) * 1000)] {
            facts.push((Fact::LastTouch(keys[keys.len() - 1], of_value), whole as isize));
            let floor = |k: usize| (whole * k as i128 / keys.len() as i128) as isize;
            facts.extend((0..keys.len()).map(|k| (Fact::Linear(keys[k], of_value), floor(k + 1) - floor(k))));
        }
    });
    facts.map(|(_, fact)| fact)
}

/// The facts of all steps, as changes of multiplicity with their times.
fn run(steps: Vec<(Time, Vec<Click>)>, workers: usize) -> Vec<(Fact, Time, isize)> {
    let facts = Arc::new(Mutex::new(Vec::new()));
    let output = facts.clone();
    let run = move |worker: &mut Worker| dataflow(worker, &steps, output.clone());
    drop(timely::execute(timely::Config::process(workers), run).expect("workers start"));
    std::mem::take(&mut facts.lock().expect("no worker panics"))
}

fn dataflow(worker: &mut Worker, steps: &[(Time, Vec<Click>)], output: Arc<Mutex<Vec<(Fact, Time, isize)>>>) {
    let mut input = InputSession::new();
    worker.dataflow(|scope| {
        let facts = facts(input.to_collection(scope)).consolidate();
        facts.inspect_batch(move |_, batch| output.lock().expect("no worker panics").extend_from_slice(batch));
    });
    for (time, clicks) in steps {
        input.advance_to(*time);
        let mine = clicks.iter().skip(worker.index()).step_by(worker.peers());
        mine.for_each(|c| input.insert((c.user, (c.timestamp, c.number, c.event, key(c), c.value))));
        input.flush();
        worker.step();
    }
}

fn check(arrival: Arrival, workers: usize) {
    let arrivals = clicks(5000, 7, arrival);
    let size = arrivals.len().div_ceil(20);
    let (mut clock, mut steps) = (0, Vec::new());
    for (k, chunk) in arrivals.chunks(size).enumerate() {
        clock = chunk.iter().fold(clock, |clock, click| clock.max(click.timestamp));
        steps.push(((clock as Time) << 16 | k as Time, chunk.to_vec()));
    }
    let facts = run(steps.clone(), workers);
    for (k, (time, _)) in steps.iter().enumerate() {
        let mut figures = Figures { clock: (time >> 16) as i64, ..Figures::default() };
        facts.iter().filter(|(_, at, _)| at <= time).for_each(|(fact, _, n)| figures.count(fact, *n as i64));
        let done = arrivals.len().min((k + 1) * size);
        assert_eq!(figures, brute::figures(&arrivals[..done]), "{arrival:?}, {workers} workers, after {done}");
    }
    println!("{} arrivals, {arrival:?}, {workers} workers: equal after each of {} steps", arrivals.len(), steps.len());
}

#[cfg_attr(test, test)]
fn main() {
    let runs = [(Arrival::Disordered, 1), (Arrival::Disordered, 2), (Arrival::Shuffled, 2)];
    runs.into_iter().for_each(|(arrival, workers)| check(arrival, workers));
}
