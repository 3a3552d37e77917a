//! The real binary with JetStream as its log, on a real nats-server.

mod asked;
mod broker;
mod histories;
mod process;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use asked::{answers, assert_same, corrected, law, lines, send, uncorrected};
use broker::Broker;
use histories::Random;
use process::{Home, Server, free_port, http, until};
use serde_json::{Value, json};
use server::record::Correction;
use server::stream::{HeaderMap, Message, Next, Options, Stream};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(20);
const START: i64 = 1_767_225_600_000;
const POPUPS: &str = "version: 1
campaigns:
  welcome: { when: { event: page_view }, channel: queue, expires: 1000d, template: 'Hello!' }
channels:
  queue: { deliver: nats }
";

/// A way to the broker that is not the binary's.
struct Outside {
    runtime: Runtime,
    stream: Stream,
    published: u64,
}

impl Outside {
    fn new(broker: &Broker) -> Outside {
        let runtime = Runtime::new().expect("a runtime");
        let stream =
            runtime.block_on(Stream::open(&broker.url(), &Options::default(), None)).expect("the broker is there");
        Outside { runtime, stream, published: 0 }
    }

    /// Publishes an event's body, and waits until the stream has it.
    fn publish(&mut self, body: &str) -> u64 {
        self.published += 1;
        let (subject, id) = ("thalweg.events.outside".to_owned(), format!("outside:{}", self.published));
        let message = Message { subject, id, headers: HeaderMap::new(), body: body.to_owned().into() };
        self.runtime.block_on(self.stream.publish(&message)).expect("it is kept")
    }

    /// All messages of the stream: subject, id, body.
    fn all(&self) -> Vec<(String, String, Vec<u8>)> {
        self.runtime.block_on(async {
            let last = self.stream.last_sequence().await.expect("the broker is there");
            let (mut reader, mut all) = (self.stream.reader(self.stream.beginning()), Vec::new());
            while reader.position() < last {
                let Next::Entry(entry) = reader.next().await.expect("it can be read") else { panic!("a hole") };
                let id = entry.id().unwrap_or_default().to_owned();
                all.push((entry.subject.to_string(), id, entry.body.to_vec()));
            }
            all
        })
    }

    /// The calls and clocks in the stream, as lines of a file.
    fn recorded(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (subject, _, body) in self.all() {
            let body: Value = serde_json::from_slice(&body).expect("only good ones are sent");
            match subject.as_str() {
                "thalweg.events.http" => {
                    lines.extend(body["batch"].as_array().expect("calls").iter().map(Value::to_string));
                }
                "thalweg.events.outside" => lines.push(body.to_string()),
                "thalweg.log.corrections" => {
                    let corrections: Vec<Correction> = serde_json::from_value(body).expect("corrections");
                    lines.extend(corrections.into_iter().map(corrected));
                }
                "thalweg.log.clock" => lines.push(json!({"type": "clock", "to": body["to"]}).to_string()),
                _ => {}
            }
        }
        lines
    }
}

/// Answers without the times at which the log took records: a stream stamps them by its own clock.
type Answers = BTreeMap<String, (u16, Value)>;

fn unstamped(mut answers: Answers) -> Answers {
    for (_, answer) in answers.values_mut() {
        for item in answer["items"].as_array_mut().into_iter().flatten() {
            item.as_object_mut().map(|item| item.remove("received_at"));
        }
    }
    answers
}

fn start(home: &Home, broker: &Broker, flags: &[&str]) -> Server {
    home.start(&[&["--nats", &broker.url()], flags].concat())
}

/// The answers of a server with a log of its own that was told these lines.
fn expected(definitions: &str, lines: &[String]) -> Answers {
    let home = Home::new(definitions);
    let server = home.start(&["--clock", "events"]);
    let last = lines.iter().fold(String::new(), |_, line| send(&server, line));
    unstamped(answers(&server, &last))
}

#[test]
fn what_comes_by_http_and_what_comes_by_nats_is_one() {
    let mut random = Random::new(5);
    let definitions = histories::definitions(&mut random);
    let lines = uncorrected(&mut random, 1);
    let (broker, home) = (Broker::start(), Home::new(&definitions));
    let server = start(&home, &broker, &["--clock", "events"]);
    let mut outside = Outside::new(&broker);
    let mut last = String::new();
    for line in &lines {
        if !line.contains(r#""type":"clock""#) && random.below(2) == 0 {
            let call: Value = serde_json::from_str(line).expect("JSON");
            last = (outside.publish(&call.to_string()) << 22).to_string();
        } else {
            last = send(&server, line);
        }
    }
    let expected = expected(&definitions, &lines);
    assert_same(&unstamped(answers(&server, &last)), &expected, "alive");
    server.kill();
    let server = start(&home, &broker, &["--clock", "events", "--workers", "2"]);
    assert_same(&unstamped(answers(&server, &last)), &expected, "after a restart");
    assert_eq!(outside.recorded().len(), lines.len());
}

