//! Channels: how deliveries go, what is parked, and how to have it sent again.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use dataflows::definitions::Deliver;
use dataflows::protocol::Question;
use dataflows::time::Millis;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::answers::{At, List, ask};
use super::described::{ByName, Refused, Unknown, UnknownOrNeedsLog};
use super::query::{self, Asked, cursor, read_body};
use super::{App, json};
use crate::book::Book;
use crate::hub::{Answered, NotTaken};
use crate::metrics::Exposition;
use crate::outbox::{Counts, Parked, message};
use crate::problem::Problem;
use crate::triggers::{TOOK_AT_MOST, Took, Traffic};

#[derive(Serialize, ToSchema)]
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
#[derive(Serialize, ToSchema)]
struct TookRow {
    p50: i64,
    p99: i64,
    max: i64,
}

/// A row for each of these channels.
fn rows<'a>(app: &App, book: &Book, names: impl IntoIterator<Item = &'a String>) -> Vec<ChannelRow<'a>> {
    let counts = app.outbox.counts();
    let row = |name: &'a String| row(app, book, name, counts.get(name.as_str()).copied().unwrap_or_default());
    names.into_iter().map(row).collect()
}

fn row<'a>(app: &App, book: &Book, name: &'a str, counts: Counts) -> ChannelRow<'a> {
    let channel = &book.plan.definitions.channels[name];
    let Traffic { in_flight, last_failure, disabled, took, .. } =
        app.outbox.outlet(name).map(|outlet| outlet.traffic()).unwrap_or_default();
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

fn known<'b>(book: &'b Book, name: &str) -> Result<&'b String, Problem> {
    let known = book.plan.definitions.channels.get_key_value(name);
    known.map(|(name, _)| name).ok_or_else(|| Problem::not_found(format!("no channel is named {name:?}")))
}

/// The channels, and how deliveries go.
#[utoipa::path(get, path = "/v1/channels", tag = "channels", params(Asked<query::Part>),
    responses((status = 200, description = "How it goes", body = List<ChannelRow>), Refused))]
pub(super) async fn channels(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    let Answered { as_of, .. } = ask(&app, &query, Question::Totals).await?;
    let book = app.hub.book();
    let (names, next) = query.names(book.plan.definitions.channels.keys())?;
    Ok(json(&List { as_of: as_of.into(), items: rows(&app, &book, names), next }))
}

/// A channel, and how its deliveries go.
#[utoipa::path(get, path = "/v1/channels/{name}", tag = "channels", params(ByName, Asked<query::Nothing>),
    responses((status = 200, description = "How it goes", body = At<ChannelRow>), Unknown))]
pub(super) async fn channel(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::Nothing>,
) -> Result<Response, Problem> {
    let book = app.hub.book();
    let name = known(&book, &name)?;
    let Answered { as_of, .. } = ask(&app, &query, Question::Totals).await?;
    let row = rows(&app, &book, [name]).remove(0);
    Ok(json(&At { as_of: as_of.into(), row }))
}

#[derive(Serialize, ToSchema)]
struct ParkedRow {
    why: String,
    /// As its subscribers see it.
    message: Box<RawValue>,
}

/// What is parked of a channel, the latest intent first.
#[utoipa::path(get, path = "/v1/channels/{name}/parked", tag = "channels", params(ByName, Asked<query::Part>),
    responses((status = 200, description = "What is parked", body = List<ParkedRow>), Unknown))]
pub(super) async fn parked(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked { query, .. }: Asked<query::Part>,
) -> Result<Response, Problem> {
    known(&app.hub.book(), &name)?;
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
    let row = |Parked { entry, why }| ParkedRow { why, message: message(&app.outbox, &entry) };
    Ok(json(&List { as_of: as_of.into(), items: found.into_iter().map(row).collect(), next }))
}

/// What is to be sent again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Wanted {
    channel: String,
    /// Of one intent alone.
    id: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Resent {
    resent: usize,
    position: String,
}

/// Has what is parked sent again.
#[utoipa::path(post, path = "/v1/channels:resend", tag = "channels", params(Asked<query::Nothing>),
    request_body = inline(Wanted), responses((status = 200, description = "Durable", body = Resent), UnknownOrNeedsLog))]
pub(super) async fn resend(State(app): State<App>, _: Asked<query::Nothing>, body: Bytes) -> Result<Response, Problem> {
    app.log()?;
    let Wanted { channel, id } = read_body(&body, r#"{"channel": …}, with "id" for one intent alone"#)?;
    known(&app.hub.book(), &channel)?;
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
pub(super) fn metrics(app: &App, page: &mut Exposition) {
    let book = app.hub.book();
    let rows = rows(app, &book, book.plan.definitions.channels.keys());
    let mut gauge = |name, help, value: &dyn Fn(&ChannelRow<'_>) -> usize| {
        page.family(name, "gauge", help);
        for row in &rows {
            page.value(&[("channel", row.name)], value(row));
        }
    };
    gauge("thalweg_channel_pending", "Messages still to be delivered.", &|row| row.pending);
    gauge("thalweg_channel_in_flight", "Attempts under way.", &|row| row.in_flight);
    gauge("thalweg_channel_parked", "Messages that are parked.", &|row| row.parked);
    gauge("thalweg_channel_disabled", "1 where nothing is attempted.", &|row| row.disabled.is_some().into());
    let traffic = |row: &ChannelRow<'_>| app.outbox.outlet(row.name).map(|outlet| outlet.traffic()).unwrap_or_default();
    page.family("thalweg_delivery_failures_total", "counter", "Attempts that failed.");
    for row in &rows {
        page.value(&[("channel", row.name)], traffic(row).failures);
    }
    let help = "From when an intent might go out until it was delivered.";
    page.family("thalweg_delivery_seconds", "histogram", help);
    for row in &rows {
        let Took { classes, sum, .. } = traffic(row).took;
        page.buckets(&[("channel", row.name)], &TOOK_AT_MOST.map(seconds), &classes, seconds(sum));
    }
}

fn seconds(millis: Millis) -> f64 {
    millis as f64 / 1e3
}
