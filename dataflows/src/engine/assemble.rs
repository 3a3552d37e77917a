//! The dataflow, built once and alike by every worker.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use compact_str::CompactString;
use differential_dataflow::hashable::Hashable;
use differential_dataflow::operators::arrange::TraceAgent;
use differential_dataflow::trace::implementations::KeySpine;
use differential_dataflow::{AsCollection, VecCollection};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::vec::Input;
use timely::dataflow::operators::{Capability, ConnectLoop, Feedback, Probe};
use timely::dataflow::{InputHandle, ProbeHandle, StreamVec};
use timely::progress::Antichain;
use timely::progress::frontier::MutableAntichain;
use timely::worker::Worker;

use super::profiles::Profiles;
use super::{Time, clock_of};
use crate::event::Event;
use crate::identity::{Change, Component, Id, Identity};
use crate::plan::Plan;
use crate::profile::answers::IntentRow;
use crate::protocol::{Answer, Question, Record, Step};
use crate::total::Total;

/// The arrangement of everything that is counted.
pub(super) type Totals = TraceAgent<KeySpine<Total, Time, i128>>;

/// What a worker puts in.
pub(super) struct Inputs {
    records: InputHandle<Time, CapacityContainerBuilder<Vec<Record>>>,
    links: InputHandle<Time, CapacityContainerBuilder<Vec<(u64, Option<Change>)>>>,
    plans: InputHandle<Time, CapacityContainerBuilder<Vec<Arc<Plan>>>>,
}

/// What a worker takes out.
pub(super) struct Outputs {
    probe: ProbeHandle<Time>,
    said: Rc<RefCell<BTreeMap<Time, Said>>>,
    /// Everything that is counted; this worker's part.
    pub(super) totals: Totals,
}

/// What operators say to the outside, by the first beat of the step it belongs to.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Intents that came and went.
    pub(super) intents: Vec<(IntentRow, i8)>,
    /// Log positions of calls whose link was refused.
    pub(super) refused: Vec<u64>,
    /// Parts of answers, by question.
    pub(super) answers: Vec<(u64, Answer)>,
}

/// What goes to the place where a person's history is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Routed {
    /// An event of the person of this key; none: of its own id.
    Event(Option<Id>, Event),
    /// An event before a log position is taken back: key, position, own id, message id.
    Retract(Id, u64, Id, CompactString),
    /// These ids are one person.
    Share(Component),
    /// The history of an id goes from one person to another: from, id, to.
    Leave(Id, Id, Id),
    /// A question about the person of a key, asked at a worker.
    Ask(usize, u64, Question, Option<Id>),
    /// The clock goes on, on this worker.
    Tick(usize),
}

/// An id belongs to the person of a key; the key's own message tells all ids.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Assign {
    id: Id,
    key: Id,
    component: Option<Component>,
}

impl Inputs {
    /// Puts a step in, and promises that nothing more of it will come from this worker.
    pub(super) fn give(&mut self, worker: usize, time: Time, step: Step) {
        self.records.advance_to(time);
        self.links.advance_to(time);
        self.plans.advance_to(time);
        for mut chunk in step.records {
            self.records.send_batch(&mut chunk);
        }
        for (number, question) in step.questions {
            let of_one = matches!(question, Question::Profile(_) | Question::History { .. });
            if !of_one || worker == 0 {
                self.records.send(Record::Ask(worker, number, question));
            }
        }
        self.records.send(Record::Tick(worker));
        for (position, change) in step.links {
            self.links.send((position, Some(change)));
        }
        if worker == 0 {
            self.links.send((0, None));
        }
        if let Some(plan) = step.plan {
            self.plans.send(plan);
        }
        self.records.advance_to(time + 2);
        self.links.advance_to(time + 2);
        self.plans.advance_to(time + 2);
    }
}

impl Outputs {
    /// Whether everything of a step has come out.
    pub(super) fn is_closed(&self, time: Time) -> bool {
        !self.probe.less_equal(&(time + 1))
    }

    /// What was said at a step.
    pub(super) fn take(&mut self, time: Time) -> Said {
        self.said.borrow_mut().remove(&time).unwrap_or_default()
    }
}

/// Builds the dataflow.
pub(super) fn assemble(worker: &mut Worker, plan: Arc<Plan>) -> (Inputs, Outputs) {
    let said = Rc::new(RefCell::new(BTreeMap::new()));
    let mut inputs = Inputs { records: InputHandle::new(), links: InputHandle::new(), plans: InputHandle::new() };
    let probe = ProbeHandle::new();
    let totals = worker.dataflow_named("Thalweg", |scope| {
        let records = scope.input_from(&mut inputs.records);
        let links = scope.input_from(&mut inputs.links);
        let plans = scope.input_from(&mut inputs.plans);
        let assigned = identity(links, plan.definitions.identity.max_ids as usize, Rc::clone(&said));
        let routed = route(records, assigned);
        let (moves, moved) = scope.feedback::<Vec<(Id, Event)>>(1);
        let (leaving, changes) = profiles(routed, moved, plans, plan, said.clone());
        leaving.connect_loop(moves);
        let arranged = changes.arrange_by_self_named("Totals");
        arranged.stream.probe_with(&probe);
        arranged.trace
    });
    (inputs, Outputs { probe, said, totals })
}

