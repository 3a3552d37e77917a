//! Everything that is held of a person, and its end: export and erasure.

use std::collections::HashSet;

use axum::extract::{OriginalUri, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dataflows::place::process_of;
use dataflows::profile::answers::{ChangeRow, ConversionRow, ProfileRow, Rows, SessionRow, TouchRow};
use dataflows::protocol::{Answer, Question};
use ecow::EcoString;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::answers::{At, ask, raw_json};
use super::campaigns::{intent, told_intent};
use super::dead_letters::Letter;
use super::described::{ByErasure, ById, UnknownOrNeedsLog};
use super::profiles::{EventRow, event_row, one_profile};
use super::query::{self, Asked};
use super::{App, json};
use crate::audit::Detail;
use crate::erasing::names;
use crate::hub::{Answered, AsOf, Work};
use crate::problem::Problem;
use crate::record::DeadLetter;
use crate::rows::{self, Intent};

#[derive(Serialize, ToSchema)]
struct Begun {
    /// By which to ask how far it is.
    erasure: String,
    status: &'static str,
    position: String,
}

/// Erases a person: every event of every id, and what others sent that names them.
///
/// Answers leave them out from this position on. Bodies are destroyed in all logs by the time it is complete.
#[utoipa::path(delete, path = "/v1/profiles/{id}", tag = "profiles", params(ById, Asked<query::Suppress>),
    responses((status = 202, description = "Durable", body = Begun), UnknownOrNeedsLog))]
pub(super) async fn erase(
    State(app): State<App>,
    Path(id): Path<String>,
    Asked { query, .. }: Asked<query::Suppress>,
) -> Result<Response, Problem> {
    app.log()?;
    let for_good = match query.own.get("suppress").map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(Problem::bad_request(format!("`suppress={other}`: true or false"))),
    };
    let (_, profile) = one_profile(&app, &query, &id).await?;
    let (erasure, as_of) = begin(&app, &profile, for_good).await?;
    let position = as_of.position.to_string();
    let mut answer = json(&Begun { erasure: erasure.to_string(), status: "running", position });
    *answer.status_mut() = StatusCode::ACCEPTED;
    Ok(answer)
}

/// Begins the erasure of a person; gives it, and when it holds.
pub(super) async fn begin(app: &App, profile: &ProfileRow, for_good: bool) -> Result<(u64, AsOf), Problem> {
    app.can_note()?;
    let (reply, begun) = oneshot::channel();
    app.hub.give(Work::Erase(profile.ids().cloned().collect(), for_good, reply))?;
    let (erasure, as_of) = begun.await.map_err(|_| app.hub.unanswered())?;
    app.note("erase", &[("id", Detail::Hashed(&profile.id)), ("erasure", Detail::Text(&erasure.to_string()))]).await?;
    Ok((erasure, as_of))
}

#[derive(Serialize, ToSchema)]
struct Erasure {
    #[schema(pattern = "^(running|complete)$")]
    status: &'static str,
    /// Accepted events that were removed.
    events: u64,
}

/// How far an erasure is: complete when nothing of the person is left in any log.
#[utoipa::path(get, path = "/v1/erasures/{id}", tag = "profiles", params(ByErasure, Asked<query::Nothing>),
    responses((status = 200, description = "What is true", body = At<Erasure>), UnknownOrNeedsLog))]
pub(super) async fn erasure(
    State(app): State<App>,
    OriginalUri(uri): OriginalUri,
    Path(id): Path<String>,
    Asked { query, .. }: Asked<query::Nothing>,
) -> Result<Response, Problem> {
    app.log()?;
    let unknown = || Problem::not_found(format!("there is no erasure {id:?}"));
    let position: u64 = id.parse().map_err(|_| unknown())?;
    let Answered { as_of, .. } = ask(&app, &query, Question::Followed).await?;
    match (app.hub.erasure(position), &app.desk) {
        (Some(erasing), _) => {
            let status = if erasing.is_complete { "complete" } else { "running" };
            Ok(json(&At { as_of: as_of.into(), row: Erasure { status, events: erasing.events } }))
        }
        // The process that was asked knows.
        (None, Some(desk)) if desk.has(process_of(position)) => {
            Ok(desk.of(process_of(position), "GET", uri.path(), String::new()).await.into_response())
        }
        _ => Err(unknown()),
    }
}

