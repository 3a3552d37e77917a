//! What is counted over people: the keys of the one differential collection of totals.

use ecow::EcoString;
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
    Members(EcoString),
    /// Profiles in a state: journey, state.
    Inside(EcoString, EcoString),
    /// Moves: journey, from, to, by which event; none: by a timer.
    Moves(EcoString, EcoString, EcoString, Option<EcoString>),
    /// Intents of a campaign, by the law's status.
    Intents(EcoString, EcoString),
    /// Credit in conversions, 10^-9: model, channel, campaign.
    CreditConversions(EcoString, EcoString, EcoString),
    /// Credit in value, 10^-9: model, channel, campaign.
    CreditValue(EcoString, EcoString, EcoString),
}
