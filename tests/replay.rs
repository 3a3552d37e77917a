//! Replays of files by the real binary: every figure of the report and every row of every file is the oracle's, in
//! whatever order the calls come and by however many workers; and a replay of what a server took answers as it did.

mod histories;
mod oracle;
mod process;
#[path = "../benches/w1/mod.rs"]
mod w1;
#[path = "story/yaml.rs"]
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use histories::Random;
use oracle::Oracle;
use process::gzip::gzip;
use process::{Home, Server, http};
use serde_json::{Value, json};
use server::log::Log;
use server::record::{self, CLOCK, Clock, EVENT};
use w1::clicks::{AGENT, Arrival, START, clicks, line};
use w1::engine::key;
use w1::figures::{Credits, Figures, intent_digest};

/// The files of a dump, in the order of the contract.
const VIEWS: [&str; 5] = ["profiles", "sessions", "segment_changes", "intents", "credit"];
/// The figures of a report that the law decides.
const REPORTED: [&str; 10] = [
    "read",
    "accepted",
    "duplicates",
    "rejected",
    "profiles",
    "sessions",
    "segments",
    "journeys",
    "intents",
    "attribution",
];
const WORKERS: [&str; 3] = ["1", "2", "4"];
const DAY: i64 = 86_400_000;

/// What a replay says: its report, and the lines of each view.
struct Told {
    report: Value,
    rows: [Vec<String>; 5],
}

/// What the oracle says of lines.
fn expected(definitions: &str, lateness: Option<i64>, lines: &[String]) -> Told {
    let mut oracle = Oracle::new(definitions).with_lateness(lateness).with_agent(AGENT, ["desktop", "Linux", "Chrome"]);
    for line in lines {
        oracle.push(line);
    }
    let mut report: Value = serde_json::from_str(&oracle.report()).expect("JSON");
    report["as_of"] = json!({"clock": oracle.clock()});
    sort_attribution(&mut report);
    let dump = oracle.dump();
    Told { report, rows: [dump.profiles, dump.sessions, dump.segment_changes, dump.intents, dump.credit] }
}

/// Replays a file of a home.
fn replay(home: &Home, file: &str, workers: &str, flags: &[&str]) -> Told {
    let dir = format!("dump-{workers}-{file}");
    let args =
        ["replay", file, "--definitions", "thalweg.yaml", "--report", "json", "--dump", &dir, "--workers", workers];
    let ended = home.run(&[&args[..], flags].concat());
    assert!(ended.status.success(), "{ended:?}");
    let mut report: Value = serde_json::from_str(&ended.stdout).expect("the report is one JSON object");
    sort_attribution(&mut report);
    let rows = VIEWS.map(|view| {
        let text = std::fs::read_to_string(home.path(&dir).join(format!("{view}.ndjson"))).expect("the view is dumped");
        text.lines().map(str::to_owned).collect()
    });
    Told { report, rows }
}

/// The rows of each model by key, whatever their order.
fn sort_attribution(report: &mut Value) {
    for rows in report["attribution"].as_object_mut().expect("models").values_mut() {
        rows.as_array_mut().expect("rows").sort_by_key(|row| json!([row["channel"], row["campaign"]]).to_string());
    }
}

/// Compares everything; `what` was replayed.
fn assert_same(found: &Told, expected: &Told, what: &str) {
    for key in REPORTED {
        assert_eq!(found.report[key], expected.report[key], "{key} of {what}");
    }
    assert_eq!(found.report["as_of"]["clock"], expected.report["as_of"]["clock"], "{what}");
    assert!(found.report["as_of"]["position"].is_string(), "{what}: {}", found.report);
    for key in ["seconds", "events_per_second", "peak_rss_bytes"] {
        assert!(found.report[key].as_f64().is_some_and(|number| number > 0.0), "{key} of {what}: {}", found.report);
    }
    for (view, (found, expected)) in VIEWS.iter().zip(found.rows.iter().zip(&expected.rows)) {
        // There may be thousands of rows, so only the first that differ are shown.
        let parted = found.iter().zip(expected).find(|(found, expected)| found != expected);
        assert_eq!(parted, None, "{view} of {what}");
        assert_eq!(found.len(), expected.len(), "rows of {view} of {what}");
    }
}

