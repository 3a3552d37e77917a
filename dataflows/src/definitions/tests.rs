//! Tables of files, good and bad, with what must be said of them.

use super::*;
use crate::condition::Term;
use crate::time::{HOUR, MINUTE, parse_instant};
use crate::value::Value;

/// Every section and key of the form, some of them not built yet.
const EVERYTHING: &str = include_str!("tests/everything.yaml");

/// The definitions that benchmarks run with.
const BENCH: &str = include_str!("tests/bench.yaml");

const EXPERIMENT: &str = ",
                    experiment: { name: come_back_subject, variants: { plain: 45, emoji: 45 }, holdout: 10 }";

/// What of [`EVERYTHING`] is not built yet: the text to take out or replace, and where it is.
const LATER: [(&str, &str, &str); 6] = [
    (", markov", "", "attribution.models[6]"),
    (", shapley", "", "attribution.models[7]"),
    (", incremental]", "]", "attribution.models[8]"),
    (EXPERIMENT, "", "campaigns.come_back.experiment"),
    ("metrics: ", "# ", "metrics"),
    ("funnels: ", "# ", "funnels"),
];

fn parse(text: &str) -> Definitions {
    let (definitions, warnings) = Definitions::parse(text).unwrap_or_else(|problems| panic!("{text}\n{problems:#?}"));
    assert_eq!(warnings, [], "{text}");
    definitions
}

fn problems(text: &str) -> Vec<Problem> {
    Definitions::parse(text).expect_err(text)
}

/// The line, counted from 1, on which a text first stands.
fn line_with(text: &str, part: &str) -> usize {
    text[..text.find(part).unwrap_or_else(|| panic!("{part}"))].matches('\n').count() + 1
}

#[test]
fn what_is_not_built_yet_is_said_with_its_place() {
    let lines = ["markov", "shapley", "incremental", "experiment:", "metrics:", "funnels:"];
    let found = problems(EVERYTHING);
    assert_eq!(found.len(), LATER.len(), "{found:#?}");
    for ((problem, (_, _, path)), line) in found.iter().zip(LATER).zip(lines) {
        assert_eq!(problem.path, path);
        assert_eq!(problem.line, line_with(EVERYTHING, line), "{path}");
        assert!(problem.message.ends_with("is not in this version"), "{problem}");
    }
}

fn everything_built() -> String {
    LATER.iter().fold(EVERYTHING.to_string(), |text, (old, new, _)| text.replacen(old, new, 1))
}

