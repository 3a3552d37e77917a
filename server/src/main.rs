//! `thalweg`: one binary that takes events, keeps true what the definitions say, answers and triggers.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match server::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("thalweg: {sentence}");
            ExitCode::FAILURE
        }
    }
}
