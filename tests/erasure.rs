//! Erasing somebody, by the real binary: nothing of them is in any file, every answer is that of a server that never
//! heard of them, whenever the process is killed; and a replay says what the oracle says.

mod broker;
mod histories;
mod oracle;
mod process;
mod receiver;
mod tools;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use broker::Broker;
use histories::Random;
use oracle::Oracle;
use process::sse::Subscription;
use process::{Home, Server, free_port, until};
use receiver::{Receiver, Reply};
use serde_json::{Value, json};
use server::stream::{HeaderMap, Message, Next, Options, Stream};
use tokio::runtime::Runtime;

/// A debug build on a busy machine may take this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600_000;
const EVENTS: [&str; 2] = ["--clock", "events"];
/// The person to be erased: known, by a phone and by an older name; and a word that only they say.
const IDS: [&str; 3] = ["ada@example.org", "phone-of-ada", "countess"];
const MARKER: &str = "a-word-of-hers";

fn definitions(receiver: &Receiver) -> String {
    let url = receiver.url("/hook");
    format!(
        r#"
version: 1
touchpoints: [ {{ event: click, channel: properties.channel, campaign: properties.campaign }} ]
conversions: [ {{ name: purchase, event: purchase, value: properties.value }} ]
attribution: {{ models: [first_touch, linear] }}
traits:
  spent: {{ sum: properties.value, of: purchase }}
  with: {{ last: properties.with, of: purchase }}
segments:
  buyers: {{ performed: purchase }}
journeys:
  shop: {{ start: out, states: {{ out: {{ transitions: [ {{ event: purchase, to: in }} ] }}, in: {{}} }} }}
campaigns:
  thanks: {{ when: {{ event: purchase }}, channel: mail, template: 'Thank you {{{{ event.properties.name }}}}' }}
  hello: {{ when: {{ event: page_view }}, channel: popup, template: 'Hello {{{{ event.properties.name }}}}' }}
channels:
  mail: {{ deliver: webhook, url: "{url}", revocations: true }}
  popup: {{ deliver: sse }}
"#
    )
}

fn at(seconds: i64) -> i64 {
    START + seconds * 1_000
}

fn track(event: &str, ids: Value, message: &str, seconds: i64, properties: Value) -> Value {
    let mut call = json!({"type": "track", "event": event, "messageId": message, "timestamp": at(seconds),
        "properties": properties});
    call.as_object_mut().expect("an object").extend(ids.as_object().expect("an object").clone());
    call
}

/// What others do. Bob names her; after her erasure that is null.
fn others(name: Value) -> Vec<Value> {
    let anonymous = name.clone();
    vec![
        track("click", json!({"userId": "bob"}), "b1", 1, json!({"channel": "search", "campaign": "spring"})),
        track(
            "purchase",
            json!({"userId": "bob", "anonymousId": anonymous}),
            "b2",
            12,
            json!({"value": 5, "with": name, "name": "bob", "note": "not adamant"}),
        ),
        json!({"type": "identify", "userId": "bob", "messageId": "b3", "timestamp": at(13),
            "traits": {"friend": name, "city": "x"}}),
        json!({"type": "page", "userId": "eve", "messageId": "e1", "timestamp": at(20), "properties": {"name": "eve"}}),
    ]
}

/// What she does: links, a purchase, a visit.
fn hers() -> Vec<Value> {
    vec![
        track("click", json!({"anonymousId": IDS[1]}), "a1", 2, json!({"channel": "mail", "campaign": MARKER})),
        json!({"type": "identify", "userId": IDS[0], "anonymousId": IDS[1], "messageId": "a2", "timestamp": at(3),
            "traits": {"says": MARKER}}),
        json!({"type": "alias", "userId": IDS[0], "previousId": IDS[2], "messageId": "a3", "timestamp": at(4)}),
        track("purchase", json!({"userId": IDS[2]}), "a4", 5, json!({"value": 70, "name": MARKER})),
        json!({"type": "page", "userId": IDS[0], "messageId": "a5", "timestamp": at(6),
            "properties": {"name": MARKER}}),
    ]
}

fn send(server: &Server, calls: &[Value]) -> Value {
    server.write("/v1/batch", &json!({"batch": calls}))
}

/// What is refused of hers: a call without a name, a conflict, and a body that is cut.
fn refused(server: &Server) {
    send(server, &[json!({"type": "track", "userId": IDS[0], "properties": {"says": MARKER}, "timestamp": at(7)})]);
    send(server, &[track("purchase", json!({"userId": IDS[2]}), "a4", 5, json!({"value": 1, "name": MARKER}))]);
    let cut = format!(r#"{{"batch":[{{"userId":"{}","says":"{MARKER}"#, IDS[0]);
    assert_eq!(server.post("/v1/batch", cut).status, 400);
}

fn erase(server: &Server, id: &str, query: &str) -> Value {
    let answer = server.ask("DELETE", &format!("/v1/profiles/{id}{query}"), &[], &[]);
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()
}

/// How many events an erasure removed, once it is complete.
fn complete(server: &Server, erasure: &Value) -> u64 {
    let path = format!("/v1/erasures/{}", erasure["erasure"].as_str().expect("an id"));
    let told = until(PATIENCE, "the erasure is complete", || {
        Some(server.read(&path)).filter(|told| told["status"] == "complete")
    });
    told["events"].as_u64().expect("a count")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    // A broker at work has files that come and go.
    let entries = std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// How a word looks within base64, wherever it begins; nothing, if it is so short that chance looks like it.
fn in_base64(word: &str) -> Vec<String> {
    let at = |offset: usize| {
        let text = BASE64_STANDARD_NO_PAD.encode([&vec![0; offset], word.as_bytes()].concat());
        text[(offset * 8).div_ceil(6)..(offset + word.len()) * 8 / 6].to_owned()
    };
    if word.len() < 8 { Vec::new() } else { (0..3).map(at).collect() }
}

/// Files that hold any of these.
fn holding(dir: &Path, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in files(dir) {
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            bytes => bytes.expect("it can be read"),
        };
        let has_plain = |word: &str| bytes.windows(word.len()).any(|part| part == word.as_bytes());
        let has = |word: &&&str| has_plain(word) || in_base64(word).iter().any(|word| has_plain(word));
        found.extend(words.iter().filter(has).map(|word| format!("{} holds {word}", path.display())));
    }
    found
}

fn all_of_hers() -> Vec<&'static str> {
    IDS.into_iter().chain([MARKER]).collect()
}

