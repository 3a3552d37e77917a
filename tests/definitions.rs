//! Definitions that change while the binary runs: given one by one they answer as a file that had them from the start,
//! also after kills, over NATS and over several processes; what is wrong is refused, and says where.

mod asked;
mod broker;
mod histories;
mod process;
mod receiver;
mod tools;

use std::collections::BTreeMap;
use std::time::Duration;

use asked::{answers, assert_same, lines, send};
use broker::Broker;
use histories::Random;
use process::http::Answer;
use process::{Home, Server, free_port, until};
use receiver::{Receiver, Reply};
use serde_json::{Value, json};

const EVENTS: [&str; 2] = ["--clock", "events"];
/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600_000;
const PATIENCE: Duration = Duration::from_secs(10);

/// Kinds whose documents have names.
const NAMED: [&str; 5] = ["channels", "traits", "segments", "journeys", "campaigns"];
/// Kinds of one document.
const WHOLE: [&str; 4] = ["sessions", "touchpoints", "conversions", "attribution"];

fn put(server: &Server, of: &str, definition: &Value) -> Answer {
    server.ask("PUT", &format!("/v1/definitions/{of}"), &[], definition.to_string().as_bytes())
}

fn delete(server: &Server, of: &str) -> Answer {
    server.ask("DELETE", &format!("/v1/definitions/{of}"), &[], b"")
}

/// The documents of definitions, by kind and name.
fn documents(definitions: &Value) -> BTreeMap<String, Value> {
    let mut documents = BTreeMap::new();
    for kind in NAMED {
        for (name, document) in definitions[kind].as_object().into_iter().flatten() {
            documents.insert(format!("{kind}/{name}"), document.clone());
        }
    }
    let whole = WHOLE.iter().filter(|kind| !definitions[**kind].is_null());
    documents.extend(whole.map(|kind| (format!("{kind}/{kind}"), definitions[*kind].clone())));
    documents
}

/// Makes the definitions of a server these, document by document, in an order in which each step is right. What is
/// refused on the way waits until others are there, or gone. Gives the position of the last change.
fn reshape(servers: &[&Server], random: &mut Random, from: &Value, to: &Value) -> String {
    let (from, to) = (documents(from), documents(to));
    let mut changes: Vec<(String, Option<Value>)> = to.iter().map(|(of, it)| (of.clone(), Some(it.clone()))).collect();
    changes.extend(from.keys().filter(|of| !to.contains_key(*of)).map(|of| (of.clone(), None)));
    changes.retain(|(of, document)| from.get(of) != document.as_ref());
    let mut position = String::new();
    while !changes.is_empty() {
        let before = changes.len();
        changes.retain(|(of, document)| {
            let server = servers[random.below(servers.len() as u64) as usize];
            let answer = match document {
                Some(document) => put(server, of, document),
                None => delete(server, of),
            };
            match answer.status {
                200 => position = answer.json()["position"].as_str().expect("a position").to_owned(),
                400 | 409 => {}
                _ => panic!("{of}: {} {}", answer.status, answer.text()),
            }
            answer.status != 200
        });
        assert!(changes.len() < before, "none of these is taken: {changes:#?}");
    }
    position
}

/// Answers without what tells of the definitions' own past.
fn timeless(mut all: BTreeMap<String, (u16, Value)>) -> BTreeMap<String, (u16, Value)> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.remove("version");
                members.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    all.values_mut().for_each(|(_, answer)| strip(answer));
    all
}

/// Two sets of definitions that accept alike; the second lacks some documents of the first.
fn two(random: &mut Random) -> (Value, Value) {
    let read = |text: String| serde_json::from_str::<Value>(&text).expect("it is JSON");
    let (mut one, mut other) = (read(histories::definitions(random)), read(histories::definitions(random)));
    for definitions in [&mut one, &mut other] {
        definitions["identity"] = json!({"max_ids": 3});
        definitions["timezone"] = json!("UTC");
    }
    for (kind, name) in [("campaigns", "again"), ("journeys", "after"), ("segments", "left"), ("traits", "mean")] {
        other[kind].as_object_mut().expect("a map").remove(name);
    }
    (one, other)
}

fn bare() -> Value {
    json!({"version": 1, "identity": {"max_ids": 3}})
}

