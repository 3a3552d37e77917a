//! Triggers out: what the outbox has written down is carried to where its channel says, again and again if need be.
//!
//! Each channel has a task, a queue of ids and a bound on attempts under way, so that a slow endpoint delays nobody
//! else. What becomes of an intent is the outbox's to say; here is only when the next attempt is made, and by what way.

mod webhook;

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dataflows::definitions::Deliver;
use dataflows::time::Millis;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::outbox::Outbox;
use crate::stream::{NotKept, Stream};

/// Attempts under way at one time in a channel.
const UNDER_WAY_MAX: usize = 16;
/// Attempts at one message before it is parked.
const ATTEMPTS_MAX: u32 = 10;
/// The longest pause before the second attempt; each further one may be four times as long.
const BACKOFF: Duration = Duration::from_secs(2);
const BACKOFF_MAX: Duration = Duration::from_hours(6);
/// An endpoint that asks for patience gets at most so much.
const PATIENCE_MAX: Duration = Duration::from_hours(1);
/// After so many failures on end an endpoint is left alone for a while between attempts.
const FAILURES_MAX: u32 = 10;
const BREATH: Duration = Duration::from_secs(3);

/// Classes of how long deliveries took: the most of each, ms. There is one more, for all that took longer.
pub const TOOK_AT_MOST: [Millis; 14] =
    [10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000];

/// How long deliveries took, from when an intent might go out until it was delivered.
#[derive(Clone, Debug, Default)]
pub struct Took {
    /// Deliveries in each class.
    pub classes: [u64; TOOK_AT_MOST.len() + 1],
    /// All together, ms.
    pub sum: Millis,
    /// The longest, ms.
    pub max: Millis,
}

impl Took {
    fn add(&mut self, took: Millis) {
        self.classes[TOOK_AT_MOST.partition_point(|most| *most < took)] += 1;
        self.sum += took;
        self.max = self.max.max(took);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// What so many of a hundred took at most, ms: as near as the classes tell.
    pub fn percentile(&self, percent: u64) -> Millis {
        let wanted = (self.count() * percent).div_ceil(100);
        let mut counted = 0;
        let class = self.classes.iter().position(|count| {
            counted += count;
            counted >= wanted
        });
        class.and_then(|class| TOOK_AT_MOST.get(class)).map_or(self.max, |most| self.max.min(*most))
    }
}

/// What goes on in a channel, since the process started.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Attempts under way.
    pub in_flight: usize,
    /// Attempts that failed.
    pub failures: u64,
    /// What went wrong at the last of them.
    pub last_failure: Option<String>,
    /// Why nothing is attempted, if nothing is.
    pub disabled: Option<String>,
    /// How long deliveries took.
    pub took: Took,
}

/// A channel, for those who give it messages or ask about it.
#[derive(Debug)]
pub struct Outlet {
    orders: Option<mpsc::UnboundedSender<String>>,
    traffic: Mutex<Traffic>,
}

/// Ids that a channel's task has not heard of yet.
pub(crate) type Orders = mpsc::UnboundedReceiver<String>;

impl Outlet {
    /// The outlet of a channel, and its orders if somebody has to carry them; subscribers come by themselves.
    pub(crate) fn new(deliver: &Deliver) -> (Outlet, Option<Orders>) {
        let (orders, waiting) = match deliver {
            Deliver::Sse => (None, None),
            Deliver::Webhook { .. } | Deliver::Nats => {
                let (orders, waiting) = mpsc::unbounded_channel();
                (Some(orders), Some(waiting))
            }
        };
        (Outlet { orders, traffic: Mutex::default() }, waiting)
    }

    /// Whether messages have to be carried.
    pub fn carries(&self) -> bool {
        self.orders.is_some()
    }

    /// Has what is pending of an intent carried, as soon as may be.
    pub(crate) fn order(&self, id: &str) {
        if let Some(orders) = &self.orders {
            // The task is gone only when the process ends; then the ledger knows what is pending.
            let _ = orders.send(id.to_owned());
        }
    }

