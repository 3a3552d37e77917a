//! The binary from outside: calls in over HTTP, answers, subscriptions, kills and restarts, refusals.
//!
//! What an answer must be comes from the contract, and from the oracle where it is a matter of the law.

mod histories;
mod oracle;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dataflows::event::Kind;
use histories::Random;
use oracle::Oracle;
use process::gzip::gzip;
use process::http::{self, Answer};
use process::sse::{Message, Subscription};
use process::{Home, Server, free_port, until};
use serde_json::{Value, json};
use server::log::Log;
use server::record::{EVENT, encode_event};

/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600_000;
const HOUR: i64 = 3_600_000;
const EVENTS: [&str; 2] = ["--clock", "events"];

/// A shop, as JSON, since the oracle reads no YAML.
const SHOP: &str = r#"{"version":1,
"sessions":{"gap":"30m","buying":["add_to_cart"]},
"touchpoints":[{"event":"ad_click","channel":"properties.channel","campaign":"properties.campaign"}],
"conversions":[{"name":"purchase","event":"purchase","id":"properties.order","value":"properties.value"}],
"attribution":{"models":["first_touch","last_touch","linear"]},
"traits":{
  "purchases":{"count":"purchase"},
  "spent":{"sum":"properties.value","of":"purchase","within":"1h"},
  "sections":{"unique":"properties.section","of":["page_view","screen_view"]},
  "visits":{"count":"session"}},
"segments":{
  "new":{"visitor":"first_time"},
  "known":{"visitor":"known"},
  "buyer":{"trait":"purchases","at_least":1},
  "gold":{"trait":"plan","equals":"gold"},
  "quiet":{"not_performed":"purchase","within":"10m"}},
"journeys":{"cart":{"start":"shopping","states":{
  "shopping":{"transitions":[{"event":"add_to_cart","to":"carted"}]},
  "carted":{"transitions":[{"event":"purchase","to":"bought"}],
    "timers":[{"after":"5m","since":"add_to_cart","emit":"cart_left","to":"left"}]},
  "bought":{"transitions":[{"event":"add_to_cart","to":"carted"}]},
  "left":{"transitions":[{"event":"add_to_cart","to":"carted"}]}}}},
"campaigns":{"hello":{"when":{"event":"page_view"},"audience":"new","channel":"popup","data":{"amount":5}}},
"channels":{"popup":{"deliver":"sse","realtime":true}}}"#;

fn shop_oracle() -> Oracle {
    Oracle::new(SHOP).with_lateness(Some(30 * 24 * HOUR))
}

/// The oracle's row of the profile that has an id.
fn oracle_row(oracle: &Oracle, id: &str) -> Value {
    let rows =
        oracle.dump().profiles.into_iter().map(|row| serde_json::from_str::<Value>(&row).expect("rows are JSON"));
    let has = |row: &Value| row["ids"].as_array().is_some_and(|ids| ids.iter().any(|known| known["id"] == id));
    rows.into_iter().find(has).unwrap_or_else(|| panic!("the oracle knows no {id}"))
}

/// An answer without the time at which it is true, which must be there; and without what no view has: how ids were
/// linked.
fn without_as_of(mut answer: Value) -> Value {
    let members = answer.as_object_mut().expect("an object");
    let as_of = members.remove("as_of").expect("an answer says as of when");
    assert!(as_of["position"].is_string() && as_of["clock"].is_i64(), "{as_of}");
    members.remove("linked_by");
    // The oracle tells what was answered, not where.
    let all = members.get_mut("consent").and_then(Value::as_object_mut);
    for consent in all.into_iter().flat_map(|all| all.values_mut()) {
        consent.as_object_mut().expect("an object").retain(|key, _| !["source", "event"].contains(&key.as_str()));
    }
    answer
}

/// The items of a list, all parts of it, in parts of `limit`.
fn items(server: &Server, path: &str, limit: usize) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let part = server.read(&format!("{path}?limit={limit}{cursor}"));
        let found = part["items"].as_array().expect("a list has items");
        assert!(found.len() <= limit, "{path} gives more than its limit");
        items.extend(found.iter().cloned());
        match part["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

fn is_problem(answer: &Answer, status: u16, slug: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/problem+json", "{}", answer.text());
    let problem = answer.json();
    let kind = problem["type"].as_str().unwrap_or_default();
    assert!(kind.ends_with(&format!("/problems/{slug}")), "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
    let has_text = |key: &str| problem[key].as_str().is_some_and(|text| !text.is_empty());
    assert!(has_text("title") && has_text("detail") && problem["errors"].is_array(), "{problem}");
}

/// What an answer to calls must be, whatever its position is; gives the position.
fn taken(answer: &Value, accepted: usize, rejected: &Value) -> String {
    let position = answer["position"].as_str().unwrap_or_else(|| panic!("no position in {answer}")).to_owned();
    let expected = json!({"success": true, "position": position, "accepted": accepted, "rejected": rejected});
    assert_eq!(answer, &expected);
    position
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_millis() as i64
}

// Calls.

const ROUTES: [(&str, &str); 7] =
    [("track", "t"), ("identify", "i"), ("page", "p"), ("screen", "s"), ("group", "g"), ("alias", "a"), ("batch", "b")];

/// A call of a kind: the id it belongs to, and its body without a type.
fn call(kind: &str, number: i64) -> (&'static str, Value) {
    let (id, mut body) = match kind {
        "track" => ("ada", track(number)),
        "identify" => {
            let consent = json!({"consent": {"categoryPreferences": {"marketing": number % 2 == 0}}});
            let traits = json!({"plan": (["gold", "free"][number as usize % 2]), "age": number, "city": null});
            ("ada", json!({"userId": "ada", "anonymousId": "web-1", "traits": traits, "context": consent}))
        }
        "page" => {
            let properties = json!({"path": "/shoes", "section": format!("s{}", number % 3)});
            ("web-1", json!({"anonymousId": "web-1", "name": "Shoes", "properties": properties}))
        }
        "screen" => ("phone-1", json!({"anonymousId": "phone-1", "name": "Start", "context": {"os": {"name": "iOS"}}})),
        "group" => ("ada", json!({"userId": "ada", "groupId": "team", "traits": {"size": 3}})),
        "alias" => ("phone-1", json!({"userId": "ada", "previousId": "phone-1"})),
        _ => panic!("no call is named {kind}"),
    };
    body["messageId"] = json!(format!("m{number}"));
    body["timestamp"] = json!(START + number * 60_000);
    (id, body)
}

fn track(number: i64) -> Value {
    let (event, properties) = match number % 4 {
        0 => ("ad_click", json!({"channel": "search", "campaign": "winter"})),
        1 => ("add_to_cart", json!({"items": number})),
        2 => ("purchase", json!({"order": format!("o{number}"), "value": 19.99})),
        _ => ("purchase", json!({"order": format!("o{number}"), "value": "not a number"})),
    };
    json!({"userId": "ada", "anonymousId": "web-1", "event": event, "properties": properties})
}

/// The body of a batch, and the lines that the oracle reads of it.
fn batch(number: i64) -> (Value, Vec<Value>) {
    let calls = [("page", number), ("track", number + 1)].map(|(kind, number)| typed(kind, call(kind, number).1));
    (json!({"batch": calls, "writeKey": "any", "sentAt": "2026-01-01T00:00:00Z"}), calls.to_vec())
}

fn typed(kind: &str, mut body: Value) -> Value {
    body["type"] = json!(kind);
    body
}

/// Sends a body in one of the ways in which clients do.
fn post(server: &Server, path: &str, way: usize, body: &Value) -> Answer {
    let text = body.to_string();
    let headers: &[(&str, &str)] = match way {
        0 => &[("content-type", "application/json")],
        1 => &[("content-type", "text/plain;charset=UTF-8")],
        2 => &[("content-type", "application/x-www-form-urlencoded")],
        3 => &[("content-type", "application/json"), ("content-encoding", "gzip")],
        _ => &[],
    };
    let packed = gzip(text.as_bytes());
    // Gzip is known by its bytes, not by its header.
    server.ask("POST", path, headers, if way >= 3 { &packed } else { text.as_bytes() })
}

#[test]
fn every_route_takes_calls_and_answers_equal_the_oracles() {
    for workers in ["1", "3"] {
        let home = Home::new(SHOP);
        let server = home.start(&[&EVENTS[..], &["--workers", workers]].concat());
        let mut oracle = shop_oracle();
        let mut number = 0;
        for way in 0..5 {
            for (name, path) in ROUTES.iter().flat_map(|(long, short)| [(*long, *long), (*long, *short)]) {
                number += 2;
                route_equals_the_oracle(&server, &mut oracle, (name, path), way, number);
            }
        }
        histories_equal_the_oracles(&server, &oracle);
    }
}

/// Sends one body to a route; what it changes must be what it changes in the oracle.
fn route_equals_the_oracle(server: &Server, oracle: &mut Oracle, route: (&str, &str), way: usize, number: i64) {
    let (name, path) = route;
    let (id, body, lines) = if name == "batch" {
        let (body, lines) = batch(number);
        ("web-1", body, lines)
    } else {
        let (id, body) = call(name, number);
        (id, body.clone(), vec![typed(name, body)])
    };
    let answer = post(server, &format!("/v1/{path}"), way, &body);
    assert_eq!(answer.status, 200, "{path}, way {way}: {}", answer.text());
    let position = taken(&answer.json(), lines.len(), &json!([]));
    for line in lines {
        assert_eq!(oracle.push(&line.to_string()), "accepted", "{line}");
    }
    let found = server.read(&format!("/v1/profiles/{id}?after={position}"));
    assert_eq!(found["as_of"]["clock"], oracle.clock());
    assert_eq!(without_as_of(found), oracle_row(oracle, id), "after {body} to {path}");
}

/// Sessions, segment changes and intents of the one profile, newest first.
fn histories_equal_the_oracles(server: &Server, oracle: &Oracle) {
    let dump = oracle.dump();
    assert_eq!(dump.profiles.len(), 1);
    let id = |row: &Value| (row["at"].as_i64(), row["start"].as_i64(), row.to_string());
    for (view, expected) in [("sessions", dump.sessions), ("segments/changes", dump.segment_changes)] {
        let mut found = items(server, &format!("/v1/profiles/ada/{view}"), 7);
        let times: Vec<_> = found.iter().map(|row| id(row).0.max(id(row).1)).collect();
        assert!(times.is_sorted_by(|newer, older| newer >= older), "{view}: {times:?}");
        found.sort_by_key(id);
        let mut expected: Vec<Value> = expected.iter().map(|row| serde_json::from_str(row).expect("JSON")).collect();
        expected.sort_by_key(id);
        assert_eq!(found, expected, "{view}");
    }
    let found = items(server, "/v1/profiles/web-1/intents", 7).len();
    assert_eq!(found, dump.intents.len());
    assert!(found > 0);
}

#[test]
fn an_event_row_has_every_field_and_what_is_left_out_is_settled() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let (_, first) = call("track", 2);
    let position = taken(&server.write("/v1/track", &first), 1, &json!([]));
    server.read(&format!("/v1/profiles/ada?after={position}"));
    let second = server.write("/v1/page", &json!({"anonymousId": "web-1"}));
    taken(&second, 1, &json!([]));
    let rows = items(&server, "/v1/profiles/ada/events", 1);
    let expected = json!({"profile": "ada", "type": "track", "event": "purchase", "name": null, "messageId": "m2",
        "userId": "ada", "anonymousId": "web-1", "previousId": null, "groupId": null, "timestamp": START + 120_000,
        "received_at": START + 120_000, "properties": first["properties"], "traits": null, "context": null});
    assert_eq!(rows.len(), 2, "{rows:?}");
    let mine = rows.iter().position(|row| row["messageId"] == "m2").expect("the event is listed");
    assert_eq!(rows[mine], expected);
    // Without a timestamp it is now by the clock of events; without a message id it is given one.
    let other = &rows[1 - mine];
    assert_eq!(other["timestamp"], START + 120_000);
    assert!(other["messageId"].as_str().is_some_and(|id| !id.is_empty()), "{other}");
    let keys = |row: &Value| row.as_object().map(|row| row.keys().cloned().collect::<BTreeSet<_>>());
    assert_eq!(keys(other), keys(&expected));
}

#[test]
fn an_event_without_a_time_is_not_dated_before_what_was_acknowledged() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let mut stale = 0;
    for number in 0..100 {
        let timestamp = START + number * 60_000;
        server.write("/v1/page", &json!({"userId": "ada", "messageId": format!("a{number}"), "timestamp": timestamp}));
        server.write("/v1/page", &json!({"userId": "bob", "messageId": format!("b{number}")}));
        let newest = server.read("/v1/profiles/bob")["last_seen"].as_i64().expect("ms");
        stale += i32::from(newest < timestamp);
    }
    assert_eq!(stale, 0, "of a hundred events without a time, so many are dated before the clock");
}

