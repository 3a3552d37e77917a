//! The checks that need the whole file: names that nothing bears, cycles, spans beyond retention, slips in event names.
//!
//! They work on the notes that reading left (who names what, and where), and add to the definitions the order in which
//! they are judged.

use std::collections::{BTreeMap, BTreeSet};

use super::reader::{Defined, EventUse, Place, Reader, Reference, Scope, Target};
use super::{Definitions, Judged};
use crate::time::{Millis, print_duration};

/// So many cycles are shown; who has more mends these first.
const CYCLES_MAX: usize = 100;

/// What each trait, segment and journey reads.
type Reads<'r> = BTreeMap<&'r Judged, BTreeSet<&'r Judged>>;

/// The same definitions with their order, once everything that needs the whole file has been looked at.
pub(super) fn checked(mut definitions: Definitions, reader: &mut Reader) -> Definitions {
    let references = std::mem::take(&mut reader.references);
    let events = std::mem::take(&mut reader.events);
    let defined = std::mem::take(&mut reader.defined);
    for reference in &references {
        resolve(reader, &defined, reference);
    }
    definitions.order = order(reader, &defined.judged, reads(&defined.judged, &references, &events));
    check_retention(reader, definitions.retention);
    warn_of_unseen_events(reader, &events);
    warn_of_event_slips(reader, &events);
    definitions
}

/// Says so if a reference leads nowhere.
fn resolve(reader: &mut Reader, defined: &Defined, reference: &Reference) {
    let Reference { target, name, place, .. } = reference;
    if is_defined(defined, target, name) {
        return;
    }
    let near = reader.nearest(name, names(defined, target));
    let near = near.as_deref();
    match target {
        Target::Trait if near.is_none() => {}
        Target::Trait => {
            reader.warning(place, format!("no computed trait is called `{name}`, so a told one is meant"), near);
        }
        Target::Tag => reader.warning(place, format!("no campaign bears the tag `{name}`; this counts nothing"), near),
        Target::State(journey) => {
            reader.problem_near(place, format!("the journey `{journey}` has no state `{name}`"), near);
        }
        Target::Computed => reader.problem_near(place, format!("there is no computed trait `{name}`"), near),
        Target::Segment => reader.problem_near(place, format!("there is no segment `{name}`"), near),
        Target::Journey => reader.problem_near(place, format!("there is no journey `{name}`"), near),
        Target::Channel => reader.problem_near(place, format!("there is no channel `{name}`"), near),
    }
}

fn is_defined(defined: &Defined, target: &Target, name: &str) -> bool {
    let is_judged = |kind: fn(String) -> Judged| defined.judged.contains_key(&kind(name.into()));
    match target {
        Target::Computed | Target::Trait => is_judged(Judged::Trait),
        Target::Segment => is_judged(Judged::Segment),
        Target::Journey => is_judged(Judged::Journey),
        // Of an unknown journey nothing can be said about its states.
        Target::State(journey) => defined.states.get(journey).is_none_or(|states| states.contains(name)),
        Target::Channel => defined.channels.contains(name),
        Target::Tag => defined.tags.contains(name),
    }
}

/// The names that a target can have. Lazy: most references find what they name, and large files have many.
fn names<'d>(defined: &'d Defined, target: &Target) -> Box<dyn Iterator<Item = &'d str> + 'd> {
    let judged = |wanted: &'static str| {
        let parts = defined.judged.keys().map(Judged::parts);
        Box::new(parts.filter(move |(kind, _)| *kind == wanted).map(|(_, name)| name))
    };
    match target {
        Target::Computed | Target::Trait => judged("trait"),
        Target::Segment => judged("segment"),
        Target::Journey => judged("journey"),
        Target::State(journey) => Box::new(defined.states.get(journey).into_iter().flatten().map(String::as_str)),
        Target::Channel => Box::new(defined.channels.iter().map(String::as_str)),
        Target::Tag => Box::new(defined.tags.iter().map(String::as_str)),
    }
}

/// What each definition reads, directly. A name that a journey emits counts as that journey, its own included.
fn reads<'r>(judged: &'r BTreeMap<Judged, Place>, references: &'r [Reference], events: &'r [EventUse]) -> Reads<'r> {
    let mut reads: Reads<'r> = judged.keys().map(|judged| (judged, BTreeSet::new())).collect();
    let mut add = |from: &'r Scope, to: Judged| {
        let (Scope::Judged(from), Some((to, _))) = (from, judged.get_key_value(&to)) else { return };
        reads.entry(from).or_default().insert(to);
    };
    for reference in references {
        let name = reference.name.clone();
        match reference.target {
            Target::Computed | Target::Trait => add(&reference.from, Judged::Trait(name)),
            Target::Segment => add(&reference.from, Judged::Segment(name)),
            Target::Journey => add(&reference.from, Judged::Journey(name)),
            Target::State(_) | Target::Channel | Target::Tag => {}
        }
    }
    let emitters = emitters(events);
    for used in events.iter().filter(|used| !used.emitted && !blind(&used.from)) {
        for journey in emitters.get(used.name.as_str()).into_iter().flatten() {
            add(&used.from, Judged::Journey((*journey).into()));
        }
    }
    reads
}

/// The journeys that emit an event, by its name.
fn emitters(events: &[EventUse]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut emitters: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for used in events.iter().filter(|used| used.emitted) {
        if let Scope::Judged(Judged::Journey(journey)) = &used.from {
            emitters.entry(&used.name).or_default().insert(journey);
        }
    }
    emitters
}

