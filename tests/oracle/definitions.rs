//! The definitions: what to keep true of the events, read from JSON. Panics with a clear message where it cannot.

use super::condition::{self, Expr, Subject};
use super::json::{self, Json};
use super::time;
use super::value::Value;
use std::collections::{BTreeMap, BTreeSet};

pub struct Definitions {
    pub gap: i64,
    pub buying: Vec<String>,
    pub timezone: Option<String>,
    pub max_ids: usize,
    pub schemas: BTreeMap<String, Schema>,
    pub touchpoints: Vec<Touchpoint>,
    pub conversions: Vec<Conversion>,
    pub attribution: Attribution,
    /// In dependency order.
    pub traits: Vec<Computed>,
    pub segments: BTreeMap<String, Clause>,
    /// The patterns that segments count; clauses name them by their place here.
    pub patterns: Vec<Pattern>,
    pub journeys: BTreeMap<String, Journey>,
    /// Journeys in dependency order.
    pub journey_order: Vec<String>,
    pub campaigns: BTreeMap<String, Campaign>,
    /// Everything that runs out some time after an event.
    pub windows: Vec<Window>,
    /// Type, OS and browser of the devices of user agents: the model is told them, and reads no agent itself.
    pub agents: BTreeMap<String, [String; 3]>,
    /// The instants up to which definitions see no events, by names such as `segments/vip`, `touchpoints/0`.
    pub horizons: BTreeMap<String, i64>,
}

/// Events of some names under a condition.
pub struct Pattern {
    pub names: Vec<String>,
    pub condition: Option<Expr>,
    /// Only later events match.
    pub after: i64,
}

impl Pattern {
    pub fn matches(&self, subject: &Subject) -> bool {
        let named =
            subject.at > self.after && subject.event.is_some_and(|event| self.names.iter().any(|name| name == event));
        named && self.condition.as_ref().is_none_or(|condition| condition.is_true(subject))
    }
}

pub struct Schema {
    pub required: BTreeMap<String, String>,
    pub optional: BTreeMap<String, String>,
}

pub struct Touchpoint {
    pub pattern: Pattern,
    pub channel: Option<Expr>,
    pub campaign: Option<Expr>,
}

pub struct Conversion {
    pub name: String,
    pub pattern: Pattern,
    pub id: Option<Expr>,
    pub value: Option<Expr>,
    pub refund: Option<RefundRule>,
}

pub struct RefundRule {
    pub pattern: Pattern,
    pub id: Expr,
    pub value: Option<Expr>,
}

pub struct Attribution {
    pub utm: bool,
    pub lookback: i64,
    pub half_life: i64,
    pub path_max: usize,
    pub reset_on_conversion: bool,
    pub models: Vec<String>,
}

pub const RULE_MODELS: [&str; 6] =
    ["first_touch", "last_touch", "last_non_direct", "linear", "time_decay", "position_based"];

pub struct Computed {
    pub name: String,
    pub kind: String,
    pub source: Source,
    pub within: Option<i64>,
}

pub enum Source {
    /// The value of an expression at each matching event; counts need none.
    Events { pattern: Pattern, value: Option<Expr> },
    /// `events`, `length_ms`, `value`, `day`, or empty for a count.
    Sessions(String),
}

pub enum Clause {
    Trait { name: String, tests: Vec<Test> },
    Visitor(String),
    Sessions { times: Times, within: Option<i64> },
    Journey { name: String, state: String },
    Segment(String),
    Performed { pattern: usize, times: Times, within: Option<i64> },
    All(Vec<Clause>),
    Any(Vec<Clause>),
    Not(Box<Clause>),
    Sequence { steps: Vec<Step>, absence: Option<(usize, i64)>, recent: Option<i64> },
}

pub enum Test {
    AtLeast(Value),
    AtMost(Value),
    Above(Value),
    Below(Value),
    Equals(Value),
    OneOf(Vec<Value>),
    Exists(bool),
}

