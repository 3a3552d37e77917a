//! OpenDSR 2.0 (once OpenGDPR): what controllers ask of a processor for the people whose data it holds.
//!
//! A request is carried out at once, by what stands behind `DELETE /v1/profiles/{id}` and its export; the audit log is
//! where it is known from later. It holds no id, so what an access asks for is fetched by who knows the id.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dataflows::time::{DAY, format_instant, parse_instant};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::described::{ByRequest, NeedsLog, UnknownOrNeedsLog};
use super::profiles::find_profile;
use super::query::{Query, read_body};
use super::{App, erasures, json};
use crate::audit::{Detail, Entry};
use crate::problem::Problem;

const VERSION: &str = "2.0";
/// There is one controller: whoever runs this.
const CONTROLLER: &str = "self";

/// What a controller asks for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Request {
    #[schema(pattern = "^(gdpr|ccpa)$")]
    regulation: String,
    /// By which it is asked for later: a UUID, lower case.
    #[schema(pattern = "^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")]
    subject_request_id: String,
    /// What of: the person's events and all that follows from them is erased, or may be fetched as an export.
    #[schema(pattern = "^(erasure|access|portability)$")]
    subject_request_type: String,
    /// When the person asked, RFC 3339.
    #[schema(pattern = "^20[0-9]{2}-0[1-9]-1[0-9]T1[0-9]:[0-5][0-9]:[0-5][0-9]Z$")]
    submitted_time: String,
    #[schema(min_items = 1)]
    subject_identities: Vec<SubjectIdentity>,
    #[schema(pattern = "^[12]\\.0$")]
    api_version: Option<String>,
    /// None: the status is asked for.
    #[schema(max_items = 0)]
    #[serde(default)]
    status_callback_urls: Vec<String>,
    /// For processors that name some of it theirs; here there is nothing.
    #[serde(default)]
    #[expect(dead_code, reason = "it is for others")]
    extensions: serde_json::Map<String, serde_json::Value>,
}

/// An id of the person.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SubjectIdentity {
    #[schema(pattern = "^controller_customer_id$")]
    identity_type: String,
    identity_value: String,
    #[schema(pattern = "^raw$")]
    identity_format: String,
}

/// That a request was taken.
#[derive(Serialize, ToSchema)]
struct RequestTaken {
    controller_id: &'static str,
    expected_completion_time: String,
    received_time: String,
    /// The body of the request, base64.
    encoded_request: String,
    subject_request_id: String,
    api_version: &'static str,
}

/// How far a request is.
#[derive(Serialize, ToSchema)]
struct RequestStatus {
    controller_id: &'static str,
    expected_completion_time: String,
    subject_request_id: String,
    #[schema(pattern = "^(in_progress|completed)$")]
    request_status: &'static str,
    api_version: &'static str,
    /// Null: no id is kept of a request; `GET /v1/profiles/{id}/export` has the results.
    results_url: Option<String>,
    /// Events that were erased, or people who were found.
    results_count: u64,
}

/// What is supported.
#[derive(Serialize, ToSchema)]
struct Discovery {
    api_version: &'static str,
    supported_identities: Vec<SupportedIdentity>,
    supported_subject_request_types: [&'static str; 3],
    /// Null: answers are not signed.
    processor_certificate: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct SupportedIdentity {
    identity_type: &'static str,
    identity_format: &'static str,
}

/// What of OpenDSR is supported.
#[utoipa::path(get, path = "/opendsr/discovery", tag = "profiles",
    responses((status = 200, description = "This is", body = Discovery)))]
pub(super) async fn discovery() -> Response {
    json(&Discovery {
        api_version: VERSION,
        supported_identities: vec![SupportedIdentity {
            identity_type: "controller_customer_id",
            identity_format: "raw",
        }],
        supported_subject_request_types: ["erasure", "access", "portability"],
        processor_certificate: None,
    })
}

/// Takes a request of OpenDSR 2.0 for a person, by any of their ids.
///
/// An erasure begins at once. What is asked for again under the same `subject_request_id` is done once. Nobody is
/// called back, and answers are not signed.
#[utoipa::path(post, path = "/opendsr/requests", tag = "profiles", request_body = inline(Request),
    responses((status = 201, description = "It is taken", body = RequestTaken), NeedsLog))]
pub(super) async fn request(State(app): State<App>, body: Bytes) -> Result<Response, Problem> {
    app.log()?;
    let wanted: Request = read_body(&body, "a request of OpenDSR 2.0")?;
    wanted.check()?;
    let Request { subject_request_id, subject_request_type, regulation, subject_identities, .. } = wanted;
    let received = match found(&app, &subject_request_id).await? {
        Some(entry) => entry.at,
        None => {
            let is_erasure = subject_request_type == "erasure";
            if is_erasure {
                erasures::can_erase(&app)?;
            }
            let (mut erased, mut people) = (Vec::new(), 0);
            for SubjectIdentity { identity_value, .. } in &subject_identities {
                // Who is not known, or not any more, has nothing here.
                let profile = find_profile(&app, &Query::default(), &app.id(identity_value)).await?.1;
                let Some(profile) = profile else { continue };
                people += 1;
                if is_erasure {
                    erased.push(erasures::begin(&app, &profile, false).await?.0.to_string());
                }
            }
            let details = [
                ("request", Detail::Text(&subject_request_id)),
                ("type", Detail::Text(&subject_request_type)),
                ("regulation", Detail::Text(&regulation)),
                ("erasures", Detail::Text(&erased.join(" "))),
                ("people", Detail::Number(people)),
            ];
            app.note(ACTION, &details).await?;
            (app.now)()
        }
    };
    let taken = RequestTaken {
        controller_id: CONTROLLER,
        expected_completion_time: format_instant(received + DAY),
        received_time: format_instant(received),
        encoded_request: BASE64_STANDARD.encode(&body),
        subject_request_id,
        api_version: VERSION,
    };
    Ok((StatusCode::CREATED, json(&taken)).into_response())
}

