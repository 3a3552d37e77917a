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

/// What a rewriting leaves of some records; of those that it has been at, it leaves the same.
fn destroyed(_: u64, _: usize, record: &Record<'_>) -> Option<(u8, Vec<u8>)> {
    record.kind.is_multiple_of(3).then(|| (1, b"gone".to_vec()))
}

fn anew(record: &OwnedRecord) -> OwnedRecord {
    let OwnedRecord { position, received_at, kind, payload } = record;
    let changed = destroyed(0, 0, &Record { position: *position, received_at: *received_at, kind: *kind, payload });
    let (kind, payload) = changed.unwrap_or_else(|| (*kind, payload.clone()));
    OwnedRecord { kind, payload, ..*record }
}

/// A process's life in which what is there is rewritten.
fn rewrite(disk: &SimDisk) -> Result<(), LogError> {
    let mut log = open(disk)?.log;
    log.roll()?;
    log.handle().rewrite(0, i64::MAX, &destroyed).map(drop)
}

#[test]
fn a_segment_that_is_rewritten_is_the_old_one_or_the_new_one() {
    let written = |seed| {
        let mut world = World::new(seed);
        world.live(12).expect("nothing befalls it");
        world
    };
    let world = written(0);
    let before = world.disk.operations();
    rewrite(&world.disk).expect("nothing befalls it");
    assert!(world.disk.names().len() > 2, "several segments are rewritten");
    for operation in before..world.disk.operations() {
        for draw in 0..DRAWS {
            let mut world = written(operation * DRAWS + draw);
            let fate = [Fate::Crash, Fate::Fail(ErrorKind::StorageFull)][draw as usize / 8 % 2];
            world.disk.strike(operation, fate);
            rewrite(&world.disk).expect_err("it is cut short");
            world.disk.restart(loss(draw));
            let found = all(&open(&world.disk).expect("it is whole").log).expect("it is whole");
            assert_eq!(found.len(), world.told.len());
            for (found, told) in found.iter().zip(&world.told) {
                assert!(*found == *told || *found == anew(told), "{found:?} was {told:?}");
            }
            rewrite(&world.disk).expect("nothing befalls it any more");
            world.disk.restart(Loss::All);
            world.told = world.told.iter().map(anew).collect();
            assert!(world.disk.names().iter().all(|name| name.extension().is_some_and(|kind| kind == "log")));
            world.rest();
        }
    }
}

#[test]
fn whoever_reads_while_segments_are_rewritten_reads_on() {
    let mut world = World::new(3);
    world.live(20).expect("nothing befalls it");
    let mut log = open(&world.disk).expect("it is whole").log;
    log.roll().expect("nothing befalls it");
    let mut reader = log.reader();
    for number in 0..world.told.len() {
        if number == world.told.len() / 2 {
            log.handle().rewrite(0, i64::MAX, &destroyed).expect("nothing befalls it");
        }
        let (record, _) = reader.next().expect("it is whole").expect("there is one");
        assert_eq!(record.position, world.told[number].position);
    }
    assert!(reader.next().expect("it is whole").is_none());
    assert_eq!(all(&log).expect("it is whole"), world.told.iter().map(anew).collect::<Vec<_>>());
}
