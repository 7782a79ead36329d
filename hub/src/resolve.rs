//! From a name to a directory that a backend can open.

use std::path::{Path, PathBuf};

use crate::cache::{RepoCache, Snapshot, is_commit};
use crate::check::{CheckError, check_ready};
use crate::config::{Architecture, CONFIG_FILE, ModelConfig, read_config};
use crate::demo;
use crate::derived::{derive, derive_label};
use crate::download::{DownloadError, download};
use crate::error::{Problem, ResolveError, While};
use crate::fingerprint::Fingerprints;
use crate::label::{self, LabelError, RankingLabel};
use crate::name::{DEMO, ModelName, Role};
use crate::progress::Progress;
use crate::settings::HubSettings;
use crate::tokenizer::{TOKENIZER_FILE, TokenizerSource};
use crate::weights::{WeightFormat, find_weights};

/// Finds, downloads, converts and checks models. Cheap to clone; may be used from many threads and processes at once.
#[derive(Clone, Debug)]
pub struct Hub {
    pub(crate) settings: HubSettings,
    pub(crate) fingerprints: Fingerprints,
}

/// Where a model came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A directory that the user named.
    Directory,
    /// The hub, perhaps through its cache.
    Hub {
        /// Its repository.
        repo: String,
        /// The commit.
        commit: String,
    },
    /// This program.
    Demo,
}

/// A model that a backend can open.
#[derive(Clone, Debug)]
pub struct ResolvedModel {
    /// As the caller named it.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Holds `config.json`, `tokenizer.json` and safetensors (one file, or shards with their index).
    pub dir: PathBuf,
    /// Lower-case hexadecimal SHA-256 of names and contents of those files; equal wherever the content is equal.
    pub fingerprint: String,
    /// The family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: u64,
    /// Content of `config.json`.
    pub config_json: String,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors as stored.
    pub weight_bytes: u64,
    /// A classifier's labels in the order of its head; empty for other models.
    pub labels: Vec<String>,
    /// The one of several that scores are made of, once it was chosen.
    pub ranking_label: Option<RankingLabel>,
    /// Where it came from.
    pub origin: Origin,
}

/// Which label of a classifier shall rank.
#[derive(Clone, Copy)]
pub(crate) struct Choice<'a> {
    /// As the name says.
    pub label: Option<&'a str>,
    /// Whether one of several must be chosen.
    pub must: bool,
}

impl Choice<'_> {
    fn of(self, config: &ModelConfig) -> Result<Option<RankingLabel>, LabelError> {
        match self.label {
            Some(label) if config.labels.is_empty() => {
                Err(LabelError::NoClassifier(label.to_owned(), config.architecture))
            }
            None if !self.must => Ok(None),
            wanted => label::choose(&config.labels, wanted),
        }
    }
}

impl ResolvedModel {
    /// The tokenizer's file.
    pub fn tokenizer_file(&self) -> PathBuf {
        self.dir.join(TOKENIZER_FILE)
    }
}

impl Hub {
    /// Uses the given places.
    pub fn new(settings: HubSettings) -> Self {
        let fingerprints = Fingerprints::new(settings.models_dir().join("hashes"));
        Self { settings, fingerprints }
    }

    /// The places that are used.
    pub fn settings(&self) -> &HubSettings {
        &self.settings
    }

