//! Attribution kept up step by step, through late touches, retractions, merges and corrected values, held against exact
//! expectations that were made without the engine, after each step.

mod oracle;
mod run;

use std::collections::BTreeMap;

use dataflows::definitions::Model;
use dataflows::profile::sums::{Sought, Span};
use dataflows::total::Total;
use oracle::Oracle;
use run::totals::totals;
use run::{Run, Totals};
use serde_json::{Value, json};

/// By the rules of the fixture.
const DEFINITIONS: &str = r#"{"version":1,
"touchpoints":[{"event":"touch","channel":"properties.channel"}],
"conversions":[{"name":"conversion","event":"conversion","value":"properties.value"}],
"attribution":{"lookback":"3650d","reset_on_conversion":true,
  "models":["first_touch","last_touch","linear","position_based"]}}"#;

/// Models by the names of the fixture; conversions, or value.
const MODELS: [(&str, &str, bool); 5] = [
    ("first_touch", "first_touch", false),
    ("last_touch", "last_touch", false),
    ("linear_per_touch", "linear", false),
    ("linear_per_touch_value", "linear", true),
    ("position_40_20_40", "position_based", false),
];

/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000;
const DIRECT: &str = "(direct)";

/// A step, as lines of a replay file. Who sent an event that is taken back is known from when it came.
fn lines(step: &Value, senders: &mut BTreeMap<String, String>) -> Vec<String> {
    let op = &step["op"];
    let list = |key: &str| op[key].as_array().cloned().unwrap_or_default();
    // Events of one instant come in the order of their numbers.
    let message = |id: &Value| format!("d{:0>3}", id.as_str().expect("an id").trim_start_matches('d'));
    let retractions = list("event_ids").into_iter().chain(list("retract"));
    let mut lines: Vec<Value> = retractions
        .map(|id| json!({"type": "retract", "id": senders[&message(&id)], "messageId": message(&id)}))
        .collect();
    for event in list("events") {
        let user = event["user_id"].as_str().expect("a user").to_owned();
        let (id, at) = (message(&event["event_id"]), START + 1_000 * event["ts"].as_i64().expect("a time"));
        lines.push(json!({"type": "track", "event": event["type"], "userId": user, "messageId": id, "timestamp": at,
            "properties": {"channel": event["channel"], "value": event["value"]}}));
        senders.insert(id, user);
    }
    match op["kind"].as_str() {
        Some("merge") => lines.push(json!({"type": "alias", "userId": op["into"], "previousId": op["from"],
            "messageId": format!("merge of {}", op["from"]), "timestamp": START})),
        Some("erase") => lines.push(json!({"type": "erase", "id": op["user_id"]})),
        _ => assert!(!lines.is_empty(), "a step does something: {op}"),
    }
    lines.iter().map(Value::to_string).collect()
}

/// Holds what is counted over people against what a step must give.
fn assert_credit(totals: &Totals, expected: &Value, at: &str) {
    for (theirs, model, is_value) in MODELS {
        let mut wanted: BTreeMap<&str, f64> = BTreeMap::new();
        for (channel, sum) in expected[theirs].as_object().expect("a map of channels") {
            wanted.insert(channel, sum.as_f64().expect("a number"));
        }
        let mut found: BTreeMap<&str, f64> = BTreeMap::new();
        for (total, sum) in totals {
            match total {
                Total::CreditConversions(of, channel, _) if of == model && !is_value => {
                    found.insert(channel, *sum as f64 / 1e9)
                }
                Total::CreditValue(of, channel, _) if of == model && is_value => {
                    found.insert(channel, *sum as f64 / 1e9)
                }
                _ => None,
            };
        }
        for channel in found.keys().chain(wanted.keys()).filter(|channel| **channel != DIRECT) {
            let of = |sums: &BTreeMap<&str, f64>| sums.get(*channel).copied().unwrap_or(0.0);
            let (found, wanted) = (of(&found), of(&wanted));
            assert!((found - wanted).abs() < 1e-6, "{at}: {theirs} of {channel} is {found}, not {wanted}");
        }
    }
}

fn steps() -> Vec<Value> {
    let text = std::fs::read_to_string("tests/fixtures/delta_steps.json").expect("the fixture is there");
    let fixture: Value = serde_json::from_str(&text).expect("it is JSON");
    fixture["steps"].as_array().expect("steps").clone()
}

#[test]
fn the_engine_keeps_credit_up() {
    for workers in [1, 3] {
        let (mut run, mut senders) = (Run::start(DEFINITIONS, None, workers), BTreeMap::new());
        for (number, step) in steps().iter().enumerate() {
            let (at, expected) = (format!("step {number}, {workers} workers: {}", step["op"]), &step["expect"]);
            for line in lines(step, &mut senders) {
                assert!(run.push(&line).is_some(), "{at}");
            }
            let dump = run.dump().expect("it finishes");
            assert_credit(&dump.totals, expected, &at);
            let sought = Sought { model: Model::Linear, conversion: None, span: Span::default() };
            let basis = run.credit(sought).expect("it finishes");
            let wanted = ["conversions", "journeys"].map(|key| expected[key].as_u64().expect("a number"));
            assert_eq!([basis.with_touch, basis.with_touch + basis.null_paths], wanted, "{at}");
            assert!(run.verdicts.is_empty(), "{at}");
        }
    }
}

#[test]
fn the_oracle_agrees() {
    let (mut oracle, mut senders) = (Oracle::new(DEFINITIONS), BTreeMap::new());
    for (number, step) in steps().iter().enumerate() {
        let at = format!("step {number}: {}", step["op"]);
        lines(step, &mut senders).iter().for_each(|line| _ = oracle.push(line));
        let dump = oracle.dump();
        let rows = [&dump.profiles, &dump.sessions, &dump.segment_changes, &dump.intents, &dump.credit];
        assert_credit(&totals(rows), &step["expect"], &at);
    }
}
