//! The dataflow, built once and alike by every worker.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::operators::arrange::{Arranged, TraceAgent};
use differential_dataflow::trace::cursor::cursor_list;
use differential_dataflow::trace::implementations::KeySpine;
use differential_dataflow::trace::{Cursor, TraceReader};
use differential_dataflow::{AsCollection, VecCollection};
use ecow::EcoString;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, ExchangeCore, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::{
    Capability, Concatenate, ConnectLoop, Exchange as _, Feedback, Input, InputCapability,
};
use timely::dataflow::{InputHandle, Stream, StreamVec};
use timely::progress::frontier::{AntichainRef, MutableAntichain};
use timely::progress::{Antichain, Timestamp};
use timely::worker::Worker;

use super::acceptance::{Accepting, Admitted, Turn, in_order};
use super::profiles::{Profiles, Settled};
use super::wire::Batch;
use super::{Acceptance, Time, route};
use crate::admission::Verdict;
use crate::event::Event;
use crate::identity::{Change, Component, Erasure, Id, Identity, Move};
use crate::plan::Plan;
use crate::profile::answers::{IntentRow, ProfileRow};
use crate::protocol::{Answer, Question, Record, Step, Terms, Watched};
use crate::time::Millis;
use crate::total::{Counted, Total};

/// The arrangement of everything that is counted.
type Totals = TraceAgent<KeySpine<Counted, Time, i128>>;

/// An exchange of what there is most of.
type Batches<T, F> = ExchangeCore<CapacityContainerBuilder<Batch<T>>, F>;

/// A letter between processes: from which, to which, what it says.
type Letter = (usize, usize, Vec<u8>);

/// What a worker puts in.
pub(super) struct Inputs {
    letters: InputHandle<Time, CapacityContainerBuilder<Vec<Letter>>>,
    records: InputHandle<Time, CapacityContainerBuilder<Batch<Record>>>,
    turns: InputHandle<Time, CapacityContainerBuilder<Vec<Turn>>>,
    /// Nothing comes in here: it passes a step when that is durable.
    durable: InputHandle<Time, CapacityContainerBuilder<Vec<Told>>>,
    /// Whether this worker is the one of its process that is told when.
    hears: bool,
}

/// What a worker takes out.
pub(super) struct Outputs {
    letters: Rc<RefCell<Vec<Letter>>>,
    said: Rc<RefCell<BTreeMap<Time, Vec<Saying>>>>,
    /// All before this is said.
    through: Rc<Cell<Time>>,
}

/// Something told to a worker, and to which.
type Told = (usize, Saying);

/// What operators say to the outside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Saying {
    /// What a step includes.
    Now(Now),
    /// How a record was decided, if it was not simply taken.
    Verdict(u64, Verdict),
    /// An intent came or went.
    Intent(IntentRow, i8),
    /// Whom intents came for that may go out at once.
    Person(#[serde(with = "as_json")] Box<ProfileRow>),
    /// Somebody is erased.
    Erased(Erasure),
    /// By the erasure of a place so many events are gone from a worker.
    Gone(u64, u64),
    /// A row that is watched came or went.
    Row(Watched, String, i8),
    /// Credit that is watched has changed.
    Credit(Total, i128),
    /// Other definitions hold from now on.
    Switched(u64),
    /// Profiles of a worker that are prepared for definitions to come, and all.
    Prepared(u64, u64),
    /// A part of an answer.
    Answer(u64, #[serde(with = "as_json")] Answer),
}

/// Rows hold JSON as it is, which goes through JSON alone.
mod as_json {
    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

    pub(super) fn serialize<T: Serialize, S: Serializer>(rows: &T, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&serde_json::to_string(rows).map_err(ser::Error::custom)?)
    }

    pub(super) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        serde_json::from_str(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

/// What every worker hears of a step, from every other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Signal {
    /// What the step includes, as far as the sender knows.
    Now(Now),
    /// Something is asked.
    Ask(Ask),
}

/// What a step includes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Now {
    /// Its last log position.
    pub(super) position: u64,
    /// Its clock, ms.
    pub(super) clock: Millis,
    /// Events accepted in it.
    pub(super) accepted: u64,
    /// The number of the definitions to come for which the sender has prepared all; 0: of none. Where senders differ,
    /// 0 for all.
    pub(super) ready: u64,
}