#[derive(Clone, Default)]
pub struct Times {
    pub at_least: Option<i64>,
    pub at_most: Option<i64>,
    pub exactly: Option<i64>,
}

impl Times {
    pub fn holds(&self, n: usize) -> bool {
        let n = n as i64;
        self.at_least.is_none_or(|least| n >= least)
            && self.at_most.is_none_or(|most| n <= most)
            && self.exactly.is_none_or(|exactly| n == exactly)
    }
}

pub struct Step {
    pub pattern: usize,
    pub times: usize,
    pub within: Option<i64>,
}

pub struct Journey {
    pub start: String,
    pub states: BTreeMap<String, State>,
}

pub struct State {
    pub transitions: Vec<Transition>,
    pub timers: Vec<Timer>,
}

pub struct Transition {
    pub pattern: Pattern,
    pub segment: Option<String>,
    pub to: String,
}

pub struct Timer {
    pub after: i64,
    pub since: String,
    pub emit: Option<String>,
    pub to: Option<String>,
}

pub struct Campaign {
    pub when: When,
    pub audience: Option<String>,
    pub consent: Option<String>,
    pub channel: Option<String>,
    pub tags: Vec<String>,
    pub priority: i64,
    pub cap: Option<Cap>,
    pub hold: i64,
    pub quiet: Option<(i64, i64)>,
    pub data: Json,
}

pub enum When {
    Event(Pattern),
    Journey { name: String, state: String },
    Segment(String),
    Schedule { from: i64, every: Option<i64>, segment: String },
}

pub struct Cap {
    pub at_most: usize,
    pub per: i64,
    pub tag: Option<String>,
}

/// Something runs out `span` after each event of these names (none: each activity).
pub struct Window {
    pub names: Option<Vec<String>>,
    pub span: i64,
}

impl Definitions {
    pub fn read(text: &str) -> Definitions {
        let json = json::parse(text).unwrap_or_else(|why| panic!("definitions are not JSON: {why}"));
        let mut clauses = Clauses::default();
        let segments = members(json.get("segments"), |_, v| clauses.read(v));
        let journeys = members(json.get("journeys"), journey);
        let journey_order = order_journeys(&segments, &clauses.patterns, &journeys);
        let traits = order_traits(members(json.get("traits"), computed));
        let sessions = json.get("sessions");
        let definitions = Definitions {
            gap: span(sessions, "gap").unwrap_or(1_800_000),
            buying: match sessions.get("buying") {
                Json::Null => vec!["add_to_cart".to_string(), "checkout_started".to_string()],
                names => name_list(names),
            },
            timezone: string(&json, "timezone").inspect(|name| {
                assert!(time::zone(name).is_some(), "timezone {name:?} is no zone");
            }),
            max_ids: integer(json.get("identity"), "max_ids").unwrap_or(100) as usize,
            schemas: members(json.get("schemas"), |_, v| schema(v)),
            touchpoints: items(&json, "touchpoints").iter().map(touchpoint).collect(),
            conversions: items(&json, "conversions").iter().map(conversion).collect(),
            attribution: attribution(json.get("attribution")),
            windows: windows(&traits, &segments, &clauses.patterns),
            agents: BTreeMap::new(),
            horizons: BTreeMap::new(),
            traits,
            segments,
            patterns: clauses.patterns,
            journeys,
            journey_order,
            campaigns: members(json.get("campaigns"), campaign),
        };
        definitions.check_names();
        definitions
    }

    /// Definitions see no events up to these instants.
    pub fn see(&mut self, horizons: BTreeMap<String, i64>) {
        self.horizons = horizons;
        let horizon = |kind: &str, name: &str| horizon_of(&self.horizons, kind, name);
        for computed in &mut self.traits {
            if let Source::Events { pattern, .. } = &mut computed.source {
                pattern.after = horizon("traits", &computed.name);
            }
        }
        for (name, clause) in &self.segments {
            for pattern in clause.leaves().into_iter().flat_map(Clause::patterns) {
                self.patterns[pattern].after = horizon("segments", name);
            }
        }
        for (place, touchpoint) in self.touchpoints.iter_mut().enumerate() {
            touchpoint.pattern.after = horizon("touchpoints", &place.to_string());
        }
        for (place, conversion) in self.conversions.iter_mut().enumerate() {
            let after = horizon("conversions", &place.to_string());
            conversion.pattern.after = after;
            conversion.refund.iter_mut().for_each(|refund| refund.pattern.after = after);
        }
    }

