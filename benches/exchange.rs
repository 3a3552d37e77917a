//! What it costs to send the engine's records to another process: three ways to write them, side by side.
//!
//! `cargo bench --bench exchange [-- SESSIONS [ROUNDS]]`; the default is 20,000 sessions, about 0.22 million events.
//! It starts itself once more, and the two exchange W1's events on the hash of their own id by timely over loopback:
//! by serde and bincode, as timely does it for a `Vec`; as the engine writes them; and by abomonation, which copies
//! memory as it is. Beside that the same exchange between two workers of this process, where nothing is written.
//! Each round takes all of them in turn. Then what writing and reading alone take, on one thread, also of events that
//! share no details.
// Abomonation has no safe way in; this is the one file in which `unsafe` is allowed, and nothing that ships sees it.
#![allow(unsafe_code)]

mod w1;

use std::cell::Cell;
use std::collections::HashSet;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use abomonation::Abomonation;
use dataflows::engine::wire::Batch;
use dataflows::event::{Consent, ConsentSource, Context, Details, Event, Kind, Link};
use dataflows::intake::Prepared;
use dataflows::number::Number;
use dataflows::protocol::Record;
use dataflows::value::Value;
use dataflows::vocabulary::{NameId, Slot};
use differential_dataflow::hashable::Hashable;
use ecow::EcoString;
use mimalloc::MiMalloc;
use timely::bytes::arc::{Bytes, BytesMut};
use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::{AllocatorBuilder, Hooks};
use timely::container::{Accountable, CapacityContainerBuilder, DrainContainer, PushInto, SizableContainer};
use timely::dataflow::InputHandle;
use timely::dataflow::channels::ContainerBytes;
use timely::dataflow::channels::pact::ExchangeCore;
use timely::dataflow::operators::core::Input;
use timely::dataflow::operators::generic::operator::Operator;
use timely::execute::execute_from;
use timely::worker::Worker;
use timely::{Container, WorkerConfig};
use w1::clicks::{Arrival, clicks};
use w1::engine::{decoded, plan};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// A worker turns when so many records were put in.
const TURN: usize = 1_024;
const WAYS: [&str; 5] =
    ["one process, typed", "bincode", "own bytes", "abomonation, read in place", "abomonation, records again"];

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let sessions: u32 = args.next().map_or(20_000, |arg| arg.parse().expect("a number of sessions"));
    let rounds: usize = args.next().map_or(9, |arg| arg.parse().expect("a number of rounds"));
    let mut events = decoded(&plan(), &clicks(sessions, 7, Arrival::Disordered));
    events.iter_mut().zip(1_000_000..).for_each(|(event, position)| event.place(position));
    let events = Arc::new(events);
    match args.next() {
        Some(port) => {
            let stream = TcpStream::connect(("127.0.0.1", port.parse().expect("a port"))).expect("the other listens");
            between(1, stream, events, rounds);
        }
        None => {
            let carried = events.iter().filter_map(|event| event.event.details.as_ref().map(Arc::as_ptr));
            let (count, different) = (carried.clone().count(), carried.collect::<HashSet<_>>().len());
            println!("{} events, {count} with details ({different} different), {rounds} rounds", events.len());
            println!("half of the events go to the other worker");
            let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
            let port = listener.local_addr().expect("it has one").port();
            let numbers = [sessions.to_string(), rounds.to_string(), port.to_string()];
            let program = std::env::current_exe().expect("this program");
            let other = Other(Command::new(program).args(numbers).spawn().expect("this program starts again"));
            let (stream, _) = listener.accept().expect("the other connects");
            between(0, stream, Arc::clone(&events), rounds);
            drop(other);
            alone::<128>(&events, rounds);
            alone::<1024>(&events, rounds);
        }
    }
}

/// The other process.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

