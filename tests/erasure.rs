//! Erasing somebody, by the real binary: nothing of them is in any file, every answer is that of a server that never
//! heard of them, whenever the process is killed; and a replay says what the oracle says.

mod histories;
mod oracle;
mod process;
mod receiver;

use std::path::{Path, PathBuf};
use std::time::Duration;

use histories::Random;
use oracle::Oracle;
use process::sse::Subscription;
use process::{Home, Server, free_port, until};
use receiver::{Receiver, Reply};
use serde_json::{Value, json};

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
    let entries = std::fs::read_dir(dir).expect("it can be listed").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Files that hold any of these.
fn holding(dir: &Path, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in files(dir) {
        let bytes = std::fs::read(&path).expect("it can be read");
        let has = |word: &&&str| bytes.windows(word.len()).any(|part| part == word.as_bytes());
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
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let home = Home::new(&(definitions(&receiver) + "identity: { max_ids: 3 }\n"));
    let mut server = home.start(&EVENTS);
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
        server = home.start(&EVENTS);
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
    let mut erased = 0;
    for seed in 0..8 {
        let mut random = Random::new(seed);
        let definitions = histories::definitions(&mut random);
        let lateness = (seed % 4 == 3).then_some(60_000);
        let mut lines = Vec::new();
        for line in (0..2).flat_map(|_| histories::history(&mut random)).collect::<Vec<_>>() {
            lines.push(line);
            if random.below(12) == 0 {
                lines.push(json!({"type": "erase", "id": random.one(&["a", "b", "c", "d", "e", "?"])}).to_string());
            }
        }
        let mut oracle = Oracle::new(&definitions).with_lateness(lateness);
        for line in &lines {
            oracle.push(line);
        }
        let report: Value = serde_json::from_str(&oracle.report()).expect("JSON");
        erased += report["rejected"]["erased"].as_u64().expect("a count");
        let dump = oracle.dump();
        let expected = [dump.profiles, dump.sessions, dump.segment_changes, dump.intents, dump.credit];
        let home = Home::new(&definitions);
        // So long that it is read in several parts.
        let padded = |line: &String| line.replacen(',', &format!(",{}", " ".repeat(20_000)), 1);
        home.write("lines.ndjson", lines.iter().map(padded).collect::<Vec<_>>().join("\n"));
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
    assert!(erased > 3, "{erased} calls came too late");
}