    pub fn horizon(&self, kind: &str, name: &str) -> i64 {
        horizon_of(&self.horizons, kind, name)
    }

    pub fn computed_named(&self, name: &str) -> bool {
        self.traits.iter().any(|t| t.name == name)
    }

    /// Whatever is named must exist.
    fn check_names(&self) {
        for clause in self.segments.values() {
            for leaf in clause.leaves() {
                match leaf {
                    Clause::Segment(name) => self.check_segment(name),
                    Clause::Journey { name, state } => self.check_state(name, state),
                    _ => {}
                }
            }
        }
        for journey in self.journeys.values() {
            for transition in journey.states.values().flat_map(|s| &s.transitions) {
                transition.segment.iter().for_each(|name| self.check_segment(name));
            }
        }
        for campaign in self.campaigns.values() {
            campaign.audience.iter().for_each(|name| self.check_segment(name));
            match &campaign.when {
                When::Segment(name) | When::Schedule { segment: name, .. } => self.check_segment(name),
                When::Journey { name, state } => self.check_state(name, state),
                When::Event(_) => {}
            }
        }
    }

    fn check_segment(&self, name: &str) {
        assert!(self.segments.contains_key(name), "no segment {name:?}");
    }

    fn check_state(&self, name: &str, state: &str) {
        let journey = self.journeys.get(name).unwrap_or_else(|| panic!("no journey {name:?}"));
        assert!(journey.states.contains_key(state), "journey {name:?} has no state {state:?}");
    }
}

fn horizon_of(horizons: &BTreeMap<String, i64>, kind: &str, name: &str) -> i64 {
    horizons.get(&format!("{kind}/{name}")).copied().unwrap_or(i64::MIN)
}

impl Clause {
    /// Itself, or what it is put together from.
    pub fn leaves(&self) -> Vec<&Clause> {
        match self {
            Clause::All(parts) | Clause::Any(parts) => parts.iter().flat_map(Clause::leaves).collect(),
            Clause::Not(part) => part.leaves(),
            leaf => vec![leaf],
        }
    }

    /// The patterns that a leaf counts.
    fn patterns(&self) -> Vec<usize> {
        match self {
            Clause::Performed { pattern, .. } => vec![*pattern],
            Clause::Sequence { steps, absence, .. } => {
                steps.iter().map(|step| step.pattern).chain(absence.map(|(pattern, _)| pattern)).collect()
            }
            _ => vec![],
        }
    }
}

// Small readers of members.

fn string(json: &Json, key: &str) -> Option<String> {
    match json.get(key) {
        Json::Null => None,
        Json::Text(text) => Some(text.clone()),
        other => panic!("{key} is not a string: {}", other.print()),
    }
}

fn needed(json: &Json, key: &str) -> String {
    string(json, key).unwrap_or_else(|| panic!("{key} is missing in {}", json.print()))
}

fn integer(json: &Json, key: &str) -> Option<i64> {
    match json.get(key) {
        Json::Null => None,
        value => Some(value.integer().unwrap_or_else(|| panic!("{key} is not an integer: {}", value.print()))),
    }
}

fn flag(json: &Json, key: &str, default: bool) -> bool {
    match json.get(key) {
        Json::Null => default,
        Json::Bool(value) => *value,
        other => panic!("{key} is not a boolean: {}", other.print()),
    }
}

fn span(json: &Json, key: &str) -> Option<i64> {
    string(json, key).map(|text| time::duration(&text).unwrap_or_else(|| panic!("{key}: {text:?} is no duration")))
}

