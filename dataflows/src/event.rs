//! What happened: one call of the Segment tracking API as plain data.
//!
//! [`Call`] is a call as it was written, checked and with its parts found; [`Event`] is the compact record that the
//! dataflow keeps: its ids, its place in time, and only those values that some definition names. The body stays in the
//! log. Nothing here knows why an event matters.

mod consent;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use ecow::EcoString;
use foldhash::quality::FixedState;
use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

pub use consent::{Consent, ConsentSource};

use crate::agent::Agents;
use crate::json::{Fault, Next, Reader, fingerprint_of, fingerprint_of_number};
use crate::number::Number;
use crate::time::{self, Millis};
use crate::value::Value;
use crate::vocabulary::{NameId, Slot, Vocabulary};

/// The longest id, in bytes.
pub const ID_BYTES_MAX: usize = 255;
/// Integers below this are seconds by mistake, not milliseconds.
const MILLIS_MIN: i64 = 100_000_000_000;

/// The six calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Something a user did, by name.
    #[default]
    Track,
    /// A page was seen: the event `page_view`.
    Page,
    /// A screen was seen: the event `screen_view`.
    Screen,
    /// Who a user is, and what was told of them.
    Identify,
    /// The group a user belongs to.
    Group,
    /// Two ids are one person.
    Alias,
}

impl Kind {
    /// All of them, in the order of the tracking API's documentation.
    pub const ALL: [Kind; 6] = [Kind::Track, Kind::Page, Kind::Screen, Kind::Identify, Kind::Group, Kind::Alias];

    /// The call's name in a body's `type`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Track => "track",
            Kind::Page => "page",
            Kind::Screen => "screen",
            Kind::Identify => "identify",
            Kind::Group => "group",
            Kind::Alias => "alias",
        }
    }

    /// The kind that a body's `type` names.
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether the call is something a user did: only these make sessions and are seen by rules.
    pub fn is_activity(self) -> bool {
        matches!(self, Kind::Track | Kind::Page | Kind::Screen)
    }
}

/// Why a call is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Not a call that can be understood.
    Invalid,
    /// No usable id.
    NoId,
    /// No usable time.
    BadTimestamp,
    /// Against the schema of its event.
    Schema,
    /// Larger than an event may be.
    TooLarge,
    /// Older than the lateness allows.
    TooLate,
    /// The id of another event, with other content.
    Conflict,
    /// Of a person who was erased.
    Erased,
    /// Accepted, but its link would make a person of too many ids.
    RefusedEdge,
}

impl Reason {
    /// The word used in answers, dead letters and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Invalid => "invalid",
            Reason::NoId => "no_id",
            Reason::BadTimestamp => "bad_timestamp",
            Reason::Schema => "schema",
            Reason::TooLarge => "too_large",
            Reason::TooLate => "too_late",
            Reason::Conflict => "conflict",
            Reason::Erased => "erased",
            Reason::RefusedEdge => "refused_edge",
        }
    }
}

/// A call that is not taken: why, and a sentence that says where and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The kind of fault.
    pub reason: Reason,
    /// For the person who sent it.
    pub detail: String,
}

impl Rejection {
    /// A rejection with its sentence.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Rejection { reason, detail: detail.into() }
    }
}

impl From<Fault> for Rejection {
    fn from(fault: Fault) -> Self {
        Rejection::new(Reason::Invalid, format!("not JSON that can be read: {fault}"))
    }
}

/// Where and on what an activity took place, and what was told with a call: consent and traits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Context {
    /// The page: `properties.page`, `properties.path`, `context.page.path` or `name`, the first present.
    pub page: Option<EcoString>,
    /// `context.device.type`, else what the user agent tells.
    pub device: Option<EcoString>,
    /// `context.os.name`, else what the user agent tells.
    pub os: Option<EcoString>,
    /// The browser's name, as the user agent tells it.
    pub browser: Option<EcoString>,
    /// Channel and campaign by UTM fields, when `context.campaign` names either.
    pub utm: Option<(Option<EcoString>, Option<EcoString>)>,
    /// `context.timezone`
    pub timezone: Option<EcoString>,
    /// What is consented to, each purpose once.
    pub consent: Vec<Consent>,
    /// The traits told by an identify call: top-level key, JSON text.
    pub told: Vec<(EcoString, Box<str>)>,
}