/// One of the two processes, with one worker.
fn between(process: usize, stream: TcpStream, events: Arc<Vec<Prepared>>, rounds: usize) {
    stream.set_nodelay(true).expect("a socket of this system");
    let mut connections = vec![Some(stream)];
    connections.insert(process, None);
    let hooks = Hooks::default();
    let inside = ProcessBuilder::new_typed_vector(1, hooks.refill.clone(), hooks.spill.clone());
    let (workers, guard) =
        initialize_networking_from_sockets(inside, connections, process, 1, hooks).expect("threads for the sockets");
    let workers = workers.into_iter().map(AllocatorBuilder::Tcp).collect();
    let guards = execute_from(workers, Box::new(guard), WorkerConfig::default(), move |worker| {
        races::<128>(worker, &events, rounds);
        races::<1024>(worker, &events, rounds);
    });
    drop(guards.expect("the system gives threads"));
}

/// All ways in containers of one size, in turn.
fn races<const N: usize>(worker: &mut Worker, events: &Arc<Vec<Prepared>>, rounds: usize) {
    let mut times: [Vec<f64>; 5] = Default::default();
    let by_record = |record: &Record| own(record).hashed();
    let by_mirror = |mirror: &Mirror| mirror.2.as_str().hashed();
    let mut bincode = race(worker, events, Crate::<Bincode, N>::pack, by_record, |batch, digest| {
        batch.items.drain(..).for_each(|record| digest.add(&record));
    });
    let mut bytes = race(worker, events, packed::<N>, by_record, take::<N>);
    let mut in_place = race(worker, events, Crate::<Abomonated, N>::pack, by_mirror, |batch, digest| {
        batch.look(|mirror| digest.add_mirror(mirror));
    });
    let mut again = race(worker, events, Crate::<Abomonated, N>::pack, by_mirror, |batch, digest| {
        batch.look(|mirror| digest.add(&again(mirror)));
    });
    // The first round warms up.
    for round in 0..=rounds {
        // The other process waits for this one meanwhile.
        let typed = if worker.index() == 0 { within::<N>(events) } else { 0.0 };
        let round_times = [typed, bincode(worker), bytes(worker), in_place(worker), again(worker)];
        if round > 0 {
            times.iter_mut().zip(round_times).for_each(|(times, time)| times.push(time));
        }
    }
    if worker.index() > 0 {
        return;
    }
    println!("containers of {N}; ns an event from the first sent to the last arrived, of both workers");
    println!("{:>28} {:>8} {:>8} {:>9} {:>14}", "", "least", "median", "M ev/s", "of one process");
    let typed = times[0].clone();
    for (name, mut times) in WAYS.into_iter().zip(times) {
        let ratio = median(&mut times.iter().zip(&typed).map(|(time, typed)| typed / time).collect::<Vec<f64>>());
        let (median, each) = (median(&mut times), |time: f64| time * 1e9 / events.len() as f64);
        let rate = events.len() as f64 / median / 1e6;
        println!("{name:>28} {:>8.0} {:>8.0} {rate:>9.2} {ratio:>14.2}", each(times[0]), each(median));
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The same exchange between two workers of this process: records change hands as they are.
fn within<const N: usize>(events: &Arc<Vec<Prepared>>) -> f64 {
    let events = Arc::clone(events);
    let guards = timely::execute(timely::Config::process(2), move |worker| {
        let by_record = |record: &Record| own(record).hashed();
        let mut typed = race(worker, &events, packed::<N>, by_record, take::<N>);
        typed(worker); // warms up
        typed(worker)
    });
    let times = guards.expect("the system gives threads").join().into_iter();
    times.map(|time| time.expect("a worker that ends")).next().expect("two of them")
}

/// A dataflow that exchanges this worker's half of the events each time it is called, and says how long it took.
fn race<C, F, R>(
    worker: &mut Worker,
    events: &Arc<Vec<Prepared>>,
    pack: fn(&[Prepared]) -> C,
    route: F,
    mut read: R,
) -> impl FnMut(&mut Worker) -> f64 + use<C, F, R>
where
    C: Container + ContainerBytes + Clone + Send + SizableContainer + DrainContainer,
    C: for<'a> PushInto<C::Item<'a>>,
    F: for<'a> FnMut(&C::Item<'a>) -> u64 + 'static,
    R: FnMut(&mut C, &mut Digest) + 'static,
{
    let mut input = InputHandle::<u64, CapacityContainerBuilder<C>>::new();
    let (digest, through) = (Rc::new(Cell::new(Digest::default())), Rc::new(Cell::new(0)));
    let (digesting, passing) = (Rc::clone(&digest), Rc::clone(&through));
    worker.dataflow(|scope| {
        let stream = scope.input_from(&mut input);
        stream.sink(
            ExchangeCore::<CapacityContainerBuilder<C>, F>::new(route),
            "Arrival",
            move |(arrived, frontier)| {
                let mut digest = digesting.get();
                arrived.for_each(|_, batch| read(batch, &mut digest));
                digesting.set(digest);
                passing.set(frontier.frontier().first().copied().unwrap_or(u64::MAX));
            },
        );
    });
    let (index, peers) = (worker.index(), worker.peers());
    let mut expected = Digest::default();
    let arrive = |event: &&Prepared| event.event.own.hashed() as usize % peers == index;
    events.iter().filter(arrive).for_each(|event| expected.add(&Record::Event(event.clone())));
    let events = Arc::clone(events);
    move |worker| {
        let mine = &events[events.len() * index / peers..events.len() * (index + 1) / peers];
        let mut batches: Vec<C> = mine.chunks(128).map(pack).collect();
        digest.set(Digest::default());
        // Nobody starts before everybody is ready.
        let wait = |worker: &mut Worker, time| {
            while through.get() < time {
                worker.step_or_park(None);
            }
        };
        let time = input.time() + 1;
        input.advance_to(time);
        wait(worker, time);
        let started = Instant::now();
        for turn in batches.chunks_mut(TURN / 128) {
            turn.iter_mut().for_each(|batch| input.send_batch(batch));
            worker.step();
        }
        input.advance_to(time + 1);
        wait(worker, time + 1);
        let taken = started.elapsed().as_secs_f64();
        assert_eq!(digest.get(), expected, "all arrives as it was");
        taken
    }
}

/// What arrived, added up so that nothing can be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Digest {
    count: u64,
    sum: u64,
}