/// What does not depend on where a record stands, nor on how far messages are.
fn law(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members
                .into_iter()
                .filter(|(key, _)| !["position", "active_since", "clock", "received_at"].contains(&&**key));
            kept.map(|(key, of)| (key, law(of))).collect()
        }
        Value::Array(items) => items.into_iter().map(law).collect(),
        other => other,
    }
}

/// All that can be asked.
fn answers(server: &Server) -> Vec<(String, u16, Value)> {
    let mut paths: Vec<String> = [
        "segments",
        "segments/buyers/members",
        "journeys",
        "journeys/shop",
        "sessions",
        "sessions/summary",
        "campaigns",
        "campaigns/thanks/intents",
        "campaigns/hello/intents",
        "channels/mail/parked",
        "attribution?model=first_touch&by=campaign",
        "attribution?model=linear",
    ]
    .map(Into::into)
    .into();
    for id in ["bob", "eve"].iter().chain(&IDS) {
        paths.push(format!("profiles/{id}"));
        for view in ["events", "sessions", "touchpoints", "conversions", "intents", "segments/changes"] {
            paths.push(format!("profiles/{id}/{view}"));
        }
    }
    let answer = |path: String| {
        let answer = server.get(&format!("/v1/{path}"));
        (path, answer.status, law(answer.json()))
    };
    paths.into_iter().map(answer).collect()
}

fn assert_same(found: &[(String, u16, Value)], expected: &[(String, u16, Value)]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected);
    }
}

/// All messages are where they are to be.
fn settled(server: &Server, sent: u64) {
    until(PATIENCE, "messages are sent", || {
        let campaigns = server.read("/v1/campaigns")["items"].clone();
        let of = |campaign: &Value| campaign["by_status"]["sent"].as_u64().unwrap_or(0);
        let pending = server.read("/v1/channels/mail")["pending"] == 0;
        (pending && campaigns.as_array().expect("a list").iter().map(of).sum::<u64>() == sent).then_some(())
    });
}

#[test]
fn whoever_is_erased_is_as_if_never_seen() {
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let (home, other) = (Home::new(&definitions(&receiver)), Home::new(&definitions(&receiver)));
    let server = home.start(&EVENTS);
    let follows = server.subscribe("view=intents");
    follows.snapshot();
    send(&server, &hers());
    send(&server, &others(IDS[1].into()));
    refused(&server);
    settled(&server, 4);
    assert!(!holding(&home.path("data"), &[MARKER]).is_empty(), "the search finds what is there");

    let export = server.read(&format!("/v1/profiles/{}/export", IDS[1]));
    let count = |part: &str| export[part].as_array().map_or(0, Vec::len);
    let parts = ["events", "sessions", "touchpoints", "conversions", "intents", "segment_changes", "dead_letters"];
    // Bob's purchase on her phone stays with bob: it is no dead letter, and none of her events.
    assert_eq!(parts.map(count), [5, 1, 1, 1, 2, 1, 3], "{export}");
    assert_eq!(export["profile"]["id"], IDS[0]);
    assert!(export["intents"].as_array().expect("a list").iter().all(|intent| intent["status"] == "sent"));

    let erasure = erase(&server, IDS[2], "");
    assert_eq!(erasure["status"], "running");
    let after = format!("?after={}", erasure["position"].as_str().expect("a position"));
    for path in ["", "/export", "/events"] {
        assert_eq!(server.get(&format!("/v1/profiles/{}{path}{after}", IDS[0])).status, 404);
    }
    assert_eq!(server.ask("DELETE", &format!("/v1/profiles/{}", IDS[0]), &[], &[]).status, 404);
    assert_eq!(server.get("/v1/erasures/17").status, 404);
    assert_eq!(complete(&server, &erasure), 5);
    assert_eq!(holding(&home.path("data"), &all_of_hers()), [""; 0]);
    assert!(!server.get("/v1/dead-letters").text().contains(MARKER));

    // The other server never heard of her, but for the clock.
    let never = other.start(&EVENTS);
    send(&never, &others(Value::Null));
    settled(&never, 2);
    let expected = answers(&never);
    assert_same(&answers(&server), &expected);
    // Nobody is told that what she was sent does not stand any more.
    std::thread::sleep(Duration::from_millis(300));
    let told = receiver.calls();
    assert!(told.iter().all(|call| call.json()["type"] == "intent"), "{told:?}");
    let went = follows.all(Duration::from_millis(200));
    let went = went.iter().flat_map(|message| message.changes()).filter(|(diff, _)| *diff < 0);
    assert!(went.filter(|(_, row)| row["profile"] == IDS[0]).count() >= 2, "subscribers see her intents go");

    server.kill();
    let server = home.start(&EVENTS);
    assert_same(&answers(&server), &expected);
    assert_eq!(complete(&server, &erasure), 5);
    // What is dated before is hers and comes too late, whether it had come before or not; also as named by others.
    let told =
        send(&server, &[hers()[3].clone(), track("purchase", json!({"anonymousId": IDS[1]}), "a9", 8, json!({}))]);
    assert_eq!((told["accepted"].as_u64(), &told["rejected"][1]["reason"]), (Some(0), &json!("erased")));
    // Struck, bob's calls are known by what they were.
    let again = send(&server, &others(IDS[1].into()));
    assert_eq!(
        (again["accepted"].as_u64(), server.read("/v1/dead-letters")["items"].as_array().map(Vec::len)),
        (Some(4), Some(5))
    );
    assert_same(&answers(&server), &expected);
    assert_eq!(holding(&home.path("data"), &all_of_hers()[..3]), [""; 0]);

    // Who comes back is somebody new, and linked to nobody.
    let new = track("purchase", json!({"userId": IDS[0]}), "n1", 100, json!({"value": 3}));
    let key = track("purchase", json!({"userId": IDS[2]}), "a4", 100, json!({"value": 3}));
    assert_eq!(send(&server, &[new, key])["accepted"], 2);
    for life in 0..2 {
        let profile = server.read(&format!("/v1/profiles/{}", IDS[0]));
        assert_eq!(
            (&profile["ids"], &profile["computed"]["spent"]),
            (&json!([{"id": IDS[0], "known": true}]), &json!(3))
        );
        // A key stays taken.
        assert_eq!(server.get(&format!("/v1/profiles/{}", IDS[2])).status, 404, "in life {life}");
    }
    // Erased for good, nothing of hers is taken any more.
    let erasure = erase(&server, IDS[0], "?suppress=true");
    assert_eq!(complete(&server, &erasure), 1);
    server.kill();
    let server = home.start(&EVENTS);
    let late = track("purchase", json!({"userId": IDS[0]}), "n2", 900, json!({"says": MARKER}));
    assert_eq!(send(&server, &[late])["rejected"][0]["reason"], "erased");
    let nameless = json!({"type": "track", "userId": IDS[0], "timestamp": at(901), "properties": {"says": MARKER}});
    assert_eq!(send(&server, &[nameless])["rejected"][0]["reason"], "invalid");
    assert_eq!(server.get(&format!("/v1/profiles/{}", IDS[0])).status, 404);
    assert_eq!(holding(&home.path("data"), &[IDS[0], MARKER]), [""; 0]);
    let wrong = server.ask("DELETE", "/v1/profiles/bob?suppress=maybe", &[], &[]);
    assert_eq!(wrong.status, 400);
}

