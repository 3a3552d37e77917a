//! Identity: which ids are one person.
//!
//! An anonymous id links to one user, that of its earliest event bearing both; an alias joins two ids; an unlink
//! strikes an edge for good. A person is a connected component of what remains. All of it is a minimum and a union
//! over sets, so it does not depend on the order of arrival, and anything can be taken back: components are few ids
//! each, and the ones touched are walked anew. Only refusal looks at the order of the log: an edge that would make too
//! large a component is refused when it comes.

use std::collections::{BTreeMap, BTreeSet};

use ecow::EcoString;
use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};

use crate::event::Link;
use crate::time::Millis;

/// An id, as it was written.
pub type Id = EcoString;

/// Somebody is erased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// Its place in the log: what comes after it is not meant.
    pub position: u64,
    /// Later records of these ids that are dated up to this instant do not come in.
    pub until: Millis,
    /// All ids of the person, as they were when it was asked for.
    pub ids: Vec<Id>,
}

/// Links of before an erasure, as they were decided on: whoever reads the log again does not find all by which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// The place of the erasure: what comes after it is not meant.
    pub before: u64,
    /// Its clock: what is dated after it was not decided on.
    pub clock: Millis,
    /// Places of calls whose links were refused, in order, later ones too; all others' were not.
    pub refused: Vec<u64>,
}

/// Something that changes who is whom.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Change {
    /// A call stated links.
    Link(Link),
    /// The edge between two ids is struck, now and for later events.
    Unlink(Id, Id),
    /// An event was taken back: own id, message id.
    Retract(Id, EcoString),
    /// Somebody is erased: all that they stated goes, and what others stated of them.
    Erase(Erasure),
    /// Links of before an erasure are not decided on again.
    Settled(Settled),
}

/// A person's ids, where they changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Where the person's history is kept.
    pub key: Id,
    /// All ids, in order.
    pub ids: Vec<Id>,
}

/// An id's history goes from one person to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The id.
    pub id: Id,
    /// The key of the person it belonged to.
    pub from: Id,
    /// The key of the person it belongs to now.
    pub to: Id,
}

/// An edge between two ids, and the first event that states it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Linked {
    /// One id: an anonymous one, or the one that an alias joins to the other.
    pub a: Id,
    /// The other.
    pub b: Id,
    /// When the event happened, ms.
    pub at: Millis,
    /// Its own id.
    pub own: Id,
    /// Its message id.
    pub message_id: EcoString,
}

/// A link that an event states and that was refused, or is not made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unlinked {
    /// When the event happened, ms.
    pub at: Millis,
    /// Its message id.
    pub message_id: EcoString,
    /// Its own id.
    pub own: Id,
    /// The id that it would have joined to the other.
    pub a: Id,
    /// The other.
    pub b: Id,
    /// The user that the anonymous id belongs to; none: the link would have made a profile of too many ids.
    pub claimed_by: Option<Id>,
}

/// What a time's changes did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Components that are new or other than before. An id of an old one stands in exactly one of them.
    pub components: Vec<Component>,
    /// Ids that belong to another key than before.
    pub moves: Vec<Move>,
    /// Log positions of the calls whose edges were refused.
    pub refused: Vec<u64>,
}

/// What an event says of an anonymous id: ordered as events are, so that the least one counts.
type Claim = (Millis, EcoString, Id);

/// What calls with a link state of the id that they bear as `userId`.
#[derive(Debug, Default)]
struct User {
    /// How many do.
    calls: u32,
    /// The anonymous ids that they claim, in order.
    claims: Vec<Id>,
}