fn instant(json: &Json, key: &str) -> i64 {
    time::read(json.get(key)).unwrap_or_else(|| panic!("{key} is no time in {}", json.print()))
}

fn items<'a>(json: &'a Json, key: &str) -> &'a [Json] {
    match json.get(key) {
        Json::Null => &[],
        value => value.list().unwrap_or_else(|| panic!("{key} is not a list")),
    }
}

/// A name, or a list of them.
fn name_list(json: &Json) -> Vec<String> {
    let name = |v: &Json| v.text().unwrap_or_else(|| panic!("{} is no name", v.print())).to_string();
    json.list().map_or_else(|| vec![name(json)], |list| list.iter().map(name).collect())
}

fn members<T>(json: &Json, mut read: impl FnMut(&str, &Json) -> T) -> BTreeMap<String, T> {
    match json {
        Json::Null => BTreeMap::new(),
        Json::Map(map) => map.iter().map(|(name, value)| (name.clone(), read(name, value))).collect(),
        other => panic!("expected an object: {}", other.print()),
    }
}

fn only_keys(json: &Json, allowed: &[&str]) {
    let map = json.map().unwrap_or_else(|| panic!("expected an object: {}", json.print()));
    for key in map.keys() {
        assert!(allowed.contains(&key.as_str()), "unknown key {key:?} in {}", json.print());
    }
}

fn condition(json: &Json) -> Option<Expr> {
    string(json, "where").map(|text| condition::parse(&text).unwrap_or_else(|why| panic!("where: {why}")))
}

/// A condition in a place where computed traits may not stand.
fn plain_pattern(json: &Json) -> Pattern {
    let pattern = pattern(json, "event");
    let paths = pattern.condition.as_ref().map_or(vec![], Expr::paths);
    assert!(paths.iter().all(|path| path[0] != "computed"), "computed. is refused here: {}", json.print());
    pattern
}

fn pattern(json: &Json, key: &str) -> Pattern {
    assert!(!json.get(key).is_null(), "{key} is missing in {}", json.print());
    Pattern { names: name_list(json.get(key)), condition: condition(json), after: i64::MIN }
}

/// A path or literal; a JSON number or boolean stands for itself.
fn operand(json: &Json, key: &str) -> Option<Expr> {
    match json.get(key) {
        Json::Null => None,
        Json::Text(text) => Some(condition::parse_operand(text).unwrap_or_else(|why| panic!("{key}: {why}"))),
        other => Some(Expr::Literal(Value::of(other))),
    }
}

// The parts of the file.

fn schema(json: &Json) -> Schema {
    let types = |key| members(json.get(key), |_, v| v.text().expect("a type name").to_string());
    Schema { required: types("required"), optional: types("optional") }
}

fn touchpoint(json: &Json) -> Touchpoint {
    only_keys(json, &["event", "where", "channel", "campaign"]);
    Touchpoint { pattern: plain_pattern(json), channel: operand(json, "channel"), campaign: operand(json, "campaign") }
}

fn conversion(json: &Json) -> Conversion {
    only_keys(json, &["name", "event", "where", "id", "value", "refund"]);
    let refund = match json.get("refund") {
        Json::Null => None,
        rule => {
            only_keys(rule, &["event", "where", "id", "value"]);
            let id = operand(rule, "id").unwrap_or_else(|| panic!("a refund needs an id"));
            Some(RefundRule { pattern: plain_pattern(rule), id, value: operand(rule, "value") })
        }
    };
    Conversion {
        name: needed(json, "name"),
        pattern: plain_pattern(json),
        id: operand(json, "id"),
        value: operand(json, "value"),
        refund,
    }
}

fn attribution(json: &Json) -> Attribution {
    let models = match json.get("models") {
        Json::Null => RULE_MODELS.iter().map(|m| m.to_string()).collect(),
        names => name_list(names),
    };
    Attribution {
        utm: flag(json, "utm", true),
        lookback: span(json, "lookback").unwrap_or(30 * time::DAY),
        half_life: span(json.get("time_decay"), "half_life").unwrap_or(7 * time::DAY),
        path_max: integer(json, "path_max").unwrap_or(100) as usize,
        reset_on_conversion: flag(json, "reset_on_conversion", false),
        models,
    }
}

