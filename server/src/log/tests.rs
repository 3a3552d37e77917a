//! The log's promises, on a disk that can be told to fail and on the machine's own.

mod crash;
pub(crate) mod disk;

use disk::{Loss, Random, SimDisk};

use super::*;

const DIR: &str = "/data/log";
const ID: [u8; 16] = *b"a log's identity";
/// Small, so that few records fill one.
const SEGMENT: u64 = 6_000;

fn open(disk: &SimDisk) -> Result<Opened, LogError> {
    Log::open_on(Arc::new(disk.clone()), Path::new(DIR), SEGMENT, ID)
}

/// A record of any length up to several sectors, zeroes among what it says.
fn record(random: &mut Random) -> (u8, i64, Vec<u8>) {
    let most = [20, 300, 1_600][random.below(3)];
    let length = random.below(most);
    let payload = (0..length).map(|_| random.below(256) as u8).collect();
    (random.below(256) as u8, random.below(1 << 40) as i64, payload)
}

fn owned(position: u64, (kind, received_at, payload): &(u8, i64, Vec<u8>)) -> OwnedRecord {
    OwnedRecord { position, received_at: *received_at, kind: *kind, payload: payload.clone() }
}

/// All records, read both in order and one by one.
fn all(log: &Log) -> Result<Vec<OwnedRecord>, LogError> {
    let (mut reader, mut records, mut places) = (log.reader(), Vec::new(), Vec::new());
    while let Some((Record { position, received_at, kind, payload }, place)) = reader.next()? {
        records.push(OwnedRecord { position, received_at, kind, payload: payload.to_vec() });
        places.push(place);
    }
    assert!(places.is_sorted(), "{places:?}");
    let handle = log.handle();
    for (record, (time, index)) in records.iter().zip(places) {
        assert_eq!(handle.record(time, index)?.as_ref(), Some(record));
    }
    // No group has so many records, and every other time has none.
    let none = [handle.record(0, 0)?, handle.record(log.last_time(), 5_000)?, handle.record(log.last_time() + 1, 0)?];
    assert_eq!(none, [None, None, None]);
    Ok(records)
}

/// Appends groups of records of these lengths; their bytes are never zero.
fn append(log: &mut Log, groups: &[&[usize]]) {
    for lengths in groups {
        let group: Vec<_> = lengths.iter().map(|length| (9, 1_000, vec![b'x'; *length])).collect();
        log.append(log.last_time() + 2, &group).expect("the disk works");
    }
}

/// A disk with a log of these groups, and the last segment.
fn written(groups: &[&[usize]]) -> (SimDisk, PathBuf) {
    let disk = SimDisk::new(1);
    append(&mut open(&disk).expect("the disk works").log, groups);
    let last = disk.names().pop().expect("there is a segment");
    (disk, last)
}

/// How many records the log has, if it opens.
fn count(disk: &SimDisk) -> Result<usize, LogError> {
    all(&open(disk)?.log).map(|records| records.len())
}

/// Opening is refused as damage of a file, and changes nothing.
fn refused(disk: &SimDisk, file: &Path, told: &str) {
    let contents = || disk.names().iter().map(|path| disk.bytes(path)).collect::<Vec<_>>();
    let before = contents();
    let error = open(disk).err().unwrap_or_else(|| panic!("it opens: {told}"));
    assert!(matches!(&error, LogError::Damaged { path, .. } if path == file), "{told}: {error}");
    assert!(before == contents(), "{told}");
}

