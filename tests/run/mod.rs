//! The engine, driven by lines as a replay drives it, for tests.

pub mod totals;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use dataflows::admission::Verdict;
use dataflows::definitions::{Definitions, Model};
use dataflows::engine::{Acceptance, Config, Engine, Peers};
use dataflows::event::Decoder;
use dataflows::identity::{Erasure, Linked, Unlinked};
use dataflows::intake::prepare;
use dataflows::plan::{Horizons, Plan};
use dataflows::profile::answers::{IntentRow, Page, Rows, View};
use dataflows::profile::sums::{Credited, Sought, Span, Visits};
use dataflows::profile::trial::{Outcome, Reread, Trial};
use dataflows::protocol::{Answer, Closed, Question, Record, Response, Step, Terms, Watched};
use dataflows::strike;
use dataflows::time::Millis;
use dataflows::total::Total;
use ecow::EcoString;
use serde_json::{Value, json};

pub use totals::Totals;

/// A running engine, in one process or as several would run it, and what feeds it.
pub struct Run {
    /// By process. None once it has stalled: waiting for it to end would be in vain.
    engines: Vec<Engine>,
    closed: Vec<Receiver<Closed>>,
    /// What each process has of the step under way.
    steps: Vec<Step>,
    decoder: Decoder,
    /// The definitions that hold, and those to come.
    plan: Arc<Plan>,
    coming: Option<Arc<Plan>>,
    /// All lines that came.
    lines: Vec<String>,
    position: u64,
    /// That of the last step closed.
    clock: Millis,
    questions: u64,
    /// The sum of all changes of intents that were told.
    told: BTreeMap<IntentRow, i64>,
    /// The sums of all changes that followers were told: rows by view, credit.
    watched: BTreeMap<(Watched, String), i64>,
    credit: BTreeMap<Total, i128>,
    follows: bool,
    /// Who was erased: all ids, up to which instant.
    erased: Vec<(Vec<EcoString>, Millis)>,
    /// How records were decided that were not simply taken, by position.
    pub verdicts: BTreeMap<u64, Verdict>,
}

/// All that can be listed and counted, at one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dump {
    /// Rows by view, in the order of [`VIEWS`], each sorted.
    pub rows: [Vec<String>; 5],
    pub totals: Totals,
    /// Edges with the events that state them, and links that are not made.
    pub links: Vec<String>,
    /// The intents that stand by what was told of them, step by step: the rows, and nothing twice.
    pub told: Vec<String>,
}

/// The engine has not finished a step in time.
#[derive(Debug)]
pub struct Stalled;

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the engine has not finished a step within {PATIENCE:?}")
    }
}

/// The views, by the names of their dumps.
pub const VIEWS: [(&str, View); 5] = [
    ("profiles", View::Profiles),
    ("sessions", View::Sessions),
    ("segment_changes", View::Changes),
    ("intents", View::Intents),
    ("credit", View::Credit),
];

const SECRET: [u8; 16] = [9; 16];
/// A step takes milliseconds. On a machine that is busy with other things it has been seen to take half a minute.
const PATIENCE: Duration = Duration::from_secs(60);

/// Definitions that are right.
pub fn parse(definitions: &str) -> Arc<Definitions> {
    let parsed = Definitions::parse(definitions);
    Arc::new(parsed.unwrap_or_else(|problems| panic!("{problems:#?}\n{definitions}")).0)
}

impl Run {
    /// Starts under definitions.
    pub fn start(definitions: &str, lateness: Option<i64>, workers: usize) -> Run {
        Run::start_among(definitions, lateness, 1, workers)
    }

    /// The same in as many processes, each with as many workers.
    pub fn start_among(definitions: &str, lateness: Option<i64>, processes: usize, workers: usize) -> Run {
        let acceptance = if lateness.is_none() { Acceptance::AnyTime } else { Acceptance::InOrder };
        Run::start_as(acceptance, definitions, lateness, (processes, workers))
    }

    /// The same, with records accepted by this.
    pub fn start_as(
        acceptance: Acceptance,
        definitions: &str,
        lateness: Option<i64>,
        (processes, workers): (usize, usize),
    ) -> Run {
        let plan = Arc::new(Plan::new(parse(definitions)));
        let terms = Terms { lateness, ..Terms::of(&plan.definitions) };
        let start = |(process, connections): (usize, Vec<Option<UnixStream>>)| {
            engine(Config { workers, plan: Arc::clone(&plan), acceptance, secret: SECRET }, process, connections)
        };
        let (engines, closed) = connections(processes).into_iter().enumerate().map(start).unzip();
        Run {
            engines,
            closed,
            steps: vec![Step { terms, ..Step::first() }; processes],
            decoder: Decoder::new(Arc::clone(&plan.vocabulary)),
            plan,
            coming: None,
            lines: Vec::new(),
            position: 0,
            clock: 0,
            questions: 0,
            told: BTreeMap::new(),
            watched: BTreeMap::new(),
            credit: BTreeMap::new(),
            follows: false,
            erased: Vec::new(),
            verdicts: BTreeMap::new(),
        }
    }

