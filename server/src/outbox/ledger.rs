//! What is known of intents: of each what became of it, and what the ledger says. Nothing here waits for anything.

use std::collections::{BTreeMap, BTreeSet};

use dataflows::identity::Erasure;
use dataflows::profile::answers::IntentRow;
use dataflows::time::Millis;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::erasing::{is_of, is_of_them};
use crate::hub::AsOf;
use crate::record::{Dispatch, Trigger};
use crate::triggers::Now;

/// What became of an intent that the law lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Not yet time.
    Waiting,
    /// Came about before its definitions took effect.
    History,
    /// Too old to be sent.
    Expired,
    /// Withdrawn before it was sent.
    ConsentWithdrawn,
    /// No longer stands; it was not sent.
    Cancelled,
    /// Sent: told to subscribers, or given to its channel.
    Sent,
    /// Sent, and an attempt to deliver it failed; another follows.
    Failed,
    /// No longer stands; it had been sent or parked.
    Revoked,
    /// Its channel could not deliver it; it can be sent again.
    Parked,
}

impl Fate {
    /// The word used in answers and in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Fate::Waiting => "waiting",
            Fate::History => "history",
            Fate::Expired => "expired",
            Fate::ConsentWithdrawn => "consent_withdrawn",
            Fate::Cancelled => "cancelled",
            Fate::Sent => "sent",
            Fate::Failed => "failed",
            Fate::Revoked => "revoked",
            Fate::Parked => "parked",
        }
    }
}

/// An intent and what became of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The intent.
    pub row: IntentRow,
    /// What became of it.
    pub fate: Fate,
    /// The message as it was sent.
    pub body: Option<String>,
    /// The data as it was sent, where something was recommended.
    pub data: Option<Box<RawValue>>,
}

/// A message that is parked.
#[derive(Clone, Debug)]
pub struct Parked {
    /// The intent, and what became of it.
    pub entry: Entry,
    /// Why it is parked.
    pub why: String,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) ledger: BTreeMap<String, Dispatch>,
    pub(super) waiting: BTreeSet<(Millis, String)>,
    pub(super) as_of: AsOf,
    pub(super) changes: u64,
    /// Who was erased since the process started: the leader may have written of them before it knew.
    pub(super) erased: Vec<Erasure>,
}

/// The changes of one time, each intent's first and last row alone.
pub(super) fn consolidate(changed: Vec<(i8, Entry)>) -> Vec<(i8, Entry)> {
    let mut by_id: BTreeMap<String, (Option<Entry>, Option<Entry>)> = BTreeMap::new();
    for (diff, entry) in changed {
        match by_id.entry(entry.row.id.clone()) {
            std::collections::btree_map::Entry::Vacant(new) if diff < 0 => drop(new.insert((Some(entry), None))),
            std::collections::btree_map::Entry::Vacant(new) => drop(new.insert((None, Some(entry)))),
            std::collections::btree_map::Entry::Occupied(mut old) => {
                old.get_mut().1 = Some(entry).filter(|_| diff > 0);
            }
        }
    }
    let (went, came): (Vec<_>, Vec<_>) = by_id.into_values().unzip();
    let went = went.into_iter().flatten().map(|entry| (-1, entry));
    went.chain(came.into_iter().flatten().map(|entry| (1, entry))).collect()
}

impl Dispatch {
    /// What is written down of an entry that nobody has to carry.
    pub(super) fn new(entry: Entry, as_of: AsOf) -> Dispatch {
        let Entry { row, fate, body, data } = entry;
        Dispatch { row, status: fate, body, data, trigger: None, revocation: None, at: as_of.clock }
    }

    /// Whether it says that an intent went out, and nothing else since.
    pub(super) fn stands(&self) -> bool {
        matches!(self.status, Fate::Sent | Fate::Parked)
    }

    /// The message that brings the intent, or the one that takes it back.
    pub(super) fn of(&self, revokes: bool) -> Option<&Trigger> {
        if revokes { self.revocation.as_ref() } else { self.trigger.as_ref() }
    }
}

