//! Retention, by the real binary: bodies that are older go from the files, and every answer of a definition that stands
//! is that of a server that keeps everything, whenever the process is killed. What is defined later sees what is later.

mod oracle;
mod process;

use std::collections::BTreeMap;
use std::time::Duration;

use oracle::Oracle;
use process::{Home, Server, until};
use serde_json::{Value, json};

/// A debug build on a busy machine may take this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600_000;
const DAY: i64 = 86_400_000;
const EVENTS: [&str; 2] = ["--clock", "events"];
/// Words that no definition names; and one that is looked for in vain only once it is old.
const OLD: &str = "an-old-word";
const NEW: &str = "a-new-word";

const DEFINITIONS: &str = r#"
version: 1
retention: 10d
lateness: 1d
touchpoints: [ { event: click, channel: properties.channel } ]
conversions: [ { name: purchase, event: purchase, id: properties.order, value: properties.value,
                 refund: { event: refund, id: properties.order } } ]
attribution: { lookback: 5d, models: [first_touch, linear] }
traits: { spent: { sum: properties.value, of: purchase } }
segments: { buyers: { performed: purchase } }
journeys:
  shop: { start: out, states: { out: { transitions: [ { event: purchase, to: in } ] }, in: {} } }
campaigns:
  hello: { when: { event: page_view }, channel: popup, expires: 5d, template: 'Hello {{ event.properties.name }}' }
channels: { popup: { deliver: sse } }
"#;

fn at(day: f64) -> i64 {
    START + (day * DAY as f64) as i64
}

fn call(kind: &str, who: &str, message: &str, day: f64, rest: Value) -> Value {
    let mut call = json!({"type": kind, "userId": who, "messageId": message, "timestamp": at(day)});
    call.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
    call
}

fn track(event: &str, who: &str, message: &str, day: f64, properties: Value) -> Value {
    call("track", who, message, day, json!({"event": event, "properties": properties}))
}

/// What comes on the first day: everything that there is to see, and words that nobody looks at.
fn first_day() -> Vec<Value> {
    let context = json!({"userAgent": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X)", "ip": OLD,
        "page": {"path": "/start", "url": OLD}, "campaign": {"medium": "cpc", "term": OLD}, "timezone": "Europe/Berlin",
        "consent": {"categoryPreferences": {"marketing": true}}});
    let purchase = json!({"order": "o1", "value": 5, "note": OLD, "many": [1, 2, 3], "deep": {"er": OLD}});
    vec![
        call("page", "ada", "m1", 0.0, json!({"properties": {"name": "Ada", "note": OLD}, "context": context})),
        track("click", "ada", "m2", 0.1, json!({"channel": "mail", "note": OLD})),
        call("identify", "ada", "m3", 0.2, json!({"anonymousId": "phone", "traits": {"plan": "gold"}})),
        call("alias", "ada", "m4", 0.3, json!({"previousId": "countess", "traits": {"note": OLD}})),
        track("purchase", "ada", "m5", 0.4, purchase),
        track("purchase", "bob", "m6", 0.4, json!({"order": "o2", "value": 7, "note": OLD})),
        track("looked", "eve", "m7", 0.5, json!({"note": OLD, "long": "x".repeat(3_000)})),
        track("purchase", "ada", "m5", 0.4, json!({"order": "o1", "value": 6, "note": OLD})),
    ]
}

fn later() -> Vec<Value> {
    vec![
        track("purchase", "ada", "n1", 5.0, json!({"order": "o3", "value": 2, "note": NEW, "colour": "red"})),
        track("click", "eve", "n2", 6.0, json!({"channel": "ads", "note": NEW})),
        track("refund", "bob", "n3", 7.0, json!({"order": "o2"})),
    ]
}

fn send(server: &Server, calls: &[Value]) -> Value {
    server.write("/v1/batch", &json!({"batch": calls}))
}

/// Lets days pass, one after the other.
fn pass(server: &Server, from: i64, to: i64) {
    for day in from..=to {
        server.write("/v1/clock", &json!({"to": START + day * DAY}));
    }
}

