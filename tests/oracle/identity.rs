//! Identity: which ids are one person, found anew from all accepted records whenever it is asked.

use super::records::Record;
use std::collections::{BTreeMap, BTreeSet};

/// The corrections that identity heeds.
#[derive(Default)]
pub struct Corrections {
    /// Pairs that make no edge, each with the lesser id first.
    pub unlinked: BTreeSet<(String, String)>,
    /// Erased ids, with the clock of their (last) erasure.
    pub erased: BTreeMap<String, i64>,
}

impl Corrections {
    pub fn unlink(&mut self, a: &str, b: &str) {
        self.unlinked.insert(pair(a, b));
    }

    fn strikes(&self, a: &str, b: &str) -> bool {
        self.unlinked.contains(&pair(a, b))
    }

    pub fn erase(&mut self, id: &str, clock: i64) {
        self.erased.insert(id.to_string(), clock);
        self.unlinked.retain(|(a, b)| a != id && b != id);
    }

    /// What is dated up to an erasure is not taken of its ids, nor do others name them.
    pub fn is_erased(&self, id: &str, at: i64) -> bool {
        self.erased.get(id).is_some_and(|clock| at <= *clock)
    }
}

fn pair(a: &str, b: &str) -> (String, String) {
    let (least, most) = if a < b { (a, b) } else { (b, a) };
    (least.to_string(), most.to_string())
}

/// The records that take part in anything: not taken back, and not after the clock.
pub fn present(records: &[Record], clock: i64) -> Vec<&Record> {
    records.iter().filter(|r| r.live && !r.waits && r.at <= clock).collect()
}

/// The two ids that a record could link by bearing them both.
fn bears_both<'a>(record: &'a Record, corrections: &Corrections) -> Option<(&'a str, &'a str)> {
    pair_of(record, record.anonymous.as_deref(), corrections)
}

/// The two ids that a record joins as an alias.
fn alias<'a>(record: &'a Record, corrections: &Corrections) -> Option<(&'a str, &'a str)> {
    let previous = record.previous.as_deref().filter(|_| record.kind == "alias");
    pair_of(record, previous, corrections)
}

fn pair_of<'a>(record: &'a Record, other: Option<&'a str>, corrections: &Corrections) -> Option<(&'a str, &'a str)> {
    let (other, user) = (other?, record.user.as_deref()?);
    (record.linked && other != user && !corrections.strikes(other, user)).then_some((other, user))
}

/// Every edge between ids. An anonymous id links to the one user of its earliest event that bears both.
pub fn edges<'a>(present: &[&'a Record], corrections: &Corrections) -> Vec<(&'a str, &'a str)> {
    let mut earliest: BTreeMap<&str, &Record> = BTreeMap::new();
    let mut out = Vec::new();
    for record in present {
        if let Some((anonymous, _)) = bears_both(record, corrections) {
            let first = earliest.entry(anonymous).or_insert(record);
            if record.order() < first.order() {
                *first = record;
            }
        }
        out.extend(alias(record, corrections));
    }
    out.extend(earliest.values().filter_map(|record| bears_both(record, corrections)));
    out
}

/// What is told of links, a line each: the edges with the first event that states them; then the links that events
/// state and that are not made, since they were refused or the anonymous id is another user's.
pub fn told(records: &[Record], clock: i64, corrections: &Corrections) -> BTreeSet<String> {
    let present = present(records, clock);
    let mut first: BTreeMap<(bool, String, String), &Record> = BTreeMap::new();
    let mut note = |key, record| {
        let earliest = first.entry(key).or_insert(record);
        if record.order() < earliest.order() {
            *earliest = record;
        }
    };
    // An anonymous id by itself, to know whose it is; an alias by the pair.
    for record in &present {
        if let Some((anonymous, _)) = bears_both(record, corrections) {
            note((false, anonymous.to_string(), String::new()), record);
        }
        if let Some((a, b)) = alias(record, corrections) {
            let (least, most) = pair(a, b);
            note((true, least, most), record);
        }
    }
    let by = |record: &Record| format!("{} {} of {}", record.at, record.message_id, record.own());
    let mut told = BTreeSet::new();
    for ((is_alias, ..), record) in &first {
        let edge = if *is_alias { alias(record, corrections) } else { bears_both(record, corrections) };
        let (a, b) = edge.expect("it states one");
        told.insert(format!("{a} - {b} by {}", by(record)));
    }
    for record in &present {
        if let Some((anonymous, user)) = bears_both(record, corrections) {
            let (_, owner) =
                bears_both(first[&(false, anonymous.to_string(), String::new())], corrections).expect("one");
            if owner != user {
                told.insert(format!("not {anonymous} - {user} by {}: {owner}", by(record)));
            }
        }
        let mut accepted = (*record).clone();
        accepted.linked = true;
        let refused = [bears_both(&accepted, corrections), alias(&accepted, corrections)].into_iter().flatten();
        for (a, b) in refused.filter(|_| !record.linked) {
            told.insert(format!("not {a} - {b} by {}: refused", by(record)));
        }
    }
    told
}

