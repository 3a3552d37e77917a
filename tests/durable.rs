//! Steps that the engine works on before they are durable: nothing of them is told, in any process, until they are so
//! in all.

mod run;

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use dataflows::definitions::Definitions;
use dataflows::engine::{Acceptance, Config};
use dataflows::plan::Plan;
use dataflows::protocol::Step;

/// A step takes milliseconds, but the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is told too early is told within this.
const EARLY: Duration = Duration::from_millis(200);
/// More than a worker lets be under way.
const STEPS: u64 = 9;

#[test]
fn nothing_is_told_before_all_have_it_durable() {
    for (processes, workers) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        let plan = Arc::new(Plan::new(Arc::new(Definitions::parse("version: 1").expect("it is right").0)));
        let config = Config { workers, plan, acceptance: Acceptance::Stamped, secret: [3; 16] };
        let connections = run::connections(processes).into_iter().enumerate();
        let (engines, closed): (Vec<_>, Vec<_>) =
            connections.map(|(process, connections)| run::engine(config.clone(), process, connections)).unzip();
        let slow = processes - 1;
        for number in 1..=STEPS {
            for (process, engine) in engines.iter().enumerate() {
                engine.step(Step { number, is_durable: process != slow, ..Step::first() });
            }
        }
        let mut told = 0;
        for durable in [2, 3, STEPS] {
            for heard in &closed {
                let early = heard.recv_timeout(EARLY).map(|step| step.number);
                assert_eq!(early, Err(RecvTimeoutError::Timeout));
            }
            engines[slow].durable(durable);
            for heard in &closed {
                let told_then = (told..durable).map(|_| heard.recv_timeout(PATIENCE).expect("it is told").number);
                let numbers: Vec<u64> = told_then.collect();
                assert_eq!(numbers, (told + 1..=durable).collect::<Vec<_>>(), "{processes} of {workers}");
            }
            told = durable;
        }
        // Each ends when all do.
        std::thread::scope(|scope| engines.into_iter().for_each(|engine| drop(scope.spawn(move || drop(engine)))));
    }
}
