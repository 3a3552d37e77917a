//! The command line: what may be typed, and what each command does.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dataflows::definitions::{Definitions, Deliver, Problem};
use dataflows::plan::Plan;
use dataflows::profile::sums::Span;
use dataflows::time::{Millis, parse_duration};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tokio::sync::SetOnce;

use crate::audit::Audit;
use crate::book::Book;
use crate::cluster::{self, Greeting, LEADER};
use crate::demo;
use crate::desk::Records;
use crate::dry_run::{DryRun, dry_run};
use crate::http::{App, STILL_MAX, opening, router};
use crate::hub::{ClockMode, Hub, Work};
use crate::log::Log;
use crate::moment::Moment;
use crate::outbox::Outbox;
use crate::replay::{self, Replay, replay};
use crate::stream::{self, Kept, Stream};
use crate::templates;
use crate::writer::{self, Found, Started, Store};

/// A real-time marketing engine: sessions, segments, journeys and attribution, kept exact as events come in.
#[derive(Debug, Parser)]
#[command(name = "thalweg", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Takes events over HTTP, keeps them in the log, answers and triggers.
    Serve(Serve),
    /// Serves the example shop, with live visitors on a clock that runs fast.
    Demo(Demo),
    /// Runs files of events through the engine as fast as it goes, and reports what is then true.
    Replay(ReplayArgs),
    /// Says what campaigns would have triggered over files of events, under several definitions side by side.
    DryRun(DryRunArgs),
    /// Says all that is wrong with a definitions file.
    Check {
        /// The definitions file.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// The definitions file.
    #[arg(long, env = "THALWEG_DEFINITIONS", default_value = "thalweg.yaml")]
    definitions: PathBuf,
    /// Where the log is kept.
    #[arg(long, env = "THALWEG_DATA", default_value = "thalweg-data")]
    data: PathBuf,
    /// Worker threads.
    #[arg(long, env = "THALWEG_WORKERS", default_value_t = 1, value_parser = workers)]
    workers: usize,
    /// Where to listen.
    #[arg(long, env = "THALWEG_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// What moves the clock.
    #[arg(long, env = "THALWEG_CLOCK", value_enum, default_value_t = ClockMode::Wall)]
    clock: ClockMode,
    #[command(flatten)]
    nats: stream::Options,
    #[command(flatten)]
    among: Among,
}

/// Which of several processes this is.
#[derive(Debug, Args)]
struct Among {
    /// The processes that work together: a file with the address of each, one a line.
    #[arg(long, env = "THALWEG_HOSTS", requires = "process")]
    hosts: Option<PathBuf>,
    /// Which line of --hosts this process is, counted from 0.
    #[arg(long, env = "THALWEG_PROCESS", requires = "hosts")]
    process: Option<usize>,
}

