//! What if: definitions tried on all of the past beside those that hold; nothing is kept of them and nothing is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use dataflows::definitions::{Definitions, Problem as Fault, document, is_by_name, line_of};
use dataflows::plan::Horizons;
use dataflows::profile::answers::IntentRow;
use dataflows::profile::sums::Span;
use dataflows::profile::trial::{Outcome, Shift, Tally, Trial};
use dataflows::protocol::Question;
use ecow::EcoString;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::answers::{At, ask};
use super::described::NeedsLog;
use super::query::{self, Asked, Query, cursor};
use super::{App, json};
use crate::book::{Book, Given, name_of};
use crate::hub::{AsOf, Hub, Work};
use crate::moment::Moment;
use crate::problem::Problem;
use crate::rows::Intent;

/// Definitions that were tried: when that was true, what they make of people, and what it took.
type TriedOut = (AsOf, Vec<Outcome>, CostRow);

#[derive(Serialize, ToSchema)]
struct CostRow {
    /// Profiles that exist.
    profiles: u64,
    /// Events that were folded for it.
    events: u64,
    /// What would be kept of people besides their events, about, in bytes; and what is kept now.
    bytes: u64,
    standing_bytes: u64,
    /// How long it took, while everything else went on.
    took_ms: u64,
}

#[derive(Clone, Serialize, ToSchema)]
struct ShiftRow {
    /// Who would be in it, and the first of them by id.
    size: u64,
    sample: BTreeSet<EcoString>,
    /// Who is not in it now and would be.
    enter: u64,
    /// Who is in it now and would not be.
    leave: u64,
    enter_sample: BTreeSet<EcoString>,
    leave_sample: BTreeSet<EcoString>,
}

impl From<Shift> for ShiftRow {
    fn from(Shift { members, enter, leave }: Shift) -> Self {
        ShiftRow {
            size: members.count,
            sample: members.sample,
            enter: enter.count,
            leave: leave.count,
            enter_sample: enter.sample,
            leave_sample: leave.sample,
        }
    }
}

#[derive(Serialize, ToSchema)]
struct TallyRow {
    campaign: EcoString,
    intents: u64,
    by_status: BTreeMap<EcoString, u64>,
    /// Intents that do not stand so now.
    come: u64,
    /// Intents that stand now and would not, or not so.
    go: u64,
}

impl TallyRow {
    fn all(tallies: BTreeMap<EcoString, Tally>) -> Vec<TallyRow> {
        let row = |(campaign, Tally { by_status, come, go }): (EcoString, Tally)| TallyRow {
            campaign,
            intents: by_status.values().sum(),
            by_status,
            come,
            go,
        };
        tallies.into_iter().map(row).collect()
    }
}

/// A trial is over, or nobody waits for it any more.
struct Forgets(Hub, u64);

impl Drop for Forgets {
    fn drop(&mut self) {
        // Where the queue is full, the next trial takes its place.
        let _ = self.0.give(Work::Ask(Question::Forget(self.1), oneshot::channel().0));
    }
}

/// Tries definitions: asks until every worker has its part of the answer at one step.
async fn try_out(app: &App, query: &Query, trial: Trial) -> Result<TriedOut, Problem> {
    let mut number = app.trying.lock().await;
    *number += 1;
    let (_forgets, trial, began) = (Forgets(app.hub.clone(), *number), Arc::new(trial), Instant::now());
    let mut begins = Some(Arc::clone(&trial));
    loop {
        let answered = ask(app, query, Question::WhatIf(*number, begins.take())).await?;
        let Some(outcomes) = trial.whole(answered.parts) else { continue };
        let took_ms = began.elapsed().as_millis() as u64;
        let of = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).max().unwrap_or(0);
        let cost = CostRow {
            profiles: of(|outcome| outcome.cost.profiles),
            events: of(|outcome| outcome.cost.events),
            bytes: of(|outcome| outcome.cost.bytes),
            standing_bytes: of(|outcome| outcome.cost.standing_bytes),
            took_ms,
        };
        return Ok((answered.as_of, outcomes, cost));
    }
}

/// Definitions that are tried see what they would if they were given now.
fn settled(app: &App, mut tried: Book) -> Book {
    tried.settle(app.hub.clock());
    tried
}

fn definitions(tried: &Book) -> (Arc<Definitions>, Horizons) {
    (Arc::clone(&tried.plan.definitions), tried.plan.horizons.clone())
}