impl Digest {
    fn add(&mut self, record: &Record) {
        let Record::Event(Prepared { event, entry, .. }) = record else { panic!("W1 is all events") };
        let values = event.details.as_ref().map_or(0, |details| details.values.len());
        self.take(event.timestamp, event.position, &event.own, &event.message_id, values, *entry as u64);
    }

    fn add_mirror(&mut self, mirror: &Mirror) {
        let values = mirror.4.as_ref().map_or(0, |details| details.0.len());
        self.take(mirror.0, mirror.1, &mirror.2, &mirror.3, values, mirror.9.0);
    }

    fn take(&mut self, timestamp: i64, position: u64, own: &str, message_id: &str, values: usize, entry: u64) {
        let texts = own.bytes().chain(message_id.bytes()).fold(0u64, |sum, byte| sum.rotate_left(5) ^ u64::from(byte));
        let all = [timestamp as u64, position, values as u64, entry, texts];
        self.count += 1;
        self.sum = all.into_iter().fold(self.sum, u64::wrapping_add);
    }
}

fn own(record: &Record) -> &str {
    let Record::Event(prepared) = record else { panic!("W1 is all events") };
    &prepared.event.own
}

fn packed<const N: usize>(events: &[Prepared]) -> Batch<Record, N> {
    events.iter().cloned().map(Record::Event).collect::<Vec<Record>>().into()
}

fn take<const N: usize>(batch: &mut Batch<Record, N>, digest: &mut Digest) {
    batch.items.drain(..).for_each(|record| digest.add(&record));
}

/// A way to write what a container holds.
#[allow(clippy::ptr_arg)] // timely and abomonation write a `Vec`, not a slice
trait Way: Copy + Default + 'static {
    type Item: Clone + Send + 'static;

    fn item(event: &Prepared) -> Self::Item;
    fn length(items: &Vec<Self::Item>) -> usize;
    fn write<W: Write>(items: &Vec<Self::Item>, to: &mut W);
    /// Either items, or how many, in bytes that are looked at where they are.
    fn read(bytes: Bytes) -> (Vec<Self::Item>, usize, Vec<u8>);
}

/// A container of the size that is measured.
#[derive(Clone)]
struct Crate<W: Way, const N: usize> {
    items: Vec<W::Item>,
    count: usize,
    bytes: Vec<u8>,
}