/// A question under way: which worker asks it, under which number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    pub(super) to: usize,
    pub(super) number: u64,
    pub(super) question: Question,
}

/// What the identity of ids is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Linked {
    /// A change, with its place in the log, and the clock by which it is made.
    Change(u64, Millis, Change),
    /// The clock goes on.
    Clock(Millis),
}

/// What links change, told to the worker that it concerns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Assignment {
    /// To the worker of an id: where its events belong from now on.
    Home(Id, Id),
    /// To the worker of a person: an id's history leaves.
    Leave(Move),
    /// To the worker of a person: these ids are one.
    Share(Component),
    /// To a worker: what it keeps of somebody goes, and what it keeps of others that names them. The keys of those who
    /// have the ids at the end of the step are told, too.
    Strike(usize, Erasure, Vec<Id>),
}

/// What goes on from the worker of an id to that of its person, by its key.
#[derive(Clone, Debug)]
pub(super) enum Forward {
    /// An event.
    Event(Event),
    /// An event is taken back: own id, message id.
    Retract(Id, EcoString),
    /// An event that was accepted before, as definitions to come read it.
    Reread(Event),
    /// A question about the person.
    Ask(Ask),
}

impl Now {
    /// What two senders know.
    fn and(self, other: Now) -> Now {
        Now {
            position: self.position.max(other.position),
            clock: self.clock.max(other.clock),
            accepted: self.accepted + other.accepted,
            ready: if self.ready == other.ready { self.ready } else { 0 },
        }
    }
}

impl Inputs {
    /// Puts a step in, and promises that nothing more of it will come from this worker.
    pub(super) fn give(&mut self, time: Time, step: Step) {
        let Step { number, position, clock, terms, is_durable, sends, records, plan, questions } = step;
        self.records.advance_to(time);
        self.turns.advance_to(time);
        for chunk in records {
            self.records.send_batch(&mut chunk.into());
        }
        self.turns.send(Turn { position, clock, terms, sends, plan, questions });
        self.records.advance_to(time + 2);
        self.turns.advance_to(time + 2);
        if is_durable || !self.hears {
            self.durable(number);
        }
    }

    /// All that this process has of steps up to a number is durable.
    pub(super) fn durable(&mut self, number: u64) {
        let next = (number + 1) << 1;
        if *self.durable.time() < next {
            self.durable.advance_to(next);
        }
    }

    /// Sends a letter from one process to another.
    pub(super) fn send(&mut self, from: usize, to: usize, letter: Vec<u8>) {
        self.letters.send((from, to, letter));
        // Only a time that ends takes what was sent along; these times mean nothing else.
        let sent = self.letters.time() + 1;
        self.letters.advance_to(sent);
    }
}

impl Outputs {
    /// Whether everything of a step has come out.
    pub(super) fn is_closed(&self, time: Time) -> bool {
        self.through.get() > time + 1
    }

    /// Letters that came, and from where.
    pub(super) fn letters(&mut self) -> Vec<(usize, Vec<u8>)> {
        self.letters.take().into_iter().map(|(from, _, letter)| (from, letter)).collect()
    }

    /// What was said at a step.
    pub(super) fn take(&mut self, time: Time) -> Vec<Saying> {
        self.said.borrow_mut().remove(&time).unwrap_or_default()
    }
}

