//! Answers: what is true of a profile, as rows in the shape in which they are told.
//!
//! Everything here is read off a state and its history; nothing is kept for the sake of being asked.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use ecow::EcoString;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::aggregates::Figure;
use super::attribution::{Credit, DIRECT_KEY};
use super::campaigns::{Intent, Meant, Status, intent_id};
use super::people::Consent;
use super::segments::Change;
use super::sessions::Session;
use super::{Root, State};
use crate::definitions::Visitor;
use crate::event::{ConsentSource, Context, Event};
use crate::number::{print_billionths, print_millionths};
use crate::plan::{Cause, Plan};
use crate::protocol::Watched;
use crate::time::Millis;
use crate::value::Value;

/// A view whose rows can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// The profile itself.
    Profiles,
    /// Its events: log positions.
    Events,
    /// Its sessions.
    Sessions,
    /// Its touches.
    Touches,
    /// Its conversions.
    Conversions,
    /// Its intents.
    Intents,
    /// Its entries to and exits from segments.
    Changes,
    /// The credit of its conversions, by model and touch.
    Credit,
}

impl View {
    /// Those that one profile has a history of.
    pub const HISTORIES: [View; 6] =
        [View::Events, View::Sessions, View::Touches, View::Conversions, View::Intents, View::Changes];
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Only rows before this one; none: from the newest.
    pub before: Option<Key>,
    /// Rows to give, at most.
    pub limit: usize,
}

/// What tells a row of a history from all others, whatever comes before it or goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    at: Millis,
    message_id: EcoString,
    own: EcoString,
    /// What of the event it is, by name.
    what: EcoString,
    /// How many rows before it are the same in all this.
    again: usize,
}

/// Rows of one view.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Rows {
    /// Profiles.
    Profiles(Vec<ProfileRow>),
    /// Whose events, when they happened, and their log positions.
    Events(Vec<(EcoString, Millis, u64)>),
    /// Sessions.
    Sessions(Vec<SessionRow>),
    /// Touches.
    Touches(Vec<TouchRow>),
    /// Conversions.
    Conversions(Vec<ConversionRow>),
    /// Intents.
    Intents(Vec<IntentRow>),
    /// Changes of segments.
    Changes(Vec<ChangeRow>),
    /// Credit.
    Credit(Vec<CreditRow>),
}

impl ProfileRow {
    /// All its ids.
    pub fn ids(&self) -> impl Iterator<Item = &EcoString> {
        self.ids.iter().map(|row| &row.id)
    }

    /// Whether a purpose is granted.
    pub fn consents(&self, purpose: &str) -> bool {
        self.consent.get(purpose).is_some_and(|answer| answer.granted)
    }
}

impl SessionRow {
    /// What orders the sessions of all profiles: the start, then the profile.
    pub fn key(&self) -> (Millis, EcoString) {
        (self.start, self.profile.clone())
    }
}

impl Rows {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Rows::Profiles(rows) => rows.len(),
            Rows::Events(rows) => rows.len(),
            Rows::Sessions(rows) => rows.len(),
            Rows::Touches(rows) => rows.len(),
            Rows::Conversions(rows) => rows.len(),
            Rows::Intents(rows) => rows.len(),
            Rows::Changes(rows) => rows.len(),
            Rows::Credit(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These rows and others of the same view.
    pub fn and(mut self, other: Rows) -> Rows {
        match (&mut self, other) {
            (Rows::Profiles(all), Rows::Profiles(more)) => all.extend(more),
            (Rows::Events(all), Rows::Events(more)) => all.extend(more),
            (Rows::Sessions(all), Rows::Sessions(more)) => all.extend(more),
            (Rows::Touches(all), Rows::Touches(more)) => all.extend(more),
            (Rows::Conversions(all), Rows::Conversions(more)) => all.extend(more),
            (Rows::Intents(all), Rows::Intents(more)) => all.extend(more),
            (Rows::Changes(all), Rows::Changes(more)) => all.extend(more),
            (Rows::Credit(all), Rows::Credit(more)) => all.extend(more),
            _ => unreachable!("rows of one question are of one view"),
        }
        self
    }
}

/// An event by its ids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct RootRow {
    /// Its own id.
    pub id: EcoString,
    /// Its message id.
    #[serde(rename = "messageId")]
    pub message_id: EcoString,
}

