//! Why: what makes a segment's condition true of somebody or not, clause by clause, and until when if nothing happens.
//!
//! All of it is read off the fold itself: of a copy that keeps what its clauses saw, and that is then taken on through
//! the instants at which something is due.

use ecow::EcoString;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use utoipa::ToSchema;

use super::aggregates::Figure;
use super::answers::{printed, raw};
use super::{Effects, Left, Root, State};
use crate::definitions::Visitor;
use crate::event::Event;
use crate::history::History;
use crate::plan::{Plan, Test, TraitSource};
use crate::time::Millis;
use crate::value::Value;

/// Why somebody is in a segment or is not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explained {
    /// The public id.
    pub profile: EcoString,
    /// Whether they are in it.
    pub member: bool,
    /// Since when, ms.
    pub since: Option<Millis>,
    /// Its condition.
    pub tree: Reason,
}

/// What is true of a clause, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reason {
    /// Whether it holds.
    pub holds: bool,
    /// What it looked at.
    pub value: Box<RawValue>,
    /// The events that make it so, the latest first.
    pub witnesses: Vec<Witness>,
    /// When it changes if no event comes, ms; none: never, or not within so many instants as are looked through.
    pub changes_at: Option<Millis>,
    /// The segment that it names, whose condition is its only child.
    pub of: Option<EcoString>,
    /// The clauses inside.
    pub children: Vec<Reason>,
}

/// An event that makes a clause true or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Witness {
    /// Its own id; of one that a timer emitted, that of the event it goes back to.
    pub id: EcoString,
    /// Its message id, likewise.
    #[serde(rename = "messageId")]
    pub message_id: EcoString,
    /// When it was, ms.
    pub timestamp: Millis,
    /// Its name, if a definition says it.
    pub event: Option<EcoString>,
}

/// Witnesses of a clause, at most.
const WITNESSES_MAX: usize = 10;
/// Instants that are looked through for a change, at most: timers may go round for ever.
pub(crate) const INSTANTS_MAX: usize = 10_000;

/// Why somebody is in a segment or is not, as of a clock; none: they are not there yet.
pub fn explain(
    plan: &Plan,
    segment: usize,
    history: &History<Plan>,
    public: &EcoString,
    clock: Millis,
) -> Option<Explained> {
    let plan = plan.explaining();
    let mut effects = Effects::new(&plan);
    let mut folded = history.aside(clock, &plan, &mut effects);
    let past = folded.past(history.entries());
    let (state, test) = (folded.state(), &plan.segments[segment].test);
    if !state.core.exists() {
        return None;
    }
    let (member, since) = (state.is_member(segment), state.member_since(segment));
    let mut tree = Looking { plan: &plan, state, past }.reason(test);
    for _ in 0..INSTANTS_MAX {
        let at = folded.due(past, &plan);
        if at == Millis::MAX {
            break;
        }
        folded.advance(at, past, &plan, &mut effects);
        effects.intents.clear();
        if tree.changed(test, &plan, folded.state(), at) {
            break;
        }
    }
    Some(Explained { profile: public.clone(), member, since, tree })
}

impl Reason {
    /// Notes what has changed at an instant; whether every clause has by now.
    fn changed(&mut self, test: &Test, plan: &Plan, state: &State, at: Millis) -> bool {
        if state.passes(plan, test) != self.holds {
            self.changes_at.get_or_insert(at);
        }
        let inside: Vec<&Test> = inside(plan, test);
        let children = self.children.iter_mut().zip(inside);
        children.fold(self.changes_at.is_some(), |all, (child, test)| child.changed(test, plan, state, at) && all)
    }
}

/// The clauses inside a clause.
fn inside<'p>(plan: &'p Plan, test: &'p Test) -> Vec<&'p Test> {
    match test {
        Test::All(tests) | Test::Any(tests) => tests.iter().collect(),
        Test::Not(test) => vec![&**test],
        Test::Segment(number) => vec![&plan.segments[*number].test],
        _ => Vec::new(),
    }
}

/// A profile whose state keeps what its clauses saw.
#[derive(Clone, Copy)]
struct Looking<'a> {
    plan: &'a Plan,
    state: &'a State,
    past: &'a [Event],
}

