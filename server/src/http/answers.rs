//! Answers: what is true, as of one logical time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use dataflows::admission::Verdict;
use dataflows::identity;
use dataflows::number::{Number, divide_rounded, print_billionths, print_millionths};
use dataflows::plan::Plan;
use dataflows::profile::answers::{ChangeRow, ConversionRow, Page, ProfileRow, Rows, SessionRow, TouchRow, View};
use dataflows::profile::sums::{Credited, Sought, Visits};
use dataflows::protocol::{Answer, Deadline, Question};
use dataflows::time::parse_duration;
use dataflows::total::Total;
use ecow::EcoString;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use utoipa::ToSchema;

use super::corrections::StatedBy;
use super::described::{ById, ByName, NeedsLog, Refused, Unknown, UnknownOrNeedsLog};
use super::query::{self, Asked, Query, cursor};
use super::{App, AsOfRow, json};
use crate::book::Book;
use crate::hub::{Answered, AsOf};
use crate::log::OwnedRecord;
use crate::outbox::{Entry, Outbox};
use crate::problem::Problem;
use crate::record::{self, DeadLetter};
use crate::rows::{self, Intent};

/// A part of a list.
#[derive(Serialize, ToSchema)]
pub(super) struct List<T> {
    pub(super) as_of: AsOfRow,
    pub(super) items: Vec<T>,
    pub(super) next: Option<String>,
}

/// A row with the time at which it is true in front.
#[derive(Serialize, ToSchema)]
pub(super) struct At<T> {
    pub(super) as_of: AsOfRow,
    #[serde(flatten)]
    pub(super) row: T,
}

/// Asks, once everything up to the position asked for is included.
pub(super) async fn ask(app: &App, query: &Query, question: Question) -> Result<Answered, Problem> {
    let deadline = query.deadline();
    loop {
        let preparing = app.hub.preparing();
        let answered = app.hub.ask(question.clone()).await?;
        // A record of definitions is included when they hold.
        let pending = preparing.filter(|(position, _)| query.after == Some(*position));
        let position = pending.map_or(answered.as_of.position, |(position, _)| position - 1);
        if query.is_included(position, deadline).await? {
            return Ok(answered);
        }
    }
}

pub(super) async fn totals(app: &App, query: &Query) -> Result<(AsOf, Arc<Book>, BTreeMap<Total, i128>), Problem> {
    let Answered { as_of, book, parts, .. } = ask(app, query, Question::Totals).await?;
    let mut totals = BTreeMap::new();
    for part in parts {
        if let Answer::Totals(part) = part {
            totals.extend(part);
        }
    }
    Ok((as_of, book, totals))
}

/// What is said of a name that the definitions that hold do not have: it may be among those to come.
pub(super) fn unknown_name<T>(app: &App, what: &str, name: &str, find: impl Fn(&Plan) -> Option<T>) -> Problem {
    match app.hub.preparing() {
        Some((_, (done, all))) if find(&app.hub.latest().plan).is_some() => Problem::not_yet(format!(
            "the {what} {name:?} is being prepared: {done} of {all} profiles are; ask again soon"
        )),
        _ => Problem::not_found(format!("no {what} is named {name:?}")),
    }
}

/// A person, by any of their ids; as they are, or as of an instant of the past.
#[utoipa::path(get, path = "/v1/profiles/{id}", tag = "profiles", params(ById, Asked<query::Instant>),
    responses((status = 200, description = "What is true", body = At<Linked>), Unknown))]
pub(super) async fn profile(
    State(app): State<App>,
    Path(id): Path<String>,
    Asked { query, .. }: Asked<query::Instant>,
) -> Result<Response, Problem> {
    let (at, of) = (query.at()?, EcoString::from(&id));
    let question = match at {
        Some(at) => Question::ProfileAt(of, at),
        None => Question::Person(of),
    };
    let Answered { as_of, parts, .. } = ask(&app, &query, question).await?;
    let as_of = at_instant(as_of, at)?;
    let (mut profile, mut linked_by) = (None, Vec::new());
    for part in parts {
        match part {
            Answer::Profile(found) => profile = Some(found),
            Answer::Links(links) => linked_by = links.into_iter().map(LinkRow::from).collect(),
            _ => {}
        }
    }
    let profile = profile.ok_or_else(|| nobody(&id, at))?;
    Ok(json(&At { as_of: as_of.into(), row: Linked { profile, linked_by } }))
}

