//! The outbox: intents of the law on their way into the world, and the ledger of what became of them.
//!
//! What was sent cannot be unsent, so the ledger's entry is durable before anything goes out, and an id that it knows
//! is never sent again. Dispatch is not law: only what came about after the definitions took effect and is not too
//! old is sent; replays and backfills send nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use dataflows::definitions::Deliver;
use dataflows::plan::Plan;
use dataflows::profile::answers::{IntentRow, ProfileRow};
use dataflows::profile::campaigns::Status;
use dataflows::protocol::{Answer, Question};
use dataflows::time::{HOUR, MINUTE, Millis};
use serde_json::value::RawValue;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::record::Dispatch;
use crate::rows::Intent;
use crate::templates::Templates;
use crate::writer::{AsOf, Closed, Found, Hub, Work};

/// What became of an intent that the law lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Sent.
    Sent,
    /// No longer stands; it had been sent.
    Revoked,
    /// Its channel cannot deliver.
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
}

/// What changed of intents at one time, for those who subscribe.
#[derive(Clone, Debug)]
pub struct Change {
    /// When.
    pub as_of: AsOf,
    /// Entries that went (-1) and came (1).
    pub entries: Vec<(i8, Entry)>,
}

/// Changes kept for a slow reader before it is dropped.
const CHANGES_MAX: usize = 1_024;
/// How old an intent may be when it is sent, where its campaign does not say.
const EXPIRES: Millis = HOUR;
const EXPIRES_REALTIME: Millis = MINUTE;

/// The outbox, shared by its task and those who ask.
#[derive(Clone, Debug)]
pub struct Outbox {
    state: Arc<Mutex<State>>,
    changes: broadcast::Sender<Arc<Change>>,
    plan: Arc<Plan>,
    hub: Hub,
    templates: Arc<Templates>,
    active_since: Millis,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    ledger: BTreeMap<String, Dispatch>,
    waiting: BTreeSet<(Millis, String)>,
    as_of: Option<AsOf>,
}

impl Outbox {
    /// An outbox that knows what the log's ledger says.
    pub fn new(plan: Arc<Plan>, hub: Hub, templates: Templates, found: Found) -> Self {
        let ledger = found.dispatched.into_iter().map(|dispatch| (dispatch.id.clone(), dispatch)).collect();
        let state = State { ledger, ..State::default() };
        Outbox {
            state: Arc::new(Mutex::new(state)),
            changes: broadcast::channel(CHANGES_MAX).0,
            plan,
            hub,
            templates: Arc::new(templates),
            active_since: found.active_since,
        }
    }

    /// Follows the steps as they close, for as long as they do.
    pub async fn run(self, mut told: mpsc::UnboundedReceiver<Closed>) {
        while let Some(closed) = told.recv().await {
            let (mut changed, due) = self.note(closed.as_of, closed.intents);
            for id in due {
                changed.extend(self.send(&id, closed.as_of).await);
            }
            if !changed.is_empty() {
                // Nobody may be listening.
                let _ = self.changes.send(Arc::new(Change { as_of: closed.as_of, entries: changed }));
            }
        }
    }

    /// All entries now, as of when, and all changes after that.
    pub fn subscribe(&self) -> (Option<AsOf>, Vec<Entry>, broadcast::Receiver<Arc<Change>>) {
        let state = self.lock();
        (state.as_of, state.entries.values().cloned().collect(), self.changes.subscribe())
    }

    /// Since when the definitions have been as they are, ms.
    pub fn active_since(&self) -> Millis {
        self.active_since
    }

    /// What the ledger says of an intent.
    pub fn entry(&self, id: &str) -> Option<Entry> {
        self.lock().entries.get(id).cloned()
    }

    /// The entries of one campaign.
    pub fn of_campaign(&self, campaign: &str) -> Vec<Entry> {
        self.lock().entries.values().filter(|entry| entry.row.campaign == campaign).cloned().collect()
    }

