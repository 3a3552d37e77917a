//! The doors of the real binary under load: events in over HTTP and from NATS, intents and answers out, and how long
//! each takes.
//!
//! `cargo bench --bench doors [-- WHAT…]`, of `ingest triggers queries processes jetstream`; without any, all. Prints
//! a line a figure, with its bar. Load and server share one machine, so each line says how many cores either of them
//! took; the generator is kept cheap: bodies are made before, connections are kept, answers are hardly looked at.

#[path = "../tests/broker/mod.rs"]
mod broker;
#[path = "../tests/process/mod.rs"]
mod process;
#[path = "../tests/tools/mod.rs"]
mod tools;
mod w1;

use std::collections::HashSet;
use std::fmt;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use broker::Broker;
use process::http::{self, Chunked};
use process::{Home, Server, free_port, until};
use server::stream::{HeaderMap, Message, Options, Stream};
use tokio::runtime::Runtime;
use w1::clicks::{Arrival, Click, Dice, clicks, line};

const DEFINITIONS: &str = include_str!("w1.yaml");
/// About 1.1 million events.
const SESSIONS: u32 = 100_000;
/// Events in a body of those that come as fast as they can.
const BATCH: usize = 1_000;
/// Connections that send as fast as they are answered.
const CONNECTIONS: usize = 8;
/// Connections that send at given times.
const PACED: usize = 16;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

type Request = Vec<u8>;

fn main() {
    // Threads that wait until it is time to send wake then, not up to 50 µs later: they inherit it from this one.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let figures: [(&str, fn()); 5] = [
        ("ingest", ingest),
        ("triggers", triggers),
        ("queries", queries),
        ("processes", processes),
        ("jetstream", jetstream),
    ];
    if let Some(unknown) = wanted.iter().find(|name| !figures.iter().any(|(known, _)| known == name)) {
        panic!("{unknown}: ingest, triggers, queries, processes and jetstream are measured here");
    }
    disk();
    for (name, figure) in figures {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            figure();
        }
    }
}

/// What the disk takes by itself: the least that anything durable costs.
fn disk() {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let syncs = (0..500).map(|_| {
        let started = Instant::now();
        file.write_all(&[7; 1_000]).and_then(|()| file.sync_data()).expect("the disk takes it");
        started.elapsed()
    });
    told("the disk alone: 1,000 bytes appended and synced", Spread::of(syncs.collect()), "", "");
}

fn ingest() {
    let clicks = shifted();
    let requests = batches(&clicks, BATCH);
    for workers in [1, 2] {
        let serving = Serving::alone(DEFINITIONS, workers);
        let (rate, cores) = serving.ingest(&clicks, &requests);
        told(&format!("HTTP batches, durable and in all views, workers: {workers}"), rate, "≥ 500 k ev/s", cores);
    }
}

fn triggers() {
    let definitions = DEFINITIONS
        .replace(
            "campaigns:\n",
            "campaigns:\n  hello: { when: { event: hello }, channel: popup, template: 'Hello!' }\n",
        )
        .replace("channels:\n", "channels:\n  popup: { deliver: sse, realtime: true }\n");
    let clicks = shifted();
    let (before, during) = clicks.split_at(clicks.len() / 2);
    let (before, during) = (batches(before, BATCH), batches(during, 100));
    for workers in [1, 2] {
        let serving = Serving::alone(&definitions, workers);
        serving.pour(&before);
        let to = serving.servers[0].address;
        let (times, cores) = serving.watch(|| hellos(to, 500));
        told(&format!("event → intent by SSE, idle, workers: {workers}"), times, "", cores);
        let done = AtomicBool::new(false);
        let ((times, late), cores) = serving.watch(|| {
            std::thread::scope(|scope| {
                let background = scope.spawn(|| paced(to, 200, &done, |number| during.get(number).cloned()));
                let times = hellos(to, 1_500);
                done.store(true, Ordering::Relaxed);
                (times, background.join().expect("no panic"))
            })
        });
        let what = format!("event → intent by SSE at 20 k ev/s, workers: {workers}");
        told(&what, times, "p50 ≤ 1 ms, p99 ≤ 5 ms", cores);
        told("  its background: 200 batches of 100 events a second", late, "", "");
    }
}