/// A profile, and the edges that make its ids one.
#[derive(Serialize, ToSchema)]
struct Linked {
    #[serde(flatten)]
    profile: Box<ProfileRow>,
    linked_by: Vec<LinkRow>,
}

/// An edge, and the first event that states it.
#[derive(Serialize, ToSchema)]
struct LinkRow {
    a: EcoString,
    b: EcoString,
    event: StatedBy,
}

impl From<identity::Linked> for LinkRow {
    fn from(identity::Linked { a, b, at, own, message_id }: identity::Linked) -> Self {
        LinkRow { a, b, event: StatedBy { id: own, message_id, timestamp: at } }
    }
}

pub(super) async fn one_profile(app: &App, query: &Query, id: &str) -> Result<(AsOf, Box<ProfileRow>), Problem> {
    let (as_of, profile) = find_profile(app, query, id).await?;
    Ok((as_of, profile.ok_or_else(|| nobody(id, None))?))
}

/// The same, of whom there may be nothing.
pub(super) async fn find_profile(
    app: &App,
    query: &Query,
    id: &str,
) -> Result<(AsOf, Option<Box<ProfileRow>>), Problem> {
    let Answered { as_of, parts, .. } = ask(app, query, Question::Profile(id.into())).await?;
    let profile = parts.into_iter().find_map(|part| match part {
        Answer::Profile(profile) => Some(profile),
        _ => None,
    });
    Ok((as_of, profile))
}

/// When an answer about an instant is true.
pub(super) fn at_instant(as_of: AsOf, at: Option<i64>) -> Result<AsOf, Problem> {
    let clock = at.unwrap_or(as_of.clock);
    if clock > as_of.clock {
        let now = as_of.clock;
        return Err(Problem::bad_request(format!("`at={clock}` is later than the clock, which is at {now}")));
    }
    Ok(AsOf { clock, ..as_of })
}

pub(super) fn nobody(id: &str, at: Option<i64>) -> Problem {
    let then = at.map_or(String::new(), |at| format!(" as of {at}"));
    Problem::not_found(format!("no profile has the id {id:?}{then}"))
}

async fn history(app: App, id: String, query: Query, view: View) -> Result<Response, Problem> {
    let page = Page { before: query.key()?, limit: query.limit };
    let Answered { as_of, book, parts, .. } =
        ask(&app, &query, Question::History { id: id.as_str().into(), view, page }).await?;
    let found = parts.into_iter().find_map(|part| match part {
        Answer::History(rows, next) => Some((rows, next)),
        _ => None,
    });
    let (rows, next) = found.ok_or_else(|| nobody(&id, None))?;
    let items = match &rows {
        Rows::Events(events) => {
            let places: Vec<u64> = events.iter().map(|(_, place)| *place).collect();
            let records = app.log()?.get(&places).await;
            let rows = events.iter().zip(records);
            rows.filter_map(|((profile, _), record)| event_row(profile, &record?)).collect()
        }
        rows => rows::lines(rows, &book.plan.definitions).into_iter().map(raw_json).collect::<Vec<_>>(),
    };
    Ok(json(&List { as_of: as_of.into(), items, next: next.as_ref().map(cursor) }))
}

pub(super) fn raw_json(text: String) -> Box<RawValue> {
    RawValue::from_string(text).expect("it was printed as JSON")
}

/// An intent with the ledger's word, where it has one.
pub(super) fn intent(app: &App, row: &dataflows::profile::answers::IntentRow) -> Box<RawValue> {
    match app.outbox.entry(&row.id) {
        Some(entry) => told_intent(app, &entry),
        None => to_raw_value(&Intent::new(row, &app.hub.book().plan.definitions)).expect("rows have string keys"),
    }
}

/// An intent by the ledger's word.
pub(super) fn told_intent(app: &App, entry: &Entry) -> Box<RawValue> {
    let book = app.hub.book();
    to_raw_value(&Outbox::row(entry, &book.plan.definitions)).expect("rows have string keys")
}

macro_rules! histories {
    ($($what:literal $path:literal $name:ident $view:ident $row:ty, $refusals:ident;)*) => {$(
        #[doc = $what]
        #[utoipa::path(get, path = $path, tag = "profiles", params(ById, Asked<query::Part>),
            responses((status = 200, description = "What is true", body = List<$row>), $refusals))]
        pub(super) async fn $name(
            State(app): State<App>,
            Path(id): Path<String>,
            Asked { query, .. }: Asked<query::Part>,
        ) -> Result<Response, Problem> {
            history(app, id, query, View::$view).await
        }
    )*};
}

