//! What was, why, until when, and what if, held against what is then true: in random histories by the engine, and in a
//! shop by the binary.

mod broker;
mod histories;
mod process;
mod run;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use broker::Broker;
use dataflows::definitions::Definitions;
use dataflows::plan::Plan;
use dataflows::profile::answers::{Rows, View};
use dataflows::profile::explain::{Explained, Reason};
use dataflows::profile::trial::{Outcome, Trial, Without};
use dataflows::protocol::{Answer, Deadline, Question};
use dataflows::total::Total;
use ecow::EcoString;

use histories::{Random, definitions, history};
use process::{Home, Server, free_port};
use run::Run;
use serde_json::{Value, json};

/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600_000;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("it is JSON")
}

/// A run that was told a history.
fn told(definitions: &str, lines: &[String], workers: usize) -> Run {
    let mut run = Run::start(definitions, None, workers);
    for line in lines {
        run.push(line);
    }
    run
}

/// Asks, and gives the parts of all answers by the place of their question.
fn ask(run: &mut Run, questions: Vec<Question>) -> BTreeMap<usize, Vec<Answer>> {
    let mut parts: BTreeMap<usize, Vec<Answer>> = BTreeMap::new();
    run.close(questions, |place, part| parts.entry(place).or_default().push(part)).expect("it finishes");
    parts
}

/// All profiles by their public id.
fn profiles(run: &mut Run) -> BTreeMap<String, Value> {
    let parts = ask(run, vec![Question::Dump(View::Profiles)]).into_values().flatten();
    let rows = parts.flat_map(|part| match part {
        Answer::Rows(Rows::Profiles(rows)) => rows,
        _ => Vec::new(),
    });
    let rows = rows.map(|row| serde_json::to_value(&row).expect("rows are JSON"));
    rows.map(|row| (row["id"].as_str().expect("an id").to_owned(), row)).collect()
}

/// Since when a profile is in a segment.
fn since(profile: &Value, segment: &str) -> Option<i64> {
    let mut rows = profile["segments"].as_array().expect("a list").iter();
    rows.find(|row| row["name"] == segment).and_then(|row| row["since"].as_i64())
}

