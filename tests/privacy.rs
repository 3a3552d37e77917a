//! Privacy from outside: consent by whoever tells of it, pseudonyms that keep what is private out of every file, the
//! audit log and its chain, and requests of OpenDSR.

mod broker;
mod process;
#[path = "oracle/sha256.rs"]
mod sha256;
mod tools;

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use broker::Broker;
use process::{Home, Server, until};
use serde_json::{Value, json};
use server::stream::{HeaderMap, Message, Options, Stream};

/// A debug build on a busy machine may take this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600_000;
const EVENTS: [&str; 2] = ["--clock", "events"];

/// What stands in each value that is to be private, and in no file.
const MARKER: &str = "clear-and-private";
/// What stands beside it, and is kept: to see that files are looked at.
const BESIDE: &str = "clear-and-kept";

const SHOP: &str = "version: 1
traits:
  cards: { unique: properties.card, of: purchase }
segments:
  mailed: { trait: email, exists: true }
schemas: { purchase: { required: { card: string } } }
";
const PRIVATE: &str = "privacy: { pseudonymise: [context.ip, traits.email, properties.card, properties.deep] }\n";
const NAMELESS: &str = "privacy: { pseudonymise: [userId, anonymousId, traits.email] }\n";

fn track(event: &str, user: &str, number: i64, properties: Value) -> Value {
    json!({"type": "track", "event": event, "userId": user, "messageId": format!("m{number}"),
        "timestamp": START + 1_000 * number, "properties": properties, "context": {"ip": MARKER, "os": BESIDE}})
}

fn send(server: &Server, calls: &[Value]) -> Value {
    server.write("/v1/batch", &json!({"batch": calls}))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("it can be listed").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The files of the data directory in which a text stands.
fn holding(home: &Home, text: &str) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        let bytes = std::fs::read(path).expect("it can be read");
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    files(&home.path("data")).into_iter().filter(holds).collect()
}

#[test]
fn consent_is_told_by_several_and_says_by_whom() {
    let home = Home::new("version: 1");
    let server = home.start(&EVENTS);
    let call = |number: i64, context: Value, consent: Value| {
        json!({"type": "identify", "userId": "ada", "messageId": format!("m{number}"),
            "timestamp": START + 1_000 * number, "context": context, "consent": consent})
    };
    let segment = |granted: bool| json!({"categoryPreferences": {"mail": granted}});
    let rudder =
        json!({"allowedConsentIds": ["mail", "ads"], "deniedConsentIds": ["ads", "push"], "provider": "custom"});
    let calls = [
        call(1, json!({"consent": segment(false), "consentManagement": rudder}), Value::Null),
        call(2, json!({"consent": {"ad_storage": "granted", "categoryPreferences": {"mail": true}}}), Value::Null),
        call(3, json!({"consent": segment(true)}), json!({"ad_user_data": "DENIED", "ad_storage": "GRANTED"})),
        call(4, json!({"consentManagement": {"allowedConsentIds": ["push"]}}), Value::Null),
    ];
    let taken = send(&server, &calls);
    let position = taken["position"].as_str().expect("a position");
    let told = server.read(&format!("/v1/profiles/ada?after={position}"))["consent"].clone();
    let row = |granted: bool, number: i64, source: &str| {
        json!({"granted": granted, "since": START + 1_000 * number, "source": source,
            "event": {"id": "ada", "messageId": format!("m{number}")}})
    };
    let expected = json!({
        "mail": row(true, 2, "segment"), "ads": row(false, 1, "rudderstack"), "push": row(true, 4, "rudderstack"),
        "ad_storage": row(true, 2, "google"), "ad_user_data": row(false, 3, "google"),
    });
    assert_eq!(told, expected);
    // What is dumped of a profile is the law's part of it.
    home.write("calls.ndjson", calls.map(|call| call.to_string()).join("\n"));
    let ended = home.run(&["replay", "calls.ndjson", "--definitions", "thalweg.yaml", "--dump", "dump"]);
    assert!(ended.status.success(), "{}", ended.stderr);
    let dumped = std::fs::read_to_string(home.path("dump/profiles.ndjson")).expect("it is dumped");
    let dumped: Value = serde_json::from_str(&dumped).expect("one row");
    assert_eq!(dumped["consent"]["mail"], json!({"granted": true, "since": START + 2_000}));
}