/// The connected components: for each id that is anybody's, all ids of that person.
pub fn components(present: &[&Record], corrections: &Corrections) -> Vec<BTreeSet<String>> {
    let edges = edges(present, corrections);
    let ids: BTreeSet<&str> = present.iter().map(|r| r.own()).chain(edges.iter().flat_map(|(a, b)| [*a, *b])).collect();
    let mut groups: Vec<BTreeSet<String>> = ids.iter().map(|id| BTreeSet::from([id.to_string()])).collect();
    let mut places: BTreeMap<String, usize> = ids.iter().enumerate().map(|(at, id)| (id.to_string(), at)).collect();
    for (a, b) in edges {
        let (into, from) = (places[a], places[b]);
        if into != from {
            for id in std::mem::take(&mut groups[from]) {
                places.insert(id.clone(), into);
                groups[into].insert(id);
            }
        }
    }
    groups.retain(|group| !group.is_empty());
    groups
}

pub fn component_of<'a>(components: &'a [BTreeSet<String>], id: &str) -> Option<&'a BTreeSet<String>> {
    components.iter().find(|group| group.contains(id))
}

/// Whether one of the records joins people who were apart without it into one of more than `max_ids` ids.
pub fn joins_too_many(records: &[Record], place: usize, clock: i64, corrections: &Corrections, max_ids: usize) -> bool {
    let record = &records[place];
    let own = [bears_both(record, corrections), alias(record, corrections)];
    if own.iter().all(Option::is_none) {
        return false;
    }
    let now = present(records, clock);
    let others: Vec<&Record> = now.iter().copied().filter(|other| !std::ptr::eq(*other, record)).collect();
    let before = components(&others, corrections);
    let after = components(&now, corrections);
    let edges = edges(&now, corrections);
    own.into_iter().flatten().any(|(a, b)| {
        let apart = !component_of(&before, a).is_some_and(|group| group.contains(b));
        let size = component_of(&after, a).map_or(0, BTreeSet::len);
        edges.contains(&(a, b)) && apart && size > max_ids
    })
}

/// One profile: its ids, its public id, and its events in order.
pub struct Person<'a> {
    pub ids: BTreeSet<String>,
    pub known: BTreeSet<String>,
    pub public_id: String,
    pub events: Vec<&'a Record>,
}

/// Everyone who has an event.
pub fn people<'a>(records: &'a [Record], clock: i64, corrections: &Corrections) -> Vec<Person<'a>> {
    let present = present(records, clock);
    let mut by_id: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    present.iter().for_each(|record| by_id.entry(record.own()).or_default().push(record));
    let people = components(&present, corrections).into_iter().map(|ids| {
        let mut events: Vec<&Record> = ids.iter().filter_map(|id| by_id.get(id.as_str())).flatten().copied().collect();
        events.sort_by(|a, b| a.order().cmp(&b.order()));
        let known: BTreeSet<String> = events.iter().filter_map(|r| r.user.clone()).collect();
        let public_id = known.first().or(ids.first()).cloned().unwrap_or_default();
        Person { ids, known, public_id, events }
    });
    people.filter(|person| !person.events.is_empty()).collect()
}
