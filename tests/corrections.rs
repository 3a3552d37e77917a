//! Corrections from outside: events taken back, edges struck, and what is told of links.

mod process;

use process::http::Answer;
use process::{Home, Server};
use serde_json::{Value, json};

const EVENTS: [&str; 2] = ["--clock", "events"];
/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600_000;

const SHOP: &str = "version: 1
identity: { max_ids: 3 }
touchpoints: [ { event: ad_click, channel: properties.channel } ]
conversions: [ { name: purchase, event: purchase, id: properties.order, value: properties.value } ]
segments:
  buyers: { performed: purchase }
";

fn track(server: &Server, number: i64, ids: Value, event: &str, properties: Value) -> String {
    let mut call = json!({"type": "track", "event": event, "messageId": format!("m{number}"),
        "timestamp": START + 1_000 * number, "properties": properties});
    call.as_object_mut().expect("an object").extend(ids.as_object().expect("ids").clone());
    let answer = server.write("/v1/batch", &json!({"batch": [call]}));
    assert_eq!(answer["accepted"], 1, "{answer}");
    answer["position"].as_str().expect("a position").to_owned()
}

fn post(server: &Server, path: &str, body: &Value) -> Answer {
    server.post(path, body.to_string())
}

/// All that is true of somebody, and of everyone, after a position.
fn all(server: &Server, id: &str, after: &str) -> Vec<Value> {
    let mut paths = vec!["/v1/segments".to_owned(), "/v1/attribution?model=linear&by=campaign".to_owned()];
    paths.push(format!("/v1/profiles/{id}"));
    let views = ["events", "sessions", "touchpoints", "conversions", "segments/changes"];
    paths.extend(views.map(|view| format!("/v1/profiles/{id}/{view}")));
    let read = |path: &String| {
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut answer = server.get(&format!("{path}{joint}after={after}")).json();
        answer.as_object_mut().expect("an object").remove("as_of");
        answer
    };
    paths.iter().map(read).collect()
}

#[test]
fn what_is_taken_back_never_was_and_is_still_known() {
    let (home, bare) = (Home::new(SHOP), Home::new(SHOP));
    let (server, without) = (home.start(&[&EVENTS[..], &["--workers", "2"]].concat()), bare.start(&EVENTS));
    let ada = || json!({"userId": "ada", "anonymousId": "phone"});
    for server in [&server, &without] {
        track(server, 1, json!({"anonymousId": "phone"}), "ad_click", json!({"channel": "search"}));
        track(server, 5, ada(), "page", json!({}));
    }
    track(&server, 3, ada(), "purchase", json!({"order": "o1", "value": 40}));
    assert_eq!(server.read("/v1/segments")["items"][0]["size"], 1);
    let wanted = json!({"id": "ada", "messageId": "m3"});
    let answer = post(&server, "/v1/events:retract", &wanted);
    assert_eq!((answer.status, &answer.json()["events"]), (200, &json!(1)), "{}", answer.text());
    let position = answer.json()["position"].as_str().expect("a position").to_owned();
    let expected = all(&without, "phone", "0");
    let strip = |mut answers: Vec<Value>| {
        // Where the log's stamp differs, since its clock did not: the same here.
        answers.iter_mut().for_each(|answer| drop(answer.as_object_mut().map(|answer| answer.remove("next"))));
        answers
    };
    assert_eq!(strip(all(&server, "phone", &position)), strip(expected.clone()));
    // Again: nothing changes. The same event again is a duplicate.
    assert_eq!(post(&server, "/v1/events:retract", &wanted).status, 200);
    let after = track(&server, 3, ada(), "purchase", json!({"order": "o1", "value": 40}));
    assert_eq!(strip(all(&server, "phone", &after)), strip(expected.clone()));
    server.kill();
    let server = home.start(&EVENTS);
    assert_eq!(strip(all(&server, "phone", &after)), strip(expected));
    let told = post(&server, "/v1/events:retract", &json!({"id": "phone", "messageId": "m3"}));
    assert_eq!(told.status, 404, "its own id is ada: {}", told.text());
    assert!(told.json()["detail"].as_str().expect("a detail").contains("userId"), "{}", told.text());
}