#[derive(Debug, Args)]
struct Demo {
    /// Where the log is kept.
    #[arg(long, env = "THALWEG_DATA", default_value = "thalweg-demo")]
    data: PathBuf,
    /// Worker threads.
    #[arg(long, env = "THALWEG_WORKERS", default_value_t = 1, value_parser = workers)]
    workers: usize,
    /// Where to listen.
    #[arg(long, env = "THALWEG_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

/// Files, and under which definitions they are run through the engine.
#[derive(Debug, Args)]
struct Input {
    /// Files of events, one a line, plain or .gz or .zst; `-` is the standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The definitions file.
    #[arg(long, env = "THALWEG_DEFINITIONS", default_value = "thalweg.yaml")]
    definitions: PathBuf,
    /// Worker threads.
    #[arg(long, env = "THALWEG_WORKERS", default_value_t = 1, value_parser = workers)]
    workers: usize,
    /// How late an event may be, such as 30d.
    #[arg(long, env = "THALWEG_LATENESS", default_value = "unlimited", value_parser = lateness)]
    lateness: Lateness,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    #[command(flatten)]
    input: Input,
    /// Prints the report in this form.
    #[arg(long, env = "THALWEG_REPORT", value_enum)]
    report: Option<ReportForm>,
    /// Writes the rows of each view to files in this directory.
    #[arg(long, env = "THALWEG_DUMP", value_name = "DIR")]
    dump: Option<PathBuf>,
    /// Afterwards answers over HTTP at this address, until it is stopped.
    #[arg(long, env = "THALWEG_SERVE", value_name = "ADDR")]
    serve: Option<SocketAddr>,
    #[command(flatten)]
    among: Among,
}

#[derive(Debug, Args)]
struct DryRunArgs {
    #[command(flatten)]
    input: Input,
    /// Intents from this instant on: a UTC date, RFC 3339, or ms.
    #[arg(long, env = "THALWEG_FROM", value_parser = instant)]
    from: Option<Millis>,
    /// And before this one.
    #[arg(long, env = "THALWEG_TO", value_parser = instant)]
    to: Option<Millis>,
    /// Other definitions to try beside these: a name and a file. May be given several times.
    #[arg(long = "variant", env = "THALWEG_VARIANT", value_name = "NAME=FILE", value_parser = variant)]
    variants: Vec<(String, PathBuf)>,
    /// Prints the report in this form.
    #[arg(long, env = "THALWEG_REPORT", value_enum)]
    report: Option<ReportForm>,
}

impl Among {
    /// All hosts, and which is this; none: the process is alone.
    fn read(&self) -> Result<Option<(Vec<String>, usize)>, String> {
        let (Some(file), Some(process)) = (&self.hosts, self.process) else { return Ok(None) };
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read the file of hosts {}: {error}", file.display()))?;
        let hosts = cluster::hosts(&text).map_err(|wrong| format!("{}: {wrong}", file.display()))?;
        if process >= hosts.len() {
            let (file, last) = (file.display(), hosts.len() - 1);
            return Err(format!("{file} lists processes 0 to {last}, and --process is {process}"));
        }
        Ok(Some((hosts, process)).filter(|(hosts, _)| hosts.len() > 1))
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ReportForm {
    /// One JSON object.
    Json,
}

fn workers(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|workers| (1..=64).contains(workers)).ok_or("an integer from 1 to 64".into())
}

/// A span, or none: any time.
type Lateness = Option<Millis>;

fn lateness(text: &str) -> Result<Lateness, String> {
    if text == "unlimited" {
        return Ok(None);
    }
    let wrong = "an integer and one of ms, s, m, h, d, such as 30d, or unlimited";
    parse_duration(text).map(Some).ok_or(wrong.into())
}

fn instant(text: &str) -> Result<Millis, String> {
    let wrong = || "a UTC date such as 2026-01-31, an instant of RFC 3339, or milliseconds".into();
    Moment::Text(text.to_owned()).instant().ok_or_else(wrong)
}

fn variant(text: &str) -> Result<(String, PathBuf), String> {
    let parts = text.split_once('=').filter(|(name, file)| !name.is_empty() && !file.is_empty());
    parts.map(|(name, file)| (name.to_owned(), file.into())).ok_or("a name and a file, such as four=other.yaml".into())
}

/// Does what was typed; gives a sentence on what went wrong.
pub fn run() -> Result<(), String> {
    match Cli::parse().command {
        Command::Check { file } => check(&file),
        Command::Replay(args) => run_replay(args),
        Command::DryRun(args) => run_dry(args),
        Command::Serve(args) => {
            logs();
            let text = read(&args.definitions)?;
            let definitions = parse(&text, &args.definitions)?;
            let name = args.definitions.display().to_string();
            serve(Serving {
                text,
                name,
                definitions,
                data: args.data,
                workers: args.workers,
                listen: args.listen,
                clock: args.clock,
                nats: Some(args.nats),
                among: args.among.read()?,
                demo: false,
            })
        }
        Command::Demo(args) => {
            logs();
            let text = demo::SHOP.to_owned();
            let definitions = parse(&text, Path::new("examples/shop.yaml"))?;
            let name = "examples/shop.yaml".to_owned();
            serve(Serving {
                text,
                name,
                definitions,
                data: args.data,
                workers: args.workers,
                listen: args.listen,
                clock: ClockMode::Wall,
                nats: None,
                among: None,
                demo: true,
            })
        }
    }
}

/// Logs for people on a terminal, as JSON otherwise.
fn logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() { logs.with_target(false).init() } else { logs.json().init() }
}

fn read(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file)
        .map_err(|error| format!("cannot read the definitions file {}: {error}", file.display()))
}

