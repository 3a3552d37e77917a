//! What the SDKs in browsers need besides doors for calls: their settings, and leave for pages of other origins.

use axum::extract::{OriginalUri, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use dataflows::definitions::WriteKey;
use serde_json::json;

use super::described::{ByKey, KeyInQuery, Keyless};
use super::events::authorize;
use super::{App, json};
use crate::problem::Problem;

/// What a browser may remember an answer to its asking for, seconds: as long as any does.
const LEAVE_SECONDS: &str = "7200";

/// Whether a key may be used by pages of an origin.
pub(super) fn admits(key: &WriteKey, origin: &HeaderValue) -> bool {
    key.origins.iter().any(|admitted| admitted == "*" || admitted.as_bytes() == origin.as_bytes())
}

/// That no key, or not this one, may be used by pages of an origin.
pub(super) fn foreign(origin: &HeaderValue) -> Problem {
    let origin = String::from_utf8_lossy(origin.as_bytes());
    let detail = format!("list {origin:?} in the `origins` of the write key that its pages send");
    Problem::unauthorized("Pages of this origin may not use the key", detail)
}

/// Cross-origin resource sharing: a page of another origin asks first, without its key, so it has leave if any key
/// admits it; which key it then sends is seen with the call.
pub(super) async fn share(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else { return next.run(request).await };
    let keys = &app.hub.book().plan.definitions.write_keys;
    let admitted = keys.is_empty() || keys.iter().any(|key| admits(key, &origin));
    let wanted = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut response = match (request.method() == Method::OPTIONS, admitted) {
        (true, true) => StatusCode::NO_CONTENT.into_response(),
        (true, false) => foreign(&origin).into_response(),
        (false, _) => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("origin, access-control-request-headers"));
    if !admitted {
        return response;
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
    if response.status() == StatusCode::NO_CONTENT {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(LEAVE_SECONDS));
        wanted.map(|wanted| headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted));
    }
    response
}

/// What Segment's browser SDK reads when it starts: it is to send calls to where it read this, and nothing elsewhere.
#[utoipa::path(get, path = "/v1/projects/{key}/settings", tag = "events", params(ByKey),
    responses((status = 200, description = "Here they are", body = serde_json::Value), Keyless))]
pub(super) async fn settings(
    State(app): State<App>,
    OriginalUri(uri): OriginalUri,
    Path(key): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    authorize(&app, &headers, &uri, Some(&key))?;
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = text("host").ok_or_else(|| Problem::bad_request("the header `Host` is missing"))?;
    // This process speaks plain HTTP; who speaks TLS for it says so.
    let protocol = text("x-forwarded-proto").unwrap_or("http");
    Ok(json(&json!({
        "integrations": { "Segment.io": { "apiKey": key, "apiHost": format!("{host}/v1"), "protocol": protocol } },
        "metrics": { "sampleRate": 0 },
        "plan": {},
    })))
}

/// What RudderStack's browser SDK reads when it starts: a source that is on, with no destinations of its own.
#[utoipa::path(get, path = "/sourceConfig/", tag = "events", params(KeyInQuery),
    responses((status = 200, description = "Here it is", body = serde_json::Value), Keyless))]
pub(super) async fn source_config(
    State(app): State<App>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    authorize(&app, &headers, &uri, None)?;
    let off = json!({ "enabled": false });
    Ok(json(&json!({
        "source": {
            "id": "thalweg",
            "name": "thalweg",
            "workspaceId": "thalweg",
            "enabled": true,
            "config": { "statsCollection": { "errors": off, "metrics": off } },
            "destinations": [],
        },
    })))
}