#[test]
fn all_that_a_condition_selects_is_seen_first_and_then_taken_back() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    for number in 1..=40 {
        let properties = json!({"order": number, "value": number, "bot": number % 4 == 0});
        track(&server, number, json!({"userId": format!("u{}", number % 3)}), "purchase", properties);
    }
    let condition = "event == \"purchase\" && properties.bot && properties.value > 8";
    post(&server, "/v1/events:retract", &json!({"id": "u2", "messageId": "m20"}));
    let preview = post(&server, "/v1/events:retract", &json!({"where": condition, "preview": true})).json();
    // 12, 16, 24, 28, 32, 36, 40; 20 is gone already.
    assert_eq!((&preview["events"], &preview["profiles"]), (&json!(7), &json!(3)), "{preview}");
    let first = json!({"id": "u1", "messageId": "m40", "timestamp": START + 40_000, "event": "purchase"});
    assert_eq!(preview["sample"][0], first);
    let value = |server: &Server, after: &str| {
        server.read(&format!("/v1/attribution?model=linear&after={after}"))["total"]["value"].clone()
    };
    assert_eq!(value(&server, "0"), json!((1..=40).sum::<i64>().to_string().replace("820", "800")));
    let done = post(&server, "/v1/events:retract", &json!({"where": condition})).json();
    assert_eq!(done["events"], 7);
    let position = done["position"].as_str().expect("a position").to_owned();
    assert_eq!(value(&server, &position), "612");
    assert_eq!(post(&server, "/v1/events:retract", &json!({"where": condition})).json()["events"], 0);
    server.kill();
    assert_eq!(value(&home.start(&EVENTS), &position), "612");
}

const SEEN_FIRST: &str = "version: 1
touchpoints: [ { event: ad_click, channel: properties.channel } ]
conversions: [ { name: purchase, event: purchase, id: properties.order, value: properties.value } ]
attribution: { models: [last_touch] }
segments: { buyers: { performed: purchase }, strangers: { not: { visitor: known } } }
campaigns: { thanks: { when: { event: purchase }, audience: strangers, channel: popup } }
channels: { popup: { deliver: sse } }
";

/// The main figures, as the doors that answer for each of them tell them.
fn figures(server: &Server, after: &str) -> Value {
    let read = |path: &str| server.read(&format!("{path}after={after}"));
    let (credit, sessions) = (read("/v1/attribution?by=campaign&"), read("/v1/sessions/summary?"));
    let of_campaign = read("/v1/campaigns/thanks?")["by_status"]["audience"].clone();
    json!({"sessions": sessions["sessions"], "conversions": credit["basis"]["conversions"],
        "value": credit["total"]["value"], "buyers": read("/v1/segments/buyers?")["size"],
        "thanks": if of_campaign.is_null() { json!(0) } else { of_campaign }, "credit": credit["rows"]})
}

/// The same out of a preview, as they are or as they would be; what does not change is not listed there.
fn foreseen(preview: &Value, which: &str, is: &Value) -> Value {
    let figures = &preview["figures"];
    let listed = |of: &str, key: &str, name: &str| {
        let row = figures[of].as_array().expect("a list").iter().find(|row| row[key] == name);
        row.map_or_else(|| is[name].clone(), |row| row[which].clone())
    };
    let mut credit: Vec<Value> = is["credit"].as_array().expect("a list").clone();
    for row in figures["credit"].as_array().expect("a list") {
        credit.retain(|other| other["channel"] != row["channel"]);
        let gone = row["conversions"][which] == "0";
        credit.extend((!gone).then(|| {
            json!({"channel": row["channel"], "campaign": row["campaign"],
            "conversions": row["conversions"][which], "value": row["value"][which]})
        }));
    }
    credit
        .sort_by_key(|row| std::cmp::Reverse(row["value"].as_str().map(|value| value.parse::<i64>().expect("whole"))));
    json!({"sessions": figures["sessions"][which], "conversions": figures["conversions"][which],
        "value": figures["value"][which], "buyers": listed("segments", "segment", "buyers"),
        "thanks": listed("intents", "campaign", "thanks"),
        "credit": credit})
}