/// Builds the dataflow. Workers of one process follow each other, so many in each; the first of them speaks for it.
pub(super) fn assemble(
    worker: &mut Worker,
    plan: Arc<Plan>,
    (acceptance, secret): (Acceptance, [u8; 16]),
    workers: usize,
) -> (Inputs, Outputs) {
    let mut inputs = Inputs {
        letters: InputHandle::new(),
        records: InputHandle::new(),
        turns: InputHandle::new(),
        durable: InputHandle::new(),
        hears: worker.index().is_multiple_of(workers),
    };
    let outputs = Outputs { letters: Rc::default(), said: Rc::default(), through: Rc::default() };
    let arrived = Rc::clone(&outputs.letters);
    // Letters wait for nothing: they are handed over as they come.
    worker.dataflow_named("Letters", |scope| {
        let to_first = Exchange::new(move |(_, to, _): &Letter| (to * workers) as u64);
        let letters = scope.input_from(&mut inputs.letters);
        letters.sink(to_first, "Letters", move |(input, _)| {
            input.for_each(|_, data| arrived.borrow_mut().append(data));
        });
    });
    worker.dataflow_named("Thalweg", |scope| {
        let records = scope.input_from(&mut inputs.records);
        let turns = scope.input_from(&mut inputs.turns);
        let durable = scope.input_from(&mut inputs.durable);
        let ready = Rc::new(Cell::new(0));
        let accepted = accept(records, turns.clone(), Accepting::new(acceptance, secret), workers, Rc::clone(&ready));
        let (assigned, refused) = identity(accepted.links, accepted.signals.clone(), turns.clone(), workers);
        let (loops, forwarded) = scope.feedback::<Batch<(Id, Forward)>>(1);
        // Where one worker decides on all records, they have yet to be brought home.
        let admitted = match acceptance {
            Acceptance::InOrder => accepted.admitted.exchange(|admitted| match admitted {
                Admitted::Event(event) | Admitted::Reread(event) => route(&event.own),
                Admitted::Retract(own, _) => route(own),
            }),
            Acceptance::Stamped | Acceptance::AnyTime => accepted.admitted,
        };
        let signals = accepted.signals;
        let (forward, changes, told) =
            profiles(admitted, signals.clone(), assigned, forwarded, turns, Profiles::new(plan, ready), workers);
        forward.connect_loop(loops);
        let counted = totals(changes.arrange_by_self_named("Totals"), signals);
        let told = scope.concatenate([accepted.told, refused, told, counted, durable]);
        collect(told, Rc::clone(&outputs.said), Rc::clone(&outputs.through));
    });
    (inputs, outputs)
}

/// What comes out of acceptance.
struct Accepted<'s> {
    admitted: StreamVec<'s, Time, Admitted>,
    links: StreamVec<'s, Time, Linked>,
    signals: StreamVec<'s, Time, (u64, Signal)>,
    told: StreamVec<'s, Time, Told>,
}

