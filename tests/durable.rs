//! Steps that the engine works on before they are durable: nothing of them is told, in any process, until they are so
//! in all.

mod run;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use dataflows::definitions::Definitions;
use dataflows::engine::{Acceptance, Config, Engine, Peers};
use dataflows::plan::Plan;
use dataflows::protocol::{Response, Step};

/// A step takes milliseconds, but the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is told too early is told within this.
const EARLY: Duration = Duration::from_millis(200);
/// More than a worker lets be under way.
const STEPS: u64 = 9;

/// An engine, and the numbers of the steps that it tells of.
fn engine(process: usize, connections: Vec<Option<UnixStream>>, workers: usize) -> (Engine, Receiver<u64>) {
    let plan = Arc::new(Plan::new(Arc::new(Definitions::parse("version: 1").expect("it is right").0)));
    let config = Config { workers, plan, acceptance: Acceptance::Stamped, secret: [3; 16] };
    let (told, closed) = channel();
    let heard = move |response| match response {
        Response::Closed(step) => drop(told.send(step.number)),
        Response::Letter(from, letter) => panic!("{from} wrote {letter:?}"),
    };
    let lost = Box::new(|peer| panic!("the connection to {peer} is lost"));
    let engine = match connections.len() {
        1 => Engine::start(config, heard),
        _ => Engine::start_among(config, Peers { process, connections, lost }, heard),
    };
    (engine, closed)
}

#[test]
fn nothing_is_told_before_all_have_it_durable() {
    for (processes, workers) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        let connections = run::connections(processes).into_iter().enumerate();
        let (engines, closed): (Vec<_>, Vec<_>) =
            connections.map(|(process, connections)| engine(process, connections, workers)).unzip();
        let slow = processes - 1;
        for number in 1..=STEPS {
            for (process, engine) in engines.iter().enumerate() {
                engine.step(Step { number, is_durable: process != slow, ..Step::first() });
            }
        }
        let mut told = 0;
        for durable in [2, 3, STEPS] {
            for heard in &closed {
                assert_eq!(heard.recv_timeout(EARLY), Err(std::sync::mpsc::RecvTimeoutError::Timeout));
            }
            engines[slow].durable(durable);
            for heard in &closed {
                let numbers: Vec<u64> =
                    (told..durable).map(|_| heard.recv_timeout(PATIENCE).expect("it is told")).collect();
                assert_eq!(numbers, (told + 1..=durable).collect::<Vec<_>>(), "{processes} of {workers}");
            }
            told = durable;
        }
        // Each ends when all do.
        std::thread::scope(|scope| engines.into_iter().for_each(|engine| drop(scope.spawn(move || drop(engine)))));
    }
}
