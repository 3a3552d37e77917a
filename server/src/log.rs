//! The log: the only truth. Records in their order, durable before anyone hears of them.
//!
//! Own segment files; one writer, which hands over a group of records that is written and synced as one; many readers.
//! Everything else the process knows can be had again by reading the log. See `format` for the bytes.
//!
//! What opening can tell apart. A group is acknowledged only after it is synced, and the next one is written only after
//! that, so only the last group of all can be torn by a crash, and a torn write shows: the file ends inside the group,
//! or a sector of it was never written and holds zeroes. Such a tail is cut off. Everything else that cannot be read is
//! damage of something that was whole once, a bit that flipped in the last group too, and the log refuses to open.
//!
//! What it cannot know: whether what it reads is on the disk or, after a failed sync, only in the system's cache. So
//! what was written last is written again and synced before the log answers from it.
//!
//! What records say can be destroyed: a segment that has ended is written anew beside the old one, which it then
//! replaces, whole. Places, and how many records there are, stay.

pub mod disk;
mod format;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use dataflows::place;
use disk::{Disk, DiskFile, RealDisk, SECTOR};
use format::{Codec, GROUP_HEADER, SEGMENT_HEADER, Segment};

pub use format::Record;

/// A segment is full at this size.
const SEGMENT_BYTES: u64 = 64 << 20;
/// So much is looked at in one go for groups behind a hole.
const CHUNK: u64 = 64 << 10;

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
        "the log is damaged: {path} at byte {offset}, after position {position}: {what}. Events that were acknowledged may be gone from it; restore this file from a copy"
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
    /// Another version of this program wrote it.
    #[error(
        "{path} is in format {version} of the log, and this program reads format {} only; start the version that wrote it, or choose another directory with --data",
        format::VERSION
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
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
    shared: Arc<Shared>,
    last_position: u64,
    last_time: u64,
    last_received_at: i64,
    buffer: Vec<u8>,
    poisoned: bool,
    segment_bytes: u64,
    /// Where the last segment ends.
    end: u64,
    _lock: Box<dyn DiskFile>,
}

/// What the writer and readers share.
struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    codec: Codec,
    id: [u8; 16],
    segments: RwLock<Vec<Arc<SegmentFile>>>,
    /// Held by whoever writes segments anew.
    rewriting: Mutex<()>,
}

struct SegmentFile {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Groups that are durable, and no others.
    groups: RwLock<Vec<GroupAt>>,
}

/// Where a group stands in its segment.
#[derive(Clone, Copy, Debug)]
struct GroupAt {
    first: u64,
    time: u64,
    offset: u64,
}

/// A record, with a payload of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRecord {
    /// Its number in the log.
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