/// One event at a time, each of somebody new, from before it is written until its intent is read.
fn hellos(to: SocketAddr, count: usize) -> Spread {
    let mut connection = Connection::open(to);
    let accepts = [("accept", "text/event-stream")];
    let stream = http::begin(to, "GET", "/v1/subscribe?view=intents&name=hello", &accepts, 0).expect("a subscription");
    let mut stream = BufReader::new(stream);
    http::head(&mut stream).expect("an answer");
    let mut stream = Chunked::new(stream);
    let mut dice = Dice(count as u64);
    let mut read = move |wanted: &str| {
        let (mut text, mut part) = (String::new(), [0; 16 << 10]);
        while !(text.contains(wanted) && text.ends_with("\n\n")) {
            let length = stream.read(&mut part).expect("the subscription goes on");
            text += std::str::from_utf8(&part[..length]).expect("a text");
        }
    };
    read("snapshot");
    let times = (0..count).map(|number| {
        let body = format!(r#"{{"type":"track","userId":"hello-{count}-{number}","event":"hello"}}"#);
        let request = post("/v1/track", &body);
        // At any place between the ticks of a clock.
        std::thread::sleep(Duration::from_micros(dice.range(2_000, 12_000)));
        let started = Instant::now();
        connection.send(&request);
        read(&format!("\"hello-{count}-{number}\""));
        let time = started.elapsed();
        connection.answer();
        time
    });
    Spread::of(times.collect())
}

fn queries() {
    let clicks = shifted();
    let requests = batches(&clicks, BATCH);
    let (before, during) = requests.split_at(requests.len() / 2);
    let users: Vec<u32> = clicks[..before.len() * BATCH].iter().map(|click| click.user).collect();
    let ask = |number: usize| {
        let user = users[number.wrapping_mul(7_919) % users.len()];
        Some(format!("GET /v1/profiles/user-{user:07} HTTP/1.1\r\nhost: thalweg\r\n\r\n").into_bytes())
    };
    let serving = Serving::alone(DEFINITIONS, 1);
    serving.pour(before);
    let to = serving.servers[0].address;
    for (load, bar) in [("nothing else", ""), ("20 k ev/s", ""), ("full ingest", "p99 ≤ 2 ms")] {
        let done = AtomicBool::new(false);
        let (paced_part, full_part) = during.split_at(during.len() / 5);
        let ((times, ingested), cores) = serving.watch(|| {
            std::thread::scope(|scope| {
                let asking = scope.spawn(|| paced(to, 10_000, &done, ask));
                let started = Instant::now();
                let events = match load {
                    "full ingest" => {
                        serving.pour(full_part);
                        full_part.len() * BATCH
                    }
                    "20 k ev/s" => {
                        paced(to, 20, &AtomicBool::new(false), |number| paced_part.get(number).cloned());
                        paced_part.len() * BATCH
                    }
                    _ => {
                        std::thread::sleep(Duration::from_secs(5));
                        0
                    }
                };
                let ingested = Rate(events as f64 / started.elapsed().as_secs_f64());
                done.store(true, Ordering::Relaxed);
                (asking.join().expect("no panic"), ingested)
            })
        });
        told(&format!("one profile at 10 k/s beside {load} ({ingested})"), times, bar, cores);
    }
}

fn processes() {
    let clicks = shifted();
    let requests = batches(&clicks, BATCH);
    let (one, cores) = Serving::alone(DEFINITIONS, 2).ingest(&clicks, &requests);
    told("HTTP batches, 1 process with 2 workers", one, "", cores);
    let (two, cores) = Serving::together(DEFINITIONS, 2).ingest(&clicks, &requests);
    told("HTTP batches, 2 processes with 1 worker, half each", two, "", cores);
    told("2 processes, of 1 process with 2 workers", format!("{:.2}", two.0 / one.0), "≥ 0.6", "");
}

/// What others publish, thousands of messages under way, until all of it is in all views; then the same stream read
/// from its beginning by a process that starts.
fn jetstream() {
    let clicks = shifted();
    let distinct = clicks.iter().map(|click| click.number).collect::<HashSet<_>>().len();
    for events in [1, 100] {
        let broker = Broker::start();
        let home = Home::new(DEFINITIONS);
        let start = || home.start(&["--nats", &broker.url(), "--workers", "1"]);
        let mut serving = Serving { _home: Home::new(""), servers: vec![start()] };
        let messages: Vec<Message> = bodies(&clicks, events).into_iter().enumerate().map(outside).collect();
        let runtime = Runtime::new().expect("a runtime");
        let options = Options::default();
        let stream = runtime.block_on(Stream::open(&broker.url(), &options, None)).expect("the broker is there");
        let (began, read) = (Instant::now(), || {
            let accepted = || count(&serving.servers[0], "thalweg_records_total{verdict=\"accepted\"} ");
            until(PATIENCE, "all is in all views", || (accepted() == distinct).then_some(()));
        });
        let (published, cores) = serving.watch(|| {
            let kept = runtime.block_on(stream.publish_all(&messages));
            assert!(kept.iter().all(Result::is_ok), "all is kept");
            let published = began.elapsed();
            read();
            published
        });
        let rate = |took: Duration| Rate(clicks.len() as f64 / took.as_secs_f64());
        let all = rate(began.elapsed());
        let what = format!("JetStream, events a message: {events}, published and in all views");
        told(&what, all, "", format!("{cores}, beside the broker"));
        told("  published and acknowledged", rate(published), "", "");
        serving.servers.pop().expect("it serves").kill();
        let began = Instant::now();
        serving.servers.push(start());
        let accepted = count(&serving.servers[0], "thalweg_records_total{verdict=\"accepted\"} ");
        assert_eq!(accepted, distinct, "a start reads all");
        told("  read again at a start", rate(began.elapsed()), "", "");
    }
}

fn outside((number, body): (usize, String)) -> Message {
    let (subject, id) = ("thalweg.events.bench".to_owned(), number.to_string());
    Message { subject, id, headers: HeaderMap::new(), body: body.into() }
}

/// W1's clicks as they arrive, so late that the last of them happens now.
fn shifted() -> Vec<Click> {
    let mut clicks = clicks(SESSIONS, 7, Arrival::Disordered);
    let last = clicks.iter().map(|click| click.timestamp).max().expect("there are clicks");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_millis() as i64;
    clicks.iter_mut().for_each(|click| click.timestamp += now - last);
    clicks
}

fn batches(clicks: &[Click], events: usize) -> Vec<Request> {
    bodies(clicks, events).iter().map(|body| post("/v1/batch", body)).collect()
}

fn bodies(clicks: &[Click], events: usize) -> Vec<String> {
    let batch = |clicks: &[Click]| {
        let mut body = String::from(r#"{"batch":["#);
        for click in clicks {
            line(click, &mut body);
            body.pop();
            body.push(',');
        }
        body.pop();
        body += "]}";
        body
    };
    clicks.chunks(events).map(batch).collect()
}

fn post(path: &str, body: &str) -> Request {
    format!("POST {path} HTTP/1.1\r\nhost: thalweg\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Sends requests at so many a second until it is done or there are no more; from when each was to be sent until its
/// answer is there.
fn paced(
    to: SocketAddr,
    per_second: u32,
    done: &AtomicBool,
    request: impl Fn(usize) -> Option<Request> + Sync,
) -> Spread {
    let began = Instant::now();
    let connection = |first: usize| {
        let (mut connection, mut times) = (Connection::open(to), Vec::new());
        for number in (first..).step_by(PACED) {
            let Some(request) = request(number).filter(|_| !done.load(Ordering::Relaxed)) else { break };
            let due = began + Duration::from_secs(1) * number as u32 / per_second;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            connection.send(&request);
            connection.answer();
            times.push(due.elapsed());
        }
        times
    };
    let connection = &connection;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..PACED).map(|first| scope.spawn(move || connection(first))).collect();
        Spread::of(all.into_iter().flat_map(|one| one.join().expect("no panic")).collect())
    })
}

/// A connection that is kept.
struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    fn open(to: SocketAddr) -> Connection {
        let stream = TcpStream::connect(to).expect("the server listens");
        stream.set_nodelay(true).expect("it is a socket");
        Connection { stream, read: vec![0; 64 << 10] }
    }

    fn send(&mut self, request: &[u8]) {
        self.stream.write_all(request).expect("the server reads");
    }

    /// The body of the next answer, which must be a good one.
    fn answer(&mut self) -> &str {
        let (mut length, mut whole) = (0, usize::MAX);
        while length < whole {
            let read = self.stream.read(&mut self.read[length..]).expect("the server answers");
            assert!(read > 0, "the server closed the connection");
            length += read;
            let text = std::str::from_utf8(&self.read[..length]).unwrap_or_default();
            if let Some((head, _)) = text.split_once("\r\n\r\n") {
                assert!(head.starts_with("HTTP/1.1 200"), "{text}");
                let (_, rest) = head.split_once("content-length: ").expect("answers tell their length");
                let body: usize = rest.lines().next().and_then(|body| body.parse().ok()).expect("a length");
                whole = head.len() + 4 + body;
                assert!(whole <= self.read.len(), "an answer of {body} bytes");
            }
        }
        std::str::from_utf8(&self.read[..whole]).expect("a text")
    }
}

