//! What every backend needs to know of the models that it loads, without an engine: configurations, checkpoints on
//! disk, and how a decoding chooses tokens.
