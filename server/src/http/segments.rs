//! Segments: who is in them.

use axum::extract::{Path, State};
use axum::response::Response;
use dataflows::protocol::{Answer, Question};
use dataflows::total::Total;
use ecow::EcoString;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::answers::{At, List, ask, raw_json, size, totals, unknown_name};
use super::described::{ByName, Refused, Unknown};
use super::query::{self, Asked, cursor};
use super::{App, json};
use crate::book::Book;
use crate::hub::Answered;
use crate::problem::Problem;

#[derive(Serialize, ToSchema)]
struct SegmentRow<'a> {
    name: &'a str,
    size: i64,
    version: u32,
}

/// The segments, and how many people are in each.
#[utoipa::path(get, path = "/v1/segments", tag = "segments", params(Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<SegmentRow>), Refused))]
pub(super) async fn segments(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let (as_of, book, totals) = totals(&app, &query).await?;
    let (names, next) = query.names(book.plan.segments.iter().map(|segment| &segment.name))?;
    let items = names.into_iter().map(|name| SegmentRow {
        name,
        size: size(&totals, &Total::Members(name.clone())),
        version: book.version("segments", name),
    });
    Ok(json(&List { as_of: as_of.into(), items: items.collect(), next }))
}

#[derive(Serialize, ToSchema)]
struct SegmentWhole<'a> {
    #[serde(flatten)]
    row: SegmentRow<'a>,
    definition: Option<&'a RawValue>,
    /// Since when it, and what it reads, knows the past, ms; null: from its beginning.
    history_from: Option<i64>,
}

/// A segment: its size and its definition.
#[utoipa::path(get, path = "/v1/segments/{name}", tag = "segments", params(ByName, Asked<query::Nothing>),
    responses((status = 200, description = "What is true", body = At<SegmentWhole>), Unknown))]
pub(super) async fn segment(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::Nothing>,
) -> Result<Response, Problem> {
    let (as_of, book, totals) = totals(&app, &query).await?;
    let segment = segment_named(&app, &book, &name)?;
    let version = book.version("segments", &name);
    let row = SegmentRow { name: &name, size: size(&totals, &Total::Members(segment)), version };
    let document = format!("segments/{name}");
    let (definition, history_from) = (book.document(&document).0, book.history_from(&document));
    let definition = definition.map(|json| raw_json(json.to_owned()));
    let definition = definition.as_deref();
    Ok(json(&At { as_of: as_of.into(), row: SegmentWhole { row, definition, history_from } }))
}

pub(super) fn segment_named(app: &App, book: &Book, name: &str) -> Result<EcoString, Problem> {
    let number =
        book.plan.segment(name).ok_or_else(|| unknown_name(app, "segment", name, |plan| plan.segment(name)))?;
    Ok(book.plan.segments[number].name.clone())
}

#[derive(Serialize, ToSchema)]
struct Member {
    profile: EcoString,
    since: i64,
}

/// Who is in a segment, in order of id.
#[utoipa::path(get, path = "/v1/segments/{name}/members", tag = "segments", params(ByName, Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<Member>), Unknown))]
pub(super) async fn members(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let (segment, after) = (name.as_str().into(), query.key()?);
    // One more than asked for tells whether there is a next part.
    let Answered { as_of, book, parts, .. } =
        ask(&app, &query, Question::Members { segment, after, limit: query.limit + 1 }).await?;
    segment_named(&app, &book, &name)?;
    let mut all = Vec::new();
    for part in parts {
        if let Answer::Members(part) = part {
            all.extend(part);
        }
    }
    all.sort();
    let more = all.len() > query.limit;
    all.truncate(query.limit);
    let next = all.last().filter(|_| more).map(|(profile, _)| cursor(profile));
    let items = all.into_iter().map(|(profile, since)| Member { profile, since }).collect();
    Ok(json(&List { as_of: as_of.into(), items, next }))
}
