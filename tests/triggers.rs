//! Triggers out of the real binary: webhooks signed, tried again, parked and sent again, whatever hangs or is killed.

mod histories;
mod process;
mod receiver;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use histories::Random;
use process::sse::Subscription;
use process::{Home, Server, http, until};
use receiver::{Call, Receiver, Reply};
use serde_json::{Value, json};

/// A debug build on a busy machine may take this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600_000;
const HOUR: i64 = 3_600_000;
const EVENTS: [&str; 2] = ["--clock", "events"];
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// One campaign to first visits, by a channel as it is written here.
fn definitions(channel: &str) -> String {
    format!(
        r#"
version: 1
segments:
  first_time_visitor: {{ visitor: first_time }}
campaigns:
  welcome:
    when: {{ event: page_view }}
    audience: first_time_visitor
    channel: mail
    template: 'Hello {{{{ event.properties.name }}}}, "welcome" — ü'
    data: {{ amount: 5 }}
channels:
  mail: {channel}
"#
    )
}

/// A channel to a receiver, with whatever else is to be said of it.
fn webhook(receiver: &Receiver, more: &str) -> String {
    format!("{{ deliver: webhook, url: \"{}\"{more} }}", receiver.url("/hook"))
}

fn visit(server: &Server, id: &str) {
    let body = json!({"anonymousId": id, "messageId": format!("m-{id}"), "properties": {"name": id}});
    server.write("/v1/page", &body);
}

/// The items of a list that is not longer than one part.
fn items(server: &Server, path: &str) -> Vec<Value> {
    server.read(&format!("{path}?limit=1000"))["items"].as_array().expect("a list").clone()
}

fn statuses(server: &Server) -> Value {
    server.read("/v1/campaigns/welcome")["by_status"].clone()
}

fn settled(server: &Server, expected: &Value) {
    let mut last = Value::Null;
    let deadline = Instant::now() + PATIENCE;
    while last != *expected {
        assert!(Instant::now() < deadline, "{last} is not {expected}; the server said: {}", server.said());
        std::thread::sleep(Duration::from_millis(10));
        last = statuses(server);
    }
}

fn calls(receiver: &Receiver, count: usize) -> Vec<Call> {
    until(PATIENCE, &format!("{count} calls come"), || Some(receiver.calls()).filter(|calls| calls.len() >= count))
}

fn channel(server: &Server) -> Value {
    server.read("/v1/channels/mail")
}

fn parked(server: &Server) -> Vec<Value> {
    items(server, "/v1/channels/mail/parked")
}

fn resend(server: &Server, body: Value) -> u64 {
    let answer = server.write("/v1/channels:resend", &body);
    assert!(answer["position"].as_str().is_some_and(|position| position.parse::<u64>().is_ok()), "{answer}");
    answer["resent"].as_u64().expect("a number")
}

/// Same id, same body.
fn fixed(calls: &[Call]) -> BTreeMap<String, String> {
    let mut bodies = BTreeMap::new();
    for call in calls {
        let before = bodies.insert(call.id().to_owned(), call.body.clone());
        assert!(before.is_none_or(|before| before == call.body), "{} has two bodies: {calls:#?}", call.id());
    }
    bodies
}

// Signatures.

/// The official verifiers.
fn verifiers() -> [Command; 2] {
    [tools::python("tests/receiver/verify.py"), tools::node("tests/receiver/verify.js")]
}

/// What both official libraries say of calls under a secret as they take it: base64.
fn verdicts(secret: &str, calls: &[Call]) -> [Vec<String>; 2] {
    verifiers().map(|mut command| {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
        let mut stdin = child.stdin.take().expect("it is piped");
        for call in calls {
            let headers: BTreeMap<_, _> = call.headers.iter().map(|(k, v)| (k.to_lowercase(), v)).collect();
            let line = json!({"secret": secret, "headers": headers, "body": call.body});
            writeln!(stdin, "{line}").expect("it listens");
        }
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{command:?} failed");
        String::from_utf8(output.stdout).expect("words").lines().map(str::to_owned).collect()
    })
}

