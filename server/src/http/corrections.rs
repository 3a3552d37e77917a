//! Corrections: events taken back, edges struck, and the links that were not made.

use std::collections::BTreeSet;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use dataflows::admission::Verdict;
use dataflows::event::ID_BYTES_MAX;
use dataflows::filter::Filter;
use dataflows::identity::Unlinked;
use dataflows::protocol::{Answer, Question};
use ecow::EcoString;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::answers::{List, ask};
use super::described::{Refused, UnknownOrNeedsLog};
use super::foreseen::{Figures, foresee};
use super::query::{self, Asked, Query, cursor, read_body};
use super::{App, AsOfRow, json};
use crate::audit::Detail;
use crate::desk::Selected;
use crate::hub::{Answered, AsOf, Receipt, Work};
use crate::problem::Problem;
use crate::record::Correction;

/// What is to be taken back: one event by its own id and message id, or all that a condition selects.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ToRetract {
    id: Option<EcoString>,
    message_id: Option<EcoString>,
    /// A condition as in definitions, on `event`, `type`, `properties` and `context`.
    r#where: Option<String>,
    /// Nothing is taken back; the answer says what would be.
    #[serde(default)]
    preview: bool,
}

#[derive(Serialize, ToSchema)]
struct Done {
    /// Events taken back.
    events: usize,
    position: String,
}

/// What would be taken back.
#[derive(Serialize, ToSchema)]
struct Foreseen {
    as_of: AsOfRow,
    events: usize,
    /// The people that they belong to.
    profiles: u64,
    /// The latest of them.
    sample: Vec<RetractedRow>,
    figures: Figures,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct RetractedRow {
    id: EcoString,
    message_id: EcoString,
    timestamp: i64,
    event: Option<EcoString>,
}

/// What became of it.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Retracted {
    Done(Done),
    Foreseen(Box<Foreseen>),
}

/// Events that a preview shows.
const SAMPLE: usize = 10;
/// Events that are taken back together: whatever their ids are, they fit into one message of a stream.
const TOGETHER: usize = 256;

/// Takes back one event, or all that a condition selects.
///
/// Everything is at once as if they had never been, but that they are still known: the same sent again is a duplicate.
#[utoipa::path(post, path = "/v1/events:retract", tag = "corrections", params(Asked<query::Nothing>),
    request_body = inline(ToRetract), responses((status = 200, description = "They are taken back, or would be", body = Retracted),
        UnknownOrNeedsLog))]
pub(super) async fn retract(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Nothing>,
    body: Bytes,
) -> Result<Response, Problem> {
    app.log()?;
    let form = r#"{"id": …, "messageId": …}, or {"where": …} with "preview": true to see what it means"#;
    let wanted: ToRetract = read_body(&body, form)?;
    match wanted {
        ToRetract { id: Some(id), message_id: Some(message_id), r#where: None, preview: false } => {
            one(&app, app.id(&id).into(), message_id).await
        }
        ToRetract { id: None, message_id: None, r#where: Some(condition), preview } => {
            if preview {
                foreseen(&app, &query, &condition).await
            } else {
                all(&app, &condition).await
            }
        }
        _ => {
            Err(Problem::bad_request("say `id` and `messageId` of one event, or `where`; `preview` goes with `where`"))
        }
    }
}

async fn one(app: &App, id: EcoString, message_id: EcoString) -> Result<Response, Problem> {
    let may_be = [&id, &message_id].iter().all(|id| id.len() <= ID_BYTES_MAX);
    let receipt = match may_be {
        true => Some(correct(app, vec![Correction::Retract(id.clone(), message_id.clone())]).await?),
        false => None,
    };
    let Some(receipt) = receipt.filter(|receipt| receipt.verdicts != [Verdict::Unknown]) else {
        let detail = format!(
            "no event of the own id {id:?} with message id {message_id:?} was accepted; an event's own id is its \
             userId, without one its anonymousId"
        );
        return Err(Problem::not_found(detail));
    };
    app.note("retract", &[("id", Detail::Hashed(&id)), ("events", Detail::Number(1))]).await?;
    Ok(json(&Retracted::Done(Done { events: 1, position: receipt.as_of.position.to_string() })))
}

/// The events of the log that a condition selects, the latest first.
async fn select(app: &App, condition: &str) -> Result<Vec<Selected>, Problem> {
    Filter::parse(condition).map_err(|error| Problem::bad_request(format!("`where`: {error}")))?;
    let mut selected = app.log()?.select(condition).await.map_err(Problem::not_yet)?;
    selected.sort_by(|a, b| (b.timestamp, &b.message_id).cmp(&(a.timestamp, &a.message_id)));
    Ok(selected)
}

/// The places of those events that stand, and when they do.
pub(super) async fn standing(app: &App, events: &[Selected]) -> Result<(AsOf, BTreeSet<u64>), Problem> {
    let sought = events.iter().map(|of| (of.own.clone(), of.position)).collect();
    let Answered { as_of, parts, .. } = app.hub.ask(Question::Standing(sought)).await?;
    let standing = parts.into_iter().flat_map(|part| if let Answer::Standing(part) = part { part } else { Vec::new() });
    Ok((as_of, standing.map(|(position, _)| position).collect()))
}

/// Those of selected events that stand; it must be sure of each that it is selected.
fn certain(mut selected: Vec<Selected>, standing: &BTreeSet<u64>) -> Result<Vec<Selected>, Problem> {
    selected.retain(|of| standing.contains(&of.position));
    let Some(Selected { own, message_id, .. }) = selected.iter().find(|of| !of.is_sure) else { return Ok(selected) };
    Err(Problem::conflict(format!(
        "of events that are older than `retention` only what definitions see is left, and whether `where` selects that \
         of {own:?} with message id {message_id:?} is not known any more; narrow it down by `event` and `type`, or \
         take single events back by `id` and `messageId`"
    )))
}

