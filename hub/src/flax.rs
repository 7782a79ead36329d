//! Under construction.
use std::path::Path;
/// e
#[derive(Debug, thiserror::Error)]
pub enum FlaxError {
    /// n
    #[error("not yet")]
    NotYet,
}
/// c
pub fn convert(
    _files: &[std::path::PathBuf],
    _a: crate::config::Architecture,
    _to: &Path,
) -> Result<(), (usize, FlaxError)> {
    Err((0, FlaxError::NotYet))
}