impl Looking<'_> {
    fn reason(&self, test: &Test) -> Reason {
        let (plan, state) = (self.plan, self.state);
        let (value, witnesses) = match test {
            Test::Computed(number, _) => (printed(state.figure(plan, *number)), self.of_trait(*number)),
            Test::Told(key, _) => {
                let told = state.all_told().find(|(told, _)| *told == key);
                let value = told.map_or_else(null, |(_, json)| raw(json.to_owned()));
                let tells = |event: &Event| {
                    let told = event.context().map_or(&[][..], |context| &context.told);
                    told.iter().any(|(told, _)| told == key)
                };
                let last = self.past.iter().rposition(tells);
                (value, last.into_iter().filter_map(|place| self.event(Root(place as u32))).collect())
            }
            Test::Visitor(class) => {
                let classes = Visitor::ALL.iter().filter(|(_, class)| state.is(*class));
                (json(classes.map(|(name, _)| *name).collect::<Vec<_>>()), self.of_class(*class))
            }
            Test::Sessions(window, _) => {
                let head = state.session_head(plan, *window);
                (json(state.session_count() - head), self.of_sessions(head))
            }
            Test::Journey(journey, _) => {
                let standing = state.standing(plan, *journey);
                let name = &plan.journeys[*journey].states[standing.state].name;
                let stands = Some(name).filter(|_| state.is_seen(plan.journeys[*journey].after));
                (json(stands), stands.and_then(|_| self.event(standing.root)).into_iter().collect())
            }
            Test::Segment(segment) => (json(state.is_member(*segment)), Vec::new()),
            Test::Performed(aggregate, _) => {
                let name = plan.name_fed_to(*aggregate);
                let witnesses = self.latest(state.inside(plan, *aggregate).rev().map(|event| (name, event)));
                (json(state.counted(plan, *aggregate)), witnesses)
            }
            Test::Sequence(number) => {
                let (at, events) = state.completion(plan, *number).unzip();
                let events = events.unwrap_or_default();
                let events = events.into_iter().rev().map(|(name, event)| (plan.name_of(name), event));
                (json(at), self.latest(events))
            }
            Test::All(_) | Test::Any(_) | Test::Not(_) => (null(), Vec::new()),
        };
        let of = match test {
            Test::Segment(number) => Some(plan.segments[*number].name.clone()),
            _ => None,
        };
        let children = inside(plan, test).into_iter().map(|test| self.reason(test)).collect();
        Reason { holds: state.passes(plan, test), value, witnesses, changes_at: None, of, children }
    }

    fn of_trait(&self, number: usize) -> Vec<Witness> {
        match self.plan.traits[number].source {
            TraitSource::Aggregate(aggregate) => {
                self.latest(self.state.inside(self.plan, aggregate).rev().map(|event| (None, event)))
            }
            TraitSource::Sessions(window, _) => self.of_sessions(self.state.session_head(self.plan, window)),
        }
    }

    /// The first events of sessions from a place on.
    fn of_sessions(&self, place: usize) -> Vec<Witness> {
        let first = self.state.sessions_from(place).rev().map(|session| session.first);
        first.filter_map(|root| self.event(root)).take(WITNESSES_MAX).collect()
    }

    fn of_class(&self, class: Visitor) -> Vec<Witness> {
        let tapes = &self.state.tapes;
        let roots: Vec<Root> = match class {
            Visitor::FirstTime | Visitor::Returning => return self.of_sessions(0),
            Visitor::Known => tapes.known.clone(),
            Visitor::Paying => {
                let stands = tapes.conversions.iter().filter(|of| self.plan.net(of, &tapes.refunds).is_some());
                stands.map(|conversion| conversion.root).collect()
            }
        };
        roots.into_iter().rev().filter_map(|root| self.event(root)).take(WITNESSES_MAX).collect()
    }

    /// Events, the latest first; each with its name if a timer emitted it.
    fn latest<'n>(&self, events: impl Iterator<Item = (Option<&'n EcoString>, Left)>) -> Vec<Witness> {
        let witness = |(name, event): (Option<&EcoString>, Left)| {
            let witness = self.event(event.root)?;
            let emitted = Witness { timestamp: event.at, event: name.cloned(), ..witness.clone() };
            Some(if event.accepted { witness } else { emitted })
        };
        events.filter_map(witness).take(WITNESSES_MAX).collect()
    }

    fn event(&self, root: Root) -> Option<Witness> {
        let event = self.past.get(root.0 as usize)?;
        Some(Witness {
            id: event.own.clone(),
            message_id: event.message_id.clone(),
            timestamp: event.timestamp,
            event: self.plan.name_of(event.name).cloned(),
        })
    }
}

fn json(value: impl Serialize) -> Box<RawValue> {
    to_raw_value(&value).expect("it has no keys")
}

fn null() -> Box<RawValue> {
    printed(Figure::Value(Value::Null))
}
