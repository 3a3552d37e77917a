//! Dead letters: what was not taken.

use axum::extract::State;
use axum::response::Response;
use dataflows::admission::Verdict;
use dataflows::protocol::Question;
use serde::Serialize;
use utoipa::ToSchema;

use super::answers::{List, ask};
use super::described::NeedsLog;
use super::query::{self, Asked, cursor};
use super::{App, json};
use crate::hub::Answered;
use crate::problem::Problem;
use crate::record::DeadLetter;

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
