//! Artifacts of a test.

use std::io::Write as _;

use serde_json::Value;
use tempfile::TempDir;

use super::ArtifactRef;
use crate::{artifacts::ArtifactStore, store::NamedOutput};

pub(super) struct Files {
    store: ArtifactStore,
    _folder: TempDir,
}

impl Files {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(folder.path().to_str().unwrap()).unwrap();
        Self { store, _folder: folder }
    }

    /// Runs what blocks where it may.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ArtifactStore) -> T + Send + 'static,
    ) -> T {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.unwrap()
    }

    pub(super) async fn store(&self, content: &[u8]) -> ArtifactRef {
        let content = content.to_vec();
        self.run(move |store| {
            let mut writer = store.writer().unwrap();
            writer.write_all(&content).unwrap();
            let (id, size_bytes) = writer.finish().unwrap();
            ArtifactRef { id, size_bytes }
        })
        .await
    }

    pub(super) async fn lines(&self, rows: &[Value]) -> ArtifactRef {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        self.store(text.as_bytes()).await
    }

    pub(super) async fn text(&self, output: &NamedOutput) -> String {
        let bytes = self.store.read(&output.id, 0..output.size_bytes).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }
}