histories! {
    "A person's calls as they were sent, newest first." "/v1/profiles/{id}/events" events Events EventRow,
        UnknownOrNeedsLog;
    "A person's sessions, newest first." "/v1/profiles/{id}/sessions" sessions Sessions SessionRow, Unknown;
    "A person's touches, newest first." "/v1/profiles/{id}/touchpoints" touchpoints Touches TouchRow, Unknown;
    "A person's conversions, newest first." "/v1/profiles/{id}/conversions" conversions Conversions ConversionRow,
        Unknown;
    "A person's entries to segments and exits, newest first." "/v1/profiles/{id}/segments/changes" changes Changes
        ChangeRow, Unknown;
}

/// A person's intents, newest first; those too that were cancelled or revoked and that the law no longer has.
#[utoipa::path(get, path = "/v1/profiles/{id}/intents", tag = "profiles", params(ById, Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<Intent>), Unknown))]
pub(super) async fn intents(
    State(app): State<App>,
    Path(id): Path<String>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let profile = one_profile(&app, &query, &id).await?.1;
    // All of them: what the ledger adds is not in the law's order of keys.
    let page = Page { before: None, limit: usize::MAX };
    let question = Question::History { id: id.as_str().into(), view: View::Intents, page };
    let Answered { as_of, parts, .. } = ask(&app, &query, question).await?;
    let mut rows: Vec<((i64, String), Box<RawValue>)> = Vec::new();
    for part in parts {
        if let Answer::History(Rows::Intents(part), _) = part {
            rows.extend(part.iter().map(|row| ((row.at, row.id.clone()), intent(&app, row))));
        }
    }
    let standing: BTreeSet<String> = rows.iter().map(|((_, id), _)| id.clone()).collect();
    let ids: BTreeSet<&EcoString> = profile.ids().collect();
    let mut gone = app.outbox.of_person(&ids);
    gone.retain(|entry| !standing.contains(&entry.row.id));
    rows.extend(gone.iter().rev().map(|entry| ((entry.row.at, entry.row.id.clone()), told_intent(&app, entry))));
    rows.sort_by_key(|((at, _), _)| std::cmp::Reverse(*at));
    if let Some(last) = query.key::<(i64, String)>()? {
        // If the row itself is gone, its instant is told again.
        let after = rows.iter().position(|(key, _)| *key == last).map(|place| place + 1);
        rows.drain(..after.unwrap_or_else(|| rows.partition_point(|((at, _), _)| *at > last.0)));
    }
    let more = rows.len() > query.limit;
    rows.truncate(query.limit);
    let next = rows.last().filter(|_| more).map(|(key, _)| cursor(key));
    let items: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

#[derive(Serialize, ToSchema)]
pub(super) struct EventRow<'a> {
    profile: &'a str,
    r#type: &'static str,
    event: Option<&'a RawValue>,
    name: Option<&'a RawValue>,
    #[serde(rename = "messageId")]
    message_id: &'a str,
    #[serde(rename = "userId")]
    user_id: Option<&'a RawValue>,
    #[serde(rename = "anonymousId")]
    anonymous_id: Option<&'a RawValue>,
    #[serde(rename = "previousId")]
    previous_id: Option<&'a RawValue>,
    #[serde(rename = "groupId")]
    group_id: Option<&'a RawValue>,
    timestamp: i64,
    received_at: i64,
    properties: Option<&'a RawValue>,
    traits: Option<&'a RawValue>,
    context: Option<&'a RawValue>,
    /// Only where it is so: the event is older than `retention`, and what of it no definition sees is gone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    beyond_retention: bool,
}

/// An event as it came, read from the log: what it says is told as it was written, to the last digit.
pub(super) fn event_row(profile: &str, record: &OwnedRecord) -> Option<Box<RawValue>> {
    let (kind, timestamp, message_id, body) = record::decode_event(&record.payload)?;
    let body: BTreeMap<String, &RawValue> = serde_json::from_str(body).ok()?;
    let part = |key: &str| body.get(key).copied();
    let row = EventRow {
        profile,
        r#type: kind.name(),
        event: part("event"),
        name: part("name"),
        message_id,
        user_id: part("userId"),
        anonymous_id: part("anonymousId"),
        previous_id: part("previousId"),
        group_id: part("groupId"),
        timestamp,
        received_at: record.received_at,
        properties: part("properties"),
        traits: part("traits"),
        context: part("context"),
        beyond_retention: record::is_old(&record.payload),
    };
    to_raw_value(&row).ok()
}

