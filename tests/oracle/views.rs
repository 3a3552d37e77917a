//! What can be said of a profile's past as of some instant: sessions, conversions, visitor, traits, consent, segments.
//! Everything is scanned anew from the list of what happened.

use super::condition::{Expr, Subject};
use super::definitions::{Clause, Computed, Definitions, Pattern, Source, Step, Test};
use super::json::Json;
use super::number;
use super::records::Record;
use super::time;
use super::value::Value;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

static NOTHING: Json = Json::Null;

/// The event that an answer goes back to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Root {
    pub id: String,
    pub message_id: String,
}

/// One thing that happened to a profile: an accepted event, or one that a timer emitted.
pub struct Happening<'a> {
    pub at: i64,
    pub name: Option<String>,
    /// None for emitted events.
    pub record: Option<&'a Record>,
    pub properties: Json,
    pub root: Root,
    /// Which of the patterns that segments count it matched, as of itself.
    pub marks: Vec<bool>,
    /// What it gave to each computed trait, as of itself.
    pub inputs: Vec<Option<Value>>,
    pub touch: Option<Touch>,
    pub claims: Vec<Claim>,
    pub refunds: Vec<Refund>,
}

#[derive(Clone)]
pub struct Touch {
    pub channel: String,
    pub campaign: String,
}

/// A match of a conversion rule; whether it counts is seen from the whole past.
pub struct Claim {
    pub name: String,
    pub id: Option<Value>,
    pub value: i128,
}

pub struct Refund {
    pub name: String,
    pub id: Value,
    /// None: the whole of it.
    pub value: Option<i128>,
}

impl<'a> Happening<'a> {
    pub fn of_record(record: &'a Record) -> Happening<'a> {
        let root = Root { id: record.own().to_string(), message_id: record.message_id.clone() };
        Happening { record: Some(record), ..Happening::new(record.at, record.event.clone(), root, Json::Null) }
    }

    pub fn new(at: i64, name: Option<String>, root: Root, properties: Json) -> Happening<'a> {
        Happening {
            at,
            name,
            record: None,
            properties,
            root,
            marks: vec![],
            inputs: vec![],
            touch: None,
            claims: vec![],
            refunds: vec![],
        }
    }

    pub fn is_activity(&self) -> bool {
        self.record.is_some_and(Record::is_activity)
    }

    pub fn is_named(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name)
    }

    pub fn context(&self) -> &Json {
        self.record.map_or(&NOTHING, |record| &record.context)
    }

    pub fn subject<'b>(
        &'b self,
        told: &'b BTreeMap<String, Json>,
        computed: &'b BTreeMap<String, Value>,
    ) -> Subject<'b> {
        Subject {
            at: self.at,
            event: self.name.as_deref(),
            kind: self.record.map(|record| record.kind.as_str()),
            properties: self.record.map_or(&self.properties, |record| &record.properties),
            context: self.context(),
            told,
            computed,
        }
    }
}

// Attribution's raw material, judged as of each event.

pub fn touch_of(definitions: &Definitions, happening: &Happening, subject: &Subject) -> Option<Touch> {
    if !happening.is_activity() {
        return None;
    }
    let label = |expr: &Option<Expr>| expr.as_ref().and_then(|expr| expr.value(subject).label());
    let named = |channel: Option<String>, campaign: Option<String>| Touch {
        channel: channel.unwrap_or("(not set)".to_string()),
        campaign: campaign.unwrap_or("(not set)".to_string()),
    };
    if let Some(rule) = definitions.touchpoints.iter().find(|rule| rule.pattern.matches(subject)) {
        return Some(named(label(&rule.channel), label(&rule.campaign)));
    }
    let utm = happening.context().get("campaign");
    let [medium, source, name] = ["medium", "source", "name"].map(|key| Value::of(utm.get(key)).label());
    let tagged = medium.is_some() || source.is_some() || name.is_some();
    (definitions.attribution.utm && tagged).then(|| named(medium.or(source), name))
}