/// Reads records in order, from the first.
pub struct Reader {
    shared: Arc<Shared>,
    /// The next group: its segment's number, its own number there.
    next: (usize, usize),
    group: Vec<u8>,
    at: usize,
    /// The time of the group, and how many of its records were read.
    time: u64,
    read: usize,
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
        let names = disk.list(dir).map_err(failed("list the files"))?;
        // What was to replace a segment when the process ended.
        for name in names.iter().filter(|name| name.ends_with(format::UNFINISHED)) {
            disk.remove(&dir.join(name)).map_err(failed("remove an unfinished segment"))?;
        }
        let mut firsts: Vec<u64> = names.iter().filter_map(|name| format::first_of_name(name)).collect();
        firsts.sort_unstable();
        let mut recovery =
            Recovery { disk: &*disk, dir, id: None, position: 0, time: 0, received_at: 0, end: 0, cut_bytes: 0 };
        let mut segments = Vec::new();
        for first in &firsts {
            segments.extend(recovery.segment(*first, Some(first) == firsts.last())?.map(Arc::new));
        }
        let Recovery { id: found, position, time, received_at, end, cut_bytes, .. } = recovery;
        // A name too may be seen and not be on the disk.
        disk.sync_dir(dir).map_err(failed("make the files durable"))?;
        let id = found.unwrap_or(id);
        let is_new = segments.is_empty();
        let shared = Shared {
            disk,
            dir: dir.to_owned(),
            codec: Codec::new(&id),
            id,
            segments: RwLock::new(segments),
            rewriting: Mutex::default(),
        };
        let mut log = Log {
            shared: Arc::new(shared),
            last_position: position,
            last_time: time,
            last_received_at: received_at,
            buffer: Vec::new(),
            poisoned: false,
            segment_bytes,
            end,
            _lock: lock,
        };
        if is_new {
            log.begin_segment()?;
        }
        Ok(Opened { log, cut_bytes })
    }

    /// What tells this log from all others; the key of hashes of what is in it.
    pub fn id(&self) -> [u8; 16] {
        self.shared.id
    }

    /// The position of the last record; 0 before the first.
    pub fn last_position(&self) -> u64 {
        self.last_position
    }

    /// The last record's stamp, ms; 0 before the first.
    pub fn last_received_at(&self) -> i64 {
        self.last_received_at
    }

    /// The time of the last group; 0 before the first.
    pub fn last_time(&self) -> u64 {
        self.last_time
    }

    /// A way to single records.
    pub fn handle(&self) -> LogReader {
        LogReader(Arc::clone(&self.shared))
    }

    /// All records, from the first.
    pub fn reader(&self) -> Reader {
        self.handle().read()
    }

    /// Writes a group of a time later than all before and makes it durable. After an error nothing more is taken: what
    /// the disk holds is not known.
    pub fn append(&mut self, time: u64, records: &[(u8, i64, Vec<u8>)]) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned);
        }
        if records.is_empty() {
            return Ok(());
        }
        debug_assert!(time > self.last_time, "{time} comes after {}", self.last_time);
        self.poisoned = true;
        self.write(time, records)?;
        self.poisoned = false;
        Ok(())
    }

    fn write(&mut self, time: u64, records: &[(u8, i64, Vec<u8>)]) -> Result<(), LogError> {
        let first = self.last_position + 1;
        self.shared.codec.encode_group(first, time, records, &mut self.buffer);
        if self.end >= self.segment_bytes {
            self.begin_segment()?;
        }
        let segment = self.last_segment();
        let written = segment.file.write_all_at(&self.buffer, self.end).and_then(|()| segment.file.sync());
        written.map_err(|error| LogError::Disk { what: "write the log", path: segment.path.clone(), error })?;
        segment.groups.write().expect("unpoisoned").push(GroupAt { first, time, offset: self.end });
        self.end += self.buffer.len() as u64;
        self.last_position += records.len() as u64;
        self.last_time = time;
        self.last_received_at = records.last().map_or(self.last_received_at, |(_, received_at, _)| *received_at);
        Ok(())
    }

    fn last_segment(&self) -> Arc<SegmentFile> {
        Arc::clone(self.shared.segments.read().expect("unpoisoned").last().expect("one is always there"))
    }

    /// Ends the last segment, so that all records that there are can be rewritten.
    pub fn roll(&mut self) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned);
        }
        if self.end > SEGMENT_HEADER as u64 {
            self.poisoned = true;
            self.begin_segment()?;
            self.poisoned = false;
        }
        Ok(())
    }

    /// The stamp of the first record of the last segment; none: there is none yet.
    pub fn last_began(&self) -> Result<Option<i64>, LogError> {
        let mut group = Vec::new();
        self.last_segment().read_group(&self.shared.codec, 0, &mut group)?;
        Ok(records(&group).next().map(|first| first.received_at))
    }

    fn begin_segment(&mut self) -> Result<(), LogError> {
        let first = self.last_position + 1;
        let path = self.shared.dir.join(format::segment_name(first));
        let failed = |error| LogError::Disk { what: "begin a segment", path: path.clone(), error };
        let file = self.shared.disk.create(&path).map_err(failed)?;
        let header = Segment { version: format::VERSION, id: self.shared.id, first }.encode();
        file.write_all_at(&header, 0)
            .and_then(|()| file.sync())
            .and_then(|()| self.shared.disk.sync_dir(&self.shared.dir))
            .map_err(failed)?;
        let segment = SegmentFile { path: path.clone(), file, groups: RwLock::default() };
        self.shared.segments.write().expect("unpoisoned").push(Arc::new(segment));
        self.end = SEGMENT_HEADER as u64;
        Ok(())
    }
}

