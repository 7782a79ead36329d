//! Rows set aside in buckets on disk, by key; a bucket at a time is read back in order.

use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// A bucket is sorted in memory: the mixture may be this many times larger than that.
const BUCKETS: usize = 256;

/// One row set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Where the row comes in the order; its highest bits choose the bucket.
    pub(super) order: u64,
    /// What the row is: of records with the same key and order, the first by `rank` stays.
    pub(super) key: u128,
    /// Who goes first among equals: lower ranks, then records pushed earlier.
    pub(super) rank: u8,
    /// Which source it is from.
    pub(super) source: u32,
    /// By which a source's rows are drawn when it has a cap: the lowest stay.
    pub(super) draw: u64,
    /// What to write.
    pub(super) payload: Vec<u8>,
}

/// Nameless files that are gone when this is dropped.
pub(super) struct Spool {
    buckets: Vec<BufWriter<File>>,
}

impl Spool {
    /// A spool in the file system of `folder`.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        let bucket = |_| Ok(BufWriter::with_capacity(32 << 10, tempfile::tempfile_in(folder)?));
        Ok(Self { buckets: (0..BUCKETS).map(bucket).collect::<io::Result<_>>()? })
    }

    pub(super) fn push(&mut self, record: &Record) -> io::Result<()> {
        let bucket = &mut self.buckets[(record.order >> 56) as usize];
        let len = u32::try_from(record.payload.len()).map_err(|_| io::Error::other("a row above 4 GiB"))?;
        bucket.write_all(&record.order.to_le_bytes())?;
        bucket.write_all(&record.key.to_le_bytes())?;
        bucket.write_all(&[record.rank])?;
        bucket.write_all(&record.source.to_le_bytes())?;
        bucket.write_all(&record.draw.to_le_bytes())?;
        bucket.write_all(&len.to_le_bytes())?;
        bucket.write_all(&record.payload)
    }

    /// All records for which `stays`, bucket by bucket, each bucket sorted by order, key and rank.
    pub(super) fn drain(
        self,
        stays: impl Fn(&Record) -> bool,
        mut each: impl FnMut(Vec<Record>) -> io::Result<()>,
    ) -> io::Result<()> {
        for bucket in self.buckets {
            let mut file = bucket.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.seek(SeekFrom::Start(0))?;
            let mut reader = BufReader::with_capacity(1 << 20, file);
            let mut records = Vec::new();
            while let Some(record) = read(&mut reader)? {
                if stays(&record) {
                    records.push(record);
                }
            }
            // Stable: of equals, the one pushed first stays first.
            records.sort_by_key(|record| (record.order, record.key, record.rank));
            each(records)?;
        }
        Ok(())
    }
}

fn read(reader: &mut BufReader<File>) -> io::Result<Option<Record>> {
    let mut order = [0; 8];
    match reader.read_exact(&mut order) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let (mut key, mut rank, mut source) = ([0; 16], [0; 1], [0; 4]);
    let (mut draw, mut len) = ([0; 8], [0; 4]);
    for part in [&mut key[..], &mut rank, &mut source, &mut draw, &mut len] {
        reader.read_exact(part)?;
    }
    let mut payload = vec![0; u32::from_le_bytes(len) as usize];
    reader.read_exact(&mut payload)?;
    Ok(Some(Record {
        order: u64::from_le_bytes(order),
        key: u128::from_le_bytes(key),
        rank: rank[0],
        source: u32::from_le_bytes(source),
        draw: u64::from_le_bytes(draw),
        payload,
    }))
}

/// The lowest draws of a source with a cap: which of its rows stay.
pub(super) struct Cap {
    /// `None`: all of them.
    most: Option<u64>,
    lowest: BinaryHeap<u64>,
}

impl Cap {
    pub(super) fn new(most: Option<u64>) -> Self {
        Self { most, lowest: BinaryHeap::new() }
    }

    pub(super) fn note(&mut self, draw: u64) {
        let Some(most) = self.most else { return };
        if (self.lowest.len() as u64) < most {
            self.lowest.push(draw);
        } else if self.lowest.peek().is_some_and(|highest| draw < *highest) {
            self.lowest.pop();
            self.lowest.push(draw);
        }
    }

    /// Whether a row is among those that stay, once all were noted.
    pub(super) fn keeps(&self, draw: u64) -> bool {
        let Some(most) = self.most else { return true };
        (self.lowest.len() as u64) < most || self.lowest.peek().is_some_and(|highest| draw <= *highest)
    }
}