#[derive(Serialize, ToSchema)]
struct SegmentRow<'a> {
    name: &'a str,
    size: i64,
    version: u32,
}

pub(super) fn size(totals: &BTreeMap<Total, i128>, total: &Total) -> i64 {
    totals.get(total).copied().unwrap_or(0) as i64
}

/// The segments, and how many people are in each.
#[utoipa::path(get, path = "/v1/segments", tag = "segments", params(Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<SegmentRow>), Refused))]
pub(super) async fn segments(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let (as_of, book, totals) = totals(&app, &query).await?;
    let (names, next) = query.names(book.plan.segments.iter().map(|segment| &segment.name))?;
    let items = names.into_iter().map(|name| SegmentRow {
        name,
        size: size(&totals, &Total::Members(name.clone())),
        version: book.version("segments", name),
    });
    Ok(json(&List { as_of: as_of.into(), items: items.collect(), next }))
}

#[derive(Serialize, ToSchema)]
struct SegmentWhole<'a> {
    #[serde(flatten)]
    row: SegmentRow<'a>,
    definition: Option<&'a RawValue>,
    /// Since when it knows the past, ms; null: from its beginning.
    history_from: Option<i64>,
}

/// A segment: its size and its definition.
#[utoipa::path(get, path = "/v1/segments/{name}", tag = "segments", params(ByName, Asked<query::Nothing>),
    responses((status = 200, description = "What is true", body = At<SegmentWhole>), Unknown))]
pub(super) async fn segment(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::Nothing>,
) -> Result<Response, Problem> {
    let (as_of, book, totals) = totals(&app, &query).await?;
    let segment = segment_named(&app, &book, &name)?;
    let version = book.version("segments", &name);
    let row = SegmentRow { name: &name, size: size(&totals, &Total::Members(segment)), version };
    let document = format!("segments/{name}");
    let (definition, history_from) = (book.document(&document).0, book.history_from(&document));
    let definition = definition.map(|json| raw_json(json.to_owned()));
    let definition = definition.as_deref();
    Ok(json(&At { as_of: as_of.into(), row: SegmentWhole { row, definition, history_from } }))
}

pub(super) fn segment_named(app: &App, book: &Book, name: &str) -> Result<EcoString, Problem> {
    let number =
        book.plan.segment(name).ok_or_else(|| unknown_name(app, "segment", name, |plan| plan.segment(name)))?;
    Ok(book.plan.segments[number].name.clone())
}

#[derive(Serialize, ToSchema)]
struct Member {
    profile: EcoString,
    since: i64,
}