impl State {
    /// These were erased: nothing of theirs is known any more.
    pub(super) fn forget(&mut self, erased: Vec<Erasure>) -> Vec<(i8, Entry)> {
        let mut forgotten = Vec::new();
        if erased.is_empty() {
            return forgotten;
        }
        for erasure in erased {
            let gone = self.entries.extract_if(.., |_, entry| {
                let row = &entry.row;
                [&row.profile, &row.root.id].into_iter().any(|id| is_of_them(&erasure, id, row.at))
            });
            forgotten.extend(gone.map(|(_, entry)| (-1, entry)));
            self.ledger.retain(|_, dispatch| !is_of(&erasure, dispatch));
            self.erased.push(erasure);
        }
        self.waiting.retain(|(_, id)| self.entries.contains_key(id));
        forgotten
    }

    /// An intent no longer stands.
    pub(super) fn withdraw(&mut self, id: &str) -> Vec<(i8, Entry)> {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.fate != Fate::Revoked) else {
            return Vec::new();
        };
        let old = entry.clone();
        let went_out = matches!(entry.fate, Fate::Sent | Fate::Failed | Fate::Parked);
        entry.fate = if went_out { Fate::Revoked } else { Fate::Cancelled };
        vec![(-1, old), (1, entry.clone())]
    }

    /// What became of a message: the intent before and now, and what the ledger is to say, if it is news for it.
    pub(super) fn settle(
        &mut self,
        id: &str,
        revokes: bool,
        now: Now,
        at: Millis,
    ) -> Option<((Entry, Entry), Option<Dispatch>)> {
        let (dispatch, entry) = (self.ledger.get_mut(id)?, self.entries.get_mut(id)?);
        let trigger = if revokes { &mut dispatch.revocation } else { &mut dispatch.trigger };
        let Some(Trigger::Pending(body)) = trigger else { return None };
        let body = std::mem::take(body);
        let old = entry.clone();
        let (now, fate) = match now {
            Now::Delivered => (Some(Trigger::Delivered), Fate::Sent),
            Now::Failed => (Some(Trigger::Pending(body)), Fate::Failed),
            Now::Parked(why) => (Some(Trigger::Parked(body, why)), Fate::Parked),
            Now::Unwanted => (None, Fate::ConsentWithdrawn),
        };
        *trigger = now;
        // What does not stand any more stays so, wherever its message is.
        if !revokes && entry.fate != Fate::Revoked {
            entry.fate = fate;
        }
        let written = (fate != Fate::Failed).then(|| {
            dispatch.status = if entry.fate == Fate::Failed { Fate::Sent } else { entry.fate };
            dispatch.at = at;
            dispatch.clone()
        });
        Some(((old, entry.clone()), written))
    }

    /// A parked message is pending again: the intent before and now, and what the ledger is to say.
    pub(super) fn unpark(&mut self, id: &str, at: Millis) -> Option<((Entry, Entry), Dispatch)> {
        let (dispatch, entry) = (self.ledger.get_mut(id)?, self.entries.get_mut(id)?);
        let old = entry.clone();
        let revokes = entry.fate == Fate::Revoked;
        let trigger = if revokes { &mut dispatch.revocation } else { &mut dispatch.trigger };
        let Some(Trigger::Parked(body, _)) = trigger else { return None };
        *trigger = Some(Trigger::Pending(std::mem::take(body)));
        if !revokes {
            (entry.fate, dispatch.status) = (Fate::Sent, Fate::Sent);
        }
        dispatch.at = at;
        Some(((old, entry.clone()), dispatch.clone()))
    }

    /// The messages that are parked.
    pub(super) fn parked(&self) -> impl Iterator<Item = Parked> {
        self.ledger.values().filter_map(|dispatch| {
            let entry = self.entries.get(&dispatch.row.id)?;
            let Some(Trigger::Parked(_, why)) = dispatch.of(entry.fate == Fate::Revoked) else { return None };
            Some(Parked { entry: entry.clone(), why: why.clone() })
        })
    }

    /// An intent stands, but not its gates: where nothing of it is written down, the law's word is all there is to say.
    pub(super) fn hold_back(&mut self, id: &str) -> Option<(i8, Entry)> {
        if self.ledger.contains_key(id) { None } else { self.entries.remove(id).map(|entry| (-1, entry)) }
    }
}
