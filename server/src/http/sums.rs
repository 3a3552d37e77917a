//! Sums over a part of the past: credit, and sessions.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use dataflows::number::{Number, divide_rounded, print_billionths, print_millionths};
use dataflows::profile::answers::SessionRow;
use dataflows::profile::sums::{Credited, Sought, Visits};
use dataflows::protocol::{Answer, Question};
use ecow::EcoString;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::answers::{At, List, ask, raw_json};
use super::described::Refused;
use super::query::{self, Asked, cursor};
use super::{App, json};
use crate::hub::Answered;
use crate::problem::Problem;

#[derive(Serialize, ToSchema)]
struct Credit<'a> {
    model: &'a str,
    by: &'a str,
    rows: Vec<CreditRow>,
    total: Sum,
    basis: Basis,
    /// Keys with too few conversions for their model; the rule models need no number of them.
    #[schema(value_type = Vec<String>)]
    fallback: [(); 0],
    /// Since when the rules of touchpoints, and of these conversions, know the past, ms; null: from its beginning.
    history_from: Option<i64>,
}
#[derive(Serialize, ToSchema)]
struct CreditRow {
    channel: EcoString,
    campaign: Option<EcoString>,
    conversions: String,
    value: String,
}
#[derive(Serialize, ToSchema)]
struct Sum {
    conversions: String,
    value: String,
}
#[derive(Serialize, ToSchema)]
struct Basis {
    conversions: u64,
    with_touch: u64,
    null_paths: u64,
    touches: u64,
}

/// Exact credit of conversions, and what it rests on.
#[utoipa::path(get, path = "/v1/attribution", tag = "attribution", params(Asked<query::Credit>),
    responses((status = 200, description = "What is true", body = At<Credit>), Refused))]
pub(super) async fn attribution(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Credit>,
) -> Result<Response, Problem> {
    let book = app.hub.book();
    let models = book.plan.models();
    let named = query.own.get("model");
    let model = models.iter().find(|model| named.is_none_or(|named| named == model.name())).ok_or_else(|| {
        let known: Vec<&str> = models.iter().map(|model| model.name()).collect();
        Problem::bad_request(format!("the definitions keep no such model; they keep {}", known.join(", ")))
    })?;
    let by = query.own.get("by").map_or("channel", |by| by);
    if !["channel", "campaign"].contains(&by) {
        return Err(Problem::bad_request(format!("`by={by}`: channel or campaign")));
    }
    let conversion = query.own.get("conversion").map(EcoString::from);
    if conversion.as_ref().is_some_and(|name| book.plan.conversions.iter().all(|rule| rule.name != *name)) {
        return Err(Problem::bad_request("the definitions have no conversion of this name"));
    }
    let sought = Sought { model: *model, conversion: conversion.clone(), span: query.span()? };
    let Answered { as_of, book, parts, .. } = ask(&app, &query, Question::Credit(sought)).await?;
    let mut found = Credited::default();
    for part in parts {
        if let Answer::Credit(part) = part {
            found.add(part);
        }
    }
    let mut credit: BTreeMap<(EcoString, Option<EcoString>), (i128, i128)> = BTreeMap::new();
    for ((channel, campaign), (conversions, value)) in found.keys {
        let sum = credit.entry((channel, (by == "campaign").then_some(campaign))).or_default();
        *sum = (sum.0 + conversions, sum.1 + value);
    }
    let whole = credit.values().fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    let mut rows: Vec<_> = credit.into_iter().collect();
    rows.sort_by(|(a_key, a), (b_key, b)| b.1.cmp(&a.1).then_with(|| a_key.cmp(b_key)));
    let rows = rows.into_iter().map(|((channel, campaign), (conversions, value))| CreditRow {
        channel,
        campaign,
        conversions: print_billionths(conversions),
        value: print_billionths(value),
    });
    let total = Sum { conversions: print_billionths(whole.0), value: print_billionths(whole.1) };
    let is_sought = |name: &EcoString| conversion.as_ref().is_none_or(|conversion| conversion == name);
    let rules = book.plan.conversions.iter().enumerate().filter(|(_, rule)| is_sought(&rule.name));
    let rules = rules.map(|(place, _)| format!("conversions/{place}"));
    let history_from = rules.filter_map(|rule| book.history_from(&rule)).max().max(book.history_from("touchpoints"));
    let Credited { conversions, with_touch, null_paths, touches, .. } = found;
    let basis = Basis { conversions, with_touch, null_paths, touches };
    let row = Credit { model: model.name(), by, rows: rows.collect(), total, basis, fallback: [], history_from };
    Ok(json(&At { as_of: as_of.into(), row }))
}

/// Sessions of all people, latest start first.
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions", params(Asked<query::PartOfDates>),
    responses((status = 200, description = "What is true", body = List<SessionRow>), Refused))]
pub(super) async fn all_sessions(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::PartOfDates>,
) -> Result<Response, Problem> {
    // One more than asked for tells whether there is a next part.
    let question = Question::Sessions { span: query.span()?, before: query.key()?, limit: query.limit + 1 };
    let Answered { as_of, parts, .. } = ask(&app, &query, question).await?;
    let mut items = Vec::new();
    for part in parts {
        if let Answer::Sessions(part) = part {
            items.extend(part);
        }
    }
    items.sort_by_cached_key(|row| std::cmp::Reverse(row.key()));
    let more = items.len() > query.limit;
    items.truncate(query.limit);
    let next = items.last().filter(|_| more).map(|row| cursor(&row.key()));
    Ok(json(&List { as_of: as_of.into(), items, next }))
}

#[derive(Serialize, ToSchema)]
struct Summary {
    sessions: u64,
    events: u64,
    #[schema(value_type = Option<f64>)]
    mean_length_ms: Option<Box<RawValue>>,
    bounces: u64,
    #[schema(value_type = Option<f64>)]
    bounce_rate: Option<Box<RawValue>>,
    buying: u64,
}

/// Sums over sessions.
#[utoipa::path(get, path = "/v1/sessions/summary", tag = "sessions", params(Asked<query::Dates>),
    responses((status = 200, description = "What is true", body = At<Summary>), Refused))]
pub(super) async fn visits(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Dates>,
) -> Result<Response, Problem> {
    let Answered { as_of, parts, .. } = ask(&app, &query, Question::Visits(query.span()?)).await?;
    let mut sum = Visits::default();
    for part in parts {
        if let Answer::Visits(part) = part {
            sum.add(part);
        }
    }
    let Visits { sessions, events, length_ms, bounces, buying } = sum;
    // Over no sessions there is no mean.
    let mean = |whole: i128| {
        let millionths = || divide_rounded(whole * i128::from(Number::ONE.0), sessions.into());
        (sessions > 0).then(|| raw_json(print_millionths(millionths())))
    };
    let (mean_length_ms, bounce_rate) = (mean(length_ms), mean(bounces.into()));
    let row = Summary { sessions, events, mean_length_ms, bounces, bounce_rate, buying };
    Ok(json(&At { as_of: as_of.into(), row }))
}