/// What a call carries beyond its ids and its place in time: shared among calls that carry the same.
///
/// It stands on lines of cache of its own: those who read it must not wait for others who count its owners.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(align(64))]
pub struct Details {
    /// Values that definitions name, by slot.
    pub values: Box<[(Slot, Value)]>,
    /// Its surroundings.
    pub context: Context,
    /// Whether it tells of its person: traits, consent, a time zone.
    pub tells: bool,
}

/// A record of the dataflow: one accepted call. As long as a line of cache, since all of them are kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When it happened, ms.
    pub timestamp: Millis,
    /// Its place in the log, where the body is.
    pub position: u64,
    /// The id it belongs to.
    pub own: EcoString,
    /// Its id for deduplication, and the second key of the order.
    pub message_id: EcoString,
    /// What it carries, if anything that counts.
    pub details: Option<Arc<Details>>,
    /// Its name, if a definition names it.
    pub name: NameId,
    /// The call.
    pub kind: Kind,
    /// Whether `own` came from `userId`.
    pub known: bool,
}

impl Event {
    /// The order inside a profile: time, then message id, then own id, by bytes.
    pub fn order(&self, other: &Event) -> Ordering {
        self.timestamp
            .cmp(&other.timestamp)
            .then_with(|| self.message_id.as_bytes().cmp(other.message_id.as_bytes()))
            .then_with(|| self.own.as_bytes().cmp(other.own.as_bytes()))
    }

    /// Values that definitions name, by slot.
    pub fn values(&self) -> &[(Slot, Value)] {
        self.details.as_ref().map_or(&[], |details| &details.values)
    }

    /// Its surroundings.
    pub fn context(&self) -> Option<&Context> {
        self.details.as_ref().map(|details| &details.context)
    }
}

/// The links between ids that a call states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The log position of the call: decides the order of acceptance.
    pub position: u64,
    /// The clock with which the log stamped the call: what is dated after it waits until it is reached.
    pub stamp: Millis,
    /// When it happened, ms.
    pub timestamp: Millis,
    /// The call's message id.
    pub message_id: EcoString,
    /// The call's `userId`.
    pub user: EcoString,
    /// The call's `anonymousId`, if it is another: it may link to this user, and to no other.
    pub anonymous: Option<EcoString>,
    /// An alias call's `previousId`, if it is another: the two are one.
    pub previous: Option<EcoString>,
}

/// A call as it was written: checked, its parts found, its values not yet read.
#[derive(Clone, Debug, Default)]
pub struct Call<'a> {
    /// The call.
    pub kind: Kind,
    /// The event's name: `event` of a track, `page_view`, `screen_view`; empty for others.
    pub event: Cow<'a, str>,
    /// `userId`
    pub user: Option<EcoString>,
    /// `anonymousId`
    pub anonymous: Option<EcoString>,
    /// `previousId`
    pub previous: Option<EcoString>,
    /// `messageId`
    pub message_id: Option<EcoString>,
    /// `timestamp`, else `originalTimestamp`, ms.
    pub timestamp: Option<Millis>,
    /// `originalTimestamp`, ms.
    pub original: Option<Millis>,
    /// `sentAt`, ms.
    pub sent_at: Option<Millis>,
    /// A fingerprint of everything that makes two calls with one message id the same call.
    pub content: u64,
    /// `type`
    named: Option<Cow<'a, str>>,
    name: Option<Cow<'a, str>>,
    group: Option<EcoString>,
    /// Fingerprints of `timestamp` and `originalTimestamp` as they were written, and of `properties` and `traits`.
    written: [u64; 4],
    /// Members of `properties`, as they stand.
    properties: Vec<Member<'a>>,
    traits: Vec<Member<'a>>,
    context: Option<&'a str>,
    /// `context.traits`
    traits_in_context: Option<&'a str>,
    surroundings: Context,
    /// `consent`, as Google's Measurement Protocol has it.
    consent: Vec<Consent>,
    /// `context.userAgent`
    agent: Option<Cow<'a, str>>,
}

/// A member of an object: its key, and its value's text.
type Member<'a> = (Cow<'a, str>, &'a str);