/// The main figures are told before anything is taken back, and are so then: also where somebody's ids come apart, and
/// where a device becomes another's.
#[test]
fn a_preview_tells_the_figures_that_are_then_true() {
    let home = Home::new(SEEN_FIRST);
    let server = home.start(&[&EVENTS[..], &["--workers", "2"]].concat());
    let purchase = |number: i64, ids: Value, test: bool| {
        track(&server, number, ids, "purchase", json!({"order": number, "value": number, "test": test}))
    };
    // A tablet with clicks of two channels, on which ada buys and then bob.
    track(&server, 1, json!({"anonymousId": "tablet"}), "ad_click", json!({"channel": "search"}));
    purchase(20, json!({"userId": "ada", "anonymousId": "tablet"}), true);
    purchase(30, json!({"userId": "bob", "anonymousId": "tablet"}), false);
    purchase(40, json!({"userId": "ada"}), false);
    track(&server, 7_200, json!({"userId": "eve"}), "ad_click", json!({"channel": "mail", "test": true}));
    let last = purchase(7_300, json!({"userId": "eve"}), false);
    let is = figures(&server, &last);
    for (condition, events, people, others) in [
        ("event == \"ad_click\" && properties.test", 1, 1, 0),
        ("event == \"purchase\" && properties.test", 1, 1, 1),
        ("event == \"nothing\"", 0, 0, 0),
    ] {
        let before = figures(&server, "0");
        let asked = json!({"where": condition, "preview": true});
        let preview = post(&server, "/v1/events:retract", &asked).json();
        assert_eq!((&preview["events"], &preview["profiles"]), (&json!(events), &json!(people)), "{preview}");
        assert_eq!(foreseen(&preview, "before", &before), before, "{preview}");
        assert_eq!(figures(&server, "0"), before, "nothing is taken back");
        let done = post(&server, "/v1/events:retract", &json!({"where": condition})).json();
        let after = figures(&server, done["position"].as_str().expect("a position"));
        assert_eq!(foreseen(&preview, "after", &before), after, "{condition}: {preview}");
        assert_eq!(before == after, events == 0, "{condition}");
        // Without her first purchase the tablet, and its click, are bob's.
        let owner = server.read("/v1/profiles/tablet");
        assert_eq!(owner["id"], if others > 0 || condition.contains("nothing") { "bob" } else { "ada" });
    }
    assert_ne!(figures(&server, "0"), is);
}

