//! The tracking SDKs of Segment and RudderStack: what they send, request by request; they themselves, unmodified, with
//! servers that are busy and answers that get lost; and what becomes of requests that were bent on the way.

mod histories;
mod process;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use histories::Random;
use process::gzip::gzip;
use process::http::{self, Answer};
use process::{Home, Server, until};
use serde_json::{Value, json};
use tools::{node, python};

/// A shop whose key may be used by pages of one origin.
const SHOP: &str = r#"
version: 1
write_keys: [ { key: WRITEKEY, origins: ["http://shop.example"] }, { key: SERVERKEY } ]
traits:
  orders:  { count: "Order Completed" }
  revenue: { sum: properties.revenue, of: "Order Completed" }
  seen:    { count: "Product Viewed" }
  viewed:  { count: "Viewed" }
  numbers: { unique: properties.i, of: "Viewed" }
  retries: { count: "Retry" }
  start:   { last: properties.path, of: page_view }
"#;
/// What `WRITEKEY:` is in Basic authorization.
const BASIC: &str = "Basic V1JJVEVLRVk6";

// What they send.

/// A request as an SDK sends it.
#[derive(Clone)]
struct Sent {
    call: String,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    gzip: bool,
    body: Value,
}

impl Sent {
    fn ask(&self, server: &Server, body: &[u8]) -> Answer {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let packed = if self.gzip { gzip(body) } else { body.to_vec() };
        server.ask(&self.method, &self.path, &headers, &packed)
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    fn text(&self) -> String {
        if self.body.is_null() { String::new() } else { self.body.to_string() }
    }

    /// The calls in it, each with the time at which it says that it is sent.
    fn calls(&self) -> Vec<(Value, i64)> {
        let calls = match self.body["batch"].as_array() {
            Some(batch) => batch.clone(),
            None => vec![self.body.clone()],
        };
        let at = |call: &Value| instant(call["sentAt"].as_str().or(self.body["sentAt"].as_str()).expect("a sentAt"));
        calls.into_iter().map(|call| (call.clone(), at(&call))).collect()
    }
}

fn instant(text: &str) -> i64 {
    dataflows::time::parse_instant(text).unwrap_or_else(|| panic!("{text:?} is no instant"))
}

/// All requests of a file in `tests/captures`.
fn captured(sdk: &str) -> Vec<Sent> {
    let path = format!("{}/tests/captures/{sdk}.ndjson", env!("CARGO_MANIFEST_DIR"));
    let lines = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let read = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("lines are JSON");
        let text = |key: &str| line[key].as_str().expect("a text").to_owned();
        let headers = line["headers"].as_object().expect("headers").iter();
        Sent {
            call: text("call"),
            method: text("method"),
            path: text("path"),
            headers: headers.map(|(name, value)| (name.clone(), value.as_str().expect("a text").to_owned())).collect(),
            gzip: line["gzip"] == true,
            body: line["body"].clone(),
        }
    };
    lines.lines().map(read).collect()
}

/// The files, what is then known of the person: her ids, and how often she viewed something and what was tried again.
const CAPTURES: [(&str, &[&str], [i64; 2]); 8] = [
    ("analytics-node", &["ada", "before"], [3, 0]),
    ("analytics-python", &["ada", "before"], [3, 1]),
    ("rudder-sdk-node", &["ada", "before"], [1, 1]),
    ("rudder-sdk-python", &["ada", "before"], [3, 1]),
    ("rudderstack-analytics-js", &["ada", "browser-1", "eve"], [0, 0]),
    ("segment-analytics-next", &["ada", "browser-1"], [3, 1]),
    ("segment-analytics-node", &["ada", "before"], [3, 1]),
    ("segment-analytics-python", &["ada", "before"], [3, 1]),
];