pub fn claims_of(definitions: &Definitions, happening: &Happening, subject: &Subject) -> Vec<Claim> {
    let rules = definitions.conversions.iter().filter(|rule| happening.is_activity() && rule.pattern.matches(subject));
    let claim = |rule: &super::definitions::Conversion| Claim {
        name: rule.name.clone(),
        id: rule.id.as_ref().and_then(|expr| conversion_id(expr, subject)),
        value: amount(&rule.value, subject),
    };
    rules.map(claim).collect()
}

pub fn refunds_of(definitions: &Definitions, happening: &Happening, subject: &Subject) -> Vec<Refund> {
    let mut out = Vec::new();
    for rule in &definitions.conversions {
        let refund = rule.refund.as_ref().filter(|refund| happening.is_activity() && refund.pattern.matches(subject));
        let Some(refund) = refund else { continue };
        if let Some(id) = conversion_id(&refund.id, subject) {
            let value = refund.value.is_some().then(|| amount(&refund.value, subject));
            out.push(Refund { name: rule.name.clone(), id, value });
        }
    }
    out
}

/// Ids are JSON scalars; a number out of range is known by its text.
fn conversion_id(expr: &Expr, subject: &Subject) -> Option<Value> {
    match expr.value(subject) {
        Value::Other(Json::Number(text)) => Some(Value::Other(Json::Number(number::plain(&text)))),
        value => value.is_scalar().then_some(value),
    }
}

/// An absent, negative or mistyped value is 0.
fn amount(expr: &Option<Expr>, subject: &Subject) -> i128 {
    expr.as_ref().and_then(|expr| expr.value(subject).number()).unwrap_or(0).max(0)
}

/// A conversion that counts, with what refunds left of its value.
#[derive(Clone)]
pub struct Converted {
    pub name: String,
    pub event: usize,
    pub net: i128,
}

pub fn conversions(past: &[Happening]) -> Vec<Converted> {
    let mut seen: Vec<(&str, &Value)> = Vec::new();
    let mut out = Vec::new();
    for (event, happening) in past.iter().enumerate() {
        for claim in &happening.claims {
            if let Some(id) = &claim.id {
                if seen.contains(&(&claim.name, id)) {
                    continue;
                }
                seen.push((&claim.name, id));
            }
            if let Some(net) = net_of(claim, past) {
                out.push(Converted { name: claim.name.clone(), event, net });
            }
        }
    }
    out
}

/// None: refunds have left nothing of it.
fn net_of(claim: &Claim, past: &[Happening]) -> Option<i128> {
    let refunds = past.iter().flat_map(|h| &h.refunds);
    let own = refunds.filter(|refund| refund.name == claim.name && Some(&refund.id) == claim.id.as_ref());
    let mut refunded = 0;
    for refund in own {
        refunded += refund.value?;
    }
    (refunded == 0 || claim.value > refunded).then_some(claim.value - refunded)
}

pub struct Session {
    /// Its events, by their place in the past.
    pub events: Vec<usize>,
    pub start: i64,
    pub end: i64,
    pub conversions: usize,
    pub value: i128,
}

pub fn sessions(past: &[Happening], gap: i64, conversions: &[Converted]) -> Vec<Session> {
    let mut out: Vec<Session> = Vec::new();
    for (event, happening) in past.iter().enumerate().filter(|(_, h)| h.is_activity()) {
        match out.last_mut().filter(|session| happening.at - session.end <= gap) {
            Some(session) => {
                session.events.push(event);
                session.end = happening.at;
            }
            None => {
                let at = happening.at;
                out.push(Session { events: vec![event], start: at, end: at, conversions: 0, value: 0 });
            }
        }
    }
    for session in &mut out {
        let own = conversions.iter().filter(|c| session.events.contains(&c.event));
        session.conversions = own.clone().count();
        session.value = own.map(|c| c.net).sum();
    }
    out
}