/// Processes that work together, or one alone.
struct Serving {
    /// Their files: gone when this is.
    _home: Home,
    servers: Vec<Server>,
}

impl Serving {
    fn alone(definitions: &str, workers: usize) -> Serving {
        let home = Home::new(definitions);
        let servers = vec![home.start(&["--workers", &workers.to_string()])];
        Serving { _home: home, servers }
    }

    fn together(definitions: &str, processes: usize) -> Serving {
        let home = Home::new(definitions);
        let hosts: Vec<String> = (0..processes).map(|_| format!("127.0.0.1:{}\n", free_port())).collect();
        home.write("hosts", hosts.concat());
        let start = |process: usize| {
            let (process, data) = (process.to_string(), format!("data-{process}"));
            home.launch(&["--hosts", "hosts", "--process", &process, "--data", &data])
        };
        let servers: Vec<Server> = (0..processes).map(start).collect();
        for server in &servers {
            let ready =
                || http::ask(server.address, "GET", "/readyz", &[], &[]).ok().filter(|ready| ready.status == 200);
            until(PATIENCE, "all processes serve", ready);
        }
        Serving { _home: home, servers }
    }

    /// Sends all requests as fast as they are answered, shared out among the processes, and waits until all answers
    /// include them; then proves that nothing is missing.
    fn ingest(&self, clicks: &[Click], requests: &[Request]) -> (Rate, String) {
        let started = Instant::now();
        let ((), cores) = self.watch(|| self.pour(requests));
        let rate = Rate(clicks.len() as f64 / started.elapsed().as_secs_f64());
        let distinct: HashSet<u32> = clicks.iter().map(|click| click.number).collect();
        for server in &self.servers {
            let accepted = count(server, "thalweg_records_total{verdict=\"accepted\"} ");
            assert_eq!(accepted, distinct.len(), "each event is accepted once, and every process knows of all");
        }
        (rate, format!("{cores}, of that {:.1} µs an event", cores.server / rate.0 * 1e6))
    }