#[test]
fn given_one_by_one_they_answer_as_a_file_that_had_them_from_the_start() {
    for seed in 0..4 {
        let mut random = Random::new(seed);
        let (one, other) = two(&mut random);
        let lines = lines(&mut random, 1);
        let home = Home::new(&bare().to_string());
        let server = home.start(&[&EVENTS[..], &["--workers", "2"]].concat());
        let mut last = String::new();
        for (number, line) in lines.iter().enumerate() {
            last = send(&server, line);
            if number == lines.len() / 3 {
                reshape(&[&server], &mut random, &bare(), &one);
            }
            if number == 2 * lines.len() / 3 {
                reshape(&[&server], &mut random, &one, &other);
            }
        }
        let fresh = Home::new(&other.to_string());
        let alone = fresh.start(&EVENTS);
        let end = lines.iter().fold(String::new(), |_, line| send(&alone, line));
        let expected = timeless(answers(&alone, &end));
        assert_same(&timeless(answers(&server, &last)), &expected, &format!("seed {seed}"));
        server.kill();
        let server = home.start(&EVENTS);
        assert_same(&timeless(answers(&server, &last)), &expected, &format!("seed {seed}, after a restart"));
    }
}

#[test]
fn over_a_stream_and_over_processes_it_is_the_same() {
    let mut random = Random::new(9);
    let (one, other) = two(&mut random);
    let lines = lines(&mut random, 1);
    let fresh = Home::new(&other.to_string());
    let alone = fresh.start(&EVENTS);
    let end = lines.iter().fold(String::new(), |_, line| send(&alone, line));
    let unstamped = |all| {
        let mut all = timeless(all);
        for (_, answer) in all.values_mut() {
            for item in answer["items"].as_array_mut().into_iter().flatten() {
                item.as_object_mut().map(|item| item.remove("received_at"));
            }
        }
        all
    };
    let expected = unstamped(answers(&alone, &end));
    let broker = Broker::start();
    let url = broker.url();
    for streams in [false, true] {
        let home = Home::new(&bare().to_string());
        let hosts = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}\n"));
        home.write("hosts", hosts.concat());
        let start = || {
            let launch = |process: &str| {
                let data = format!("data{process}");
                let among = ["--hosts", "hosts", "--process", process, "--data", &data];
                let nats = if streams { &["--nats", url.as_str()][..] } else { &[] };
                home.launch(&[&EVENTS[..], &among, nats].concat())
            };
            ["0", "1"].map(launch).map(|server| server.ready().expect("its port was free a moment ago"))
        };
        let team = start();
        let mut last = String::new();
        for (number, line) in lines.iter().enumerate() {
            last = send(&team[number % 2], line);
            if number == lines.len() / 3 {
                reshape(&[&team[0], &team[1]], &mut random, &bare(), &one);
            }
            if number == 2 * lines.len() / 3 {
                reshape(&[&team[1], &team[0]], &mut random, &one, &other);
            }
        }
        for server in &team {
            assert_same(&unstamped(answers(server, &last)), &expected, &format!("streams: {streams}"));
            assert_eq!(server.read("/v1/definitions/segments/viewer"), team[0].read("/v1/definitions/segments/viewer"));
        }
        team.into_iter().for_each(Server::kill);
        let team = start();
        for server in &team {
            assert_same(&unstamped(answers(server, &last)), &expected, &format!("streams: {streams}, restarted"));
        }
    }
}

const SHOP: &str = "version: 1
segments:
  viewers: { performed: page_view, times: 2 }
campaigns:
  hello: { when: { segment: viewers }, channel: popup, template: 'hello' }
channels: { popup: { deliver: sse } }
";

fn page(server: &Server, id: &str, number: i64) -> String {
    let call = json!({"type": "page", "userId": id, "messageId": format!("{id}{number}"),
        "timestamp": START + 1_000 * number, "properties": {"section": "shoes", "price": number}});
    let answer = server.write("/v1/batch", &json!({"batch": [call]}));
    answer["position"].as_str().expect("a position").to_owned()
}

