//! Stories: files that say what happens and what must then be true, for people to read and for the engine to obey.
//!
//! ```yaml
//! title: what the story tells
//! day: 2026-03-02
//! definitions: { version: 1, ... }              # or a file: examples/shop.yaml
//! clock: events                                 # as in a replay
//! steps:
//!   - { at: 10:00, user: ada, event: page_view, properties: { page: / }, context: { ... }, id: first }
//!   - { at: +1d 09:30:00.5, user: ada, anonymous: phone, identify: { plan: gold } }
//!   - { at: 10:05, user: ada, alias: phone }
//!   - { clock: 11:00 }
//!   - { retract: first, of: ada }
//!   - { unlink: [ada, phone] }
//!   - { erase: [ada, phone] }                   # whoever has the first of these ids, which are then all of theirs
//!   - { define: { segments: { late: { ... }, gone: ~ } } }   # other definitions, by kind and name; ~ takes one away
//!   - expect: { profiles: [ { id: ada, segments: [vip] } ], intents: [ { campaign: hello, at: 10:00 } ] }
//!     absent: { intents: [ { campaign: bye } ] }
//!     count: { sessions: 1 }
//!   - dry_run: { from: 00:00, to: +28d 00:00, define: { ... } }   # this span played again, under these definitions
//!     expect: { intents: [ { campaign: hello } ] }
//! ```
//! Events without an `id` are `m1`, `m2`, … in their order. `expect` holds patterns of rows as the engine dumps them,
//! each for exactly one row; `absent` those of no row; `count` says how many rows there are. A pattern names what it is
//! about: a map holds of any with these entries, a list of any with these items in it, and `[]` only of the empty one.
//! Of a dry run they speak of its intents; one without `define` must list what stands.
//! A text for a map is its `name` or `state`; a time of the day for a number is that instant.

mod yaml;

use std::fmt;
use std::path::{Path, PathBuf};

use dataflows::definitions::line_of;
use dataflows::time::{DAY, parse_instant};
use serde_json::{Value, json};

use crate::run::{Dump, VIEWS};

/// A story; it prints as its file and title.
pub struct Story {
    file: PathBuf,
    title: String,
    pub definitions: String,
    pub steps: Vec<Step>,
}

impl Story {
    /// Its calls and the corrections to them, as if who is erased in it had never been: what they sent is left out, and
    /// their ids out of what others sent before.
    pub fn without_the_erased(&self) -> (Vec<String>, Vec<String>) {
        let (mut calls, mut controls) = (Vec::new(), Vec::new());
        for step in &self.steps {
            match &step.what {
                What::Call(line) => calls.push(line.clone()),
                What::Control(line) => controls.push(line.clone()),
                What::Erasure(ids) => calls = calls.iter().filter_map(|line| struck(line, ids)).collect(),
                What::Definitions(_) | What::Verdict(_) | What::DryRun(_) => {}
            }
        }
        (calls, controls)
    }
}

/// A call without these ids; none, if one of them sent it.
fn struck(line: &str, ids: &[String]) -> Option<String> {
    let mut call: Value = serde_json::from_str(line).expect("calls are JSON");
    let is_erased = |id: &Value| ids.iter().any(|erased| id == erased);
    let own = if call["userId"].is_null() { &call["anonymousId"] } else { &call["userId"] };
    if is_erased(own) {
        return None;
    }
    let mut open = vec![&mut call];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(entries) => open.extend(entries.values_mut()),
            text if is_erased(text) => *text = Value::Null,
            _ => {}
        }
    }
    Some(call.to_string())
}

/// One step of a story.
pub struct Step {
    /// Where it stands in the file.
    pub line: usize,
    pub what: What,
}

/// What a step is.
pub enum What {
    /// A call, as a line of a replay file.
    Call(String),
    /// A clock or a correction, likewise.
    Control(String),
    /// Whoever has these ids is erased.
    Erasure(Vec<String>),
    /// From now on these definitions hold.
    Definitions(String),
    /// What must be true.
    Verdict(Verdict),
    /// What would have been.
    DryRun(DryRun),
}

/// A span of the past that is played again.
pub struct DryRun {
    pub from: i64,
    pub to: i64,
    /// Under these definitions; none: those that hold.
    pub definitions: Option<String>,
    pub verdict: Verdict,
}

/// Patterns of rows, and how many rows they are of.
pub struct Verdict {
    patterns: Vec<(usize, Value, usize)>,
    counts: Vec<(usize, usize)>,
}