#[test]
fn processes_share_a_stream() {
    let mut random = Random::new(6);
    let definitions = histories::definitions(&mut random);
    let lines = lines(&mut random, 1);
    let (broker, home) = (Broker::start(), Home::new(&definitions));
    home.write("hosts", format!("127.0.0.1:{}\n127.0.0.1:{}\n", free_port(), free_port()));
    let launch = |process: &str| {
        let data = format!("data{process}");
        let flags = ["--nats", &broker.url(), "--hosts", "hosts", "--process", process, "--data", &data];
        home.launch(&[&flags[..], &["--clock", "events"]].concat())
    };
    let servers = [launch("0"), launch("1")].map(|server| server.ready().expect("its port is free"));
    let mut last = String::new();
    for line in &lines {
        last = send(&servers[random.below(2) as usize], line);
    }
    let expected = expected(&definitions, &lines);
    for (process, server) in servers.iter().enumerate() {
        assert_same(&unstamped(answers(server, &last)), &expected, &format!("process {process}"));
    }
}

#[test]
fn what_a_condition_selects_in_a_stream_is_taken_back() {
    let (broker, home) = (Broker::start(), Home::new("version: 1\nsegments:\n  readers: { performed: page_view }\n"));
    let server = start(&home, &broker, &["--clock", "events"]);
    let mut outside = Outside::new(&broker);
    let page = |number: i64| {
        json!({"type": "page", "userId": format!("u{number}"), "messageId": format!("m{number}"),
            "timestamp": START + number, "properties": {"bot": number % 2 == 0}})
    };
    let track = json!({"type": "track", "event": "x", "userId": "u9", "messageId": "m9", "timestamp": START});
    outside.publish(&json!({"batch": [page(1), {"type": "page"}, page(2)]}).to_string());
    outside.publish(&page(2).to_string());
    let answer = server.write("/v1/batch", &json!({"batch": [track, page(3), page(4)]}));
    let mut after = answer["position"].as_str().expect("a position").to_owned();
    let size =
        |server: &Server, after: &str| server.read(&format!("/v1/segments?after={after}"))["items"][0]["size"].clone();
    assert_eq!(size(&server, &after), 4);
    let wanted = |preview: bool| json!({"where": "event == \"page_view\" && properties.bot", "preview": preview});
    let preview = server.write("/v1/events:retract", &wanted(true));
    let row = |number: i64| {
        let (id, message_id) = (format!("u{number}"), format!("m{number}"));
        json!({"id": id, "messageId": message_id, "timestamp": START + number, "event": "page_view"})
    };
    let expected = (&json!(2), &json!(2), &json!([row(4), row(2)]));
    assert_eq!((&preview["events"], &preview["profiles"], &preview["sample"]), expected, "{preview}");
    let done = server.write("/v1/events:retract", &wanted(false));
    assert_eq!(done["events"], 2, "{done}");
    after = done["position"].as_str().expect("a position").to_owned();
    assert_eq!(size(&server, &after), 2);
    server.kill();
    let server = start(&home, &broker, &["--clock", "events"]);
    assert_eq!(size(&server, &after), 2);
    assert_eq!(server.write("/v1/events:retract", &wanted(true))["events"], 0);
}

/// Sends lines until all are sent or the server is gone; gives how many were acknowledged.
fn send_on(server: &Server, lines: &[String]) -> usize {
    for (sent, line) in lines.iter().enumerate() {
        let call: Value = serde_json::from_str(line).expect("JSON");
        let (path, body) = match call["type"] == "clock" {
            true => ("/v1/clock", json!({"to": call["to"]})),
            false => ("/v1/batch", json!({"batch": [call]})),
        };
        match http::ask(server.address, "POST", path, &[], body.to_string().as_bytes()) {
            Ok(answer) if answer.status == 200 => {}
            _ => return sent,
        }
    }
    lines.len()
}

/// How often something is killed: `THALWEG_KILLS` times, else a few.
fn kills() -> usize {
    std::env::var("THALWEG_KILLS").map_or(6, |kills| kills.parse().expect("a number"))
}

/// Who is killed.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Engine,
    Broker,
}