/// Who is whom.
#[derive(Debug, Default)]
pub struct Identity {
    /// By anonymous id, all that claim it, in order. Most calls of somebody who is logged in claim theirs.
    claims: HashMap<Id, Vec<Claim>>,
    /// By ordered pair of ids, the aliases that join them, by event.
    aliases: HashMap<(Id, Id), BTreeSet<(Id, EcoString)>>,
    /// By own id and message id the calls that state an alias, to take back what they state.
    links: HashMap<(Id, EcoString), Link>,
    struck: HashSet<(Id, Id)>,
    /// Events whose links were refused, by own id and message id.
    refused: BTreeMap<(Id, EcoString), Link>,
    /// By id those that an edge joins it to, in order, and how many edges do.
    neighbours: HashMap<Id, Vec<(Id, u32)>>,
    /// Ids that calls with a link bear as `userId`.
    users: HashMap<Id, User>,
    keys: HashMap<Id, Id>,
    /// Accepted, but dated after the clock: they take part in nothing yet.
    future: BTreeMap<(Millis, u64), Link>,
    /// Links that come were decided on before.
    settled: Option<Settled>,
    touched: BTreeSet<Id>,
}

impl Identity {
    /// Nobody is linked.
    pub fn new() -> Self {
        Identity::default()
    }

    /// Applies changes in log order, each by the clock with which the log stamped it, up to `clock`. No component grows
    /// beyond `ids_max` by an edge that is accepted.
    pub fn apply(
        &mut self,
        changes: impl IntoIterator<Item = (Millis, Change)>,
        clock: Millis,
        ids_max: usize,
    ) -> Outcome {
        let mut refused = Vec::new();
        for (stamp, change) in changes {
            // However the log is cut into steps.
            self.reach(stamp, ids_max, &mut refused);
            match change {
                Change::Link(link) if link.timestamp > stamp => {
                    self.future.insert((link.timestamp, link.position), link);
                }
                Change::Link(link) => {
                    if !self.accept(&link, ids_max) {
                        refused.push(link.position);
                    }
                }
                Change::Unlink(a, b) => self.unlink(&a, &b),
                Change::Retract(own, message_id) => self.retract(own, message_id),
                Change::Erase(erasure) => self.erase(&erasure.ids.into_iter().collect()),
                Change::Settled(settled) => {
                    let known = self.settled.get_or_insert_with(|| settled.clone());
                    if known.before < settled.before {
                        *known = settled;
                    }
                }
            }
        }
        self.reach(clock, ids_max, &mut refused);
        let mut outcome = Outcome { refused, ..Outcome::default() };
        self.components(&mut outcome);
        outcome
    }

    /// The clock goes on: what was of the future takes part from now on.
    fn reach(&mut self, clock: Millis, ids_max: usize, refused: &mut Vec<u64>) {
        while let Some(next) = self.future.first_entry().filter(|next| next.key().0 <= clock) {
            let link = next.remove();
            if !self.accept(&link, ids_max) {
                refused.push(link.position);
            }
        }
    }

    /// The key of the person an id belongs to, if it is linked to any other.
    pub fn key(&self, id: &str) -> Option<&Id> {
        self.keys.get(id)
    }

    /// Takes a link in, unless that would make too large a component.
    fn accept(&mut self, link: &Link, ids_max: usize) -> bool {
        let others = || link.anonymous.iter().chain(&link.previous);
        // An edge that joins nothing new makes nothing larger; nor does a call that makes none, since another claims
        // the id or the pair was struck.
        let is_new = !others().all(|other| self.is_linked(other, &link.user));
        let known = is_new.then(|| self.component_of(&link.user));
        self.state(link, true);
        let grows = |known: BTreeSet<Id>| {
            let joins = |other: &Id| !known.contains(other) && self.is_linked(other, &link.user);
            others().any(joins) && self.component_of(&link.user).len() > ids_max
        };
        let is_settled = |of: &&Settled| link.position < of.before && link.timestamp <= of.clock;
        let is_refused = match self.settled.as_ref().filter(is_settled) {
            Some(settled) => settled.refused.binary_search(&link.position).is_ok(),
            None => known.is_some_and(grows),
        };
        if is_refused {
            self.state(link, false);
            self.refused.insert((link.user.clone(), link.message_id.clone()), link.clone());
            return false;
        }
        if link.previous.is_some() {
            self.links.insert((link.user.clone(), link.message_id.clone()), link.clone());
        }
        true
    }

