//! Lines of JSON to events, on one thread: what a replay and every door do before anything else.
//!
//! `cargo bench --bench decode [-- SESSIONS]`; prints millions of lines and of bytes a second.

mod w1;

use std::sync::Arc;
use std::time::Instant;

use dataflows::event::Decoder;
use dataflows::intake::prepare;
use mimalloc::MiMalloc;
use w1::clicks::{Arrival, clicks, line};
use w1::engine::plan;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    let sessions = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let sessions = sessions.map_or(30_000, |arg| arg.parse().expect("a number of sessions"));
    let mut text = String::new();
    clicks(sessions, 7, Arrival::Disordered).iter().for_each(|click| line(click, &mut text));
    let plan = plan();
    for _ in 0..5 {
        let mut decoder = Decoder::new(Arc::clone(&plan.vocabulary));
        let started = Instant::now();
        let (mut lines, mut batch) = (0u32, Vec::new());
        for line in text.lines() {
            batch.push(prepare(line, 0, &mut decoder, &[1; 16]).expect("a click is an event"));
            lines += 1;
            if batch.len() == 1_000 {
                batch.clear();
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{lines} lines: {:.2} M lines/s, {:.0} MB/s",
            f64::from(lines) / seconds / 1e6,
            text.len() as f64 / seconds / 1e6
        );
    }
}