    /// Follows all that can be followed, from the first step on.
    pub fn follow(&mut self) -> Result<(), Stalled> {
        let (views, mut rows) = ([Watched::Segments, Watched::Journeys, Watched::Sessions, Watched::Attribution], 0);
        self.close(views.map(|view| Question::Watch(view, true)), |_, part| {
            rows += if let Answer::Watched(part) = part { part.len() } else { 0 };
        })?;
        assert_eq!(rows, 0, "nobody is there yet");
        self.follows = true;
        Ok(())
    }

    /// What was told of what is followed is what stands.
    fn assert_followed(&self, dump: &Dump) {
        let mut stands: BTreeMap<(Watched, String), i64> = BTreeMap::new();
        let mut stand = |view, row: String| *stands.entry((view, row)).or_default() += 1;
        dump.rows[1].iter().for_each(|row| stand(Watched::Sessions, row.clone()));
        for row in &dump.rows[0] {
            let profile: Value = serde_json::from_str(row).expect("rows are JSON");
            for of in profile["segments"].as_array().expect("a list") {
                let (name, since) = (&of["name"], &of["since"]);
                stand(
                    Watched::Segments,
                    json!({"profile": profile["id"], "segment": name, "since": since}).to_string(),
                );
            }
            for (journey, standing) in profile["journeys"].as_object().expect("an object") {
                let mut row = standing.clone();
                row["journey"] = journey.as_str().into();
                row["profile"] = profile["id"].clone();
                stand(Watched::Journeys, row.to_string());
            }
        }
        let sorted = |row: &str| serde_json::from_str::<Value>(row).expect("rows are JSON").to_string();
        let mut told: BTreeMap<(Watched, String), i64> = BTreeMap::new();
        for ((view, row), sum) in self.watched.iter().filter(|(_, sum)| **sum != 0) {
            let row = if *view == Watched::Sessions { row.clone() } else { sorted(row) };
            *told.entry((*view, row)).or_default() += sum;
        }
        assert_eq!(told, stands, "followers were told otherwise");
        let is_credit = |total: &Total| matches!(total, Total::CreditConversions(..) | Total::CreditValue(..));
        let told: Totals = self.credit.clone().into_iter().filter(|(_, sum)| *sum != 0).collect();
        let stands: Totals = dump.totals.clone().into_iter().filter(|(total, _)| is_credit(total)).collect();
        assert_eq!(told, stands, "followers of credit were told otherwise");
    }

    /// Takes one line; gives its position, if it can be read.
    pub fn push(&mut self, line: &str) -> Option<u64> {
        self.push_as(line, None)
    }

    /// Takes one line as a log stamps it.
    pub fn push_stamped(&mut self, line: &str, stamp: Millis) -> Option<u64> {
        self.push_as(line, Some(stamp))
    }

    fn push_as(&mut self, line: &str, stamp: Option<Millis>) -> Option<u64> {
        let record = self.read(line);
        let clock = stamp.unwrap_or_default();
        self.steps.iter_mut().for_each(|step| step.clock = step.clock.max(clock));
        if let Some(Record::Erase(erasure)) = record {
            return self.erase(*erasure);
        }
        self.position += 1;
        let mut record = record?;
        // Wherever it comes in, its place is the same.
        let process = self.position as usize % self.steps.len();
        let lateness = self.steps[process].terms.lateness;
        match (&mut record, stamp) {
            (Record::Event(prepared), Some(stamp)) => prepared.stamp(stamp, lateness),
            (Record::Retract(_, at, ..) | Record::Unlink(_, at, ..), Some(stamp)) => *at = stamp,
            _ => {}
        }
        self.steps[process].record(record);
        Some(self.position)
    }

