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

/// Who is whom.
#[derive(Debug, Default)]
pub struct Identity {
    /// By anonymous id, all that claim it.
    claims: HashMap<Id, BTreeSet<Claim>>,
    /// By ordered pair of ids, the aliases that join them, by event.
    aliases: HashMap<(Id, Id), BTreeSet<(Id, EcoString)>>,
    /// The links of an event, by its own id and message id, to take them back.
    links: HashMap<(Id, EcoString), Link>,
    struck: HashSet<(Id, Id)>,
    /// Events whose links were refused, by own id and message id.
    refused: BTreeMap<(Id, EcoString), Link>,
    neighbours: HashMap<Id, BTreeMap<Id, u32>>,
    /// Ids that calls with a link bear as `userId`, and how many do.
    users: HashMap<Id, u32>,
    keys: HashMap<Id, Id>,
    /// Accepted, but dated after the clock: they take part in nothing yet.
    future: BTreeMap<(Millis, u64), Link>,
    touched: BTreeSet<Id>,
}

impl Identity {
    /// Nobody is linked.
    pub fn new() -> Self {
        Identity::default()
    }

    /// Applies changes in log order, up to `clock`. No component grows beyond `ids_max` by an edge that is accepted.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>, clock: Millis, ids_max: usize) -> Outcome {
        let mut refused = Vec::new();
        for change in changes {
            match change {
                Change::Link(link) if link.timestamp > clock => {
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
            }
        }
        while let Some(next) = self.future.first_entry().filter(|next| next.key().0 <= clock) {
            let link = next.remove();
            if !self.accept(&link, ids_max) {
                refused.push(link.position);
            }
        }
        let mut outcome = Outcome { refused, ..Outcome::default() };
        self.components(&mut outcome);
        outcome
    }

    /// The key of the person an id belongs to, if it is linked to any other.
    pub fn key(&self, id: &str) -> Option<&Id> {
        self.keys.get(id)
    }

    /// Takes a link in, unless that would make too large a component.
    fn accept(&mut self, link: &Link, ids_max: usize) -> bool {
        let others = || link.anonymous.iter().chain(&link.previous);
        let known = self.component_of(&link.user);
        self.state(link, true);
        // An edge that joins nothing new makes nothing larger; nor does a call that makes none, since another claims
        // the id or the pair was struck.
        let person = self.component_of(&link.user);
        let joins = |other: &Id| {
            !known.contains(other) && self.neighbours.get(other).is_some_and(|near| near.contains_key(&link.user))
        };
        if person.len() > ids_max && others().any(joins) {
            self.state(link, false);
            self.refused.insert((link.user.clone(), link.message_id.clone()), link.clone());
            return false;
        }
        self.links.insert((link.user.clone(), link.message_id.clone()), link.clone());
        true
    }

    fn retract(&mut self, own: Id, message_id: EcoString) {
        self.future.retain(|_, link| link.user != own || link.message_id != message_id);
        let event = (own, message_id);
        self.refused.remove(&event);
        if let Some(link) = self.links.remove(&event) {
            self.state(&link, false);
        }
    }

    /// Who would be one person without some events, by own id and message id: all that are other than they are.
    pub fn without(&mut self, events: &[(Id, EcoString)]) -> Vec<BTreeSet<Id>> {
        debug_assert!(self.touched.is_empty(), "what was touched is settled");
        let gone: Vec<Link> = events.iter().filter_map(|event| self.links.get(event)).cloned().collect();
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
        self.neighbours.get(a).is_some_and(|near| near.contains_key(b))
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
        self.struck.retain(|(a, b)| !gone(a) && !gone(b));
    }