/// Whoever follows goes on; but what was kept for who comes again has nothing of her any more.
#[test]
fn nothing_of_hers_is_kept_for_who_comes_again() {
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let home = Home::new(&definitions(&receiver));
    let server = home.start(&EVENTS);
    let follows = server.subscribe("view=segments");
    let snapshot = follows.next(PATIENCE).expect("a snapshot");
    send(&server, &hers());
    send(&server, &others(Value::Null));
    let came = follows.next(PATIENCE).expect("she buys");
    assert!(came.changes().iter().any(|(_, row)| row["profile"] == IDS[0]), "{came:?}");
    complete(&server, &erase(&server, IDS[0], ""));
    let went = until(PATIENCE, "her row goes", || {
        follows.next(PATIENCE).filter(|message| message.changes().iter().any(|(diff, _)| *diff < 0))
    });
    assert_eq!(went.changes()[0].1["profile"], IDS[0]);
    drop(follows);
    for (known, event) in [(&snapshot, "snapshot"), (&came, "snapshot"), (&went, "change")] {
        let again = Subscription::resume(server.address, "view=segments", &known.id).expect("it can be followed");
        send(&server, &[track("purchase", json!({"userId": "eve"}), &known.id, 40, json!({"value": 1}))]);
        let first = again.next(PATIENCE).expect("a snapshot, or what changed");
        assert_eq!(first.event, event, "{first:?}");
        assert!(!first.data.to_string().contains(IDS[0]), "{first:?}");
    }
}

/// What is left of others' calls, what was refused because of her, what of hers had been taken back.
#[test]
fn after_a_restart_it_is_as_it_was_before() {
    is_as_it_was_before(&EVENTS);
}

/// With a stream as the log too.
#[test]
fn after_a_restart_it_is_as_it_was_before_in_a_stream() {
    let broker = Broker::start();
    is_as_it_was_before(&[&EVENTS[..], &["--nats", &broker.url()]].concat());
    assert_eq!(holding(&broker.store(), &[IDS[0], IDS[1]]), [""; 0]);
}

