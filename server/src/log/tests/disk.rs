//! A disk that forgets: it keeps what was synced, and of the rest loses what it is told to lose.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::disk::{Disk, DiskFile, SECTOR};

/// What becomes of everything that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The power goes, and nothing of it was written.
    All,
    /// The power goes, and all of it was written.
    Nothing,
    /// The power goes, and some sectors, lengths and names were written.
    Some,
    /// Only the process ends: all of it is still seen, and still not written.
    Process,
}

/// What befalls one operation that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The process ends in it; what the operation had begun is as if unsynced.
    Crash,
    /// It fails. A write may have written a part; a sync loses what it had to write and never tells again.
    Fail(io::ErrorKind),
}

/// The disk; clones are the same one.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

struct State {
    random: Random,
    /// Files by name: as processes see them, as the disk has them, and what was changed between.
    seen: BTreeMap<PathBuf, usize>,
    kept: BTreeMap<PathBuf, usize>,
    names: Vec<(PathBuf, Option<usize>)>,
    files: Vec<Contents>,
    operations: u64,
    fate: Option<(u64, Fate)>,
    is_down: bool,
    /// Looks at the disk that still succeed.
    looks: u64,
    largest_read: usize,
}

#[derive(Default)]
struct Contents {
    seen: Vec<u8>,
    kept: Vec<u8>,
    changes: Vec<Change>,
}

enum Change {
    /// Whole sectors from an offset on, as the cache has them, the last up to the file's end.
    Sectors(usize, Vec<u8>),
    Truncate(usize),
}

struct SimFile {
    disk: SimDisk,
    number: usize,
}

impl SimDisk {
    pub(crate) fn new(seed: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State {
            random: Random(seed),
            seen: BTreeMap::new(),
            kept: BTreeMap::new(),
            names: Vec::new(),
            files: Vec::new(),
            operations: 0,
            fate: None,
            is_down: false,
            looks: u64::MAX,
            largest_read: 0,
        })))
    }

    /// Operations so far that changed something.
    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Lets something befall an operation to come.
    pub(crate) fn strike(&self, operation: u64, fate: Fate) {
        self.state().fate = Some((operation, fate));
    }

    /// So many looks at what is there succeed, and no more.
    pub(crate) fn blind(&self, looks: u64) {
        self.state().looks = looks;
    }

    /// The process ends, and perhaps the power goes; then everything runs again.
    pub(crate) fn restart(&self, loss: Loss) {
        let state = &mut *self.state();
        (state.fate, state.is_down) = (None, false);
        if loss == Loss::Process {
            return;
        }
        for file in &mut state.files {
            file.settle(loss, &mut state.random);
            file.seen = file.kept.clone();
        }
        state.settle_names(loss);
        state.seen = state.kept.clone();
    }

    /// Names of files that are seen, in order.
    pub(crate) fn names(&self) -> Vec<PathBuf> {
        self.state().seen.keys().filter(|path| path.extension().is_some()).cloned().collect()
    }

    pub(crate) fn bytes(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.files[state.seen[path]].seen.clone()
    }

    /// Has a file hold these bytes, durably, whatever it held.
    pub(crate) fn put(&self, path: &Path, bytes: &[u8]) {
        let state = &mut *self.state();
        let number = state.files.len();
        state.files.push(Contents { seen: bytes.to_vec(), kept: bytes.to_vec(), changes: Vec::new() });
        state.seen.insert(path.to_owned(), number);
        state.kept.insert(path.to_owned(), number);
    }

    /// Takes a file away, durably.
    pub(crate) fn take(&self, path: &Path) {
        let state = &mut *self.state();
        state.seen.remove(path);
        state.kept.remove(path);
    }

    /// The most that was read in one go, until now.
    pub(crate) fn largest_read(&self) -> usize {
        std::mem::take(&mut self.state().largest_read)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while holding it")
    }

    fn file(&self, number: usize) -> Box<dyn DiskFile> {
        Box::new(SimFile { disk: self.clone(), number })
    }
}

impl State {
    /// An operation begins that changes something.
    fn begin(&mut self) -> io::Result<Option<Fate>> {
        if self.is_down {
            return Err(io::Error::other("the machine is down"));
        }
        self.operations += 1;
        Ok(self.fate.take_if(|(operation, _)| *operation + 1 == self.operations).map(|(_, fate)| fate))
    }

    /// It ends.
    fn end(&mut self, fate: Option<Fate>) -> io::Result<()> {
        match fate {
            None => Ok(()),
            Some(Fate::Crash) => {
                self.is_down = true;
                Err(io::Error::other("the machine is down"))
            }
            Some(Fate::Fail(kind)) => Err(kind.into()),
        }
    }

    /// An operation that only looks.
    fn look(&mut self) -> io::Result<()> {
        if self.is_down {
            return Err(io::Error::other("the machine is down"));
        }
        self.looks = self.looks.checked_sub(1).ok_or_else(|| io::Error::other("it cannot be read"))?;
        Ok(())
    }

