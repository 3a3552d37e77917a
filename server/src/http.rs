//! The doors over HTTP: events in, answers out, triggers by server-sent events, and the page.
//!
//! Handlers take a request apart, ask, and put the answer together; what is true is the engine's to say.

mod answers;
mod audit;
mod browsers;
mod campaigns;
mod channels;
mod corrections;
mod dead_letters;
mod definitions;
mod described;
mod erasures;
mod events;
mod foreseen;
mod journeys;
mod metrics;
mod opendsr;
mod profiles;
mod query;
mod segments;
mod subscribe;
mod sums;
mod what_if;
mod why;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::to_bytes;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use axum::{Extension, Router};
use dataflows::event::Kind;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::sync::{SetOnce, watch};
use tower::ServiceExt;
use utoipa::ToSchema;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use crate::audit::{Audit, Detail, Entry};
use crate::desk::{Desk, Records};
use crate::hub::{AsOf, ClockMode, Hub};
use crate::outbox::Outbox;
use crate::problem::Problem;
use crate::pseudonyms;

/// What handlers need.
#[derive(Clone)]
pub struct App {
    /// The way to the writer.
    pub hub: Hub,
    /// Intents and what became of them.
    pub outbox: Outbox,
    /// Bodies of events; a replay has none.
    pub log: Option<Records>,
    /// Where it is noted who changed what; a replay has none, and changes nothing.
    pub audit: Option<Audit>,
    /// What reaches the other processes, if there are any.
    pub desk: Option<Arc<Desk>>,
    /// How the clock moves.
    pub clock: ClockMode,
    /// How wall time is told.
    pub now: fn() -> i64,
    /// The key of the log's hashes.
    pub secret: [u8; 16],
    /// Held by who changes definitions.
    pub defining: Arc<tokio::sync::Mutex<()>>,
    /// How many times definitions were tried; held while some are.
    pub trying: Arc<tokio::sync::Mutex<u64>>,
    /// Becomes true when the process ends.
    pub stopping: watch::Receiver<bool>,
}

impl App {
    /// The log: where what is written goes, and where bodies are read.
    fn log(&self) -> Result<&Records, Problem> {
        let none = "these are the answers of a replay: it has no log, so it takes nothing in and keeps no bodies";
        self.log.as_ref().ok_or_else(|| Problem::conflict(none))
    }