/// The instant to which the clock has come.
fn clock(run: &mut Run, to: i64) {
    run.push(&format!(r#"{{"type":"clock","to":{to}}}"#));
}

type Pair = (String, String);

fn explained(run: &mut Run, pairs: &[Pair]) -> BTreeMap<Pair, Explained> {
    let question =
        |(id, segment): &Pair| Question::Explain { id: id.as_str().into(), segment: segment.as_str().into(), at: None };
    let found = ask(run, pairs.iter().map(question).collect());
    let one = |(place, parts): (usize, Vec<Answer>)| {
        let [Answer::Explained(explained)] = &parts[..] else { panic!("{:?}: {parts:?}", pairs[place]) };
        (pairs[place].clone(), (**explained).clone())
    };
    let found: BTreeMap<Pair, Explained> = found.into_iter().map(one).collect();
    assert_eq!(found.len(), pairs.len());
    found
}

/// Every clause of a tree: whether it holds, and when that changes.
fn clauses(reason: &Reason) -> Vec<(bool, Option<i64>)> {
    let inside = reason.children.iter().flat_map(clauses);
    std::iter::once((reason.holds, reason.changes_at)).chain(inside).collect()
}

#[test]
fn what_is_explained_is_so_and_changes_when_it_is_said_to() {
    let (mut pairs_seen, mut changes, mut witnesses) = (0, 0, 0);
    for seed in 0.. {
        if pairs_seen >= 3_000 {
            break;
        }
        let mut random = Random::new(seed);
        let definitions = definitions(&mut random);
        let mut run = told(&definitions, &history(&mut random), 1 + seed as usize % 2);
        let people = profiles(&mut run);
        let segments: Vec<String> =
            parsed(&definitions)["segments"].as_object().expect("a map").keys().cloned().collect();
        let pairs: Vec<Pair> =
            people.keys().flat_map(|id| segments.iter().map(move |segment| (id.clone(), segment.clone()))).collect();
        let first = explained(&mut run, &pairs);
        let now = people.values().flat_map(|row| row["last_seen"].as_i64()).max().unwrap_or(0);
        let mut instants = BTreeSet::new();
        for ((id, segment), told) in &first {
            let what = format!("seed {seed}, {segment} of {id}: {told:?}");
            assert_eq!(told.since, since(&people[id], segment), "{what}");
            assert_eq!((told.member, told.member), (told.since.is_some(), told.tree.holds), "{what}");
            // As many witnesses as the clause counts, or as the sequence has events.
            let counted = told.tree.value.get().parse::<usize>();
            let expected = match segment.as_str() {
                "quiet" | "hatter" => counted.map(|count| count.min(10)).ok(),
                "shopper" => Some(if told.member { 3 } else { 0 }),
                "window" | "gone" => Some(usize::from(told.member)),
                _ => None,
            };
            assert!(expected.is_none_or(|count| told.tree.witnesses.len() == count), "{what}");
            let all = clauses(&told.tree).into_iter().filter_map(|(_, at)| at);
            instants.extend(all.inspect(|at| assert!(*at > now, "{what}")));
            witnesses += usize::from(!told.tree.witnesses.is_empty());
        }
        pairs_seen += pairs.len();
        // Nothing comes any more, and the clock goes on.
        for at in instants {
            let alike = |now: &BTreeMap<Pair, Explained>, at: i64| {
                for (pair, told) in &first {
                    let then = clauses(&told.tree).into_iter();
                    for ((was, changes_at), (is, _)) in then.zip(clauses(&now[pair].tree)) {
                        let what = || format!("seed {seed}, {pair:?} at {at}: {told:?}, then {:?}", now[pair]);
                        assert!(
                            changes_at.is_some_and(|change| change < at) || was == is || changes_at == Some(at),
                            "{}",
                            what()
                        );
                        assert!(changes_at != Some(at) || was != is, "{}", what());
                    }
                }
            };
            clock(&mut run, at - 1);
            alike(&explained(&mut run, &pairs), at - 1);
            clock(&mut run, at);
            alike(&explained(&mut run, &pairs), at);
            let people = profiles(&mut run);
            for ((id, segment), told) in first.iter().filter(|(_, told)| told.tree.changes_at == Some(at)) {
                assert_ne!(since(&people[id], segment).is_some(), told.member, "seed {seed}, {segment} of {id}");
                changes += 1;
            }
        }
        clock(&mut run, now + DAY);
        let last = explained(&mut run, &pairs);
        for (pair, told) in first.iter().filter(|(_, told)| told.tree.changes_at.is_none()) {
            assert_eq!(last[pair].member, told.member, "seed {seed}, {pair:?}");
        }
    }
    assert!(changes > 100 && witnesses > 300, "{changes} changes, {witnesses} with witnesses");
}

#[test]
fn the_past_is_what_was_true_then_by_all_that_is_known_now() {
    let (mut compared, mut absent) = (0, 0);
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let definitions = definitions(&mut random);
        let lines = history(&mut random);
        let stamp = |line: &String| parsed(line)["timestamp"].as_i64();
        let mut whole = told(&definitions, &lines, 1 + seed as usize % 2);
        let stamps: Vec<i64> = lines.iter().filter_map(stamp).collect();
        clock(&mut whole, *stamps.iter().max().expect("there are calls"));
        for _ in 0..3 {
            let off = [0, -1, 30_000, 60_000][random.below(4) as usize];
            let last = *stamps.iter().max().expect("there are calls");
            let at = (stamps[random.below(stamps.len() as u64) as usize] + off).min(last);
            // What is dated later has not come; each line keeps its place.
            let is_later = |line: &String| stamp(line).is_some_and(|stamp| stamp > at) || line.contains(r#""to":"#);
            let until: Vec<String> =
                lines.iter().map(|line| if is_later(line) { String::new() } else { line.clone() }).collect();
            let mut then = told(&definitions, &until, 1);
            clock(&mut then, at);
            let people = profiles(&mut whole);
            for (id, now) in &people {
                let question = Question::ProfileAt(id.as_str().into(), at);
                let found = ask(&mut whole, vec![question]).into_values().flatten().find_map(|part| match part {
                    Answer::Profile(row) => Some(serde_json::to_value(&row).expect("rows are JSON")),
                    _ => None,
                });
                let places = |run: &mut Run, until: i64| {
                    let places = run.history(id, View::Events, usize::MAX).expect("it finishes");
                    let stamp = |place: &String| stamp(&lines[place.parse::<usize>().expect("a place") - 1]);
                    places
                        .into_iter()
                        .filter(|place| stamp(place).is_some_and(|stamp| stamp <= until))
                        .collect::<Vec<_>>()
                };
                let known = places(&mut whole, at);
                let Some(mut found) = found else {
                    assert!(known.is_empty(), "seed {seed}, {id} at {at}");
                    absent += 1;
                    continue;
                };
                // By which call consent was given, and how, is told of one person alone.
                for consent in found["consent"].as_object_mut().expect("a map").values_mut() {
                    consent
                        .as_object_mut()
                        .expect("a row")
                        .retain(|key, _| ["granted", "since"].contains(&key.as_str()));
                }
                let was = profiles(&mut then).into_values().find(|was| was["ids"] == found["ids"]);
                let Some(was) = was.filter(|_| places(&mut then, i64::MAX) == known) else { continue };
                assert_eq!(found, was, "seed {seed}, {id} at {at}, now {now}");
                compared += 1;
            }
        }
    }
    assert!(compared > 150 && absent > 20, "{compared} compared, {absent} were not there yet");
}

/// What happens in journeys: the timers that moved somebody, by journey, and the intents that timers' events began.
fn timed(run: &mut Run) -> (BTreeMap<EcoString, i128>, BTreeSet<(EcoString, EcoString, i64)>) {
    let (mut moves, mut intents) = (BTreeMap::new(), BTreeSet::new());
    for part in ask(run, vec![Question::Totals, Question::Dump(View::Intents)]).into_values().flatten() {
        match part {
            Answer::Totals(part) => part.into_iter().for_each(|(total, sum)| {
                if let Total::Moves(journey, _, _, None) = total {
                    *moves.entry(journey).or_default() += sum;
                }
            }),
            Answer::Rows(Rows::Intents(rows)) => {
                let begun = rows.into_iter().filter(|row| ["yawn", "lost"].contains(&row.campaign.as_str()));
                intents.extend(begun.map(|row| (row.campaign, row.profile, row.at)));
            }
            part => panic!("{part:?}"),
        }
    }
    (moves, intents)
}

#[test]
fn what_is_due_is_what_happens_if_nothing_does() {
    const WITHIN: i64 = 10 * MINUTE;
    let (mut moves, mut emissions) = (0, 0);
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let definitions = definitions(&mut random);
        let lines = history(&mut random);
        let mut run = told(&definitions, &lines, 2);
        let instants = |line: &String| {
            let line = parsed(line);
            [line["timestamp"].as_i64(), line["to"].as_i64()].into_iter().flatten().max()
        };
        let now = lines.iter().filter_map(instants).max().expect("there are calls") + 1;
        clock(&mut run, now);
        let before = timed(&mut run);
        let mut due: BTreeSet<(&str, Deadline)> = BTreeSet::new();
        for journey in ["after", "cart"] {
            let deadlines =
                Question::Deadlines { journey: journey.into(), within: Some(WITHIN), after: None, limit: 10_000 };
            for part in ask(&mut run, vec![deadlines]).into_values().flatten() {
                if let Answer::Deadlines(part) = part {
                    due.extend(part.into_iter().map(|deadline| (journey, deadline)));
                }
            }
        }
        let mut in_order: Vec<_> = due.iter().collect();
        in_order.sort_by_key(|(_, (at, ..))| *at);
        for (journey, (at, profile, _, to)) in in_order {
            assert!((now + 1..=now + WITHIN).contains(at), "seed {seed}: {due:?}");
            let Some(to) = to else { continue };
            clock(&mut run, at - 1);
            assert_ne!(profiles(&mut run)[profile.as_str()]["journeys"][journey]["since"], *at, "seed {seed}");
            clock(&mut run, *at);
            let row = profiles(&mut run)[profile.as_str()]["journeys"][journey].clone();
            // An event that a timer emits may move them on at once.
            assert!(row["state"] == to.as_str() || row["since"] == *at, "seed {seed}, {profile} at {at}: {row}");
        }
        clock(&mut run, now + WITHIN);
        let after = timed(&mut run);
        for journey in ["after", "cart"] {
            let of = |moves: &BTreeMap<EcoString, i128>| moves.get(journey).copied().unwrap_or(0);
            let listed = due.iter().filter(|(of, (.., to))| *of == journey && to.is_some()).count();
            assert_eq!(of(&after.0) - of(&before.0), listed as i128, "seed {seed}, {journey}: {due:?}");
            moves += listed;
        }
        let emitted = due.iter().filter_map(|(_, (at, profile, emit, _))| {
            let campaign = if emit.as_deref()? == "bored" { "yawn" } else { "lost" };
            (emit.as_deref() != Some("reminder")).then(|| (campaign.into(), profile.clone(), *at))
        });
        let emitted: BTreeSet<(EcoString, EcoString, i64)> = emitted.collect();
        assert_eq!(after.1.difference(&before.1).cloned().collect::<BTreeSet<_>>(), emitted, "seed {seed}: {due:?}");
        emissions += emitted.len();
    }
    assert!(moves > 30 && emissions > 20, "{moves} moves, {emissions} emissions");
}

fn checked(definitions: &str) -> Arc<Definitions> {
    Arc::new(Definitions::parse(definitions).expect("they are right").0)
}

/// Intents, by what they are.
fn intents(run: &mut Run) -> BTreeSet<String> {
    let parts = ask(run, vec![Question::Dump(View::Intents)]).into_values().flatten();
    let rows = parts.flat_map(|part| if let Answer::Rows(Rows::Intents(rows)) = part { rows } else { Vec::new() });
    rows.map(|row| serde_json::to_string(&row).expect("rows are JSON")).collect()
}

/// Definitions tried while calls come in make what they then make of all these calls; the outcome is one of a single
/// step, on however many workers. Where they name what is not kept, they make it of the calls that had come before.
#[test]
fn what_is_tried_is_what_is_true_when_it_is_defined() {
    let (mut tried, mut steps, mut moved, mut read_again) = (0, 0, 0, 0);
    for seed in 0..60 {
        let mut random = Random::new(seed);
        // Who is whom is not tried.
        let limited = |text: String| {
            let mut definitions = parsed(&text);
            definitions["identity"] = json!({"max_ids": 3});
            definitions.to_string()
        };
        let (standing, other) = (limited(definitions(&mut random)), limited(definitions(&mut random)));
        let plan = Plan::new(checked(&standing));
        let names_more = plan.after(checked(&other), Default::default()).vocabulary.wants_more_than(&plan.vocabulary);
        let lines = history(&mut random);
        let (processes, workers) = [(1, 1), (1, 2), (2, 1)][seed as usize % 3];
        let mut run = Run::start_among(&standing, None, processes, workers);
        let mut known: Vec<String> = lines[..2 * lines.len() / 3].to_vec();
        known.iter().for_each(|line| _ = run.push(line));
        let mut more = lines[known.len()..].iter().cloned();
        let (both, mut came) = ([&standing, &other], 0);
        let seeing_all = both.map(|text| (checked(text), Default::default())).to_vec();
        let trial = Trial { definitions: seeing_all, limit: 10_000, ..Trial::default() };
        let outcomes = run.what_if(trial, |run| {
            steps += 1;
            if !names_more {
                let line = more.next();
                line.iter().for_each(|line| _ = run.push(line));
                known.extend(line);
                return;
            }
            // Who comes later is not a part of it, and what is taken back later is none any more.
            came += 1;
            let call = parsed(known.iter().find(|line| line.contains("\"track\"")).expect("something is done"));
            let mut later = call.clone();
            (later["userId"], later["anonymousId"], later["messageId"]) = ("z".into(), Value::Null, came.into());
            later["messageId"] = format!("later {came}").into();
            later["timestamp"] = (run.clock() + 1_000).into();
            run.push(&later.to_string());
            if came == 2 {
                let id = if call["userId"].is_null() { &call["anonymousId"] } else { &call["userId"] };
                let retract = json!({"type": "retract", "id": id, "messageId": call["messageId"]}).to_string();
                run.push(&retract);
                known.push(retract);
            }
        });
        let outcomes = outcomes.expect("it finishes");
        tried += 1;
        read_again += usize::from(names_more);
        let mut stood = told(&standing, &known, 1);
        let (people, stood) = (profiles(&mut stood), intents(&mut stood));
        for (definitions, outcome) in both.into_iter().zip(outcomes) {
            let Outcome { segments, campaigns, intents: told_of, cost, .. } = outcome;
            let mut then = told(definitions, &known, 1);
            let row = |row| serde_json::to_string(row).expect("rows are JSON");
            assert_eq!(told_of.iter().map(row).collect::<BTreeSet<_>>(), intents(&mut then), "seed {seed}");
            let would: BTreeMap<String, Value> = profiles(&mut then);
            assert_eq!((cost.profiles, cost.events > 0), (would.len() as u64, true), "seed {seed}");
            for (name, shift) in segments {
                let members = |people: &BTreeMap<String, Value>| -> BTreeSet<EcoString> {
                    people.iter().filter(|(_, row)| since(row, &name).is_some()).map(|(id, _)| id.into()).collect()
                };
                let (was, is) = (members(&people), members(&would));
                assert_eq!(shift.members.sample, is, "seed {seed}, {name}");
                assert_eq!(shift.enter.sample, is.difference(&was).cloned().collect(), "seed {seed}, {name}");
                assert_eq!(shift.leave.sample, was.difference(&is).cloned().collect(), "seed {seed}, {name}");
                let counts = [shift.members.count, shift.enter.count, shift.leave.count];
                let samples = [shift.members.sample, shift.enter.sample, shift.leave.sample];
                assert_eq!(counts, samples.map(|sample| sample.len() as u64), "seed {seed}, {name}");
                moved += counts[1] + counts[2];
            }
            let stands = intents(&mut then);
            let (come, go) = (stands.difference(&stood).count(), stood.difference(&stands).count());
            let sum = |of: fn(&dataflows::profile::trial::Tally) -> u64| campaigns.values().map(of).sum::<u64>();
            assert_eq!((sum(|of| of.come), sum(|of| of.go)), (come as u64, go as u64), "seed {seed}");
            assert_eq!(sum(|of| of.by_status.values().sum()), stands.len() as u64, "seed {seed}");
            moved += (come + go) as u64;
        }
        let ends = [Question::Totals, Question::WhatIf(1, None)];
        assert!(!ask(&mut run, ends.to_vec()).contains_key(&1), "what is forgotten is not answered");
    }
    let counts = format!("{tried} tried in {steps} steps, {read_again} read again, {moved} moved");
    assert!(tried - read_again > 20 && read_again > 10 && steps > tried + 20 && moved > 100, "{counts}");
}

fn totals(run: &mut Run) -> BTreeMap<Total, i128> {
    let mut sums = BTreeMap::new();
    for part in ask(run, vec![Question::Totals]).into_values().flatten() {
        if let Answer::Totals(part) = part {
            part.into_iter().for_each(|(total, sum)| *sums.entry(total).or_default() += sum);
        }
    }
    sums.retain(|_, sum| *sum != 0);
    sums
}

/// The totals without some events are what they are once these are taken back, whoever is another person then.
#[test]
fn what_would_be_without_events_is_so_when_they_are_taken_back() {
    let (mut gone, mut changed, mut parted, mut joined) = (0, 0, 0, 0);
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let definitions = definitions(&mut random);
        let lines = history(&mut random);
        let (processes, workers) = [(1, 1), (1, 2), (2, 1)][seed as usize % 3];
        let mut run = Run::start_among(&definitions, None, processes, workers);
        let mut known: Vec<(EcoString, EcoString, u64)> = Vec::new();
        let (mut without, mut later) = (Without::default(), Vec::new());
        for (place, line) in lines.iter().enumerate() {
            if place >= 3 * lines.len() / 4 {
                later.push(line);
                continue;
            }
            let Some(position) = run.push(line) else { continue };
            let call = parsed(line);
            let id = [&call["userId"], &call["anonymousId"]].into_iter().find_map(Value::as_str);
            if let Some((id, message)) = id.zip(call["messageId"].as_str()).filter(|_| random.below(3) == 0) {
                known.push((id.into(), message.into(), position));
                without.events.entry(id.into()).or_default().insert(position);
            }
        }
        let apart = |run: &mut Run| -> Vec<BTreeSet<EcoString>> {
            // Another call of that id may be the one that stands.
            let sought = known.iter().map(|(own, _, position)| (own.clone(), *position)).collect();
            let parts = ask(run, vec![Question::Standing(sought)]).into_values().flatten();
            let stands: BTreeSet<u64> = parts
                .flat_map(|part| if let Answer::Standing(part) = part { part } else { Vec::new() })
                .map(|(position, _)| position)
                .collect();
            let stand = known.iter().filter(|(.., position)| stands.contains(position));
            let events = stand.map(|(own, message, _)| (own.clone(), message.clone())).collect();
            let parts = ask(run, vec![Question::Apart(events)]).into_values().flatten();
            parts.flat_map(|part| if let Answer::Apart(people) = part { people } else { Vec::new() }).collect()
        };
        let mut later = later.into_iter();
        let mut lacks = loop {
            without.people = apart(&mut run);
            let trial = Trial { without: Some(without.clone()), ..Trial::default() };
            let meanwhile = |run: &mut Run| later.next().into_iter().for_each(|line| _ = run.push(line));
            let outcome = run.what_if(trial, meanwhile).expect("it finishes").remove(0);
            if apart(&mut run) == without.people {
                break outcome.lacks;
            }
        };
        let is: BTreeMap<_, _> =
            lacks.totals.iter().filter(|(_, sums)| sums.0 != 0).map(|(t, s)| (t.clone(), s.0)).collect();
        assert_eq!(is, totals(&mut run), "seed {seed}: what is");
        let clock = run.clock();
        lacks.regroup(&run.plan(), clock, &without);
        let stands: BTreeSet<u64> = lacks.events.iter().copied().collect();
        for (own, position) in without.events.iter().flat_map(|(own, all)| all.iter().map(move |at| (own, at))) {
            if stands.contains(position) {
                let message = &parsed(&lines[*position as usize - 1])["messageId"];
                run.push(&json!({"type": "retract", "id": own, "messageId": message}).to_string());
            }
        }
        let would: BTreeMap<_, _> =
            lacks.totals.iter().filter(|(_, sums)| sums.1 != 0).map(|(t, s)| (t.clone(), s.1)).collect();
        assert_eq!(would, totals(&mut run), "seed {seed}, without {without:?}");
        gone += stands.len();
        changed += lacks.totals.values().filter(|(is, would)| is != would).count();
        parted += usize::from(!without.people.is_empty());
        joined += without.people.iter().filter(|ids| ids.len() > 1).count();
    }
    let counts = format!("{gone} gone, {changed} changed, {parted} times others, of several ids {joined}");
    assert!(gone > 800 && changed > 1_000 && parted > 30 && joined > 10, "{counts}");
}