fn holds(home: &Home, word: &str) -> bool {
    let has = |bytes: Vec<u8>| bytes.windows(word.len()).any(|part| part == word.as_bytes());
    home.segments().into_iter().any(|path| has(std::fs::read(path).expect("it can be read")))
}

fn bytes(home: &Home) -> u64 {
    home.segments().into_iter().map(|path| path.metadata().expect("it is there").len()).sum()
}

/// What does not depend on where a record stands.
fn law(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept =
                members.into_iter().filter(|(key, _)| !["position", "active_since", "history_from"].contains(&&**key));
            kept.map(|(key, of)| (key, law(of))).collect()
        }
        Value::Array(items) => items.into_iter().map(law).collect(),
        other => other,
    }
}

/// Every answer but the bodies.
fn answers(server: &Server) -> Vec<(String, u16, Value)> {
    let plain = [
        "segments",
        "segments/buyers/members",
        "journeys/shop",
        "sessions",
        "sessions/summary",
        "campaigns",
        "campaigns/hello/intents",
        "attribution?model=first_touch&by=campaign",
        "attribution?model=linear",
    ];
    let mut paths: Vec<String> = plain.map(Into::into).into();
    for id in ["ada", "phone", "countess", "bob", "eve"] {
        for view in ["", "/sessions", "/touchpoints", "/conversions", "/intents", "/segments/changes"] {
            paths.push(format!("profiles/{id}{view}"));
        }
        paths.push(format!("profiles/{id}/explain?segment=buyers"));
    }
    let answer = |path: String| {
        let answer = server.get(&format!("/v1/{path}"));
        (path, answer.status, law(answer.json()))
    };
    paths.into_iter().map(answer).collect()
}

fn assert_same(server: &Server, twin: &Server) {
    for (found, expected) in answers(server).iter().zip(&answers(twin)) {
        assert_eq!(found, expected);
    }
}

fn letters(server: &Server) -> Vec<(Value, String)> {
    let items = server.read("/v1/dead-letters")["items"].clone();
    let letter = |of: &Value| (of["reason"].clone(), of["body"].as_str().unwrap_or_default().to_owned());
    items.as_array().expect("a list").iter().map(letter).collect()
}