async fn foreseen(app: &App, query: &Query, condition: &str) -> Result<Response, Problem> {
    let selected = select(app, condition).await?;
    // What cannot be told is refused before everyone is folded for it.
    let (_, stand) = standing(app, &selected).await?;
    let selected = certain(selected, &stand)?;
    let (as_of, stand, profiles, figures) = foresee(app, query, &selected).await?;
    let selected = certain(selected, &stand)?;
    let row = |Selected { own, message_id, timestamp, event, .. }: &Selected| RetractedRow {
        id: own.clone(),
        message_id: message_id.clone(),
        timestamp: *timestamp,
        event: Some(event.clone()).filter(|event| !event.is_empty()),
    };
    let (events, sample) = (selected.len(), selected.iter().take(SAMPLE).map(row).collect());
    Ok(json(&Retracted::Foreseen(Box::new(Foreseen { as_of: as_of.into(), events, profiles, sample, figures }))))
}

async fn all(app: &App, condition: &str) -> Result<Response, Problem> {
    let selected = select(app, condition).await?;
    let (as_of, standing) = standing(app, &selected).await?;
    let selected = certain(selected, &standing)?;
    let (mut position, mut events, mut outcome) = (as_of.position, 0, Ok(()));
    for some in selected.chunks(TOGETHER) {
        let retract = |of: &Selected| Correction::Retract(of.own.clone(), of.message_id.clone());
        match correct(app, some.iter().map(retract).collect()).await {
            Ok(receipt) => (position, events) = (receipt.as_of.position, events + some.len() as u64),
            Err(why) => {
                outcome = Err(why);
                break;
            }
        }
    }
    // What is cut short is noted as far as it came.
    app.note("retract", &[("where", Detail::Hashed(condition)), ("events", Detail::Number(events))]).await?;
    outcome?;
    Ok(json(&Retracted::Done(Done { events: selected.len(), position: position.to_string() })))
}

async fn correct(app: &App, corrections: Vec<Correction>) -> Result<Receipt, Problem> {
    app.can_note()?;
    let (reply, corrected) = oneshot::channel();
    app.hub.give(Work::Correct(corrections, reply))?;
    Ok(corrected.await.map_err(|_| app.hub.unanswered())?)
}

/// Two ids that an edge joins.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Edge {
    a: EcoString,
    b: EcoString,
}

#[derive(Serialize, ToSchema)]
struct Struck {
    position: String,
}

/// Strikes the edge between two ids, now and for later events.
///
/// The events stay, each with its own id.
#[utoipa::path(post, path = "/v1/identities:unlink", tag = "corrections", params(Asked<query::Nothing>),
    request_body = inline(Edge), responses((status = 200, description = "It is struck", body = Struck), UnknownOrNeedsLog))]
pub(super) async fn unlink(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Nothing>,
    body: Bytes,
) -> Result<Response, Problem> {
    app.log()?;
    let Edge { a, b } = read_body(&body, r#"{"a": …, "b": …}, two ids"#)?;
    let [a, b] = [a, b].map(|id| EcoString::from(app.id(&id)));
    let linked = ask(&app, &query, Question::Linked(a.clone(), b.clone())).await?;
    if !linked.parts.iter().any(|part| matches!(part, Answer::Linked(true))) {
        let detail = format!("no edge joins {a:?} and {b:?}; `linked_by` of a profile lists its edges");
        return Err(Problem::not_found(detail));
    }
    let receipt = correct(&app, vec![Correction::Unlink(a.clone(), b.clone())]).await?;
    app.note("unlink", &[("a", Detail::Hashed(&a)), ("b", Detail::Hashed(&b))]).await?;
    Ok(json(&Struck { position: receipt.as_of.position.to_string() }))
}

/// A link that an event states and that is not made.
#[derive(Serialize, ToSchema)]
struct UnlinkedRow {
    /// `refused_edge`: it would have made a profile of more ids than may be. `shared_device`: the anonymous id belongs
    /// to another user.
    reason: &'static str,
    a: EcoString,
    b: EcoString,
    /// The user that `a` belongs to.
    claimed_by: Option<EcoString>,
    event: StatedBy,
}

/// The event that states a link.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatedBy {
    pub(super) id: EcoString,
    pub(super) message_id: EcoString,
    pub(super) timestamp: i64,
}

/// Links that events state and that are not made, and why, the earliest event first.
#[utoipa::path(get, path = "/v1/identities/refused", tag = "corrections", params(Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<UnlinkedRow>), Refused))]
pub(super) async fn refused(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let question = Question::Unlinked { after: query.key()?, limit: query.limit + 1 };
    let Answered { as_of, parts, .. } = ask(&app, &query, question).await?;
    let all = parts.into_iter().find_map(|part| if let Answer::Unlinked(all) = part { Some(all) } else { None });
    let mut all: Vec<Unlinked> = all.unwrap_or_default();
    let more = all.len() > query.limit;
    all.truncate(query.limit);
    let next = all.last().filter(|_| more).map(cursor);
    let row = |Unlinked { at, message_id, own, a, b, claimed_by }: Unlinked| UnlinkedRow {
        reason: if claimed_by.is_some() { "shared_device" } else { "refused_edge" },
        a,
        b,
        claimed_by,
        event: StatedBy { id: own, message_id, timestamp: at },
    };
    Ok(json(&List { as_of: as_of.into(), items: all.into_iter().map(row).collect(), next }))
}
