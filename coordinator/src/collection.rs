//! Removes artifacts that no job holds.
//!
//! The database comes first: an artifact's row goes in a transaction that finds that nobody holds it, its file after.
//! A crash between the two leaves a file without a row, which the next start removes. Meanwhile nothing may be made
//! known ([`Context::record_artifact`]): a file that is being removed is not one that an upload could rely on.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{context::Context, store::StoreError};

/// How often it is looked for artifacts whose grace has passed.
const INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Artifacts removed in one go; uploads wait that long.
const BATCH: u32 = 64;

/// Looks at the start and from time to time.
pub(crate) async fn run(context: Context, shutdown: CancellationToken) {
    sweep_orphans(&context).await;
    loop {
        if let Err(error) = collect(&context).await {
            tracing::error!(error = &error as &dyn std::error::Error, "failed to remove artifacts");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// Removes every artifact that no job holds and that nobody is about to use. Returns how many.
pub(crate) async fn collect(context: &Context) -> Result<u64, StoreError> {
    let mut removed = 0;
    loop {
        let _alone = context.artifacts.removing().await;
        let garbage = context.store.take_garbage(context.config.artifact_grace, BATCH).await?;
        for id in &garbage {
            if let Err(error) = context.artifacts.remove(id).await {
                // Without a row it is an orphan: the next start tries again.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    artifact = id,
                    "cannot remove a file"
                );
            }
        }
        removed += garbage.len() as u64;
        if garbage.len() < BATCH as usize {
            break;
        }
    }
    if removed > 0 {
        tracing::info!(artifacts = removed, "removed what no job holds");
    }
    Ok(removed)
}

/// Removes files that the store does not know and that are older than any upload that could still make them known.
async fn sweep_orphans(context: &Context) {
    let _alone = context.artifacts.removing().await;
    let files = match context.artifacts.older_than(context.config.artifact_grace).await {
        Ok(files) => files,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot list the artifacts");
            return;
        }
    };
    for id in files {
        match context.store.artifact(&id).await {
            Ok(None) => match context.artifacts.remove(&id).await {
                Ok(()) => tracing::info!(artifact = id, "removed a file that was left behind"),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        artifact = id,
                        "cannot remove a file"
                    );
                }
            },
            Ok(Some(_)) => {}
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot look an artifact up");
                return;
            }
        }
    }
}
