//! The dataflow, built once and alike by every worker.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::hashable::Hashable;
use differential_dataflow::operators::arrange::TraceAgent;
use differential_dataflow::trace::implementations::KeySpine;
use differential_dataflow::{AsCollection, VecCollection};
use ecow::EcoString;
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
use crate::identity::{Change, Component, Id, Identity, Move};
use crate::plan::Plan;
use crate::profile::answers::IntentRow;
use crate::protocol::{Answer, Question, Record, Step};
use crate::total::Counted;

/// The arrangement of everything that is counted.
pub(super) type Totals = TraceAgent<KeySpine<Counted, Time, i128>>;

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

/// What links change, told to the worker that it concerns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Assignment {
    /// To the worker of an id: where its events belong from now on.
    Home(Id, Id),
    /// To the worker of a person: an id's history leaves.
    Leave(Move),
    /// To the worker of a person: these ids are one.
    Share(Component),
}

/// What goes on from the worker of an id to that of its person, by its key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Forward {
    /// An event.
    Event(Event),
    /// An event before a log position is taken back: position, own id, message id.
    Retract(u64, Id, EcoString),
    /// A question about the person, under its number.
    Ask(u64, Box<Question>),
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
                self.records.send(Record::Ask(worker, number, Box::new(question)));
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
        let (loops, forwarded) = scope.feedback::<Vec<(Id, Forward)>>(1);
        let (forward, changes) = profiles(records, assigned, forwarded, plans, plan, said.clone());
        forward.connect_loop(loops);
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
) -> StreamVec<'s, Time, Assignment> {
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
                for moved in outcome.moves {
                    session.give(Assignment::Home(moved.id.clone(), moved.to.clone()));
                    session.give(Assignment::Leave(moved));
                }
                session.give_iterator(outcome.components.into_iter().map(Assignment::Share));
                if !outcome.refused.is_empty() {
                    said.borrow_mut().entry(time).or_default().refused = outcome.refused;
                }
            }
        }
    })
}

/// The keyed histories of persons, in two beats: an id's worker knows whose it is, and keeps the person's history if it
/// bears the person's key; what belongs elsewhere goes on to the second beat.
fn profiles<'s>(
    records: StreamVec<'s, Time, Record>,
    assigned: StreamVec<'s, Time, Assignment>,
    forwarded: StreamVec<'s, Time, (Id, Forward)>,
    plans: StreamVec<'s, Time, Arc<Plan>>,
    plan: Arc<Plan>,
    said: Rc<RefCell<BTreeMap<Time, Said>>>,
) -> (StreamVec<'s, Time, (Id, Forward)>, VecCollection<'s, Time, Counted, i128>) {
    /// A step between its arrival and its end.
    struct Under {
        first: Option<Capability<Time>>,
        second: Capability<Time>,
        records: Vec<Vec<Record>>,
        assigned: Vec<Assignment>,
        forwarded: Vec<(Id, Forward)>,
        plan: Option<Arc<Plan>>,
    }
    let by_id = Exchange::new(|record: &Record| match record {
        Record::Event(event) => event.own.hashed(),
        Record::Retract(_, own, _) => own.hashed(),
        Record::Ask(worker, _, question) => question.about().map_or(*worker as u64, Id::hashed),
        Record::Tick(worker) => *worker as u64,
    });
    let by_concern = Exchange::new(|assignment: &Assignment| match assignment {
        Assignment::Home(id, _) => id.hashed(),
        Assignment::Leave(Move { from: key, .. }) | Assignment::Share(Component { key, .. }) => key.hashed(),
    });
    let by_key = Exchange::new(|(key, _): &(Id, Forward)| key.hashed());
    let mut builder = OperatorBuilder::new("Profiles".to_owned(), records.scope());
    let mut records = builder.new_input(records, by_id);
    let mut assigned = builder.new_input(assigned, by_concern);
    let mut forwarded = builder.new_input(forwarded, by_key);
    let mut plans = builder.new_input(plans, Pipeline);
    // Only the first beat sends anything on, so what arrives in the second cannot cause more of it.
    let sends_on = [(0, Antichain::from_elem(0)), (1, Antichain::from_elem(0))];
    let (forward, forward_stream) = builder.new_output_connection(sends_on);
    let (changes, changes_stream) = builder.new_output::<Vec<(Counted, Time, i128)>>();
    let mut forward = OutputBuilder::<_, CapacityContainerBuilder<Vec<(Id, Forward)>>>::from(forward);
    let mut changes = OutputBuilder::<_, CapacityContainerBuilder<Vec<(Counted, Time, i128)>>>::from(changes);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut profiles = Profiles::new(plan);
        let mut stash: BTreeMap<Time, Under> = BTreeMap::new();
        move |frontiers: &[MutableAntichain<Time>]| {
            let under = |second| Under {
                first: None,
                second,
                records: Vec::new(),
                assigned: Vec::new(),
                forwarded: Vec::new(),
                plan: None,
            };
            records.for_each(|capability, data| {
                let Some(first) = capability.retain_least(0) else { return };
                let time = *first.time();
                let step = stash.entry(time).or_insert_with(|| under(capability.delayed(&(time + 1), 1)));
                step.first.get_or_insert(first);
                step.records.push(std::mem::take(data));
            });
            assigned.for_each(|capability, data| {
                let Some(first) = capability.retain_least(0) else { return };
                let time = *first.time();
                let step = stash.entry(time).or_insert_with(|| under(capability.delayed(&(time + 1), 1)));
                step.first.get_or_insert(first);
                step.assigned.append(data);
            });
            forwarded.for_each(|capability, data| {
                // Every worker ticks at every step, so the step that this belongs to is under way here.
                let under = capability.least().and_then(|time| stash.get_mut(&(time - 1)));
                under.expect("what goes on belongs to a step under way").forwarded.append(data);
            });
            plans.for_each(|capability, data| {
                let Some(time) = capability.least().copied() else { return };
                let step = stash.entry(time).or_insert_with(|| under(capability.delayed(&(time + 1), 1)));
                step.plan = data.pop();
            });
            let mut forward = forward.activate();
            let mut changes = changes.activate();
            // One step after the other: a later step must not reach histories that an earlier one has yet to judge.
            while let Some(mut step) = stash.first_entry() {
                let time = *step.key();
                let passed = |input: usize, time: Time| !frontiers[input].less_equal(&time);
                if !passed(0, time) || !passed(1, time) || !passed(3, time) {
                    break;
                }
                let under = step.get_mut();
                if let Some(first) = under.first.take() {
                    let mut session = forward.session(&first);
                    let mut send = |key, forward| session.give((key, forward));
                    under.assigned.drain(..).for_each(|assignment| profiles.assign(assignment, &mut send));
                    under.records.drain(..).flatten().for_each(|record| profiles.record(record, &mut send));
                }
                if !passed(2, time + 1) {
                    break;
                }
                let under = step.remove();
                let mut said_now = Said::default();
                let totals = profiles.settle(clock_of(time), under.forwarded, under.plan, &mut said_now);
                let mut session = changes.session(&under.second);
                session.give_iterator(totals.into_iter().map(|(total, change)| (total, time + 1, change)));
                let mut said = said.borrow_mut();
                let all = said.entry(time).or_default();
                all.intents.append(&mut said_now.intents);
                all.answers.append(&mut said_now.answers);
            }
        }
    });
    (forward_stream, changes_stream.as_collection())
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
