//! The acceptance stories of `tests/stories/`: each is told to the engine by one and by several workers, line by line
//! and at a stroke, in its own order and shuffled with some calls said twice, from the start under the
//! definitions that it ends with, and without whoever is erased in it. Always the same must be true.

mod histories;
mod oracle;
mod run;
mod story;

use std::path::Path;
use std::sync::Arc;

use dataflows::definitions::Definitions;
use dataflows::profile::answers::Rows;
use dataflows::profile::sums::Span;
use dataflows::profile::trial::Trial;
use dataflows::total::Total;
use histories::Random;
use oracle::Oracle;
use run::totals::totals;
use run::{Dump, Run, Totals};
use serde_json::{Value, json};
use server::templates::faults;
use story::{DryRun, Story, What};

/// How much the engine is told at once.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// One line.
    Lines,
    /// Everything up to what is expected next.
    Scenes,
    /// Everything; what is expected on the way is passed over.
    Whole,
}

/// Shuffled tellings of each story, by each number of workers.
const SHUFFLES: u64 = 2;

fn check(name: &str) {
    let story = Story::read(&Path::new("tests/stories").join(name).with_extension("yaml"));
    let told = tell(&story, 1, Pace::Scenes);
    for workers in [1, 2, 4] {
        for pace in [Pace::Lines, Pace::Scenes, Pace::Whole] {
            assert_eq!(tell(&story, workers, pace), told, "{story}, {workers} workers, {pace:?}");
        }
        for seed in (1..=SHUFFLES).map(|seed| seed * workers as u64) {
            assert_eq!(shuffle(&story, workers, seed), told, "{story}, {workers} workers, shuffled by {seed}");
        }
    }
}

/// Tells a story as it stands; gives what is true at its end.
fn tell(story: &Story, workers: usize, pace: Pace) -> Dump {
    let mut run = Run::start(&story.definitions, None, workers);
    let is_told = |what: &What| !matches!(what, What::Verdict(_) | What::DryRun(_));
    let last = story.steps.iter().rposition(|step| is_told(&step.what)).expect("something happens");
    for (place, step) in story.steps.iter().enumerate() {
        let at = format!("{story}, line {}, {workers} workers, {pace:?}", step.line);
        match &step.what {
            What::Call(line) | What::Control(line) => assert!(run.push(line).is_some(), "{at}"),
            What::Erasure(ids) => assert!(run.push(&erasure(ids)).is_some(), "{at}"),
            What::Definitions(definitions) => {
                let stalled = |stalled: run::Stalled| panic!("{at}: {stalled}");
                run.redefine(definitions, Default::default()).unwrap_or_else(stalled);
                while run.is_preparing() {
                    run.close([], |_, _| {}).unwrap_or_else(stalled);
                }
            }
            What::Verdict(_) | What::DryRun(_) if matches!(pace, Pace::Whole) && place < last => {}
            What::DryRun(dry) => {
                let played = dry_run(&mut run, dry).unwrap_or_else(|stalled| panic!("{at}: {stalled}"));
                let faults = dry.verdict.faults(&played);
                assert!(faults.is_empty(), "{at}: {}", faults.join("\n"));
                if dry.definitions.is_none() {
                    let dump = run.dump().unwrap_or_else(|stalled| panic!("{at}: {stalled}"));
                    assert_eq!(played, within(dump, dry), "{at}: what is played again is what was recorded live");
                }
            }
            What::Verdict(verdict) => {
                let dump = run.dump().unwrap_or_else(|stalled| panic!("{at}: {stalled}"));
                let faults = verdict.faults(&dump);
                assert!(faults.is_empty(), "{at}: {}", faults.join("\n"));
                assert_eq!(counted(&dump), totals(dump.rows.each_ref()), "{at}");
            }
        }
        if matches!(pace, Pace::Lines) {
            run.close([], |_, _| {}).unwrap_or_else(|stalled| panic!("{at}: {stalled}"));
        }
    }
    let dump = run.dump().unwrap_or_else(|stalled| panic!("{story}: {stalled}"));
    assert!(run.verdicts.is_empty(), "{story}: calls are not accepted: {:?}", run.verdicts);
    dump
}

/// Tells a story's calls in any order, some of them twice, then its clocks and corrections; gives what is true then.
/// Nobody is erased in it, since they are not in it; its last definitions hold from the start.
fn shuffle(story: &Story, workers: usize, seed: u64) -> Dump {
    let (mut random, (calls, controls)) = (Random::new(seed), story.without_the_erased());
    let twice = |line: &String| std::iter::repeat_n(line.clone(), 1 + random.below(2) as usize);
    let mut calls: Vec<String> = calls.iter().flat_map(twice).collect();
    let definitions = story.steps.iter().rev().find_map(|step| match &step.what {
        What::Definitions(definitions) => Some(definitions),
        _ => None,
    });
    for place in (1..calls.len()).rev() {
        calls.swap(place, random.below(place as u64 + 1) as usize);
    }
    let mut run = Run::start(definitions.unwrap_or(&story.definitions), None, workers);
    for line in calls.into_iter().chain(controls) {
        run.push(&line);
        if random.below(3) == 0 {
            run.close([], |_, _| {}).unwrap_or_else(|stalled| panic!("{story}, shuffled by {seed}: {stalled}"));
        }
    }
    run.dump().unwrap_or_else(|stalled| panic!("{story}, shuffled by {seed}: {stalled}"))
}