#[test]
fn signatures_are_taken_by_the_official_libraries() {
    for (secret, as_base64) in [(SECRET, SECRET), ("hush! ünïcode", "aHVzaCEgw7xuw69jb2Rl")] {
        let receiver = Receiver::new(|_, _| Reply::Status(200));
        let channel = webhook(&receiver, ", secret_env: HOOK_SECRET, realtime: true, revocations: true");
        let home = Home::new(&definitions(&channel)).with("HOOK_SECRET", secret);
        let server = home.start(&EVENTS);
        let view = |id: &str, at: i64| {
            let body = json!({"anonymousId": "eve", "messageId": id, "timestamp": at, "properties": {"name": "Ev\"e"}});
            server.write("/v1/page", &body);
        };
        view("m1", START);
        calls(&receiver, 1);
        // A late event tells that it was no first visit.
        view("m0", START - 2 * HOUR);
        let mut all = calls(&receiver, 2);
        let mut tampered = all[0].clone();
        tampered.body = tampered.body.replace("Hello", "Hallo");
        assert_ne!(tampered.body, all[0].body);
        all.push(tampered);
        let expected = ["verified", "verified", "refused"].map(str::to_owned).to_vec();
        assert_eq!(verdicts(as_base64, &all), [expected.clone(), expected], "{all:#?}");
        // The payload is the intent as it is listed.
        let [intent, revoked] = [&all[0], &all[1]].map(Call::json);
        let id = intent["id"].as_str().expect("a text");
        assert_eq!((all[0].id(), all[1].id()), (id, format!("{id}.revoked").as_str()));
        assert_eq!((&intent["type"], &intent["status"]), (&json!("intent"), &json!("sent")));
        assert_eq!((&revoked["type"], &revoked["status"]), (&json!("revoked"), &json!("revoked")));
        assert_eq!(intent["body"], "Hello Ev\"e, \"welcome\" — ü");
        let listed = items(&server, "/v1/campaigns/welcome/intents");
        let mut listed = listed.iter().find(|row| row["id"] == id).expect("it is listed").clone();
        listed.as_object_mut().expect("an object").insert("type".into(), json!("revoked"));
        assert_eq!(revoked, listed);
        assert_eq!(all[0].header("content-type"), "application/json");
    }
}

#[test]
fn a_channel_without_its_secret_sends_nothing_unsigned() {
    for (secret, why) in [(None, "HOOK_SECRET holds no secret"), (Some("whsec_?"), "not base64")] {
        let receiver = Receiver::new(|_, _| Reply::Status(200));
        let mut home = Home::new(&definitions(&webhook(&receiver, ", secret_env: HOOK_SECRET")));
        if let Some(secret) = secret {
            home = home.with("HOOK_SECRET", secret);
        }
        let server = home.start(&[]);
        let disabled = || channel(&server)["disabled"].as_str().map(str::to_owned);
        let disabled = until(PATIENCE, "it says why", disabled);
        assert!(disabled.contains(why), "{disabled}");
        visit(&server, "ada");
        settled(&server, &json!({"parked": 1}));
        assert_eq!(parked(&server)[0]["why"], disabled.as_str());
        assert!(server.said().contains(why), "{}", server.said());
        server.kill();
        assert_eq!(receiver.calls().len(), 0);
        // With its secret what was parked can be sent.
        let server = home.with("HOOK_SECRET", SECRET).start(&[]);
        assert_eq!(channel(&server)["disabled"], Value::Null);
        assert_eq!(resend(&server, json!({"channel": "mail"})), 1);
        settled(&server, &json!({"sent": 1}));
        let calls = calls(&receiver, 1);
        assert_eq!(verdicts(SECRET, &calls), [["verified"], ["verified"]]);
    }
}

// Attempts.