#[test]
fn old_bodies_go_and_no_answer_of_what_stands_changes() {
    let (home, keeps) = (Home::new(DEFINITIONS), Home::new(&DEFINITIONS.replace("10d", "unlimited")));
    let (mut server, mut twin) = (home.start(&EVENTS), keeps.start(&EVENTS));
    for server in [&server, &twin] {
        send(server, &first_day());
        until(PATIENCE, "she is greeted", || {
            let campaign = server.read("/v1/campaigns/hello");
            (campaign["by_status"]["sent"] == 1).then_some(())
        });
        send(server, &[json!({"type": "track", "userId": "ada", "timestamp": at(0.5), "properties": {"says": OLD}})]);
        pass(server, 1, 4);
        send(server, &later()[..1]);
        pass(server, 5, 5);
        send(server, &later()[1..2]);
        pass(server, 6, 6);
        send(server, &later()[2..]);
        pass(server, 7, 11);
    }
    assert!(holds(&home, OLD), "the search finds what is there");
    // While it is rewritten it is killed, again and again.
    for life in 0..6 {
        pass(&server, 12, 13);
        std::thread::sleep(Duration::from_millis(7 * life));
        server.kill();
        server = home.start(&EVENTS);
    }
    pass(&server, 12, 14);
    pass(&twin, 12, 14);
    until(PATIENCE, "old bodies are gone", || (!holds(&home, OLD)).then_some(()));
    assert!(holds(&home, NEW) && holds(&keeps, OLD));
    assert!(bytes(&home) + 1_000 < bytes(&keeps), "{} and {} bytes", bytes(&home), bytes(&keeps));
    assert_same(&server, &twin);
    server.kill();
    server = home.start(&EVENTS);
    assert_same(&server, &twin);

    // What is left of an event is told as that.
    let row = |server: &Server, message: &str| {
        let items = server.read("/v1/profiles/ada/events")["items"].clone();
        items.as_array().expect("a list").iter().find(|row| row["messageId"] == message).cloned().expect("it is listed")
    };
    let old = row(&server, "m5");
    assert_eq!((&old["beyond_retention"], &old["properties"]), (&json!(true), &json!({"order": "o1", "value": 5})));
    assert_eq!(row(&server, "m1")["properties"], json!({"name": "Ada"}));
    assert!(row(&server, "n1").get("beyond_retention").is_none() && row(&server, "n1") == row(&twin, "n1"));
    // Both were refused for the same reasons; of what is old the bodies are gone.
    let (found, expected) = (letters(&server), letters(&twin));
    assert_eq!(expected.len(), 2);
    for ((reason, body), (expected, whole)) in found.iter().zip(&expected) {
        assert!(reason == expected && body.is_empty() && whole.contains(OLD), "{found:?}");
    }

    // Old events that come again are what they always were.
    let mut again = first_day();
    again[5]["properties"]["value"] = 8.into();
    for server in [&server, &twin] {
        send(server, &again);
    }
    let reasons = |server: &Server| letters(server).into_iter().map(|(reason, _)| reason).collect::<Vec<_>>();
    assert_eq!((reasons(&server).len(), reasons(&server)), (4, reasons(&twin)));

    // A condition that needs what is gone is refused; one that does not is exact.
    let retract = |server: &Server, body: Value| server.post("/v1/events:retract", body.to_string());
    let wanted = |condition: &str| json!({"where": condition, "preview": true});
    let refused = retract(&server, wanted(&format!(r#"properties.note == "{OLD}""#)));
    assert_eq!(refused.status, 409);
    assert!(refused.text().contains("retention"), "{}", refused.text());
    // Nor is anything taken back: what would be selected beside it stands as before.
    let some = format!(r#"properties.note == "{OLD}" || properties.note == "{NEW}""#);
    let refused = retract(&server, json!({"where": some}));
    assert_eq!((refused.status, refused.text().contains("retention")), (409, true), "{}", refused.text());
    assert_same(&server, &twin);
    for condition in
        [r#"event == "purchase" && properties.value == 5"#, r#"event == "refund" && properties.note == "x""#]
    {
        let [found, expected] = [&server, &twin].map(|server| retract(server, wanted(condition)).json());
        assert_eq!(law(found["sample"].clone()), law(expected["sample"].clone()));
    }
    for server in [&server, &twin] {
        assert_eq!(retract(server, json!({"id": "bob", "messageId": "m6"})).status, 200);
        assert_eq!(retract(server, json!({"where": r#"event == "click""#})).json()["events"], 2);
        server.write("/v1/identities:unlink", &json!({"a": "countess", "b": "ada"}));
    }
    assert_same(&server, &twin);
    server.kill();
    twin.kill();
    (server, twin) = (home.start(&EVENTS), keeps.start(&EVENTS));
    assert_same(&server, &twin);
}

/// What is defined at a clock sees what is later than the retention before it, also after a restart and by the file.
#[test]
fn what_is_defined_later_sees_what_is_later() {
    let home = Home::new(DEFINITIONS);
    let mut server = home.start(&EVENTS);
    send(&server, &first_day());
    pass(&server, 1, 4);
    for call in later() {
        send(&server, &[call]);
    }
    pass(&server, 8, 14);
    let new = json!({
        "segments": {"recent": {"performed": "purchase"}, "idle": {"not_performed": "purchase"},
            "red": {"performed": "purchase", "where": "properties.colour == \"red\""}},
        "traits": {"paid": {"sum": "properties.value", "of": "purchase"}, "seen": {"count": ["purchase", "click"]}},
        "journeys": {"again": {"start": "out", "states": {"out": {"transitions": [{"event": "purchase", "to": "in"}],
            "timers": [{"after": "2d", "emit": "bored"}]}, "in": {}}}}});
    let preview = server.write("/v1/segments:preview", &json!({"definition": {"performed": "purchase"}}));
    assert_eq!(preview["sample"], json!(["ada"]));
    for (kind, named) in new.as_object().expect("an object") {
        for (name, document) in named.as_object().expect("an object") {
            let path = format!("/v1/definitions/{kind}/{name}");
            let given = server.ask("PUT", &format!("{path}?wait=30s"), &[], document.to_string().as_bytes());
            assert_eq!(given.status, 200, "{}", given.text());
            assert_eq!(server.read(&path)["history_from"], at(4.0), "the clock, less ten days");
        }
    }
    assert_eq!(history_from(&server, &["segments/red", "journeys/again"]), [at(4.0); 2]);
    // An oracle that is told nothing of what is older.
    let mut oracle = Oracle::new(&new.to_string());
    let all = first_day().into_iter().chain(later()).filter(|call| call["timestamp"].as_i64() > Some(at(4.0)));
    all.for_each(|call| _ = oracle.push(&call.to_string()));
    oracle.push(&json!({"type": "clock", "to": at(14.0)}).to_string());
    let rows =
        oracle.dump().profiles.iter().map(|row| serde_json::from_str(row).expect("JSON")).collect::<Vec<Value>>();
    let expected: BTreeMap<&str, &Value> = rows.iter().map(|row| (row["id"].as_str().expect("an id"), row)).collect();
    assert_eq!(expected.keys().collect::<Vec<_>>(), [&"ada", &"bob", &"eve"]);
    for life in 0..2 {
        for (id, row) in &expected {
            let found = server.read(&format!("/v1/profiles/{id}"));
            let is_new = |of: &&Value| new["segments"].get(of["name"].as_str().unwrap_or_default()).is_some();
            let segments = found["segments"].as_array().expect("a list").iter().filter(is_new).cloned();
            assert_eq!(Value::from(segments.collect::<Vec<_>>()), row["segments"], "{id} in life {life}");
            for (part, name) in [("computed", "paid"), ("computed", "seen"), ("journeys", "again")] {
                assert_eq!(found[part][name], row[part][name], "{name} of {id} in life {life}");
            }
            // What stands knows everything.
            assert_eq!(found["journeys"]["shop"]["state"], if *id == "eve" { "out" } else { "in" });
        }
        assert_eq!(server.read("/v1/segments/buyers")["history_from"], Value::Null);
        assert_eq!((size(&server, "buyers"), size(&server, "recent")), (2, 1));
        server.kill();
        server = home.start(&EVENTS);
    }
    // Every answer says since when what it rests on knows the past; of conversions, that of the rules asked for.
    let late = json!({"when": {"event": "page_view"}, "audience": "recent", "channel": "popup", "template": "x"});
    let rules = json!([{"name": "purchase", "event": "purchase", "id": "properties.order", "value": "properties.value",
        "refund": {"event": "refund", "id": "properties.order"}}, {"name": "look", "event": "looked"}]);
    for (path, document) in [("campaigns/late", late), ("conversions/all", rules)] {
        let path = format!("/v1/definitions/{path}?wait=30s");
        let given = server.ask("PUT", &path, &[], document.to_string().as_bytes());
        assert_eq!(given.status, 200, "{}", given.text());
    }
    let all = ["campaigns/hello", "journeys/shop", "attribution?conversion=purchase"];
    assert_eq!(history_from(&server, &all), [Value::Null, Value::Null, Value::Null]);
    let all = ["campaigns/late", "attribution", "attribution?conversion=look"];
    assert_eq!(history_from(&server, &all), [at(4.0); 3]);
    // What the file changes begins with the clock at which the log stood.
    server.kill();
    let file = DEFINITIONS.replace("buyers: { performed: purchase }", "buyers: { performed: purchase, times: 1 }");
    home.write("thalweg.yaml", file.replace("10d", "12d"));
    let server = home.start(&EVENTS);
    assert_eq!(server.read("/v1/segments/buyers")["history_from"], at(4.0), "what ten days have dropped stays dropped");
    assert_eq!(size(&server, "buyers"), 1);
    assert_eq!(server.read("/v1/segments/recent")["history_from"], at(4.0));
}

fn history_from(server: &Server, of: &[&str]) -> Vec<Value> {
    of.iter().map(|path| server.read(&format!("/v1/{path}"))["history_from"].clone()).collect()
}

fn size(server: &Server, segment: &str) -> i64 {
    server.read(&format!("/v1/segments/{segment}"))["size"].as_i64().expect("a number")
}
