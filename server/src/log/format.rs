//! The bytes of a segment file: what is written where, and how each part proves itself.
//!
//! ```text
//! segment  magic 8 | version u32 | log id 16 | first position u64 | crc u32             then groups
//! group    `{` | bytes u32 | count u32 | first position u64 | time u64 | crc u32 | records | `}`
//! record   len u32 | crc u32 | position u64 | received_at i64 | kind u8 | payload of len bytes
//! ```
//!
//! Integers are little-endian, checksums CRC-32C. A segment's covers the bytes before it, a
//! group's the 25 before it, a record's all from `position` on; the latter two start from the
//! checksum of the log id instead of zero. So no sender, who cannot know that id, can have bytes
//! in a payload taken for the log's own, and no leftover of another log passes for this one's.
//!
//! The braces are for what a group has of its first and of its last sector, however few bytes
//! those are: written, they are not all zeroes, and no flipped bit makes them so. Nor is a whole
//! sector, of text at least. So zeroes prove that a sector of a group was never written.
//! Nothing here touches a disk.

use crc32c::{crc32c, crc32c_append};

pub(super) const SEGMENT_HEADER: usize = 40;
pub(super) const GROUP_HEADER: usize = 29;
/// The format that this program writes and reads.
pub(super) const VERSION: u32 = 4;

const RECORD_HEADER: usize = 25;
const MAGIC: [u8; 8] = *b"THALWEG\n";
const OPEN: u8 = b'{';
const CLOSE: u8 = b'}';

/// The first bytes of every segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) version: u32,
    pub(super) id: [u8; 16],
    pub(super) first: u64,
}

/// What stands before the records that were written and synced together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Length of all that follows its header.
    pub(super) bytes: u32,
    pub(super) count: u32,
    pub(super) first: u64,
    /// The logical time of its records; no two groups have the same.
    pub(super) time: u64,
}

/// One record, its payload still in the buffer it was read into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its number in this log: records are numbered 1, 2, 3, …
    pub position: u64,
    /// The clock with which the log stamped it, in ms.
    pub received_at: i64,
    /// The caller's; the log never looks.
    pub kind: u8,
    /// What it says.
    pub payload: &'a [u8],
}

impl Segment {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.id);
        bytes[28..36].copy_from_slice(&self.first.to_le_bytes());
        let crc = crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header in `bytes`, if it is whole.
    pub(super) fn decode(bytes: &[u8]) -> Option<Segment> {
        let bytes: &[u8; SEGMENT_HEADER] = bytes.first_chunk()?;
        let is_whole = crc32c(&bytes[..36]) == u32_at(bytes, 36) && bytes[..8] == MAGIC;
        let id = *bytes[12..].first_chunk().expect("28 bytes follow");
        is_whole.then(|| Segment { version: u32_at(bytes, 8), id, first: u64_at(bytes, 28) })
    }
}

/// Writes and proves groups and records of the log whose id it was made from.
#[derive(Clone, Copy)]
pub(super) struct Codec {
    seed: u32,
}

impl Codec {
    pub(super) fn new(id: &[u8; 16]) -> Codec {
        Codec { seed: crc32c(id) }
    }

    /// Fills `out` with a group of records of one time that begins at a position.
    pub(super) fn encode_group(&self, first: u64, time: u64, records: &[(u8, i64, Vec<u8>)], out: &mut Vec<u8>) {
        out.clear();
        out.resize(GROUP_HEADER, 0);
        for ((kind, received_at, payload), position) in records.iter().zip(first..) {
            self.encode_record(&Record { position, received_at: *received_at, kind: *kind, payload }, out);
        }
        out.push(CLOSE);
        out[0] = OPEN;
        let bytes = short(out.len() - GROUP_HEADER);
        out[1..5].copy_from_slice(&bytes.to_le_bytes());
        out[5..9].copy_from_slice(&short(records.len()).to_le_bytes());
        out[9..17].copy_from_slice(&first.to_le_bytes());
        out[17..25].copy_from_slice(&time.to_le_bytes());
        let crc = crc32c_append(self.seed, &out[..25]);
        out[25..GROUP_HEADER].copy_from_slice(&crc.to_le_bytes());
    }

    fn encode_record(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&short(record.payload.len()).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&record.position.to_le_bytes());
        out.extend_from_slice(&record.received_at.to_le_bytes());
        out.push(record.kind);
        out.extend_from_slice(record.payload);
        let crc = crc32c_append(self.seed, &out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The group whose header stands at the start of `bytes`, if one does.
    pub(super) fn decode_group(&self, bytes: &[u8]) -> Option<Group> {
        let bytes: &[u8; GROUP_HEADER] = bytes.first_chunk()?;
        let (count, first, time) = (u32_at(bytes, 5), u64_at(bytes, 9), u64_at(bytes, 17));
        let group = Group { bytes: u32_at(bytes, 1), count, first, time };
        let is_whole = bytes[0] == OPEN && crc32c_append(self.seed, &bytes[..25]) == u32_at(bytes, 25);
        (is_whole && group.count > 0).then_some(group)
    }

    /// Whether what follows a group's header is what it claims; gives its last record.
    pub(super) fn prove<'a>(&self, group: &Group, bytes: &'a [u8]) -> Option<Record<'a>> {
        let (close, mut rest) = bytes.split_last()?;
        let mut last = None;
        for position in (group.first..).take(group.count as usize) {
            let (record, after) = decode_record(rest)?;
            let covered = &rest[8..rest.len() - after.len()];
            if record.position != position || crc32c_append(self.seed, covered) != u32_at(rest, 4) {
                return None;
            }
            (last, rest) = (Some(record), after);
        }
        last.filter(|_| rest.is_empty() && *close == CLOSE)
    }
}

/// The record at the start of `bytes`, and what follows it: as it says itself, not proven.
pub(super) fn decode_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let header: &[u8; RECORD_HEADER] = bytes.first_chunk()?;
    let (payload, after) = bytes[RECORD_HEADER..].split_at_checked(u32_at(header, 0) as usize)?;
    let record =
        Record { position: u64_at(header, 8), received_at: u64_at(header, 16) as i64, kind: header[24], payload };
    Some((record, after))
}

/// Fixed width, so that names sort as positions do.
pub(super) fn segment_name(first: u64) -> String {
    format!("{first:020}.log")
}

/// A segment that is written anew, until it takes its place.
pub(super) fn unfinished_name(first: u64) -> String {
    format!("{first:020}{UNFINISHED}")
}

pub(super) const UNFINISHED: &str = ".new";

pub(super) fn first_of_name(name: &str) -> Option<u64> {
    let first = name.strip_suffix(".log")?.parse().ok()?;
    (segment_name(first) == name).then_some(first)
}

fn short(length: usize) -> u32 {
    length.try_into().expect("a group is below 4 GiB")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}
