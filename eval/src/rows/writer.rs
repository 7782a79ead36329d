//! Writing rows, whole files or nothing.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::NamedTempFile;

use super::source::Compression;
use crate::python_json;

const BUFFER_BYTES: usize = 256 * 1024;
const ZSTD_LEVEL: i32 = 3;

/// How rows are spelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JsonStyle {
    /// As Python's `json.dumps` writes them: ASCII only, a blank after `,` and `:`. The published files' style.
    #[default]
    Python,
    /// UTF-8 without blanks: smaller.
    Compact,
}

/// Why rows could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file system refused.
    #[error("failed to write {}", path.display())]
    Io {
        /// The file that was being written.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A row that JSON cannot hold.
    #[error("failed to write a row to {}", path.display())]
    Row {
        /// The file that was being written.
        path: PathBuf,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
}

/// Appends one row and a line end.
///
/// # Errors
/// If the row does not serialise or writing fails.
pub fn write_json_line<T: Serialize + ?Sized>(
    mut writer: impl Write,
    row: &T,
    style: JsonStyle,
) -> serde_json::Result<()> {
    match style {
        JsonStyle::Python => python_json::to_writer(&mut writer, row)?,
        JsonStyle::Compact => serde_json::to_writer(&mut writer, row)?,
    }
    writer.write_all(b"\n").map_err(serde_json::Error::io)
}

/// Writes a file of rows under a temporary name and gives it its own when [`finish`](Self::finish)ed, so that a reader
/// never meets half a file. A writer dropped before that leaves nothing behind.
pub struct JsonLinesWriter {
    path: PathBuf,
    style: JsonStyle,
    sink: Sink,
    rows: u64,
}

enum Sink {
    Stdout(BufWriter<io::Stdout>),
    Plain(BufWriter<NamedTempFile>),
    Gzip(Box<flate2::write::GzEncoder<BufWriter<NamedTempFile>>>),
    Zstd(zstd::stream::write::Encoder<'static, BufWriter<NamedTempFile>>),
}

impl JsonLinesWriter {
    /// Starts a file; `.gz` and `.zst` names are packed, `-` is standard output. Missing folders are made.
    ///
    /// # Errors
    /// If the folder cannot be made or written to.
    pub fn create(path: impl Into<PathBuf>, style: JsonStyle) -> Result<Self, WriteError> {
        let path = path.into();
        let sink = Sink::open(&path).map_err(|source| WriteError::Io { path: path.clone(), source })?;
        Ok(Self { path, style, sink, rows: 0 })
    }

    /// Appends one row.
    ///
    /// # Errors
    /// If the row does not serialise or the disk refuses.
    pub fn write<T: Serialize + ?Sized>(&mut self, row: &T) -> Result<(), WriteError> {
        match write_json_line(self.sink.as_write(), row, self.style) {
            Ok(()) => {
                self.rows += 1;
                Ok(())
            }
            Err(error) if error.is_io() => {
                Err(WriteError::Io { path: self.path.clone(), source: error.into() })
            }
            Err(source) => Err(WriteError::Row { path: self.path.clone(), source }),
        }
    }

    /// Rows written so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Flushes, syncs and gives the file its name. Returns the number of rows.
    ///
    /// # Errors
    /// If any of that fails; the old file, if there was one, is then still there.
    pub fn finish(self) -> Result<u64, WriteError> {
        let Self { path, sink, rows, .. } = self;
        match sink.finish(&path) {
            Ok(()) => Ok(rows),
            Err(source) => Err(WriteError::Io { path, source }),
        }
    }
}

impl Sink {
    fn open(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::Stdout(BufWriter::with_capacity(BUFFER_BYTES, io::stdout())));
        }
        let file = BufWriter::with_capacity(BUFFER_BYTES, temporary_beside(path)?);
        Ok(match Compression::of(path) {
            Compression::None => Self::Plain(file),
            Compression::Gzip => {
                Self::Gzip(Box::new(flate2::write::GzEncoder::new(file, flate2::Compression::default())))
            }
            Compression::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(file, ZSTD_LEVEL)?),
        })
    }

    fn as_write(&mut self) -> &mut dyn Write {
        match self {
            Self::Stdout(writer) => writer,
            Self::Plain(writer) => writer,
            Self::Gzip(writer) => writer,
            Self::Zstd(writer) => writer,
        }
    }

    fn finish(self, path: &Path) -> io::Result<()> {
        let file = match self {
            Self::Stdout(mut writer) => return writer.flush(),
            Self::Plain(writer) => writer,
            Self::Gzip(writer) => writer.finish()?,
            Self::Zstd(writer) => writer.finish()?,
        };
        persist(file.into_inner().map_err(|error| error.into_error())?, path)
    }
}

/// A temporary file in the folder of `path`, which is made if it is missing.
pub(crate) fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private by default; the result is an ordinary file, subject to the umask.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// Syncs a temporary file and gives it its name.
pub(crate) fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    let _: File = file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
