//! Subscriptions by server-sent events: a snapshot, then what changes with each time that closes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use dataflows::number::print_billionths;
use dataflows::protocol::{Answer, Question, Watched};
use dataflows::total::Total;
use ecow::EcoString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;

use super::described::NeedsLog;
use super::query::{self, Asked};
use super::{App, AsOfRow};
use crate::follow::Reader;
use crate::hub::{Answered, AsOf};
use crate::outbox::{Entry, message};
use crate::problem::Problem;

/// Messages that wait for a reader before the changes do.
const MESSAGES_MAX: usize = 64;
/// Rows in one message of a snapshot.
const SNAPSHOT_ROWS: usize = 1_000;

#[derive(Serialize, ToSchema)]
struct Message {
    as_of: AsOfRow,
    view: &'static str,
    changes: Vec<Row>,
    complete: bool,
}

#[derive(Serialize, ToSchema)]
struct Row {
    diff: i8,
    row: Box<RawValue>,
}

/// Whose rows, of which campaign, segment or journey.
#[derive(Clone, Debug)]
struct Filter {
    profile: Option<String>,
    name: Option<String>,
}

/// The views that can be followed besides intents.
const WATCHED: [(&str, Watched); 4] = [
    ("segments", Watched::Segments),
    ("journeys", Watched::Journeys),
    ("sessions", Watched::Sessions),
    ("attribution", Watched::Attribution),
];

/// A view, as server-sent events: a snapshot, then what changes with each time that closes.
///
/// Events are `snapshot` (several, the last with `complete`), `change`, and `dropped` for a reader that was too slow.
/// Each but the last has an id `<position>.<n>` and this data. A resumption gets the changes since, or a snapshot that
/// replaces all. Rows: an intent; `{segment, profile, since}`; `{journey, profile, state, since, deadlines}`; a
/// session; `{model, channel, campaign, conversions, value}`.
#[utoipa::path(get, path = "/v1/subscribe", tag = "subscribe",
    params(
        Asked<query::Follow>,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was read."),
    ),
    responses((status = 200, description = "Events", body = Message, content_type = "text/event-stream"), NeedsLog))]
pub(super) async fn subscribe(
    State(app): State<App>,
    Asked { query, .. }: Asked<query::Follow>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    app.log()?;
    let filter =
        Filter { profile: query.own.get("profile").map(|id| app.id(id)), name: query.own.get("name").cloned() };
    let since = headers.get("last-event-id").map(|last| {
        let parts = last.to_str().ok().and_then(|last| last.split_once('.'));
        let parts = parts.and_then(|(position, n)| position.parse::<u64>().ok().zip(n.parse::<u64>().ok()));
        parts.ok_or_else(|| Problem::bad_request("`Last-Event-ID` is not one that an event gave"))
    });
    let since = since.transpose()?.map(|(_, number)| number);
    let wanted = query.own.get("view").map(String::as_str);
    let watched = WATCHED.into_iter().find(|(name, _)| Some(*name) == wanted);
    if watched.is_none() && wanted != Some("intents") {
        let views = "view=intents, segments, journeys, sessions or attribution";
        return Err(Problem::bad_request(match wanted {
            Some(view) => format!("`view={view}` is none that can be followed: {views}"),
            None => format!("`view` is missing: {views}"),
        }));
    }
    filter.check(&app, watched.map(|(_, view)| view))?;
    let deadline = query.deadline();
    let (send, messages) = mpsc::channel(MESSAGES_MAX);
    let mut stopping = app.stopping.clone();
    match watched {
        None => {
            while !query.is_included(app.outbox.as_of().position, deadline).await? {}
            tokio::spawn(async move {
                tokio::select! {
                    () = follow(app, filter, send) => {}
                    _ = stopping.wait_for(|stopping| *stopping) => {}
                }
            });
        }
        Some((name, view)) => {
            while !query.is_included(app.hub.progress().closed.position, deadline).await? {}
            // Sums are told from the rows before them, which only a snapshot gives.
            let since = since.filter(|_| view != Watched::Attribution);
            let (reader, answered) = Reader::start(app.hub.clone(), view, since).await?;
            tokio::spawn(async move {
                tokio::select! {
                    () = watch(app, name, reader, answered, filter, send) => {}
                    _ = stopping.wait_for(|stopping| *stopping) => {}
                }
            });
        }
    }
    Ok(Sse::new(ReceiverStream::new(messages)).keep_alive(KeepAlive::default()))
}

