//! People: who they are, and their histories.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Path, State};
use axum::response::Response;
use dataflows::identity;
use dataflows::profile::answers::{ChangeRow, ConversionRow, Page, ProfileRow, Rows, SessionRow, TouchRow, View};
use dataflows::protocol::{Answer, Question};
use ecow::EcoString;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use utoipa::ToSchema;

use super::answers::{At, List, ask, at_instant, raw_json};
use super::campaigns::{intent, told_intent};
use super::corrections::StatedBy;
use super::described::{ById, Unknown, UnknownOrNeedsLog};
use super::query::{self, Asked, Query, cursor};
use super::{App, json};
use crate::hub::{Answered, AsOf};
use crate::log::OwnedRecord;
use crate::problem::Problem;
use crate::record;
use crate::rows::{self, Intent};

/// A person, by any of their ids; as they are, or as of an instant of the past.
#[utoipa::path(get, path = "/v1/profiles/{id}", tag = "profiles", params(ById, Asked<query::Instant>),
    responses((status = 200, description = "What is true", body = At<Linked>), Unknown))]
pub(super) async fn profile(
    State(app): State<App>,
    Path(id): Path<String>,
    Asked { query, .. }: Asked<query::Instant>,
) -> Result<Response, Problem> {
    let (at, of) = (query.at()?, EcoString::from(&id));
    let question = match at {
        Some(at) => Question::ProfileAt(of, at),
        None => Question::Person(of),
    };
    let Answered { as_of, parts, .. } = ask(&app, &query, question).await?;
    let as_of = at_instant(as_of, at)?;
    let (mut profile, mut linked_by) = (None, Vec::new());
    for part in parts {
        match part {
            Answer::Profile(found) => profile = Some(found),
            Answer::Links(links) => linked_by = links.into_iter().map(LinkRow::from).collect(),
            _ => {}
        }
    }
    let profile = profile.ok_or_else(|| nobody(&id, at))?;
    Ok(json(&At { as_of: as_of.into(), row: Linked { profile, linked_by } }))
}

/// A profile, and the edges that make its ids one.
#[derive(Serialize, ToSchema)]
struct Linked {
    #[serde(flatten)]
    profile: Box<ProfileRow>,
    linked_by: Vec<LinkRow>,
}

/// An edge, and the first event that states it.
#[derive(Serialize, ToSchema)]
struct LinkRow {
    a: EcoString,
    b: EcoString,
    event: StatedBy,
}

impl From<identity::Linked> for LinkRow {
    fn from(identity::Linked { a, b, at, own, message_id }: identity::Linked) -> Self {
        LinkRow { a, b, event: StatedBy { id: own, message_id, timestamp: at } }
    }
}

pub(super) async fn one_profile(app: &App, query: &Query, id: &str) -> Result<(AsOf, Box<ProfileRow>), Problem> {
    let (as_of, profile) = find_profile(app, query, id).await?;
    Ok((as_of, profile.ok_or_else(|| nobody(id, None))?))
}

/// The same, of whom there may be nothing.
pub(super) async fn find_profile(
    app: &App,
    query: &Query,
    id: &str,
) -> Result<(AsOf, Option<Box<ProfileRow>>), Problem> {
    let Answered { as_of, parts, .. } = ask(app, query, Question::Profile(id.into())).await?;
    let profile = parts.into_iter().find_map(|part| match part {
        Answer::Profile(profile) => Some(profile),
        _ => None,
    });
    Ok((as_of, profile))
}

pub(super) fn nobody(id: &str, at: Option<i64>) -> Problem {
    let then = at.map_or(String::new(), |at| format!(" as of {at}"));
    Problem::not_found(format!("no profile has the id {id:?}{then}"))
}

async fn history(app: App, id: String, query: Query, view: View) -> Result<Response, Problem> {
    let page = Page { before: query.key()?, limit: query.limit };
    let Answered { as_of, book, parts, .. } =
        ask(&app, &query, Question::History { id: id.as_str().into(), view, page }).await?;
    let found = parts.into_iter().find_map(|part| match part {
        Answer::History(rows, next) => Some((rows, next)),
        _ => None,
    });
    let (rows, next) = found.ok_or_else(|| nobody(&id, None))?;
    let items = match &rows {
        Rows::Events(events) => {
            let places: Vec<u64> = events.iter().map(|(.., place)| *place).collect();
            let records = app.log()?.get(&places).await;
            let rows = events.iter().zip(records);
            rows.filter_map(|((profile, at, _), record)| event_row(profile, *at, &record?)).collect()
        }
        rows => rows::lines(rows, &book.plan.definitions).into_iter().map(raw_json).collect::<Vec<_>>(),
    };
    Ok(json(&List { as_of: as_of.into(), items, next: next.as_ref().map(cursor) }))
}

