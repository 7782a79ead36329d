//! Where the rows of files start: an input that is cut into many shards is read through once, not once a shard.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{ExecutionError, reader::Lines};

/// Bytes from one mark to the next: what is read to find a row is little, and marks are few thousandths of a file.
const STRIDE_BYTES: u64 = 1 << 17;
/// Marks of all files together, each of 16 bytes.
const MOST_MARKS: usize = 1 << 20;

/// A row and the byte where it starts, both from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark {
    row: u64,
    offset: u64,
}

/// Where to read on for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// From this byte on, where row `row` of the file starts: the one that was looked for, or one shortly before it.
    Start { row: u64, offset: u64 },
    /// In the next file: this one has `rows` rows.
    Fewer { rows: u64 },
}

/// Marks in files that do not change, as artifacts do not; kept in memory, of the files that were used last.
#[derive(Debug)]
pub struct RowIndex {
    known: Mutex<Known>,
    stride_bytes: u64,
    most_marks: usize,
}

impl Default for RowIndex {
    fn default() -> Self {
        Self::new(STRIDE_BYTES, MOST_MARKS)
    }
}

impl RowIndex {
    fn new(stride_bytes: u64, most_marks: usize) -> Self {
        Self { known: Mutex::default(), stride_bytes, most_marks }
    }