#[test]
fn everything_built_is_read() {
    let read = parse(&everything_built());
    assert_eq!(read.attribution.models.len(), 6);
    assert_eq!(read.attribution.minimum_conversions, 30);
    assert_eq!(read.write_keys, [WriteKey { key: "demo".into(), origins: vec!["*".into()] }]);
    assert_eq!(read.privacy.pseudonymise, [crate::condition::Path::parse("context.ip").unwrap()]);
    assert_eq!(read.schemas["purchase"].required["value"], SchemaType::Number);
    assert_eq!(read.touchpoints[1].channel, Some(Term::parse("'email'").unwrap()));
    assert_eq!(read.conversions[0].refund.as_ref().unwrap().event, "refund");
    assert_eq!(read.traits["visits_30d"].of, Source::Sessions);
    assert_eq!(
        read.segments["lapsed"],
        Segment::All(vec![
            Segment::Performed { event: "purchase".into(), condition: None, test: CountTest::AtLeast(1), within: None },
            Segment::Performed {
                event: "purchase".into(),
                condition: None,
                test: CountTest::Exactly(0),
                within: Some(90 * DAY)
            },
        ])
    );
    let Segment::Sequence { steps, absence, recent: None } = &read.segments["window_shopper"] else { panic!() };
    assert_eq!((steps.len(), steps[0].times), (1, 3));
    assert_eq!(absence.as_ref().map(|a| (a.event.as_str(), a.within)), Some(("add_to_cart", 30 * MINUTE)));
    assert_eq!(
        read.journeys["cart"].states["carted"].timers[0],
        Timer {
            after: 4 * HOUR,
            since: Since::Event("add_to_cart".into()),
            emit: Some("cart_abandoned".into()),
            to: Some("abandoned".into())
        }
    );
    let come_back = &read.campaigns["come_back"];
    assert_eq!(come_back.quiet_hours, Some(QuietHours { from: 22 * 60, to: 8 * 60 }));
    assert_eq!(come_back.cap, Some(Cap { at_most: 1, per: 7 * DAY, tag: None }));
    assert_eq!((come_back.hold, come_back.expires, come_back.priority), (5 * MINUTE, Some(DAY), 10));
    assert_eq!(read.campaigns["welcome_coupon"].data.as_deref(), Some(r#"{"amount":5}"#));
    let Some(from) = parse_instant("2026-01-05T09:00:00Z") else { panic!() };
    assert_eq!(read.campaigns["monday_poster"].when, When::Every { every: 7 * DAY, from, segment: "lapsed".into() });
    assert_eq!(read.channels["queue"], Channel { deliver: Deliver::Nats, realtime: false, revocations: false });
}

#[test]
fn the_benchmark_is_read() {
    let read = parse(BENCH);
    assert_eq!(read.journeys["cart"].states.len(), 7);
    assert_eq!(read.attribution.models, [Model::LastTouch, Model::Linear]);
    assert_eq!(read.order.len(), 3 + 3 + 1);
}

#[test]
fn what_is_not_written_has_its_default() {
    assert_eq!(parse("version: 1"), Definitions::default());
    assert_eq!(parse("traits:\nsegments: {}\ntouchpoints: []\nconversions:\n"), Definitions::default());
    let json = r#"{"version": 1, "channels": {"a": {"deliver": "sse"}},
	"campaigns": {"c": {"when": {"event": "x"}, "channel": "a", "template": "\ud83c\udf89 \/ \u00e9", "data":
	{"z": [1.50, -2e3, 12345678901234567890, null, "\n\""], "a": {"b": true}}}}}"#;
    let campaign = &parse(json).campaigns["c"];
    assert_eq!(campaign.template.as_deref(), Some("🎉 / é"));
    let data = r#"{"a":{"b":true},"z":[1.50,-2e3,12345678901234567890,null,"\u000a\""]}"#;
    assert_eq!(campaign.data.as_deref(), Some(data));
}

#[test]
fn every_form_of_everything_is_read() {
    let text = r#"
lateness: unlimited
retention: 365d
lateness_note: &unused
"#;
    assert!(problems(text).iter().any(|problem| problem.path == "lateness_note"));
    let read = parse(
        r#"
lateness: 0s
retention: 365d
timezone: europe/berlin
sessions: { buying: add_to_cart }
attribution: { path_max: 3, reset_on_conversion: true, utm: false, models: [] }
conversions: [ { name: a, event: e }, { name: a, event: f, where: properties.x } ]
traits:
  a: { unique: day, of: session }
  b: { average: length_ms, of: session, within: 7d }
  c: { most_frequent: 'properties["Order ID"]', of: e, where: computed.a > 1 }
  d: { count: [e, f] }
segments:
  a: { trait: told, equals: "gold" }
  b: { trait: a, one_of: [1, two, true] }
  c: { not: { trait: a, exists: false } }
  d: { sessions: { at_most: 3, within: 30d } }
  e: { performed: e, times: 2 }
  f: { performed: e, times: { at_most: 2 } }
  g:
    sequence: [ { performed: e }, { performed: f, times: { at_least: 2 }, within: 1h, where: type == "track" } ]
    recent: 1d
  h: &shared { any: [ { visitor: returning }, { visitor: paying } ] }
  i: { all: [ *shared, { segment: c } ] }
journeys:
  j:
    start: one
    states:
      one: { timers: [ { after: 1d, to: two }, { after: 2d, since: any_event, emit: bored } ] }
      two:
campaigns:
  a: { when: { segment: a }, channel: c, tags: x, cap: { at_most: 0, per: 1d, tag: x } }
  b: { when: { at: 1767240000000, segment: a }, channel: c, quiet_hours: { from: 22:00, to: 08:00 } }
  c: { when: { event: bored, where: has(properties.from) }, channel: c, priority: -3 }
channels:
  c: { deliver: webhook, url: "https://example.com/hook" }
"#,
    );
    assert_eq!(read.timezone, "Europe/Berlin");
    assert_eq!((read.lateness, read.retention), (Some(0), Some(365 * DAY)));
    assert_eq!(read.sessions.buying, ["add_to_cart"]);
    assert_eq!(read.attribution.models, []);
    assert_eq!(read.traits["b"].op, TraitOp::SessionAverage(SessionField::LengthMs));
    let values = vec![Value::number("1"), Value::text("two"), Value::Bool(true)];
    let test = TraitTest::OneOf(values);
    assert_eq!(read.segments["b"], Segment::Trait { name: "a".into(), test });
    let Segment::All(both) = &read.segments["i"] else { panic!() };
    assert_eq!(both[0], read.segments["h"]);
    assert_eq!(read.journeys["j"].states["two"], State::default());
    let url = "https://example.com/hook".into();
    assert_eq!(read.channels["c"].deliver, Deliver::Webhook { url, secret_env: None, timeout: 5000 });
}

#[test]
fn order_puts_everything_after_what_it_reads() {
    let read = parse(
        r#"
traits: { a: { count: x, where: computed.b > 1 }, b: { count: x } }
segments:
  a: { segment: z }
  m: { journey: j, state: s }
  n: { performed: emitted }
  z: { trait: a, at_least: 1 }
journeys:
  j:
    start: s
    states: { s: { transitions: [ { event: x, segment: z, to: s } ], timers: [ { after: 1d, emit: emitted } ] } }
  i: { start: s, states: { s: { timers: [ { after: 1d, since: emitted, to: s } ] } } }
"#,
    );
    let order: Vec<String> = read.order.iter().map(|j| format!("{} {}", j.parts().0, j.parts().1)).collect();
    let expected = "trait b, trait a, segment z, segment a, journey j, segment m, segment n, journey i";
    assert_eq!(order.join(", "), expected);
}

/// Files, each followed by the one problem that it must have.
const BAD: &str = include_str!("tests/bad.txt");

/// Files, each followed by the one warning that it must have.
const DOUBTFUL: &str = include_str!("tests/doubtful.txt");

#[test]
fn every_bad_file_has_exactly_its_problem() {
    check(BAD, problems);
}

#[test]
fn every_doubtful_file_has_exactly_its_warning() {
    check(DOUBTFUL, |text| Definitions::parse(text).unwrap_or_else(|problems| panic!("{text}\n{problems:#?}")).1);
}

/// Compares what is found in each file of a table with the one line that follows it.
fn check(table: &str, find: impl Fn(&str) -> Vec<Problem>) {
    let mut wrong = String::new();
    let mut text = String::new();
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let Some(expected) = line.strip_prefix("=> ") else {
            text.push_str(if line == "C" { "channels: { ch: { deliver: nats } }" } else { line });
            text.push('\n');
            continue;
        };
        let found = find(&text);
        let parts: Vec<&str> = expected.split('|').map(str::trim).collect();
        let right = match (found.as_slice(), parts.as_slice()) {
            ([found], [path, line, fragment, nearest]) => {
                found.path == *path
                    && found.line.to_string() == *line
                    && found.message.contains(fragment)
                    && found.nearest.as_deref().unwrap_or_default() == *nearest
            }
            _ => false,
        };
        if !right {
            wrong.push_str(&format!("{text}expected {expected}\nfound {found:#?}\n\n"));
        }
        text.clear();
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn empty_files_and_tabs_are_refused() {
    for (text, line, fragment) in [
        ("", 1, "the file is empty"),
        ("# only a comment\n", 1, "the file is empty"),
        ("traits:\n\tt: { count: x }", 2, "tab"),
    ] {
        let found = problems(text);
        assert_eq!((found.len(), found[0].line), (1, line), "{text:?}");
        assert!(found[0].message.contains(fragment), "{found:?}");
    }
}

#[test]
fn all_problems_come_at_once_by_line() {
    let text = "version: 3\ntraits:\n  a: { cuont: x }\n  b: { sum: properties, of: x, within: 0d }\nsegments:\n  \
        s: { all: [ { segment: q }, { visitor: me }, { not: { segment: s } } ] }\n";
    let found: Vec<(usize, String)> = problems(text).into_iter().map(|p| (p.line, p.path)).collect();
    let expected = [
        (1, "version"),
        (3, "traits.a.cuont"),
        (4, "traits.b.sum"),
        (4, "traits.b.within"),
        (6, "segments.s"),
        (6, "segments.s.all[0].segment"),
        (6, "segments.s.all[1].visitor"),
    ];
    assert_eq!(found, expected.map(|(line, path)| (line, path.to_string())));
}

#[test]
fn every_cycle_is_found() {
    let both = "a: { any: [ { segment: b }, { segment: c } ] }";
    let text = format!("segments: {{ {both}, b: {{ segment: a }}, c: {{ segment: a }}, d: {{ segment: d }} }}");
    let found: Vec<String> = problems(&text).into_iter().map(|p| p.message).collect();
    assert_eq!(found.len(), 3, "{found:?}");
    for cycle in ["a -> b -> a", "a -> c -> a", "d -> d"] {
        assert!(found.iter().any(|message| message.ends_with(cycle)), "{cycle}: {found:?}");
    }
}

#[test]
fn names_that_differ_on_purpose_are_no_slips() {
    parse("segments: { a: { performed: step_1 }, b: { performed: step_2 }, c: { trait: plan, equals: gold } }");
}

#[test]
fn problems_print_as_one_line() {
    let found = problems("segmnets: {}");
    assert_eq!(found[0].to_string(), "line 1: segmnets: unknown key `segmnets` (did you mean `segments`?)");
}

#[test]
fn lines_of_paths_are_found() {
    let line = line_with(EVERYTHING, "one_plus_one:");
    assert_eq!(line_of(EVERYTHING, "campaigns.one_plus_one.template"), Some(line));
    assert_eq!(line_of(EVERYTHING, "segments.vip.any[1].at_least"), Some(line_with(EVERYTHING, "vip: ")));
    assert_eq!(line_of(EVERYTHING, "campaigns.nobody"), None);
    assert_eq!(line_of("{", "campaigns"), None);
}

#[test]
fn nothing_exhausts_it() {
    let deep = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    let mut tower = String::from("a0: &a0 [x]\n");
    for i in 1..500 {
        let j = i - 1;
        bomb.push_str(&format!("a{i}: &a{i} [*a{j}, *a{j}, *a{j}, *a{j}, *a{j}, *a{j}, *a{j}, *a{j}, *a{j}]\n"));
        tower.push_str(&format!("a{i}: &a{i} [*a{j}]\n"));
    }
    let chain: String = (0..20_000).map(|i| format!("  s{i}: {{ segment: s{} }}\n", (i + 1) % 20_000)).collect();
    let nots = format!("segments: {{ s: {} }}", deep("{ not: ", "}"));
    let cases = [
        (deep("[", "]"), "nest"),
        (deep("{a: ", "}"), "nest"),
        (deep("- ", ""), "nest"),
        (nots, "nest"),
        (bomb, "values"),
        (tower, "deeper"),
        ("x".repeat(5 << 20), "larger"),
        (format!("segments:\n{chain}"), "cycle"),
    ];
    for (text, fragment) in cases {
        let found = problems(&text);
        let message = found[0].message.to_lowercase();
        assert!(message.contains(fragment) || message.contains("recursion"), "{fragment}: {message:.200}");
    }
}

/// Bytes changed, dropped, doubled and swapped, in files with everything in them: an answer, never a panic.
#[test]
fn no_text_makes_it_panic() {
    let pieces = [
        "{",
        "}",
        "[",
        "]",
        ":",
        "- ",
        "\n",
        "\n  ",
        "'",
        "\"",
        "&a ",
        "*a",
        "!!str ",
        "? ",
        "|\n",
        ">",
        "#",
        ",",
        "null",
        "-1",
        "1e400",
        "é",
        "\t",
        "\u{feff}",
        "%YAML 1.2\n---\n",
        "<<: ",
        "\0",
        "0d",
        "computed.x",
        "\\",
        "@",
        "`",
        "...\n",
    ];
    let everything = everything_built();
    let mut state = 42u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..3_000 {
        let mut chars: Vec<char> = if round % 2 == 0 { everything.chars().collect() } else { BENCH.chars().collect() };
        if round % 5 == 0 {
            let start = random(chars.len());
            chars = chars.into_iter().skip(start).take(300).collect();
        }
        for _ in 0..=random(4) {
            let (from, to) = (random(chars.len()), random(chars.len()));
            match random(4) {
                0 => chars.swap(from, to),
                1 => drop(chars.drain(from..(from + 1 + random(20)).min(chars.len()))),
                2 => chars.splice(from..from, pieces[random(pieces.len())].chars()).for_each(drop),
                _ => chars = [&chars[..from], &chars[from.min(to)..]].concat(),
            }
            chars.push('\n');
        }
        let text: String = chars.into_iter().collect();
        match Definitions::parse(&text) {
            Ok(_) => {}
            Err(problems) => assert!(problems.iter().all(|problem| problem.line >= 1), "{problems:#?}"),
        }
    }
}
