//! What every binary of Cappy does the same way.
//!
//! A program parses its settings with [`settings::parse`] (file < environment < flag, all mistakes at once), starts
//! [`logging`], runs until its work ends or [`shutdown::on_signal`] cancels the token that it handed to everything
//! it started, and leaves with an [`exit::Code`].

pub mod directories;
pub mod exit;
pub mod logging;
pub mod settings;
pub mod shutdown;

/// `0.1.0 (commit 0123456789ab)`, for `--version`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("CAPPY_COMMIT"), ")");