/// Records, decided on in their order by the worker of their own id, or all by one.
fn accept<'s>(
    records: Stream<'s, Time, Batch<Record>>,
    turns: StreamVec<'s, Time, Turn>,
    mut accepting: Accepting,
    workers: usize,
    ready: Rc<Cell<u64>>,
) -> Accepted<'s> {
    /// A step between its arrival and its end.
    struct Under {
        capabilities: [Capability<Time>; 4],
        turn: Turn,
    }
    let scope = records.scope();
    let (peers, index) = (scope.peers(), scope.index());
    let is_one = accepting.acceptance == Acceptance::InOrder;
    let by_id = Batches::new(move |record: &Record| match record {
        _ if is_one => 0,
        Record::Event(prepared) => route(&prepared.event.own),
        Record::Reread(event) => route(&event.own),
        Record::Retract(_, _, own, ..) => route(own),
        Record::Bar(bar) => bar.worker,
        Record::Destroyed(destroyed) => destroyed.route,
        Record::Unlink(..)
        | Record::Clock(..)
        | Record::Unreadable(_)
        | Record::Erase(_)
        | Record::Decided(..)
        | Record::Settled(_) => 0,
    });
    let mut builder = OperatorBuilder::new("Acceptance".to_owned(), scope);
    let mut records = builder.new_input(records, by_id);
    let mut turns = builder.new_input(turns, Pipeline);
    let (admitted, admitted_stream) = builder.new_output::<Vec<Admitted>>();
    let (links, links_stream) = builder.new_output::<Vec<Linked>>();
    let (signals, signals_stream) = builder.new_output::<Vec<(u64, Signal)>>();
    let (told, told_stream) = builder.new_output::<Vec<Told>>();
    let mut admitted = OutputBuilder::<_, CapacityContainerBuilder<Vec<Admitted>>>::from(admitted);
    let mut links = OutputBuilder::<_, CapacityContainerBuilder<Vec<Linked>>>::from(links);
    let mut signals = OutputBuilder::<_, CapacityContainerBuilder<Vec<(u64, Signal)>>>::from(signals);
    let mut told = OutputBuilder::<_, CapacityContainerBuilder<Vec<Told>>>::from(told);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut arrived: BTreeMap<Time, Vec<Vec<Record>>> = BTreeMap::new();
        let mut stash: BTreeMap<Time, Under> = BTreeMap::new();
        move |frontiers: &[MutableAntichain<Time>]| {
            records.for_each(|capability, data| {
                let Some(time) = capability.least() else { return };
                arrived.entry(*time).or_default().push(std::mem::take(&mut data.items));
            });
            turns.for_each(|capability, data| {
                let retain = |port| capability.retain_least(port);
                let (Some(a), Some(b), Some(c), Some(d)) = (retain(0), retain(1), retain(2), retain(3)) else { return };
                let (time, turn) = (*a.time(), data.pop());
                // Each worker has one turn in each step.
                stash.extend(turn.map(|turn| (time, Under { capabilities: [a, b, c, d], turn })));
            });
            let passed = |time: &Time| !frontiers[0].less_equal(time) && !frontiers[1].less_equal(time);
            let mut admitted = admitted.activate();
            let mut links = links.activate();
            let mut signals = signals.activate();
            let mut told = told.activate();
            while let Some(first) = stash.first_entry().filter(|first| passed(first.key())) {
                let (time, Under { capabilities: [on_admitted, on_links, on_signals, on_told], turn }) =
                    first.remove_entry();
                let mut admitted = admitted.session(&on_admitted);
                let mut links = links.session(&on_links);
                let mut signals = signals.session(&on_signals);
                let mut told = told.session(&on_told);
                accepting.tick(turn.clock);
                let mut admit = |admitting| admitted.give(admitting);
                let mut link = |position, stamp, change| links.give(Linked::Change(position, stamp, change));
                for record in in_order(arrived.remove(&time).unwrap_or_default()).into_iter().flatten() {
                    let verdict = accepting.decide(record, turn.terms.lateness, &mut admit, &mut link);
                    if let Some((position, verdict)) = verdict {
                        // Each process keeps an account of what is wrong anywhere.
                        let to = (0..peers).step_by(workers);
                        told.give_iterator(to.map(|to| (to, Saying::Verdict(position, verdict))));
                    }
                }
                let (clock, accepted) = (accepting.tick(turn.clock), accepting.accepted());
                links.give(Linked::Clock(clock));
                for peer in 0..peers {
                    let now = Now { position: turn.position, clock, accepted, ready: ready.get() };
                    signals.give((peer as u64, Signal::Now(now)));
                }
                for (number, question) in turn.questions {
                    let to_all = if question.about().is_some() || question.links() { 0 } else { peers };
                    // Who is linked to whom is known to the first.
                    let to_first = Some(0).filter(|_| question.links());
                    let home = question.about().map(|id| route(id) % peers as u64);
                    let to_one = home.filter(|home| Some(*home) != to_first).into_iter().chain(to_first);
                    for peer in to_one.chain(0..to_all as u64) {
                        signals.give((peer, Signal::Ask(Ask { to: index, number, question: question.clone() })));
                    }
                }
            }
        }
    });
    Accepted { admitted: admitted_stream, links: links_stream, signals: signals_stream, told: told_stream }
}