impl<W: Way, const N: usize> Crate<W, N> {
    fn pack(events: &[Prepared]) -> Self {
        Crate { items: events.iter().map(W::item).collect(), ..Crate::default() }
    }
}

impl<W: Way, const N: usize> Default for Crate<W, N> {
    fn default() -> Self {
        Crate { items: Vec::new(), count: 0, bytes: Vec::new() }
    }
}

impl<W: Way, const N: usize> Accountable for Crate<W, N> {
    fn record_count(&self) -> i64 {
        (self.items.len() + self.count) as i64
    }
}

impl<W: Way, const N: usize> DrainContainer for Crate<W, N> {
    type Item<'a> = W::Item;
    type DrainIter<'a> = std::vec::Drain<'a, W::Item>;

    fn drain(&mut self) -> Self::DrainIter<'_> {
        self.items.drain(..)
    }
}

impl<W: Way, const N: usize> SizableContainer for Crate<W, N> {
    fn at_capacity(&self) -> bool {
        self.items.len() >= N
    }

    fn ensure_capacity(&mut self, stash: &mut Option<Self>) {
        if self.items.capacity() == 0 {
            *self = stash.take().unwrap_or_default();
            self.items.clear();
        }
        self.items.reserve_exact(N.saturating_sub(self.items.len()));
    }
}

impl<W: Way<Item = T>, T, const N: usize> PushInto<T> for Crate<W, N> {
    fn push_into(&mut self, item: T) {
        self.items.push(item);
    }
}

impl<W: Way, const N: usize> ContainerBytes for Crate<W, N> {
    fn from_bytes(bytes: Bytes) -> Self {
        let (items, count, bytes) = W::read(bytes);
        Crate { items, count, bytes }
    }

    fn length_in_bytes(&self) -> usize {
        W::length(&self.items)
    }

    fn into_bytes<V: Write>(&self, to: &mut V) {
        W::write(&self.items, to);
    }
}

/// As timely does it for a `Vec`.
#[derive(Clone, Copy, Default)]
struct Bincode;

impl Way for Bincode {
    type Item = Record;

    fn item(event: &Prepared) -> Record {
        Record::Event(event.clone())
    }

    fn length(items: &Vec<Record>) -> usize {
        items.length_in_bytes()
    }

    fn write<W: Write>(items: &Vec<Record>, to: &mut W) {
        items.into_bytes(to);
    }

    fn read(bytes: Bytes) -> (Vec<Record>, usize, Vec<u8>) {
        (Vec::from_bytes(bytes), 0, Vec::new())
    }
}

/// As abomonation does it for what it knows: not for the engine's records, whose texts and shared details are none of
/// its own. So these are made into plain ones before the clock runs, which is the best that can be said for it.
#[derive(Clone, Copy, Default)]
struct Abomonated;

/// An event in types that abomonation knows: timestamp, position, own id, message id, details, name, kind, known, link,
/// entry.
type Mirror = (
    i64,
    u64,
    String,
    String,
    Option<Box<MirroredDetails>>,
    u32,
    u8,
    bool,
    Option<Box<(u64, i64, String, String, Option<String>, Option<String>)>>,
    (u64, u64),
);

/// Values, surroundings, whether they tell of a person.
type MirroredDetails = (Vec<(u16, Result<i64, String>)>, MirroredContext, bool);

/// Page, device, system, browser, channel and campaign, time zone, consent, traits.
type MirroredContext = (
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<(Option<String>, Option<String>)>,
    Option<String>,
    Vec<(String, bool, u8)>,
    Vec<(String, String)>,
);

impl Way for Abomonated {
    type Item = Mirror;

