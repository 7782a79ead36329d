//! What is asked for, and whether this backend can do it.

use cappy_plugin_abi::{Failure, LoadRequest, ModelInfo};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) const ARCHITECTURE: &str = "echo";
pub(crate) const DEVICE: &str = "cpu";
pub(crate) const DTYPE: &str = "f32";

/// `config.json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Config {
    pub model_type: String,
    pub vocab_size: u32,
    /// 0: no limit.
    #[serde(default)]
    pub max_tokens: u32,
}

impl Config {
    /// `Unsupported` for another architecture, device or dtype; `BadModel` for what is no configuration.
    pub(crate) fn of(request: &LoadRequest) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct AnyModel {
            model_type: String,
        }
        let broken = |error: serde_json::Error| Failure::bad_model(format!("config.json: {error}"));
        let AnyModel { model_type } = serde_json::from_str(&request.config_json).map_err(broken)?;
        if model_type != ARCHITECTURE {
            return Err(Failure::unsupported(format!(
                "architecture `{model_type}`: this backend loads `{ARCHITECTURE}`"
            )));
        }
        if request.device != DEVICE {
            return Err(Failure::unsupported(format!(
                "device `{}`: this backend runs on `{DEVICE}`",
                request.device
            )));
        }
        if request.dtype != DTYPE && request.dtype != "auto" {
            return Err(Failure::unsupported(format!(
                "dtype `{}`: this backend computes in `{DTYPE}`",
                request.dtype
            )));
        }
        let config: Self = serde_json::from_str(&request.config_json).map_err(broken)?;
        if config.vocab_size < 3 {
            return Err(Failure::bad_model("config.json: vocab_size must be at least 3"));
        }
        Ok(config)
    }

    pub(crate) fn info(&self, labels: u32) -> ModelInfo {
        ModelInfo {
            architecture: ARCHITECTURE.into(),
            parameters: 1,
            weight_bytes: 4,
            dtype: DTYPE.into(),
            max_tokens: self.max_tokens,
            vocab_size: self.vocab_size,
            labels,
        }
    }
}

/// Options of a known shape; empty text means none.
pub(crate) fn options<T: DeserializeOwned>(request: &LoadRequest) -> Result<T, Failure> {
    let json = if request.options_json.is_empty() { "{}" } else { &request.options_json };
    serde_json::from_str(json).map_err(|error| Failure::invalid_argument(format!("options: {error}")))
}