/// Links to persons: on one worker, since a refusal depends on all links before it in the log.
fn identity<'s>(
    links: StreamVec<'s, Time, Linked>,
    signals: StreamVec<'s, Time, (u64, Signal)>,
    turns: StreamVec<'s, Time, Turn>,
    workers: usize,
) -> (StreamVec<'s, Time, Assignment>, StreamVec<'s, Time, Told>) {
    let (peers, index) = (links.scope().peers(), links.scope().index());
    let mut builder = OperatorBuilder::new("Identity".to_owned(), links.scope());
    let mut links = builder.new_input(links, Exchange::new(|_: &Linked| 0));
    let to_one = Exchange::new(|(peer, _): &(u64, Signal)| *peer);
    let mut signals = builder.new_input(signals, to_one);
    let mut turns = builder.new_input(turns, Pipeline);
    let (assigned, assigned_stream) = builder.new_output::<Vec<Assignment>>();
    let (told, told_stream) = builder.new_output::<Vec<Told>>();
    let mut assigned = OutputBuilder::<_, CapacityContainerBuilder<Vec<Assignment>>>::from(assigned);
    let mut told = OutputBuilder::<_, CapacityContainerBuilder<Vec<Told>>>::from(told);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut identity = Identity::new();
        let mut terms: BTreeMap<Time, Terms> = BTreeMap::new();
        let mut stash: BTreeMap<Time, ([Capability<Time>; 2], Vec<Linked>)> = BTreeMap::new();
        let mut asked: BTreeMap<Time, Vec<Ask>> = BTreeMap::new();
        let is_first = index == 0;
        move |frontiers: &[MutableAntichain<Time>]| {
            links.for_each(|capability, data| {
                let (Some(a), Some(b)) = (capability.retain_least(0), capability.retain_least(1)) else { return };
                stash.entry(*a.time()).or_insert(([a, b], Vec::new())).1.append(data);
            });
            signals.for_each(|capability, data| {
                let asks = data.drain(..).filter_map(|(_, signal)| match signal {
                    Signal::Ask(ask) => Some(ask).filter(|ask| is_first && ask.question.links()),
                    Signal::Now(_) => None,
                });
                let asks: Vec<Ask> = asks.collect();
                if let Some(time) = capability.least().copied().filter(|_| !asks.is_empty()) {
                    asked.entry(time).or_default().extend(asks);
                }
            });
            turns.for_each(|capability, data| {
                terms.extend(capability.least().copied().zip(data.pop().map(|turn| turn.terms)));
            });
            let passed = |time: &Time| !frontiers.iter().any(|frontier| frontier.less_equal(time));
            let mut assigned = assigned.activate();
            let mut told = told.activate();
            while let Some(first) = stash.first_entry().filter(|first| passed(first.key())) {
                let (time, ([on_assigned, on_told], linked)) = first.remove_entry();
                let ids_max = terms.remove(&time).unwrap_or_default().ids_max as usize;
                let (mut changes, mut clock) = (Vec::new(), 0);
                for linked in linked {
                    match linked {
                        Linked::Change(position, stamp, change) => changes.push((position, stamp, change)),
                        Linked::Clock(to) => clock = clock.max(to),
                    }
                }
                changes.sort_by_key(|(position, ..)| *position);
                let erased = changes.iter().filter_map(|(.., change)| match change {
                    Change::Erase(erasure) => Some(erasure.clone()),
                    _ => None,
                });
                let erased: Vec<Erasure> = erased.collect();
                let outcome =
                    identity.apply(changes.into_iter().map(|(_, stamp, change)| (stamp, change)), clock, ids_max);
                let mut assigned = assigned.session(&on_assigned);
                for moved in outcome.moves {
                    assigned.give(Assignment::Home(moved.id.clone(), moved.to.clone()));
                    assigned.give(Assignment::Leave(moved));
                }
                assigned.give_iterator(outcome.components.into_iter().map(Assignment::Share));
                let mut told = told.session(&on_told);
                for erasure in erased {
                    let keys = erasure.ids.iter().map(|id| identity.key(id).unwrap_or(id).clone());
                    let keys: Vec<Id> = keys.collect();
                    let strike = |peer| Assignment::Strike(peer, erasure.clone(), keys.clone());
                    assigned.give_iterator((0..peers).map(strike));
                    told.give_iterator((0..peers).step_by(workers).map(|to| (to, Saying::Erased(erasure.clone()))));
                }
                for position in outcome.refused {
                    let refused = Saying::Verdict(position, Verdict::RefusedEdge);
                    told.give_iterator((0..peers).step_by(workers).map(|to| (to, refused.clone())));
                }
                for Ask { to, number, question } in asked.remove(&time).unwrap_or_default() {
                    let answer = match &question {
                        Question::Person(id) | Question::ProfileAt(id, _) => Answer::Links(identity.linked(id)),
                        Question::Linked(a, b) => Answer::Linked(identity.is_linked(a, b)),
                        Question::Unlinked { after, limit } => {
                            Answer::Unlinked(identity.unlinked(after.as_ref(), *limit))
                        }
                        Question::Apart(events) => Answer::Apart(identity.without(events)),
                        _ => continue,
                    };
                    told.give((to, Saying::Answer(number, answer)));
                }
            }
            // Only the worker that keeps the identity of ids needs to know.
            terms.retain(|time, _| !passed(time));
        }
    });
    (assigned_stream, told_stream)
}

