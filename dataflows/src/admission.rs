//! Admission: what becomes of a record is decided once, by its place in the log.
//!
//! A pure fold over the records in log order, so that live, replay and restart decide alike. It knows every key it has
//! seen, for as long as the log is kept; what a record means is none of its business. Since a verdict looks at the
//! records of one own id alone (and at the stamp), each worker decides on the ids that are its own.

use std::hash::Hasher;

use hashbrown::hash_table::Entry;
use hashbrown::{HashMap, HashTable};
use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::time::Millis;

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// It counts.
    Accepted,
    /// Seen before, and the same: silently right.
    Duplicate,
    /// Seen before with other content: the first stands.
    Conflict,
    /// Older than the lateness allows.
    TooLate,
    /// It counts, but not its edge: that would have joined too many ids.
    RefusedEdge,
    /// It is no event.
    Invalid,
    /// It takes back what was never accepted.
    Unknown,
    /// Its person was erased, later than it is dated.
    Erased,
}

impl Verdict {
    /// All of them, in their order.
    pub const ALL: [Verdict; 8] = [
        Verdict::Accepted,
        Verdict::Duplicate,
        Verdict::Conflict,
        Verdict::TooLate,
        Verdict::RefusedEdge,
        Verdict::Invalid,
        Verdict::Unknown,
        Verdict::Erased,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Accepted => "accepted",
            Verdict::Duplicate => "duplicate",
            Verdict::Conflict => "conflict",
            Verdict::TooLate => "too_late",
            Verdict::RefusedEdge => "refused_edge",
            Verdict::Invalid => "invalid",
            Verdict::Unknown => "unknown",
            Verdict::Erased => "erased",
        }
    }
}

/// All keys accepted so far.
///
/// One word of 128 bits each: 96 of the keyed hash, and 32 of the content's fingerprint. In many small tables, since a
/// table doubles when it is full: one large one would have to be there twice.
#[derive(Debug)]
pub struct Admission {
    seen: Vec<HashTable<u128>>,
}

/// Tables, a power of two.
const TABLES: usize = 64;
/// The bits of a key that are kept.
const KEY: u128 = !(u32::MAX as u128);

fn hash(entry: &u128) -> u64 {
    (*entry >> 32) as u64
}

impl Default for Admission {
    fn default() -> Self {
        Admission { seen: vec![HashTable::new(); TABLES] }
    }
}

/// What admission knows a record by: the key of its own id and message id, and a part of its content's fingerprint.
/// The secret keys the hash, so that nobody outside can make two of them meet.
pub fn entry(secret: &[u8; 16], own: &str, message_id: &str, content: u64) -> u128 {
    let mut hasher = SipHasher13::new_with_key(secret);
    hasher.write(own.as_bytes());
    // No byte of UTF-8 is 0xff, so the two cannot run into each other.
    hasher.write_u8(0xff);
    hasher.write(message_id.as_bytes());
    hasher.finish128().as_u128() & KEY | u128::from(content as u32)
}

/// What is known of an id that was erased: a hash of it, by the same secret.
pub fn mark(secret: &[u8; 16], id: &str) -> u128 {
    let mut hasher = SipHasher13::new_with_key(secret);
    hasher.write(id.as_bytes());
    hasher.finish128().as_u128()
}

/// Ids that were erased, by their marks: no record of theirs comes in that is dated up to an instant.
#[derive(Debug)]
pub struct Erased {
    by_mark: HashMap<u128, Millis>,
    /// The last of the instants.
    latest: Millis,
}

impl Default for Erased {
    fn default() -> Self {
        Erased { by_mark: HashMap::new(), latest: Millis::MIN }
    }
}

impl Erased {
    /// Records of the id of a mark that are dated up to an instant do not come in from now on.
    pub fn add(&mut self, mark: u128, until: Millis) {
        let before = self.by_mark.entry(mark).or_insert(until);
        *before = until.max(*before);
        self.latest = self.latest.max(until);
    }

    /// Whether any record that is dated so may be concerned.
    pub fn reaches(&self, timestamp: Millis) -> bool {
        timestamp <= self.latest
    }

    /// Whether a record of an id that is dated so does not come in.
    pub fn covers(&self, secret: &[u8; 16], id: &str, timestamp: Millis) -> bool {
        // Most are dated later, and nothing of them is hashed.
        self.reaches(timestamp) && self.by_mark.get(&mark(secret, id)).is_some_and(|until| timestamp <= *until)
    }
}

impl Admission {
    fn table(entry: u128) -> usize {
        (entry >> 96) as usize % TABLES
    }

    /// Decides on the next record of the log.
    pub fn decide(&mut self, entry: u128, is_late: bool) -> Verdict {
        let same = |seen: &u128| seen & KEY == entry & KEY;
        match self.seen[Self::table(entry)].entry(hash(&entry), same, hash) {
            Entry::Occupied(seen) if *seen.get() as u32 == entry as u32 => Verdict::Duplicate,
            Entry::Occupied(_) => Verdict::Conflict,
            Entry::Vacant(_) if is_late => Verdict::TooLate,
            Entry::Vacant(new) => {
                new.insert(entry);
                Verdict::Accepted
            }
        }
    }

    /// Whether a record of this key was accepted; its content does not matter.
    pub fn has(&self, entry: u128) -> bool {
        let same = |seen: &u128| seen & KEY == entry & KEY;
        self.seen[Self::table(entry)].find(hash(&entry), same).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_erased_is_known_by_its_mark_up_to_an_instant() {
        let mut erased = Erased::default();
        assert!(!erased.covers(&[7; 16], "ada", 0));
        erased.add(mark(&[7; 16], "ada"), 10);
        erased.add(mark(&[7; 16], "ada"), 5);
        assert!(erased.covers(&[7; 16], "ada", 10) && !erased.covers(&[7; 16], "ada", 11));
        assert!(!erased.covers(&[7; 16], "bob", 1) && !erased.covers(&[8; 16], "ada", 1));
    }

    #[test]
    fn the_first_accepted_record_of_a_key_stands() {
        let mut admission = Admission::default();
        let of = |content| entry(&[7; 16], "ada", "m1", content);
        // Too late is not accepted, so what comes after it under that key is new.
        assert_eq!(admission.decide(of(1), true), Verdict::TooLate);
        assert!(!admission.has(of(1)));
        assert_eq!(admission.decide(of(2), false), Verdict::Accepted);
        assert_eq!(admission.decide(of(2), true), Verdict::Duplicate);
        assert_eq!(admission.decide(of(1), true), Verdict::Conflict);
        assert!(admission.has(of(9)));
        assert_ne!(of(1), entry(&[7; 16], "adam", "1", 1));
    }
}