    /// Reads a line as a log keeps it: without who was erased, where it is dated before that.
    fn read(&mut self, line: &str) -> Option<Record> {
        let mut record = prepare(line, self.position + 1, &mut self.decoder, &SECRET).ok();
        let mut kept = line.to_owned();
        if let Some(Record::Event(prepared)) = &mut record {
            let at = prepared.event.timestamp;
            let erased = self.erased.iter().filter(|(_, until)| at <= *until);
            let ids: Vec<&EcoString> = erased.flat_map(|(ids, _)| ids).collect();
            if let Some(struck) = strike::call(line, &|id| ids.iter().any(|gone| *gone == id)).expect("it was read") {
                if let Ok(Record::Event(again)) = prepare(&struck, self.position + 1, &mut self.decoder, &SECRET) {
                    prepared.event.details = again.event.details;
                }
                kept = struck;
            }
        }
        self.lines.push(kept);
        record
    }

    /// All ids of whoever has an id by now, and the clock: what an erasure is of. A step under way is closed first,
    /// since it may say who that is.
    pub fn person(&mut self, id: &str) -> Result<(Vec<EcoString>, Millis), Stalled> {
        let mut ids = Vec::new();
        self.close([Question::Profile(id.into())], |_, part| {
            if let Answer::Profile(profile) = part {
                ids.extend(profile.ids().cloned());
            }
        })?;
        Ok((ids, self.clock))
    }

    /// Erases whoever has an id at this place.
    fn erase(&mut self, Erasure { position, ids, .. }: Erasure) -> Option<u64> {
        let (ids, until) = self.person(&ids[0]).expect("a step finishes");
        self.position = position;
        if !ids.is_empty() {
            let process = position as usize % self.steps.len();
            for record in self.engines[process].erasing(Erasure { position, until, ids: ids.clone() }) {
                self.steps[process].record(record);
            }
            // Bodies are struck when the step is closed; what the engine cannot know of them is told then.
            self.close([], |_, _| {}).expect("a step finishes");
            for (place, line) in (1..).zip(std::mem::take(&mut self.lines)) {
                let struck = strike::call(&line, &|id| ids.iter().any(|gone| *gone == id)).ok().flatten();
                let again = struck.as_ref().map(|line| prepare(line, place, &mut self.decoder, &SECRET));
                if let Some(Ok(Record::Event(prepared))) = again {
                    self.steps[process].record(Record::Reread(prepared.event));
                }
                self.lines.push(struck.unwrap_or(line));
            }
            self.erased.push((ids, until));
        }
        Some(position)
    }