#[test]
fn each_change_is_a_version_and_stands_over_the_file() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    page(&server, "ada", 1);
    let document = server.read("/v1/definitions/segments/viewers");
    assert_eq!((&document["version"], &document["progress"]), (&json!(1), &Value::Null));
    assert_eq!(document["definition"], json!({"performed": "page_view", "times": 2}));
    assert_eq!(server.read("/v1/segments/viewers")["size"], 0);
    // YAML or JSON; what it reads was not kept before.
    let text = "performed: page_view\nwhere: properties.section == \"shoes\" && properties.price < 2\n";
    let answer = server.ask("PUT", "/v1/definitions/segments/viewers", &[], text.as_bytes());
    let row = answer.json();
    assert_eq!((answer.status, &row["kind"], &row["name"]), (200, &json!("segments"), &json!("viewers")));
    assert_eq!((&row["version"], &row["active_since"]), (&json!(2), &json!(START + 1_000)));
    let position = row["position"].as_str().expect("a position");
    let segment = server.read(&format!("/v1/segments/viewers?after={position}"));
    assert_eq!((&segment["size"], &segment["version"]), (&json!(1), &json!(2)));
    // The same again is no change.
    let again = put(&server, "segments/viewers", &server.read("/v1/definitions/segments/viewers")["definition"]);
    assert_eq!((again.status, again.json()["version"].clone()), (200, json!(2)));
    assert_eq!(put(&server, "segments/known", &json!({"visitor": "known"})).status, 200);
    assert_eq!(server.read("/v1/segments/known/members")["items"][0]["profile"], "ada");
    assert_eq!(delete(&server, "segments/known").status, 200);
    assert_eq!(server.get("/v1/segments/known").status, 404);
    assert_eq!(server.get("/v1/definitions/segments/known").status, 404);
    assert_eq!(put(&server, "segments/known", &json!({"visitor": "known"})).json()["version"], 3);
    server.kill();
    // The file goes on under what was given.
    home.write("thalweg.yaml", SHOP.replace("times: 2", "times: 3").replace("'hello'", "'good day'"));
    let server = home.start(&EVENTS);
    let row = server.read("/v1/definitions/segments/viewers");
    assert_eq!((&row["version"], &row["position"]), (&json!(2), &json!(position)));
    assert_eq!(server.read("/v1/definitions/campaigns/hello")["version"], 2);
    assert_eq!(server.read("/v1/segments/known")["version"], 3);
    assert!(server.said().contains("segments/viewers"), "what stands over the file is said: {}", server.said());
}

#[test]
fn what_is_wrong_is_refused_and_says_where() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let refused = |answer: Answer, status: u16, slug: &str| {
        let told = answer.json();
        assert_eq!(answer.status, status, "{told}");
        assert!(told["type"].as_str().is_some_and(|kind| kind.ends_with(slug)), "{told}");
        told
    };
    let text = b"any:\n  - visitor: known\n  - performd: page_view\n";
    let told = refused(server.ask("PUT", "/v1/definitions/segments/odd", &[], text), 400, "bad_definition");
    let error = &told["errors"][0];
    assert_eq!((&error["path"], &error["line"]), (&json!("segments.odd.any[1].performd"), &json!(3)), "{told}");
    assert_eq!(error["nearest"], "performed");
    assert_eq!(server.get("/v1/segments/odd").status, 404);
    refused(put(&server, "segments/odd", &json!({"segment": "nobody"})), 400, "bad_definition");
    refused(
        put(
            &server,
            "campaigns/odd",
            &json!({"when": {"segment": "viewers"}, "channel": "popup",
        "template": "{{ nobody }}"}),
        ),
        400,
        "bad_definition",
    );
    refused(server.ask("PUT", "/v1/definitions/segments/odd", &[], b"a: [1"), 400, "bad_definition");
    refused(put(&server, "metrics/odd", &json!({"count": "x"})), 400, "bad_definition");
    refused(put(&server, "segmnts/odd", &json!({"visitor": "known"})), 404, "not_found");
    refused(delete(&server, "segments/nobody"), 404, "not_found");
    let told = refused(delete(&server, "segments/viewers"), 409, "conflict");
    assert_eq!(told["errors"][0]["path"], "campaigns.hello");
    let told = refused(delete(&server, "channels/popup"), 409, "conflict");
    assert_eq!(told["errors"][0]["path"], "campaigns.hello");
    assert_eq!(server.read("/v1/segments")["items"].as_array().map(Vec::len), Some(1));
}