    fn item(Prepared { event, link, is_late, entry }: &Prepared) -> Mirror {
        assert!(!is_late, "nothing of W1 is by its stamp");
        let value = |(slot, value): &(Slot, Value)| match value {
            Value::Number(number) => (slot.0, Ok(number.0)),
            Value::Text(text) => (slot.0, Err(text.to_string())),
            other => panic!("no value of W1: {other:?}"),
        };
        let text = |text: &Option<EcoString>| text.as_ref().map(ToString::to_string);
        let details = |details: &Arc<Details>| {
            let Details { values, context, tells } = &**details;
            let Context { page, device, os, browser, utm, timezone, consent, told } = context;
            let context = (
                text(page),
                text(device),
                text(os),
                text(browser),
                utm.as_ref().map(|(channel, campaign)| (text(channel), text(campaign))),
                text(timezone),
                consent.iter().map(|of| (of.purpose.to_string(), of.granted, of.source as u8)).collect(),
                told.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            );
            Box::new((values.iter().map(value).collect(), context, *tells))
        };
        let linked = |link: &Link| {
            let (message_id, user) = (link.message_id.to_string(), link.user.to_string());
            Box::new((link.position, link.timestamp, message_id, user, text(&link.anonymous), text(&link.previous)))
        };
        (
            event.timestamp,
            event.position,
            event.own.to_string(),
            event.message_id.to_string(),
            event.details.as_ref().map(details),
            event.name.0,
            event.kind as u8,
            event.known,
            link.as_deref().map(linked),
            (*entry as u64, (entry >> 64) as u64),
        )
    }

    fn length(items: &Vec<Mirror>) -> usize {
        (8 + abomonation::measure(items)).next_multiple_of(8)
    }

    fn write<W: Write>(items: &Vec<Mirror>, to: &mut W) {
        to.write_all(&items.len().to_le_bytes()).expect("room for as much as was told");
        // SAFETY: none by the letter: padding is read as if it were bytes. It works where it is measured.
        unsafe { abomonation::encode(items, to) }.expect("room for as much as was told");
    }

    fn read(bytes: Bytes) -> (Vec<Mirror>, usize, Vec<u8>) {
        let (count, _) = bytes.split_first_chunk().expect("its count comes first");
        // Timely's bytes are shared and not to be written to, and abomonation writes its pointers into them.
        (Vec::new(), usize::from_le_bytes(*count), bytes[8..].to_vec())
    }
}

impl<const N: usize> Crate<Abomonated, N> {
    /// Looks at what is here, or has come.
    fn look(&mut self, look: impl FnMut(&Mirror)) {
        let here = self.items.drain(..).collect::<Vec<_>>();
        if self.bytes.is_empty() {
            return here.iter().for_each(look);
        }
        assert!(self.bytes.as_ptr().addr().is_multiple_of(8), "allocators of this system give whole words");
        self.count = 0;
        // SAFETY: the bytes are what `encode` wrote of the same type in the same program, and they are aligned.
        let decoded = unsafe { decode(&mut self.bytes) };
        decoded.iter().for_each(look);
        self.bytes = Vec::new();
    }
}

/// What was written, in place.
///
/// # Safety
/// As for [`abomonation::decode`].
unsafe fn decode<T: Abomonation>(bytes: &mut [u8]) -> &Vec<T> {
    // SAFETY: the caller's.
    let (decoded, _) = unsafe { abomonation::decode(bytes) }.expect("all that was written arrives");
    decoded
}

/// The engine's record, made of its mirror again.
fn again(mirror: &Mirror) -> Record {
    let (timestamp, position, own, message_id, details, name, kind, known, link, entry) = mirror;
    let value = |(slot, value): &(u16, Result<i64, String>)| match value {
        Ok(number) => (Slot(*slot), Value::Number(Number(*number))),
        Err(text) => (Slot(*slot), Value::text(text)),
    };
    let text = |text: &Option<String>| text.as_deref().map(Into::into);
    const SOURCES: [ConsentSource; 3] = [ConsentSource::Segment, ConsentSource::RudderStack, ConsentSource::Google];
    let consented = |(purpose, granted, source): &(String, bool, u8)| Consent {
        purpose: purpose.as_str().into(),
        granted: *granted,
        source: SOURCES[usize::from(*source)],
    };
    let details = details.as_ref().map(|details| {
        let (values, (page, device, os, browser, utm, timezone, consent, told), tells) = &**details;
        let context = Context {
            page: text(page),
            device: text(device),
            os: text(os),
            browser: text(browser),
            utm: utm.as_ref().map(|(channel, campaign)| (text(channel), text(campaign))),
            timezone: text(timezone),
            consent: consent.iter().map(consented).collect(),
            told: told.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
        };
        Arc::new(Details { values: values.iter().map(value).collect(), context, tells: *tells })
    });
    let link = link.as_ref().map(|link| {
        let (position, timestamp, message_id, user, anonymous, previous) = &**link;
        Box::new(Link {
            position: *position,
            stamp: *timestamp,
            timestamp: *timestamp,
            message_id: message_id.as_str().into(),
            user: user.as_str().into(),
            anonymous: text(anonymous),
            previous: text(previous),
        })
    });
    Record::Event(Prepared {
        event: Event {
            timestamp: *timestamp,
            position: *position,
            own: own.as_str().into(),
            message_id: message_id.as_str().into(),
            details,
            name: NameId(*name),
            kind: Kind::ALL[usize::from(*kind)],
            known: *known,
        },
        link,
        is_late: false,
        entry: u128::from(entry.1) << 64 | u128::from(entry.0),
    })
}

