//! Answers: what is true, as of one logical time.

use std::collections::BTreeMap;

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use dataflows::admission::Verdict;
use dataflows::number::{Number, divide_rounded, print_billionths, print_millionths};
use dataflows::profile::answers::{Page, Rows, View};
use dataflows::profile::sums::{Credited, Sought, Span, Visits};
use dataflows::protocol::{Answer, Deadline, Question};
use dataflows::time::{parse_date, parse_duration};
use dataflows::total::Total;
use ecow::EcoString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{App, AsOfRow, json};
use crate::log::OwnedRecord;
use crate::problem::Problem;
use crate::record::{self, DeadLetter};
use crate::rows::{self, Intent};
use crate::writer::{Answered, AsOf};

/// The parameters of a request: those that every answer takes, and those of its own.
pub(super) struct Query {
    after: Option<u64>,
    wait_ms: i64,
    pub(super) limit: usize,
    cursor: Option<String>,
    own: BTreeMap<String, String>,
}

const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1_000;
const WAIT_MS: i64 = 5_000;
const WAIT_MS_MAX: i64 = 30_000;

impl Query {
    /// Reads a query string; parameters that nobody knows and repeated ones are refused.
    pub(super) fn read(raw: Option<String>, own: &[&str]) -> Result<Query, Problem> {
        let mut query = Query { after: None, wait_ms: WAIT_MS, limit: LIMIT, cursor: None, own: BTreeMap::new() };
        let mut seen = BTreeMap::new();
        let raw = raw.unwrap_or_default();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decode(key)?, decode(value)?);
            if seen.insert(key.clone(), ()).is_some() {
                return Err(Problem::bad_request(format!("the parameter `{key}` is given twice")));
            }
            let wrong = |what: &str| Problem::bad_request(format!("`{key}={value}`: {what}"));
            match key.as_str() {
                "after" => query.after = Some(value.parse().map_err(|_| wrong("not a position that an answer gave"))?),
                "wait" => {
                    let wait = parse_duration(&value).filter(|wait| *wait <= WAIT_MS_MAX);
                    query.wait_ms = wait.ok_or_else(|| wrong("a duration of at most 30s"))?;
                }
                "limit" if own.contains(&"limit") => {
                    let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                    query.limit = limit.ok_or_else(|| wrong("an integer from 1 to 1000"))?;
                }
                "cursor" if own.contains(&"cursor") => query.cursor = Some(value),
                name if own.contains(&name) => drop(query.own.insert(key, value)),
                name => {
                    let all = [&["after", "wait"], own].concat().join(", ");
                    return Err(Problem::bad_request(format!("unknown parameter `{name}`; known here: {all}")));
                }
            }
        }
        Ok(query)
    }

    /// The part of a list of names, which are in order, that is asked for; and the cursor of the next.
    pub(super) fn names<'n, N: Ord + Serialize + DeserializeOwned>(
        &self,
        names: impl Iterator<Item = &'n N>,
    ) -> Result<(Vec<&'n N>, Option<String>), Problem> {
        let after: Option<N> = self.key()?;
        let mut rest = names.filter(|name| after.as_ref().is_none_or(|after| *name > after));
        let part: Vec<_> = rest.by_ref().take(self.limit).collect();
        let next = rest.next().and(part.last()).map(cursor);
        Ok((part, next))
    }

    /// The key that the cursor holds.
    pub(super) fn key<K: DeserializeOwned>(&self) -> Result<Option<K>, Problem> {
        let key = |cursor: &String| {
            let text = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok();
            let key = text.and_then(|text| serde_json::from_slice(&text).ok());
            key.ok_or_else(|| Problem::bad_request("`cursor` is not one that an answer gave"))
        };
        self.cursor.as_ref().map(key).transpose()
    }

    /// The UTC dates `from` and `to`: from the one on and before the other.
    fn span(&self) -> Result<Span, Problem> {
        let date = |key: &str| {
            let read = |date: &String| {
                let wrong = || Problem::bad_request(format!("`{key}={date}`: a UTC date such as 2026-01-31"));
                parse_date(date).ok_or_else(wrong)
            };
            self.own.get(key).map(read).transpose()
        };
        Ok(Span { from: date("from")?, to: date("to")? })
    }
}

/// A key as readers get it: they make nothing of it, and it stands in a query as it is.
pub(super) fn cursor(key: &(impl Serialize + ?Sized)) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(key).expect("keys have string keys"))
}