    /// Where to read on for row `row` of a file, whose first is row `before` of the input. Reads the file as far as
    /// nobody has yet; whoever needs the same file meanwhile waits for that.
    ///
    /// # Errors
    /// An unreadable file, or a row before the wanted one that is too long.
    pub(super) fn find(&self, path: &Path, row: u64, before: u64) -> Result<Found, ExecutionError> {
        let marks = self.known().of(path);
        let (found, count) = {
            let mut marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
            let found = marks.find(path, row, before, self.stride_bytes)?;
            (found, marks.marks.len())
        };
        self.known().weigh(path, count, self.most_marks);
        Ok(found)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Known {
    files: HashMap<PathBuf, Entry>,
    /// Marks of all, and one more a file, so that small ones do not pile up.
    weight: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    marks: Arc<Mutex<FileMarks>>,
    weight: usize,
    used: u64,
}

impl Known {
    fn of(&mut self, path: &Path) -> Arc<Mutex<FileMarks>> {
        self.clock += 1;
        let entry = self.files.entry(path.to_owned()).or_insert_with(|| {
            self.weight += 1;
            Entry { marks: Arc::default(), weight: 1, used: 0 }
        });
        entry.used = self.clock;
        Arc::clone(&entry.marks)
    }

    /// Notes how many marks a file has now, and forgets the files used longest ago until the rest fits; this one stays.
    fn weigh(&mut self, path: &Path, marks: usize, most: usize) {
        // Somebody else may have made it be forgotten.
        let Some(entry) = self.files.get_mut(path) else { return };
        self.weight = self.weight - entry.weight + marks + 1;
        entry.weight = marks + 1;
        if self.weight <= most {
            return;
        }
        let others = self.files.iter().filter(|(other, _)| other.as_path() != path);
        let mut others: Vec<(u64, PathBuf)> =
            others.map(|(path, entry)| (entry.used, path.clone())).collect();
        others.sort();
        for (_, path) in others {
            if self.weight <= most {
                break;
            }
            self.weight -= self.files.remove(&path).map_or(0, |entry| entry.weight);
        }
    }
}

/// What is known of one file.
#[derive(Debug, Default)]
struct FileMarks {
    /// Of the whole file. Another size is another file, in a place that was cleaned up by hand.
    size: u64,
    /// Ascending.
    marks: Vec<Mark>,
    /// So far it was read: rows, and the byte after the last.
    read: Mark,
    /// That is all of it.
    ended: bool,
}

impl FileMarks {
    fn find(&mut self, path: &Path, row: u64, before: u64, stride: u64) -> Result<Found, ExecutionError> {
        let metadata = fs::metadata(path).map_err(|error| ExecutionError::disk("read an input", &error))?;
        if metadata.len() != self.size {
            *self = Self { size: metadata.len(), ..Self::default() };
        }
        if self.read.row < row && !self.ended {
            self.read_to(path, row, before, stride)?;
        }
        if self.read.row < row {
            return Ok(Found::Fewer { rows: self.read.row });
        }
        let place = self.marks.partition_point(|mark| mark.row <= row);
        let nearest = match place.checked_sub(1) {
            _ if self.read.row == row => self.read,
            Some(at) => self.marks[at],
            None => Mark::default(),
        };
        Ok(Found::Start { row: nearest.row, offset: nearest.offset })
    }

    /// Reads on to row `row`, which may be one after the last.
    fn read_to(&mut self, path: &Path, row: u64, before: u64, stride: u64) -> Result<(), ExecutionError> {
        let mut lines = Lines::open(path, self.read.offset)?;
        let mut line = Vec::new();
        while self.read.row < row {
            if lines.next(before + self.read.row, &mut line)?.is_none() {
                self.ended = true;
                break;
            }
            self.read = Mark { row: self.read.row + 1, offset: lines.offset() };
            let last = self.marks.last().map_or(0, |mark| mark.offset);
            if self.read.offset - last >= stride {
                self.marks.push(self.read);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::RowReader, *};

    /// What stands in a line; blank lines are no rows.
    fn line() -> impl Strategy<Value = String> {
        prop_oneof![4 => "[a-z]{1,12}", 1 => "[a-z]{60,200}", 1 => Just(String::new()), 1 => "[ \t\r]{1,3}"]
    }

    /// Files of such lines, with and without a newline at the end, some empty.
    fn inputs() -> impl Strategy<Value = Vec<String>> {
        let file = (prop::collection::vec(line(), 0..40), any::<bool>())
            .prop_map(|(lines, ended)| lines.join("\n") + if ended { "\n" } else { "" });
        prop::collection::vec(file, 0..5)
    }

    fn write(dir: &Path, inputs: &[String]) -> Vec<PathBuf> {
        let write = |(i, text): (usize, &String)| {
            let path = dir.join(i.to_string());
            fs::write(&path, text).unwrap();
            path
        };
        inputs.iter().enumerate().map(write).collect()
    }

    type Line = (u64, super::super::Place, Vec<u8>);

    fn rest(mut reader: RowReader) -> Vec<Line> {
        std::iter::from_fn(|| reader.next_line().unwrap()).collect()
    }

    proptest! {
        /// Whatever was looked for before, and however little is remembered.
        #[test]
        fn rows_are_found_as_plain_reading_finds_them(
            inputs in inputs(),
            starts in prop::collection::vec(0_u64..120, 1..12),
            stride in 1_u64..300,
            most in 1_usize..40,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let files = write(dir.path(), &inputs);
            let all = rest(RowReader::new(files.clone()));
            let index = RowIndex::new(stride, most);
            for start in starts {
                match RowReader::from_row(files.clone(), start, &index) {
                    Ok(reader) => {
                        prop_assert!(start <= all.len() as u64);
                        prop_assert_eq!(&rest(reader)[..], &all[start as usize..]);
                    }
                    Err(error) => {
                        prop_assert!(start > all.len() as u64);
                        let told = format!("has {} rows, the shard goes to row {start}", all.len());
                        prop_assert!(error.message.contains(&told), "{}", error.message);
                    }
                }
                let known = index.known();
                let weights = known.files.values().map(|entry| entry.weight);
                prop_assert_eq!(known.weight, weights.sum::<usize>());
                prop_assert!(known.weight <= most || known.files.len() == 1);
            }
        }
    }

    #[test]
    fn a_file_is_read_once_and_only_as_far_as_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let text: String = (0..1000).map(|row| format!("{row:>9}\n")).collect();
        let files = write(dir.path(), &[text]);
        let index = RowIndex::new(100, MOST_MARKS);
        let read = |row| {
            let found = index.find(&files[0], row, 0).unwrap();
            let marks = index.known().of(&files[0]);
            let marks = marks.lock().unwrap();
            (found, marks.read.row, marks.marks.len())
        };
        assert_eq!(read(500), (Found::Start { row: 500, offset: 5000 }, 500, 50));
        assert_eq!(read(123), (Found::Start { row: 120, offset: 1200 }, 500, 50));
        assert_eq!(read(1000), (Found::Start { row: 1000, offset: 10_000 }, 1000, 100));
        assert_eq!(read(1001), (Found::Fewer { rows: 1000 }, 1000, 100));

        // Another file in its place.
        fs::write(&files[0], "0\n1\n").unwrap();
        assert_eq!(read(3), (Found::Fewer { rows: 2 }, 2, 0));
    }
}
