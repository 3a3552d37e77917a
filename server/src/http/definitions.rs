//! Definitions at run time: given, read and taken away, one document at a time.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dataflows::definitions::{Deliver, Problem as Fault, document, line_of};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant, sleep, timeout_at};
use utoipa::ToSchema;

use super::answers::totals;
use super::described::{ByKind, Unknown, UnknownOrNeedsLog};
use super::query::{self, Asked, Query};
use super::{App, json};
use crate::audit::Detail;
use crate::book::{Book, Name, name_of};
use crate::hub::Work;
use crate::problem::Problem;

/// What is known of a document.
#[derive(Serialize, ToSchema)]
struct Document {
    kind: String,
    name: String,
    /// How often it has changed, from 1.
    version: u32,
    /// Since when it means what it does, ms; null while it is prepared for.
    active_since: Option<i64>,
    /// The log position of its last change.
    position: Option<String>,
    /// How far the preparation is.
    progress: Option<ProgressRow>,
}

#[derive(Serialize, ToSchema)]
struct ProgressRow {
    prepared: u64,
    profiles: u64,
}

#[derive(Serialize, ToSchema)]
struct Whole {
    #[serde(flatten)]
    document: Document,
    /// As it was written, in JSON.
    definition: Box<RawValue>,
    /// Since when it, and what it reads, knows the past, ms; null: from its beginning.
    history_from: Option<i64>,
}

/// A moment later.
const MOMENT: Duration = Duration::from_millis(5);

fn named(kind: &str, name: &str) -> Result<Name, Problem> {
    name_of(kind, name).ok_or_else(|| {
        Problem::not_found(format!(
            "there is no kind {kind:?}: a kind is a key of the definitions file, such as segments"
        ))
    })
}

fn row(app: &App, book: &Book, kind: String, name: String, of: &Name) -> Document {
    let version = book.document(of).1;
    let position = version.and_then(|version| version.position);
    let preparing = app.hub.preparing().filter(|(pending, _)| Some(*pending) == position);
    Document {
        kind,
        name,
        version: version.map_or(1, |version| version.number),
        active_since: version.and_then(|version| version.since).filter(|_| preparing.is_none()),
        position: position.map(|position| position.to_string()),
        progress: preparing.map(|(_, (prepared, profiles))| ProgressRow { prepared, profiles }),
    }
}

/// A document of the definitions, as it was given last; and how far the preparation for it is.
#[utoipa::path(get, path = "/v1/definitions/{kind}/{name}", tag = "definitions",
    params(ByKind, Asked<query::Nothing>),
    responses((status = 200, description = "Here it is", body = Whole), Unknown))]
pub(super) async fn get(
    State(app): State<App>,
    Path((kind, name)): Path<(String, String)>,
    Asked { query, .. }: Asked<query::Nothing>,
) -> Result<Response, Problem> {
    let of = named(&kind, &name)?;
    totals(&app, &query).await?;
    let book = app.hub.latest();
    let definition = book.document(&of).0.ok_or_else(|| absent(&kind, &name))?;
    let definition = RawValue::from_string(definition.to_owned()).expect("it was read as JSON");
    let history_from = book.history_from(&of);
    Ok(json(&Whole { document: row(&app, &book, kind, name, &of), definition, history_from }))
}

/// Gives a document in place of the one of that name, or a new one.
///
/// It holds from one logical time on, as if it had from the beginning: what came before is prepared for it first, while
/// everything goes on. The answer comes when it holds, or after `wait` with how far that is.
#[utoipa::path(put, path = "/v1/definitions/{kind}/{name}", tag = "definitions",
    params(ByKind, Asked<query::Nothing>), request_body(content = String, description = "JSON or YAML"),
    responses((status = 200, description = "It holds", body = Document),
        (status = 202, description = "It is durable, and will hold", body = Document), UnknownOrNeedsLog))]
pub(super) async fn put(
    State(app): State<App>,
    Path((kind, name)): Path<(String, String)>,
    Asked { query, .. }: Asked<query::Nothing>,
    body: Bytes,
) -> Result<Response, Problem> {
    let of = named(&kind, &name)?;
    let text = std::str::from_utf8(&body).map_err(|_| Problem::bad_request("the body is not UTF-8"))?;
    let given = document(text).map_err(|faults| Problem::bad_definition("the body cannot be read", faults))?;
    let given = RawValue::from_string(given).map_err(|_| Problem::bad_request("the body holds no document"))?;
    let wrong = |faults: Vec<Fault>| {
        // What is wrong in the document is told by its own lines.
        let inside =
            |path: &str| path.strip_prefix(&of.replace('/', ".")).map(|path| path.trim_start_matches('.').to_owned());
        let own = |fault: Fault| Fault {
            line: inside(&fault.path).and_then(|path| line_of(text, &path)).unwrap_or(1),
            ..fault
        };
        Problem::bad_definition("the definitions would be wrong with it", faults.into_iter().map(own).collect())
    };
    change(&app, &query, kind, name, &of, Some(given), wrong).await
}

