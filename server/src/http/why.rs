//! Why somebody is in a segment or is not, and until when.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::response::Response;
use dataflows::profile::explain::{Reason, Witness};
use dataflows::protocol::{Answer, Question};
use ecow::EcoString;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::answers::{At, ask, at_instant, raw_json};
use super::described::{ById, Unknown};
use super::profiles::nobody;
use super::query::{self, Asked};
use super::segments::segment_named;
use super::{App, json};
use crate::book::Book;
use crate::hub::Answered;
use crate::problem::Problem;

#[derive(Serialize, ToSchema)]
struct Why {
    profile: EcoString,
    segment: EcoString,
    member: bool,
    since: Option<i64>,
    /// When it changes if no event comes; null: never, or not in the next 10,000 instants at which something is due.
    changes_at: Option<i64>,
    tree: Clause,
}

#[derive(Serialize, ToSchema)]
struct Clause {
    /// As the definitions say it, in JSON.
    clause: String,
    /// Whether it holds.
    #[serde(rename = "true")]
    holds: bool,
    /// What it looked at: a count, a trait's value, a state, the instant at which a sequence was completed.
    value: Box<RawValue>,
    /// The events that make it so, the latest first, at most 10.
    witnesses: Vec<Witness>,
    /// When it changes if no event comes.
    changes_at: Option<i64>,
    #[schema(no_recursion)]
    children: Vec<Clause>,
}

impl Clause {
    fn new(reason: Reason, text: &RawValue, book: &Book) -> Clause {
        let members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text.get()).unwrap_or_default();
        let list = members.get("all").or(members.get("any"));
        let inside: Vec<Box<RawValue>> = match (&reason.of, list, members.get("not")) {
            (Some(segment), ..) => {
                let document = book.document(&format!("segments/{segment}")).0;
                document.map(|json| raw_json(json.to_owned())).into_iter().collect()
            }
            (None, Some(list), _) => serde_json::from_str(list.get()).unwrap_or_default(),
            (None, None, not) => not.cloned().into_iter().collect(),
        };
        let Reason { holds, value, witnesses, changes_at, children, .. } = reason;
        let children = children.into_iter().zip(inside).map(|(child, text)| Clause::new(child, &text, book));
        let children = children.collect();
        Clause { clause: text.get().to_owned(), holds, value, witnesses, changes_at, children }
    }
}

/// Why a person is in a segment or is not, and until when if no event comes.
#[utoipa::path(get, path = "/v1/profiles/{id}/explain", tag = "profiles", params(ById, Asked<query::Why>),
    responses((status = 200, description = "What is true", body = At<Why>), Unknown))]
pub(super) async fn explain(
    State(app): State<App>,
    Path(id): Path<String>,
    Asked { query, .. }: Asked<query::Why>,
) -> Result<Response, Problem> {
    let segment = query.own.get("segment").filter(|name| !name.is_empty());
    let segment = segment.ok_or_else(|| Problem::bad_request("`segment=` names the segment to explain"))?;
    let at = query.at()?;
    let question = Question::Explain { id: id.as_str().into(), segment: segment.into(), at };
    let Answered { as_of, book, parts, .. } = ask(&app, &query, question).await?;
    let (as_of, segment) = (at_instant(as_of, at)?, segment_named(&app, &book, segment)?);
    let explained = parts.into_iter().find_map(|part| match part {
        Answer::Explained(explained) => Some(explained),
        _ => None,
    });
    let explained = explained.ok_or_else(|| nobody(&id, at))?;
    let document = book.document(&format!("segments/{segment}")).0.unwrap_or("null");
    let tree = Clause::new(explained.tree, &raw_json(document.to_owned()), &book);
    let (changes_at, profile) = (tree.changes_at, explained.profile);
    let row = Why { profile, segment, member: explained.member, since: explained.since, changes_at, tree };
    Ok(json(&At { as_of: as_of.into(), row }))
}
