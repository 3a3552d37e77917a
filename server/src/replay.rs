//! Replay: files of events through the engine as fast as it goes, and a report of what is then true.
//!
//! Lines are read in blocks, and blocks are decoded on several threads: what comes out of them goes to the engine as it
//! is, since each record bears its place. The clock is that of the events; nothing is sent to anyone.

mod blocks;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use dataflows::engine::{Acceptance, Config, Engine, Peers};
use dataflows::identity::Erasure;
use dataflows::number::print_billionths;
use dataflows::place::process_of;
use dataflows::plan::Plan;
use dataflows::profile::answers::View;
use dataflows::profile::trial::{Outcome, Trial};
use dataflows::protocol::{Answer, Question, Record, Response, Step, Terms};
use dataflows::time::Millis;
use dataflows::total::Total;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::book::Book;
use crate::cluster::{LEADER, Letter, Others, Round, Share, Team, lost};
use crate::hub::{self, Hub};
use crate::rows;

use blocks::{Block, Gone, SECRET, decoders, reread};

/// What to replay, and how.
#[derive(Debug)]
pub struct Replay {
    /// Files; `-` is the standard input.
    pub files: Vec<PathBuf>,
    /// The definitions.
    pub plan: Arc<Plan>,
    /// Worker threads.
    pub workers: usize,
    /// How late an event may be; none: any time.
    pub lateness: Option<Millis>,
    /// Where to write the rows of each view.
    pub dump: Option<PathBuf>,
}

/// What the processes that share a replay say of themselves: they must be alike in all but their numbers.
pub fn purpose(replay: &Replay) -> String {
    let files: Vec<String> = replay.files.iter().map(|file| file.display().to_string()).collect();
    format!("replay {} --lateness {:?}", files.join(" "), replay.lateness)
}

/// What is true after a replay, and how long it took.
#[derive(Debug, Serialize)]
pub struct Report {
    as_of: AsOf,
    read: u64,
    accepted: u64,
    duplicates: u64,
    rejected: BTreeMap<&'static str, u64>,
    profiles: i64,
    sessions: Sessions,
    segments: BTreeMap<String, i64>,
    journeys: BTreeMap<String, BTreeMap<String, i64>>,
    intents: BTreeMap<String, i64>,
    attribution: BTreeMap<&'static str, Vec<Credit>>,
    /// Wall time, s.
    pub seconds: f64,
    /// Event lines in a second of wall time.
    pub events_per_second: f64,
    peak_rss_bytes: u64,
}

#[derive(Debug, Serialize)]
struct AsOf {
    position: String,
    clock: Millis,
}

#[derive(Debug, Serialize)]
struct Sessions {
    count: i64,
    events: i64,
    length_ms: i64,
}

#[derive(Debug, Serialize)]
struct Credit {
    channel: String,
    campaign: String,
    conversions: String,
    value: String,
}

/// Blocks in a step, some ten thousand events: more than live, since nobody waits for the first of them. Steps hold the
/// same blocks however many processes share them.
const STEP_BLOCKS: u64 = 12;
/// Steps that the engine may have open.
const STEPS_OPEN_MAX: u64 = 8;
/// What is said where processes have read different files.
const DIFFER: &str = "the processes have not read the same: give all of them the same files";