/// What is tried can read no more of events than is kept of them.
fn must_be_kept<'b>(standing: &Book, tried: impl IntoIterator<Item = &'b Book>) -> Result<(), Problem> {
    let before = &standing.plan.vocabulary;
    let beyond = tried.into_iter().flat_map(|book| book.plan.vocabulary.beyond(before));
    let beyond: Vec<String> = beyond.collect::<BTreeSet<_>>().into_iter().collect();
    if beyond.is_empty() {
        return Ok(());
    }
    let what = beyond.join(", ");
    Err(Problem::conflict(format!(
        "not kept of events before now, since no definition that holds reads it: {what}; give the definition by PUT \
         /v1/definitions, which has the log read again, or try it on files with `thalweg dry-run`"
    )))
}

/// A body in JSON or YAML: its text, and what it says.
fn body<T: DeserializeOwned>(body: &Bytes) -> Result<(&str, T), Problem> {
    let text = std::str::from_utf8(body).map_err(|_| Problem::bad_request("the body is not UTF-8"))?;
    let json = document(text).map_err(|faults| Problem::bad_definition("the body cannot be read", faults))?;
    let read = serde_json::from_str(&json).map_err(|error| Problem::bad_request(format!("the body: {error}")))?;
    Ok((text, read))
}

/// What is wrong in definitions that stand in a body, by the body's own lines. `inside` gives where a path of the whole
/// stands there.
fn wrong(text: &str, faults: Vec<Fault>, inside: impl Fn(&str) -> Option<String>) -> Problem {
    let own =
        |fault: Fault| Fault { line: inside(&fault.path).and_then(|path| line_of(text, &path)).unwrap_or(1), ..fault };
    Problem::bad_definition("the definitions would be wrong", faults.into_iter().map(own).collect())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SegmentDraft {
    /// The segment whose place it would take; without it, it would be a new one.
    name: Option<String>,
    /// The segment, as in the definitions file.
    definition: Box<RawValue>,
}

#[derive(Serialize, ToSchema)]
struct Previewed {
    #[serde(flatten)]
    shift: ShiftRow,
    cost: CostRow,
}

/// Who would be in a segment if it were defined so.
#[utoipa::path(post, path = "/v1/segments:preview", tag = "segments", params(Asked<query::Nothing>),
    request_body(content = SegmentDraft), responses((status = 200, description = "What would be true",
    body = At<Previewed>), NeedsLog))]
