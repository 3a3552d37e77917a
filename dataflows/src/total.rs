//! What is counted over people: the keys of the one differential collection of totals.

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

/// A number kept over all profiles.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Total {
    /// Profiles that exist.
    Profiles,
    /// Sessions.
    Sessions,
    /// Events in sessions.
    SessionEvents,
    /// Milliseconds from the first to the last event of sessions.
    SessionMillis,
    /// Sessions of one event.
    Bounces,
    /// Members of a segment.
    Members(CompactString),
    /// Profiles in a state: journey, state.
    Inside(CompactString, CompactString),
    /// Moves: journey, from, to, by which event; none: by a timer.
    Moves(CompactString, CompactString, CompactString, Option<CompactString>),
    /// Intents of a campaign, by the law's status.
    Intents(CompactString, CompactString),
    /// Credit in conversions, 10^-9: model, channel, campaign.
    CreditConversions(CompactString, CompactString, CompactString),
    /// Credit in value, 10^-9: model, channel, campaign.
    CreditValue(CompactString, CompactString, CompactString),
}
