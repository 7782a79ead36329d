//! From a repository of the hub to a snapshot in the cache: [`protocol`] speaks HTTP, [`transfer`] brings one file to
//! disk (resumed, verified), and this file decides which files a model needs, so that nothing else is downloaded.

mod protocol;
mod transfer;

use std::collections::HashSet;

use crate::cache::{RepoCache, Snapshot};
use crate::check::CheckError;
use crate::config::{CONFIG_FILE, read_config};
use crate::error::{ErrorKind, Problem};
use crate::name::{Role, short_names, similar_short_names};
use crate::progress::Progress;
use crate::settings::HubSettings;
use crate::tokenizer::{SETTINGS_FILES, TokenizerSource};
use crate::weights::{WeightFormat, shards_of_index};

use protocol::{Listing, Protocol};

/// The hub did not give what was asked for.
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
    /// There is no such repository, or it is private.
    #[error(
        "{endpoint} has no repository `{repo}` that you may see; check the name{hint}, or set HF_TOKEN if it is private"
    )]
    NoRepository {
        /// Its id.
        repo: String,
        /// Whom we asked.
        endpoint: String,
        /// Short names that are close.
        hint: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("`{repo}` has no revision `{revision}`")]
    NoRevision {
        /// Its id.
        repo: String,
        /// As asked for.
        revision: String,
    },
    /// The repository wants its terms accepted.
    #[error(
        "`{repo}` is gated: accept its terms at {endpoint}/{repo}, then set HF_TOKEN to a token of your account (or run `hf auth login`)"
    )]
    Gated {
        /// Its id.
        repo: String,
        /// Whom we asked.
        endpoint: String,
    },
    /// The token is not accepted.
    #[error("{endpoint} refuses the token: set HF_TOKEN to a valid one that may read `{repo}`, or unset it")]
    Token {
        /// Its id.
        repo: String,
        /// Whom we asked.
        endpoint: String,
    },
    /// No answer, or a failing one, after several attempts.
    #[error(
        "{endpoint} cannot be reached ({reason}); if this machine has no network, copy the model into the cache and set HF_HUB_OFFLINE=1"
    )]
    Unreachable {
        /// Whom we asked.
        endpoint: String,
        /// The last failure.
        reason: String,
    },
    /// The transfer of a file broke again and again.
    #[error("`{file}` could not be downloaded ({reason}); what has arrived is kept, try again")]
    Interrupted {
        /// Which.
        file: String,
        /// The last failure.
        reason: String,
    },
    /// The content is not what the hub announced.
    #[error("`{file}` arrived damaged: its {what} is {found}, the hub announced {announced}")]
    Damaged {
        /// Which.
        file: String,
        /// Size or SHA-256.
        what: &'static str,
        /// What came.
        found: String,
        /// What should have come.
        announced: String,
    },
    /// An answer that the protocol does not know.
    #[error("{endpoint} gave an answer that is not understood: {reason}")]
    Protocol {
        /// Whom we asked.
        endpoint: String,
        /// What was wrong.
        reason: String,
    },
    /// This machine's disk.
    #[error("`{file}` cannot be written to the cache: {reason}")]
    Disk {
        /// Which.
        file: String,
        /// What the system said.
        reason: std::io::Error,
    },
}

impl DownloadError {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::NoRepository { .. } | Self::NoRevision { .. } => ErrorKind::NotFound,
            Self::Gated { .. } | Self::Token { .. } => ErrorKind::Denied,
            Self::Disk { .. } => ErrorKind::Machine,
            Self::Offline { .. }
            | Self::Unreachable { .. }
            | Self::Interrupted { .. }
            | Self::Damaged { .. }
            | Self::Protocol { .. } => ErrorKind::Unavailable,
        }
    }

    fn no_repository(repo: &str, endpoint: &str) -> Self {
        let near = similar_short_names(repo);
        let hint = match near.as_slice() {
            [] if repo.contains('/') => String::new(),
            [] => format!(" (short names: {})", short_names()),
            near => format!(" (did you mean `{}`?)", near.join("` or `")),
        };
        Self::NoRepository { repo: repo.to_owned(), endpoint: endpoint.to_owned(), hint }
    }
}