#[test]
fn what_sdks_send_is_taken_and_shows_in_the_profile() {
    for (sdk, ids, [viewed, retries]) in CAPTURES {
        let home = Home::new(SHOP);
        let server = home.start(&[]);
        let mut sent = BTreeMap::new();
        for request in captured(sdk) {
            let answer = request.ask(&server, request.text().as_bytes());
            is_expected(&request, &answer);
            for (call, at) in if request.method == "POST" { request.calls() } else { Vec::new() } {
                // A retry says anew when it is sent; what was taken first stands.
                sent.entry(call["messageId"].to_string()).or_insert((call, at));
            }
        }
        let events = server.read("/v1/profiles/ada/events?limit=1000")["items"].as_array().expect("a list").clone();
        assert_eq!(events.len(), sent.len(), "{sdk}: each call is taken once, its retries included");
        for event in events {
            let (call, sent_at) = &sent[&event["messageId"].to_string()];
            is_told(&event, call, *sent_at);
        }
        let profile = server.read("/v1/profiles/ada");
        let known: Vec<_> = profile["ids"].as_array().expect("ids").iter().map(|id| id["id"].clone()).collect();
        assert_eq!(known, ids.iter().map(|id| json!(id)).collect::<Vec<_>>(), "{sdk}");
        assert_eq!(profile["traits"]["email"], "ada@shop.example", "{sdk}");
        let computed = &profile["computed"];
        let found = ["orders", "revenue", "viewed", "retries"].map(|name| computed[name].as_f64());
        assert_eq!(found, [1.0, 42.5, viewed as f64, retries as f64].map(Some), "{sdk}: {computed}");
        assert_eq!(profile["session"]["campaign"], "spring", "{sdk}: {}", profile["session"]);
        assert_eq!(server.read("/v1/dead-letters")["items"], json!([]), "{sdk}");
    }
}

/// The answer is what the SDK that sent the request goes on with.
fn is_expected(request: &Sent, answer: &Answer) {
    let what = format!("{} {}: {} {}", request.method, request.path, answer.status, answer.text());
    if !request.header("origin").is_empty() {
        assert_eq!(answer.header("access-control-allow-origin"), "http://shop.example", "{what}");
    }
    match (request.method.as_str(), request.call.as_str()) {
        ("OPTIONS", _) => {
            assert_eq!(answer.status, 204, "{what}");
            assert!(answer.header("access-control-allow-methods").contains("POST"), "{what}");
            let wanted = request.header("access-control-request-headers");
            assert_eq!(answer.header("access-control-allow-headers"), wanted, "{what}");
        }
        (_, "load-settings") => {
            assert_eq!(answer.status, 200, "{what}");
            let settings = &answer.json()["integrations"]["Segment.io"];
            assert_eq!(settings["apiKey"], "WRITEKEY", "{what}");
            assert!(settings["apiHost"].as_str().is_some_and(|host| host.ends_with("/v1")), "{what}");
            assert_eq!(answer.json()["metrics"]["sampleRate"], 0, "what it measures of itself stays where it is");
        }
        (_, "load-sourceConfig") => {
            assert_eq!(answer.status, 200, "{what}");
            let source = &answer.json()["source"];
            assert!(source["id"].is_string() && source["config"].is_object(), "{what}");
            assert_eq!((&source["enabled"], &source["destinations"]), (&json!(true), &json!([])), "{what}");
        }
        _ => {
            assert_eq!(answer.status, 200, "{what}");
            let taken = answer.json();
            assert_eq!(taken["success"], true, "{what}");
            assert_eq!(taken["accepted"], request.calls().len(), "{what}");
            assert_eq!(taken["rejected"], json!([]), "{what}");
        }
    }
}

/// An event is told as it was sent, at its time by our clock.
fn is_told(event: &Value, call: &Value, sent_at: i64) {
    for key in ["type", "userId", "anonymousId", "previousId", "groupId", "properties", "traits", "context", "name"] {
        assert_eq!(event[key], call[key], "{key} of {call}");
    }
    if call["type"] == "track" {
        assert_eq!(event["event"], call["event"]);
    }
    let original = call["originalTimestamp"].as_str().or(call["timestamp"].as_str()).expect("a time");
    let [received_at, timestamp] = ["received_at", "timestamp"].map(|key| event[key].as_i64().expect("a time"));
    // The door reads the wall a moment before the writer stamps the record.
    let off = (received_at - timestamp) - (sent_at - instant(original));
    assert!((0..5_000).contains(&off), "{off} ms off: {event}");
}

