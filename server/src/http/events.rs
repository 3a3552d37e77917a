//! The Segment tracking API: calls in, and the clock where events move it.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{OriginalUri, Query, Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dataflows::admission::Verdict;
use dataflows::event::{Decoder, Kind, Reason, Rejection};
use dataflows::json::{Next, Reader};
use dataflows::number::Number;
use ecow::{EcoString, eco_format};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_stream::StreamExt;
use utoipa::ToSchema;

use super::browsers::{admits, foreign};
use super::described::{BatchForm, CallForm, KeyInQuery, UnknownOrNeedsLog, Untaken};
use super::query::{self, Asked};
use super::{App, TOO_LARGE, WIRE_BYTES_MAX, json};
use crate::door::{Arrived, Calls, Door, Incoming, Stamp, Unreadable, unpack};
use crate::hub::{ClockMode, NotTaken, Receipt, Work};
use crate::problem::Problem;
use crate::pseudonyms::NOT_KEPT;
use crate::record::DeadLetter;

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
#[utoipa::path(post, path = "/v1/track", tag = "events", params(KeyInQuery), request_body = inline(CallForm),
    responses((status = 200, description = "Durable", body = Taken), Untaken))]
pub(super) async fn single(
    State(app): State<App>,
    Extension(room): Extension<Room>,
    OriginalUri(uri): OriginalUri,
    request: Request,
) -> Result<Response, Problem> {
    take(app, room, uri, request).await
}

/// Takes several calls; answered when they are durable.
///
/// As with one call; a bad one never spoils its batch.
#[utoipa::path(post, path = "/v1/batch", tag = "events", params(KeyInQuery), request_body = inline(BatchForm),
    responses((status = 200, description = "Durable", body = Taken), Untaken))]
pub(super) async fn batch(
    State(app): State<App>,
    Extension(room): Extension<Room>,
    OriginalUri(uri): OriginalUri,
    request: Request,
) -> Result<Response, Problem> {
    take(app, room, uri, request).await
}

