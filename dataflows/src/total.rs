//! What is counted over people: the keys of the one differential collection of totals.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use ecow::EcoString;
use foldhash::quality::FixedState;
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

/// A total as the collection sorts it: its hash comes first, since names are long to compare and each step sorts many.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Counted {
    hash: u64,
    /// What is counted.
    pub total: Arc<Total>,
}

impl From<Total> for Counted {
    fn from(total: Total) -> Self {
        Counted { hash: FixedState::default().hash_one(&total), total: Arc::new(total) }
    }
}

impl Hash for Counted {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}