    /// States or takes back what one call says.
    fn state(&mut self, link: &Link, stated: bool) {
        let calls = self.users.entry(link.user.clone()).or_insert(0);
        *calls = if stated { *calls + 1 } else { *calls - 1 };
        if *calls == 0 {
            self.users.remove(&link.user);
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
            let before = self.user_of(anonymous);
            let claims = self.claims.entry(anonymous.clone()).or_default();
            let claim = (link.timestamp, link.message_id.clone(), link.user.clone());
            if stated {
                claims.insert(claim)
            } else {
                claims.remove(&claim)
            };
            self.reclaim(anonymous, before);
        }
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
            let neighbours = self.neighbours.entry(from.clone()).or_default();
            let times = neighbours.entry(to.clone()).or_insert(0);
            if there {
                *times += 1;
            } else {
                *times -= 1;
                if *times == 0 {
                    neighbours.remove(to);
                }
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

fn ordered(a: &Id, b: &Id) -> (Id, Id) {
    if a <= b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(position: u64, timestamp: Millis, user: &str, other: &str, alias: bool) -> Change {
        let message_id = format!("m{position}").into();
        let (anonymous, previous) = if alias { (None, Some(other.into())) } else { (Some(other.into()), None) };
        Change::Link(Link { position, timestamp, message_id, user: user.into(), anonymous, previous })
    }

    fn key<'a>(identity: &'a Identity, id: &'a str) -> &'a str {
        identity.key(id).map_or(id, |key| key)
    }

    #[test]
    fn the_earliest_event_claims_whatever_comes_first() {
        let mut identity = Identity::new();
        identity.apply([link(1, 20, "bob", "phone", false)], 100, 100);
        assert_eq!(key(&identity, "phone"), "bob");
        identity.apply([link(2, 10, "ada", "phone", false)], 100, 100);
        assert_eq!((key(&identity, "phone"), key(&identity, "bob")), ("ada", "bob"));
        identity.apply([Change::Retract("ada".into(), "m2".into())], 100, 100);
        assert_eq!((key(&identity, "phone"), key(&identity, "ada")), ("bob", "ada"));
        identity.apply([Change::Unlink("phone".into(), "bob".into())], 100, 100);
        assert_eq!(key(&identity, "phone"), "phone");
    }

    #[test]
    fn who_would_be_whom_without_events_is_found_and_nothing_is_changed() {
        let mut identity = Identity::new();
        let links = [link(1, 10, "ada", "phone", false), link(2, 20, "bob", "phone", false)];
        identity.apply(
            links.into_iter().chain([link(3, 30, "ada", "old", true), link(4, 40, "ada", "phone", false)]),
            100,
            9,
        );
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
        let outcome =
            identity.apply([link(1, 1, "a", "b", true), link(2, 2, "b", "c", true), link(3, 3, "c", "d", true)], 9, 2);
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
            timestamp: 30,
            message_id: "m3".into(),
            user: "bob".into(),
            anonymous: Some("phone".into()),
            previous: Some("bobby".into()),
        });
        let future = link(4, 200, "bob", "ada", true);
        identity.apply([link(1, 10, "ada", "phone", false), link(2, 20, "ada", "old", true), both, future], 100, 9);
        identity.apply([Change::Unlink("old".into(), "bob".into()), erase(&["ada", "phone", "old"])], 100, 9);
        for id in ["ada", "phone", "old"] {
            assert_eq!(key(&identity, id), id);
            assert_eq!(identity.component_of(&id.into()).len(), 1, "{id}");
        }
        // What others stated of others stays: of who was erased neither then nor later.
        assert_eq!(key(&identity, "bobby"), "bob");
        identity.apply([], 300, 9);
        assert_eq!((key(&identity, "ada"), identity.struck.len()), ("ada", 0));
        // Who comes back starts anew.
        identity.apply([link(5, 310, "ada", "phone", false), link(6, 310, "old", "bob", true)], 310, 9);
        assert_eq!((key(&identity, "phone"), identity.component_of(&"bob".into()).len()), ("ada", 3));
    }

    #[test]
    fn the_future_waits() {
        let mut identity = Identity::new();
        assert!(identity.apply([link(1, 50, "a", "b", true)], 49, 9).components.is_empty());
        assert_eq!(
            identity.apply([], 50, 9).components,
            [Component { key: "a".into(), ids: vec!["a".into(), "b".into()] }]
        );
    }
}