/// Replays; gives the report and the state, or a sentence on what is wrong. Of several processes that share a replay
/// the leader does; the others give nothing, once it is done.
pub fn replay(replay: &Replay, team: Option<Team>) -> Result<Option<(Report, Run)>, String> {
    let started = Instant::now();
    let answers = Arc::new(Answers::default());
    let heard = Arc::clone(&answers);
    let acceptance = if replay.lateness.is_some() { Acceptance::InOrder } else { Acceptance::AnyTime };
    let config = Config { workers: replay.workers, plan: Arc::clone(&replay.plan), acceptance, secret: SECRET };
    let hear = move |response| heard.hear(response);
    let (engine, others) = match team {
        None => (Engine::start(config, hear), None),
        Some(Team { process, connections, hosts, .. }) => {
            let processes = connections.len();
            let lost = Box::new(move |peer: usize| lost(peer, &hosts[peer]));
            let engine = Engine::start_among(config, Peers { process, connections, lost }, hear);
            let others = Others::new(process, processes, engine.post());
            (engine, Some(others))
        }
    };
    let share = others.as_ref().map_or((LEADER, 1), |others| (others.process, others.processes));
    let terms = Terms { lateness: replay.lateness, ..Terms::of(&replay.plan.definitions) };
    let step = Step { terms, ..Step::first() };
    let mut run = Run { engine, others, step, answers, share: Share::default(), erases: false };
    let decoders = decoders(replay, share);
    let bar = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{spinner} {pos} events, {per_sec}").expect("a fixed template"));
    bar.enable_steady_tick(Duration::from_millis(200));
    let read = run.read(&decoders, &bar).and_then(|()| run.read_again(replay, share));
    let read = read.and_then(|()| run.gather(share.1 - 1));
    bar.finish_and_clear();
    if let Err(why) = read {
        // A step that others do not close would be waited for.
        std::mem::forget(run);
        return Err(why);
    }
    if share.0 != LEADER {
        run.follow();
        return Ok(None);
    }
    let totals = run.totals();
    // What is timed is what everyone waits for: from the first byte to the numbers.
    let seconds = started.elapsed().as_secs_f64();
    if let Some(dump) = &replay.dump {
        run.dump(dump, &replay.plan)?;
    }
    Ok(Some((run.report(&replay.plan, &totals, seconds), run)))
}

/// What the engine has said.
#[derive(Default)]
struct Answers {
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Default)]
struct Said {
    closed: u64,
    clock: Millis,
    parts: Vec<Answer>,
    accepted: u64,
    verdicts: BTreeMap<&'static str, u64>,
    letters: VecDeque<Letter>,
    erased: Vec<Erasure>,
}

impl Answers {
    fn hear(&self, response: Response) {
        let mut said = self.said.lock().expect("nobody panics while holding it");
        let closed = match response {
            Response::Closed(closed) => closed,
            Response::Letter(_, letter) => {
                said.letters.extend(serde_json::from_slice(&letter));
                self.changed.notify_all();
                return;
            }
        };
        (said.closed, said.clock) = (closed.number, closed.clock);
        said.accepted += closed.accepted;
        for (_, verdict) in closed.verdicts {
            *said.verdicts.entry(verdict.name()).or_default() += 1;
        }
        said.erased.extend(closed.erased.into_iter().map(|(erasure, _)| erasure));
        said.parts.extend(closed.answers.into_iter().map(|(_, part)| part));
        self.changed.notify_all();
    }
}

/// Takes out of chunks what stands before a place.
fn before(chunks: &mut Vec<Vec<Record>>, position: u64) -> Vec<Vec<Record>> {
    let all = std::mem::take(chunks);
    let mut before = Vec::new();
    for mut chunk in all {
        let after = chunk.split_off(chunk.partition_point(|record| record.position() < position));
        before.extend(Some(chunk).filter(|chunk| !chunk.is_empty()));
        chunks.extend(Some(after).filter(|after| !after.is_empty()));
    }
    before
}

/// A replay under way or done.
pub struct Run {
    engine: Engine,
    others: Option<Others>,
    step: Step,
    answers: Arc<Answers>,
    share: Share,
    /// Whether any line erases somebody.
    erases: bool,
}

impl Run {
    /// Keeps what is true at the end, for those who ask.
    pub fn stay(mut self, book: Arc<Book>) -> Hub {
        let as_of = self.as_of();
        Hub::still(book, as_of, move |question| self.ask(question))
    }

    /// What was true at the end, is true then.
    pub fn as_of(&self) -> hub::AsOf {
        let clock = self.answers.said.lock().expect("nobody panics while holding it").clock;
        hub::AsOf { position: self.step.position, clock }
    }

