use super::TokenizerError;
use serde_json::Value;
use std::path::Path;
pub(super) fn build(_dir: &Path) -> Result<Value, TokenizerError> {
    Err(TokenizerError::invalid("vocab", "not yet"))
}
