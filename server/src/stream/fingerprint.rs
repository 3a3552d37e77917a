//! The fingerprint of the last record that was read: by it a stream is known again.
//!
//! A broker that loses its tail gives the lost sequences to other messages and says nothing, and a stream that was
//! deleted and made anew begins at 1 under the same name. A reader that remembers a number alone would then skip
//! what is new. So what is remembered is the record itself, and it is looked for before anything is read after it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Entry, Stream, StreamError};

/// What is remembered of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// When its stream was made, as the server tells it.
    pub created: String,
    /// Its sequence; 0 for the place before the first, of which there is nothing else to remember.
    pub sequence: u64,
    /// When the stream took it, ns since the Unix epoch.
    pub nanos: i64,
    /// Its `Nats-Msg-Id`.
    pub id: Option<String>,
    /// The checksum of its body.
    pub crc32c: u32,
}

impl Fingerprint {
    /// The beginning of a stream.
    pub fn beginning(created: &str) -> Self {
        Fingerprint { created: created.to_owned(), sequence: 0, nanos: 0, id: None, crc32c: 0 }
    }

    pub(super) fn of(created: &str, entry: &Entry) -> Self {
        Fingerprint {
            created: created.to_owned(),
            sequence: entry.sequence,
            nanos: entry.nanos,
            id: entry.id().map(str::to_owned),
            crc32c: crc32c::crc32c(&entry.body),
        }
    }

    /// Looks for the record in the stream as it is now; gives the stream's last sequence.
    pub async fn check(&self, stream: &Stream) -> Result<u64, StreamError> {
        let info = stream.info().await?;
        let lost = |what: String| StreamError::Changed { sequence: self.sequence, what };
        if info.created != self.created {
            let what = format!("the stream was made at {}, and the one read before at {}", info.created, self.created);
            return Err(lost(what));
        }
        let last = info.state.last_seq;
        if last < self.sequence {
            return Err(lost(format!("the stream ends at sequence {last}: its tail was lost")));
        }
        if self.sequence > 0 {
            let found = stream.get_from_leader(self.sequence).await?;
            let found = found.map(|entry| Fingerprint::of(&info.created, &entry));
            match found {
                Some(found) if found == *self => {}
                // What an erasure took out is not lost.
                _ if stream.has_left(self.sequence, self.nanos).await? => {}
                Some(_) => {
                    return Err(lost(
                        "the stream holds another record there: its tail was lost, and what came \
                                            later took its sequences"
                            .to_owned(),
                    ));
                }
                None => return Err(lost("the stream has no record there any more".to_owned())),
            }
        }
        Ok(last)
    }
}

/// Where the fingerprint is kept between two runs.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    last: Option<Fingerprint>,
    secret: [u8; 16],
}

impl Kept {
    /// What an earlier run left in the data directory.
    pub fn open(data: &Path) -> Result<Self, StreamError> {
        let path = data.join("stream.json");
        let failed = |error: String| StreamError::Kept { path: path.clone(), error };
        let last = match fs::read(&path) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error.to_string())),
        };
        let secret = secret(data).map_err(|error| failed(error.to_string()))?;
        Ok(Kept { path, last, secret })
    }

    /// The key of hashes, the same for as long as the data directory is there.
    pub fn secret(&self) -> [u8; 16] {
        self.secret
    }

    /// The last one kept.
    pub fn last(&self) -> Option<&Fingerprint> {
        self.last.as_ref()
    }

    /// Keeps a later one, durably: a crash leaves this one or the one before. Whoever reads again from the beginning
    /// does not overwrite what is known of the end.
    pub fn keep(&mut self, seen: &Fingerprint) -> Result<(), StreamError> {
        let is_known = |last: &Fingerprint| last.created == seen.created && last.sequence >= seen.sequence;
        if self.last.as_ref().is_some_and(is_known) {
            return Ok(());
        }
        self.write(seen).map_err(|error| StreamError::Kept { path: self.path.clone(), error: error.to_string() })?;
        self.last = Some(seen.clone());
        Ok(())
    }

    fn write(&self, seen: &Fingerprint) -> io::Result<()> {
        write(&self.path, &serde_json::to_vec(seen).expect("it has string keys"))
    }
}

/// The key of hashes that an earlier run left, or a new one.
fn secret(data: &Path) -> io::Result<[u8; 16]> {
    let path = data.join("secret");
    match fs::read(&path) {
        Ok(bytes) => {
            bytes.try_into().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "secret has not 16 bytes"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret = crate::log::fresh_id();
            write(&path, &secret).map(|()| secret)
        }
        Err(error) => Err(error),
    }
}

/// Has a file hold these bytes, durably: a crash leaves them or those before.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().expect("it is in a directory");
    fs::create_dir_all(dir)?;
    let next = path.with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_one_is_kept_and_no_earlier_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        let seen = |sequence| Fingerprint { sequence, ..Fingerprint::beginning("then") };
        let mut kept = Kept::open(&data).expect("nothing there");
        assert_eq!(kept.last(), None);
        assert_eq!(kept.secret(), Kept::open(&data).expect("readable").secret());
        for sequence in [7, 3] {
            kept.keep(&seen(sequence)).expect("kept");
            assert_eq!(Kept::open(&data).expect("readable").last(), Some(&seen(7)));
        }
        // Another stream's is another thing.
        let anew = Fingerprint { created: "now".into(), ..seen(1) };
        kept.keep(&anew).expect("kept");
        assert_eq!(Kept::open(&data).expect("readable").last(), Some(&anew));
        fs::write(data.join("stream.json"), "{").expect("written");
        assert!(matches!(Kept::open(&data), Err(StreamError::Kept { .. })));
    }
}