/// A story's own keys.
const STORY: &[&str] = &["title", "day", "definitions", "clock", "steps"];
/// What a step may hold, by the first of its keys that it has.
const STEPS: [&[&str]; 10] = [
    &["at", "user", "anonymous", "event", "identify", "alias", "properties", "context", "id"],
    &["clock"],
    &["retract", "of"],
    &["unlink"],
    &["erase"],
    &["define"],
    &["dry_run", "expect", "absent", "count"],
    &["expect", "absent", "count"],
    &["absent", "count"],
    &["count"],
];
/// What a pattern may speak of, by the order of the views.
const ROWS: [&[&str]; 5] = [
    &["id", "ids", "visitor", "traits", "computed", "segments", "journeys", "consent", "session"],
    &["profile", "start", "end", "events", "entry_page", "channel", "campaign", "conversions", "purpose", "closed"],
    &["profile", "segment", "change", "at", "root"],
    &["profile", "campaign", "at", "not_before", "cause", "channel", "status", "data"],
    &["model", "profile", "conversion", "touch", "channel", "campaign", "conversions", "value"],
];

impl Story {
    /// Reads a story; panics where it cannot be understood.
    pub fn read(file: &Path) -> Story {
        let name = file.display();
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{name}: {error}"));
        let story = yaml::read(&text);
        known(&story, STORY).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
        assert_eq!(story["clock"], "events", "{name}: the clock of a story moves with its events");
        let day = Day(word(&story["day"]));
        let definitions = match &story["definitions"] {
            Value::String(file) => {
                std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{name}: {file}: {error}"))
            }
            inline => inline.to_string(),
        };
        let (mut calls, mut steps, mut standing) = (0, Vec::new(), story["definitions"].clone());
        for (place, step) in story["steps"].as_array().into_iter().flatten().enumerate() {
            let line = line_of(&text, &format!("steps[{place}]")).unwrap_or_default();
            let what = day.step(step, &mut calls, &mut standing);
            let what = what.unwrap_or_else(|wrong| panic!("{name}:{line}: {wrong}"));
            steps.push(Step { line, what });
        }
        Story { file: file.to_owned(), title: word(&story["title"]), definitions, steps }
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.file.display(), self.title)
    }
}

/// The day on which a story begins.
struct Day(String);

impl Day {
    /// `10:00`, `10:00:00.5`, `+1d 10:00`.
    fn instant(&self, time: &str) -> Option<i64> {
        let (days, time) = match time.strip_prefix('+').and_then(|time| time.split_once("d ")) {
            Some((days, time)) => (days.parse().ok()?, time),
            None => (0, time),
        };
        let seconds = if time.matches(':').count() == 1 { ":00" } else { "" };
        Some(parse_instant(&format!("{}T{time}{seconds}Z", self.0))? + days * DAY)
    }

    fn time(&self, time: &Value) -> Result<i64, String> {
        time.as_str().and_then(|time| self.instant(time)).ok_or_else(|| format!("{time} is no time of the day"))
    }

    fn step(&self, step: &Value, calls: &mut usize, standing: &mut Value) -> Result<What, String> {
        let keys = STEPS.into_iter().find(|keys| !step[keys[0]].is_null()).ok_or("this is no step")?;
        known(step, keys)?;
        let control = |line: Value| Ok(What::Control(line.to_string()));
        match keys[0] {
            "at" => {
                *calls += 1;
                Ok(What::Call(self.call(step, *calls)?))
            }
            "clock" => control(json!({"type": "clock", "to": self.time(&step["clock"])?})),
            "retract" => control(json!({"type": "retract", "id": step["of"], "messageId": step["retract"]})),
            "unlink" => control(json!({"type": "unlink", "a": step["unlink"][0], "b": step["unlink"][1]})),
            "erase" => {
                let ids = step["erase"].as_array().ok_or("ids stand in a list")?;
                Ok(What::Erasure(ids.iter().map(word).collect()))
            }
            "define" => {
                step["define"].as_object().ok_or("what is defined stands by kind")?;
                define(standing, &step["define"])?;
                Ok(What::Definitions(standing.to_string()))
            }
            "dry_run" => {
                let run = &step["dry_run"];
                known(run, &["from", "to", "define"])?;
                let (from, to) = (self.time(&run["from"])?, self.time(&run["to"])?);
                let mut tried = standing.clone();
                define(&mut tried, &run["define"])?;
                let definitions = Some(tried.to_string()).filter(|_| !run["define"].is_null());
                Ok(What::DryRun(DryRun { from, to, definitions, verdict: self.verdict(step)? }))
            }
            _ => self.verdict(step).map(What::Verdict),
        }
    }