#[test]
fn an_attempt_that_fails_is_made_again_with_the_same_bytes() {
    let receiver = Receiver::new(|_, before| match before {
        0 => Reply::Status(500),
        1 => Reply::Never(Duration::from_secs(20)),
        _ => Reply::Status(204),
    });
    let home = Home::new(&definitions(&webhook(&receiver, ", timeout: 1s")));
    let server = home.start(&[]);
    visit(&server, "ada");
    calls(&receiver, 1);
    settled(&server, &json!({"failed": 1}));
    settled(&server, &json!({"sent": 1}));
    let calls = receiver.calls();
    assert_eq!((calls.len(), fixed(&calls).len()), (3, 1));
    let pauses: Vec<Duration> = calls.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    assert!(pauses[0] < Duration::from_secs(5), "the first retry: {pauses:?}");
    // Of the second pause one second is for the timeout.
    assert!(pauses[1] > Duration::from_secs(4), "it backs off: {pauses:?}");
    let stamps: Vec<i64> = calls.iter().map(|call| call.header("webhook-timestamp").parse().expect("s")).collect();
    assert!(stamps.windows(2).all(|pair| pair[0] < pair[1]), "each attempt has its own time: {stamps:?}");
    let row = channel(&server);
    assert_eq!((&row["delivered"], &row["pending"], &row["in_flight"]), (&json!(1), &json!(0), &json!(0)), "{row}");
    assert!(row["took_ms"]["p50"].as_i64() > Some(5_000), "{row}");
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("thalweg_delivery_failures_total{channel=\"mail\"} 2\n"), "{metrics}");
    assert!(metrics.contains("thalweg_delivery_seconds_bucket{channel=\"mail\",le=\"1\"} 0\n"), "{metrics}");
    assert!(metrics.contains("thalweg_delivery_seconds_bucket{channel=\"mail\",le=\"+Inf\"} 1\n"), "{metrics}");
}

#[test]
fn an_endpoint_that_asks_for_patience_is_left_alone_so_long() {
    let receiver = Receiver::new(|call, before| {
        let first = call.json()["profile"] == "ada" && before == 0;
        if first { Reply::With(429, "retry-after", "6".into()) } else { Reply::Status(200) }
    });
    let server = Home::new(&definitions(&webhook(&receiver, ""))).start(&[]);
    visit(&server, "ada");
    settled(&server, &json!({"failed": 1}));
    // It is asked for by the endpoint, so for all messages.
    visit(&server, "bob");
    settled(&server, &json!({"failed": 1, "sent": 1}));
    let calls = calls(&receiver, 3);
    let pauses: Vec<Duration> = calls[1..].iter().map(|call| call.at - calls[0].at).collect();
    assert!(pauses.iter().all(|pause| *pause > Duration::from_secs(5)), "{pauses:?}");
    settled(&server, &json!({"sent": 2}));
}

#[test]
fn nobody_listening_is_a_failure_like_others() {
    let receiver = Receiver::new(|_, _| Reply::Status(200));
    let url = format!("http://127.0.0.1:{}/", process::free_port());
    let home = Home::new(&definitions(&format!("{{ deliver: webhook, url: \"{url}\" }}")));
    let server = home.start(&[]);
    visit(&server, "ada");
    settled(&server, &json!({"failed": 1}));
    server.kill();
    // Where the channel leads elsewhere by now, the same message goes there.
    home.write("thalweg.yaml", definitions(&webhook(&receiver, "")));
    let server = home.start(&[]);
    calls(&receiver, 1);
    settled(&server, &json!({"sent": 1}));
}

#[test]
fn a_message_is_not_tried_again_when_it_is_too_old() {
    let receiver = Receiver::new(|_, _| Reply::Status(500));
    let text = definitions(&webhook(&receiver, "")).replace("    channel: mail", "    channel: mail\n    expires: 2s");
    let server = Home::new(&text).start(&[]);
    visit(&server, "ada");
    settled(&server, &json!({"parked": 1}));
    let tries = receiver.calls().len();
    assert!((1..=2).contains(&tries), "{tries} attempts");
    assert!(parked(&server)[0]["why"].as_str().is_some_and(|why| why.contains("expires")), "{:?}", parked(&server));
    // Whoever sends it again wants it however old it is.
    receiver.answer(|_, _| Reply::Status(200));
    assert_eq!(resend(&server, json!({"channel": "mail"})), 1);
    settled(&server, &json!({"sent": 1}));
    fixed(&calls(&receiver, tries + 1));
}

#[test]
fn what_an_endpoint_refuses_is_parked_at_once() {
    let elsewhere = Receiver::new(|_, _| Reply::Status(200));
    let to = elsewhere.url("/hook");
    let receiver = Receiver::new(move |call, _| match call.json()["profile"].as_str() {
        Some("redirected") => Reply::With(307, "location", to.clone()),
        Some("wrong") => Reply::Status(422),
        _ => Reply::Status(200),
    });
    let server = Home::new(&definitions(&webhook(&receiver, ""))).start(&[]);
    ["redirected", "wrong", "right"].iter().for_each(|id| visit(&server, id));
    settled(&server, &json!({"parked": 2, "sent": 1}));
    let mut why: Vec<_> = parked(&server)
        .into_iter()
        .map(|row| format!("{} {}", row["message"]["profile"].as_str().expect("a text"), row["why"]))
        .collect();
    why.sort();
    assert!(why[0].contains("redirected") && why[0].contains("307") && why[0].contains("not followed"), "{why:?}");
    assert!(why[1].contains("wrong") && why[1].contains("422"), "{why:?}");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((receiver.calls().len(), elsewhere.calls().len()), (3, 0), "none is tried again or followed");
    assert_eq!(channel(&server)["disabled"], Value::Null);
}

