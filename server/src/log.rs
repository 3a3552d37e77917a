//! The log: the only truth. Records in their order, durable before anyone hears of them.
//!
//! Own segment files; one writer, which hands over a group of records that is written and synced as one; many readers.
//! Everything else the process knows can be had again by reading the log. See `format` for the bytes.
//!
//! What recovery can tell apart: a group is acknowledged only after it is synced, and the next one is written only
//! after that. So damage with a later group behind it is damage of something acknowledged, and the log refuses to
//! open; damage in the very last group is taken for a write that a crash cut short, and is cut off. A bit that flips
//! later in that last group is cut off too: no format can know better without a second copy.

pub mod disk;
mod format;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use disk::{Disk, DiskFile, RealDisk};
use format::{Codec, GROUP_HEADER, Group, RECORD_HEADER, SEGMENT_HEADER, Segment};

pub use format::Record;

/// A segment is full at this size.
const SEGMENT_BYTES: u64 = 64 << 20;

/// What went wrong with the log: a sentence for whoever runs it.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process has it.
    #[error("another process has the data directory {0}; stop it, or choose another with --data")]
    Locked(PathBuf),
    /// The disk refuses.
    #[error("cannot {what} in {path}: {error}")]
    Disk {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Something that had been acknowledged cannot be read any more.
    #[error(
        "the log is damaged: {path} at byte {offset}, after position {position}: {what}. Events that were acknowledged are gone from it; restore this file from a copy"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// The last position before.
        position: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// An earlier write failed: what the disk holds is not known any more.
    #[error("an earlier write to the log failed; the process must end and read it again")]
    Poisoned,
}

/// A log that was opened.
pub struct Opened {
    /// The log.
    pub log: Log,
    /// Bytes of a torn tail that were cut off: none of them was ever acknowledged.
    pub cut_bytes: u64,
}

/// The log's one writer.
pub struct Log {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    shared: Arc<Shared>,
    last_position: u64,
    last_received_at: i64,
    buffer: Vec<u8>,
    poisoned: bool,
    segment_bytes: u64,
    _lock: Box<dyn DiskFile>,
}

/// What the writer and readers share.
struct Shared {
    dir: PathBuf,
    codec: Codec,
    id: [u8; 16],
    segments: RwLock<Vec<Arc<SegmentFile>>>,
}

struct SegmentFile {
    first: u64,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// What is written and synced.
    bytes: AtomicU64,
    /// Where groups begin: first position, offset.
    groups: RwLock<Vec<(u64, u64)>>,
}

/// A record, with a payload of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRecord {
    /// Its place in the log.
    pub position: u64,
    /// The clock with which the log stamped it, ms.
    pub received_at: i64,
    /// What kind of record it is.
    pub kind: u8,
    /// What it says.
    pub payload: Vec<u8>,
}

/// Reads single records; cheap to clone, and free of the writer.
#[derive(Clone)]
pub struct LogReader(Arc<Shared>);

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LogReader").field(&self.0.dir).finish()
    }
}

/// Reads records in order.
pub struct Reader {
    shared: Arc<Shared>,
    segment: usize,
    offset: u64,
    group: Vec<u8>,
    at: usize,
    from: u64,
}

impl Log {
    /// Opens the log in a directory, or begins one there.
    pub fn open(dir: &Path) -> Result<Opened, LogError> {
        Log::open_on(Arc::new(RealDisk), dir, SEGMENT_BYTES, fresh_id())
    }