fn is_as_it_was_before(flags: &[&str]) {
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let home = Home::new(&(definitions(&receiver) + "identity: { max_ids: 3 }\n"));
    let mut server = home.start(flags);
    let alias = |user: &str, previous: &str, message: &str, seconds: i64| {
        json!({"type": "alias", "userId": user, "previousId": previous, "messageId": message,
            "timestamp": at(seconds)})
    };
    let page = |message: &str, seconds: i64, path: &str| {
        json!({"type": "page", "userId": "bob", "messageId": message, "timestamp": at(seconds), "name": "a page",
            "properties": {"page": IDS[1], "path": path}, "context": {"device": {"type": IDS[1]},
                "userAgent": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) Mobile/15E148 Safari/604.1",
                "campaign": {"medium": IDS[1], "source": "news", "name": "winter"}}})
    };
    let with = |user: &str, anonymous: &str, message: &str, seconds: i64| {
        track("view", json!({"userId": user, "anonymousId": anonymous}), message, seconds, json!({}))
    };
    let unlink = |server: &Server, a: &str, b: &str| {
        server.write("/v1/identities:unlink", &json!({"a": a, "b": b}));
    };
    // With her, three are as many as may be: eve's link is refused, and stays so when that is not known any more.
    send(&server, &[with(IDS[0], IDS[1], "a1", 1), alias(IDS[0], "laptop", "a2", 2), alias("eve", "laptop", "e1", 3)]);
    unlink(&server, IDS[0], "laptop");
    // She has the tablet first, so that zoe's claim takes effect by a correction, and is not refused for it.
    send(&server, &[with(IDS[0], "tablet", "a3", 4), alias("zoe", "zoe-1", "z1", 5), alias("zoe", "zoe-2", "z2", 6)]);
    send(&server, &[with("zoe", "tablet", "z3", 7), page("b1", 8, "/first")]);
    unlink(&server, IDS[0], "tablet");
    send(&server, &[track("purchase", json!({"userId": IDS[0]}), "a4", 9, json!({"value": 3}))]);
    server.write("/v1/events:retract", &json!({"id": IDS[0], "messageId": "a4"}));
    let erasure = erase(&server, IDS[0], "");
    // Taken back before, it was accepted all the same.
    assert_eq!(complete(&server, &erasure), 4);
    // Dated before, and after something that stood there.
    assert_eq!(send(&server, &[page("b2", 9, "/last")])["accepted"], 1);
    let answers = |server: &Server| {
        let answer = |path: &str| {
            let answer = server.get(&format!("/v1/{path}"));
            (path.to_owned(), answer.status, law(answer.json()))
        };
        let of = |id: &str| ["", "/sessions", "/touchpoints", "/events"].map(|part| format!("profiles/{id}{part}"));
        let paths: Vec<String> = ["bob", "eve", "zoe", "laptop", "tablet"].into_iter().flat_map(of).collect();
        let more = ["identities/refused", "dead-letters", "sessions", "segments"].map(String::from);
        paths.iter().chain(&more).map(|path| answer(path)).collect::<Vec<_>>()
    };
    let before = answers(&server);
    let session = &server.read("/v1/profiles/bob/sessions")["items"][0];
    assert_eq!((&session["entry_page"], &session["exit_page"]), (&json!("/first"), &json!("/last")));
    assert_eq!((&session["device"]["type"], &session["channel"]), (&json!("mobile"), &json!("news")));
    let ids = |id: &str| server.read(&format!("/v1/profiles/{id}"))["ids"].as_array().map(Vec::len);
    assert_eq!([ids("eve"), ids("zoe")], [Some(1), Some(4)]);
    assert_eq!(server.read("/v1/identities/refused")["items"][0]["reason"], "refused_edge");
    for _ in 0..2 {
        server.kill();
        server = home.start(flags);
        assert_same(&answers(&server), &before);
        assert_eq!(complete(&server, &erasure), 4);
    }
}

/// What is pending or parked of somebody is forgotten with them.
#[test]
fn what_was_still_to_be_sent_is_not() {
    let receiver = Receiver::new(|_, _| Reply::Status(500));
    let home = Home::new(&definitions(&receiver));
    let server = home.start(&EVENTS);
    send(&server, &hers());
    until(PATIENCE, "it is tried", || (!receiver.calls().is_empty()).then_some(()));
    receiver.answer(|_, _| Reply::Status(404));
    send(&server, &[track("purchase", json!({"userId": IDS[0]}), "a6", 30, json!({"value": 1}))]);
    until(PATIENCE, "one is parked", || (server.read("/v1/channels/mail")["parked"].as_u64() >= Some(1)).then_some(()));
    complete(&server, &erase(&server, IDS[0], ""));
    let channel = server.read("/v1/channels/mail");
    assert_eq!((&channel["pending"], &channel["parked"], &channel["failed"]), (&json!(0), &json!(0), &json!(0)));
    receiver.answer(|_, _| Reply::Status(200));
    let calls = receiver.calls().len();
    server.kill();
    let server = home.start(&EVENTS);
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(receiver.calls().len(), calls, "nothing of hers goes out any more");
    assert_eq!(holding(&home.path("data"), &all_of_hers()), [""; 0]);
    assert_eq!(server.read("/v1/channels/mail")["parked"], 0);
}

/// Killed at any moment of an erasure, it is carried on; and links that come meanwhile harm nobody.
#[test]
fn an_erasure_that_is_killed_is_carried_on() {
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let (home, other) = (Home::new(&definitions(&receiver)), Home::new(&definitions(&receiver)));
    let mut random = Random::new(11);
    let never = other.start(&EVENTS);
    send(&never, &others(Value::Null));
    settled(&never, 2);
    let expected = answers(&never);
    for life in 0..8 {
        let _ = std::fs::remove_dir_all(home.path("data"));
        let server = home.start(&EVENTS);
        send(&server, &hers());
        send(&server, &others(IDS[1].into()));
        refused(&server);
        // A longer log takes longer to rewrite.
        let filler: Vec<Value> = (0..200)
            .map(|number| {
                track(
                    "view",
                    json!({"userId": IDS[number % 3]}),
                    &format!("f{number}"),
                    8,
                    json!({"says": MARKER.repeat(90)}),
                )
            })
            .collect();
        send(&server, &filler);
        settled(&server, 4);
        let erasure = erase(&server, IDS[0], "");
        // A link that is under way ties nobody to who is gone.
        send(
            &server,
            &[json!({"type": "alias", "userId": "eve", "previousId": IDS[2], "messageId": "l", "timestamp": at(9)})],
        );
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        server.kill();
        let server = home.start(&EVENTS);
        assert_eq!(complete(&server, &erasure), 205, "in life {life}");
        assert_eq!(holding(&home.path("data"), &all_of_hers()), [""; 0], "in life {life}");
        let mut found = answers(&server);
        // The link is an event of eve's.
        let of_eve = |path: &str| path.starts_with("profiles/eve");
        found.retain(|(path, ..)| !of_eve(path));
        let expected: Vec<_> = expected.iter().filter(|(path, ..)| !of_eve(path)).cloned().collect();
        assert_same(&found, &expected);
        assert_eq!(server.read("/v1/profiles/eve")["ids"], json!([{"id": "eve", "known": true}]));
    }
}