impl Filter {
    /// Whether a view has what is sought.
    fn check(&self, app: &App, view: Option<Watched>) -> Result<(), Problem> {
        let known = match (view, &self.name) {
            (_, None) => true,
            (None, Some(name)) => app.hub.book().plan.campaigns.iter().any(|campaign| campaign.name == name.as_str()),
            (Some(Watched::Segments), Some(name)) => app.hub.book().plan.segment(name).is_some(),
            (Some(Watched::Journeys), Some(name)) => app.hub.book().plan.journey(name).is_some(),
            (Some(_), Some(_)) => return Err(Problem::bad_request("`name`: rows of this view have none")),
        };
        if !known {
            let name = self.name.as_deref().unwrap_or_default();
            return Err(Problem::not_found(format!("nothing of this view is named {name:?}")));
        }
        match (view, &self.profile) {
            (Some(Watched::Attribution), Some(_)) => {
                Err(Problem::bad_request("`profile`: credit is that of all profiles"))
            }
            _ => Ok(()),
        }
    }
}

/// Who an id is, as it was told last: rows of the past are under that name.
struct Sought {
    id: Option<String>,
    was: Option<EcoString>,
    is: Option<EcoString>,
}

impl Sought {
    fn new(id: Option<String>) -> Sought {
        Sought { id, was: None, is: None }
    }

    /// Any id of a profile answers for it; whom it means may change with every step.
    async fn look(&mut self, app: &App) {
        let Some(id) = &self.id else { return };
        let Ok(answered) = app.hub.ask(Question::Profile(id.as_str().into())).await else { return };
        let public = answered.parts.into_iter().find_map(|part| match part {
            Answer::Profile(profile) => Some(profile.id),
            _ => None,
        });
        self.was = std::mem::replace(&mut self.is, public);
    }

    fn admits(&self, profile: Option<&str>) -> bool {
        let Some(id) = &self.id else { return true };
        let same = |known: &Option<EcoString>| known.as_deref() == profile;
        profile == Some(id) || profile.is_some() && (same(&self.was) || same(&self.is))
    }
}

/// Sends the rows of a view and then their changes, until the reader goes or cannot keep up.
async fn watch(
    app: App,
    view: &'static str,
    mut reader: Reader,
    answered: Option<Answered>,
    filter: Filter,
    send: mpsc::Sender<Result<Event, Infallible>>,
) {
    let (mut sought, mut credit) = (Sought::new(filter.profile), Credit::default());
    sought.look(&app).await;
    if let Some(Answered { as_of, number, parts, .. }) = answered {
        let mut rows: Vec<String> = Vec::new();
        for part in parts {
            match part {
                Answer::Watched(part) => rows.extend(part),
                Answer::Totals(totals) => credit.add(&totals),
                _ => {}
            }
        }
        rows.extend(credit.rows());
        rows.sort_unstable();
        let rows = rows.into_iter().map(|row| (1, row));
        let rows = admitted(&sought, filter.name.as_deref(), rows).collect();
        if !snapshot(&send, view, as_of, number, rows).await {
            return;
        }
    }
    while let Some(step) = reader.next().await {
        sought.look(&app).await;
        let changed = if step.credit.is_empty() { Vec::new() } else { credit.change(&step.credit) };
        let rows = step.rows.iter().cloned().chain(changed);
        let rows: Vec<Row> = admitted(&sought, filter.name.as_deref(), rows).collect();
        if rows.is_empty() {
            continue;
        }
        let message = Message { as_of: step.as_of.into(), view, changes: rows, complete: true };
        if send.send(Ok(event("change", step.as_of, step.number, &message))).await.is_err() {
            return;
        }
    }
    dropped(&send).await;
}

/// The rows that are sought.
fn admitted<'s>(
    sought: &'s Sought,
    name: Option<&'s str>,
    rows: impl Iterator<Item = (i8, String)> + 's,
) -> impl Iterator<Item = Row> + 's {
    #[derive(Deserialize)]
    struct Known<'r> {
        #[serde(borrow)]
        profile: Option<Cow<'r, str>>,
        #[serde(borrow, alias = "segment", alias = "journey")]
        name: Option<Cow<'r, str>>,
    }
    rows.filter_map(move |(diff, row)| {
        let known: Known<'_> = serde_json::from_str(&row).ok()?;
        let of_name = name.is_none_or(|name| known.name.as_deref() == Some(name));
        let is_sought = of_name && sought.admits(known.profile.as_deref());
        is_sought.then(|| Row { diff, row: RawValue::from_string(row).expect("rows are JSON") })
    })
}

/// Credit as it was told: of a model, a channel and a campaign, how many conversions and what value.
#[derive(Default)]
struct Credit(BTreeMap<CreditOf, (i128, i128)>);

type CreditOf = (EcoString, EcoString, EcoString);

impl Credit {
    fn add(&mut self, totals: &[(Total, i128)]) {
        for (total, change) in totals {
            let Some(of) = credit_of(total) else { continue };
            let sum = self.0.entry(of.clone()).or_default();
            match total {
                Total::CreditValue(..) => sum.1 += change,
                _ => sum.0 += change,
            }
            if *sum == (0, 0) {
                self.0.remove(&of);
            }
        }
    }