#[test]
fn the_process_may_be_killed_again_and_again() {
    killed(End::Engine, 9);
}

#[test]
fn the_broker_may_be_killed_again_and_again() {
    killed(End::Broker, 10);
}

#[test]
fn one_broker_of_three_may_be_killed_at_a_time() {
    let mut random = Random::new(11);
    let definitions = histories::definitions(&mut random);
    let lines = uncorrected(&mut random, 3);
    let (mut brokers, home) = (Broker::three(), Home::new(&definitions));
    let flags = ["--nats-replicas", "3", "--clock", "events"];
    // It may come before they have agreed on who leads.
    let server = start(&home, &brokers[0], &flags);
    let (sent_last, before) = lines.split_last().expect("lines");
    for (turn, some) in before.chunks(before.len().div_ceil(3)).enumerate() {
        brokers[turn].kill();
        let mut rest = some;
        // What is refused meanwhile is sent again.
        until(Duration::from_secs(60), "two are enough", || {
            rest = &rest[send_on(&server, rest)..];
            rest.is_empty().then_some(())
        });
        brokers[turn].restart();
    }
    let last = send(&server, sent_last);
    // What was sent again is told again, where it is a conflict.
    let known = |mut answers: Answers| {
        answers.remove("dead-letters").expect("they are asked for");
        unstamped(answers)
    };
    let expected = known(expected(&definitions, &lines));
    assert_same(&known(answers(&server, &last)), &expected, "alive");
    server.kill();
    // Another than the one that it began with will do.
    let server = start(&home, &brokers[1], &flags);
    assert_same(&known(answers(&server, &last)), &expected, "after a restart");
}

/// Kills one end again and again while a history is sent. What was acknowledged is in the stream, and only what was
/// sent; answers are those of a replay of the stream; each message that leaves has left once.
fn killed(end: End, seed: u64) {
    let mut random = Random::new(seed);
    let definitions = histories::definitions(&mut random);
    let all = uncorrected(&mut random, 6);
    let (mut broker, home) = (Broker::start(), Home::new(&definitions));
    let (mut rest, mut acknowledged) = (&all[..], Vec::new());
    let each = all.len() / kills();
    let mut server = start(&home, &broker, &["--clock", "events"]);
    for _ in 0..kills() {
        let (some, later) = rest.split_at(each.min(rest.len()));
        let sent = std::thread::scope(|scope| {
            let sending = scope.spawn(|| send_on(&server, some));
            std::thread::sleep(Duration::from_millis(random.below(100)));
            match end {
                End::Engine => server.signal("KILL"),
                End::Broker => {
                    broker.kill();
                    std::thread::sleep(Duration::from_millis(random.below(300)));
                    broker.restart();
                }
            }
            sending.join().expect("no panic")
        });
        acknowledged.extend(&some[..sent]);
        // What was under way may be in or not, and is not sent again.
        rest = later;
        if end == End::Engine {
            server.kill();
            server = start(&home, &broker, &["--clock", "events"]);
        }
    }
    assert_eq!(send_on(&server, rest), rest.len());
    acknowledged.extend(rest);
    let outside = Outside::new(&broker);
    let recorded = outside.recorded();
    let plain = |line: &str| serde_json::from_str::<Value>(line).expect("JSON").to_string();
    let kept: BTreeSet<String> = recorded.iter().map(|line| plain(line)).collect();
    let sent: BTreeSet<String> = all.iter().map(|line| plain(line)).collect();
    let missing: Vec<_> = acknowledged.iter().filter(|line| !kept.contains(&plain(line))).collect();
    assert!(missing.is_empty(), "acknowledged, and not in the stream: {missing:#?}");
    assert!(kept.is_subset(&sent));
    home.write("recorded.ndjson", recorded.join("\n"));
    let replayed = home.replay("recorded.ndjson", &["--lateness", "30d"]);
    let found = answers(&server, "0");
    for id in ["a", "b", "c", "d", "e"] {
        let answer = replayed.get(&format!("/v1/profiles/{id}"));
        assert_eq!((answer.status, law(answer.json())), found[&format!("profiles/{id}")], "{id}");
    }
    until(PATIENCE, "all messages have left", || (server.read("/v1/channels/mail")["pending"] == 0).then_some(()));
    let left = triggers(&broker);
    let ids: BTreeSet<&String> = left.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), left.len(), "each once: {left:?}");
    let rows = ["a", "b", "c", "d", "e"].map(|id| server.get(&format!("/v1/profiles/{id}/intents")).json());
    let rows = rows.iter().flat_map(|answer| answer["items"].as_array().into_iter().flatten());
    let sent: Vec<&Value> = rows.filter(|row| row["channel"] == "mail" && row["status"] == "sent").collect();
    assert!(!sent.is_empty(), "this history sends something");
    let stays: Vec<_> = sent.iter().filter(|row| !ids.iter().any(|id| row["id"] == **id)).collect();
    assert!(stays.is_empty(), "said to be sent, and not there: {stays:?}");
}