/// Takes a document away, unless others refer to it.
#[utoipa::path(delete, path = "/v1/definitions/{kind}/{name}", tag = "definitions",
    params(ByKind, Asked<query::Nothing>),
    responses((status = 200, description = "It does not hold any more", body = Document),
        (status = 202, description = "It is durable, and will not hold any more", body = Document), UnknownOrNeedsLog))]
pub(super) async fn delete(
    State(app): State<App>,
    Path((kind, name)): Path<(String, String)>,
    Asked { query, .. }: Asked<query::Nothing>,
) -> Result<Response, Problem> {
    let of = named(&kind, &name)?;
    change(&app, &query, kind, name, &of, None, spoken_of).await
}

/// Whether a document is there and nobody speaks of it, so that it can be taken away.
pub(super) fn can_go(book: &Book, kind: &str, name: &str, of: &Name) -> Result<(), Problem> {
    if book.document(of).0.is_none() {
        return Err(absent(kind, name));
    }
    let referrer = |other: &Name| {
        let path = other.replace('/', ".");
        Fault { line: 1, path, message: format!("it speaks of {name:?} of {kind}"), nearest: None }
    };
    let referrers: Vec<Fault> = book.referrers(of).into_iter().map(referrer).collect();
    if referrers.is_empty() { Ok(()) } else { Err(spoken_of(referrers)) }
}

fn spoken_of(faults: Vec<Fault>) -> Problem {
    Problem::conflict("others speak of it: change or take these away first").with(faults)
}

fn absent(kind: &str, name: &str) -> Problem {
    Problem::not_found(format!("{kind} has no {name:?}"))
}

async fn change(
    app: &App,
    query: &Query,
    kind: String,
    name: String,
    of: &Name,
    given: Option<Box<RawValue>>,
    wrong: impl FnOnce(Vec<Fault>) -> Problem,
) -> Result<Response, Problem> {
    app.log()?;
    let deadline = query.deadline();
    // One change after the other: each is held against what the one before made.
    let defining = timeout_at(deadline, app.defining.lock()).await;
    let defining = defining.map_err(|_| Problem::busy("another definition is being prepared; try again"))?;
    if !settled(app, deadline).await {
        return Err(Problem::busy("another definition is being prepared; try again"));
    }
    let book = app.hub.book();
    let known = book.document(of).0;
    if given.is_none() {
        can_go(&book, &kind, &name, of)?;
    }
    if known == given.as_ref().map(|given| given.get()) {
        return Ok(json(&row(app, &book, kind, name, of)));
    }
    if of == "privacy" && app.outbox.stream().is_some() {
        let why = "where the log is a stream, `privacy` is for the definitions file alone: messages of others are \
                   read by it, from the first one on";
        return Err(Problem::conflict(why));
    }
    let next = book.with(of, given).map_err(wrong)?;
    let (text, number) = (next.text().to_owned(), next.document(of).1.map_or(1, |version| version.number));
    let delivers = next.plan.definitions.channels.values().any(|channel| channel.deliver == Deliver::Nats);
    if let Some(stream) = app.outbox.stream().filter(|_| delivers) {
        stream.open_triggers().await.map_err(|error| Problem::busy(error.to_string()))?;
    }
    app.can_note()?;
    let (reply, durable) = oneshot::channel();
    app.hub.give(Work::Define(Box::new(next), reply))?;
    let durable = durable.await.map_err(|_| app.hub.unanswered())?;
    // Where the log is a stream, it comes from there.
    while app.hub.latest().position() < Some(durable.position) {
        sleep(MOMENT).await;
    }
    let details = [
        ("by", Detail::Text("http")),
        ("changed", Detail::Text(of)),
        ("version", Detail::Number(number.into())),
        ("digest", Detail::Hashed(&text)),
    ];
    app.note("definitions", &details).await?;
    drop(defining);
    let holds = settled(app, deadline).await;
    let status = if holds { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, json(&row(app, &app.hub.latest(), kind, name, of))).into_response())
}

/// Waits until nothing is being prepared; whether that was in time.
async fn settled(app: &App, deadline: Instant) -> bool {
    while app.hub.preparing().is_some() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(MOMENT).await;
    }
    true
}
