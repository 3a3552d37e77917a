//! Several processes as one: how they find each other, and what they write to each other beside the steps.
//!
//! All read the same file of hosts, one address a line; a process is known by its line, counted from zero. Each knocks
//! at those before it and opens to those after it. What must agree is compared before anything starts. The first leads:
//! it says when a step is to be closed, and at which clock, so that every step means the same everywhere.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use dataflows::engine::Post;
use dataflows::place::PROCESSES_MAX;
use dataflows::time::Millis;
use serde::{Deserialize, Serialize};

use crate::desk::{Ask, Reply};
use crate::record::{Defined, Dispatch};

/// The process that leads.
pub const LEADER: usize = 0;
/// A process that was not there is asked again after so long.
const AGAIN: Duration = Duration::from_millis(50);
/// Whoever waits says so this often.
const PATIENCE: Duration = Duration::from_secs(5);
/// A greeting of whoever knocks has to be complete within this.
const GREETING: Duration = Duration::from_secs(5);
/// And the answer of whom this one knocks at, which may be busy with others first: who gives it up sooner is met by a
/// process that it has left.
const ANSWER: Duration = Duration::from_secs(60);
/// The longest greeting, bytes: it holds definitions.
const GREETING_BYTES_MAX: usize = 64 << 20;

/// What a process says of itself when it meets another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Greeting {
    /// This program and its version.
    pub program: String,
    /// Its number.
    pub process: usize,
    /// How many processes its file of hosts has.
    pub processes: usize,
    /// Its worker threads.
    pub workers: usize,
    /// What it is there for, how its clock moves, what its definitions are: a text that must be the same everywhere.
    pub purpose: String,
    /// The time of the last group of its log.
    pub last_time: u64,
    /// The key of its log's hashes; that of the leader counts.
    pub secret: [u8; 16],
    /// The definitions that its log holds last; those of the leader count.
    pub defined: Option<Defined>,
    /// How far its clock has come, as far as it is known, ms; that of the leader counts.
    pub clock: Option<Millis>,
}

/// The processes that have met.
pub struct Team {
    /// This one's number.
    pub process: usize,
    /// Connections to the others; none to itself.
    pub connections: Vec<Option<TcpStream>>,
    /// The key of hashes.
    pub secret: [u8; 16],
    /// The last time that any log has.
    pub last_time: u64,
    /// The definitions that the leader's log holds last.
    pub defined: Option<Defined>,
    /// How far the leader's clock has come, ms.
    pub clock: Option<Millis>,
    /// Addresses, by number.
    pub hosts: Vec<String>,
}

/// What processes write to each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Letter {
    /// The leader: a step is to be closed.
    Round(Round),
    /// To the leader: there is something to close a step for.
    Want,
    /// The leader: what the ledger says.
    Ledger(Vec<Dispatch>),
    /// The leader: other definitions are to hold, by a record at this position and clock.
    Define(Box<Defined>, u64, Millis),
    /// To the leader: what the definitions to come name was read again here.
    Reread,
    /// To the process that took an erasure: its place; that this process has it written down, with how many events had
    /// been accepted; and whether all bodies that it asks for are destroyed there.
    Erasing(u64, u64, bool),
    /// To the leader of a replay: this process has read its files to their end.
    Done(Share),
    /// Something is asked, under a number.
    Ask(u64, Ask),
    /// The answer under that number.
    Reply(u64, Reply),
    /// This process ends, and so does everyone.
    Stop,
}

/// A step to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Its number.
    pub number: u64,
    /// Its clock, ms.
    pub clock: Millis,
    /// Logs are being read: up to which time; none: it is for what comes now.
    pub until: Option<u64>,
    /// Whether it has the definitions that are to come.
    pub defines: bool,
}

/// What a process has read of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Blocks in the files, those of others too.
    pub blocks: u64,
    /// Lines of its own blocks that are events, or ought to be.
    pub read: u64,
    /// Lines of its own blocks that are nothing.
    pub invalid: u64,
}

/// The way to the other processes.
#[derive(Clone, Debug)]
pub struct Others {
    /// This process's number.
    pub process: usize,
    /// How many there are.
    pub processes: usize,
    post: Post,
}