fn computed(name: &str, json: &Json) -> Computed {
    const KINDS: [&str; 9] = ["count", "sum", "min", "max", "average", "first", "last", "unique", "most_frequent"];
    let kind = KINDS.iter().find(|kind| !json.get(kind).is_null());
    let kind = kind.unwrap_or_else(|| panic!("trait {name:?} computes nothing known"));
    only_keys(json, &[kind, "of", "where", "within"]);
    let of = if *kind == "count" { json.get(kind) } else { json.get("of") };
    let source = if of.text() == Some("session") {
        Source::Sessions(session_field(name, kind, json))
    } else {
        let value = if *kind == "count" { None } else { operand(json, kind) };
        let pattern = Pattern { names: name_list(of), condition: condition(json), after: i64::MIN };
        Source::Events { pattern, value }
    };
    Computed { name: name.to_string(), kind: kind.to_string(), source, within: span(json, "within") }
}

fn session_field(name: &str, kind: &str, json: &Json) -> String {
    assert!(json.get("where").is_null(), "trait {name:?}: sessions take no where");
    let field = if kind == "count" { String::new() } else { needed(json, kind) };
    let known = match kind {
        "count" => true,
        "sum" | "average" => ["events", "length_ms", "value"].contains(&field.as_str()),
        "unique" => field == "day",
        _ => false,
    };
    assert!(known, "trait {name:?}: no {kind} of {field:?} over sessions");
    field
}

/// Reads segments, collecting the patterns they count.
#[derive(Default)]
struct Clauses {
    patterns: Vec<Pattern>,
}

impl Clauses {
    fn read(&mut self, json: &Json) -> Clause {
        let keys = json.map().unwrap_or_else(|| panic!("expected a condition: {}", json.print()));
        let has = |key: &str| keys.contains_key(key);
        if has("trait") {
            Clause::Trait { name: needed(json, "trait"), tests: tests(json) }
        } else if has("visitor") {
            visitor(json)
        } else if has("sessions") {
            only_keys(json, &["sessions"]);
            let inner = json.get("sessions");
            only_keys(inner, &["at_least", "at_most", "exactly", "within"]);
            Clause::Sessions { times: times(inner), within: span(inner, "within") }
        } else if has("journey") {
            only_keys(json, &["journey", "state"]);
            Clause::Journey { name: needed(json, "journey"), state: needed(json, "state") }
        } else if has("segment") {
            only_keys(json, &["segment"]);
            Clause::Segment(needed(json, "segment"))
        } else if has("performed") || has("not_performed") {
            self.performed(json)
        } else if has("sequence") {
            self.sequence(json)
        } else {
            self.combined(json)
        }
    }

    fn combined(&mut self, json: &Json) -> Clause {
        let (key, value) = json.map().and_then(|map| map.iter().next()).expect("an empty condition");
        only_keys(json, &[key]);
        match key.as_str() {
            "all" => Clause::All(items(json, "all").iter().map(|v| self.read(v)).collect()),
            "any" => Clause::Any(items(json, "any").iter().map(|v| self.read(v)).collect()),
            "not" => Clause::Not(Box::new(self.read(value))),
            other => panic!("unknown condition {other:?}"),
        }
    }

    fn pattern(&mut self, json: &Json, key: &str) -> usize {
        self.patterns.push(pattern(json, key));
        self.patterns.len() - 1
    }

    fn performed(&mut self, json: &Json) -> Clause {
        let within = span(json, "within");
        if !json.get("not_performed").is_null() {
            only_keys(json, &["not_performed", "where", "within"]);
            let times = Times { exactly: Some(0), ..Times::default() };
            return Clause::Performed { pattern: self.pattern(json, "not_performed"), times, within };
        }
        only_keys(json, &["performed", "where", "times", "within"]);
        let times = match json.get("times") {
            Json::Map(_) => times(json.get("times")),
            _ => Times { at_least: Some(integer(json, "times").unwrap_or(1)), ..Times::default() },
        };
        Clause::Performed { pattern: self.pattern(json, "performed"), times, within }
    }