    /// Notes in the audit log what was done.
    async fn note(&self, action: &str, details: &[(&str, Detail<'_>)]) -> Result<(), Problem> {
        match &self.audit {
            Some(audit) => audit.note(action, details).await.map_err(Problem::busy),
            None => Ok(()),
        }
    }

    /// Whether what is to be done can be noted there: else it is not done.
    fn can_note(&self) -> Result<(), Problem> {
        self.audit.as_ref().map_or(Ok(()), Audit::check).map_err(Problem::busy)
    }

    /// All that was noted there, in order.
    async fn noted(&self) -> Result<Vec<Entry>, Problem> {
        let Some(audit) = self.audit.clone() else { return Ok(Vec::new()) };
        let read = tokio::task::spawn_blocking(move || audit.entries()).await;
        read.map_err(|error| error.to_string()).flatten().map_err(Problem::busy)
    }

    /// An id as it stands in the log.
    fn id(&self, id: &str) -> String {
        let is_private = self.hub.latest().plan.definitions.privacy.ids;
        if is_private && !id.is_empty() { pseudonyms::of(id, &self.secret) } else { id.to_owned() }
    }

    /// A request for somebody by their id, as the log has it.
    fn by_kept_id(&self, mut request: Request) -> Request {
        let uri = request.uri();
        let Some(rest) = uri.path().strip_prefix("/v1/profiles/") else { return request };
        let (id, more) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let Ok(id) = percent_decode_str(id).decode_utf8() else { return request };
        let kept = self.id(&id);
        if kept != id {
            let query = uri.query().map_or(String::new(), |query| format!("?{query}"));
            *request.uri_mut() = format!("/v1/profiles/{kept}{more}{query}").parse().expect("it was one before");
        }
        request
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

/// All doors. Each is served and described by one line.
pub fn router(app: App) -> Router {
    let doors = OpenApiRouter::with_openapi(described::nothing_yet())
        .routes(routes!(corrections::retract))
        .routes(routes!(corrections::unlink))
        .routes(routes!(profiles::profile, erasures::erase))
        .merge(channels(&app))
        .route_layer(axum::middleware::from_fn(carried_out))
        .routes(routes!(front_page))
        .routes(routes!(docs))
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(metrics::metrics))
        .routes(routes!(events::clock))
        .routes(routes!(corrections::refused))
        .routes(routes!(erasures::erasure))
        .routes(routes!(erasures::export))
        .routes(routes!(why::explain))
        .routes(routes!(profiles::events))
        .routes(routes!(profiles::sessions))
        .routes(routes!(profiles::touchpoints))
        .routes(routes!(profiles::conversions))
        .routes(routes!(profiles::intents))
        .routes(routes!(profiles::changes))
        .routes(routes!(sums::all_sessions))
        .routes(routes!(sums::visits))
        .routes(routes!(segments::segments))
        .routes(routes!(segments::segment))
        .routes(routes!(segments::members))
        .routes(routes!(what_if::preview))
        .routes(routes!(what_if::diff))
        .routes(routes!(what_if::dry_run))
        .routes(routes!(journeys::journeys))
        .routes(routes!(journeys::journey))
        .routes(routes!(journeys::due))
        .routes(routes!(campaigns::campaigns))
        .routes(routes!(campaigns::campaign))
        .routes(routes!(campaigns::campaign_intents))
        .routes(routes!(sums::attribution))
        .routes(routes!(dead_letters::dead_letters))
        .routes(routes!(audit::audit))
        .routes(routes!(subscribe::subscribe))
        .routes(routes!(openapi))
        .merge(tracking(&app));
    let (router, described) = doors.split_for_parts();
    let description = Description(described::settled(&described).into());
    let kept = app.clone();
    let router = router
        .fallback(|| async {
            Problem::not_found("there is nothing at this path; calls come in at /v1/batch and the like")
        })
        .method_not_allowed_fallback(method_not_allowed)
        .layer(Extension(description))
        .layer(DefaultBodyLimit::max(WIRE_BYTES_MAX))
        .layer(axum::middleware::map_response(told_as_problem))
        .layer(axum::middleware::from_fn(logged))
        .with_state(app);
    // Around all doors: which of them it is for is found after that.
    Router::new().fallback_service(router.map_request(move |request| kept.by_kept_id(request)))
}

/// What messages leave by, definitions at run time, what controllers ask for: the leader knows, and the others ask it.
fn channels(app: &App) -> OpenApiRouter<App> {
    let ask = async |State(app): State<App>, request: Request, next: Next| {
        let Some(desk) = app.desk.filter(|desk| !desk.leads()) else { return next.run(request).await };
        let (method, path) = (request.method().to_string(), request.uri().to_string());
        match to_bytes(request.into_body(), WIRE_BYTES_MAX).await {
            Ok(body) => desk.of_leader(&method, &path, String::from_utf8_lossy(&body).into_owned()).await,
            Err(_) => Problem::too_large(TOO_LARGE).into_response(),
        }
    };
    OpenApiRouter::new()
        .routes(routes!(channels::channels))
        .routes(routes!(channels::channel))
        .routes(routes!(channels::parked))
        .routes(routes!(channels::resend))
        .routes(routes!(opendsr::discovery))
        .routes(routes!(opendsr::request))
        .routes(routes!(opendsr::status, opendsr::cancel))
        .routes(routes!(definitions::get, definitions::put, definitions::delete))
        .route_layer(axum::middleware::from_fn_with_state(app.clone(), ask))
}

/// What changes something is carried out and noted, also if whoever asked for it goes away meanwhile.
async fn carried_out(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let done = tokio::spawn(next.run(request)).await;
    done.unwrap_or_else(|_| Problem::busy("the process is stopping").into_response())
}

/// The doors that tracking SDKs use, those in browsers too.
fn tracking(app: &App) -> OpenApiRouter<App> {
    let mut doors = OpenApiRouter::new();
    for kind in Kind::ALL {
        for name in [kind.name(), &kind.name()[..1]] {
            doors = doors.routes(also_at(&format!("/v1/{name}"), name, routes!(events::single)));
        }
    }
    // The last is where RudderStack's browser SDK sends what is left when its page is left.
    for (path, name) in [("/v1/batch", "batch"), ("/v1/b", "b"), ("/beacon/v1/batch", "beacon")] {
        doors = doors.routes(also_at(path, name, routes!(events::batch)));
    }
    doors
        .layer(Extension(events::Room::new()))
        .routes(shared(routes!(browsers::settings)))
        .routes(shared(routes!(browsers::source_config)))
        .route_layer(axum::middleware::from_fn_with_state(app.clone(), browsers::share))
}

/// The same door at another path, and described by another name.
fn also_at(path: &str, name: &str, (schemas, mut paths, methods): UtoipaMethodRouter<App>) -> UtoipaMethodRouter<App> {
    for (_, mut item) in std::mem::take(&mut paths.paths) {
        if let Some(operation) = &mut item.post {
            operation.operation_id = Some(name.to_owned());
        }
        paths.paths.insert(path.to_owned(), item);
    }
    shared((schemas, paths, methods))
}

/// A door that is shared with pages of other origins: they are to hear what is refused, too.
fn shared((schemas, paths, methods): UtoipaMethodRouter<App>) -> UtoipaMethodRouter<App> {
    (schemas, paths, methods.fallback(method_not_allowed))
}

/// The page for people.
#[utoipa::path(get, path = "/", tag = "process",
    responses((status = 200, description = "Here it is", body = String, content_type = "text/html")))]
async fn front_page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}