#[test]
fn an_endpoint_that_is_gone_is_left_alone_until_a_resend_or_a_restart() {
    let receiver = Receiver::new(|_, _| Reply::Status(410));
    let home = Home::new(&definitions(&webhook(&receiver, "")));
    let server = home.start(&[]);
    visit(&server, "v0");
    settled(&server, &json!({"parked": 1}));
    assert!(channel(&server)["disabled"].as_str().is_some_and(|why| why.contains("410")), "{}", channel(&server));
    for n in 1..5 {
        visit(&server, &format!("v{n}"));
    }
    settled(&server, &json!({"parked": 5}));
    assert_eq!((receiver.calls().len(), &channel(&server)["parked"]), (1, &json!(5)), "nobody calls it");
    // The list goes by parts, the latest first.
    let first = server.read("/v1/channels/mail/parked?limit=3");
    let next = first["next"].as_str().expect("there are more");
    let rest = server.read(&format!("/v1/channels/mail/parked?limit=3&cursor={next}"));
    let of = |part: &Value| {
        part["items"].as_array().expect("a list").iter().map(|row| row["message"].clone()).collect::<Vec<_>>()
    };
    let listed = [of(&first), of(&rest)].concat();
    let people: BTreeSet<_> = listed.iter().map(|row| row["profile"].as_str().expect("a text")).collect();
    assert_eq!((listed.len(), people.len(), &rest["next"]), (5, 5, &Value::Null));
    assert!(listed.iter().all(|row| row["status"] == "parked"), "{listed:?}");
    // All at once, while it is still gone: nothing is lost.
    assert_eq!(resend(&server, json!({"channel": "mail"})), 5);
    let back = || (channel(&server)["parked"] == 5).then_some(());
    until(PATIENCE, "they are parked again", back);
    assert!(receiver.calls().len() <= 6, "each is tried again at most once");
    // One alone, when it is back.
    receiver.answer(|_, _| Reply::Status(200));
    let id = listed[0]["id"].as_str().expect("a text");
    assert_eq!(resend(&server, json!({"channel": "mail", "id": id})), 1);
    settled(&server, &json!({"parked": 4, "sent": 1}));
    assert_eq!(receiver.calls().last().expect("a call").id(), id);
    receiver.answer(|_, _| Reply::Status(410));
    visit(&server, "v5");
    settled(&server, &json!({"parked": 5, "sent": 1}));
    server.kill();
    receiver.answer(|_, _| Reply::Status(200));
    let server = home.start(&[]);
    visit(&server, "v6");
    settled(&server, &json!({"parked": 5, "sent": 2}));
    assert_eq!(resend(&server, json!({"channel": "mail"})), 5);
    settled(&server, &json!({"sent": 7}));
    assert_eq!(fixed(&receiver.calls()).len(), 7);
    assert_eq!((parked(&server).len(), resend(&server, json!({"channel": "mail"}))), (0, 0));
    server.kill();
    let before = receiver.calls().len();
    let server = home.start(&[]);
    settled(&server, &json!({"sent": 7}));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(receiver.calls().len(), before, "what is delivered is not delivered again");
}