/// Where a record's stamp decides, and workers share the ids.
#[test]
fn under_the_clock_of_the_wall_too() {
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let home = Home::new(&definitions(&receiver));
    let mut server = home.start(&["--workers", "3"]);
    let before = server.read("/v1/segments")["as_of"]["clock"].as_i64().expect("an instant");
    let undated = |call: Value| {
        let Value::Object(mut call) = call else { panic!("a call is an object") };
        call.remove("timestamp");
        Value::Object(call)
    };
    for call in hers().into_iter().chain(others(IDS[1].into())) {
        send(&server, &[undated(call)]);
    }
    refused(&server);
    let erasure = erase(&server, IDS[1], "");
    for life in 0..3 {
        assert_eq!(complete(&server, &erasure), 5, "in life {life}");
        assert_eq!(holding(&home.path("data"), &all_of_hers()), [""; 0], "in life {life}");
        for id in IDS {
            assert_eq!(server.get(&format!("/v1/profiles/{id}")).status, 404, "in life {life}");
            let late = json!({"type": "track", "event": "purchase", "anonymousId": id, "timestamp": before,
                "messageId": format!("l{life}"), "properties": {"says": MARKER}});
            assert_eq!(send(&server, &[late])["rejected"][0]["reason"], "erased", "in life {life}");
        }
        let names = json!({"type": "track", "event": "purchase", "userId": "bob", "anonymousId": IDS[1],
            "timestamp": before, "messageId": format!("w{life}"), "properties": {"with": IDS[0], "value": 1}});
        assert_eq!(send(&server, &[names])["accepted"], 1);
        let bob = server.read("/v1/profiles/bob");
        assert_eq!((&bob["ids"], &bob["computed"]["with"]), (&json!([{"id": "bob", "known": true}]), &Value::Null));
        assert_eq!(bob["computed"]["spent"], 6 + life, "in life {life}");
        server.kill();
        server = home.start(&["--workers", "2"]);
    }
    send(&server, &[undated(hers()[1].clone()), json!({"type": "page", "userId": IDS[0], "messageId": "n1"})]);
    let profile = server.read(&format!("/v1/profiles/{}", IDS[0]));
    // The call of before is known by its key; what is new is somebody else's.
    assert_eq!(profile["ids"], json!([{"id": IDS[0], "known": true}]));
    assert_eq!(server.read(&format!("/v1/profiles/{}/events", IDS[0]))["items"].as_array().map(Vec::len), Some(1));
}

/// Of several processes each rewrites its own log, whichever was asked, and whichever is killed.
#[test]
fn every_process_destroys_what_it_has() {
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let home = Home::new(&definitions(&receiver));
    let hosts: Vec<String> = (0..2).map(|_| format!("127.0.0.1:{}\n", free_port())).collect();
    home.write("hosts", hosts.concat());
    let team = || {
        let launch = |process: usize| {
            let (process, data) = (process.to_string(), format!("data{process}"));
            home.launch(&["--hosts", "hosts", "--process", &process, "--data", &data, "--clock", "events"])
        };
        [0, 1].map(launch).map(|server| server.ready().expect("its port was free a moment ago"))
    };
    for taker in [0, 1] {
        for data in ["data0", "data1"] {
            let _ = std::fs::remove_dir_all(home.path(data));
        }
        let servers = team();
        for (number, call) in hers().into_iter().chain(others(IDS[1].into())).enumerate() {
            send(&servers[number % 2], &[call]);
        }
        refused(&servers[1 - taker]);
        settled(&servers[0], 4);
        let erasure = erase(&servers[taker], IDS[0], "");
        let [first, second] = servers;
        first.kill();
        second.ends(PATIENCE).expect("it ends too");
        let servers = team();
        for server in &servers {
            assert_eq!(complete(server, &erasure), 5, "asked of process {taker}");
            assert_eq!(server.get(&format!("/v1/profiles/{}", IDS[1])).status, 404);
            assert_eq!(server.read("/v1/profiles/bob")["computed"]["with"], Value::Null);
        }
        for data in ["data0", "data1"] {
            assert_eq!(holding(&home.path(data), &all_of_hers()), [""; 0]);
        }
        // Nobody is killed this time.
        send(&servers[1 - taker], &[track("purchase", json!({"userId": IDS[0]}), "n", 70, json!({"says": MARKER}))]);
        assert_eq!(complete(&servers[1], &erase(&servers[taker], IDS[0], "")), 1);
        for data in ["data0", "data1"] {
            assert_eq!(holding(&home.path(data), &all_of_hers()), [""; 0]);
        }
    }
}