/// Reading a log for the first time, to know that it is whole.
struct Recovery<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    id: Option<[u8; 16]>,
    position: u64,
    time: u64,
    received_at: i64,
    end: u64,
    cut_bytes: u64,
}

/// What stands where a group should begin.
enum Found {
    /// A whole one: its last position, its time, its last stamp.
    Group(u64, u64, i64),
    /// The beginning of one that a crash cut short, if it is the last of all.
    Torn,
    /// Something that was whole once.
    Damage(&'static str),
}

impl Recovery<'_> {
    /// Proves a segment, a group at a time. The last is put in order too: nothing, if a crash kept it from beginning.
    fn segment(&mut self, first: u64, is_last: bool) -> Result<Option<SegmentFile>, LogError> {
        let path = self.dir.join(format::segment_name(first));
        let failed = |what| {
            let path = path.clone();
            move |error| LogError::Disk { what, path, error }
        };
        let damaged = |position, offset, what| LogError::Damaged { path: path.clone(), offset, position, what };
        let file = self.disk.open(&path).map_err(failed("open a segment"))?;
        let length = file.size().map_err(failed("read a segment"))?;
        // The last thing that is whole, to write it again, and what stands behind it.
        let (mut last, mut next) = (Vec::new(), Vec::new());
        read(&*file, 0..length.min(SEGMENT_HEADER as u64), &mut last).map_err(failed("read a segment"))?;
        let is_short = last.len() < SEGMENT_HEADER;
        if is_last && (is_short || length == SEGMENT_HEADER as u64 && has_hole(&last, 0)) {
            self.disk.remove(&path).map_err(failed("remove an unfinished segment"))?;
            self.cut_bytes += length;
            return Ok(None);
        }
        let header = Segment::decode(&last)
            .ok_or_else(|| damaged(self.position, 0, "its header does not match its checksum"))?;
        if header.version != format::VERSION {
            return Err(LogError::Version { path, version: header.version });
        }
        if header.first != first || first != self.position + 1 {
            return Err(damaged(self.position, 0, "a segment before it is missing"));
        }
        if *self.id.get_or_insert(header.id) != header.id {
            return Err(damaged(self.position, 0, "it belongs to another log"));
        }
        let codec = Codec::new(&header.id);
        let (mut end, mut groups) = (SEGMENT_HEADER as u64, Vec::new());
        while end < length {
            let found = self.group(&codec, &*file, end..length, &mut next).map_err(failed("read a segment"))?;
            match found {
                Found::Group(position, time, received_at) => {
                    groups.push(GroupAt { first: self.position + 1, time, offset: end });
                    end += next.len() as u64;
                    std::mem::swap(&mut last, &mut next);
                    (self.position, self.time, self.received_at) = (position, time, received_at);
                }
                Found::Torn if is_last => break,
                Found::Torn => return Err(damaged(self.position, end, "a part of it is missing")),
                Found::Damage(what) => return Err(damaged(self.position, end, what)),
            }
        }
        if is_last {
            let began = groups.last().map_or(0, |group| group.offset);
            let durable = file.truncate(end).and_then(|()| file.write_all_at(&last, began)).and_then(|()| file.sync());
            durable.map_err(failed("make the end of a segment durable"))?;
            self.cut_bytes += length - end;
        }
        self.end = end;
        Ok(Some(SegmentFile { path, file, groups: RwLock::new(groups) }))
    }