/// The messages of the stream of triggers: their ids and bodies.
fn triggers(broker: &Broker) -> Vec<(String, Value)> {
    Runtime::new().expect("a runtime").block_on(async {
        let client = nats::connect(broker.url()).await.expect("the broker is there");
        let mut stream = nats::jetstream::new(client).get_stream("THALWEG_TRIGGERS").await.expect("it is made");
        let last = stream.info().await.expect("it is told").state.last_sequence;
        let mut all = Vec::new();
        for sequence in 1..=last {
            let message = stream.get_raw_message(sequence).await.expect("it is there");
            assert!(message.subject.starts_with("thalweg.triggers."), "{}", message.subject);
            let id = message.headers.get("Nats-Msg-Id").expect("an id").to_string();
            all.push((id, serde_json::from_slice(&message.payload).expect("JSON")));
        }
        all
    })
}

/// Sends calls until the broker has no room: what it does not keep is not acknowledged, and that is said. When there is
/// room again it goes on, and all that was acknowledged is there.
fn fills_up(mut broker: Broker, make_room: impl FnOnce(&mut Broker)) {
    let home = Home::new("version: 1\nsegments: { seen: { performed: x } }\n");
    let server = start(&home, &broker, &["--clock", "events"]);
    let mut kept = BTreeSet::new();
    let mut sent = 0;
    let mut send = || {
        sent += 1;
        let id = format!("m{sent}");
        let body = json!({"userId": id, "event": "x", "messageId": id, "timestamp": START + sent,
            "properties": {"filler": "x".repeat(20_000)}});
        (server.post("/v1/track", body.to_string()), id)
    };
    let refused = loop {
        let (answer, id) = send();
        if answer.status != 200 {
            break answer;
        }
        kept.insert(id);
        assert!(kept.len() < 5_000, "it never fills up");
    };
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"), "{}", refused.text());
    assert!(refused.text().contains("NATS"), "{}", refused.text());
    assert!(!kept.is_empty());
    // It goes on to answer.
    assert_eq!(server.read("/v1/segments")["items"][0]["size"], kept.len());
    make_room(&mut broker);
    let patience = Duration::from_secs(60);
    until(patience, "it goes on", || {
        let (answer, id) = send();
        (answer.status == 200).then(|| kept.insert(id))
    });
    server.kill();
    let server = start(&home, &broker, &["--clock", "events"]);
    let ids: Vec<String> = (1..=sent).map(|sent| format!("m{sent}")).collect();
    let found: BTreeSet<String> =
        ids.into_iter().filter(|id| server.get(&format!("/v1/profiles/{id}")).status == 200).collect();
    let missing: Vec<_> = kept.difference(&found).collect();
    assert!(missing.is_empty(), "acknowledged, and not there: {missing:?}");
}

#[test]
fn a_stream_that_is_full_refuses_and_goes_on() {
    let broker = Broker::start();
    let limit = |broker: &Broker, bytes: i64| {
        Runtime::new().expect("a runtime").block_on(async {
            let client = nats::connect(broker.url()).await.expect("the broker is there");
            let jetstream = nats::jetstream::new(client);
            let mut stream = jetstream.get_stream("THALWEG").await.expect("it is there");
            let mut config = stream.info().await.expect("it is told").config.clone();
            config.max_bytes = bytes;
            jetstream.update_stream(config).await.expect("it is changed");
        });
    };
    drop(Outside::new(&broker));
    limit(&broker, 1_000_000);
    fills_up(broker, |broker| limit(broker, -1));
}

/// A file system that is really full, under a server that is started again when there is room.
#[test]
#[ignore = "mounts a small file system, which takes root or user namespaces: `.ci/run long` does"]
fn a_disk_that_is_full_refuses_and_goes_on() {
    let broker = Broker::on_disk_of(24 << 20);
    let ballast = broker.store().join("ballast").display().to_string();
    broker.beside(&["dd", "if=/dev/zero", &format!("of={ballast}"), "bs=1M", "count=12", "status=none"]);
    fills_up(broker, |broker| {
        broker.beside(&["rm", &ballast]);
        broker.restart();
    });
}

