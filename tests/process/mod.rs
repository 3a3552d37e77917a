//! The real binary, run as a process of its own: built once, started on a free port, killed when it is dropped.

pub(crate) mod gzip;
pub(crate) mod http;
pub(crate) mod sse;

use std::collections::HashSet;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use http::Answer;
use serde_json::Value;
use sse::Subscription;
use tempfile::TempDir;

/// A debug build on a busy machine may take this long to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Ports to try: one that was free may be taken before the process binds it.
const PORTS: usize = 5;

/// The binary, built by this process's first call.
pub(crate) fn binary() -> &'static Path {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(build).as_ref().unwrap_or_else(|why| panic!("{why}"))
}

/// Builds it with the profile, and into the directory, of this test: `target/debug/deps/binary-…`.
fn build() -> Result<PathBuf, String> {
    let test = std::env::current_exe().map_err(|error| format!("this test does not know where it stands: {error}"))?;
    let built = test.parent().and_then(Path::parent).ok_or("this test stands outside of a target directory")?;
    let target = built.parent().ok_or("this test stands outside of a target directory")?;
    let profile = match built.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Build scripts would take what cargo tells this test of its own package for a change, and build all anew.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command.args(["build", "--quiet", "-p", "server", "--bin", "thalweg", "--profile", profile, "--target-dir"]);
    let output = command.arg(target).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.map_err(|error| format!("cannot run cargo to build the binary: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the binary cannot be built, so nothing about it is tested:\n{said}"));
    }
    let binary = built.join(format!("thalweg{}", std::env::consts::EXE_SUFFIX));
    if binary.exists() { Ok(binary) } else { Err(format!("cargo built no {}", binary.display())) }
}

/// A command that reads nothing from the surroundings of the test.
fn command() -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("THALWEG_")) {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// A port that nothing listens on, and that no other test of this process was given.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let mut given = GIVEN.lock().expect("nobody panics while holding it");
        if given.get_or_insert_default().insert(port) {
            return port;
        }
    }
}