#[derive(Serialize, ToSchema)]
struct Export {
    profile: Box<ProfileRow>,
    #[schema(value_type = Vec<EventRow>)]
    events: Vec<Box<RawValue>>,
    #[schema(value_type = Vec<SessionRow>)]
    sessions: Vec<Box<RawValue>>,
    #[schema(value_type = Vec<TouchRow>)]
    touchpoints: Vec<Box<RawValue>>,
    #[schema(value_type = Vec<ConversionRow>)]
    conversions: Vec<Box<RawValue>>,
    #[schema(value_type = Vec<Intent>)]
    intents: Vec<Box<RawValue>>,
    #[schema(value_type = Vec<ChangeRow>)]
    segment_changes: Vec<Box<RawValue>>,
    /// What was not taken, or not as it is, and names one of the ids.
    dead_letters: Vec<Letter>,
}

/// Dead letters that are read together.
const LETTERS: usize = 256;

/// Everything that is held of a person, newest first.
#[utoipa::path(get, path = "/v1/profiles/{id}/export", tag = "profiles", params(ById, Asked<query::Nothing>),
    responses((status = 200, description = "All of it", body = At<Export>), UnknownOrNeedsLog))]
pub(super) async fn export(
    State(app): State<App>,
    Path(id): Path<String>,
    Asked { query, .. }: Asked<query::Nothing>,
) -> Result<Response, Problem> {
    let log = app.log()?;
    let Answered { as_of, parts, book, .. } = ask(&app, &query, Question::Whole(id.as_str().into())).await?;
    let whole = parts.into_iter().find_map(|part| match part {
        Answer::Whole(profile, rows) => Some((profile, rows)),
        _ => None,
    });
    let (profile, parts) = whole.ok_or_else(|| Problem::not_found(format!("no profile has the id {id:?}")))?;
    let ids: HashSet<EcoString> = profile.ids().cloned().collect();
    let mut export = Export {
        profile,
        events: Vec::new(),
        sessions: Vec::new(),
        touchpoints: Vec::new(),
        conversions: Vec::new(),
        intents: Vec::new(),
        segment_changes: Vec::new(),
        dead_letters: Vec::new(),
    };
    for rows in parts {
        let lines = |rows: &Rows| rows::lines(rows, &book.plan.definitions).into_iter().map(raw_json).collect();
        match &rows {
            Rows::Events(events) => {
                let places: Vec<u64> = events.iter().map(|(.., place)| *place).collect();
                let records = log.get(&places).await;
                let rows = events.iter().zip(records);
                export.events =
                    rows.filter_map(|((profile, at, _), record)| event_row(profile, *at, &record?)).collect();
            }
            Rows::Sessions(_) => export.sessions = lines(&rows),
            Rows::Touches(_) => export.touchpoints = lines(&rows),
            Rows::Conversions(_) => export.conversions = lines(&rows),
            Rows::Changes(_) => export.segment_changes = lines(&rows),
            Rows::Intents(intents) => {
                export.intents = intents.iter().map(|row| intent(&app, row)).collect();
                // What was told them and does not stand any more is held too.
                let mut told = app.outbox.of_person(&export.profile.ids().collect());
                told.retain(|entry| intents.iter().all(|row| row.id != entry.row.id));
                export.intents.extend(told.iter().rev().map(|entry| told_intent(&app, entry)));
            }
            Rows::Profiles(_) | Rows::Credit(_) => {}
        }
    }
    let mut before = None;
    loop {
        let found = app.hub.dead_letters(before, LETTERS);
        let Some((last, _)) = found.last() else { break };
        before = Some(*last);
        let records = log.get(&found.iter().map(|(place, _)| *place).collect::<Vec<_>>()).await;
        for ((position, verdict), record) in found.into_iter().zip(records) {
            let Some(record) = record else { continue };
            let letter = DeadLetter::of(&record, verdict).filter(|letter| names(letter, &ids));
            export.dead_letters.extend(letter.map(|letter| Letter::new(letter, position, record.received_at)));
        }
    }
    app.note("export", &[("id", Detail::Hashed(&export.profile.id))]).await?;
    Ok(json(&At { as_of: as_of.into(), row: export }))
}
