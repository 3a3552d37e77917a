//! Several processes of the real binary as one: whichever is written to or asked, the answers are those of one process
//! that was told the same.

mod asked;
mod histories;
mod process;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use asked::{answers, assert_same, corrected, is_call, law, lines, send};
use dataflows::place::place;
use histories::Random;
use process::http::Answer;
use process::{Home, Server, free_port, until};
use serde_json::{Value, json};
use server::log::Log;
use server::record::{self, CLOCK, CORRECTION, Clock, EVENT};

const PATIENCE: Duration = Duration::from_secs(10);

/// A folder with definitions and a file of so many hosts.
fn home(definitions: &str, processes: usize) -> Home {
    let home = Home::new(definitions);
    let hosts: Vec<String> = (0..processes).map(|_| format!("127.0.0.1:{}\n", free_port())).collect();
    home.write("hosts", hosts.concat());
    home
}

/// Starts one of the processes, and waits for nothing.
fn launch(home: &Home, process: usize, flags: &[&str]) -> Server {
    let (process, data) = (process.to_string(), format!("data{process}"));
    let among = ["--hosts", "hosts", "--process", &process, "--data", &data];
    home.launch(&[&among, flags].concat())
}

/// Starts so many processes, and waits until all are ready.
fn team(home: &Home, processes: usize, flags: &[&str]) -> Vec<Server> {
    let launched: Vec<Server> = (0..processes).map(|process| launch(home, process, flags)).collect();
    launched.into_iter().map(|server| server.ready().expect("its port was free a moment ago")).collect()
}

#[test]
fn whichever_is_written_to_or_asked_the_answers_are_those_of_one() {
    for (seed, processes) in [(1, 2), (2, 3)] {
        let mut random = Random::new(seed);
        let definitions = histories::definitions(&mut random);
        let lines = lines(&mut random, 1);
        let (many, one) = (home(&definitions, processes), Home::new(&definitions));
        let (team, alone) = (team(&many, processes, &["--clock", "events"]), one.start(&["--clock", "events"]));
        let (mut after, mut last) = (String::new(), String::new());
        for (number, line) in lines.iter().enumerate() {
            after = send(&team[random.below(processes as u64) as usize], line);
            last = send(&alone, line);
            // Now and then what one took is asked of another.
            if number % 40 == 39 {
                let asked = &team[random.below(processes as u64) as usize];
                assert_same(&answers(asked, &after), &answers(&alone, &last), &format!("seed {seed}, line {number}"));
            }
        }
        let expected = answers(&alone, &last);
        for (process, server) in team.iter().enumerate() {
            assert_same(&answers(server, &after), &expected, &format!("seed {seed}, process {process}"));
        }
        // What became of messages is known everywhere, though one sends them.
        let fates = |server: &Server| law_free(server.get("/v1/campaigns"));
        until(PATIENCE, "all know what was sent", || {
            team.iter().all(|server| fates(server) == fates(&team[0])).then_some(())
        });
        assert_eq!(team[1].read("/v1/channels")["items"], team[0].read("/v1/channels")["items"]);
        let firsts: Vec<_> = team.iter().map(|server| server.subscribe("view=intents").snapshot().len()).collect();
        assert!(firsts.iter().all(|first| *first == firsts[0]), "{firsts:?}");
    }
}

/// The items of a list, as they are.
fn law_free(answer: Answer) -> Value {
    answer.json()["items"].take()
}

/// The calls and clocks that the logs of a team hold, in the order of their places, as lines of a file.
fn recorded(home: &Home, processes: usize) -> Vec<String> {
    let mut lines = BTreeMap::new();
    for process in 0..processes {
        let log = Log::open(&home.path(&format!("data{process}"))).expect("the log is sound").log;
        let mut reader = log.reader();
        while let Some((record, (time, index))) = reader.next().expect("the log is sound") {
            let line = match record.kind {
                EVENT => record::decode_event(record.payload).expect("an event").3.to_owned(),
                CLOCK => {
                    let Clock { to } = serde_json::from_slice(record.payload).expect("a clock");
                    json!({"type": "clock", "to": to}).to_string()
                }
                CORRECTION => corrected(serde_json::from_slice(record.payload).expect("a correction")),
                _ => continue,
            };
            lines.insert(place(time, process, index), line);
        }
    }
    lines.into_values().collect()
}

