//! The laws of the house, checked by reading the source as text.

use std::fs;
use std::path::{Path, PathBuf};

/// Words that a room does not speak: where, which, and why.
const UNSPOKEN: &[(&str, &[&str], &str)] = &[
    (
        "dataflows/src",
        &["tokio", "axum", "async ", "std::fs", "std::net", "std::env", "Instant::now", "SystemTime"],
        "the library has no tokio, file, socket or wall clock",
    ),
    ("server/src", &["timely", "differential"], "the server reaches the dataflow by its protocol alone"),
    (
        "dataflows/src/history.rs",
        &["session", "segment", "journey", "campaign"],
        "the mechanism knows nothing of marketing",
    ),
    (
        "dataflows/src/keyed.rs",
        &["session", "segment", "journey", "campaign"],
        "the mechanism knows nothing of marketing",
    ),
    ("server/src/http.rs", &[".route("], "doors stand on the one list that serves and describes them"),
    ("server/src/http", &[".route("], "doors stand on the one list that serves and describes them"),
    ("server/src/log", &["serde", "axum", "event"], "the log knows bytes and positions"),
];

/// The only file of the server that reads the wall.
const WALL: &str = "server/src/clock.rs";
/// Lines are read side by side.
const COLUMNS_MAX: usize = 120;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// All Rust files below a place, with their text.
fn sources(place: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(place)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            found.push((name, fs::read_to_string(&path).expect("a text")));
        }
    }
    assert!(!found.is_empty(), "{place} holds Rust files");
    found.sort();
    found
}

fn everything() -> Vec<(String, String)> {
    ["dataflows/src", "server/src", "examples", "benches", "tests"].iter().flat_map(|place| sources(place)).collect()
}

/// What a file says outside comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
}

#[test]
fn each_room_keeps_to_its_words() {
    for (place, words, law) in UNSPOKEN {
        for (name, text) in sources(place) {
            for (number, line) in code(&text) {
                let spoken = words.iter().find(|word| line.contains(*word));
                assert!(spoken.is_none(), "{name}:{number} says {spoken:?}: {law}");
            }
        }
    }
}

#[test]
fn the_wall_is_read_in_one_place() {
    for (name, text) in sources("server/src") {
        let reads = code(&text).find(|(_, line)| line.contains("SystemTime::now"));
        assert!(reads.is_none() || name == WALL, "{name} reads the wall: {reads:?}");
    }
}

#[test]
fn every_file_says_what_it_is() {
    for (name, text) in everything() {
        assert!(text.starts_with("//! "), "{name} does not open by saying what it is");
    }
}

#[test]
fn lines_fit() {
    for (name, text) in everything() {
        for (number, line) in text.lines().enumerate() {
            // Data inside a text may be as long as it is.
            let is_data = line.trim_start().starts_with(['"', 'r'])
                || line.contains("r#\"")
                || name.starts_with("tests/histories");
            assert!(
                line.chars().count() <= COLUMNS_MAX || is_data,
                "{name}:{} has {} columns",
                number + 1,
                line.chars().count()
            );
        }
    }
}