    /// Makes a model ready: a cached one without a word to the network, otherwise downloaded; converted once if its
    /// weights or tokenizer are of another kind; checked every time. A classifier of several labels becomes one of the
    /// label behind `#` in the name, or of the one that can only be meant.
    ///
    /// # Errors
    /// [`ResolveError`], one line that names what is wrong and says what to do.
    pub fn resolve(
        &self,
        name: &str,
        role: Role,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, ResolveError> {
        self.obtain(name, Some(role), progress, false)
    }

    /// Like [`Hub::resolve`], but asks the hub whether the branch or tag has moved on. Without a role, the model's
    /// architecture decides (for the demo: its generator).
    ///
    /// # Errors
    /// As [`Hub::resolve`].
    pub fn pull(
        &self,
        name: &str,
        role: impl Into<Option<Role>>,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, ResolveError> {
        self.obtain(name, role.into(), progress, !self.settings.offline)
    }

    /// Like [`Hub::resolve`], whatever the model is for: its files end up as safetensors with a `tokenizer.json`.
    ///
    /// # Errors
    /// As [`Hub::resolve`].
    pub fn convert(&self, name: &str, progress: &dyn Progress) -> Result<ResolvedModel, ResolveError> {
        self.obtain(name, None, progress, false)
    }

    fn obtain(
        &self,
        name: &str,
        role: Option<Role>,
        progress: &dyn Progress,
        refresh: bool,
    ) -> Result<ResolvedModel, ResolveError> {
        let obtained = || {
            let (model, label) = label::split(name)?;
            let (dir, origin) = self.find(model, role, progress, refresh)?;
            let choice = Choice { label, must: role == Some(Role::Scorer) };
            self.ready(name, role, choice, &dir, origin, progress)
        };
        obtained().map_err(|problem| ResolveError { model: name.to_owned(), problem })
    }

    /// The directory of the model's files as they were published.
    pub(crate) fn find(
        &self,
        name: &str,
        role: Option<Role>,
        progress: &dyn Progress,
        refresh: bool,
    ) -> Result<(PathBuf, Origin), Problem> {
        match ModelName::parse(name)? {
            ModelName::Directory(dir) => Ok((dir, Origin::Directory)),
            ModelName::Demo => {
                demo::materialise(&self.settings.models_dir(), role.unwrap_or(Role::Generator))
                    .map(|dir| (dir, Origin::Demo))
                    .trying(|| format!("write the {DEMO} model to {}", self.settings.models_dir().display()))
            }
            ModelName::Hub { repo, revision } => {
                let snapshot = self.snapshot(&repo, &revision, role, progress, refresh)?;
                Ok((snapshot.dir, Origin::Hub { repo, commit: snapshot.commit }))
            }
        }
    }

    /// A cached snapshot if it is whole (and need not be the newest), else one that is downloaded now.
    fn snapshot(
        &self,
        repo: &str,
        revision: &str,
        role: Option<Role>,
        progress: &dyn Progress,
        refresh: bool,
    ) -> Result<Snapshot, Problem> {
        let cached = RepoCache::new(&self.settings.cache_dir, repo).snapshot(revision);
        let lacks = match cached {
            None => format!("`{repo}` (revision {revision})"),
            Some(snapshot) => match incomplete(&snapshot.dir) {
                None if !refresh || is_commit(revision) => return Ok(snapshot),
                None => String::new(),
                Some(CheckError::Missing { file, .. }) => format!("`{file}` of `{repo}`"),
                Some(other) => return Err(other.into()),
            },
        };
        if self.settings.offline {
            let cache = self.settings.cache_dir.display().to_string();
            return Err(DownloadError::Offline { missing: lacks, cache }.into());
        }
        download(&self.settings, repo, revision, role, progress)
    }

    pub(crate) fn ready(
        &self,
        name: &str,
        role: Option<Role>,
        choice: Choice<'_>,
        source: &Path,
        origin: Origin,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, Problem> {
        let config = read_config(source)?;
        let role = role.unwrap_or(config.architecture.role());
        config.check_role(role)?;
        let weights = find_weights(source)?;
        let tokenizer = TokenizerSource::find(config.architecture, |file| source.join(file).exists())?;
        let as_it_is = weights.format == WeightFormat::Safetensors && tokenizer == TokenizerSource::Ready;
        let label = choice.of(&config)?;
        let converted = self.settings.models_dir().join("converted");
        let mut dir = if as_it_is {
            source.to_owned()
        } else {
            derive(&converted, &self.fingerprints, source, &config, &weights, tokenizer, progress)?
        };
        let mut checked = check_ready(&dir)?;
        if let Some(label) = &label {
            let weights = &checked.weights;
            dir = derive_label(&converted, &self.fingerprints, &dir, &config, weights, label)?;
            checked = check_ready(&dir)?;
        }
        let mut files = vec![CONFIG_FILE, TOKENIZER_FILE];
        files.extend(checked.weights.files.iter().map(String::as_str));
        files.extend(checked.weights.index);
        let fingerprint =
            self.fingerprints.of_model(&dir, files).trying(|| "read the model's files".into())?;
        Ok(ResolvedModel {
            name: name.to_owned(),
            role,
            dir,
            fingerprint,
            architecture: checked.config.architecture,
            vocab_size: checked.config.vocab_size,
            config_json: checked.config.json,
            parameters: checked.parameters,
            weight_bytes: checked.weight_bytes,
            labels: config.labels,
            ranking_label: label,
            origin,
        })
    }
}

/// What a snapshot lacks to be a model, by the presence of files alone.
pub(crate) fn incomplete(dir: &Path) -> Option<CheckError> {
    let config = match read_config(dir) {
        Ok(config) => config,
        Err(missing @ CheckError::Missing { .. }) => return Some(missing),
        // Downloading again would not help: the check that follows names what is wrong.
        Err(_) => return None,
    };
    let tokenizer = TokenizerSource::find(config.architecture, |file| dir.join(file).exists()).err();
    tokenizer.or_else(|| match find_weights(dir) {
        Err(missing @ CheckError::Missing { .. }) => Some(missing),
        _ => None,
    })
}
