//! What if: definitions tried on all of the past beside those that hold; nothing is kept of them and nothing is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use dataflows::definitions::{Problem as Fault, document, is_by_name, line_of};
use dataflows::profile::answers::IntentRow;
use dataflows::profile::sums::Span;
use dataflows::profile::trial::{Outcome, Reread, Shift, Tally, Trial};
use dataflows::protocol::Question;
use ecow::EcoString;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio::time::timeout_at;
use utoipa::ToSchema;

use super::answers::{At, ask};
use super::definitions::can_go;
use super::described::{NeedsLog, UnknownOrNeedsLog};
use super::query::{self, Asked, Query, cursor};
use super::{App, json};
use crate::book::{Book, Given, name_of};
use crate::desk::{Again, REREAD_MAX};
use crate::hub::{AsOf, Hub, Work};
use crate::moment::Moment;
use crate::problem::Problem;
use crate::rows::Intent;

/// What was tried: when that was true, what it comes to, and what it took.
type TriedOut = (AsOf, Vec<Outcome>, CostRow);

#[derive(Serialize, ToSchema)]
pub(super) struct CostRow {
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

/// Tries something beside the definitions that hold: asks until every worker has its part of the answer at one step.
/// Where the books tried name more of events than is kept of them, that is read again first.
pub(super) async fn try_out(
    app: &App,
    query: &Query,
    holds: &Arc<Book>,
    tried: &[&Book],
    trial: Trial,
) -> Result<TriedOut, Problem> {
    let trying = timeout_at(query.deadline(), app.trying.lock()).await;
    let mut number =
        trying.map_err(|_| Problem::busy("something else is being tried here; try again when it is done"))?;
    *number += 1;
    let seeing = |book: &&Book| (Arc::clone(&book.plan.definitions), book.plan.horizons.clone());
    let definitions = tried.iter().map(seeing).collect();
    let asks_more = tried.iter().any(|book| book.plan.vocabulary.wants_more_than(&holds.plan.vocabulary));
    let reread = if asks_more { Some(read_again(app, query, holds, tried).await?) } else { None };
    let (_forgets, began) = (Forgets(app.hub.clone(), *number), Instant::now());
    let trial = Arc::new(Trial { definitions, reread, ..trial });
    let mut begins = Some(Arc::clone(&trial));
    loop {
        let answered = ask(app, query, Question::WhatIf(*number, begins.take())).await?;
        let Some(outcomes) = trial.whole(answered.parts) else { continue };
        // What definitions to come name is put to the events before they hold.
        let changed = trial.reread.is_some() && !Arc::ptr_eq(&app.hub.latest(), holds);
        if changed || !Arc::ptr_eq(&answered.book, holds) {
            return Err(Problem::busy("other definitions came meanwhile; try again"));
        }
        let took_ms = began.elapsed().as_millis() as u64;
        let of = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).max().unwrap_or(0);
        let cost = CostRow {
            profiles: of(|outcome| outcome.cost.profiles),
            events: of(|outcome| outcome.cost.events),
            bytes: of(|outcome| outcome.cost.bytes),
            standing_bytes: of(|outcome| outcome.cost.standing_bytes),
            took_ms,
        };
        let as_of = trial.reread.as_ref().map_or(answered.as_of, |reread| {
            let (position, clock) = reread.until;
            AsOf { position, clock }
        });
        return Ok((as_of, outcomes, cost));
    }
}

/// Definitions that are tried see what they would if they were given now.
fn settled(app: &App, mut tried: Book) -> Book {
    tried.settle(app.hub.clock());
    tried
}

/// What the books tried name of events that is not kept of them, as of the last step that closed.
async fn read_again(app: &App, query: &Query, holds: &Arc<Book>, tried: &[&Book]) -> Result<Reread, Problem> {
    if !Arc::ptr_eq(&app.hub.latest(), holds) {
        let why =
            "the log would be read again for this, and it is for other definitions now; try again when these hold";
        return Err(Problem::busy(why));
    }
    let log = app.log()?;
    let AsOf { position, clock } = ask(app, query, Question::Totals).await?.as_of;
    let tried = tried.iter().map(|book| book.text().to_owned()).collect();
    let again = Again { tried, generation: holds.plan.vocabulary.generation(), until: position };
    let events = log.reread(&again, &holds.plan).await.map_err(Problem::not_yet)?;
    if events.len() > REREAD_MAX {
        return Err(Problem::conflict(format!(
            "more than {REREAD_MAX} events would be read again for what no definition that holds reads of them; give \
             the definition by PUT /v1/definitions, which keeps it, or try it on files with `thalweg dry-run`"
        )));
    }
    Ok(Reread { until: (position, clock), events })
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
    let (as_of, outcomes, cost) = try_out(&app, &query, &book, &[&tried], Trial::default()).await?;
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
    /// The document; null: it is taken away.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<serde_json::Value>)]
    definition: Option<Option<Box<RawValue>>>,
    /// Intents from this instant on: a UTC date, RFC 3339, or ms.
    #[schema(value_type = Option<serde_json::Value>)]
    from: Option<Moment>,
    /// And before this one.
    #[schema(value_type = Option<serde_json::Value>)]
    to: Option<Moment>,
}

/// What is given, null too.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<Box<RawValue>>>, D::Error> {
    Option::deserialize(from).map(Some)
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
    UnknownOrNeedsLog))]
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
            if definition.is_none() {
                can_go(&book, &kind, &name, &of)?;
            }
            one = Some(EcoString::from(name)).filter(|_| kind == "segments");
            let prefix = of.replacen('/', ".", 1);
            let inside = |path: &str| Some(format!("definition{}", path.strip_prefix(&prefix)?));
            book.with(&of, definition).map_err(|faults| wrong(text, faults, inside))
        }
        _ => Err(Problem::bad_request("give either `definitions`, or `kind`, `name` and `definition`")),
    }?;
    let tried = settled(&app, tried);
    let trial = Trial { span: span(from, to)?, ..Trial::default() };
    let (as_of, outcomes, cost) = try_out(&app, &query, &book, &[&tried], trial).await?;
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
    let trial = Trial {
        span,
        campaigns: wanted.clone(),
        before,
        // One more than asked for tells whether there is a next part.
        limit: query.limit + 1,
        ..Trial::default()
    };
    let books: Vec<&Book> = tried.iter().map(|(_, book)| book).collect();
    let (as_of, mut outcomes, cost) = try_out(&app, &query, &book, &books, trial).await?;
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