impl Others {
    /// The way to so many, by the engine's post.
    pub fn new(process: usize, processes: usize, post: Post) -> Others {
        Others { process, processes, post }
    }

    /// Whether this process leads.
    pub fn leads(&self) -> bool {
        self.process == LEADER
    }

    /// Writes to one.
    pub fn tell(&self, to: usize, letter: &Letter) {
        self.post.send(to, serde_json::to_vec(letter).expect("letters have string keys"));
    }

    /// Writes to all others.
    pub fn tell_all(&self, letter: &Letter) {
        (0..self.processes).filter(|to| *to != self.process).for_each(|to| self.tell(to, letter));
    }
}

/// The addresses in a file of hosts, one a line; lines that begin with `#` say nothing.
pub fn hosts(text: &str) -> Result<Vec<String>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let hosts: Vec<String> = lines.map(str::to_owned).collect();
    match hosts.len() {
        0 => Err("it lists no host: one address a line, such as 127.0.0.1:2101".into()),
        1..=PROCESSES_MAX => Ok(hosts),
        more => Err(format!("it lists {more} hosts; {PROCESSES_MAX} processes may work together")),
    }
}

/// The connection to another process is lost: no step will close any more, so this one ends too. What was acknowledged
/// is in the logs.
pub fn lost(peer: usize, host: &str) -> ! {
    eprintln!("thalweg: process {peer} at {host} is gone, so this one ends too; start all of them again");
    std::process::exit(1);
}

/// Meets the others.
pub fn meet(hosts: Vec<String>, mine: &Greeting) -> Result<Team, String> {
    let process = mine.process;
    let address = hosts.get(process).ok_or_else(|| {
        format!("process {process} is not in the file of hosts, which lists {}: they are counted from 0", hosts.len())
    })?;
    let listener = TcpListener::bind(address.as_str())
        .map_err(|error| format!("cannot listen for other processes on {address}: {error}"))?;
    meet_at(&listener, hosts, mine)
}

/// Meets the others, who knock there.
fn meet_at(listener: &TcpListener, hosts: Vec<String>, mine: &Greeting) -> Result<Team, String> {
    let process = mine.process;
    listener.set_nonblocking(true).map_err(|error| format!("cannot listen for other processes: {error}"))?;
    let mut met: Vec<Option<(TcpStream, Greeting)>> = hosts.iter().map(|_| None).collect();
    let mut said = Instant::now();
    loop {
        for (other, host) in hosts.iter().enumerate().take(process) {
            if met[other].is_none()
                && let Ok(stream) = TcpStream::connect(host.as_str())
            {
                met[other] = greet(stream, mine, ANSWER).ok().filter(|(_, theirs)| theirs.process == other);
            }
        }
        while let Ok((stream, _)) = listener.accept() {
            // Who does not greet is no process of ours.
            let Ok((stream, theirs)) = greet(stream, mine, GREETING) else { continue };
            if theirs.process > process && theirs.process < hosts.len() {
                let other = theirs.process;
                met[other] = Some((stream, theirs));
            }
        }
        let missing = (0..hosts.len()).filter(|other| *other != process && met[*other].is_none());
        let missing: Vec<String> = missing.map(|other| format!("{other} at {}", hosts[other])).collect();
        if missing.is_empty() {
            break;
        }
        if said.elapsed() > PATIENCE {
            tracing::info!(process, "waits for process {}", missing.join(", "));
            said = Instant::now();
        }
        std::thread::sleep(AGAIN);
    }
    let (mut secret, mut last_time, mut connections) = (mine.secret, mine.last_time, Vec::new());
    let (mut defined, mut clock) = (mine.defined.clone(), mine.clock);
    for (other, met) in met.into_iter().enumerate() {
        let Some((stream, theirs)) = met else {
            connections.push(None);
            continue;
        };
        mine.agrees(&theirs)?;
        if other == LEADER {
            secret = theirs.secret;
            (defined, clock) = (theirs.defined, theirs.clock);
        }
        last_time = last_time.max(theirs.last_time);
        connections.push(Some(stream));
    }
    Ok(Team { process, connections, secret, last_time, defined, clock, hosts })
}