const SHOP: &str = include_str!("../examples/shop.yaml");

/// People of the shop over two months: carts that are left or bought after some hours, purchases, refused consent.
fn calls() -> Vec<Value> {
    let mut random = Random::new(7);
    let mut calls = Vec::new();
    for person in 0..40 {
        let mut at = START + random.below(50) as i64 * DAY;
        for number in 0..2 + random.below(4) {
            let consent = json!({"consent": {"categoryPreferences": {"marketing": random.below(3) > 0}}});
            let mut call = |event: &str, properties: Value, after: i64| {
                at += after;
                calls.push(json!({"type": "track", "userId": format!("p{person}"), "event": event, "timestamp": at,
                    "messageId": format!("{person}-{number}-{event}"), "properties": properties, "context": consent}));
            };
            call("section_view", json!({"section": "shoes"}), 0);
            call("product_view", json!({"sku": format!("s{number}")}), MINUTE);
            call("add_to_cart", json!({"items": 2}), MINUTE);
            let hours = [HOUR / 2, 3 * HOUR / 2, 3 * HOUR, 5 * HOUR][random.below(4) as usize];
            if random.below(2) == 0 {
                call("purchase", json!({"order": format!("{person}-{number}"), "value": 120, "items": 2}), hours);
            }
            at += random.below(9) as i64 * DAY + 5 * HOUR;
        }
    }
    calls.sort_by_key(|call| call["timestamp"].as_i64());
    calls
}

