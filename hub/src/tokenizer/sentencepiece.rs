use super::TokenizerError;
use serde_json::Value;
use std::path::Path;
pub(super) fn build_t5(_dir: &Path) -> Result<Value, TokenizerError> {
    Err(TokenizerError::invalid("vocab", "not yet"))
}
pub(super) fn build_xlm_roberta(_dir: &Path) -> Result<Value, TokenizerError> {
    Err(TokenizerError::invalid("vocab", "not yet"))
}