    fn retract(&mut self, own: Id, message_id: EcoString) {
        self.future.retain(|_, link| link.user != own || link.message_id != message_id);
        let event = (own, message_id);
        self.refused.remove(&event);
        if let Some(link) = self.stated(&event) {
            self.links.remove(&event);
            self.state(&link, false);
        }
    }

    /// What a call states; of its place and its stamp nothing is known any more.
    fn stated(&self, event: &(Id, EcoString)) -> Option<Link> {
        let (own, message_id) = event;
        let claimed = |anonymous: &Id| {
            let mut claims = self.claims.get(anonymous)?.iter();
            let (timestamp, ..) = claims.find(|(_, of, user)| (of, user) == (message_id, own))?;
            let (user, message_id, anonymous) = (own.clone(), message_id.clone(), Some(anonymous.clone()));
            Some(Link { position: 0, stamp: 0, timestamp: *timestamp, message_id, user, anonymous, previous: None })
        };
        let by_claim = || self.users.get(own)?.claims.iter().find_map(claimed);
        self.links.get(event).cloned().or_else(by_claim)
    }

    /// Who would be one person without some events, by own id and message id: all that are other than they are.
    pub fn without(&mut self, events: &[(Id, EcoString)]) -> Vec<BTreeSet<Id>> {
        debug_assert!(self.touched.is_empty(), "what was touched is settled");
        let gone: Vec<Link> = events.iter().filter_map(|event| self.stated(event)).collect();
        gone.iter().for_each(|link| self.state(link, false));
        let (mut open, mut people) = (std::mem::take(&mut self.touched), Vec::new());
        while let Some(id) = open.pop_first() {
            let ids = self.component_of(&id);
            open.retain(|id| !ids.contains(id));
            people.push(ids);
        }
        // They are stated all the same, and whatever that touches is as it was.
        gone.iter().for_each(|link| self.state(link, true));
        self.touched.clear();
        people.retain(|ids| ids.first().is_some_and(|id| self.component_of(id) != *ids));
        people
    }

    /// Whether an edge joins two ids.
    pub fn is_linked(&self, a: &str, b: &str) -> bool {
        self.neighbours.get(a).is_some_and(|near| find(near, b).is_ok())
    }

    /// The edges between the ids of somebody, each with the first event that states it, in order.
    pub fn linked(&self, id: &Id) -> Vec<Linked> {
        let mut linked = Vec::new();
        for a in self.component_of(id) {
            for b in self.neighbours.get(&a).into_iter().flatten().map(|(b, _)| b) {
                let claims = self.claims.get(&a).filter(|_| self.user_of(&a).as_ref() == Some(b));
                let claim = claims.and_then(|claims| claims.iter().find(|(_, _, user)| user == b));
                linked.extend(claim.map(|(at, message_id, user)| Linked {
                    a: a.clone(),
                    b: b.clone(),
                    at: *at,
                    own: user.clone(),
                    message_id: message_id.clone(),
                }));
                let events = self.aliases.get(&(a.clone(), b.clone())).filter(|_| !self.is_struck(&a, b));
                let stated = events.into_iter().flatten().filter_map(|event| Some((self.links.get(event)?, event)));
                let first = stated.min_by_key(|(link, _)| (link.timestamp, &link.message_id, &link.user));
                linked.extend(first.map(|(link, (own, message_id))| {
                    let previous = link.previous.clone().unwrap_or_default();
                    let (a, b) = (previous, link.user.clone());
                    Linked { a, b, at: link.timestamp, own: own.clone(), message_id: message_id.clone() }
                }));
            }
        }
        linked.sort();
        linked
    }

