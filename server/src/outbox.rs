//! The outbox: intents of the law on their way into the world, and the ledger of what became of them.
//!
//! What was sent cannot be unsent, so the ledger's entry is durable before anything goes out, and an id that it knows
//! is never sent again. Dispatch is not law: only what came about after the definitions took effect and is not too
//! old is sent; replays and backfills send nothing.

mod asked;
mod ledger;
mod sending;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use dataflows::profile::answers::IntentRow;
use dataflows::profile::campaigns::Status;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::book::Book;
use crate::cluster::LEADER;
use crate::desk::Records;
use crate::erasing::is_of;
use crate::hub::{AsOf, Closed, Hub, NotTaken, Told, Work};
use crate::record::{Dispatch, Trigger};
use crate::triggers::{self, Now, Orders, Outlet, Report};
use crate::writer::Found;

pub use asked::{Counts, message};
pub use ledger::{Entry, Fate, Parked};
use ledger::{State, consolidate};

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
/// Reports of deliveries that are written down together, at most.
const NOTICES_MAX: usize = 256;
/// How soon a writer that is busy is asked again.
const BUSY: Duration = Duration::from_millis(10);

/// The outbox, shared by its task and those who ask.
#[derive(Clone, Debug)]
pub struct Outbox {
    state: Arc<Mutex<State>>,
    changes: broadcast::Sender<Arc<Change>>,
    /// Held while what changed is not yet told: whoever begins to follow would else see it, and then hear of it again.
    turn: Arc<tokio::sync::Mutex<()>>,
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
            turn: Arc::default(),
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
            let (_turn, (as_of, changed)) = tokio::select! {
                told = told.recv() => {
                    let turn = self.turn.lock().await;
                    (turn, match told.inspect(|told| self.hear(told, &mut book)) {
                        Some(Told::Closed(closed)) if self.leads => (closed.as_of, self.follow(closed).await),
                        Some(Told::Closed(closed)) => {
                            let mut changed = self.lock().forget(closed.erased);
                            changed.extend(self.note(closed.as_of, closed.intents).0);
                            (closed.as_of, changed)
                        }
                        Some(Told::Dispatched(dispatched)) => self.mirror(dispatched),
                        None => return,
                    })
                }
                Some(first) = notices.recv() => {
                    let more = std::iter::from_fn(|| notices.try_recv().ok()).take(NOTICES_MAX - 1);
                    let noticed = std::iter::once(first).chain(more).collect();
                    (self.turn.lock().await, self.heed(noticed).await)
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
        changed.extend(self.send(due, closed.people, closed.as_of).await);
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
}
