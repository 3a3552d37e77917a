//! Subscriptions by server-sent events: a snapshot, then what changes with each time that closes.

use std::convert::Infallible;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use dataflows::protocol::{Answer, Question};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;

use super::described::NeedsLog;
use super::query::{self, Asked};
use super::{App, AsOfRow};
use crate::outbox::{Entry, message};
use crate::problem::Problem;
use crate::writer::AsOf;

/// Messages that wait for a reader before the changes do.
const MESSAGES_MAX: usize = 64;
/// Rows in one message of a snapshot.
const SNAPSHOT_ROWS: usize = 1_000;

#[derive(Serialize, ToSchema)]
struct Message {
    as_of: AsOfRow,
    view: &'static str,
    changes: Vec<Row>,
    complete: bool,
}

#[derive(Serialize, ToSchema)]
struct Row {
    diff: i8,
    row: Box<RawValue>,
}

/// Whose intents, of which campaign.
#[derive(Clone, Debug)]
struct Filter {
    profile: Option<String>,
    campaign: Option<String>,
}

/// Intents, as server-sent events: a snapshot, then what changes with each time that closes.
///
/// Events are `snapshot` (several, the last with `complete`), `change`, and `dropped` for a reader that was too slow.
/// Each but the last has an id `<position>.<n>` and this data. A resumption gets a snapshot that replaces all.
#[utoipa::path(get, path = "/v1/subscribe", tag = "subscribe",
    params(
        Asked<query::Follow>,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was read."),
    ),
    responses((status = 200, description = "Events", body = Message, content_type = "text/event-stream"), NeedsLog))]
pub(super) async fn subscribe(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Follow>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    app.log()?;
    let view = match query.own.get("view").map(String::as_str) {
        Some("intents") => "intents",
        Some(view) => return Err(Problem::bad_request(format!("`view={view}`: this version has view=intents"))),
        None => return Err(Problem::bad_request("`view` is missing; this version has view=intents")),
    };
    let filter = Filter { profile: query.own.get("profile").cloned(), campaign: query.own.get("name").cloned() };
    // A resumption gets a fresh snapshot, which replaces all; but what is no id is a mistake worth telling.
    if let Some(last) = headers.get("last-event-id") {
        let parts = last.to_str().ok().and_then(|last| last.split_once('.'));
        if !parts.is_some_and(|(position, n)| position.parse::<u64>().is_ok() && n.parse::<u64>().is_ok()) {
            return Err(Problem::bad_request("`Last-Event-ID` is not one that an event gave"));
        }
    }
    let deadline = query.deadline();
    while !query.is_included(app.outbox.as_of(), deadline).await? {}
    let (send, messages) = mpsc::channel(MESSAGES_MAX);
    let mut stopping = app.stopping.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = follow(app, view, filter, send) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    });
    Ok(Sse::new(ReceiverStream::new(messages)).keep_alive(KeepAlive::default()))
}

/// Sends the snapshot and then the changes, until the reader goes or cannot keep up.
async fn follow(app: App, view: &'static str, filter: Filter, send: mpsc::Sender<Result<Event, Infallible>>) {
    let (as_of, number, entries, mut changes) = app.outbox.subscribe();
    let mut rows = Vec::new();
    for entry in entries {
        if admits(&app, &filter, &entry).await {
            rows.push(Row { diff: 1, row: message(&app.outbox, &entry) });
        }
    }
    let mut parts: Vec<Vec<Row>> = Vec::new();
    while rows.len() > SNAPSHOT_ROWS {
        let rest = rows.split_off(SNAPSHOT_ROWS);
        parts.push(std::mem::replace(&mut rows, rest));
    }
    parts.push(rows);
    let last = parts.len() - 1;
    for (part, changes) in parts.into_iter().enumerate() {
        let message = Message { as_of: as_of.into(), view, changes, complete: part == last };
        if send.send(Ok(event("snapshot", as_of, number, &message))).await.is_err() {
            return;
        }
    }
    while let Ok(change) = changes.recv().await {
        let mut rows = Vec::new();
        for (diff, entry) in &change.entries {
            if admits(&app, &filter, entry).await {
                rows.push(Row { diff: *diff, row: message(&app.outbox, entry) });
            }
        }
        if rows.is_empty() {
            continue;
        }
        rows.sort_by_key(|row| row.diff);
        let message = Message { as_of: change.as_of.into(), view, changes: rows, complete: true };
        if send.send(Ok(event("change", change.as_of, change.number, &message))).await.is_err() {
            return;
        }
    }
    tracing::info!("a subscription was dropped: its reader was too slow");
    // The changes ran away from this reader: it is told why, and may come again for a snapshot.
    let _ = send.send(Ok(Event::default().event("dropped").data(r#"{"reason":"the reader was too slow"}"#))).await;
}

fn event(kind: &str, as_of: AsOf, number: u64, message: &Message) -> Event {
    let data = serde_json::to_string(message).expect("rows have string keys");
    Event::default().event(kind).id(format!("{}.{number}", as_of.position)).data(data)
}

async fn admits(app: &App, filter: &Filter, entry: &Entry) -> bool {
    if filter.campaign.as_ref().is_some_and(|campaign| entry.row.campaign != campaign.as_str()) {
        return false;
    }
    let Some(id) = &filter.profile else { return true };
    if entry.row.profile == id.as_str() || entry.row.root.id == id.as_str() {
        return true;
    }
    // Any id of a profile answers for it.
    let Ok(answered) = app.hub.ask(Question::Profile(id.as_str().into())).await else { return false };
    answered.parts.iter().any(|part| matches!(part, Answer::Profile(profile) if profile.id == entry.row.profile))
}
