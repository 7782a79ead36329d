//! Ctrl-C: the first one ends the command in an orderly way, the second at once.

use cappy_process::shutdown;
use tokio_util::sync::CancellationToken;

/// A token that the first signal cancels; the second ends the process with 130.
pub fn token() -> CancellationToken {
    let token = CancellationToken::new();
    shutdown::on_signal(token.clone());
    token
}