/// Histories with erasures among them, replayed by workers and by processes: the rows and the counts of the oracle.
#[test]
fn a_replay_erases_as_the_oracle_does() {
    let (mut erased, mut otherwise) = (0, 0);
    for seed in 0..8 {
        let mut random = Random::new(seed);
        let definitions = histories::definitions(&mut random);
        let lateness = (seed % 4 == 3).then_some(60_000);
        // What somebody says of others, who may be erased before or after it; what stands beside it is told then.
        let said = |rest: &str| {
            format!(
                r#"{{"type":"page","userId":"z","timestamp":{START},"properties":{{"page":"a","path":"/z"}},"context":
                {{"campaign":{{"medium":"b","source":"news"}},"page":{{"path":"/c"}}}}{rest}}}"#
            )
            .replace('\n', "")
        };
        let mut lines = vec![said(""), said(r#","messageId":"first""#)];
        for line in (0..2).flat_map(|_| histories::history_of(&mut random, true)).collect::<Vec<_>>() {
            lines.push(line);
            if random.below(12) == 0 {
                lines.push(json!({"type": "erase", "id": random.one(&["a", "b", "c", "d", "e", "?"])}).to_string());
            }
        }
        lines.push(said(r#","messageId":"late""#));
        // So long that it is read in several parts.
        let padded = |line: String| line.replacen(',', &format!(",{}", " ".repeat(20_000)), 1);
        let lines: Vec<String> = lines.into_iter().map(padded).collect();
        let mut oracle = Oracle::new(&definitions).with_lateness(lateness);
        for line in &lines {
            oracle.push(line);
        }
        let report: Value = serde_json::from_str(&oracle.report()).expect("JSON");
        erased += report["rejected"]["erased"].as_u64().expect("a count");
        let dump = oracle.dump();
        let expected = [dump.profiles, dump.sessions, dump.segment_changes, dump.intents, dump.credit];
        otherwise += expected[1].iter().filter(|row| row.contains(r#""entry_page":"/z""#)).count();
        let home = Home::new(&definitions);
        home.write("lines.ndjson", lines.join("\n"));
        let hosts: Vec<String> = (0..2).map(|_| format!("127.0.0.1:{}\n", free_port())).collect();
        home.write("hosts", hosts.concat());
        for how in ["1", "2", "4", "several"] {
            let dir = format!("dump-{how}");
            let mut args = vec!["replay", "lines.ndjson", "--definitions", "thalweg.yaml", "--report", "json"];
            let workers = if how == "several" { "1" } else { how };
            args.extend(["--workers", workers]);
            if lateness.is_some() {
                args.extend(["--lateness", "60s"]);
            }
            let ended = std::thread::scope(|scope| {
                let among = |process| [&args[..], &["--hosts", "hosts", "--process", process]].concat();
                let other = (how == "several").then(|| {
                    let args = among("1");
                    let home = &home;
                    scope.spawn(move || home.run(&args))
                });
                let first = if how == "several" { among("0") } else { args.clone() };
                let ended = home.run(&[&first[..], &["--dump", &dir]].concat());
                if let Some(other) = other {
                    let other = other.join().expect("no panic");
                    assert!(other.status.success(), "{other:?}");
                }
                ended
            });
            assert!(ended.status.success(), "{ended:?}");
            let found: Value = serde_json::from_str(&ended.stdout).expect("a report");
            for key in ["read", "duplicates", "rejected", "profiles", "sessions", "segments", "journeys", "intents"] {
                assert_eq!(found[key], report[key], "{key} of seed {seed}, {how}");
            }
            assert_eq!(found["as_of"]["clock"], oracle.clock(), "seed {seed}, {how}");
            let views = ["profiles", "sessions", "segment_changes", "intents", "credit"];
            for (view, expected) in views.into_iter().zip(&expected) {
                let text =
                    std::fs::read_to_string(home.path(&dir).join(format!("{view}.ndjson"))).expect("it is there");
                let rows: Vec<&str> = text.lines().collect();
                assert_eq!(rows, *expected, "{view} of seed {seed}, {how}");
            }
        }
    }
    assert!(erased > 3 && otherwise > 3, "{erased} calls came too late, {otherwise} are read otherwise");
}

/// The same definitions, and a campaign whose messages go to the broker.
fn definitions_with_queue(receiver: &Receiver) -> String {
    let note = "  note: { when: { event: page_view }, channel: queue, template: 'Hi {{ event.properties.name }}' }\n";
    let text =
        definitions(receiver).replace("channels:\n", &format!("{note}channels:\n  queue: {{ deliver: nats }}\n"));
    assert!(text.contains("queue: { deliver: nats }"));
    text
}

/// Messages that were published so far.
static PUBLISHED: AtomicU64 = AtomicU64::new(0);

/// Publishes bodies to a broker as others do, and waits until it has them; gives the sequence of the last.
fn publish(broker: &Broker, bodies: &[Value]) -> u64 {
    let messages = bodies.iter().map(|body| Message {
        subject: "thalweg.events.outside".to_owned(),
        // Nothing is the same to the broker.
        id: format!("outside:{}", PUBLISHED.fetch_add(1, Ordering::Relaxed)),
        headers: HeaderMap::new(),
        body: body.to_string().into(),
    });
    let messages: Vec<Message> = messages.collect();
    let kept = Runtime::new().expect("a runtime").block_on(async {
        let stream = Stream::open(&broker.url(), &Options::default(), None).await.expect("the broker is there");
        stream.publish_all(&messages).await
    });
    kept.into_iter().map(|kept| kept.expect("it is kept")).max().expect("there are some")
}

/// All that a broker gives out of the stream.
fn messages(broker: &Broker) -> String {
    Runtime::new().expect("a runtime").block_on(async {
        let stream = Stream::open(&broker.url(), &Options::default(), None).await.expect("the broker is there");
        let (last, mut reader) = (stream.last_sequence().await.expect("a number"), stream.reader(stream.beginning()));
        let mut all = String::new();
        while reader.position() < last {
            let Next::Entry(entry) = reader.next().await.expect("it can be read") else { continue };
            all += &format!("{:?} {}\n", entry.headers, String::from_utf8_lossy(&entry.body));
        }
        all
    })
}

/// What is in no file any more, once all that is under way is done.
fn gone(dirs: &[&Path], words: &[&str]) {
    let found = || dirs.iter().flat_map(|dir| holding(dir, words)).collect::<Vec<_>>();
    until(PATIENCE, &format!("nothing holds {words:?}"), || found().is_empty().then_some(()));
}

/// With a stream as the log, over HTTP and from others, alone in messages and beside other people.
#[test]
fn whoever_is_erased_from_a_stream_is_as_if_never_seen() {
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let definitions = definitions_with_queue(&receiver);
    let (home, other) = (Home::new(&definitions), Home::new(&definitions));
    let (mut broker, other_broker) = (Broker::start(), Broker::start());
    let url = broker.url();
    let flags = [&EVENTS[..], &["--nats", &url]].concat();
    let server = home.start(&flags);
    let of_zed = |message: &str| track("purchase", json!({"userId": "zed"}), message, 14, json!({"value": 2}));
    // Together with others: by HTTP one message, from outside one.
    let mut all = hers();
    all.extend(others(IDS[1].into()));
    send(&server, &all[..3]);
    send(&server, &all[3..]);
    let more = track("purchase", json!({"userId": IDS[2]}), "a8", 11, json!({"value": 9, "name": MARKER}));
    let nameless = json!({"type": "track", "userId": IDS[0], "properties": {"says": MARKER}, "timestamp": at(7)});
    publish(&broker, &[json!({"batch": [of_zed("z1"), more, nameless]})]);
    publish(&broker, &[track("view", json!({"userId": IDS[0]}), "a7", 10, json!({"says": MARKER}))]);
    refused(&server);
    settled(&server, 8);
    until(PATIENCE, "all dead letters are in the stream", || {
        (server.read("/v1/dead-letters")["items"].as_array().map(Vec::len) == Some(4)).then_some(())
    });
    assert!(!holding(&broker.store(), &[MARKER]).is_empty(), "the search finds what is there");
    let erasure = erase(&server, IDS[2], "");
    let after = format!("?after={}", erasure["position"].as_str().expect("a position"));
    assert_eq!(server.get(&format!("/v1/profiles/{}{after}", IDS[0])).status, 404);
    assert_eq!(complete(&server, &erasure), 7);
    let (data, store) = (home.path("data"), broker.store());
    assert_eq!(holding(&store, &all_of_hers()), [""; 0]);
    assert_eq!(holding(&data, &all_of_hers()), [""; 0]);
    assert!(!server.get("/v1/dead-letters").text().contains(MARKER));

    let never = other.start(&[&EVENTS[..], &["--nats", &other_broker.url()]].concat());
    send(&never, &others(Value::Null));
    publish(&other_broker, &[json!({"batch": [of_zed("z1")]})]);
    settled(&never, 4);
    let expected = answers(&never);
    assert_same(&answers(&server), &expected);
    assert_eq!(server.read("/v1/profiles/zed")["computed"], never.read("/v1/profiles/zed")["computed"]);
    server.kill();
    let mut server = home.start(&flags);
    for life in 0..2 {
        assert_same(&answers(&server), &expected);
        assert_eq!(complete(&server, &erasure), 7, "in life {life}");
        assert!(!server.said().contains("are lost"), "{}", server.said());
        // What is dated before is hers and comes too late, whether it had come before or not; others' calls are known.
        let late = track("purchase", json!({"anonymousId": IDS[1]}), &format!("l{life}"), 8, json!({"is": MARKER}));
        let told = send(&server, &[hers()[3].clone(), late]);
        assert_eq!((told["accepted"].as_u64(), &told["rejected"][1]["reason"]), (Some(0), &json!("erased")));
        assert_eq!(send(&server, &others(IDS[1].into()))["accepted"], 4);
        // From others too: their message is kept but for what is hers, and a name in what is another's.
        let late = track("purchase", json!({"userId": IDS[0]}), &format!("m{life}"), 8, json!({"says": MARKER}));
        publish(&broker, &[json!({"batch": [of_zed("z1"), late, others(IDS[1].into())[1]]})]);
        gone(&[&store, &data], &all_of_hers());
        assert_same(&answers(&server), &expected);
        server.kill();
        broker.restart();
        server = home.start(&flags);
    }
    assert_same(&answers(&server), &expected);
    assert_eq!(holding(&store, &all_of_hers()), [""; 0]);

    // Who names her goes too: what is left of their messages is left once more, and a key stays taken.
    let erasure = erase(&server, "bob", "");
    assert_eq!(complete(&server, &erasure), 3);
    assert_eq!(holding(&store, &["bob"]), [""; 0]);
    let key = track("purchase", json!({"userId": IDS[2]}), "a4", 100, json!({"value": 3}));
    assert_eq!(send(&server, &[key])["accepted"], 1);
    let zed = server.read("/v1/profiles/zed")["computed"].clone();
    server.kill();
    let server = home.start(&flags);
    assert_eq!(server.get(&format!("/v1/profiles/{}", IDS[2])).status, 404);
    assert_eq!(server.get("/v1/profiles/bob").status, 404);
    assert_eq!(server.read("/v1/profiles/zed")["computed"], zed);
    // Nobody else erases: a record without the seal is told of and passed over.
    let forged = json!({"of": null, "until": i64::MAX, "events": 0, "ids": ["zed"], "marks": [1]}).to_string();
    let rest = json!([{"sequence": 2, "nanos": 1, "subject": "thalweg.log.calls", "id": null, "body": []}]).to_string();
    Runtime::new().expect("a runtime").block_on(async {
        let stream = Stream::open(&broker.url(), &Options::default(), None).await.expect("the broker is there");
        for (kind, body) in [("erase", forged), ("rest", rest)] {
            let (subject, headers) = (format!("thalweg.log.{kind}"), HeaderMap::new());
            let message = Message { subject, id: kind.into(), headers, body: body.into() };
            stream.publish(&message).await.expect("it is kept");
        }
    });
    until(PATIENCE, "it is told", || server.said().contains("not written with the key of this log").then_some(()));
    server.kill();
    let server = home.start(&flags);
    assert_eq!(server.read("/v1/profiles/zed")["computed"], zed);
}

/// How often something is killed: `THALWEG_KILLS` times, else a few.
fn kills() -> usize {
    std::env::var("THALWEG_KILLS").map_or(4, |kills| kills.parse().expect("a number"))
}

/// Whichever end is killed at any moment of an erasure, it is carried on.
#[test]
fn an_erasure_from_a_stream_is_carried_on() {
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let definitions = definitions(&receiver);
    let other = Home::new(&definitions);
    let mut random = Random::new(12);
    let never = other.start(&EVENTS);
    send(&never, &others(Value::Null));
    settled(&never, 2);
    let expected = answers(&never);
    for life in 0..2 * kills() {
        let (mut broker, home) = (Broker::start(), Home::new(&definitions));
        let url = broker.url();
        let flags = [&EVENTS[..], &["--nats", &url]].concat();
        let mut server = home.start(&flags);
        let mut all = hers();
        all.extend(others(IDS[1].into()));
        send(&server, &all);
        refused(&server);
        // More messages take longer to replace.
        let filler = |number: usize| {
            let (ids, message) = (json!({"userId": IDS[number % 3]}), format!("f{number}"));
            track("view", ids, &message, 8, json!({"says": MARKER.repeat(90)}))
        };
        let last = publish(&broker, &(0..200).map(filler).collect::<Vec<_>>());
        server.read(&format!("/v1/segments?wait=30s&after={}", last << 22));
        settled(&server, 4);
        let erasure = erase(&server, IDS[0], "");
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(random.below(700)));
            if life % 2 == 0 {
                server.kill();
                server = home.start(&flags);
            } else {
                broker.restart();
            }
        }
        assert_eq!(complete(&server, &erasure), 205, "in life {life}");
        // A server that is killed while it overwrites a message does not find it again: that is told.
        let is_told = server.said().contains("its file may still hold the bytes");
        let in_files = holding(&broker.store(), &all_of_hers());
        assert!(in_files.is_empty() || life % 2 == 1 && is_told, "in life {life}: {in_files:?}");
        let messages = messages(&broker);
        assert!(all_of_hers().iter().all(|word| !messages.contains(word)), "in life {life}");
        assert_eq!(holding(&home.path("data"), &all_of_hers()), [""; 0], "in life {life}");
        assert_same(&answers(&server), &expected);
        server.kill();
        broker.restart();
        let server = home.start(&flags);
        assert_same(&answers(&server), &expected);
        assert_eq!(complete(&server, &erasure), 205, "in life {life}");
        assert!(!server.said().contains("are lost"), "{}", server.said());
    }
}

/// Of several processes that share a stream the leader destroys what there is, whichever was asked.
#[test]
fn processes_that_share_a_stream_erase_as_one() {
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let (home, broker) = (Home::new(&definitions(&receiver)), Broker::start());
    let hosts: Vec<String> = (0..2).map(|_| format!("127.0.0.1:{}\n", free_port())).collect();
    home.write("hosts", hosts.concat());
    let team = || {
        let launch = |process: usize| {
            let (process, data, url) = (process.to_string(), format!("data{process}"), broker.url());
            let among = ["--hosts", "hosts", "--process", &process, "--data", &data, "--nats", &url];
            home.launch(&[&among[..], &EVENTS].concat())
        };
        [0, 1].map(launch).map(|server| server.ready().expect("its port was free a moment ago"))
    };
    let servers = team();
    for (number, call) in hers().into_iter().chain(others(IDS[1].into())).enumerate() {
        send(&servers[number % 2], &[call]);
    }
    refused(&servers[1]);
    settled(&servers[0], 4);
    let erasure = erase(&servers[1], IDS[0], "");
    let late =
        |number: usize| track("view", json!({"userId": IDS[0]}), &format!("l{number}"), 5, json!({"is": MARKER}));
    let everywhere = || ["data0", "data1"].map(|data| home.path(data));
    let mut servers = Some(servers);
    for _ in 0..2 {
        let servers = servers.take().unwrap_or_else(team);
        assert!(servers.iter().all(|server| complete(server, &erasure) == 5));
        // So many that each process takes some of them apart.
        publish(&broker, &(0..150).map(late).collect::<Vec<_>>());
        let [first, second] = everywhere();
        gone(&[&broker.store(), &first, &second], &all_of_hers());
        for server in &servers {
            assert_eq!(server.get(&format!("/v1/profiles/{}", IDS[1])).status, 404);
            assert_eq!(server.read("/v1/profiles/bob")["computed"]["with"], Value::Null);
            assert!(!server.said().contains("are lost"), "{}", server.said());
        }
        let [first, second] = servers;
        first.kill();
        second.ends(PATIENCE).expect("it ends too");
    }
}