/// Who is in a segment, in order of id.
#[utoipa::path(get, path = "/v1/segments/{name}/members", tag = "segments", params(ByName, Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<Member>), Unknown))]
pub(super) async fn members(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let (segment, after) = (name.as_str().into(), query.key()?);
    // One more than asked for tells whether there is a next part.
    let Answered { as_of, book, parts, .. } =
        ask(&app, &query, Question::Members { segment, after, limit: query.limit + 1 }).await?;
    segment_named(&app, &book, &name)?;
    let mut all = Vec::new();
    for part in parts {
        if let Answer::Members(part) = part {
            all.extend(part);
        }
    }
    all.sort();
    let more = all.len() > query.limit;
    all.truncate(query.limit);
    let next = all.last().filter(|_| more).map(|(profile, _)| cursor(profile));
    let items = all.into_iter().map(|(profile, since)| Member { profile, since }).collect();
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

#[derive(Serialize, ToSchema)]
struct JourneyRow {
    name: EcoString,
    version: u32,
    profiles: i64,
    states: Vec<StateRow>,
    transitions: Vec<TransitionRow>,
}

#[derive(Serialize, ToSchema)]
struct StateRow {
    state: EcoString,
    profiles: i64,
}

#[derive(Serialize, ToSchema)]
struct TransitionRow {
    from: EcoString,
    to: EcoString,
    on: EcoString,
    count: i64,
}

fn journey_row(book: &Book, number: usize, totals: &BTreeMap<Total, i128>) -> JourneyRow {
    let journey = &book.plan.journeys[number];
    let states: Vec<StateRow> = journey
        .states
        .iter()
        .map(|state| StateRow {
            state: state.name.clone(),
            profiles: size(totals, &Total::Inside(journey.name.clone(), state.name.clone())),
        })
        .collect();
    let transitions = book.plan.totals.iter().filter_map(|counted| match &*counted.total {
        Total::Moves(of, from, to, on) if *of == journey.name => Some(TransitionRow {
            from: from.clone(),
            to: to.clone(),
            on: on.clone().unwrap_or("timer".into()),
            count: size(totals, &counted.total),
        }),
        _ => None,
    });
    JourneyRow {
        name: journey.name.clone(),
        version: book.version("journeys", &journey.name),
        profiles: states.iter().map(|state| state.profiles).sum(),
        transitions: transitions.collect(),
        states,
    }
}

/// The journeys, and where people stand in them.
#[utoipa::path(get, path = "/v1/journeys", tag = "journeys", params(Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<JourneyRow>), Refused))]
pub(super) async fn journeys(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let (as_of, book, totals) = totals(&app, &query).await?;
    let (names, next) = query.names(book.plan.journeys.iter().map(|journey| &journey.name))?;
    let numbers = names.into_iter().filter_map(|name| book.plan.journey(name));
    let items = numbers.map(|number| journey_row(&book, number, &totals)).collect();
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

/// How many of the next deadlines a journey's answer shows.
const DEADLINES: usize = 10;

#[derive(Serialize, ToSchema)]
struct JourneyWhole {
    #[serde(flatten)]
    row: JourneyRow,
    next_deadlines: Vec<DueRow>,
}

/// A journey: where people stand, what moved them, and the next deadlines.
#[utoipa::path(get, path = "/v1/journeys/{name}", tag = "journeys", params(ByName, Asked<query::Nothing>),
    responses((status = 200, description = "What is true", body = At<JourneyWhole>), Unknown))]
pub(super) async fn journey(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::Nothing>,
) -> Result<Response, Problem> {
    let question = Question::Deadlines { journey: name.as_str().into(), within: None, after: None, limit: DEADLINES };
    let (as_of, book, mut all, counted) = deadlines(&app, &query, question).await?;
    let number = journey_named(&app, &book, &name)?;
    all.truncate(DEADLINES);
    let next_deadlines = all.into_iter().map(DueRow::from).collect();
    Ok(json(&At {
        as_of: as_of.into(),
        row: JourneyWhole { row: journey_row(&book, number, &counted), next_deadlines },
    }))
}

/// A journey's deadlines to come, the next first.
#[utoipa::path(get, path = "/v1/journeys/{name}/due", tag = "journeys", params(ByName, Asked<query::PartOfSoon>),
    responses((status = 200, description = "What is true", body = List<DueRow>), Unknown))]
pub(super) async fn due(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::PartOfSoon>,
) -> Result<Response, Problem> {
    let within = query.own.get("within").map(|within| {
        let wrong = || Problem::bad_request(format!("`within={within}`: a duration such as 4h"));
        parse_duration(within).ok_or_else(wrong)
    });
    let (within, after) = (within.transpose()?, query.key()?);
    // One more than asked for tells whether there is a next part.
    let question = Question::Deadlines { journey: name.as_str().into(), within, after, limit: query.limit + 1 };
    let (as_of, book, mut all, _) = deadlines(&app, &query, question).await?;
    journey_named(&app, &book, &name)?;
    let more = all.len() > query.limit;
    all.truncate(query.limit);
    let next = all.last().filter(|_| more).map(cursor);
    Ok(json(&List { as_of: as_of.into(), items: all.into_iter().map(DueRow::from).collect(), next }))
}

#[derive(Serialize, ToSchema)]
struct DueRow {
    profile: EcoString,
    at: i64,
    emit: Option<EcoString>,
}

impl From<Deadline> for DueRow {
    fn from((at, profile, emit, _): Deadline) -> Self {
        DueRow { profile, at, emit }
    }
}

/// Deadlines in their order, and the totals of the same time.
async fn deadlines(
    app: &App,
    query: &Query,
    question: Question,
) -> Result<(AsOf, Arc<Book>, Vec<Deadline>, BTreeMap<Total, i128>), Problem> {
    let Answered { as_of, book, parts, .. } = ask(app, query, question).await?;
    let (mut all, mut counted) = (Vec::new(), BTreeMap::new());
    for part in parts {
        match part {
            Answer::Deadlines(part) => all.extend(part),
            Answer::Totals(part) => counted.extend(part),
            _ => {}
        }
    }
    all.sort();
    Ok((as_of, book, all, counted))
}

