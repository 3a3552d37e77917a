//! Campaigns: their intents, and what became of these.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use dataflows::profile::answers::{IntentRow, Rows, View};
use dataflows::protocol::{Answer, Question};
use dataflows::total::Total;
use ecow::EcoString;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use utoipa::ToSchema;

use super::answers::{At, List, ask, unknown_name};
use super::described::{ByName, Refused, Unknown};
use super::query::{self, Asked, Query, cursor};
use super::{App, json};
use crate::book::Book;
use crate::hub::{Answered, AsOf};
use crate::outbox::{Entry, Outbox};
use crate::problem::Problem;
use crate::rows::Intent;

#[derive(Serialize, ToSchema)]
struct CampaignRow {
    name: EcoString,
    active_since: i64,
    intents: i64,
    by_status: BTreeMap<EcoString, i64>,
    revoked: i64,
    /// Conversions that stand and came after an intent that passed all gates, at most the lookback after it.
    conversions: u64,
}

#[derive(Serialize, ToSchema)]
struct CampaignWhole {
    #[serde(flatten)]
    row: CampaignRow,
    /// Since when it, and what it reads, knows the past, ms; null: from its beginning.
    history_from: Option<i64>,
}

/// How many intents a campaign has, by what became of them.
pub(super) fn by_status(app: &App, name: &EcoString, totals: &BTreeMap<Total, i128>) -> BTreeMap<EcoString, i64> {
    let mut by_status = BTreeMap::new();
    for (total, count) in totals {
        if let Total::Intents(of, status) = total {
            // What the law lets pass goes by what became of it; of a replay nothing does.
            if of == name && (status != "due" || app.log.is_none()) {
                by_status.insert(status.clone(), *count as i64);
            }
        }
    }
    for (fate, count) in app.outbox.fates(name) {
        *by_status.entry(fate.into()).or_default() += count;
    }
    by_status
}

/// Everything about campaigns: their conversions, by number, and the totals of the same time.
async fn campaigns_asked(
    app: &App,
    query: &Query,
) -> Result<(AsOf, Arc<Book>, Vec<u64>, BTreeMap<Total, i128>), Problem> {
    let Answered { as_of, book, parts, .. } = ask(app, query, Question::Followed).await?;
    let (mut conversions, mut totals) = (vec![0; book.plan.campaigns.len()], BTreeMap::new());
    for part in parts {
        match part {
            Answer::Followed(part) => conversions.iter_mut().zip(part).for_each(|(sum, part)| *sum += part),
            Answer::Totals(part) => totals.extend(part),
            _ => {}
        }
    }
    Ok((as_of, book, conversions, totals))
}

fn campaign_row(
    app: &App,
    book: &Book,
    name: &EcoString,
    conversions: &[u64],
    totals: &BTreeMap<Total, i128>,
) -> CampaignRow {
    let by_status = by_status(app, name, totals);
    let gone = |status: &&EcoString| matches!(status.as_str(), "cancelled" | "revoked");
    CampaignRow {
        name: name.clone(),
        active_since: book.active_since(name),
        intents: by_status.iter().filter(|(status, _)| !gone(status)).map(|(_, count)| count).sum(),
        revoked: by_status.get("revoked").copied().unwrap_or(0),
        by_status,
        conversions: book.plan.campaign(name).map_or(0, |number| conversions[number]),
    }
}

/// The campaigns, and what became of their intents.
#[utoipa::path(get, path = "/v1/campaigns", tag = "campaigns", params(Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<CampaignRow>), Refused))]
pub(super) async fn campaigns(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let (as_of, book, conversions, totals) = campaigns_asked(&app, &query).await?;
    let (names, next) = query.names(book.plan.campaigns.iter().map(|campaign| &campaign.name))?;
    let items = names.into_iter().map(|name| campaign_row(&app, &book, name, &conversions, &totals)).collect();
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

fn campaign_named(app: &App, book: &Book, name: &str) -> Result<EcoString, Problem> {
    let number =
        book.plan.campaign(name).ok_or_else(|| unknown_name(app, "campaign", name, |plan| plan.campaign(name)))?;
    Ok(book.plan.campaigns[number].name.clone())
}

/// A campaign, and what became of its intents.
#[utoipa::path(get, path = "/v1/campaigns/{name}", tag = "campaigns", params(ByName, Asked<query::Nothing>),
    responses((status = 200, description = "What is true", body = At<CampaignWhole>), Unknown))]
pub(super) async fn campaign(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::Nothing>,
) -> Result<Response, Problem> {
    let (as_of, book, conversions, totals) = campaigns_asked(&app, &query).await?;
    let name = campaign_named(&app, &book, &name)?;
    let history_from = book.history_from(&format!("campaigns/{name}"));
    let row = CampaignWhole { row: campaign_row(&app, &book, &name, &conversions, &totals), history_from };
    Ok(json(&At { as_of: as_of.into(), row }))
}

/// All intents of a campaign, newest first.
#[utoipa::path(get, path = "/v1/campaigns/{name}/intents", tag = "campaigns", params(ByName, Asked<query::Part>),
    responses((status = 200, description = "What is true", body = List<Intent>), Unknown))]
pub(super) async fn campaign_intents(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let Answered { as_of, book, parts, .. } = ask(&app, &query, Question::Dump(View::Intents)).await?;
    let name = campaign_named(&app, &book, &name)?;
    let mut rows: BTreeMap<(i64, String), Box<RawValue>> = BTreeMap::new();
    for part in parts {
        if let Answer::Rows(Rows::Intents(part)) = part {
            let of_this = part.iter().filter(|row| row.campaign == name);
            rows.extend(of_this.map(|row| ((row.at, row.id.clone()), intent(&app, row))));
        }
    }
    // What was sent and no longer stands is listed too.
    for entry in app.outbox.of_campaign(&name) {
        rows.insert((entry.row.at, entry.row.id.clone()), told_intent(&app, &entry));
    }
    let mut rows: Vec<_> = rows.into_iter().rev().collect();
    if let Some(before) = query.key()? {
        rows.retain(|(key, _)| *key < before);
    }
    let more = rows.len() > query.limit;
    rows.truncate(query.limit);
    let next = rows.last().filter(|_| more).map(|(key, _)| cursor(key));
    let items: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

/// An intent with the ledger's word, where it has one.
pub(super) fn intent(app: &App, row: &IntentRow) -> Box<RawValue> {
    match app.outbox.entry(&row.id) {
        Some(entry) => told_intent(app, &entry),
        None => to_raw_value(&Intent::new(row, &app.hub.book().plan.definitions)).expect("rows have string keys"),
    }
}

/// An intent by the ledger's word.
pub(super) fn told_intent(app: &App, entry: &Entry) -> Box<RawValue> {
    let book = app.hub.book();
    to_raw_value(&Outbox::row(entry, &book.plan.definitions)).expect("rows have string keys")
}
