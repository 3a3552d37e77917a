//! The doors over HTTP: events in, answers out, triggers by server-sent events, and the page.
//!
//! Handlers take a request apart, ask, and put the answer together; what is true is the engine's to say.

mod answers;
mod browsers;
mod channels;
mod events;
mod subscribe;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use dataflows::plan::Plan;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{SetOnce, watch};
use tower::ServiceExt;

use crate::desk::{Desk, Records};
use crate::outbox::Outbox;
use crate::problem::Problem;
use crate::writer::{AsOf, ClockMode, Hub};

/// What handlers need.
#[derive(Clone)]
pub struct App {
    /// The way to the writer.
    pub hub: Hub,
    /// The definitions in force.
    pub plan: Arc<Plan>,
    /// Segments as the definitions file writes them.
    pub segments: Arc<BTreeMap<String, Box<RawValue>>>,
    /// Intents and what became of them.
    pub outbox: Outbox,
    /// Bodies of events; a replay has none.
    pub log: Option<Records>,
    /// What reaches the other processes, if there are any.
    pub desk: Option<Arc<Desk>>,
    /// How the clock moves.
    pub clock: ClockMode,
    /// How wall time is told.
    pub now: fn() -> i64,
    /// The key of the log's hashes.
    pub secret: [u8; 16],
    /// Becomes true when the process ends.
    pub stopping: watch::Receiver<bool>,
}

impl App {
    /// The log: where what is written goes, and where bodies are read.
    fn log(&self) -> Result<&Records, Problem> {
        let none = "these are the answers of a replay: it has no log, so it takes nothing in and keeps no bodies";
        self.log.as_ref().ok_or_else(|| Problem::conflict(none))
    }
}

/// What goes over the wire of the body, packed or not, at most.
const WIRE_BYTES_MAX: usize = 1 << 20;
/// A step takes milliseconds; whoever closes none for so long is not ready.
pub const STILL_MAX: Duration = Duration::from_secs(2);
/// What is said of a body beyond it.
const TOO_LARGE: &str = "a body may have 512,000 bytes";

/// The doors from the first moment on: the process lives and is not ready; everyone else waits until its log is read.
pub fn opening(opened: Arc<SetOnce<Router>>) -> Router {
    Router::new().fallback(async move |request: Request| match request.uri().path() {
        "/healthz" if !opened.initialized() => "ok\n".into_response(),
        "/readyz" if !opened.initialized() => Problem::not_yet("the log is being read").into_response(),
        _ => opened.wait().await.clone().oneshot(request).await.into_response(),
    })
}

/// All doors.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(answers::metrics))
        .route("/v1/clock", post(events::clock))
        .route("/v1/profiles/{id}", get(answers::profile))
        .route("/v1/profiles/{id}/events", get(answers::events))
        .route("/v1/profiles/{id}/sessions", get(answers::sessions))
        .route("/v1/profiles/{id}/touchpoints", get(answers::touchpoints))
        .route("/v1/profiles/{id}/conversions", get(answers::conversions))
        .route("/v1/profiles/{id}/intents", get(answers::intents))
        .route("/v1/profiles/{id}/segments/changes", get(answers::changes))
        .route("/v1/sessions", get(answers::all_sessions))
        .route("/v1/sessions/summary", get(answers::visits))
        .route("/v1/segments", get(answers::segments))
        .route("/v1/segments/{name}", get(answers::segment))
        .route("/v1/segments/{name}/members", get(answers::members))
        .route("/v1/journeys", get(answers::journeys))
        .route("/v1/journeys/{name}", get(answers::journey))
        .route("/v1/journeys/{name}/due", get(answers::due))
        .route("/v1/campaigns", get(answers::campaigns))
        .route("/v1/campaigns/{name}", get(answers::campaign))
        .route("/v1/campaigns/{name}/intents", get(answers::campaign_intents))
        .merge(channels(&app))
        .route("/v1/attribution", get(answers::attribution))
        .route("/v1/dead-letters", get(answers::dead_letters))
        .route("/v1/subscribe", get(subscribe::subscribe))
        .merge(tracking(&app))
        .fallback(|| async {
            Problem::not_found("there is nothing at this path; calls come in at /v1/batch and the like")
        })
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(WIRE_BYTES_MAX))
        .layer(axum::middleware::map_response(told_as_problem))
        .with_state(app)
}

