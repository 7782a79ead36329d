//! Under construction.
use crate::error::ErrorKind;
/// e
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Only what is cached may be used, and the model is not, or not whole.
    #[error(
        "{missing} is not in the cache {cache}, and HF_HUB_OFFLINE forbids downloading it; unset it, or download the model on a machine with network and copy the cache"
    )]
    Offline {
        /// What is not there.
        missing: String,
        /// Where it was looked for.
        cache: String,
    },
}
impl DownloadError {
    /// k
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
}