/// When one is killed all end, and when all are started again they answer as one that was told what their logs hold.
#[test]
fn a_team_that_is_killed_again_and_again_goes_on_where_it_was() {
    const KILLS: u64 = 6;
    let mut random = Random::new(77);
    let home = home(&histories::definitions(&mut random), 2);
    let mut sent = lines(&mut random, 3).into_iter();
    let mut acknowledged = 0;
    for life in 0..KILLS {
        let mut servers = team(&home, 2, &["--clock", "events"]);
        for line in sent.by_ref().take(20 + random.below(60) as usize) {
            send(&servers[random.below(2) as usize], &line);
            acknowledged += usize::from(is_call(&line));
        }
        let (victim, survivor) = (servers.remove((life % 2) as usize), servers.remove(0));
        victim.kill();
        let killed = Instant::now();
        let host = format!("process {} at 127.0.0.1:", life % 2);
        until(Duration::from_secs(1), "the other says why it ends", || survivor.said().contains(&host).then_some(()));
        let status = survivor.ends(Duration::from_secs(1)).expect("it ends too");
        assert_eq!(status.code(), Some(1), "after {:?}", killed.elapsed());
    }
    let servers = team(&home, 2, &["--clock", "events"]);
    let found: Vec<_> = servers.iter().map(|server| answers(server, "0")).collect();
    assert_same(&found[0], &found[1], "after all kills");
    servers[1].signal("TERM");
    for server in servers {
        assert!(server.ends(PATIENCE).expect("who is asked to end, ends, and the other with it").success());
    }
    let lines = recorded(&home, 2);
    let events = lines.iter().filter(|line| is_call(line)).count();
    assert_eq!(events, acknowledged, "what was acknowledged was kept, and nothing else was sent");
    home.write("recorded.ndjson", lines.join("\n"));
    let replayed = home.replay("recorded.ndjson", &["--lateness", "30d"]);
    let ids = ["a", "b", "c", "d", "e"].into_iter();
    let mut paths: Vec<String> = ids.map(|id| format!("/v1/profiles/{id}")).collect();
    paths.push("/v1/sessions".into());
    for path in paths {
        let key = path.strip_prefix("/v1/").expect("a path").to_owned();
        let answer = replayed.get(&path);
        assert_eq!((answer.status, law(answer.json())), found[0][&key], "{path}");
    }
}

/// What a condition selects is looked for in every log; where one cannot be read nothing is taken back.
#[test]
fn what_a_condition_selects_is_taken_back_whichever_log_holds_it() {
    let home = home("version: 1\nsegments:\n  buyers: { performed: purchase }\n", 2);
    let servers = team(&home, 2, &["--clock", "events"]);
    let mut after = String::new();
    for number in 0..12 {
        let call = json!({"type": "track", "event": "purchase", "userId": format!("u{number}"),
            "messageId": format!("m{number}"), "timestamp": 1_767_225_600_000_i64 + number,
            "properties": {"bot": number % 3 == 0}});
        let answer = servers[number as usize % 2].write("/v1/batch", &json!({"batch": [call]}));
        after = answer["position"].as_str().expect("a position").to_owned();
    }
    let retract = |process: usize, preview: bool| {
        let body = json!({"where": "properties.bot", "preview": preview}).to_string();
        servers[process].post("/v1/events:retract", body)
    };
    let size = |process: usize, after: &str| {
        servers[process].read(&format!("/v1/segments?after={after}"))["items"][0]["size"].clone()
    };
    assert_eq!(size(0, &after), 12);
    // The log of the other is damaged behind its back: its first group of calls is no more what it was.
    let segment = std::fs::read_dir(home.path("data1")).expect("a log").filter_map(|file| Some(file.ok()?.path()));
    let segment =
        segment.filter(|path| path.extension().is_some_and(|ending| ending == "log")).min().expect("a segment");
    let whole = std::fs::read(&segment).expect("a segment");
    let at = whole.windows(2).position(|bytes| bytes == b"u1").expect("its first call");
    let write = |bytes: &[u8]| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(&segment).expect("a segment");
        file.write_all_at(bytes, at as u64).expect("it can be written to");
    };
    write(b"xx");
    let answer = retract(0, false);
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.json()["detail"].as_str().expect("a detail").contains("process 1"), "{}", answer.text());
    assert_eq!(size(1, "0"), 12, "nothing is half done");
    write(b"u1");
    for process in 0..2 {
        let preview = retract(process, true).json();
        assert_eq!((&preview["events"], &preview["profiles"]), (&json!(4), &json!(4)), "{process}: {preview}");
    }
    let done = retract(1, false).json();
    assert_eq!(done["events"], 4, "{done}");
    assert_eq!(size(0, done["position"].as_str().expect("a position")), 8);
    assert_eq!(retract(0, true).json()["events"], 0);
}