/// Told traits: per key the latest value; null removes.
pub fn told(past: &[Happening]) -> BTreeMap<String, Json> {
    let mut out = BTreeMap::new();
    for record in past.iter().filter_map(|h| h.record).filter(|r| r.kind == "identify") {
        for (key, value) in record.traits.map().into_iter().flatten() {
            if value.is_null() {
                out.remove(key);
            } else {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    out
}

/// Per purpose whether it is granted, and since when this has been the answer.
pub fn consent(past: &[Happening]) -> BTreeMap<String, (bool, i64)> {
    let mut out: BTreeMap<String, (bool, i64)> = BTreeMap::new();
    for happening in past {
        let preferences = happening.context().get("consent").get("categoryPreferences");
        for (purpose, answer) in preferences.map().into_iter().flatten() {
            let Json::Bool(granted) = answer else { continue };
            if out.get(purpose).map(|(before, _)| before) != Some(granted) {
                out.insert(purpose.clone(), (*granted, happening.at));
            }
        }
    }
    out
}

/// The kinds of visitor, in their fixed order.
pub fn visitor(past: &[Happening], sessions: &[Session], conversions: &[Converted]) -> Vec<&'static str> {
    let known = past.iter().any(|h| h.record.is_some_and(|r| r.user.is_some()));
    let paying = !conversions.is_empty();
    let first_time = sessions.len() == 1 && !known && !paying;
    let kinds = [("first_time", first_time), ("returning", sessions.len() > 1), ("known", known), ("paying", paying)];
    kinds.into_iter().filter(|(_, holds)| *holds).map(|(name, _)| name).collect()
}

/// Everything known of a profile as of one item, apart from segments and journeys.
pub struct Now {
    pub at: i64,
    pub told: BTreeMap<String, Json>,
    pub computed: BTreeMap<String, Value>,
    pub sessions: Vec<Session>,
    pub conversions: Vec<Converted>,
}

// Computed traits.

/// What an event gives to a trait; None: it is skipped.
pub fn input(computed: &Computed, happening: &Happening, subject: &Subject) -> Option<Value> {
    let Source::Events { pattern, value } = &computed.source else {
        return None;
    };
    if !happening.is_activity() || !pattern.matches(subject) {
        return None;
    }
    let Some(expr) = value else {
        return Some(Value::Bool(true));
    };
    let value = expr.value(subject);
    let counts = match computed.kind.as_str() {
        "sum" | "min" | "max" | "average" => value.number().is_some(),
        "unique" | "most_frequent" => value.is_scalar(),
        _ => !value.is_nothing() && !value.is_beyond(),
    };
    counts.then_some(value)
}

fn in_window(at: i64, within: Option<i64>, now: i64) -> bool {
    within.is_none_or(|span| at > now - span)
}

fn runs_out(at: i64, within: Option<i64>, now: i64) -> bool {
    within.is_some_and(|span| at + span == now)
}

/// The value of the trait at place `place`.
pub fn compute(computed: &Computed, place: usize, past: &[Happening], sessions: &[Session], now: i64) -> Value {
    match &computed.source {
        Source::Events { .. } => {
            let inside = past.iter().filter(|h| in_window(h.at, computed.within, now));
            summarise(&computed.kind, &inside.filter_map(|h| h.inputs[place].as_ref()).collect::<Vec<_>>())
        }
        Source::Sessions(field) => {
            let inside = sessions.iter().filter(|s| in_window(s.start, computed.within, now));
            let values: Vec<Value> = inside.map(|s| session_value(s, field)).collect();
            summarise(&computed.kind, &values.iter().collect::<Vec<_>>())
        }
    }
}

fn session_value(session: &Session, field: &str) -> Value {
    match field {
        "events" => Value::whole(session.events.len()),
        "length_ms" => Value::Number((session.end - session.start) as i128 * number::MILLION),
        "value" => Value::Number(session.value),
        _ => Value::Number(session.start.div_euclid(time::DAY) as i128 * number::MILLION),
    }
}

fn summarise(kind: &str, values: &[&Value]) -> Value {
    let numbers = || values.iter().filter_map(|v| v.number());
    let number_or_nothing = |n: Option<i128>| n.map_or(Value::Nothing, Value::Number);
    let value_or_nothing = |v: Option<&&Value>| v.map_or(Value::Nothing, |v| (*v).clone());
    match kind {
        "count" => Value::whole(values.len()),
        "sum" => Value::Number(numbers().sum()),
        "min" => number_or_nothing(numbers().min()),
        "max" => number_or_nothing(numbers().max()),
        "average" if values.is_empty() => Value::Nothing,
        "average" => Value::Number(number::quotient(numbers().sum(), values.len() as i128)),
        "first" => value_or_nothing(values.first()),
        "last" => value_or_nothing(values.last()),
        "unique" => Value::whole(frequencies(values).len()),
        _ => most_frequent(values),
    }
}

/// Each distinct value and how often it stands there.
fn frequencies<'a>(values: &[&'a Value]) -> Vec<(&'a Value, usize)> {
    let mut out: Vec<(&Value, usize)> = Vec::new();
    for value in values {
        match out.iter_mut().find(|(other, _)| other == value) {
            Some((_, n)) => *n += 1,
            None => out.push((value, 1)),
        }
    }
    out
}

