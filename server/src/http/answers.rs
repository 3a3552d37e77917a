//! Answers: what all that is true as of one logical time has in common.

use std::collections::BTreeMap;
use std::sync::Arc;

use dataflows::plan::Plan;
use dataflows::protocol::{Answer, Question};
use dataflows::total::Total;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::query::Query;
use super::{App, AsOfRow};
use crate::book::Book;
use crate::hub::{Answered, AsOf};
use crate::problem::Problem;

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

/// When an answer about an instant is true.
pub(super) fn at_instant(as_of: AsOf, at: Option<i64>) -> Result<AsOf, Problem> {
    let clock = at.unwrap_or(as_of.clock);
    if clock > as_of.clock {
        let now = as_of.clock;
        return Err(Problem::bad_request(format!("`at={clock}` is later than the clock, which is at {now}")));
    }
    Ok(AsOf { clock, ..as_of })
}

pub(super) fn raw_json(text: String) -> Box<RawValue> {
    RawValue::from_string(text).expect("it was printed as JSON")
}

pub(super) fn size(totals: &BTreeMap<Total, i128>, total: &Total) -> i64 {
    totals.get(total).copied().unwrap_or(0) as i64
}