#[test]
fn what_is_appended_is_read_again() {
    let (disk, mut random) = (SimDisk::new(1), Random(1));
    let mut written = Vec::new();
    for life in 0..4 {
        let Opened { mut log, cut_bytes } = open(&disk).expect("it opens");
        assert_eq!((cut_bytes, log.id()), (0, ID), "in life {life}");
        assert_eq!(all(&log).expect("it can be read"), written);
        let mut reader = log.reader();
        while reader.next().expect("it can be read").is_some() {}
        for _ in 0..10 {
            let group: Vec<_> = (0..=random.below(4)).map(|_| record(&mut random)).collect();
            log.append(log.last_time() + 2, &group).expect("the disk works");
            // A reader that came to the end goes on when there is more.
            for record in &group {
                written.push(owned(written.len() as u64 + 1, record));
                let (read, _) = reader.next().expect("it can be read").expect("there is one more");
                assert_eq!((read.position, read.payload), (written.len() as u64, &record.2[..]));
            }
            assert!(reader.next().expect("it can be read").is_none());
        }
        log.append(log.last_time() + 1, &[]).expect("nothing is little to ask");
        assert_eq!(log.last_position(), written.len() as u64);
    }
    assert!(disk.names().len() > 3, "{:?}", disk.names());
}

#[test]
fn only_segments_from_a_position_up_to_a_stamp_are_rewritten() {
    let mut log = open(&SimDisk::new(1)).expect("the disk works").log;
    assert_eq!(log.last_began().expect("the disk works"), None);
    for stamp in [10, 20, 30] {
        log.append(log.last_time() + 2, &[(9, stamp, vec![b'x'; 5])]).expect("the disk works");
        assert_eq!(log.last_began().expect("the disk works"), Some(stamp));
        log.roll().expect("the disk works");
    }
    let gone = |_: u64, _: usize, record: &Record<'_>| (record.kind == 9).then(|| (8, Vec::new()));
    for (from, until, next, kinds) in
        [(2, 20, 3, [9, 8, 9]), (0, 29, 3, [8, 8, 9]), (3, 29, 3, [8, 8, 9]), (3, 30, 4, [8, 8, 8])]
    {
        assert_eq!(log.handle().rewrite(from, until, &gone).expect("the disk works"), next);
        assert_eq!(all(&log).expect("it is whole").iter().map(|of| of.kind).collect::<Vec<_>>(), kinds);
    }
}

#[test]
fn the_machines_disk_keeps_a_log_for_one_process() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let dir = home.path().join("some/where");
    let log = |dir: &Path| Log::open_on(Arc::new(RealDisk), dir, SEGMENT, ID);
    let mut first = log(&dir).expect("it opens").log;
    append(&mut first, &[&[5_000], &[5_000], &[10]]);
    let error = log(&dir).err().expect("the first has it").to_string();
    assert!(error.starts_with("another process has the data directory") && error.contains("some/where"), "{error}");
    drop(first);
    // A tail that was begun.
    let last = dir.join(format::segment_name(3));
    let bytes = std::fs::read(&last).expect("it is the last segment");
    std::fs::write(&last, [&bytes[..], &[0; 700]].concat()).expect("it can be written");
    let Opened { mut log, cut_bytes } = log(&dir).expect("it opens again");
    assert_eq!(cut_bytes, 700);
    assert_eq!(std::fs::read(&last).expect("it is there"), bytes);
    append(&mut log, &[&[1, 2]]);
    assert_eq!(all(&log).expect("it can be read").len(), 5);
}

#[test]
fn no_flipped_bit_is_taken_for_a_torn_write() {
    // Segments with groups of one record and of several, and one in which nothing is yet but its header.
    let some: &[&[usize]] = &[&[10, 600], &[0], &[1_000; 5], &[700], &[20, 3, 50]];
    for (groups, number) in [(some, 2), (&[], 1)] {
        let (disk, _) = written(groups);
        assert_eq!(disk.names().len(), number);
        for path in disk.names() {
            let whole = disk.bytes(&path);
            for at in 0..whole.len() * 8 {
                // Of the same bytes again and again, a part will do.
                if whole[at / 8] == b'x' && at % 17 > 0 {
                    continue;
                }
                let mut bytes = whole.clone();
                bytes[at / 8] ^= 1 << (at % 8);
                disk.put(&path, &bytes);
                refused(&disk, &path, &format!("bit {at}"));
            }
            disk.put(&path, &whole);
        }
        assert_eq!(count(&disk).expect("it is whole"), groups.concat().len());
    }
}