    /// Links that were refused, and those that are not made since the anonymous id belongs to another user; the first
    /// so many after one, in order.
    pub fn unlinked(&self, after: Option<&Unlinked>, limit: usize) -> Vec<Unlinked> {
        let mut all = BTreeSet::new();
        let mut note = |unlinked: Unlinked| {
            if after.is_none_or(|after| unlinked > *after) {
                all.insert(unlinked);
            }
            if all.len() > limit {
                all.pop_last();
            }
        };
        for ((own, message_id), link) in &self.refused {
            let others = link.anonymous.iter().chain(&link.previous);
            for a in others.filter(|a| !self.is_struck(a, &link.user)) {
                let (at, a, b) = (link.timestamp, a.clone(), link.user.clone());
                let (own, message_id) = (own.clone(), message_id.clone());
                note(Unlinked { at, message_id, own, a, b, claimed_by: None });
            }
        }
        for (a, claims) in self.claims.iter().filter(|(_, claims)| claims.len() > 1) {
            let Some(claimed_by) = self.user_of(a) else { continue };
            for (at, message_id, user) in claims.iter().filter(|(_, _, user)| *user != claimed_by) {
                if !self.is_struck(a, user) {
                    let (a, b, own) = (a.clone(), user.clone(), user.clone());
                    let (message_id, claimed_by) = (message_id.clone(), Some(claimed_by.clone()));
                    note(Unlinked { at: *at, message_id, own, a, b, claimed_by });
                }
            }
        }
        all.into_iter().collect()
    }

    fn is_struck(&self, a: &Id, b: &Id) -> bool {
        self.struck.contains(&ordered(a, b))
    }

    fn erase(&mut self, ids: &HashSet<Id>) {
        let gone = |id: &Id| ids.contains(id);
        let without = |link: &Link| Link {
            anonymous: link.anonymous.clone().filter(|id| !gone(id)),
            previous: link.previous.clone().filter(|id| !gone(id)),
            ..link.clone()
        };
        let stands = |link: &Link| !gone(&link.user) && (link.anonymous.is_some() || link.previous.is_some());
        let keep = |link: &mut Link| {
            *link = without(link);
            stands(link)
        };
        self.future.retain(|_, link| keep(link));
        self.refused.retain(|_, link| keep(link));
        let named = |link: &&Link| {
            [Some(&link.user), link.anonymous.as_ref(), link.previous.as_ref()].into_iter().flatten().any(gone)
        };
        for link in self.links.values().filter(named).cloned().collect::<Vec<_>>() {
            self.state(&link, false);
            let (event, rest) = ((link.user.clone(), link.message_id.clone()), without(&link));
            self.links.remove(&event);
            if stands(&rest) {
                self.state(&rest, true);
                self.links.insert(event, rest);
            }
        }
        let mut claims: BTreeSet<(Id, Claim)> = BTreeSet::new();
        for id in ids {
            let of = |anonymous: &Id| self.claims.get(anonymous).cloned().unwrap_or_default();
            claims.extend(of(id).into_iter().map(|claim| (id.clone(), claim)));
            for anonymous in self.users.get(id).into_iter().flat_map(|user| &user.claims) {
                let own = of(anonymous).into_iter().filter(|(.., user)| user == id);
                claims.extend(own.map(|claim| (anonymous.clone(), claim)));
            }
        }
        for (anonymous, claim) in claims {
            let user = claim.2.clone();
            self.claim(&anonymous, claim, false);
            self.count(&user, false);
        }
        self.struck.retain(|(a, b)| !gone(a) && !gone(b));
    }

    /// States or takes back what one call says.
    fn state(&mut self, link: &Link, stated: bool) {
        if stated {
            self.count(&link.user, true);
        }
        if let Some(previous) = &link.previous {
            let pair = ordered(&link.user, previous);
            let events = self.aliases.entry(pair.clone()).or_default();
            let event = (link.user.clone(), link.message_id.clone());
            let before = !events.is_empty();
            if stated {
                events.insert(event)
            } else {
                events.remove(&event)
            };
            let after = !events.is_empty();
            if before != after && !self.struck.contains(&pair) {
                self.edge(&link.user, previous, after);
            }
        }
        if let Some(anonymous) = &link.anonymous {
            self.claim(anonymous, (link.timestamp, link.message_id.clone(), link.user.clone()), stated);
        }
        if !stated {
            self.count(&link.user, false);
        }
    }

    /// There is one more call with a link of a user, or one less.
    fn count(&mut self, user: &Id, stated: bool) {
        let calls = &mut self.users.entry_ref(user).or_default().calls;
        *calls = if stated { *calls + 1 } else { *calls - 1 };
        if *calls == 0 {
            self.users.remove(user);
        }
    }