macro_rules! histories {
    ($($what:literal $path:literal $name:ident $view:ident $row:ty, $refusals:ident;)*) => {$(
        #[doc = $what]
        #[utoipa::path(get, path = $path, tag = "profiles", params(ById, Asked<query::Part>),
            responses((status = 200, description = "What is true", body = List<$row>), $refusals))]
        pub(super) async fn $name(
            State(app): State<App>,
            Path(id): Path<String>,
            Asked { query, .. }: Asked<query::Part>,
        ) -> Result<Response, Problem> {
            history(app, id, query, View::$view).await
        }
    )*};
}

histories! {
    "A person's calls as they were sent, newest first." "/v1/profiles/{id}/events" events Events EventRow,
        UnknownOrNeedsLog;
    "A person's sessions, newest first." "/v1/profiles/{id}/sessions" sessions Sessions SessionRow, Unknown;
    "A person's touches, newest first." "/v1/profiles/{id}/touchpoints" touchpoints Touches TouchRow, Unknown;
    "A person's conversions, newest first." "/v1/profiles/{id}/conversions" conversions Conversions ConversionRow,
        Unknown;
    "A person's entries to segments and exits, newest first." "/v1/profiles/{id}/segments/changes" changes Changes
        ChangeRow, Unknown;
}

/// A person's intents, newest first; those too that were cancelled or revoked and that the law no longer has.
#[utoipa::path(get, path = "/v1/profiles/{id}/intents", tag = "profiles", params(ById, Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<Intent>), Unknown))]
pub(super) async fn intents(
    State(app): State<App>,
    Path(id): Path<String>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let profile = one_profile(&app, &query, &id).await?.1;
    // All of them: what the ledger adds is not in the law's order of keys.
    let page = Page { before: None, limit: usize::MAX };
    let question = Question::History { id: id.as_str().into(), view: View::Intents, page };
    let Answered { as_of, parts, .. } = ask(&app, &query, question).await?;
    let mut rows: Vec<((i64, String), Box<RawValue>)> = Vec::new();
    for part in parts {
        if let Answer::History(Rows::Intents(part), _) = part {
            rows.extend(part.iter().map(|row| ((row.at, row.id.clone()), intent(&app, row))));
        }
    }
    let standing: BTreeSet<String> = rows.iter().map(|((_, id), _)| id.clone()).collect();
    let ids: BTreeSet<&EcoString> = profile.ids().collect();
    let mut gone = app.outbox.of_person(&ids);
    gone.retain(|entry| !standing.contains(&entry.row.id));
    rows.extend(gone.iter().rev().map(|entry| ((entry.row.at, entry.row.id.clone()), told_intent(&app, entry))));
    rows.sort_by_key(|((at, _), _)| std::cmp::Reverse(*at));
    if let Some(last) = query.key::<(i64, String)>()? {
        // If the row itself is gone, its instant is told again.
        let after = rows.iter().position(|(key, _)| *key == last).map(|place| place + 1);
        rows.drain(..after.unwrap_or_else(|| rows.partition_point(|((at, _), _)| *at > last.0)));
    }
    let more = rows.len() > query.limit;
    rows.truncate(query.limit);
    let next = rows.last().filter(|_| more).map(|(key, _)| cursor(key));
    let items: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

#[derive(Serialize, ToSchema)]
pub(super) struct EventRow<'a> {
    profile: &'a str,
    r#type: &'static str,
    event: Option<&'a RawValue>,
    name: Option<&'a RawValue>,
    #[serde(rename = "messageId")]
    message_id: &'a str,
    #[serde(rename = "userId")]
    user_id: Option<&'a RawValue>,
    #[serde(rename = "anonymousId")]
    anonymous_id: Option<&'a RawValue>,
    #[serde(rename = "previousId")]
    previous_id: Option<&'a RawValue>,
    #[serde(rename = "groupId")]
    group_id: Option<&'a RawValue>,
    timestamp: i64,
    received_at: i64,
    properties: Option<&'a RawValue>,
    traits: Option<&'a RawValue>,
    context: Option<&'a RawValue>,
    /// Only where it is so: the event is older than `retention`, and what of it no definition sees is gone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    beyond_retention: bool,
}

/// An event as it came, read from the log: what it says is told as it was written, to the last digit. When it happened
/// the engine knows: of a call without a time the message of a stream does not say it.
pub(super) fn event_row(profile: &str, timestamp: i64, record: &OwnedRecord) -> Option<Box<RawValue>> {
    let (kind, _, message_id, body) = record::decode_event(&record.payload)?;
    let body: BTreeMap<String, &RawValue> = serde_json::from_str(body).ok()?;
    let part = |key: &str| body.get(key).copied();
    let row = EventRow {
        profile,
        r#type: kind.name(),
        event: part("event"),
        name: part("name"),
        message_id,
        user_id: part("userId"),
        anonymous_id: part("anonymousId"),
        previous_id: part("previousId"),
        group_id: part("groupId"),
        timestamp,
        received_at: record.received_at,
        properties: part("properties"),
        traits: part("traits"),
        context: part("context"),
        beyond_retention: record::is_old(&record.payload),
    };
    to_raw_value(&row).ok()
}