/// Every place of the last group in a sector, with groups of every kind of length.
fn tails() -> impl Iterator<Item = (SimDisk, PathBuf, usize, usize)> {
    (0..512).flat_map(|shift| {
        [0, 230, 1_300].map(|length| {
            let (disk, path) = written(&[&[shift], &[length]]);
            let end = disk.bytes(&path).len();
            (disk, path, end - length - GROUP_HEADER - 26, end)
        })
    })
}

#[test]
fn a_torn_group_is_cut_off_wherever_it_stands() {
    for (disk, path, start, end) in tails() {
        let whole = disk.bytes(&path);
        let told = format!("a group from {start} to {end}");
        let sectors: Vec<_> = (start / SECTOR..=(end - 1) / SECTOR)
            .map(|sector| (sector * SECTOR).max(start)..((sector + 1) * SECTOR).min(end))
            .collect();
        // Each subset of its sectors but all, and all of them in a file that is too short.
        for written in 0..(1 << sectors.len()) - 1 {
            let mut bytes = whole.clone();
            for (number, sector) in sectors.iter().enumerate() {
                if written & (1 << number) == 0 {
                    bytes[sector.clone()].fill(0);
                }
            }
            disk.put(&path, &bytes);
            assert_eq!(count(&disk).unwrap_or_else(|error| panic!("{told}, {written:b}: {error}")), 1);
            assert_eq!(disk.bytes(&path).len(), start, "{told}: it is cut off");
        }
        for cut in [start + 1, start + GROUP_HEADER, (start + end) / 2, end - 1] {
            disk.put(&path, &whole[..cut]);
            assert_eq!(count(&disk).unwrap_or_else(|error| panic!("{told} until {cut}: {error}")), 1);
        }
        // And what is changed and not missing is not.
        for at in (start..start + GROUP_HEADER).chain(end - 3..end) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (end % 8);
            disk.put(&path, &bytes);
            refused(&disk, &path, &format!("{told}, at {at}"));
        }
    }
}

#[test]
fn only_the_last_group_can_be_torn() {
    // The second group begins where a sector does, so that its header can be lost and nothing before it.
    let first = SECTOR - SEGMENT_HEADER - GROUP_HEADER - 26;
    let (disk, path) = written(&[&[first], &[40, 2_000], &[70]]);
    let whole = disk.bytes(&path);
    for lost in [SECTOR..2 * SECTOR, 2 * SECTOR..3 * SECTOR] {
        let mut bytes = whole.clone();
        bytes[lost.clone()].fill(0);
        disk.put(&path, &bytes);
        refused(&disk, &path, &format!("{lost:?} is lost, and a group stands behind it"));
    }
    // The third taken out from between others.
    let (disk, path) = written(&[&[first], &[40, 2_000], &[70], &[80]]);
    let second = SECTOR + GROUP_HEADER + 2 * 25 + 2_040 + 1;
    let whole = disk.bytes(&path);
    disk.put(&path, &[&whole[..second], &whole[second + GROUP_HEADER + 25 + 70 + 1..]].concat());
    refused(&disk, &path, "a group is missing");
    // A segment that ends too early, or is missing, with another behind it.
    let (disk, last) = written(&[&[5_000], &[1_000], &[5_000], &[1_000], &[10]]);
    let names = disk.names();
    assert_eq!(names.len(), 3);
    for (path, next) in names.iter().zip(&names[1..]) {
        let whole = disk.bytes(path);
        for cut in [0, 39, 40, 50, 5_200, whole.len() - 1] {
            disk.put(path, &whole[..cut]);
            // Where a group ends, only the next segment tells that there was another.
            refused(&disk, if cut == SEGMENT_HEADER { next } else { path }, &format!("{path:?} ends at {cut}"));
        }
        disk.take(path);
        refused(&disk, next, &format!("{path:?} is missing"));
        disk.put(path, &whole);
    }
    assert_eq!(count(&disk).expect("it is whole"), 5);
    disk.put(&last, &disk.bytes(&last)[..SEGMENT_HEADER]);
    disk.take(&names[1]);
    refused(&disk, &last, "the segment before one without groups is missing");
}