/// Whether answers keep up. Where several processes work together, one that stands still holds up all.
async fn ready(State(app): State<App>) -> Response {
    let still = app.hub.stands_still();
    if still < STILL_MAX {
        return "ready\n".into_response();
    }
    let seconds = still.as_secs();
    Problem::not_yet(format!("no step has closed for {seconds} s: this process or another stands still"))
        .into_response()
}

/// What messages leave by: the leader knows, and the others ask it.
fn channels(app: &App) -> Router<App> {
    let ask = async |State(app): State<App>, request: Request, next: Next| {
        let Some(desk) = app.desk.filter(|desk| !desk.leads()) else { return next.run(request).await };
        let (method, path) = (request.method().to_string(), request.uri().to_string());
        match to_bytes(request.into_body(), WIRE_BYTES_MAX).await {
            Ok(body) => desk.of_leader(&method, &path, String::from_utf8_lossy(&body).into_owned()).await,
            Err(_) => Problem::too_large(TOO_LARGE).into_response(),
        }
    };
    Router::new()
        .route("/v1/channels", get(channels::channels))
        .route("/v1/channels/{name}", get(channels::channel))
        .route("/v1/channels/{name}/parked", get(channels::parked))
        .route("/v1/channels:resend", post(channels::resend))
        .route_layer(axum::middleware::from_fn_with_state(app.clone(), ask))
}

/// The doors that tracking SDKs use, those in browsers too.
fn tracking(app: &App) -> Router<App> {
    let calls = ["track", "identify", "page", "screen", "group", "alias", "batch"];
    let paths = calls.into_iter().flat_map(|name| [format!("/v1/{name}"), format!("/v1/{}", &name[..1])]);
    // Where RudderStack's browser SDK sends what is left when its page is left.
    let paths = paths.chain(["/beacon/v1/batch".to_owned()]);
    let take = post(events::take).fallback(method_not_allowed);
    let take = paths.fold(Router::new(), |router, path| router.route(&path, take.clone()));
    take.layer(Extension(events::Room::new()))
        .route("/v1/projects/{key}/settings", get(browsers::settings).fallback(method_not_allowed))
        .route("/sourceConfig/", get(browsers::source_config).fallback(method_not_allowed))
        .route_layer(axum::middleware::from_fn_with_state(app.clone(), browsers::share))
}

/// What the framework refuses in plain text is told as a problem like all others.
async fn told_as_problem(response: Response) -> Response {
    let plain =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE if plain => Problem::too_large(TOO_LARGE).into_response(),
        status if status.is_client_error() && plain => {
            Problem::bad_request("the path or the body cannot be read: it is not UTF-8, or not whole").into_response()
        }
        _ => response,
    }
}

async fn method_not_allowed() -> Problem {
    Problem::method_not_allowed()
}

/// When an answer is true, as it is told.
#[derive(Clone, Debug, Serialize)]
pub struct AsOfRow {
    position: String,
    clock: i64,
}

impl From<AsOf> for AsOfRow {
    fn from(as_of: AsOf) -> Self {
        AsOfRow { position: as_of.position.to_string(), clock: as_of.clock }
    }
}

/// An answer as JSON.
fn json(answer: &impl Serialize) -> Response {
    let body = serde_json::to_string(answer).expect("answers have string keys");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[tokio::test]
    async fn until_the_log_is_read_the_process_lives_and_is_not_ready() {
        let opened = Arc::new(SetOnce::new());
        let doors = opening(Arc::clone(&opened));
        let status = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).expect("a request");
            doors.clone().oneshot(request).await.into_response().status().as_u16()
        };
        assert_eq!([status("/healthz").await, status("/readyz").await], [200, 503]);
        let mut waits = std::pin::pin!(status("/v1/segments"));
        let waited = tokio::time::timeout(std::time::Duration::from_millis(20), &mut waits).await;
        assert!(waited.is_err(), "nothing is answered before it is known");
        opened.set(Router::new().route("/readyz", get(async || "ready\n"))).expect("it is set once");
        assert_eq!([waits.await, status("/readyz").await], [404, 200]);
    }
}