fn told(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// Reads and checks definitions, templates too.
fn parse(text: &str, file: &Path) -> Result<Definitions, String> {
    let mut problems = templates::faults(text);
    let (definitions, warnings) = Definitions::parse(text).unwrap_or_else(|others| {
        problems.extend(others);
        Default::default()
    });
    if !problems.is_empty() {
        problems.sort();
        return Err(format!("{} is wrong in {} places:{}", file.display(), problems.len(), told(&problems)));
    }
    if !warnings.is_empty() {
        eprintln!("thalweg: {} may not mean what it says:{}", file.display(), told(&warnings));
    }
    Ok(definitions)
}

fn check(file: &Path) -> Result<(), String> {
    let definitions = parse(&read(file)?, file)?;
    println!(
        "{} is right: {} traits, {} segments, {} journeys, {} campaigns",
        file.display(),
        definitions.traits.len(),
        definitions.segments.len(),
        definitions.journeys.len(),
        definitions.campaigns.len()
    );
    Ok(())
}

fn run_replay(args: ReplayArgs) -> Result<(), String> {
    let ReplayArgs { input, report: form, dump, serve, among } = args;
    let Input { files, definitions, workers, lateness } = input;
    let text = read(&definitions)?;
    let plan = Arc::new(Plan::new(Arc::new(parse(&text, &definitions)?)));
    let among = among.read()?;
    if serve.is_some() && among.as_ref().is_some_and(|(_, process)| *process != LEADER) {
        return Err("the processes of a replay answer by the first: give --serve to --process 0".into());
    }
    // The port first: nobody should have to wait for a long replay to find it taken.
    let listener = serve.map(|at| std::net::TcpListener::bind(at).map_err(|error| format!("{at}: {error}")));
    let listener = listener.transpose().map_err(|error| format!("cannot listen on {error}"))?;
    let what = Replay { files, plan: Arc::clone(&plan), workers, lateness, dump };
    let meet = |(hosts, process): (Vec<String>, usize)| {
        let greeting = greeting(process, hosts.len(), workers, purpose(&replay::purpose(&what), &text));
        cluster::meet(hosts, &greeting)
    };
    let team = among.map(meet).transpose()?;
    let Some((report, run)) = replay(&what, team)? else { return Ok(()) };
    match form {
        Some(ReportForm::Json) => println!("{}", serde_json::to_string(&report).expect("reports have string keys")),
        None => println!("{report}"),
    }
    match listener {
        Some(listener) => {
            let book = Book::open(&text, None).map_err(|problems| told(&problems))?;
            runtime()?.block_on(serve_replayed(listener, run.stay(Arc::new(book))))
        }
        None => Ok(()),
    }
}

fn run_dry(args: DryRunArgs) -> Result<(), String> {
    let read = |file: &Path| Ok::<_, String>(Arc::new(parse(&self::read(file)?, file)?));
    let DryRunArgs { input, from, to, variants, report: form } = args;
    let Input { files, definitions, workers, lateness } = input;
    let standing = read(&definitions)?;
    let variants = variants.iter().map(|(name, file)| Ok((name.clone(), read(file)?)));
    let variants = variants.collect::<Result<_, String>>()?;
    let run = DryRun { files, workers, lateness, span: Span { from, to }, standing, variants };
    let report = dry_run(run)?;
    match form {
        Some(ReportForm::Json) => println!("{}", serde_json::to_string(&report).expect("reports have string keys")),
        None => println!("{report}"),
    }
    Ok(())
}

/// Keeps the doors open on what a replay found.
async fn serve_replayed(listener: std::net::TcpListener, hub: Hub) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("the listener failed: {error}");
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let (outbox, _) = Outbox::new(hub.clone(), None, Found::default());
    let app = App {
        hub,
        outbox,
        log: None,
        audit: None,
        desk: None,
        clock: ClockMode::Events,
        now: crate::clock::now,
        secret: [0; 16],
        defining: Arc::default(),
        trying: Arc::default(),
        stopping,
    };
    axum::serve(listener, router(app)).with_graceful_shutdown(interrupted(stop)).await.map_err(failed)
}