pub(super) async fn preview(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Nothing>,
    bytes: Bytes,
) -> Result<Response, Problem> {
    let (text, SegmentDraft { name, definition }) = body(&bytes)?;
    let book = app.hub.book();
    let free = || (1..).map(|number| format!("preview_{number}")).find(|name| book.plan.segment(name).is_none());
    let name = name.or_else(free).unwrap_or_default();
    let of = format!("segments.{name}");
    let inside = |path: &str| Some(format!("definition{}", path.strip_prefix(&of)?));
    let tried = book.with(&of.replacen('.', "/", 1), Some(definition));
    let tried = settled(&app, tried.map_err(|faults| wrong(text, faults, inside))?);
    must_be_kept(&book, [&tried])?;
    let trial = Trial { definitions: vec![definitions(&tried)], ..Trial::default() };
    let (as_of, outcomes, cost) = try_out(&app, &query, trial).await?;
    let mut segments = outcomes.into_iter().next().unwrap_or_default().segments;
    let shift = segments.remove(name.as_str()).unwrap_or_default().into();
    Ok(json(&At { as_of: as_of.into(), row: Previewed { shift, cost } }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Diff {
    /// A whole file, as a text or as an object; or one document, by the three below.
    definitions: Option<Box<RawValue>>,
    kind: Option<String>,
    name: Option<String>,
    definition: Option<Box<RawValue>>,
    /// Intents from this instant on: a UTC date, RFC 3339, or ms.
    #[schema(value_type = Option<serde_json::Value>)]
    from: Option<Moment>,
    /// And before this one.
    #[schema(value_type = Option<serde_json::Value>)]
    to: Option<Moment>,
}

#[derive(Serialize, ToSchema)]
struct Diffed {
    /// Of the one segment that was given; of anything else null.
    size: Option<u64>,
    sample: Option<BTreeSet<EcoString>>,
    enter: Option<u64>,
    leave: Option<u64>,
    enter_sample: Option<BTreeSet<EcoString>>,
    leave_sample: Option<BTreeSet<EcoString>>,
    segments: Vec<TriedSegment>,
    campaigns: Vec<TallyRow>,
    cost: CostRow,
}

#[derive(Serialize, ToSchema)]
struct TriedSegment {
    name: EcoString,
    #[serde(flatten)]
    shift: ShiftRow,
}

/// Who and which intents would come and go if definitions were others.
#[utoipa::path(post, path = "/v1/definitions:diff", tag = "definitions", params(Asked<query::Nothing>),
    request_body(content = Diff), responses((status = 200, description = "What would be true", body = At<Diffed>),
    NeedsLog))]
pub(super) async fn diff(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Nothing>,
    bytes: Bytes,
) -> Result<Response, Problem> {
    let (text, Diff { definitions, kind, name, definition, from, to }) = body(&bytes)?;
    let book = app.hub.book();
    let mut one = None;
    let tried = match (definitions, kind, definition) {
        (Some(whole), None, None) => match serde_json::from_str::<String>(whole.get()) {
            // Its lines are its own.
            Ok(file) => book.instead(file.clone()).map_err(|faults| wrong(&file, faults, |path| Some(path.to_owned()))),
            Err(_) => book
                .instead(whole.get().to_owned())
                .map_err(|faults| wrong(text, faults, |path| Some(format!("definitions.{path}")))),
        },
        (None, Some(kind), Some(definition)) => {
            let name = name.unwrap_or_default();
            let of = name_of(&kind, &name).ok_or_else(|| Problem::bad_request(format!("there is no kind {kind:?}")))?;
            one = Some(EcoString::from(name)).filter(|_| kind == "segments");
            let prefix = of.replacen('/', ".", 1);
            let inside = |path: &str| Some(format!("definition{}", path.strip_prefix(&prefix)?));
            book.with(&of, Some(definition)).map_err(|faults| wrong(text, faults, inside))
        }
        _ => Err(Problem::bad_request("give either `definitions`, or `kind`, `name` and `definition`")),
    };
    let tried = settled(&app, tried?);
    must_be_kept(&book, [&tried])?;
    let trial = Trial { definitions: vec![self::definitions(&tried)], span: span(from, to)?, ..Trial::default() };
    let (as_of, outcomes, cost) = try_out(&app, &query, trial).await?;
    let Outcome { segments, campaigns, .. } = outcomes.into_iter().next().unwrap_or_default();
    let shift = one.and_then(|name| segments.get(&name)).cloned().map(ShiftRow::from);
    let count = |of: fn(&ShiftRow) -> u64| shift.as_ref().map(of);
    let sample = |of: fn(&ShiftRow) -> &BTreeSet<EcoString>| shift.as_ref().map(of).cloned();
    let row = Diffed {
        size: count(|shift| shift.size),
        sample: sample(|shift| &shift.sample),
        enter: count(|shift| shift.enter),
        leave: count(|shift| shift.leave),
        enter_sample: sample(|shift| &shift.enter_sample),
        leave_sample: sample(|shift| &shift.leave_sample),
        segments: segments.into_iter().map(|(name, shift)| TriedSegment { name, shift: shift.into() }).collect(),
        campaigns: TallyRow::all(campaigns),
        cost,
    };
    Ok(json(&At { as_of: as_of.into(), row }))
}

fn span(from: Option<Moment>, to: Option<Moment>) -> Result<Span, Problem> {
    let read = |name: &str, moment: Option<Moment>| {
        let wrong = || Problem::bad_request(format!("`{name}`: a UTC date, an instant of RFC 3339, or integer ms"));
        moment.map(|moment| moment.instant().ok_or_else(wrong)).transpose()
    };
    Ok(Span { from: read("from", from)?, to: read("to", to)? })
}

/// Documents by kind, and by name where a kind has names; null: taken away.
type Overrides = BTreeMap<String, Box<RawValue>>;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DryRun {
    /// Campaigns in place of those of these names, or new ones, in all variants. Without it all campaigns are told of.
    campaigns: Option<BTreeMap<String, Box<RawValue>>>,
    /// Intents from this instant on: a UTC date, RFC 3339, or ms.
    #[schema(value_type = Option<serde_json::Value>)]
    from: Option<Moment>,
    /// And before this one.
    #[schema(value_type = Option<serde_json::Value>)]
    to: Option<Moment>,
    /// By name, what is otherwise in a variant: parts of a definitions file. What stands is always one, without name.
    #[serde(default)]
    variants: BTreeMap<String, BTreeMap<String, Box<RawValue>>>,
}

#[derive(Serialize, ToSchema)]
struct Dry<'a> {
    from: Option<i64>,
    to: Option<i64>,
    variants: Vec<VariantRow>,
    /// The intents of each variant by the law's word, newest first.
    items: Vec<DryIntent<'a>>,
    next: Option<String>,
    cost: CostRow,
}