    /// A call of the tracking API.
    fn call(&self, step: &Value, number: usize) -> Result<String, String> {
        let mut call = json!({"timestamp": self.time(&step["at"])?, "messageId": format!("m{number}")});
        let named = [("user", "userId"), ("anonymous", "anonymousId"), ("id", "messageId"), ("event", "event")];
        let same =
            [("properties", "properties"), ("context", "context"), ("identify", "traits"), ("alias", "previousId")];
        for (key, theirs) in named.into_iter().chain(same).filter(|(key, _)| !step[*key].is_null()) {
            call[theirs] = step[key].clone();
        }
        let kinds = [("event", "track"), ("identify", "identify"), ("alias", "alias")];
        let kind = kinds.iter().find(|(key, _)| !step[*key].is_null());
        call["type"] = kind.ok_or("a call is an `event`, an `identify` or an `alias`")?.1.into();
        Ok(call.to_string())
    }

    fn verdict(&self, step: &Value) -> Result<Verdict, String> {
        let mut verdict = Verdict { patterns: Vec::new(), counts: Vec::new() };
        for (key, rows) in [("expect", 1), ("absent", 0)] {
            for (view, patterns) in views(&step[key])? {
                for pattern in patterns.as_array().ok_or("patterns stand in a list")? {
                    known(pattern, ROWS[view])?;
                    verdict.patterns.push((view, self.dated(pattern), rows));
                }
            }
        }
        for (view, count) in views(&step["count"])? {
            verdict.counts.push((view, count.as_u64().ok_or("a count is a number")? as usize));
        }
        Ok(verdict)
    }

    /// A pattern with its times of the day as instants.
    fn dated(&self, pattern: &Value) -> Value {
        match pattern {
            Value::String(text) => self.instant(text).map_or_else(|| pattern.clone(), Value::from),
            Value::Array(items) => items.iter().map(|item| self.dated(item)).collect(),
            Value::Object(entries) => entries.iter().map(|(key, value)| (key.clone(), self.dated(value))).collect(),
            _ => pattern.clone(),
        }
    }
}

impl Verdict {
    /// What is not as it must be.
    pub fn faults(&self, dump: &Dump) -> Vec<String> {
        let counts = self.counts.iter().filter(|(view, count)| dump.rows[*view].len() != *count);
        let all = |view: &usize| format!("{}:\n{}", VIEWS[*view].0, dump.rows[*view].join("\n"));
        let counts = counts.map(|(view, count)| format!("not {count} {}", all(view)));
        let patterns = self.patterns.iter().filter_map(|(view, pattern, wanted)| {
            let rows = dump.rows[*view].iter();
            let found = rows.filter(|row| holds(pattern, &serde_json::from_str(row).expect("rows are JSON"))).count();
            (found != *wanted).then(|| format!("{found}, not {wanted}, of these are {pattern}, {}", all(view)))
        });
        counts.chain(patterns).collect()
    }
}

/// Puts documents in the place of those of their kind and name.
fn define(standing: &mut Value, change: &Value) -> Result<(), String> {
    for (kind, documents) in change.as_object().into_iter().flatten() {
        let standing = standing.get_mut(kind).and_then(Value::as_object_mut);
        let standing = standing.ok_or_else(|| format!("the story itself defines no `{kind}` by name"))?;
        for (name, document) in documents.as_object().ok_or("what is defined stands by name")? {
            match document {
                Value::Null => standing.remove(name).ok_or_else(|| format!("there is no `{name}`"))?,
                _ => standing.insert(name.clone(), document.clone()).unwrap_or_default(),
            };
        }
    }
    Ok(())
}

/// Whether a pattern is one of what was found.
fn holds(pattern: &Value, found: &Value) -> bool {
    match (pattern, found) {
        (Value::Object(pattern), Value::Object(_)) => pattern.iter().all(|(key, pattern)| holds(pattern, &found[key])),
        (Value::Array(patterns), Value::Array(found)) => {
            patterns.is_empty() == found.is_empty()
                && patterns.iter().all(|pattern| found.iter().any(|found| holds(pattern, found)))
        }
        (Value::String(_), Value::Object(_)) => [&found["name"], &found["state"]].contains(&pattern),
        _ => pattern == found,
    }
}

/// The entries of a map of views, by their places.
fn views(map: &Value) -> Result<Vec<(usize, &Value)>, String> {
    known(map, &VIEWS.map(|(name, _)| name))?;
    let place = |(view, value)| Some((VIEWS.iter().position(|(name, _)| name == view)?, value));
    Ok(map.as_object().into_iter().flatten().filter_map(place).collect())
}

/// Refuses a map with a key that is none of these.
fn known(map: &Value, keys: &[&str]) -> Result<(), String> {
    let unknown = map.as_object().into_iter().flatten().find(|(key, _)| !keys.contains(&key.as_str()));
    unknown.map_or(Ok(()), |(key, _)| Err(format!("`{key}` is none of {keys:?}")))
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}