#[test]
fn an_event_without_a_time_has_none_before_the_clock_of_events_has_one() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let answer = server.write("/v1/page", &json!({"userId": "ada", "messageId": "m1"}));
    if answer["accepted"] == 0 {
        return assert_eq!(answer["rejected"][0]["reason"], "bad_timestamp");
    }
    let rows = items(&server, "/v1/profiles/ada/events", 10);
    let timestamp = rows[0]["timestamp"].as_i64().expect("ms");
    assert!(timestamp >= 946_684_800_000, "an event of {timestamp} ms was accepted: before the year 2000");
}

#[test]
fn the_clock_of_events_moves_forward_alone() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let mut oracle = shop_oracle();
    let (_, first) = call("track", 1);
    server.write("/v1/track", &first);
    oracle.push(&typed("track", first).to_string());
    let to = START + HOUR;
    let moved = server.write("/v1/clock", &json!({"to": to}));
    assert_eq!(moved["clock"], to);
    oracle.push(&json!({"type": "clock", "to": to}).to_string());
    let path = format!("/v1/profiles/ada?after={}", moved["position"].as_str().expect("a position"));
    let row = without_as_of(server.read(&path));
    assert_eq!(row["journeys"]["cart"]["state"], "left");
    assert_eq!(row, oracle_row(&oracle, "ada"));
    assert_eq!(server.write("/v1/clock", &json!({"to": START}))["clock"], to);
    for body in ["", "{}", r#"{"to":"now"}"#, r#"{"to":1}"#, "[", "7"] {
        is_problem(&server.post("/v1/clock", body), 400, "bad_request");
    }
    server.kill();
    let server = home.start(&EVENTS);
    assert_eq!(without_as_of(server.read("/v1/profiles/ada")), oracle_row(&oracle, "ada"));
    server.kill();
    is_problem(&home.start(&[]).post("/v1/clock", format!(r#"{{"to":{to}}}"#)), 404, "not_found");
}

// Bad input.

/// What must become of a bad call: its body, one of these reasons, its message id as far as it has one.
type Bad = (String, &'static [&'static str], Option<&'static str>);

const MIST: &[&str] = &["invalid", "no_id"];

fn bad_calls() -> Vec<Bad> {
    let nest = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let long = |bytes: usize| "x".repeat(bytes);
    let with = |part: &str| format!(r#"{{"type":"track","messageId":"b","userId":"u","event":"e",{part}}}"#);
    let at = |time: &str| (with(&format!(r#""timestamp":{time}"#)), &["bad_timestamp"][..], Some("b"));
    let invalid = |part: &str| (with(part), &["invalid"][..], Some("b"));
    vec![
        ("7".into(), &["invalid"], None),
        ("null".into(), &["invalid"], None),
        ("[]".into(), &["invalid"], None),
        (r#""text""#.into(), &["invalid"], None),
        ("{}".into(), MIST, None),
        (r#"{"type":"track","messageId":"b","userId":"u"}"#.into(), &["invalid"], Some("b")),
        (r#"{"type":"track","messageId":"b","userId":"u","event":7}"#.into(), &["invalid"], Some("b")),
        (r#"{"type":"dance","messageId":"b","userId":"u"}"#.into(), &["invalid"], Some("b")),
        (r#"{"type":"page","messageId":"b"}"#.into(), &["no_id"], Some("b")),
        (r#"{"type":"page","messageId":"b","userId":"","anonymousId":null}"#.into(), &["no_id"], Some("b")),
        (r#"{"type":"page","messageId":"b","userId":{"a":1}}"#.into(), MIST, Some("b")),
        (r#"{"type":"page","messageId":"b","userId":1.5}"#.into(), MIST, Some("b")),
        (r#"{"type":"page","messageId":7,"userId":"u"}"#.into(), &["invalid"], None),
        (format!(r#"{{"type":"page","messageId":"b","userId":"{}"}}"#, long(256)), MIST, Some("b")),
        (format!(r#"{{"type":"page","messageId":"b","userId":"{}"}}"#, long(40_000)), &["too_large"], Some("b")),
        invalid(r#""properties":[1]"#),
        invalid(r#""traits":"x""#),
        invalid(r#""context":7"#),
        invalid(r#""properties":{"n":1e400}"#),
        invalid(r#""properties":{"n":-1e400}"#),
        invalid(r#""properties":{"n":"\ud800"}"#),
        invalid(r#""properties":{"n":"\udc00\ud800"}"#),
        invalid(&format!(r#""properties":{{"n":{}}}"#, nest(200))),
        invalid(&format!(r#""properties":{{"n":{}}}"#, nest(15_000))),
        (with(&format!(r#""properties":{{"n":{}}}"#, nest(100_000))), &["too_large"], Some("b")),
        at(r#""0001-01-01T00:00:00Z""#),
        at(r#""9999-12-31T23:59:59Z""#),
        at(r#""1999-12-31T23:59:59.999Z""#),
        at(r#""2100-01-01T00:00:00Z""#),
        at(r#""2026-02-30T00:00:00Z""#),
        at(r#""soon""#),
        at("1767225600"),
        (with(r#""timestamp":1e400000"#), &["invalid", "bad_timestamp"], Some("b")),
        at("true"),
        at("{}"),
    ]
}

/// A call that is right, of a number of its own.
fn good(number: usize) -> String {
    let timestamp = START + number as i64;
    format!(r#"{{"type":"page","messageId":"good{number}","userId":"good","timestamp":{timestamp}}}"#)
}

fn one_of(reason: &Value, reasons: &[&str]) -> bool {
    reasons.iter().any(|wanted| reason == wanted)
}

#[test]
fn bad_calls_never_spoil_their_batch_and_are_listed() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let bad = bad_calls();
    let calls: Vec<String> = bad.iter().enumerate().flat_map(|(n, (bad, ..))| [good(n), bad.clone()]).collect();
    let answer = server.post("/v1/batch", format!(r#"{{"batch":[{}]}}"#, calls.join(",")));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(answer["accepted"], bad.len());
    let rejected = answer["rejected"].as_array().expect("a list");
    assert_eq!(rejected.len(), bad.len());
    for (number, (found, (call, reasons, message_id))) in rejected.iter().zip(&bad).enumerate() {
        let call: String = call.chars().take(100).collect();
        assert_eq!(found["index"], 2 * number + 1, "{call}: {found}");
        assert!(one_of(&found["reason"], reasons), "{call} is {reasons:?}: {found}");
        assert_eq!(found["messageId"], json!(message_id), "{call}: {found}");
        assert!(found["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{call}: {found}");
    }
    assert_eq!(items(&server, "/v1/profiles/good/events", 1_000).len(), bad.len());
    let letters = items(&server, "/v1/dead-letters", 4);
    assert_eq!(letters, items(&server, "/v1/dead-letters", 1_000));
    assert_eq!(letters.len(), bad.len());
    for (letter, (call, reasons, _)) in letters.iter().rev().zip(&bad) {
        assert!(letter["body"] == *call, "not the original text: {letter}");
        assert!(one_of(&letter["reason"], reasons), "{reasons:?}: {letter}");
        assert!(letter["detail"].is_string() && letter["position"].is_string(), "{letter}");
        assert!(letter["received_at"].is_i64() && letter.get("encoding").is_none(), "{letter}");
    }
    server.kill();
    assert_eq!(items(&home.start(&EVENTS), "/v1/dead-letters", 1_000), letters, "after a restart");
}

#[test]
fn a_bad_call_alone_is_answered_and_rejected() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    for (call, reasons, message_id) in bad_calls() {
        let shown: String = call.chars().take(100).collect();
        let kind = if call.contains(r#""page""#) { "page" } else { "track" };
        let answer = server.post(&format!("/v1/{kind}"), &call);
        match answer.status {
            200 => {
                let answer = answer.json();
                assert_eq!(answer["accepted"], 0, "{shown}: {answer}");
                let found = &answer["rejected"][0];
                assert!(one_of(&found["reason"], reasons), "{shown} is {reasons:?}: {found}");
                assert_eq!((&found["index"], &found["messageId"]), (&json!(0), &json!(message_id)), "{shown}");
            }
            // No JSON object is no call at all.
            400 => assert!(!call.starts_with('{'), "{shown}: {}", answer.text()),
            _ => {
                assert_eq!(reasons, ["too_large"], "{shown}: {}", answer.text());
                is_problem(&answer, 413, "too_large");
            }
        }
    }
    taken(&server.post("/v1/page", good(0)).json(), 1, &json!([]));
}

#[test]
fn bodies_that_cannot_be_read_are_refused_and_kept() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let gzip_cut = &gzip(good(0).as_bytes())[..40];
    let bodies: [&[u8]; 10] = [
        b"",
        b"{",
        b"[]",
        b"nonsense",
        br#"{"batch":[{]}"#,
        br#"{"batch":[]} and more"#,
        br#"{"batch":7}"#,
        br#"{"no batch":[]}"#,
        b"\xff\xfe{}",
        &[b'['; 400_000],
    ];
    for body in bodies {
        is_problem(&server.post("/v1/batch", body), 400, "bad_request");
    }
    is_problem(&server.post("/v1/batch", gzip_cut), 400, "bad_request");
    is_problem(&server.post("/v1/track", b"\xff"), 400, "bad_request");
    let letters = items(&server, "/v1/dead-letters", 2);
    let newest: Vec<(&Value, Option<&str>)> = letters.iter().map(|l| (&l["body"], l["encoding"].as_str())).collect();
    assert_eq!(newest[0], (&json!("/w=="), Some("base64")), "the newest: not UTF-8");
    let found = |body: &Value, encoding| newest.contains(&(body, encoding));
    assert!(found(&json!("//57fQ=="), Some("base64")), "not UTF-8: {:?}", &letters[..4]);
    for body in [r#"{"batch":[{]}"#, "nonsense", "{"] {
        assert!(found(&json!(body), None), "{body} is not listed");
    }
    assert!(letters.iter().all(|letter| letter["reason"] == "invalid"), "{letters:?}");
    taken(&server.post("/v1/page", good(0)).json(), 1, &json!([]));
}

#[test]
fn one_call_that_is_not_utf_8_does_not_spoil_its_batch() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let bad = b"{\"type\":\"page\",\"messageId\":\"b\",\"userId\":\"\xff\"}";
    let body = [b"{\"batch\":[", good(0).as_bytes(), b",", bad, b",", good(1).as_bytes(), b"]}"].concat();
    let answer = server.post("/v1/batch", body);
    assert_eq!(answer.status, 200, "the good calls of the batch are lost: {}", answer.text());
    let answer = answer.json();
    assert_eq!((&answer["accepted"], &answer["rejected"][0]["index"]), (&json!(2), &json!(1)), "{answer}");
    let letter = &items(&server, "/v1/dead-letters", 10)[0];
    assert_eq!(letter["encoding"], "base64", "{letter}");
}

/// A call of exactly so many bytes.
fn call_of(bytes: usize) -> String {
    let call = |fill: &str| {
        let head = r#"{"type":"track","messageId":"sized","userId":"u","event":"e","timestamp":"#;
        format!(r#"{head}{START},"properties":{{"fill":"{fill}"}}}}"#)
    };
    let fill = "x".repeat(bytes - call("").len());
    call(&fill)
}

/// A batch of one good call that is so many bytes long.
fn batch_of(bytes: usize) -> String {
    let body = format!(r#"{{"batch":[{}]}}"#, good(0));
    let fill = " ".repeat(bytes - body.len());
    body + &fill
}

#[test]
fn what_is_too_large_is_refused_to_the_byte() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    taken(&server.post("/v1/track", call_of(32_768)).json(), 1, &json!([]));
    is_problem(&server.post("/v1/track", call_of(32_769)), 413, "too_large");
    let pair = format!(r#"{{"batch":[{},{}]}}"#, call_of(32_768), call_of(32_769));
    let answer = server.post("/v1/batch", pair).json();
    assert_eq!(answer["accepted"], 1, "{answer}");
    let rejected = answer["rejected"].as_array().expect("a list");
    assert_eq!(rejected.len(), 1, "{answer}");
    assert_eq!((&rejected[0]["index"], &rejected[0]["reason"]), (&json!(1), &json!("too_large")));
    taken(&server.post("/v1/batch", batch_of(512_000)).json(), 1, &json!([]));
    is_problem(&server.post("/v1/batch", batch_of(512_001)), 413, "too_large");
    taken(&server.post("/v1/batch", gzip(batch_of(512_000).as_bytes())).json(), 1, &json!([]));
    is_problem(&server.post("/v1/batch", gzip(batch_of(512_001).as_bytes())), 413, "too_large");
    let long_id = format!(r#"{{"userId":"{}"}}"#, "x".repeat(1_000_000));
    is_problem(&server.post("/v1/page", long_id), 413, "too_large");
    is_problem(&server.post("/v1/batch", "[".repeat(1_000_000)), 413, "too_large");
    is_problem(&server.post("/v1/batch", gzip("[".repeat(1_000_000).as_bytes())), 413, "too_large");
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn what_is_far_too_large_is_a_problem_too() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    is_problem(&server.post("/v1/batch", batch_of(3_000_000)), 413, "too_large");
    taken(&server.post("/v1/page", good(0)).json(), 1, &json!([]));
}

#[test]
fn what_is_no_http_harms_nobody() {
    use std::io::{Read, Write};
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    for bytes in
        [&b"\x16\x03\x01\x02\x00"[..], b"nonsense\r\n\r\n", b"POST /v1/track HTTP/1.1\r\ncontent-length: 99\r\n\r\n{"]
    {
        let mut socket = std::net::TcpStream::connect(server.address).expect("it listens");
        socket.write_all(bytes).expect("it reads");
        socket.shutdown(std::net::Shutdown::Write).expect("it is open");
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 5"), "{}", String::from_utf8_lossy(&answer));
    }
    taken(&server.post("/v1/page", good(0)).json(), 1, &json!([]));
}

#[test]
fn a_retry_of_what_was_accepted_is_right_however_late() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let (_, call) = call("page", 1);
    taken(&server.write("/v1/page", &call), 1, &json!([]));
    let moved = server.write("/v1/clock", &json!({"to": START + 31 * 24 * HOUR}));
    server.read(&format!("/v1/profiles/web-1?after={}", moved["position"].as_str().expect("a position")));
    // Duplicate and conflict come before too_late.
    taken(&server.write("/v1/page", &call), 1, &json!([]));
    let mut other = call.clone();
    other["name"] = json!("Hats");
    server.write("/v1/page", &other);
    let letters = items(&server, "/v1/dead-letters", 10);
    let reasons: Vec<&Value> = letters.iter().map(|letter| &letter["reason"]).collect();
    assert_eq!(reasons, ["conflict"]);
    // A new one of that age is too late.
    other["messageId"] = json!("new");
    let answer = server.write("/v1/page", &other);
    assert_eq!((&answer["accepted"], &answer["rejected"][0]["reason"]), (&json!(0), &json!("too_late")));
    assert_eq!(answer["rejected"][0]["messageId"], "new");
    // An id that the door made is none of the call's.
    other["messageId"] = Value::Null;
    assert_eq!(server.write("/v1/page", &other)["rejected"][0]["messageId"], Value::Null);
}

#[test]
fn what_the_engine_finds_is_counted_and_kept() {
    let home = Home::new(&SHOP.replacen('{', r#"{"identity":{"max_ids":2},"#, 1));
    let server = home.start(&EVENTS);
    let page = |number: i64, user: &str, anonymous: &str, name: &str| {
        let ids = json!({"userId": user, "anonymousId": anonymous, "messageId": format!("m{number}")});
        let mut body = ids.clone();
        (body["name"], body["timestamp"]) = (json!(name), json!(START + number));
        taken(&server.write("/v1/page", &body), 1, &json!([]))
    };
    page(1, "ada", "web-1", "first");
    page(1, "ada", "web-1", "first");
    page(1, "ada", "web-1", "first");
    page(1, "ada", "web-1", "other");
    let position = page(2, "ada", "web-2", "third id");
    assert_eq!(server.read(&format!("/v1/profiles/ada?after={position}"))["ids"].as_array().map(Vec::len), Some(2));
    let letters = items(&server, "/v1/dead-letters", 1);
    let brief = |letter: &Value| {
        let body: Value = serde_json::from_str(letter["body"].as_str().expect("a text")).expect("the original");
        format!("{} {}", letter["reason"].as_str().expect("a text"), body["name"].as_str().expect("a name"))
    };
    assert_eq!(letters.iter().map(brief).collect::<Vec<_>>(), ["refused_edge third id", "conflict other"]);
    assert_eq!(items(&server, "/v1/profiles/ada/events", 1).len(), 2);
    let metrics = server.get("/metrics").text();
    for (word, count) in [("duplicate", "2"), ("conflict", "1"), ("refused_edge", "1")] {
        let counts = |line: &str| !line.starts_with('#') && line.contains(word) && line.ends_with(&format!(" {count}"));
        assert!(metrics.lines().any(counts), "{word} is not counted:\n{metrics}");
    }
}

// Kills.

const ROUNDS: u64 = 20;
const PEOPLE: u64 = 6;
/// Batches that a thread sends in one round at most: the oracle is slow.
const BATCHES_MAX: usize = 20;

/// Of the moments of kills: told, so that a test that failed can be run again with THALWEG_KILL_SEED.
fn seed() -> u64 {
    let told = std::env::var("THALWEG_KILL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = told.unwrap_or_else(|| now_ms() as u64);
    println!("THALWEG_KILL_SEED={seed}");
    seed
}

/// What senders know: calls sent by message id, and which of them were acknowledged.
#[derive(Default)]
struct Sent {
    calls: BTreeMap<String, Value>,
    acknowledged: BTreeSet<String>,
    position: String,
}

/// A call of a random person, later than all before it.
fn random_call(random: &mut Random, message_id: &str) -> Value {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let person = random.below(PEOPLE);
    let kind = random.one(&["track", "track", "track", "page", "identify"]);
    let mut body = typed(kind, call(kind, number).1);
    body["messageId"] = json!(message_id);
    body["anonymousId"] = json!(format!("web-{person}"));
    body["timestamp"] = json!(START + number * 20_000);
    if kind == "page" {
        body.as_object_mut().expect("an object").remove("userId");
    } else {
        body["userId"] = json!(format!("user-{person}"));
    }
    body
}

/// Sends batches until the process is gone, or enough.
fn send(to: SocketAddr, mut random: Random, name: &str) -> Sent {
    let mut sent = Sent::default();
    for number in 0..BATCHES_MAX {
        let ids: Vec<String> = (0..=random.below(4)).map(|n| format!("{name}-{number}-{n}")).collect();
        let calls: Vec<Value> = ids.iter().map(|id| random_call(&mut random, id)).collect();
        sent.calls.extend(ids.iter().cloned().zip(calls.iter().cloned()));
        let body = json!({"batch": calls}).to_string();
        let Ok(answer) = http::ask(to, "POST", "/v1/batch", &[], body.as_bytes()) else { return sent };
        assert_eq!(answer.status, 200, "{}", answer.text());
        sent.position = taken(&answer.json(), calls.len(), &json!([]));
        sent.acknowledged.extend(ids);
    }
    sent
}

/// One life of the process: now and then what nobody acknowledged is sent again, as SDKs do; then two threads send, and
/// it is killed at a random moment.
fn round(home: &Home, random: &mut Random, number: u64, all: &mut Sent) {
    let server = home.start(&[&EVENTS[..], &["--workers", ["1", "2"][number as usize % 2]]].concat());
    let to = server.address;
    if random.below(2) == 0 {
        let lost = all.calls.iter().filter(|(id, _)| !all.acknowledged.contains(*id));
        let (ids, calls): (Vec<String>, Vec<Value>) = lost.map(|(id, call)| (id.clone(), call.clone())).unzip();
        taken(&server.write("/v1/batch", &json!({"batch": calls})), ids.len(), &json!([]));
        all.acknowledged.extend(ids);
    }
    let senders = ["a", "b"].map(|thread| {
        let (random, name) = (Random::new(random.below(u64::MAX)), format!("r{number}-{thread}"));
        std::thread::spawn(move || send(to, random, &name))
    });
    std::thread::sleep(Duration::from_millis(random.below(80)));
    server.kill();
    for sender in senders {
        let sent = sender.join().expect("a sender's checks hold");
        all.calls.extend(sent.calls);
        all.acknowledged.extend(sent.acknowledged);
        // Positions of the embedded log grow; the later one is longer, or greater.
        all.position =
            [sent.position, all.position.clone()].into_iter().max_by_key(|p| (p.len(), p.clone())).expect("two");
    }
}

/// Answers about everyone: profile rows and events, both ways that ids lead to them.
fn everyone(server: &Server, position: &str) -> BTreeMap<String, (Value, Vec<Value>)> {
    let ids = (0..PEOPLE).flat_map(|person| [format!("user-{person}"), format!("web-{person}")]);
    let known = |id: String| {
        let answer = server.get(&format!("/v1/profiles/{id}?after={position}"));
        assert!([200, 404].contains(&answer.status), "{id}: {}", answer.text());
        let events = || items(server, &format!("/v1/profiles/{id}/events"), 60);
        (answer.status == 200).then(|| (id.clone(), (without_as_of(answer.json()), events())))
    };
    ids.filter_map(known).collect()
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let mut random = Random::new(seed());
    let home = Home::new(SHOP);
    let mut all = Sent::default();
    for number in 0..ROUNDS {
        round(&home, &mut random, number, &mut all);
    }
    assert!(all.acknowledged.len() > 100, "hardly anything was acknowledged: {}", all.acknowledged.len());
    let server = home.start(&EVENTS);
    let found = everyone(&server, &all.position);
    server.kill();
    kept_what_was_sent(&found, &all);
    let again = everyone(&home.start(&EVENTS), &all.position);
    assert!(found == again, "a restart has changed an answer");
    equals_the_oracle(&found);
}

/// All that was acknowledged, nothing that was not sent, each once and as it was sent.
fn kept_what_was_sent(found: &BTreeMap<String, (Value, Vec<Value>)>, all: &Sent) {
    let mut kept = BTreeMap::new();
    for (id, (profile, events)) in found {
        assert!(events.is_sorted_by_key(|event| -event["timestamp"].as_i64().expect("ms")), "{id}: not newest first");
        for event in events.iter().filter(|_| profile["id"] == *id) {
            let message_id = event["messageId"].as_str().expect("a text").to_owned();
            assert!(kept.insert(message_id, event).is_none(), "listed twice: {event}");
        }
    }
    for message_id in &all.acknowledged {
        assert!(kept.contains_key(message_id), "{message_id} was acknowledged and is lost");
    }
    for (message_id, event) in &kept {
        let sent = all.calls.get(message_id).unwrap_or_else(|| panic!("nobody sent {event}"));
        for (key, value) in sent.as_object().expect("an object") {
            assert_eq!(&event[key], value, "{key} of {event}");
        }
    }
    println!("{} sent, {} acknowledged, {} kept", all.calls.len(), all.acknowledged.len(), kept.len());
}

fn equals_the_oracle(found: &BTreeMap<String, (Value, Vec<Value>)>) {
    let mut events: Vec<&Value> = Vec::new();
    for (id, (profile, of_one)) in found {
        events.extend(of_one.iter().filter(|_| profile["id"] == *id));
    }
    // Nothing here is late, in conflict or refused, so that by the law any order of arrival will do.
    events.sort_by_key(|event| event["timestamp"].as_i64());
    let mut oracle = shop_oracle();
    for event in events {
        assert_eq!(oracle.push(&event.to_string()), "accepted", "{event}");
    }
    let rows: Vec<Value> =
        oracle.dump().profiles.iter().map(|row| serde_json::from_str(row).expect("rows are JSON")).collect();
    for (id, (profile, _)) in found {
        let has = |row: &&Value| row["ids"].as_array().is_some_and(|ids| ids.iter().any(|known| known["id"] == *id));
        assert_eq!(Some(profile), rows.iter().find(has), "{id}");
    }
}

#[test]
fn what_was_accepted_stays_so_under_other_definitions() {
    let home = Home::new(r#"{"version":1,"lateness":"30d","traits":{"views":{"count":"page_view"}}}"#);
    let server = home.start(&EVENTS);
    server.write("/v1/page", &call("page", 60).1);
    let late = server.write("/v1/page", &call("page", 0).1);
    taken(&late, 1, &json!([]));
    server.kill();
    let views = r#""traits":{"views":{"count":"page_view"}}"#;
    let mut found = BTreeMap::new();
    for (name, more) in [
        ("lateness", r#""lateness":"1m""#),
        ("schemas", r#""schemas":{"page_view":{"required":{"order":"string"}}}"#),
        ("sessions", r#""sessions":{"gap":"5m"}"#),
    ] {
        home.write("thalweg.yaml", format!(r#"{{"version":1,{more},{views}}}"#));
        found.insert(name, home.start(&EVENTS).get("/v1/profiles/web-1").json()["computed"]["views"].clone());
    }
    let expected = ["lateness", "schemas", "sessions"].map(|name| (name, json!(2)));
    assert_eq!(found, BTreeMap::from(expected), "views of two accepted events, by what was defined anew");
}

#[test]
fn a_signal_stops_it_cleanly() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    taken(&server.post("/v1/page", good(0)).json(), 1, &json!([]));
    let status = server.terminate(Duration::from_secs(10)).expect("it ends in time");
    assert!(status.success(), "{status}");
    assert_eq!(items(&home.start(&EVENTS), "/v1/profiles/good/events", 10).len(), 1);
}

#[test]
fn a_signal_stops_it_though_someone_subscribes() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let subscription = server.subscribe("view=intents");
    subscription.snapshot();
    let status = server.terminate(Duration::from_secs(5)).expect("it ends in time");
    assert!(status.success(), "{status}");
}

// Intents.

const POPUPS: &str = r#"
version: 1
traits:
  carts: { count: add_to_cart }
segments:
  first_time_visitor: { visitor: first_time }
journeys:
  cart:
    start: shopping
    states:
      shopping: { transitions: [ { event: add_to_cart, to: carted } ] }
      carted: { timers: [ { after: 1s, since: add_to_cart, emit: cart_left, to: left } ] }
      left: {}
campaigns:
  welcome:
    when: { event: page_view, where: 'properties.page == "/"' }
    audience: first_time_visitor
    channel: popup
    template: 'Get ${{ data.amount }} off {{ event.properties.page }}{{ event.properties.absent }}'
    data: { amount: 5 }
  remind:
    when: { event: cart_left }
    channel: popup
    template: 'You left {{ profile.computed.carts }} carts'
  come_back:
    when: { journey: cart, state: left }
    channel: popup
  offer:
    when: { event: offer }
    channel: popup
    consent: marketing
    hold: 1s
    template: 'An offer'
channels:
  popup: { deliver: sse, realtime: true }
"#;

/// Sent, of this campaign.
fn sent(campaign: &str) -> impl Fn(&Value) -> bool {
    move |row| row["campaign"] == campaign && row["status"] == "sent"
}

fn visit(id: &str) -> Value {
    json!({"anonymousId": id, "messageId": format!("m-{id}"), "properties": {"page": "/"}})
}

/// How often an intent stands in the ledger, which is part of the log.
fn in_ledger(home: &Home, id: &str) -> usize {
    let entry = format!(r#"{{"id":"{id}","#);
    let count = |path| {
        let bytes = std::fs::read(path).expect("a segment can be read");
        bytes.windows(entry.len()).filter(|window| *window == entry.as_bytes()).count()
    };
    home.segments().into_iter().map(count).sum()
}

#[test]
fn a_first_visit_pops_up_once_whatever_happens() {
    let home = Home::new(POPUPS);
    let server = home.start(&[]);
    let everyone = server.subscribe("view=intents");
    let hers = server.subscribe("view=intents&profile=eve&name=welcome");
    let others = server.subscribe("view=intents&profile=nobody");
    for subscription in [&everyone, &hers, &others] {
        assert_eq!(subscription.snapshot(), Vec::<Value>::new());
    }
    let before = now_ms();
    server.write("/v1/page", &visit("eve"));
    let (row, took) = everyone.wait_for(Duration::from_secs(5), sent("welcome")).expect("the pop-up comes");
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    let at = row["at"].as_i64().expect("ms");
    assert!((before - 1..=now_ms()).contains(&at), "{row}");
    let id = row["id"].as_str().expect("a text").to_owned();
    let expected = json!({"type": "intent", "id": id, "campaign": "welcome", "profile": "eve", "at": at,
        "not_before": at, "cause": {"kind": "event", "root": {"id": "eve", "messageId": "m-eve"}}, "channel": "popup",
        "status": "sent", "variant": null, "body": "Get $5 off /", "data": {"amount": 5}});
    assert_eq!(row, expected);
    assert!(id.starts_with("i_") && id.len() == 34, "{id}");
    assert_eq!(hers.wait_for(Duration::from_secs(2), |_| true).map(|(row, _)| row["id"].clone()), Some(json!(id)));
    assert_eq!(others.all(Duration::from_millis(100)).len(), 0);
    server.kill();
    assert_eq!(in_ledger(&home, &id), 1);

    let server = home.start(&[]);
    let subscription = server.subscribe("view=intents&profile=eve");
    assert_eq!(subscription.snapshot(), vec![expected.clone()]);
    let news = subscription.all(Duration::from_secs(1));
    assert!(news.is_empty(), "sent again: {news:?}");
    assert_eq!(in_ledger(&home, &id), 1);
    let mut listed = expected;
    listed.as_object_mut().expect("an object").remove("type");
    for path in ["/v1/profiles/eve/intents", "/v1/campaigns/welcome/intents"] {
        assert_eq!(items(&server, path, 10), [listed.clone()], "{path}");
    }
    let campaign = without_as_of(server.read("/v1/campaigns/welcome"));
    assert_eq!((&campaign["intents"], &campaign["by_status"]), (&json!(1), &json!({"sent": 1})));
}

/// The example shop, and a VIP on her way to its checkout.
#[test]
fn a_vip_at_the_checkout_is_recommended_what_she_looked_at_most_and_has_not_bought() {
    let home = Home::new(include_str!("../examples/shop.yaml"));
    let server = home.start(&EVENTS);
    let subscription = server.subscribe("view=intents&name=vip_checkout");
    subscription.snapshot();
    let mut number = 0;
    let mut call = |at: i64, event: &str, properties: Value| {
        number += 1;
        json!({"type": "track", "messageId": format!("m{number}"), "userId": "ada", "timestamp": START + at,
            "event": event, "properties": properties})
    };
    let mut calls = vec![call(0, "section_view", json!({"section": "sale"}))];
    for (at, sku) in ["tie", "shoe", "hat", "shoe", "hat", "bag", "tie", "tie", "coat"].into_iter().enumerate() {
        calls.push(call(at as i64, "product_view", json!({"section": "sale", "sku": sku})));
    }
    // She once looked at it as another product would be named; the tie she looked at most she has bought.
    calls.push(call(20, "Product Viewed", json!({"product_id": 7})));
    calls.push(call(30, "purchase", json!({"order": "o1", "value": 400, "sku": "tie"})));
    // What she looks at later than at the root takes no part, though it is known before the pop-up goes out.
    calls.push(call(50, "product_view", json!({"sku": "bag"})));
    calls.push(call(51, "product_view", json!({"sku": "bag"})));
    calls.push(call(40, "checkout_started", json!({"items": 2})));
    calls.push(json!({"type": "track", "userId": "bob", "timestamp": START, "event": "product_view",
        "properties": {"sku": "bag"}}));
    taken(&server.write("/v1/batch", &json!({"batch": calls})), calls.len(), &json!([]));
    let (row, _) = subscription.wait_for(Duration::from_secs(5), sent("vip_checkout")).expect("the pop-up comes");
    assert_eq!(row["data"], json!({"recommend": ["hat", "shoe", "7"]}), "{row}");
    assert_eq!(row["body"], "One more from sale? hat, shoe, 7", "{row}");
    // It stays as it was sent, whatever is heard of her later.
    let later = call(10, "product_view", json!({"sku": "scarf"}));
    taken(&server.write("/v1/batch", &json!({"batch": [later, later, later]})), 3, &json!([]));
    let listed = |server: &Server| items(server, "/v1/campaigns/vip_checkout/intents", 10);
    let before = listed(&server);
    assert_eq!((before.len(), &before[0]["data"], &before[0]["body"]), (1, &row["data"], &row["body"]));
    server.kill();
    assert_eq!(listed(&home.start(&EVENTS)), before, "after a restart");
}

#[test]
fn kill_9_neither_forgets_a_pop_up_nor_sends_it_twice() {
    let mut random = Random::new(seed());
    let home = Home::new(POPUPS);
    let mut acknowledged = BTreeSet::new();
    for number in 0..8 {
        let server = home.start(&[]);
        let to = server.address;
        let visits = std::thread::spawn(move || {
            let ids = (0..40).map(|n| format!("v{number}-{n}"));
            let post = |id: &String| http::ask(to, "POST", "/v1/page", &[], visit(id).to_string().as_bytes());
            ids.take_while(|id| post(id).is_ok_and(|answer| answer.status == 200)).collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_millis(random.below(100)));
        server.kill();
        acknowledged.extend(visits.join().expect("the sender ends"));
    }
    assert!(acknowledged.len() > 20, "hardly anything was acknowledged: {}", acknowledged.len());
    let server = home.start(&[]);
    let campaign = || server.read("/v1/campaigns/welcome");
    let all_sent = |campaign: &Value| campaign["by_status"] == json!({"sent": campaign["intents"]});
    until(Duration::from_secs(20), "every pop-up is sent", || Some(campaign()).filter(all_sent));
    let mut sent = BTreeSet::new();
    for row in items(&server, "/v1/campaigns/welcome/intents", 100) {
        assert_eq!((&row["status"], &row["body"]), (&json!("sent"), &json!("Get $5 off /")), "{row}");
        assert_eq!(in_ledger(&home, row["id"].as_str().expect("a text")), 1, "entries of the ledger for {row}");
        sent.insert(row["profile"].as_str().expect("a text").to_owned());
    }
    let forgotten: Vec<&String> = acknowledged.difference(&sent).collect();
    assert!(forgotten.is_empty(), "acknowledged visits without a pop-up: {forgotten:?}");
}

#[test]
fn a_subscription_right_at_the_start_takes_nothing_old_for_news() {
    let home = Home::new(POPUPS);
    let server = home.start(&[]);
    for part in 0..10 {
        let visits: Vec<Value> = (0..100).map(|n| typed("page", visit(&format!("p{part}-{n}")))).collect();
        server.write("/v1/batch", &json!({"batch": visits}));
    }
    let ready = || {
        let campaign = server.read("/v1/campaigns/welcome");
        (campaign["by_status"]["sent"] == 1_000).then_some(())
    };
    until(Duration::from_secs(20), "a thousand pop-ups are sent", ready);
    server.kill();
    for _ in 0..5 {
        // It listens before it has read its log, so that this request is the first that it answers.
        let server = home.launch(&[]);
        let subscribe = || Subscription::open(server.address, "view=intents").ok();
        let subscription = until(Duration::from_secs(20), "it listens", subscribe);
        let rows = subscription.snapshot();
        let old = rows.iter().filter(|row| row["status"] == "sent").count();
        let news = subscription.all(Duration::from_millis(300));
        let news: usize = news.iter().map(|message| message.changes().len()).sum();
        assert_eq!((old, news), (1_000, 0), "old rows in the snapshot, and old rows told as news");
    }
}

/// What is wrong with messages: each is consolidated and has an id of its own, and what goes was there.
fn faults(messages: &[Message]) -> BTreeSet<&'static str> {
    let (mut rows, mut ids, mut faults) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    for message in messages {
        let mut must = |holds: bool, fault| faults.extend((!holds).then_some(fault));
        must(ids.insert(&message.id), "two messages have one id");
        let position = message.id.split_once('.').map(|(position, _)| position);
        must(message.data["as_of"]["position"].as_str() == position, "the id does not begin with its position");
        must(message.data["view"] == "intents", "another view");
        let changes = message.changes();
        must(changes.is_sorted_by_key(|(diff, _)| *diff), "1 stands before -1");
        let texts: BTreeSet<String> = changes.iter().map(|(_, row)| row.to_string()).collect();
        must(texts.len() == changes.len(), "a row goes and comes in one message");
        for (diff, row) in changes {
            let count = rows.entry(row.to_string()).or_insert(0);
            *count += diff;
            must(*count >= 0, "a row goes that was not there");
            must(*count <= 1, "a row comes twice");
        }
    }
    faults
}

#[test]
fn a_timer_leads_to_intents_on_an_idle_stream() {
    let home = Home::new(POPUPS);
    let server = home.start(&[]);
    let subscription = server.subscribe("view=intents");
    subscription.snapshot();
    let timestamp = now_ms();
    let cart = json!({"userId": "ada", "event": "add_to_cart", "messageId": "c1", "timestamp": timestamp});
    server.write("/v1/track", &cart);
    let mut messages = Vec::new();
    let mut rows = Vec::new();
    let deadline = Duration::from_secs(4);
    while rows.len() < 2 {
        let message = subscription.next(deadline).expect("both campaigns send");
        let came = message.changes().into_iter().filter(|(diff, row)| *diff == 1 && row["status"] == "sent");
        rows.extend(came.map(|(_, row)| row.clone()));
        messages.push(message);
    }
    let late = now_ms() - timestamp;
    assert!((1_000..3_000).contains(&late), "it took {late} ms");
    rows.sort_by_key(|row| row["campaign"].to_string());
    let brief = |row: &Value| json!([row["campaign"], row["at"], row["cause"], row["body"]]);
    let root = json!({"id": "ada", "messageId": "c1"});
    let at = timestamp + 1_000;
    assert_eq!(brief(&rows[0]), json!(["come_back", at, {"kind": "journey", "root": root}, null]));
    assert_eq!(brief(&rows[1]), json!(["remind", at, {"kind": "event", "root": root}, "You left 1 carts"]));
    let profile = server.read("/v1/profiles/ada");
    assert_eq!(profile["journeys"]["cart"], json!({"state": "left", "since": at, "deadlines": []}));
}

#[test]
fn messages_to_subscribers_are_consolidated() {
    let home = Home::new(POPUPS);
    let server = home.start(&[]);
    let subscription = server.subscribe("view=intents");
    subscription.snapshot();
    server.write("/v1/page", &visit("eve"));
    offer(&server, "ada", &json!(true));
    until(Duration::from_secs(5), "the offer is sent", || (offers(&server)["sent"] == 1).then_some(()));
    let messages = subscription.all(Duration::from_millis(200));
    assert_eq!(faults(&messages), BTreeSet::new(), "{messages:#?}");
}

/// Makes an offer to a person, telling with it whether they consent.
fn offer(server: &Server, id: &str, consents: &Value) {
    let context = json!({"consent": {"categoryPreferences": {"marketing": consents}}});
    server.write("/v1/track", &json!({"userId": id, "event": "offer", "context": context}));
}

/// What became of offers.
fn offers(server: &Server) -> Value {
    server.read("/v1/campaigns/offer")["by_status"].clone()
}

#[test]
fn what_was_sent_and_no_longer_stands_is_revoked_and_stays_so() {
    let home = Home::new(POPUPS);
    let server = home.start(&EVENTS);
    let subscription = server.subscribe("view=intents");
    subscription.snapshot();
    let view = |id: &str, timestamp: i64| {
        let body = json!({"anonymousId": "eve", "messageId": id, "timestamp": timestamp, "properties": {"page": "/"}});
        taken(&server.write("/v1/page", &body), 1, &json!([]));
    };
    view("m1", START);
    let (row, _) = subscription.wait_for(Duration::from_secs(5), sent("welcome")).expect("the pop-up comes");
    let id = row["id"].as_str().expect("a text").to_owned();
    // A late event tells that it was no first visit; itself it was one.
    view("m0", START - 2 * HOUR);
    let is_revoked = |row: &Value| row["id"] == *id && row["status"] == "revoked";
    let (row, _) = subscription.wait_for(Duration::from_secs(5), is_revoked).expect("it is revoked");
    assert_eq!((&row["type"], &row["body"]), (&json!("revoked"), &json!("Get $5 off /")), "{row}");
    let seen = |server: &Server| {
        let rows = items(server, "/v1/campaigns/welcome/intents", 10);
        // What the law no longer has is listed with the person too, in parts of any size.
        assert_eq!(items(server, "/v1/profiles/eve/intents", 10), rows);
        assert_eq!(items(server, "/v1/profiles/eve/intents", 1), rows);
        let brief: BTreeSet<_> = rows.iter().map(|row| format!("{} {}", row["id"] == *id, row["status"])).collect();
        (brief, server.read("/v1/campaigns/welcome")["revoked"].clone())
    };
    let (rows, revoked) = seen(&server);
    assert!(rows.contains(r#"true "revoked""#), "{rows:?}");
    assert_eq!((rows.len(), revoked), (2, json!(1)), "{rows:?}");
    let before = seen(&server);
    server.kill();
    assert_eq!(seen(&home.start(&EVENTS)), before, "after a restart");
}

/// The process ends when a call is durable that takes a pop-up back, and before it has said so.
#[test]
fn what_was_sent_and_does_not_stand_at_the_next_start_is_revoked() {
    let home = Home::new(POPUPS);
    let server = home.start(&EVENTS);
    let page = json!({"page": "/"});
    let body = |id: &str, at: i64| json!({"anonymousId": "eve", "messageId": id, "timestamp": at, "properties": page});
    taken(&server.write("/v1/page", &body("m1", START)), 1, &json!([]));
    let statuses = |server: &Server| {
        let rows = items(server, "/v1/campaigns/welcome/intents", 10);
        rows.iter().map(|row| row["status"].as_str().expect("a text").to_owned()).collect::<Vec<_>>()
    };
    until(Duration::from_secs(5), "the pop-up is sent", || (statuses(&server) == ["sent"]).then_some(()));
    server.kill();
    let mut log = Log::open(&home.path("data")).expect("the log is sound").log;
    let earlier = START - 2 * HOUR;
    let payload = encode_event(Kind::Page, earlier, "m0", &body("m0", earlier).to_string());
    log.append(log.last_time() + 1, &[(EVENT, START, payload)]).expect("the log can be written to");
    drop(log);
    let server = home.start(&EVENTS);
    // The earlier visit is now the first: a pop-up of long ago, which is too late.
    assert_eq!(statuses(&server), ["revoked", "expired"]);
    until(Duration::from_secs(5), "it is written down", || {
        let bytes = home.segments().into_iter().flat_map(|path| std::fs::read(path).expect("it can be read"));
        String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).contains(r#""status":"revoked""#).then_some(())
    });
}

#[test]
fn consent_is_asked_again_at_the_send() {
    let home = Home::new(POPUPS);
    let server = home.start(&[]);
    let subscription = server.subscribe("view=intents&name=offer");
    subscription.snapshot();
    for (id, consents) in
        [("stays", json!(true)), ("goes", json!(true)), ("never", json!(false)), ("silent", json!(null))]
    {
        offer(&server, id, &consents);
    }
    let withdrawn = json!({"consent": {"categoryPreferences": {"marketing": false}}});
    server.write("/v1/identify", &json!({"userId": "goes", "context": withdrawn}));
    let expected = json!({"sent": 1, "consent_withdrawn": 1, "consent": 2});
    let settled = || Some(offers(&server)).filter(|by_status| by_status.get("waiting").is_none());
    assert_eq!(until(Duration::from_secs(5), "nothing waits any more", settled), expected);
    for message in subscription.all(Duration::from_millis(500)) {
        for (_, row) in message.changes().iter().filter(|(_, row)| row["status"] == "sent") {
            assert_eq!(row["profile"], "stays", "{row}");
            let held = row["not_before"].as_i64().zip(row["at"].as_i64()).map(|(not_before, at)| not_before - at);
            assert_eq!(held, Some(1_000), "{row}");
        }
    }
}

#[test]
fn what_was_withdrawn_stays_so_after_a_restart() {
    let home = Home::new(POPUPS);
    let server = home.start(&EVENTS);
    let told = |kind: &str, at: i64, consents: bool| {
        let context = json!({"consent": {"categoryPreferences": {"marketing": consents}}});
        let id = format!("m{at}");
        let body = json!({"userId": "ada", "event": "offer", "messageId": id, "timestamp": at, "context": context});
        taken(&server.write(&format!("/v1/{kind}"), &body), 1, &json!([]));
    };
    told("track", START, true);
    told("identify", START + 500, false);
    server.write("/v1/clock", &json!({"to": START + 2_000}));
    let expected = json!({"consent_withdrawn": 1});
    let settled = || (offers(&server) == expected).then_some(());
    until(Duration::from_secs(5), "consent is asked for again at the send", settled);
    server.write("/v1/clock", &json!({"to": START + HOUR}));
    server.kill();
    let server = home.start(&EVENTS);
    let settled = || Some(offers(&server)).filter(|offers| offers != &json!({}) && offers.get("waiting").is_none());
    assert_eq!(until(Duration::from_secs(5), "nothing waits any more", settled), expected);
}

#[test]
fn what_a_late_call_holds_back_goes_by_its_gate() {
    let home = Home::new(POPUPS);
    let server = home.start(&EVENTS);
    let told = |kind: &str, at: i64, context: Value| {
        let id = format!("m{at}");
        let body = json!({"userId": "ada", "event": "offer", "messageId": id, "timestamp": at, "context": context});
        taken(&server.write(&format!("/v1/{kind}"), &body), 1, &json!([]))
    };
    let consent = |granted: bool| json!({"consent": {"categoryPreferences": {"marketing": granted}}});
    told("identify", START - 2_000, consent(true));
    told("track", START, json!({}));
    until(Duration::from_secs(5), "the offer waits", || (offers(&server) == json!({"waiting": 1})).then_some(()));
    // It turns out that she had said no before the offer came about: it was never to be sent.
    told("identify", START - 1_000, consent(false));
    until(Duration::from_secs(5), "the offer is held", || (offers(&server) == json!({"consent": 1})).then_some(()));
    let listed = |server: &Server| {
        ["/v1/profiles/ada/intents", "/v1/campaigns/offer/intents"].map(|path| items(server, path, 10))
    };
    let before = listed(&server);
    let statuses: Vec<&Value> = before.iter().flatten().map(|row| &row["status"]).collect();
    assert_eq!(statuses, ["consent", "consent"]);
    server.kill();
    let server = home.start(&EVENTS);
    assert_eq!((listed(&server), offers(&server)), (before, json!({"consent": 1})), "after a restart");
}

#[test]
fn every_intent_of_a_campaign_is_listed() {
    let home = Home::new(POPUPS);
    let server = home.start(&[]);
    offer(&server, "ada", &json!(false));
    offer(&server, "bob", &json!(true));
    let profiles = |path: &str| {
        let rows = items(&server, path, 1);
        rows.iter().map(|row| format!("{} {}", row["profile"], row["status"])).collect::<BTreeSet<_>>()
    };
    assert_eq!(profiles("/v1/profiles/ada/intents"), BTreeSet::from([r#""ada" "consent""#.into()]));
    let campaign = server.read("/v1/campaigns/offer");
    assert_eq!(campaign["intents"], 2, "{campaign}");
    assert_eq!(profiles("/v1/campaigns/offer/intents").len(), 2, "a campaign counts what it does not list");
}

/// What came strictly after an intent that passed all gates, at most 30 days after it, and was not taken back.
#[test]
fn a_campaign_counts_the_conversions_that_followed() {
    let value = r#""value":"properties.value""#;
    let refund = r#","refund":{"event":"refund","id":"properties.order"}"#;
    let home = Home::new(&SHOP.replace(&format!("{value}}}]"), &format!("{value}{refund}}}]")));
    let server = home.start(&[&EVENTS[..], &["--workers", "2"]].concat());
    let number = AtomicI64::new(0);
    let call = |id: &str, at: i64, event: &str, order: &str| {
        let message_id = format!("m{}", number.fetch_add(1, Ordering::Relaxed));
        let (kind, properties) = if event == "page" { ("page", json!({})) } else { ("track", json!({"order": order})) };
        let body = json!({"type": kind, "event": event, "anonymousId": id, "messageId": message_id,
            "timestamp": START + at, "properties": properties});
        taken(&server.write("/v1/batch", &json!({"batch": [body]})), 1, &json!([]));
    };
    let conversions = || {
        let row = server.read("/v1/campaigns/hello");
        assert_eq!(server.read("/v1/campaigns")["items"][0]["conversions"], row["conversions"]);
        row["conversions"].clone()
    };
    assert_eq!(conversions(), 0);
    call("ada", 9, "page", "");
    call("ada", 10, "page", "");
    call("ada", 11, "purchase", "a1");
    call("ada", 12, "purchase", "a2");
    assert_eq!(conversions(), 2, "each counts once, however many intents came before it");
    call("bob", 20, "purchase", "b1");
    call("bob", 21, "page", "");
    assert_eq!(conversions(), 2, "it did not follow");
    call("bob", 19, "page", "");
    assert_eq!(conversions(), 3, "a late call tells that it did");
    call("ada", 15, "refund", "a1");
    assert_eq!(conversions(), 2, "one was taken back");
    call("eve", 30, "page", "");
    call("eve", 30, "purchase", "e1");
    assert_eq!(conversions(), 2, "what is at the same instant did not follow");
    let month = 30 * 24 * HOUR;
    call("eve", 30 + month, "purchase", "e2");
    assert_eq!(conversions(), 3, "both ends of the lookback are in");
    call("eve", 31 + month, "purchase", "e3");
    assert_eq!(conversions(), 3, "too long after");
}

#[test]
fn a_template_knows_the_type_of_a_call_from_its_path() {
    let home = Home::new(
        r#"{"version":1,"channels":{"popup":{"deliver":"sse","realtime":true}},
        "campaigns":{"type":{"when":{"event":"page_view"},"channel":"popup","template":"a {{ event.type }}"}}}"#,
    );
    let server = home.start(&[]);
    server.write("/v1/page", &visit("ada"));
    let body = || server.read("/v1/profiles/ada/intents")["items"][0]["body"].as_str().map(str::to_owned);
    assert_eq!(until(Duration::from_secs(5), "the pop-up is sent", body), "a page");
}

#[test]
fn a_template_takes_null_for_absent() {
    let speaks = "{{ event.properties.size }}{{ profile.computed.last }}{{ session.channel }}{{ recommend }}{{ data }}";
    let home = Home::new(
        &json!({"version": 1, "channels": {"popup": {"deliver": "sse"}},
            "traits": {"last": {"last": "properties.none", "of": "page_view"}},
            "campaigns": {"null": {"when": {"event": "page_view"}, "channel": "popup",
                "template": format!("a{speaks}b {{{{ event.properties.size | default('large') }}}}")}}})
        .to_string(),
    );
    let server = home.start(&[]);
    let mut visit = visit("ada");
    visit["properties"] = json!({"size": null});
    server.write("/v1/page", &visit);
    let body = || server.read("/v1/profiles/ada/intents")["items"][0]["body"].as_str().map(str::to_owned);
    assert_eq!(until(Duration::from_secs(5), "the pop-up is sent", body), "ab large");
}

// Refusals at the start.

/// It ended with a sentence about what is wrong; gives the sentence.
fn refusal(ended: &process::Ended) -> String {
    assert!(!ended.status.success(), "it ended as if all were well: {ended:?}");
    let at = ended.stderr.rfind("thalweg: ").unwrap_or_else(|| panic!("no sentence in {ended:?}"));
    let sentence = ended.stderr[at..].trim_end().to_owned();
    assert!(!sentence.contains("panicked") && !sentence.contains("Os {"), "no sentence: {sentence}");
    sentence
}

/// A sentence has all these parts, and stands on one line.
fn says(ended: &process::Ended, parts: &[&str]) {
    let sentence = refusal(ended);
    for part in parts {
        assert!(sentence.contains(part), "nothing of {part:?} in: {sentence}");
    }
    assert_eq!(sentence.lines().count(), 1, "{sentence}");
}

#[test]
fn it_does_not_start_where_it_cannot_serve() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    says(&home.refused(&[]), &["another process has the data directory", "data"]);
    let port = server.address.to_string();
    says(&home.refused(&["--data", "other", "--listen", &port]), &["cannot listen", &port, "--listen"]);
    assert!(!home.path("other").exists(), "the port is asked for first");
    says(&home.refused(&["--definitions", "nowhere.yaml"]), &["nowhere.yaml", "definitions"]);
    let open = format!("0.0.0.0:{}", free_port());
    says(&home.refused(&["--data", "other", "--listen", &open]), &[&open, "write_keys", "127.0.0.1"]);
    home.write("file", "not a directory");
    says(&home.refused(&["--data", "file"]), &["file"]);
    // None of this harms the process that has the log.
    taken(&server.post("/v1/page", good(0)).json(), 1, &json!([]));
}

const WRONG: &str = r#"version: 1
segmnts: {}
segments:
  vip: { trait: spend, at_leest: 3 }
  lapsed: { segment: vop }
campaigns:
  hello:
    when: { event: page_view }
    channel: popup
    template: '{{ evnt.properties.page }}'
"#;

#[test]
fn wrong_definitions_are_told_all_at_once_with_lines() {
    let home = Home::new(WRONG);
    let parts =
        [("line 2", "segmnts"), ("line 4", "at_leest"), ("line 5", "vop"), ("line 9", "popup"), ("line 10", "evnt")];
    for ended in [home.refused(&[]), home.run(&["check", "thalweg.yaml"])] {
        let sentence = refusal(&ended);
        for (line, what) in parts {
            let has = |text: &str| text.contains(&format!("{line}:")) && text.contains(what);
            assert!(sentence.lines().any(has), "nothing of {what} in {line}: {sentence}");
        }
        assert!(
            sentence.contains("did you mean `segments`") && sentence.contains("did you mean `at_least`"),
            "{sentence}"
        );
    }
    let right = r#"{"version":1,"campaigns":{"hello":{"when":{"event":"page_view"},"channel":"popup",
        "template":"{{ evnt }}"}},"channels":{"popup":{"deliver":"sse"}}}"#;
    let sentence = refusal(&Home::new(right).run(&["check", "thalweg.yaml"]));
    assert!(sentence.contains("evnt") && sentence.contains("line "), "{sentence}");
    let nothing = home.run(&["check", "nowhere.yaml"]);
    says(&nothing, &["nowhere.yaml"]);
}

#[test]
fn check_says_that_a_file_is_right() {
    let home = Home::new(SHOP);
    home.write("popups.yaml", POPUPS);
    for file in ["thalweg.yaml", "popups.yaml"] {
        let ended = home.run(&["check", file]);
        assert!(ended.status.success(), "{ended:?}");
        assert!(ended.stdout.contains(file) && ended.stderr.is_empty(), "{ended:?}");
    }
    assert!(!home.path("data").exists() && !home.path("thalweg-data").exists(), "a check starts nothing");
}

/// A log of several groups; gives its only segment.
fn written(home: &Home) -> std::path::PathBuf {
    let server = home.start(&EVENTS);
    for number in 0..5 {
        taken(&server.post("/v1/page", good(number)).json(), 1, &json!([]));
    }
    server.kill();
    let segments = home.segments();
    assert_eq!(segments.len(), 1);
    segments[0].clone()
}

#[test]
fn a_damaged_log_is_refused_by_file_and_offset() {
    let home = Home::new(SHOP);
    let segment = written(&home);
    let whole = std::fs::read(&segment).expect("the segment can be read");
    let find = |text: &str| whole.windows(text.len()).position(|part| part == text.as_bytes()).expect("it is there");
    let name = segment.file_name().and_then(|name| name.to_str()).expect("a name");
    // A byte of each event's body, of the last one's too: damage begins where the group that holds it does.
    let mut offsets = BTreeSet::new();
    for number in 0..5 {
        let mut bytes = whole.clone();
        let at = find(&format!("\"good{number}\""));
        bytes[at] ^= 1;
        std::fs::write(&segment, bytes).expect("the segment can be written");
        let ended = home.refused(&EVENTS);
        says(&ended, &["the log is damaged", name, "at byte "]);
        let sentence = refusal(&ended);
        let digits: String = sentence
            .split("at byte ")
            .nth(1)
            .into_iter()
            .flat_map(|rest| rest.chars())
            .take_while(char::is_ascii_digit)
            .collect();
        let offset: usize = digits.parse().expect("an offset");
        assert!(offset < at && at - offset < 200, "the byte at {at} was flipped: {sentence}");
        assert!(offsets.insert(offset), "two groups begin at {offset}");
    }
    // The header too, and what no write of the log leaves behind its last group.
    let mut bytes = whole.clone();
    bytes[20] ^= 1;
    std::fs::write(&segment, bytes).expect("the segment can be written");
    says(&home.refused(&EVENTS), &[name, "at byte 0"]);
    std::fs::write(&segment, [&whole[..], &[0xff; 300]].concat()).expect("the segment can be written");
    says(&home.refused(&EVENTS), &[name, &format!("at byte {}", whole.len())]);
    std::fs::write(&segment, &whole).expect("the segment can be written");
    assert_eq!(items(&home.start(&EVENTS), "/v1/profiles/good/events", 10).len(), 5);
}

#[test]
fn a_torn_tail_is_cut_off_and_all_events_stay() {
    let home = Home::new(SHOP);
    let segment = written(&home);
    let whole = std::fs::read(&segment).expect("the segment can be read");
    // What a write leaves that a crash cut off: the beginning of a group, or a length without its bytes.
    let server = home.start(&EVENTS);
    taken(&server.post("/v1/page", good(5)).json(), 1, &json!([]));
    server.kill();
    let sixth = std::fs::read(&segment).expect("the segment can be read").split_off(whole.len());
    let begun = [1, 20, 50, sixth.len() - 1].map(|length| &sixth[..length]);
    for tail in begun.into_iter().chain([&[0][..], &[0; 5_000]]) {
        std::fs::write(&segment, [&whole[..], tail].concat()).expect("the segment can be written");
        let server = home.start(&EVENTS);
        assert_eq!(items(&server, "/v1/profiles/good/events", 10).len(), 5, "a tail of {tail:?}");
        assert!(server.said().contains("torn tail"), "{}", server.said());
        server.kill();
    }
    let server = home.start(&EVENTS);
    taken(&server.post("/v1/page", good(5)).json(), 1, &json!([]));
    server.kill();
    assert_eq!(items(&home.start(&EVENTS), "/v1/profiles/good/events", 10).len(), 6);
}

// Write keys.

#[test]
fn only_known_write_keys_may_write() {
    let home = Home::new(&SHOP.replacen(
        '{',
        r#"{"write_keys":[{"key":"demo","origins":["*"]},{"key":"k2","origins":["*"]}],"#,
        1,
    ));
    let server = home.start(&EVENTS);
    let basic = |user: &str| format!("Basic {}", base64(format!("{user}:").as_bytes()));
    let with =
        |key: &str, body: &str| server.ask("POST", "/v1/page", &[("authorization", &basic(key))], body.as_bytes());
    is_problem(&server.post("/v1/page", good(0)), 401, "unauthorized");
    is_problem(&with("other", &good(0)), 401, "unauthorized");
    is_problem(&with("", &good(0)), 401, "unauthorized");
    let keyed = |key: &str, number| good(number).replacen('{', &format!(r#"{{"writeKey":"{key}","#), 1);
    is_problem(&server.post("/v1/page", keyed("other", 0)), 401, "unauthorized");
    let no_scheme = server.ask("POST", "/v1/page", &[("authorization", "demo")], good(0).as_bytes());
    is_problem(&no_scheme, 401, "unauthorized");
    is_problem(&server.get("/v1/profiles/good"), 404, "not_found");
    taken(&with("demo", &good(1)).json(), 1, &json!([]));
    taken(&with("k2", &good(2)).json(), 1, &json!([]));
    taken(&server.post("/v1/page", keyed("demo", 3)).json(), 1, &json!([]));
    let batch = |key: &str| format!(r#"{{"writeKey":"{key}","batch":[{}]}}"#, good(4));
    is_problem(&server.post("/v1/batch", batch("demo2")), 401, "unauthorized");
    taken(&server.post("/v1/batch", batch("k2")).json(), 1, &json!([]));
    taken(&server.post("/v1/b", gzip(batch("demo").as_bytes())).json(), 1, &json!([]));
    assert_eq!(items(&server, "/v1/profiles/good/events", 10).len(), 4);
}

#[test]
fn who_may_not_write_leaves_no_trace() {
    let home = Home::new(&SHOP.replacen('{', r#"{"write_keys":[{"key":"demo","origins":["*"]}],"#, 1));
    let server = home.start(&EVENTS);
    let other = format!("Basic {}", base64(b"other:"));
    let bodies = ["{", "[]", r#"{"batch":[7]}"#, r#"{"batch":7}"#, "\u{0}"];
    let mut statuses = Vec::new();
    for body in bodies {
        statuses.push(server.ask("POST", "/v1/batch", &[("authorization", &other)], body.as_bytes()).status);
    }
    assert_eq!(items(&server, "/v1/dead-letters", 100), Vec::<Value>::new(), "dead letters of an unknown key");
    assert_eq!(statuses, [401; 5], "an unknown key is 401");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for part in bytes.chunks(3) {
        let bits = part.iter().chain([&0, &0]).take(3).fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        let digits = (0..4).map(|n| char::from(DIGITS[bits >> (18 - 6 * n) & 63]));
        out.extend(digits.take(part.len() + 1));
        out.extend(std::iter::repeat_n('=', 3 - part.len()));
    }
    out
}

// Replays; what they say when they can be done is told in `replay.rs`.

/// A replay that stays answers as a server does that was sent the same, and takes nothing in.
#[test]
fn a_replay_keeps_its_doors_open() {
    let home = Home::new(SHOP);
    let calls: Vec<Value> = (0..12).map(|n| typed("track", call("track", n * 30).1)).collect();
    let visit = json!({"type": "page", "anonymousId": "eve", "messageId": "e", "timestamp": START + HOUR});
    let calls: Vec<Value> = calls.into_iter().chain([visit]).collect();
    let lines: Vec<String> = calls.iter().map(Value::to_string).collect();
    home.write("calls.ndjson", lines.join("\n"));
    let server = home.start(&EVENTS);
    let position = taken(&server.write("/v1/batch", &json!({"batch": calls})), calls.len(), &json!([]));
    server.read(&format!("/v1/profiles/ada?after={position}"));
    let replay = home.replay("calls.ndjson", &["--workers", "2"]);
    let logged = ["/v1/profiles/ada/events", "/v1/dead-letters"];
    let dispatched = ["/v1/campaigns", "/v1/campaigns/hello", "/v1/campaigns/hello/intents"];
    for path in ANSWERS.iter().filter(|path| !logged.contains(path) && !dispatched.contains(path)) {
        assert_eq!(without_as_of(replay.read(path)), without_as_of(server.read(path)), "{path}");
    }
    assert_eq!(replay.read("/v1/campaigns/hello")["by_status"], json!({"due": 1}));
    let intents = ["/v1/campaigns/hello/intents", "/v1/profiles/eve/intents"].map(|path| items(&replay, path, 9));
    assert!(intents[0].len() == 1 && intents[0] == intents[1] && intents[0][0]["status"] == "due", "{intents:?}");
    for path in logged.into_iter().chain(["/v1/subscribe?view=intents"]) {
        is_problem(&replay.get(path), 409, "conflict");
    }
    is_problem(&replay.post("/v1/track", calls[0].to_string()), 409, "conflict");
    is_problem(&replay.post("/v1/clock", r#"{"to":1800000000000}"#), 409, "conflict");
    assert!(replay.terminate(Duration::from_secs(5)).is_some_and(|status| status.success()));
}

#[test]
fn a_replay_that_cannot_be_done_says_why() {
    let home = Home::new(SHOP);
    home.write("empty.ndjson", "");
    let replay = |args: &[&str]| home.run(&[&["replay"], args].concat());
    says(&replay(&["nowhere.ndjson", "--definitions", "thalweg.yaml"]), &["nowhere.ndjson"]);
    says(&replay(&["empty.ndjson", "--definitions", "nowhere.yaml"]), &["nowhere.yaml"]);
    let ended = replay(&["empty.ndjson", "--definitions", "thalweg.yaml", "--report", "json"]);
    assert!(ended.status.success(), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).expect("the report is one JSON object");
    assert_eq!((&report["read"], &report["profiles"], &report["as_of"]["clock"]), (&json!(0), &json!(0), &json!(0)));
}

#[test]
fn ids_that_are_integers_are_so_in_the_control_lines_of_a_file_too() {
    let home = Home::new(SHOP);
    let page = |ids: &str, number: i64| {
        format!(r#"{{"type":"page","messageId":"m{number}","timestamp":{},{ids}}}"#, START + number)
    };
    let lines = [
        page(r#""userId":7,"anonymousId":8"#, 1),
        page(r#""userId":7"#, 2),
        page(r#""userId":9"#, 3),
        r#"{"type":"retract","id":7,"messageId":"m2"}"#.into(),
        r#"{"type":"unlink","a":8,"b":7}"#.into(),
        r#"{"type":"erase","id":9}"#.into(),
        page(r#""anonymousId":8"#, 4),
    ];
    home.write("integers.ndjson", lines.join("\n"));
    let args = ["replay", "integers.ndjson", "--definitions", "thalweg.yaml", "--report", "json"];
    let ended = home.run(&[&args[..], &["--lateness", "unlimited"]].concat());
    assert!(ended.status.success(), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).expect("the report is one JSON object");
    let found = (&report["rejected"]["invalid"], &report["profiles"], &report["sessions"]["events"]);
    assert_eq!(found, (&json!(0), &json!(2), &json!(2)), "{report}");
}

#[test]
fn every_flag_is_a_variable_of_the_environment_too() {
    let home = Home::new(SHOP);
    for command in ["serve", "demo", "replay", "dry-run"] {
        let help = home.run(&[command, "--help"]).stdout;
        let flags = help.lines().filter(|line| line.trim_start().starts_with("--")).count();
        let variables = help.lines().filter(|line| line.contains("[env: THALWEG_")).count();
        assert!(flags > 0 && flags == variables, "{help}");
    }
}

// Requests that make no sense.

/// A server with one profile.
fn with_ada(home: &Home) -> Server {
    let server = home.start(&EVENTS);
    server.write("/v1/track", &call("track", 2).1);
    server
}

const ANSWERS: [&str; 20] = [
    "/v1/profiles/ada",
    "/v1/profiles/ada/events",
    "/v1/profiles/ada/sessions",
    "/v1/profiles/ada/touchpoints",
    "/v1/profiles/ada/conversions",
    "/v1/profiles/ada/intents",
    "/v1/profiles/ada/segments/changes",
    "/v1/sessions",
    "/v1/sessions/summary",
    "/v1/segments",
    "/v1/segments/new",
    "/v1/segments/new/members",
    "/v1/journeys",
    "/v1/journeys/cart",
    "/v1/journeys/cart/due",
    "/v1/campaigns",
    "/v1/campaigns/hello",
    "/v1/campaigns/hello/intents",
    "/v1/attribution",
    "/v1/dead-letters",
];

#[test]
fn parameters_that_make_no_sense_are_refused_everywhere() {
    let home = Home::new(SHOP);
    let server = with_ada(&home);
    let wrong = [
        "foo=1",
        "after=x",
        "after=-1",
        "after=",
        "wait=5",
        "wait=31s",
        "wait=-1s",
        "wait=1s&wait=1s",
        "after=1&after=1",
        "at=%ff",
    ];
    for path in ANSWERS {
        assert_eq!(server.get(path).status, 200, "{path}");
        assert_eq!(server.get(&format!("{path}?after=1&wait=30s")).status, 200, "{path}");
        for query in wrong {
            let answer = server.get(&format!("{path}?{query}"));
            assert_eq!(answer.status, 400, "{path}?{query}: {}", answer.text());
            is_problem(&answer, 400, "bad_request");
        }
    }
    for path in ANSWERS.iter().filter(|path| server.read(path)["items"].is_array()) {
        for query in ["limit=0", "limit=1001", "limit=x", "limit=1&limit=1", "cursor=a&cursor=b", "cursor=x"] {
            is_problem(&server.get(&format!("{path}?{query}")), 400, "bad_request");
        }
    }
    for path in ["/v1/clock", "/v1/events:retract", "/v1/identities:unlink", "/v1/channels:resend"] {
        for query in wrong {
            is_problem(&server.post(&format!("{path}?{query}"), "{}"), 400, "bad_request");
        }
        let answer = server.post(&format!("{path}?foo=1"), "{}").json();
        assert!(answer["detail"].as_str().is_some_and(|detail| detail.contains("`foo`")), "{path}: {answer}");
    }
    for query in ["model=magic", "by=weather", "model=linear&model=linear", "conversion=none", "from=x", "to=20260101"]
    {
        is_problem(&server.get(&format!("/v1/attribution?{query}")), 400, "bad_request");
    }
    for query in ["from=2026-02-30", "from=0", "to=", "to=2026-01-01&to=2026-01-01"] {
        is_problem(&server.get(&format!("/v1/sessions?{query}")), 400, "bad_request");
        is_problem(&server.get(&format!("/v1/sessions/summary?{query}")), 400, "bad_request");
    }
}

#[test]
fn every_list_has_a_limit_and_a_cursor() {
    let home = Home::new(SHOP);
    let server = with_ada(&home);
    for number in 1..8 {
        server.write("/v1/track", &call("track", number * 40).1);
        server.write("/v1/page", &call("page", number * 40 + 1).1);
        server.write("/v1/track", &json!({"event": "no id"}));
        server.write("/v1/page", &json!({"anonymousId": format!("n{number}"), "timestamp": START}));
    }
    let timer = json!({"userId": "eve", "event": "add_to_cart", "timestamp": START + 300 * 60_000});
    server.write("/v1/track", &timer);
    for path in ANSWERS.iter().filter(|path| server.read(path)["items"].is_array()) {
        let all = server.read(path)["items"].clone();
        assert!(all.as_array().is_some_and(|all| !all.is_empty()), "{path}");
        assert_eq!(json!(items(&server, path, 1)), all, "{path}");
    }
}

/// A cursor holds the last key: what comes late before or after it shifts no page.
#[test]
fn cursors_hold_whatever_comes_late() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let visit = |at: i64, id: &str| {
        let (order, timestamp) = (format!("o{id}"), START + at * HOUR);
        let properties = json!({"order": order, "value": 1, "channel": "search", "campaign": id});
        let events = [("ad_click", format!("a{id}")), ("purchase", format!("b{id}"))];
        let calls = events.map(|(event, message_id)| {
            json!({"type": "track", "userId": "ada", "event": event, "messageId": message_id,
                "timestamp": timestamp, "properties": properties})
        });
        taken(&server.write("/v1/batch", &json!({"batch": calls})), 2, &json!([]));
    };
    for at in 1..6 {
        visit(2 * at, &at.to_string());
    }
    let paths = ["events", "sessions", "touchpoints", "conversions", "segments/changes"];
    let paths = paths.map(|view| format!("/v1/profiles/ada/{view}")).into_iter();
    let paths: Vec<String> = paths.chain(["/v1/sessions".to_owned()]).collect();
    let first: Vec<Value> = paths.iter().map(|path| server.read(&format!("{path}?limit=3"))).collect();
    let items_of = |part: &Value| part["items"].as_array().expect("items").clone();
    let before: Vec<Vec<Value>> = paths.iter().map(|path| items(&server, path, 1000)).collect();
    // One later than all that was given, one at the very instant of the last given, and one earlier.
    for at in [20, 8, 3] {
        visit(at, &format!("late{at}"));
    }
    for ((path, first), before) in paths.iter().zip(first).zip(before) {
        let next = first["next"].as_str().expect("there is more");
        let rest = items_of(&server.read(&format!("{path}?cursor={next}")));
        let all = items(&server, path, 2);
        assert_eq!(all, items(&server, path, 1000), "{path}");
        assert!(rest.len() < all.len() && all.ends_with(&rest), "{path}: {rest:#?}");
        let given = items_of(&first);
        assert!(!rest.iter().any(|row| given.contains(row)), "{path} gives a row twice");
        let lost = |row: &&Value| all.contains(row) && !given.contains(row) && !rest.contains(row);
        assert_eq!(before.iter().find(lost), None, "{path} has left out a row");
    }
}

/// What is asked over people: their sessions by date, and the credit of some conversions.
#[test]
fn sessions_and_credit_are_told_by_date() {
    for workers in ["1", "3"] {
        let home = Home::new(SHOP);
        let server = home.start(&[&EVENTS[..], &["--workers", workers]].concat());
        let empty = without_as_of(server.read("/v1/sessions/summary"));
        assert_eq!(
            empty,
            json!({"sessions": 0, "events": 0, "mean_length_ms": null, "bounces": 0, "bounce_rate": null, "buying": 0})
        );
        let day = 24 * HOUR;
        let mut number = 0;
        let mut send = |id: &str, event: &str, at: i64, properties: Value| {
            number += 1;
            let body = json!({"userId": id, "event": event, "messageId": format!("m{number}"),
                "timestamp": START + at, "properties": properties});
            server.write("/v1/track", &body);
        };
        let ad = |channel: &str| json!({"channel": channel, "campaign": format!("{channel}-1")});
        // Ada clicks twice and buys the next day; Bob clicks only; Eve buys without a touch; all look around.
        send("ada", "ad_click", 0, ad("search"));
        send("ada", "ad_click", 7, ad("mail"));
        send("ada", "purchase", day, json!({"order": "1", "value": 10}));
        send("bob", "ad_click", 5, ad("search"));
        send("bob", "look", 40, json!({}));
        send("eve", "look", day - 1, json!({}));
        send("eve", "purchase", day - 1, json!({"order": "2", "value": 2.5}));
        send("ada", "ad_click", 60 * day, ad("mail"));
        let brief = |row: &Value| (row["profile"].as_str().map(str::to_owned), row["start"].as_i64());
        let of = |id: &str, start| (Some(id.to_owned()), Some(START + start));
        let sessions = items(&server, "/v1/sessions", 2);
        let expected = [of("ada", 60 * day), of("ada", day), of("eve", day - 1), of("bob", 5), of("ada", 0)];
        assert_eq!(sessions.iter().map(brief).collect::<Vec<_>>(), expected);
        assert_eq!(sessions[3..4], items(&server, "/v1/profiles/bob/sessions", 9));
        let first_day = server.read("/v1/sessions?from=2026-01-01&to=2026-01-02");
        assert_eq!(first_day["items"], json!(sessions[2..]));
        assert_eq!(server.read("/v1/sessions?from=2026-01-02")["items"], json!(sessions[..2]));
        let summary = |query: &str| without_as_of(server.read(&format!("/v1/sessions/summary{query}")));
        let expected = |sessions, events, mean: f64, bounces, rate: f64, buying| {
            json!({"sessions": sessions, "events": events, "mean_length_ms": mean, "bounces": bounces,
                "bounce_rate": rate, "buying": buying})
        };
        let as_numbers = |mut row: Value| {
            for key in ["mean_length_ms", "bounce_rate"] {
                row[key] = json!(row[key].as_f64());
            }
            row
        };
        assert_eq!(as_numbers(summary("")), expected(5, 8, 8.4, 2, 0.4, 2));
        let first_day = "?from=2026-01-01&to=2026-01-02";
        assert_eq!(as_numbers(summary(first_day)), expected(3, 6, 14.0, 0, 0.0, 1));
        let one = "?from=2026-01-02&to=2026-01-03";
        assert_eq!(as_numbers(summary(one)), expected(1, 1, 0.0, 1, 1.0, 1));

        let credit = |query: &str| without_as_of(server.read(&format!("/v1/attribution?{query}")));
        let row = |channel: &str, campaign: Option<&str>, conversions: &str, value: &str| {
            let key = json!([channel, campaign]);
            json!({"channel": key[0], "campaign": key[1], "conversions": conversions, "value": value})
        };
        let total = |conversions: &str, value: &str| json!({"conversions": conversions, "value": value});
        let basis = |conversions, with_touch, null_paths, touches| {
            json!({"conversions": conversions, "with_touch": with_touch, "null_paths": null_paths,
                "touches": touches})
        };
        let all = json!({"model": "linear", "by": "channel",
            "rows": [row("mail", None, "0.5", "5"), row("search", None, "0.5", "5"), row("(direct)", None, "1", "2.5")],
            "total": total("2", "12.5"), "basis": basis(2, 1, 2, 4), "fallback": [],
            "history_from": null});
        assert_eq!(credit("model=linear"), all);
        assert_eq!(credit("model=linear&conversion=purchase&from=2026-01-01&to=2027-01-01"), all);
        let first = credit("model=first_touch&by=campaign&from=2026-01-02&to=2026-01-03");
        assert_eq!(first["rows"], json!([row("search", Some("search-1"), "1", "10")]));
        assert_eq!((&first["total"], &first["basis"]), (&total("1", "10"), &basis(1, 1, 0, 2)));
        let none = credit("model=last_touch&from=2026-03-01");
        assert_eq!((&none["rows"], &none["total"]), (&json!([]), &total("0", "0")));
        assert_eq!(none["basis"], basis(0, 0, 1, 1));
    }
}

/// The numbers of an event are told as they were sent.
#[test]
fn an_event_keeps_its_numbers() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let properties = r#"{"a":0.10,"b":12345678901234567890.123,"c":[1e2,-0.0],"d":{"e":9007199254740993}}"#;
    let body =
        format!(r#"{{"userId":"ada","event":"x","messageId":"m","timestamp":{START},"properties":{properties}}}"#);
    assert_eq!(server.post("/v1/track", body).status, 200);
    let answer = server.get("/v1/profiles/ada/events");
    assert!(answer.text().contains(&format!(r#""properties":{properties}"#)), "{}", answer.text());
}

/// A segment is told with its definition, as the file writes it.
#[test]
fn a_segment_tells_its_definition() {
    let home = Home::new(SHOP);
    let server = with_ada(&home);
    let expected = json!({"name": "quiet", "size": 0, "version": 1, "history_from": null,
        "definition": {"not_performed": "purchase", "within": "10m"}});
    assert_eq!(without_as_of(server.read("/v1/segments/quiet")), expected);
}

/// Deadlines to come, the next first.
#[test]
fn deadlines_are_told_by_how_soon_they_are() {
    let home = Home::new(SHOP);
    let server = home.start(&[&EVENTS[..], &["--workers", "2"]].concat());
    for (number, id) in ["c", "a", "b"].into_iter().enumerate() {
        let at = START + 60_000 * number as i64;
        server.write("/v1/track", &json!({"userId": id, "event": "add_to_cart", "messageId": id, "timestamp": at}));
    }
    let row = |id: &str, minute: i64| json!({"profile": id, "at": START + minute * 60_000, "emit": "cart_left"});
    assert_eq!(items(&server, "/v1/journeys/cart/due", 1), [row("c", 5), row("a", 6), row("b", 7)]);
    assert_eq!(server.read("/v1/journeys/cart/due?within=4m")["items"], json!([row("c", 5), row("a", 6)]));
    assert_eq!(server.read("/v1/journeys/cart")["next_deadlines"][2], row("b", 7));
    is_problem(&server.get("/v1/journeys/cart/due?within=soon"), 400, "bad_request");
}

#[test]
fn unknown_things_and_wrong_methods_are_problems() {
    let home = Home::new(SHOP);
    let server = with_ada(&home);
    let unknown = [
        "/v1/nothing",
        "/v2/segments",
        "/v1/profiles",
        "/v1/profiles/ada/nothing",
        "/v1/profiles/nobody",
        "/v1/profiles/nobody/events",
        "/v1/segments/none",
        "/v1/segments/none/members",
        "/v1/journeys/none",
        "/v1/journeys/none/due",
        "/v1/campaigns/none",
        "/v1/campaigns/none/intents",
        "/v1/profiles/%F0%9F%92%A9",
    ];
    for path in unknown {
        is_problem(&server.get(path), 404, "not_found");
    }
    for path in ANSWERS.into_iter().filter(|path| *path != "/v1/profiles/ada") {
        is_problem(&server.ask("DELETE", path, &[], b""), 405, "method_not_allowed");
        is_problem(&server.post(path, "{}"), 405, "method_not_allowed");
    }
    for (long, short) in ROUTES {
        for path in [long, short] {
            is_problem(&server.get(&format!("/v1/{path}")), 405, "method_not_allowed");
            is_problem(&server.ask("PUT", &format!("/v1/{path}"), &[], b"{}"), 405, "method_not_allowed");
        }
    }
    is_problem(&server.ask("PUT", "/v1/clock", &[], b"{}"), 405, "method_not_allowed");
    is_problem(&server.post("/healthz", ""), 405, "method_not_allowed");
}

#[test]
fn an_id_that_is_not_utf_8_is_a_problem_too() {
    let home = Home::new(SHOP);
    let server = with_ada(&home);
    is_problem(&server.get("/v1/profiles/%ff"), 400, "bad_request");
}

/// Ids, and how they stand in a path or a query.
const ODD_IDS: [(&str, &str); 3] = [
    ("a/b?c=d&e#f", "a%2Fb%3Fc%3Dd%26e%23f"),
    ("jane doe+1@x.org", "jane%20doe%2B1%40x.org"),
    ("Ærø🙂", "%C3%86r%C3%B8%F0%9F%99%82"),
];

#[test]
fn ids_of_any_kind_are_found() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    for (number, (id, encoded)) in ODD_IDS.into_iter().enumerate() {
        let body = json!({"userId": id, "messageId": "m", "timestamp": START + number as i64});
        let position = taken(&server.write("/v1/page", &body), 1, &json!([]));
        let profile = server.read(&format!("/v1/profiles/{encoded}?after={position}"));
        assert_eq!(profile["id"], id);
        assert_eq!(items(&server, &format!("/v1/profiles/{encoded}/events"), 1).len(), 1);
    }
}

#[test]
fn subscriptions_to_ids_of_any_kind_are_found() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    for (number, (id, encoded)) in ODD_IDS.into_iter().enumerate() {
        let body = json!({"anonymousId": id, "messageId": "m", "timestamp": START + number as i64});
        server.write("/v1/page", &body);
        let rows = || Some(server.subscribe(&format!("view=intents&profile={encoded}")).snapshot());
        let some = || rows().filter(|rows| !rows.is_empty());
        let rows = until(Duration::from_secs(2), &format!("intents of {encoded} are in a snapshot"), some);
        assert_eq!(rows.iter().map(|row| &row["profile"]).collect::<Vec<_>>(), [id]);
    }
}

#[test]
fn what_is_asked_of_the_future_is_not_yet() {
    let home = Home::new(SHOP);
    let server = with_ada(&home);
    let mut early = Vec::new();
    for path in ANSWERS {
        let answer = server.get(&format!("{path}?after=9000000000000000000&wait=100ms"));
        if answer.status == 503 {
            is_problem(&answer, 503, "not_yet");
        } else {
            early.push(path);
        }
    }
    assert_eq!(early, Vec::<&str>::new(), "these answer though they do not include the position yet");
}

#[test]
fn an_answer_waits_for_what_is_to_come() {
    let home = Home::new(SHOP);
    let server = with_ada(&home);
    let position = server.read("/v1/profiles/ada")["as_of"]["position"].as_str().and_then(|p| p.parse::<u64>().ok());
    let next = position.expect("the embedded log counts") + 1;
    let to = server.address;
    let path = format!("/v1/profiles/ada?after={next}&wait=20s");
    let waits = std::thread::spawn(move || http::ask(to, "GET", &path, &[], &[]));
    std::thread::sleep(Duration::from_millis(50));
    server.write("/v1/track", &call("track", 5).1);
    let answer = waits.join().expect("it is answered").expect("it is answered");
    assert_eq!((answer.status, &answer.json()["computed"]["purchases"]), (200, &json!(1)));
}

#[test]
fn subscriptions_that_make_no_sense_are_refused() {
    let home = Home::new(SHOP);
    let server = with_ada(&home);
    for query in ["", "view=weather", "view=intents&view=intents", "view=intents&foo=1", "profile=ada"] {
        is_problem(&server.get(&format!("/v1/subscribe?{query}")), 400, "bad_request");
    }
    is_problem(&server.post("/v1/subscribe?view=intents", ""), 405, "method_not_allowed");
    is_problem(&server.get("/v1/subscribe?view=intents&after=18446744073709551615&wait=10ms"), 503, "not_yet");
}

/// A subscription after what was written begins with it.
#[test]
fn a_subscription_waits_for_what_it_is_to_include() {
    let home = Home::new(POPUPS);
    let server = home.start(&[]);
    let taken = server.write("/v1/page", &json!({"anonymousId": "eve", "properties": {"page": "/"}}));
    let position = taken["position"].as_str().expect("a text");
    let subscription = server.subscribe(&format!("view=intents&profile=eve&after={position}"));
    let snapshot = subscription.snapshot();
    assert_eq!(snapshot.len(), 1, "{snapshot:?}");
}

#[test]
fn a_malformed_last_event_id_is_refused() {
    use std::io::BufReader;
    let home = Home::new(SHOP);
    let server = with_ada(&home);
    let headers = [("last-event-id", "nonsense")];
    let socket = http::begin(server.address, "GET", "/v1/subscribe?view=intents", &headers, 0).expect("it listens");
    let (status, _) = http::head(&mut BufReader::new(socket)).expect("it answers");
    assert_eq!(status, 400);
}