struct Serving {
    text: String,
    name: String,
    definitions: Definitions,
    data: PathBuf,
    workers: usize,
    listen: SocketAddr,
    clock: ClockMode,
    nats: Option<stream::Options>,
    /// All hosts, and which is this.
    among: Option<(Vec<String>, usize)>,
    demo: bool,
}

fn runtime() -> Result<Runtime, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| format!("cannot start: {error}"))
}

fn serve(serving: Serving) -> Result<(), String> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(serve_async(serving));
    // Whoever stops it while it reads its log does not wait for that.
    runtime.shutdown_background();
    outcome
}

async fn serve_async(serving: Serving) -> Result<(), String> {
    let Serving { text, name, definitions, data, workers, listen, clock, nats, among, demo } = serving;
    if definitions.write_keys.is_empty() && !listen.ip().is_loopback() {
        return Err(format!(
            "{listen} can be reached from outside, but {name} lists no write_keys: list some, or listen on 127.0.0.1"
        ));
    }
    // The port first: a second start should not have to read the log to find it taken.
    let listener = tokio::net::TcpListener::bind(listen).await;
    let listener = listener
        .map_err(|error| format!("cannot listen on {listen}: {error}; choose another address with --listen"))?;
    let plan = Arc::new(Plan::new(Arc::new(definitions)));
    let (told, mut closed) = tokio::sync::mpsc::unbounded_channel();
    let now = if demo { demo::now } else { crate::clock::now };
    let (log, records, kept_in) = open(&data, nats, &plan, clock, demo).await?;
    let (secret, last_time) = log.identity();
    let ((defined, settled), at) = (log.last().await?, log.clock(clock, now));
    let greeting = among.map(|(hosts, process)| {
        let purpose = purpose(&format!("serve --clock {clock:?}, its log in {kept_in}"), &text);
        let greeting = greeting(process, hosts.len(), workers, purpose);
        (hosts, Greeting { last_time, secret, defined: defined.clone(), clock: at, ..greeting })
    });
    let (file, dir) = (name.clone(), data.clone());
    let start = move || {
        let team = greeting.map(|(hosts, greeting)| cluster::meet(hosts, &greeting)).transpose()?;
        let defined = team.as_ref().map_or(defined, |team| team.defined.clone());
        let mut book = Book::open(&text, defined.as_ref())
            .map_err(|problems| format!("{file} does not go with what the log holds:{}", self::told(&problems)))?;
        team.as_ref().map_or(at, |team| team.clock).into_iter().for_each(|at| book.settle(at));
        book.given().for_each(|name| tracing::info!(name, "given at run time, in place of what the file says"));
        let secret = team.as_ref().map_or(secret, |team| team.secret);
        let audit = Audit::open(&dir, secret, now)?;
        let changed: Vec<&str> = book.changed().map(String::as_str).collect();
        let (text, changed) = (book.text().to_owned(), changed.join(" "));
        let started = writer::start(writer::Start { log, workers, clock, book, settled, team, told, now })?;
        audit.start(&text, &changed)?;
        Ok::<_, String>((started, audit))
    };
    // The port answers from now on, if only that the log is being read.
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let opened = Arc::new(SetOnce::new());
    let serving = axum::serve(listener, opening(Arc::clone(&opened))).with_graceful_shutdown(interrupted(stop));
    let mut serving = tokio::spawn(serving.into_future());
    let started = tokio::select! {
        started = tokio::task::spawn_blocking(start) => started,
        _ = &mut serving => return Ok(()),
    };
    let started = started.map_err(|error| format!("reading the log failed: {error}"))?;
    let (Started { hub, found, thread, secret, desk }, audit) = started?;
    tracing::info!(position = found.position, dispatched = found.dispatched.len(), "the log is read");
    let records = match records {
        Records::Logs(own, ..) => Records::Logs(own, found.process, desk.clone()),
        Records::Stream(stream, plan, clock, _) => Records::Stream(stream, plan, clock, secret),
    };
    let (outbox, inbox) = Outbox::new(hub.clone(), Some(records.clone()), found);
    outbox.catch_up(&mut closed);
    tokio::spawn(outbox.clone().run(closed, inbox));
    tokio::spawn(watch(hub.clone()));
    if demo {
        tokio::spawn(demo::visitors(hub.clone(), secret));
    }
    let log = Some(records);
    let app = App {
        hub: hub.clone(),
        outbox,
        log,
        audit: Some(audit),
        desk: desk.clone(),
        clock,
        now,
        secret,
        defining: Arc::default(),
        trying: Arc::default(),
        stopping,
    };
    let router = router(app);
    desk.iter().for_each(|desk| desk.open(router.clone(), hub.clone()));
    let _ = opened.set(router);
    match kept_in {
        "a stream" => println!("thalweg is at http://{listen}/ with {name}, its log in NATS"),
        _ => println!("thalweg is at http://{listen}/ with {name}, its log in {}", data.display()),
    }
    // A failing disk ends the process: nothing is acknowledged that is not kept.
    let (failed, failure) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || failed.send(thread.join()));
    let mut failure = std::pin::pin!(failure);
    tokio::select! {
        served = &mut serving => {
            let served = served.map_err(std::io::Error::from).flatten();
            served.map_err(|error| format!("the listener failed: {error}"))?;
        }
        ended = &mut failure => return outcome(ended),
    }
    let _ = hub.give(Work::Stop);
    outcome(failure.await)
}

