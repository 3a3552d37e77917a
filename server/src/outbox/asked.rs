//! What others ask of the outbox: intents and what became of them, channels and what is on its way there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dataflows::definitions::Definitions;
use dataflows::profile::answers::IntentRow;
use ecow::EcoString;
use serde_json::value::RawValue;
use tokio::sync::broadcast;

use super::{Change, Entry, Fate, Outbox, Parked};
use crate::book::Book;
use crate::desk::Records;
use crate::hub::AsOf;
use crate::record::Trigger;
use crate::rows::Intent;
use crate::stream::Stream;
use crate::triggers::Outlet;

/// How many messages of a channel have not got there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Still to be delivered.
    pub pending: usize,
    /// Of these, intents with an attempt that failed.
    pub failed: usize,
    /// Given up, unless they are sent again.
    pub parked: usize,
}

impl Outbox {
    /// The stream that is the log, if one is.
    pub(crate) fn stream(&self) -> Option<Stream> {
        match &self.records {
            Some(Records::Stream(stream, ..)) => Some(stream.clone()),
            _ => None,
        }
    }

    /// What is parked of a channel.
    pub fn parked(&self, channel: &str) -> Vec<Parked> {
        self.lock().parked().filter(|parked| self.is_of(&parked.entry.row, channel)).collect()
    }

    /// What has not got there, by channel.
    pub fn counts(&self) -> BTreeMap<String, Counts> {
        let mut by_channel: BTreeMap<String, Counts> = BTreeMap::new();
        let (state, book) = (self.lock(), self.hub.book());
        for dispatch in state.ledger.values() {
            let Some(entry) = state.entries.get(&dispatch.row.id) else { continue };
            let Some(campaign) = book.plan.definitions.campaigns.get(entry.row.campaign.as_str()) else { continue };
            let counts = by_channel.entry(campaign.channel.clone()).or_default();
            match dispatch.of(entry.fate == Fate::Revoked) {
                Some(Trigger::Pending(_)) => counts.pending += 1,
                Some(Trigger::Parked(..)) => counts.parked += 1,
                Some(Trigger::Delivered) | None => {}
            }
            counts.failed += usize::from(entry.fate == Fate::Failed);
        }
        by_channel
    }

    /// A channel as messages leave by it, if there is one of that name.
    pub fn outlet(&self, channel: &str) -> Option<Arc<Outlet>> {
        self.outlets.read().expect("nobody panics while holding it").get(channel).cloned()
    }

    /// The definitions in force.
    pub fn book(&self) -> Arc<Book> {
        self.hub.book()
    }

    /// By what an intent leaves, and whether it is told there that one is taken back; none if its campaign is gone.
    pub(super) fn channel(&self, row: &IntentRow) -> Option<(Arc<Outlet>, bool)> {
        let definitions = &self.hub.book().plan.definitions;
        let name = &definitions.campaigns.get(row.campaign.as_str())?.channel;
        Some((self.outlet(name)?, definitions.channels.get(name)?.revocations))
    }

    pub(super) fn is_of(&self, row: &IntentRow, channel: &str) -> bool {
        let campaigns = &self.hub.book().plan.definitions.campaigns;
        campaigns.get(row.campaign.as_str()).is_some_and(|campaign| campaign.channel == channel)
    }

    /// All entries now, as of when and after how many changes; and all changes after that.
    pub async fn subscribe(&self) -> (AsOf, u64, Vec<Entry>, broadcast::Receiver<Arc<Change>>) {
        let _turn = self.turn.lock().await;
        let state = self.lock();
        (state.as_of, state.changes, state.entries.values().cloned().collect(), self.changes.subscribe())
    }

    /// What it has taken in.
    pub fn as_of(&self) -> AsOf {
        self.lock().as_of
    }

    /// How many follow.
    pub fn subscribers(&self) -> usize {
        self.changes.receiver_count()
    }

    /// What the ledger says of an intent.
    pub fn entry(&self, id: &str) -> Option<Entry> {
        self.lock().entries.get(id).cloned()
    }

    /// The entries of one campaign.
    pub fn of_campaign(&self, campaign: &str) -> Vec<Entry> {
        self.lock().entries.values().filter(|entry| entry.row.campaign == campaign).cloned().collect()
    }

    /// The entries of one person, by whichever of their ids they were told under; oldest first.
    pub fn of_person(&self, ids: &BTreeSet<&EcoString>) -> Vec<Entry> {
        let state = self.lock();
        let of_them = |entry: &&Entry| ids.contains(&entry.row.profile) || ids.contains(&entry.row.root.id);
        let mut entries: Vec<Entry> = state.entries.values().filter(of_them).cloned().collect();
        entries.sort_by_key(|entry| entry.row.at);
        entries
    }

    /// How many entries of one campaign came to what.
    pub fn fates(&self, campaign: &str) -> BTreeMap<&'static str, i64> {
        let mut fates = BTreeMap::new();
        for entry in self.lock().entries.values().filter(|entry| entry.row.campaign == campaign) {
            *fates.entry(entry.fate.name()).or_default() += 1;
        }
        fates
    }

    /// An entry as a row.
    pub fn row<'a>(entry: &'a Entry, definitions: &'a Definitions) -> Intent<'a> {
        let mut row = Intent::new(&entry.row, definitions);
        row.status = entry.fate.name();
        row.body = entry.body.as_deref();
        row.data = entry.data.clone().or(row.data);
        row
    }
}

/// A row as it goes out: what it is, and the intent.
pub fn message(outbox: &Outbox, entry: &Entry) -> Box<RawValue> {
    #[derive(serde::Serialize)]
    struct Message<'a> {
        r#type: &'static str,
        #[serde(flatten)]
        intent: Intent<'a>,
    }
    let kind = if entry.fate == Fate::Revoked { "revoked" } else { "intent" };
    let book = outbox.book();
    let message = Message { r#type: kind, intent: Outbox::row(entry, &book.plan.definitions) };
    serde_json::value::to_raw_value(&message).expect("rows have string keys")
}
