//! Admission: what becomes of a record is decided once, by its place in the log.
//!
//! A pure fold over the records in log order, so that live, replay and restart decide alike. It knows every key it has
//! seen, for as long as the log is kept; what a record means is none of its business.

use std::hash::Hasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::time::Millis;

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts.
    Accepted,
    /// Seen before, and the same: silently right.
    Duplicate,
    /// Seen before with other content: the first stands.
    Conflict,
    /// Older than the lateness allows.
    TooLate,
}

/// All keys accepted so far.
///
/// One word of 128 bits each: 96 of the keyed hash, and 32 of the content's fingerprint. In many small tables, since a
/// table doubles when it is full: one large one would have to be there twice.
#[derive(Debug)]
pub struct Admission {
    secret: [u8; 16],
    seen: Vec<HashTable<u128>>,
}

/// Tables, a power of two.
const TABLES: usize = 64;
/// The bits of a key that are kept.
const KEY: u128 = !(u32::MAX as u128);

fn hash(entry: &u128) -> u64 {
    (*entry >> 32) as u64
}

impl Admission {
    /// Nothing seen. The secret keys the hashes of ids, so that nobody outside can make two of them meet.
    pub fn new(secret: [u8; 16]) -> Self {
        Admission { secret, seen: vec![HashTable::new(); TABLES] }
    }

    fn table(key: u128) -> usize {
        (key >> 96) as usize % TABLES
    }

    /// The key of a record: its own id and message id, hashed under `secret`.
    pub fn key(secret: &[u8; 16], own: &str, message_id: &str) -> u128 {
        let mut hasher = SipHasher13::new_with_key(secret);
        hasher.write(own.as_bytes());
        // No byte of UTF-8 is 0xff, so the two cannot run into each other.
        hasher.write_u8(0xff);
        hasher.write(message_id.as_bytes());
        hasher.finish128().as_u128()
    }

    /// The secret under which keys are made.
    pub fn secret(&self) -> &[u8; 16] {
        &self.secret
    }

    /// Decides on the next record of the log. `received_at` is the clock with which the log stamped it.
    pub fn decide(
        &mut self,
        key: u128,
        content: u64,
        timestamp: Millis,
        received_at: Millis,
        lateness: Option<Millis>,
    ) -> Verdict {
        let same = |entry: &u128| entry & KEY == key & KEY;
        match self.seen[Self::table(key)].entry(hash(&key), same, hash) {
            Entry::Occupied(seen) if *seen.get() as u32 == content as u32 => Verdict::Duplicate,
            Entry::Occupied(_) => Verdict::Conflict,
            Entry::Vacant(_) if lateness.is_some_and(|lateness| timestamp < received_at - lateness) => Verdict::TooLate,
            Entry::Vacant(new) => {
                new.insert(key & KEY | u128::from(content as u32));
                Verdict::Accepted
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_accepted_record_of_a_key_stands() {
        let mut admission = Admission::new([7; 16]);
        let key = Admission::key(admission.secret(), "ada", "m1");
        // Too late is not accepted, so what comes after it under that key is new.
        assert_eq!(admission.decide(key, 1, 99, 200, Some(100)), Verdict::TooLate);
        assert_eq!(admission.decide(key, 2, 100, 200, Some(100)), Verdict::Accepted);
        assert_eq!(admission.decide(key, 2, 100, 900, Some(100)), Verdict::Duplicate);
        assert_eq!(admission.decide(key, 1, 800, 900, Some(100)), Verdict::Conflict);
        assert_ne!(key, Admission::key(admission.secret(), "adam", "1"));
    }
}