#[test]
fn what_makes_no_sense_about_channels_is_refused() {
    let text = definitions("{ deliver: nats }");
    let home = Home::new(&text.replace("\nchannels:", "\nchannels:\n  popup: { deliver: sse, realtime: true }"));
    let server = home.start(&[]);
    visit(&server, "ada");
    settled(&server, &json!({"parked": 1}));
    let rows = items(&server, "/v1/channels");
    let brief: Vec<_> = rows.iter().map(|row| [&row["name"], &row["deliver"], &row["realtime"]]).collect();
    let [mail, nats, popup, sse] = ["mail", "nats", "popup", "sse"].map(|word| json!(word));
    assert_eq!(brief, [[&mail, &nats, &json!(false)], [&popup, &sse, &json!(true)]]);
    assert!(rows[0]["disabled"].as_str().is_some_and(|why| why.contains("NATS")), "{rows:?}");
    assert_eq!((&rows[1]["disabled"], &rows[1]["took_ms"]), (&Value::Null, &Value::Null));
    let problem = |answer: http::Answer| (answer.status, answer.header("content-type").to_owned());
    let is = |status: u16| (status, "application/problem+json".to_owned());
    assert_eq!(problem(server.get("/v1/channels/none")), is(404));
    assert_eq!(problem(server.get("/v1/channels/none/parked")), is(404));
    assert_eq!(problem(server.get("/v1/channels?what=1")), is(400));
    assert_eq!(problem(server.get("/v1/channels:resend")), is(405));
    for (body, status) in [
        ("", 400),
        ("{}", 400),
        (r#"{"channel":"mail","ids":[]}"#, 400),
        (r#"{"channel":"none"}"#, 404),
        (r#"{"channel":"mail","id":"i_none"}"#, 404),
    ] {
        assert_eq!(problem(server.post("/v1/channels:resend", body)), is(status), "{body}");
    }
    assert_eq!(resend(&server, json!({"channel": "popup"})), 0);
}

#[test]
fn consent_is_asked_again_at_each_attempt() {
    let receiver = Receiver::new(|_, _| Reply::Status(500));
    let text =
        definitions(&webhook(&receiver, "")).replace("    channel: mail", "    channel: mail\n    consent: news");
    let server = Home::new(&text).start(&[]);
    let call = |kind: &str, consents: bool| {
        let context = json!({"consent": {"categoryPreferences": {"news": consents}}});
        server.write(&format!("/v1/{kind}"), &json!({"anonymousId": "ada", "context": context}));
    };
    call("page", true);
    settled(&server, &json!({"failed": 1}));
    call("identify", false);
    settled(&server, &json!({"consent_withdrawn": 1}));
    let before = receiver.calls().len();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(receiver.calls().len(), before, "she said no");
    assert_eq!(channel(&server)["last_failure"], "the endpoint answered 500 Internal Server Error");
}

/// Steps that were closed; to say so takes one more.
fn steps(server: &Server) -> u64 {
    let page = server.get("/metrics").text();
    let count = page.lines().find_map(|line| line.strip_prefix("thalweg_step_seconds_count ")?.parse().ok());
    count.expect("a number")
}

#[test]
fn what_goes_out_at_once_takes_two_steps() {
    let text = definitions("{ deliver: sse }").replace("    channel: mail", "    channel: mail\n    consent: news");
    let server = Home::new(&text).start(&EVENTS);
    let told = Subscription::open(server.address, "view=intents").expect("it is open");
    told.snapshot();
    let before = steps(&server);
    let context = json!({"consent": {"categoryPreferences": {"news": true}}});
    let calls = ["ada", "eve", "joe"].map(|id| {
        let properties = json!({ "name": id });
        json!({"type": "page", "anonymousId": id, "timestamp": START, "context": context, "properties": properties})
    });
    server.write("/v1/batch", &json!({ "batch": calls }));
    let sent = told.next(PATIENCE).expect("all go out together");
    let bodies: BTreeSet<&str> = sent.changes().iter().filter_map(|(_, row)| row["body"].as_str()).collect();
    let body = |id: &str| format!("Hello {id}, \"welcome\" — ü");
    assert_eq!(bodies, ["ada", "eve", "joe"].map(body).iter().map(String::as_str).collect(), "{sent:?}");
    // That of the entries closes when they have been told.
    std::thread::sleep(Duration::from_millis(300));
    let taken = steps(&server) - before - 1;
    assert!(taken <= 2, "{taken} steps: that of the events, and that of the ledger's entries; nobody is asked again");
}

// What is taken back.

/// A visit now and then one that was before it, so that the first was not the first.
fn change_of_mind(server: &Server, id: &str, between: impl FnOnce()) {
    let view = |message: &str, at: i64| {
        let body = json!({"anonymousId": id, "messageId": message, "timestamp": at, "properties": {"name": id}});
        server.write("/v1/page", &body);
    };
    view("m1", START);
    between();
    view("m0", START - 2 * HOUR);
}

/// What then becomes of the two: the later one has no audience, the earlier one is too old.
fn taken_back() -> Value {
    json!({"revoked": 1, "audience": 1, "expired": 1})
}

#[test]
fn revocations_go_where_they_are_wanted() {
    for wanted in [true, false] {
        let receiver = Receiver::new(|_, _| Reply::Status(200));
        let home = Home::new(&definitions(&webhook(&receiver, &format!(", revocations: {wanted}"))));
        let server = home.start(&EVENTS);
        change_of_mind(&server, "eve", || drop(calls(&receiver, 1)));
        settled(&server, &taken_back());
        std::thread::sleep(Duration::from_millis(500));
        let ids: Vec<String> = receiver.calls().iter().map(|call| call.id().to_owned()).collect();
        assert_eq!(ids.len(), if wanted { 2 } else { 1 }, "{ids:?}");
        let before = receiver.calls().len();
        server.kill();
        let server = home.start(&EVENTS);
        settled(&server, &taken_back());
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(receiver.calls().len(), before, "a revocation that is there is not sent again");
    }
}

#[test]
fn what_is_taken_back_while_it_fails_is_not_tried_again() {
    let receiver = Receiver::new(|_, _| Reply::Late(Duration::from_millis(500), 500));
    let home = Home::new(&definitions(&webhook(&receiver, ", revocations: true")));
    let server = home.start(&EVENTS);
    // It is taken back in the middle of its first attempt.
    change_of_mind(&server, "eve", || drop(calls(&receiver, 1)));
    let all = calls(&receiver, 3);
    let ids: Vec<&str> = all.iter().map(Call::id).collect();
    assert!(!ids[0].ends_with(".revoked") && ids[1..].iter().all(|id| id.ends_with(".revoked")), "{ids:?}");
    assert!(all[1].at - all[0].at > Duration::from_millis(400), "one attempt at a time");
    fixed(&all);
    receiver.answer(|_, _| Reply::Status(410));
    let why = || parked(&server).first().map(|row| (row["message"]["type"].clone(), row["why"].clone()));
    let (kind, why) = until(PATIENCE, "the revocation is parked", why);
    assert_eq!(kind, "revoked");
    assert!(why.as_str().is_some_and(|why| why.contains("410")), "{why}");
    assert_eq!(statuses(&server), taken_back());
    let before = receiver.calls().len();
    server.kill();
    receiver.answer(|_, _| Reply::Status(200));
    let server = home.start(&EVENTS);
    assert_eq!(parked(&server).len(), 1, "parked it stays");
    assert_eq!(resend(&server, json!({"channel": "mail"})), 1);
    until(PATIENCE, "it is sent again", || (receiver.calls().len() > before).then_some(()));
    fixed(&receiver.calls());
    assert_eq!(parked(&server).len(), 0);
}

#[test]
fn what_stands_again_before_it_was_delivered_is_delivered() {
    let receiver = Receiver::new(|_, _| Reply::Status(500));
    let text = definitions(&webhook(&receiver, ""));
    let home = Home::new(&text);
    let server = home.start(&[]);
    visit(&server, "ada");
    settled(&server, &json!({"failed": 1}));
    server.kill();
    // The campaign goes, and comes back.
    home.write("thalweg.yaml", "version: 1\n");
    let server = home.start(&[]);
    let ledger = || home.segments().iter().map(|path| std::fs::read(path).expect("a segment")).collect::<Vec<_>>();
    let revoked = || String::from_utf8_lossy(&ledger().concat()).contains(r#""status":"revoked""#).then_some(());
    until(PATIENCE, "it is written down as revoked", revoked);
    server.kill();
    receiver.answer(|_, _| Reply::Status(200));
    home.write("thalweg.yaml", &text);
    let before = receiver.calls().len();
    let server = home.start(&[]);
    settled(&server, &json!({"sent": 1}));
    fixed(&calls(&receiver, before + 1));
}

// Kills.

#[test]
fn kill_9_loses_no_trigger_and_changes_none() {
    let seed = std::env::var("THALWEG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let mut random = Random::new(seed);
    let moody = Mutex::new(Random::new(seed + 1));
    let receiver = Receiver::new(move |_, _| match moody.lock().expect("nobody panics").below(4) {
        0 => Reply::Status(500),
        1 => Reply::Late(Duration::from_millis(150), 200),
        _ => Reply::Status(200),
    });
    let home = Home::new(&definitions(&webhook(&receiver, "")));
    let mut acknowledged = BTreeSet::new();
    for round in 0..8 {
        let server = home.start(&[]);
        let to = server.address;
        let visits = std::thread::spawn(move || {
            let body = |id: &str| {
                json!({"anonymousId": id, "messageId": format!("m-{id}"), "properties": {"name": id}}).to_string()
            };
            let post = |id: &String| http::ask(to, "POST", "/v1/page", &[], body(id).as_bytes());
            let ids = (0..30).map(|n| format!("v{round}-{n}"));
            ids.take_while(|id| post(id).is_ok_and(|answer| answer.status == 200)).collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_millis(50 + random.below(400)));
        server.kill();
        acknowledged.extend(visits.join().expect("the sender ends"));
    }
    assert!(acknowledged.len() > 20, "hardly anything was acknowledged: {}", acknowledged.len());
    receiver.answer(|_, _| Reply::Status(200));
    let server = home.start(&[]);
    let all_sent = || {
        let row = server.read("/v1/campaigns/welcome");
        (row["by_status"] == json!({"sent": row["intents"]}) && channel(&server)["pending"] == 0).then_some(())
    };
    until(PATIENCE, "everything is delivered", all_sent);
    let kept = fixed(&receiver.calls());
    let told: BTreeMap<String, String> = kept
        .iter()
        .map(|(id, body)| {
            let row: Value = serde_json::from_str(body).expect("JSON");
            assert_eq!((&row["id"], &row["type"], &row["status"]), (&json!(id), &json!("intent"), &json!("sent")));
            (row["profile"].as_str().expect("a text").to_owned(), id.clone())
        })
        .collect();
    assert_eq!(told.len(), kept.len(), "each person is welcomed under one id");
    let forgotten: Vec<&String> = acknowledged.iter().filter(|id| !told.contains_key(*id)).collect();
    assert!(forgotten.is_empty(), "acknowledged visits without a welcome (seed {seed}): {forgotten:?}");
    let listed = items(&server, "/v1/campaigns/welcome/intents");
    let listed: BTreeSet<&str> = listed.iter().map(|row| row["id"].as_str().expect("a text")).collect();
    assert_eq!(listed, kept.keys().map(String::as_str).collect(), "what came is what is listed");
    // A delivery whose result is durable, as it is soon, is not made again.
    std::thread::sleep(Duration::from_secs(1));
    let before = receiver.calls().len();
    server.kill();
    let server = home.start(&[]);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(receiver.calls().len(), before, "{}", channel(&server));
}

// Isolation.

const ENDPOINTS: usize = 20;
/// The promise is one second; a debug build on a busy machine gets two. Who waits for others waits for three at least.
const PROMPT: Duration = Duration::from_secs(2);
/// Endpoints 0 to 4 never answer, 5 to 9 do so late, 10 to 14 fail, 15 to 19 are as they should be.
const GOOD: std::ops::Range<usize> = 15..ENDPOINTS;

/// The 99th of 100 of these.
fn p99(mut spans: Vec<Duration>) -> Duration {
    spans.sort();
    spans[spans.len() * 99 / 100]
}

#[test]
fn endpoints_that_hang_delay_nobody_else() {
    let receiver = Receiver::new(|call, _| match call.path[1..].parse().expect("a number") {
        0..5 => Reply::Never(Duration::from_secs(60)),
        5..10 => Reply::Late(Duration::from_secs(3), 200),
        10..15 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let mut text = String::from("version: 1\ncampaigns:\n  pop: { when: { event: ping }, channel: popup }\n");
    for n in 0..ENDPOINTS {
        text += &format!("  c{n}: {{ when: {{ event: ping }}, channel: h{n} }}\n");
    }
    text += "channels:\n  popup: { deliver: sse, realtime: true }\n";
    for n in 0..ENDPOINTS {
        text += &format!("  h{n}: {{ deliver: webhook, url: \"{}\", timeout: 4s }}\n", receiver.url(&format!("/{n}")));
    }
    let home = Home::new(&text);
    let server = home.start(&[]);
    let pops = server.subscribe("view=intents&name=pop");
    pops.snapshot();
    let ask = || {
        let began = Instant::now();
        server.read("/v1/campaigns/pop");
        began.elapsed()
    };
    let idle = p99((0..100).map(|_| ask()).collect());
    let (mut posted, mut answers, mut popped) = (BTreeMap::new(), Vec::new(), Vec::new());
    for n in 0..60 {
        let id = format!("p{n}");
        posted.insert(id.clone(), Instant::now());
        server.write("/v1/track", &json!({"userId": id, "event": "ping"}));
        let (_, waited) = pops.wait_for(PATIENCE, |row| row["profile"] == *id).expect("it pops up");
        popped.push(waited);
        answers.extend((0..5).map(|_| ask()));
        std::thread::sleep(Duration::from_millis(100));
    }
    let good = |call: &&Call| GOOD.contains(&call.path[1..].parse().expect("a number"));
    let wanted = posted.len() * GOOD.len();
    let all = until(PATIENCE, "the good endpoints have everything", || {
        Some(receiver.calls()).filter(|calls| calls.iter().filter(good).count() >= wanted)
    });
    let took: Vec<Duration> = all
        .iter()
        .filter(good)
        .map(|call| call.at - posted[call.json()["profile"].as_str().expect("a text")])
        .collect();
    assert_eq!(took.len(), wanted, "the good ones are told once each");
    let (took, popped, busy) = (p99(took), p99(popped), p99(answers));
    eprintln!("p99: good endpoints {took:?}, pop-ups {popped:?}, answers {busy:?} (idle {idle:?})");
    assert!(took < PROMPT, "good endpoints wait {took:?}");
    assert!(popped < PROMPT, "pop-ups wait {popped:?}");
    assert!(busy < idle.mul_f64(1.1) + Duration::from_millis(250), "answers take {busy:?}, idle {idle:?}");
    let rows = items(&server, "/v1/channels");
    let row = |name: &str| rows.iter().find(|row| row["name"] == name).expect("a channel");
    // What hangs is bounded, and what waits for it is known.
    for n in 0..5 {
        let row = row(&format!("h{n}"));
        let of = |key: &str| row[key].as_u64().expect("a number");
        assert!(of("in_flight") <= 16 && of("delivered") == 0, "{row}");
        assert_eq!((of("pending"), of("parked")), (60, 0), "nothing is lost: {row}");
    }
    for n in GOOD {
        let row = row(&format!("h{n}"));
        assert_eq!((&row["delivered"], &row["pending"]), (&json!(60), &json!(0)), "{row}");
        assert!(row["took_ms"]["p99"].as_u64().is_some_and(|p99| p99 <= 2_500), "{row}");
    }
    assert_eq!(row("popup")["delivered"], 60);
}

// TLS.

/// What was run, or why it could not be.
fn run(folder: &Path, line: &str) {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().expect("a command"));
    let output = command.args(words).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("`{line}` cannot be run ({error}): .ci/run installs it"));
    assert!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn https_is_spoken_with_those_whom_the_system_trusts() {
    let certificates = tempfile::TempDir::new().expect("a temporary directory can be made");
    let folder = certificates.path();
    std::fs::write(folder.join("v3"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:false\n").expect("a file");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    run(folder, &format!("openssl req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
    run(folder, &format!("openssl req {key} -keyout key.pem -out request -subj /CN=endpoint"));
    run(
        folder,
        "openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile v3",
    );
    let mut command = tools::python("tests/receiver/https.py");
    command.args(["cert.pem", "key.pem"]).current_dir(folder).stdout(Stdio::piped());
    let mut endpoint = command.spawn().expect("python can be run");
    let mut said = BufReader::new(endpoint.stdout.take().expect("it is piped")).lines();
    let port = said.next().expect("it tells its port").expect("text");
    let heard = Arc::new(AtomicBool::new(false));
    let hears = Arc::clone(&heard);
    std::thread::spawn(move || said.map_while(Result::ok).for_each(|_| hears.store(true, Ordering::Relaxed)));
    let text = definitions(&format!("{{ deliver: webhook, url: \"https://127.0.0.1:{port}/hook\" }}"));
    let home = Home::new(&text);
    let server = home.start(&[]);
    visit(&server, "ada");
    settled(&server, &json!({"failed": 1}));
    assert!(!heard.load(Ordering::Relaxed), "it is told to whom nobody trusts");
    server.kill();
    let authority = folder.join("ca.pem").display().to_string();
    let server = home.with("SSL_CERT_FILE", authority).start(&[]);
    settled(&server, &json!({"sent": 1}));
    until(PATIENCE, "it is delivered", || heard.load(Ordering::Relaxed).then_some(()));
    endpoint.kill().expect("it can be stopped");
    endpoint.wait().expect("it ends");
}
