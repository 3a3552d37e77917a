//! The outbox: intents of the law on their way into the world, and the ledger of what became of them.
//!
//! What was sent cannot be unsent, so the ledger's entry is durable before anything goes out, and an id that it knows
//! is never sent again. Dispatch is not law: only what came about after the definitions took effect and is not too
//! old is sent; replays and backfills send nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use dataflows::definitions::{Deliver, Recommend};
use dataflows::plan::Plan;
use dataflows::profile::answers::{IntentRow, Page, ProfileRow, Rows, View};
use dataflows::profile::campaigns::Status;
use dataflows::protocol::{Answer, Question};
use dataflows::time::{HOUR, MINUTE, Millis};
use ecow::EcoString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::record::Dispatch;
use crate::rows::{Intent, recommending};
use crate::templates::Templates;
use crate::writer::{AsOf, Closed, Found, Hub, Work};

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
    /// The data as it was sent, where something was recommended.
    pub data: Option<Box<RawValue>>,
}

/// What changed of intents at one time, for those who subscribe.
#[derive(Clone, Debug)]
pub struct Change {
    /// When.
    pub as_of: AsOf,
    /// Its number since the process started.
    pub number: u64,
    /// Entries that went (-1) and came (1).
    pub entries: Vec<(i8, Entry)>,
}

/// Changes kept for a slow reader before it is dropped.
const CHANGES_MAX: usize = 1_024;
/// How old an intent may be when it is sent, where its campaign does not say.
const EXPIRES: Millis = HOUR;
const EXPIRES_REALTIME: Millis = MINUTE;
/// The latest events of a person that a recommendation looks at: a message cannot wait for all of a long life.
const EVENTS_READ_MAX: usize = 1_000;

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
    as_of: AsOf,
    changes: u64,
}

impl Outbox {
    /// An outbox that knows what the log's ledger says.
    pub fn new(plan: Arc<Plan>, hub: Hub, templates: Templates, found: Found) -> Self {
        let mut state = State::default();
        for dispatch in found.dispatched {
            // What was told stays told, whether or not the law still says it.
            let Dispatch { row, status, body, data, .. } = dispatch.clone();
            state.entries.insert(row.id.clone(), Entry { row: row.clone(), fate: status, body, data });
            state.ledger.insert(row.id, dispatch);
        }
        Outbox {
            state: Arc::new(Mutex::new(state)),
            changes: broadcast::channel(CHANGES_MAX).0,
            plan,
            hub,
            templates: Arc::new(templates),
            active_since: found.active_since,
        }
    }

    /// Takes in the steps that have closed already: what the log held is no news, but for what was sent and does not
    /// stand any more. Its revocation may have been cut off by the end of the process before.
    pub fn catch_up(&self, told: &mut mpsc::UnboundedReceiver<Closed>) {
        let mut standing = BTreeSet::new();
        while let Ok(closed) = told.try_recv() {
            let due = |change: i8| {
                let rows = closed.intents.iter().filter(move |(row, of)| row.status == Status::Due && *of == change);
                rows.map(|(row, _)| row.id.clone())
            };
            due(-1).for_each(|id| {
                standing.remove(&id);
            });
            standing.extend(due(1));
            let (_, due) = self.note(closed.as_of, closed.intents);
            let mut state = self.lock();
            for id in due {
                if let Some(at) = state.entries.get(&id).map(|entry| entry.row.not_before) {
                    state.waiting.insert((at, id));
                }
            }
        }
        let mut state = self.lock();
        let sent = state.ledger.values().filter(|dispatch| dispatch.status == Fate::Sent);
        let lost: Vec<String> = sent.map(|of| of.row.id.clone()).filter(|id| !standing.contains(id)).collect();
        for id in lost {
            state.withdraw(&id);
        }
    }

    /// Follows the steps as they close, for as long as they do.
    pub async fn run(self, mut told: mpsc::UnboundedReceiver<Closed>) {
        let (as_of, lost) = self.not_written_down();
        for entry in lost {
            self.write_down(&entry, as_of).await;
        }
        while let Some(closed) = told.recv().await {
            let (mut changed, due) = self.note(closed.as_of, closed.intents);
            let revoked = changed.iter().filter(|(diff, entry)| *diff > 0 && entry.fate == Fate::Revoked);
            let revoked: Vec<Entry> = revoked.map(|(_, entry)| entry.clone()).collect();
            for entry in revoked {
                // If the process ends before this is durable, the law says it again at the next start.
                self.write_down(&entry, closed.as_of).await;
            }
            for id in due {
                changed.extend(self.send(&id, closed.as_of).await);
            }
            let entries = consolidate(changed);
            if !entries.is_empty() {
                let mut state = self.lock();
                state.changes += 1;
                // Nobody may be listening.
                let number = state.changes;
                let _ = self.changes.send(Arc::new(Change { as_of: closed.as_of, number, entries }));
            }
        }
    }

    /// What is revoked, though the ledger still says that it was sent; and as of when.
    fn not_written_down(&self) -> (AsOf, Vec<Entry>) {
        let state = self.lock();
        let sent = state.ledger.values().filter(|dispatch| dispatch.status == Fate::Sent);
        let entries = sent.filter_map(|dispatch| state.entries.get(&dispatch.row.id));
        let lost = entries.filter(|entry| entry.fate == Fate::Revoked).cloned().collect();
        (state.as_of, lost)
    }