/// Lines as a file.
fn file(lines: &[String]) -> String {
    lines.join("\n") + "\n"
}

// Small files that hit every edge.

/// Two histories, and lines that are no calls.
fn edges(random: &mut Random) -> Vec<String> {
    let mut lines = histories::history(random);
    lines.extend(["no JSON".into(), String::new(), r#"{"type":"page"}"#.into(), "  ".into(), "[1]".into()]);
    lines.extend(histories::history(random));
    lines
}

/// The same lines, so long that they are read in several parts, with other ends of lines, and none at the end.
fn padded(lines: &[String]) -> String {
    let space = format!(",{}", " ".repeat(20_000));
    let is_call = |line: &String| line.contains(r#""timestamp""#);
    let pad = |line: &String| if is_call(line) { line.replacen(',', &space, 1) } else { line.clone() };
    lines.iter().map(pad).collect::<Vec<_>>().join("\r\n")
}

#[test]
fn histories_that_hit_edges() {
    let (mut duplicates, mut conflicts, mut too_late, mut corrections) = (0, 0, 0, 0);
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let definitions = histories::definitions(&mut random);
        let home = Home::new(&definitions);
        let lateness = (seed % 3 == 2).then_some(60_000);
        let flags: &[&str] = if lateness.is_some() { &["--lateness", "60s"] } else { &[] };
        let lines = edges(&mut random);
        let expected = expected(&definitions, lateness, &lines);
        home.write("plain.ndjson", file(&lines));
        home.write("packed.ndjson.gz", gzip(padded(&lines).as_bytes()));
        for workers in WORKERS {
            assert_same(&replay(&home, "plain.ndjson", workers, flags), &expected, &format!("{seed}, {workers}"));
        }
        assert_same(&replay(&home, "packed.ndjson.gz", "2", flags), &expected, &format!("{seed}, packed"));
        let count = |verdict: &Value| verdict.as_u64().expect("a count");
        duplicates += count(&expected.report["duplicates"]);
        conflicts += count(&expected.report["rejected"]["conflict"]);
        too_late += count(&expected.report["rejected"]["too_late"]);
        corrections += lines.iter().filter(|line| line.contains("retract") || line.contains("unlink")).count();
    }
    let seen = [duplicates, conflicts, too_late, corrections as u64];
    assert!(seen.iter().all(|times| *times > 0), "{seen:?}");
}

// W1.

/// Sessions of W1: about nine events each.
const SESSIONS: u32 = 3_000;

/// The figures of W1 as a replay tells them.
fn figures(told: &Told) -> Figures {
    let report = &told.report;
    let number = |value: &Value| value.as_u64().expect("a count");
    let mut figures = Figures {
        clock: report["as_of"]["clock"].as_i64().expect("an instant"),
        sessions: number(&report["sessions"]["count"]),
        session_events: number(&report["sessions"]["events"]),
        session_ms: number(&report["sessions"]["length_ms"]) as i64,
        paying: number(&report["segments"]["paying"]),
        vip: number(&report["segments"]["vip"]),
        logged_in: number(&report["segments"]["logged_in"]),
        states: ["none", "landed", "browsing", "carted", "checkout", "purchased", "abandoned"]
            .map(|state| number(&report["journeys"]["cart"][state])),
        come_back: number(&report["intents"]["come_back"]),
        come_back_digest: 0,
        last_touch: Credits::default(),
        linear: Credits::default(),
    };
    for row in &told.rows[3] {
        let row: Value = serde_json::from_str(row).expect("rows are JSON");
        let digits = |text: &Value, prefix: &str| {
            let digits = text.as_str().and_then(|text| text.strip_prefix(prefix));
            digits.and_then(|digits| digits.parse().ok()).expect("ids of W1 are numbered")
        };
        let root = &row["cause"]["root"];
        let (user, message) = (digits(&root["id"], "user-"), digits(&root["messageId"], "e"));
        let digest = intent_digest(user, row["at"].as_i64().expect("an instant"), message);
        figures.come_back_digest = figures.come_back_digest.wrapping_add(digest);
    }
    for (model, Credits(credits)) in [("last_touch", &mut figures.last_touch), ("linear", &mut figures.linear)] {
        for row in report["attribution"][model].as_array().expect("rows") {
            let [channel, campaign] = ["channel", "campaign"].map(|part| row[part].as_str().expect("a text"));
            let credit = &mut credits[key(channel, campaign)];
            credit.conversions = billionths(&row["conversions"]) as i64;
            credit.value = billionths(&row["value"]);
        }
    }
    figures
}

/// A decimal that is not negative, in 10^-9.
fn billionths(decimal: &Value) -> i128 {
    let decimal = decimal.as_str().expect("money is a text");
    let (whole, fraction) = decimal.split_once('.').unwrap_or((decimal, ""));
    format!("{whole}{fraction:0<9}").parse().expect("a decimal of at most nine places")
}

fn w1_equals_the_oracle_and_brute_force(seed: u64) {
    let definitions = yaml::read(include_str!("../benches/w1.yaml")).to_string();
    let home = Home::new(&definitions);
    let mut rows = Vec::new();
    for arrival in [Arrival::InOrder, Arrival::Disordered, Arrival::Shuffled] {
        let clicks = clicks(SESSIONS, seed, arrival);
        let mut text = String::new();
        clicks.iter().for_each(|click| line(click, &mut text));
        let name = format!("{arrival:?}.ndjson");
        home.write(&name, &text);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let expected = expected(&definitions, None, &lines);
        let brute = w1::brute::figures(&clicks);
        assert!(brute.come_back > 100 && brute.vip > 10, "{brute:?}");
        for workers in WORKERS {
            let found = replay(&home, &name, workers, &[]);
            let what = format!("{arrival:?}, seed {seed}, {workers} workers");
            assert_same(&found, &expected, &what);
            assert_eq!(figures(&found), brute, "{what}");
        }
        rows.push(expected.rows);
    }
    assert!(rows.iter().all(|of| *of == rows[0]), "the order of arrival has changed what is true");
}

#[test]
fn w1_in_every_order() {
    w1_equals_the_oracle_and_brute_force(7);
}

#[test]
fn w1_in_every_order_with_another_seed() {
    w1_equals_the_oracle_and_brute_force(2026);
}

// Purchases alone: few and large histories, whole days, many at one instant.

/// What a shop would like to know of purchases.
const PURCHASES: &str = r#"{"version":1,
"conversions":[{"name":"purchase","event":"purchase","value":"properties.value"}],
"attribution":{"lookback":"90d","models":["first_touch","linear","time_decay"]},
"traits":{
  "purchases":{"count":"purchase"},
  "spent":{"sum":"properties.value","of":"purchase"},
  "spent_90d":{"sum":"properties.value","of":"purchase","within":"90d"},
  "basket":{"average":"properties.quantity","of":"purchase"},
  "dearest":{"max":"properties.value","of":"purchase","within":"180d"},
  "usual":{"most_frequent":"properties.quantity","of":"purchase"},
  "days":{"unique":"day","of":"session"},
  "first":{"first":"properties.value","of":"purchase"}},
"segments":{
  "again":{"trait":"purchases","at_least":2},
  "vip":{"any":[{"trait":"spent_90d","at_least":100},{"trait":"purchases","at_least":5}]},
  "lapsed":{"all":[{"performed":"purchase"},{"not_performed":"purchase","within":"90d"}]},
  "generous":{"performed":"purchase","where":"properties.value > 50 && properties.quantity >= 2","within":"180d"},
  "twice":{"sequence":[{"performed":"purchase"},{"performed":"purchase","within":"31d"}],"recent":"90d"}},
"journeys":{"custom":{"start":"new","states":{
  "new":{"transitions":[{"event":"purchase","to":"active"}]},
  "active":{"transitions":[{"event":"purchase","to":"active"}],
    "timers":[{"after":"90d","since":"purchase","emit":"fell_asleep","to":"asleep"}]},
  "asleep":{"transitions":[{"event":"purchase","to":"active","segment":"vip"},{"event":"purchase","to":"new"}]}}}},
"campaigns":{
  "wake":{"when":{"journey":"custom","state":"asleep"},"audience":"again","channel":"mail","cap":{"at_most":1,"per":"180d"}},
  "thanks":{"when":{"segment":"vip"},"channel":"mail"}},
"channels":{"mail":{"deliver":"nats"}}}"#;
const CUSTOMERS: u64 = 1_500;
/// A year and a half.
const DAYS: u64 = 546;

/// A purchase as a call.
fn purchase(number: usize, customer: u64, at: i64, quantity: u64, cents: u64) -> String {
    let value = format!("{}.{:02}", cents / 100, cents % 100);
    format!(r#"{{"type":"track","messageId":"p{number}","userId":"{customer:05}","event":"purchase","timestamp":{at},"#)
        + &format!(r#""properties":{{"quantity":{quantity},"value":{value}}}}}"#)
}

/// Customers who first buy within a quarter, most of them once, some again and again; in the order of days.
fn purchases(random: &mut Random) -> Vec<String> {
    let mut bought = Vec::new();
    for customer in 0..CUSTOMERS {
        let mut day = random.below(90);
        let keen = random.below(10);
        loop {
            let quantity = 1 + random.below(3) * random.below(3);
            bought.push((day, customer, quantity, quantity * (599 + random.below(2_500))));
            if random.below(12) >= keen {
                break;
            }
            day += random.below(30) * random.below(6);
            if day >= DAYS {
                break;
            }
        }
    }
    bought.sort_unstable();
    let line = |(number, (day, customer, quantity, cents)): (usize, &(u64, u64, u64, u64))| {
        purchase(number, *customer, START + *day as i64 * DAY, *quantity, *cents)
    };
    bought.iter().enumerate().map(line).collect()
}

/// The same calls in any order, some of them twice.
fn shuffled(lines: &[String], random: &mut Random) -> Vec<String> {
    let twice = lines.iter().filter(|_| random.below(20) == 0).cloned().collect::<Vec<_>>();
    let mut lines = [lines, &twice].concat();
    for place in (1..lines.len()).rev() {
        lines.swap(place, random.below(place as u64 + 1) as usize);
    }
    lines
}

fn purchases_equal_the_oracle(in_order: &[String], random: &mut Random) {
    let home = Home::new(PURCHASES);
    for (name, lines) in [("in_order", in_order.to_vec()), ("shuffled", shuffled(in_order, random))] {
        let expected = expected(PURCHASES, None, &lines);
        println!("{name}: {}", expected.report);
        let name = format!("{name}.ndjson");
        home.write(&name, file(&lines));
        for workers in WORKERS {
            assert_same(&replay(&home, &name, workers, &[]), &expected, &format!("{name}, {workers} workers"));
        }
    }
}

#[test]
fn purchases_in_any_order() {
    for seed in [7, 2026] {
        let mut random = Random::new(seed);
        let lines = purchases(&mut random);
        purchases_equal_the_oracle(&lines, &mut random);
    }
}

/// Real ones, of a file that may not stand here: a line each, `{event_id, user_id, ts, quantity, value}`.
#[test]
#[ignore = "THALWEG_PURCHASES has to name a file of real purchases"]
fn real_purchases_in_any_order() {
    let file = std::env::var("THALWEG_PURCHASES").expect("THALWEG_PURCHASES names a file of purchases");
    let text = std::fs::read_to_string(file).expect("it can be read");
    let call = |line: &str| {
        let bought: Value = serde_json::from_str(line).expect("JSON");
        let properties = json!({"quantity": bought["quantity"], "value": bought["value"]});
        json!({"type": "track", "event": "purchase", "messageId": bought["event_id"], "userId": bought["user_id"],
            "timestamp": bought["ts"], "properties": properties})
    };
    let lines: Vec<String> = text.lines().map(|line| call(line).to_string()).collect();
    assert!(!lines.is_empty());
    purchases_equal_the_oracle(&lines, &mut Random::new(7));
}

// A server that is killed again and again, and its log as a file.

/// How often it is killed.
const KILLS: u64 = 6;
/// Histories that are sent to it.
const HISTORIES: usize = 8;

/// Sends lines, a few in a request, until all are sent or the server is gone: how many it has acknowledged, and how
/// many of those after them were on their way.
fn send(to: std::net::SocketAddr, lines: &[String], random: &mut Random) -> (usize, usize) {
    let mut sent = 0;
    while sent < lines.len() {
        let is_clock = |line: &String| line.contains(r#""type":"clock""#);
        let calls = lines[sent..].iter().take(1 + random.below(5) as usize).take_while(|line| !is_clock(line)).count();
        let (path, body) = match calls {
            0 => (
                "/v1/clock",
                json!({"to": serde_json::from_str::<Value>(&lines[sent]).expect("JSON")["to"]}).to_string(),
            ),
            _ => ("/v1/batch", format!(r#"{{"batch":[{}]}}"#, lines[sent..sent + calls].join(","))),
        };
        match http::ask(to, "POST", path, &[], body.as_bytes()) {
            Ok(answer) => assert_eq!(answer.status, 200, "{}", answer.text()),
            Err(_) => return (sent, calls.max(1)),
        }
        sent += calls.max(1);
    }
    (sent, 0)
}

/// The calls and clocks that a log holds, in its order, as lines of a file.
fn recorded(data: &Path) -> Vec<String> {
    let log = Log::open(data).expect("the log is sound").log;
    let mut reader = log.reader();
    let mut lines = Vec::new();
    while let Some((record, _)) = reader.next().expect("the log is sound") {
        match record.kind {
            EVENT => lines.push(record::decode_event(record.payload).expect("an event").3.to_owned()),
            CLOCK => {
                let Clock { to } = serde_json::from_slice(record.payload).expect("a clock");
                lines.push(json!({"type": "clock", "to": to}).to_string());
            }
            _ => {}
        }
    }
    lines
}

/// All rows of a list of the server.
fn items(server: &Server, path: &str) -> Vec<Value> {
    let list = server.read(&format!("{path}?limit=1000"));
    assert!(list["next"].is_null(), "{path} has more");
    list["items"].as_array().expect("a list has items").clone()
}

/// What a server says, in the words of a replay.
struct Heard {
    /// The report's members that it tells.
    report: Value,
    /// Profiles, sessions, changes of segments, intents.
    rows: [BTreeSet<Row>; 4],
    /// Intents that were sent and do not pass their gates any more: they go by what became of them.
    revoked: BTreeSet<String>,
}

/// A row's id and its text.
type Row = (String, String);

fn row_of(row: &Value) -> Row {
    (row["id"].to_string(), row.to_string())
}

fn hear(server: &Server) -> Heard {
    let mut report = json!({"segments": {}, "journeys": {}, "attribution": {}});
    for segment in items(server, "/v1/segments") {
        report["segments"][text(&segment["name"])] = segment["size"].clone();
    }
    for journey in items(server, "/v1/journeys") {
        let states = journey["states"].as_array().expect("states").iter();
        let states: BTreeMap<&str, &Value> = states.map(|of| (text(&of["state"]), &of["profiles"])).collect();
        report["journeys"][text(&journey["name"])] = json!(states);
    }
    for model in ["first_touch", "last_touch", "last_non_direct", "linear", "time_decay", "position_based"] {
        let answer = server.read(&format!("/v1/attribution?model={model}&by=campaign"));
        report["attribution"][model] = answer["rows"].clone();
    }
    sort_attribution(&mut report);
    let mut heard = Heard { report, rows: Default::default(), revoked: BTreeSet::new() };
    for id in ["a", "b", "c", "d", "e"] {
        heard.person(server, id);
    }
    heard
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

impl Heard {
    fn person(&mut self, server: &Server, id: &str) {
        let answer = server.get(&format!("/v1/profiles/{id}"));
        if answer.status == 404 {
            return;
        }
        let mut profile = answer.json();
        for beside in ["as_of", "linked_by"] {
            profile.as_object_mut().expect("an object").remove(beside);
        }
        for consent in profile["consent"].as_object_mut().expect("an object").values_mut() {
            ["source", "event"]
                .iter()
                .for_each(|beside| drop(consent.as_object_mut().expect("an object").remove(*beside)));
        }
        for (place, path) in [(1, "sessions"), (2, "segments/changes"), (3, "intents")] {
            for mut row in items(server, &format!("/v1/profiles/{id}/{path}")) {
                if place == 2 {
                    row["profile"] = profile["id"].clone();
                }
                match row["status"].as_str() {
                    Some("revoked") => drop(self.revoked.insert(row["id"].to_string())),
                    // Nothing of it was sent; what stands of it, if anything does, is held back.
                    Some("cancelled" | "consent_withdrawn") => {
                        self.revoked.insert(row["id"].to_string());
                        continue;
                    }
                    // What the law lets pass goes by what became of it.
                    Some(status) if !["audience", "consent", "cap"].contains(&status) => {
                        row["status"] = "due".into();
                        row["body"] = Value::Null;
                    }
                    _ => {}
                }
                self.rows[place].insert(row_of(&row));
            }
        }
        self.rows[0].insert(row_of(&profile));
    }

    /// Compares it with what a replay says.
    fn assert_same(&self, told: &Told, what: &str) {
        for (key, value) in self.report.as_object().expect("an object") {
            assert_eq!(value, &told.report[key], "{key}, {what}");
        }
        for (place, found) in self.rows.iter().enumerate() {
            let rows = told.rows[place].iter().map(|row| row_of(&serde_json::from_str(row).expect("rows are JSON")));
            let rows: BTreeSet<Row> = rows.collect();
            let differs = |row: &&Row| !self.revoked.contains(&row.0);
            let missing: Vec<_> = rows.difference(found).filter(differs).collect();
            let extra: Vec<_> = found.difference(&rows).filter(differs).collect();
            assert!(missing.is_empty() && extra.is_empty(), "{}, {what}: {missing:#?}\n{extra:#?}", VIEWS[place]);
        }
    }
}

/// Sends lines to a server that is killed at random moments; gives the last one, to which all that was left was sent.
fn lives(home: &Home, mut lines: Vec<String>, random: &mut Random) -> Server {
    let mut unacknowledged = 0;
    for life in 0..KILLS {
        let server = home.start(&["--clock", "events", "--workers", WORKERS[life as usize % 3]]);
        let (to, sent, mut sender) = (server.address, lines.clone(), Random::new(random.below(u64::MAX)));
        let sending = std::thread::spawn(move || send(to, &sent, &mut sender));
        std::thread::sleep(Duration::from_millis(random.below(60)));
        server.kill();
        let (acknowledged, on_their_way) = sending.join().expect("what is sent is taken");
        lines.drain(..acknowledged);
        unacknowledged += on_their_way;
        // Some senders try again, some do not.
        if random.below(2) == 0 {
            lines.drain(..on_their_way);
        }
    }
    let server = home.start(&["--clock", "events", "--workers", "2"]);
    assert_eq!(send(server.address, &lines, random), (lines.len(), 0), "the last life takes all that is left");
    println!("{unacknowledged} were not acknowledged, {} were left for the last life", lines.len());
    server
}

#[test]
fn a_server_that_was_killed_answers_as_a_replay_of_its_log() {
    let mut random = Random::new(seed());
    let home = Home::new(&histories::definitions(&mut random));
    let lines: Vec<String> = (0..HISTORIES).flat_map(|_| histories::history(&mut random)).collect();
    // Corrections do not come over HTTP.
    let is_sent = |line: &String| !line.contains(r#""type":"retract""#) && !line.contains(r#""type":"unlink""#);
    let server = lives(&home, lines.into_iter().filter(is_sent).collect(), &mut random);
    let heard = hear(&server);
    server.kill();
    let again = home.start(&["--clock", "events", "--workers", "1"]);
    let recalled = hear(&again);
    again.kill();
    let lines = recorded(&home.path("data"));
    println!("{} lines were recorded", lines.len());
    home.write("recorded.ndjson", file(&lines));
    for workers in WORKERS {
        let told = replay(&home, "recorded.ndjson", workers, &["--lateness", "30d"]);
        heard.assert_same(&told, &format!("{workers} workers"));
        recalled.assert_same(&told, &format!("{workers} workers, after a restart"));
    }
}

/// Of what is sent and when it is killed: told, so that a test that failed can be run again with THALWEG_KILL_SEED.
fn seed() -> u64 {
    let told = std::env::var("THALWEG_KILL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = told.unwrap_or_else(|| std::process::id().into());
    println!("THALWEG_KILL_SEED={seed}");
    seed
}
