//! The Segment tracking API: calls in, and the clock where events move it.

use axum::body::Bytes;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dataflows::admission::Verdict;
use dataflows::event::{Decoder, Kind, Reason, Rejection};
use dataflows::json::{Next, Reader};
use dataflows::number::Number;
use ecow::{EcoString, eco_format};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::described::{Call, Calls, UnknownOrNeedsLog, Untaken};
use super::{App, json};
use crate::door::{Arrived, Body, Door, Stamp, Unreadable, unpack};
use crate::problem::Problem;
use crate::record::DeadLetter;
use crate::writer::{ClockMode, Work};

#[derive(Serialize, ToSchema)]
struct Taken {
    success: bool,
    position: String,
    accepted: usize,
    rejected: Vec<Rejected>,
}

#[derive(Serialize, ToSchema)]
struct Rejected {
    index: usize,
    #[serde(rename = "messageId")]
    message_id: Option<EcoString>,
    reason: &'static str,
    detail: String,
}

/// Takes one call; answered when it is durable.
///
/// The body is JSON, whatever its content type says, and may be packed by gzip. A bad call is answered too, among those
/// that were rejected, and becomes a dead letter.
#[utoipa::path(post, path = "/v1/track", tag = "events", request_body = inline(Call),
    responses((status = 200, description = "Durable", body = Taken), Untaken))]
pub(super) async fn single(
    State(app): State<App>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    take(app, uri.path(), headers, body).await
}

/// Takes several calls; answered when they are durable.
///
/// As with one call; a bad one never spoils its batch.
#[utoipa::path(post, path = "/v1/batch", tag = "events", request_body = inline(Calls),
    responses((status = 200, description = "Durable", body = Taken), Untaken))]
pub(super) async fn batch(
    State(app): State<App>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    take(app, uri.path(), headers, body).await
}

async fn take(app: App, path: &str, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    app.log()?;
    let plain = unpack(&body)?;
    let read = read(&app, path, &plain);
    let Body { write_key, calls } = match read {
        Ok(body) => body,
        Err(unreadable) => {
            authorize(&app, &headers, None)?;
            if let Unreadable::Malformed(detail) = &unreadable {
                let letter = DeadLetter::new(&Rejection::new(Reason::Invalid, detail.clone()), &plain);
                app.hub.give(Work::DeadLetters(vec![letter]))?;
            }
            return Err(unreadable.into());
        }
    };
    authorize(&app, &headers, write_key)?;
    let (mut good, mut places, mut letters, mut rejected) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (index, call) in calls.into_iter().enumerate() {
        match call {
            Arrived::Good(incoming) => {
                places.push((index, incoming.prepared.event.message_id.clone()));
                good.push(*incoming);
            }
            Arrived::Bad { rejection, message_id, body } => {
                letters.push(DeadLetter::new(&rejection, &body));
                rejected.push(Rejected {
                    index,
                    message_id,
                    reason: rejection.reason.name(),
                    detail: rejection.detail,
                });
            }
        }
    }
    if !letters.is_empty() {
        app.hub.give(Work::DeadLetters(letters))?;
    }
    let (reply, receipt) = oneshot::channel();
    app.hub.give(Work::Events(good, reply))?;
    let receipt = receipt.await.map_err(|_| crate::writer::NotTaken::Stopping)?;
    let mut accepted = 0;
    for ((index, message_id), verdict) in places.into_iter().zip(receipt.verdicts) {
        match verdict {
            Verdict::TooLate => rejected.push(Rejected {
                index,
                message_id: Some(message_id),
                reason: Reason::TooLate.name(),
                detail: "the event is earlier than the lateness allows".into(),
            }),
            // What the door cannot know is silently taken: the engine finds it.
            _ => accepted += 1,
        }
    }
    rejected.sort_by_key(|rejected| rejected.index);
    Ok(json(&Taken { success: true, position: receipt.as_of.position.to_string(), accepted, rejected }))
}

fn read(app: &App, path: &str, body: &[u8]) -> Result<Body, Unreadable> {
    let mut decoder = Decoder::new(Arc::clone(&app.plan.vocabulary));
    let stamp = match app.clock {
        ClockMode::Wall => Stamp::Wall((app.now)()),
        ClockMode::Events => Stamp::Events(app.hub.clock()),
    };
    let mut door = Door { decoder: &mut decoder, secret: &app.secret, stamp, fresh_id };
    let name = path.rsplit('/').next().unwrap_or_default();
    match Kind::ALL.into_iter().find(|kind| kind.name() == name || kind.name()[..1] == *name) {
        Some(kind) => door.single(body, kind),
        None => door.batch(body),
    }
}

/// A message id for a call that has none: unique in this process, and over processes by the time it started.
fn fresh_id() -> EcoString {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static STARTED: std::sync::OnceLock<u128> = std::sync::OnceLock::new();
    let started = STARTED.get_or_init(crate::clock::nanos);
    eco_format!("http:{started:x}:{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The key is the user name of Basic authorization, or stands in the body.
fn authorize(app: &App, headers: &HeaderMap, in_body: Option<String>) -> Result<(), Problem> {
    let keys = &app.plan.definitions.write_keys;
    if keys.is_empty() {
        return Ok(());
    }
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Basic "));
    let decoded = basic.and_then(|basic| String::from_utf8(BASE64_STANDARD.decode(basic).ok()?).ok());
    let in_header = decoded.as_deref().and_then(|pair| pair.split(':').next());
    let known = |key: &str| keys.iter().any(|known| known.key == key);
    let found = in_header.into_iter().chain(in_body.as_deref()).any(known);
    if found { Ok(()) } else { Err(Problem::unauthorized()) }
}

#[derive(Serialize, ToSchema)]
struct Moved {
    clock: i64,
    position: String,
}

/// Where the clock is to go.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is read by hand, and described here")]
struct Clock {
    /// Milliseconds; a lower clock is left as it is.
    #[schema(minimum = 946684800000_i64, maximum = 4102444799999_i64)]
    to: i64,
}

/// Moves the clock, where events do.
#[utoipa::path(post, path = "/v1/clock", tag = "events", request_body = inline(Clock),
    responses((status = 200, description = "Durable", body = Moved), UnknownOrNeedsLog))]
pub(super) async fn clock(State(app): State<App>, body: Bytes) -> Result<Response, Problem> {
    app.log()?;
    if app.clock != ClockMode::Events {
        return Err(Problem::not_found("the clock moves with the wall; start with --clock events to move it yourself"));
    }
    let text = std::str::from_utf8(&body).map_err(|_| Problem::bad_request("the body is not UTF-8"))?;
    let mut to = None;
    let mut reader = Reader::new(text);
    let read = reader.object(|reader, key| {
        if key == "to" && reader.peek()? == Next::Number {
            let number = Number::parse(reader.number()?).map(|number| number.0);
            to = number.filter(|millionths| millionths % Number::ONE.0 == 0).map(|whole| whole / Number::ONE.0);
            return Ok(());
        }
        reader.skip().map(|_| ())
    });
    read.and_then(|()| reader.end()).map_err(|fault| Problem::bad_request(format!("the body is not JSON: {fault}")))?;
    let to = to.filter(|to| dataflows::time::in_range(*to));
    let to = to.ok_or_else(|| Problem::bad_request("`to` is an integer of milliseconds in the years 2000 to 2099"))?;
    let (reply, moved) = oneshot::channel();
    app.hub.give(Work::Clock(to, reply))?;
    let moved = moved.await.map_err(|_| crate::writer::NotTaken::Stopping)?;
    Ok(json(&Moved { clock: moved.clock, position: moved.position.to_string() }))
}