    /// Takes all blocks.
    fn read(&mut self, decoders: &[Receiver<Result<Block, String>>], bar: &ProgressBar) -> Result<(), String> {
        loop {
            for decoder in decoders {
                let Ok(block) = decoder.recv() else { return Ok(()) };
                self.take(block?)?;
                bar.set_position(self.share.read);
            }
        }
    }

    /// Takes a block, or the number of all there were.
    fn take(&mut self, block: Block) -> Result<(), String> {
        let Block { number, mut records, position, events, invalid, erasures } = block;
        // All blocks of a step stand in it, and those of others count.
        while self.share.blocks < number {
            self.share.blocks += 1;
            if self.share.blocks.is_multiple_of(STEP_BLOCKS) {
                self.close(STEPS_OPEN_MAX)?;
            }
        }
        self.share.read += events;
        self.share.invalid += invalid;
        self.erases |= !erasures.is_empty();
        for erasure in erasures {
            let before = before(&mut records, erasure.position);
            self.step.records.extend(before);
            self.erase(erasure)?;
        }
        self.step.records.append(&mut records);
        self.step.position = position.max(self.step.position);
        Ok(())
    }

    /// Reads again what others said of those who were erased. The engine, which has no bodies, struck it from what it
    /// keeps; in its place something else may tell a page, a channel, a device.
    fn read_again(&mut self, replay: &Replay, share: (usize, usize)) -> Result<(), String> {
        if !self.erases {
            return Ok(());
        }
        // All processes do: then each has heard of all.
        self.close(0)?;
        let mut gone = Gone::new();
        let erased = std::mem::take(&mut self.answers.said.lock().expect("nobody panics while holding it").erased);
        for Erasure { position, until, ids } in erased {
            ids.into_iter().for_each(|id| gone.entry(id).or_default().push((position, until)));
        }
        if gone.is_empty() {
            return Ok(());
        }
        if let Some(file) = replay.files.iter().find(|file| !file.is_file()) {
            let file = file.display();
            eprintln!("thalweg: {file} cannot be read again: nothing is read in place of what named who was erased");
            return Ok(());
        }
        reread(replay, share, &gone, |event| self.step.record(Record::Reread(event)))
    }

    /// Erases whoever has an id by now. All processes close the step up to here; the one whose line it is asks in it.
    fn erase(&mut self, Erasure { position, mut ids, .. }: Erasure) -> Result<(), String> {
        let process = self.others.as_ref().map_or(LEADER, |others| others.process);
        let is_own = process_of(position) == process;
        if is_own {
            self.step.questions.extend(ids.pop().map(|id| (0, Question::Profile(id))));
        }
        self.close(0)?;
        let mut said = self.answers.said.lock().expect("nobody panics while holding it");
        for part in std::mem::take(&mut said.parts) {
            if let Answer::Profile(profile) = part {
                let erasure = Erasure { position, until: said.clock, ids: profile.ids().cloned().collect() };
                self.engine.erasing(erasure).into_iter().for_each(|record| self.step.record(record));
            }
        }
        Ok(())
    }

    /// Closes the step; waits until at most so many are open.
    fn close(&mut self, open_max: u64) -> Result<(), String> {
        let step = self.step.close();
        let number = step.number;
        self.engine.step(step);
        let mut said = self.answers.said.lock().expect("nobody panics while holding it");
        while said.closed + open_max < number {
            let ended = |letter: &Letter| matches!(letter, Letter::Done(share) if share.blocks < self.share.blocks);
            if said.letters.iter().any(ended) {
                return Err(DIFFER.into());
            }
            said = self.answers.changed.wait(said).expect("nobody panics while holding it");
        }
        Ok(())
    }

    /// The next letter.
    fn letter(&self) -> Letter {
        let said = self.answers.said.lock().expect("nobody panics while holding it");
        let mut said = self
            .answers
            .changed
            .wait_while(said, |said| said.letters.is_empty())
            .expect("nobody panics while holding it");
        said.letters.pop_front().expect("there is one")
    }