    /// A call claims an anonymous id, or no longer does.
    fn claim(&mut self, anonymous: &Id, claim: Claim, stated: bool) {
        let before = self.user_of(anonymous);
        let claims = self.claims.entry_ref(anonymous).or_default();
        let by_user = &mut self.users.entry_ref(&claim.2).or_default().claims;
        let place = claims.binary_search(&claim);
        match (stated, place) {
            (true, Err(place)) => {
                put(claims, place, claim.clone());
                if let Err(place) = by_user.binary_search(anonymous) {
                    put(by_user, place, anonymous.clone());
                }
            }
            (false, Ok(place)) => {
                claims.remove(place);
                if !claims.iter().any(|(.., user)| *user == claim.2) {
                    by_user.retain(|id| id != anonymous);
                }
            }
            _ => {}
        }
        if claims.is_empty() {
            self.claims.remove(anonymous);
        }
        self.reclaim(anonymous, before);
    }

    fn unlink(&mut self, a: &Id, b: &Id) {
        let pair = ordered(a, b);
        let before = [self.user_of(a), self.user_of(b)];
        if !self.struck.insert(pair.clone()) {
            return;
        }
        if self.aliases.get(&pair).is_some_and(|events| !events.is_empty()) {
            self.edge(a, b, false);
        }
        for (anonymous, before) in [a, b].into_iter().zip(before) {
            self.reclaim(anonymous, before);
        }
    }

    /// The one user an anonymous id links to: that of the earliest event bearing both, struck pairs aside.
    fn user_of(&self, anonymous: &Id) -> Option<Id> {
        let claims = self.claims.get(anonymous)?.iter();
        claims.map(|(_, _, user)| user).find(|user| !self.is_struck(anonymous, user)).cloned()
    }

    fn reclaim(&mut self, anonymous: &Id, before: Option<Id>) {
        let after = self.user_of(anonymous);
        if before == after {
            return;
        }
        if let Some(user) = before {
            self.edge(anonymous, &user, false);
        }
        if let Some(user) = after {
            self.edge(anonymous, &user, true);
        }
    }

    fn edge(&mut self, a: &Id, b: &Id, there: bool) {
        for (from, to) in [(a, b), (b, a)] {
            let neighbours = self.neighbours.entry_ref(from).or_default();
            let place = find(neighbours, to).unwrap_or_else(|place| {
                put(neighbours, place, (to.clone(), 0));
                place
            });
            let times = &mut neighbours[place].1;
            *times = if there { *times + 1 } else { *times - 1 };
            if *times == 0 {
                neighbours.remove(place);
            }
            if neighbours.is_empty() {
                self.neighbours.remove(from);
            }
            self.touched.insert(from.clone());
        }
    }

