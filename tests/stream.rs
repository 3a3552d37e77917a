//! NATS JetStream as the log, against real servers: what it must be, what is kept and read through kills, pauses and
//! losses, and what others publish there.

mod broker;
mod histories;
mod process;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use broker::{Broker, copy};
use bytes::Bytes;
use dataflows::definitions::Definitions;
use dataflows::event::{Decoder, Reason, Rejection};
use dataflows::plan::Plan;
use histories::Random;
use nats::jetstream;
use serde_json::{Value, json};
use server::door::{Arrived, Stamp};
use server::record::DeadLetter;
use server::stream::{
    Entry, HeaderMap, Kept, Message, Next, NotKept, Options, Reader, Returned, Stream, StreamError, dead_letter_id,
    take_apart,
};

/// Longer than a broker on a busy machine takes for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn options() -> Options {
    Options {
        nats: None,
        nats_creds: None,
        nats_tls_ca: None,
        nats_tls_cert: None,
        nats_tls_key: None,
        nats_replicas: None,
    }
}

async fn open(broker: &Broker) -> Stream {
    Stream::open(&broker.url(), &options(), None).await.expect("the stream opens")
}

/// The sentence with which a server is refused.
async fn refused(url: &str, options: &Options) -> String {
    Stream::open(url, options, None).await.expect_err("this cannot be used").to_string()
}

fn message(id: impl ToString, body: impl Into<Bytes>) -> Message {
    let subject = "thalweg.events.test".to_owned();
    Message { subject, id: id.to_string(), headers: HeaderMap::new(), body: body.into() }
}

async fn publish(stream: &Stream, ids: std::ops::Range<u64>) -> Vec<u64> {
    let messages: Vec<Message> = ids.map(|id| message(id, format!("body of {id}"))).collect();
    stream.publish_all(&messages).await.into_iter().map(|kept| kept.expect("it is kept")).collect()
}

async fn next(reader: &mut Reader) -> Next {
    tokio::time::timeout(PATIENCE, reader.next()).await.expect("in time").expect("the stream can be read")
}

async fn entry(reader: &mut Reader) -> Entry {
    match next(reader).await {
        Next::Entry(entry) => entry,
        Next::Lost(lost) => panic!("{lost:?} were lost"),
    }
}

