//! The outbox: intents of the law on their way into the world, and the ledger of what became of them.
//!
//! What was sent cannot be unsent, so the ledger's entry is durable before anything goes out, and an id that it knows
//! is never sent again. Dispatch is not law: only what came about after the definitions took effect and is not too
//! old is sent; replays and backfills send nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use dataflows::definitions::{Definitions, Deliver, Recommend};
use dataflows::identity::Erasure;
use dataflows::profile::answers::{IntentRow, Page, ProfileRow, Rows, View};
use dataflows::profile::campaigns::Status;
use dataflows::protocol::{Answer, Question};
use dataflows::time::{HOUR, MINUTE, Millis};
use ecow::EcoString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::book::Book;
use crate::cluster::LEADER;
use crate::desk::Records;
use crate::erasing::{is_of, is_of_them};
use crate::hub::{AsOf, Closed, Hub, NotTaken, Told, Work};
use crate::log::OwnedRecord;
use crate::record::{Dispatch, Trigger};
use crate::rows::{Intent, recommending};
use crate::stream::Stream;
use crate::triggers::{self, Now, Orders, Outlet, Parcel, Report};
use crate::writer::Found;

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

/// Reports of deliveries that are written down together, at most.
const NOTICES_MAX: usize = 256;
/// Intents that are prepared and written down together, at most: those after them wait so long and no longer.
const SENT_TOGETHER_MAX: usize = 64;
/// How soon a writer that is busy is asked again.
const BUSY: Duration = Duration::from_millis(10);

/// The outbox, shared by its task and those who ask.
#[derive(Clone, Debug)]
pub struct Outbox {
    state: Arc<Mutex<State>>,
    changes: broadcast::Sender<Arc<Change>>,
    outlets: Arc<RwLock<BTreeMap<String, Arc<Outlet>>>>,
    notices: mpsc::UnboundedSender<Notice>,
    hub: Hub,
    /// Bodies of events; a replay has none.
    records: Option<Records>,
    /// Whether messages leave by this process.
    leads: bool,
}

/// What its task has to look at, besides the steps that close.
#[derive(Debug)]
pub struct Inbox {
    notices: mpsc::UnboundedReceiver<Notice>,
    orders: BTreeMap<String, Orders>,
}

#[derive(Debug)]
enum Notice {
    /// A message got somewhere.
    Report(Report),
    /// What is parked is to be sent again.
    Resend(Resend),
}

#[derive(Debug)]
struct Resend {
    channel: String,
    /// Of one intent, else all.
    id: Option<String>,
    reply: oneshot::Sender<(usize, AsOf)>,
}

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

/// A message that is parked.
#[derive(Clone, Debug)]
pub struct Parked {
    /// The intent, and what became of it.
    pub entry: Entry,
    /// Why it is parked.
    pub why: String,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    ledger: BTreeMap<String, Dispatch>,
    waiting: BTreeSet<(Millis, String)>,
    as_of: AsOf,
    changes: u64,
    /// Who was erased since the process started: the leader may have written of them before it knew.
    erased: Vec<Erasure>,
}

impl Outbox {
    /// An outbox that knows what the log's ledger says, and what its task needs.
    pub fn new(hub: Hub, records: Option<Records>, found: Found) -> (Self, Inbox) {
        let mut state = State::default();
        for dispatch in found.dispatched {
            // What was told stays told, whether or not the law still says it.
            let Dispatch { row, status, body, data, .. } = dispatch.clone();
            state.entries.insert(row.id.clone(), Entry { row: row.clone(), fate: status, body, data });
            state.ledger.insert(row.id, dispatch);
        }
        let (notices, noticed) = mpsc::unbounded_channel();
        let outbox = Outbox {
            state: Arc::new(Mutex::new(state)),
            changes: broadcast::channel(CHANGES_MAX).0,
            outlets: Arc::default(),
            notices,
            hub,
            records,
            leads: found.process == LEADER,
        };
        let orders = outbox.open_channels(&outbox.hub.book(), None);
        (outbox, Inbox { notices: noticed, orders })
    }

    /// Opens the channels of definitions: those that the ones before did not have, or had otherwise.
    fn open_channels(&self, book: &Book, before: Option<&Book>) -> BTreeMap<String, Orders> {
        let (mut outlets, mut orders) =
            (self.outlets.write().expect("nobody panics while holding it"), BTreeMap::new());
        let channels = &book.plan.definitions.channels;
        outlets.retain(|name, _| channels.contains_key(name));
        for (name, channel) in channels {
            if before.is_none_or(|before| before.plan.definitions.channels.get(name) != Some(channel)) {
                let (outlet, waiting) = Outlet::new(&channel.deliver);
                outlets.insert(name.clone(), Arc::new(outlet));
                orders.extend(waiting.map(|waiting| (name.clone(), waiting)));
            }
        }
        orders
    }

