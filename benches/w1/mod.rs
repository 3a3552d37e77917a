//! W1: the benchmark's workload, and its views computed by hand: fast, as the yardstick, and plainly, as its oracle.
#![allow(dead_code, missing_docs, unreachable_pub)] // each program that says `mod w1` uses its own part

pub mod brute;
pub mod clicks;
pub mod engine;
pub mod figures;
pub mod yardstick;