    /// What became of an event of a closed step, in the oracle's words.
    pub fn verdict(&self, position: u64) -> &'static str {
        self.verdicts.get(&position).map_or("accepted", |verdict| verdict.name())
    }

    /// Other definitions are to hold. A step under way is closed first; what came before is read again, with what they
    /// name, while steps go on.
    pub fn redefine(&mut self, definitions: &str, horizons: Horizons) -> Result<(), Stalled> {
        if self.steps.iter().any(|step| !step.is_empty()) {
            self.close([], |_, _| {})?;
        }
        let plan = Arc::new(self.plan.after(parse(definitions), horizons));
        self.decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        for (position, line) in (1..).zip(std::mem::take(&mut self.lines)) {
            if let Ok(Record::Event(prepared)) = prepare(&line, position, &mut self.decoder, &SECRET) {
                let process = position as usize % self.steps.len();
                self.steps[process].record(Record::Reread(prepared.event));
            }
            self.lines.push(line);
            if position % 7 == 0 {
                self.close([], |_, _| {})?;
            }
        }
        for step in &mut self.steps {
            step.plan = Some(Arc::clone(&plan));
            step.terms.ids_max = plan.definitions.identity.max_ids;
        }
        self.coming = Some(plan);
        Ok(())
    }

    /// The definitions that hold.
    pub fn definitions(&self) -> Arc<Definitions> {
        Arc::clone(&self.plan.definitions)
    }

    /// The clock of the last step.
    pub fn clock(&self) -> Millis {
        self.clock
    }

    /// The plan of what holds.
    pub fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan)
    }

    /// Tries something; before each time that the engine is asked how far it is, something may come in. What
    /// definitions name that is not kept is read again from what has come in before.
    pub fn what_if(&mut self, mut trial: Trial, mut meanwhile: impl FnMut(&mut Run)) -> Result<Vec<Outcome>, Stalled> {
        if self.steps.iter().any(|step| !step.is_empty()) {
            self.close([], |_, _| {})?;
        }
        let plans = trial.plans(&self.plan);
        let named = plans.last().map(|plan| Arc::clone(&plan.vocabulary));
        if let Some(named) = named.filter(|named| named.wants_more_than(&self.plan.vocabulary)) {
            let mut decoder = Decoder::new(Arc::clone(&named));
            let lines = (1..).zip(&self.lines);
            let read = lines.filter_map(|(position, line)| match prepare(line, position, &mut decoder, &SECRET) {
                Ok(Record::Event(prepared)) => Some(prepared.event),
                _ => None,
            });
            let events = read.filter(|event| named.wants_more_of(event.name, &self.plan.vocabulary)).collect();
            trial.reread = Some(Reread { until: (self.position, self.clock), events });
        }
        let trial = Arc::new(trial);
        let mut begins = Some(Arc::clone(&trial));
        loop {
            meanwhile(self);
            let mut parts = Vec::new();
            // Two questions a step, so that the first is asked by one process alone.
            let questions = [Question::WhatIf(1, begins.take()), Question::Totals];
            self.close(questions, |place, part| parts.extend(Some(part).filter(|_| place == 0)))?;
            if let Some(outcomes) = trial.whole(parts) {
                self.close([Question::Forget(1)], |_, _| {})?;
                return Ok(outcomes);
            }
        }
    }

    /// Whether definitions that are to hold do not yet.
    pub fn is_preparing(&self) -> bool {
        self.coming.is_some()
    }

    /// Closes the step and gives all that is then true. What is added up when it is asked for must equal the totals.
    pub fn dump(&mut self) -> Result<Dump, Stalled> {
        let (mut dump, mut beside, mut visits) = (Dump::default(), Totals::default(), Visits::default());
        let plan = Arc::clone(&self.plan);
        let mut credit = vec![Credited::default(); plan.models().len()];
        let mut followed = vec![0; plan.campaigns.len()];
        let questions = VIEWS.map(|(_, view)| Question::Dump(view)).into_iter();
        let questions = questions.chain([Question::Totals, Question::Followed, Question::Visits(Span::default())]);
        let sought = |model: &Model| Sought { model: *model, conversion: None, span: Span::default() };
        let questions = questions.chain(["a", "b", "c", "d", "e"].map(|id| Question::Person(id.into())));
        let questions = questions.chain([Question::Unlinked { after: None, limit: usize::MAX }]);
        let questions: Vec<_> = questions.chain(plan.models().iter().map(|of| Question::Credit(sought(of)))).collect();
        let models = questions.len() - credit.len();
        let mut links = BTreeSet::new();
        self.close(questions, |place, part| match part {
            Answer::Links(part) => links.extend(
                part.into_iter()
                    .map(|Linked { a, b, at, own, message_id }| format!("{a} - {b} by {at} {message_id} of {own}")),
            ),
            Answer::Unlinked(part) => {
                links.extend(part.into_iter().map(|Unlinked { at, message_id, own, a, b, claimed_by }| {
                    let why = claimed_by.unwrap_or("refused".into());
                    format!("not {a} - {b} by {at} {message_id} of {own}: {why}")
                }));
            }
            Answer::Visits(part) => visits.add(part),
            Answer::Followed(part) => followed.iter_mut().zip(part).for_each(|(sum, part)| *sum += part),
            Answer::Credit(part) => credit[place - models].add(part),
            Answer::Rows(part) => dump.rows[place].extend(server::rows::lines(&part, &plan.definitions)),
            Answer::Totals(part) => {
                let totals = if place == VIEWS.len() { &mut dump.totals } else { &mut beside };
                part.into_iter().for_each(|(total, sum)| *totals.entry(total).or_default() += sum)
            }
            _ => {}
        })?;
        if !Arc::ptr_eq(&plan, &self.plan) {
            // What was asked was meant for the definitions before.
            return self.dump();
        }
        dump.links = links.into_iter().collect();
        assert_eq!(beside, dump.totals, "those that come with the conversions that followed");
        let stands = self.told.iter().filter(|(_, times)| **times != 0);
        let stands = stands.flat_map(|(row, times)| vec![row.clone(); usize::try_from(*times).unwrap_or(99)]);
        dump.told = server::rows::lines(&Rows::Intents(stands.collect()), &plan.definitions);
        dump.rows.iter_mut().chain([&mut dump.told]).for_each(|rows| rows.sort());
        let models = plan.models().iter().map(|model| model.name());
        if self.follows {
            self.assert_followed(&dump);
        }
        assert_eq!(totals::asked(visits, models.zip(credit)), totals::of_asked(&dump.totals));
        let names = plan.campaigns.iter().map(|campaign| campaign.name.to_string());
        let followed: BTreeMap<_, _> = names.zip(followed).filter(|(_, count)| *count > 0).collect();
        let lookback = plan.definitions.attribution.lookback;
        assert_eq!(followed, totals::followed(&dump.rows[3], &dump.rows[4], lookback));
        Ok(dump)
    }

    /// The credit of some conversions.
    pub fn credit(&mut self, sought: Sought) -> Result<Credited, Stalled> {
        let mut sum = Credited::default();
        self.close([Question::Credit(sought)], |_, part| {
            if let Answer::Credit(part) = part {
                sum.add(part);
            }
        })?;
        Ok(sum)
    }

    /// A profile's rows of one view, as parts of so many give them.
    pub fn history(&mut self, id: &str, view: View, limit: usize) -> Result<Vec<String>, Stalled> {
        let (mut all, mut before, plan) = (Vec::new(), None, Arc::clone(&self.plan));
        loop {
            let page = Page { before: before.take(), limit };
            self.close([Question::History { id: id.into(), view, page }], |_, part| {
                if let Answer::History(Rows::Events(rows), next) = part {
                    all.extend(rows.into_iter().map(|(.., position)| position.to_string()));
                    before = next;
                } else if let Answer::History(rows, next) = part {
                    all.extend(server::rows::lines(&rows, &plan.definitions));
                    before = next;
                }
            })?;
            if before.is_none() {
                return Ok(all);
            }
        }
    }

    /// Closes the step and waits for it; each part of an answer is told with the place of its question.
    pub fn close(
        &mut self,
        questions: impl IntoIterator<Item = Question>,
        mut tell: impl FnMut(usize, Answer),
    ) -> Result<(), Stalled> {
        let (first, processes) = (self.questions, self.steps.len());
        for question in questions {
            self.steps[self.questions as usize % processes].questions.push((self.questions, question));
            self.questions += 1;
        }
        if self.engines.is_empty() {
            return Err(Stalled);
        }
        for (step, engine) in self.steps.iter_mut().zip(&self.engines) {
            step.position = self.position;
            engine.step(step.close());
        }
        let mut said = Vec::new();
        for heard in &self.closed {
            let Ok(mut closed) = heard.recv_timeout(PATIENCE) else {
                self.engines.drain(..).for_each(std::mem::forget);
                return Err(Stalled);
            };
            for (view, row, change) in std::mem::take(&mut closed.rows) {
                *self.watched.entry((view, row)).or_default() += i64::from(change);
            }
            for (total, change) in std::mem::take(&mut closed.credit) {
                *self.credit.entry(total).or_default() += change;
            }
            let answers = std::mem::take(&mut closed.answers);
            answers.into_iter().for_each(|(question, part)| tell((question - first) as usize, part));
            closed.intents.sort();
            closed.verdicts.sort();
            said.push(closed);
        }
        let closed = said.pop().expect("there is a process");
        assert_eq!(closed.position, self.position);
        for other in said {
            let parts = |closed: &Closed| (closed.number, closed.position, closed.clock, closed.accepted);
            assert_eq!(parts(&closed), parts(&other), "processes do not agree");
            assert_eq!((&closed.intents, &closed.verdicts), (&other.intents, &other.verdicts));
            assert_eq!((closed.switched, closed.prepared), (other.switched, other.prepared));
        }
        if closed.switched.is_some() {
            self.plan = self.coming.take().expect("definitions are to come");
        }
        self.clock = closed.clock;
        self.verdicts.extend(closed.verdicts);
        for (row, change) in closed.intents {
            *self.told.entry(row).or_default() += i64::from(change);
        }
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Each ends when all do.
        std::thread::scope(|scope| {
            for engine in self.engines.drain(..) {
                scope.spawn(move || drop(engine));
            }
        });
    }
}

/// The engine of one of several processes, and the steps that it tells of.
pub fn engine(config: Config, process: usize, connections: Vec<Option<UnixStream>>) -> (Engine, Receiver<Closed>) {
    let (told, closed) = channel();
    let heard = move |response| match response {
        Response::Closed(step) => drop(told.send(step)),
        Response::Letter(from, letter) => panic!("{from} wrote {letter:?}"),
    };
    let lost = Box::new(|peer| panic!("the connection to {peer} is lost"));
    let engine = match connections.len() {
        1 => Engine::start(config, heard),
        _ => Engine::start_among(config, Peers { process, connections, lost }, heard),
    };
    (engine, closed)
}

/// The connections that each of several processes has to the others.
pub fn connections(processes: usize) -> Vec<Vec<Option<UnixStream>>> {
    let mut all: Vec<Vec<_>> = (0..processes).map(|_| (0..processes).map(|_| None).collect()).collect();
    for (low, high) in (0..processes).flat_map(|high| (0..high).map(move |low| (low, high))) {
        let (a, b) = UnixStream::pair().expect("the system gives sockets");
        (all[low][high], all[high][low]) = (Some(a), Some(b));
    }
    all
}
