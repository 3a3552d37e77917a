//! Errors as they are told: RFC 9457 problem+json, with a slug that stays the same for ever.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dataflows::definitions::Problem as Fault;
use serde::Serialize;
use utoipa::ToSchema;

use crate::door::Unreadable;
use crate::hub::NotTaken;

/// What went wrong, for whoever asked.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: String,
    errors: Vec<Detail>,
}

/// One thing wrong in what was sent.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Detail {
    /// Where in it.
    pub path: String,
    /// On which line.
    pub line: Option<usize>,
    /// What is wrong, and what to do.
    pub message: String,
    /// The known name that is closest.
    pub nearest: Option<String>,
}

impl Problem {
    fn new(status: StatusCode, slug: &str, title: &'static str, detail: impl Into<String>) -> Self {
        let r#type = format!("https://thalweg.dev/problems/{slug}");
        Problem { r#type, title, status: status.as_u16(), detail: detail.into(), errors: Vec::new() }
    }

    /// What was sent makes no sense.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", "The request makes no sense", detail)
    }

    /// The key is not one that may write, or not from there.
    pub fn unauthorized(title: &'static str, detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", title, detail)
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::NOT_FOUND, "not_found", "There is no such thing", detail)
    }

    /// The path is right, the method is not.
    pub fn method_not_allowed() -> Self {
        Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "This method is not for this path",
            "see the documentation for the methods of a path",
        )
    }

    /// More than is taken.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "Too large", detail)
    }

    /// What stands here does not allow it.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::CONFLICT, "conflict", "This cannot be done here", detail)
    }

    /// Definitions are wrong, and where.
    pub fn bad_definition(detail: impl Into<String>, faults: Vec<Fault>) -> Self {
        let title = "The definitions are wrong";
        Problem::new(StatusCode::BAD_REQUEST, "bad_definition", title, detail).with(faults)
    }

    /// The same, with what is wrong where.
    pub fn with(self, faults: Vec<Fault>) -> Self {
        let detail =
            |Fault { line, path, message, nearest }: Fault| Detail { path, line: Some(line), message, nearest };
        Problem { errors: faults.into_iter().map(detail).collect(), ..self }
    }

    /// The views do not include that position yet.
    pub fn not_yet(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_yet", "Not yet", detail)
    }

    /// It cannot be taken now.
    pub fn busy(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Busy", detail)
    }
}

impl From<NotTaken> for Problem {
    fn from(not_taken: NotTaken) -> Self {
        let detail = match not_taken {
            NotTaken::Busy => "more is coming in than can be taken; try again in a second",
            NotTaken::NotKept => {
                "the NATS server that keeps the log has not acknowledged it: it has no room or does not answer, or \
                 this process is stopping; try again"
            }
            NotTaken::Stopping => "the process is stopping; try again when it is back",
        };
        Problem::busy(detail)
    }
}

impl From<Unreadable> for Problem {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::TooLarge(detail) => Problem::too_large(detail),
            Unreadable::Malformed(detail) => Problem::bad_request(detail),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).expect("problems have string keys");
        let mut response = (status, body).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