async fn take(app: App, room: Room, uri: Uri, request: Request) -> Result<Response, Problem> {
    app.log()?;
    let (parts, body) = request.into_parts();
    let (body, mut held) = room.receive(&parts.headers, body).await?;
    let plain = unpack(&body);
    if let Ok(Cow::Owned(plain)) = &plain {
        drop(held);
        held = room.take(plain.len())?;
    }
    let read = plain.as_deref().map_err(Unreadable::clone).and_then(|plain| room.read(&app, uri.path(), plain));
    let Calls { write_key, calls } = match read {
        Ok(body) => body,
        Err(unreadable) => {
            authorize(&app, &parts.headers, &uri, None)?;
            if let Unreadable::Malformed(detail) = &unreadable {
                let is_private = !app.hub.latest().plan.definitions.privacy.is_empty();
                let (body, why) =
                    if is_private { (&[][..], NOT_KEPT) } else { (plain.as_deref().unwrap_or(&body), "") };
                let letter = DeadLetter::new(&Rejection::new(Reason::Invalid, detail.clone() + why), body);
                keep(&app, held, Vec::new(), vec![letter]).await?;
            }
            return Err(unreadable.into());
        }
    };
    drop(plain);
    drop(body);
    authorize(&app, &parts.headers, &uri, write_key.as_deref())?;
    let (mut good, mut places, mut letters, mut rejected) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (index, call) in calls.into_iter().enumerate() {
        match call {
            Arrived::Good(incoming) => {
                let message_id = incoming.prepared.event.message_id.clone();
                places.push((index, Some(message_id).filter(|id| !id.starts_with(fresh_ids()))));
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
    let receipt = keep(&app, held, good, letters).await?;
    let mut accepted = 0;
    for ((index, message_id), verdict) in places.into_iter().zip(receipt.verdicts) {
        match verdict {
            Verdict::TooLate => rejected.push(Rejected {
                index,
                message_id,
                reason: Reason::TooLate.name(),
                detail: "the event is earlier than the lateness allows".into(),
            }),
            Verdict::Erased => rejected.push(Rejected {
                index,
                message_id,
                reason: Reason::Erased.name(),
                detail: "its person was erased, and it is dated before that, or nothing more is taken of them".into(),
            }),
            // What the door cannot know is silently taken: the engine finds it.
            _ => accepted += 1,
        }
    }
    rejected.sort_by_key(|rejected| rejected.index);
    Ok(json(&Taken { success: true, position: receipt.as_of.position.to_string(), accepted, rejected }))
}

/// Gives calls and dead letters to the writer, and waits until they are durable, even if whoever sent them does not:
/// what they hold of the room is theirs until then.
async fn keep(
    app: &App,
    held: OwnedSemaphorePermit,
    good: Vec<Incoming>,
    letters: Vec<DeadLetter>,
) -> Result<Receipt, NotTaken> {
    let hub = app.hub.clone();
    let kept = async move {
        let _held = held;
        if !letters.is_empty() {
            hub.give(Work::DeadLetters(letters))?;
        }
        let (reply, receipt) = oneshot::channel();
        hub.give(Work::Events(good, Instant::now(), reply))?;
        receipt.await.map_err(|_| hub.unanswered())
    };
    tokio::spawn(kept).await.unwrap_or(Err(NotTaken::Stopping))
}

/// How many bytes of bodies may be under way, from before they are read until their calls are durable: what memory
/// they take is bounded by it, and whoever comes when it is full is told to come again.
const ROOM_BYTES: usize = 32 << 20;
/// What a small body counts as, with all that goes with it: so that there are not more than the writer's queue takes.
const BODY_BYTES_MIN: usize = 8 << 10;
/// Longer than a body may take to come.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// The room for bodies that are under way, and those who read them.
#[derive(Clone)]
pub(super) struct Room {
    bytes: Arc<Semaphore>,
    /// Decoders that nobody uses now. What one has learned of agents and details serves the next body.
    decoders: Arc<Mutex<Vec<Decoder>>>,
}

impl Room {
    pub(super) fn new() -> Room {
        Room { bytes: Arc::new(Semaphore::new(ROOM_BYTES)), decoders: Arc::default() }
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, NotTaken> {
        let bytes = bytes.max(BODY_BYTES_MIN) as u32;
        Arc::clone(&self.bytes).try_acquire_many_owned(bytes).map_err(|_| NotTaken::Busy)
    }

    /// Reads a body, if there is room for what it says it will be. If there is none, it is read all the same, and
    /// forgotten: whoever is still sending does not hear the answer.
    async fn receive(&self, headers: &HeaderMap, body: Body) -> Result<(Vec<u8>, OwnedSemaphorePermit), Problem> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let length = length.unwrap_or(WIRE_BYTES_MAX);
        if length > WIRE_BYTES_MAX {
            return Err(Problem::too_large(TOO_LARGE));
        }
        let held = self.take(length);
        let (mut whole, mut bytes) = (Vec::with_capacity(if held.is_ok() { length } else { 0 }), 0);
        let read = async {
            let mut chunks = body.into_data_stream();
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|_| Problem::bad_request("the body did not come whole"))?;
                bytes += chunk.len();
                if bytes > WIRE_BYTES_MAX {
                    return Err(Problem::too_large(TOO_LARGE));
                }
                if held.is_ok() {
                    whole.extend_from_slice(&chunk);
                }
            }
            Ok(())
        };
        // No fault of the body's: a client told that it were would drop it.
        let slow = |_| Problem::busy("the body did not come whole within 30 seconds; try again");
        tokio::time::timeout(BODY_PATIENCE, read).await.map_err(slow)??;
        Ok((whole, held?))
    }

    /// Takes a body apart.
    fn read(&self, app: &App, path: &str, body: &[u8]) -> Result<Calls, Unreadable> {
        let lock = || self.decoders.lock().expect("nobody panics while holding it");
        let vocabulary = Arc::clone(&app.hub.latest().plan.vocabulary);
        let free = lock().pop().filter(|free| Arc::ptr_eq(free.vocabulary(), &vocabulary));
        let mut decoder = free.unwrap_or_else(|| Decoder::new(vocabulary));
        let stamp = match app.clock {
            ClockMode::Wall => Stamp::Wall((app.now)()),
            ClockMode::Events => Stamp::Events(app.hub.clock()),
        };
        let mut door = Door { decoder: &mut decoder, secret: &app.secret, stamp, fresh_id: &|_| fresh_id() };
        let name = path.rsplit('/').next().unwrap_or_default();
        let calls = match Kind::ALL.into_iter().find(|kind| kind.name() == name || kind.name()[..1] == *name) {
            Some(kind) => door.single(body, kind),
            None => door.batch(body),
        };
        lock().push(decoder);
        calls
    }
}

/// A message id for a call that has none: unique in this process, and over processes by the time it started.
fn fresh_id() -> EcoString {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    eco_format!("{}{}", fresh_ids(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What the message ids begin with that this process made: to whoever sent a call it has none.
fn fresh_ids() -> &'static str {
    static STARTED: std::sync::OnceLock<EcoString> = std::sync::OnceLock::new();
    STARTED.get_or_init(|| eco_format!("http:{:x}:", crate::clock::nanos()))
}

/// The key is the user name of Basic authorization, or stands in the body or in the query; a page may use it from the
/// origins alone that it names.
pub(super) fn authorize(app: &App, headers: &HeaderMap, uri: &Uri, told: Option<&str>) -> Result<(), Problem> {
    #[derive(Deserialize)]
    struct Asked {
        #[serde(rename = "writeKey")]
        write_key: Option<String>,
    }
    let keys = &app.hub.book().plan.definitions.write_keys;
    if keys.is_empty() {
        return Ok(());
    }
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Basic "));
    let decoded = basic.and_then(|basic| String::from_utf8(BASE64_STANDARD.decode(basic).ok()?).ok());
    let in_header = decoded.as_deref().and_then(|pair| pair.split(':').next());
    let asked = Query::<Asked>::try_from_uri(uri).ok().and_then(|Query(asked)| asked.write_key);
    let found = [in_header, told, asked.as_deref()];
    let mut known = keys.iter().filter(|key| found.contains(&Some(&key.key))).peekable();
    match headers.get(header::ORIGIN) {
        _ if known.peek().is_none() => {
            Err(Problem::unauthorized("Unknown write key", "send a write key that the definitions file lists"))
        }
        Some(origin) if !known.any(|key| admits(key, origin)) => Err(foreign(origin)),
        _ => Ok(()),
    }
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
#[utoipa::path(post, path = "/v1/clock", tag = "events", params(Asked<query::Nothing>), request_body = inline(Clock),
    responses((status = 200, description = "Durable", body = Moved), UnknownOrNeedsLog))]
pub(super) async fn clock(State(app): State<App>, _: Asked<query::Nothing>, body: Bytes) -> Result<Response, Problem> {
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
    let moved = moved.await.map_err(|_| app.hub.unanswered())?;
    Ok(json(&Moved { clock: moved.clock, position: moved.position.to_string() }))
}

#[cfg(test)]
mod tests;