/// An event by its ids, and when it was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventRef {
    id: EcoString,
    #[serde(rename = "messageId")]
    message_id: EcoString,
    at: Millis,
}

/// A profile.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProfileRow {
    /// Its public id.
    pub id: EcoString,
    ids: Vec<IdRow>,
    visitor: Vec<Cow<'static, str>>,
    first_seen: Millis,
    last_seen: Millis,
    traits: BTreeMap<EcoString, Box<RawValue>>,
    computed: BTreeMap<EcoString, Box<RawValue>>,
    segments: Vec<MemberRow>,
    journeys: BTreeMap<EcoString, StandingRow>,
    consent: BTreeMap<EcoString, ConsentRow>,
    session: Option<SessionRow>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
struct IdRow {
    id: EcoString,
    known: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
struct MemberRow {
    name: EcoString,
    since: Millis,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
struct StandingRow {
    state: EcoString,
    since: Millis,
    deadlines: Vec<DeadlineRow>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
struct DeadlineRow {
    at: Millis,
    emit: Option<EcoString>,
    to: Option<EcoString>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
struct ConsentRow {
    granted: bool,
    since: Millis,
    /// Whose field of the call says so: `segment`, `rudderstack`, `google`.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<ConsentSource>,
    /// The call that first did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<RootRow>,
}

impl ProfileRow {
    /// The law's part of it: without what proves consent.
    fn plain(mut self) -> ProfileRow {
        self.consent.values_mut().for_each(|consent| (consent.source, consent.event) = (None, None));
        self
    }
}

/// A session.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionRow {
    profile: EcoString,
    id: Millis,
    start: Millis,
    end: Millis,
    events: u32,
    entry_page: Option<EcoString>,
    exit_page: Option<EcoString>,
    device: DeviceRow,
    channel: Option<EcoString>,
    campaign: Option<EcoString>,
    conversions: u64,
    value: String,
    purpose: Cow<'static, str>,
    closed: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
struct DeviceRow {
    r#type: Option<EcoString>,
    os: Option<EcoString>,
    browser: Option<EcoString>,
}

/// A touch.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TouchRow {
    profile: EcoString,
    at: Millis,
    channel: EcoString,
    campaign: EcoString,
    root: RootRow,
}

/// A conversion, with what refunds leave of it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConversionRow {
    profile: EcoString,
    name: EcoString,
    id: Box<RawValue>,
    at: Millis,
    value: String,
    net: String,
    refunded: bool,
    root: RootRow,
}

/// An entry to or an exit from a segment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangeRow {
    profile: EcoString,
    segment: EcoString,
    change: Cow<'static, str>,
    at: Millis,
    root: RootRow,
}

/// An intent, by the law; what became of it in the world is the server's to say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IntentRow {
    /// Its id.
    pub id: String,
    /// The campaign.
    pub campaign: EcoString,
    /// The profile's public id.
    pub profile: EcoString,
    /// When it came about, ms.
    pub at: Millis,
    /// Not to be sent sooner, ms.
    pub not_before: Millis,
    /// What kind of thing caused it.
    pub kind: EcoString,
    /// The event it goes back to.
    pub root: RootRow,
    /// The log position of the event that matched, where one did.
    pub event: Option<u64>,
    /// What the gates say.
    pub status: Status,
}

/// One touch's part of a conversion in one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreditRow {
    model: Cow<'static, str>,
    profile: EcoString,
    conversion: NamedRef,
    touch: Option<EventRef>,
    channel: EcoString,
    campaign: EcoString,
    conversions: String,
    value: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct NamedRef {
    name: EcoString,
    id: EcoString,
    #[serde(rename = "messageId")]
    message_id: EcoString,
    at: Millis,
}

/// A value as JSON: numbers are printed as exact decimals.
pub(super) fn printed(figure: Figure) -> Box<RawValue> {
    serde_json::value::to_raw_value(&Printed(figure)).expect("it has no keys")
}

struct Printed(Figure);