#[test]
fn one_that_stands_still_is_noticed() {
    let home = home("version: 1\n", 2);
    let servers = team(&home, 2, &[]);
    servers[0].signal("STOP");
    let ready = || servers[1].get("/readyz").status;
    until(PATIENCE, "the other is not ready any more", || (ready() == 503).then_some(()));
    until(PATIENCE, "the log says so", || servers[1].said().contains("no step closes").then_some(()));
    servers[0].signal("CONT");
    until(PATIENCE, "both are ready again", || (ready() == 200).then_some(()));
    let body = json!({"userId": "ada", "event": "x"});
    let position = servers[1].write("/v1/track", &body)["position"].as_str().expect("a position").to_owned();
    servers[0].read(&format!("/v1/profiles/ada?after={position}"));
}

#[test]
fn who_does_not_fit_is_told() {
    let home = home("version: 1\n", 2);
    let refused = |flags: &[&str], why: &str| {
        let ended = home.refused(flags);
        assert!(!ended.status.success() && ended.stderr.contains(why), "{flags:?}: {}", ended.stderr);
    };
    refused(&["--hosts", "hosts"], "--process");
    refused(&["--hosts", "none", "--process", "0"], "cannot read the file of hosts none");
    refused(&["--hosts", "hosts", "--process", "2"], "lists processes 0 to 1, and --process is 2");
    home.write("other.yaml", "version: 1\nsessions: { gap: 1m }\n");
    let first = launch(&home, 0, &[]);
    let flags = ["--hosts", "hosts", "--process", "1", "--data", "data1", "--definitions", "other.yaml"];
    refused(&flags, "process 0 has another purpose or other definitions");
    let said = first.said();
    assert!(!first.ends(PATIENCE).expect("it ends too").success(), "{said}");
}

/// A replay that processes share says what one says.
#[test]
fn a_shared_replay_says_what_one_says() {
    let mut random = Random::new(4);
    let home = home(&histories::definitions(&mut random), 2);
    // Histories are short: said often and by many, they fill several blocks.
    let filler = "x".repeat(900);
    let lines = (0..600).flat_map(|round| {
        let history = histories::history(&mut Random::new(round % 7));
        let line = |line: String| line.replace("\"context\":{", &format!("\"context\":{{\"filler\":\"{filler}\","));
        history.into_iter().map(line).collect::<Vec<_>>()
    });
    home.write("lines.ndjson", lines.collect::<Vec<_>>().join("\n"));
    for lateness in [&[][..], &["--lateness", "30d"]] {
        let common = ["replay", "lines.ndjson", "--definitions", "thalweg.yaml", "--report", "json", "--dump"];
        let alone = home.run(&[&common[..], &["alone"], lateness].concat());
        let shared = |process: &str| {
            let among = ["shared", "--hosts", "hosts", "--process", process, "--workers", "2"];
            home.run(&[&common[..], &among, lateness].concat())
        };
        let ended = std::thread::scope(|scope| {
            let other = scope.spawn(|| shared("1"));
            (shared("0"), other.join().expect("no panic"))
        });
        for of in [&alone, &ended.0, &ended.1] {
            assert!(of.status.success(), "{}", of.stderr);
        }
        assert_eq!(ended.1.stdout, "");
        let report = |ended: &process::Ended| {
            let mut report: Value = serde_json::from_str(&ended.stdout).expect("a report");
            for of_this_run in ["seconds", "events_per_second", "peak_rss_bytes"] {
                report.as_object_mut().expect("an object").remove(of_this_run);
            }
            law(report)
        };
        assert_eq!(report(&ended.0), report(&alone));
        for view in ["profiles", "sessions", "segment_changes", "intents", "credit"] {
            let rows =
                |dir: &str| std::fs::read_to_string(home.path(dir).join(format!("{view}.ndjson"))).expect("a dump");
            assert!(rows("shared") == rows("alone"), "{view} differ");
        }
    }
    home.write("fewer.ndjson", "{}\n");
    let differ = std::thread::scope(|scope| {
        let replay = |file: &'static str, process: &'static str| {
            home.run(&["replay", file, "--definitions", "thalweg.yaml", "--hosts", "hosts", "--process", process])
        };
        let other = scope.spawn(move || replay("fewer.ndjson", "1"));
        (replay("lines.ndjson", "0"), other.join().expect("no panic"))
    });
    for ended in [differ.0, differ.1] {
        assert!(!ended.status.success() && ended.stderr.contains("another purpose"), "{}", ended.stderr);
    }
}

/// Who is to come again is told when, whichever process it asked.
#[test]
fn what_the_leader_says_of_coming_again_reaches_who_asked_another() {
    let home = home("version: 1\nchannels: { popup: { deliver: sse } }\n", 2);
    let team = team(&home, 2, &["--clock", "events"]);
    for server in &team {
        let answer = server.get("/v1/channels?wait=10ms&after=9000000000000000000");
        assert_eq!((answer.status, answer.header("retry-after")), (503, "1"), "{}", answer.text());
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
}