/// Links to persons: on one worker, since a refusal depends on all links before it in the log.
fn identity<'s>(
    links: StreamVec<'s, Time, (u64, Option<Change>)>,
    ids_max: usize,
    said: Rc<RefCell<BTreeMap<Time, Said>>>,
) -> StreamVec<'s, Time, Assign> {
    let mut identity = Identity::new(ids_max);
    let mut stash: BTreeMap<Time, (Capability<Time>, Vec<(u64, Option<Change>)>)> = BTreeMap::new();
    links.unary_frontier(Exchange::new(|_| 0), "Identity", move |_, _| {
        move |(input, frontier), output| {
            input.for_each(|capability, links| {
                if let Some(capability) = capability.retain_least(0) {
                    stash.entry(*capability.time()).or_insert((capability, Vec::new())).1.append(links);
                }
            });
            while let Some(first) = stash.first_entry().filter(|first| !frontier.less_equal(first.key())) {
                let (time, (capability, mut links)) = first.remove_entry();
                links.sort_by_key(|(position, _)| *position);
                let outcome = identity.apply(links.into_iter().filter_map(|(_, change)| change), clock_of(time));
                let mut session = output.session(&capability);
                for component in outcome.components {
                    for id in &component.ids {
                        let all = (*id == component.key).then(|| component.clone());
                        session.give(Assign { id: id.clone(), key: component.key.clone(), component: all });
                    }
                }
                if !outcome.refused.is_empty() {
                    said.borrow_mut().entry(time).or_default().refused = outcome.refused;
                }
            }
        }
    })
}

/// Raw ids to persons: each id's worker knows whose it is.
fn route<'s>(
    records: StreamVec<'s, Time, Record>,
    assigned: StreamVec<'s, Time, Assign>,
) -> StreamVec<'s, Time, Routed> {
    struct Waiting {
        capability: Capability<Time>,
        records: Vec<Vec<Record>>,
        assigned: Vec<Assign>,
    }
    let mut keys: HashMap<Id, Id> = HashMap::new();
    let mut stash: BTreeMap<Time, Waiting> = BTreeMap::new();
    let by_id = Exchange::new(|record: &Record| match record {
        Record::Event(event) => event.own.hashed(),
        Record::Retract(_, own, _) => own.hashed(),
        Record::Ask(_, _, Question::Profile(id) | Question::History { id, .. }) => id.hashed(),
        Record::Ask(worker, ..) | Record::Tick(worker) => *worker as u64,
    });
    let to_id = Exchange::new(|assign: &Assign| assign.id.hashed());
    records.binary_frontier(assigned, by_id, to_id, "Route", move |_, _| {
        move |(records, before), (assigned, until), output| {
            let waiting = |capability| Waiting { capability, records: Vec::new(), assigned: Vec::new() };
            records.for_each(|capability, records| {
                if let Some(capability) = capability.retain_least(0) {
                    let time = *capability.time();
                    stash.entry(time).or_insert_with(|| waiting(capability)).records.push(std::mem::take(records));
                }
            });
            assigned.for_each(|capability, assigned| {
                if let Some(capability) = capability.retain_least(0) {
                    let time = *capability.time();
                    stash.entry(time).or_insert_with(|| waiting(capability)).assigned.append(assigned);
                }
            });
            let ready = |time: &Time| !before.less_equal(time) && !until.less_equal(time);
            while let Some(first) = stash.first_entry().filter(|first| ready(first.key())) {
                let Waiting { capability, records, assigned } = first.remove();
                let mut session = output.session(&capability);
                for Assign { id, key, component } in assigned {
                    let old = if key == id { keys.remove(&id) } else { keys.insert(id.clone(), key.clone()) };
                    let old = old.unwrap_or_else(|| id.clone());
                    if old != key {
                        session.give(Routed::Leave(old, id, key));
                    }
                    if let Some(component) = component {
                        session.give(Routed::Share(component));
                    }
                }
                let key = |id: &Id| if keys.is_empty() { None } else { keys.get(id).cloned() };
                for record in records.into_iter().flatten() {
                    session.give(match record {
                        Record::Event(event) => Routed::Event(key(&event.own), event),
                        Record::Retract(position, own, message_id) => {
                            Routed::Retract(key(&own).unwrap_or_else(|| own.clone()), position, own, message_id)
                        }
                        Record::Ask(worker, number, question) => {
                            let of = match &question {
                                Question::Profile(id) | Question::History { id, .. } => {
                                    Some(key(id).unwrap_or_else(|| id.clone()))
                                }
                                _ => None,
                            };
                            Routed::Ask(worker, number, question, of)
                        }
                        Record::Tick(worker) => Routed::Tick(worker),
                    });
                }
            }
        }
    })
}

