//! How the process stands, in numbers for Prometheus.

use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use dataflows::total::Total;

use super::App;
use super::answers::{size, totals};
use super::campaigns::by_status;
use super::query::Query;
use crate::desk::Records;
use crate::hub::ClockMode;
use crate::metrics::Exposition;

/// An engine that is further behind than this is not waited for: then the numbers that are its to say are left out.
const PATIENCE: Duration = Duration::from_secs(2);

/// Numbers for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "process",
    responses((status = 200, description = "Numbers", body = String)))]
pub(super) async fn metrics(State(app): State<App>) -> Response {
    let mut page = Exposition::default();
    of_the_process(&app, &mut page);
    let query = Query::default();
    if let Ok(Ok((as_of, _, totals))) = tokio::time::timeout(PATIENCE, totals(&app, &query)).await {
        for (name, help, value) in [
            ("thalweg_log_position", "The last log position that the views include.", as_of.position as i64),
            ("thalweg_clock_milliseconds", "The clock that the views are true at.", as_of.clock),
            ("thalweg_profiles", "Profiles that exist.", size(&totals, &Total::Profiles)),
            ("thalweg_sessions", "Sessions.", size(&totals, &Total::Sessions)),
            ("thalweg_session_events", "Events in sessions.", size(&totals, &Total::SessionEvents)),
        ] {
            page.family(name, "gauge", help).value(&[], value);
        }
        page.family("thalweg_intents", "gauge", "Intents, by campaign and what became of them.");
        for campaign in &app.hub.book().plan.campaigns {
            for (status, count) in by_status(&app, &campaign.name, &totals) {
                page.value(&[("campaign", &campaign.name), ("status", &status)], count);
            }
        }
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.text()).into_response()
}

/// What is known without asking the engine.
fn of_the_process(app: &App, page: &mut Exposition) {
    let hub = &app.hub;
    page.family("thalweg_records_total", "counter", "Calls of the log, by what was decided on them.");
    for (verdict, count) in hub.verdicts() {
        page.value(&[("verdict", verdict)], count);
    }
    let letters = hub.reasons();
    page.family("thalweg_dead_letters", "gauge", "Dead letters in the log, by reason.");
    for (reason, count) in &letters {
        page.value(&[("reason", reason)], count);
    }
    let progress = hub.progress();
    page.family("thalweg_queue_depth", "gauge", "Work that waits for the writer.").value(&[], progress.queued);
    page.family("thalweg_steps_open", "gauge", "Steps that the engine has not closed.").value(&[], progress.steps_open);
    if app.clock == ClockMode::Wall {
        let lag = ((app.now)() - progress.closed.clock).max(0) as f64 / 1e3;
        let help = "How far the clock of the last closed step is behind the wall: what is answered may be so old.";
        page.family("thalweg_clock_lag_seconds", "gauge", help).value(&[], lag);
    }
    let help = "From handing a step to the engine until all of it is true.";
    page.family("thalweg_step_seconds", "histogram", help).times(&[], hub.step_times());
    let help = "From the receipt of a body of calls until every answer includes them.";
    page.family("thalweg_receipt_to_answer_seconds", "histogram", help).times(&[], hub.receipt_times());
    let subscribers = app.outbox.subscribers();
    page.family("thalweg_subscribers", "gauge", "Subscriptions that are followed.").value(&[], subscribers);
    super::channels::metrics(app, page);
    if let Some(Records::Logs(log, ..)) = &app.log {
        let (bytes, segments) = log.size();
        page.family("thalweg_log_bytes", "gauge", "What the log takes on the disk.").value(&[], bytes);
        page.family("thalweg_log_segments", "gauge", "Files of the log.").value(&[], segments);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::to_bytes;

    use super::*;
    use crate::book::Book;
    use crate::hub::{AsOf, Hub};
    use crate::outbox::Outbox;
    use crate::writer::Found;

    #[tokio::test]
    async fn an_engine_that_does_not_answer_is_not_waited_for() {
        let book = Arc::new(Book::open("version: 1", None).expect("it is right"));
        let hub = Hub::still(book, AsOf::default(), |_| {
            std::thread::sleep(10 * PATIENCE);
            Vec::new()
        });
        let app = App {
            outbox: Outbox::new(hub.clone(), None, Found::default()).0,
            hub,
            log: None,
            audit: None,
            desk: None,
            clock: ClockMode::Wall,
            now: || 5_000,
            secret: [0; 16],
            defining: Arc::default(),
            trying: Arc::default(),
            stopping: tokio::sync::watch::channel(false).1,
        };
        let answer = tokio::time::timeout(2 * PATIENCE, metrics(State(app))).await.expect("an answer comes");
        let body = to_bytes(answer.into_body(), 1 << 20).await.expect("it is whole");
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains("\nthalweg_clock_lag_seconds 5\n"), "{text}");
        assert!(!text.contains("thalweg_profiles"), "{text}");
    }
}
