//! What the stream must be: its configuration, and what stands against that in the one that a server echoes.
//!
//! Servers drop what they do not know without a word, and streams are also made by hand. So nothing is believed but
//! the echo: what is asked for must stand in it, and a field that is neither asked for nor free must be empty.

use serde_json::{Map, Value, json};

/// The log: one stream, so that one sequence orders all that decides an answer.
pub const STREAM: &str = "THALWEG";
/// Where events come in, from anyone who may publish there.
pub const EVENTS: &str = "thalweg.events";
/// Where the engine's own records stand: `thalweg.log.<kind>`. Nobody else should be allowed to publish there.
pub const LOG: &str = "thalweg.log";
/// Where calls stand as a log of files would hold them: bodies without who was erased, and what is left of calls.
pub const CALLS: &str = "thalweg.log.calls";
/// Where what is left of messages stands.
pub const REST: &str = "thalweg.log.rest";
/// Where calls go that were not taken.
pub const DEAD_LETTERS: &str = "thalweg.dead_letters";
/// The stream of triggers: theirs alone, since the log would only have to skip them.
pub const TRIGGER_STREAM: &str = "THALWEG_TRIGGERS";
/// Where triggers go: `thalweg.triggers.<campaign>`.
pub const TRIGGERS: &str = "thalweg.triggers";

/// So long the broker remembers message ids, ns: longer than anyone here tries again.
const DUPLICATE_WINDOW: u64 = 120_000_000_000;
/// So long triggers wait for those who were away, ns: intents expire long before.
const TRIGGERS_AGE_MAX: u64 = 7 * 86_400 * 1_000_000_000;

/// What may be as its owner likes: it tells, places and packs, or limits what is then refused aloud.
const FREE: [&str; 7] =
    ["description", "metadata", "placement", "compression", "max_bytes", "max_msgs", "max_msg_size"];

/// The stream as it is asked for. Single messages may be deleted, since erasure must; purges may not happen.
pub(super) fn wanted(replicas: u64) -> Value {
    json!({
        "name": STREAM,
        "subjects": [format!("{EVENTS}.>"), format!("{LOG}.*"), DEAD_LETTERS],
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "num_replicas": replicas,
        "duplicate_window": DUPLICATE_WINDOW,
        "allow_direct": true,
        "deny_purge": true,
        "max_age": 0,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_consumers": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
    })
}

/// The stream of triggers as it is asked for: one that is there already is left as it is.
pub(super) fn wanted_triggers(replicas: u64) -> Value {
    json!({
        "name": TRIGGER_STREAM,
        "subjects": [format!("{TRIGGERS}.>")],
        "retention": "limits",
        "discard": "old",
        "storage": "file",
        "num_replicas": replicas,
        "duplicate_window": DUPLICATE_WINDOW,
        "allow_direct": true,
        "max_age": TRIGGERS_AGE_MAX,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_consumers": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
    })
}

/// What in an echoed configuration is not as it was asked for, a sentence each.
pub(super) fn differences(wanted: &Value, is: &Map<String, Value>) -> Vec<String> {
    let wanted = wanted.as_object().expect("a configuration is an object");
    let asked = wanted.iter().filter(|(field, _)| !FREE.contains(&field.as_str())).filter_map(|(field, wanted)| {
        let is = is.get(field).unwrap_or(&Value::Null);
        (!same(wanted, is)).then(|| format!("its {field} is {is} and must be {wanted}"))
    });
    let strange = is
        .iter()
        .filter(|(field, is)| !wanted.contains_key(*field) && !FREE.contains(&field.as_str()) && !is_empty(is));
    asked.chain(strange.map(|(field, is)| format!("its {field} is {is} and must not be set"))).collect()
}

fn same(wanted: &Value, is: &Value) -> bool {
    let sorted = |list: &[Value]| {
        let mut texts: Vec<String> = list.iter().map(Value::to_string).collect();
        texts.sort_unstable();
        texts
    };
    match (wanted, is) {
        (Value::Array(wanted), Value::Array(is)) => sorted(wanted) == sorted(is),
        _ => wanted == is || is_empty(wanted) && is_empty(is),
    }
}

/// Whether a field says nothing: servers write out much that was never set.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_i64().is_some_and(|number| number <= 0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// A name as one token of a subject: what is no ASCII letter, digit, `_` or `-` becomes `%` and two hex digits, so that
/// other names have other tokens, and nobody's name is a wildcard.
pub fn token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => token.push(byte.into()),
            _ => token += &format!("%{byte:02X}"),
        }
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(change: impl FnOnce(&mut Map<String, Value>)) -> Vec<String> {
        let mut is = wanted(1).as_object().expect("an object").clone();
        change(&mut is);
        differences(&wanted(1), &is)
    }

    #[test]
    fn an_echo_is_held_against_what_was_asked_for() {
        assert_eq!(told(|_| ()), [""; 0]);
        // Free, in another order, or written out though never set.
        let harmless = json!({"max_bytes": 1_000_000, "metadata": {"a": "b"}, "sealed": false, "consumer_limits": {},
            "max_consumers": 0, "subjects": ["thalweg.dead_letters", "thalweg.log.*", "thalweg.events.>"]});
        assert_eq!(told(|is| is.extend(harmless.as_object().expect("an object").clone())), [""; 0]);
        let work_queue = told(|is| is["retention"] = "workqueue".into());
        assert_eq!(work_queue, [r#"its retention is "workqueue" and must be "limits""#]);
        assert_eq!(told(|is| drop(is.remove("allow_direct"))), ["its allow_direct is null and must be true"]);
        assert_eq!(told(|is| is["max_age"] = 1.into()), ["its max_age is 1 and must be 0"]);
        // What this version has never heard of may change what is kept.
        let strange = told(|is| drop(is.insert("forget_on_sunday".into(), true.into())));
        assert_eq!(strange, ["its forget_on_sunday is true and must not be set"]);
    }

    #[test]
    fn names_are_tokens_of_their_own() {
        assert_eq!(token("come_back"), "come_back");
        assert_eq!(token("a.b *>%é"), "a%2Eb%20%2A%3E%25%C3%A9");
        assert_ne!(token("a.b"), token("a%2Eb"));
    }
}