fn journey_named(app: &App, book: &Book, name: &str) -> Result<usize, Problem> {
    book.plan.journey(name).ok_or_else(|| unknown_name(app, "journey", name, |plan| plan.journey(name)))
}

#[derive(Serialize, ToSchema)]
struct CampaignRow {
    name: EcoString,
    active_since: i64,
    intents: i64,
    by_status: BTreeMap<EcoString, i64>,
    revoked: i64,
    /// Conversions that stand and came after an intent that passed all gates, at most the lookback after it.
    conversions: u64,
}

/// How many intents a campaign has, by what became of them.
pub(super) fn by_status(app: &App, name: &EcoString, totals: &BTreeMap<Total, i128>) -> BTreeMap<EcoString, i64> {
    let mut by_status = BTreeMap::new();
    for (total, count) in totals {
        if let Total::Intents(of, status) = total {
            // What the law lets pass goes by what became of it; of a replay nothing does.
            if of == name && (status != "due" || app.log.is_none()) {
                by_status.insert(status.clone(), *count as i64);
            }
        }
    }
    for (fate, count) in app.outbox.fates(name) {
        *by_status.entry(fate.into()).or_default() += count;
    }
    by_status
}

/// Everything about campaigns: their conversions, by number, and the totals of the same time.
async fn campaigns_asked(
    app: &App,
    query: &Query,
) -> Result<(AsOf, Arc<Book>, Vec<u64>, BTreeMap<Total, i128>), Problem> {
    let Answered { as_of, book, parts, .. } = ask(app, query, Question::Followed).await?;
    let (mut conversions, mut totals) = (vec![0; book.plan.campaigns.len()], BTreeMap::new());
    for part in parts {
        match part {
            Answer::Followed(part) => conversions.iter_mut().zip(part).for_each(|(sum, part)| *sum += part),
            Answer::Totals(part) => totals.extend(part),
            _ => {}
        }
    }
    Ok((as_of, book, conversions, totals))
}

fn campaign_row(
    app: &App,
    book: &Book,
    name: &EcoString,
    conversions: &[u64],
    totals: &BTreeMap<Total, i128>,
) -> CampaignRow {
    let by_status = by_status(app, name, totals);
    let gone = |status: &&EcoString| matches!(status.as_str(), "cancelled" | "revoked");
    CampaignRow {
        name: name.clone(),
        active_since: book.active_since(name),
        intents: by_status.iter().filter(|(status, _)| !gone(status)).map(|(_, count)| count).sum(),
        revoked: by_status.get("revoked").copied().unwrap_or(0),
        by_status,
        conversions: book.plan.campaign(name).map_or(0, |number| conversions[number]),
    }
}

/// The campaigns, and what became of their intents.
#[utoipa::path(get, path = "/v1/campaigns", tag = "campaigns", params(Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<CampaignRow>), Refused))]
pub(super) async fn campaigns(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let (as_of, book, conversions, totals) = campaigns_asked(&app, &query).await?;
    let (names, next) = query.names(book.plan.campaigns.iter().map(|campaign| &campaign.name))?;
    let items = names.into_iter().map(|name| campaign_row(&app, &book, name, &conversions, &totals)).collect();
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

fn campaign_named(app: &App, book: &Book, name: &str) -> Result<EcoString, Problem> {
    let number =
        book.plan.campaign(name).ok_or_else(|| unknown_name(app, "campaign", name, |plan| plan.campaign(name)))?;
    Ok(book.plan.campaigns[number].name.clone())
}

/// A campaign, and what became of its intents.
#[utoipa::path(get, path = "/v1/campaigns/{name}", tag = "campaigns", params(ByName, Asked<query::Nothing>),
    responses((status = 200, description = "What is true", body = At<CampaignRow>), Unknown))]
pub(super) async fn campaign(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::Nothing>,
) -> Result<Response, Problem> {
    let (as_of, book, conversions, totals) = campaigns_asked(&app, &query).await?;
    let name = campaign_named(&app, &book, &name)?;
    Ok(json(&At { as_of: as_of.into(), row: campaign_row(&app, &book, &name, &conversions, &totals) }))
}

