//! Programs of others that tests run: Python, Node and their packages, as `.ci/run` installs them below the target
//! directory from `requirements.txt` and `package.json`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `.ci/run` puts them: `target/tools`, seen from `target/debug/deps/sdks-…`.
fn tools() -> PathBuf {
    let test = std::env::current_exe().expect("this test knows where it stands");
    let target = test.ancestors().nth(3).expect("this test stands in a target directory");
    target.join("tools")
}

/// A program of the tools' virtual environment: `python`, `node`, or what a package of `requirements.txt` brings.
pub(crate) fn tool(name: &str) -> Command {
    let program = tools().join("venv/bin").join(name);
    assert!(program.exists(), "{} is missing: run .ci/run once, it installs what the tests need", program.display());
    Command::new(program)
}

/// Python, to run a script of `tests/`.
pub(crate) fn python(script: &str) -> Command {
    let mut command = tool("python");
    command.arg("-I").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script));
    command
}

/// Node, to run a script of `tests/` with the packages of `package.json`.
pub(crate) fn node(script: &str) -> Command {
    let packages = tools().join("node_modules");
    assert!(packages.exists(), "{} is missing: run .ci/run once, it installs what tests need", packages.display());
    let mut command = tool("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script)).env("NODE_PATH", packages);
    command
}
