//! Under construction.
use std::path::Path;
/// e
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// n
    #[error("not yet")]
    NotYet,
}
/// c
pub fn convert(_files: &[std::path::PathBuf], _to: &Path) -> Result<(), (usize, PickleError)> {
    Err((0, PickleError::NotYet))
}