    fn name(&mut self, path: &Path, file: Option<usize>) {
        match file {
            Some(number) => self.seen.insert(path.to_owned(), number),
            None => self.seen.remove(path),
        };
        self.names.push((path.to_owned(), file));
    }

    fn settle_names(&mut self, loss: Loss) {
        for (path, file) in self.names.drain(..) {
            match file {
                _ if !self.random.survives(loss) => None,
                Some(number) => self.kept.insert(path, number),
                None => self.kept.remove(&path),
            };
        }
    }
}

impl Contents {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        self.seen.resize(self.seen.len().max(end), 0);
        self.seen[offset..end].copy_from_slice(bytes);
        let start = offset / SECTOR * SECTOR;
        let sectors = &self.seen[start..end.next_multiple_of(SECTOR).min(self.seen.len())];
        self.changes.push(Change::Sectors(start, sectors.to_vec()));
    }

    fn truncate(&mut self, length: usize) {
        self.seen.resize(length, 0);
        self.changes.push(Change::Truncate(length));
    }

    /// What was changed is on the disk, or is lost.
    fn settle(&mut self, loss: Loss, random: &mut Random) {
        let kept = &mut self.kept;
        for change in self.changes.drain(..) {
            match change {
                Change::Truncate(length) => {
                    if random.survives(loss) {
                        kept.resize(length, 0);
                    }
                }
                Change::Sectors(start, sectors) => {
                    for (sector, start) in sectors.chunks(SECTOR).zip((start..).step_by(SECTOR)) {
                        if random.survives(loss) {
                            let end = start + sector.len();
                            kept.resize(kept.len().max(end), 0);
                            kept[start..end].copy_from_slice(sector);
                            // The cache has nothing behind a file's end.
                            let rest = kept.len().min(start + SECTOR);
                            kept[end..rest].fill(0);
                        }
                    }
                    if random.survives(loss) {
                        kept.resize(kept.len().max(start + sectors.len()), 0);
                    }
                }
            }
        }
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        let mut state = self.state();
        let fate = state.begin()?;
        state.end(fate)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state();
        state.look()?;
        let names = state.seen.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let fate = state.begin()?;
        if state.seen.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let number = state.files.len();
        if !matches!(fate, Some(Fate::Fail(_))) {
            state.files.push(Contents::default());
            state.name(path, Some(number));
        }
        state.end(fate).map(|()| self.file(number))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.look()?;
        state.seen.get(path).map(|number| self.file(*number)).ok_or(io::ErrorKind::NotFound.into())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let fate = state.begin()?;
        if !matches!(fate, Some(Fate::Fail(_))) {
            state.name(path, None);
        }
        state.end(fate)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let fate = state.begin()?;
        let number = *state.seen.get(from).ok_or(io::ErrorKind::NotFound)?;
        if !matches!(fate, Some(Fate::Fail(_))) {
            state.name(to, Some(number));
            state.name(from, None);
        }
        state.end(fate)
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut state = self.state();
        let fate = state.begin()?;
        if fate.is_none() {
            state.settle_names(Loss::Nothing);
        }
        state.end(fate)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.look()?;
        state.files.push(Contents::default());
        let number = state.files.len() - 1;
        state.name(path, Some(number));
        Ok(self.file(number))
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.look()?;
        Ok(state.files[self.number].seen.len() as u64)
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let state = &mut *self.disk.state();
        state.look()?;
        state.largest_read = state.largest_read.max(bytes.len());
        let part = state.files[self.number].seen.get(offset as usize..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let state = &mut *self.disk.state();
        let fate = state.begin()?;
        let written = match fate {
            Some(Fate::Fail(_)) => &bytes[..state.random.below(bytes.len().max(1))],
            _ => bytes,
        };
        state.files[self.number].write(offset as usize, written);
        state.end(fate)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let state = &mut *self.disk.state();
        let fate = state.begin()?;
        if !matches!(fate, Some(Fate::Fail(_))) {
            state.files[self.number].truncate(len as usize);
        }
        state.end(fate)
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *self.disk.state();
        let fate = state.begin()?;
        let file = &mut state.files[self.number];
        match fate {
            None => file.settle(Loss::Nothing, &mut state.random),
            Some(Fate::Crash) => {}
            Some(Fate::Fail(_)) => {
                let loss = [Loss::All, Loss::Some][state.random.below(2)];
                file.settle(loss, &mut state.random);
            }
        }
        state.end(fate)
    }
}

/// Numbers that look drawn (splitmix64), the same for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut drawn = self.0;
        drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((drawn ^ (drawn >> 31)) % end as u64) as usize
    }

    fn survives(&mut self, loss: Loss) -> bool {
        match loss {
            Loss::All => false,
            Loss::Nothing => true,
            Loss::Some => self.below(2) == 0,
            Loss::Process => unreachable!("what is still seen is not settled"),
        }
    }
}
