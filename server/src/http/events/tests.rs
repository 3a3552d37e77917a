//! Doors on a disk that stands still: what is under way stays bounded, nothing taken is lost, and nothing is told
//! before it is durable.

use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex};

use axum::http::StatusCode;
use axum::response::IntoResponse;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tower::ServiceExt;

use super::*;
use crate::book::Book;
use crate::desk::Records;
use crate::http::router;
use crate::hub::Told;
use crate::log::Log;
use crate::log::disk::{Disk, DiskFile, RealDisk};
use crate::outbox::Outbox;
use crate::record::{self, decode_event};
use crate::writer::{self, Start, Started, Store};

/// How syncs go.
#[derive(Clone, Copy, Default, PartialEq)]
enum Syncs {
    #[default]
    Go,
    Stand,
    Fail,
}

/// How syncs go now.
#[derive(Clone, Default)]
struct Still(Arc<(Mutex<Syncs>, Condvar)>);

impl Still {
    fn set(&self, syncs: Syncs) {
        *self.0.0.lock().expect("nobody panics while holding it") = syncs;
        self.0.1.notify_all();
    }
}

/// The machine's disk, but for its syncs.
struct StillDisk(Still);
struct StillFile(Still, Box<dyn DiskFile>);

impl Disk for StillDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(StillFile(self.0.clone(), RealDisk.create(path)?)))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(StillFile(self.0.clone(), RealDisk.open(path)?)))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        RealDisk.lock(path)
    }
}

impl DiskFile for StillFile {
    fn size(&self) -> io::Result<u64> {
        self.1.size()
    }
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.read_exact_at(bytes, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.1.write_all_at(bytes, offset)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.1.truncate(len)
    }
    fn sync(&self) -> io::Result<()> {
        let Still(still) = &self.0;
        let held = still.0.lock().expect("nobody panics while holding it");
        let held = still.1.wait_while(held, |syncs| *syncs == Syncs::Stand).expect("nobody panics while holding it");
        if *held == Syncs::Fail {
            return Err(io::Error::other("the disk is gone"));
        }
        drop(held);
        self.1.sync()
    }
}

type Writer = std::thread::JoinHandle<Result<(), String>>;

fn log(dir: &Path, still: &Still) -> Log {
    Log::open_on(Arc::new(StillDisk(still.clone())), dir, 1 << 26, [7; 16]).expect("a log").log
}

/// All doors, on a log on such a disk, the writer's thread, and what is told of steps.
fn doors(dir: &Path, still: &Still) -> (axum::Router, Writer, mpsc::UnboundedReceiver<Told>) {
    doors_on(log(dir, still), Arc::default())
}

/// The same on a log that is open, and with what is held while something is tried.
fn doors_on(log: Log, trying: Arc<tokio::sync::Mutex<u64>>) -> (axum::Router, Writer, mpsc::UnboundedReceiver<Told>) {
    let (reader, secret) = (log.handle(), log.id());
    let (told, closed) = mpsc::unbounded_channel();
    let book = Book::open("version: 1", None).expect("it is right");
    let (clock, now) = (ClockMode::Wall, crate::clock::now as fn() -> i64);
    let start = Start { log: Store::Own(log), workers: 1, clock, book, settled: None, team: None, told, now };
    let Started { hub, found, thread: writer, .. } = writer::start(start).expect("the log is empty");
    let log = Some(Records::Logs(reader, 0, None));
    let (outbox, _) = Outbox::new(hub.clone(), log.clone(), found);
    let (_, stopping) = watch::channel(false);
    (
        router(App {
            hub,
            outbox,
            log,
            audit: None,
            desk: None,
            clock,
            now,
            secret,
            defining: Arc::default(),
            trying,
            stopping,
        }),
        writer,
        closed,
    )
}