#[test]
fn an_event_without_a_time_is_dated_by_the_clock_of_events() {
    let (broker, home) = (Broker::start(), Home::new("version: 1\n"));
    let server = start(&home, &broker, &["--clock", "events"]);
    let mut outside = Outside::new(&broker);
    server.write("/v1/track", &json!({"userId": "ada", "event": "x", "messageId": "m1", "timestamp": START}));
    outside.publish(r#"{"type":"track","userId":"ada","event":"x","messageId":"m2"}"#);
    let events = || server.read("/v1/profiles/ada/events")["items"].as_array().cloned().unwrap_or_default();
    let events = until(PATIENCE, "both are there", || Some(events()).filter(|events| events.len() == 2));
    let at = |event: &Value| event["timestamp"].as_i64();
    assert_eq!(events.iter().map(at).collect::<Vec<_>>(), [Some(START); 2], "{events:?}");
}

#[test]
fn what_is_not_taken_is_told_once() {
    let (broker, home) = (Broker::start(), Home::new("version: 1\n"));
    let server = start(&home, &broker, &["--clock", "events"]);
    let mut outside = Outside::new(&broker);
    let call = |id: &str, event: &str| {
        json!({"type": "track", "userId": "ada", "messageId": id, "event": event, "timestamp": START}).to_string()
    };
    outside.publish(&call("m1", "a"));
    outside.publish("");
    outside.publish(&format!("{}\n{}", call("m2", "b"), r#"{"type":"page"}"#));
    outside.publish(&call("m1", "other"));
    server.post("/v1/batch", r#"{"batch":[{"type":"page"}]}"#);
    let reasons = |server: &Server| -> Vec<String> {
        let letters = server.read("/v1/dead-letters");
        let reasons = letters["items"].as_array().expect("items").iter().map(|letter| letter["reason"].to_string());
        let mut reasons: Vec<String> = reasons.collect();
        reasons.sort();
        reasons
    };
    let wanted = [r#""conflict""#, r#""invalid""#, r#""no_id""#, r#""no_id""#];
    until(PATIENCE, &format!("all are told: {:?}", reasons(&server)), || (reasons(&server) == wanted).then_some(()));
    let told = || outside.all().into_iter().filter(|(subject, ..)| subject == "thalweg.dead_letters").count();
    until(PATIENCE, "all are in the stream", || (told() == 4).then_some(()));
    server.kill();
    let server = start(&home, &broker, &["--clock", "events"]);
    assert_eq!(reasons(&server), wanted);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(told(), 4, "nothing is told twice");
    assert_eq!(server.read("/v1/profiles/ada/events")["items"].as_array().map(Vec::len), Some(2));
}

#[test]
fn triggers_leave_by_nats_once_each() {
    let (broker, home) = (Broker::start(), Home::new(POPUPS));
    let server = start(&home, &broker, &["--clock", "events"]);
    let page = |id: &str, at: i64| json!({"anonymousId": "eve", "messageId": id, "timestamp": at});
    server.write("/v1/page", &page("m1", START));
    let sent = |server: &Server| server.read("/v1/campaigns/welcome")["by_status"]["sent"].as_i64().unwrap_or(0);
    until(PATIENCE, "it is sent", || (sent(&server) == 1).then_some(()));
    server.kill();
    let server = start(&home, &broker, &["--clock", "events"]);
    server.write("/v1/page", &page("m2", START + 1_000));
    until(PATIENCE, "both are sent", || (sent(&server) == 2).then_some(()));
    let ids = || {
        let id = |(id, body): (String, Value)| {
            assert_eq!((&body["type"], &body["id"]), (&json!("intent"), &json!(id)));
            id
        };
        triggers(&broker).into_iter().map(id).collect::<Vec<_>>()
    };
    let found = until(PATIENCE, "both are there", || Some(ids()).filter(|ids| ids.len() >= 2));
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "{found:?}");
}

#[test]
fn a_stream_that_goes_ends_the_process_with_a_sentence() {
    let (broker, home) = (Broker::start(), Home::new("version: 1\n"));
    let server = start(&home, &broker, &[]);
    server.write("/v1/track", &json!({"userId": "ada", "event": "x"}));
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = nats::connect(broker.url()).await.expect("the broker is there");
        nats::jetstream::new(client).delete_stream("THALWEG").await.expect("it is deleted");
    });
    until(PATIENCE, "it says why", || server.said().contains("THALWEG").then_some(()));
    let said = server.said();
    assert!(!server.ends(PATIENCE).expect("it ends").success(), "{said}");
}