    /// The same on any disk, with segments of any size; a new log takes this id.
    pub fn open_on(disk: Arc<dyn Disk>, dir: &Path, segment_bytes: u64, id: [u8; 16]) -> Result<Opened, LogError> {
        let failed = |what| move |error| LogError::Disk { what, path: dir.to_owned(), error };
        disk.create_dir(dir).map_err(failed("make the data directory"))?;
        let lock = disk.lock(&dir.join("lock")).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => LogError::Locked(dir.to_owned()),
            _ => LogError::Disk { what: "lock the data directory", path: dir.to_owned(), error },
        })?;
        let mut firsts: Vec<u64> = disk
            .list(dir)
            .map_err(failed("list the files"))?
            .iter()
            .filter_map(|name| format::first_of_name(name))
            .collect();
        firsts.sort_unstable();
        let mut cut_bytes = 0;
        // A segment whose header was torn at its making holds nothing yet.
        if let Some(last) = firsts.last().copied() {
            let path = dir.join(format::segment_name(last));
            let file = disk.open(&path).map_err(failed("open a segment"))?;
            let bytes = file.size().map_err(failed("read a segment"))?;
            let mut header = [0; SEGMENT_HEADER];
            let whole = bytes >= SEGMENT_HEADER as u64 && file.read_exact_at(&mut header, 0).is_ok();
            if !whole || (bytes == SEGMENT_HEADER as u64 && Segment::decode(&header).is_err()) {
                disk.remove(&path).and_then(|()| disk.sync_dir(dir)).map_err(failed("remove an unfinished segment"))?;
                firsts.pop();
                cut_bytes += bytes;
            }
        }
        let mut recovery = Recovery {
            disk: &*disk,
            dir,
            codec: None,
            id,
            position: firsts.first().map_or(0, |first| first - 1),
            received_at: 0,
        };
        let mut segments = Vec::new();
        for (number, first) in firsts.iter().enumerate() {
            let (segment, cut) = recovery.segment(*first, number + 1 == firsts.len())?;
            segments.push(Arc::new(segment));
            cut_bytes += cut;
        }
        let Recovery { codec, id, position, received_at, .. } = recovery;
        let codec = codec.unwrap_or(Codec::new(&id));
        let shared = Shared { dir: dir.to_owned(), codec, id, segments: RwLock::new(segments) };
        let mut log = Log {
            disk,
            dir: dir.to_owned(),
            shared: Arc::new(shared),
            last_position: position,
            last_received_at: received_at,
            buffer: Vec::new(),
            poisoned: false,
            segment_bytes,
            _lock: lock,
        };
        if log.shared.segments.read().expect("unpoisoned").is_empty() {
            log.begin_segment()?;
        }
        Ok(Opened { log, cut_bytes })
    }

    /// What tells this log from all others; the key of hashes of what is in it.
    pub fn id(&self) -> [u8; 16] {
        self.shared.id
    }

    /// The position of the first record kept; of an empty log, of the record to come.
    pub fn first_position(&self) -> u64 {
        self.shared.segments.read().expect("unpoisoned").first().map_or(1, |segment| segment.first)
    }

    /// The position of the last record; 0 before the first.
    pub fn last_position(&self) -> u64 {
        self.last_position
    }

    /// The last record's stamp, ms; 0 before the first.
    pub fn last_received_at(&self) -> i64 {
        self.last_received_at
    }

    /// The size of all segments.
    pub fn bytes(&self) -> u64 {
        self.shared
            .segments
            .read()
            .expect("unpoisoned")
            .iter()
            .map(|segment| segment.bytes.load(Ordering::Acquire))
            .sum()
    }

    /// A way to single records.
    pub fn handle(&self) -> LogReader {
        LogReader(Arc::clone(&self.shared))
    }

    /// Records from a position on.
    pub fn reader(&self, from: u64) -> Result<Reader, LogError> {
        let segments = self.shared.segments.read().expect("unpoisoned");
        let segment = segments.partition_point(|segment| segment.first <= from).saturating_sub(1);
        Ok(Reader {
            shared: Arc::clone(&self.shared),
            segment,
            offset: SEGMENT_HEADER as u64,
            group: Vec::new(),
            at: 0,
            from,
        })
    }

    /// Writes a group and makes it durable. After an error nothing more is taken: what the disk holds is not known.
    pub fn append(&mut self, records: &[(u8, i64, Vec<u8>)]) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned);
        }
        if records.is_empty() {
            return Ok(());
        }
        self.poisoned = true;
        self.write(records)?;
        self.poisoned = false;
        Ok(())
    }

    fn write(&mut self, records: &[(u8, i64, Vec<u8>)]) -> Result<(), LogError> {
        let first = self.last_position + 1;
        self.buffer.clear();
        self.buffer.resize(GROUP_HEADER, 0);
        for ((kind, received_at, payload), position) in records.iter().zip(first..) {
            let record = Record { position, received_at: *received_at, kind: *kind, payload };
            self.shared.codec.encode_record(&record, &mut self.buffer);
        }
        let group = Group { bytes: (self.buffer.len() - GROUP_HEADER) as u32, count: records.len() as u32, first };
        self.shared.codec.encode_group(&group, &mut self.buffer);
        let segment = self.room()?;
        let offset = segment.bytes.load(Ordering::Acquire);
        let written = segment.file.write_all_at(&self.buffer, offset).and_then(|()| segment.file.sync());
        written.map_err(|error| LogError::Disk { what: "write the log", path: segment.path.clone(), error })?;
        segment.groups.write().expect("unpoisoned").push((first, offset));
        // Readers look no further than this, so what they see is durable.
        segment.bytes.store(offset + self.buffer.len() as u64, Ordering::Release);
        self.last_position += records.len() as u64;
        self.last_received_at = records.last().map_or(self.last_received_at, |(_, received_at, _)| *received_at);
        Ok(())
    }

    /// The segment to write to: a new one if the last is full.
    fn room(&mut self) -> Result<Arc<SegmentFile>, LogError> {
        let last = self.last_segment();
        if last.bytes.load(Ordering::Acquire) < self.segment_bytes {
            return Ok(last);
        }
        self.begin_segment()?;
        Ok(self.last_segment())
    }

    fn last_segment(&self) -> Arc<SegmentFile> {
        Arc::clone(self.shared.segments.read().expect("unpoisoned").last().expect("one is always there"))
    }

    fn begin_segment(&mut self) -> Result<(), LogError> {
        let first = self.last_position + 1;
        let path = self.dir.join(format::segment_name(first));
        let failed = |error| LogError::Disk { what: "begin a segment", path: path.clone(), error };
        let file = self.disk.create(&path).map_err(failed)?;
        let header = Segment { id: self.shared.id, first }.encode();
        file.write_all_at(&header, 0)
            .and_then(|()| file.sync())
            .and_then(|()| self.disk.sync_dir(&self.dir))
            .map_err(failed)?;
        let bytes = AtomicU64::new(SEGMENT_HEADER as u64);
        let segment = SegmentFile { first, path: path.clone(), file, bytes, groups: RwLock::default() };
        self.shared.segments.write().expect("unpoisoned").push(Arc::new(segment));
        Ok(())
    }

    /// Drops whole segments that end before a position.
    pub fn drop_before(&mut self, position: u64) -> Result<(), LogError> {
        loop {
            let gone = {
                let segments = self.shared.segments.read().expect("unpoisoned");
                match &segments[..] {
                    [first, second, ..] if second.first <= position => first.path.clone(),
                    _ => return Ok(()),
                }
            };
            let removed = self.disk.remove(&gone).and_then(|()| self.disk.sync_dir(&self.dir));
            removed.map_err(|error| LogError::Disk { what: "remove a segment", path: gone, error })?;
            self.shared.segments.write().expect("unpoisoned").remove(0);
        }
    }
}