#[test]
fn a_segment_that_was_only_begun_is_begun_again() {
    let (disk, last) = written(&[&[5_000], &[1_000], &[10]]);
    let whole = disk.bytes(&last);
    for begun in (0..SEGMENT_HEADER).map(|length| whole[..length].to_vec()).chain([vec![0; SEGMENT_HEADER]]) {
        disk.put(&last, &begun);
        let Opened { mut log, cut_bytes } = open(&disk).expect("it was only begun");
        assert_eq!((log.last_position(), cut_bytes), (2, begun.len() as u64));
        append(&mut log, &[&[10]]);
        drop(log);
        disk.restart(Loss::All);
        assert_eq!(count(&disk).expect("it is whole"), 3);
    }
    // With anything behind its header it was more than begun.
    disk.put(&last, &[&[0; SEGMENT_HEADER], &whole[SEGMENT_HEADER..]].concat());
    refused(&disk, &last, "the header of a segment is lost");
}

#[test]
fn what_is_not_this_log_is_refused() {
    let (disk, last) = written(&[&[5_000], &[1_000]]);
    let other = SimDisk::new(1);
    let id = *b"another identity";
    let opened = Log::open_on(Arc::new(other.clone()), Path::new(DIR), SEGMENT, id).expect("the disk works");
    append(&mut { opened.log }, &[&[5_000], &[1_000], &[10]]);
    let strange = other.names().pop().expect("there is a segment");
    assert_ne!(strange, last);
    disk.put(&strange, &other.bytes(&strange));
    refused(&disk, &strange, "a segment of another log");
    // A later format, even with nothing in it yet.
    let segment = Segment { version: format::VERSION + 1, id: ID, first: 3 };
    disk.put(&strange, &segment.encode());
    let error = count(&disk).expect_err("nobody knows what it says").to_string();
    assert!(error.contains("is in format 5 of the log"), "{error}");
    assert_eq!(disk.bytes(&strange), segment.encode());
}

#[test]
fn what_cannot_be_read_is_not_taken_for_torn() {
    let (disk, path) = written(&[&[5_000], &[1_000], &[10, 20], &[30]]);
    let torn = [&disk.bytes(&path)[..], &[0; 700]].concat();
    disk.put(&path, &torn);
    for looks in 0.. {
        disk.blind(looks);
        let opened = open(&disk);
        disk.blind(u64::MAX);
        match opened {
            Ok(opened) => {
                assert!(looks > 10 && opened.cut_bytes == 700, "after {looks} looks");
                break;
            }
            Err(error) => assert!(matches!(error, LogError::Disk { .. }), "after {looks} looks: {error}"),
        }
        assert_eq!(disk.bytes(&path), torn);
    }
    assert_eq!(count(&disk).expect("it is whole"), 5);
}

#[test]
fn opening_reads_a_part_at_a_time() {
    let disk = SimDisk::new(1);
    let open = || Log::open_on(Arc::new(disk.clone()), Path::new(DIR), 64 << 20, ID);
    append(&mut open().expect("it opens").log, &[&[300, 700][..]; 1_000]);
    disk.largest_read();
    let opened = open().expect("it opens");
    assert_eq!((opened.log.last_position(), opened.cut_bytes), (2_000, 0));
    assert!(disk.largest_read() < 1_200);
    drop(opened);
    // Nor is a long hole read in one go.
    let path = disk.names().pop().expect("there is a segment");
    disk.put(&path, &[&disk.bytes(&path)[..], &[0; 1 << 20]].concat());
    assert_eq!(open().expect("it is torn").cut_bytes, 1 << 20);
    assert!(disk.largest_read() as u64 <= CHUNK + GROUP_HEADER as u64);
    // And a group behind it is found wherever it stands among the parts.
    let start = disk.bytes(&path).len();
    let mut log = open().expect("it opens").log;
    append(&mut log, &[&[CHUNK as usize - 10 - GROUP_HEADER - 26], &[20]]);
    drop(log);
    let mut bytes = disk.bytes(&path);
    bytes[start..start + CHUNK as usize - 10].fill(0);
    disk.put(&path, &bytes);
    assert!(matches!(open(), Err(LogError::Damaged { .. })));
}