    /// Reads the group that should begin a part of a file.
    fn group(&self, codec: &Codec, file: &dyn DiskFile, part: Range<u64>, bytes: &mut Vec<u8>) -> io::Result<Found> {
        let Range { start, end } = part;
        let records = start + GROUP_HEADER as u64;
        if records > end {
            return Ok(Found::Torn);
        }
        read(file, start..records, bytes)?;
        let Some(group) = codec.decode_group(bytes) else {
            // How long it was is not known, only that its header is in these sectors.
            read(file, start..records.next_multiple_of(SECTOR as u64).min(end), bytes)?;
            let is_torn = has_hole(bytes, start) && !self.has_group(codec, file, part)?;
            return Ok(if is_torn { Found::Torn } else { Found::Damage("a group does not begin as it was written") });
        };
        if group.first != self.position + 1 {
            return Ok(Found::Damage("a group before it is missing"));
        }
        let group_end = records + u64::from(group.bytes);
        if group_end > end {
            return Ok(Found::Torn);
        }
        read(file, start..group_end, bytes)?;
        Ok(match codec.prove(&group, &bytes[GROUP_HEADER..]) {
            Some(record) => Found::Group(record.position, group.time, record.received_at),
            None if group_end == end && has_hole(bytes, start) => Found::Torn,
            None => Found::Damage("a group does not match its checksums"),
        })
    }

