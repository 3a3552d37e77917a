//! Sums over a part of what is true of people, added up when somebody asks: the credit of some conversions and what it
//! rests on, and the sessions of some days.
//!
//! The totals hold the sums over everything; with no bounds these are the same to the last digit.

use std::collections::{BTreeMap, BTreeSet};

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::answers::Asked;
use super::attribution::DIRECT_KEY;
use super::campaigns::Status;
use crate::definitions::Model;
use crate::time::Millis;

/// The instants from one on and before another; none: no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The first instant in it, ms.
    pub from: Option<Millis>,
    /// The first instant after it, ms.
    pub to: Option<Millis>,
}

impl Span {
    /// Whether an instant is in it.
    pub fn contains(&self, at: Millis) -> bool {
        self.from.is_none_or(|from| from <= at) && self.to.is_none_or(|to| at < to)
    }
}

/// Which conversions, and by which model their credit is given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sought {
    /// The model.
    pub model: Model,
    /// The conversions' name; none: all.
    pub conversion: Option<EcoString>,
    /// When the conversions were; for a null path its last touch.
    pub span: Span,
}

/// Credit, and what it rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credited {
    /// Conversions and value, 10^-9, by channel and campaign.
    #[serde(with = "pairs")]
    pub keys: BTreeMap<(EcoString, EcoString), (i128, i128)>,
    /// Conversions that stand.
    pub conversions: u64,
    /// Those of them with a touch on their path.
    pub with_touch: u64,
    /// People's touches that are on no conversion's path.
    pub null_paths: u64,
    /// Touches on all these paths.
    pub touches: u64,
}

/// Sums over sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visits {
    /// How many.
    pub sessions: u64,
    /// Their events.
    pub events: u64,
    /// From first to last event, ms.
    pub length_ms: i128,
    /// Those of one event.
    pub bounces: u64,
    /// Those whose purpose was to buy.
    pub buying: u64,
}

/// A map whose keys are no texts, as a list of pairs.
pub(super) mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<K, V>, D::Error> {
        Vec::deserialize(from).map(|pairs: Vec<(K, V)>| pairs.into_iter().collect())
    }
}

impl Credited {
    /// Adds what another worker found.
    pub fn add(&mut self, other: Credited) {
        for (key, (conversions, value)) in other.keys {
            let sum = self.keys.entry(key).or_default();
            *sum = (sum.0 + conversions, sum.1 + value);
        }
        self.conversions += other.conversions;
        self.with_touch += other.with_touch;
        self.null_paths += other.null_paths;
        self.touches += other.touches;
    }
}

impl Visits {
    /// Adds what another worker found.
    pub fn add(&mut self, other: Visits) {
        self.sessions += other.sessions;
        self.events += other.events;
        self.length_ms += other.length_ms;
        self.bounces += other.bounces;
        self.buying += other.buying;
    }
}

impl Asked<'_> {
    /// Adds the credit of this profile's conversions.
    pub fn add_credit(&self, sought: &Sought, sum: &mut Credited) {
        let (plan, tapes) = (self.plan, &self.state.tapes);
        // Null touches are those out of reach of every conversion that the question names, whenever it was.
        let mut reached = vec![false; tapes.touches.len()];
        for (place, conversion) in tapes.conversions.iter().enumerate() {
            let name = &plan.conversions[conversion.rule].name;
            if sought.conversion.as_ref().is_some_and(|named| named != name)
                || plan.net(conversion, &tapes.refunds).is_none()
            {
                continue;
            }
            let reach = plan.reach(self.state, place, &tapes.refunds);
            reached[reach.clone()].fill(true);
            if !sought.span.contains(conversion.at) {
                continue;
            }
            sum.conversions += 1;
            sum.with_touch += u64::from(!reach.is_empty());
            sum.touches += plan.cut(reach).len() as u64;
            for share in plan.shares(self.state, place, sought.model, &tapes.refunds, self.credit) {
                let key = share.touch.map_or(DIRECT_KEY, |touch| tapes.touches[touch].key);
                let of_key = sum.keys.entry(self.credit.key(key).clone()).or_default();
                *of_key = (of_key.0 + share.conversions, of_key.1 + share.value);
            }
        }
        let out_of_reach = || tapes.touches.iter().zip(&reached).filter(|(_, reached)| !**reached);
        if out_of_reach().next_back().is_some_and(|(last, _)| sought.span.contains(last.at)) {
            sum.null_paths += 1;
            sum.touches += plan.cut(0..out_of_reach().count()).len() as u64;
        }
    }

    /// Adds this profile's conversions that stand and came after an intent that passed all gates, to its campaign's: at
    /// most the lookback after it, and each conversion once.
    pub fn add_followed(&self, sum: &mut [u64]) {
        let tapes = &self.state.tapes;
        let lookback = self.plan.definitions.attribution.lookback;
        for conversion in &tapes.conversions {
            if self.plan.net(conversion, &tapes.refunds).is_none() {
                continue;
            }
            let before = conversion.at - lookback..conversion.at;
            let due = tapes.intents.iter().filter(|of| of.status == Status::Due && before.contains(&of.at));
            let campaigns: BTreeSet<usize> = due.map(|intent| intent.campaign).collect();
            campaigns.into_iter().for_each(|campaign| sum[campaign] += 1);
        }
    }

    /// Adds this profile's sessions that began in a span.
    pub fn add_visits(&self, span: Span, sum: &mut Visits) {
        for session in self.state.sessions_from(0).filter(|session| span.contains(session.start)) {
            sum.sessions += 1;
            sum.events += u64::from(session.events);
            sum.length_ms += i128::from(session.end - session.start);
            sum.bounces += u64::from(session.events == 1);
            sum.buying += u64::from(self.is_buying(&session));
        }
    }
}