    fn sequence(&mut self, json: &Json) -> Clause {
        only_keys(json, &["sequence", "recent"]);
        let mut listed = items(json, "sequence").to_vec();
        let mut absence = None;
        if let Some(last) = listed.last().filter(|step| !step.get("not_performed").is_null()).cloned() {
            only_keys(&last, &["not_performed", "where", "within"]);
            let within = span(&last, "within").unwrap_or_else(|| panic!("an absence needs its within"));
            absence = Some((self.pattern(&last, "not_performed"), within));
            listed.pop();
        }
        assert!(!listed.is_empty(), "a sequence needs a step that is performed");
        let steps = listed.iter().map(|step| self.step(step)).collect();
        Clause::Sequence { steps, absence, recent: span(json, "recent") }
    }

    fn step(&mut self, json: &Json) -> Step {
        only_keys(json, &["performed", "where", "times", "within"]);
        let times = match json.get("times") {
            Json::Map(map) if map.len() == 1 => integer(json.get("times"), "at_least"),
            Json::Map(_) => None,
            _ => Some(integer(json, "times").unwrap_or(1)),
        };
        let times = times.filter(|n| *n >= 1).unwrap_or_else(|| panic!("a step takes at least one event"));
        Step { pattern: self.pattern(json, "performed"), times: times as usize, within: span(json, "within") }
    }
}

fn visitor(json: &Json) -> Clause {
    only_keys(json, &["visitor"]);
    let kind = needed(json, "visitor");
    assert!(["first_time", "returning", "known", "paying"].contains(&kind.as_str()), "no visitor {kind:?}");
    Clause::Visitor(kind)
}

/// Without bounds: at least one.
fn times(json: &Json) -> Times {
    let [at_least, at_most, exactly] = ["at_least", "at_most", "exactly"].map(|key| integer(json, key));
    if at_least.or(at_most).or(exactly).is_none() {
        return Times { at_least: Some(1), ..Times::default() };
    }
    Times { at_least, at_most, exactly }
}

fn tests(json: &Json) -> Vec<Test> {
    only_keys(json, &["trait", "at_least", "at_most", "above", "below", "equals", "one_of", "exists"]);
    let mut out = Vec::new();
    for (key, value) in json.map().into_iter().flatten() {
        out.push(match key.as_str() {
            "trait" => continue,
            "at_least" => Test::AtLeast(Value::of(value)),
            "at_most" => Test::AtMost(Value::of(value)),
            "above" => Test::Above(Value::of(value)),
            "below" => Test::Below(Value::of(value)),
            "equals" => Test::Equals(Value::of(value)),
            "one_of" => Test::OneOf(items(json, "one_of").iter().map(Value::of).collect()),
            _ => Test::Exists(flag(json, "exists", true)),
        });
    }
    if out.is_empty() {
        out.push(Test::Exists(true));
    }
    out
}

fn journey(name: &str, json: &Json) -> Journey {
    let states = members(json.get("states"), |_, v| State {
        transitions: items(v, "transitions").iter().map(transition).collect(),
        timers: items(v, "timers").iter().map(timer).collect(),
    });
    let start = needed(json, "start");
    let targets = states.values().flat_map(|state| {
        let moves = state.transitions.iter().map(|t| &t.to);
        moves.chain(state.timers.iter().filter_map(|t| t.to.as_ref()))
    });
    for target in targets.chain([&start]) {
        assert!(states.contains_key(target), "journey {name:?} has no state {target:?}");
    }
    Journey { start, states }
}

fn transition(json: &Json) -> Transition {
    only_keys(json, &["event", "where", "segment", "to"]);
    Transition { pattern: pattern(json, "event"), segment: string(json, "segment"), to: needed(json, "to") }
}