impl<'a> Call<'a> {
    /// Reads one call. `route` is the kind that its door names; a body's own `type` must agree with it when it has one.
    ///
    /// It stays in one place from then on: it is large, and moving it took a twentieth of the time.
    pub fn parse(text: &'a str, route: Option<Kind>) -> Result<Box<Call<'a>>, Rejection> {
        let mut call = Box::<Call<'a>>::default();
        let mut reader = Reader::new(text);
        if reader.peek()? != Next::Object {
            return Err(Rejection::new(Reason::Invalid, "a call is a JSON object"));
        }
        let mut wrong = None;
        reader.object(|reader, key| {
            if let Some(problem) = call.read(reader, &key)? {
                wrong.get_or_insert(problem);
            }
            Ok(())
        })?;
        reader.end()?;
        match wrong {
            Some(rejection) => Err(rejection),
            None => call.settle(route).map(|()| call),
        }
    }

    /// The links that the call states, if any; `position` is filled in when the log has given one.
    pub fn link(&self, timestamp: Millis, message_id: &EcoString) -> Option<Link> {
        let user = self.user.as_ref()?;
        let other = |id: &Option<EcoString>| id.clone().filter(|id| id != user);
        let anonymous = other(&self.anonymous);
        let previous = other(&self.previous).filter(|_| self.kind == Kind::Alias);
        (anonymous.is_some() || previous.is_some()).then(|| Link {
            position: 0,
            stamp: timestamp,
            timestamp,
            message_id: message_id.clone(),
            user: user.clone(),
            anonymous,
            previous,
        })
    }

    /// Reads the value of one member. What is wrong with a value does not stop the reading, so that the whole text is
    /// checked first and its first fault told.
    fn read(&mut self, reader: &mut Reader<'a>, key: &str) -> Result<Option<Rejection>, Fault> {
        match key {
            "type" => self.named = text(reader)?,
            "event" => self.event = text(reader)?.unwrap_or_default(),
            "name" => self.name = text(reader)?,
            "userId" => return id(reader, key, &mut self.user),
            "anonymousId" => return id(reader, key, &mut self.anonymous),
            "previousId" => return id(reader, key, &mut self.previous),
            "groupId" => return id(reader, key, &mut self.group),
            "messageId" => return message_id(reader, &mut self.message_id),
            "timestamp" => return instant(reader, key, &mut self.timestamp, &mut self.written[0]),
            "originalTimestamp" => return instant(reader, key, &mut self.original, &mut self.written[1]),
            // A clock that cannot be read only means that the skew is not known.
            "sentAt" => drop(instant(reader, key, &mut self.sent_at, &mut 0)?),
            "properties" | "traits" => {
                let (members, written) = match key {
                    "traits" => (&mut self.traits, &mut self.written[3]),
                    _ => (&mut self.properties, &mut self.written[2]),
                };
                members.clear();
                return match reader.peek()? {
                    Next::Null => reader.null().map(|()| None),
                    Next::Object => {
                        *written = reader.members(members)?;
                        Ok(None)
                    }
                    _ => reader.skip().map(|_| Some(invalid(format!("`{key}` is not an object")))),
                };
            }
            "context" => {
                // The last of a repeated key stands.
                if self.context.is_some() {
                    self.surroundings = Context::default();
                    (self.agent, self.traits_in_context) = (None, None);
                }
                let start = reader.clone();
                return match reader.peek()? {
                    Next::Null => reader.null().map(|()| None),
                    Next::Object => {
                        let traits = &mut self.traits_in_context;
                        read_context(reader, &mut self.surroundings, &mut self.agent, traits)?;
                        self.context = Some(reader.since(&start));
                        Ok(None)
                    }
                    _ => reader.skip().map(|_| Some(invalid(format!("`{key}` is not an object")))),
                };
            }
            "consent" => {
                self.consent.clear();
                consent::read(reader, &mut self.consent)?;
                self.consent.retain(|consent| consent.source == ConsentSource::Google);
            }
            _ => drop(reader.skip()?),
        }
        Ok(None)
    }

    /// All members are read: what they come to.
    fn settle(&mut self, route: Option<Kind>) -> Result<(), Rejection> {
        self.kind = match (self.named.as_deref().map(|name| (name, Kind::named(name))), route) {
            (None, Some(kind)) => kind,
            (Some((_, Some(kind))), None) => kind,
            (Some((_, Some(kind))), Some(route)) if kind == route => kind,
            (Some((name, _)), None) => {
                return Err(invalid(format!(
                    "unknown type {name:?}: it is one of track, page, screen, identify, group, alias"
                )));
            }
            (Some((name, _)), Some(route)) => {
                return Err(invalid(format!("type {name:?} was sent to the door of {}", route.name())));
            }
            (None, None) => {
                return Err(invalid("`type` is missing: it is one of track, page, screen, identify, group, alias"));
            }
        };
        match self.kind {
            Kind::Track if self.event.is_empty() => {
                return Err(invalid("a track call needs `event`, a name that is not empty"));
            }
            Kind::Track => {}
            Kind::Page => self.event = Cow::Borrowed("page_view"),
            Kind::Screen => self.event = Cow::Borrowed("screen_view"),
            _ => self.event = Cow::Borrowed(""),
        }
        if self.user.is_none() && self.anonymous.is_none() {
            return Err(Rejection::new(Reason::NoId, "neither `userId` nor `anonymousId` is a non-empty string"));
        }
        // RudderStack's browsers tell them there alone.
        if let (Kind::Identify, true, Some(text)) = (self.kind, self.traits.is_empty(), self.traits_in_context) {
            self.written[3] = Reader::new(text).members(&mut self.traits)?;
        }
        self.surroundings.consent.append(&mut self.consent);
        consent::settle(&mut self.surroundings.consent);
        self.content = self.fingerprint();
        self.timestamp = self.timestamp.or(self.original);
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = FixedState::default().build_hasher();
        let [timestamp, original, properties, traits] = self.written;
        hasher.write_u8(self.kind as u8);
        hasher.write_u64(if self.original.is_some() { original } else { timestamp });
        hasher.write_u64(properties);
        hasher.write_u64(traits);
        hasher.write(self.event.as_bytes());
        let ids = [&self.user, &self.anonymous, &self.previous, &self.group];
        for text in ids.map(|id| id.as_deref()).into_iter().chain([self.name.as_deref()]) {
            // The length first, so that no text runs into the next; none is of no length at all.
            hasher.write_usize(text.map_or(usize::MAX, str::len));
            hasher.write(text.unwrap_or_default().as_bytes());
        }
        hasher.finish()
    }
}

fn invalid(detail: impl Into<String>) -> Rejection {
    Rejection::new(Reason::Invalid, detail)
}

/// A string; anything else counts as absent.
fn text<'a>(reader: &mut Reader<'a>) -> Result<Option<Cow<'a, str>>, Fault> {
    if reader.peek()? == Next::Text { reader.text().map(Some) } else { reader.skip().map(|_| None) }
}