/// All intents of a campaign, newest first.
#[utoipa::path(get, path = "/v1/campaigns/{name}/intents", tag = "campaigns", params(ByName, Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<Intent>), Unknown))]
pub(super) async fn campaign_intents(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let Answered { as_of, book, parts, .. } = ask(&app, &query, Question::Dump(View::Intents)).await?;
    let name = campaign_named(&app, &book, &name)?;
    let mut rows: BTreeMap<(i64, String), Box<RawValue>> = BTreeMap::new();
    for part in parts {
        if let Answer::Rows(Rows::Intents(part)) = part {
            let of_this = part.iter().filter(|row| row.campaign == name);
            rows.extend(of_this.map(|row| ((row.at, row.id.clone()), intent(&app, row))));
        }
    }
    // What was sent and no longer stands is listed too.
    for entry in app.outbox.of_campaign(&name) {
        rows.insert((entry.row.at, entry.row.id.clone()), told_intent(&app, &entry));
    }
    let mut rows: Vec<_> = rows.into_iter().rev().collect();
    if let Some(before) = query.key()? {
        rows.retain(|(key, _)| *key < before);
    }
    let more = rows.len() > query.limit;
    rows.truncate(query.limit);
    let next = rows.last().filter(|_| more).map(|(key, _)| cursor(key));
    let items: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

#[derive(Serialize, ToSchema)]
struct Credit<'a> {
    model: &'a str,
    by: &'a str,
    rows: Vec<CreditRow>,
    total: Sum,
    basis: Basis,
    /// Keys with too few conversions for their model; the rule models need no number of them.
    #[schema(value_type = Vec<String>)]
    fallback: [(); 0],
}
#[derive(Serialize, ToSchema)]
struct CreditRow {
    channel: EcoString,
    campaign: Option<EcoString>,
    conversions: String,
    value: String,
}
#[derive(Serialize, ToSchema)]
struct Sum {
    conversions: String,
    value: String,
}
#[derive(Serialize, ToSchema)]
struct Basis {
    conversions: u64,
    with_touch: u64,
    null_paths: u64,
    touches: u64,
}

/// Exact credit of conversions, and what it rests on.
#[utoipa::path(get, path = "/v1/attribution", tag = "attribution", params(Asked<query::Credit>),
    responses((status = 200, description = "What is true", body = At<Credit>), Refused))]
pub(super) async fn attribution(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Credit>,
) -> Result<Response, Problem> {
    let book = app.hub.book();
    let models = book.plan.models();
    let named = query.own.get("model");
    let model = models.iter().find(|model| named.is_none_or(|named| named == model.name())).ok_or_else(|| {
        let known: Vec<&str> = models.iter().map(|model| model.name()).collect();
        Problem::bad_request(format!("the definitions keep no such model; they keep {}", known.join(", ")))
    })?;
    let by = query.own.get("by").map_or("channel", |by| by);
    if !["channel", "campaign"].contains(&by) {
        return Err(Problem::bad_request(format!("`by={by}`: channel or campaign")));
    }
    let conversion = query.own.get("conversion").map(EcoString::from);
    if conversion.as_ref().is_some_and(|name| book.plan.conversions.iter().all(|rule| rule.name != *name)) {
        return Err(Problem::bad_request("the definitions have no conversion of this name"));
    }
    let sought = Sought { model: *model, conversion, span: query.span()? };
    let Answered { as_of, parts, .. } = ask(&app, &query, Question::Credit(sought)).await?;
    let mut found = Credited::default();
    for part in parts {
        if let Answer::Credit(part) = part {
            found.add(part);
        }
    }
    let mut credit: BTreeMap<(EcoString, Option<EcoString>), (i128, i128)> = BTreeMap::new();
    for ((channel, campaign), (conversions, value)) in found.keys {
        let sum = credit.entry((channel, (by == "campaign").then_some(campaign))).or_default();
        *sum = (sum.0 + conversions, sum.1 + value);
    }
    let whole = credit.values().fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    let mut rows: Vec<_> = credit.into_iter().collect();
    rows.sort_by(|(a_key, a), (b_key, b)| b.1.cmp(&a.1).then_with(|| a_key.cmp(b_key)));
    let rows = rows.into_iter().map(|((channel, campaign), (conversions, value))| CreditRow {
        channel,
        campaign,
        conversions: print_billionths(conversions),
        value: print_billionths(value),
    });
    let total = Sum { conversions: print_billionths(whole.0), value: print_billionths(whole.1) };
    let Credited { conversions, with_touch, null_paths, touches, .. } = found;
    let basis = Basis { conversions, with_touch, null_paths, touches };
    let row = Credit { model: model.name(), by, rows: rows.collect(), total, basis, fallback: [] };
    Ok(json(&At { as_of: as_of.into(), row }))
}

