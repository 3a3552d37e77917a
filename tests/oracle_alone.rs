//! Tests of the reference model itself, against expectations worked out by hand, and on random histories.

mod oracle;

use oracle::attribution::{decay, split, weights};
use oracle::condition::{self, Subject};
use oracle::json::{self, Json};
use oracle::value::Value;
use oracle::views::Root;
use oracle::{Oracle, number, sha256, story, time};
use std::collections::BTreeMap;

/// 2026-01-01T00:00:00Z.
const T: i64 = 1_767_225_600_000;
const MIN: i64 = 60_000;
const HOUR: i64 = 60 * MIN;
const DAY: i64 = 24 * HOUR;

fn call(kind: &str, ids: &str, message: &str, at: i64, rest: &str) -> String {
    format!(r#"{{"type":"{kind}",{ids},"messageId":"{message}","timestamp":{},{rest}}}"#, T + at)
}

fn track(user: &str, message: &str, at: i64, event: &str, properties: &str) -> String {
    let rest = format!(r#""event":"{event}","properties":{{{properties}}}"#);
    call("track", &format!(r#""userId":"{user}""#), message, at, &rest)
}

fn anonymous(id: &str, message: &str, at: i64, event: &str) -> String {
    call("track", &format!(r#""anonymousId":"{id}""#), message, at, &format!(r#""event":"{event}""#))
}

fn both(id: &str, user: &str, message: &str, at: i64) -> String {
    let ids = format!(r#""anonymousId":"{id}","userId":"{user}""#);
    call("track", &ids, message, at, r#""event":"x""#)
}

fn identify(user: &str, message: &str, at: i64, rest: &str) -> String {
    call("identify", &format!(r#""userId":"{user}""#), message, at, rest)
}

fn clock(at: i64) -> String {
    format!(r#"{{"type":"clock","to":{}}}"#, T + at)
}

fn run(definitions: &str, lines: &[String]) -> Oracle {
    let mut oracle = Oracle::new(definitions);
    for line in lines {
        oracle.push(line);
    }
    oracle
}

/// The values of some keys of each row; nested keys with dots.
fn pick(rows: &[String], keys: &[&str]) -> Vec<String> {
    let mut out = Vec::new();
    for row in rows {
        let json = json::parse(row).expect("a row is JSON");
        let value = |key: &&str| key.split('.').fold(&json, |at, part| at.get(part)).print();
        out.push(keys.iter().map(value).collect::<Vec<_>>().join(" "));
    }
    out
}

/// Flips in order of time: name, +/-, minutes after T, root's message.
fn flips(oracle: &Oracle) -> Vec<String> {
    let mut rows: Vec<(i64, String)> = Vec::new();
    for row in oracle.dump().segment_changes {
        let json = json::parse(&row).expect("a row is JSON");
        let at = json.get("at").integer().expect("at");
        let sign = if json.get("change").text() == Some("entered") { "+" } else { "-" };
        let name = json.get("segment").text().expect("a name").to_string();
        let root = json.get("root").get("messageId").text().expect("a root").to_string();
        rows.push((at, format!("{sign}{name} {} {root}", (at - T) / MIN)));
    }
    rows.sort();
    rows.into_iter().map(|(_, row)| row).collect()
}

/// A segment `s`.
fn segment(clause: &str) -> String {
    format!(r#"{{"segments":{{"s":{clause}}}}}"#)
}

fn profile(oracle: &Oracle, place: usize, key: &str) -> String {
    pick(&oracle.dump().profiles[place..place + 1], &[key]).remove(0)
}

// 2. Records, clock, acceptance.

#[test]
fn digests_and_intent_ids_are_right() {
    assert_eq!(&sha256::hex("abc")[..16], "ba7816bf8f01cfea");
    assert_eq!(&sha256::hex("")[..16], "e3b0c44298fc1c14");
    assert_eq!(&sha256::hex(&"a".repeat(1000))[..16], "41edece42d63e8d9");
    let root = Root { id: "user-0000042".to_string(), message_id: "e000000017".to_string() };
    assert_eq!(story::intent_id("come_back", &root, 1767240000000), "i_441d91dd2b3a37b2f7c125b0f90a8f56");
}

#[test]
fn times_are_read() {
    assert_eq!(time::rfc3339("2026-01-01T00:00:00Z"), Some(T));
    assert_eq!(time::rfc3339("2026-01-01T02:00:00.1239+02:00"), Some(T + 123));
    assert_eq!(time::rfc3339("2024-02-29T12:00:00Z"), Some(1_709_208_000_000));
    for bad in
        ["2025-02-29T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z"]
    {
        assert_eq!(time::rfc3339(bad), None, "{bad}");
    }
    assert_eq!(time::duration("90d"), Some(90 * DAY));
    assert_eq!(time::duration("250ms"), Some(250));
    assert_eq!(time::duration("1.5h"), None);
}

#[test]
fn acceptance_knows_every_verdict() {
    let mut oracle = Oracle::new("{}").with_lateness(Some(HOUR));
    assert_eq!(oracle.push(&track("u", "a", 0, "x", "")), "accepted");
    assert_eq!(oracle.push(&track("u", "a", 0, "x", "")), "duplicate");
    assert_eq!(oracle.push(&track("u", "a", 0, "y", "")), "conflict");
    assert_eq!(oracle.push(&track("u", "b", 2 * HOUR, "x", "")), "accepted");
    assert_eq!(oracle.push(&track("u", "c", HOUR, "x", "")), "accepted");
    assert_eq!(oracle.push(&track("u", "d", HOUR - 1, "x", "")), "too_late");
    assert_eq!(oracle.push(&track("u", "a", 0, "x", "")), "duplicate");
    assert_eq!(oracle.push("not json"), "invalid");
    assert_eq!(oracle.clock(), T + 2 * HOUR);
    assert_eq!(oracle.push(&clock(HOUR)), "");
    assert_eq!(oracle.clock(), T + 2 * HOUR);
    let report = oracle.report();
    assert!(report.starts_with(
        r#"{"read":8,"accepted":3,"duplicates":2,"rejected":{"too_late":1,"conflict":1,"refused_edge":0,"invalid":1,"erased":0},"profiles":1,"#
    ));
}

#[test]
fn invalid_records_are_refused() {
    let mut oracle = Oracle::new(r#"{"schemas":{"p":{"required":{"value":"number"},"optional":{"n":"string"}}}}"#);
    let bad = [
        r#"{"type":"track","event":"x","timestamp":1767225600000}"#,
        r#"{"type":"track","userId":"u","timestamp":1767225600000}"#,
        r#"{"type":"track","userId":"u","event":"x","timestamp":1767225600}"#,
        r#"{"type":"track","userId":"u","event":"x","timestamp":"1999-12-31T23:59:59Z"}"#,
        r#"{"type":"track","userId":"u","event":"x","timestamp":"2100-01-01T00:00:00Z"}"#,
        r#"{"type":"track","userId":"u","event":"x"}"#,
        r#"{"type":"track","userId":1.5,"event":"x","timestamp":1767225600000}"#,
        r#"{"type":"track","userId":"u","anonymousId":true,"event":"x","timestamp":1767225600000}"#,
        r#"{"type":"buy","userId":"u","event":"x","timestamp":1767225600000}"#,
        r#"{"type":"track","userId":"u","event":"x","timestamp":1767225600000,"properties":[]}"#,
        r#"{"type":"track","userId":"u","event":"x","timestamp":1767225600000,"properties":{"a":1e400}}"#,
        r#"{"type":"track","userId":"u","event":"x","timestamp":1767225600000,"properties":{"a":"\ud800"}}"#,
        r#"{"type":"track","userId":"u","event":"p","timestamp":1767225600000,"properties":{"value":"5"}}"#,
        r#"{"type":"track","userId":"u","event":"p","timestamp":1767225600000,"properties":{"value":5,"n":5}}"#,
    ];
    for line in bad {
        assert_eq!(oracle.push(line), "invalid", "{line}");
    }
    let long = "i".repeat(256);
    assert_eq!(oracle.push(&track(&long, "m", 0, "x", "")), "invalid");
    assert_eq!(oracle.push(&track(&long[1..], "m", 0, "x", "")), "accepted");
    assert_eq!(oracle.push(&track("u", "m", 0, "p", r#""value":5"#)), "accepted");
}

#[test]
fn duplicates_are_judged_as_json_values() {
    let mut oracle = Oracle::new("{}");
    let line = |user: &str, properties: &str, rest: &str| {
        format!(
            r#"{{"type":"track","userId":{user},"messageId":"m","event":"x","timestamp":{T},"properties":{properties}{rest}}}"#
        )
    };
    assert_eq!(oracle.push(&line(r#""7""#, r#"{"a":1.50,"b":[1,2]}"#, "")), "accepted");
    assert_eq!(
        oracle.push(&line("7", r#"{"b":[1.0,2],"a":15e-1}"#, r#","context":{"ip":"x"},"sentAt":"y""#)),
        "duplicate"
    );
    assert_eq!(oracle.push(&line("7", r#"{"a":1.5,"b":[2,1]}"#, "")), "conflict");
    assert_eq!(oracle.push(&line("7", r#"{"a":1.50,"b":[1,2]}"#, r#","anonymousId":"a""#)), "conflict");
    assert_eq!(oracle.push(&line("7", r#"{"a":1.50,"b":[1,2]}"#, r#","anonymousId":"""#)), "duplicate");
}

#[test]
fn a_missing_message_id_is_the_digest_of_the_line() {
    let line = r#"{"type":"track","userId":"u","event":"x","timestamp":1767225600000}"#;
    let oracle = run(&segment(r#"{"performed":"x"}"#), &[line.to_string()]);
    let wanted = format!("+s 0 line:{}", &sha256::hex(line)[..32]);
    assert_eq!(flips(&oracle), [wanted]);
}

#[test]
fn one_instant_orders_by_message_then_own_id() {
    let definitions = r#"{"traits":{"l":{"last":"properties.v","of":"x"}}}"#;
    let lines = [track("u", "b", 0, "x", r#""v":"b""#), track("u", "a", 0, "x", r#""v":"a""#)];
    assert_eq!(profile(&run(definitions, &lines), 0, "computed"), r#"{"l":"b"}"#);
}

// 3. Numbers and conditions.

#[test]
fn numbers_round_half_away_from_zero() {
    let cases = [
        ("0.0000005", Some(1)),
        ("-0.0000005", Some(-1)),
        ("0.00000049", Some(0)),
        ("1e3", Some(1_000_000_000)),
        ("12.3456785", Some(12_345_679)),
        ("9000000000000", Some(9_000_000_000_000_000_000)),
        ("9000000000000.000001", None),
        ("9e12", Some(9_000_000_000_000_000_000)),
        ("1e300", None),
        ("1e-300", Some(0)),
        ("-0.0", Some(0)),
    ];
    for (text, wanted) in cases {
        assert_eq!(number::millionths(text), wanted, "{text}");
    }
    assert_eq!(number::decimal(-1_500_000, 6), "-1.5");
    assert_eq!(number::decimal(333_333_333, 9), "0.333333333");
    assert_eq!(number::decimal(20_000_000, 6), "20");
    assert_eq!(number::quotient(5, 2), 3);
    assert_eq!(number::quotient(-5, 2), -3);
    assert_eq!(number::quotient(10, 3), 3);
    assert_eq!(number::plain("1.50e2"), "150");
}

fn judged(text: &str) -> bool {
    let properties =
        json::parse(r#"{"n":5,"s":"abc","t":true,"z":null,"l":["a",2],"Order ID":"o1","in":{"x":1},"big":1e15}"#);
    let (properties, none) = (properties.expect("JSON"), Json::Null);
    let told = BTreeMap::from([("plan".to_string(), Json::Text("pro".to_string()))]);
    let computed = BTreeMap::from([("k".to_string(), Value::Number(2_000_000)), ("e".to_string(), Value::Nothing)]);
    let subject = Subject {
        at: 1,
        event: Some("buy"),
        kind: Some("track"),
        properties: &properties,
        context: &none,
        told: &told,
        computed: &computed,
    };
    condition::parse(text).unwrap_or_else(|why| panic!("{why}")).is_true(&subject)
}

#[test]
fn conditions_that_are_true() {
    for text in [
        "event == 'buy'",
        "type == \"track\"",
        "properties.n == 5.0",
        "properties.n > 4 && properties.n <= 5",
        "properties.s < 'abd'",
        "properties.t",
        "!properties.n",
        "properties.missing != 3",
        "properties.s != 3",
        "!(properties.missing == 3)",
        "properties.s in ['x', \"abc\"]",
        "'a' in properties.l",
        "2 in properties.l",
        "has(properties.n) && !has(properties.z) && !has(properties.missing)",
        "properties.s.startsWith('ab') && properties.s.endsWith('bc') && properties.s.contains('b')",
        "properties[\"Order ID\"] == 'o1'",
        "properties.in.x == 1",
        "traits.plan == 'pro'",
        "computed.k >= 2",
        "false || true && true",
        "-1 < 0",
        "has(properties.big)",
    ] {
        assert!(judged(text), "{text}");
    }
}

#[test]
fn conditions_that_are_false() {
    for text in [
        "properties.n",
        "properties.s",
        "properties.missing == properties.missing",
        "properties.n == '5'",
        "properties.n < 'z'",
        "properties.t < true",
        "properties.z == false",
        "computed.e < 1",
        "computed.e >= 1",
        "has(computed.e)",
        "properties.n.contains('5')",
        "'5' in properties.s",
        "properties.big > 1",
        "!(event == 'buy') || false",
    ] {
        assert!(!judged(text), "{text}");
    }
}

#[test]
fn what_is_no_condition_is_refused() {
    for text in [
        "properties.n == null",
        "a.b == 1",
        "properties.n + 1 == 2",
        "properties.n ==",
        "1 < 2 < 3",
        "properties.l[0] == 1",
        "x(properties.n)",
        "properties.n in [properties.s]",
    ] {
        assert!(condition::parse(text).is_err(), "{text}");
    }
}

// 4. Identity.

#[test]
fn an_anonymous_id_links_to_its_earliest_user() {
    // Arrives last, dated first: the link moves from u2 to u1.
    let lines = [anonymous("a", "1", 0, "x"), both("a", "u2", "2", 20), both("a", "u1", "3", 10)];
    let dump = run("{}", &lines).dump();
    let wanted = [
        r#""u1" [{"id":"a","known":false},{"id":"u1","known":true}]"#.to_string(),
        r#""u2" [{"id":"u2","known":true}]"#.to_string(),
    ];
    assert_eq!(pick(&dump.profiles, &["id", "ids"]), wanted);
}

#[test]
fn aliases_join_and_the_least_known_id_is_public() {
    let alias = call("alias", r#""userId":"u","previousId":"b""#, "2", 5, r#""x":1"#);
    let dump = run("{}", &[anonymous("b", "1", 0, "x"), alias]).dump();
    assert_eq!(pick(&dump.profiles, &["id"]), [r#""u""#]);
    let dump = run("{}", &[anonymous("b", "1", 0, "x")]).dump();
    assert_eq!(pick(&dump.profiles, &["id", "visitor"]), [r#""b" ["first_time"]"#]);
}

#[test]
fn merge_protection_refuses_the_edge_and_keeps_the_event() {
    let mut oracle = Oracle::new(r#"{"identity":{"max_ids":2}}"#);
    assert_eq!(oracle.push(&both("a", "u", "1", 0)), "accepted");
    assert_eq!(oracle.push(&both("b", "u", "2", 1)), "refused_edge");
    assert_eq!(oracle.push(&both("a", "u", "3", 2)), "accepted");
    assert_eq!(oracle.push(&both("a", "v", "4", 3)), "accepted");
    assert_eq!(oracle.push(&anonymous("b", "5", 4, "x")), "accepted");
    let rows = pick(&oracle.dump().profiles, &["id"]);
    assert_eq!(rows, [r#""b""#, r#""u""#, r#""v""#]);
    assert!(oracle.report().contains(r#""accepted":5"#));
}

#[test]
fn an_edge_between_people_already_joined_is_never_refused() {
    let mut oracle = run("{}", &[both("a", "u", "1", 0)]);
    oracle.redefine(r#"{"identity":{"max_ids":1}}"#);
    assert_eq!(oracle.push(&both("a", "u", "2", -1)), "accepted");
    assert_eq!(oracle.push(&both("b", "u", "3", 1)), "refused_edge");
    // An anonymous id that moves to an earlier user makes that component of two.
    assert_eq!(oracle.push(&both("a", "v", "4", -2)), "refused_edge");
    assert_eq!(pick(&oracle.dump().profiles, &["id"]), [r#""u""#, r#""v""#]);
}

#[test]
fn unlink_strikes_the_edge_and_frees_the_anonymous_id() {
    let lines = [anonymous("a", "0", 0, "x"), both("a", "u", "1", 1), both("a", "v", "2", 2)];
    let mut oracle = run("{}", &lines);
    assert_eq!(pick(&oracle.dump().profiles, &["ids"]).len(), 2);
    oracle.push(r#"{"type":"unlink","a":"u","b":"a"}"#);
    let wanted = [r#""u" [{"id":"u","known":true}]"#, r#""v" [{"id":"a","known":false},{"id":"v","known":true}]"#];
    assert_eq!(pick(&oracle.dump().profiles, &["id", "ids"]), wanted);
}

#[test]
fn told_traits_take_the_latest_value_and_null_removes() {
    let lines = [
        identify("u", "2", 20, r#""traits":{"plan":"pro","old":null}"#),
        identify("u", "1", 10, r#""traits":{"plan":"free","old":1,"n":1.50}"#),
        call("group", r#""userId":"u""#, "3", 30, r#""traits":{"plan":"group"}"#),
    ];
    assert_eq!(profile(&run("{}", &lines), 0, "traits"), r#"{"n":1.5,"plan":"pro"}"#);
}

#[test]
fn an_identify_call_without_traits_has_those_of_its_context() {
    let lines = [
        identify("u", "1", 10, r#""context":{"traits":{"plan":"pro"}}"#),
        identify("u", "2", 20, r#""traits":{},"context":{"traits":{"age":7}}"#),
        identify("u", "3", 30, r#""traits":{"age":8},"context":{"traits":{"plan":"free"}}"#),
        call("group", r#""userId":"u""#, "4", 40, r#""context":{"traits":{"plan":"group"}}"#),
    ];
    assert_eq!(profile(&run("{}", &lines), 0, "traits"), r#"{"age":8,"plan":"pro"}"#);
}

#[test]
fn consent_is_the_latest_answer_since_it_last_changed() {
    let consent = |m: &str, at: i64, answers: &str| {
        let rest = format!(r#""context":{{"consent":{{"categoryPreferences":{{{answers}}}}}}}"#);
        identify("u", m, at, &rest)
    };
    let lines = [
        consent("1", 0, r#""marketing":true,"ads":true"#),
        consent("2", 1, r#""marketing":false"#),
        consent("3", 2, r#""marketing":true,"other":"yes""#),
        consent("4", 3, r#""marketing":true"#),
    ];
    let wanted =
        format!(r#"{{"ads":{{"granted":true,"since":{T}}},"marketing":{{"granted":true,"since":{}}}}}"#, T + 2);
    assert_eq!(profile(&run("{}", &lines), 0, "consent"), wanted);
}

// 5. Sessions and visitors.

#[test]
fn a_gap_of_exactly_thirty_minutes_stays_in() {
    let lines = [
        track("u", "1", 0, "x", ""),
        track("u", "2", 30 * MIN, "x", ""),
        identify("u", "3", 50 * MIN, r#""traits":{}"#),
        track("u", "4", 60 * MIN + 1, "x", ""),
    ];
    let oracle = run("{}", &lines);
    let rows = pick(&oracle.dump().sessions, &["start", "end", "events", "closed"]);
    let wanted = [format!("{T} {} 2 true", T + 30 * MIN), format!("{} {} 1 false", T + 60 * MIN + 1, T + 60 * MIN + 1)];
    assert_eq!(rows, wanted);
}

#[test]
fn a_session_closes_only_after_its_gap() {
    let mut oracle = run("{}", &[track("u", "1", 0, "x", ""), clock(30 * MIN)]);
    assert_eq!(pick(&oracle.dump().sessions, &["closed"]), ["false"]);
    assert_ne!(profile(&oracle, 0, "session"), "null");
    oracle.push(&clock(30 * MIN + 1));
    assert_eq!(pick(&oracle.dump().sessions, &["closed"]), ["true"]);
    assert_eq!(profile(&oracle, 0, "session"), "null");
}

#[test]
fn a_session_row_is_complete() {
    let definitions = r#"{"conversions":[{"name":"p","event":"buy","value":"properties.v"}]}"#;
    let user = r#""userId":"u""#;
    let lines = [
        track("u", "1", 0, "x", ""),
        call(
            "page",
            user,
            "2",
            1,
            r#""name":"Home","context":{"device":{"type":"ios"},"campaign":{"source":"g","name":"c"}}"#,
        ),
        call(
            "page",
            user,
            "3",
            2,
            r#""name":"N","context":{"page":{"path":"/p"},"os":{"name":"iOS"},"device":{"type":"web"}}"#,
        ),
        track("u", "4", 3, "buy", r#""v":12.50"#),
    ];
    let wanted = format!(
        concat!(
            r#"{{"profile":"u","id":{t},"start":{t},"end":{e},"events":4,"entry_page":"Home","exit_page":"/p","#,
            r#""device":{{"type":"ios","os":"iOS","browser":null}},"channel":"g","campaign":"c","conversions":1,"#,
            r#""value":"12.5","purpose":"buying","closed":false}}"#
        ),
        t = T,
        e = T + 3
    );
    assert_eq!(run(definitions, &lines).dump().sessions, [wanted]);
}

#[test]
fn purpose_is_buying_with_a_buying_event() {
    let rows = |definitions: &str| {
        pick(&run(definitions, &[track("u", "1", 0, "add_to_cart", "")]).dump().sessions, &["purpose"])
    };
    assert_eq!(rows("{}"), [r#""buying""#]);
    assert_eq!(rows(r#"{"sessions":{"buying":["other"]}}"#), [r#""browsing""#]);
}

#[test]
fn a_later_login_does_not_undo_yesterdays_first_time() {
    let lines = [anonymous("a", "1", 0, "x"), both("a", "u", "2", MIN)];
    let definitions = r#"{"segments":{"f":{"visitor":"first_time"},"k":{"visitor":"known"}}}"#;
    assert_eq!(flips(&run(definitions, &lines)), ["+f 0 1", "+k 1 2", "-f 1 2"]);
}

#[test]
fn paying_ends_with_a_whole_refund() {
    let definitions = r#"{"conversions":[{"name":"p","event":"buy","id":"properties.o","value":"properties.v",
        "refund":{"event":"refund","id":"properties.o"}}],"segments":{"s":{"visitor":"paying"}}}"#;
    let lines = [track("u", "1", 0, "buy", r#""o":1,"v":5"#), track("u", "2", MIN, "refund", r#""o":1.0"#)];
    assert_eq!(flips(&run(definitions, &lines)), ["+s 0 1", "-s 1 2"]);
}

// 6. Computed traits and segments.

#[test]
fn computed_traits_of_every_kind() {
    let definitions = r#"{"traits":{
        "count":{"count":["x","y"]}, "sum":{"sum":"properties.n","of":"x"}, "min":{"min":"properties.n","of":"x"},
        "max":{"max":"properties.n","of":"x"}, "avg":{"average":"properties.n","of":"x"},
        "first":{"first":"properties.v","of":"x"}, "last":{"last":"properties.v","of":"x"},
        "uniq":{"unique":"properties.v","of":"x"}, "most":{"most_frequent":"properties.v","of":"x"},
        "big":{"count":"x","where":"properties.n > 1"}, "none":{"average":"properties.n","of":"nothing"},
        "zero":{"sum":"properties.n","of":"nothing"}, "chained":{"count":"x","where":"computed.big >= 1"}}}"#;
    let lines = [
        track("u", "1", 0, "x", r#""n":1,"v":"b""#),
        track("u", "2", 1, "x", r#""n":2,"v":3"#),
        track("u", "3", 2, "x", r#""n":2,"v":[1]"#),
        track("u", "4", 3, "x", r#""n":"9","v":false"#),
        track("u", "5", 4, "x", r#""n":null,"v":null"#),
        track("u", "6", 5, "y", ""),
    ];
    let wanted = concat!(
        r#"{"avg":1.666667,"big":2,"chained":4,"count":6,"first":"b","last":false,"max":2,"min":1,"most":false,"#,
        r#""none":null,"sum":5,"uniq":3,"zero":0}"#
    );
    assert_eq!(profile(&run(definitions, &lines), 0, "computed"), wanted);
}

#[test]
fn session_traits_count_days_and_lengths() {
    let definitions = r#"{"traits":{"n":{"count":"session"},"e":{"sum":"events","of":"session"},
        "l":{"average":"length_ms","of":"session"},"d":{"unique":"day","of":"session"},"w":{"count":"session","within":"1d"}}}"#;
    let lines = [
        track("u", "1", 0, "x", ""),
        track("u", "2", 1000, "x", ""),
        track("u", "3", 5 * HOUR, "x", ""),
        track("u", "4", 25 * HOUR, "x", ""),
    ];
    // Sessions of 1000, 0 and 0 ms; the first began more than a day ago.
    assert_eq!(profile(&run(definitions, &lines), 0, "computed"), r#"{"d":2,"e":4,"l":333.333333,"n":3,"w":2}"#);
}

#[test]
fn a_window_runs_out_at_exactly_its_end_before_events() {
    let definitions = segment(r#"{"performed":"x","within":"10m"}"#);
    let lines = [track("u", "1", 0, "x", ""), track("u", "2", 10 * MIN, "x", ""), clock(20 * MIN)];
    assert_eq!(flips(&run(&definitions, &lines)), ["+s 0 1", "+s 10 2", "-s 10 1", "-s 20 2"]);
    let lines = [track("u", "1", 0, "x", ""), track("u", "2", 10 * MIN - 1, "x", ""), clock(19 * MIN)];
    assert_eq!(flips(&run(&definitions, &lines)), ["+s 0 1"]);
}

#[test]
fn windows_of_one_instant_are_one_item_with_the_last_event_as_root() {
    // x of minute 0 leaves its 10 minutes when y of minute 5 leaves its 5: the root is y.
    let definitions = r#"{"traits":{"t":{"count":"x","within":"10m"}},
        "segments":{"inner":{"performed":"y","within":"5m"},
                    "s":{"all":[{"trait":"t","exists":true},{"trait":"t","at_most":0},{"not":{"segment":"inner"}}]}}}"#;
    let lines = [track("u", "1", 0, "x", ""), track("u", "2", 5 * MIN, "y", ""), clock(HOUR)];
    assert_eq!(flips(&run(definitions, &lines)), ["+inner 5 2", "+s 10 2", "-inner 10 2"]);
}

#[test]
fn trait_clauses_test_computed_then_told() {
    let definitions = r#"{"traits":{"n":{"count":"x"}},"segments":{
        "a":{"trait":"n","at_least":2},"b":{"trait":"n","below":2},"c":{"trait":"plan","one_of":["pro",1]},
        "d":{"trait":"plan","exists":false},"e":{"trait":"n","equals":1.0},"f":{"trait":"plan","at_least":1}}}"#;
    let lines = [
        track("u", "1", 0, "x", ""),
        identify("u", "2", MIN, r#""traits":{"plan":"pro","n":50}"#),
        track("u", "3", 2 * MIN, "x", ""),
    ];
    assert_eq!(
        flips(&run(definitions, &lines)),
        ["+b 0 1", "+d 0 1", "+e 0 1", "+c 1 2", "-d 1 2", "+a 2 3", "-b 2 3", "-e 2 3"]
    );
}

#[test]
fn times_and_absence() {
    let definitions = r#"{"segments":{"a":{"performed":"x","times":{"exactly":1}},"b":{"not_performed":"x"},
        "c":{"performed":"x","times":2,"where":"properties.v > 1"}}}"#;
    let lines = [
        track("u", "1", 0, "y", ""),
        track("u", "2", MIN, "x", r#""v":2"#),
        track("u", "3", 2 * MIN, "x", r#""v":1"#),
        track("u", "4", 3 * MIN, "x", r#""v":3"#),
    ];
    assert_eq!(flips(&run(definitions, &lines)), ["+b 0 1", "+a 1 2", "-b 1 2", "-a 2 3", "+c 3 4"]);
}

#[test]
fn sequence_steps_are_strictly_within_their_spans() {
    let definitions = segment(r#"{"sequence":[{"performed":"x"},{"performed":"y","times":2,"within":"10m"}]}"#);
    let lines =
        |last: i64| [track("u", "1", 0, "x", ""), track("u", "2", MIN, "y", ""), track("u", "3", last, "y", "")];
    assert_eq!(flips(&run(&definitions, &lines(10 * MIN - 1))), ["+s 9 3"]);
    assert!(flips(&run(&definitions, &lines(10 * MIN))).is_empty());
    // The span of the first step is from its first event to its last; events are distinct.
    let definitions = segment(r#"{"sequence":[{"performed":"y","times":2,"within":"5m"},{"performed":"y"}]}"#);
    let lines = [track("u", "1", 0, "y", ""), track("u", "2", 5 * MIN, "y", ""), track("u", "3", 6 * MIN, "y", "")];
    assert!(flips(&run(&definitions, &lines)).is_empty());
    let more = [lines.to_vec(), vec![track("u", "4", 7 * MIN, "y", "")]].concat();
    assert_eq!(flips(&run(&definitions, &more)), ["+s 7 4"]);
}

#[test]
fn sequences_look_at_every_way_not_only_the_first() {
    // The first x is too old for y, the second is not.
    let definitions = segment(r#"{"sequence":[{"performed":"x"},{"performed":"y","within":"10m"}]}"#);
    let lines = [track("u", "1", 0, "x", ""), track("u", "2", 15 * MIN, "x", ""), track("u", "3", 20 * MIN, "y", "")];
    assert_eq!(flips(&run(&definitions, &lines)), ["+s 20 3"]);
}

#[test]
fn a_sequence_ends_with_an_absence() {
    let definitions =
        segment(r#"{"sequence":[{"performed":"v","times":2},{"not_performed":"c","within":"30m"}],"recent":"1h"}"#);
    let lines = [track("u", "1", 0, "v", ""), track("u", "2", 5 * MIN, "v", ""), clock(3 * HOUR)];
    assert_eq!(flips(&run(&definitions, &lines)), ["+s 35 2", "-s 95 2"]);
    // A c at the very end of the span comes too late, one before it prevents.
    let with = |at: i64| [lines[0].clone(), lines[1].clone(), track("u", "3", at, "c", ""), clock(36 * MIN)];
    assert_eq!(flips(&run(&definitions, &with(35 * MIN))), ["+s 35 2"]);
    assert!(flips(&run(&definitions, &with(35 * MIN - 1))).is_empty());
    // One before the last v prevents nothing.
    assert_eq!(flips(&run(&definitions, &with(4 * MIN))), ["+s 35 2"]);
    // A c of the same instant counts when it comes after in event order.
    assert!(flips(&run(&definitions, &with(5 * MIN))).is_empty());
}

#[test]
fn sessions_clause_counts_starts_in_its_window() {
    let definitions = segment(r#"{"sessions":{"at_least":2,"within":"3h"}}"#);
    let lines =
        [track("u", "1", 0, "x", ""), track("u", "2", MIN, "x", ""), track("u", "3", 2 * HOUR, "x", ""), clock(DAY)];
    assert_eq!(flips(&run(&definitions, &lines)), ["+s 120 3", "-s 180 1"]);
}

// 7. Journeys.

const CART: &str = r#"{"journeys":{"cart":{"start":"shopping","states":{
    "shopping":{"transitions":[{"event":"add","to":"carted"}]},
    "carted":{"transitions":[{"event":"buy","to":"bought"},{"event":"check","to":"check"}],
              "timers":[{"after":"4h","since":"add","emit":"left","to":"gone"}]},
    "check":{"transitions":[{"event":"buy","to":"bought"}],"timers":[{"after":"4h","since":"add","emit":"left","to":"gone"}]},
    "bought":{},"gone":{"transitions":[{"event":"add","to":"carted"}]}}}},
    "segments":{"lost":{"journey":"cart","state":"gone"},"left":{"performed":"left"}},
    "campaigns":{"back":{"when":{"journey":"cart","state":"gone"}},"ev":{"when":{"event":"left","where":"properties.from == 'check'"}},
                 "in":{"when":{"segment":"lost"}},"start":{"when":{"journey":"cart","state":"shopping"}}}}"#;

fn intents(oracle: &Oracle) -> Vec<String> {
    let rows = oracle.dump().intents;
    let mut rows = pick(&rows, &["campaign", "at", "cause.kind", "cause.root.messageId", "status"]);
    rows.sort();
    rows.into_iter().map(|row| row.replace('"', "")).collect()
}

#[test]
fn a_timer_waits_since_the_latest_event_even_before_entry() {
    let lines = [track("u", "1", 0, "add", ""), track("u", "2", HOUR, "check", ""), clock(4 * HOUR - 1)];
    let mut oracle = run(CART, &lines);
    let wanted = format!(
        r#"{{"cart":{{"deadlines":[{{"at":{},"emit":"left","to":"gone"}}],"since":{},"state":"check"}}}}"#,
        T + 4 * HOUR,
        T + HOUR
    );
    assert_eq!(profile(&oracle, 0, "journeys"), wanted);
    oracle.push(&clock(4 * HOUR));
    assert_eq!(flips(&oracle), ["+left 240 1", "+lost 240 1"]);
    let at = T + 4 * HOUR;
    assert_eq!(
        intents(&oracle),
        [format!("back {at} journey 1 due"), format!("ev {at} event 1 due"), format!("in {at} segment 1 due")]
    );
}

#[test]
fn an_event_at_the_deadline_comes_too_late() {
    let buy = |at: i64| run(CART, &[track("u", "1", 0, "add", ""), track("u", "2", at, "buy", "")]);
    assert_eq!(profile(&buy(4 * HOUR - 1), 0, "journeys.cart.state"), r#""bought""#);
    assert_eq!(profile(&buy(4 * HOUR), 0, "journeys.cart.state"), r#""gone""#);
}

#[test]
fn the_start_state_fires_nothing_and_the_first_event_moves_on() {
    let oracle = run(CART, &[track("u", "1", 0, "add", "")]);
    assert_eq!(profile(&oracle, 0, "journeys.cart.state"), r#""carted""#);
    assert!(intents(&oracle).is_empty());
}

#[test]
fn anchors_entry_and_any_event() {
    let definitions = r#"{"journeys":{"j":{"start":"a","states":{
        "a":{"timers":[{"after":"1h","since":"any_event","emit":"idle"},{"after":"3h","to":"b"}]},"b":{}}}},
        "segments":{"s":{"performed":"idle","times":2}}}"#;
    let lines = [
        identify("u", "0", 0, r#""traits":{}"#),
        track("u", "1", 10 * MIN, "x", ""),
        track("u", "2", 30 * MIN, "x", ""),
        identify("u", "3", 60 * MIN, r#""traits":{}"#),
        track("u", "4", 100 * MIN, "x", ""),
        clock(DAY),
    ];
    // Idle at minutes 90 and 160; the stay ends three hours after the entry at 0.
    let oracle = run(definitions, &lines);
    assert_eq!(flips(&oracle), ["+s 160 4"]);
    assert_eq!(profile(&oracle, 0, "journeys.j.since"), (T + 3 * HOUR).to_string());
}

#[test]
fn a_deadline_that_is_not_later_than_the_entry_is_not_armed() {
    let definitions = r#"{"journeys":{"j":{"start":"a","states":{"a":{"transitions":[{"event":"x","to":"b"}]},
        "b":{"timers":[{"after":"10m","since":"y","to":"c"}]},"c":{}}}}}"#;
    let state = |entry: i64| {
        let lines = [track("u", "1", 0, "y", ""), track("u", "2", entry, "x", ""), clock(DAY)];
        profile(&run(definitions, &lines), 0, "journeys.j.state")
    };
    assert_eq!(state(10 * MIN - 1), r#""c""#);
    assert_eq!(state(10 * MIN), r#""b""#);
    assert_eq!(state(10 * MIN + 1), r#""b""#);
}

#[test]
fn one_event_takes_one_transition_the_first_listed() {
    let definitions = r#"{"journeys":{"j":{"start":"a","states":{
        "a":{"transitions":[{"event":"x","where":"properties.v == 1","to":"b"},{"event":"x","segment":"s","to":"c"},{"event":"x","to":"a"}]},
        "b":{"transitions":[{"event":"x","to":"c"}]},"c":{}}}},
        "segments":{"s":{"performed":"x","times":2}},"campaigns":{"again":{"when":{"journey":"j","state":"a"}}}}"#;
    let state =
        |v: i64| profile(&run(definitions, &[track("u", "1", 0, "x", &format!(r#""v":{v}"#))]), 0, "journeys.j.state");
    assert_eq!(state(1), r#""b""#);
    assert_eq!(state(2), r#""a""#);
    // The segment is judged as of the event that would move: the second x is already counted.
    let oracle = run(definitions, &[track("u", "1", 0, "x", ""), track("u", "2", 1, "x", "")]);
    assert_eq!(profile(&oracle, 0, "journeys.j.state"), r#""c""#);
    assert_eq!(intents(&oracle), [format!("again {T} journey 1 due")]);
}

#[test]
fn timers_of_one_instant_go_by_journey_then_as_listed_until_one_moves() {
    let definitions = r#"{"journeys":{
        "a":{"start":"s","states":{"s":{"timers":[{"after":"1h","emit":"e1"},{"after":"1h","emit":"e2","to":"t"},{"after":"1h","emit":"e3"}]},"t":{}}},
        "b":{"start":"s","states":{"s":{"transitions":[{"event":"e1","to":"t"}],"timers":[{"after":"1h","emit":"e4"}]},"t":{}}}},
        "segments":{"e1":{"performed":"e1"},"e2":{"performed":"e2"},"e3":{"performed":"e3"},"e4":{"performed":"e4"}}}"#;
    let oracle = run(definitions, &[track("u", "1", 0, "x", ""), clock(HOUR)]);
    assert_eq!(flips(&oracle), ["+e1 60 1", "+e2 60 1", "+e4 60 1"]);
    assert_eq!(profile(&oracle, 0, "journeys.b.state"), r#""t""#);
}

#[test]
fn emitted_events_are_no_activity() {
    let definitions = r#"{"traits":{"n":{"count":"e"}},"journeys":{"a":{"start":"s","states":{"s":{"timers":[{"after":"1m","emit":"e","to":"t"}]},"t":{}}}},
        "conversions":[{"name":"c","event":"e"}],"segments":{"s":{"performed":"e","within":"5m"}}}"#;
    let oracle = run(definitions, &[track("u", "1", 0, "x", ""), clock(HOUR)]);
    assert_eq!(profile(&oracle, 0, "computed"), r#"{"n":0}"#);
    assert_eq!(pick(&oracle.dump().sessions, &["events", "conversions"]), ["1 0"]);
    assert_eq!(flips(&oracle), ["+s 1 1", "-s 6 1"]);
}

#[test]
#[should_panic(expected = "cycle")]
fn a_journey_may_not_wait_for_what_it_emits() {
    Oracle::new(
        r#"{"journeys":{"a":{"start":"s","states":{"s":{"transitions":[{"event":"e","to":"s"}],"timers":[{"after":"1m","emit":"e"}]}}}}}"#,
    );
}

// 8. Campaigns and intents.

#[test]
fn an_intent_row_is_complete() {
    let definitions =
        r#"{"campaigns":{"c":{"when":{"event":"x"},"channel":"popup","data":{"b":1,"a":"t"},"hold":"5m"}}}"#;
    let oracle = run(definitions, &[track("u", "m", 0, "x", "")]);
    let id = story::intent_id("c", &Root { id: "u".to_string(), message_id: "m".to_string() }, T);
    let wanted = format!(
        concat!(
            r#"{{"id":"{}","campaign":"c","profile":"u","at":{},"not_before":{},"cause":{{"kind":"event","#,
            r#""root":{{"id":"u","messageId":"m"}}}},"channel":"popup","status":"due","variant":null,"body":null,"#,
            r#""data":{{"a":"t","b":1}}}}"#
        ),
        id,
        T,
        T + 5 * MIN
    );
    assert_eq!(oracle.dump().intents, [wanted]);
}

#[test]
fn gates_go_in_order_as_of_the_item() {
    let definitions = r#"{"segments":{"vip":{"performed":"x","times":2}},
        "campaigns":{"c":{"when":{"event":"x"},"audience":"vip","consent":"m","cap":{"at_most":1,"per":"1h"}}}}"#;
    let yes = r#""event":"x","context":{"consent":{"categoryPreferences":{"m":true}}}"#;
    let lines = [
        track("u", "1", 0, "x", ""),
        track("u", "2", MIN, "x", ""),
        call("track", r#""userId":"u""#, "3", 2 * MIN, yes),
        track("u", "4", 3 * MIN, "x", ""),
        track("u", "5", 62 * MIN, "x", ""),
    ];
    let mut statuses = pick(&run(definitions, &lines).dump().intents, &["at", "status"]);
    statuses.sort();
    let wanted = [(0, "audience"), (1, "consent"), (2, "due"), (3, "cap"), (62, "due")];
    assert_eq!(statuses, wanted.map(|(at, status)| format!(r#"{} "{status}""#, T + at * MIN)));
}

#[test]
fn a_cap_over_a_tag_counts_by_priority() {
    let definitions = r#"{"campaigns":{
        "a":{"when":{"event":"x"},"tags":["t"],"cap":{"at_most":1,"per":"1d","tag":"t"}},
        "b":{"when":{"event":"x"},"tags":["t"],"priority":5,"cap":{"at_most":1,"per":"1d","tag":"t"}},
        "free":{"when":{"event":"y"},"tags":["t"]}}}"#;
    let lines = [track("u", "1", 0, "x", "")];
    assert_eq!(intents(&run(definitions, &lines)), [format!("a {T} event 1 cap"), format!("b {T} event 1 due")]);
    let lines = [track("u", "0", -MIN, "y", ""), track("u", "1", 0, "x", "")];
    let rows = intents(&run(definitions, &lines));
    assert_eq!(rows[..2], [format!("a {T} event 1 cap"), format!("b {T} event 1 cap")]);
}

#[test]
fn quiet_hours_move_to_their_end() {
    let definitions = |zone: &str| {
        format!(
            r#"{{"timezone":"{zone}","campaigns":{{"c":{{"when":{{"event":"x"}},"quiet_hours":{{"from":"22:00","to":"08:00"}}}}}}}}"#
        )
    };
    let moved = |zone: &str, at: i64| {
        let rows = run(&definitions(zone), &[track("u", "1", at, "x", "")]).dump().intents;
        pick(&rows, &["not_before"])[0].parse::<i64>().expect("a time") - T
    };
    assert_eq!(moved("UTC", 0), 8 * HOUR);
    assert_eq!(moved("UTC", 8 * HOUR), 8 * HOUR);
    assert_eq!(moved("UTC", 22 * HOUR), 32 * HOUR);
    assert_eq!(moved("UTC", 22 * HOUR - 1), 22 * HOUR - 1);
    assert_eq!(moved("+02:00", 0), 6 * HOUR);
    assert_eq!(moved("Etc/GMT+3", 0), 0);
}

#[test]
fn the_zone_comes_from_the_trait_then_the_context() {
    let definitions = r#"{"campaigns":{"c":{"when":{"event":"x"},"quiet_hours":{"from":"22:00","to":"08:00"}}}}"#;
    let moved = |lines: &[String]| pick(&run(definitions, lines).dump().intents, &["not_before"]).remove(0);
    let context = call("track", r#""userId":"u""#, "2", 0, r#""event":"x","context":{"timezone":"+04:00"}"#);
    assert_eq!(moved(std::slice::from_ref(&context)), (T + 4 * HOUR).to_string());
    let told = identify("u", "1", -1, r#""traits":{"timezone":"+01:00"}"#);
    assert_eq!(moved(&[told, context]), (T + 7 * HOUR).to_string());
}

#[test]
fn schedules_take_everyone_in_the_segment_after_the_events_of_that_instant() {
    let definitions = r#"{"segments":{"s":{"performed":"x"}},"campaigns":{
        "once":{"when":{"at":"2026-01-01T01:00:00Z","segment":"s"}},
        "weekly":{"when":{"every":"7d","from":"2025-12-01T00:00:00Z","segment":"s"}}}}"#;
    let lines = [track("u", "1", HOUR, "x", ""), clock(15 * DAY)];
    // Mondays: 5 and 12 January.
    let row = |name: &str, at: i64| format!("{name} {} schedule  due", T + at);
    let wanted = [row("once", HOUR), row("weekly", 4 * DAY), row("weekly", 11 * DAY)];
    assert_eq!(intents(&run(definitions, &lines)), wanted);
}

#[test]
fn equal_campaign_root_and_instant_are_one_intent() {
    // Two emitted events with the root of one entry.
    let definitions = r#"{"journeys":{"a":{"start":"s","states":{"s":{"timers":[{"after":"1m","emit":"e"},{"after":"1m","emit":"e"}]}}}},
        "campaigns":{"c":{"when":{"event":"e"}}}}"#;
    let oracle = run(definitions, &[track("u", "1", 0, "x", ""), clock(HOUR)]);
    assert_eq!(intents(&oracle), [format!("c {} event 1 due", T + MIN)]);
}

// 9. Attribution.

fn touch(channel: &str) -> oracle::views::Touch {
    oracle::views::Touch { channel: channel.to_string(), campaign: "c".to_string() }
}

#[test]
fn credit_splits_exactly() {
    assert_eq!(split(1_000_000_000, &[1, 1, 1]), [333_333_333, 333_333_333, 333_333_334]);
    assert_eq!(split(10, &[0, 1]), [0, 10]);
    assert_eq!(decay(0, 7 * DAY), 1 << 40);
    assert_eq!(decay(7 * DAY, 7 * DAY), 1 << 39);
    assert_eq!(decay(41 * 7 * DAY, 7 * DAY), 0);
    assert_eq!(decay(40 * 7 * DAY, 7 * DAY), 1);
    // Half a half-life: floor(C_1 / 2^22).
    assert_eq!(decay(7 * DAY / 2, 7 * DAY), 3260954456333195553i128 >> 22);
}

#[test]
fn every_rule_model_has_its_weights() {
    let (a, d) = (touch("a"), touch("direct"));
    let path = [&a, &a, &a, &d];
    let of = |model: &str| weights(model, &path, &[0, 0, 0, 0], 1);
    assert_eq!(of("first_touch"), [1, 0, 0, 0]);
    assert_eq!(of("last_touch"), [0, 0, 0, 1]);
    assert_eq!(of("last_non_direct"), [0, 0, 1, 0]);
    assert_eq!(of("linear"), [1, 1, 1, 1]);
    assert_eq!(of("position_based"), [4, 1, 1, 4]);
    assert_eq!(weights("position_based", &path[..2], &[0, 0], 1), [1, 1]);
    assert_eq!(weights("last_non_direct", &[&d, &d], &[0, 0], 1), [0, 1]);
}

fn shop(attribution: &str) -> String {
    format!(
        r#"{{"touchpoints":[{{"event":"click","where":"properties.ch != 'none'","channel":"properties.ch","campaign":"properties.c"}},{{"event":"mail","channel":"\"email\""}}],
        "conversions":[{{"name":"p","event":"buy","id":"properties.o","value":"properties.v","refund":{{"event":"refund","id":"properties.o","value":"properties.v"}}}}],
        "attribution":{{{attribution}}}}}"#
    )
}

fn credit(attribution: &str, lines: &[String]) -> Vec<String> {
    let rows = run(&shop(attribution), lines).dump().credit;
    let keys = ["conversion.messageId", "touch.messageId", "channel", "campaign", "conversions", "value"];
    pick(&rows, &keys).into_iter().map(|row| row.replace('"', "")).collect()
}

#[test]
fn lookback_is_closed_at_both_ends_and_later_touches_of_the_instant_count() {
    let lines = [
        track("u", "1", -1, "click", r#""ch":"old""#),
        track("u", "2", 0, "click", r#""ch":"a","c":"k""#),
        track("u", "3", HOUR, "buy", r#""v":10"#),
        track("u", "4", HOUR, "mail", ""),
    ];
    let wanted = ["3 2 a k 0.5 5", "3 4 email (not set) 0.5 5"];
    assert_eq!(credit(r#""lookback":"1h","models":["linear","markov"]"#, &lines), wanted);
}

#[test]
fn without_a_touch_credit_is_direct() {
    let lines = [track("u", "1", 0, "buy", r#""v":2.5"#), track("u", "2", 1, "click", r#""ch":"none""#)];
    assert_eq!(credit(r#""models":["last_touch"]"#, &lines), ["1 null (direct) (not set) 1 2.5"]);
}

#[test]
fn conversions_count_once_per_id_and_refunds_reduce_them() {
    let lines = [
        track("u", "0", -2, "refund", r#""o":"A","v":1"#),
        track("u", "1", 0, "buy", r#""o":"A","v":10"#),
        track("u", "2", 1, "buy", r#""o":"A","v":99"#),
        track("u", "3", 2, "buy", r#""v":-5"#),
        track("u", "4", 3, "buy", r#""o":"B","v":4"#),
        track("u", "5", 4, "refund", r#""o":"B","v":7"#),
        track("u", "6", 5, "refund", r#""o":"A","v":2.25"#),
    ];
    let wanted = ["1 null (direct) (not set) 1 6.75", "3 null (direct) (not set) 1 0"];
    assert_eq!(credit(r#""models":["linear"]"#, &lines), wanted);
}

#[test]
fn reset_and_path_max_cut_the_path() {
    let lines = [
        track("u", "1", 0, "click", r#""ch":"a""#),
        track("u", "2", 1, "buy", ""),
        track("u", "3", 2, "click", r#""ch":"b""#),
        track("u", "4", 3, "click", r#""ch":"c""#),
        track("u", "5", 4, "buy", ""),
    ];
    let first = r#""models":["first_touch"]"#;
    assert_eq!(credit(first, &lines), ["2 1 a (not set) 1 0", "5 1 a (not set) 1 0"]);
    let reset = format!(r#"{first},"reset_on_conversion":true"#);
    assert_eq!(credit(&reset, &lines), ["2 1 a (not set) 1 0", "5 3 b (not set) 1 0"]);
    let cut = format!(r#"{first},"path_max":1"#);
    assert_eq!(credit(&cut, &lines), ["2 1 a (not set) 1 0", "5 4 c (not set) 1 0"]);
}

#[test]
fn utm_fields_are_touches_unless_switched_off() {
    let page =
        call("page", r#""userId":"u""#, "1", 0, r#""context":{"campaign":{"source":"g","medium":"cpc","name":"n"}}"#);
    let lines = [page, track("u", "2", 1, "buy", "")];
    assert_eq!(credit(r#""models":["linear"]"#, &lines), ["2 1 cpc n 1 0"]);
    assert_eq!(credit(r#""models":["linear"],"utm":false"#, &lines), ["2 null (direct) (not set) 1 0"]);
}

#[test]
fn the_report_adds_up_keys() {
    let definitions = shop(r#""models":["linear"]"#);
    let lines = [
        track("u", "1", 0, "click", r#""ch":"b""#),
        track("u", "2", 1, "click", r#""ch":"a""#),
        track("u", "3", 2, "buy", r#""v":1"#),
        track("v", "4", 3, "buy", r#""v":3"#),
    ];
    let report = json::parse(&run(&definitions, &lines).report()).expect("JSON");
    let wanted = concat!(
        r#"[{"campaign":"(not set)","channel":"(direct)","conversions":"1","value":"3"},"#,
        r#"{"campaign":"(not set)","channel":"a","conversions":"0.5","value":"0.5"},"#,
        r#"{"campaign":"(not set)","channel":"b","conversions":"0.5","value":"0.5"}]"#
    );
    assert_eq!(report.get("attribution").get("linear").print(), wanted);
    assert_eq!(report.get("sessions").print(), r#"{"count":2,"events":4,"length_ms":2}"#);
}

// 11. Corrections.

fn erase(id: &str) -> String {
    format!(r#"{{"type":"erase","id":"{id}"}}"#)
}

/// The ids of each profile, joined.
fn ids(oracle: &Oracle) -> Vec<String> {
    let profiles = oracle.dump().profiles;
    let of = |row: &String| {
        let json = json::parse(row).expect("a row is JSON");
        let ids = json.get("ids").list().expect("ids").iter().map(|id| id.get("id").text().expect("an id").to_string());
        ids.collect::<Vec<_>>().join("+")
    };
    profiles.iter().map(of).collect()
}

#[test]
fn a_retracted_event_leaves_every_view_but_stays_a_key() {
    let mut oracle =
        run(&segment(r#"{"performed":"x"}"#), &[track("u", "1", 0, "y", ""), track("u", "2", MIN, "x", "")]);
    let before = oracle.dump();
    for _ in 0..2 {
        oracle.push(r#"{"type":"retract","id":"u","messageId":"2"}"#);
        assert!(flips(&oracle).is_empty());
    }
    assert_eq!(oracle.push(&track("u", "2", MIN, "x", "")), "duplicate");
    assert_eq!(oracle.clock(), T + MIN);
    assert_ne!(before, oracle.dump());
    oracle.push(r#"{"type":"retract","id":"u","messageId":"1"}"#);
    assert!(oracle.dump().profiles.is_empty());
}

#[test]
fn an_erased_person_is_as_if_never_seen() {
    let lines = [both("a", "u", "1", 0), both("a", "v", "2", MIN), anonymous("a", "3", 2 * MIN, "x")];
    let mut oracle = run("{}", &lines);
    oracle.push(r#"{"type":"erase","id":"a"}"#);
    assert_eq!(pick(&oracle.dump().profiles, &["ids"]), [r#"[{"id":"v","known":true}]"#]);
    assert_eq!(oracle.push(&anonymous("a", "9", 2 * MIN, "x")), "erased");
    assert_eq!(oracle.push(&track("u", "1", 0, "x", "")), "erased");
    // A later one starts a new person: v's old event no longer bears the id.
    assert_eq!(oracle.push(&anonymous("a", "10", 2 * MIN + 1, "x")), "accepted");
    assert_eq!(pick(&oracle.dump().profiles, &["id"]), [r#""a""#, r#""v""#]);
    assert_eq!(oracle.push(r#"{"type":"erase","id":"nobody"}"#), "");
}

#[test]
fn a_link_to_an_erased_id_that_is_dated_before_makes_no_edge() {
    let mut oracle = run("{}", &[anonymous("a", "1", 0, "x"), track("v", "2", MIN, "x", "")]);
    oracle.push(&erase("a"));
    // It was under way when a was erased: v is not erased for it.
    assert_eq!(oracle.push(&both("a", "v", "3", MIN)), "accepted");
    assert_eq!(ids(&oracle), ["v"]);
    assert_eq!(oracle.push(&anonymous("a", "4", MIN + 1, "x")), "accepted");
    assert_eq!(ids(&oracle), ["a", "v"]);
    assert_eq!(oracle.push(&both("a", "v", "5", MIN + 1)), "accepted");
    assert_eq!(ids(&oracle), ["a+v"]);
}

#[test]
fn a_shared_device_goes_with_the_person_who_claimed_it() {
    let lines = [
        both("tablet", "u", "1", 0),
        both("tablet", "v", "2", MIN),
        anonymous("tablet", "3", 2 * MIN, "x"),
        track("v", "4", 3 * MIN, "x", ""),
    ];
    let mut oracle = run("{}", &lines);
    assert_eq!(ids(&oracle), ["tablet+u", "v"]);
    oracle.push(&erase("u"));
    // v's own call stays, without the tablet, which is not v's now that u has gone.
    assert_eq!(ids(&oracle), ["v"]);
    assert_eq!(pick(&oracle.dump().sessions, &["events"]), ["2"]);
    oracle.push(&anonymous("tablet", "5", 4 * MIN, "x"));
    assert_eq!(ids(&oracle), ["tablet", "v"]);
    // Who bears it first from now on has it.
    oracle.push(&both("tablet", "v", "6", 5 * MIN));
    assert_eq!(ids(&oracle), ["tablet+v"]);
    // The other way round: v goes, and the tablet was never v's.
    let mut oracle = run("{}", &lines);
    oracle.push(&erase("v"));
    assert_eq!(ids(&oracle), ["tablet+u"]);
    assert_eq!(oracle.push(&anonymous("tablet", "7", 2 * MIN, "y")), "accepted");
}

#[test]
fn an_alias_is_erased_with_all_that_it_joined() {
    let alias = |previous: &str, user: &str, message: &str, at: i64| {
        call("alias", &format!(r#""userId":"{user}","previousId":"{previous}""#), message, at, r#""properties":{}"#)
    };
    let mut oracle = run("{}", &[track("u", "1", 0, "x", ""), alias("old", "u", "2", MIN)]);
    // Nothing ever came of the old id itself: it is u all the same.
    oracle.push(&erase("old"));
    assert!(oracle.dump().profiles.is_empty());
    assert_eq!(oracle.push(&track("u", "3", MIN, "x", "")), "erased");
    assert_eq!(oracle.push(&track("old", "4", MIN, "x", "")), "erased");
    // The two that come later are two.
    oracle.push(&track("u", "5", 2 * MIN, "x", ""));
    oracle.push(&track("old", "6", 2 * MIN, "x", ""));
    assert_eq!(ids(&oracle), ["old", "u"]);
    // Joined, and taken apart: one is erased, the other keeps an alias that names nobody.
    oracle.push(&alias("old", "u", "7", 3 * MIN));
    assert_eq!(ids(&oracle), ["old+u"]);
    oracle.push(r#"{"type":"unlink","a":"u","b":"old"}"#);
    oracle.push(&erase("old"));
    assert_eq!(ids(&oracle), ["u"]);
    oracle.push(&track("old", "8", 4 * MIN, "x", ""));
    assert_eq!(ids(&oracle), ["old", "u"]);
    // That the two are not one was said of somebody who has gone.
    oracle.push(&alias("old", "u", "9", 5 * MIN));
    assert_eq!(ids(&oracle), ["old+u"]);
}

#[test]
fn an_id_that_comes_back_begins_anew() {
    let definitions = r#"{"traits":{"n":{"count":"x"}},"segments":{"back":{"visitor":"returning"}}}"#;
    let mut oracle = run(definitions, &[track("u", "1", 0, "x", ""), track("u", "2", HOUR, "x", "")]);
    assert_eq!(pick(&oracle.dump().profiles, &["first_seen", "computed.n"]), [format!("{T} 2")]);
    oracle.push(&erase("u"));
    assert_eq!(oracle.push(&track("u", "3", HOUR, "x", "")), "erased");
    assert_eq!(oracle.push(&track("u", "4", HOUR + 1, "x", "")), "accepted");
    let row = format!("{} 1", T + HOUR + 1);
    assert_eq!(pick(&oracle.dump().profiles, &["first_seen", "computed.n"]), [row]);
    assert!(flips(&oracle).is_empty());
    // Erased again, up to a later instant.
    oracle.push(&clock(2 * HOUR));
    oracle.push(&erase("u"));
    assert_eq!(oracle.push(&track("u", "5", 2 * HOUR, "x", "")), "erased");
    assert!(oracle.dump().profiles.is_empty());
    // Now u is nobody: no more is erased by saying it again.
    oracle.push(&clock(3 * HOUR));
    oracle.push(&erase("u"));
    assert_eq!(oracle.push(&track("u", "6", 3 * HOUR, "x", "")), "accepted");
}

#[test]
fn duplicates_are_told_after_an_erasure_as_before() {
    let of_v = call("track", r#""userId":"v","anonymousId":"a""#, "2", MIN, r#""event":"x","properties":{"of":"a"}"#);
    let mut oracle = run("{}", &[both("a", "u", "1", 0), of_v.clone()]);
    oracle.push(&erase("u"));
    // Erased comes before duplicate, and before conflict.
    assert_eq!(oracle.push(&both("a", "u", "1", 0)), "erased");
    assert_eq!(oracle.push(&track("u", "1", MIN, "y", "")), "erased");
    // The same key with a later date.
    assert_eq!(oracle.push(&track("u", "1", 2 * MIN, "x", "")), "conflict");
    // What was struck out of v's call is still part of what it was.
    assert_eq!(oracle.push(&of_v), "duplicate");
    assert_eq!(oracle.push(&track("v", "2", MIN, "x", "")), "conflict");
    assert_eq!(oracle.clock(), T + MIN);
    let report = json::parse(&oracle.report()).expect("JSON");
    assert_eq!(pick(&[report.print()], &["accepted", "duplicates", "profiles"]), ["2 1 1"]);
    assert_eq!(report.get("rejected").get("erased").print(), "2");
    assert_eq!(report.get("rejected").get("conflict").print(), "2");
}

#[test]
fn intents_of_an_erased_person_are_as_if_never_due() {
    let definitions = r#"{"campaigns":{"c":{"when":{"event":"x"},"cap":{"at_most":1,"per":"1h"}}},
      "channels":{"popup":{"deliver":"sse"}}}"#;
    let lines = [
        anonymous("a", "1", 0, "x"),
        track("u", "2", MIN, "x", ""),
        track("v", "3", MIN, "x", ""),
        both("a", "u", "4", HOUR),
    ];
    let mut oracle = run(definitions, &lines);
    let of = |oracle: &Oracle| {
        let mut rows = pick(&oracle.dump().intents, &["profile", "at", "status"]);
        rows.sort();
        rows.join(", ").replace(&T.to_string()[..5], "").replace('"', "")
    };
    let u = "u 25600000 due, u 25660000 cap, u 29200000 due";
    assert_eq!(of(&oracle), format!("{u}, v 25660000 due"));
    oracle.push(&erase("a"));
    assert_eq!(of(&oracle), "v 25660000 due");
    // No cap is filled by what was erased.
    oracle.push(&track("u", "5", HOUR + 1, "x", ""));
    assert_eq!(of(&oracle), "u 29200001 due, v 25660000 due");
}

#[test]
fn erased_ids_are_struck_out_of_what_others_said() {
    let definitions = r#"{"traits":{"friends":{"unique":"properties.to","of":"gift"},"last":{"last":"properties.to","of":"gift"}},
      "segments":{"fan":{"performed":"gift","where":"properties.to == \"u\""},
                  "open":{"performed":"gift","where":"!has(properties.to)"},
                  "group":{"performed":"gift","where":"\"u\" in properties.all"},
                  "sent":{"performed":"gift","where":"context.by == \"u\""}}}"#;
    let gift = |message: &str, at: i64, to: &str| {
        let rest =
            format!(r#""event":"gift","properties":{{"to":"{to}","all":["w","{to}"]}},"context":{{"by":"{to}"}}"#);
        call("track", r#""userId":"v""#, message, at, &rest)
    };
    let told = identify("v", "5", 3, r#""traits":{"friend":"u","all":["u",{"of":"u"}],"u":"U","age":7}"#);
    let lines = [gift("1", 0, "u"), gift("2", 1, "w"), gift("3", 2, "uu"), told, track("u", "4", 3, "x", "")];
    let mut oracle = run(definitions, &lines);
    let row = ["computed", "traits"];
    let before = r#"{"friends":3,"last":"uu"} {"age":7,"all":["u",{"of":"u"}],"friend":"u","u":"U"}"#;
    assert_eq!(pick(&oracle.dump().profiles, &row)[1], before);
    assert_eq!(flips(&oracle), ["+fan 0 1", "+group 0 1", "+sent 0 1"]);
    oracle.push(&erase("u"));
    let after = r#"{"friends":2,"last":"uu"} {"age":7,"all":[null,{"of":null}],"u":"U"}"#;
    assert_eq!(pick(&oracle.dump().profiles, &row), [after]);
    assert_eq!(flips(&oracle), ["+open 0 1"]);
    // What comes late is struck likewise; what is said from now on stays, whoever is meant.
    oracle.push(&gift("6", 3, "u"));
    assert_eq!(flips(&oracle), ["+open 0 1"]);
    oracle.push(&gift("7", 4, "u"));
    assert_eq!(flips(&oracle), ["+open 0 1", "+fan 0 7", "+group 0 7", "+sent 0 7"]);
}

#[test]
fn an_erasure_leaves_what_a_run_without_the_person_gives() {
    let mut erased = 0;
    for seed in 1..60u64 {
        let mut dice = Dice(seed * 31_337 + 5);
        let lines: Vec<String> = (0..60).map(|n| random_event(&mut dice, n)).collect();
        let mut oracle = run(RICH, &lines);
        let clock = format!(r#"{{"type":"clock","to":{}}}"#, oracle.clock());
        let gone: Vec<String> = ids(&oracle)[0].split('+').map(str::to_string).collect();
        oracle.push(&erase(&gone[0]));
        // The same without them: their calls left out, their ids taken out of what others sent.
        let mut without = Oracle::new(RICH);
        without.push(&clock);
        for line in &lines {
            let of = |key: &str| json::parse(line).expect("JSON").get(key).text().map(str::to_string);
            let own = of("userId").or(of("anonymousId")).expect("an id");
            if !gone.contains(&own) {
                let strike = |line: String, id: &String| line.replace(&format!(r#""{id}""#), "null");
                without.push(&gone.iter().fold(line.clone(), strike));
            }
        }
        assert_eq!(oracle.dump(), without.dump(), "seed {seed}, without {gone:?}");
        erased += usize::from(!oracle.dump().profiles.is_empty());
    }
    assert!(erased > 20, "hardly ever is anybody left");
}

#[test]
fn redefined_answers_are_as_if_from_the_start() {
    let lines = [track("u", "1", 0, "x", ""), track("u", "2", MIN, "y", "")];
    let mut oracle = run("{}", &lines);
    oracle.redefine(CART);
    assert_eq!(oracle.dump(), run(CART, &lines).dump());
}

// Random histories.

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }
}

const RICH: &str = r#"{"sessions":{"gap":"10m"},"identity":{"max_ids":50},
  "touchpoints":[{"event":"x","where":"properties.v > 1 || traits.p == 'b'","channel":"properties.w","campaign":"properties.v"}],
  "conversions":[{"name":"c","event":"y","id":"properties.o","value":"properties.v","refund":{"event":"z","id":"properties.o","value":"properties.v"}},
                 {"name":"d","event":["y","z"],"where":"properties.v >= 2","value":"properties.v"}],
  "attribution":{"lookback":"30m","time_decay":{"half_life":"5m"},"path_max":3,"reset_on_conversion":true},
  "traits":{"n":{"count":"x","within":"15m"},"s":{"sum":"properties.v","of":["x","y"],"within":"20m"},"a":{"average":"properties.v","of":"x"},
    "m":{"most_frequent":"properties.w","of":["x","y","z"],"within":"30m"},"u":{"unique":"properties.v","of":"x","where":"computed.n > 1"},
    "l":{"last":"properties.w","of":"z","within":"10m"},"k":{"count":"session","within":"30m"},"sv":{"sum":"value","of":"session","within":"1h"}},
  "segments":{"a":{"trait":"n","at_least":2},"b":{"any":[{"segment":"a"},{"trait":"s","above":5}]},
    "c":{"not":{"performed":"y","where":"computed.n >= 1","times":{"at_most":1},"within":"20m"}},
    "d":{"sequence":[{"performed":"x","times":2,"within":"20m"},{"performed":"y","within":"20m"},{"not_performed":"z","within":"10m"}],"recent":"15m"},
    "e":{"sequence":[{"performed":"x"},{"performed":"late","within":"30m"}],"recent":"15m"},
    "f":{"visitor":"first_time"},"g":{"all":[{"visitor":"known"},{"sessions":{"at_least":2,"within":"30m"}}]},
    "h":{"journey":"j","state":"gone"},"i":{"not_performed":"late","within":"20m"},"p":{"visitor":"paying"},"r":{"trait":"p","equals":"b"}},
  "journeys":{"j":{"start":"s","states":{"s":{"transitions":[{"event":"x","to":"t"},{"event":"y","segment":"a","to":"s"}]},
      "t":{"transitions":[{"event":"y","where":"properties.v < 2","to":"s"}],"timers":[{"after":"10m","since":"x","emit":"late","to":"gone"},{"after":"15m","since":"any_event","emit":"idle"}]},
      "gone":{"transitions":[{"event":"x","segment":"b","to":"t"}],"timers":[{"after":"5m","emit":"idle","to":"s"}]}}},
    "k":{"start":"o","states":{"o":{"transitions":[{"event":"late","to":"w"}]},"w":{"transitions":[{"event":"idle","to":"o"}],"timers":[{"after":"7m","since":"late","to":"o"}]}}}},
  "campaigns":{"one":{"when":{"event":"x"},"audience":"b","consent":"m","cap":{"at_most":2,"per":"20m"},"tags":["t"]},
    "two":{"when":{"journey":"j","state":"gone"},"priority":3,"tags":["t"],"cap":{"at_most":1,"per":"30m","tag":"t"}},
    "three":{"when":{"segment":"c"},"quiet_hours":{"from":"00:20","to":"00:40"},"hold":"1m"},
    "four":{"when":{"every":"13m","from":"2025-12-31T00:00:00Z","segment":"i"},"audience":"f"},"five":{"when":{"event":"late"}},
    "six":{"when":{"at":"2026-01-01T00:30:00Z","segment":"i"}}}}"#;

fn random_event(dice: &mut Dice, number: usize) -> String {
    let user = dice.pick(&["u1", "u2", "u3"]);
    let other = dice.pick(&["a1", "a2", "a3", "u1"]);
    let (kind, ids) = match dice.below(60) {
        0 => ("alias", format!(r#""userId":"{user}","previousId":"{other}""#)),
        1 => ("identify", format!(r#""userId":"{user}","anonymousId":"{other}""#)),
        2..=7 => ("page", format!(r#""anonymousId":"{other}""#)),
        8..=10 => ("track", format!(r#""userId":"{user}","anonymousId":"{other}""#)),
        11..=16 => ("identify", format!(r#""userId":"{user}""#)),
        17..=40 => ("track", format!(r#""userId":"{user}""#)),
        _ => ("track", format!(r#""anonymousId":"{other}""#)),
    };
    let event = dice.pick(&["x", "x", "y", "z"]);
    let value = dice.pick(&["1", "2.5", "0.333", "\"t\"", "null", "3"]);
    let word = dice.pick(&["\"a\"", "\"direct\"", "1", "true", "null"]);
    let order = dice.pick(&["1", "2", "\"A\"", "null"]);
    let granted = dice.pick(&["true", "false", "null"]);
    let told = dice.pick(&["\"b\"", "\"c\"", "null"]);
    let rest = format!(
        concat!(
            r#""event":"{}","properties":{{"v":{},"w":{},"o":{}}},"traits":{{"p":{}}},"#,
            r#""context":{{"consent":{{"categoryPreferences":{{"m":{}}}}},"campaign":{{"name":{}}}}}"#
        ),
        event, value, word, order, told, granted, word
    );
    // A coarse grid, so that many things fall on one instant.
    let at = dice.below(60) as i64 * MIN;
    call(kind, &ids, &format!("m{}", number % 1000), at, &rest)
}

fn shuffled(lines: &[String], dice: &mut Dice) -> Vec<String> {
    let mut out = lines.to_vec();
    for i in (1..out.len()).rev() {
        out.swap(i, dice.below(i as u64 + 1) as usize);
    }
    out
}

#[test]
fn the_order_of_arrival_changes_nothing() {
    for seed in 1..150u64 {
        let mut dice = Dice(seed * 7919 + 3);
        let lines: Vec<String> = (0..30 + seed as usize % 30).map(|n| random_event(&mut dice, n)).collect();
        let first = run(RICH, &lines);
        let wanted = first.dump();
        let mut again = shuffled(&lines, &mut dice);
        again.extend(lines[..5].to_vec());
        let second = run(RICH, &again);
        assert_eq!(wanted, second.dump(), "seed {seed}");
        assert_eq!(first.clock(), second.clock());
    }
}

#[test]
fn random_histories_with_corrections_never_fail() {
    let mut seen = [0; 5];
    for seed in 1..60u64 {
        let mut dice = Dice(seed * 104_729 + 11);
        let mut oracle = Oracle::new(RICH).with_lateness(Some(40 * MIN));
        for n in 0..100 {
            let id = dice.pick(&["u1", "u2", "u3", "a1", "a2", "a3", "no"]);
            let line = match dice.below(25) {
                0 => format!(r#"{{"type":"retract","id":"{id}","messageId":"m{}"}}"#, dice.below(100)),
                1 => format!(r#"{{"type":"unlink","a":"{id}","b":"{}"}}"#, dice.pick(&["u1", "u2", "a1"])),
                2 if dice.below(5) == 0 => format!(r#"{{"type":"erase","id":"{id}"}}"#),
                3 => clock(dice.below(90) as i64 * MIN),
                _ => random_event(&mut dice, n),
            };
            oracle.push(&line);
            if n % 20 == 0 {
                oracle.report();
            }
        }
        let dump = oracle.dump();
        let views = [&dump.profiles, &dump.sessions, &dump.segment_changes, &dump.intents, &dump.credit];
        for (sum, view) in seen.iter_mut().zip(views) {
            *sum += view.len();
        }
    }
    assert!(seen.iter().all(|rows| *rows > 50), "too little happened: {seen:?}");
}