/// What other products' SDKs send is told so: it is not swallowed, and not taken for something else.
#[test]
fn what_sdks_of_other_products_send_is_refused_clearly() {
    let home = Home::new(SHOP);
    let server = home.start(&[]);
    let flags = r#"{"context":{"targetingKey":"ada"}}"#;
    let posthog = r#"{"api_key":"k","batch":[{"event":"$identify","distinct_id":"ada","properties":{}}]}"#;
    let snowplow =
        r#"{"schema":"iglu:com.snowplowanalytics.snowplow/payload_data/jsonschema/1-0-4","data":[{"e":"pv"}]}"#;
    let others = [
        ("PostHog", "/batch/", posthog),
        ("PostHog", "/flags/?v=2", r#"{"token":"k","distinct_id":"ada"}"#),
        ("PostHog", "/flags/?v=4", r#"{"api_key":"k","distinct_id":"ada"}"#),
        ("Snowplow", "/com.snowplowanalytics.snowplow/tp2", snowplow),
        ("OpenFeature", "/ofrep/v1/evaluate/flags", flags),
        ("OpenFeature", "/ofrep/v1/evaluate/flags/coupon", flags),
    ];
    for (product, path, body) in others {
        let answer = server.ask("POST", path, &[("authorization", BASIC)], body.as_bytes());
        assert_eq!(answer.status, 404, "{product} {path}: {}", answer.text());
        assert_eq!(answer.header("content-type"), "application/problem+json", "{product} {path}");
        assert!(answer.text().contains("/v1/batch"), "{product} {path} is told where calls go: {}", answer.text());
    }
    // CloudEvents have a type too, but it names no call.
    let cloud =
        r#"{"specversion":"1.0","type":"com.example.order","source":"/shop","id":"1","userId":"ada","data":{}}"#;
    let answer = server.ask("POST", "/v1/batch", &[("authorization", BASIC)], cloud.as_bytes());
    assert_eq!(answer.status, 400, "{}", answer.text());
    let answer = server.ask("POST", "/v1/track", &[("authorization", BASIC)], cloud.as_bytes());
    assert_eq!((answer.status, &answer.json()["rejected"][0]["reason"]), (200, &json!("invalid")), "{}", answer.text());
    assert_eq!(server.get("/v1/profiles/ada").status, 404);
}

// Browsers.

#[test]
fn a_key_is_used_by_pages_of_its_origins_alone() {
    let home = Home::new(SHOP);
    let server = home.start(&[]);
    let call = br#"{"userId":"ada"}"#;
    let page = |origin: &str, key: &str| {
        let key = format!("/v1/page?writeKey={key}");
        server.ask("POST", &key, &[("origin", origin), ("content-type", "text/plain")], call)
    };
    let asks = |path: &str, origin: &str| {
        let wanted = [("origin", origin), ("access-control-request-method", "POST")];
        server.ask("OPTIONS", path, &wanted, b"")
    };
    let allowed = |answer: &Answer| answer.header("access-control-allow-origin").to_owned();
    let ours = page("http://shop.example", "WRITEKEY");
    assert_eq!((ours.status, allowed(&ours).as_str()), (200, "http://shop.example"), "{}", ours.text());
    assert!(ours.header("vary").contains("origin"), "what is kept of it is kept for each origin");
    assert_eq!(ours.header("access-control-expose-headers"), "retry-after");
    for origin in ["https://shop.example", "http://shop.example:81", "http://other.example", "null"] {
        let theirs = page(origin, "WRITEKEY");
        assert_eq!((theirs.status, allowed(&theirs).as_str()), (401, ""), "{origin}: {}", theirs.text());
        assert!(theirs.text().contains(origin), "it says which: {}", theirs.text());
        for path in ["/v1/page", "/v1/b", "/v1/projects/WRITEKEY/settings", "/sourceConfig/", "/beacon/v1/batch"] {
            let asked = asks(path, origin);
            assert_eq!((asked.status, allowed(&asked).as_str()), (401, ""), "{path} {origin}: {}", asked.text());
        }
    }
    // A key without origins is for servers: no page may use it, though the origin is another key's.
    assert_eq!(page("http://shop.example", "SERVERKEY").status, 401);
    assert_eq!(server.ask("POST", "/v1/page?writeKey=SERVERKEY", &[], call).status, 200);
    // What goes wrong is told to the page too: else it sees nothing but a failed request.
    let unknown = page("http://shop.example", "OTHER");
    assert_eq!((unknown.status, allowed(&unknown).as_str()), (401, "http://shop.example"));
    for path in ["/v1/t", "/v1/batch", "/v1/projects/WRITEKEY/settings", "/sourceConfig/?writeKey=WRITEKEY"] {
        let asked = asks(path, "http://shop.example");
        assert_eq!((asked.status, allowed(&asked).as_str()), (204, "http://shop.example"), "{path}");
    }
    // Answers are no business of other pages.
    assert_eq!(allowed(&server.ask("GET", "/v1/profiles/ada", &[("origin", "http://shop.example")], b"")), "");
    assert_eq!(server.ask("OPTIONS", "/v1/profiles/ada", &[("origin", "http://shop.example")], b"").status, 405);
    assert_eq!(server.read("/v1/profiles/ada/events")["items"].as_array().map(Vec::len), Some(2));
}

#[test]
fn browser_sdks_read_their_settings_with_a_known_key_alone() {
    let home = Home::new(SHOP);
    let server = home.start(&[]);
    let get = |path: &str, headers: &[(&str, &str)]| server.ask("GET", path, headers, b"");
    for (path, headers) in [
        ("/v1/projects/OTHER/settings", &[][..]),
        ("/sourceConfig/", &[]),
        ("/sourceConfig/?writeKey=OTHER", &[]),
        ("/sourceConfig/?writeKey=OTHER", &[("authorization", "Basic T1RIRVI6")]),
    ] {
        let answer = get(path, headers);
        assert_eq!(answer.status, 401, "{path}: {}", answer.text());
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    assert_eq!(get("/sourceConfig/", &[("authorization", BASIC)]).status, 200);
    let settings = |headers: &[(&str, &str)]| get("/v1/projects/WRITEKEY/settings", headers).json();
    let plain = &settings(&[])["integrations"]["Segment.io"];
    let host = plain["apiHost"].as_str().expect("a host").to_owned();
    assert_eq!(plain["protocol"], "http");
    assert_eq!(settings(&[("x-forwarded-proto", "https")])["integrations"]["Segment.io"]["protocol"], "https");
    // Where it says that calls go is where they go.
    let to: SocketAddr = host.trim_end_matches("/v1").parse().expect("this server's address");
    let call = br#"{"userId":"ada","event":"Viewed","writeKey":"WRITEKEY"}"#;
    assert_eq!(http::ask(to, "POST", "/v1/t", &[], call).expect("an answer").status, 200);
    assert_eq!(server.post("/v1/projects/WRITEKEY/settings", "{}").status, 405);
}

/// What is left when a page is left comes in one batch, its key in the query, since beacons have no headers.
#[test]
fn rudderstack_beacons_are_taken() {
    let home = Home::new(SHOP);
    let server = home.start(&[]);
    let batch = r#"{"batch":[{"type":"track","event":"Viewed","userId":"ada"}],"sentAt":"2026-06-01T00:00:00Z"}"#;
    let headers = [("content-type", "text/plain"), ("origin", "http://shop.example")];
    let send = |key: &str| server.ask("POST", &format!("/beacon/v1/batch?writeKey={key}"), &headers, batch.as_bytes());
    assert_eq!(send("OTHER").status, 401);
    assert_eq!((send("WRITEKEY").status, send("WRITEKEY").json()["accepted"].clone()), (200, json!(1)));
}

// They themselves.

/// What stands between an SDK and the server in the first requests.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    /// It answers this at once, and that it should be asked again in a second.
    Busy(u16),
    /// The server takes it, but nobody hears its answer.
    Lost,
}

/// A request that came to a [`Gate`].
struct Came {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    status: u16,
}

/// A way to a server that has trouble at first, and writes down what came.
struct Gate {
    address: SocketAddr,
    came: Arc<Mutex<Vec<Came>>>,
}

impl Gate {
    fn new(server: SocketAddr, troubles: &[Trouble]) -> Gate {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let came = Arc::new(Mutex::new(Vec::new()));
        let troubles = Arc::new(Mutex::new(troubles.iter().copied().rev().collect::<Vec<_>>()));
        let gate = Gate { address, came: Arc::clone(&came) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (came, troubles) = (Arc::clone(&came), Arc::clone(&troubles));
                std::thread::spawn(move || {
                    // An SDK that goes away in the middle is the SDK's own affair.
                    let _ = pass(stream, server, &came, || troubles.lock().expect("nobody panics holding it").pop());
                });
            }
        });
        gate
    }

    fn statuses(&self) -> Vec<u16> {
        self.came.lock().expect("nobody panics holding it").iter().map(|came| came.status).collect()
    }
}