/// Everything that is counted, and what is asked of it.
fn totals<'s>(
    arranged: Arranged<'s, Totals>,
    signals: StreamVec<'s, Time, (u64, Signal)>,
) -> StreamVec<'s, Time, Told> {
    let Arranged { stream, mut trace } = arranged;
    let to_one = Exchange::new(|(peer, _): &(u64, Signal)| *peer);
    let mut asked: BTreeMap<Time, (Capability<Time>, Vec<Ask>)> = BTreeMap::new();
    stream.binary_frontier(signals, Pipeline, to_one, "Counts", move |_, _| {
        move |(batches, sealed), (signals, _), told| {
            // The trace has them.
            batches.for_each(|_, _| {});
            signals.for_each(|capability, data| {
                let asks = data.drain(..).filter_map(|(_, signal)| match signal {
                    Signal::Ask(ask) => Some(ask).filter(|ask| ask.question.counts()),
                    Signal::Now(_) => None,
                });
                let asks: Vec<Ask> = asks.collect();
                if let Some(time) = capability.least().copied().filter(|_| !asks.is_empty()) {
                    let second = || (capability.delayed(&(time + 1), 0), Vec::new());
                    asked.entry(time + 1).or_insert_with(second).1.extend(asks);
                }
            });
            let sealed = sealed.frontier();
            while let Some(first) = asked.first_entry().filter(|first| !sealed.less_equal(first.key())) {
                let (time, (capability, asks)) = first.remove_entry();
                let sums = totals_at(&mut trace, time);
                let answer = |ask: &Ask| (ask.to, Saying::Answer(ask.number, Answer::Totals(sums.clone())));
                told.session(&capability).give_iterator(asks.iter().map(answer));
            }
            // Nobody asks for the past.
            let since = asked.keys().next().map_or(sealed.to_owned(), |time| Antichain::from_elem(*time));
            trace.set_logical_compaction(since.borrow());
            trace.set_physical_compaction(sealed);
        }
    })
}

/// The totals that this worker keeps, as of a time.
fn totals_at(totals: &mut Totals, time: Time) -> Vec<(Total, i128)> {
    let batches = totals.batches_through(AntichainRef::new(&[])).expect("nothing reads beyond the whole");
    let (mut cursor, storage) = cursor_list(batches);
    let mut found = Vec::new();
    while cursor.key_valid(&storage) {
        let mut sum = 0;
        cursor.map_times(&storage, |at, change| {
            if *at <= time {
                sum += *change;
            }
        });
        if sum != 0 {
            found.push((Total::clone(&cursor.key(&storage).total), sum));
        }
        cursor.step_key(&storage);
    }
    found
}

/// Gathers what is said to this worker, by the first beat of its step.
fn collect<'s>(
    told: StreamVec<'s, Time, Told>,
    said: Rc<RefCell<BTreeMap<Time, Vec<Saying>>>>,
    through: Rc<Cell<Time>>,
) {
    told.sink(Exchange::new(|(to, _): &Told| *to as u64), "Said", move |(input, frontier)| {
        input.for_each(|capability, data| {
            let Some(time) = capability.least() else { return };
            // The first beat of a step is even.
            said.borrow_mut().entry(time & !1).or_default().extend(data.drain(..).map(|(_, saying)| saying));
        });
        through.set(frontier.frontier().first().copied().unwrap_or(Time::MAX));
    });
}

