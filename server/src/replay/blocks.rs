//! The files of a replay as blocks of lines, read in turns and decoded on several threads.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex};

use dataflows::event::{Decoder, Event, Reason, Rejection};
use dataflows::identity::Erasure;
use dataflows::intake::prepare;
use dataflows::place::place;
use dataflows::protocol::{Record, Step};
use dataflows::strike;
use dataflows::time::Millis;
use ecow::EcoString;

use super::Replay;

/// Bytes of lines decoded together.
const BLOCK_BYTES: usize = 1 << 18;
/// Blocks that a decoder may have before or after it.
const BLOCKS_WAITING: usize = 4;
/// What a line that erases somebody has in it.
const ERASES: &str = "\"erase\"";
/// Keys the hashes of ids; a replay keeps nothing, so any will do.
pub(super) const SECRET: [u8; 16] = *b"replay of a file";

/// What the lines of one block are.
#[derive(Default)]
pub(super) struct Block {
    /// Its number among all blocks.
    pub(super) number: u64,
    /// Records, in chunks as steps have them.
    pub(super) records: Vec<Vec<Record>>,
    /// The place of the last line.
    pub(super) position: u64,
    /// Lines that are events, or ought to be.
    pub(super) events: u64,
    /// Lines that are neither events nor anything else.
    pub(super) invalid: u64,
    /// Lines that erase somebody, in order.
    pub(super) erasures: Vec<Erasure>,
}

