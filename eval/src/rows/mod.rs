//! The rows that every part of Cappy exchanges, and the files that hold them: one JSON object a line.
//!
//! The shapes are the reference implementation's, so that its released files load unchanged and ours feed its scripts.
//! Fields that Cappy does not know are carried through.

mod model;
mod reader;
mod source;
mod writer;

pub use model::{Candidate, GeneratedRow, Row, Sample, TrainingExample};
pub use reader::{BadLine, BadLinePolicy, JsonLines, LineSplitter, Loaded, Numbered, ReadError, load};
pub(crate) use reader::{explain, explain_chain};
pub use source::{Compression, open_source};
pub use writer::{JsonLinesWriter, JsonStyle, WriteError, write_json_line};
pub(crate) use writer::{persist, temporary_beside};