    /// A message was delivered, so long after it might have gone out.
    pub(crate) fn delivered(&self, took: Millis) {
        self.lock().took.add(took.max(0));
    }

    /// Attempts are made again.
    pub(crate) fn enable(&self) {
        self.lock().disabled = None;
    }

    /// What goes on in it.
    pub fn traffic(&self) -> Traffic {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().expect("nobody panics while holding it")
    }
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    /// The intent.
    pub(crate) id: String,
    /// Its campaign.
    pub(crate) campaign: String,
    /// Whether it takes the intent back.
    pub(crate) revokes: bool,
    /// The message, the same at each attempt.
    pub(crate) body: String,
    /// Whether it is too old for another attempt.
    pub(crate) stale: bool,
}

impl Parcel {
    /// By which a receiver knows it again.
    fn key(&self) -> String {
        if self.revokes { format!("{}.revoked", self.id) } else { self.id.clone() }
    }
}

/// What an attempt came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Delivered,
    /// It may go better another time; perhaps the endpoint says when.
    Failed(String, Option<Duration>),
    /// The same message would be refused again.
    Refused(String),
    /// The endpoint wants nothing any more.
    Gone(String),
    /// The person does not consent any more; no attempt was made.
    Unwanted,
}

/// What the outbox is told of a message.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) id: String,
    pub(crate) revokes: bool,
    pub(crate) now: Now,
}

/// Where a message is now.
#[derive(Clone, Debug)]
pub(crate) enum Now {
    Delivered,
    /// An attempt failed, and another follows.
    Failed,
    /// No other attempt follows, and why.
    Parked(String),
    /// The person does not consent any more.
    Unwanted,
}

/// By what way a channel's messages leave.
enum Carrier {
    Webhook(Box<webhook::Webhook>),
    Nats(Stream),
    /// None, and why.
    Nothing(String),
}

impl Carrier {
    async fn attempt(&self, parcel: &Parcel) -> Outcome {
        match self {
            Carrier::Webhook(webhook) => webhook.post(parcel).await,
            Carrier::Nats(stream) => {
                let body = parcel.body.clone().into();
                match stream.publish_trigger(&parcel.campaign, &parcel.key(), body).await {
                    Ok(_) => Outcome::Delivered,
                    Err(error @ (NotKept::Busy(_) | NotKept::Unknown(_))) => Outcome::Failed(error.to_string(), None),
                    Err(error) => Outcome::Refused(error.to_string()),
                }
            }
            Carrier::Nothing(why) => Outcome::Gone(why.clone()),
        }
    }
}

/// Starts a task for each channel whose messages have to be carried.
pub(crate) fn start(outbox: &Outbox, orders: BTreeMap<String, Orders>) {
    // Nobody reads the system's certificates where no webhook is.
    let client = LazyCell::new(webhook::client);
    let book = outbox.book();
    for (name, orders) in orders {
        let carrier = match &book.plan.definitions.channels[&name].deliver {
            Deliver::Webhook { url, secret_env, timeout } => {
                match webhook::Webhook::new(LazyCell::force(&client).clone(), url, secret_env.as_deref(), *timeout) {
                    Ok(webhook) => Carrier::Webhook(webhook.into()),
                    Err(why) => Carrier::Nothing(why),
                }
            }
            Deliver::Nats => match outbox.stream() {
                Some(stream) => Carrier::Nats(stream),
                None => Carrier::Nothing("it delivers by NATS: start with --nats".into()),
            },
            Deliver::Sse => continue,
        };
        if let Carrier::Nothing(why) = &carrier {
            tracing::warn!(channel = name, why, "this channel delivers nothing; its intents are parked");
            outbox.outlet(&name).iter().for_each(|outlet| outlet.lock().disabled = Some(why.clone()));
        }
        let courier = Courier {
            name,
            carrier: carrier.into(),
            outbox: outbox.clone(),
            queue: Queue::default(),
            under_way: JoinSet::new(),
            carried: HashSet::new(),
            ordered: HashSet::new(),
            failures: 0,
            not_before: Instant::now(),
        };
        tokio::spawn(courier.run(orders));
    }
}