    /// Another process's part is done: it closes steps as the leader asks, until that has all it wants.
    fn follow(&mut self) {
        self.others.iter().for_each(|others| others.tell(LEADER, &Letter::Done(self.share)));
        let mut known = Ok(());
        while known.is_ok() {
            match self.letter() {
                Letter::Round(_) => known = self.close(STEPS_OPEN_MAX),
                Letter::Stop => return,
                _ => {}
            }
        }
    }

    /// This process's part is done. The leader waits for the others, and adds up what was read.
    fn gather(&mut self, others: usize) -> Result<(), String> {
        let leads = self.others.as_ref().is_none_or(Others::leads);
        let (mut sum, mut open) = (self.share, if leads { others } else { 0 });
        while open > 0 {
            let Letter::Done(share) = self.letter() else { continue };
            if share.blocks != self.share.blocks {
                return Err(DIFFER.into());
            }
            sum.read += share.read;
            sum.invalid += share.invalid;
            open -= 1;
        }
        self.share = sum;
        Ok(())
    }

    fn ask(&mut self, question: Question) -> Vec<Answer> {
        self.step.questions.push((0, question));
        if let Some(others) = &self.others {
            others.tell_all(&Letter::Round(Round { number: self.step.number, clock: 0, until: None, defines: false }));
        }
        // Nobody reads any more, so nothing is to be found out.
        let _ = self.close(0);
        std::mem::take(&mut self.answers.said.lock().expect("nobody panics while holding it").parts)
    }

    /// What other definitions would make of it. What they name stands on all events.
    pub fn what_if(&mut self, trial: Trial) -> Vec<Outcome> {
        let trial = Arc::new(trial);
        let mut begins = Some(Arc::clone(&trial));
        loop {
            let parts = self.ask(Question::WhatIf(0, begins.take()));
            if let Some(outcomes) = trial.whole(parts) {
                return outcomes;
            }
        }
    }

    fn totals(&mut self) -> BTreeMap<Total, i128> {
        let parts = self.ask(Question::Totals);
        let parts =
            parts.into_iter().filter_map(|part| if let Answer::Totals(totals) = part { Some(totals) } else { None });
        parts.flatten().collect()
    }

    /// Writes each view as sorted lines of JSON.
    fn dump(&mut self, dir: &Path, plan: &Plan) -> Result<(), String> {
        let wrong = |error: std::io::Error| format!("cannot write to {}: {error}", dir.display());
        std::fs::create_dir_all(dir).map_err(wrong)?;
        for (name, view) in [
            ("profiles", View::Profiles),
            ("sessions", View::Sessions),
            ("segment_changes", View::Changes),
            ("intents", View::Intents),
            ("credit", View::Credit),
        ] {
            let mut lines = Vec::new();
            for part in self.ask(Question::Dump(view)) {
                if let Answer::Rows(part) = part {
                    lines.extend(rows::lines(&part, &plan.definitions));
                }
            }
            lines.sort_unstable();
            let mut file = std::io::BufWriter::new(File::create(dir.join(format!("{name}.ndjson"))).map_err(wrong)?);
            for line in lines {
                writeln!(file, "{line}").map_err(wrong)?;
            }
            file.flush().map_err(wrong)?;
        }
        Ok(())
    }