/// Opens the log, in files or in a stream; gives what reads its records too, and where it is.
async fn open(
    data: &Path,
    nats: Option<stream::Options>,
    plan: &Arc<Plan>,
    clock: ClockMode,
    demo: bool,
) -> Result<(Store, Records, &'static str), String> {
    if let Some((url, options)) = nats.as_ref().and_then(|options| options.nats.as_deref().zip(Some(options))) {
        let told = |error: stream::StreamError| error.to_string();
        let kept = Kept::open(data).map_err(told)?;
        let stream = Stream::open(url, options, kept.last()).await.map_err(told)?;
        if plan.definitions.channels.values().any(|channel| channel.deliver == Deliver::Nats) {
            stream.open_triggers().await.map_err(told)?;
        }
        let end = stream.last_sequence().await.map_err(told)?;
        let records = Records::Stream(stream.clone(), Arc::clone(plan), clock, kept.secret());
        return Ok((Store::Stream(stream, kept, end), records, "a stream"));
    }
    let opened = Log::open(data).map_err(|error| error.to_string())?;
    if opened.cut_bytes > 0 {
        tracing::warn!(bytes = opened.cut_bytes, "cut a torn tail off the log: it was never acknowledged");
    }
    let log = opened.log;
    if demo {
        demo::start_clock(log.last_received_at());
    }
    let records = Records::Logs(log.handle(), LEADER, None);
    Ok((Store::Own(log), records, "files"))
}

/// Says when nothing closes any more, and when it does again.
async fn watch(hub: Hub) {
    let (mut every, mut still) = (tokio::time::interval(STILL_MAX / 2), false);
    loop {
        every.tick().await;
        let now = hub.stands_still();
        match (still, now >= STILL_MAX) {
            (false, true) => tracing::error!(?now, "no step closes: this process or another stands still"),
            (true, false) => tracing::info!("steps close again"),
            _ => continue,
        }
        still = !still;
    }
}

/// What a process says when it meets others.
fn greeting(process: usize, processes: usize, workers: usize, purpose: String) -> Greeting {
    let program = format!("thalweg {}", env!("CARGO_PKG_VERSION"));
    let (last_time, secret, defined, clock) = (0, [0; 16], None, None);
    Greeting { program, process, processes, workers, purpose, last_time, secret, defined, clock }
}

/// What must be the same in all processes that work together.
fn purpose(what: &str, definitions: &str) -> String {
    let digest: String = Sha256::digest(definitions).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{what}, definitions {digest}")
}

type Ended = Result<std::thread::Result<Result<(), String>>, tokio::sync::oneshot::error::RecvError>;

fn outcome(ended: Ended) -> Result<(), String> {
    match ended {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(why))) => Err(why),
        _ => Err("the writer's thread is gone".into()),
    }
}

async fn interrupted(stop: tokio::sync::watch::Sender<bool>) {
    let mut terminated =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("signals can be heard");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
    // Those who follow changes would never end by themselves.
    let _ = stop.send(true);
}
