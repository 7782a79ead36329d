//! Ending well: the first signal asks everything to finish, the second ends at once.

use std::process;

use tokio_util::sync::CancellationToken;

use crate::exit::Code;

/// Cancels `token` on SIGINT or SIGTERM; a second signal ends the process with 130.
///
/// # Panics
/// Outside a tokio runtime.
pub fn on_signal(token: CancellationToken) {
    tokio::spawn(async move {
        signal().await;
        token.cancel();
        signal().await;
        process::exit(i32::from(Code::Interrupted as u8));
    });
}

/// Waits for SIGINT or SIGTERM.
pub async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).expect("a handler for SIGTERM can be installed");
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    {
        let _ = tokio::signal::ctrl_c().await;
    }
}