/// A batch of calls as large as it may be, but for a little; its calls are named after it.
fn batch(number: usize) -> String {
    let filler = "x".repeat(31_000);
    let call = |n| {
        format!(r#"{{"type":"page","userId":"u","messageId":"{number}-{n}","properties":{{"filler":"{filler}"}}}}"#)
    };
    format!(r#"{{"batch":[{}]}}"#, (0..16).map(call).collect::<Vec<_>>().join(","))
}

fn send(doors: &axum::Router, body: String) -> JoinHandle<Response> {
    post(doors, "/v1/batch", body)
}

fn post(doors: &axum::Router, path: &str, body: String) -> JoinHandle<Response> {
    let request = axum::http::Request::post(path).header("content-length", body.len()).body(Body::from(body));
    let answer = doors.clone().oneshot(request.expect("a request"));
    tokio::spawn(async move { answer.await.into_response() })
}

/// Message ids in the log, in order.
fn kept(dir: &Path) -> Vec<String> {
    let log = Log::open_on(Arc::new(RealDisk), dir, 1 << 26, [7; 16]);
    let (mut reader, mut ids) = (log.expect("nobody holds it").log.reader(), Vec::new());
    while let Some((record, _)) = reader.next().expect("it is whole") {
        if record.kind == record::EVENT {
            ids.push(decode_event(record.payload).expect("an event").2.to_owned());
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_is_bounded_and_what_is_taken_is_kept() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let still = Still::default();
    let (doors, writer, _told) = doors(dir.path(), &still);
    let room = ROOM_BYTES / batch(100).len();
    still.set(Syncs::Stand);
    let (mut waiting, mut taken) = (Vec::new(), Vec::new());
    for number in 100..100 + 2 * room {
        let mut answer = send(&doors, batch(number));
        let patience = Duration::from_millis(if waiting.len() < room { 100 } else { 30_000 });
        match tokio::time::timeout(patience, &mut answer).await {
            Err(_) => waiting.push((number, answer)),
            Ok(answer) => {
                let answer = answer.expect("no panic");
                assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
                assert_eq!(answer.headers()[header::RETRY_AFTER], "1");
                assert_eq!(waiting.len(), room, "it is refused only when there is no room");
            }
        }
    }
    // Whoever goes away takes nothing with them: their calls still wait for the disk.
    for (number, answer) in waiting.drain(..room / 2) {
        answer.abort();
        taken.push(number);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let refused = tokio::time::timeout(Duration::from_secs(30), send(&doors, batch(1))).await;
    let refused = refused.expect("room that is still taken was given away").expect("no panic");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    still.set(Syncs::Go);
    for (number, answer) in waiting {
        assert_eq!(answer.await.expect("no panic").status(), StatusCode::OK);
        taken.push(number);
    }
    assert_eq!(send(&doors, batch(2)).await.expect("no panic").status(), StatusCode::OK, "it goes on as before");
    taken.push(2);
    drop(doors);
    writer.join().expect("no panic").expect("the disk works");
    let mut expected: Vec<String> =
        taken.iter().flat_map(|number| (0..16).map(move |n| format!("{number}-{n}"))).collect();
    let mut found = kept(dir.path());
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

/// What is asked of somebody.
fn ask(doors: &axum::Router, id: &str) -> JoinHandle<Response> {
    let request = axum::http::Request::get(format!("/v1/profiles/{id}")).body(Body::empty());
    let answer = doors.clone().oneshot(request.expect("a request"));
    tokio::spawn(async move { answer.await.into_response() })
}

/// Steps that were told of, with events in them.
fn told(closed: &mut mpsc::UnboundedReceiver<Told>, after: u64) -> usize {
    let told = std::iter::from_fn(|| closed.try_recv().ok());
    told.filter(|told| matches!(told, Told::Closed(closed) if closed.as_of.position > after)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_told_before_it_is_durable() {
    for ends in [Syncs::Go, Syncs::Fail] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let still = Still::default();
        let (doors, writer, mut closed) = doors(dir.path(), &still);
        let last = |closed: &mut mpsc::UnboundedReceiver<Told>| {
            let told = std::iter::from_fn(|| closed.try_recv().ok()).last();
            told.map_or(0, |told| if let Told::Closed(closed) = told { closed.as_of.position } else { 0 })
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = last(&mut closed);
        still.set(Syncs::Stand);
        let taken = send(&doors, batch(1));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = ask(&doors, "u");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!taken.is_finished() && !asked.is_finished(), "nobody is answered");
        assert_eq!(told(&mut closed, before), 0, "no step is told of");
        still.set(ends);
        if ends == Syncs::Go {
            assert_eq!(taken.await.expect("no panic").status(), StatusCode::OK);
            assert_eq!(asked.await.expect("no panic").status(), StatusCode::OK, "she is known by then");
            assert!(told(&mut closed, before) > 0);
            drop(doors);
            writer.join().expect("no panic").expect("the disk works");
        } else {
            let ended = tokio::task::spawn_blocking(|| writer.join()).await.expect("no panic").expect("no panic");
            assert!(ended.is_err_and(|why| why.contains("the disk is gone")));
            assert_ne!(taken.await.expect("no panic").status(), StatusCode::OK);
            assert_ne!(asked.await.expect("no panic").status(), StatusCode::OK);
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(told(&mut closed, before), 0, "nothing was told");
        }
    }
}

/// The status of an answer, when to come again, and the end of its problem's type.
async fn refused(answer: JoinHandle<Response>) -> (u16, Option<String>, String) {
    let answer = tokio::time::timeout(Duration::from_secs(3), answer).await.expect("it is not waited for");
    let answer = answer.expect("no panic");
    let again = answer.headers().get(header::RETRY_AFTER).map(|again| again.to_str().expect("a number").to_owned());
    let status = answer.status().as_u16();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 16).await.expect("a body");
    let told: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    let kind = told["type"].as_str().and_then(|kind| kind.rsplit('/').next()).unwrap_or_default();
    (status, again, kind.to_owned())
}

/// While one is tried, which takes as long as its steps do, another is told to come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_thing_is_tried_at_a_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let still = Still::default();
    let (doors, writer, _told) = doors(dir.path(), &still);
    still.set(Syncs::Stand);
    let taken = send(&doors, batch(1));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let preview = |wait: &str| {
        let body = r#"{"definition": {"visitor": "known"}}"#.to_owned();
        post(&doors, &format!("/v1/segments:preview?wait={wait}"), body)
    };
    let first = preview("30s");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let expected = (503, Some("1".to_owned()), "busy".to_owned());
    assert_eq!(refused(preview("10ms")).await, expected);
    assert!(!first.is_finished());
    // Who can wait has their turn.
    let second = preview("30s");
    still.set(Syncs::Go);
    for answer in [taken, first, second, preview("30s")] {
        assert_eq!(answer.await.expect("no panic").status(), StatusCode::OK);
    }
    drop(doors);
    writer.join().expect("no panic").expect("the disk works");
}

/// Whether a preview of what is taken back can be told is known before everyone would be folded for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_told_is_refused_before_it_is_tried() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut log = log(dir.path(), &Still::default());
    let pinned = record::Pinned { entry: 7, is_old: true };
    let body = r#"{"event":"x","userId":"ada","properties":{}}"#;
    let (at, kind) = (crate::clock::now(), dataflows::event::Kind::Track);
    let old = record::encode_pinned(kind, pinned, at, "m", body);
    log.append(2, &[(record::EVENT, at, old)]).expect("the disk works");
    let trying = Arc::new(tokio::sync::Mutex::new(0));
    let (doors, writer, _told) = doors_on(log, Arc::clone(&trying));
    let held = trying.lock().await;
    let preview =
        |condition: &str| post(&doors, "/v1/events:retract", format!(r#"{{"where": "{condition}", "preview": true}}"#));
    assert_eq!(refused(preview("properties.gone == 1")).await, (409, None, "conflict".to_owned()));
    // What can be told is tried, and waits for that.
    let tried = preview(r#"event == \"x\""#);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!tried.is_finished());
    drop(held);
    assert_eq!(tried.await.expect("no panic").status(), StatusCode::OK);
    drop(doors);
    writer.join().expect("no panic").expect("the disk works");
}