#[test]
fn what_is_private_is_in_no_file_and_equal_values_stay_equal() {
    let home = Home::new(&(SHOP.to_owned() + PRIVATE));
    let server = home.start(&EVENTS);
    let card = |number: u32| format!("{MARKER}-{number}");
    let deep = json!([{"at": format!("{MARKER}-1"), "so": true}, 40]);
    let calls = [
        track("purchase", "ada", 1, json!({"card": card(1), "kept": BESIDE, "deep": deep})),
        track("purchase", "ada", 2, json!({"card": card(2)})),
        track("purchase", "ada", 3, json!({"card": card(1)})),
        json!({"type": "identify", "userId": "ada", "messageId": "m4", "timestamp": START + 4_000,
            "context": {"traits": {"email": card(1)}}}),
        // Against the schema as it was sent, without an id, and too large.
        track("purchase", "ada", 5, json!({"card": 7, "deep": MARKER})),
        json!({"type": "track", "event": "x", "properties": {"card": MARKER}}),
        track("purchase", "ada", 6, json!({"card": card(1), "much": "x".repeat(33_000)})),
    ];
    let taken = send(&server, &calls);
    assert_eq!(taken["accepted"], 4, "{taken}");
    let reasons: Vec<&Value> = taken["rejected"].as_array().expect("a list").iter().map(|row| &row["reason"]).collect();
    assert_eq!(reasons, ["schema", "no_id", "too_large"]);
    // The same again is the same; bodies in which nothing can be found.
    assert_eq!(send(&server, &calls[..1])["accepted"], 1);
    let broken = format!(r#"{{"batch":[{{"type":"page","userId":"ada","context":{{"ip":"{MARKER}"}}"#);
    assert_eq!(server.post("/v1/batch", &broken).status, 400);
    let mut bytes =
        format!(r#"{{"batch":[{{"type":"page","userId":"?","context":{{"ip":"{MARKER}"}}}}]}}"#).into_bytes();
    let at = bytes.iter().position(|byte| *byte == b'?').expect("it is there");
    bytes[at] = 0xff;
    let answer = server.post("/v1/batch", &bytes);
    assert_eq!(answer.json()["rejected"][0]["reason"], "invalid", "{}", answer.text());
    let nested = format!(r#"{{"events":[{{"context":{{"ip":"{MARKER}"}}}}]}}"#);
    assert_eq!(server.post("/v1/batch", &nested).status, 400);

    let position = send(&server, &[track("purchase", "bob", 7, json!({"card": card(1)}))])["position"].clone();
    let ada = server.read(&format!("/v1/profiles/ada?after={}", position.as_str().expect("a position")));
    assert_eq!(ada["computed"]["cards"], 2);
    let email = ada["traits"]["email"].clone();
    let is_pseudonym = |text: &str| text.strip_prefix("p_").is_some_and(|digits| digits.len() == 32);
    assert!(is_pseudonym(email.as_str().expect("a text")), "{email}");
    let events = server.read("/v1/profiles/ada/events")["items"].clone();
    let first = &events.as_array().expect("a list").last().expect("an event")["properties"];
    assert_eq!((&first["card"], &first["deep"][0]["at"], &first["deep"][0]["so"]), (&email, &email, &json!(true)));
    assert_eq!((&first["kept"], events[0]["context"]["traits"]["email"].clone()), (&json!(BESIDE), email.clone()));
    let bobs = server.read("/v1/profiles/bob/events")["items"][0]["properties"]["card"].clone();
    assert_eq!(bobs, email);
    let letters = server.read("/v1/dead-letters")["items"].clone();
    let letters = letters.as_array().expect("a list");
    assert_eq!(letters.len(), 6, "a duplicate is none: {letters:?}");
    let emptied = letters.iter().filter(|letter| letter["body"] == "");
    assert!(
        emptied.clone().count() == 3 && emptied.clone().all(|letter| letter["detail"].to_string().contains("not kept"))
    );
    server.kill();
    assert!(!holding(&home, BESIDE).is_empty(), "files are looked at");
    assert_eq!(holding(&home, MARKER), [] as [PathBuf; 0]);
    // Under the same key after a restart.
    let server = home.start(&EVENTS);
    let taken = send(&server, &[track("purchase", "bob", 7, json!({"card": card(1)})), calls[1].clone()]);
    let again = server.read(&format!("/v1/profiles/bob/events?after={}", taken["position"].as_str().expect("one")));
    assert_eq!(again["items"].as_array().expect("a list").len(), 1, "it is a duplicate: {again}");
    assert_eq!(server.read("/v1/dead-letters")["items"].as_array().expect("a list").len(), 6);
}

#[test]
fn whoever_is_kept_under_a_pseudonym_is_found_corrected_and_erased_by_their_id() {
    let home = Home::new(&(SHOP.to_owned() + NAMELESS));
    let server = home.start(&EVENTS);
    let id = format!("{MARKER}@example.org");
    let calls = [
        track("page", &id, 1, json!({"kept": BESIDE})),
        json!({"type": "alias", "userId": id, "previousId": 7, "messageId": "m2", "timestamp": START + 2_000}),
        track("page", &id, 3, json!({})),
        json!({"type": "identify", "userId": id, "messageId": "m4", "timestamp": START + 4_000,
            "traits": {"email": id}}),
    ];
    // An address of the context is not private here.
    let calls = calls.map(|mut call| {
        call.as_object_mut().expect("an object").remove("context");
        call
    });
    assert_eq!(send(&server, &calls)["accepted"], 4);
    let path = |id: &str| format!("/v1/profiles/{}", id.replace('@', "%40"));
    let known = server.read(&path(&id));
    let kept = known["id"].as_str().expect("an id").to_owned();
    assert!(kept.starts_with("p_") && known["ids"].as_array().expect("ids").len() == 2, "{known}");
    // By its pseudonym, and by the other id, which was a number.
    for other in [&kept, "7"] {
        assert_eq!(server.read(&path(other))["id"], kept);
    }
    assert_eq!(server.read(&format!("{}/events?limit=1", path(&id)))["items"].as_array().map(Vec::len), Some(1));
    let retract = json!({"id": id, "messageId": "m3"});
    assert_eq!(server.post("/v1/events:retract", retract.to_string()).status, 200);
    let unlink = json!({"a": 7.to_string(), "b": id});
    assert_eq!(server.post("/v1/identities:unlink", unlink.to_string()).status, 200);
    assert_eq!(server.get(&path("7")).status, 404);
    let subscription = server.subscribe(&format!("view=segments&profile={}", id.replace('@', "%40")));
    let snapshot = subscription.next(PATIENCE).expect("a snapshot");
    assert_eq!(snapshot.changes()[0].1["profile"], kept, "{snapshot:?}");
    assert_eq!(server.read(&format!("{}/export", path(&id)))["profile"]["id"], kept);
    // Ids stand in a log as pseudonyms for good, or never do.
    for document in ["{pseudonymise: [context.ip]}", "{}"] {
        let refused = server.ask("PUT", "/v1/definitions/privacy/all", &[], document.as_bytes());
        assert_eq!((refused.status, &refused.json()["errors"][0]["path"]), (400, &json!("privacy.pseudonymise")));
    }
    assert_eq!(server.ask("DELETE", "/v1/definitions/privacy/all", &[], &[]).status, 409);
    let erased = server.ask("DELETE", &path(&id), &[], &[]);
    assert_eq!(erased.status, 202, "{}", erased.text());
    assert_eq!(server.get(&path(&id)).status, 404);
    server.kill();
    assert_eq!(holding(&home, MARKER), [] as [PathBuf; 0]);
    home.write("thalweg.yaml", SHOP);
    let refused = home.refused(&EVENTS);
    assert!(refused.stderr.contains("ids stand in this log as pseudonyms"), "{}", refused.stderr);
    home.write("thalweg.yaml", SHOP.to_owned() + "privacy: { pseudonymise: [userid, propertis.card, userId] }\n");
    let refused = home.run(&["check", "thalweg.yaml"]);
    for said in ["did you mean `userId`?", "did you mean `properties.card`?", "write both userId and anonymousId"] {
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
    }
}

#[test]
fn what_is_made_private_at_run_time_is_from_then_on() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    send(&server, &[track("purchase", "ada", 1, json!({"card": BESIDE}))]);
    let given = server.ask("PUT", "/v1/definitions/privacy/all", &[], b"{pseudonymise: [context.ip, properties.card]}");
    assert_eq!(given.status, 200, "{}", given.text());
    let private = track("purchase", "ada", 2, json!({"card": format!("{MARKER}-1")}));
    send(&server, &[private]);
    server.kill();
    // The first call's address stands there as it was sent.
    assert_eq!(holding(&home, BESIDE).len(), 1);
    assert_eq!(holding(&home, &format!("{MARKER}-1")), [] as [PathBuf; 0]);
}

#[test]
fn what_others_publish_is_private_to_the_engine() {
    let broker = Broker::start();
    let home = Home::new(&(SHOP.to_owned() + PRIVATE));
    let url = broker.url();
    let flags = ["--nats", &url, "--clock", "events"];
    let server = home.start(&flags);
    let publish = |number: u32, body: String| {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let stream = runtime.block_on(Stream::open(&url, &Options::default(), None)).expect("the broker is there");
        let (subject, id) = ("thalweg.events.outside".to_owned(), format!("outside:{number}"));
        let message = Message { subject, id, headers: HeaderMap::new(), body: body.into() };
        runtime.block_on(stream.publish(&message)).expect("it is kept");
    };
    publish(1, track("purchase", "ada", 1, json!({"card": MARKER})).to_string());
    publish(2, format!(r#"{{"type":"track","properties":{{"card":"{MARKER}"}}"#));
    send(&server, &[track("purchase", "ada", 2, json!({"card": MARKER}))]);
    let both = |server: &Server| {
        until(PATIENCE, "both are there", || {
            let answer = server.get("/v1/profiles/ada/events");
            let items = if answer.status == 200 { answer.json()["items"].as_array()?.clone() } else { Vec::new() };
            let letters = server.read("/v1/dead-letters")["items"].as_array()?.clone();
            (items.len() == 2 && letters.len() == 1).then_some((items, letters))
        })
    };
    let (events, letters) = both(&server);
    assert_eq!(server.read("/v1/profiles/ada")["computed"]["cards"], 1);
    assert!(events[0]["properties"]["card"].as_str().is_some_and(|card| card.starts_with("p_")), "{events:?}");
    assert_eq!(events[0]["properties"]["card"], events[1]["properties"]["card"]);
    assert_eq!(letters[0]["body"], "");
    let refused = server.ask("PUT", "/v1/definitions/privacy/all", &[], b"{pseudonymise: [context.ip]}");
    assert_eq!(refused.status, 409, "{}", refused.text());
    server.kill();
    let server = home.start(&flags);
    assert_eq!(both(&server), (events, letters), "under the same key after a restart");
}

/// The lines of the audit log, if its chain holds: reckoned anew from its text alone.
fn chain(home: &Home) -> Result<Vec<Value>, String> {
    let text = std::fs::read_to_string(home.path("data/audit.ndjson")).map_err(|error| error.to_string())?;
    let (mut previous, mut entries) = ("0".repeat(64), Vec::new());
    for line in text.lines() {
        let entry: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let told = line.rsplit_once(r#","hash":""#).ok_or("a line has no hash")?.0;
        if entry["previous"] != previous || entry["hash"] != sha256::hex(told) {
            return Err(format!("the chain does not hold at {line}"));
        }
        previous = sha256::hex(told);
        entries.push(entry);
    }
    Ok(entries)
}

#[test]
fn changes_are_noted_in_a_chain_that_shows_what_was_tampered_with() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let device = json!({"type": "identify", "userId": "ada-of-the-audit", "anonymousId": "phone-of-the-audit",
        "messageId": "i", "timestamp": START});
    send(&server, &[device, track("page", "ada-of-the-audit", 1, json!({}))]);
    for (path, body) in [
        ("/v1/events:retract", json!({"id": "ada-of-the-audit", "messageId": "m1"})),
        ("/v1/events:retract", json!({"where": "event == \"page\""})),
        ("/v1/identities:unlink", json!({"a": "phone-of-the-audit", "b": "ada-of-the-audit"})),
    ] {
        assert_eq!(server.post(path, body.to_string()).status, 200, "{path}");
    }
    assert_eq!(server.post("/v1/events:retract", r#"{"id":"nobody","messageId":"m"}"#).status, 404);
    let keys = b"[{key: a-secret-write-key}]";
    assert_eq!(server.ask("PUT", "/v1/definitions/write_keys/all", &[], keys).status, 200);
    assert_eq!(server.get("/v1/profiles/ada-of-the-audit/export").status, 200);
    assert_eq!(server.ask("DELETE", "/v1/profiles/ada-of-the-audit", &[], &[]).status, 202);
    let entries = chain(&home).expect("it holds");
    let actions: Vec<&str> = entries.iter().map(|entry| entry["action"].as_str().expect("a text")).collect();
    let expected = ["definitions", "retract", "retract", "unlink", "definitions", "export", "erase"];
    assert_eq!(actions, expected);
    assert_eq!(entries[4]["details"]["changed"], "write_keys");
    assert_eq!(entries[5]["details"]["id"], entries[6]["details"]["id"]);
    let text = std::fs::read_to_string(home.path("data/audit.ndjson")).expect("it is there");
    assert!(!text.contains("of-the-audit") && !text.contains("a-secret"), "{text}");
    // Newest first, in parts.
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let part = server.read(&format!("/v1/audit?limit=3{cursor}"));
        listed.extend(part["items"].as_array().expect("a list").clone());
        let Some(next) = part["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    listed.reverse();
    assert_eq!(listed, entries);
    server.kill();
    // The same file is no change; another is.
    home.start(&EVENTS).kill();
    assert_eq!(chain(&home).expect("it holds").len(), 7);
    home.write("thalweg.yaml", SHOP.replace("mailed", "mailed_to"));
    home.start(&EVENTS).kill();
    let entries = chain(&home).expect("it holds");
    assert_eq!(entries[7]["details"]["changed"], "segments/mailed segments/mailed_to");
    assert_eq!((entries.len(), &entries[7]["details"]["by"]), (8, &json!("start")));
    // A line that a crash has torn was told to nobody.
    let path = home.path("data/audit.ndjson");
    let whole = std::fs::read_to_string(&path).expect("it is there");
    std::fs::write(&path, whole.clone() + r#"{"at":1767225600000,"act"#).expect("written");
    home.start(&EVENTS).kill();
    assert_eq!(std::fs::read_to_string(&path).expect("it is there"), whole);
    std::fs::write(&path, whole.replacen("\"unlink\"", "\"nothing\"", 1)).expect("written");
    assert!(chain(&home).is_err());
    let refused = home.refused(&EVENTS);
    assert!(refused.stderr.contains("its chain does not hold at line 4"), "{}", refused.stderr);
}

/// Whoever hangs up before the answer has changed something all the same, and that is noted.
#[test]
fn what_nobody_waits_for_is_noted_too() {
    const ASKED: i64 = 25;
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    send(&server, &(0..ASKED).map(|number| track("page", "ada", number, json!({}))).collect::<Vec<_>>());
    for number in 0..ASKED {
        let body = json!({"id": "ada", "messageId": format!("m{number}")}).to_string();
        let head = "POST /v1/events:retract HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
        let mut socket = TcpStream::connect(server.address).expect("it listens");
        write!(socket, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("it reads");
        // Long enough for it to be read, and mostly not to be done.
        std::thread::sleep(Duration::from_micros(1_000 + 400 * number as u64));
    }
    let noted = || chain(&home).expect("it holds").iter().filter(|entry| entry["action"] == "retract").count() as i64;
    let gone = || {
        let events = server.get("/v1/profiles/ada/events").json();
        ASKED - events["items"].as_array().map_or(0, Vec::len) as i64
    };
    std::thread::sleep(Duration::from_millis(500));
    until(PATIENCE, "what is taken back is noted", || (gone() > ASKED / 2 && gone() == noted()).then_some(()));
}

#[test]
fn requests_of_opendsr_are_carried_out_and_known_by_their_id() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    send(&server, &[track("page", "ada", 1, json!({})), track("page", "bob", 2, json!({}))]);
    let wanted = |number: u32, what: &str, ids: &[&str]| {
        let kind = "controller_customer_id";
        let identity = |id: &&str| json!({"identity_type": kind, "identity_value": id, "identity_format": "raw"});
        json!({"regulation": "gdpr", "subject_request_id": format!("a7551968-d5d6-44b2-9831-{number:012}"),
            "subject_request_type": what, "submitted_time": "2026-01-01T15:00:00Z", "api_version": "2.0",
            "subject_identities": ids.iter().map(identity).collect::<Vec<_>>()})
    };
    let ask = |wanted: &Value| server.post("/opendsr/requests", wanted.to_string());
    let status = |server: &Server, wanted: &Value| {
        server.get(&format!("/opendsr/requests/{}", wanted["subject_request_id"].as_str().expect("a text"))).json()
    };
    let access = wanted(1, "access", &["ada", "nobody"]);
    let answer = ask(&access);
    assert_eq!((answer.status, &answer.json()["subject_request_id"]), (201, &access["subject_request_id"]));
    assert_eq!(
        (&status(&server, &access)["request_status"], &status(&server, &access)["results_count"]),
        (&json!("completed"), &json!(1))
    );
    let erasure = wanted(2, "erasure", &["ada"]);
    assert_eq!(ask(&erasure).status, 201);
    assert_eq!([server.get("/v1/profiles/ada").status, server.get("/v1/profiles/bob").status], [404, 200]);
    let done = until(PATIENCE, "the erasure is complete", || {
        Some(status(&server, &erasure)).filter(|status| status["request_status"] == "completed")
    });
    assert_eq!(done["results_count"], 1);
    // Asked for again it is the same request, and whoever came since stays.
    send(&server, &[track("page", "ada", 3, json!({}))]);
    assert_eq!(ask(&erasure).status, 201);
    assert_eq!(server.get("/v1/profiles/ada").status, 200);
    let path = format!("/opendsr/requests/{}", erasure["subject_request_id"].as_str().expect("a text"));
    assert_eq!(server.ask("DELETE", &path, &[], &[]).status, 409);
    assert_eq!(server.get("/opendsr/requests/of-nobody").status, 404);
    assert_eq!(server.read("/opendsr/discovery")["api_version"], "2.0");
    for (key, wrong) in [
        ("subject_request_type", json!("rectification")),
        ("subject_request_id", json!("A7551968-D5D6-44B2-9831-815AC9017798")),
        ("submitted_time", json!("yesterday")),
        ("status_callback_urls", json!(["https://controller.example/called-back"])),
        ("subject_identities", json!([])),
        ("subject_identities", json!([{"identity_type": "email", "identity_value": "a", "identity_format": "raw"}])),
        ("more", json!(1)),
    ] {
        let mut wanted = wanted(3, "erasure", &["bob"]);
        wanted[key] = wrong;
        let answer = ask(&wanted);
        assert!(answer.status == 400 && answer.json()["detail"].to_string().contains(key), "{}", answer.text());
    }
    server.kill();
    let server = home.start(&EVENTS);
    assert_eq!(status(&server, &erasure), done);
    assert_eq!(holding(&home, r#""userId":"bob""#).len(), 1);
}