    /// Writes down what became of an intent; whether it is durable.
    async fn write_down(&self, entry: &Entry, as_of: AsOf) -> bool {
        let Entry { row, fate, body, data } = entry.clone();
        let dispatch = Dispatch { row, status: fate, body, data, at: as_of.clock };
        let (reply, durable) = oneshot::channel();
        if self.hub.give(Work::Dispatch(vec![dispatch.clone()], reply)).is_err() || durable.await.is_err() {
            return false;
        }
        self.lock().ledger.insert(entry.row.id.clone(), dispatch);
        true
    }

    /// All entries now, as of when and after how many changes; and all changes after that.
    pub fn subscribe(&self) -> (AsOf, u64, Vec<Entry>, broadcast::Receiver<Arc<Change>>) {
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
    pub fn row<'a>(&'a self, entry: &'a Entry) -> Intent<'a> {
        let mut row = Intent::new(&entry.row, &self.plan.definitions);
        row.status = entry.fate.name();
        row.body = entry.body.as_deref();
        row.data = entry.data.clone().or(row.data);
        row
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    /// Notes what came and went; gives the changes, and the ids whose time has come.
    fn note(&self, as_of: AsOf, intents: Vec<(IntentRow, i8)>) -> (Vec<(i8, Entry)>, Vec<String>) {
        let mut state = self.lock();
        state.as_of = as_of;
        let mut changed = Vec::new();
        let (passing, held): (Vec<_>, Vec<_>) = intents.into_iter().partition(|(row, _)| row.status == Status::Due);
        let (came, went): (Vec<_>, Vec<_>) = passing.into_iter().partition(|(_, change)| *change > 0);
        let came: BTreeMap<String, IntentRow> = came.into_iter().map(|(row, _)| (row.id.clone(), row)).collect();
        for (row, _) in went {
            if !came.contains_key(&row.id) {
                changed.extend(state.withdraw(&row.id));
            }
        }
        for (row, _) in held.into_iter().filter(|(_, change)| *change > 0) {
            changed.extend(state.hold_back(&row.id));
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
            // It stands again: what was sent counts as sent.
            let fate = if dispatch.status == Fate::Revoked { Fate::Sent } else { dispatch.status };
            return Entry { row, fate, body: dispatch.body.clone(), data: dispatch.data.clone() };
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
        Entry { row, fate, body: None, data: None }
    }

    /// Sends an intent that is due: asks for consent again, fixes the message, writes it down, then tells it.
    async fn send(&self, id: &str, as_of: AsOf) -> Vec<(i8, Entry)> {
        let Some(old) = self.entry(id).filter(|entry| entry.fate == Fate::Waiting) else { return Vec::new() };
        let campaign = &self.plan.definitions.campaigns[old.row.campaign.as_str()];
        let Some((profile, events)) = self.person(&old.row, campaign.recommend.is_some()).await else {
            self.lock().waiting.insert((old.row.not_before, id.to_owned()));
            return Vec::new();
        };
        let recommend = |of: &Recommend| self.templates.recommend(&old.row, &events, of.items as usize);
        let recommended = campaign.recommend.as_ref().map(recommend);
        let recommended = recommended.as_deref();
        let consents = campaign.consent.as_ref().is_none_or(|purpose| profile.consents(purpose));
        let mut new = Entry { row: old.row.clone(), fate: Fate::ConsentWithdrawn, body: None, data: None };
        if consents {
            new.fate = Fate::Sent;
            new.body = self.templates.render(&old.row, &profile, recommended);
            new.data = recommended.map(|items| recommending(campaign.data.as_deref(), items));
        }
        if !self.write_down(&new, as_of).await {
            // Not written down, so not sent: its turn comes again.
            self.lock().waiting.insert((old.row.not_before, id.to_owned()));
            return Vec::new();
        }
        self.lock().entries.insert(id.to_owned(), new.clone());
        vec![(-1, old), (1, new)]
    }

    /// The profile of an intent, and where its latest events stand in the log, newest first, if they are wanted; none
    /// if the engine cannot be asked now.
    async fn person(&self, row: &IntentRow, wants_events: bool) -> Option<(Box<ProfileRow>, Vec<u64>)> {
        let id = &row.profile;
        let profile =
            self.hub.ask(Question::Profile(id.clone())).await.ok()?.parts.into_iter().find_map(|part| match part {
                Answer::Profile(profile) => Some(profile),
                _ => None,
            })?;
        if !wants_events {
            return Some((profile, Vec::new()));
        }
        let page = Page { before: None, limit: EVENTS_READ_MAX };
        let question = Question::History { id: id.clone(), view: View::Events, page };
        let events = self.hub.ask(question).await.ok()?.parts.into_iter().find_map(|part| match part {
            Answer::History(Rows::Events(events), _) => Some(events),
            _ => None,
        })?;
        Some((profile, events.into_iter().map(|(_, position)| position).collect()))
    }
}

/// The changes of one time, each intent's first and last row alone.
fn consolidate(changed: Vec<(i8, Entry)>) -> Vec<(i8, Entry)> {
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

impl State {
    /// An intent no longer stands.
    fn withdraw(&mut self, id: &str) -> Vec<(i8, Entry)> {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.fate != Fate::Revoked) else {
            return Vec::new();
        };
        let old = entry.clone();
        entry.fate = if entry.fate == Fate::Sent { Fate::Revoked } else { Fate::Cancelled };
        vec![(-1, old), (1, entry.clone())]
    }

    /// An intent stands, but not its gates: where nothing of it is written down, the law's word is all there is to say.
    fn hold_back(&mut self, id: &str) -> Option<(i8, Entry)> {
        if self.ledger.contains_key(id) { None } else { self.entries.remove(id).map(|entry| (-1, entry)) }
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