/// Starts the threads that read and decode. They take turns at the files, each with one buffer of its own that stays in
/// its cache, so the next block is always the next thread's.
pub(super) fn decoders(replay: &Replay, share: (usize, usize)) -> Vec<Receiver<Result<Block, String>>> {
    let count = replay.workers.max(2);
    let source = Arc::new((Mutex::new(Source::new(replay.files.clone(), share)), Condvar::new()));
    let start = |number: usize| {
        let (decoded, blocks) = sync_channel(BLOCKS_WAITING);
        let (source, mut decoder) = (Arc::clone(&source), Decoder::new(Arc::clone(&replay.plan.vocabulary)));
        let work = move || {
            let mut buffer = Vec::with_capacity(BLOCK_BYTES + 4_096);
            for turn in (number..).step_by(count) {
                let (reading, changed) = &*source;
                let mut reading = reading.lock().expect("nobody panics while holding it");
                while reading.turn != turn {
                    reading = changed.wait(reading).expect("nobody panics while holding it");
                }
                let read = reading.block(&mut buffer);
                reading.turn += 1;
                drop(reading);
                changed.notify_all();
                let block = match read {
                    Ok((number, Some(process))) => {
                        let (text, is_own) = (text(&buffer), process == share.0);
                        Ok(Block::new(number, (process, is_own), lines(&text), &mut decoder))
                    }
                    // How many there were is the last thing to say.
                    Ok((number, None)) => Ok(Block { number, ..Block::default() }),
                    Err(error) => Err(error),
                };
                let is_last = block.as_ref().is_ok_and(|block| block.records.is_empty() && block.position == 0);
                if decoded.send(block).is_err() || is_last {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("decoder".into()).spawn(work).expect("the system gives a thread");
        blocks
    };
    (0..count).map(start).collect()
}

/// A block's text. A line that is not UTF-8 is that line's fault: what cannot be read of it makes it no JSON.
fn text(buffer: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(buffer).map_or_else(|_| String::from_utf8_lossy(buffer), Cow::Borrowed)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().is_empty())
}

/// By id, where somebody who had it was erased, and up to when later calls are struck too.
pub(super) type Gone = HashMap<EcoString, Vec<(u64, Millis)>>;

/// What the line of a place says without those who were erased, if it names any.
fn without(line: &str, position: u64, decoder: &mut Decoder, gone: &Gone) -> Option<Event> {
    // Most name nobody.
    strike::call(line, &|id| gone.contains_key(id)).ok().flatten()?;
    let Ok(Record::Event(whole)) = prepare(line, position, decoder, &SECRET) else { return None };
    let Event { timestamp, message_id, .. } = whole.event;
    let is_meant = |(before, until): &(u64, Millis)| position < *before || timestamp <= *until;
    let struck = strike::call(line, &|id| gone.get(id).is_some_and(|of| of.iter().any(is_meant))).ok().flatten()?;
    let Ok(Record::Event(rest)) = prepare(&struck, position, decoder, &SECRET) else { return None };
    // One that has no message id is known by what the line was.
    Some(Event { message_id, ..rest.event })
}

/// Reads the files again, and gives what this process's lines that name somebody who was erased say without them.
pub(super) fn reread(
    replay: &Replay,
    share: (usize, usize),
    gone: &Gone,
    mut told: impl FnMut(Event),
) -> Result<(), String> {
    let (mut source, mut buffer) = (Source::new(replay.files.clone(), share), Vec::new());
    let mut decoder = Decoder::new(Arc::clone(&replay.plan.vocabulary));
    while let (number, Some(process)) = source.block(&mut buffer)? {
        for (index, line) in lines(&text(&buffer)).enumerate().filter(|_| process == share.0) {
            without(line, place(number + 1, process, index), &mut decoder, gone).into_iter().for_each(&mut told);
        }
    }
    Ok(())
}

impl Block {
    /// Takes the lines of a block apart. Of one that is another process's, only who is erased counts here.
    fn new<'l>(
        number: u64,
        (process, is_own): (usize, bool),
        lines: impl Iterator<Item = &'l str>,
        decoder: &mut Decoder,
    ) -> Block {
        // Places are counted from one: nothing stands before the first line.
        let position = place(number + 1, process, 0);
        let (mut block, mut step) = (Block { number, position, ..Block::default() }, Step::first());
        for (index, line) in lines.enumerate() {
            block.position = place(number + 1, process, index);
            // Others know one that erases by the word alone.
            let erases = || line.contains(ERASES);
            if !is_own && !erases() {
                continue;
            }
            let record = match prepare(line, block.position, decoder, &SECRET) {
                Ok(Record::Erase(erasure)) if erases() => {
                    block.erasures.push(*erasure);
                    continue;
                }
                _ if !is_own => continue,
                Ok(Record::Erase(_)) => {
                    Err(Rejection::new(Reason::Invalid, "`erase` is to be written without escapes"))
                }
                record => record,
            };
            block.events += u64::from(matches!(record, Ok(Record::Event(_)) | Err(_)));
            match record {
                Ok(record) => step.record(record),
                Err(_) => block.invalid += 1,
            }
        }
        block.records = step.records;
        block
    }
}

/// The files, read in blocks of whole lines.
struct Source {
    files: std::vec::IntoIter<PathBuf>,
    open: Option<(PathBuf, BufReader<Box<dyn Read + Send>>)>,
    /// Whose turn it is.
    turn: usize,
    /// How many blocks were read.
    number: u64,
    /// This process's number, and how many share the blocks in turns.
    share: (usize, usize),
}

impl Source {
    fn new(files: Vec<PathBuf>, share: (usize, usize)) -> Source {
        Source { files: files.into_iter(), open: None, turn: 0, number: 0, share }
    }

    /// Reads the next block that is this process's, or that erases somebody; gives its number, and whose it is. None at
    /// the end of the last file, with how many there were.
    fn block(&mut self, buffer: &mut Vec<u8>) -> Result<(u64, Option<usize>), String> {
        loop {
            if !self.any_block(buffer)? {
                return Ok((self.number, None));
            }
            self.number += 1;
            let (process, processes) = self.share;
            let owner = (self.number - 1) as usize % processes;
            if owner == process || memchr::memmem::find(buffer, ERASES.as_bytes()).is_some() {
                return Ok((self.number - 1, Some(owner)));
            }
        }
    }

    fn any_block(&mut self, buffer: &mut Vec<u8>) -> Result<bool, String> {
        buffer.clear();
        loop {
            let (path, reader) = match &mut self.open {
                Some(open) => open,
                None => {
                    let Some(path) = self.files.next() else { return Ok(false) };
                    let file = open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                    self.open.insert((path, BufReader::new(file)))
                }
            };
            let read = reader.take(BLOCK_BYTES as u64).read_to_end(buffer);
            let read = read.and_then(|_| reader.read_until(b'\n', buffer));
            read.map_err(|error| format!("{}: {error}", path.display()))?;
            if !buffer.is_empty() {
                return Ok(true);
            }
            self.open = None;
        }
    }
}

fn open(path: &Path) -> std::io::Result<Box<dyn Read + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = File::open(path)?;
    Ok(match path.extension().and_then(|extension| extension.to_str()) {
        Some("zst") => Box::new(zstd::Decoder::new(file)?),
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(file)),
        _ => Box::new(file),
    })
}