    fn row(&self, of: &CreditOf) -> Option<String> {
        #[derive(Serialize)]
        struct CreditRow<'a> {
            model: &'a str,
            channel: &'a str,
            campaign: &'a str,
            conversions: String,
            value: String,
        }
        let (conversions, value) = self.0.get(of)?;
        let (model, channel, campaign) = of;
        let (conversions, value) = (print_billionths(*conversions), print_billionths(*value));
        let row = CreditRow { model, channel, campaign, conversions, value };
        Some(serde_json::to_string(&row).expect("rows have string keys"))
    }

    fn rows(&self) -> impl Iterator<Item = String> + '_ {
        self.0.keys().filter_map(|of| self.row(of))
    }

    /// Rows that go and come with changes.
    fn change(&mut self, changes: &[(Total, i128)]) -> Vec<(i8, String)> {
        let changed: BTreeSet<CreditOf> = changes.iter().filter_map(|(total, _)| credit_of(total)).collect();
        let rows = |credit: &Credit| changed.iter().filter_map(|of| credit.row(of)).collect::<BTreeSet<_>>();
        let before = rows(self);
        self.add(changes);
        let after = rows(self);
        let went = before.difference(&after).map(|row| (-1, row.clone()));
        went.chain(after.difference(&before).map(|row| (1, row.clone()))).collect()
    }
}

fn credit_of(total: &Total) -> Option<CreditOf> {
    match total {
        Total::CreditConversions(model, channel, campaign) | Total::CreditValue(model, channel, campaign) => {
            Some((model.clone(), channel.clone(), campaign.clone()))
        }
        _ => None,
    }
}

/// Sends all rows, some in each message; false if the reader is gone.
async fn snapshot(
    send: &mpsc::Sender<Result<Event, Infallible>>,
    view: &'static str,
    as_of: AsOf,
    number: u64,
    mut rows: Vec<Row>,
) -> bool {
    loop {
        let rest = if rows.len() > SNAPSHOT_ROWS { rows.split_off(SNAPSHOT_ROWS) } else { Vec::new() };
        let complete = rest.is_empty();
        let message = Message { as_of: as_of.into(), view, changes: rows, complete };
        if send.send(Ok(event("snapshot", as_of, number, &message))).await.is_err() {
            return false;
        }
        if complete {
            return true;
        }
        rows = rest;
    }
}

/// The changes ran away from this reader: it is told why, and may come again for a snapshot.
async fn dropped(send: &mpsc::Sender<Result<Event, Infallible>>) {
    tracing::info!("a subscription was dropped: its reader was too slow");
    let _ = send.send(Ok(Event::default().event("dropped").data(r#"{"reason":"the reader was too slow"}"#))).await;
}

/// Sends the intents and then their changes, until the reader goes or cannot keep up.
async fn follow(app: App, filter: Filter, send: mpsc::Sender<Result<Event, Infallible>>) {
    let view = "intents";
    let (as_of, number, entries, mut changes) = app.outbox.subscribe().await;
    let mut rows = Vec::new();
    for entry in entries {
        if admits(&app, &filter, &entry).await {
            rows.push(Row { diff: 1, row: message(&app.outbox, &entry) });
        }
    }
    if !snapshot(&send, view, as_of, number, rows).await {
        return;
    }
    while let Ok(change) = changes.recv().await {
        let mut rows = Vec::new();
        for (diff, entry) in &change.entries {
            if admits(&app, &filter, entry).await {
                rows.push(Row { diff: *diff, row: message(&app.outbox, entry) });
            }
        }
        if rows.is_empty() {
            continue;
        }
        rows.sort_by_key(|row| row.diff);
        let message = Message { as_of: change.as_of.into(), view, changes: rows, complete: true };
        if send.send(Ok(event("change", change.as_of, change.number, &message))).await.is_err() {
            return;
        }
    }
    dropped(&send).await;
}

fn event(kind: &str, as_of: AsOf, number: u64, message: &Message) -> Event {
    let data = serde_json::to_string(message).expect("rows have string keys");
    Event::default().event(kind).id(format!("{}.{number}", as_of.position)).data(data)
}

async fn admits(app: &App, filter: &Filter, entry: &Entry) -> bool {
    if filter.name.as_ref().is_some_and(|campaign| entry.row.campaign != campaign.as_str()) {
        return false;
    }
    let Some(id) = &filter.profile else { return true };
    if entry.row.profile == id.as_str() || entry.row.root.id == id.as_str() {
        return true;
    }
    // Any id of a profile answers for it.
    let Ok(answered) = app.hub.ask(Question::Profile(id.as_str().into())).await else { return false };
    answered.parts.iter().any(|part| matches!(part, Answer::Profile(profile) if profile.id == entry.row.profile))
}