impl Serialize for Printed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Figure::Number(number) => raw(print_millionths(*number)).serialize(serializer),
            Figure::Value(Value::Bool(bool)) => serializer.serialize_bool(*bool),
            Figure::Value(Value::Text(text)) => serializer.serialize_str(text),
            Figure::Value(Value::Huge(text)) => raw(text.to_string()).serialize(serializer),
            Figure::Value(Value::Number(number)) => raw(print_millionths(i128::from(number.0))).serialize(serializer),
            Figure::Value(Value::List(items)) => {
                serializer.collect_seq(items.iter().map(|item| Printed(Figure::Value(item.clone()))))
            }
            Figure::Value(Value::Null | Value::Object) => serializer.serialize_none(),
        }
    }
}

pub(super) fn raw(json: String) -> Box<RawValue> {
    RawValue::from_string(json).expect("it was read or printed as JSON")
}

/// A profile as it is asked: its plan, its state, its history, the ids that share it, the clock.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The definitions.
    pub plan: &'a Plan,
    /// What is true of it.
    pub state: &'a State,
    /// Its events up to the clock.
    pub past: &'a [Event],
    /// The names of channels and campaigns.
    pub credit: &'a Credit,
    /// All its ids, in order.
    pub ids: &'a [EcoString],
    /// By what it is known which of them are users': what is true now, where the rest is of the past.
    pub known_by: (&'a State, &'a [Event]),
    /// The clock, ms.
    pub clock: Millis,
}

/// The least known id, else the least: the one by which a profile is told.
pub fn public_id<'a>(state: &State, past: &[Event], ids: &'a [EcoString]) -> &'a EcoString {
    // Of one id there is no choice.
    let known = ids.iter().filter(|_| ids.len() > 1).find(|id| state.is_known(id, past));
    known.or(ids.first()).expect("a profile has ids")
}

/// The event that an item goes back to.
pub fn root_of(past: &[Event], root: Root, public: &EcoString) -> RootRow {
    match past.get(root.0 as usize) {
        Some(event) => RootRow { id: event.own.clone(), message_id: event.message_id.clone() },
        None => RootRow { id: public.clone(), message_id: EcoString::default() },
    }
}