    /// An entry as a row.
    pub fn row<'a>(&'a self, entry: &'a Entry) -> Intent<'a> {
        let mut row = Intent::new(&entry.row, &self.plan.definitions);
        row.status = entry.fate.name();
        row.body = entry.body.as_deref();
        row
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    /// Notes what came and went; gives the changes, and the ids whose time has come.
    fn note(&self, as_of: AsOf, intents: Vec<(IntentRow, i8)>) -> (Vec<(i8, Entry)>, Vec<String>) {
        let mut state = self.lock();
        state.as_of = Some(as_of);
        let mut changed = Vec::new();
        let passing = intents.into_iter().filter(|(row, _)| row.status == Status::Due);
        let (came, went): (Vec<_>, Vec<_>) = passing.partition(|(_, change)| *change > 0);
        let came: BTreeMap<String, IntentRow> = came.into_iter().map(|(row, _)| (row.id.clone(), row)).collect();
        for (row, _) in went {
            if !came.contains_key(&row.id) {
                changed.extend(state.withdraw(&row.id));
            }
        }
        for (id, row) in came {
            let old = state.entries.get(&id).cloned();
            let entry = self.judge(&state, row, as_of.clock);
            if entry.fate == Fate::Waiting {
                state.waiting.insert((entry.row.not_before, id.clone()));
            }
            changed.extend(old.map(|old| (-1, old)));
            changed.push((1, entry.clone()));
            state.entries.insert(id, entry);
        }
        let mut due = Vec::new();
        while let Some((_, id)) = state.waiting.first().filter(|(at, _)| *at <= as_of.clock).cloned() {
            state.waiting.pop_first();
            due.push(id);
        }
        (changed, due)
    }

    /// What becomes of an intent that stands.
    fn judge(&self, state: &State, row: IntentRow, clock: Millis) -> Entry {
        let campaign = &self.plan.definitions.campaigns[row.campaign.as_str()];
        let channel = &self.plan.definitions.channels[&campaign.channel];
        let expires = campaign.expires.unwrap_or(if channel.realtime && channel.deliver == Deliver::Sse {
            EXPIRES_REALTIME
        } else {
            EXPIRES
        });
        if let Some(dispatch) = state.ledger.get(&row.id) {
            return Entry { row, fate: Fate::Sent, body: dispatch.body.clone() };
        }
        let fate = if row.at <= self.active_since {
            Fate::History
        } else if clock > row.not_before.max(row.at) + expires {
            Fate::Expired
        } else if channel.deliver != Deliver::Sse {
            Fate::Parked
        } else {
            Fate::Waiting
        };
        Entry { row, fate, body: None }
    }

    /// Sends an intent that is due: asks for consent again, fixes the message, writes it down, then tells it.
    async fn send(&self, id: &str, as_of: AsOf) -> Vec<(i8, Entry)> {
        let Some(old) = self.entry(id).filter(|entry| entry.fate == Fate::Waiting) else { return Vec::new() };
        let Some(profile) = self.profile(&old.row).await else { return Vec::new() };
        let campaign = &self.plan.definitions.campaigns[old.row.campaign.as_str()];
        let consents = campaign.consent.as_ref().is_none_or(|purpose| profile.consents(purpose));
        let mut new = old.clone();
        if consents {
            let body = self.templates.render(&old.row, &profile);
            let dispatch = Dispatch {
                id: id.to_owned(),
                status: Fate::Sent.name().to_owned(),
                body: body.clone(),
                at: as_of.clock,
            };
            let (reply, durable) = oneshot::channel();
            if self.hub.give(Work::Dispatch(vec![dispatch.clone()], reply)).is_err() || durable.await.is_err() {
                // Not written down, so not sent: its turn comes again.
                self.lock().waiting.insert((old.row.not_before, id.to_owned()));
                return Vec::new();
            }
            self.lock().ledger.insert(id.to_owned(), dispatch);
            (new.fate, new.body) = (Fate::Sent, body);
        } else {
            new.fate = Fate::ConsentWithdrawn;
        }
        self.lock().entries.insert(id.to_owned(), new.clone());
        vec![(-1, old), (1, new)]
    }

    async fn profile(&self, row: &IntentRow) -> Option<Box<ProfileRow>> {
        let answered = self.hub.ask(Question::Profile(row.profile.clone())).await.ok()?;
        answered.parts.into_iter().find_map(|part| match part {
            Answer::Profile(profile) => Some(profile),
            _ => None,
        })
    }
}

impl State {
    /// An intent no longer stands.
    fn withdraw(&mut self, id: &str) -> Vec<(i8, Entry)> {
        let Some(entry) = self.entries.get_mut(id) else { return Vec::new() };
        let old = entry.clone();
        entry.fate = if entry.fate == Fate::Sent { Fate::Revoked } else { Fate::Cancelled };
        vec![(-1, old), (1, entry.clone())]
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
    let message = Message { r#type: kind, intent: outbox.row(entry) };
    serde_json::value::to_raw_value(&message).expect("rows have string keys")
}
