//! What the doors say of themselves: the description that programs read, held against the binary, and its numbers.

mod process;
mod tools;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use process::{Home, Server, until};
use serde_json::{Value, json};
use tools::{python, tool};

/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600_000;
/// A request of OpenDSR.
const REQUEST: &str = "a7551968-d5d6-44b2-9831-815ac9017798";
const SHOP: &str = include_str!("../examples/shop.yaml");

/// A shop, and a day in it that leaves something at every door.
fn shop() -> (Home, Server) {
    // What goes to a channel that nothing carries is parked.
    let campaigns = "\ncampaigns:\n  bought: { when: { event: purchase }, channel: crm }\n";
    let shop =
        SHOP.replace("\ncampaigns:\n", campaigns).replace("\nchannels:\n", "\nchannels:\n  crm: { deliver: nats }\n");
    let home = Home::new(&shop);
    let server = home.start(&["--clock", "events"]);
    let consent = json!({"consent": {"categoryPreferences": {"marketing": true}}});
    let track = |number: i64, event: &str, properties: Value| {
        json!({"type": "track", "userId": "ada", "anonymousId": "phone", "event": event,
            "messageId": format!("m{number}"), "timestamp": START + 1_000 * number, "properties": properties,
            "context": consent})
    };
    let page = |number: i64, id: &str| {
        json!({"type": "page", "anonymousId": id, "messageId": format!("m{number}"),
            "timestamp": START + 1_000 * number, "properties": {"page": "/"}})
    };
    let calls = [
        track(1, "ad_click", json!({"channel": "search", "campaign": "spring"})),
        page(2, "phone"),
        track(3, "section_view", json!({"section": "shoes"})),
        track(4, "product_view", json!({"sku": "boots"})),
        track(5, "purchase", json!({"order": "o1", "value": 400, "items": 2})),
        track(6, "add_to_cart", json!({"items": 1})),
        track(7, "checkout_started", json!({"items": 1})),
        track(8, "refund", json!({"order": "o1", "value": 10})),
        json!({"type": "identify", "userId": "ada", "messageId": "m9", "timestamp": START + 9_000,
            "traits": {"plan": "gold"}}),
        page(10, "tablet"),
        json!({"type": "track", "event": "of nobody"}),
    ];
    let taken = server.write("/v1/batch", &json!({"batch": calls}));
    assert_eq!(taken["accepted"], 10, "{taken}");
    until(Duration::from_secs(10), "the pop-ups are sent", || {
        let campaigns = server.read("/v1/campaigns")["items"].clone();
        let waiting = |row: &Value| row["by_status"]["waiting"].is_i64();
        let sent = |row: &Value| row["by_status"]["sent"].is_i64();
        let rows = campaigns.as_array().expect("a list");
        (rows.iter().any(sent) && !rows.iter().any(waiting)).then_some(())
    });
    until(Duration::from_secs(10), "the purchase is parked", || {
        (server.read("/v1/channels/crm")["parked"] == 1).then_some(())
    });
    (home, server)
}

fn description(server: &Server) -> Value {
    let answer = server.get("/openapi.json");
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    answer.json()
}

/// The members of an object, by name.
fn names(of: &Value) -> BTreeSet<String> {
    of.as_object().unwrap_or_else(|| panic!("no object: {of}")).keys().cloned().collect()
}