    /// Whether a group to come stands anywhere in a part of a file: what is before it was acknowledged.
    fn has_group(&self, codec: &Codec, file: &dyn DiskFile, part: Range<u64>) -> io::Result<bool> {
        let mut bytes = Vec::new();
        for start in part.clone().step_by(CHUNK as usize) {
            // As much more as a header that begins at the chunk's end.
            read(file, start..(start + CHUNK + GROUP_HEADER as u64 - 1).min(part.end), &mut bytes)?;
            let mut groups = bytes.windows(GROUP_HEADER).filter_map(|header| codec.decode_group(header));
            if groups.any(|group| group.first > self.position) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Reads a part of a file.
fn read(file: &dyn DiskFile, part: Range<u64>, into: &mut Vec<u8>) -> io::Result<()> {
    into.resize((part.end - part.start) as usize, 0);
    file.read_exact_at(into, part.start)
}

/// Whether a sector was never written: all that it holds of these bytes, which stand at an offset, is zeroes.
fn has_hole(bytes: &[u8], offset: u64) -> bool {
    let to_next = SECTOR - offset as usize % SECTOR;
    let (share, sectors) = bytes.split_at(to_next.min(bytes.len()));
    std::iter::once(share).chain(sectors.chunks(SECTOR)).any(|share| share.iter().all(|byte| *byte == 0))
}

impl Shared {
    /// Replaces a segment by one whose records are changed; none: there is nothing to change.
    fn written_anew(&self, old: &SegmentFile, change: Change<'_>) -> Result<Option<SegmentFile>, LogError> {
        let groups = old.groups.read().expect("unpoisoned").clone();
        let Some(first) = groups.first().map(|group| group.first) else { return Ok(None) };
        let (mut group, mut changes) = (Vec::new(), BTreeMap::new());
        for (number, GroupAt { time, .. }) in groups.iter().enumerate() {
            old.read_group(&self.codec, number, &mut group)?;
            for (index, record) in records(&group).enumerate() {
                changes.extend(change(*time, index, &record).map(|changed| (record.position, changed)));
            }
        }
        if changes.is_empty() {
            return Ok(None);
        }
        let path = self.dir.join(format::unfinished_name(first));
        let failed = |error| LogError::Disk { what: "write a segment anew", path: path.clone(), error };
        if let Err(error) = self.disk.remove(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // One that could not be finished before.
            return Err(failed(error));
        }
        let file = self.disk.create(&path).map_err(failed)?;
        file.write_all_at(&Segment { version: format::VERSION, id: self.id, first }.encode(), 0).map_err(failed)?;
        let (mut end, mut written, mut bytes) = (SEGMENT_HEADER as u64, Vec::new(), Vec::new());
        for (number, GroupAt { first, time, .. }) in groups.into_iter().enumerate() {
            old.read_group(&self.codec, number, &mut group)?;
            let records = records(&group).map(|Record { position, received_at, kind, payload }| {
                let (kind, payload) = changes.remove(&position).unwrap_or_else(|| (kind, payload.to_vec()));
                (kind, received_at, payload)
            });
            self.codec.encode_group(first, time, &records.collect::<Vec<_>>(), &mut bytes);
            file.write_all_at(&bytes, end).map_err(failed)?;
            written.push(GroupAt { first, time, offset: end });
            end += bytes.len() as u64;
        }
        file.sync()
            .and_then(|()| self.disk.rename(&path, &old.path))
            .and_then(|()| self.disk.sync_dir(&self.dir))
            .map_err(failed)?;
        Ok(Some(SegmentFile { path: old.path.clone(), file, groups: RwLock::new(written) }))
    }
}

/// The records of a group that was read.
fn records(group: &[u8]) -> impl Iterator<Item = Record<'_>> {
    let mut rest = group;
    std::iter::from_fn(move || {
        let (record, after) = format::decode_record(rest)?;
        rest = after;
        Some(record)
    })
}

impl SegmentFile {
    /// Reads the group of a number there, if there is one yet; gives its time.
    fn read_group(&self, codec: &Codec, number: usize, into: &mut Vec<u8>) -> Result<Option<u64>, LogError> {
        let groups = self.groups.read().expect("unpoisoned");
        let Some(GroupAt { first, time, offset }) = groups.get(number).copied() else { return Ok(None) };
        drop(groups);
        let failed = |error| LogError::Disk { what: "read the log", path: self.path.clone(), error };
        let damaged = || LogError::Damaged {
            path: self.path.clone(),
            offset,
            position: first - 1,
            what: "a group that was whole cannot be read any more",
        };
        let records = offset + GROUP_HEADER as u64;
        read(&*self.file, offset..records, into).map_err(failed)?;
        let group = codec.decode_group(into).filter(|group| group.first == first).ok_or_else(damaged)?;
        read(&*self.file, records..records + u64::from(group.bytes), into).map_err(failed)?;
        codec.prove(&group, into).ok_or_else(damaged)?;
        Ok(Some(time))
    }
}

impl Reader {
    /// The next record, if there is one yet, with its time and its number in its group.
    #[allow(clippy::should_implement_trait)] // it lends from its buffer, which an iterator cannot
    pub fn next(&mut self) -> Result<Option<(Record<'_>, (u64, usize))>, LogError> {
        if format::decode_record(&self.group[self.at..]).is_none() && !self.fill()? {
            return Ok(None);
        }
        let bytes = &self.group[self.at..];
        Ok(format::decode_record(bytes).map(|(record, after)| {
            self.at += bytes.len() - after.len();
            self.read += 1;
            (record, (self.time, self.read - 1))
        }))
    }

    /// Reads the next group.
    fn fill(&mut self) -> Result<bool, LogError> {
        loop {
            let (segment, is_last) = {
                let segments = self.shared.segments.read().expect("unpoisoned");
                let Some(segment) = segments.get(self.next.0) else { return Ok(false) };
                (Arc::clone(segment), self.next.0 + 1 == segments.len())
            };
            // Taken away, so that nothing is told of a group that cannot be proven.
            let mut group = std::mem::take(&mut self.group);
            self.at = 0;
            if let Some(time) = segment.read_group(&self.shared.codec, self.next.1, &mut group)? {
                (self.group, self.time, self.read) = (group, time, 0);
                self.next.1 += 1;
                return Ok(true);
            }
            if is_last {
                return Ok(false);
            }
            self.next = (self.next.0 + 1, 0);
        }
    }
}

/// What is to stand in a record's place: its kind and what it says; none: it stays. Told its time and its number there.
pub type Change<'c> = &'c dyn Fn(u64, usize, &Record<'_>) -> Option<(u8, Vec<u8>)>;

impl LogReader {
    /// Reads all records, from the first.
    pub fn read(&self) -> Reader {
        let (shared, group) = (Arc::clone(&self.0), Vec::new());
        Reader { shared, next: (0, 0), group, at: 0, time: 0, read: 0 }
    }

    /// Changes what records say, in every segment but the last, the oldest first: from the one that begins at a
    /// position on, up to one whose last record was stamped later than some clock. When it is done nothing of what they
    /// said before is in any file; if it fails or is cut short, each segment is as it was or as it is to be. Gives the
    /// position to begin from the next time.
    pub fn rewrite(&self, from: u64, until: i64, change: Change<'_>) -> Result<u64, LogError> {
        let _alone = self.0.rewriting.lock().expect("nobody panics while holding it");
        let ended = self.0.segments.read().expect("unpoisoned").len() - 1;
        let (mut next, mut group) = (from, Vec::new());
        for number in 0..ended {
            let segment = Arc::clone(&self.0.segments.read().expect("unpoisoned")[number]);
            let groups = segment.groups.read().expect("unpoisoned").clone();
            if groups.first().is_none_or(|group| group.first < from) {
                continue;
            }
            segment.read_group(&self.0.codec, groups.len() - 1, &mut group)?;
            let last = records(&group).last().map(|last| (last.position + 1, last.received_at));
            let Some((after, _)) = last.filter(|(_, stamp)| *stamp <= until) else { break };
            next = after;
            if let Some(anew) = self.0.written_anew(&segment, change)? {
                self.0.segments.write().expect("unpoisoned")[number] = Arc::new(anew);
            }
        }
        Ok(next)
    }

    /// How many bytes of the disk it takes, and in how many files.
    pub fn size(&self) -> (u64, usize) {
        let segments = self.0.segments.read().expect("unpoisoned");
        // A file that cannot be asked adds nothing; the writer will tell.
        (segments.iter().filter_map(|segment| segment.file.size().ok()).sum(), segments.len())
    }

    /// The record of a place, if it is kept.
    pub fn get(&self, position: u64) -> Result<Option<OwnedRecord>, LogError> {
        self.record(place::time_of(position), place::index_of(position))
    }

    /// The record of a time and a number in its group, if it is kept.
    fn record(&self, time: u64, index: usize) -> Result<Option<OwnedRecord>, LogError> {
        let segments = self.0.segments.read().expect("unpoisoned");
        let begins = |segment: &SegmentFile| segment.groups.read().expect("unpoisoned").first().map(|group| group.time);
        let number = segments.partition_point(|segment| begins(segment).is_some_and(|first| first <= time));
        let Some(segment) = number.checked_sub(1).map(|number| Arc::clone(&segments[number])) else {
            return Ok(None);
        };
        drop(segments);
        let number = segment.groups.read().expect("unpoisoned").binary_search_by_key(&time, |group| group.time);
        let Ok(number) = number else { return Ok(None) };
        let mut group = Vec::new();
        segment.read_group(&self.0.codec, number, &mut group)?;
        let (mut rest, mut skipped) = (&group[..], 0);
        while let Some((record, after)) = format::decode_record(rest) {
            if skipped == index {
                let Record { position, received_at, kind, payload } = record;
                return Ok(Some(OwnedRecord { position, received_at, kind, payload: payload.to_vec() }));
            }
            (rest, skipped) = (after, skipped + 1);
        }
        Ok(None)
    }
}

/// An id that no other log has, as far as anyone can tell: it also keys hashes, so it should not be guessed.
pub fn fresh_id() -> [u8; 16] {
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