fn timer(json: &Json) -> Timer {
    only_keys(json, &["after", "since", "emit", "to"]);
    Timer {
        after: span(json, "after").unwrap_or_else(|| panic!("a timer needs its after")),
        since: string(json, "since").unwrap_or("entry".to_string()),
        emit: string(json, "emit"),
        to: string(json, "to"),
    }
}

fn campaign(name: &str, json: &Json) -> Campaign {
    assert!(json.get("experiment").is_null(), "campaign {name:?}: experiments are outside this model");
    let quiet = json.get("quiet_hours");
    let time_of_day = |key| time::time_of_day(&needed(quiet, key)).unwrap_or_else(|| panic!("{key} is no time of day"));
    Campaign {
        when: when(name, json.get("when")),
        audience: string(json, "audience"),
        consent: string(json, "consent"),
        channel: string(json, "channel"),
        tags: if json.get("tags").is_null() { vec![] } else { name_list(json.get("tags")) },
        priority: integer(json, "priority").unwrap_or(0),
        cap: (!json.get("cap").is_null()).then(|| cap(json.get("cap"))),
        hold: span(json, "hold").unwrap_or(0),
        quiet: (!quiet.is_null()).then(|| (time_of_day("from"), time_of_day("to"))),
        data: json.get("data").clone(),
    }
}

fn cap(json: &Json) -> Cap {
    only_keys(json, &["at_most", "per", "tag"]);
    Cap {
        at_most: integer(json, "at_most").unwrap_or_else(|| panic!("a cap needs at_most")) as usize,
        per: span(json, "per").unwrap_or_else(|| panic!("a cap needs per")),
        tag: string(json, "tag"),
    }
}

fn when(name: &str, json: &Json) -> When {
    if !json.get("event").is_null() {
        only_keys(json, &["event", "where"]);
        return When::Event(pattern(json, "event"));
    }
    if !json.get("journey").is_null() {
        only_keys(json, &["journey", "state"]);
        return When::Journey { name: needed(json, "journey"), state: needed(json, "state") };
    }
    let segment = needed(json, "segment");
    if !json.get("at").is_null() {
        only_keys(json, &["at", "segment"]);
        return When::Schedule { from: instant(json, "at"), every: None, segment };
    }
    if !json.get("every").is_null() {
        only_keys(json, &["every", "from", "segment"]);
        let every = span(json, "every").filter(|every| *every > 0);
        assert!(every.is_some(), "campaign {name:?}: every must be longer than nothing");
        return When::Schedule { from: instant(json, "from"), every, segment };
    }
    only_keys(json, &["segment"]);
    When::Segment(segment)
}

/// What runs out how long after which events.
fn windows(traits: &[Computed], segments: &BTreeMap<String, Clause>, patterns: &[Pattern]) -> Vec<Window> {
    let mut out = Vec::new();
    for computed in traits {
        let names = match &computed.source {
            Source::Events { pattern, .. } => Some(pattern.names.clone()),
            Source::Sessions(_) => None,
        };
        out.extend(computed.within.map(|span| Window { names, span }));
    }
    let names = |pattern: usize| Some(patterns[pattern].names.clone());
    for leaf in segments.values().flat_map(Clause::leaves) {
        match leaf {
            Clause::Sessions { within: Some(span), .. } => out.push(Window { names: None, span: *span }),
            Clause::Performed { pattern, within: Some(span), .. } => {
                out.push(Window { names: names(*pattern), span: *span })
            }
            Clause::Sequence { steps, absence, recent } => {
                let names = names(steps[steps.len() - 1].pattern);
                let completed = absence.map_or(0, |(_, span)| span);
                out.push(Window { names: names.clone(), span: completed });
                out.extend(recent.map(|recent| Window { names, span: completed + recent }));
            }
            _ => {}
        }
    }
    out.retain(|window| window.span > 0);
    out
}

// Dependencies.

