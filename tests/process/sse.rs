//! Server-sent events: a subscription that is read by a thread of its own, so that tests can wait as long as they like.

use std::io::{self, BufRead, BufReader};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::http::{Chunked, begin, head};

/// A snapshot comes at once, as far as a busy machine can.
const PATIENCE: Duration = Duration::from_secs(10);

/// One event of the stream.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) event: String,
    pub(crate) id: String,
    pub(crate) data: Value,
}

/// An open subscription.
pub(crate) struct Subscription {
    socket: TcpStream,
    messages: Receiver<Message>,
}

impl Message {
    /// Its changes: what came (1) and went (-1).
    pub(crate) fn changes(&self) -> Vec<(i64, &Value)> {
        let changes = self.data["changes"].as_array().unwrap_or_else(|| panic!("no changes in {self:?}"));
        changes.iter().map(|change| (change["diff"].as_i64().expect("1 or -1"), &change["row"])).collect()
    }
}

impl Subscription {
    /// Subscribes with a query such as `view=intents`.
    pub(crate) fn open(to: SocketAddr, query: &str) -> io::Result<Subscription> {
        Subscription::with(to, query, &[])
    }

    /// Subscribes again after the event of an id.
    pub(crate) fn resume(to: SocketAddr, query: &str, id: &str) -> io::Result<Subscription> {
        Subscription::with(to, query, &[("last-event-id", id)])
    }

    fn with(to: SocketAddr, query: &str, headers: &[(&str, &str)]) -> io::Result<Subscription> {
        let accepts = [&[("accept", "text/event-stream")], headers].concat();
        let socket = begin(to, "GET", &format!("/v1/subscribe?{query}"), &accepts, 0)?;
        let mut reader = BufReader::new(socket.try_clone()?);
        let (status, headers) = head(&mut reader)?;
        let has =
            |name: &str, wanted: &str| headers.iter().any(|(key, value)| key == name && value.starts_with(wanted));
        assert!(status == 200 && has("content-type", "text/event-stream"), "{status}: {headers:?}");
        assert!(has("transfer-encoding", "chunked"), "{headers:?}");
        let (send, messages) = channel();
        std::thread::spawn(move || follow(BufReader::new(Chunked::new(reader)), &send));
        Ok(Subscription { socket, messages })
    }

    /// The next message, if one comes in time.
    pub(crate) fn next(&self, within: Duration) -> Option<Message> {
        self.messages.recv_timeout(within).ok()
    }

    /// The rows of the snapshot with which every subscription begins.
    pub(crate) fn snapshot(&self) -> Vec<Value> {
        let mut rows = Vec::new();
        loop {
            let message = self.next(PATIENCE).expect("a subscription begins with a snapshot");
            assert_eq!(message.event, "snapshot", "{message:?}");
            for (diff, row) in message.changes() {
                assert_eq!(diff, 1, "{message:?}");
                rows.push(row.clone());
            }
            if message.data["complete"] == true {
                return rows;
            }
        }
    }

    /// The first change of which this is true of a row that came, with how long it took.
    pub(crate) fn wait_for(&self, within: Duration, wanted: impl Fn(&Value) -> bool) -> Option<(Value, Duration)> {
        let began = Instant::now();
        loop {
            let message = self.next(within.checked_sub(began.elapsed())?)?;
            assert_eq!(message.event, "change", "{message:?}");
            if let Some((_, row)) = message.changes().into_iter().find(|(diff, row)| *diff == 1 && wanted(row)) {
                return Some((row.clone(), began.elapsed()));
            }
        }
    }

    /// Everything that comes in this time.
    pub(crate) fn all(&self, within: Duration) -> Vec<Message> {
        let deadline = Instant::now() + within;
        let left = || deadline.saturating_duration_since(Instant::now());
        std::iter::from_fn(|| self.next(left())).collect()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // The reading thread ends with its connection.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Reads messages until the connection ends or nobody waits for them.
fn follow(mut reader: impl BufRead, send: &Sender<Message>) {
    let (mut event, mut id, mut data) = (String::new(), String::new(), String::new());
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
        let text = line.trim_end_matches(['\r', '\n']);
        match text.split_once(':').map(|(key, value)| (key, value.strip_prefix(' ').unwrap_or(value))) {
            Some(("event", value)) => event = value.to_owned(),
            Some(("id", value)) => id = value.to_owned(),
            Some(("data", value)) => data += value,
            None if text.is_empty() && !data.is_empty() => {
                let data = serde_json::from_str(&std::mem::take(&mut data)).expect("data is JSON");
                if send.send(Message { event: event.clone(), id: id.clone(), data }).is_err() {
                    return;
                }
            }
            // A comment keeps the connection alive.
            _ => {}
        }
        line.clear();
    }
}