/// How far a request of OpenDSR is.
#[utoipa::path(get, path = "/opendsr/requests/{id}", tag = "profiles", params(ByRequest),
    responses((status = 200, description = "What is true", body = RequestStatus), UnknownOrNeedsLog))]
pub(super) async fn status(State(app): State<App>, Path(id): Path<String>) -> Result<Response, Problem> {
    app.log()?;
    let entry = known(&app, &id).await?;
    let text = |name: &str| entry.details.get(name).and_then(|text| text.as_str()).unwrap_or_default();
    let erasures = text("erasures").split(' ').filter_map(|erasure| app.hub.erasure(erasure.parse().ok()?));
    let erasures: Vec<_> = erasures.collect();
    let people = entry.details.get("people").and_then(|people| people.as_u64()).unwrap_or_default();
    let is_erasure = text("type") == "erasure";
    let is_complete = erasures.iter().all(|erasure| erasure.is_complete);
    Ok(json(&RequestStatus {
        controller_id: CONTROLLER,
        expected_completion_time: format_instant(entry.at + DAY),
        request_status: if is_complete { "completed" } else { "in_progress" },
        results_count: if is_erasure { erasures.iter().map(|erasure| erasure.events).sum() } else { people },
        subject_request_id: id,
        api_version: VERSION,
        results_url: None,
    }))
}

/// Cancels a request of OpenDSR: none can be, since each is begun when it is taken.
#[utoipa::path(delete, path = "/opendsr/requests/{id}", tag = "profiles", params(ByRequest),
    responses((status = 202, description = "Never"), UnknownOrNeedsLog))]
pub(super) async fn cancel(State(app): State<App>, Path(id): Path<String>) -> Result<Response, Problem> {
    app.log()?;
    known(&app, &id).await?;
    Err(Problem::conflict("a request is begun when it is taken, and what is begun cannot be cancelled"))
}

/// How the audit log names a request.
const ACTION: &str = "opendsr";

/// A request that was taken before.
async fn found(app: &App, id: &str) -> Result<Option<Entry>, Problem> {
    let mut entries = app.noted().await?.into_iter().rev();
    Ok(entries.find(|entry| entry.action == ACTION && entry.details.get("request").is_some_and(|known| known == id)))
}

async fn known(app: &App, id: &str) -> Result<Entry, Problem> {
    found(app, id).await?.ok_or_else(|| Problem::not_found(format!("there is no request {id:?}")))
}

impl Request {
    fn check(&self) -> Result<(), Problem> {
        let one_of = |what: &str, found: &str, known: &[&str]| match known.contains(&found) {
            true => Ok(()),
            false => Err(Problem::bad_request(format!("`{what}` is none of: {}", known.join(", ")))),
        };
        one_of("regulation", &self.regulation, &["gdpr", "ccpa"])?;
        one_of("subject_request_type", &self.subject_request_type, &["erasure", "access", "portability"])?;
        one_of("api_version", self.api_version.as_deref().unwrap_or(VERSION), &[VERSION, "1.0"])?;
        if !is_uuid(&self.subject_request_id) {
            return Err(Problem::bad_request("`subject_request_id` is no UUID of version 4 in lower case"));
        }
        if parse_instant(&self.submitted_time).is_none() {
            return Err(Problem::bad_request("`submitted_time` is no instant of RFC 3339"));
        }
        if !self.status_callback_urls.is_empty() {
            let why = "nobody is called back: leave `status_callback_urls` out, and ask GET /opendsr/requests/{id}";
            return Err(Problem::bad_request(why));
        }
        if self.subject_identities.is_empty() {
            return Err(Problem::bad_request("`subject_identities` is empty: name the person by an id"));
        }
        for identity in &self.subject_identities {
            one_of("subject_identities: identity_type", &identity.identity_type, &["controller_customer_id"])?;
            one_of("subject_identities: identity_format", &identity.identity_format, &["raw"])?;
        }
        Ok(())
    }
}

fn is_uuid(text: &str) -> bool {
    let form = "xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx";
    text.len() == form.len()
        && text.bytes().zip(form.bytes()).all(|(found, of)| match of {
            b'x' => matches!(found, b'0'..=b'9' | b'a'..=b'f'),
            b'y' => matches!(found, b'8' | b'9' | b'a' | b'b'),
            of => found == of,
        })
}