#[test]
fn every_door_keeps_to_its_description_under_made_up_requests() {
    let (home, server) = shop();
    // It does not try the description itself, and a subscription never ends.
    let doors = description(&server)["paths"].clone();
    let tried = doors.as_object().expect("an object").values().map(|door| names(door).len()).sum::<usize>() - 2;
    server.write("/v1/batch", &json!({"batch": [{"type": "page", "anonymousId": "kiosk", "timestamp": START}]}));
    let identity = r#"{"identity_type":"controller_customer_id","identity_value":"kiosk","identity_format":"raw"}"#;
    let request = format!(
        r#"{{"regulation":"gdpr","subject_request_id":"{REQUEST}","subject_request_type":"access",
        "submitted_time":"2026-01-01T00:00:00Z","subject_identities":[{identity}]}}"#
    );
    assert_eq!(server.post("/opendsr/requests", request).status, 201);
    let erasure = server.ask("DELETE", "/v1/profiles/kiosk", &[], &[]).json()["erasure"].clone();
    let mut command = tool("schemathesis");
    command
        .args(["run", &format!("http://{}/openapi.json", server.address), "--no-color", "--seed", "1"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "12"])
        .args(["--exclude-path", "/v1/subscribe"])
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/described"))
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("REQUEST", REQUEST)
        .env("ERASURE", erasure.as_str().expect("an erasure"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(home.path(""));
    let output = command.output().expect("schemathesis can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("Tested: {tried}\n")), "not every door was tried:\n{said}");
    assert!(!server.said().contains("panicked"), "{}", server.said());
}

#[test]
fn all_doors_of_the_contract_are_described() {
    let home = Home::new(SHOP);
    let server = home.start(&[]);
    let described = description(&server);
    assert_eq!(described["openapi"], "3.1.0");
    let calls = ["track", "identify", "page", "screen", "group", "alias", "batch"];
    let calls = calls.into_iter().chain(["t", "i", "p", "s", "g", "a", "b"]).chain(["clock", "channels:resend"]);
    let calls = calls.chain(["events:retract", "identities:unlink"]);
    let calls = calls.chain(["segments:preview", "definitions:diff", "campaigns:dry-run"]);
    let mut wanted: BTreeSet<(String, &str)> = calls.map(|call| (format!("/v1/{call}"), "post")).collect();
    wanted.insert(("/beacon/v1/batch".to_owned(), "post"));
    wanted.insert(("/v1/profiles/{id}".to_owned(), "delete"));
    wanted.insert(("/opendsr/requests".to_owned(), "post"));
    wanted.insert(("/opendsr/requests/{id}".to_owned(), "delete"));
    wanted.extend(["put", "delete"].map(|method| ("/v1/definitions/{kind}/{name}".to_owned(), method)));
    for path in [
        "/",
        "/docs",
        "/healthz",
        "/metrics",
        "/openapi.json",
        "/opendsr/discovery",
        "/opendsr/requests/{id}",
        "/readyz",
        "/sourceConfig/",
        "/v1/attribution",
        "/v1/audit",
        "/v1/campaigns",
        "/v1/campaigns/{name}",
        "/v1/campaigns/{name}/intents",
        "/v1/channels",
        "/v1/channels/{name}",
        "/v1/channels/{name}/parked",
        "/v1/dead-letters",
        "/v1/erasures/{id}",
        "/v1/identities/refused",
        "/v1/profiles/{id}/export",
        "/v1/definitions/{kind}/{name}",
        "/v1/journeys",
        "/v1/journeys/{name}",
        "/v1/journeys/{name}/due",
        "/v1/profiles/{id}",
        "/v1/profiles/{id}/conversions",
        "/v1/profiles/{id}/events",
        "/v1/profiles/{id}/explain",
        "/v1/profiles/{id}/intents",
        "/v1/profiles/{id}/segments/changes",
        "/v1/profiles/{id}/sessions",
        "/v1/profiles/{id}/touchpoints",
        "/v1/projects/{key}/settings",
        "/v1/segments",
        "/v1/segments/{name}",
        "/v1/segments/{name}/members",
        "/v1/sessions",
        "/v1/sessions/summary",
        "/v1/subscribe",
    ] {
        wanted.insert((path.to_owned(), "get"));
    }
    let missing = wanted.iter().find(|(path, method)| described["paths"][path][method].is_null());
    assert_eq!(missing, None);
    let mut operations = BTreeSet::new();
    for (path, methods) in described["paths"].as_object().expect("an object") {
        for (method, told) in methods.as_object().expect("an object") {
            let id = told["operationId"].as_str().expect("an operation has an id");
            assert!(operations.insert(id.to_owned()), "{method} {path}: {id} is the name of two");
            let has = |of: &[&str]| of.iter().any(|status| told["responses"][status].is_object());
            assert!(told["summary"].is_string() && has(&["200", "201", "202"]), "{method} {path}: {told}");
        }
    }
}

/// A parameter that is not described is not known, and the refusal lists those that are.
#[test]
fn what_is_known_in_a_query_is_described() {
    let (_home, server) = shop();
    let mut asked = 0;
    for (path, methods) in description(&server)["paths"].as_object().expect("an object") {
        let parameters = methods["get"]["parameters"].as_array();
        let queries = |of: &&Value| of["in"] == "query";
        let described: BTreeSet<&str> =
            parameters.into_iter().flatten().filter(queries).filter_map(|of| of["name"].as_str()).collect();
        // SDKs ask with parameters of their own.
        if described.is_empty() || path == "/sourceConfig/" {
            continue;
        }
        let answer = server.get(&format!("{}?nobody=1", path.replace("{id}", "ada").replace("{name}", "vip")));
        let detail = answer.json()["detail"].as_str().expect("a problem has a detail").to_owned();
        let known = detail.split("known here: ").nth(1).unwrap_or_else(|| panic!("{path}: {detail}"));
        assert_eq!(known.split(", ").collect::<BTreeSet<_>>(), described, "{path}");
        asked += 1;
    }
    assert!(asked > 15, "{asked}");
}

#[test]
fn subscriptions_keep_to_their_description() {
    let (_home, server) = shop();
    let described = description(&server);
    let fields = |schema: &str| names(&described["components"]["schemas"][schema]["properties"]);
    let intent: BTreeSet<String> = fields("Intent").into_iter().chain(["type".into()]).collect();
    let subscription = server.subscribe("view=intents");
    let snapshot = subscription.next(Duration::from_secs(10)).expect("a snapshot comes");
    server.write("/v1/page", &json!({"anonymousId": "new", "timestamp": START + 20_000, "properties": {"page": "/"}}));
    let change = subscription.next(Duration::from_secs(10)).expect("the pop-up comes");
    assert_eq!((&*snapshot.event, &*change.event), ("snapshot", "change"));
    for message in [snapshot, change] {
        assert_eq!(names(&message.data), fields("Message"));
        let changes = message.data["changes"].as_array().expect("a list");
        assert!(!changes.is_empty(), "{message:?}");
        for change in changes {
            assert_eq!((names(change), names(&change["row"])), (fields("Row"), intent.clone()), "{change}");
        }
    }
}

/// The page of all doors needs nothing but this process.
#[test]
fn the_doors_can_be_read_by_people() {
    let home = Home::new(SHOP);
    let server = home.start(&[]);
    let answer = server.get("/docs");
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/html; charset=utf-8"));
    let page = answer.text();
    assert!(page.contains("fetch('/openapi.json')"), "{page}");
    assert!(!page.contains("//cdn") && !page.contains("http:") && !page.contains("https:"), "{page}");
}

/// Reads the numbers as Prometheus does; gives the names of the families, which must be told in its form.
fn families(text: &str) -> BTreeSet<String> {
    let mut reader = python("tests/described/metrics.py");
    let mut reader = reader.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python can be run");
    reader.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads");
    let output = reader.wait_with_output().expect("it ends");
    assert!(output.status.success(), "the numbers cannot be read:\n{text}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn numbers_are_told_as_prometheus_reads_them() {
    let (home, server) = shop();
    let position = server.read("/v1/segments")["as_of"]["position"].clone();
    let answer = server.get("/metrics");
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    let found = families(&text);
    for name in [
        "channel_disabled",
        "channel_in_flight",
        "channel_parked",
        "channel_pending",
        "clock_milliseconds",
        "dead_letters",
        "delivery_failures",
        "delivery_seconds",
        "intents",
        "log_bytes",
        "log_position",
        "log_segments",
        "profiles",
        "queue_depth",
        "receipt_to_answer_seconds",
        "records",
        "session_events",
        "sessions",
        "step_seconds",
        "steps_open",
        "subscribers",
    ] {
        assert!(found.contains(&format!("thalweg_{name}")), "{name} is not told:\n{text}");
    }
    let number = |text: &str, name: &str| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}:\n{text}"));
        line.trim().parse::<f64>().unwrap_or_else(|_| panic!("{name} is no number: {line}"))
    };
    let of = |name: &str| number(&text, &format!("thalweg_{name}"));
    assert_eq!(of(r#"records_total{verdict="accepted"}"#), 10.0);
    assert_eq!(of(r#"dead_letters{reason="no_id"}"#), 1.0);
    assert_eq!(of(r#"intents{campaign="vip_checkout",status="sent"}"#), 1.0);
    assert_eq!(of(r#"channel_parked{channel="crm"}"#), 1.0);
    assert!(of(r#"delivery_seconds_count{channel="popup"}"#) >= 1.0, "{text}");
    assert_eq!((of("profiles "), of("log_segments ")), (2.0, 1.0));
    assert_eq!(of("receipt_to_answer_seconds_count"), 1.0, "one body was taken, and is true in all answers");
    assert!(of("step_seconds_count") >= 1.0 && of("log_position") >= position.as_str().unwrap().parse().unwrap());
    let on_disk: u64 = home.segments().iter().map(|path| path.metadata().expect("a file").len()).sum();
    assert_eq!(number(&server.get("/metrics").text(), "thalweg_log_bytes"), on_disk as f64);
    server.kill();
    // What the log holds is counted at the next start too; under the wall's clock, how far behind it is.
    let server = home.start(&[]);
    let text = until(Duration::from_secs(10), "the clock is that of the wall", || {
        let text = server.get("/metrics").text();
        (number(&text, "thalweg_clock_lag_seconds") < 5.0).then_some(text)
    });
    assert_eq!(number(&text, r#"thalweg_dead_letters{reason="no_id"}"#), 1.0);
    assert!(families(&text).contains("thalweg_clock_lag_seconds"));
}

#[test]
fn what_is_refused_is_logged_by_its_reason_and_not_by_whom() {
    let home = Home::new(SHOP);
    let server = home.start(&[]);
    let secret = "ada@example.org";
    let call =
        |id: &str, at: Value, event: &str| json!({"userId": secret, "event": event, "messageId": id, "timestamp": at});
    server.write("/v1/track", &call("m1", json!("2000-01-02T00:00:00Z"), secret));
    server.write("/v1/track", &call("m2", json!("yesterday"), secret));
    server.write("/v1/track", &call("m3", Value::Null, "a"));
    server.write("/v1/track", &call("m3", Value::Null, "b"));
    server.read(&format!("/v1/profiles/{secret}"));
    assert_eq!(server.post("/v1/track", secret).status, 400);
    server.read("/v1/segments");
    let said = server.said();
    assert!(!said.contains(secret), "{said}");
    let lines: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(lines.len(), said.lines().count(), "each line is JSON where nobody looks: {said}");
    let reasons: Vec<&str> = lines.iter().filter_map(|line| line["fields"]["reason"].as_str()).collect();
    assert_eq!(reasons, ["too_late", "bad_timestamp", "conflict", "invalid"], "{said}");
    assert!(lines.iter().all(|line| line["level"] == "INFO" && line["timestamp"].is_string()), "{said}");
}
