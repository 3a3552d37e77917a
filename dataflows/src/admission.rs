//! Admission: what becomes of a record is decided once, by its place in the log.
//!
//! A pure fold over the records in log order, so that live, replay and restart decide alike. It knows every key it has
//! seen, for as long as the log is kept; what a record means is none of its business.

use std::hash::Hasher;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
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
#[derive(Debug)]
pub struct Admission {
    secret: [u8; 16],
    seen: HashMap<u128, u64, Passing>,
}

/// A hasher for keys that are hashes.
type Passing = std::hash::BuildHasherDefault<Pass>;

/// Takes the low half of a key that is a keyed hash already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pass(u64);

impl Hasher for Pass {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only 128-bit keys are hashed");
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

impl Admission {
    /// Nothing seen. The secret keys the hashes of ids, so that nobody outside can make two of them meet.
    pub fn new(secret: [u8; 16]) -> Self {
        Admission { secret, seen: HashMap::default() }
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
        match self.seen.entry(key) {
            Entry::Occupied(seen) if *seen.get() == content => Verdict::Duplicate,
            Entry::Occupied(_) => Verdict::Conflict,
            Entry::Vacant(_) if lateness.is_some_and(|lateness| timestamp < received_at - lateness) => Verdict::TooLate,
            Entry::Vacant(new) => {
                new.insert(content);
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
