//! The bytes of a segment file: what is written where, and how each part proves itself.
//!
//! ```text
//! segment  magic 8 | version u32 | log id 16 | first position u64 | crc u32      then groups
//! group    bytes u32 | count u32 | first position u64 | crc u32                  then records
//! record   len u32 | crc u32 | position u64 | received_at i64 | kind u8 | payload of len bytes
//! ```
//!
//! Integers are little-endian, checksums CRC-32C. A segment's covers the bytes before it, a
//! group's the 16 before it, a record's all from `position` on; the latter two start from the
//! checksum of the log id instead of zero. So no sender, who cannot know that id, can have bytes
//! in a payload taken for the log's own, and no leftover of another log passes for this one's.
//! Nothing here touches a disk.

use crc32c::{crc32c, crc32c_append};

pub(super) const SEGMENT_HEADER: usize = 40;
pub(super) const GROUP_HEADER: usize = 20;
pub(super) const RECORD_HEADER: usize = 25;

const MAGIC: [u8; 8] = *b"THALWEG\n";
const VERSION: u32 = 1;

/// The first bytes of every segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) id: [u8; 16],
    pub(super) first: u64,
}

/// What stands before the records that were written and synced together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Length of all its records.
    pub(super) bytes: u32,
    pub(super) count: u32,
    pub(super) first: u64,
}

/// One record, its payload still in the buffer it was read into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its place in the log.
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
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.id);
        bytes[28..36].copy_from_slice(&self.first.to_le_bytes());
        let crc = crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; SEGMENT_HEADER]) -> Result<Segment, &'static str> {
        if crc32c(&bytes[..36]) != u32_at(bytes, 36) || bytes[..8] != MAGIC {
            return Err("its header does not match its checksum");
        }
        if u32_at(bytes, 8) != VERSION {
            return Err("its format version is not the one this program reads");
        }
        let id = *bytes[12..].first_chunk().expect("28 bytes follow");
        Ok(Segment { id, first: u64_at(bytes, 28) })
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

    pub(super) fn encode_group(&self, group: &Group, bytes: &mut [u8]) {
        bytes[..4].copy_from_slice(&group.bytes.to_le_bytes());
        bytes[4..8].copy_from_slice(&group.count.to_le_bytes());
        bytes[8..16].copy_from_slice(&group.first.to_le_bytes());
        let crc = crc32c_append(self.seed, &bytes[..16]);
        bytes[16..GROUP_HEADER].copy_from_slice(&crc.to_le_bytes());
    }

    /// The group whose header stands at the start of `bytes`, if one does.
    pub(super) fn decode_group(&self, bytes: &[u8]) -> Option<Group> {
        let bytes: &[u8; GROUP_HEADER] = bytes.first_chunk()?;
        let group = Group { bytes: u32_at(bytes, 0), count: u32_at(bytes, 4), first: u64_at(bytes, 8) };
        let is_whole = crc32c_append(self.seed, &bytes[..16]) == u32_at(bytes, 16);
        (is_whole && group.count > 0).then_some(group)
    }

    pub(super) fn encode_record(&self, record: &Record, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&(record.payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&record.position.to_le_bytes());
        out.extend_from_slice(&record.received_at.to_le_bytes());
        out.push(record.kind);
        out.extend_from_slice(record.payload);
        let crc = crc32c_append(self.seed, &out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The record that fills `bytes` exactly, if it is whole.
    pub(super) fn decode_record<'a>(&self, bytes: &'a [u8]) -> Option<Record<'a>> {
        let is_whole = crc32c_append(self.seed, &bytes[8..]) == u32_at(bytes, 4);
        is_whole.then(|| Record {
            position: u64_at(bytes, 8),
            received_at: u64_at(bytes, 16) as i64,
            kind: bytes[24],
            payload: &bytes[RECORD_HEADER..],
        })
    }
}

/// The length of a record, header included, as its first bytes claim it.
pub(super) fn record_len(header: &[u8]) -> usize {
    RECORD_HEADER + u32_at(header, 0) as usize
}

/// Fixed width, so that names sort as positions do.
pub(super) fn segment_name(first: u64) -> String {
    format!("{first:020}.log")
}

pub(super) fn first_of_name(name: &str) -> Option<u64> {
    let first = name.strip_suffix(".log")?.parse().ok()?;
    (segment_name(first) == name).then_some(first)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}