/// Downloads what a model in this role needs; the snapshot is whole when this returns.
pub(crate) fn download(
    settings: &HubSettings,
    repo: &str,
    revision: &str,
    role: Option<Role>,
    progress: &dyn Progress,
) -> Result<Snapshot, Problem> {
    let protocol = Protocol::new(settings, repo, progress);
    let listing = protocol.list(revision)?;
    let cache = RepoCache::new(&settings.cache_dir, repo);
    let commit = listing.commit().to_owned();
    let snapshot = Snapshot { dir: cache.snapshot_dir(&commit), commit };
    let task = Task { protocol: &protocol, cache: &cache, snapshot: &snapshot, listing: &listing, progress };
    task.model(role)?;
    cache
        .set_ref(revision, &snapshot.commit)
        .map_err(|reason| DownloadError::Disk { file: format!("refs/{revision}"), reason })?;
    Ok(snapshot)
}

struct Task<'a> {
    protocol: &'a Protocol<'a>,
    cache: &'a RepoCache,
    snapshot: &'a Snapshot,
    listing: &'a Listing,
    progress: &'a dyn Progress,
}

impl Task<'_> {
    /// Small files first: what they say may end it before gigabytes are moved.
    fn model(&self, role: Option<Role>) -> Result<(), Problem> {
        if !self.has(CONFIG_FILE)? {
            return Err(absent(
                CONFIG_FILE,
                "the repository has none: it does not hold a transformers model",
            ));
        }
        self.fetch(CONFIG_FILE)?;
        let config = read_config(&self.snapshot.dir)?;
        role.map_or(Ok(()), |role| config.check_role(role))?;

        let mut present = HashSet::new();
        for source in
            [Some(TokenizerSource::Ready), TokenizerSource::own(config.architecture)].into_iter().flatten()
        {
            for file in source.vocabulary_files() {
                if self.has(file)? {
                    present.insert(*file);
                }
            }
        }
        let tokenizer = TokenizerSource::find(config.architecture, |file| present.contains(file))?;
        for file in tokenizer.vocabulary_files() {
            self.fetch(file)?;
        }
        for file in SETTINGS_FILES {
            if self.has(file)? {
                self.fetch(file)?;
            }
        }
        self.weights()
    }

    fn weights(&self) -> Result<(), Problem> {
        for format in WeightFormat::ALL {
            if self.has(format.single_file())? {
                return Ok(self.fetch(format.single_file())?);
            }
            let index = format.index_file();
            if self.has(index)? {
                self.fetch(index)?;
                let json = std::fs::read(self.snapshot.dir.join(index))
                    .map_err(|reason| DownloadError::Disk { file: index.to_owned(), reason })?;
                for shard in shards_of_index(index, &json)? {
                    if !self.has(&shard)? {
                        return Err(absent(
                            &shard,
                            &format!("`{index}` lists it, the repository does not have it"),
                        ));
                    }
                    self.fetch(&shard)?;
                }
                return Ok(());
            }
        }
        Err(absent(
            WeightFormat::Safetensors.single_file(),
            "the repository has neither it nor pytorch_model.bin nor flax_model.msgpack",
        ))
    }

    fn has(&self, file: &str) -> Result<bool, DownloadError> {
        match self.listing {
            Listing::Files { files, .. } => Ok(files.contains(file)),
            Listing::Unlisted { commit } => Ok(self.protocol.describe(commit, file)?.is_some()),
        }
    }

    fn fetch(&self, file: &str) -> Result<(), DownloadError> {
        transfer::fetch(self.protocol, self.cache, &self.snapshot.commit, file, self.progress)
    }
}

fn absent(file: &str, advice: &str) -> Problem {
    CheckError::Missing { file: file.to_owned(), advice: advice.to_owned() }.into()
}