/// Reading a log for the first time, to know that it is whole.
struct Recovery<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    codec: Option<Codec>,
    id: [u8; 16],
    position: u64,
    received_at: i64,
}

impl Recovery<'_> {
    /// Proves a segment; cuts a torn tail off the last one.
    fn segment(&mut self, first: u64, is_last: bool) -> Result<(SegmentFile, u64), LogError> {
        let path = self.dir.join(format::segment_name(first));
        let failed = |error| LogError::Disk { what: "read a segment", path: path.clone(), error };
        let position = self.position;
        let damaged = |offset, what| LogError::Damaged { path: path.clone(), offset, position, what };
        let file = self.disk.open(&path).map_err(failed)?;
        let length = file.size().map_err(failed)?;
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        let header = bytes.first_chunk::<SEGMENT_HEADER>().ok_or_else(|| damaged(0, "it ends inside its header"))?;
        let segment = Segment::decode(header).map_err(|what| damaged(0, what))?;
        if segment.first != first || first != self.position + 1 {
            return Err(damaged(0, "a segment before it is missing"));
        }
        if self.codec.is_some() && segment.id != self.id {
            return Err(damaged(0, "it belongs to another log"));
        }
        self.id = segment.id;
        let codec = *self.codec.insert(Codec::new(&segment.id));
        let (mut offset, mut groups) = (SEGMENT_HEADER, Vec::new());
        while offset < bytes.len() {
            let Some(end) = self.group(&codec, &bytes, offset) else {
                let later = (offset + 1..bytes.len())
                    .any(|at| codec.decode_group(&bytes[at..]).is_some_and(|group| group.first > self.position));
                if later || !is_last {
                    let what = "what follows cannot be read, and later groups prove that it was whole once";
                    return Err(LogError::Damaged {
                        path: path.clone(),
                        offset: offset as u64,
                        position: self.position,
                        what,
                    });
                }
                break;
            };
            groups.push((self.position + 1, offset as u64));
            self.position = self.last_of(&codec, &bytes[offset..]);
            offset = end;
        }
        let cut = (bytes.len() - offset) as u64;
        if cut > 0 {
            let failed = |error| LogError::Disk { what: "cut a torn tail", path: path.clone(), error };
            file.truncate(offset as u64).and_then(|()| file.sync()).map_err(failed)?;
        }
        let segment = SegmentFile {
            first,
            path: path.clone(),
            file,
            bytes: AtomicU64::new(offset as u64),
            groups: RwLock::new(groups),
        };
        Ok((segment, cut))
    }

    /// Where the group at an offset ends, if it is whole and the one that follows.
    fn group(&mut self, codec: &Codec, bytes: &[u8], offset: usize) -> Option<usize> {
        let group = codec.decode_group(&bytes[offset..]).filter(|group| group.first == self.position + 1)?;
        let records = bytes.get(offset + GROUP_HEADER..offset + GROUP_HEADER + group.bytes as usize)?;
        let (mut at, mut received_at) = (0, self.received_at);
        for position in group.first..group.first + u64::from(group.count) {
            let record = record_at(codec, records, at).filter(|record| record.position == position)?;
            received_at = record.received_at;
            at += RECORD_HEADER + record.payload.len();
        }
        if at != records.len() {
            return None;
        }
        self.received_at = received_at;
        Some(offset + GROUP_HEADER + group.bytes as usize)
    }

    fn last_of(&self, codec: &Codec, bytes: &[u8]) -> u64 {
        codec.decode_group(bytes).map_or(self.position, |group| group.first + u64::from(group.count) - 1)
    }
}