/// What is dated after the clock was accepted, and is taken back before its time comes.
#[test]
fn what_is_yet_to_come_is_selected_too() {
    let home = Home::new(SHOP);
    let server = home.start(&[]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is after 1970");
    let at = now.as_millis() as i64 + 3_600_000;
    let call = json!({"type": "track", "event": "purchase", "messageId": "m1", "userId": "ada", "timestamp": at});
    server.write("/v1/batch", &json!({"batch": [call]}));
    let condition = json!({"where": "event == \"purchase\"", "preview": true});
    let preview = post(&server, "/v1/events:retract", &condition).json();
    assert_eq!((&preview["events"], &preview["sample"][0]["timestamp"]), (&json!(1), &json!(at)), "{preview}");
    let retract = json!({"where": "event == \"purchase\""});
    assert_eq!(post(&server, "/v1/events:retract", &retract).json()["events"], 1);
    assert_eq!(post(&server, "/v1/events:retract", &retract).json()["events"], 0);
}

#[test]
fn an_edge_is_struck_and_what_links_is_told() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    let both = |user: &str, anonymous: &str| json!({"userId": user, "anonymousId": anonymous});
    track(&server, 1, json!({"anonymousId": "tablet"}), "ad_click", json!({"channel": "search"}));
    track(&server, 2, both("ada", "tablet"), "page", json!({}));
    track(&server, 3, both("bob", "tablet"), "purchase", json!({"order": 1, "value": 5}));
    track(&server, 4, both("ada", "phone"), "page", json!({}));
    track(&server, 5, both("ada", "watch"), "page", json!({}));
    let profile = server.read("/v1/profiles/tablet");
    let edge = |a: &str, number: i64| {
        let event = json!({"id": "ada", "messageId": format!("m{number}"), "timestamp": START + 1_000 * number});
        json!({"a": a, "b": "ada", "event": event})
    };
    assert_eq!(profile["linked_by"], json!([edge("phone", 4), edge("tablet", 2)]));
    let refused = server.read("/v1/identities/refused");
    let event = |id: &str, number: i64| {
        let at = START + 1_000 * number;
        json!({"id": id, "messageId": format!("m{number}"), "timestamp": at})
    };
    let rows = json!([
        {"reason": "shared_device", "a": "tablet", "b": "bob", "claimed_by": "ada", "event": event("bob", 3)},
        {"reason": "refused_edge", "a": "watch", "b": "ada", "claimed_by": null, "event": event("ada", 5)},
    ]);
    assert_eq!(refused["items"], rows);
    let part = server.read("/v1/identities/refused?limit=1");
    let next = part["next"].as_str().expect("there is more");
    assert_eq!(server.read(&format!("/v1/identities/refused?cursor={next}"))["items"], json!([rows[1]]));
    // Struck, the tablet is bob's.
    let answer = post(&server, "/v1/identities:unlink", &json!({"a": "ada", "b": "tablet"}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let position = answer.json()["position"].as_str().expect("a position").to_owned();
    assert_eq!(server.read(&format!("/v1/profiles/tablet?after={position}"))["id"], "bob");
    let credit = server.read("/v1/attribution?model=last_touch");
    assert_eq!(credit["rows"][0]["channel"], "search", "{credit}");
    assert_eq!(server.read("/v1/identities/refused")["items"], json!([rows[1]]));
    let again = post(&server, "/v1/identities:unlink", &json!({"a": "ada", "b": "tablet"}));
    assert_eq!(again.status, 404, "{}", again.text());
    assert!(again.json()["detail"].as_str().expect("a detail").contains("no edge joins"), "{}", again.text());
    server.kill();
    let server = home.start(&EVENTS);
    assert_eq!(server.read("/v1/profiles/tablet")["id"], "bob");
    // Without the event that was refused nothing is.
    post(&server, "/v1/events:retract", &json!({"id": "ada", "messageId": "m5"}));
    assert_eq!(server.read("/v1/identities/refused")["items"], json!([]));
}

#[test]
fn nonsense_is_refused_and_says_what_to_do() {
    let home = Home::new(SHOP);
    let server = home.start(&EVENTS);
    for (path, body) in [
        ("/v1/events:retract", json!({})),
        ("/v1/events:retract", json!({"id": "ada"})),
        ("/v1/events:retract", json!({"id": "ada", "messageId": "m", "where": "event == \"x\""})),
        ("/v1/events:retract", json!({"id": "ada", "messageId": "m", "preview": true})),
        ("/v1/events:retract", json!({"where": "event =="})),
        ("/v1/events:retract", json!({"where": "computed.spent > 2"})),
        ("/v1/events:retract", json!({"wher": "event == \"x\""})),
        ("/v1/identities:unlink", json!({"a": "ada"})),
        ("/v1/identities:unlink", json!(["ada", "bob"])),
    ] {
        let answer = post(&server, path, &body);
        assert_eq!(answer.status, 400, "{path} {body}: {}", answer.text());
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}", answer.text());
    }
    assert_eq!(post(&server, "/v1/identities:unlink", &json!({"a": "ada", "b": "ada"})).status, 404);
    // What never came cannot be taken back, and is not held against what comes; nor is it a call of the log.
    let never = json!({"id": "ada", "messageId": "m1"});
    let long = json!({"id": "x".repeat(256), "messageId": "m1"});
    for body in [&never, &long] {
        let answer = post(&server, "/v1/events:retract", body);
        assert_eq!(answer.status, 404, "{}", answer.text());
        assert!(answer.json()["detail"].as_str().expect("a detail").contains("was accepted"), "{}", answer.text());
    }
    let after = track(&server, 1, json!({"userId": "ada"}), "purchase", json!({}));
    assert_eq!(server.read(&format!("/v1/segments?after={after}"))["items"][0]["size"], 1);
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("thalweg_records_total{verdict=\"accepted\"} 1"), "{metrics}");
    assert!(!metrics.contains("unknown"), "{metrics}");
    assert_eq!(server.read("/v1/dead-letters")["items"], json!([]));
}