/// Much has to be prepared: until it is there is progress and no figure, what stands answers, and what comes in counts.
#[test]
fn until_it_holds_there_is_progress_and_everything_goes_on() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let mut last = String::new();
    for batch in 0..40 {
        let call = |number: i64| {
            json!({"type": "page", "userId": format!("u{}", number % 500), "messageId": format!("m{number}"),
                "timestamp": START + number, "properties": {"price": number}})
        };
        let calls: Vec<Value> = (batch * 200..(batch + 1) * 200).map(call).collect();
        let answer = server.write("/v1/batch", &json!({"batch": calls}));
        last = answer["position"].as_str().expect("a position").to_owned();
    }
    server.read(&format!("/v1/segments?after={last}"));
    let definition = json!({"performed": "page_view", "where": "properties.price >= 7900", "times": 1});
    let path = "/v1/definitions/segments/late?wait=1ms";
    let begun = server.ask("PUT", path, &[], definition.to_string().as_bytes());
    let row = begun.json();
    assert_eq!((begun.status, &row["active_since"]), (202, &Value::Null), "{row}");
    let progress = server.read("/v1/definitions/segments/late")["progress"].clone();
    assert!(progress["prepared"].as_u64() < Some(500), "{progress}");
    let early = server.get("/v1/segments/late");
    let told = early.json();
    assert!(early.status == 503 && told["type"].as_str().is_some_and(|kind| kind.ends_with("not_yet")), "{told}");
    assert!(told["detail"].as_str().is_some_and(|detail| detail.contains("profiles are")), "{told}");
    let other = server.ask("PUT", "/v1/definitions/segments/other?wait=1ms", &[], br#"{"visitor":"known"}"#);
    assert_eq!(other.status, 503, "{}", other.text());
    let standing = server.read("/v1/segments");
    assert_eq!((standing["items"].as_array().map(Vec::len), &standing["items"][0]["size"]), (Some(1), &json!(500)));
    // Somebody comes in the meantime, with what only the new one names.
    let call = json!({"type": "page", "userId": "new", "timestamp": START + 9_000, "properties": {"price": 8000}});
    server.write("/v1/batch", &json!({"batch": [call]}));
    let position = row["position"].as_str().expect("a position");
    assert_eq!(server.read(&format!("/v1/segments/late?wait=30s&after={position}"))["size"], 101);
    let row = server.read("/v1/definitions/segments/late");
    assert_eq!((&row["progress"], row["active_since"].is_i64()), (&Value::Null, true));
}

/// Nothing of the past is sent because of a change; what comes about after it is. A change of something else changes
/// nothing.
#[test]
fn a_campaign_that_is_given_tells_of_the_future_alone() {
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let home = Home::new(SHOP);
    let server = home.start(&[]);
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later");
        since.as_millis() as i64
    };
    let view = |id: &str, number: i64| {
        let call = json!({"type": "page", "userId": id, "messageId": format!("{id}{number}"), "timestamp": now()});
        server.write("/v1/batch", &json!({"batch": [call]}));
    };
    view("ada", 1);
    view("ada", 2);
    let channel = json!({"deliver": "webhook", "url": receiver.url("/mail"), "realtime": true, "revocations": true});
    assert_eq!(put(&server, "channels/mail", &channel).status, 200);
    let campaign = json!({"when": {"segment": "viewers"}, "channel": "mail", "template": "again"});
    assert_eq!(put(&server, "campaigns/mailed", &campaign).status, 200);
    let since = server.read("/v1/campaigns/mailed")["active_since"].clone();
    let is_history = || server.read("/v1/campaigns/mailed/intents")["items"][0]["status"] == "history";
    until(PATIENCE, "the past is history", || is_history().then_some(()));
    assert_eq!(put(&server, "segments/known", &json!({"visitor": "known"})).status, 200);
    assert_eq!(server.read("/v1/campaigns/mailed")["active_since"], since);
    view("bob", 1);
    view("bob", 2);
    until(PATIENCE, "bob is written to", || (receiver.calls().len() == 1).then_some(()));
    assert_eq!(receiver.calls()[0].json()["profile"], "bob");
    // What its segment asks changes: bob is not of it any more, and was told.
    assert_eq!(put(&server, "segments/viewers", &json!({"performed": "page_view", "times": 3})).status, 200);
    until(PATIENCE, "it is taken back", || (receiver.calls().len() == 2).then_some(()));
    assert_eq!(receiver.calls()[1].json()["type"], "revoked");
    assert!(server.read("/v1/campaigns/mailed")["active_since"].as_i64() > since.as_i64());
    assert_eq!(server.read("/v1/campaigns/mailed")["revoked"], 1);
    view("bob", 3);
    until(PATIENCE, "bob is written to again", || (receiver.calls().len() == 3).then_some(()));
}

/// Who follows views is told the difference that a change makes.
#[test]
fn followers_are_told_the_difference() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    page(&server, "ada", 1);
    let subscription = server.subscribe("view=segments");
    assert_eq!(subscription.snapshot().len(), 0);
    assert_eq!(put(&server, "segments/viewers", &json!({"performed": "page_view"})).status, 200);
    let change = subscription.next(PATIENCE).expect("a change comes").data;
    let row = json!({"profile": "ada", "segment": "viewers", "since": START + 1_000});
    assert_eq!(change["changes"], json!([{"diff": 1, "row": row}]), "{change}");
}