/// A step between its arrival at the profiles and its end.
struct Under {
    first: Option<Capability<Time>>,
    second: [Capability<Time>; 2],
    now: Option<Now>,
    asks: Vec<Ask>,
    admitted: Vec<Vec<Admitted>>,
    assigned: Vec<Assignment>,
    forwarded: Vec<(Id, Forward)>,
    sends: bool,
    plan: Option<Arc<Plan>>,
}

/// The step that something belongs to.
fn under<'u>(stash: &'u mut BTreeMap<Time, Under>, capability: &InputCapability<Time>) -> Option<&'u mut Under> {
    let first = capability.retain_least(0)?;
    let second = first.time() + 1;
    Some(stash.entry(*first.time()).or_insert_with(|| Under {
        second: [1, 2].map(|port| capability.delayed(&second, port)),
        first: Some(first),
        now: None,
        asks: Vec::new(),
        admitted: Vec::new(),
        assigned: Vec::new(),
        forwarded: Vec::new(),
        sends: false,
        plan: None,
    }))
}

/// The keyed histories of persons, in two beats: an id's worker knows whose it is, and keeps the person's history if it
/// bears the person's key; what belongs elsewhere goes on to the second beat.
fn profiles<'s>(
    admitted: StreamVec<'s, Time, Admitted>,
    signals: StreamVec<'s, Time, (u64, Signal)>,
    assigned: StreamVec<'s, Time, Assignment>,
    forwarded: Stream<'s, Time, Batch<(Id, Forward)>>,
    turns: StreamVec<'s, Time, Turn>,
    mut profiles: Profiles,
    workers: usize,
) -> (Stream<'s, Time, Batch<(Id, Forward)>>, VecCollection<'s, Time, Counted, i128>, StreamVec<'s, Time, Told>) {
    let scope = signals.scope();
    let (peers, index) = (scope.peers(), scope.index());
    let to_one = Exchange::new(|(peer, _): &(u64, Signal)| *peer);
    let by_concern = Exchange::new(|assignment: &Assignment| match assignment {
        Assignment::Home(id, _) => route(id),
        Assignment::Leave(Move { from: key, .. }) | Assignment::Share(Component { key, .. }) => route(key),
        Assignment::Strike(peer, ..) => *peer as u64,
    });
    let by_key = Batches::new(|(key, _): &(Id, Forward)| route(key));
    let mut builder = OperatorBuilder::new("Profiles".to_owned(), scope);
    // What is admitted is where it belongs already.
    let mut admitted = builder.new_input(admitted, Pipeline);
    let mut signals = builder.new_input(signals, to_one);
    let mut assigned = builder.new_input(assigned, by_concern);
    let mut turns = builder.new_input(turns, Pipeline);
    let mut forwarded = builder.new_input(forwarded, by_key);
    // Only the first beat sends anything on, so what arrives in the second cannot cause more of it.
    let sends_on = (0..4).map(|input| (input, Antichain::from_elem(Time::minimum())));
    let (forward, forward_stream) = builder.new_output_connection(sends_on);
    let (changes, changes_stream) = builder.new_output::<Vec<(Counted, Time, i128)>>();
    let (told, told_stream) = builder.new_output::<Vec<Told>>();
    let mut forward = OutputBuilder::<_, CapacityContainerBuilder<Batch<(Id, Forward)>>>::from(forward);
    let mut changes = OutputBuilder::<_, CapacityContainerBuilder<Vec<(Counted, Time, i128)>>>::from(changes);
    let mut told = OutputBuilder::<_, CapacityContainerBuilder<Vec<Told>>>::from(told);
    let again = scope.activator_for(builder.operator_info().address);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut stash: BTreeMap<Time, Under> = BTreeMap::new();
        let is_here = move |id: &Id| route(id) as usize % peers == index;
        move |frontiers: &[MutableAntichain<Time>]| {
            signals.for_each(|capability, data| {
                let Some(under) = under(&mut stash, &capability) else { return };
                for (_, signal) in data.drain(..) {
                    match signal {
                        Signal::Now(heard) => {
                            under.now = Some(under.now.map_or(heard, |now| now.and(heard)));
                        }
                        // The first worker is asked about links too, and need not be where the person is.
                        Signal::Ask(ask) if ask.question.about().is_none_or(is_here) => under.asks.push(ask),
                        Signal::Ask(_) => {}
                    }
                }
            });
            turns.for_each(|capability, data| {
                let Some(under) = under(&mut stash, &capability) else { return };
                (under.sends, under.plan) = data.pop().map_or((false, None), |turn| (turn.sends, turn.plan));
            });
            admitted.for_each(|capability, data| {
                let Some(under) = under(&mut stash, &capability) else { return };
                under.admitted.push(std::mem::take(data));
            });
            assigned.for_each(|capability, data| {
                let Some(under) = under(&mut stash, &capability) else { return };
                under.assigned.append(data);
            });
            forwarded.for_each(|capability, data| {
                // Every worker hears of every step, so the one that this belongs to is under way here.
                let under = capability.least().and_then(|time| stash.get_mut(&(time - 1)));
                under.expect("what goes on belongs to a step under way").forwarded.append(&mut data.items);
            });
            let mut forward = forward.activate();
            let mut changes = changes.activate();
            let mut told = told.activate();
            // One step after the other: a later step must not reach histories that an earlier one has yet to judge.
            while let Some(mut step) = stash.first_entry() {
                let time = *step.key();
                if frontiers[..4].iter().any(|frontier| frontier.less_equal(&time)) {
                    break;
                }
                let under = step.get_mut();
                if let Some(first) = under.first.take() {
                    let mut session = forward.session(&first);
                    let mut send = |key, forward| session.give((key, forward));
                    under.assigned.drain(..).for_each(|assignment| profiles.assign(assignment, &mut send));
                    under.admitted.drain(..).flatten().for_each(|admitted| profiles.record(admitted, &mut send));
                    under.asks.drain(..).for_each(|ask| profiles.ask(ask, &mut send));
                }
                if frontiers[4].less_equal(&(time + 1)) {
                    break;
                }
                let Under { second: [on_changes, on_told], now, forwarded, sends, plan, .. } = step.remove();
                let now = now.unwrap_or_default();
                let settled = profiles.settle(now, forwarded, sends, plan);
                let Settled { totals, intents, people, rows, credit, answers, switched, prepared, gone } = settled;
                let totals = totals.into_iter().map(|(total, change)| (total, time + 1, change));
                changes.session(&on_changes).give_iterator(totals);
                let mut told = told.session(&on_told);
                if index % workers == 0 {
                    told.give((index, Saying::Now(now)));
                    told.give_iterator(switched.map(|number| (index, Saying::Switched(number))).into_iter());
                }
                if let Some((done, all)) = prepared {
                    let to = (0..peers).step_by(workers);
                    told.give_iterator(to.map(|first| (first, Saying::Prepared(done, all))));
                }
                for (position, events) in gone {
                    let to = (0..peers).step_by(workers);
                    told.give_iterator(to.map(|first| (first, Saying::Gone(position, events))));
                }
                for (intent, change) in intents {
                    // Each process tells them to those who listen there.
                    for first in (0..peers).step_by(workers) {
                        told.give((first, Saying::Intent(intent.clone(), change)));
                    }
                }
                // Messages leave by the first process.
                told.give_iterator(people.into_iter().map(|person| (0, Saying::Person(Box::new(person)))));
                told.give_iterator(
                    rows.into_iter().map(|(to, view, row, change)| (to, Saying::Row(view, row, change))),
                );
                told.give_iterator(credit.into_iter().map(|(to, total, change)| (to, Saying::Credit(total, change))));
                told.give_iterator(answers.into_iter().map(|(to, number, part)| (to, Saying::Answer(number, part))));
            }
            if stash.is_empty() && profiles.idle() {
                again.activate();
            }
        }
    });
    (forward_stream, changes_stream.as_collection(), told_stream)
}