/// Why reading ends.
async fn end(reader: &mut Reader) -> StreamError {
    let reading = async {
        loop {
            if let Err(error) = reader.next().await {
                return error;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("in time")
}

/// JetStream's own doors, to do what others may do to a stream.
async fn doors(broker: &Broker) -> jetstream::Context {
    jetstream::new(nats::connect(broker.url()).await.expect("a server"))
}

async fn ask(doors: &jetstream::Context, what: &str, request: &Value) -> Value {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer: Value = doors.request(what.to_owned(), request).await.expect("an answer");
        // The server says that a stream is deleted before its files are gone, and makes no other until they are.
        let is_going = answer["error"]["err_code"] == 10_049 && tokio::time::Instant::now() < deadline;
        if !is_going {
            assert!(answer.get("error").is_none(), "{what}: {answer}");
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The configuration of the stream, with changes.
async fn configured(doors: &jetstream::Context, changes: &Value) -> Value {
    let mut config = ask(doors, "STREAM.INFO.THALWEG", &Value::Null).await["config"].take();
    let config_fields = config.as_object_mut().expect("an object");
    config_fields.extend(changes.as_object().expect("an object").clone());
    config
}

#[tokio::test]
async fn a_stream_is_made_once_and_held_against_what_it_must_be() {
    let broker = Broker::start();
    let stream = open(&broker).await;
    assert_eq!(publish(&stream, 0..3).await, [1, 2, 3]);
    assert_eq!(open(&broker).await.last_sequence().await.expect("a number"), 3);

    // Made by hand: free in what does not matter, refused in what does, all of it named.
    let doors = doors(&broker).await;
    let right = configured(&doors, &json!({"description": "ours", "max_bytes": 1_000_000_000})).await;
    for (changes, named) in [
        (json!({}), vec![]),
        (json!({"retention": "workqueue", "deny_purge": false}), vec!["its retention is", "its deny_purge is"]),
        (json!({"discard": "old"}), vec![r#"its discard is "old" and must be "new""#]),
        (json!({"subjects": ["thalweg.>"]}), vec!["its subjects is"]),
        (json!({"max_age": 3_600_000_000_000_u64}), vec!["its max_age is"]),
        (json!({"storage": "memory"}), vec!["its storage is"]),
        (json!({"no_ack": true}), vec!["its no_ack is true and must not be set"]),
        (json!({"allow_rollup_hdrs": true, "deny_purge": false}), vec!["allow_rollup_hdrs", "deny_purge"]),
        (json!({"allow_msg_ttl": true}), vec!["its allow_msg_ttl is true and must not be set"]),
    ] {
        doors.delete_stream("THALWEG").await.expect("deleted");
        let mut config = right.clone();
        config.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        ask(&doors, "STREAM.CREATE.THALWEG", &config).await;
        if named.is_empty() {
            open(&broker).await;
            continue;
        }
        let refused = refused(&broker.url(), &options()).await;
        assert!(named.iter().all(|named| refused.contains(named)), "{changes}: {refused}");
    }
    let three = Options { nats_replicas: Some(3), ..options() };
    assert!(refused(&broker.url(), &three).await.contains("its num_replicas is 1 and must be 3"));
    doors.delete_stream("THALWEG").await.expect("deleted");
    assert!(refused(&broker.url(), &three).await.contains("replicas > 1 not supported"));
}

/// Speaks the first lines of a server of any version.
fn server_of_version(version: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let info =
        json!({"server_id": "x", "version": version, "headers": true, "jetstream": true, "max_payload": 1 << 20});
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.expect("a client");
            write!(client, "INFO {info}\r\n").expect("written");
            for line in BufReader::new(client.try_clone().expect("a socket")).lines() {
                if line.is_ok_and(|line| line == "PING") {
                    let _ = client.write_all(b"PONG\r\n");
                }
            }
        }
    });
    format!("nats://{address}")
}

#[tokio::test]
async fn servers_that_cannot_keep_the_log_are_refused_with_a_sentence() {
    for version in ["2.9.10", "2.9.25", "1.4.1", "2", ""] {
        let refused = refused(&server_of_version(version), &options()).await;
        assert!(refused.contains(&format!("is version {version}, and Thalweg needs 2.10 or newer")), "{refused}");
    }
    let off = Broker::with("max_payload: 1MB");
    assert!(refused(&off.url(), &options()).await.contains("start nats-server with --jetstream"));
    let small = Broker::with("jetstream { store_dir: STORE }\nmax_payload: 65536");
    assert!(refused(&small.url(), &options()).await.contains("its max_payload is 65536"));
    let account = Broker::with(
        "jetstream { store_dir: STORE }\nno_auth_user: u\naccounts { A { users: [{user: u, password: p}] } }",
    );
    let refused_account = refused(&account.url(), &options()).await;
    assert!(refused_account.contains("JetStream not enabled for account"), "{refused_account}");
    assert!(refused("nats://[", &options()).await.contains("the URL of --nats"));
}

/// A certificate for this name, signed by an authority of the test, and its key: PEM.
fn certificates(home: &Path) {
    let write = |name: &str, text: String| std::fs::write(home.join(name), text).expect("written");
    let key = || rcgen::KeyPair::generate().expect("a key");
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let (authority_key, server_key, client_key) = (key(), key(), key());
    write("ca.pem", authority.self_signed(&authority_key).expect("a certificate").pem());
    let authority = rcgen::Issuer::new(authority, authority_key);
    for (name, key) in [("server", server_key), ("client", client_key)] {
        let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
        write(&format!("{name}.pem"), params.signed_by(&key, &authority).expect("a certificate").pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

#[tokio::test]
async fn users_and_certificates_are_shown_and_asked_for() {
    let home = tempfile::tempdir().expect("a directory");
    certificates(home.path());
    let broker = Broker::at(
        home,
        "jetstream { store_dir: STORE }
        authorization { user: ada, password: 'se:cret' }
        tls { cert_file: 'HOME/server.pem', key_file: 'HOME/server.key', ca_file: 'HOME/ca.pem', verify: true }",
    );
    let at = |who: &str| format!("tls://{who}127.0.0.1:{}", broker.port());
    let path = |name: &str| Some(broker.path(name));
    let full = Options {
        nats_tls_ca: path("ca.pem"),
        nats_tls_cert: path("client.pem"),
        nats_tls_key: path("client.key"),
        ..options()
    };
    let stream = Stream::open(&at("ada:se%3Acret@"), &full, None).await.expect("all is shown");
    assert_eq!(publish(&stream, 0..1).await, [1]);
    let unknown = refused(&at("ada:se%3Acret@"), &options()).await;
    assert!(unknown.contains("--nats-tls-ca") && !unknown.contains("cret"), "{unknown}");
    let nameless = Options { nats_tls_cert: None, nats_tls_key: None, ..full.clone() };
    let refused_nameless = refused(&at("ada:se%3Acret@"), &nameless).await;
    assert!(refused_nameless.contains("--nats-tls-cert"), "{refused_nameless}");
    for wrong in ["", "ada:secret@", "bob:se%3Acret@"] {
        let refused = refused(&at(wrong), &full).await;
        assert!(refused.contains("authorization violation; give the user in the URL"), "{refused}");
    }
    let token = Broker::with("jetstream { store_dir: STORE }\nauthorization { token: 'to/ken' }");
    let url = token.url().replace("nats://", "nats://to%2Fken@");
    Stream::open(&url, &options(), None).await.expect("the token is shown");
    let missing = Options { nats_tls_ca: path("none.pem"), ..options() };
    assert!(refused(&at("ada:se%3Acret@"), &missing).await.contains("--nats-tls-ca"));
}

/// A claim, as NATS signs them.
fn claim(issuer: &nkeys::KeyPair, subject: &nkeys::KeyPair, nats: Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(&json!({"typ": "JWT", "alg": "ed25519-nkey"}));
    let claims = json!({"jti": "x", "iat": 1_767_225_600, "iss": issuer.public_key(), "sub": subject.public_key(),
        "nats": nats});
    let signed = format!("{header}.{}", part(&claims));
    let signature = issuer.sign(signed.as_bytes()).expect("it has its seed");
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn a_credentials_file_lets_in() {
    let (operator, user) = (nkeys::KeyPair::new_operator(), nkeys::KeyPair::new_user());
    let (account, system) = (nkeys::KeyPair::new_account(), nkeys::KeyPair::new_account());
    let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1});
    let mut with_streams = limits.clone();
    for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
        with_streams[limit] = (-1).into();
    }
    let operates = claim(&operator, &operator, json!({"type": "operator", "version": 2}));
    let accounts =
        |account, limits: &Value| claim(&operator, account, json!({"limits": limits, "type": "account", "version": 2}));
    let uses = json!({"subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2});
    let credentials = format!(
        "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        claim(&account, &user, uses),
        user.seed().expect("it has its seed")
    );
    let broker = Broker::with(&format!(
        "jetstream {{ store_dir: STORE }}\noperator: {operates}\nresolver: MEMORY\nsystem_account: {1}\n\
         resolver_preload {{ {0}: {2}, {1}: {3} }}",
        account.public_key(),
        system.public_key(),
        accounts(&account, &with_streams),
        accounts(&system, &limits)
    ));
    let file = broker.path("ada.creds");
    std::fs::write(&file, credentials).expect("written");
    let with = |file: &Path| Options { nats_creds: Some(file.to_owned()), ..options() };
    let stream = Stream::open(&broker.url(), &with(&file), None).await.expect("it lets in");
    assert_eq!(publish(&stream, 0..1).await, [1]);
    assert!(refused(&broker.url(), &options()).await.contains("--nats-creds"));
    let nowhere = refused(&broker.url(), &with(&broker.path("none.creds"))).await;
    assert!(nowhere.contains("cannot use --nats-creds: ") && nowhere.contains("No such file"), "{nowhere}");
}

#[tokio::test]
async fn a_start_waits_for_a_broker_that_is_not_there_yet() {
    let mut broker = Broker::start();
    broker.kill();
    let url = broker.url();
    let opening = tokio::spawn(async move { Stream::open(&url, &options(), None).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!opening.is_finished());
    broker.restart();
    opening.await.expect("no panic").expect("the stream opens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_read_in_order() {
    const MANY: u64 = 100_000;
    let broker = Broker::start();
    let stream = open(&broker).await;
    let began = Instant::now();
    let sequences = publish(&stream, 0..MANY).await;
    let published = began.elapsed();
    assert_eq!(sequences, (1..=MANY).collect::<Vec<_>>());
    let mut reader = stream.reader(stream.beginning());
    let began = Instant::now();
    for id in 0..MANY {
        let entry = entry(&mut reader).await;
        assert_eq!((entry.sequence, entry.id()), (id + 1, Some(&*id.to_string())));
        assert_eq!(entry.body, format!("body of {id}"));
        assert_eq!(&*entry.subject, "thalweg.events.test");
    }
    let read = began.elapsed();
    println!("{MANY} small messages: published in {published:?}, read in {read:?}");
    assert_eq!((reader.position(), stream.last_sequence().await.expect("a number")), (MANY, MANY));

    // A single record is the one that was read, time and all; what comes later is read without asking again.
    let got = stream.get(MANY).await.expect("an answer").expect("it is there");
    assert_eq!((got.sequence, got.id(), &*got.body), (MANY, Some("99999"), &b"body of 99999"[..]));
    assert_eq!(reader.seen().nanos, got.nanos);
    assert!(stream.get(MANY + 1).await.expect("an answer").is_none());
    let mut headers = HeaderMap::new();
    headers.insert("Thalweg-Door", "http");
    let told = Message { headers, ..message("told", "later") };
    let sequence = stream.publish(&told).await.expect("kept");
    // The same id again is the same record.
    assert_eq!(stream.publish(&told).await, Ok(sequence));
    let later = entry(&mut reader).await;
    assert_eq!((later.sequence, &*later.body), (sequence, &b"later"[..]));
    assert_eq!(later.headers.get("Thalweg-Door").map(|value| value.as_str()), Some("http"));
    // From any place.
    let mut again = stream.reader(reader.seen().clone());
    publish(&stream, MANY..MANY + 1).await;
    assert_eq!(entry(&mut again).await.sequence, sequence + 1);
}

/// Publishes until it is told to stop; gives what was sent and what was acknowledged, by id.
async fn publish_on(stream: Stream, first: u64, stop: Arc<AtomicBool>) -> (BTreeSet<String>, BTreeMap<String, u64>) {
    let (mut sent, mut acknowledged) = (BTreeSet::new(), BTreeMap::new());
    let mut id = first;
    while !stop.load(Ordering::Relaxed) {
        let messages: Vec<Message> = (id..id + 50).map(|id| message(id, format!("body of {id}"))).collect();
        id += 50;
        sent.extend(messages.iter().map(|message| message.id.clone()));
        for (message, kept) in messages.iter().zip(stream.publish_all(&messages).await) {
            let sequence = kept.unwrap_or_else(|error| panic!("{}: {error}", message.id));
            acknowledged.insert(message.id.clone(), sequence);
        }
    }
    (sent, acknowledged)
}

/// Publishers and a reader go on while something is done to the broker; then what was read is held against what was
/// sent and acknowledged, and against the stream read once more. Gives how many records there were.
async fn undergo(broker: &mut Broker, done: impl AsyncFnOnce(&mut Broker)) -> u64 {
    let stream = open(broker).await;
    let stop = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> =
        (0..3).map(|publisher| tokio::spawn(publish_on(stream.clone(), publisher << 32, Arc::clone(&stop)))).collect();
    let target = Arc::new(AtomicU64::new(u64::MAX));
    let (mut reader, until) = (stream.reader(stream.beginning()), Arc::clone(&target));
    let reading = tokio::spawn(async move {
        let mut read = Vec::new();
        while reader.position() < until.load(Ordering::Relaxed) {
            if let Ok(outcome) = tokio::time::timeout(Duration::from_millis(50), reader.next()).await {
                match outcome.expect("the stream can be read") {
                    Next::Entry(entry) => read.push((entry.sequence, entry.id().map(str::to_owned), entry.body)),
                    Next::Lost(lost) => panic!("{lost:?} were lost"),
                }
            }
        }
        read
    });
    done(broker).await;
    stop.store(true, Ordering::Relaxed);
    let (mut sent, mut acknowledged) = (BTreeSet::new(), BTreeMap::new());
    for publisher in publishers {
        let (its_sent, its_acknowledged) = publisher.await.expect("no panic");
        sent.extend(its_sent);
        acknowledged.extend(its_acknowledged);
    }
    let last = stream.last_sequence().await.expect("a number");
    target.store(last, Ordering::Relaxed);
    let read = tokio::time::timeout(PATIENCE, reading).await.expect("in time").expect("no panic");
    assert_eq!(read.len() as u64, last, "each sequence once");
    for (place, (sequence, id, body)) in read.iter().enumerate() {
        let id = id.as_ref().expect("an id");
        assert_eq!((place as u64 + 1, body), (*sequence, &Bytes::from(format!("body of {id}"))));
        assert!(sent.contains(id), "{id} was never sent");
    }
    let stands: BTreeMap<&String, u64> = read.iter().filter_map(|read| Some((read.1.as_ref()?, read.0))).collect();
    assert_eq!(stands.len(), read.len(), "the broker keeps one message of an id");
    for (id, sequence) in &acknowledged {
        assert_eq!(stands.get(id), Some(sequence), "{id} was acknowledged at {sequence}");
    }
    let mut again = stream.reader(stream.beginning());
    for (sequence, _, body) in &read {
        let entry = entry(&mut again).await;
        assert_eq!((entry.sequence, &entry.body), (*sequence, body));
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_loses_nothing_that_it_acknowledged() {
    const KILLS: u64 = 20;
    let mut broker = Broker::start();
    let read = undergo(&mut broker, async |broker| {
        let mut random = Random::new(20);
        for _ in 0..KILLS {
            tokio::time::sleep(Duration::from_millis(random.below(600))).await;
            broker.kill();
            tokio::time::sleep(Duration::from_millis(random.below(300))).await;
            broker.restart();
        }
        // One round in peace: everybody must have come through.
        tokio::time::sleep(Duration::from_secs(4)).await;
    })
    .await;
    println!("{KILLS} kills, {read} records");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_pauses_only_delays() {
    let mut broker = Broker::start();
    undergo(&mut broker, async |broker| {
        tokio::time::sleep(Duration::from_millis(500)).await;
        broker.signal("STOP");
        tokio::time::sleep(Duration::from_secs(5)).await;
        broker.signal("CONT");
        tokio::time::sleep(Duration::from_secs(1)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_deleted_is_told_of_and_so_is_one_made_anew() {
    let broker = Broker::start();
    let home = tempfile::tempdir().expect("a directory");
    let stream = open(&broker).await;
    publish(&stream, 0..10).await;
    let mut reader = stream.reader(stream.beginning());
    for _ in 0..10 {
        entry(&mut reader).await;
    }
    let mut kept = Kept::open(home.path()).expect("a new one");
    kept.keep(reader.seen()).expect("kept");
    let doors = doors(&broker).await;
    doors.delete_stream("THALWEG").await.expect("deleted");
    assert!(matches!(end(&mut reader).await, StreamError::Gone));
    // A start that knows of the old one makes no new one in its place.
    let start = async |kept: &Kept| Stream::open(&broker.url(), &options(), kept.last()).await.map(drop);
    assert!(matches!(start(&kept).await, Err(StreamError::Gone)));

    let anew = open(&broker).await;
    publish(&anew, 0..20).await;
    let told = end(&mut reader).await.to_string();
    assert!(told.contains("up to sequence 10: the stream was made at"), "{told}");
    let kept = Kept::open(home.path()).expect("readable");
    assert!(matches!(start(&kept).await, Err(StreamError::Changed { sequence: 10, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_tail_whose_sequences_are_used_again_is_found() {
    for added in [200, 20, 100] {
        let mut broker = Broker::start();
        let home = tempfile::tempdir().expect("a directory");
        let stream = open(&broker).await;
        publish(&stream, 0..1000).await;
        // What the disk holds when the power goes is older than what was acknowledged.
        broker.kill();
        copy(&broker.store(), &broker.path("synced"));
        broker.restart();
        publish(&stream, 1000..1100).await;
        let mut reader = stream.reader(stream.beginning());
        for _ in 0..1100 {
            entry(&mut reader).await;
        }
        let mut kept = Kept::open(home.path()).expect("a new one");
        kept.keep(reader.seen()).expect("kept");
        Stream::open(&broker.url(), &options(), kept.last()).await.expect("it is as it was");
        // Nobody hears of it until others have published: a reader that waits would skip what they say.
        let mut tail = tokio::spawn(async move { (end(&mut reader).await, reader) });
        broker.kill();
        copy(&broker.path("synced"), &broker.store());
        broker.restart();
        let anew = open(&broker).await;
        publish(&anew, 5000..5000 + added).await;
        let (told, _) = tokio::time::timeout(PATIENCE, &mut tail).await.expect("in time").expect("no panic");
        assert!(matches!(told, StreamError::Changed { sequence: 1100, .. }), "{told}");
        // The next start finds it too.
        let kept = Kept::open(home.path()).expect("readable");
        let told = Stream::open(&broker.url(), &options(), kept.last()).await.expect_err("another stream").to_string();
        let expected = match added {
            20 => "the stream ends at sequence 1020: its tail was lost",
            _ => "the stream holds another record there",
        };
        assert!(told.contains(expected) && told.contains("delete stream.json"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_are_told_wherever_they_are() {
    let broker = Broker::start();
    let stream = open(&broker).await;
    publish(&stream, 0..20).await;
    let doors = doors(&broker).await;
    let delete = async |sequences: std::ops::RangeInclusive<u64>| {
        for sequence in sequences {
            ask(&doors, "STREAM.MSG.DELETE.THALWEG", &json!({"seq": sequence})).await;
        }
    };
    delete(1..=2).await;
    delete(8..=10).await;
    delete(20..=20).await;
    // One that waits at the end has read them before, and does not care; also when it begins anew.
    let mut reader = stream.reader(stream.beginning());
    let mut told = Vec::new();
    while reader.position() < 20 {
        told.push(match next(&mut reader).await {
            Next::Entry(entry) => entry.sequence..=entry.sequence,
            Next::Lost(lost) => lost,
        });
    }
    let one = |sequences: std::ops::RangeInclusive<u64>| sequences.map(|sequence| sequence..=sequence);
    let expected: Vec<_> =
        std::iter::once(1..=2).chain(one(3..=7)).chain([8..=10]).chain(one(11..=19)).chain([20..=20]).collect();
    assert_eq!(told, expected);
    assert_eq!(reader.seen().sequence, 19);
    publish(&stream, 20..21).await;
    assert_eq!(entry(&mut reader).await.sequence, 21);
    // Purges are refused by the stream itself.
    let purged: Value = doors.request("STREAM.PURGE.THALWEG", &json!({})).await.expect("an answer");
    assert!(purged.get("error").is_some(), "{purged}");
}

#[tokio::test]
async fn a_full_stream_says_so_and_takes_more_when_there_is_room() {
    let broker = Broker::start();
    let stream = open(&broker).await;
    let doors = doors(&broker).await;
    let limit = async |bytes: i64| {
        let config = configured(&doors, &json!({"max_bytes": bytes})).await;
        ask(&doors, "STREAM.UPDATE.THALWEG", &config).await;
    };
    limit(100_000).await;
    let body = Bytes::from(vec![b'x'; 10_000]);
    let mut kept = 0;
    let full = loop {
        match stream.publish(&message(kept, body.clone())).await {
            Ok(sequence) => kept = sequence,
            Err(full) => break full,
        }
    };
    assert!(matches!(&full, NotKept::Busy(said) if said.contains("maximum bytes exceeded")), "{full}");
    assert_eq!((kept, stream.last_sequence().await.expect("a number")), (9, 9));
    limit(-1).await;
    assert_eq!(stream.publish(&message(kept, body)).await, Ok(10));

    // The same where the server as a whole has no more room.
    let broker = Broker::with("jetstream { store_dir: STORE, max_file_store: 100000 }");
    let stream = open(&broker).await;
    let body = Bytes::from(vec![b'x'; 10_000]);
    let messages: Vec<Message> = (0..20).map(|id| message(id, body.clone())).collect();
    let outcomes = stream.publish_all(&messages).await;
    let kept = outcomes.iter().take_while(|outcome| outcome.is_ok()).count();
    assert!((1..20).contains(&kept), "{outcomes:?}");
    assert!(outcomes[kept..].iter().all(|outcome| matches!(outcome, Err(NotKept::Busy(_)))), "{outcomes:?}");
    assert_eq!(stream.last_sequence().await.expect("a number"), kept as u64);
}

#[tokio::test]
async fn what_is_too_large_is_said_to_be_and_what_has_no_stream_is_not_lost_in_silence() {
    let broker = Broker::start();
    let stream = open(&broker).await;
    let large = message("large", vec![b'x'; (1 << 20) + 1]);
    assert!(matches!(stream.publish(&large).await, Err(NotKept::TooLarge(_))));
    let fits = message("fits", vec![b'x'; 512_000]);
    assert_eq!(stream.publish(&fits).await, Ok(1));
    // A dead letter's body may be six times as long in JSON: it is packed then.
    let rejection = Rejection::new(Reason::Invalid, "the body is not JSON");
    let letter = DeadLetter::new(&rejection, &vec![1; 512_000]);
    let returned = Returned { letter, position: Some("1".into()), received_at: 1_767_225_600_000 };
    let id = dead_letter_id(1, 0);
    assert_eq!(stream.publish_dead_letter(&id, &returned).await, Ok(2));
    assert_eq!(stream.publish_dead_letter(&id, &returned).await, Ok(2), "told again it is kept once");
    let found = stream.get(2).await.expect("an answer").expect("it is there");
    assert_eq!(&*found.subject, "thalweg.dead_letters");
    let found = Returned::decode(&found.body).expect("readable");
    assert_eq!((found.position.as_deref(), found.letter.body.len()), (Some("1"), 512_000));
    let small = Returned { letter: DeadLetter::new(&rejection, b"\xff"), position: None, received_at: 7 };
    stream.publish_dead_letter("http-1", &small).await.expect("kept");
    let found = stream.get(3).await.expect("an answer").expect("it is there");
    let json: Value = serde_json::from_slice(&found.body).expect("JSON");
    let expected = json!({"reason": "invalid", "detail": "the body is not JSON", "position": null, "received_at": 7,
        "body": "/w==", "encoding": "base64"});
    assert_eq!(json, expected);
}

#[tokio::test]
async fn triggers_have_a_stream_of_their_own_unless_somebody_made_one() {
    let broker = Broker::start();
    let stream = open(&broker).await;
    stream.open_triggers().await.expect("made");
    stream.open_triggers().await.expect("there");
    assert_eq!(stream.publish_trigger("come back*", "i_1", "{}".into()).await, Ok(1));
    assert_eq!(stream.publish_trigger("come back*", "i_1", "{}".into()).await, Ok(1));
    let doors = doors(&broker).await;
    let found = doors.get_stream("THALWEG_TRIGGERS").await.expect("a stream").direct_get(1).await.expect("a message");
    assert_eq!((&*found.subject, &*found.payload), ("thalweg.triggers.come%20back%2A", &b"{}"[..]));
    assert_eq!(stream.last_sequence().await.expect("a number"), 0, "the log does not hold them");

    doors.delete_stream("THALWEG_TRIGGERS").await.expect("deleted");
    let theirs =
        json!({"name": "MINE", "subjects": ["thalweg.triggers.*"], "retention": "workqueue", "storage": "file"});
    ask(&doors, "STREAM.CREATE.MINE", &theirs).await;
    stream.open_triggers().await.expect("theirs is as good");
    assert_eq!(stream.publish_trigger("welcome", "i_2", "{}".into()).await, Ok(1));
}

/// What becomes of the calls of an entry: their message ids, or why they were refused, and their bodies.
fn taken(entry: &Entry) -> Vec<Result<String, (Reason, Vec<u8>)>> {
    let plan = Plan::new(Arc::new(Definitions::default()));
    let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
    let arrived = take_apart(entry, &mut decoder, &[0; 16], Stamp::Broker(entry.received_at()));
    arrived
        .into_iter()
        .map(|arrived| match arrived {
            Arrived::Good(incoming) => {
                assert_eq!(incoming.prepared.event.timestamp, entry.received_at());
                Ok(incoming.prepared.event.message_id.to_string())
            }
            Arrived::Bad { rejection, body, .. } => Err((rejection.reason, body.into_vec())),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_in_other_languages_are_understood() {
    let invalid = |body: &[u8]| Err((Reason::Invalid, body.to_vec()));
    let good = |id: &str| Ok(id.to_owned());
    for mut publisher in [tools::python("tests/publishers/nats.py"), tools::node("tests/publishers/nats.cjs")] {
        let broker = Broker::start();
        let stream = open(&broker).await;
        run(publisher.arg(broker.url()));
        let mut reader = stream.reader(stream.beginning());
        let mut found = Vec::new();
        while reader.position() < stream.last_sequence().await.expect("a number") {
            found.push(taken(&entry(&mut reader).await));
        }
        // The body of the refused element is as its language writes it.
        let refused = &found[3][1].clone().expect_err("an element without an id").1;
        assert_eq!(serde_json::from_slice::<Value>(refused).expect("JSON"), json!({"type": "track"}));
        let expected = [
            vec![good("m1")],
            vec![good("of-the-message")],
            vec![good("nats:3")],
            vec![good("nats:4:0"), Err((Reason::Invalid, refused.clone())), good("m2")],
            vec![good("nats:5:0"), invalid(b"{broken"), good("m3")],
            vec![good("m4"), good("nats:6:1")],
            vec![invalid(b"")],
            vec![invalid(b"neither \xff one nor the other")],
        ];
        assert_eq!(found, expected, "{publisher:?}");
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn bodies_are_taken_apart_by_what_is_in_them() {
    let entry = |id: Option<&str>, body: &[u8]| {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert("Nats-Msg-Id", id);
        }
        let nanos = 1_767_225_600_000_000_000;
        Entry { sequence: 17, nanos, subject: "thalweg.events.x".into(), headers, body: body.to_vec().into() }
    };
    let call = br#"{"type":"page","userId":"ada"}"#;
    let pretty = b"{\n  \"type\": \"page\",\n  \"userId\": \"ada\"\n}\n";
    let spaced = [b"\r\n".as_slice(), call, b"\r\n\r\n", call, b"  \n"].concat();
    let long = "x".repeat(256);
    let huge = format!(r#"{{"type":"page","userId":"ada","properties":{{"x":"{}"}}}}"#, "x".repeat(32_768));
    let bomb = process::gzip::gzip(&vec![b' '; 512_001]);
    for (id, body, expected) in [
        (None, call.as_slice(), vec![Ok("nats:17")]),
        (Some(""), call, vec![Ok("nats:17")]),
        (Some("m"), pretty, vec![Ok("m")]),
        (Some("m"), br#"{"batch":[]}"#, vec![]),
        (Some("m"), br#"{"batch":[{"type":"page","userId":"ada"}]}"#, vec![Ok("nats:17:0")]),
        (Some("m"), &spaced, vec![Ok("nats:17:0"), Ok("nats:17:1")]),
        (Some(&long), call, vec![Err(Reason::Invalid)]),
        (None, huge.as_bytes(), vec![Err(Reason::TooLarge)]),
        (None, &bomb, vec![Err(Reason::TooLarge)]),
        (None, b" \n ", vec![Err(Reason::Invalid)]),
        // One that broke is told of once, not a line at a time.
        (None, b"{\n  \"type\": \"page\",\n  \"userId\": \"ada\"\n", vec![Err(Reason::Invalid)]),
        (None, b"[1,2]", vec![Err(Reason::Invalid)]),
        (None, br#"{"userId":"ada"}"#, vec![Err(Reason::Invalid)]),
        (None, &[0x1f, 0x8b, 1, 2], vec![Err(Reason::Invalid)]),
    ] {
        let entry = entry(id, body);
        let found = taken(&entry).into_iter().map(|taken| taken.map_err(|(reason, _)| reason));
        let expected: Vec<_> = expected.into_iter().map(|expected| expected.map(str::to_owned)).collect();
        assert_eq!(found.collect::<Vec<_>>(), expected, "{:?} {:?}", id, String::from_utf8_lossy(body));
    }
    // Nothing is known of when a message was sent, so nothing is corrected.
    let dated = br#"{"type":"page","userId":"ada","timestamp":"2025-12-31T20:00:00Z","sentAt":"2025-12-31T20:00:05Z"}"#;
    let plan = Plan::new(Arc::new(Definitions::default()));
    let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
    let entry = entry(None, dated);
    let Arrived::Good(incoming) = &take_apart(&entry, &mut decoder, &[0; 16], Stamp::Broker(entry.received_at()))[0]
    else {
        panic!("it is good");
    };
    assert_eq!(incoming.prepared.event.timestamp, 1_767_225_600_000 - 4 * 3_600_000);
}
