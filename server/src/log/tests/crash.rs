//! Crashes and failures at every operation: what was acknowledged stays, and nothing else is ever seen.

use std::io::ErrorKind;

use super::disk::{Fate, Loss, Random, SimDisk};
use super::*;

/// Worlds for every operation: in each, what is lost is drawn anew.
const DRAWS: u64 = 40;

/// A disk, and what the processes that lived on it told the world.
struct World {
    disk: SimDisk,
    /// What records say.
    contents: Random,
    /// What else is drawn.
    fates: Random,
    told: Vec<OwnedRecord>,
    /// Written since, and not acknowledged.
    in_flight: Vec<OwnedRecord>,
}

impl World {
    fn new(seed: u64) -> World {
        let disk = SimDisk::new(seed);
        World { disk, contents: Random(7), fates: Random(!seed), told: Vec::new(), in_flight: Vec::new() }
    }

    /// A process's life: it opens the log, looks at all of it, and appends groups until something befalls it.
    fn live(&mut self, groups: usize) -> Result<(), LogError> {
        let mut log = open(&self.disk)?.log;
        let records = all(&log)?;
        let may = [&self.told[..], &self.in_flight].concat();
        assert!(records == self.told || records == may, "after {} records told: {records:?}", self.told.len());
        // What is answered once has to stay.
        self.told = records;
        self.in_flight.clear();
        assert_eq!(log.last_position(), self.told.len() as u64);
        assert_eq!(log.last_received_at(), self.told.last().map_or(0, |record| record.received_at));
        for _ in 0..groups {
            let group = self.group();
            let records = (log.last_position() + 1..).zip(&group);
            self.in_flight = records.map(|(position, record)| owned(position, record)).collect();
            let time = log.last_time() + group.len() as u64;
            if let Err(error) = log.append(time, &group) {
                assert!(matches!(log.append(time + 1, &group), Err(LogError::Poisoned)), "nothing more is taken");
                // The dead read nothing, but who only failed does.
                if let Ok(records) = all(&log) {
                    assert_eq!(records, self.told, "a failed group is not to be read");
                }
                return Err(error);
            }
            self.told.append(&mut self.in_flight);
        }
        Ok(())
    }

    /// The same story in every world, if nothing befalls it: a life, and another that finds the log of the first.
    fn two_lives(&mut self) -> Result<(), LogError> {
        self.live(12)?;
        self.live(6)
    }

    fn group(&mut self) -> Vec<(u8, i64, Vec<u8>)> {
        let count = 1 + self.contents.below(3);
        (0..count).map(|_| record(&mut self.contents)).collect()
    }

    /// Something else may happen soon, while the log is opened or after.
    fn strike_again(&mut self) {
        let fate = [Fate::Crash, Fate::Fail(ErrorKind::Other)][self.fates.below(2)];
        self.disk.strike(self.disk.operations() + self.fates.below(14) as u64, fate);
        let _ = self.live(2);
        let draw = self.fates.below(8) as u64;
        self.disk.restart(loss(draw));
    }

    /// Nothing befalls any more, but that the power goes: each life finds what those before it told.
    fn rest(&mut self) {
        for loss in [Loss::All, Loss::Some, Loss::All] {
            self.live(2).expect("nothing befalls it");
            self.disk.restart(loss);
        }
        self.live(0).expect("nothing befalls it");
    }
}

fn loss(draw: u64) -> Loss {
    match draw % 8 {
        0 => Loss::All,
        1 => Loss::Nothing,
        2 => Loss::Process,
        _ => Loss::Some,
    }
}

/// Operations of a story in which nothing happens.
fn operations() -> u64 {
    let mut world = World::new(0);
    world.two_lives().expect("nothing befalls it");
    assert!(world.disk.names().len() > 2, "segments are begun too");
    world.disk.operations()
}

#[test]
fn no_crash_loses_what_was_acknowledged() {
    for operation in 0..operations() {
        for draw in 0..DRAWS {
            let mut world = World::new(operation * DRAWS + draw);
            world.disk.strike(operation, Fate::Crash);
            world.two_lives().expect_err("it crashes");
            world.disk.restart(loss(draw));
            for _ in 0..draw / 8 % 4 {
                world.strike_again();
            }
            world.rest();
        }
    }
}

#[test]
fn no_failure_loses_what_was_acknowledged() {
    for operation in 0..operations() {
        for draw in 0..DRAWS {
            let kind = [ErrorKind::Other, ErrorKind::StorageFull][draw as usize % 2];
            let mut world = World::new(operation * DRAWS + draw);
            world.disk.strike(operation, Fate::Fail(kind));
            let error = world.two_lives().expect_err("it fails");
            assert!(matches!(&error, LogError::Disk { error, .. } if error.kind() == kind), "{error}");
            assert!(error.to_string().starts_with("cannot ") && error.to_string().contains(DIR), "{error}");
            // The next process finds the caches as they are.
            if draw / 8 % 2 > 0 {
                world.strike_again();
            }
            world.rest();
        }
    }
}
