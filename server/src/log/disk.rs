//! The disk as the log sees it: a seam narrow enough to be simulated.
//!
//! Two small traits and the real thing. A written byte is durable after `sync`, a created or
//! removed name after `sync_dir`. Of what a crash kept from that, the log assumes nothing but this:
//! a sector is written whole or not at all, and one that a file grew by and that was never written
//! reads as zeroes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The piece that a disk writes whole or not at all, at whole multiples of its length.
pub(super) const SECTOR: usize = 512;

/// Names: everything that concerns directories.
pub trait Disk: Send + Sync {
    /// Makes `dir` and its parents, durably.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// A new, empty file; one of that name must not exist.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// A file that exists.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Takes a name away.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name; one that had it is gone.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Held while the answer lives; `WouldBlock` when someone else holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
}

/// Bytes: everything that concerns one open file.
pub trait DiskFile: Send + Sync {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `bytes` from an offset.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at an offset.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts it to a length.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
}

/// The machine's own disk.
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let parent = match dir.parent() {
            None => return Ok(()),
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
        };
        if !dir.is_dir() {
            self.create_dir(parent)?;
            fs::create_dir(dir)?;
        }
        // Its name is an entry of its parent, and unsynced it could vanish with all in it. One that is there already
        // may have been made by a start that ended before it came to this.
        self.sync_dir(parent)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(dir)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let options = OpenOptions::new().write(true).create(true).truncate(false).clone();
        let file = options.open(path)?;
        file.try_lock()?;
        Ok(Box::new(file))
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    /// Without the times of the file: its length is what readers need, and that is included.
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
