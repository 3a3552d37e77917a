//! The audit log over HTTP.

use axum::extract::State;
use axum::response::Response;
use dataflows::protocol::Question;

use super::answers::{List, ask};
use super::described::NeedsLog;
use super::query::{self, Asked, cursor};
use super::{App, json};
use crate::audit::Entry;
use crate::problem::Problem;

/// What was changed here, newest first: definitions, corrections, erasures; and what was exported.
///
/// Each line holds the hash of the one before, so that none can be changed or taken out unseen; ids stand in it as
/// keyed hashes. Where several processes work together, each has its own: what its doors were asked.
#[utoipa::path(get, path = "/v1/audit", tag = "corrections", params(Asked<query::Part>),
    responses((status = 200, description = "Here it is", body = List<Entry>), NeedsLog))]
pub(super) async fn audit(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    app.log()?;
    let as_of = ask(&app, &query, Question::Followed).await?.as_of;
    let mut entries = app.noted().await?;
    entries.truncate(query.key()?.unwrap_or(usize::MAX));
    let rest = entries.len().saturating_sub(query.limit);
    let next = (rest > 0).then(|| cursor(&rest));
    Ok(json(&List { as_of: as_of.into(), items: entries.into_iter().skip(rest).rev().collect(), next }))
}