fn live() -> (Home, Server, Vec<Value>) {
    let home = Home::new(SHOP);
    let server = home.start(&["--clock", "events", "--workers", "2"]);
    let calls = calls();
    for part in calls.chunks(20) {
        let taken = server.write("/v1/batch", &json!({"batch": part}));
        assert_eq!(taken["accepted"], part.len(), "{taken}");
    }
    server.write("/v1/clock", &json!({"to": START + 100 * DAY}));
    (home, server, calls)
}

/// Intents by id and the law's status, of one campaign or all.
fn ids<'v>(rows: impl IntoIterator<Item = &'v Value>) -> BTreeSet<String> {
    rows.into_iter().map(|row| row["id"].as_str().expect("an id").to_owned()).collect()
}

fn items(server: &Server, path: &str) -> Vec<Value> {
    server.read(path)["items"].as_array().expect("a list").clone()
}

/// T13: last month is run again, and what would have been sent is what was recorded live; so it is from a file of the
/// same calls, where carts are given up after one hour and after two besides.
#[test]
fn a_dry_run_of_last_month_lists_what_was_recorded_live() {
    let (home, server, calls) = live();
    let (from, to) = ("2026-02-01", "2026-03-01");
    let span = START + 31 * DAY..START + 59 * DAY;
    let mut recorded = Vec::new();
    for campaign in ["come_back", "one_plus_one", "vip_checkout", "welcome_coupon"] {
        recorded.extend(items(&server, &format!("/v1/campaigns/{campaign}/intents?limit=1000")));
    }
    recorded.retain(|row| span.contains(&row["at"].as_i64().expect("an instant")));
    assert!(recorded.len() > 20, "{recorded:#?}");
    let before = server.read("/v1/campaigns")["items"].clone();
    let timers = |hours: &str| {
        let cart = SHOP.replace("after: 4h", &format!("after: {hours}"));
        let cart = dataflows::definitions::written(&cart, "journeys").remove("cart").expect("the shop has carts");
        json!({"journeys": {"cart": parsed(&cart)}})
    };
    let body = json!({"from": from, "to": to, "variants": {"one": timers("1h"), "two": timers("2h")}});
    let (mut all, mut cursor) = (Vec::new(), String::new());
    let last = loop {
        let last = server.write(&format!("/v1/campaigns:dry-run?limit=50{cursor}"), &body);
        let part = last["items"].as_array().expect("a list");
        assert!(part.len() <= 50);
        all.extend(part.iter().cloned());
        match last["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break last,
        }
    };
    let of = |name: Value| all.iter().filter(move |row| row["under"] == name);
    let (live, dry) = (ids(&recorded), ids(of(Value::Null)));
    let parted = of(Value::Null).chain(&recorded).find(|row| {
        let id = row["id"].as_str().expect("an id");
        live.contains(id) != dry.contains(id)
    });
    assert_eq!(parted, None);
    let status = |row: &Value| (row["id"].to_string(), row["status"].to_string());
    let told: BTreeMap<_, _> = of(Value::Null).map(status).collect();
    for (id, status) in recorded.iter().map(status) {
        // The ledger has a word of its own for what the law lets pass.
        let held = ["\"cap\"", "\"consent\"", "\"audience\""].contains(&status.as_str());
        assert!(if held { told[&id] == status } else { told[&id] == "\"due\"" }, "{id}: {status}, {}", told[&id]);
    }
    let variants = last["variants"].as_array().expect("a list");
    assert_eq!(
        variants.iter().map(|of| of["name"].clone()).collect::<Vec<_>>(),
        [Value::Null, json!("one"), json!("two")]
    );
    let come_back = |place: usize| {
        let mut of = variants[place]["campaigns"].as_array().expect("a list").iter();
        of.find(|row| row["campaign"] == "come_back").expect("it is told of").clone()
    };
    assert_eq!((come_back(0)["come"].clone(), come_back(0)["go"].clone()), (json!(0), json!(0)));
    let counts = [1, 2, 0].map(|place| come_back(place)["intents"].as_u64().expect("a number"));
    assert!(counts[0] > counts[1] && counts[1] > counts[2] && counts[2] > 0, "{counts:?}");
    assert_eq!(server.read("/v1/campaigns")["items"], before, "nothing is sent, and nothing kept");

    let file: String = calls.iter().map(|call| format!("{call}\n")).collect();
    home.write("calls.ndjson", file + &format!("{{\"type\":\"clock\",\"to\":{}}}\n", START + 100 * DAY));
    home.write("one.yaml", SHOP.replace("after: 4h", "after: 1h"));
    let args = [
        "dry-run",
        "calls.ndjson",
        "--definitions",
        "thalweg.yaml",
        "--variant",
        "one=one.yaml",
        "--from",
        from,
        "--to",
        to,
    ];
    let ended = home.run(&[&args[..], &["--report", "json"]].concat());
    assert!(ended.status.success(), "{ended:?}");
    let report = parsed(&ended.stdout);
    for (place, name) in [(0, Value::Null), (1, json!("one"))] {
        let rows = report["variants"][place]["intents"].as_array().expect("a list");
        assert_eq!(report["variants"][place]["name"], name);
        assert_eq!(ids(rows), ids(of(name.clone())), "variant {name}");
        let (theirs, ours) = (&report["variants"][place]["campaigns"]["come_back"], &come_back(place)["by_status"]);
        assert_eq!(theirs, ours, "variant {name}");
    }
    let ended = home.run(&args);
    let due = come_back(1)["by_status"]["due"].clone();
    assert!(ended.status.success() && ended.stdout.contains(&format!("due {due}")), "{ended:?}");
    let ended = home.run(&[&args[..], &["--variant", "bad=calls.ndjson"]].concat());
    assert!(!ended.status.success() && ended.stderr.contains("calls.ndjson"), "{ended:?}");
}