/// Ties go to the least value.
fn most_frequent(values: &[&Value]) -> Value {
    let all = frequencies(values);
    let best = all.iter().min_by(|a, b| b.1.cmp(&a.1).then(a.0.total_order(b.0)));
    best.map_or(Value::Nothing, |(value, _)| (*value).clone())
}

// Segments.

/// Whether a definition sees this person: some event of theirs is later than its horizon.
pub fn is_seen(definitions: &Definitions, kind: &str, name: &str, past: &[Happening]) -> bool {
    past.iter().any(|h| h.record.is_some() && h.at > definitions.horizon(kind, name))
}

/// What a clause is asked of.
pub struct Scene<'a> {
    pub definitions: &'a Definitions,
    pub past: &'a [Happening<'a>],
    pub now: &'a Now,
    /// The state that each journey is in.
    pub states: &'a BTreeMap<String, String>,
}

impl Scene<'_> {
    pub fn holds(&self, clause: &Clause) -> bool {
        match clause {
            Clause::Trait { name, tests } => {
                let value = self.trait_value(name);
                tests.iter().all(|test| passes(test, &value))
            }
            Clause::Visitor(kind) => {
                visitor(self.past, &self.now.sessions, &self.now.conversions).contains(&kind.as_str())
            }
            Clause::Sessions { times, within } => {
                times.holds(self.now.sessions.iter().filter(|s| in_window(s.start, *within, self.now.at)).count())
            }
            Clause::Journey { name, state } => self.states.get(name) == Some(state),
            Clause::Segment(name) => {
                is_seen(self.definitions, "segments", name, self.past) && self.holds(&self.definitions.segments[name])
            }
            Clause::Performed { pattern, times, within } => {
                let inside = |event: &usize| in_window(self.past[*event].at, *within, self.now.at);
                times.holds(self.matches(*pattern).into_iter().filter(inside).count())
            }
            Clause::All(parts) => parts.iter().all(|part| self.holds(part)),
            Clause::Any(parts) => parts.iter().any(|part| self.holds(part)),
            Clause::Not(part) => !self.holds(part),
            Clause::Sequence { steps, absence, recent } => {
                let completions = self.completions(steps, absence);
                completions.into_iter().any(|(at, _)| in_window(at, *recent, self.now.at))
            }
        }
    }

    /// Computed first, then told.
    fn trait_value(&self, name: &str) -> Value {
        match self.now.computed.get(name) {
            Some(value) => value.clone(),
            None => self.now.told.get(name).map_or(Value::Nothing, Value::of),
        }
    }

    /// The events that match a pattern, in event order.
    fn matches(&self, pattern: usize) -> Vec<usize> {
        (0..self.past.len()).filter(|event| self.past[*event].marks[pattern]).collect()
    }

    /// When a sequence was completed, and by which event.
    fn completions(&self, steps: &[Step], absence: &Option<(usize, i64)>) -> Vec<(i64, usize)> {
        let mut ends = self.ends_of_first(&steps[0]);
        for step in &steps[1..] {
            ends = self.ends_of_next(step, &ends);
        }
        let Some((pattern, span)) = absence else {
            return ends.into_iter().map(|event| (self.past[event].at, event)).collect();
        };
        let prevents = self.matches(*pattern);
        let completed = |event: usize| {
            let at = self.past[event].at + span;
            let prevented = prevents.iter().any(|x| *x > event && self.past[*x].at < at);
            (at <= self.now.at && !prevented).then_some((at, event))
        };
        ends.into_iter().filter_map(completed).collect()
    }

    /// The events at which the first step can end.
    fn ends_of_first(&self, step: &Step) -> Vec<usize> {
        let found = self.matches(step.pattern);
        let ends = found.windows(step.times).filter(|run| self.is_within(step, run[0], run[step.times - 1]));
        ends.map(|run| run[step.times - 1]).collect()
    }

    /// The events at which a step can end that follows one of `earlier`.
    fn ends_of_next(&self, step: &Step, earlier: &[usize]) -> Vec<usize> {
        let found = self.matches(step.pattern);
        let follows =
            |run: &&[usize]| earlier.iter().any(|end| *end < run[0] && self.is_within(step, *end, run[step.times - 1]));
        found.windows(step.times).filter(follows).map(|run| run[step.times - 1]).collect()
    }

    fn is_within(&self, step: &Step, from: usize, to: usize) -> bool {
        step.within.is_none_or(|span| self.past[to].at - self.past[from].at < span)
    }

    /// The last event that leaves any window which the clause reads, at this very instant.
    pub fn last_left(&self, clause: &Clause) -> Option<usize> {
        let at = self.now.at;
        match clause {
            Clause::Trait { name, .. } => self.last_left_by_trait(name),
            Clause::Sessions { within, .. } => self.last_session_left(*within),
            Clause::Segment(name) => self.last_left(&self.definitions.segments[name]),
            Clause::Performed { pattern, within, .. } => {
                self.matches(*pattern).into_iter().filter(|event| runs_out(self.past[*event].at, *within, at)).max()
            }
            Clause::All(parts) | Clause::Any(parts) => parts.iter().filter_map(|part| self.last_left(part)).max(),
            Clause::Not(part) => self.last_left(part),
            Clause::Sequence { steps, absence, recent } => {
                let just = |completed: i64| (absence.is_some() && completed == at) || runs_out(completed, *recent, at);
                let completions = self.completions(steps, absence).into_iter();
                completions.filter(|(completed, _)| just(*completed)).map(|(_, event)| event).max()
            }
            Clause::Visitor(_) | Clause::Journey { .. } => None,
        }
    }

    fn last_session_left(&self, within: Option<i64>) -> Option<usize> {
        let left = self.now.sessions.iter().filter(|s| runs_out(s.start, within, self.now.at));
        left.map(|s| s.events[0]).max()
    }

    fn last_left_by_trait(&self, name: &str) -> Option<usize> {
        let place = self.definitions.traits.iter().position(|t| t.name == name)?;
        let computed = &self.definitions.traits[place];
        if let Source::Sessions(_) = computed.source {
            return self.last_session_left(computed.within);
        }
        let left = |event: &usize| {
            let happening = &self.past[*event];
            happening.inputs[place].is_some() && runs_out(happening.at, computed.within, self.now.at)
        };
        (0..self.past.len()).filter(left).max()
    }
}

fn passes(test: &Test, value: &Value) -> bool {
    let order = |other: &Value| value.order(other);
    match test {
        Test::AtLeast(other) => matches!(order(other), Some(Ordering::Greater | Ordering::Equal)),
        Test::AtMost(other) => matches!(order(other), Some(Ordering::Less | Ordering::Equal)),
        Test::Above(other) => order(other) == Some(Ordering::Greater),
        Test::Below(other) => order(other) == Some(Ordering::Less),
        Test::Equals(other) => value.same(other),
        Test::OneOf(others) => others.iter().any(|other| value.same(other)),
        Test::Exists(wanted) => value.is_nothing() != *wanted,
    }
}

/// Which patterns an event matches.
pub fn marks(patterns: &[Pattern], subject: &Subject) -> Vec<bool> {
    patterns.iter().map(|pattern| pattern.matches(subject)).collect()
}

/// The purposes that are granted.
pub fn granted(past: &[Happening]) -> BTreeSet<String> {
    consent(past).into_iter().filter(|(_, (granted, _))| *granted).map(|(purpose, _)| purpose).collect()
}
