//! Examples set aside on disk until their task is complete: a benchmark's text does not have to fit the memory.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One example, before prefixes and shuffling.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Example {
    pub(super) input: String,
    pub(super) targets: Vec<String>,
    /// The keys of its `target_scores`; empty if it has none.
    pub(super) choices: Vec<String>,
}

/// Where an example lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    at: u64,
    len: u32,
}

/// A nameless file that is gone when this is dropped.
pub(super) struct Spool {
    file: BufWriter<File>,
    len: u64,
    record: Vec<u8>,
    reading: bool,
    failure: Option<io::Error>,
}

impl Spool {
    /// A spool in the file system of `folder`.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, tempfile::tempfile_in(folder)?);
        Ok(Self { file, len: 0, record: Vec::new(), reading: false, failure: None })
    }

    /// Sets an example aside; `None` if that failed, and [`Self::failure`] says why.
    pub(super) fn push(&mut self, example: &Example) -> Option<Place> {
        self.append(example).map_err(|error| self.failure = Some(error)).ok()
    }

    /// Why the last [`Self::push`] failed.
    pub(super) fn failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    fn append(&mut self, example: &Example) -> io::Result<Place> {
        if self.reading {
            self.file.seek(SeekFrom::End(0))?;
            self.reading = false;
        }
        self.record.clear();
        serde_json::to_writer(&mut self.record, example)?;
        self.file.write_all(&self.record)?;
        let len = u32::try_from(self.record.len()).map_err(|_| io::Error::other("an example above 4 GiB"))?;
        let place = Place { at: self.len, len };
        self.len += u64::from(len);
        Ok(place)
    }

    pub(super) fn get(&mut self, place: Place) -> io::Result<Example> {
        // Seeking writes out what is buffered.
        self.reading = true;
        self.file.seek(SeekFrom::Start(place.at))?;
        self.record.resize(place.len as usize, 0);
        self.file.get_mut().read_exact(&mut self.record)?;
        Ok(serde_json::from_slice(&self.record)?)
    }
}
