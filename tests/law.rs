//! The law, held against an oracle that shares no code with the engine: after every step of random histories, on
//! several workers, every row of every view is the one that a recomputation from scratch gives.

mod histories;
mod oracle;
mod run;

use histories::{Random, definitions, history};
use oracle::Oracle;
use run::Run;

/// Lines of one step, drawn at random.
fn steps(random: &mut Random, lines: Vec<String>) -> Vec<Vec<String>> {
    let mut steps = vec![Vec::new()];
    for line in lines {
        if random.below(3) == 0 {
            steps.push(Vec::new());
        }
        steps.last_mut().expect("one is always there").push(line);
    }
    steps
}

/// Where two rows part.
fn difference(a: &str, b: &str) -> (String, String) {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count().saturating_sub(40);
    (a[same..].chars().take(160).collect(), b[same..].chars().take(160).collect())
}

fn check(seed: u64, workers: usize) {
    let mut random = Random::new(seed);
    let (definitions, later) = (definitions(&mut random), definitions(&mut random));
    let lateness = if random.below(4) == 0 { Some(60_000 * (1 + random.below(4) as i64)) } else { None };
    let mut oracle = Oracle::new(&definitions).with_lateness(lateness);
    let mut run = Run::start(&definitions, &later, lateness, workers);
    let mut told = Vec::new();
    let lines = history(&mut random);
    let steps = steps(&mut random, lines);
    let redefined = random.below(2 * steps.len() as u64) as usize;
    for (number, step) in steps.into_iter().enumerate() {
        if number == redefined {
            oracle.redefine(&later);
            run.redefine(&later, lateness);
            told.push("(other definitions)".to_owned());
        }
        for line in &step {
            let verdict = oracle.push(line);
            let ours = run.push(line);
            told.push(format!("{line}   // {verdict}"));
            if verdict != "refused_edge" {
                assert_eq!(
                    ours,
                    verdict,
                    "seed {seed}, {workers} workers, step {number}:\n{}\n{definitions}",
                    told.join("\n")
                );
            }
        }
        let (expected, found) = (oracle.dump(), run.dump());
        for (view, expected, found) in [
            ("profiles", &expected.profiles, &found[0]),
            ("sessions", &expected.sessions, &found[1]),
            ("segment_changes", &expected.segment_changes, &found[2]),
            ("intents", &expected.intents, &found[3]),
            ("credit", &expected.credit, &found[4]),
        ] {
            if expected != found {
                let missing: Vec<_> = expected.iter().filter(|row| !found.contains(row)).collect();
                let extra: Vec<_> = found.iter().filter(|row| !expected.contains(row)).collect();
                let parted = missing.iter().zip(&extra).map(|(a, b)| difference(a, b)).collect::<Vec<_>>();
                panic!(
                    "seed {seed}, {workers} workers, step {number}, {view}:\nmissing {missing:#?}\nextra {extra:#?}\nparted {parted:#?}\nclock {}\nhistory\n{}\n{definitions}",
                    oracle.clock(),
                    told.join("\n")
                );
            }
        }
    }
}

#[test]
fn every_view_equals_the_oracle_at_every_step() {
    let count = std::env::var("THALWEG_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    let first = std::env::var("THALWEG_FIRST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + count {
        for workers in [1, 2, 4] {
            check(seed, workers);
        }
    }
}