/// Asks again and again until there is an answer; panics when there is none in time.
pub(crate) fn until<T>(within: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder of one test: definitions, a data directory, whatever else it writes.
pub(crate) struct Home {
    dir: TempDir,
    environment: Vec<(String, String)>,
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Home {
    /// A new folder with these definitions in it.
    pub(crate) fn new(definitions: &str) -> Home {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let home = Home { dir, environment: Vec::new() };
        home.write("thalweg.yaml", definitions);
        home
    }

    /// The same, its processes started with an environment variable.
    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Home {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("the temporary directory can be written to");
        path
    }

    /// Segment files of the log, oldest first.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.path("data")).expect("the process has made its data directory");
        let mut paths: Vec<PathBuf> = files.map(|file| file.expect("it can be listed").path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        paths.sort();
        paths
    }

    /// `thalweg serve` with this folder's definitions and data, where these flags do not say otherwise.
    fn serve(&self, port: u16, flags: &[&str]) -> Command {
        let mut command = command();
        command.current_dir(self.dir.path()).arg("serve").args(flags);
        command.envs(self.environment.iter().cloned());
        let listen = format!("127.0.0.1:{port}");
        for (flag, value) in [("--definitions", "thalweg.yaml"), ("--data", "data"), ("--listen", &listen)] {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command
    }

    /// Starts serving, and waits until it does.
    pub(crate) fn start(&self, flags: &[&str]) -> Server {
        for _ in 1..PORTS {
            if let Ok(server) = self.launch(flags).ready() {
                return server;
            }
        }
        self.launch(flags).ready().unwrap_or_else(|said| panic!("the process ended instead of serving: {said}"))
    }

    /// Starts serving, and waits for nothing.
    pub(crate) fn launch(&self, flags: &[&str]) -> Server {
        let port = free_port();
        let stderr = self.path(&format!("{port}.stderr"));
        let file = File::create(&stderr).expect("the temporary directory can be written to");
        let mut command = self.serve(port, flags);
        let child = command.stdout(Stdio::null()).stderr(file).spawn().expect("the binary can be run");
        let listen = flags.iter().skip_while(|flag| **flag != "--listen").nth(1);
        let listen = listen.and_then(|listen| listen.parse().ok());
        let address = listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        Server { child, address, stderr }
    }

    /// Replays a file with this folder's definitions, and waits until it keeps the doors open on what is then true.
    pub(crate) fn replay(&self, file: &str, flags: &[&str]) -> Server {
        let port = free_port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stderr = self.path(&format!("{port}.stderr"));
        let mut command = command();
        command.current_dir(self.dir.path()).args(["replay", file, "--definitions", "thalweg.yaml"]).args(flags);
        command.args(["--serve", &address.to_string()]).stdout(Stdio::null());
        let said = File::create(&stderr).expect("the temporary directory can be written to");
        let child = command.stderr(said).spawn().expect("the binary can be run");
        Server { child, address, stderr }.ready().expect("a port that was free a moment ago")
    }

    /// Tries to serve, which must not succeed.
    pub(crate) fn refused(&self, flags: &[&str]) -> Ended {
        self.wait_for(self.serve(free_port(), flags))
    }

    /// Runs another command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        let mut command = command();
        command.current_dir(self.dir.path()).args(args);
        self.wait_for(command)
    }

    fn wait_for(&self, mut command: Command) -> Ended {
        let number = free_port();
        let [out, err] = ["stdout", "stderr"].map(|name| self.path(&format!("{number}.ended.{name}")));
        let file = |path: &Path| File::create(path).expect("the temporary directory can be written to");
        let mut child = command.stdout(file(&out)).stderr(file(&err)).spawn().expect("the binary can be run");
        let text = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("it can be waited for") {
                return Ended { status, stdout: text(&out), stderr: text(&err) };
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{command:?} does not end; it said: {}{}", text(&out), text(&err));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process that serves.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    stderr: PathBuf,
}

impl Server {
    /// Waits until it serves. Somebody may have taken its port meanwhile: that is an error.
    pub(crate) fn ready(mut self) -> Result<Server, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if http::ask(self.address, "GET", "/readyz", &[], &[]).is_ok_and(|answer| answer.status == 200) {
                return Ok(self);
            }
            let said = self.said();
            match self.child.try_wait().expect("it can be waited for") {
                Some(_) if said.contains("Address already in use") => return Err(said),
                Some(status) => panic!("the process ended ({status}) instead of serving: {said}"),
                None => assert!(Instant::now() < deadline, "the process does not serve: {said}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has written to its stderr.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it has held so far, as Linux counts it.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("this is Linux");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak.and_then(|peak| peak.parse::<u64>().ok()).expect("a peak in kB") << 10
    }

    pub(crate) fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let answer = http::ask(self.address, method, path, headers, body);
        answer.unwrap_or_else(|error| panic!("{method} {path} has no answer: {error}\n{}", self.said()))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], &[])
    }

    /// The JSON of an answer that must be right.
    pub(crate) fn read(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.text());
        answer.json()
    }

    pub(crate) fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.ask("POST", path, &[("content-type", "application/json")], body.as_ref())
    }

    /// The JSON of the answer to a call that must be taken.
    pub(crate) fn write(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body.to_string());
        assert_eq!(answer.status, 200, "POST {path}: {}", answer.text());
        answer.json()
    }

    pub(crate) fn subscribe(&self, query: &str) -> Subscription {
        Subscription::open(self.address, query).unwrap_or_else(|error| panic!("no subscription: {error}"))
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }

    /// `kill -TERM`; gives how the process ended, or nothing if it did not in time.
    pub(crate) fn terminate(self, within: Duration) -> Option<ExitStatus> {
        self.signal("TERM");
        self.ends(within)
    }

    /// Sends it a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let told = Command::new("kill").args([&format!("-{name}"), &id]).status().expect("there is a `kill`");
        assert!(told.success(), "`kill -{name} {id}` failed");
    }

    /// How the process ended, or nothing if it does not in time.
    pub(crate) fn ends(mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
