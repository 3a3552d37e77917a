//! Subscriptions to the real binary: a snapshot and the changes that follow it are always what a snapshot of now says.

mod asked;
mod histories;
mod process;

use std::collections::BTreeMap;
use std::time::Duration;

use asked::{lines, send};
use histories::Random;
use process::Home;
use process::sse::Subscription;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);
const VIEWS: [&str; 4] = ["segments", "journeys", "sessions", "attribution"];
const START: i64 = 1_767_225_600_000;

/// Rows as they stand, by their text; and the last id.
#[derive(Default)]
struct Held {
    rows: BTreeMap<String, i64>,
    last: String,
    changes: usize,
}

impl Held {
    /// Takes all that has come.
    fn take(&mut self, subscription: &Subscription) {
        while let Some(message) = subscription.next(Duration::from_millis(200)) {
            assert!(["snapshot", "change"].contains(&message.event.as_str()), "{message:?}");
            let mut went = true;
            for (diff, row) in message.changes() {
                assert!(went || diff == 1, "what goes comes first: {message:?}");
                went = diff == -1;
                let sum = self.rows.entry(row.to_string()).or_default();
                *sum += diff;
                assert!((0..=1).contains(sum), "{row} stands {sum} times");
                self.changes += usize::from(message.event == "change");
            }
            self.last = message.id.clone();
        }
        self.rows.retain(|_, sum| *sum != 0);
    }
}

#[test]
fn changes_add_up_to_what_stands() {
    let mut random = Random::new(21);
    let home = Home::new(&histories::definitions(&mut random));
    let server = home.start(&["--clock", "events", "--workers", "2"]);
    let lines = lines(&mut random, 1);
    let query = |view: &str| format!("view={view}");
    let early: Vec<_> = VIEWS.iter().map(|view| server.subscribe(&query(view))).collect();
    let mut held: Vec<Held> = VIEWS.iter().map(|_| Held::default()).collect();
    let (first, rest) = lines.split_at(lines.len() / 2);
    for line in first {
        send(&server, line);
    }
    for (held, subscription) in held.iter_mut().zip(&early) {
        held.take(subscription);
    }
    // Those who go miss what comes meanwhile, and get it when they come again.
    drop(early);
    let (meanwhile, rest) = rest.split_at(rest.len() / 2);
    for line in meanwhile {
        send(&server, line);
    }
    let resume = |(view, held): (&&str, &Held)| {
        Subscription::resume(server.address, &query(view), &held.last).expect("it can be followed again")
    };
    let again: Vec<_> = VIEWS.iter().zip(&held).map(resume).collect();
    for line in rest {
        send(&server, line);
    }
    for ((view, mut held), subscription) in VIEWS.iter().zip(held).zip(&again) {
        let before = std::mem::take(&mut held.changes);
        if *view == "attribution" {
            // Sums are told anew.
            held.rows.clear();
        }
        held.take(subscription);
        let mut now = Held::default();
        now.take(&server.subscribe(&query(view)));
        assert_eq!(held.rows, now.rows, "{view}");
        assert!(before > 0 && held.changes > 0, "{view} has not changed: {before}, {}", held.changes);
    }
}

#[test]
fn one_person_is_followed_by_any_id() {
    let home = Home::new(
        "version: 1
segments: { buyers: { performed: buy }, known: { visitor: known } }
",
    );
    let server = home.start(&["--clock", "events"]);
    let subscription = server.subscribe("view=segments&profile=phone&name=buyers");
    assert_eq!(subscription.snapshot(), Vec::<Value>::new());
    let track = |id: &str, user: Value, anonymous: Value, at: i64| {
        let body = json!({"messageId": id, "userId": user, "anonymousId": anonymous, "event": "buy",
            "timestamp": START + at});
        server.write("/v1/track", &body);
    };
    track("m1", Value::Null, json!("other"), 0);
    track("m2", Value::Null, json!("phone"), 1_000);
    let (row, _) = subscription.wait_for(PATIENCE, |_| true).expect("the person enters");
    assert_eq!(row, json!({"segment": "buyers", "profile": "phone", "since": START + 1_000}));
    track("m3", json!("ada"), json!("phone"), 2_000);
    let change = subscription.next(PATIENCE).expect("the person has another name");
    let names: Vec<(i64, &Value)> = change.changes().into_iter().map(|(diff, row)| (diff, &row["profile"])).collect();
    assert_eq!(names, [(-1, &json!("phone")), (1, &json!("ada"))]);
    assert!(subscription.next(Duration::from_millis(300)).is_none(), "others are none of its business");
}

#[test]
fn what_cannot_be_followed_is_refused() {
    let home = Home::new("version: 1\nsegments: { new: { visitor: first_time } }\n");
    let server = home.start(&[]);
    for (query, status) in [
        ("", 400),
        ("view=people", 400),
        ("view=segments&name=none", 404),
        ("view=sessions&name=new", 400),
        ("view=attribution&profile=ada", 400),
        ("view=segments&view=segments", 400),
    ] {
        let answer = server.get(&format!("/v1/subscribe?{query}"));
        assert_eq!((answer.status, answer.json()["status"].as_u64()), (status, Some(status.into())), "{query}");
    }
    let answer = server.ask("GET", "/v1/subscribe?view=segments", &[("last-event-id", "x")], &[]);
    assert_eq!(answer.status, 400);
}