/// All doors, for people.
#[utoipa::path(get, path = "/docs", tag = "process",
    responses((status = 200, description = "Here it is", body = String, content_type = "text/html")))]
async fn docs() -> Html<&'static str> {
    Html(include_str!("docs.html"))
}

/// The process lives.
#[utoipa::path(get, path = "/healthz", tag = "process",
    responses((status = 200, description = "Here it is", body = String)))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// The process has read its log, and its answers keep up.
///
/// Where several processes work together, one that stands still holds up all.
#[utoipa::path(get, path = "/readyz", tag = "process",
    responses(
        (status = 200, description = "It has, and they do", body = String),
        (status = 503, description = "`not_yet`: the log is being read, or no step closes", body = Problem,
            content_type = "application/problem+json"),
    ))]
async fn readyz(State(app): State<App>) -> Response {
    let still = app.hub.stands_still();
    if still < STILL_MAX {
        return "ready\n".into_response();
    }
    let seconds = still.as_secs();
    Problem::not_yet(format!("no step has closed for {seconds} s: this process or another stands still"))
        .into_response()
}

/// All doors, for programs: OpenAPI 3.1.
#[utoipa::path(get, path = "/openapi.json", tag = "process",
    responses((status = 200, description = "Here it is", body = serde_json::Value)))]
async fn openapi(Extension(Description(text)): Extension<Description>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text.to_string()).into_response()
}

/// The description of all doors, as it is served.
#[derive(Clone)]
struct Description(Arc<str>);

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

/// Notes each request, and louder what the process could not do. The door is named, not the path: that may hold an id.
async fn logged(request: Request, next: Next) -> Response {
    let (method, began) = (request.method().clone(), Instant::now());
    let door = request.extensions().get::<MatchedPath>().map(|door| door.as_str().to_owned());
    let response = next.run(request).await;
    let (door, status) = (door.unwrap_or_default(), response.status());
    let took_us = began.elapsed().as_micros() as u64;
    if status.is_server_error() {
        tracing::warn!(%method, door, status = status.as_u16(), took_us, "a request could not be answered");
    } else {
        tracing::debug!(%method, door, status = status.as_u16(), took_us, "a request");
    }
    response
}

async fn method_not_allowed() -> Problem {
    Problem::method_not_allowed()
}

/// When an answer is true, as it is told.
#[derive(Clone, Debug, Serialize, ToSchema)]
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
        opened.set(Router::new().fallback(async || "known\n")).expect("it is set once");
        assert_eq!([waits.await, status("/readyz").await], [200, 200]);
    }
}
