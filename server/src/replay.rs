//! Replay: files of events through the engine as fast as it goes, and a report of what is then true.
//!
//! Lines are read in blocks, and blocks are decoded on several threads: what comes out of them goes to the engine as it
//! is, since each record bears its place. The clock is that of the events; nothing is sent to anyone.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use dataflows::engine::{Acceptance, Config, Engine};
use dataflows::event::Decoder;
use dataflows::intake::prepare;
use dataflows::number::print_billionths;
use dataflows::place::place;
use dataflows::plan::Plan;
use dataflows::profile::answers::View;
use dataflows::protocol::{Answer, Question, Record, Response, Step};
use dataflows::time::Millis;
use dataflows::total::Total;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::rows;
use crate::writer::{self, Hub};

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

/// Events in a step: larger than live, since nobody waits for the first of them.
const STEP_EVENTS: usize = 10_000;
/// Bytes of lines decoded together.
const BLOCK_BYTES: usize = 1 << 18;
/// Blocks that a decoder may have before or after it.
const BLOCKS_WAITING: usize = 4;
/// Steps that the engine may have open.
const STEPS_OPEN_MAX: u64 = 8;
/// Keys the hashes of ids; a replay keeps nothing, so any will do.
const SECRET: [u8; 16] = *b"replay of a file";

/// What the lines of one block are.
#[derive(Default)]
struct Block {
    /// Records, in chunks as steps have them.
    records: Vec<Vec<Record>>,
    /// The place of the last line.
    position: u64,
    /// Lines that are events, or ought to be.
    events: u64,
    /// Lines that are neither events nor anything else.
    invalid: u64,
}

/// Replays; gives the report and the state, or a sentence on what is wrong.
pub fn replay(replay: &Replay) -> Result<(Report, Run), String> {
    let started = Instant::now();
    let answers = Arc::new(Answers::default());
    let heard = Arc::clone(&answers);
    let acceptance = if replay.lateness.is_some() { Acceptance::InOrder } else { Acceptance::AnyTime };
    let config = Config { workers: replay.workers, plan: Arc::clone(&replay.plan), acceptance };
    let mut run = Run {
        engine: Engine::start(config, move |response| heard.hear(response)),
        step: Step { lateness: replay.lateness, ..Step::first() },
        records: 0,
        answers,
        read: 0,
        invalid: 0,
    };
    let decoders = decoders(replay);
    let bar = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{spinner} {pos} events, {per_sec}").expect("a fixed template"));
    bar.enable_steady_tick(Duration::from_millis(200));
    'blocks: loop {
        for decoder in &decoders {
            let Ok(block) = decoder.recv() else { break 'blocks };
            run.take(block?);
            bar.set_position(run.read);
        }
    }
    bar.finish_and_clear();
    let totals = run.totals();
    // What is timed is what everyone waits for: from the first byte to the numbers.
    let seconds = started.elapsed().as_secs_f64();
    if let Some(dump) = &replay.dump {
        run.dump(dump, &replay.plan)?;
    }
    Ok((run.report(&replay.plan, &totals, seconds), run))
}

