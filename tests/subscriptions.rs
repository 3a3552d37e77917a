//! Subscriptions to the real binary: a snapshot and the changes that follow it are always what a snapshot of now says.

mod asked;
mod histories;
mod process;

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use asked::{lines, send};
use histories::Random;
use process::Home;
use process::http::{self, Chunked};
use process::sse::{Message, Subscription};
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;

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
            self.note(message);
        }
        self.rows.retain(|_, sum| *sum != 0);
    }

    /// Takes one message; gives it back.
    fn note(&mut self, message: Message) -> Message {
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
        message
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

/// A subscription that nobody reads, and for which the system keeps little.
fn unread(to: SocketAddr, query: &str) -> TcpStream {
    let connecting = async {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4_096).expect("it can be small");
        socket.connect(to).await.expect("the server listens").into_std().expect("a socket")
    };
    let mut stream = Runtime::new().expect("a runtime").block_on(connecting);
    stream.set_nonblocking(false).expect("it may wait");
    let request = format!("GET /v1/subscribe?{query} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is sent");
    stream
}

/// Who does not read is dropped in the end, and told why; nobody else waits for that.
#[test]
fn a_slow_reader_is_dropped_with_a_reason_and_delays_nobody() {
    /// Steps of one change each, after more bytes than sockets hold: more than are kept for a slow reader.
    const STEPS: usize = 1_200;
    let home = Home::new(
        "version: 1
touchpoints: [ { event: click, channel: properties.channel, campaign: properties.campaign } ]
conversions: [ { name: purchase, event: purchase, value: properties.value } ]
attribution: { models: [linear] }
segments: { buyers: { performed: purchase } }
journeys: { shop: { start: out, states: { out: { transitions: [ { event: purchase, to: in } ] }, in: {} } } }
",
    );
    let server = home.start(&["--clock", "events"]);
    let query = |view: &str| format!("view={view}");
    let fast: Vec<_> = VIEWS.iter().map(|view| server.subscribe(&query(view))).collect();
    let mut held: Vec<Held> = VIEWS.iter().map(|_| Held::default()).collect();
    let slow: Vec<_> = VIEWS.iter().map(|view| unread(server.address, &query(view))).collect();
    // Each person is new in every view, with rows as long as ids may be.
    let mut number = 0;
    let mut send = |people: usize| {
        let mut calls = Vec::new();
        for _ in 0..people {
            number += 1;
            let (user, at) = (format!("{number:0>250}"), START + number);
            let call = |event: &str, properties: Value| {
                json!({"type": "track", "event": event, "userId": user, "messageId": format!("{event}{number}"),
                    "timestamp": at, "properties": properties})
            };
            calls.push(call("click", json!({"channel": "mail", "campaign": user})));
            calls.push(call("purchase", json!({"value": 1})));
        }
        let began = Instant::now();
        server.write("/v1/batch", &json!({"batch": calls}));
        (format!("{number:0>250}"), began)
    };
    for _ in 0..100 {
        send(150);
    }
    for step in 1..=STEPS {
        let (user, began) = send(1);
        if step % 200 == 0 {
            // Readers who read have had all by then.
            for (held, subscription) in held.iter_mut().zip(&fast) {
                let has = |message: &Message| message.data.to_string().contains(&user);
                while !has(&held.note(subscription.next(PATIENCE).expect("it comes"))) {}
            }
            assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
        }
    }
    for ((view, mut held), subscription) in VIEWS.iter().zip(held).zip(&fast) {
        held.take(subscription);
        let mut now = Held::default();
        now.take(&server.subscribe(&query(view)));
        assert_eq!(held.rows.len(), now.rows.len(), "{view}");
        assert!(held.rows == now.rows, "{view}");
    }
    for (view, stream) in VIEWS.iter().zip(slow) {
        let mut reader = BufReader::new(stream);
        http::head(&mut reader).expect("an answer");
        let (mut reader, mut text) = (Chunked::new(reader), String::new());
        reader.read_to_string(&mut text).expect("it ends");
        let last = text.trim_end().rsplit("\n\n").next().expect("there is a last one");
        assert_eq!(last, "event: dropped\ndata: {\"reason\":\"the reader was too slow\"}", "{view}");
    }
    assert_eq!(server.said().matches("its reader was too slow").count(), VIEWS.len());
}

/// Whoever begins to follow while something is being sent gets each intent once.
#[test]
fn who_comes_while_something_is_sent_sees_it_once() {
    let home = Home::new(
        "version: 1
campaigns: { hello: { when: { event: hello }, channel: popup, template: Hello } }
channels: { popup: { deliver: sse } }
",
    );
    let server = home.start(&["--clock", "events"]);
    for number in 1..=20 {
        let body = json!({"messageId": format!("m{number}"), "userId": "ada", "event": "hello",
            "timestamp": START + number});
        server.write("/v1/track", &body);
        let subscription = server.subscribe("view=intents");
        let mut held = Held::default();
        let is_sent = |message: &Message| {
            let sent =
                |(diff, row): &(i64, &Value)| *diff == 1 && row["at"] == START + number && row["status"] == "sent";
            message.changes().iter().any(sent)
        };
        while !is_sent(&held.note(subscription.next(PATIENCE).expect("it is told"))) {}
        held.rows.retain(|_, sum| *sum != 0);
        assert_eq!(held.rows.len() as i64, number, "{:?}", held.rows);
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