/// Whether emitted events are invisible here: computed traits and the facts of a profile are made of accepted ones.
fn blind(scope: &Scope) -> bool {
    matches!(scope, Scope::Facts | Scope::Judged(Judged::Trait(_)))
}

/// Everything after all that it reads, the least name first where there is a choice. Each cycle is a problem, and is
/// cut where it closes, so that the next one can be found.
fn order(reader: &mut Reader, judged: &BTreeMap<Judged, Place>, mut waiting: Reads<'_>) -> Vec<Judged> {
    let mut readers: BTreeMap<&Judged, Vec<&Judged>> = BTreeMap::new();
    for (from, to) in waiting.iter().flat_map(|(from, reads)| reads.iter().map(move |to| (*from, *to))) {
        readers.entry(to).or_default().push(from);
    }
    let mut ready: BTreeSet<&Judged> = waiting.iter().filter(|(_, reads)| reads.is_empty()).map(|(j, _)| *j).collect();
    let mut order = Vec::new();
    let mut cycles_left = CYCLES_MAX;
    loop {
        while let Some(next) = ready.pop_first() {
            waiting.remove(next);
            order.push(next.clone());
            for from in readers.get(next).into_iter().flatten() {
                if let Some(reads) = waiting.get_mut(from) {
                    reads.remove(next);
                    ready.extend(reads.is_empty().then_some(from));
                }
            }
        }
        let cycle = cycle(&waiting);
        let (Some(first), Some(last), 1..) = (cycle.first(), cycle.last(), cycles_left) else { return order };
        cycles_left -= 1;
        if let Some(place) = judged.get(*first) {
            reader.problem(place, print_cycle(&cycle));
        }
        if let Some(reads) = waiting.get_mut(*last) {
            reads.remove(*first);
            ready.extend(reads.is_empty().then_some(*last));
        }
    }
}

/// A cycle, its least member first; empty if nothing waits. Everything that waits does so for something that waits.
fn cycle<'r>(waiting: &Reads<'r>) -> Vec<&'r Judged> {
    let mut path: Vec<&Judged> = Vec::new();
    let mut seen: BTreeMap<&Judged, usize> = BTreeMap::new();
    let mut here = waiting.keys().next().copied();
    while let Some(judged) = here {
        if let Some(start) = seen.insert(judged, path.len()) {
            let mut cycle = path.split_off(start);
            let least = (0..cycle.len()).min_by_key(|i| cycle.get(*i).copied()).unwrap_or(0);
            cycle.rotate_left(least);
            return cycle;
        }
        path.push(judged);
        here = waiting.get(judged).and_then(|reads| reads.first().copied());
    }
    Vec::new()
}

fn print_cycle(cycle: &[&Judged]) -> String {
    let parts: Vec<(&str, &str)> = cycle.iter().map(|judged| judged.parts()).collect();
    let chain: Vec<&str> = parts.iter().chain(parts.first()).map(|(_, name)| *name).collect();
    let kinds: BTreeSet<&str> = parts.iter().map(|(kind, _)| *kind).collect();
    let mut message = format!("each waits for the next in this cycle: {}", chain.join(" -> "));
    if kinds.len() > 1 {
        let members: Vec<String> = parts.iter().map(|(kind, name)| format!("{kind} {name}")).collect();
        message.push_str(&format!(" ({})", members.join(", ")));
    }
    message
}

fn check_retention(reader: &mut Reader, retention: Option<Millis>) {
    let Some(retention) = retention else { return };
    for (place, span) in std::mem::take(&mut reader.looks_back) {
        if span > retention {
            let span = if span == Millis::MAX { "unlimited".into() } else { print_duration(span) };
            let kept = print_duration(retention);
            reader.problem(&place, format!("{span} is beyond `retention`, and history is only kept for {kept}"));
        }
    }
}

/// Computed traits, touchpoints and conversions do not see what journeys emit: naming it there is hardly meant.
fn warn_of_unseen_events(reader: &mut Reader, events: &[EventUse]) {
    let emitters = emitters(events);
    for used in events.iter().filter(|used| !used.emitted && blind(&used.from)) {
        if let Some(journey) = emitters.get(used.name.as_str()).and_then(BTreeSet::first) {
            let name = &used.name;
            let message = format!("the journey `{journey}` emits `{name}`, and emitted events are not seen here");
            reader.warning(&used.place, message, None);
        }
    }
}

/// An event that is named once, and very nearly like another one, is probably that other one.
fn warn_of_event_slips(reader: &mut Reader, events: &[EventUse]) {
    let mut uses: BTreeMap<&str, Vec<&Place>> = BTreeMap::new();
    for used in events {
        uses.entry(&used.name).or_default().push(&used.place);
    }
    for (name, places) in &uses {
        let [place] = places.as_slice() else { continue };
        // Of two names that both stand once, the later one is the slip.
        let surer = |others: &[&Place]| others.len() > 1 || others.iter().all(|other| other.line < place.line);
        let test = |other: &str| uses.get(other).is_some_and(|others| surer(others)) && !numbered_alike(name, other);
        if let Some(near) = reader.nearest_where(name, uses.keys().copied(), test) {
            reader.warning(place, format!("the event `{name}` is named only here"), Some(&near));
        }
    }
}

/// Whether two names differ in their digits alone, as `step_1` and `step_2` do on purpose.
fn numbered_alike(a: &str, b: &str) -> bool {
    let letters = |name: &str| name.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    a.len() > letters(a).len() && letters(a) == letters(b)
}
