//! A real nats-server of one test: started on a free port, killed, stopped and started again as the test likes, and
//! gone with it. It comes with the tools that `.ci/run` installs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{free_port, until};
use crate::tools::tool;

/// A server with much to read again on a busy machine may take this long to start.
const PATIENCE: Duration = Duration::from_secs(30);
/// Ports to try: one that was free may be taken before the server binds it.
const PORTS: usize = 5;

/// A server with its own directory.
pub(crate) struct Broker {
    home: TempDir,
    port: u16,
    child: Option<Child>,
    /// What it is run by: what lets it see another disk.
    by: Vec<String>,
    /// What holds that disk.
    disk: Option<Child>,
}

impl Broker {
    /// A server with JetStream and nothing else.
    pub(crate) fn start() -> Broker {
        Broker::with("jetstream { store_dir: STORE }")
    }

    /// A server with this configuration; `STORE` stands for its store, `HOME` for the directory it is in.
    pub(crate) fn with(config: &str) -> Broker {
        Broker::at(tempfile::tempdir().expect("a directory"), config)
    }

    /// Three servers of one cluster.
    pub(crate) fn three() -> [Broker; 3] {
        let ports = [(); 3].map(|()| free_port());
        let routes = ports.map(|port| format!("nats://127.0.0.1:{port}")).join(", ");
        [0, 1, 2].map(|number| {
            let cluster = format!("name: three, listen: '127.0.0.1:{}', routes: [ {routes} ]", ports[number]);
            Broker::with(&format!("server_name: n{number}\njetstream {{ store_dir: STORE }}\ncluster {{ {cluster} }}"))
        })
    }

    /// A server whose store is a file system of its own, of so many bytes, that nobody else sees.
    pub(crate) fn on_disk_of(bytes: usize) -> Broker {
        let home = tempfile::tempdir().expect("a directory");
        fs::create_dir(home.path().join("store")).expect("made");
        let mount = format!(
            "mount -t tmpfs -o size={bytes} none '{0}/store' && touch '{0}/store/there' && exec sleep 3600",
            home.path().display()
        );
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", &mount]);
        let mut disk = command.stdin(Stdio::null()).spawn().expect("there is an `unshare`");
        let id = disk.id().to_string();
        let by = ["nsenter", "--target", &id, "--user", "--mount", "--preserve-credentials", "--wd=/"];
        let by: Vec<String> = by.iter().map(|part| (*part).to_owned()).collect();
        until(PATIENCE, "a file system is mounted: that takes root, or user namespaces", || {
            assert!(disk.try_wait().expect("it is a child").is_none(), "no file system can be mounted here");
            let there = home.path().join("store/there");
            let seen = Command::new(&by[0]).args(&by[1..]).arg("test").arg("-e").arg(there).status();
            seen.is_ok_and(|seen| seen.success()).then_some(())
        });
        Broker::by(home, "jetstream { store_dir: STORE }", by, Some(disk))
    }

    /// Runs a command as this server is run: where it sees the same disk.
    pub(crate) fn beside(&self, command: &[&str]) {
        let status = Command::new(&self.by[0]).args(&self.by[1..]).args(command).status().expect("it runs");
        assert!(status.success(), "{command:?}");
    }

    /// The same, with files that are there already.
    pub(crate) fn at(home: TempDir, config: &str) -> Broker {
        Broker::by(home, config, Vec::new(), None)
    }

    fn by(home: TempDir, config: &str, by: Vec<String>, disk: Option<Child>) -> Broker {
        let mut broker = Broker { home, port: 0, child: None, by, disk };
        let home = broker.home.path().display().to_string();
        let config = config.replace("STORE", &format!("'{home}/store'")).replace("HOME", &home);
        fs::write(broker.home.path().join("nats.conf"), config).expect("written");
        for _ in 0..PORTS {
            broker.port = free_port();
            if broker.run() {
                return broker;
            }
        }
        panic!("nats-server does not start:\n{}", broker.log());
    }

    /// A file of this server's home.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Where its streams are.
    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("nats.log")).unwrap_or_default()
    }

    /// Starts the process; false, if it ends before it listens.
    fn run(&mut self) -> bool {
        let log = fs::File::options().create(true).append(true).open(self.path("nats.log")).expect("a log");
        let mut command = tool("nats-server");
        if let Some((by, rest)) = self.by.split_first() {
            let program = command.get_program().to_owned();
            command = Command::new(by);
            command.args(rest).arg(program);
        }
        command.arg("-c").arg(self.path("nats.conf")).args(["-a", "127.0.0.1", "-p", &self.port.to_string()]);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("nats-server runs");
        let child = self.child.insert(child);
        until(PATIENCE, "nats-server listens", || {
            if child.try_wait().expect("it is a child").is_some() {
                return Some(false);
            }
            // It says who it is to everyone who connects, once it is ready.
            let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
            let mut line = String::new();
            BufReader::new(connected).read_line(&mut line).ok()?;
            line.starts_with("INFO").then_some(true)
        })
    }

    /// Ends it as a power switch would end a process: nothing is said, nothing flushed.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it can be killed");
            child.wait().expect("it is a child");
        }
    }

    /// Starts it again on the same port, with the store as it is.
    pub(crate) fn restart(&mut self) {
        self.kill();
        assert!(self.run(), "nats-server does not start again:\n{}", self.log());
    }

    /// Stops it from doing anything, or lets it go on: `STOP`, `CONT`.
    pub(crate) fn signal(&self, signal: &str) {
        // The shell's own, since a bare machine may have no other.
        let kill = format!("kill -s {signal} {}", self.child.as_ref().expect("it runs").id());
        let status = Command::new("sh").args(["-c", &kill]).status().expect("a shell runs");
        assert!(status.success(), "no signal {signal}");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if let Some(disk) = &mut self.disk {
            let _ = disk.kill().and_then(|()| disk.wait());
        }
    }
}

/// Copies a directory with all that is in it, in the place of what was there.
pub(crate) fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}