/// Starts the threads that read and decode. They take turns at the files, each with one buffer of its own that stays in
/// its cache, so the next block is always the next thread's.
fn decoders(replay: &Replay) -> Vec<Receiver<Result<Block, String>>> {
    let count = replay.workers.max(2);
    let source = Arc::new((Mutex::new(Source::new(replay.files.clone())), Condvar::new()));
    let start = |number: usize| {
        let (decoded, blocks) = sync_channel(BLOCKS_WAITING);
        let (source, mut decoder) = (Arc::clone(&source), Decoder::new(Arc::clone(&replay.plan.vocabulary)));
        let work = move || {
            let mut buffer = Vec::with_capacity(BLOCK_BYTES + 4_096);
            for turn in (number..).step_by(count) {
                let (reading, changed) = &*source;
                let mut reading = reading.lock().expect("nobody panics while holding it");
                while reading.turn != turn {
                    reading = changed.wait(reading).expect("nobody panics while holding it");
                }
                let read = reading.block(&mut buffer);
                reading.turn += 1;
                drop(reading);
                changed.notify_all();
                let block = match read {
                    Ok(true) => {
                        // A line that is not UTF-8 is that line's fault: what cannot be read of it makes it no JSON.
                        let text = std::str::from_utf8(&buffer).map(Cow::Borrowed);
                        let text = text.unwrap_or_else(|_| String::from_utf8_lossy(&buffer));
                        let lines = text.lines().filter(|line| !line.trim_start().is_empty());
                        // Places are counted from one: nothing stands before the first line.
                        Ok(Block::new(turn as u64 + 1, lines, &mut decoder))
                    }
                    Ok(false) => return,
                    Err(error) => Err(error),
                };
                if decoded.send(block).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("decoder".into()).spawn(work).expect("the system gives a thread");
        blocks
    };
    (0..count).map(start).collect()
}

impl Block {
    fn new<'l>(number: u64, lines: impl Iterator<Item = &'l str>, decoder: &mut Decoder) -> Block {
        let (mut block, mut step) = (Block::default(), Step::first());
        for (index, line) in lines.enumerate() {
            block.position = place(number, 0, index);
            let record = prepare(line, block.position, decoder, &SECRET);
            block.events += u64::from(matches!(record, Ok(Record::Event(_)) | Err(_)));
            match record {
                Ok(record) => step.record(record),
                Err(_) => block.invalid += 1,
            }
        }
        block.records = step.records;
        block
    }
}

/// The files, read in blocks of whole lines.
struct Source {
    files: std::vec::IntoIter<PathBuf>,
    open: Option<(PathBuf, BufReader<Box<dyn Read + Send>>)>,
    /// Which block comes next.
    turn: usize,
}

impl Source {
    fn new(files: Vec<PathBuf>) -> Source {
        Source { files: files.into_iter(), open: None, turn: 0 }
    }

    /// Reads the next block; false at the end of the last file.
    fn block(&mut self, buffer: &mut Vec<u8>) -> Result<bool, String> {
        buffer.clear();
        loop {
            let (path, reader) = match &mut self.open {
                Some(open) => open,
                None => {
                    let Some(path) = self.files.next() else { return Ok(false) };
                    let file = open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                    self.open.insert((path, BufReader::new(file)))
                }
            };
            let read = reader.take(BLOCK_BYTES as u64).read_to_end(buffer);
            let read = read.and_then(|_| reader.read_until(b'\n', buffer));
            read.map_err(|error| format!("{}: {error}", path.display()))?;
            if !buffer.is_empty() {
                return Ok(true);
            }
            self.open = None;
        }
    }
}

fn open(path: &Path) -> std::io::Result<Box<dyn Read + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = File::open(path)?;
    Ok(match path.extension().and_then(|extension| extension.to_str()) {
        Some("zst") => Box::new(zstd::Decoder::new(file)?),
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(file)),
        _ => Box::new(file),
    })
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
    verdicts: BTreeMap<&'static str, u64>,
}

impl Answers {
    fn hear(&self, response: Response) {
        let Response::Closed(closed) = response else { return };
        let mut said = self.said.lock().expect("nobody panics while holding it");
        (said.closed, said.clock) = (closed.number, closed.clock);
        for (_, verdict) in closed.verdicts {
            *said.verdicts.entry(verdict.name()).or_default() += 1;
        }
        said.parts.extend(closed.answers.into_iter().map(|(_, part)| part));
        self.changed.notify_all();
    }
}

/// A replay under way or done.
pub struct Run {
    engine: Engine,
    step: Step,
    records: usize,
    answers: Arc<Answers>,
    read: u64,
    invalid: u64,
}

impl Run {
    /// Keeps what is true at the end, for those who ask.
    pub fn stay(mut self) -> Hub {
        let as_of = self.as_of();
        Hub::still(as_of, move |question| self.ask(question))
    }

    fn as_of(&self) -> writer::AsOf {
        let clock = self.answers.said.lock().expect("nobody panics while holding it").clock;
        writer::AsOf { position: self.step.position, clock }
    }

    fn take(&mut self, block: Block) {
        let Block { mut records, position, events, invalid } = block;
        self.read += events;
        self.invalid += invalid;
        self.records += records.iter().map(Vec::len).sum::<usize>();
        self.step.records.append(&mut records);
        self.step.position = position.max(self.step.position);
        if self.records >= STEP_EVENTS {
            self.close(STEPS_OPEN_MAX);
        }
    }

    /// Closes the step; waits until at most so many are open.
    fn close(&mut self, open_max: u64) {
        let step = self.step.close();
        let number = step.number;
        self.records = 0;
        self.engine.step(step);
        let mut said = self.answers.said.lock().expect("nobody panics while holding it");
        while said.closed + open_max < number {
            said = self.answers.changed.wait(said).expect("nobody panics while holding it");
        }
    }

    fn ask(&mut self, question: Question) -> Vec<Answer> {
        self.step.questions.push((0, question));
        self.close(0);
        std::mem::take(&mut self.answers.said.lock().expect("nobody panics while holding it").parts)
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
        let rejected: BTreeMap<_, _> = rejected.into_iter().chain([("invalid", self.invalid)]).collect();
        let taken_not = verdict("duplicate") + rejected.values().sum::<u64>() - verdict("refused_edge");
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
            read: self.read,
            accepted: self.read - taken_not,
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
            events_per_second: (self.read as f64 / seconds).round(),
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