impl Asked<'_> {
    /// Its public id.
    pub fn public(&self) -> EcoString {
        public_id(self.known_by.0, self.known_by.1, self.ids).clone()
    }

    /// All rows of one view, newest first.
    pub fn rows(&self, view: View) -> Rows {
        match view {
            View::Profiles => Rows::Profiles(vec![self.profile().plain()]),
            View::Credit => Rows::Credit(self.credit_rows()),
            history => self.history(history, 0..self.len(history)),
        }
    }

    /// A part of a history, newest first; and the key of its last row, if there are more.
    pub fn page(&self, view: View, page: &Page) -> (Rows, Option<Key>) {
        let end = page.before.as_ref().map_or(self.len(view), |key| self.place(view, key));
        let start = end.saturating_sub(page.limit);
        (self.history(view, start..end), (start > 0).then(|| self.key(view, start)))
    }

    fn history(&self, view: View, places: Range<usize>) -> Rows {
        let tapes = &self.state.tapes;
        let places = places.rev();
        match view {
            View::Events => {
                let public = self.public();
                let event = |place: usize| (public.clone(), self.past[place].timestamp, self.past[place].position);
                Rows::Events(places.map(event).collect())
            }
            View::Sessions => {
                let sessions = places.filter_map(|place| self.state.session(place));
                Rows::Sessions(sessions.map(|session| self.session(&session)).collect())
            }
            View::Touches => Rows::Touches(places.map(|place| self.touch(place)).collect()),
            View::Conversions => Rows::Conversions(places.map(|place| self.conversion(place)).collect()),
            View::Intents => Rows::Intents(places.map(|place| self.intent(&tapes.intents[place])).collect()),
            View::Changes => Rows::Changes(places.map(|place| self.change(&tapes.changes[place])).collect()),
            View::Profiles | View::Credit => unreachable!("only histories come in parts"),
        }
    }

    fn len(&self, view: View) -> usize {
        let tapes = &self.state.tapes;
        match view {
            View::Events => self.past.len(),
            View::Sessions => self.state.session_count(),
            View::Touches => tapes.touches.len(),
            View::Conversions => tapes.conversions.len(),
            View::Intents => tapes.intents.len(),
            View::Changes => tapes.changes.len(),
            View::Profiles | View::Credit => unreachable!("only histories come in parts"),
        }
    }

    /// When a row was, the event it goes back to, and what of it it is. The start alone makes a session.
    fn bearings(&self, view: View, place: usize) -> (Millis, Root, &str) {
        let (plan, tapes) = (self.plan, &self.state.tapes);
        match view {
            View::Events => (self.past[place].timestamp, Root(place as u32), ""),
            View::Sessions => {
                let session = self.state.session(place).expect("a place of the history");
                (session.start, Root::SCHEDULE, "")
            }
            View::Touches => (tapes.touches[place].at, tapes.touches[place].root, ""),
            View::Conversions => {
                let conversion = &tapes.conversions[place];
                (conversion.at, conversion.root, &plan.conversions[conversion.rule].name)
            }
            View::Intents => {
                let intent = &tapes.intents[place];
                (intent.at, intent.root, &plan.campaigns[intent.campaign].name)
            }
            View::Changes => {
                let change = &tapes.changes[place];
                (change.at, change.root, &plan.segments[change.segment].name)
            }
            View::Profiles | View::Credit => unreachable!("only histories come in parts"),
        }
    }

    fn key(&self, view: View, place: usize) -> Key {
        let of = self.bearings(view, place);
        let older = (0..place).rev().map(|older| self.bearings(view, older));
        let again = older.take_while(|older| older.0 == of.0).filter(|older| *older == of).count();
        let (at, root, what) = of;
        let event = self.past.get(root.0 as usize);
        let (message_id, own) = event.map(|event| (event.message_id.clone(), event.own.clone())).unwrap_or_default();
        Key { at, message_id, own, what: what.into(), again }
    }

    /// Where the row of a key stands; of one that is gone, where it would stand.
    fn place(&self, view: View, key: &Key) -> usize {
        let at = |place: &usize| self.bearings(view, *place).0;
        let end = self.len(view);
        let end = end - (0..end).rev().take_while(|place| at(place) > key.at).count();
        let start = end - (0..end).rev().take_while(|place| at(place) == key.at).count();
        let found = (start..end).find(|place| self.key(view, *place) == *key);
        found.or_else(|| (start..end).find(|place| self.key(view, *place) > *key)).unwrap_or(end)
    }

    /// The profile.
    pub fn profile(&self) -> ProfileRow {
        let (plan, state, core) = (self.plan, self.state, &self.state.core);
        let members = plan.segments.iter().enumerate();
        let members = members.filter_map(|(number, segment)| Some((segment, state.member_since(number)?)));
        let consent = |consent: &Consent| ConsentRow {
            granted: consent.granted,
            since: consent.since,
            source: Some(consent.source),
            event: Some(self.root(consent.root)),
        };
        let (now, entries) = self.known_by;
        let open = state.sessions_from(0).next_back().filter(|session| !self.is_closed(session));
        ProfileRow {
            id: self.public(),
            ids: self.ids.iter().map(|id| IdRow { id: id.clone(), known: now.is_known(id, entries) }).collect(),
            visitor: Visitor::ALL
                .iter()
                .filter(|(_, class)| self.state.is(*class))
                .map(|(name, _)| Cow::Borrowed(*name))
                .collect(),
            first_seen: core.first_seen,
            last_seen: core.last_seen,
            traits: state.all_told().map(|(key, json)| (key.clone(), raw(json.to_owned()))).collect(),
            computed: plan
                .traits
                .iter()
                .enumerate()
                .map(|(number, of)| (of.name.clone(), printed(self.state.figure(plan, number))))
                .collect(),
            segments: members.map(|(segment, since)| MemberRow { name: segment.name.clone(), since }).collect(),
            journeys: plan
                .journeys
                .iter()
                .enumerate()
                .filter(|(_, journey)| state.is_seen(journey.after))
                .map(|(number, journey)| (journey.name.clone(), self.standing(number)))
                .collect(),
            consent: state.all_consent().map(|(purpose, answer)| (purpose.clone(), consent(answer))).collect(),
            session: open.map(|session| self.session(&session)),
        }
    }

    /// The rows of a view that can be followed, as JSON.
    pub fn watched(&self, view: Watched) -> Vec<String> {
        #[derive(Serialize)]
        struct Member<'a> {
            segment: &'a EcoString,
            profile: EcoString,
            since: Millis,
        }
        #[derive(Serialize)]
        struct Stands<'a> {
            journey: &'a EcoString,
            profile: EcoString,
            #[serde(flatten)]
            standing: StandingRow,
        }
        fn json(row: impl Serialize) -> String {
            serde_json::to_string(&row).expect("rows have string keys")
        }
        match view {
            Watched::Segments => {
                let members = self.plan.segments.iter().enumerate();
                let members = members.filter_map(|(number, of)| Some((of, self.state.member_since(number)?)));
                members.map(|(of, since)| json(Member { segment: &of.name, profile: self.public(), since })).collect()
            }
            Watched::Journeys => {
                let seen = self.plan.journeys.iter().enumerate().filter(|(_, of)| self.state.is_seen(of.after));
                let stands = seen.map(|(number, of)| Stands {
                    journey: &of.name,
                    profile: self.public(),
                    standing: self.standing(number),
                });
                stands.map(json).collect()
            }
            Watched::Sessions => self.state.sessions_from(0).map(|session| json(self.session(&session))).collect(),
            Watched::Attribution => Vec::new(),
        }
    }

    /// When the clock closes the last session, if it has not yet.
    pub fn closes_at(&self) -> Option<Millis> {
        let last = self.state.sessions_from(0).next_back().filter(|session| !self.is_closed(session));
        last.map(|session| session.end + self.plan.definitions.sessions.gap + 1)
    }

    fn standing(&self, number: usize) -> StandingRow {
        let journey = &self.plan.journeys[number];
        let standing = self.state.standing(self.plan, number);
        let state = &journey.states[standing.state];
        let deadlines = state.timers.iter().enumerate().filter_map(|(place, timer)| {
            Some(DeadlineRow {
                at: self.state.deadline(self.plan, number, place)?.0,
                emit: timer.emit.as_ref().and_then(|emit| match self.plan.vocabulary.text(emit.name) {
                    Value::Text(name) => Some(name.clone()),
                    _ => None,
                }),
                to: timer.to.map(|(to, _)| journey.states[to].name.clone()),
            })
        });
        let mut deadlines: Vec<DeadlineRow> = deadlines.collect();
        deadlines.sort_by_key(|deadline| deadline.at);
        StandingRow { state: state.name.clone(), since: standing.since, deadlines }
    }

    /// The next deadlines of one journey: when, what is emitted, the state moved to.
    pub fn deadlines(&self, journey: usize) -> Vec<(Millis, Option<EcoString>, Option<EcoString>)> {
        let row = self.standing(journey);
        row.deadlines.into_iter().map(|deadline| (deadline.at, deadline.emit, deadline.to)).collect()
    }

    /// The timers of one journey that fire at an instant: as they are listed, until one moves.
    pub fn firing(&self, journey: usize, at: Millis) -> Vec<(Millis, Option<EcoString>, Option<EcoString>)> {
        let mut due = self.deadlines(journey);
        due.retain(|(deadline, ..)| *deadline == at);
        let moves = due.iter().position(|(.., to)| to.is_some());
        due.truncate(moves.map_or(due.len(), |place| place + 1));
        due
    }

    fn is_closed(&self, session: &Session) -> bool {
        let is_last = self.state.core.visit == *session;
        !is_last || self.clock > session.end + self.plan.definitions.sessions.gap
    }

    pub(super) fn is_buying(&self, session: &Session) -> bool {
        session.buying || self.state.session_money(self.plan, session).0 > 0
    }

    /// A session as it is told.
    pub fn session(&self, session: &Session) -> SessionRow {
        let end = self.past.partition_point(|event| event.timestamp <= session.end);
        let contexts = || self.past[session.first.0 as usize..end].iter().filter_map(seen_in_session);
        let first = |part: fn(&Context) -> &Option<EcoString>| contexts().find_map(|context| part(context).clone());
        let touch = self.state.session_touch(session);
        let (conversions, value) = self.state.session_money(self.plan, session);
        SessionRow {
            profile: self.public(),
            id: session.start,
            start: session.start,
            end: session.end,
            events: session.events,
            entry_page: first(|context| &context.page),
            exit_page: contexts().rev().find_map(|context| context.page.clone()),
            device: DeviceRow {
                r#type: first(|context| &context.device),
                os: first(|context| &context.os),
                browser: first(|context| &context.browser),
            },
            channel: touch.map(|touch| self.credit.key(touch.key).0.clone()),
            campaign: touch.map(|touch| self.credit.key(touch.key).1.clone()),
            conversions,
            value: print_millionths(value),
            purpose: Cow::Borrowed(if self.is_buying(session) { "buying" } else { "browsing" }),
            closed: self.is_closed(session),
        }
    }

    fn root(&self, root: Root) -> RootRow {
        root_of(self.past, root, &self.public())
    }

    fn touch(&self, place: usize) -> TouchRow {
        let touch = &self.state.tapes.touches[place];
        TouchRow {
            profile: self.public(),
            at: touch.at,
            channel: self.credit.key(touch.key).0.clone(),
            campaign: self.credit.key(touch.key).1.clone(),
            root: self.root(touch.root),
        }
    }

    fn conversion(&self, place: usize) -> ConversionRow {
        let conversion = &self.state.tapes.conversions[place];
        let net = self.plan.net(conversion, &self.state.tapes.refunds);
        ConversionRow {
            profile: self.public(),
            name: self.plan.conversions[conversion.rule].name.clone(),
            id: printed(Figure::Value(conversion.id.clone().unwrap_or(Value::Null))),
            at: conversion.at,
            value: print_millionths(i128::from(conversion.value)),
            net: print_millionths(i128::from(net.unwrap_or(0))),
            refunded: net.is_none(),
            root: self.root(conversion.root),
        }
    }

    fn change(&self, change: &Change) -> ChangeRow {
        ChangeRow {
            profile: self.public(),
            segment: self.plan.segments[change.segment].name.clone(),
            change: Cow::Borrowed(if change.entered { "entered" } else { "exited" }),
            at: change.at,
            root: self.root(change.root),
        }
    }

    fn intent(&self, intent: &Intent) -> IntentRow {
        intent_row(self.plan, &self.public(), &Meant::new(*intent, self.past))
    }

    fn credit_rows(&self) -> Vec<CreditRow> {
        let tapes = &self.state.tapes;
        let public = self.public();
        let mut rows = Vec::new();
        for (place, conversion) in tapes.conversions.iter().enumerate() {
            let of = &self.past[conversion.root.0 as usize];
            for model in self.plan.models() {
                for share in self.plan.shares(self.state, place, *model, &tapes.refunds, self.credit) {
                    let touch = share.touch.map(|touch| &tapes.touches[touch]);
                    let event = touch.map(|touch| &self.past[touch.root.0 as usize]);
                    let (channel, campaign) = self.credit.key(touch.map_or(DIRECT_KEY, |touch| touch.key)).clone();
                    rows.push(CreditRow {
                        model: Cow::Borrowed(model.name()),
                        profile: public.clone(),
                        conversion: NamedRef {
                            name: self.plan.conversions[conversion.rule].name.clone(),
                            id: of.own.clone(),
                            message_id: of.message_id.clone(),
                            at: conversion.at,
                        },
                        touch: event.map(|event| EventRef {
                            id: event.own.clone(),
                            message_id: event.message_id.clone(),
                            at: event.timestamp,
                        }),
                        channel,
                        campaign,
                        conversions: print_billionths(share.conversions),
                        value: print_billionths(share.value),
                    });
                }
            }
        }
        rows
    }
}

/// An intent as a row; a schedule goes back to the profile itself.
pub fn intent_row(plan: &Plan, public: &EcoString, meant: &Meant) -> IntentRow {
    let campaign = &plan.campaigns[meant.intent.campaign];
    let (id, message_id) = meant.root.clone().unwrap_or((public.clone(), EcoString::default()));
    IntentRow {
        id: intent_id(&campaign.name, (&id, &message_id), meant.intent.at),
        campaign: campaign.name.clone(),
        profile: public.clone(),
        at: meant.intent.at,
        not_before: meant.intent.not_before,
        kind: match campaign.cause {
            Cause::Event => "event",
            Cause::Journey => "journey",
            Cause::Segment => "segment",
            Cause::Schedule => "schedule",
        }
        .into(),
        root: RootRow { id, message_id },
        event: meant.event,
        status: meant.intent.status,
    }
}

/// The surroundings of an activity.
fn seen_in_session(event: &Event) -> Option<&Context> {
    event.context().filter(|_| event.kind.is_activity())
}