/// Says who this is, and hears who that is.
fn greet(mut stream: TcpStream, mine: &Greeting, patience: Duration) -> io::Result<(TcpStream, Greeting)> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    let ours = serde_json::to_vec(mine).expect("greetings have string keys");
    // Each side writes before it reads, and more may be written than fits on the way.
    let mut writes = stream.try_clone()?;
    let written = std::thread::spawn(move || {
        writes.write_all(&(ours.len() as u32).to_le_bytes())?;
        writes.write_all(&ours)
    });
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = Some(u32::from_le_bytes(length) as usize).filter(|length| *length <= GREETING_BYTES_MAX);
    let mut theirs = vec![0; length.ok_or(io::ErrorKind::InvalidData)?];
    // No byte more: what follows the greeting is the engine's.
    stream.read_exact(&mut theirs)?;
    written.join().expect("it only writes")?;
    stream.set_read_timeout(None)?;
    Ok((stream, serde_json::from_slice(&theirs)?))
}

impl Greeting {
    /// Whether two can work together.
    fn agrees(&self, theirs: &Greeting) -> Result<(), String> {
        let other = theirs.process;
        let differs = |what: &str, ours: &dyn std::fmt::Display, theirs: &dyn std::fmt::Display| {
            Err(format!("process {other} has {what} {theirs}, and this one {ours}: start all of them alike"))
        };
        if self.program != theirs.program {
            return differs("the version", &self.program, &theirs.program);
        }
        if self.processes != theirs.processes {
            return differs("a file of hosts of", &self.processes, &theirs.processes);
        }
        if self.workers != theirs.workers {
            return differs("workers:", &self.workers, &theirs.workers);
        }
        if self.purpose != theirs.purpose {
            return differs("another purpose or other definitions:", &self.purpose, &theirs.purpose);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(process: usize) -> Greeting {
        let program = "thalweg 1".to_owned();
        let secret = [process as u8; 16];
        let last_time = 10 + process as u64;
        Greeting {
            program,
            process,
            processes: 3,
            workers: 2,
            purpose: "serve".into(),
            last_time,
            secret,
            defined: None,
            clock: None,
        }
    }

    fn all_meet(change: impl Fn(&mut Greeting)) -> Vec<Result<Team, String>> {
        // Bound from the beginning: a port that is free now may be anyone's a moment later.
        let bound = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port is free"));
        let hosts: Vec<String> =
            bound.iter().map(|bound| bound.local_addr().expect("it is bound").to_string()).collect();
        let (told, met) = std::sync::mpsc::channel();
        for (process, listener) in bound.into_iter().enumerate() {
            let (hosts, mut mine, told) = (hosts.clone(), greeting(process), told.clone());
            change(&mut mine);
            // Whoever has met keeps its port: others may be knocking at it a second time.
            std::thread::spawn(move || {
                let team = meet_at(&listener, hosts, &mine);
                told.send((process, team, listener)).is_ok()
            });
        }
        let mut all: Vec<_> = (0..3)
            .map(|known| {
                let met = met.recv_timeout(2 * ANSWER);
                met.unwrap_or_else(|_| panic!("only {known} of 3 have met the others within {:?}", 2 * ANSWER))
            })
            .collect();
        all.sort_by_key(|(process, ..)| *process);
        all.into_iter().map(|(_, team, _)| team).collect()
    }

    #[test]
    fn all_meet_and_know_what_holds() {
        for (process, team) in all_meet(|_| {}).into_iter().enumerate() {
            let team = team.expect("they agree");
            let connected: Vec<bool> = team.connections.iter().map(Option::is_some).collect();
            assert_eq!(connected, (0..3).map(|other| other != process).collect::<Vec<_>>());
            assert_eq!((team.secret, team.last_time), ([0; 16], 12));
        }
    }

    #[test]
    fn who_does_not_agree_is_told() {
        let told = all_meet(|mine| mine.workers += mine.process / 2);
        let told: Vec<String> = told.into_iter().filter_map(Result::err).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("process 2 has workers: 3, and this one 2"), "{told:?}");
    }

    #[test]
    fn a_file_of_hosts_has_one_a_line() {
        assert_eq!(hosts("# two\n a:1 \n\nb:2\n"), Ok(vec!["a:1".to_owned(), "b:2".to_owned()]));
        assert!(hosts("\n# none\n").is_err() && hosts(&"a:1\n".repeat(PROCESSES_MAX + 1)).is_err());
    }
}