/// Takes one request to the server, unless there is trouble.
fn pass(
    stream: TcpStream,
    server: SocketAddr,
    came: &Mutex<Vec<Came>>,
    trouble: impl FnOnce() -> Option<Trouble>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (first, headers) = http::request(&mut reader)?;
    let header = |name: &str| headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let mut body = vec![0; header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let mut stream = reader.into_inner();
    let trouble = trouble();
    let note = |status| {
        let note = Came { headers: headers.clone(), body: body.clone(), status };
        came.lock().expect("nobody panics holding it").push(note);
    };
    if let Some(Trouble::Busy(status)) = trouble {
        note(status);
        return write!(
            stream,
            "HTTP/1.1 {status} Busy\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
    }
    let mut parts = first.split(' ');
    let (method, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let hop = ["host", "connection", "content-length"];
    let onwards = headers.iter().filter(|(name, _)| !hop.iter().any(|hop| name.eq_ignore_ascii_case(hop)));
    let onwards: Vec<_> = onwards.map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let answer = http::ask(server, method, path, &onwards, &body)?;
    if trouble == Some(Trouble::Lost) {
        note(0);
        return Ok(());
    }
    note(answer.status);
    let (status, length) = (answer.status, answer.body.len());
    write!(stream, "HTTP/1.1 {status} \r\ncontent-type: application/json\r\nconnection: close\r\n")?;
    write!(stream, "content-length: {length}\r\n\r\n")?;
    stream.write_all(&answer.body)
}

const TROUBLES: [Trouble; 4] = [Trouble::Busy(503), Trouble::Busy(429), Trouble::Lost, Trouble::Busy(503)];

/// Lets an SDK tell its visit: as it is, and with a server in trouble; each time all of it is there, and once.
fn visits(sdk: impl Fn() -> Command, packs: bool) {
    for troubles in [&[][..], &TROUBLES] {
        let home = Home::new(SHOP);
        let server = home.start(&[]);
        let gate = Gate::new(server.address, troubles);
        let mut command = sdk();
        let output = command.args([format!("http://{}", gate.address), "WRITEKEY".to_owned()]).stdin(Stdio::null());
        let output = output.output().expect("the tool can be run");
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        let statuses = gate.statuses();
        assert!(output.status.success(), "{command:?} failed: {said}\n{statuses:?}");
        let refused = statuses.iter().filter(|status| **status != 200).count();
        assert_eq!(refused, troubles.len(), "every trouble was met, and no other: {statuses:?}");
        has_the_visit(&server, &format!("{statuses:?} {said}"));
        for came in gate.came.lock().expect("nobody panics holding it").iter() {
            let header = |name: &str| came.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            assert_eq!(header("authorization").map(|(_, value)| value.as_str()), Some(BASIC));
            assert_eq!(came.body.starts_with(&[0x1f, 0x8b]), packs, "this SDK packs: {packs}");
        }
    }
}

/// The visit that each script in `tests/sdks` tells: one order, fifty views, and a person by two ids.
fn has_the_visit(server: &Server, said: &str) {
    let events = server.read("/v1/profiles/ada/events?limit=1000");
    let events = events["items"].as_array().expect("a list");
    assert_eq!(events.len(), 57, "{said}");
    let ids: BTreeSet<_> = events.iter().map(|event| event["messageId"].to_string()).collect();
    assert_eq!(ids.len(), 57, "each call has a message id of its own");
    let types = ["track", "identify", "page", "screen", "group", "alias"];
    let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    assert_eq!(types.map(count), [52, 1, 1, 1, 1, 1]);
    let profile = server.read("/v1/profiles/ada");
    assert_eq!(profile["ids"], json!([{"id": "ada", "known": true}, {"id": "before", "known": false}]));
    assert_eq!(profile["traits"], json!({"email": "ada@shop.example", "plan": "pro"}));
    let expected =
        json!({"orders": 1, "revenue": 42.5, "seen": 1, "viewed": 50, "numbers": 50, "retries": 0, "start": "/home"});
    assert_eq!(profile["computed"], expected);
    assert_eq!(profile["session"]["campaign"], "spring");
    let seen = events.iter().find(|event| event["event"] == "Product Viewed").expect("it is listed");
    assert_eq!(seen["properties"], json!({"sku": "shoe-1", "name": "Schuh für 42,50 €"}));
    let group = events.iter().find(|event| event["type"] == "group").expect("it is listed");
    assert_eq!((&group["groupId"], &group["traits"]), (&json!("acme"), &json!({"name": "Acme Ltd"})));
    assert_eq!(server.read("/v1/dead-letters")["items"], json!([]));
}

#[test]
fn segment_for_node_loses_nothing() {
    visits(|| node("tests/sdks/segment_node.js"), false);
}

#[test]
fn segment_for_python_loses_nothing() {
    visits(|| python("tests/sdks/segment_python.py"), true);
}

#[test]
fn rudderstack_for_node_loses_nothing() {
    visits(|| node("tests/sdks/rudderstack_node.js"), true);
}

#[test]
fn rudderstack_for_python_loses_nothing() {
    visits(|| python("tests/sdks/rudderstack_python.py"), true);
}

/// The browser SDKs on a page of the origin that the key names, and with a key that no page may use: told no more than
/// the key and where to load their settings from, they come here with everything, or with nothing at all.
#[test]
fn browser_sdks_send_from_pages_of_admitted_origins() {
    for sdk in ["segment", "rudderstack"] {
        let home = Home::new(SHOP);
        let server = home.start(&[]);
        let url = format!("http://{}", server.address);
        let visit = |key: &str| {
            let mut command = node("tests/sdks/browser.js");
            command.args([&url, key, sdk]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().expect("the tool can be run")
        };
        let refused = visit("SERVERKEY").wait_with_output().expect("it can be waited for");
        assert!(!refused.status.success(), "{sdk} has ended as if nothing were wrong");
        assert_eq!(server.get("/v1/profiles/ada").status, 404, "{sdk}");
        let mut page = visit("WRITEKEY");
        let events = until(Duration::from_secs(15), &format!("{sdk} has sent its four calls"), || {
            let events = server.get("/v1/profiles/ada/events");
            let events = (events.status == 200).then(|| events.json()["items"].as_array().expect("a list").clone());
            events.filter(|events| events.len() == 4)
        });
        page.kill().and_then(|()| page.wait()).expect("it can be ended");
        let kinds: BTreeSet<_> = events.iter().map(|event| event["type"].as_str().expect("a type")).collect();
        assert_eq!(kinds, BTreeSet::from(["group", "identify", "page", "track"]), "{sdk}");
        let profile = server.read("/v1/profiles/ada");
        assert_eq!(profile["traits"], json!({"email": "ada@shop.example"}), "{sdk}");
        assert_eq!(profile["computed"]["revenue"], json!(42.5), "{sdk}");
        let session = &profile["session"];
        let told = ["entry_page", "channel", "campaign"].map(|key| session[key].as_str());
        assert_eq!(told, [Some("/products"), Some("cpc"), Some("spring")], "{sdk}: {session}");
        assert_eq!(server.read("/v1/dead-letters")["items"], json!([]), "{sdk}");
    }
}

// Requests that were bent on the way.

/// How often each request is bent.
const BENT: u64 = 40;

/// Whatever comes, the process stays well, good calls are taken, and what is not taken is kept as it was sent.
#[test]
fn whatever_becomes_of_a_request_nothing_is_lost_in_silence() {
    let home = Home::new(SHOP);
    let server = home.start(&[]);
    let mut seen = BTreeMap::<u16, u64>::new();
    for (seed, (sdk, ..)) in CAPTURES.iter().enumerate() {
        let mut random = Random::new(seed as u64);
        for request in captured(sdk).iter().filter(|request| request.method == "POST") {
            for _ in 0..BENT {
                let status = match random.below(3) {
                    0 => one_call_is_bent(&server, request, &mut random),
                    _ => bytes_are_bent(&server, request, &mut random),
                };
                *seen.entry(status).or_default() += 1;
            }
        }
    }
    assert!(seen[&200] > 500 && seen[&400] > 500, "most are one or the other: {seen:?}");
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [200, 400], "{seen:?}");
    let good = captured("segment-analytics-node").into_iter().find(|request| request.call == "track").expect("a track");
    is_expected(&good, &good.ask(&server, good.text().as_bytes()));
    assert!(!server.said().contains("panicked"), "{}", server.said());
}

/// One call between two good ones has a value of another type, or lacks one, or is no call at all: 200, the good ones
/// are taken, and the bent one is taken or kept as it was sent.
fn one_call_is_bent(server: &Server, request: &Sent, random: &mut Random) -> u16 {
    let (mut call, _) = request.calls().swap_remove(0);
    bend(&mut call, random);
    let good = |number: u64| json!({"type": "page", "userId": format!("good-{number}")});
    let numbers = [random.below(1 << 40), random.below(1 << 40)];
    let body = json!({"batch": [good(numbers[0]), call, good(numbers[1])]}).to_string();
    let request = Sent { path: "/v1/batch".into(), ..request.clone() };
    let answer = request.ask(server, body.as_bytes());
    assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    let taken = answer.json();
    let rejected = taken["rejected"].as_array().expect("a list");
    assert_eq!(taken["accepted"], 3 - rejected.len(), "{body}: {taken}");
    assert!(rejected.iter().all(|rejected| rejected["index"] == 1), "{body}: {taken}");
    if let [rejected] = &rejected[..] {
        let letter = newest_letter(server);
        assert_eq!(letter["body"], call.to_string(), "{rejected}");
        assert_eq!(letter["reason"], rejected["reason"]);
    }
    answer.status
}

/// Something in a call, or all of it, is something else.
fn bend(value: &mut Value, random: &mut Random) {
    let others =
        [json!(null), json!(true), json!(-1e30), json!(7), json!(""), json!("x".repeat(300)), json!([]), json!({})];
    let other = others[random.below(others.len() as u64) as usize].clone();
    match value {
        Value::Object(members) if !members.is_empty() && random.below(8) > 0 => {
            let key = members.keys().nth(random.below(members.len() as u64) as usize).expect("it has one").clone();
            if random.below(4) == 0 {
                members.remove(&key);
            } else {
                bend(&mut members[&key], random);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let item = random.below(items.len() as u64) as usize;
            bend(&mut items[item], random);
        }
        value => *value = other,
    }
}

/// The bytes of a body are cut, turned or doubled, before they are packed or after: it is read, or it is refused as a
/// whole and kept as it came.
fn bytes_are_bent(server: &Server, request: &Sent, random: &mut Random) -> u16 {
    let plain = request.text().into_bytes();
    let packed = request.gzip && random.below(2) == 0;
    let mut bytes = if packed { gzip(&plain) } else { plain };
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(4) {
            0 => bytes.truncate(at + 1),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = b"{}[]\",:0\\"[random.below(9) as usize],
            _ => bytes.extend_from_within(at..(at + 20).min(bytes.len())),
        }
    }
    let request = Sent { gzip: request.gzip && !packed, ..request.clone() };
    let answer = request.ask(server, &bytes);
    let what = || format!("{}: {}", String::from_utf8_lossy(&bytes), answer.text());
    match answer.status {
        200 => {
            let taken = answer.json();
            let rejected = taken["rejected"].as_array().expect("a list").len();
            let accepted = taken["accepted"].as_u64().expect("a count") as usize;
            if let Ok(whole) = serde_json::from_slice::<Value>(&bytes) {
                let calls = whole["batch"].as_array().map_or(1, Vec::len);
                assert_eq!(accepted + rejected, calls, "{}", what());
            }
        }
        400 => {
            let letter = newest_letter(server);
            let kept = match letter["encoding"].as_str() {
                Some(_) => BASE64_STANDARD.decode(letter["body"].as_str().expect("a text")).expect("base64"),
                None => letter["body"].as_str().expect("a text").as_bytes().to_vec(),
            };
            // What could be unpacked is kept unpacked.
            assert!(kept == bytes || packed && gzip(&kept)[10..] == bytes[10..], "{}: {letter}", what());
        }
        _ => panic!("{}: {}", answer.status, what()),
    }
    answer.status
}

fn newest_letter(server: &Server) -> Value {
    server.read("/v1/dead-letters?limit=1")["items"][0].clone()
}
