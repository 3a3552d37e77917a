//! The audit log: who changed what this engine holds, and when, one line each, in a chain.
//!
//! A line is a JSON object `{at, action, details, previous, hash}` without personal data: `hash` is the SHA-256 of the
//! line up to `,"hash"`, and `previous` that of the line before, so that no line can be changed, taken out or put in
//! without all after it. What a crash left of a line that nobody was told of is cut off at the start; a chain that does
//! not hold is refused. That lines are missing at the end can be seen only by who knows the last hash from elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dataflows::time::Millis;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::log::disk::{Disk, DiskFile, RealDisk};
use crate::pseudonyms;

/// The log of what was changed; clones are the same one.
#[derive(Clone)]
pub struct Audit(Arc<Shared>);

struct Shared {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    _lock: Box<dyn DiskFile>,
    secret: [u8; 16],
    now: fn() -> Millis,
    end: Mutex<End>,
}

/// Where the file ends.
struct End {
    bytes: u64,
    /// The hash of the last line.
    hash: String,
    /// Whether a write failed: what the disk holds is not known then.
    is_poisoned: bool,
}

/// What is noted of an action: a name and one of these each.
#[derive(Clone, Copy, Debug)]
pub enum Detail<'a> {
    /// A text that is not personal.
    Text(&'a str),
    /// A number.
    Number(u64),
    /// Somebody's id, or another text that is not for all to read: a hash of it under the log's key is noted.
    Hashed(&'a str),
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// When, ms.
    pub at: Millis,
    /// What was done: `definitions`, `retract`, `unlink`, `erase`, `export`, `opendsr`.
    pub action: String,
    /// To what. Ids stand there as hashes.
    pub details: BTreeMap<String, Value>,
    /// The hash of the line before; zeroes before the first.
    pub previous: String,
    /// The SHA-256 of the line up to this member.
    pub hash: String,
}

/// The hash before the first line.
const BEGINNING: [u8; 64] = [b'0'; 64];

impl Audit {
    /// Opens the audit log in a data directory, or begins one there.
    pub fn open(dir: &Path, secret: [u8; 16], now: fn() -> Millis) -> Result<Audit, String> {
        Audit::open_on(&RealDisk, dir, secret, now)
    }

    fn open_on(disk: &dyn Disk, dir: &Path, secret: [u8; 16], now: fn() -> Millis) -> Result<Audit, String> {
        let path = dir.join("audit.ndjson");
        let failed = |error: io::Error| format!("cannot use the audit log {}: {error}", path.display());
        disk.create_dir(dir).map_err(failed)?;
        let lock = disk.lock(&dir.join("audit.lock")).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => format!("another process has the audit log {}", path.display()),
            _ => failed(error),
        })?;
        let file = match disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create(&path),
            opened => opened,
        };
        let file = file.map_err(failed)?;
        let mut bytes = vec![0; file.size().map_err(failed)? as usize];
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        let whole = whole(&bytes);
        if whole < bytes.len() {
            tracing::warn!(bytes = bytes.len() - whole, "cut a torn line off the audit log: nobody was told of it");
        }
        let (mut hash, mut last) = (String::from_utf8_lossy(&BEGINNING).into_owned(), 0..0);
        for (number, line) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            let entry = read(line).filter(|entry| entry.previous == hash).ok_or_else(|| {
                format!(
                    "the audit log {} is not what was written: its chain does not hold at line {}. Restore it from a \
                     copy, or keep it elsewhere as evidence and let a new one begin",
                    path.display(),
                    number + 1
                )
            })?;
            (hash, last) = (entry.hash, last.end..last.end + line.len());
        }
        // What is read may be in the system's cache alone.
        file.truncate(whole as u64).map_err(failed)?;
        file.write_all_at(&bytes[last.clone()], last.start as u64).map_err(failed)?;
        file.sync().map_err(failed)?;
        disk.sync_dir(dir).map_err(failed)?;
        let end = Mutex::new(End { bytes: whole as u64, hash, is_poisoned: false });
        Ok(Audit(Arc::new(Shared { path, file, _lock: lock, secret, now, end })))
    }

    /// Notes an action, durably.
    pub async fn note(&self, action: &str, details: &[(&str, Detail<'_>)]) -> Result<(), String> {
        let (shared, action, details) = (Arc::clone(&self.0), action.to_owned(), self.told(details));
        let noted = tokio::task::spawn_blocking(move || shared.append(action, details)).await;
        noted.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Whether anything more can be noted: what cannot be is not to be done.
    pub fn check(&self) -> Result<(), String> {
        self.0.check(&self.0.lock())
    }

    /// Notes that other definitions hold than were noted last, if they do: which documents of theirs are new.
    pub fn start(&self, definitions: &str, changed: &str) -> Result<(), String> {
        let digest = Detail::Hashed(definitions);
        let details =
            self.told(&[("by", Detail::Text("start")), ("changed", Detail::Text(changed)), ("digest", digest)]);
        let is_noted = |entry: &&Entry| entry.action == "definitions";
        let noted = self.entries()?;
        if noted.iter().rev().find(is_noted).is_some_and(|entry| entry.details.get("digest") == details.get("digest")) {
            return Ok(());
        }
        self.0.append("definitions".to_owned(), details)
    }

    /// All that was noted, in order.
    pub fn entries(&self) -> Result<Vec<Entry>, String> {
        let mut bytes = vec![0; self.0.lock().bytes as usize];
        self.0.file.read_exact_at(&mut bytes, 0).map_err(|error| self.0.failed(&error))?;
        let entry = |line: &[u8]| read(line).ok_or_else(|| format!("{} was changed", self.0.path.display()));
        bytes.split_inclusive(|byte| *byte == b'\n').map(entry).collect()
    }

    fn told(&self, details: &[(&str, Detail<'_>)]) -> BTreeMap<String, Value> {
        let told = details.iter().map(|(name, detail)| {
            let value = match detail {
                Detail::Text(text) => (*text).into(),
                Detail::Number(number) => (*number).into(),
                Detail::Hashed(text) => pseudonyms::hash("audit", text, &self.0.secret).into(),
            };
            ((*name).to_owned(), value)
        });
        told.collect()
    }
}

impl Shared {
    fn append(&self, action: String, details: BTreeMap<String, Value>) -> Result<(), String> {
        let mut end = self.lock();
        self.check(&end)?;
        let (at, previous) = ((self.now)(), end.hash.clone());
        let mut entry = Entry { at, action, details, previous, hash: String::new() };
        let line = serde_json::to_string(&entry).expect("entries have string keys");
        entry.hash = hash(line.strip_suffix(r#","hash":""}"#).expect("the hash comes last"));
        let line = serde_json::to_string(&entry).expect("entries have string keys") + "\n";
        end.is_poisoned = true;
        self.file.write_all_at(line.as_bytes(), end.bytes).map_err(|error| self.failed(&error))?;
        self.file.sync().map_err(|error| self.failed(&error))?;
        *end = End { bytes: end.bytes + line.len() as u64, hash: entry.hash, is_poisoned: false };
        Ok(())
    }

    fn check(&self, end: &End) -> Result<(), String> {
        let failed = || format!("an earlier write to {} failed; start the process again", self.path.display());
        if end.is_poisoned { Err(failed()) } else { Ok(()) }
    }

    fn failed(&self, error: &io::Error) -> String {
        format!("cannot use the audit log {}: {error}", self.path.display())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, End> {
        self.end.lock().expect("nobody panics while holding it")
    }
}

/// How much of a file is whole lines. Torn is a last line without its end, or with a sector of zeroes, as no line has.
fn whole(bytes: &[u8]) -> usize {
    let ends = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let begins = bytes[..ends.saturating_sub(1)].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if bytes[begins..ends].contains(&0) { begins } else { ends }
}

/// A line that is as it was written.
fn read(line: &[u8]) -> Option<Entry> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let entry: Entry = serde_json::from_str(line).ok()?;
    let told = line.strip_suffix(&format!(r#","hash":"{}"}}"#, entry.hash))?;
    (hash(told) == entry.hash).then_some(entry)
}

fn hash(line: &str) -> String {
    Sha256::digest(line).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::disk::{Fate, Loss, SimDisk};

    fn open(dir: &Path) -> Result<Audit, String> {
        Audit::open(dir, [3; 16], || 5)
    }

    /// A log of three lines.
    fn three() -> (tempfile::TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().expect("a directory");
        let audit = open(dir.path()).expect("nothing there");
        for number in 1..4 {
            let details = audit.told(&[("id", Detail::Hashed("ada")), ("n", Detail::Number(number))]);
            audit.0.append("retract".into(), details).expect("a disk that works");
        }
        let bytes = std::fs::read(&audit.0.path).expect("it is there");
        (dir, bytes)
    }

    #[test]
    fn every_bit_of_it_counts() {
        let (dir, bytes) = three();
        let path = dir.path().join("audit.ndjson");
        assert!(!String::from_utf8_lossy(&bytes).contains("ada"));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).expect("written");
            let opened = open(dir.path());
            // The very end may be a line that is torn: then that line is gone.
            let is_cut =
                at == bytes.len() - 1 && opened.as_ref().is_ok_and(|audit| audit.entries().unwrap().len() == 2);
            assert!(is_cut || opened.is_err_and(|why| why.contains("chain does not hold")), "byte {at}");
        }
        let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        for kept in [[1, 2].as_slice(), &[0, 2], &[0, 2, 1], &[0, 1, 1, 2]] {
            std::fs::write(&path, kept.iter().map(|line| lines[*line]).collect::<Vec<_>>().concat()).expect("written");
            assert!(open(dir.path()).is_err(), "lines {kept:?}");
        }
    }

    /// A process's life: it looks at what those before it noted, of which these were answered as done, and notes more
    /// until something befalls it.
    fn live(disk: &SimDisk, done: &mut u64, in_flight: &mut u64, notes: u64) -> Result<(), String> {
        let audit = Audit::open_on(disk, Path::new("/data"), [3; 16], || 5)?;
        let number = |entry: &Entry| entry.details["n"].as_u64();
        let found: Vec<_> = audit.entries()?.iter().filter_map(number).collect();
        let count = found.len() as u64;
        assert!(found == (1..=count).collect::<Vec<_>>() && (*done..=*done + *in_flight).contains(&count), "{found:?}");
        // What is there once has to stay.
        (*done, *in_flight) = (count, 0);
        for _ in 0..notes {
            *in_flight = 1;
            let text = "x".repeat([20, 700, 1_600][*done as usize % 3]);
            let details = audit.told(&[("n", Detail::Number(*done + 1)), ("text", Detail::Text(&text))]);
            if let Err(why) = audit.0.append("retract".into(), details) {
                assert!(audit.check().is_err() && audit.0.append("unlink".into(), BTreeMap::new()).is_err());
                return Err(why);
            }
            (*done, *in_flight) = (*done + 1, 0);
        }
        Ok(())
    }

    /// Whatever befalls any operation, what was answered as done is there, and nothing else but what was under way.
    #[test]
    fn nothing_that_was_answered_as_done_is_missing() {
        let two_lives = |disk: &SimDisk, done: &mut u64, in_flight: &mut u64| {
            live(disk, done, in_flight, 5)?;
            live(disk, done, in_flight, 3)
        };
        let quiet = SimDisk::new(0);
        two_lives(&quiet, &mut 0, &mut 0).expect("nothing befalls it");
        let losses = [Loss::All, Loss::Nothing, Loss::Process, Loss::Some, Loss::Some, Loss::Some];
        for operation in 0..quiet.operations() {
            for (draw, fate) in (0..24).flat_map(|draw| [(draw, Fate::Crash), (draw, Fate::Fail(io::ErrorKind::Other))])
            {
                let (disk, mut done, mut in_flight) = (SimDisk::new(operation * 24 + draw), 0, 0);
                disk.strike(operation, fate);
                let why = two_lives(&disk, &mut done, &mut in_flight).expect_err("something befalls it");
                assert!(why.contains("/data/audit.ndjson"), "{why}");
                disk.restart(losses[draw as usize % losses.len()]);
                for round in 0..draw / 6 {
                    // And again, soon.
                    disk.strike(disk.operations() + (draw + round) % 7, fate);
                    let _ = live(&disk, &mut done, &mut in_flight, 2);
                    disk.restart(losses[(draw + round) as usize % losses.len()]);
                }
                for loss in [Loss::All, Loss::Some, Loss::All] {
                    live(&disk, &mut done, &mut in_flight, 2).expect("nothing befalls it any more");
                    disk.restart(loss);
                }
                live(&disk, &mut done, &mut in_flight, 0).expect("nothing befalls it any more");
            }
        }
    }

    #[test]
    fn what_a_crash_leaves_of_a_line_is_cut_off() {
        let (dir, bytes) = three();
        let path = dir.path().join("audit.ndjson");
        let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').expect("a line before") + 1;
        for end in last..bytes.len() {
            for torn in [bytes[..end].to_vec(), [&bytes[..end], &vec![0; bytes.len() - end - 1], b"\n"].concat()] {
                if torn.len() == bytes.len() && end == bytes.len() - 1 {
                    continue;
                }
                std::fs::write(&path, &torn).expect("written");
                let audit = open(dir.path()).expect("a torn line is nobody's fault");
                assert_eq!(audit.entries().expect("it can be read").len(), 2);
                let details = audit.told(&[("id", Detail::Hashed("ada")), ("n", Detail::Number(3))]);
                audit.0.append("retract".into(), details).expect("a disk that works");
                assert_eq!(std::fs::read(&path).expect("it is there"), bytes);
            }
        }
    }
}
