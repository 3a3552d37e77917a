//! Channels: how deliveries go, what is parked, and how to have it sent again.

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use dataflows::definitions::Deliver;
use dataflows::protocol::Question;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::answers::{At, List, Query, ask, cursor};
use super::{App, json};
use crate::outbox::{Counts, Parked, message};
use crate::problem::Problem;
use crate::triggers::{TOOK_AT_MOST, Took, Traffic};
use crate::writer::{Answered, NotTaken};

#[derive(Serialize)]
struct ChannelRow<'a> {
    name: &'a str,
    deliver: &'static str,
    realtime: bool,
    revocations: bool,
    delivered: u64,
    took_ms: Option<TookRow>,
    pending: usize,
    in_flight: usize,
    failed: usize,
    parked: usize,
    last_failure: Option<String>,
    disabled: Option<String>,
}

/// How long deliveries took.
#[derive(Serialize)]
struct TookRow {
    p50: i64,
    p99: i64,
    max: i64,
}

/// A row for each of these channels.
fn rows<'a>(app: &'a App, names: impl IntoIterator<Item = &'a String>) -> Vec<ChannelRow<'a>> {
    let counts = app.outbox.counts();
    let row = |name: &'a String| row(app, name, counts.get(name.as_str()).copied().unwrap_or_default());
    names.into_iter().map(row).collect()
}

fn row<'a>(app: &App, name: &'a str, counts: Counts) -> ChannelRow<'a> {
    let channel = &app.plan.definitions.channels[name];
    let Traffic { in_flight, last_failure, disabled, took, .. } = app.outbox.outlet(name).traffic();
    ChannelRow {
        name,
        deliver: match channel.deliver {
            Deliver::Sse => "sse",
            Deliver::Webhook { .. } => "webhook",
            Deliver::Nats => "nats",
        },
        realtime: channel.realtime,
        revocations: channel.revocations,
        delivered: took.count(),
        took_ms: told(&took),
        pending: counts.pending,
        in_flight,
        failed: counts.failed,
        parked: counts.parked,
        last_failure,
        disabled,
    }
}

fn told(took: &Took) -> Option<TookRow> {
    let row = || TookRow { p50: took.percentile(50), p99: took.percentile(99), max: took.max };
    (took.count() > 0).then(row)
}

fn known<'a>(app: &'a App, name: &str) -> Result<&'a String, Problem> {
    let known = app.plan.definitions.channels.get_key_value(name);
    known.map(|(name, _)| name).ok_or_else(|| Problem::not_found(format!("no channel is named {name:?}")))
}

pub(super) async fn channels(State(app): State<App>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    let query = Query::read(raw, &["limit", "cursor"])?;
    let Answered { as_of, .. } = ask(&app, &query, Question::Totals).await?;
    let (names, next) = query.names(app.plan.definitions.channels.keys())?;
    Ok(json(&List { as_of: as_of.into(), items: rows(&app, names), next }))
}

pub(super) async fn channel(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::read(raw, &[])?;
    let name = known(&app, &name)?;
    let Answered { as_of, .. } = ask(&app, &query, Question::Totals).await?;
    let row = rows(&app, [name]).remove(0);
    Ok(json(&At { as_of: as_of.into(), row }))
}

/// What is parked of a channel, the latest intent first.
pub(super) async fn parked(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Row {
        why: String,
        /// As its subscribers see it.
        message: Box<RawValue>,
    }
    let query = Query::read(raw, &["limit", "cursor"])?;
    known(&app, &name)?;
    let Answered { as_of, .. } = ask(&app, &query, Question::Totals).await?;
    let mut found = app.outbox.parked(&name);
    let key = |parked: &Parked| (parked.entry.row.at, parked.entry.row.id.clone());
    found.sort_by_cached_key(|parked| std::cmp::Reverse(key(parked)));
    if let Some(before) = query.key()? {
        found.retain(|parked| key(parked) < before);
    }
    let more = found.len() > query.limit;
    found.truncate(query.limit);
    let next = found.last().filter(|_| more).map(|last| cursor(&key(last)));
    let row = |Parked { entry, why }| Row { why, message: message(&app.outbox, &entry) };
    Ok(json(&List { as_of: as_of.into(), items: found.into_iter().map(row).collect(), next }))
}

/// Has what is parked sent again.
pub(super) async fn resend(State(app): State<App>, body: Bytes) -> Result<Response, Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        channel: String,
        id: Option<String>,
    }
    #[derive(Serialize)]
    struct Resent {
        resent: usize,
        position: String,
    }
    app.log()?;
    let Wanted { channel, id } = serde_json::from_slice(&body).map_err(|error| {
        let form = r#"the body is {"channel": …}, with "id" for one intent alone"#;
        Problem::bad_request(format!("{form}: {error}"))
    })?;
    known(&app, &channel)?;
    let resent = app.outbox.resend(channel.clone(), id.clone()).await;
    let (resent, as_of) = resent.ok_or(NotTaken::Stopping)?;
    match id {
        Some(id) if resent == 0 => {
            Err(Problem::not_found(format!("nothing of an intent {id:?} is parked in {channel}")))
        }
        _ => Ok(json(&Resent { resent, position: as_of.position.to_string() })),
    }
}

/// The same for Prometheus.
pub(super) fn metrics(app: &App) -> String {
    let rows = rows(app, app.plan.definitions.channels.keys());
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(&ChannelRow<'_>) -> usize| {
        text += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
        for row in &rows {
            text += &format!("{name}{{channel=\"{}\"}} {}\n", row.name, value(row));
        }
    };
    gauge("thalweg_channel_pending", "Messages still to be delivered.", &|row| row.pending);
    gauge("thalweg_channel_in_flight", "Attempts under way.", &|row| row.in_flight);
    gauge("thalweg_channel_parked", "Messages that are parked.", &|row| row.parked);
    gauge("thalweg_channel_disabled", "1 where nothing is attempted.", &|row| row.disabled.is_some().into());
    let (failures, took) = ("thalweg_delivery_failures_total", "thalweg_delivery_seconds");
    text += &format!("# HELP {failures} Attempts that failed.\n# TYPE {failures} counter\n");
    for name in rows.iter().map(|row| row.name) {
        text += &format!("{failures}{{channel=\"{name}\"}} {}\n", app.outbox.outlet(name).traffic().failures);
    }
    text +=
        &format!("# HELP {took} From when an intent might go out until it was delivered.\n# TYPE {took} histogram\n");
    for name in rows.iter().map(|row| row.name) {
        let Traffic { took: Took { classes, sum, .. }, .. } = app.outbox.outlet(name).traffic();
        let mut count = 0;
        let bounds = TOOK_AT_MOST.map(|most| (most as f64 / 1_000.0).to_string());
        for (class, bound) in classes.into_iter().zip(bounds.into_iter().chain(["+Inf".into()])) {
            count += class;
            text += &format!("{took}_bucket{{channel=\"{name}\",le=\"{bound}\"}} {count}\n");
        }
        let seconds = sum as f64 / 1_000.0;
        text += &format!("{took}_sum{{channel=\"{name}\"}} {seconds}\n{took}_count{{channel=\"{name}\"}} {count}\n");
    }
    text
}