    /// Other definitions hold: messages leave by their channels, those too that are on their way.
    fn redefine(&self, book: &Book, before: &Book) {
        let orders = self.open_channels(book, Some(before));
        let names: Vec<String> = orders.keys().cloned().collect();
        if self.leads {
            triggers::start(self, orders);
            self.order_all(|row| names.iter().any(|name| self.is_of(row, name)));
        }
    }

    /// Has all be carried that is on its way.
    fn order_all(&self, which: impl Fn(&IntentRow) -> bool) {
        let rows: Vec<IntentRow> = self.lock().ledger.values().map(|dispatch| dispatch.row.clone()).collect();
        for row in rows.iter().filter(|row| which(row) && self.parcel(&row.id).is_some()) {
            self.order(&row.id);
        }
    }

    /// Takes in the steps that have closed already: what the log held is no news, but for what was sent and does not
    /// stand any more. Its revocation may have been cut off by the end of the process before.
    pub fn catch_up(&self, told: &mut mpsc::UnboundedReceiver<Told>) {
        let mut standing = BTreeSet::new();
        while let Ok(told) = told.try_recv() {
            let closed = match told {
                Told::Closed(closed) => closed,
                Told::Dispatched(dispatched) => {
                    self.mirror(dispatched);
                    continue;
                }
            };
            self.lock().forget(closed.erased);
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
        let sent = state.ledger.values().filter(|dispatch| dispatch.stands());
        let lost: Vec<String> = sent.map(|of| of.row.id.clone()).filter(|id| !standing.contains(id)).collect();
        for id in lost {
            state.withdraw(&id);
        }
    }

    /// Follows the steps as they close, for as long as they do, and hears what becomes of messages. Where several
    /// processes work together, messages leave by the leader, and the others note what it says of them.
    pub async fn run(self, mut told: mpsc::UnboundedReceiver<Told>, inbox: Inbox) {
        let Inbox { mut notices, orders } = inbox;
        let mut book = self.hub.book();
        if self.leads {
            self.start(orders).await;
        }
        loop {
            let (as_of, changed) = tokio::select! {
                told = told.recv() => match told.inspect(|told| self.hear(told, &mut book)) {
                    Some(Told::Closed(closed)) if self.leads => (closed.as_of, self.follow(closed).await),
                    Some(Told::Closed(closed)) => {
                        let mut changed = self.lock().forget(closed.erased);
                        changed.extend(self.note(closed.as_of, closed.intents).0);
                        (closed.as_of, changed)
                    }
                    Some(Told::Dispatched(dispatched)) => self.mirror(dispatched),
                    None => return,
                },
                Some(first) = notices.recv() => {
                    let more = std::iter::from_fn(|| notices.try_recv().ok()).take(NOTICES_MAX - 1);
                    let noticed = std::iter::once(first).chain(more).collect();
                    self.heed(noticed).await
                }
            };
            let entries = consolidate(changed);
            if !entries.is_empty() {
                let mut state = self.lock();
                state.changes += 1;
                // Nobody may be listening.
                let number = state.changes;
                let _ = self.changes.send(Arc::new(Change { as_of, number, entries }));
            }
        }
    }

    /// Looks whether other definitions hold.
    fn hear(&self, told: &Told, book: &mut Arc<Book>) {
        if let Told::Closed(Closed { book: Some(new), .. }) = told {
            self.redefine(new, book);
            *book = Arc::clone(new);
        }
    }

    /// Brings what the process before this one left undone on its way.
    async fn start(&self, orders: BTreeMap<String, Orders>) {
        let (as_of, lost) = self.not_written_down();
        self.revoke(lost, as_of).await;
        triggers::start(self, orders);
        self.order_all(|_| true);
    }

    /// Notes what the leader has written down; gives as of when, and what changed of intents.
    fn mirror(&self, dispatched: Vec<Dispatch>) -> (AsOf, Vec<(i8, Entry)>) {
        let (mut state, mut changed) = (self.lock(), Vec::new());
        for dispatch in dispatched {
            if state.erased.iter().any(|erasure| is_of(erasure, &dispatch)) {
                continue;
            }
            let Dispatch { row, status, body, data, .. } = dispatch.clone();
            state.ledger.insert(row.id.clone(), dispatch);
            // What this process has yet to hear of is judged when it does.
            let Some(entry) = state.entries.get_mut(&row.id) else { continue };
            let old = entry.clone();
            // What fell away while it was sent has been sent.
            let fell = matches!(old.fate, Fate::Cancelled | Fate::Revoked) && status != Fate::ConsentWithdrawn;
            *entry = Entry { row: old.row.clone(), fate: if fell { Fate::Revoked } else { status }, body, data };
            changed.extend([(-1, old), (1, entry.clone())]);
        }
        (state.as_of, changed)
    }

    /// Does what a step that closed asks for.
    async fn follow(&self, closed: Closed) -> Vec<(i8, Entry)> {
        // Nothing of who was erased goes out any more, not even that it is taken back.
        let forgotten = self.lock().forget(closed.erased);
        let (mut changed, due) = self.note(closed.as_of, closed.intents);
        let news = || changed.iter().filter(|(diff, _)| *diff > 0).map(|(_, entry)| entry);
        let revoked: Vec<Entry> = news().filter(|entry| entry.fate == Fate::Revoked).cloned().collect();
        for entry in news().filter(|entry| entry.fate == Fate::Sent && self.was_revoked(&entry.row.id)) {
            // It stands again, and may never have been delivered.
            self.order(&entry.row.id);
        }
        // If the process ends before this is durable, the law says it again at the next start.
        self.revoke(revoked, closed.as_of).await;
        changed.extend(forgotten);
        changed.extend(self.send(due, closed.as_of).await);
        changed
    }

    /// Writes down that intents do not stand any more, with the messages that say so.
    async fn revoke(&self, entries: Vec<Entry>, as_of: AsOf) {
        let dispatch = |entry: &Entry| {
            let known = self.lock().ledger.get(&entry.row.id).cloned();
            let (trigger, revocation) = known.map_or((None, None), |known| (known.trigger, known.revocation));
            let tells = self.channel(&entry.row).is_some_and(|(outlet, revocations)| outlet.carries() && revocations);
            let fresh = || tells.then(|| Trigger::Pending(message(self, entry).to_string()));
            let revocation = revocation.or_else(fresh);
            Dispatch { trigger, revocation, ..Dispatch::new(entry.clone(), as_of) }
        };
        let dispatches: Vec<Dispatch> = entries.iter().map(dispatch).collect();
        if self.write_down(dispatches).await.is_some() {
            entries.iter().for_each(|entry| self.order(&entry.row.id));
        }
    }

    /// Whether the ledger's last word on an intent is that it is revoked.
    fn was_revoked(&self, id: &str) -> bool {
        self.lock().ledger.get(id).is_some_and(|dispatch| dispatch.status == Fate::Revoked)
    }

    /// Keeps what became of messages; gives as of when, and what changed of intents.
    async fn heed(&self, notices: Vec<Notice>) -> (AsOf, Vec<(i8, Entry)>) {
        let (mut changed, mut written, mut again) = (Vec::new(), BTreeMap::new(), Vec::new());
        let at = self.hub.clock();
        let as_of = {
            let mut state = self.lock();
            for notice in notices {
                match notice {
                    Notice::Report(Report { id, revokes, now }) => {
                        let delivered = matches!(now, Now::Delivered) && !revokes;
                        let Some((entries, dispatch)) = state.settle(&id, revokes, now, at) else { continue };
                        if let Some((outlet, _)) = self.channel(&entries.1.row).filter(|_| delivered) {
                            outlet.delivered(at - entries.1.row.not_before);
                        }
                        if entries.0.fate != entries.1.fate {
                            changed.extend([(-1, entries.0), (1, entries.1)]);
                        }
                        written.extend(dispatch.map(|dispatch| (id, dispatch)));
                    }
                    Notice::Resend(Resend { channel, id, reply }) => {
                        let ids: Vec<String> = state.parked().map(|parked| parked.entry.row.id.clone()).collect();
                        let of_channel = |id: &String| self.is_of(&state.entries[id].row, &channel);
                        let wanted = |parked: &String| id.as_ref().is_none_or(|id| id == parked);
                        let ids: Vec<String> = ids.into_iter().filter(|id| of_channel(id) && wanted(id)).collect();
                        for id in &ids {
                            let Some((entries, dispatch)) = state.unpark(id, at) else { continue };
                            changed.extend([(-1, entries.0), (1, entries.1)]);
                            written.insert(id.clone(), dispatch);
                        }
                        again.push((channel, ids, reply));
                    }
                }
            }
            state.as_of
        };
        let durable = self.write_down(written.into_values().collect()).await;
        for (channel, ids, reply) in again {
            if let Some(outlet) = self.outlet(&channel).filter(|_| !ids.is_empty()) {
                outlet.enable();
                ids.iter().for_each(|id| outlet.order(id));
            }
            if let Some(durable) = durable {
                // Whoever asked may have gone.
                let _ = reply.send((ids.len(), durable));
            }
        }
        (as_of, changed)
    }

    /// What is revoked, though the ledger still says otherwise; and as of when.
    fn not_written_down(&self) -> (AsOf, Vec<Entry>) {
        let state = self.lock();
        let sent = state.ledger.values().filter(|dispatch| dispatch.stands());
        let entries = sent.filter_map(|dispatch| state.entries.get(&dispatch.row.id));
        let lost = entries.filter(|entry| entry.fate == Fate::Revoked).cloned().collect();
        (state.as_of, lost)
    }

    /// Writes entries of the ledger down and waits until they are durable; none if the process ends before.
    async fn write_down(&self, dispatches: Vec<Dispatch>) -> Option<AsOf> {
        if dispatches.is_empty() {
            return Some(self.lock().as_of);
        }
        let durable = loop {
            let (reply, durable) = oneshot::channel();
            match self.hub.give(Work::Dispatch(dispatches.clone(), reply)) {
                Ok(()) => match durable.await {
                    Ok(durable) => break durable,
                    // A broker that had no room may have some later; a writer that is gone says so next.
                    Err(_) => tokio::time::sleep(BUSY).await,
                },
                Err(NotTaken::Busy) => tokio::time::sleep(BUSY).await,
                Err(NotTaken::Stopping | NotTaken::NotKept) => return None,
            }
        };
        let by_id = dispatches.into_iter().map(|dispatch| (dispatch.row.id.clone(), dispatch));
        self.lock().ledger.extend(by_id);
        Some(durable)
    }

    /// Has what is pending of an intent carried.
    fn order(&self, id: &str) {
        let row = self.entry(id).map(|entry| entry.row);
        if let Some((outlet, _)) = row.as_ref().and_then(|row| self.channel(row)) {
            outlet.order(id);
        }
    }

    /// What is pending of an intent, if anything is.
    pub(crate) fn parcel(&self, id: &str) -> Option<Parcel> {
        let clock = self.hub.clock();
        let state = self.lock();
        let (dispatch, entry) = (state.ledger.get(id)?, state.entries.get(id)?);
        let revokes = entry.fate == Fate::Revoked;
        let Some(Trigger::Pending(body)) = dispatch.of(revokes) else { return None };
        let stale = !revokes && clock > dispatch.at + self.expires(&entry.row);
        Some(Parcel { id: id.to_owned(), campaign: entry.row.campaign.to_string(), revokes, body: body.clone(), stale })
    }

    /// Whether the person consents, at the latest that is known, to what an intent is for.
    pub(crate) async fn consents(&self, id: &str) -> bool {
        let Some(Entry { row, .. }) = self.entry(id) else { return false };
        let book = self.hub.book();
        let campaign = book.plan.definitions.campaigns.get(row.campaign.as_str());
        let Some(purpose) = campaign.and_then(|campaign| campaign.consent.as_ref()) else { return true };
        loop {
            let Ok(answered) = self.hub.ask(Question::Profile(row.profile.clone())).await else {
                tokio::time::sleep(BUSY).await;
                continue;
            };
            let yes = |part: &Answer| matches!(part, Answer::Profile(profile) if profile.consents(purpose));
            return answered.parts.iter().any(yes);
        }
    }

    /// The stream that is the log, if one is.
    pub(crate) fn stream(&self) -> Option<Stream> {
        match &self.records {
            Some(Records::Stream(stream, ..)) => Some(stream.clone()),
            _ => None,
        }
    }

    /// Hears what became of a message.
    pub(crate) fn report(&self, report: Report) {
        // The task is gone only when the process ends.
        let _ = self.notices.send(Notice::Report(report));
    }

    /// Has what is parked of a channel sent again: of one intent, else all. Gives how many and where that stands in the
    /// log; none if the process ends.
    pub async fn resend(&self, channel: String, id: Option<String>) -> Option<(usize, AsOf)> {
        let (reply, resent) = oneshot::channel();
        self.notices.send(Notice::Resend(Resend { channel, id, reply })).ok()?;
        resent.await.ok()
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
    fn channel(&self, row: &IntentRow) -> Option<(Arc<Outlet>, bool)> {
        let definitions = &self.hub.book().plan.definitions;
        let name = &definitions.campaigns.get(row.campaign.as_str())?.channel;
        Some((self.outlet(name)?, definitions.channels.get(name)?.revocations))
    }

    fn is_of(&self, row: &IntentRow, channel: &str) -> bool {
        let campaigns = &self.hub.book().plan.definitions.campaigns;
        campaigns.get(row.campaign.as_str()).is_some_and(|campaign| campaign.channel == channel)
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
        if let Some(dispatch) = state.ledger.get(&row.id) {
            let fate = match (dispatch.status, &dispatch.trigger) {
                // It stands again: what was sent counts as sent.
                (Fate::Revoked, Some(Trigger::Parked(..))) => Fate::Parked,
                (Fate::Revoked, _) => Fate::Sent,
                (Fate::Sent, _) if state.entries.get(&row.id).is_some_and(|old| old.fate == Fate::Failed) => {
                    Fate::Failed
                }
                (status, _) => status,
            };
            return Entry { row, fate, body: dispatch.body.clone(), data: dispatch.data.clone() };
        }
        let fate = if row.at <= self.hub.book().active_since(&row.campaign) {
            Fate::History
        } else if clock > row.not_before.max(row.at) + self.expires(&row) {
            Fate::Expired
        } else {
            Fate::Waiting
        };
        Entry { row, fate, body: None, data: None }
    }

    /// How old an intent may be when it is sent.
    fn expires(&self, row: &IntentRow) -> Millis {
        let definitions = &self.hub.book().plan.definitions;
        let Some(campaign) = definitions.campaigns.get(row.campaign.as_str()) else { return EXPIRES };
        let channel = &definitions.channels[&campaign.channel];
        let pops_up = channel.realtime && channel.deliver == Deliver::Sse;
        campaign.expires.unwrap_or(if pops_up { EXPIRES_REALTIME } else { EXPIRES })
    }

    /// Sends intents that are due: what is prepared together is written down together, and then told, or carried.
    async fn send(&self, due: Vec<String>, as_of: AsOf) -> Vec<(i8, Entry)> {
        let mut changed = Vec::new();
        for ids in due.chunks(SENT_TOGETHER_MAX) {
            let mut preparing = JoinSet::new();
            for (place, id) in ids.iter().cloned().enumerate() {
                let outbox = self.clone();
                preparing.spawn(async move { (place, outbox.prepare(&id).await) });
            }
            let mut prepared = preparing.join_all().await;
            prepared.sort_by_key(|(place, _)| *place);
            let prepared: Vec<(Entry, Entry)> = prepared.into_iter().filter_map(|(_, entries)| entries).collect();
            let dispatch = |(_, new): &(Entry, Entry)| {
                let trigger = self.is_carried(new).then(|| Trigger::Pending(message(self, new).to_string()));
                Dispatch { trigger, ..Dispatch::new(new.clone(), as_of) }
            };
            // Not written down, so not sent: their turn comes again at the next start.
            let Some(durable) = self.write_down(prepared.iter().map(dispatch).collect()).await else { break };
            for (old, new) in prepared {
                self.lock().entries.insert(new.row.id.clone(), new.clone());
                if let Some((outlet, _)) = self.channel(&new.row) {
                    if self.is_carried(&new) {
                        outlet.order(&new.row.id);
                    } else if new.fate == Fate::Sent {
                        outlet.delivered(durable.clock - new.row.not_before);
                    }
                }
                changed.extend([(-1, old), (1, new)]);
            }
        }
        changed
    }

    /// Whether somebody has to carry what was sent.
    fn is_carried(&self, entry: &Entry) -> bool {
        let carries = |(outlet, _): (Arc<Outlet>, bool)| outlet.carries();
        entry.fate == Fate::Sent && self.channel(&entry.row).is_some_and(carries)
    }

    /// An intent that waits, and what becomes of it now that it is due: asks for consent again, and fixes the message.
    async fn prepare(&self, id: &str) -> Option<(Entry, Entry)> {
        let old = self.entry(id).filter(|entry| entry.fate == Fate::Waiting)?;
        let book = self.hub.book();
        let campaign = book.plan.definitions.campaigns.get(old.row.campaign.as_str())?;
        let Some((profile, events)) = self.person(&old.row, campaign.recommend.is_some()).await else {
            self.lock().waiting.insert((old.row.not_before, id.to_owned()));
            return None;
        };
        let consents = campaign.consent.as_ref().is_none_or(|purpose| profile.consents(purpose));
        let mut new = Entry { row: old.row.clone(), fate: Fate::ConsentWithdrawn, body: None, data: None };
        if consents {
            let recommend = |of: &Recommend| book.templates.recommend(&old.row, &events, of.items as usize);
            let recommended = campaign.recommend.as_ref().map(recommend);
            let recommended = recommended.as_deref();
            let event = match (&self.records, old.row.event) {
                (Some(records), Some(place)) => records.one(place).await,
                _ => None,
            };
            new.fate = Fate::Sent;
            new.body = book.templates.render(&old.row, event.as_ref(), &profile, recommended);
            new.data = recommended.map(|items| recommending(campaign.data.as_deref(), items));
        }
        Some((old, new))
    }

    /// The profile of an intent, and its latest events, newest first, if they are wanted; none if the engine cannot be
    /// asked now.
    async fn person(&self, row: &IntentRow, wants_events: bool) -> Option<(Box<ProfileRow>, Vec<OwnedRecord>)> {
        let id = &row.profile;
        let profile =
            self.hub.ask(Question::Profile(id.clone())).await.ok()?.parts.into_iter().find_map(|part| match part {
                Answer::Profile(profile) => Some(profile),
                _ => None,
            })?;
        let Some(records) = self.records.as_ref().filter(|_| wants_events) else {
            return Some((profile, Vec::new()));
        };
        let page = Page { before: None, limit: EVENTS_READ_MAX };
        let question = Question::History { id: id.clone(), view: View::Events, page };
        let events = self.hub.ask(question).await.ok()?.parts.into_iter().find_map(|part| match part {
            Answer::History(Rows::Events(events), _) => Some(events),
            _ => None,
        })?;
        let places: Vec<u64> = events.into_iter().map(|(_, place)| place).collect();
        Some((profile, records.get(&places).await.into_iter().flatten().collect()))
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

impl Dispatch {
    /// What is written down of an entry that nobody has to carry.
    fn new(entry: Entry, as_of: AsOf) -> Dispatch {
        let Entry { row, fate, body, data } = entry;
        Dispatch { row, status: fate, body, data, trigger: None, revocation: None, at: as_of.clock }
    }

    /// Whether it says that an intent went out, and nothing else since.
    fn stands(&self) -> bool {
        matches!(self.status, Fate::Sent | Fate::Parked)
    }

    /// The message that brings the intent, or the one that takes it back.
    fn of(&self, revokes: bool) -> Option<&Trigger> {
        if revokes { self.revocation.as_ref() } else { self.trigger.as_ref() }
    }
}

impl State {
    /// These were erased: nothing of theirs is known any more.
    fn forget(&mut self, erased: Vec<Erasure>) -> Vec<(i8, Entry)> {
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
    fn withdraw(&mut self, id: &str) -> Vec<(i8, Entry)> {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.fate != Fate::Revoked) else {
            return Vec::new();
        };
        let old = entry.clone();
        let went_out = matches!(entry.fate, Fate::Sent | Fate::Failed | Fate::Parked);
        entry.fate = if went_out { Fate::Revoked } else { Fate::Cancelled };
        vec![(-1, old), (1, entry.clone())]
    }

    /// What became of a message: the intent before and now, and what the ledger is to say, if it is news for it.
    fn settle(&mut self, id: &str, revokes: bool, now: Now, at: Millis) -> Option<((Entry, Entry), Option<Dispatch>)> {
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
    fn unpark(&mut self, id: &str, at: Millis) -> Option<((Entry, Entry), Dispatch)> {
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
    fn parked(&self) -> impl Iterator<Item = Parked> {
        self.ledger.values().filter_map(|dispatch| {
            let entry = self.entries.get(&dispatch.row.id)?;
            let Some(Trigger::Parked(_, why)) = dispatch.of(entry.fate == Fate::Revoked) else { return None };
            Some(Parked { entry: entry.clone(), why: why.clone() })
        })
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
    let book = outbox.book();
    let message = Message { r#type: kind, intent: Outbox::row(entry, &book.plan.definitions) };
    serde_json::value::to_raw_value(&message).expect("rows have string keys")
}