/// Writing and reading alone, on one thread.
fn alone<const N: usize>(events: &[Prepared], rounds: usize) {
    let names = [WAYS[1], WAYS[2], "own bytes, nothing shared", WAYS[3], WAYS[4]];
    let mut results: [(usize, [Vec<f64>; 2]); 5] = Default::default();
    for _ in 0..rounds {
        let measured = [
            weigh(events, Crate::<Bincode, N>::pack, N, |batch, digest| {
                batch.items.drain(..).for_each(|record| digest.add(&record));
            }),
            weigh(events, packed::<N>, N, take::<N>),
            weigh(events, apart::<N>, N, take::<N>),
            weigh(events, Crate::<Abomonated, N>::pack, N, |batch, digest| {
                batch.look(|mirror| digest.add_mirror(mirror));
            }),
            weigh(events, Crate::<Abomonated, N>::pack, N, |batch, digest| {
                batch.look(|mirror| digest.add(&again(mirror)));
            }),
        ];
        for ((size, times), (found, took)) in results.iter_mut().zip(measured) {
            *size = found;
            times.iter_mut().zip(took).for_each(|(times, time)| times.push(time));
        }
    }
    println!("containers of {N}, one thread; bytes an event, and ns an event: least and median");
    println!("{:>28} {:>8} {:>15} {:>15} {:>8}", "", "bytes", "write", "read", "both");
    for (name, (size, times)) in names.into_iter().zip(results) {
        let each = |time: f64| time * 1e9 / events.len() as f64;
        let [(write, writes), (read, reads)] = times.map(|mut times| (each(median(&mut times)), each(times[0])));
        let (size, both) = (size as f64 / events.len() as f64, write + read);
        println!("{name:>28} {size:>8.1} {writes:>7.0} {write:>7.0} {reads:>7.0} {read:>7.0} {both:>8.0}");
    }
}

/// Events that share nothing, as if each told something of its own.
fn apart<const N: usize>(events: &[Prepared]) -> Batch<Record, N> {
    let mut batch = packed::<N>(events);
    for record in &mut batch.items {
        let Record::Event(Prepared { event, .. }) = record else { panic!("W1 is all events") };
        event.details = event.details.as_deref().cloned().map(Arc::new);
    }
    batch
}

/// How many bytes, and how long writing and reading take; what is read is added up and dropped.
fn weigh<C: ContainerBytes>(
    events: &[Prepared],
    pack: fn(&[Prepared]) -> C,
    size: usize,
    mut read: impl FnMut(&mut C, &mut Digest),
) -> (usize, [f64; 2]) {
    let batches: Vec<C> = events.chunks(size).map(pack).collect();
    let (mut length, mut taken, mut digest) = (0, [0.0; 2], Digest::default());
    for batch in &batches {
        let started = Instant::now();
        let needed = batch.length_in_bytes();
        let mut bytes = vec![0; needed];
        batch.into_bytes(&mut &mut bytes[..]);
        taken[0] += started.elapsed().as_secs_f64();
        length += needed;
        let bytes = BytesMut::from(bytes).freeze();
        let started = Instant::now();
        read(&mut C::from_bytes(bytes), &mut digest);
        taken[1] += started.elapsed().as_secs_f64();
    }
    assert_eq!(digest.count, events.len() as u64, "all is read again");
    (length, taken)
}
