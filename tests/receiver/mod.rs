//! An endpoint of webhooks: keeps every call that comes, and answers as it is told to.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A call as it came.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) at: Instant,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Call {
    /// A header's value, empty if there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    /// Its `webhook-id`.
    pub(crate) fn id(&self) -> &str {
        self.header("webhook-id")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON: {error}: {}", self.body))
    }
}

/// What a call is answered.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// At once.
    Status(u16),
    /// At once, with a header.
    With(u16, &'static str, String),
    /// After a while.
    Late(Duration, u16),
    /// Never; the connection is closed after a while.
    Never(Duration),
}

type Answering = dyn Fn(&Call, usize) -> Reply + Send + Sync;

/// A server that lives as long as its test.
#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    answering: Arc<Mutex<Arc<Answering>>>,
}

impl Receiver {
    /// Answers each call by it and by how many came before with the same id.
    pub(crate) fn new(answering: impl Fn(&Call, usize) -> Reply + Send + Sync + 'static) -> Receiver {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let receiver =
            Receiver { address, calls: Arc::default(), answering: Arc::new(Mutex::new(Arc::new(answering))) };
        let shared = receiver.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let receiver = shared.clone();
                std::thread::spawn(move || receiver.serve(stream));
            }
        });
        receiver
    }

    /// From now on answers otherwise.
    pub(crate) fn answer(&self, answering: impl Fn(&Call, usize) -> Reply + Send + Sync + 'static) {
        *self.answering.lock().expect("nobody panics while holding it") = Arc::new(answering);
    }

    /// A URL of it.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All calls so far, in the order in which they came.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().expect("nobody panics while holding it")
    }

    /// One connection, for as many calls as come by it. A caller that dies in the middle is no matter.
    fn serve(&self, stream: TcpStream) {
        let Ok(mut writer) = stream.try_clone() else { return };
        let mut reader = BufReader::new(stream);
        while let Some(call) = read(&mut reader) {
            let before = {
                let mut calls = self.lock();
                calls.push(call.clone());
                calls.iter().filter(|other| other.id() == call.id()).count() - 1
            };
            let answering = Arc::clone(&self.answering.lock().expect("nobody panics while holding it"));
            let (status, header) = match answering(&call, before) {
                Reply::Status(status) => (status, String::new()),
                Reply::With(status, name, value) => (status, format!("{name}: {value}\r\n")),
                Reply::Late(wait, status) => {
                    std::thread::sleep(wait);
                    (status, String::new())
                }
                Reply::Never(wait) => {
                    std::thread::sleep(wait);
                    return;
                }
            };
            let head = format!("HTTP/1.1 {status} so\r\n{header}content-length: 2\r\n\r\nok");
            if writer.write_all(head.as_bytes()).is_err() {
                return;
            }
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Call> {
    let mut line = || {
        let mut line = String::new();
        let read = reader.read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    };
    let first = line()?;
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let path = first.split(' ').nth(1)?.to_owned();
    let mut call = Call { at: Instant::now(), path, headers, body: String::new() };
    let mut body = vec![0; call.header("content-length").parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    call.body = String::from_utf8(body).ok()?;
    Some(call)
}
