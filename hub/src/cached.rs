//! What is in the hub's cache, and whether it is still what was downloaded.

use std::path::{Path, PathBuf};

use crate::cache::{RepoCache, repo_of_folder};
use crate::check::CheckError;
use crate::config::{Architecture, CONFIG_FILE, read_config};
use crate::error::{Problem, ResolveError, While};
use crate::fingerprint::Fingerprints;
use crate::label;
use crate::name::Role;
use crate::progress::Progress;
use crate::resolve::{Choice, Hub, ResolvedModel, incomplete};
use crate::tokenizer::TokenizerSource;
use crate::weights::{WeightFormat, find_weights};

/// A model of a supported architecture in the hub's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// Its repository: `google/flan-t5-small`.
    pub repo: String,
    /// The commit.
    pub commit: String,
    /// Branches and tags that point at the commit, sorted.
    pub refs: Vec<String>,
    /// Where its files are.
    pub dir: PathBuf,
    /// The family.
    pub architecture: Architecture,
    /// How its weights are kept, if they are there.
    pub format: Option<WeightFormat>,
    /// Bytes of its weight files.
    pub bytes: u64,
    /// The first file that it lacks, if it is not whole.
    pub missing: Option<String>,
}

/// A file whose content has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedFile {
    /// Relative to the model's directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

impl Hub {
    /// The models of supported architectures in the hub's cache, by name and commit. Other repositories are left out.
    pub fn list_cached(&self) -> Vec<CachedModel> {
        let Ok(entries) = std::fs::read_dir(&self.settings().cache_dir) else { return Vec::new() };
        let repos = entries.flatten().filter_map(|entry| repo_of_folder(entry.file_name().to_str()?));
        let mut models: Vec<CachedModel> = repos
            .flat_map(|repo| {
                let snapshots = RepoCache::new(&self.settings().cache_dir, &repo).snapshots();
                snapshots.into_iter().filter_map(move |(snapshot, mut refs)| {
                    refs.sort();
                    let architecture = read_config(&snapshot.dir).ok()?.architecture;
                    let weights = find_weights(&snapshot.dir).ok();
                    let size =
                        |file: &String| std::fs::metadata(snapshot.dir.join(file)).map_or(0, |m| m.len());
                    Some(CachedModel {
                        repo: repo.clone(),
                        commit: snapshot.commit,
                        refs,
                        architecture,
                        format: weights.as_ref().map(|weights| weights.format),
                        bytes: weights.iter().flat_map(|weights| &weights.files).map(size).sum(),
                        missing: incomplete(&snapshot.dir).and_then(|error| match error {
                            CheckError::Missing { file, .. } => Some(file),
                            _ => None,
                        }),
                        dir: snapshot.dir,
                    })
                })
            })
            .collect();
        models.sort_by(|a, b| (&a.repo, &a.commit).cmp(&(&b.repo, &b.commit)));
        models
    }

    /// Resolves a model, then reads every file that it was made from, whatever is remembered about them: cached files
    /// must have the SHA-256 that the hub announced.
    ///
    /// # Errors
    /// As [`Hub::resolve`], and for a file that has changed.
    pub fn verify(
        &self,
        name: &str,
        role: impl Into<Option<Role>>,
        progress: &dyn Progress,
    ) -> Result<(ResolvedModel, Vec<VerifiedFile>), ResolveError> {
        let role = role.into();
        let verified = || {
            let (model, label) = label::split(name)?;
            let (dir, origin) = self.find(model, role, progress, false)?;
            let files = published_files(&dir)?;
            let files = files.iter().map(|file| verify_file(&dir, file)).collect::<Result<Vec<_>, _>>()?;
            let choice = Choice { label, must: false };
            Ok((self.ready(name, role, choice, &dir, origin, progress)?, files))
        };
        verified().map_err(|problem| ResolveError { model: name.to_owned(), problem })
    }
}

fn published_files(dir: &Path) -> Result<Vec<String>, Problem> {
    let config = read_config(dir)?;
    let tokenizer = TokenizerSource::find(config.architecture, |file| dir.join(file).exists())?;
    let weights = find_weights(dir)?;
    let mut files = vec![CONFIG_FILE.to_owned()];
    files.extend(tokenizer.vocabulary_files().iter().map(|file| (*file).to_owned()));
    files.extend(weights.index.map(str::to_owned));
    files.extend(weights.files);
    Ok(files)
}

fn verify_file(dir: &Path, name: &str) -> Result<VerifiedFile, Problem> {
    let reading = || format!("read {name}");
    let path = dir.join(name).canonicalize().trying(reading)?;
    let found = Fingerprints::of_file_anew(&path).trying(reading)?;
    // A large file's name in the cache is its hash.
    let in_cache = path.parent().is_some_and(|parent| parent.ends_with("blobs"));
    if let Some(announced) = path.file_name().and_then(|name| name.to_str())
        && in_cache
        && announced.len() == 64
        && announced != found
    {
        let announced = announced.to_owned();
        return Err(CheckError::Damaged { file: name.to_owned(), found, announced }.into());
    }
    let bytes = path.metadata().trying(reading)?.len();
    Ok(VerifiedFile { name: name.to_owned(), bytes, sha256: found })
}
