//! More than the binary can take: many clients at once, each with as large a batch as it may have, again and again.

mod process;

use std::collections::BTreeSet;
use std::io::{BufReader, Write};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use process::Home;
use process::http;
use server::log::Log;
use server::record::{EVENT, decode_event};

/// Many more than have room at once: these bodies are 250 MB together.
const CLIENTS: usize = 512;
/// Batches that each client must get in.
const BATCHES: usize = 1;
const CALLS: usize = 16;
/// What overload may add to the memory of the process: a few times the 32 MiB of bodies that are under way.
const ADDED_BYTES_MAX: u64 = 300 << 20;

/// A batch of calls whose bodies weigh much and of which little is kept in memory; its calls are named after it.
fn batch(name: &str, filler: &str) -> String {
    let call = |n| {
        format!(r#"{{"type":"page","userId":"{name}","messageId":"{name}-{n}","properties":{{"filler":"{filler}"}}}}"#)
    };
    format!(r#"{{"batch":[{}]}}"#, (0..CALLS).map(call).collect::<Vec<_>>().join(","))
}

#[test]
fn under_overload_memory_is_bounded_and_what_is_accepted_is_stored() {
    let home = Home::new("version: 1\n");
    let server = home.start(&[]);
    let before = server.peak_bytes();
    let (filler, start) = ("x".repeat(31_000), Barrier::new(CLIENTS));
    // A client sends its batches one after the other, each until it is taken; gives how often it was told to wait.
    let client = |number: usize| {
        let mut waits = 0;
        start.wait();
        for batch_number in 0..BATCHES {
            let body = batch(&format!("{number}-{batch_number}"), &filler);
            loop {
                let answer = http::ask(server.address, "POST", "/v1/batch", &[], body.as_bytes());
                let answer = answer.expect("every request has an answer");
                if answer.status == 200 {
                    assert_eq!(answer.json()["accepted"], CALLS, "{}", answer.text());
                    break;
                }
                assert!([429, 503].contains(&answer.status), "{}: {}", answer.status, answer.text());
                let seconds = answer.header("retry-after").parse().expect("a Retry-After in seconds");
                std::thread::sleep(Duration::from_secs(seconds));
                waits += 1;
            }
        }
        waits
    };
    let waits: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        clients.into_iter().map(|client| client.join().expect("no panic")).sum()
    });
    let added = server.peak_bytes() - before;
    assert!(waits > 0, "nobody had to wait: this was no overload");
    assert!(added < ADDED_BYTES_MAX, "{added} bytes more than before");
    // It goes on as before, and everything that was acknowledged is in the log, once.
    let since = Instant::now();
    server.write("/v1/page", &serde_json::json!({"userId": "after", "messageId": "after"}));
    assert!(since.elapsed() < Duration::from_secs(5), "a call after it took {:?}", since.elapsed());
    server.kill();
    let log = Log::open(&home.path("data")).expect("nobody holds it").log;
    let (mut reader, mut ids, mut events) = (log.reader(), BTreeSet::new(), 0);
    while let Some((record, _)) = reader.next().expect("it is whole") {
        if record.kind == EVENT {
            ids.insert(decode_event(record.payload).expect("an event").2.to_owned());
            events += 1;
        }
    }
    let names = (0..CLIENTS).flat_map(|client| (0..BATCHES).map(move |batch| format!("{client}-{batch}")));
    let mut expected: BTreeSet<_> = names.flat_map(|name| (0..CALLS).map(move |n| format!("{name}-{n}"))).collect();
    expected.insert("after".to_owned());
    assert_eq!((events, ids == expected), (expected.len(), true));
    eprintln!("{waits} waits, {added} bytes more");
}

/// What is held for a body that does not come is given back; whoever is only slow is told to come again.
#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let home = Home::new("version: 1\n");
    let server = home.start(&[]);
    let body = batch("slow", "x");
    let mut stream = http::begin(server.address, "POST", "/v1/batch", &[], body.len()).expect("a connection");
    stream.write_all(&body.as_bytes()[..100]).expect("the first of it goes");
    let (status, headers) = http::head(&mut BufReader::new(stream)).expect("an answer");
    assert_eq!(status, 503);
    assert!(headers.contains(&("retry-after".to_owned(), "1".to_owned())), "{headers:?}");
    assert_eq!(server.get("/v1/profiles/slow").status, 404);
}
