//! Journeys: where people stand, and what is due there.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use dataflows::protocol::{Answer, Deadline, Question};
use dataflows::time::parse_duration;
use dataflows::total::Total;
use ecow::EcoString;
use serde::Serialize;
use utoipa::ToSchema;

use super::answers::{At, List, ask, size, totals, unknown_name};
use super::described::{ByName, Refused, Unknown};
use super::query::{self, Asked, Query, cursor};
use super::{App, json};
use crate::book::Book;
use crate::hub::{Answered, AsOf};
use crate::problem::Problem;

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
    /// Since when it, and what it reads, knows the past, ms; null: from its beginning.
    history_from: Option<i64>,
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
    let (row, history_from) = (journey_row(&book, number, &counted), book.history_from(&format!("journeys/{name}")));
    Ok(json(&At { as_of: as_of.into(), row: JourneyWhole { row, next_deadlines, history_from } }))
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