/// A number that can be an id: one that is written as an integer.
pub(crate) fn integer(number: &str) -> Option<&str> {
    Some(number).filter(|number| !number.contains(['.', 'e', 'E']))
}

fn id(reader: &mut Reader<'_>, key: &str, into: &mut Option<EcoString>) -> Result<Option<Rejection>, Fault> {
    *into = match reader.peek()? {
        Next::Null => reader.null().map(|()| None)?,
        Next::Text => Some(EcoString::from(reader.text()?)).filter(|id| !id.is_empty()),
        Next::Number => {
            let Some(integer) = integer(reader.number()?) else {
                return Ok(Some(Rejection::new(Reason::NoId, format!("`{key}` is neither a string nor an integer"))));
            };
            Some(integer.into())
        }
        _ => {
            reader.skip()?;
            return Ok(Some(Rejection::new(Reason::NoId, format!("`{key}` is neither a string nor an integer"))));
        }
    };
    let long = into.as_ref().is_some_and(|id| id.len() > ID_BYTES_MAX);
    Ok(long.then(|| Rejection::new(Reason::NoId, format!("`{key}` is longer than {ID_BYTES_MAX} bytes"))))
}

fn message_id(reader: &mut Reader<'_>, into: &mut Option<EcoString>) -> Result<Option<Rejection>, Fault> {
    match reader.peek()? {
        Next::Null => reader.null()?,
        Next::Text => *into = Some(EcoString::from(reader.text()?)).filter(|id| !id.is_empty()),
        _ => {
            reader.skip()?;
            return Ok(Some(invalid("`messageId` is not a string")));
        }
    }
    let long = into.as_ref().is_some_and(|id| id.len() > ID_BYTES_MAX);
    Ok(long.then(|| invalid(format!("`messageId` is longer than {ID_BYTES_MAX} bytes"))))
}

/// An instant, and the fingerprint of how it was written.
fn instant(
    reader: &mut Reader<'_>,
    key: &str,
    into: &mut Option<Millis>,
    written: &mut u64,
) -> Result<Option<Rejection>, Fault> {
    let read = match reader.peek()? {
        Next::Null => return reader.null().map(|()| None),
        Next::Text => {
            let text = reader.text()?;
            *written = fingerprint_of(b's', text.as_bytes());
            time::parse_instant(&text)
        }
        Next::Number => {
            let number = reader.number()?;
            *written = fingerprint_of_number(number);
            number.parse::<i64>().ok().filter(|ms| *ms >= MILLIS_MIN)
        }
        _ => reader.skip().map(|_| None)?,
    };
    *into = read.filter(|ms| time::in_range(*ms));
    Ok(into.is_none().then(|| {
        let detail = format!("`{key}` is no RFC 3339 instant or integer of milliseconds in the years 2000 to 2099");
        Rejection::new(Reason::BadTimestamp, detail)
    }))
}