/// A channel's task.
struct Courier {
    name: String,
    carrier: Arc<Carrier>,
    outbox: Outbox,
    queue: Queue,
    under_way: JoinSet<(Parcel, u32, Outcome)>,
    /// Ids with an attempt under way: of each intent one at a time, so that it is never told after it was taken back.
    carried: HashSet<String>,
    /// Ids among them that were ordered meanwhile.
    ordered: HashSet<String>,
    /// Failures since the last success.
    failures: u32,
    /// Nothing is attempted before.
    not_before: Instant,
}

impl Courier {
    async fn run(mut self, mut orders: Orders) {
        loop {
            self.set_out();
            self.note(|traffic| traffic.in_flight = self.under_way.len());
            let next = self.queue.first().filter(|_| self.under_way.len() < UNDER_WAY_MAX);
            let next = next.map(|due| due.max(self.not_before));
            tokio::select! {
                order = orders.recv() => match order {
                    Some(id) if self.carried.contains(&id) => drop(self.ordered.insert(id)),
                    Some(id) => self.queue.insert(id, Instant::now(), 0),
                    None => return,
                },
                Some(back) = self.under_way.join_next() => {
                    let (parcel, tries, outcome) = back.expect("an attempt does not panic");
                    self.come_back(parcel, tries, outcome);
                }
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Notes something of the channel, unless there is none of this name any more.
    fn note(&self, what: impl FnOnce(&mut Traffic)) {
        if let Some(outlet) = self.outbox.outlet(&self.name) {
            what(&mut outlet.lock());
        }
    }

    /// Starts all attempts whose time has come.
    fn set_out(&mut self) {
        let disabled = self.outbox.outlet(&self.name).and_then(|outlet| outlet.traffic().disabled);
        while let Some(due) = self.queue.first() {
            let now = Instant::now();
            if disabled.is_none() && (due.max(self.not_before) > now || self.under_way.len() == UNDER_WAY_MAX) {
                return;
            }
            let Some((id, tries)) = self.queue.pop() else { return };
            // What was taken back meanwhile, and what is delivered, needs nobody to carry it.
            let Some(parcel) = self.outbox.parcel(&id) else { continue };
            if let Some(why) = &disabled {
                self.report(&parcel, Now::Parked(why.clone()));
            } else if parcel.stale {
                self.report(&parcel, Now::Parked("it is older than its campaign's `expires`".into()));
            } else {
                self.carried.insert(id);
                let (carrier, outbox) = (Arc::clone(&self.carrier), self.outbox.clone());
                self.under_way.spawn(async move {
                    let wanted = parcel.revokes || outbox.consents(&parcel.id).await;
                    let outcome = if wanted { carrier.attempt(&parcel).await } else { Outcome::Unwanted };
                    (parcel, tries, outcome)
                });
            }
        }
    }

    /// Decides on what follows from an attempt.
    fn come_back(&mut self, parcel: Parcel, tries: u32, outcome: Outcome) {
        let (now, tries) = (Instant::now(), tries + 1);
        self.carried.remove(&parcel.id);
        self.failures = if matches!(outcome, Outcome::Failed(..)) { self.failures + 1 } else { 0 };
        if let Outcome::Failed(why, _) | Outcome::Refused(why) | Outcome::Gone(why) = &outcome {
            self.note(|traffic| {
                (traffic.failures, traffic.last_failure) = (traffic.failures + 1, Some(why.clone()));
            });
        }
        match outcome {
            Outcome::Delivered => self.report(&parcel, Now::Delivered),
            Outcome::Unwanted => self.report(&parcel, Now::Unwanted),
            Outcome::Failed(why, asks) => {
                let breath = if self.failures >= FAILURES_MAX { BREATH } else { Duration::ZERO };
                self.not_before = self.not_before.max(now + asks.map_or(breath, |asks| asks.min(PATIENCE_MAX)));
                if tries == ATTEMPTS_MAX {
                    self.report(&parcel, Now::Parked(format!("{why}, at the last of {ATTEMPTS_MAX} attempts")));
                } else {
                    let share = RandomState::new().hash_one(&parcel.id) as f64 / u64::MAX as f64;
                    self.queue.insert(parcel.id.clone(), now + backoff(tries, share), tries);
                    self.report(&parcel, Now::Failed);
                }
            }
            Outcome::Refused(why) => self.report(&parcel, Now::Parked(why)),
            Outcome::Gone(why) => {
                tracing::warn!(channel = self.name, why, "the channel is disabled until its messages are sent again");
                self.note(|traffic| traffic.disabled = Some(why.clone()));
                self.report(&parcel, Now::Parked(why));
            }
        }
        if self.ordered.remove(&parcel.id) {
            self.queue.insert(parcel.id, now, 0);
        }
    }

    fn report(&self, parcel: &Parcel, now: Now) {
        self.outbox.report(Report { id: parcel.id.clone(), revokes: parcel.revokes, now });
    }
}

/// How long after so many attempts the next one is made: `share` between a half (0) and all (1) of the longest pause.
fn backoff(tries: u32, share: f64) -> Duration {
    let longest = BACKOFF.saturating_mul(4u32.saturating_pow(tries - 1)).min(BACKOFF_MAX);
    longest.mul_f64(0.5 + share / 2.0)
}

/// Ids by when they are due, each once, with the number of attempts made.
#[derive(Default)]
struct Queue {
    by_time: BTreeSet<(Instant, String)>,
    of: HashMap<String, (Instant, u32)>,
}

impl Queue {
    fn insert(&mut self, id: String, due: Instant, tries: u32) {
        if let Some((before, _)) = self.of.insert(id.clone(), (due, tries)) {
            self.by_time.remove(&(before, id.clone()));
        }
        self.by_time.insert((due, id));
    }

    fn first(&self) -> Option<Instant> {
        self.by_time.first().map(|(due, _)| *due)
    }

    fn pop(&mut self) -> Option<(String, u32)> {
        let (_, id) = self.by_time.pop_first()?;
        let (_, tries) = self.of.remove(&id)?;
        Some((id, tries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_the_first_is_short() {
        assert!(backoff(1, 0.0) >= Duration::from_secs(1) && backoff(1, 1.0) < Duration::from_secs(5));
        let longest: Vec<u64> = (1..ATTEMPTS_MAX).map(|tries| backoff(tries, 1.0).as_secs()).collect();
        assert_eq!(longest, [2, 8, 32, 128, 512, 2_048, 8_192, 21_600, 21_600]);
        assert_eq!(backoff(3, 0.0), Duration::from_secs(16));
    }

    #[test]
    fn an_id_waits_once_and_is_due_when_it_was_last_said() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.insert("late".into(), now + Duration::from_secs(9), 3);
        queue.insert("soon".into(), now + Duration::from_secs(1), 1);
        queue.insert("late".into(), now, 0);
        assert_eq!(queue.first(), Some(now));
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(("late".into(), 0)), Some(("soon".into(), 1)), None]);
    }

    #[test]
    fn percentiles_are_as_near_as_the_classes_tell() {
        let mut took = Took::default();
        (0..98).for_each(|_| took.add(7));
        took.add(400);
        took.add(4_000_000);
        assert_eq!((took.count(), took.percentile(50), took.percentile(99)), (100, 10, 500));
        assert_eq!((took.percentile(100), took.sum), (4_000_000, 98 * 7 + 4_000_400));
        let mut quick = Took::default();
        quick.add(3);
        assert_eq!(quick.percentile(99), 3, "none took longer than the longest");
    }
}
