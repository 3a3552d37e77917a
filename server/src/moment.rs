//! Instants as people write them.

use dataflows::time::{Millis, parse_date, parse_instant};
use serde::Deserialize;

/// An instant: a UTC date, RFC 3339, or integer milliseconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Moment {
    /// Milliseconds.
    Ms(Millis),
    /// A date, or an instant.
    Text(String),
}

impl Moment {
    /// The instant; none: it is not written so.
    pub fn instant(&self) -> Option<Millis> {
        match self {
            Moment::Ms(at) => Some(*at),
            Moment::Text(text) => parse_date(text).or_else(|| parse_instant(text)).or_else(|| text.parse().ok()),
        }
    }
}