/// Makes events of calls. It keeps equal details and agents once, so each thread that decodes has its own.
#[derive(Debug)]
pub struct Decoder {
    vocabulary: Arc<Vocabulary>,
    details: HashTable<Arc<Details>>,
    agents: Agents,
    values: Vec<(Slot, Value)>,
}

/// Details kept for sharing: as many as stay near. Past it the table is begun anew.
const DETAILS_MAX: usize = 1 << 12;

impl Decoder {
    /// A decoder that keeps what `vocabulary` names.
    pub fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Decoder { vocabulary, details: HashTable::new(), agents: Agents::default(), values: Vec::new() }
    }

    /// The vocabulary by which it decodes.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// The compact record of a call at its time; `position` is filled in when the log has given one. What it needs it
    /// takes out of the call.
    pub fn event(&mut self, call: &mut Call<'_>, at: Millis, message_id: EcoString) -> Result<Event, Rejection> {
        let is_activity = call.kind.is_activity();
        let name = if is_activity { self.vocabulary.name(&call.event) } else { NameId::NONE };
        self.values.clear();
        for (key, value) in &call.properties {
            extract_member(value, key, self.vocabulary.property_wants(name), 0, &mut self.values)?;
        }
        if let (Some(text), wants @ [_, ..]) = (call.context, self.vocabulary.context_wants(name)) {
            extract(&mut Reader::new(text), wants, 0, &mut self.values)?;
        }
        let page = if is_activity { page(call)? } else { None };
        let mut context = std::mem::take(&mut call.surroundings);
        if is_activity {
            context.page = page.or(context.page);
            if let Some(text) = &call.agent {
                let agent = self.agents.read(text);
                context.device = context.device.or(agent.device);
                context.os = context.os.or(agent.os);
                context.browser = agent.browser;
            }
        } else {
            context = Context { consent: context.consent, timezone: context.timezone, ..Context::default() };
        }
        if call.kind == Kind::Identify {
            context.told = call.traits.iter().map(|(key, value)| (key.as_ref().into(), (*value).into())).collect();
        }
        self.values.sort_unstable_by_key(|(slot, _)| *slot);
        Ok(Event {
            timestamp: at,
            position: 0,
            message_id,
            details: self.share(context),
            name,
            kind: call.kind,
            known: call.user.is_some(),
            own: call.user.take().or(call.anonymous.take()).expect("a call without ids was refused by `parse`"),
        })
    }

    /// Holds a call against the schema of its event. Asked at the door only: what was accepted stays so.
    pub fn check(&self, call: &Call<'_>) -> Result<(), Rejection> {
        self.vocabulary.check_schema(&call.event, &call.properties)
    }

    fn share(&mut self, context: Context) -> Option<Arc<Details>> {
        if self.values.is_empty() && context == Context::default() {
            return None;
        }
        if self.details.len() >= DETAILS_MAX {
            self.details.clear();
        }
        let same = |details: &Arc<Details>| *details.values == *self.values && details.context == context;
        let hash = hash_of(&self.values, &context);
        if let Some(details) = self.details.find(hash, same) {
            return Some(Arc::clone(details));
        }
        let tells = context.timezone.is_some() || !context.consent.is_empty() || !context.told.is_empty();
        let details = Arc::new(Details { values: self.values.as_slice().into(), context, tells });
        let rehash = |details: &Arc<Details>| hash_of(&details.values, &details.context);
        self.details.insert_unique(hash, Arc::clone(&details), rehash);
        Some(details)
    }
}

fn hash_of(values: &[(Slot, Value)], context: &Context) -> u64 {
    let mut hasher = FixedState::default().build_hasher();
    values.hash(&mut hasher);
    context.hash(&mut hasher);
    hasher.finish()
}

/// A path that some definition names, below `properties` or `context`.
pub type Want = (Box<[EcoString]>, Slot);