    /// All ids that an id is connected to, itself included, in order.
    fn component_of(&self, id: &Id) -> BTreeSet<Id> {
        let mut found = BTreeSet::from([id.clone()]);
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            for (next, _) in self.neighbours.get(id).into_iter().flatten() {
                if found.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        found
    }

    /// The components that the ids touched are in now, as far as they are other than before. The key is an id that
    /// calls bear as `userId`, since most of what comes later comes under it; else the least.
    fn components(&mut self, outcome: &mut Outcome) {
        let mut open = std::mem::take(&mut self.touched);
        while let Some(id) = open.pop_first() {
            let ids = self.component_of(&id);
            let key = ids.iter().find(|id| self.users.contains_key(*id)).or(ids.first());
            let key = key.expect("it holds the id itself").clone();
            for id in &ids {
                open.remove(id);
                let before = match key == *id {
                    true => self.keys.remove(id),
                    false => self.keys.insert(id.clone(), key.clone()),
                };
                let from = before.unwrap_or_else(|| id.clone());
                if from != key {
                    outcome.moves.push(Move { id: id.clone(), from, to: key.clone() });
                }
            }
            outcome.components.push(Component { key, ids: ids.into_iter().collect() });
        }
    }
}

fn find(neighbours: &[(Id, u32)], id: &str) -> Result<usize, usize> {
    neighbours.binary_search_by(|(other, _)| other.as_str().cmp(id))
}

/// Puts something in its place; most have one, and there are many.
fn put<T>(all: &mut Vec<T>, place: usize, new: T) {
    if all.is_empty() {
        all.reserve_exact(1);
    }
    all.insert(place, new);
}

fn ordered(a: &Id, b: &Id) -> (Id, Id) {
    if a <= b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(position: u64, timestamp: Millis, user: &str, other: &str, alias: bool) -> Change {
        let message_id = format!("m{position}").into();
        let (anonymous, previous) = if alias { (None, Some(other.into())) } else { (Some(other.into()), None) };
        Change::Link(Link { position, stamp: timestamp, timestamp, message_id, user: user.into(), anonymous, previous })
    }

    /// All at one clock.
    fn apply<const N: usize>(identity: &mut Identity, changes: [Change; N], clock: Millis, ids_max: usize) -> Outcome {
        identity.apply(changes.map(|change| (clock, change)), clock, ids_max)
    }

    fn key<'a>(identity: &'a Identity, id: &'a str) -> &'a str {
        identity.key(id).map_or(id, |key| key)
    }

    #[test]
    fn the_earliest_event_claims_whatever_comes_first() {
        let mut identity = Identity::new();
        apply(&mut identity, [link(1, 20, "bob", "phone", false)], 100, 100);
        assert_eq!(key(&identity, "phone"), "bob");
        apply(&mut identity, [link(2, 10, "ada", "phone", false)], 100, 100);
        assert_eq!((key(&identity, "phone"), key(&identity, "bob")), ("ada", "bob"));
        apply(&mut identity, [Change::Retract("ada".into(), "m2".into())], 100, 100);
        assert_eq!((key(&identity, "phone"), key(&identity, "ada")), ("bob", "ada"));
        apply(&mut identity, [Change::Unlink("phone".into(), "bob".into())], 100, 100);
        assert_eq!(key(&identity, "phone"), "phone");
    }

    #[test]
    fn who_would_be_whom_without_events_is_found_and_nothing_is_changed() {
        let mut identity = Identity::new();
        let links = [link(1, 10, "ada", "phone", false), link(2, 20, "bob", "phone", false)];
        apply(&mut identity, links, 100, 9);
        apply(&mut identity, [link(3, 30, "ada", "old", true), link(4, 40, "ada", "phone", false)], 100, 9);
        let ids = |ids: &[&str]| ids.iter().map(|id| EcoString::from(*id)).collect::<BTreeSet<_>>();
        let event = |own: &str, number: u64| (EcoString::from(own), EcoString::from(format!("m{number}")));
        // Ada's first event with the phone is not her only one, but then bob's is the first.
        assert_eq!(identity.without(&[event("ada", 1)]), [ids(&["ada", "old"]), ids(&["bob", "phone"])]);
        assert_eq!(identity.without(&[event("ada", 4), event("bob", 2), event("eve", 9)]), [] as [BTreeSet<Id>; 0]);
        assert_eq!(identity.without(&[event("ada", 3)]), [ids(&["ada", "phone"]), ids(&["old"])]);
        assert_eq!(identity.component_of(&"old".into()), ids(&["ada", "old", "phone"]));
        assert_eq!((key(&identity, "phone"), key(&identity, "bob")), ("ada", "bob"));
    }

    #[test]
    fn too_large_a_component_is_refused_in_log_order() {
        let mut identity = Identity::new();
        let outcome = apply(
            &mut identity,
            [link(1, 1, "a", "b", true), link(2, 2, "b", "c", true), link(3, 3, "c", "d", true)],
            9,
            2,
        );
        assert_eq!(outcome.refused, [2]);
        assert_eq!((key(&identity, "b"), key(&identity, "d")), ("a", "c"));
    }

    #[test]
    fn nothing_is_left_of_who_was_erased() {
        let erase = |ids: &[&str]| {
            let ids = ids.iter().map(|id| EcoString::from(*id)).collect();
            Change::Erase(Erasure { position: 9, until: 100, ids })
        };
        let mut identity = Identity::new();
        let both = Change::Link(Link {
            position: 3,
            stamp: 30,
            timestamp: 30,
            message_id: "m3".into(),
            user: "bob".into(),
            anonymous: Some("phone".into()),
            previous: Some("bobby".into()),
        });
        let future = link(4, 200, "bob", "ada", true);
        apply(
            &mut identity,
            [link(1, 10, "ada", "phone", false), link(2, 20, "ada", "old", true), both, future],
            100,
            9,
        );
        apply(&mut identity, [Change::Unlink("old".into(), "bob".into()), erase(&["ada", "phone", "old"])], 100, 9);
        for id in ["ada", "phone", "old"] {
            assert_eq!(key(&identity, id), id);
            assert_eq!(identity.component_of(&id.into()).len(), 1, "{id}");
        }
        // What others stated of others stays: of who was erased neither then nor later.
        assert_eq!(key(&identity, "bobby"), "bob");
        apply(&mut identity, [], 300, 9);
        assert_eq!((key(&identity, "ada"), identity.struck.len()), ("ada", 0));
        // Who comes back starts anew.
        apply(&mut identity, [link(5, 310, "ada", "phone", false), link(6, 310, "old", "bob", true)], 310, 9);
        assert_eq!((key(&identity, "phone"), identity.component_of(&"bob".into()).len()), ("ada", 3));
    }

    /// However the log is cut into steps, and whether or not a step closes just when the future comes.
    #[test]
    fn what_is_dated_after_its_stamp_is_decided_on_when_its_time_comes() {
        let ahead = |identity: &mut Identity| identity.apply([(5, link(1, 8, "a", "b", true))], 5, 2);
        let now = |position, stamp| (stamp, link(position, stamp, "b", "c", true));
        let keys = |identity: &Identity| (key(identity, "b").to_owned(), key(identity, "c").to_owned());
        for cut in [false, true] {
            // What was stamped before that instant comes first, what was after it comes after.
            for (stamp, refused, expected) in [(6, 1, ("b", "b")), (9, 2, ("a", "c"))] {
                let mut identity = Identity::new();
                let mut told = Vec::new();
                if cut {
                    told.extend(ahead(&mut identity).refused);
                    told.extend(identity.apply([now(2, stamp)], stamp, 2).refused);
                    told.extend(identity.apply([], 10, 2).refused);
                } else {
                    told = identity.apply([(5, link(1, 8, "a", "b", true)), now(2, stamp)], 10, 2).refused;
                }
                assert_eq!(told, [refused], "{cut} {stamp}");
                assert_eq!(keys(&identity), (expected.0.to_owned(), expected.1.to_owned()));
            }
            let mut identity = Identity::new();
            ahead(&mut identity);
            let gone = Change::Retract("a".into(), "m1".into());
            assert_eq!(identity.apply([(6, gone), now(2, 9)], 10, 2).refused, [0; 0]);
            assert_eq!(keys(&identity), ("b".to_owned(), "b".to_owned()));
        }
    }

    #[test]
    fn what_was_decided_before_an_erasure_is_not_decided_again() {
        let mut identity = Identity::new();
        let settled = Change::Settled(Settled { before: 4, clock: 6, refused: vec![2] });
        let outcome = identity.apply(
            [
                (0, settled),
                (1, link(1, 1, "a", "b", true)),
                (2, link(2, 2, "x", "y", true)),
                (3, link(3, 3, "b", "c", true)),
                (3, link(5, 3, "c", "d", true)),
            ],
            9,
            2,
        );
        assert_eq!(outcome.refused, [2, 5]);
        assert_eq!((key(&identity, "c"), key(&identity, "y"), key(&identity, "d")), ("a", "y", "d"));
    }

    #[test]
    fn the_future_waits() {
        let mut identity = Identity::new();
        assert!(apply(&mut identity, [link(1, 50, "a", "b", true)], 49, 9).components.is_empty());
        assert_eq!(
            apply(&mut identity, [], 50, 9).components,
            [Component { key: "a".into(), ids: vec!["a".into(), "b".into()] }]
        );
    }
}
