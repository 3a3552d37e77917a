//! Servers told histories over HTTP, and all that they answer.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::{Value, json};
use server::record::Correction;

use crate::histories::{self, Random};
use crate::process::Server;

/// Sends a line of a history; gives the position.
pub(crate) fn send(server: &Server, line: &str) -> String {
    let call: Value = serde_json::from_str(line).expect("a line is JSON");
    let answer = match call["type"].as_str() {
        Some("clock") => server.write("/v1/clock", &json!({"to": call["to"]})),
        Some("retract") => correct(server, "events:retract", json!({"id": call["id"], "messageId": call["messageId"]})),
        Some("unlink") => correct(server, "identities:unlink", json!({"a": call["a"], "b": call["b"]})),
        _ => server.write("/v1/batch", &json!({"batch": [call]})),
    };
    answer["position"].as_str().expect("a position").to_owned()
}

/// A correction; what there is nothing of cannot be corrected, and changes nothing.
fn correct(server: &Server, what: &str, body: Value) -> Value {
    let answer = server.post(&format!("/v1/{what}"), body.to_string());
    match answer.status {
        200 => answer.json(),
        404 => server.read("/v1/segments")["as_of"].take(),
        _ => panic!("{what} {body}: {} {}", answer.status, answer.text()),
    }
}

/// A correction of the log as a line of a file.
pub(crate) fn corrected(correction: Correction) -> String {
    match correction {
        Correction::Retract(id, message_id) => {
            json!({"type": "retract", "id": id, "messageId": message_id}).to_string()
        }
        Correction::Unlink(a, b) => json!({"type": "unlink", "a": a, "b": b}).to_string(),
    }
}

/// Lines of some histories.
pub(crate) fn lines(random: &mut Random, histories: usize) -> Vec<String> {
    (0..histories).flat_map(|_| histories::history(random)).collect()
}

/// Whether a line is a call, and not a clock or a correction.
pub(crate) fn is_call(line: &str) -> bool {
    !["clock", "retract", "unlink"].iter().any(|kind| line.contains(&format!(r#""type":"{kind}""#)))
}

/// Lines of some histories without corrections.
pub(crate) fn uncorrected(random: &mut Random, histories: usize) -> Vec<String> {
    let mut lines = lines(random, histories);
    lines.retain(|line| is_call(line) || line.contains(r#""type":"clock""#));
    lines
}

/// What does not depend on where a record stands, nor on how far messages are on their way.
pub(crate) fn law(mut value: Value) -> Value {
    match &mut value {
        Value::Object(members) => {
            members.remove("position");
            if let Some(status) = members.get("status").and_then(Value::as_str) {
                let held = ["audience", "consent", "cap"].contains(&status);
                if members.contains_key("not_before") && !held {
                    members.insert("status".into(), "due".into());
                    members.insert("body".into(), Value::Null);
                }
            }
            members.values_mut().for_each(|of| *of = law(of.take()));
        }
        Value::Array(items) => {
            // What fell away before or after it was sent is no more than what became of messages.
            items.retain(|item| !is_fallen(item));
            items.iter_mut().for_each(|item| *item = law(item.take()));
        }
        _ => {}
    }
    value
}

/// All that can be asked of people and of everyone, by its path.
pub(crate) fn answers(server: &Server, after: &str) -> BTreeMap<String, (u16, Value)> {
    let mut paths: Vec<String> =
        ["segments", "journeys", "sessions", "sessions/summary", "identities/refused", "dead-letters"]
            .map(Into::into)
            .into();
    for id in ["a", "b", "c", "d", "e"] {
        paths.push(format!("profiles/{id}"));
        let views = ["events", "sessions", "touchpoints", "conversions", "intents", "segments/changes"];
        paths.extend(views.map(|view| format!("profiles/{id}/{view}")));
    }
    for list in ["segments", "journeys"] {
        for item in server.read(&format!("/v1/{list}"))["items"].as_array().expect("a list has items") {
            let name = item["name"].as_str().expect("a name");
            paths.push(format!("{list}/{name}"));
            paths.push(format!("{list}/{name}/{}", if list == "segments" { "members" } else { "due" }));
        }
    }
    paths.extend(["first_touch", "linear", "time_decay"].map(|model| format!("attribution?model={model}&by=campaign")));
    let fell = RefCell::new(Vec::new());
    let get = |path: &String| {
        let joint = if path.contains('?') { '&' } else { '?' };
        let answer = server.get(&format!("/v1/{path}{joint}after={after}"));
        let rows = answer.json()["items"].as_array().cloned().unwrap_or_default();
        fell.borrow_mut().extend(rows.iter().filter(|row| is_fallen(row)).map(|row| row["id"].clone()));
        (answer.status, law(answer.json()))
    };
    let mut all: BTreeMap<String, (u16, Value)> = paths.iter().map(|path| (path.clone(), get(path))).collect();
    all.insert(FELL.to_owned(), (0, json!({"ids": fell.take()})));
    all
}

/// Under this path stand the ids of intents that fell away before or after they were sent: the law may hold them back,
/// and what became of them is told instead.
const FELL: &str = "(fell)";

fn is_fallen(row: &Value) -> bool {
    matches!(row["status"].as_str(), Some("cancelled" | "revoked"))
}

pub(crate) fn assert_same(a: &BTreeMap<String, (u16, Value)>, b: &BTreeMap<String, (u16, Value)>, what: &str) {
    let fallen: Vec<&Value> = [a, b].into_iter().flat_map(|all| all[FELL].1["ids"].as_array().expect("ids")).collect();
    let standing = |(status, answer): &(u16, Value)| {
        let mut answer = answer.clone();
        if let Some(items) = answer["items"].as_array_mut() {
            items.retain(|item| !fallen.contains(&&item["id"]));
        }
        (*status, answer)
    };
    for (path, answer) in a.iter().filter(|(path, _)| *path != FELL) {
        assert_eq!(standing(answer), standing(&b[path]), "{path}, {what}");
    }
    assert_eq!(a.len(), b.len());
}