    fn pour(&self, requests: &[Request]) {
        let each = CONNECTIONS / self.servers.len();
        std::thread::scope(|scope| {
            for (index, server) in self.servers.iter().enumerate() {
                let share: Vec<&Request> = requests.iter().skip(index).step_by(self.servers.len()).collect();
                scope.spawn(move || pour(server, &share, each));
            }
        });
    }

    /// Does something; gives how many cores this process and the servers took for it.
    fn watch<T>(&self, what: impl FnOnce() -> T) -> (T, Cores) {
        let own = || spent("self");
        let theirs = || self.servers.iter().map(|server| spent(&server.id().to_string())).sum::<f64>();
        let (started, before) = (Instant::now(), (own(), theirs()));
        let done = what();
        let seconds = started.elapsed().as_secs_f64();
        (done, Cores { load: (own() - before.0) / seconds, server: (theirs() - before.1) / seconds })
    }
}

fn pour(server: &Server, requests: &[&Request], connections: usize) {
    let (next, last) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let connection = || {
        let mut connection = Connection::open(server.address);
        while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
            connection.send(request);
            let answer = connection.answer();
            let position =
                answer.split_once("\"position\":\"").and_then(|(_, rest)| rest.split('"').next()?.parse().ok());
            last.fetch_max(position.expect("a position"), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| (0..connections).for_each(|_| drop(scope.spawn(connection))));
    let included = server.get(&format!("/v1/segments?wait=30s&after={}", last.into_inner()));
    assert_eq!(included.status, 200, "{}", included.text());
}

/// A number of `/metrics`.
fn count(server: &Server, name: &str) -> usize {
    let metrics = server.get("/metrics").text();
    metrics.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap_or(0)
}

/// The processor time that a process has taken so far, in seconds.
fn spent(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("this is Linux");
    let (_, fields) = stat.rsplit_once(')').expect("the command's name stands in brackets");
    let ticks = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / 100.0
}

/// Events a second.
#[derive(Clone, Copy)]
struct Rate(f64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} k ev/s", self.0 / 1e3)
    }
}

/// Cores that were taken.
struct Cores {
    load: f64,
    server: f64,
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "load {:.2}, server {:.2} cores", self.load, self.server)
    }
}

/// How long things took.
struct Spread(Vec<Duration>);

impl Spread {
    fn of(mut times: Vec<Duration>) -> Spread {
        times.sort_unstable();
        Spread(times)
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |thousandths: usize| self.0[self.0.len() * thousandths / 1_000].as_secs_f64() * 1e3;
        write!(f, "p50 {:.2}, p99 {:.2}, p99.9 {:.2} ms of {}", at(500), at(990), at(999), self.0.len())
    }
}

/// A line: what was measured, its bar, and what it took.
fn told(what: &str, figure: impl fmt::Display, bar: &str, cores: impl fmt::Display) {
    println!("{what:<64} {:<52} {bar:<24} {cores}", figure.to_string());
}