pub(super) fn decode(text: &str) -> Result<String, Problem> {
    let wrong = || Problem::bad_request(format!("`{text}` is not percent-encoded UTF-8"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().ok_or_else(wrong)?, rest.next().ok_or_else(wrong)?];
                let digits = std::str::from_utf8(&digits).map_err(|_| wrong())?;
                u8::from_str_radix(digits, 16).map_err(|_| wrong())?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// A part of a list.
#[derive(Serialize)]
pub(super) struct List<T> {
    pub(super) as_of: AsOfRow,
    pub(super) items: Vec<T>,
    pub(super) next: Option<String>,
}

/// A row with the time at which it is true in front.
#[derive(Serialize)]
pub(super) struct At<T> {
    pub(super) as_of: AsOfRow,
    #[serde(flatten)]
    pub(super) row: T,
}

/// Asks, once everything up to the position asked for is included.
pub(super) async fn ask(app: &App, query: &Query, question: Question) -> Result<Answered, Problem> {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_millis(query.wait_ms as u64);
    loop {
        let answered = app.hub.ask(question.clone()).await?;
        let Some(after) = query.after.filter(|after| *after > answered.as_of.position) else { return Ok(answered) };
        if tokio::time::Instant::now() >= deadline {
            let at = answered.as_of.position;
            return Err(Problem::not_yet(format!("the views include position {at}; {after} was asked for")));
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

async fn totals(app: &App, query: &Query) -> Result<(AsOf, BTreeMap<Total, i128>), Problem> {
    let Answered { as_of, parts } = ask(app, query, Question::Totals).await?;
    let mut totals = BTreeMap::new();
    for part in parts {
        if let Answer::Totals(part) = part {
            totals.extend(part);
        }
    }
    Ok((as_of, totals))
}

pub(super) async fn profile(
    State(app): State<App>,
    Path(id): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::read(raw, &[])?;
    let Answered { as_of, parts } = ask(&app, &query, Question::Profile(id.as_str().into())).await?;
    let profile = parts.into_iter().find_map(|part| match part {
        Answer::Profile(profile) => Some(profile),
        _ => None,
    });
    let row = profile.ok_or_else(|| Problem::not_found(format!("no profile has the id {id:?}")))?;
    Ok(json(&At { as_of: as_of.into(), row }))
}

async fn history(app: App, id: String, raw: Option<String>, view: View) -> Result<Response, Problem> {
    let query = Query::read(raw, &["limit", "cursor"])?;
    let page = Page { before: query.key()?, limit: query.limit };
    let Answered { as_of, parts } = ask(&app, &query, Question::History { id: id.as_str().into(), view, page }).await?;
    let found = parts.into_iter().find_map(|part| match part {
        Answer::History(rows, next) => Some((rows, next)),
        _ => None,
    });
    let (rows, next) = found.ok_or_else(|| Problem::not_found(format!("no profile has the id {id:?}")))?;
    let items = match &rows {
        Rows::Events(events) => {
            let places: Vec<u64> = events.iter().map(|(_, place)| *place).collect();
            let records = app.log()?.get(&places).await;
            let rows = events.iter().zip(records);
            rows.filter_map(|((profile, _), record)| event_row(profile, &record?)).collect()
        }
        Rows::Intents(intents) => intents.iter().map(|row| intent(&app, row)).collect(),
        rows => rows::lines(rows, &app.plan.definitions).into_iter().map(raw_json).collect::<Vec<_>>(),
    };
    Ok(json(&List { as_of: as_of.into(), items, next: next.as_ref().map(cursor) }))
}

fn raw_json(text: String) -> Box<RawValue> {
    RawValue::from_string(text).expect("it was printed as JSON")
}

/// An intent with the ledger's word, where it has one.
fn intent(app: &App, row: &dataflows::profile::answers::IntentRow) -> Box<RawValue> {
    let printed = match app.outbox.entry(&row.id) {
        Some(entry) => serde_json::to_string(&app.outbox.row(&entry)),
        None => serde_json::to_string(&Intent::new(row, &app.plan.definitions)),
    };
    raw_json(printed.expect("rows have string keys"))
}

macro_rules! histories {
    ($($name:ident $view:ident),*) => {$(
        pub(super) async fn $name(
            State(app): State<App>,
            Path(id): Path<String>,
            RawQuery(raw): RawQuery,
        ) -> Result<Response, Problem> {
            history(app, id, raw, View::$view).await
        }
    )*};
}

histories!(events Events, sessions Sessions, touchpoints Touches);
histories!(conversions Conversions, intents Intents, changes Changes);

/// An event as it came, read from the log: what it says is told as it was written, to the last digit.
fn event_row(profile: &str, record: &OwnedRecord) -> Option<Box<RawValue>> {
    #[derive(Serialize)]
    struct EventRow<'a> {
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
    }
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
    };
    serde_json::value::to_raw_value(&row).ok()
}

/// Definitions do not change while the process runs, so each is its first version.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct SegmentRow<'a> {
    name: &'a str,
    size: i64,
    version: u32,
}

fn size(totals: &BTreeMap<Total, i128>, total: &Total) -> i64 {
    totals.get(total).copied().unwrap_or(0) as i64
}

pub(super) async fn segments(State(app): State<App>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    let query = Query::read(raw, &["limit", "cursor"])?;
    let (as_of, totals) = totals(&app, &query).await?;
    let (names, next) = query.names(app.plan.segments.iter().map(|segment| &segment.name))?;
    let items = names.into_iter().map(|name| SegmentRow {
        name,
        size: size(&totals, &Total::Members(name.clone())),
        version: VERSION,
    });
    Ok(json(&List { as_of: as_of.into(), items: items.collect(), next }))
}

pub(super) async fn segment(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Whole<'a> {
        #[serde(flatten)]
        row: SegmentRow<'a>,
        definition: Option<&'a RawValue>,
        /// Nothing is dropped, so every segment knows all of the past.
        history_from: Option<i64>,
    }
    let query = Query::read(raw, &[])?;
    let segment = segment_named(&app, &name)?;
    let (as_of, totals) = totals(&app, &query).await?;
    let row = SegmentRow { name: &name, size: size(&totals, &Total::Members(segment)), version: VERSION };
    let definition = app.segments.get(&name).map(|definition| &**definition);
    Ok(json(&At { as_of: as_of.into(), row: Whole { row, definition, history_from: None } }))
}

fn segment_named(app: &App, name: &str) -> Result<EcoString, Problem> {
    let number = app.plan.segment(name).ok_or_else(|| Problem::not_found(format!("no segment is named {name:?}")))?;
    Ok(app.plan.segments[number].name.clone())
}

pub(super) async fn members(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Member {
        profile: EcoString,
        since: i64,
    }
    let query = Query::read(raw, &["limit", "cursor"])?;
    let segment = segment_named(&app, &name)?;
    let after = query.key()?;
    // One more than asked for tells whether there is a next part.
    let Answered { as_of, parts } =
        ask(&app, &query, Question::Members { segment, after, limit: query.limit + 1 }).await?;
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

#[derive(Serialize)]
struct JourneyRow {
    name: EcoString,
    version: u32,
    profiles: i64,
    states: Vec<StateRow>,
    transitions: Vec<TransitionRow>,
}

#[derive(Serialize)]
struct StateRow {
    state: EcoString,
    profiles: i64,
}

#[derive(Serialize)]
struct TransitionRow {
    from: EcoString,
    to: EcoString,
    on: EcoString,
    count: i64,
}

fn journey_row(app: &App, number: usize, totals: &BTreeMap<Total, i128>) -> JourneyRow {
    let journey = &app.plan.journeys[number];
    let states: Vec<StateRow> = journey
        .states
        .iter()
        .map(|state| StateRow {
            state: state.name.clone(),
            profiles: size(totals, &Total::Inside(journey.name.clone(), state.name.clone())),
        })
        .collect();
    let transitions = app.plan.totals.iter().filter_map(|counted| match &*counted.total {
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
        version: VERSION,
        profiles: states.iter().map(|state| state.profiles).sum(),
        transitions: transitions.collect(),
        states,
    }
}

pub(super) async fn journeys(State(app): State<App>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    let query = Query::read(raw, &["limit", "cursor"])?;
    let (as_of, totals) = totals(&app, &query).await?;
    let (names, next) = query.names(app.plan.journeys.iter().map(|journey| &journey.name))?;
    let numbers = names.into_iter().filter_map(|name| app.plan.journey(name));
    let items = numbers.map(|number| journey_row(&app, number, &totals)).collect();
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

/// How many of the next deadlines a journey's answer shows.
const DEADLINES: usize = 10;

pub(super) async fn journey(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Whole {
        #[serde(flatten)]
        row: JourneyRow,
        next_deadlines: Vec<DeadlineRow>,
    }
    let query = Query::read(raw, &[])?;
    let number = journey_named(&app, &name)?;
    let question = Question::Deadlines { journey: name.into(), within: None, after: None, limit: DEADLINES };
    let (as_of, mut all, counted) = deadlines(&app, &query, question).await?;
    all.truncate(DEADLINES);
    let next_deadlines = all.into_iter().map(DeadlineRow::from).collect();
    Ok(json(&At { as_of: as_of.into(), row: Whole { row: journey_row(&app, number, &counted), next_deadlines } }))
}

pub(super) async fn due(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::read(raw, &["within", "limit", "cursor"])?;
    journey_named(&app, &name)?;
    let within = query.own.get("within").map(|within| {
        let wrong = || Problem::bad_request(format!("`within={within}`: a duration such as 4h"));
        parse_duration(within).ok_or_else(wrong)
    });
    let (within, after) = (within.transpose()?, query.key()?);
    // One more than asked for tells whether there is a next part.
    let question = Question::Deadlines { journey: name.into(), within, after, limit: query.limit + 1 };
    let (as_of, mut all, _) = deadlines(&app, &query, question).await?;
    let more = all.len() > query.limit;
    all.truncate(query.limit);
    let next = all.last().filter(|_| more).map(cursor);
    Ok(json(&List { as_of: as_of.into(), items: all.into_iter().map(DeadlineRow::from).collect(), next }))
}

#[derive(Serialize)]
struct DeadlineRow {
    profile: EcoString,
    at: i64,
    emit: Option<EcoString>,
}

impl From<Deadline> for DeadlineRow {
    fn from((at, profile, emit, _): Deadline) -> Self {
        DeadlineRow { profile, at, emit }
    }
}

/// Deadlines in their order, and the totals of the same time.
async fn deadlines(
    app: &App,
    query: &Query,
    question: Question,
) -> Result<(AsOf, Vec<Deadline>, BTreeMap<Total, i128>), Problem> {
    let Answered { as_of, parts } = ask(app, query, question).await?;
    let (mut all, mut counted) = (Vec::new(), BTreeMap::new());
    for part in parts {
        match part {
            Answer::Deadlines(part) => all.extend(part),
            Answer::Totals(part) => counted.extend(part),
            _ => {}
        }
    }
    all.sort();
    Ok((as_of, all, counted))
}

fn journey_named(app: &App, name: &str) -> Result<usize, Problem> {
    app.plan.journey(name).ok_or_else(|| Problem::not_found(format!("no journey is named {name:?}")))
}

#[derive(Serialize)]
struct CampaignRow {
    name: EcoString,
    active_since: i64,
    intents: i64,
    by_status: BTreeMap<EcoString, i64>,
    revoked: i64,
    conversions: Option<i64>,
}

fn campaign_row(app: &App, name: &EcoString, totals: &BTreeMap<Total, i128>) -> CampaignRow {
    let mut by_status = BTreeMap::new();
    for (total, count) in totals {
        if let Total::Intents(of, status) = total {
            // What the law lets pass goes by what became of it; of a replay nothing does.
            if of == name && (status != "due" || app.log.is_none()) {
                by_status.insert(status.clone(), *count as i64);
            }
        }
    }
    for entry in app.outbox.of_campaign(name) {
        *by_status.entry(entry.fate.name().into()).or_default() += 1;
    }
    let gone = |status: &&EcoString| matches!(status.as_str(), "cancelled" | "revoked");
    CampaignRow {
        name: name.clone(),
        active_since: app.outbox.active_since(),
        intents: by_status.iter().filter(|(status, _)| !gone(status)).map(|(_, count)| count).sum(),
        revoked: by_status.get("revoked").copied().unwrap_or(0),
        by_status,
        conversions: None,
    }
}

pub(super) async fn campaigns(State(app): State<App>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    let query = Query::read(raw, &["limit", "cursor"])?;
    let (as_of, totals) = totals(&app, &query).await?;
    let (names, next) = query.names(app.plan.campaigns.iter().map(|campaign| &campaign.name))?;
    let items = names.into_iter().map(|name| campaign_row(&app, name, &totals)).collect();
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

fn campaign_named(app: &App, name: &str) -> Result<EcoString, Problem> {
    let number = app.plan.campaign(name).ok_or_else(|| Problem::not_found(format!("no campaign is named {name:?}")))?;
    Ok(app.plan.campaigns[number].name.clone())
}

pub(super) async fn campaign(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::read(raw, &[])?;
    let name = campaign_named(&app, &name)?;
    let (as_of, totals) = totals(&app, &query).await?;
    Ok(json(&At { as_of: as_of.into(), row: campaign_row(&app, &name, &totals) }))
}

pub(super) async fn campaign_intents(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::read(raw, &["limit", "cursor"])?;
    let name = campaign_named(&app, &name)?;
    let Answered { as_of, parts } = ask(&app, &query, Question::Dump(View::Intents)).await?;
    let mut rows: BTreeMap<(i64, String), Box<RawValue>> = BTreeMap::new();
    for part in parts {
        if let Answer::Rows(Rows::Intents(part)) = part {
            let of_this = part.iter().filter(|row| row.campaign == name);
            rows.extend(of_this.map(|row| ((row.at, row.id.clone()), intent(&app, row))));
        }
    }
    // What was sent and no longer stands is listed too.
    for entry in app.outbox.of_campaign(&name) {
        let printed = serde_json::to_string(&app.outbox.row(&entry)).expect("rows have string keys");
        rows.insert((entry.row.at, entry.row.id.clone()), raw_json(printed));
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

pub(super) async fn attribution(State(app): State<App>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Credit<'a> {
        model: &'a str,
        by: &'a str,
        rows: Vec<CreditRow>,
        total: Sum,
        basis: Basis,
        /// Keys with too few conversions for their model; the rule models need no number of them.
        fallback: [(); 0],
    }
    #[derive(Serialize)]
    struct CreditRow {
        channel: EcoString,
        campaign: Option<EcoString>,
        conversions: String,
        value: String,
    }
    #[derive(Serialize)]
    struct Sum {
        conversions: String,
        value: String,
    }
    #[derive(Serialize)]
    struct Basis {
        conversions: u64,
        with_touch: u64,
        null_paths: u64,
        touches: u64,
    }
    let query = Query::read(raw, &["model", "by", "conversion", "from", "to"])?;
    let models = app.plan.models();
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
    if conversion.as_ref().is_some_and(|name| app.plan.conversions.iter().all(|rule| rule.name != *name)) {
        return Err(Problem::bad_request("the definitions have no conversion of this name"));
    }
    let sought = Sought { model: *model, conversion, span: query.span()? };
    let Answered { as_of, parts } = ask(&app, &query, Question::Credit(sought)).await?;
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

pub(super) async fn all_sessions(State(app): State<App>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    let query = Query::read(raw, &["from", "to", "limit", "cursor"])?;
    // One more than asked for tells whether there is a next part.
    let question = Question::Sessions { span: query.span()?, before: query.key()?, limit: query.limit + 1 };
    let Answered { as_of, parts } = ask(&app, &query, question).await?;
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

pub(super) async fn visits(State(app): State<App>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Summary {
        sessions: u64,
        events: u64,
        mean_length_ms: Option<Box<RawValue>>,
        bounces: u64,
        bounce_rate: Option<Box<RawValue>>,
        buying: u64,
    }
    let query = Query::read(raw, &["from", "to"])?;
    let Answered { as_of, parts } = ask(&app, &query, Question::Visits(query.span()?)).await?;
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

pub(super) async fn dead_letters(State(app): State<App>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Row {
        reason: &'static str,
        detail: String,
        position: String,
        received_at: i64,
        body: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        encoding: Option<String>,
    }
    let query = Query::read(raw, &["limit", "cursor"])?;
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
        let letter = DeadLetter::of(&record, verdict);
        let Some(DeadLetter { reason, detail, body, encoding }) = letter else { continue };
        let (position, received_at) = (position.to_string(), record.received_at);
        items.push(Row { reason: reason.name(), detail, position, received_at, body, encoding });
    }
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

/// A few numbers for Prometheus.
pub(super) async fn metrics(State(app): State<App>) -> Result<String, Problem> {
    let query = Query::read(None, &[])?;
    let (as_of, totals) = totals(&app, &query).await?;
    let mut text = String::new();
    for (name, help, value) in [
        ("thalweg_log_position", "The last log position that the views include.", as_of.position as i64),
        ("thalweg_clock_milliseconds", "The clock that the views are true at.", as_of.clock),
        ("thalweg_profiles", "Profiles that exist.", size(&totals, &Total::Profiles)),
        ("thalweg_sessions", "Sessions.", size(&totals, &Total::Sessions)),
        ("thalweg_session_events", "Events in sessions.", size(&totals, &Total::SessionEvents)),
        ("thalweg_dead_letters", "Dead letters.", app.hub.dead_letters(None, usize::MAX).len() as i64),
    ] {
        text += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    }
    text += "# HELP thalweg_records_total Records by what was decided on them, since the process started.\n";
    text += "# TYPE thalweg_records_total counter\n";
    for (verdict, count) in app.hub.verdicts() {
        text += &format!("thalweg_records_total{{verdict=\"{verdict}\"}} {count}\n");
    }
    text += &super::channels::metrics(&app);
    Ok(text)
}