/// Traits so ordered that each comes after those its condition reads.
fn order_traits(all: BTreeMap<String, Computed>) -> Vec<Computed> {
    let mut waiting: Vec<Computed> = all.into_values().collect();
    let mut out: Vec<Computed> = Vec::new();
    while !waiting.is_empty() {
        let free = waiting.iter().position(|t| !waiting.iter().any(|other| reads_trait(t, &other.name)));
        let free = free.unwrap_or_else(|| panic!("cycle among traits: {:?}", names_of(&waiting)));
        out.push(waiting.remove(free));
    }
    out
}

fn names_of(traits: &[Computed]) -> Vec<&str> {
    traits.iter().map(|t| t.name.as_str()).collect()
}

fn reads_trait(computed: &Computed, name: &str) -> bool {
    let Source::Events { pattern, value } = &computed.source else {
        return false;
    };
    let exprs = pattern.condition.iter().chain(value);
    let found = exprs.flat_map(Expr::paths).any(|path| path[0] == "computed" && path.get(1).is_some_and(|n| n == name));
    found
}

/// A segment or a journey.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Node {
    Segment(String),
    Journey(String),
}

/// Journeys so ordered that each comes after those it reads, through segments too; panics on a cycle.
fn order_journeys(
    segments: &BTreeMap<String, Clause>,
    patterns: &[Pattern],
    journeys: &BTreeMap<String, Journey>,
) -> Vec<String> {
    let mut reads: BTreeMap<Node, BTreeSet<Node>> = BTreeMap::new();
    for (name, clause) in segments {
        let found = clause.leaves().into_iter().flat_map(|leaf| segment_reads(leaf, patterns, journeys)).collect();
        reads.insert(Node::Segment(name.clone()), found);
    }
    for (name, journey) in journeys {
        reads.insert(Node::Journey(name.clone()), journey_reads(journey, journeys));
    }
    let mut order = Vec::new();
    while !reads.is_empty() {
        let free = reads.iter().find(|(_, on)| !on.iter().any(|node| reads.contains_key(node)));
        let free = free.unwrap_or_else(|| panic!("cycle among {:?}", reads.keys())).0.clone();
        reads.remove(&free);
        order.push(free);
    }
    let journeys = order.into_iter().filter_map(|node| match node {
        Node::Journey(name) => Some(name),
        Node::Segment(_) => None,
    });
    journeys.collect()
}

/// The journeys whose timers emit one of these names.
fn emitters(names: &[String], journeys: &BTreeMap<String, Journey>) -> Vec<Node> {
    let emits = |journey: &Journey| {
        let emitted = journey.states.values().flat_map(|s| &s.timers).filter_map(|t| t.emit.as_ref());
        emitted.into_iter().any(|name| names.contains(name))
    };
    journeys.iter().filter(|(_, j)| emits(j)).map(|(name, _)| Node::Journey(name.clone())).collect()
}

fn segment_reads(leaf: &Clause, patterns: &[Pattern], journeys: &BTreeMap<String, Journey>) -> Vec<Node> {
    match leaf {
        Clause::Segment(name) => vec![Node::Segment(name.clone())],
        Clause::Journey { name, .. } => vec![Node::Journey(name.clone())],
        Clause::Performed { pattern, .. } => emitters(&patterns[*pattern].names, journeys),
        Clause::Sequence { steps, absence, .. } => {
            let all = steps.iter().map(|s| s.pattern).chain(absence.map(|(pattern, _)| pattern));
            all.flat_map(|pattern| emitters(&patterns[pattern].names, journeys)).collect()
        }
        _ => vec![],
    }
}

fn journey_reads(journey: &Journey, journeys: &BTreeMap<String, Journey>) -> BTreeSet<Node> {
    let mut out = BTreeSet::new();
    for state in journey.states.values() {
        for transition in &state.transitions {
            out.extend(transition.segment.iter().map(|name| Node::Segment(name.clone())));
            out.extend(emitters(&transition.pattern.names, journeys));
        }
        for timer in &state.timers {
            out.extend(emitters(std::slice::from_ref(&timer.since), journeys));
        }
    }
    out
}
