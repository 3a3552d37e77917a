//! Random histories made to hit the edges: times on whole seconds and exactly a window after others, windows of one or
//! two minutes, few ids, several events in one millisecond, duplicates, conflicts, lateness, nulls and strings for
//! numbers, links, links that come again in another form, corrections, alone and in bursts, and changed definitions.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

/// A small generator of random numbers: the same seed, the same numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % bound
    }

    pub fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn any<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        (!of.is_empty()).then(|| of[self.below(of.len() as u64) as usize].clone())
    }
}

const START: i64 = 1_767_225_600_000;
const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Spans of which the definitions are made, as often as they are, and none.
const SPANS: [i64; 6] = [0, 30_000, 60_000, 60_000, 61_000, 120_000];

/// Calls, clocks and corrections in order of arrival.
pub fn history(random: &mut Random) -> Vec<String> {
    history_of(random, false)
}

/// The same, in which now and then somebody may be erased.
pub fn history_of(random: &mut Random, erases: bool) -> Vec<String> {
    let count = 15 + random.below(45);
    // Of few people each has a long history.
    let ids = &IDS[..[2, 3, 5, 5][random.below(4) as usize]];
    let (mut lines, mut calls) = (Vec::new(), Vec::<Call>::new());
    let mut now = START;
    // Of few people hardly anything is left when one is erased: that is rare, and late.
    let erased = if erases && random.chance(30) { count / 3 + random.below(count / 2) } else { count };
    for number in 0..count {
        if number == erased {
            lines.push(format!(r#"{{"type":"erase","id":"{}"}}"#, random.one(ids)));
            // What was under way, and what names them.
            lines.extend((0..2).filter_map(|_| random.any(&calls)).map(|call| call.line()));
        }
        now += [0, 0, 1, 1_000, 5_000, 30_000, 60_000, 61_000][random.below(8) as usize];
        match (random.below(100), random.any(&calls)) {
            (0..4, Some(again)) => lines.push(again.line()),
            (4..10, Some(_)) => lines.extend(linked_again(random, ids, &calls)),
            (10..13, _) => lines.push(format!(r#"{{"type":"clock","to":{}}}"#, now + 1_000 * random.below(120) as i64)),
            (13..18, _) => lines.push(retract(random.one(ids), random.below(number + 1))),
            (18..21, _) => lines.push(unlink(random, ids)),
            (21..23, Some(_)) => lines.extend(burst(random, ids, &mut calls, number, now)),
            (drawn, earlier) => {
                let late = match random.below(10) {
                    0 => 1_000 * random.below(90) as i64,
                    1 => 60_000 + random.below(3) as i64 - 1,
                    2 => -1_000 * random.below(40) as i64,
                    _ => 0,
                };
                // A message id is now and then taken again, by another person or with other content.
                let message = if random.chance(5) { random.below(number + 1) } else { number };
                let mut call = call(random, ids, message, now - late);
                if let (23..55, Some(earlier)) = (drawn, earlier) {
                    call.at_an_edge_of(&earlier, random);
                    now = now.max(call.timestamp);
                }
                lines.push(call.line());
                calls.push(call);
            }
        }
    }
    if erases { lines.into_iter().map(|line| naming(&line)).collect() } else { lines }
}

/// A call that names ids where something else is read when these are struck: as its page, its channel, its device.
fn naming(line: &str) -> String {
    let line = line.replace(r#""path":"/0""#, r#""page":"a","path":"/0""#);
    let line = line.replace(r#""medium":"cpc""#, r#""medium":"b","source":"news""#);
    line.replace(r#""type":"ios""#, r#""type":"c""#)
}

fn unlink(random: &mut Random, ids: &[&str]) -> String {
    format!(r#"{{"type":"unlink","a":"{}","b":"{}"}}"#, random.one(ids), random.one(ids))
}

/// Corrections on end, of what others of them have just corrected too: people joined and taken apart, events taken back,
/// refunds, and refunds taken back.
fn burst(random: &mut Random, ids: &[&'static str], calls: &mut Vec<Call>, number: u64, now: i64) -> Vec<String> {
    let (mut lines, mut made) = (Vec::new(), Vec::new());
    for place in 0..3 + random.below(5) {
        let mut call = Call { message: 100 * (number + 1) + place, ..call(random, ids, 0, now) };
        match random.below(6) {
            0 | 1 => {
                (call.kind, call.rest) = ("alias", String::new());
                (call.user, call.previous) = (Some(random.one(ids)), Some(random.one(ids)));
            }
            2 => {
                (call.kind, call.previous, call.rest) = ("track", None, track("refund", random));
                call.timestamp -= 1_000 * random.below(60) as i64;
            }
            3 => {
                lines.push(unlink(random, ids));
                continue;
            }
            drawn => {
                let of = if drawn == 4 && !made.is_empty() { &made } else { &*calls };
                let Some(gone) = random.any(of) else { continue };
                // Another of the person's ids may have sent one of the same message id, which stays.
                if random.chance(50) {
                    let other = (Some(random.one(ids)), None, None);
                    let mut twin = Call { kind: "track", rest: track("view", random), ..gone.clone() };
                    (twin.user, twin.anonymous, twin.previous) = other;
                    lines.push(twin.line());
                }
                lines.push(retract(gone.own(), gone.message));
                continue;
            }
        }
        lines.push(call.line());
        made.push(call);
    }
    calls.extend(made);
    lines
}

/// Two people with long histories, then links between them that come, are taken back, struck and claimed by others, in
/// between events of either.
pub fn merging(random: &mut Random) -> Vec<String> {
    const PEOPLE: [&[&str]; 2] = [&["a", "b"], &["c", "d", "e"]];
    let (mut lines, mut linking, mut now) = (Vec::new(), Vec::<Call>::new(), START);
    let event = |random: &mut Random, message: u64, now: &mut i64| {
        *now += [0, 1, 1_000, 5_000, 10_000, 30_000][random.below(6) as usize];
        let late = if random.chance(20) { 1_000 * random.below(200) as i64 } else { 0 };
        let person = PEOPLE[random.below(2) as usize];
        let mut call = call(random, person, message, *now - late);
        call.previous = call.previous.filter(|_| random.chance(50));
        call.line()
    };
    let alias = |user, previous, message, timestamp| {
        let (user, previous) = (Some(user), Some(previous));
        Call { kind: "alias", message, timestamp, user, anonymous: None, previous, rest: String::new() }
    };
    for (number, (user, previous)) in [("a", "b"), ("c", "d"), ("c", "e")].into_iter().enumerate() {
        lines.push(alias(user, previous, 1_000 + number as u64, now).line());
    }
    lines.extend((0..80).map(|number| event(random, number, &mut now)));
    for message in 100..140 {
        let [ours, theirs] = PEOPLE.map(|person| random.one(person));
        match random.below(10) {
            0..=3 => linking.push(alias(ours, theirs, message, now)),
            // The earlier it says so, the more it takes away from others.
            4 | 5 => {
                let early = now - 1_000 * random.below(300) as i64;
                let mut call = call(random, PEOPLE[0], message, early);
                (call.user, call.anonymous, call.previous) = (Some(ours), Some(theirs), None);
                linking.push(call);
            }
            6 | 7 if !linking.is_empty() => {
                let gone = linking.remove(random.below(linking.len() as u64) as usize);
                lines.push(retract(gone.own(), gone.message));
                continue;
            }
            8 => {
                lines.push(format!(r#"{{"type":"unlink","a":"{ours}","b":"{theirs}"}}"#));
                continue;
            }
            _ => {
                lines.push(event(random, message, &mut now));
                continue;
            }
        }
        lines.push(linking.last().expect("it was just put there").line());
    }
    lines
}

/// Links dated ahead which, before their time comes, are taken back, struck, or lose whom they name, in between events
/// of those whom they would join; then their time comes.
pub fn waiting(random: &mut Random) -> Vec<String> {
    let (mut lines, mut now) = (Vec::new(), START);
    for message in (0..120).step_by(10) {
        let place = random.below(5) as usize;
        let [a, b] = [IDS[place], IDS[(place + 1 + random.below(4) as usize) % 5]];
        let event = |random: &mut Random, message, timestamp| {
            let mut call = call(random, &[a, b], message, timestamp);
            call.anonymous = call.anonymous.filter(|_| call.user.is_none());
            call.previous = None;
            call.line()
        };
        lines.push(event(random, message, now));
        let ahead = now + 1_000 * (20 + random.below(80) as i64);
        let mut link = call(random, &[a], message + 1, ahead);
        (link.kind, link.rest) = ("track", track("view", random));
        (link.user, link.anonymous, link.previous) = (Some(a), Some(b), None);
        if random.chance(50) {
            (link.kind, link.anonymous, link.previous) = ("alias", None, Some(b));
        }
        lines.push(link.line());
        lines.extend(random.chance(50).then(|| event(random, message + 2, now)));
        lines.push(match random.below(6) {
            0..=2 => retract(a, message + 1),
            3 | 4 => format!(r#"{{"type":"unlink","a":"{b}","b":"{a}"}}"#),
            _ => format!(r#"{{"type":"erase","id":"{b}"}}"#),
        });
        now = ahead + 1_000 * random.below(60) as i64;
        lines.extend((3..6).map(|place| event(random, message + place, now)));
    }
    lines
}

fn retract(id: &str, message: u64) -> String {
    format!(r#"{{"type":"retract","id":"{id}","messageId":"m{message}"}}"#)
}

/// A call that links two ids comes again: after it was taken back, or as another that would link otherwise.
fn linked_again(random: &mut Random, ids: &[&'static str], calls: &[Call]) -> Vec<String> {
    let linking: Vec<Call> = calls.iter().filter(|call| call.links()).cloned().collect();
    let Some(mut call) = random.any(&linking) else { return Vec::new() };
    if random.chance(40) {
        return vec![retract(call.own(), call.message), call.line()];
    }
    if random.chance(30) {
        call.timestamp -= 1_000 * random.below(90) as i64;
    }
    for other in [&mut call.anonymous, &mut call.previous].into_iter().flatten() {
        *other = random.one(ids);
    }
    vec![call.line()]
}

/// A call before it is written down.
#[derive(Clone)]
struct Call {
    kind: &'static str,
    message: u64,
    timestamp: i64,
    user: Option<&'static str>,
    anonymous: Option<&'static str>,
    previous: Option<&'static str>,
    /// What it says, without its context.
    rest: String,
}

impl Call {
    fn own(&self) -> &'static str {
        self.user.or(self.anonymous).expect("a call bears an id")
    }

    fn links(&self) -> bool {
        self.user.is_some() && (self.anonymous.is_some() || self.previous.is_some())
    }

    /// The same person, when a window or a timer that began with an earlier call ends, or a ms off: often the same call,
    /// or a purchase, for which earlier calls are touches.
    fn at_an_edge_of(&mut self, earlier: &Call, random: &mut Random) {
        match random.below(4) {
            0 | 1 => *self = Call { message: self.message, ..earlier.clone() },
            2 => (self.kind, self.previous, self.rest) = ("track", None, track("buy", random)),
            _ => {}
        }
        (self.user, self.anonymous) = (earlier.user, earlier.anonymous);
        let off = [0, 0, 0, 1, -1][random.below(5) as usize];
        self.timestamp = earlier.timestamp + SPANS[random.below(6) as usize] + off;
    }

    fn line(&self) -> String {
        let Call { kind, message, timestamp, rest, .. } = self;
        let ids = [("userId", self.user), ("anonymousId", self.anonymous), ("previousId", self.previous)];
        let ids = ids.map(|(key, id)| id.map_or(String::new(), |id| format!(r#","{key}":"{id}""#))).concat();
        // A client may tell traits in the context alone.
        let moves = *kind == "identify" && message.is_multiple_of(3);
        let (rest, told) = if moves { ("", rest.trim_start_matches(',')) } else { (rest.as_str(), "") };
        let context =
            [told, &context(*message)].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(",");
        format!(
            r#"{{"type":"{kind}","messageId":"m{message}","timestamp":{timestamp}{ids}{rest},"context":{{{context}}}}}"#
        )
    }
}

fn call(random: &mut Random, ids: &[&'static str], message: u64, timestamp: i64) -> Call {
    let kind =
        random.one(&["track", "track", "track", "track", "track", "page", "screen", "identify", "alias", "group"]);
    let (user, anonymous) = match random.below(4) {
        0 => (Some(random.one(ids)), Some(random.one(ids))),
        1 | 2 => (Some(random.one(ids)), None),
        _ => (None, Some(random.one(ids))),
    };
    let mut rest = String::new();
    match kind {
        "track" => {
            let event = random.one(&["view", "view", "add", "buy", "click", "refund"]);
            rest = track(event, random);
        }
        "page" => write!(rest, r#","properties":{{"path":"/{}"}}"#, random.below(3)).unwrap(),
        "screen" => write!(rest, r#","name":"s{}""#, random.below(3)).unwrap(),
        "identify" => {
            let (plan, age) = (random.one(&["\"gold\"", "\"free\"", "null", "7"]), random.below(3) * 10);
            let city = random.one(&["x", "y", "b"]);
            write!(rest, r#","traits":{{"plan":{plan},"age":{age},"home":{{"city":"{city}"}}}}"#).unwrap();
        }
        "group" => write!(rest, r#","groupId":"g""#).unwrap(),
        _ => {}
    }
    let previous = (kind == "alias").then(|| random.one(ids));
    Call { kind, message, timestamp, user, anonymous, previous, rest }
}

fn track(event: &str, random: &mut Random) -> String {
    format!(r#","event":"{event}","properties":{{{}}}"#, properties(random))
}

fn properties(random: &mut Random) -> String {
    let value = random.one(&["1", "2.5", "10", "0.0000005", "\"7\"", "null", "-3", "true", "1e13", "9000000000000"]);
    let item = random.one(&["\"shoe\"", "\"hat\"", "3", "null", "true", "[1,2]", "\"c\""]);
    let order = random.one(&["\"o1\"", "\"o2\"", "1", "null"]);
    let channel = random.one(&["\"mail\"", "\"ads\"", "\"direct\"", "null", "\"e\""]);
    // Each named by one definition alone, which may come late.
    let odd = format!(r#""size":{},"colour":{},"grade":{}"#, random.below(3), random.below(3), random.below(3));
    format!(
        r#""value":{value},"item":{item},"order":{order},"channel":{channel},"campaign":"k{}",{odd}"#,
        random.below(2)
    )
}

/// A function of the message id alone: two calls that count as the same call must not differ in what does not count.
fn context(message: u64) -> String {
    let mut random = Random::new(message + 1_000);
    let mut parts = Vec::new();
    if random.chance(20) {
        parts.push(format!(
            r#""campaign":{{"medium":"{}","name":"u{}"}}"#,
            random.one(&["cpc", "email"]),
            random.below(2)
        ));
    }
    if random.chance(30) {
        parts.push(format!(r#""device":{{"type":"{}"}}"#, random.one(&["ios", "web"])));
    }
    if random.chance(40) {
        parts.push(format!(r#""consent":{{"categoryPreferences":{{"marketing":{}}}}}"#, random.chance(60)));
    }
    if random.chance(20) {
        parts.push(format!(r#""page":{{"path":"/c{}"}}"#, random.below(2)));
    }
    parts.join(",")
}

/// What definitions have by name, and what refers to a document of that kind by its name.
const KINDS: [(&str, &[&str]); 4] =
    [("traits", &["trait"]), ("segments", &["segment", "audience"]), ("journeys", &["journey"]), ("campaigns", &[])];

/// The same definitions after some documents were changed, taken away, and put in that were not there.
pub fn changed(random: &mut Random, standing: &str) -> String {
    let read = |text: &str| serde_json::from_str::<Value>(text).expect("definitions are JSON");
    let (mut changed, drawn) = (read(standing), read(&definitions(random)));
    for (key, value) in drawn.as_object().expect("an object") {
        let Some(documents) = value.as_object().filter(|_| KINDS.iter().any(|(kind, _)| kind == key)) else {
            if random.chance(20) {
                changed[key] = value.clone();
            }
            continue;
        };
        let standing = changed[key].as_object_mut().expect("documents by name");
        for (name, document) in documents {
            match random.below(8) {
                0 => drop(standing.remove(name)),
                1 | 2 => drop(standing.insert(name.clone(), document.clone())),
                _ => {}
            }
        }
    }
    // Whatever refers to what is not there has to go too.
    let names = |of: &Value| KINDS.map(|(kind, _)| of[kind].as_object().expect("documents").keys().cloned().collect());
    let all: [Vec<String>; 4] = names(&drawn);
    loop {
        let there: [Vec<String>; 4] = names(&changed);
        let gone: Vec<(usize, &String)> = (0..KINDS.len())
            .flat_map(|kind| {
                all[kind]
                    .iter()
                    .filter(|name| !there[kind].contains(name))
                    .map(move |name| (kind, name))
                    .collect::<Vec<_>>()
            })
            .collect();
        let mut left = 0;
        for (kind, _) in KINDS {
            let documents = changed[kind].as_object_mut().expect("documents by name");
            let before = documents.len();
            documents.retain(|_, document| !gone.iter().any(|(kind, name)| refers(document, *kind, name)));
            left += before - documents.len();
        }
        if left == 0 {
            return changed.to_string();
        }
    }
}

/// What definitions that follow others see when all that is new among them sees only what is later than an instant: by
/// name, or by the place in a list, up to when they see nothing.
pub fn horizons(before: &str, after: &str, seen: &BTreeMap<String, i64>, from: i64) -> BTreeMap<String, i64> {
    let [before, after] =
        [before, after].map(|text| serde_json::from_str::<Value>(text).expect("definitions are JSON"));
    let mut all = BTreeMap::new();
    for (kind, _) in KINDS {
        for (name, document) in after[kind].as_object().expect("documents by name") {
            let key = format!("{kind}/{name}");
            let horizon = if before[kind].get(name) == Some(document) { seen.get(&key).copied() } else { Some(from) };
            all.extend(horizon.map(|horizon| (key, horizon)));
        }
    }
    for kind in ["touchpoints", "conversions"] {
        let rules = |of: &Value| of[kind].as_array().cloned().unwrap_or_default();
        for (place, rule) in rules(&after).iter().enumerate() {
            let stood = rules(&before).iter().position(|other| other == rule);
            let horizon = stood.map_or(Some(from), |stood| seen.get(&format!("{kind}/{stood}")).copied());
            all.extend(horizon.map(|horizon| (format!("{kind}/{place}"), horizon)));
        }
    }
    all
}

/// Whether a document speaks of another of some kind.
fn refers(document: &Value, kind: usize, name: &str) -> bool {
    match document {
        Value::Object(entries) => entries.iter().any(|(key, value)| match value {
            Value::String(text) if key == "where" => kind == 0 && text.contains(&format!("computed.{name}")),
            Value::String(text) => KINDS[kind].1.contains(&key.as_str()) && text == name,
            _ => refers(value, kind, name),
        }),
        Value::Array(items) => items.iter().any(|item| refers(item, kind, name)),
        _ => false,
    }
}

/// Definitions that look at everything, with windows that are hit exactly.
pub fn definitions(random: &mut Random) -> String {
    let within = random.one(&["30s", "60s", "61s", "120s"]);
    let gap = random.one(&["30s", "60s"]);
    let lookback = random.one(&["60s", "60s", "120s", "1h"]);
    let reset = random.chance(50);
    let path_max = random.one(&["1", "2", "100"]);
    let max_ids = random.one(&["2", "3", "100", "100"]);
    let zone = random.one(&["UTC", "Etc/GMT-2"]);
    let most = random.one(&["1", "2"]);
    let refund_value = random.one(&["", r#","value":"properties.value""#]);
    format!(
        r#"{{"version":1,
"sessions":{{"gap":"{gap}","buying":["add"]}},
"timezone":"{zone}",
"identity":{{"max_ids":{max_ids}}},
"touchpoints":[{{"event":"click","where":"properties.channel != \"direct\" || properties.value > 2","channel":"properties.channel","campaign":"properties.campaign"}},
  {{"event":"page_view","channel":"\"page\""}}],
"conversions":[{{"name":"buy","event":"buy","id":"properties.order","value":"properties.value","refund":{{"event":"refund","id":"properties.order"{refund_value}}}}},
  {{"name":"add","event":"add","where":"properties.item == \"hat\"","value":"properties.value"}}],
"attribution":{{"lookback":"{lookback}","time_decay":{{"half_life":"30s"}},"path_max":{path_max},"reset_on_conversion":{reset},"models":["first_touch","last_touch","last_non_direct","linear","time_decay","position_based"]}},
"traits":{{
  "views":{{"count":"view"}},
  "views_w":{{"count":"view","within":"{within}"}},
  "spent":{{"sum":"properties.value","of":["buy","add"],"within":"{within}"}},
  "least":{{"min":"properties.value","of":"view","within":"{within}"}},
  "most":{{"max":"properties.value","of":"view"}},
  "mean":{{"average":"properties.value","of":["view","buy"]}},
  "first_item":{{"first":"properties.item","of":"view","within":"{within}"}},
  "last_item":{{"last":"properties.item","of":"view","where":"properties.item != true"}},
  "items":{{"unique":"properties.item","of":["view","add"],"within":"{within}"}},
  "favourite":{{"most_frequent":"properties.item","of":["view","add"]}},
  "hot":{{"count":"buy","where":"computed.views_w >= 1"}},
  "visits":{{"count":"session","within":"{within}"}},
  "visit_events":{{"sum":"events","of":"session"}},
  "visit_value":{{"average":"value","of":"session","within":"{within}"}},
  "sizes":{{"unique":"properties.size","of":"view"}},
  "colour":{{"last":"properties.colour","of":["view","add","buy"],"within":"{within}"}},
  "days":{{"unique":"day","of":"session"}}}},
"segments":{{
  "new":{{"visitor":"first_time"}},
  "back":{{"visitor":"returning"}},
  "payer":{{"visitor":"paying"}},
  "known":{{"visitor":"known"}},
  "viewer":{{"trait":"views_w","at_least":2}},
  "spender":{{"any":[{{"trait":"spent","above":2}},{{"trait":"most","equals":10}}]}},
  "gold":{{"all":[{{"trait":"plan","one_of":["gold",7]}},{{"not":{{"segment":"viewer"}}}}]}},
  "quiet":{{"not_performed":"view","within":"{within}"}},
  "hatter":{{"performed":"view","where":"properties.item == \"hat\" || traits.home.city == \"x\"","times":{{"at_most":1}},"within":"{within}"}},
  "few":{{"sessions":{{"at_least":2,"within":"{within}"}}}},
  "shopper":{{"sequence":[{{"performed":"view","times":2,"within":"{within}"}},{{"performed":"add","within":"{within}"}}]}},
  "window":{{"sequence":[{{"performed":"view"}},{{"not_performed":"add","within":"{within}"}}],"recent":"{within}"}},
  "graded":{{"performed":"view","where":"properties.grade == 2","times":2}},
  "gone":{{"sequence":[{{"performed":"add"}},{{"not_performed":"buy","within":"{within}"}}]}},
  "carted":{{"journey":"cart","state":"carted"}},
  "left":{{"all":[{{"performed":"cart_left","within":"{within}"}},{{"trait":"views","exists":true}}]}}}},
"journeys":{{
  "cart":{{"start":"idle","states":{{
    "idle":{{"transitions":[{{"event":"add","to":"carted","segment":"known"}},{{"event":"add","to":"idle","where":"properties.value > 2"}}],"timers":[{{"after":"120s","since":"any_event","emit":"bored"}}]}},
    "carted":{{"transitions":[{{"event":"buy","to":"bought"}},{{"event":"add","to":"carted"}}],
      "timers":[{{"after":"30s","emit":"reminder"}},{{"after":"60s","since":"add","emit":"cart_left","to":"left"}}]}},
    "bought":{{"timers":[{{"after":"{within}","since":"view","to":"idle"}}]}},
    "left":{{"transitions":[{{"event":"view","to":"idle"}}]}}}}}},
  "after":{{"start":"none","states":{{
    "none":{{"transitions":[{{"event":"cart_left","to":"told","where":"properties.from == \"carted\""}}]}},
    "told":{{"transitions":[{{"event":"click","to":"none"}}],"timers":[{{"after":"60s","since":"cart_left","to":"none"}}]}}}}}}}},
"campaigns":{{
  "hello":{{"when":{{"event":"view"}},"audience":"new","channel":"popup","data":{{"b":1.50,"a":"x"}}}},
  "again":{{"when":{{"event":"view","where":"properties.value >= 1"}},"channel":"popup","cap":{{"at_most":1,"per":"{within}"}},"tags":["t"]}},
  "come_back":{{"when":{{"journey":"cart","state":"left"}},"channel":"mail","consent":"marketing","hold":"5s","tags":["t"],"priority":2,"cap":{{"at_most":{most},"per":"{within}","tag":"t"}}}},
  "lost":{{"when":{{"event":"cart_left"}},"channel":"mail","tags":["t"],"hold":"30s","quiet_hours":{{"from":"02:01","to":"00:02"}}}},
  "yawn":{{"when":{{"event":"bored"}},"channel":"popup"}},
  "entered":{{"when":{{"segment":"quiet"}},"channel":"mail","audience":"back"}},
  "poster":{{"when":{{"every":"60s","from":"2026-01-01T00:00:30Z","segment":"quiet"}},"channel":"mail"}},
  "once":{{"when":{{"at":"2026-01-01T00:01:00Z","segment":"known"}},"channel":"mail"}}}},
"channels":{{"popup":{{"deliver":"sse","realtime":true}},"mail":{{"deliver":"nats"}}}}}}"#
    )
}