/// The page: `properties.page`, `properties.path`, `context.page.path` or `name`, the first that is a text.
fn page(call: &Call<'_>) -> Result<Option<EcoString>, Fault> {
    for wanted in ["page", "path"] {
        // The last of a repeated key stands.
        if let Some((_, value)) = call.properties.iter().rev().find(|(key, _)| key == wanted)
            && let Some(page) = text(&mut Reader::new(value))?
        {
            return Ok(Some(page.into()));
        }
    }
    let in_context = call.surroundings.page.clone();
    Ok(in_context.or_else(|| call.name.as_deref().map(EcoString::from)))
}

/// Reads the values that are wanted of an object's members.
fn extract(
    reader: &mut Reader<'_>,
    wants: &[Want],
    depth: usize,
    values: &mut Vec<(Slot, Value)>,
) -> Result<(), Fault> {
    reader.object(|reader, key| extract_member(reader.skip()?, &key, wants, depth, values))
}

/// The same of one member, whose value's text has been checked.
fn extract_member(
    text: &str,
    key: &str,
    wants: &[Want],
    depth: usize,
    values: &mut Vec<(Slot, Value)>,
) -> Result<(), Fault> {
    for (path, slot) in wants.iter().filter(|(path, _)| path.get(depth).is_some_and(|wanted| wanted == key)) {
        let mut reader = Reader::new(text);
        if path.len() == depth + 1 {
            let value = value(&mut reader)?;
            values.retain(|(other, _)| other != slot);
            values.push((*slot, value));
        } else if reader.peek()? == Next::Object {
            extract(&mut reader, &[(path.clone(), *slot)], depth + 1, values)?;
        }
    }
    Ok(())
}

/// A value as rules see it: lists keep their scalars, an object is only known to be there.
pub fn value(reader: &mut Reader<'_>) -> Result<Value, Fault> {
    Ok(match reader.peek()? {
        Next::Null => reader.null().map(|()| Value::Null)?,
        Next::Bool => Value::Bool(reader.bool()?),
        Next::Text => Value::Text(reader.text()?.into()),
        Next::Object => reader.skip().map(|_| Value::Object)?,
        Next::Number => {
            let number = reader.number()?;
            Number::parse(number).map_or_else(|| Value::Huge(number.into()), Value::Number)
        }
        Next::List => {
            let mut items = Vec::new();
            reader.list(|reader| {
                items.push(value(reader)?);
                Ok(())
            })?;
            Value::List(items.into())
        }
    })
}

fn read_context<'a>(
    reader: &mut Reader<'a>,
    context: &mut Context,
    agent: &mut Option<Cow<'a, str>>,
    traits: &mut Option<&'a str>,
) -> Result<(), Fault> {
    let mut campaign: [Option<EcoString>; 3] = [None, None, None];
    reader.object(|reader, key| {
        match &*key {
            "userAgent" => *agent = text(reader)?,
            "timezone" => context.timezone = text(reader)?.map(|zone| zone.into()),
            "page" => members(reader, &["path"], |_, page| context.page = Some(page))?,
            "device" => members(reader, &["type"], |_, device| context.device = Some(device))?,
            "os" => members(reader, &["name"], |_, os| context.os = Some(os))?,
            "campaign" => members(reader, &["name", "source", "medium"], |which, part| campaign[which] = Some(part))?,
            "consent" => consent::read(reader, &mut context.consent)?,
            "consentManagement" => consent::read_management(reader, &mut context.consent)?,
            "traits" => {
                let is_object = reader.peek()? == Next::Object;
                *traits = Some(reader.skip()?).filter(|_| is_object);
            }
            _ => {
                reader.skip()?;
            }
        }
        Ok(())
    })?;
    let [name, source, medium] = campaign;
    let channel = medium.or(source);
    if name.is_some() || channel.is_some() {
        context.utm = Some((channel, name));
    }
    Ok(())
}

/// The string members of an object that `keys` name, by their place in it.
fn members(reader: &mut Reader<'_>, keys: &[&str], mut found: impl FnMut(usize, EcoString)) -> Result<(), Fault> {
    if reader.peek()? != Next::Object {
        return reader.skip().map(|_| ());
    }
    reader.object(|reader, key| {
        match keys.iter().position(|wanted| *wanted == key) {
            Some(which) => {
                if let Some(text) = text(reader)?.filter(|text| !text.is_empty()) {
                    found(which, text.into());
                }
            }
            None => {
                reader.skip()?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_fits_a_line_of_cache() {
        assert_eq!(size_of::<Event>(), 64);
    }
}