/// The keyed histories of persons, in two beats.
fn profiles<'s>(
    routed: StreamVec<'s, Time, Routed>,
    moved: StreamVec<'s, Time, (Id, Event)>,
    plans: StreamVec<'s, Time, Arc<Plan>>,
    plan: Arc<Plan>,
    said: Rc<RefCell<BTreeMap<Time, Said>>>,
) -> (StreamVec<'s, Time, (Id, Event)>, VecCollection<'s, Time, Total, i128>) {
    /// A step between its arrival and its end.
    struct Under {
        first: Option<Capability<Time>>,
        second: Capability<Time>,
        routed: Vec<Vec<Routed>>,
        moved: Vec<(Id, Event)>,
        plan: Option<Arc<Plan>>,
    }
    let by_key = Exchange::new(|routed: &Routed| match routed {
        Routed::Event(key, event) => key.as_ref().unwrap_or(&event.own).hashed(),
        Routed::Retract(key, ..) | Routed::Leave(key, ..) | Routed::Share(Component { key, .. }) => key.hashed(),
        Routed::Ask(_, _, _, Some(key)) => key.hashed(),
        Routed::Ask(worker, ..) | Routed::Tick(worker) => *worker as u64,
    });
    let to_key = Exchange::new(|(key, _): &(Id, Event)| key.hashed());
    let mut builder = OperatorBuilder::new("Profiles".to_owned(), routed.scope());
    let mut routed = builder.new_input(routed, by_key);
    let mut moved = builder.new_input(moved, to_key);
    let mut plans = builder.new_input(plans, Pipeline);
    // Only the first beat sends histories away, so what arrives in the second cannot cause more of it.
    let (leaving, leaving_stream) = builder.new_output_connection([(0, Antichain::from_elem(0))]);
    let (changes, changes_stream) = builder.new_output::<Vec<(Total, Time, i128)>>();
    let mut leaving = OutputBuilder::<_, CapacityContainerBuilder<Vec<(Id, Event)>>>::from(leaving);
    let mut changes = OutputBuilder::<_, CapacityContainerBuilder<Vec<(Total, Time, i128)>>>::from(changes);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut profiles = Profiles::new(plan);
        let mut stash: BTreeMap<Time, Under> = BTreeMap::new();
        move |frontiers: &[MutableAntichain<Time>]| {
            let under = |second| Under { first: None, second, routed: Vec::new(), moved: Vec::new(), plan: None };
            routed.for_each(|capability, data| {
                let Some(first) = capability.retain_least(0) else { return };
                let time = *first.time();
                let step = stash.entry(time).or_insert_with(|| under(capability.delayed(&(time + 1), 1)));
                step.first.get_or_insert(first);
                step.routed.push(std::mem::take(data));
            });
            moved.for_each(|capability, data| {
                // Every worker ticks at every step, so the step that this belongs to is under way here.
                let under = capability.least().and_then(|time| stash.get_mut(&(time - 1)));
                under.expect("a history moves within a step").moved.append(data);
            });
            plans.for_each(|capability, data| {
                let Some(time) = capability.least().copied() else { return };
                let step = stash.entry(time).or_insert_with(|| under(capability.delayed(&(time + 1), 1)));
                step.plan = data.pop();
            });
            let mut leaving = leaving.activate();
            let mut changes = changes.activate();
            // One step after the other: a later step must not reach histories that an earlier one has yet to judge.
            while let Some(mut step) = stash.first_entry() {
                let time = *step.key();
                let passed = |input: usize, time: Time| !frontiers[input].less_equal(&time);
                if !passed(0, time) || !passed(2, time) {
                    break;
                }
                let under = step.get_mut();
                if let Some(first) = under.first.take() {
                    let mut session = leaving.session(&first);
                    for routed in under.routed.drain(..).flatten() {
                        profiles.arrive(routed, |to, event| session.give((to, event)));
                    }
                }
                if !passed(1, time + 1) {
                    break;
                }
                let under = step.remove();
                let mut said_now = Said::default();
                let totals = profiles.settle(clock_of(time), under.moved, under.plan, &mut said_now);
                let mut session = changes.session(&under.second);
                session.give_iterator(totals.into_iter().map(|(total, change)| (total, time + 1, change)));
                let mut said = said.borrow_mut();
                let all = said.entry(time).or_default();
                all.intents.append(&mut said_now.intents);
                all.answers.append(&mut said_now.answers);
            }
        }
    });
    (leaving_stream, changes_stream.as_collection())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::time_of;

    #[test]
    fn times_carry_the_clock() {
        let step =
            Step { number: 7, clock: 1_767_225_600_000, records: vec![], links: vec![], plan: None, questions: vec![] };
        assert_eq!(clock_of(time_of(&step)), step.clock);
        assert_eq!(clock_of(time_of(&step) + 1), step.clock);
    }
}
