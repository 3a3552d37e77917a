//! The wall: the only place that reads it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the Unix epoch.
pub fn nanos() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// Milliseconds since the Unix epoch.
pub fn now() -> i64 {
    (nanos() / 1_000_000) as i64
}