fn record_at<'a>(codec: &Codec, records: &'a [u8], at: usize) -> Option<Record<'a>> {
    let header = records.get(at..at + RECORD_HEADER)?;
    codec.decode_record(records.get(at..at + format::record_len(header))?)
}

impl Reader {
    /// The next record, if there is one yet.
    #[allow(clippy::should_implement_trait)] // it lends from its buffer, which an iterator cannot
    pub fn next(&mut self) -> Result<Option<Record<'_>>, LogError> {
        loop {
            if self.at >= self.group.len() && !self.fill()? {
                return Ok(None);
            }
            let at = self.at;
            self.at += format::record_len(&self.group[at..]);
            let codec = self.shared.codec;
            let position = record_at(&codec, &self.group, at).map(|record| record.position);
            if position.is_none_or(|position| position >= self.from) {
                let record = record_at(&codec, &self.group, at);
                return record.map(Some).ok_or(LogError::Poisoned);
            }
        }
    }

    fn fill(&mut self) -> Result<bool, LogError> {
        loop {
            let (segment, more) = {
                let segments = self.shared.segments.read().expect("unpoisoned");
                match segments.get(self.segment) {
                    Some(segment) => (Arc::clone(segment), self.segment + 1 < segments.len()),
                    None => return Ok(false),
                }
            };
            if self.offset < segment.bytes.load(Ordering::Acquire) {
                self.offset = read_group(&self.shared.codec, &segment, self.offset, &mut self.group)?;
                self.at = 0;
                return Ok(true);
            }
            if !more {
                return Ok(false);
            }
            (self.segment, self.offset) = (self.segment + 1, SEGMENT_HEADER as u64);
        }
    }
}

/// Reads the records of the group at an offset; gives where it ends.
fn read_group(codec: &Codec, segment: &SegmentFile, offset: u64, into: &mut Vec<u8>) -> Result<u64, LogError> {
    let failed = |error| LogError::Disk { what: "read the log", path: segment.path.clone(), error };
    let mut header = [0; GROUP_HEADER];
    segment.file.read_exact_at(&mut header, offset).map_err(failed)?;
    let group = codec.decode_group(&header).ok_or_else(|| LogError::Damaged {
        path: segment.path.clone(),
        offset,
        position: segment.first,
        what: "a group that was whole cannot be read any more",
    })?;
    into.resize(group.bytes as usize, 0);
    segment.file.read_exact_at(into, offset + GROUP_HEADER as u64).map_err(failed)?;
    Ok(offset + GROUP_HEADER as u64 + u64::from(group.bytes))
}

impl LogReader {
    /// The record at a position, if it is kept.
    pub fn get(&self, position: u64) -> Result<Option<OwnedRecord>, LogError> {
        let segment = {
            let segments = self.0.segments.read().expect("unpoisoned");
            let place = segments.partition_point(|segment| segment.first <= position);
            match place.checked_sub(1) {
                Some(place) => Arc::clone(&segments[place]),
                None => return Ok(None),
            }
        };
        let offset = {
            let groups = segment.groups.read().expect("unpoisoned");
            match groups.partition_point(|(first, _)| *first <= position).checked_sub(1) {
                Some(place) => groups[place].1,
                None => return Ok(None),
            }
        };
        let mut records = Vec::new();
        read_group(&self.0.codec, &segment, offset, &mut records)?;
        let mut at = 0;
        while let Some(record) = record_at(&self.0.codec, &records, at) {
            if record.position == position {
                let Record { position, received_at, kind, payload } = record;
                return Ok(Some(OwnedRecord { position, received_at, kind, payload: payload.to_vec() }));
            }
            at += RECORD_HEADER + record.payload.len();
        }
        Ok(None)
    }
}

/// An id that no other log has, as far as anyone can tell: it also keys hashes, so it should not be guessed.
fn fresh_id() -> [u8; 16] {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let random = || {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u128(crate::clock::nanos());
        hasher.finish().to_le_bytes()
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&random());
    id[8..].copy_from_slice(&random());
    id
}