/// Sessions of all people, latest start first.
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions", params(Asked<query::PartOfDates>),
    responses((status = 200, description = "What is true", body = List<SessionRow>), Refused))]
pub(super) async fn all_sessions(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::PartOfDates>,
) -> Result<Response, Problem> {
    // One more than asked for tells whether there is a next part.
    let question = Question::Sessions { span: query.span()?, before: query.key()?, limit: query.limit + 1 };
    let Answered { as_of, parts, .. } = ask(&app, &query, question).await?;
    let mut items = Vec::new();
    for part in parts {
        if let Answer::Sessions(part) = part {
            items.extend(part);
        }
    }
    items.sort_by_cached_key(|row| std::cmp::Reverse(row.key()));
    let more = items.len() > query.limit;
    items.truncate(query.limit);
    let next = items.last().filter(|_| more).map(|row| cursor(&row.key()));
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

#[derive(Serialize, ToSchema)]
struct Summary {
    sessions: u64,
    events: u64,
    #[schema(value_type = Option<f64>)]
    mean_length_ms: Option<Box<RawValue>>,
    bounces: u64,
    #[schema(value_type = Option<f64>)]
    bounce_rate: Option<Box<RawValue>>,
    buying: u64,
}

/// Sums over sessions.
#[utoipa::path(get, path = "/v1/sessions/summary", tag = "sessions", params(Asked<query::Dates>),
    responses((status = 200, description = "What is true", body = At<Summary>), Refused))]
pub(super) async fn visits(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Dates>,
) -> Result<Response, Problem> {
    let Answered { as_of, parts, .. } = ask(&app, &query, Question::Visits(query.span()?)).await?;
    let mut sum = Visits::default();
    for part in parts {
        if let Answer::Visits(part) = part {
            sum.add(part);
        }
    }
    let Visits { sessions, events, length_ms, bounces, buying } = sum;
    // Over no sessions there is no mean.
    let mean = |whole: i128| {
        let millionths = || divide_rounded(whole * i128::from(Number::ONE.0), sessions.into());
        (sessions > 0).then(|| raw_json(print_millionths(millionths())))
    };
    let (mean_length_ms, bounce_rate) = (mean(length_ms), mean(bounces.into()));
    let row = Summary { sessions, events, mean_length_ms, bounces, bounce_rate, buying };
    Ok(json(&At { as_of: as_of.into(), row }))
}

#[derive(Serialize, ToSchema)]
pub(super) struct Letter {
    reason: &'static str,
    detail: String,
    position: String,
    received_at: i64,
    body: String,
    /// `base64`, where what came is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    encoding: Option<String>,
}

impl Letter {
    pub(super) fn new(letter: DeadLetter, position: u64, received_at: i64) -> Letter {
        let DeadLetter { reason, detail, body, encoding } = letter;
        Letter { reason: reason.name(), detail, position: position.to_string(), received_at, body, encoding }
    }
}

/// What was not taken, newest first.
#[utoipa::path(get, path = "/v1/dead-letters", tag = "dead-letters", params(Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<Letter>), NeedsLog))]
pub(super) async fn dead_letters(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let log = app.log()?;
    let Answered { as_of, .. } = ask(&app, &query, Question::Totals).await?;
    let found = app.hub.dead_letters(query.key()?, query.limit + 1);
    let more = found.len() > query.limit;
    let next = found.get(query.limit - 1).filter(|_| more).map(|(position, _)| cursor(position));
    let mut items = Vec::new();
    let found: Vec<(u64, Verdict)> = found.into_iter().take(query.limit).collect();
    let records = log.get(&found.iter().map(|(place, _)| *place).collect::<Vec<_>>()).await;
    for ((position, verdict), record) in found.into_iter().zip(records) {
        let Some(record) = record else { continue };
        items.extend(DeadLetter::of(&record, verdict).map(|letter| Letter::new(letter, position, record.received_at)));
    }
    Ok(json(&List { as_of: as_of.into(), items, next }))
}