#[test]
fn a_preview_is_what_the_segment_then_has() {
    let (_home, server, _) = live();
    let definition = json!({"all": [{"performed": "purchase", "times": 2}, {"trait": "spend_90d", "at_least": 240}]});
    let preview = server.write("/v1/segments:preview", &json!({"definition": definition}));
    let (size, enter) = (preview["size"].as_u64().expect("a number"), preview["enter"].clone());
    assert!(size > 3 && enter == size && preview["leave"] == 0 && preview["leave_sample"] == json!([]), "{preview}");
    assert!(preview["cost"]["events"].as_u64() > Some(100) && preview["cost"]["took_ms"].is_u64(), "{preview}");
    let vip = server.read("/v1/segments/vip")["size"].as_u64().expect("a number");
    let members = |name: &str| -> BTreeSet<String> {
        let rows = items(&server, &format!("/v1/segments/{name}/members?limit=1000"));
        rows.iter().map(|row| row["profile"].as_str().expect("an id").to_owned()).collect()
    };
    let stood = members("vip");
    let diff = json!({"kind": "segments", "name": "vip", "definition": definition});
    let diff = server.write("/v1/definitions:diff", &diff);
    assert_eq!(diff["size"], size);
    let row = diff["segments"].as_array().expect("a list").iter().find(|row| row["name"] == "vip").expect("it is told");
    assert_eq!((&row["enter"], &row["leave"], &row["sample"]), (&diff["enter"], &diff["leave"], &diff["sample"]));
    // The same as a whole file.
    let whole = dataflows::definitions::document(SHOP).expect("it is right");
    let mut whole = parsed(&whole);
    whole["segments"]["vip"] = definition.clone();
    let text = server.write("/v1/definitions:diff", &json!({"definitions": whole.to_string()}));
    let object = server.write("/v1/definitions:diff", &json!({"definitions": whole}));
    for other in [text, object] {
        assert_eq!((&other["segments"], &other["campaigns"]), (&diff["segments"], &diff["campaigns"]));
        assert_eq!(other["size"], Value::Null);
    }
    let answer = server.ask("PUT", "/v1/definitions/segments/vip", &[], definition.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let is = members("vip");
    assert_eq!((is.len() as u64, stood.len() as u64), (size, vip));
    let first = |all: BTreeSet<String>| json!(all.into_iter().take(10).collect::<Vec<_>>());
    assert_eq!((preview["sample"].clone(), diff["sample"].clone()), (first(is.clone()), first(is.clone())));
    assert_eq!(diff["enter_sample"], first(is.difference(&stood).cloned().collect()));
    assert_eq!(diff["leave_sample"], first(stood.difference(&is).cloned().collect()));
    assert_eq!(diff["leave"], stood.difference(&is).count());

    let refused = |path: &str, body: &str, slug: &str| {
        let answer = server.post(path, body);
        let told = answer.json();
        assert!(told["type"].as_str().is_some_and(|kind| kind.ends_with(slug)), "{body}: {told}");
        told
    };
    let body = "name: odd\ndefinition:\n  any:\n    - visitor: known\n    - performd: purchase\n";
    let told = refused("/v1/segments:preview", body, "bad_definition");
    let error = &told["errors"][0];
    assert_eq!((&error["path"], &error["line"]), (&json!("segments.odd.any[1].performd"), &json!(5)), "{told}");
    assert_eq!(error["nearest"], "performed");
    refused("/v1/segments:preview", r#"{"definition": {"segment": "nobody"}}"#, "bad_definition");
    refused("/v1/segments:preview", r#"{"definition": 7}"#, "bad_definition");
    refused("/v1/segments:preview", r#"{"definitions": {}}"#, "bad_request");
    refused("/v1/segments:preview", "{", "bad_definition");
    refused("/v1/definitions:diff", r#"{"kind": "segments"}"#, "bad_request");
    refused("/v1/definitions:diff", r#"{"definitions": "version: 2"}"#, "bad_definition");
    refused("/v1/campaigns:dry-run", r#"{"variants": {"a": {"segmnts": {}}}}"#, "bad_request");
    refused("/v1/campaigns:dry-run", r#"{"from": "yesterday"}"#, "bad_request");
    let told = refused("/v1/campaigns:dry-run", r#"{"campaigns": {"a": {"channel": "popup"}}}"#, "bad_definition");
    assert!(told["errors"][0]["path"].as_str().is_some_and(|path| path.starts_with("campaigns.a")), "{told}");
}

#[test]
fn a_person_is_explained_by_the_clauses_of_the_file() {
    let home = Home::new(SHOP);
    let server = home.start(&["--clock", "events"]);
    let call = |number: i64, event: &str, properties: Value| {
        json!({"type": "track", "userId": "ada", "event": event, "messageId": format!("m{number}"),
            "timestamp": START + number * MINUTE, "properties": properties})
    };
    let calls = [
        call(0, "product_view", json!({"sku": "a"})),
        call(1, "purchase", json!({"order": "o1", "value": 400})),
        call(2, "product_view", json!({"sku": "b"})),
        call(3, "product_view", json!({"sku": "c"})),
    ];
    server.write("/v1/batch", &json!({"batch": calls}));
    let event = |number: i64, event: &str| {
        let (message, at) = (format!("m{number}"), START + number * MINUTE);
        json!({"id": "ada", "messageId": message, "timestamp": at, "event": event})
    };
    let vip = server.read("/v1/profiles/ada/explain?segment=vip");
    let until = START + MINUTE + 90 * DAY;
    let clause = |text: &str, holds: bool, value: i64, changes_at: Value, children: Value| {
        json!({"clause": text, "true": holds, "value": value, "witnesses": [event(1, "purchase")],
            "changes_at": changes_at, "children": children})
    };
    let spent = r#"{"at_least":300,"trait":"spend_90d"}"#;
    let often = r#"{"at_least":3,"trait":"purchases"}"#;
    let children =
        json!([clause(spent, true, 400, json!(until), json!([])), clause(often, false, 1, Value::Null, json!([]))]);
    let tree = json!({"clause": format!(r#"{{"any":[{spent},{often}]}}"#), "true": true, "value": null, "witnesses": [],
        "changes_at": until, "children": children});
    let sorted = |tree: &Value| {
        let mut tree = tree.to_string();
        for clause in [
            (r#"{\"trait\":\"spend_90d\",\"at_least\":300}"#, r#"{\"at_least\":300,\"trait\":\"spend_90d\"}"#),
            (r#"{\"trait\":\"purchases\",\"at_least\":3}"#, r#"{\"at_least\":3,\"trait\":\"purchases\"}"#),
        ] {
            tree = tree.replace(clause.0, clause.1);
        }
        parsed(&tree)
    };
    assert_eq!(sorted(&vip["tree"]), tree);
    let told = ["profile", "segment", "member", "since", "changes_at"].map(|key| vip[key].clone());
    assert_eq!(told, [json!("ada"), json!("vip"), json!(true), json!(START + MINUTE), json!(until)]);
    // Three views, and nothing in the cart for half an hour: not yet.
    let waits = server.read("/v1/profiles/ada/explain?segment=window_shopper");
    assert_eq!((&waits["member"], &waits["tree"]["witnesses"]), (&json!(false), &json!([])));
    assert_eq!(waits["changes_at"], START + 33 * MINUTE);
    server.write("/v1/clock", &json!({"to": START + 33 * MINUTE}));
    let shopper = server.read("/v1/profiles/ada/explain?segment=window_shopper");
    let views = [3, 2, 0].map(|number| event(number, "product_view"));
    assert_eq!((&shopper["member"], &shopper["tree"]["witnesses"]), (&json!(true), &json!(views)), "{shopper}");
    assert_eq!(
        (&shopper["tree"]["value"], &shopper["changes_at"]),
        (&json!(START + 33 * MINUTE), &json!(START + 33 * MINUTE + DAY))
    );
    // The past.
    let past = server.read(&format!("/v1/profiles/ada/explain?segment=vip&at={START}"));
    assert_eq!(
        (&past["member"], &past["as_of"]["clock"], &past["changes_at"]),
        (&json!(false), &json!(START), &Value::Null)
    );
    let past = server.read(&format!("/v1/profiles/ada?at={}", START + 90_000));
    assert_eq!((&past["as_of"]["clock"], &past["last_seen"]), (&json!(START + 90_000), &json!(START + MINUTE)));
    assert_eq!(past["computed"]["purchases"], 1);
    let status = |path: &str| server.get(path).status;
    let late = START + 34 * MINUTE;
    assert_eq!(status(&format!("/v1/profiles/ada?at={late}")), 400);
    assert_eq!(status(&format!("/v1/profiles/ada/explain?segment=vip&at={late}")), 400);
    assert_eq!(status(&format!("/v1/profiles/ada?at={}", START - 1)), 404);
    assert_eq!(status("/v1/profiles/ada?at=soon"), 400);
    assert_eq!(status(&format!("/v1/profiles/ada/events?at={START}")), 400);
    assert_eq!(status("/v1/profiles/nobody/explain?segment=vip"), 404);
    assert_eq!(status("/v1/profiles/ada/explain?segment=nothing"), 404);
    assert_eq!(status("/v1/profiles/ada/explain"), 400);
}

/// What nobody asked for until now is read again from the log; a document is tried as taken away.
#[test]
fn what_is_tried_may_name_what_is_not_kept_and_take_away_what_is_there() {
    let (_home, server, calls) = live();
    let size = |answer: &Value| answer["size"].as_u64().expect("a number");
    let sku = json!({"performed": "product_view", "where": "properties.sku == \"s3\""});
    let views = |call: &&Value| call["event"] == "product_view" && call["properties"]["sku"] == "s3";
    let viewers: BTreeSet<String> = calls.iter().filter(views).map(|call| call["userId"].to_string()).collect();
    let preview = server.write("/v1/segments:preview", &json!({"definition": sku}));
    assert_eq!((size(&preview), viewers.len() > 3), (viewers.len() as u64, true), "{preview}");
    assert_eq!(server.read("/v1/segments")["as_of"], preview["as_of"], "as of when the log was read");
    // Twice, in variants that name different things, and an event that nobody named.
    let laces = |path: &str, text: &str| {
        let when = json!({"event": "product_view", "where": format!("properties.{path} == {text}")});
        json!({"laces": {"when": when, "channel": "popup"}})
    };
    let variants =
        json!({"sku": {"campaigns": laces("sku", "\"s3\"")}, "none": {"campaigns": laces("colour", "\"red\"")}});
    let dry = server.write("/v1/campaigns:dry-run", &json!({"campaigns": laces("brand", "1"), "variants": variants}));
    let told = |place: usize| {
        (dry["variants"][place]["name"].clone(), dry["variants"][place]["campaigns"][0]["intents"].clone())
    };
    let expected = calls.iter().filter(views).count();
    assert_eq!(
        [told(0), told(1), told(2)],
        [(Value::Null, json!(0)), (json!("none"), json!(0)), (json!("sku"), json!(expected))]
    );
    let items = dry["items"].as_array().expect("a list");
    assert!(items.iter().all(|row| row["under"] == "sku" && row["body"].is_null()), "{items:?}");
    // It was tried alone: what is kept has nothing of it, and by PUT it is the same.
    assert_eq!(server.write("/v1/segments:preview", &json!({"definition": sku}))["sample"], preview["sample"]);
    let answer = server.ask("PUT", "/v1/definitions/segments/fans", &[], sku.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(server.read("/v1/segments/fans")["size"], preview["size"]);
    // Taken away.
    let without =
        server.write("/v1/definitions:diff", &json!({"kind": "segments", "name": "fans", "definition": null}));
    assert_eq!((&without["size"], &without["enter"], &without["leave"]), (&json!(0), &json!(0), &preview["size"]));
    assert_eq!(without["leave_sample"], preview["sample"]);
    let diff = |body: Value| server.post("/v1/definitions:diff", body.to_string());
    let unknown = diff(json!({"kind": "segments", "name": "nobody", "definition": null}));
    let spoken_of = diff(json!({"kind": "segments", "name": "vip", "definition": null}));
    assert_eq!((unknown.status, spoken_of.status), (404, 409), "{} {}", unknown.text(), spoken_of.text());
    assert_eq!(spoken_of.json()["errors"][0]["path"], "campaigns.vip_checkout");
    assert_eq!(diff(json!({"kind": "segments", "name": "vip"})).status, 400);
    // So much is not read again beside everything else.
    for part in 0..4 {
        let call = |number: i64| {
            json!({"type": "track", "event": "product_view", "userId": "robot", "messageId": format!("{part}-{number}"),
                "timestamp": START + 100 * DAY, "properties": {"shade": "red"}})
        };
        server.write("/v1/batch", &json!({"batch": (0..300).map(call).collect::<Vec<_>>()}));
    }
    let shade = json!({"definition": {"performed": "product_view", "where": "properties.shade == \"red\""}});
    let answer = server.post("/v1/segments:preview", shade.to_string());
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("PUT")), "{}", answer.text());
}

/// What the doors of this file answer, without when that was and what it took.
fn told_by(server: &Server) -> Vec<Value> {
    let at = START + 20 * DAY;
    let people = (0..6).map(|person| format!("/v1/profiles/p{person}"));
    let asked = people.flat_map(|path| {
        [
            format!("{path}/explain?segment=vip"),
            format!("{path}/explain?segment=lapsed&at={at}"),
            format!("{path}?at={at}"),
        ]
    });
    let read = |path: String| server.get(&path).json();
    let mut all: Vec<Value> = asked.map(read).collect();
    let sku = json!({"performed": "product_view", "where": "properties.sku == \"s3\""});
    let often = json!({"performed": "purchase", "times": 2});
    for (path, body) in [
        ("/v1/segments:preview", json!({"definition": often})),
        ("/v1/segments:preview", json!({"definition": sku})),
        ("/v1/definitions:diff", json!({"kind": "segments", "name": "vip", "definition": sku})),
        ("/v1/campaigns:dry-run", json!({"from": "2026-01-10", "to": "2026-02-01"})),
        (
            "/v1/events:retract",
            json!({"where": "properties.sku == \"s1\" || properties.order == \"3-0\"", "preview": true}),
        ),
    ] {
        all.push(server.write(path, &body));
    }
    for answer in &mut all {
        let members = answer.as_object_mut().expect("an object");
        assert!(!members.contains_key("errors") || members["status"] == 404, "{members:?}");
        members.remove("as_of");
        members.remove("cost");
    }
    assert!(all.last().is_some_and(|preview| preview["events"].as_u64() > Some(5)), "{all:#?}");
    all
}

/// Whichever process of several is asked, with logs of their own or a stream, it answers as one alone does.
#[test]
fn any_process_is_asked_why_and_what_if() {
    let (_home, alone, calls) = live();
    let expected = told_by(&alone);
    let broker = Broker::start();
    for stream in [&[][..], &["--nats", &broker.url()]] {
        let home = Home::new(SHOP);
        home.write("hosts", format!("127.0.0.1:{}\n127.0.0.1:{}\n", free_port(), free_port()));
        let launch = |process: &str| {
            let data = format!("data{process}");
            let flags = ["--clock", "events", "--hosts", "hosts", "--process", process, "--data", &data];
            home.launch(&[&flags[..], stream].concat())
        };
        let team = [launch("0"), launch("1")].map(|server| server.ready().expect("its port is free"));
        for (number, part) in calls.chunks(20).enumerate() {
            team[number % 2].write("/v1/batch", &json!({"batch": part}));
        }
        let last = team[0].write("/v1/clock", &json!({"to": START + 100 * DAY}));
        let after = last["position"].as_str().expect("a position");
        for (process, server) in team.iter().enumerate() {
            server.read(&format!("/v1/segments?after={after}"));
            for (number, (told, expected)) in told_by(server).iter().zip(&expected).enumerate() {
                assert_eq!(told, expected, "answer {number} of process {process}, {stream:?}");
            }
        }
    }
}