    fn report(&self, plan: &Plan, totals: &BTreeMap<Total, i128>, seconds: f64) -> Report {
        let count = |total: &Total| totals.get(total).copied().unwrap_or(0) as i64;
        let verdicts = self.answers.said.lock().expect("nobody panics while holding it").verdicts.clone();
        let verdict = |verdict: &str| verdicts.get(verdict).copied().unwrap_or(0);
        let rejected = ["too_late", "conflict", "erased", "refused_edge"].map(|reason| (reason, verdict(reason)));
        let rejected = rejected.into_iter().chain([("invalid", self.share.invalid)]).collect();
        let accepted = self.answers.said.lock().expect("nobody panics while holding it").accepted;
        let segments = plan
            .segments
            .iter()
            .map(|segment| (segment.name.to_string(), count(&Total::Members(segment.name.clone()))));
        let journeys = plan.journeys.iter().map(|journey| {
            let inside =
                |state: &dataflows::plan::StatePlan| count(&Total::Inside(journey.name.clone(), state.name.clone()));
            (
                journey.name.to_string(),
                journey.states.iter().map(|state| (state.name.to_string(), inside(state))).collect(),
            )
        });
        let mut intents: BTreeMap<String, i64> =
            plan.campaigns.iter().map(|campaign| (campaign.name.to_string(), 0)).collect();
        for (total, number) in totals {
            if let Total::Intents(campaign, _) = total {
                *intents.entry(campaign.to_string()).or_default() += *number as i64;
            }
        }
        Report {
            as_of: AsOf { position: self.step.position.to_string(), clock: self.as_of().clock },
            read: self.share.read,
            accepted,
            duplicates: verdict("duplicate"),
            rejected,
            profiles: count(&Total::Profiles),
            sessions: Sessions {
                count: count(&Total::Sessions),
                events: count(&Total::SessionEvents),
                length_ms: count(&Total::SessionMillis),
            },
            segments: segments.collect(),
            journeys: journeys.collect(),
            intents,
            attribution: plan.models().iter().map(|model| (model.name(), credit(model.name(), totals))).collect(),
            seconds,
            events_per_second: (self.share.read as f64 / seconds).round(),
            peak_rss_bytes: peak_rss_bytes(),
        }
    }
}

/// The credit of one model by campaign: by value, largest first, then by key.
fn credit(model: &str, totals: &BTreeMap<Total, i128>) -> Vec<Credit> {
    let mut keys: BTreeMap<(&str, &str), (i128, i128)> = BTreeMap::new();
    for (total, sum) in totals {
        match total {
            Total::CreditConversions(of, channel, campaign) if of == model => {
                keys.entry((channel, campaign)).or_default().0 = *sum
            }
            Total::CreditValue(of, channel, campaign) if of == model => {
                keys.entry((channel, campaign)).or_default().1 = *sum
            }
            _ => {}
        }
    }
    let mut rows: Vec<_> = keys.into_iter().collect();
    rows.sort_by(|(a_key, a), (b_key, b)| b.1.cmp(&a.1).then_with(|| a_key.cmp(b_key)));
    let row = |((channel, campaign), (conversions, value)): ((&str, &str), (i128, i128))| Credit {
        channel: channel.to_owned(),
        campaign: campaign.to_owned(),
        conversions: print_billionths(conversions),
        value: print_billionths(value),
    };
    rows.into_iter().map(row).collect()
}

/// The most memory that the process has held, as the system counts it; 0 where it does not say.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1_024
}

impl Drop for Run {
    fn drop(&mut self) {
        // The leader is done, so all are.
        if let Some(others) = self.others.as_ref().filter(|others| others.leads()) {
            others.tell_all(&Letter::Stop);
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} events read in {:.2} s: {} a second", self.read, self.seconds, self.events_per_second)?;
        writeln!(f, "  accepted {}, duplicates {}", self.accepted, self.duplicates)?;
        for (reason, count) in self.rejected.iter().filter(|(_, count)| **count > 0) {
            writeln!(f, "  {reason} {count}")?;
        }
        writeln!(f, "{} profiles, {} sessions", self.profiles, self.sessions.count)?;
        for (name, members) in &self.segments {
            writeln!(f, "  segment {name}: {members}")?;
        }
        for (name, states) in &self.journeys {
            let states: Vec<String> = states.iter().map(|(state, profiles)| format!("{state} {profiles}")).collect();
            writeln!(f, "  journey {name}: {}", states.join(", "))?;
        }
        for (name, intents) in &self.intents {
            writeln!(f, "  campaign {name}: {intents} intents")?;
        }
        write!(f, "peak memory {} MB", self.peak_rss_bytes / 1_000_000)
    }
}