#[derive(Serialize, ToSchema)]
struct VariantRow {
    name: Option<String>,
    campaigns: Vec<TallyRow>,
}

#[derive(Serialize, ToSchema)]
struct DryIntent<'a> {
    /// The variant's name.
    under: Option<&'a str>,
    #[serde(flatten)]
    intent: Intent<'a>,
}

/// The documents of a part of a definitions file.
fn documents(overrides: Overrides) -> Result<Given, Problem> {
    let mut given = Given::new();
    let there = |json: Box<RawValue>| Some(json).filter(|json| json.get() != "null");
    for (kind, json) in overrides {
        match is_by_name(&kind) {
            None => return Err(Problem::bad_request(format!("there is no kind {kind:?}"))),
            Some(false) => drop(given.insert(kind, there(json))),
            Some(true) => {
                let named: BTreeMap<String, Box<RawValue>> = serde_json::from_str(json.get())
                    .map_err(|_| Problem::bad_request(format!("{kind} is a map of names")))?;
                given.extend(named.into_iter().map(|(name, json)| (format!("{kind}/{name}"), there(json))));
            }
        }
    }
    Ok(given)
}

/// What campaigns would have triggered over a span of the past, in several variants side by side; nothing is sent.
#[utoipa::path(post, path = "/v1/campaigns:dry-run", tag = "campaigns", params(Asked<query::Part>),
    request_body(content = DryRun), responses((status = 200, description = "What would be true", body = At<Dry>),
    NeedsLog))]
pub(super) async fn dry_run(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Part>,
    bytes: Bytes,
) -> Result<Response, Problem> {
    let (text, DryRun { campaigns, from, to, variants }) = body(&bytes)?;
    let (span, before) = (span(from, to)?, query.key()?);
    let book = app.hub.book();
    let wanted = campaigns.as_ref().map(|named| named.keys().map(EcoString::from).collect());
    let named = campaigns.unwrap_or_default().into_iter();
    let there = |json: Box<RawValue>| Some(json).filter(|json| json.get() != "null");
    let named: Given = named.map(|(name, json)| (format!("campaigns/{name}"), there(json))).collect();
    let base = book.with_all(named).map_err(|faults| wrong(text, faults, |path| Some(path.to_owned())))?;
    let mut tried = vec![(None, settled(&app, base))];
    for (name, overrides) in variants {
        let inside = |path: &str| Some(format!("variants.{name}.{path}"));
        let variant = tried[0].1.with_all(documents(overrides)?).map_err(|faults| wrong(text, faults, inside))?;
        tried.push((Some(name), settled(&app, variant)));
    }
    must_be_kept(&book, tried.iter().map(|(_, book)| book))?;
    let trial = Trial {
        definitions: tried.iter().map(|(_, book)| definitions(book)).collect(),
        span,
        campaigns: wanted.clone(),
        before,
        // One more than asked for tells whether there is a next part.
        limit: query.limit + 1,
    };
    let (as_of, mut outcomes, cost) = try_out(&app, &query, trial).await?;
    let (mut items, mut rows) = (Vec::new(), Vec::new());
    for ((name, _), outcome) in tried.iter().zip(&mut outcomes) {
        let mut campaigns = std::mem::take(&mut outcome.campaigns);
        campaigns.retain(|name, _| wanted.as_ref().is_none_or(|wanted: &BTreeSet<_>| wanted.contains(name)));
        rows.push(VariantRow { name: name.clone(), campaigns: TallyRow::all(campaigns) });
    }
    for (place, ((variant, book), outcome)) in tried.iter().zip(&outcomes).enumerate() {
        let key = |row: &IntentRow| (place, row.at, row.id.clone());
        let intent = |row| DryIntent { under: variant.as_deref(), intent: Intent::new(row, &book.plan.definitions) };
        items.extend(outcome.intents.iter().map(|row| (key(row), intent(row))));
    }
    let more = items.len() > query.limit;
    items.truncate(query.limit);
    let next = items.last().filter(|_| more).map(|(key, _)| cursor(key));
    let items = items.into_iter().map(|(_, item)| item).collect();
    let row = Dry { from: span.from, to: span.to, variants: rows, items, next, cost };
    Ok(json(&At { as_of: as_of.into(), row }))
}