/// The intents of a span of the past, played again.
fn dry_run(run: &mut Run, DryRun { from, to, definitions, .. }: &DryRun) -> Result<Dump, run::Stalled> {
    let span = Span { from: Some(*from), to: Some(*to) };
    let definitions = definitions.as_ref().map_or_else(|| run.definitions(), |text| run::parse(text));
    let tried = vec![(Arc::clone(&definitions), Default::default())];
    let trial = Trial { definitions: tried, span, limit: usize::MAX, ..Trial::default() };
    let rows = run.what_if(trial, |_| {})?.remove(0).intents;
    let mut dump = Dump::default();
    dump.rows[INTENTS] = server::rows::lines(&Rows::Intents(rows), &definitions);
    dump.rows[INTENTS].sort();
    Ok(dump)
}

/// Of all that is true, the intents of a span.
fn within(dump: Dump, DryRun { from, to, .. }: &DryRun) -> Dump {
    let [.., mut intents, _] = dump.rows;
    intents.retain(|row| {
        let row: Value = serde_json::from_str(row).expect("rows are JSON");
        row["at"].as_i64().is_some_and(|at| (*from..*to).contains(&at))
    });
    let mut within = Dump::default();
    within.rows[INTENTS] = intents;
    within
}

/// The place of intents among the views.
const INTENTS: usize = 3;

fn erasure(ids: &[String]) -> String {
    json!({"type": "erase", "id": ids[0]}).to_string()
}

/// What the oracle says, as the engine would.
fn dump_of(oracle: &Oracle) -> Dump {
    let dump = oracle.dump();
    Dump { rows: [dump.profiles, dump.sessions, dump.segment_changes, dump.intents, dump.credit], ..Dump::default() }
}

/// The stories that hold their definitions themselves are told to the oracle too, line by line, and once more under the
/// definitions they end with, without whoever is erased: so what the engine is to learn is known to be right.
#[test]
fn the_oracle_obeys_them() {
    let mut told = 0;
    for file in std::fs::read_dir("tests/stories").expect("the stories are there") {
        let story = Story::read(&file.expect("a file").path());
        if !story.definitions.starts_with('{') {
            continue;
        }
        let (mut oracle, mut last) = (Oracle::new(&story.definitions), &story.definitions);
        let mut lines = Vec::new();
        for step in &story.steps {
            match &step.what {
                What::Call(line) | What::Control(line) => {
                    oracle.push(line);
                    lines.push(line);
                }
                What::DryRun(dry) => {
                    let mut played = Oracle::new(dry.definitions.as_ref().unwrap_or(last));
                    lines.iter().for_each(|line| _ = played.push(line));
                    let faults = dry.verdict.faults(&within(dump_of(&played), dry));
                    assert!(faults.is_empty(), "{story}, line {}: {}", step.line, faults.join("\n"));
                }
                What::Erasure(ids) => _ = oracle.push(&erasure(ids)),
                What::Definitions(definitions) => {
                    oracle.redefine(definitions);
                    last = definitions;
                }
                What::Verdict(verdict) => {
                    let faults = verdict.faults(&dump_of(&oracle));
                    assert!(faults.is_empty(), "{story}, line {}: {}", step.line, faults.join("\n"));
                }
            }
        }
        let (mut again, (calls, controls)) = (Oracle::new(last), story.without_the_erased());
        calls.iter().chain(&controls).for_each(|line| _ = again.push(line));
        assert_eq!(dump_of(&oracle), dump_of(&again), "{story}");
        told += 1;
    }
    assert!(told >= 3, "only {told} stories");
}

/// The totals that rows can tell.
fn counted(dump: &Dump) -> Totals {
    let moves = |total: &Total| matches!(total, Total::Moves(..));
    dump.totals.iter().filter(|(total, _)| !moves(total)).map(|(total, sum)| (total.clone(), *sum)).collect()
}

macro_rules! stories {
    ($($(#[$note:meta])* $name:ident)*) => {
        $(#[test]
        $(#[$note])*
        #[allow(non_snake_case)]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn none_is_left_untold() {
            let files = std::fs::read_dir("tests/stories").expect("the stories are there").count();
            assert_eq!(files, [$(stringify!($name)),*].len());
        }
    };
}

#[test]
fn the_examples_are_right() {
    for file in ["examples/shop.yaml", "examples/game.yaml"] {
        let text = std::fs::read_to_string(file).expect("the examples are there");
        let (_, warnings) = Definitions::parse(&text).expect("they have no problems");
        assert!(warnings.is_empty(), "{file}: {warnings:?}");
        assert_eq!(faults(&text), [], "nor have their templates");
    }
}

stories! {
    T1_three_pages
    T2_game_loop
    T3_an_hour_of_silence
    T4_first_visit
    T5_one_plus_one
    T6_vip_at_checkout
    T7_cart_left_alone
    T8_two_devices
    T10_any_order
    T11_as_if_never_seen
    T12_defined_late
    T13_last_month_again
    T14_a_day_without_input
}
