//! What a user may call a model: a directory, a hub id with an optional revision, or a short name.

use std::fmt;
use std::path::{Path, PathBuf};

/// Short names and what they stand for. `demo` depends on the role and is not listed.
pub const SHORT_NAMES: [(&str, &str); 6] = [
    ("flan-t5-small", "google/flan-t5-small"),
    ("flan-t5-base", "google/flan-t5-base"),
    ("flan-t5-large", "google/flan-t5-large"),
    ("flan-t5-xl", "google/flan-t5-xl"),
    ("flan-t5-xxl", "google/flan-t5-xxl"),
    ("cappy-large", "btan2/cappy-large"),
];

/// The short name of the models that ship with this project.
pub const DEMO: &str = "demo";

/// The branch that a hub id without a revision means.
pub const DEFAULT_REVISION: &str = "main";

/// Longest repository id that the hub accepts.
const MAX_REPO_ID: usize = 96;

/// What the model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Scores (instruction, response) pairs: sequence classification with a regression head.
    Scorer,
    /// Writes responses: an encoder-decoder.
    Generator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scorer => "scorer",
            Self::Generator => "generator",
        })
    }
}

/// A model name, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelName {
    /// A directory on this machine.
    Directory(PathBuf),
    /// A repository of the hub.
    Hub {
        /// `google/flan-t5-small`; old models have no organisation: `gpt2`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// The model of this project's demo.
    Demo,
}

/// A name that cannot mean a model.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Nothing was given.
    #[error("the model name is empty: give a directory, a hub id such as `google/flan-t5-small`, or one of {names}", names = short_names())]
    Empty,
    /// It is written as a path, and nothing is there.
    #[error("no such directory: give a directory that holds config.json, a tokenizer and weights")]
    NoDirectory,
    /// It is a file.
    #[error("this is a file: give the directory that holds it")]
    File,
    /// It has characters that no hub id has.
    #[error("neither a directory nor a hub id (`organisation/name`, letters, digits, `-`, `_`, `.`)")]
    NotAnId,
    /// What follows `@` is no branch, tag or commit.
    #[error("`{0}` is not a revision (a branch, tag or commit)")]
    Revision(String),
}

impl ModelName {
    /// Understands a name. A short name is never looked for on disk (write `./demo` for a directory of that name);
    /// any other name means the directory if there is one.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn parse(name: &str) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name == DEMO {
            return Ok(Self::Demo);
        }
        let (id, revision) = match name.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (name, None),
        };
        let short = SHORT_NAMES.iter().find(|(short, _)| *short == id).map(|(_, repo)| *repo);
        if short.is_none() {
            let path = Path::new(name);
            if path.is_dir() {
                return Ok(Self::Directory(path.to_owned()));
            }
            if path.is_file() {
                return Err(NameError::File);
            }
            if name.starts_with(['/', '.', '~']) || id.matches('/').count() > 1 || id.ends_with('/') {
                return Err(NameError::NoDirectory);
            }
        }
        let repo = short.unwrap_or(id);
        if !is_repo_id(repo) {
            return Err(NameError::NotAnId);
        }
        let revision = revision.unwrap_or(DEFAULT_REVISION);
        if !is_revision(revision) {
            return Err(NameError::Revision(revision.to_owned()));
        }
        Ok(Self::Hub { repo: repo.to_owned(), revision: revision.to_owned() })
    }
}

/// All short names, for messages.
pub fn short_names() -> String {
    let mut names: Vec<&str> = SHORT_NAMES.iter().map(|(name, _)| *name).collect();
    names.push(DEMO);
    names.join(", ")
}

/// The short names that `name` is nearest to, if few keystrokes apart.
pub(crate) fn similar_short_names(name: &str) -> Vec<&'static str> {
    let wanted = name.split('@').next().unwrap_or(name);
    let wanted = wanted.rsplit('/').next().unwrap_or(wanted).to_ascii_lowercase();
    let mut near: Vec<(usize, &'static str)> = SHORT_NAMES
        .iter()
        .map(|(short, _)| *short)
        .chain([DEMO])
        .map(|short| (keystrokes(&wanted, short), short))
        .filter(|(distance, short)| *distance <= short.len() / 3)
        .collect();
    near.sort_unstable();
    let best = near.first().map(|(distance, _)| *distance);
    near.into_iter().filter(|(distance, _)| Some(*distance) == best).map(|(_, short)| short).collect()
}

/// Levenshtein distance over bytes.
fn keystrokes(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// The hub's rule for repository ids.
fn is_repo_id(id: &str) -> bool {
    let parts: Vec<&str> = id.split('/').collect();
    id.len() <= MAX_REPO_ID
        && parts.len() <= 2
        && !id.contains("--")
        && !id.contains("..")
        && parts.iter().all(|part| {
            !part.is_empty()
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        })
}

/// A git ref name, as far as it matters when it becomes a path below `refs/` and part of a URL.
fn is_revision(revision: &str) -> bool {
    revision.len() <= 128
        && revision.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
        && revision
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, revision: &str) -> Result<ModelName, NameError> {
        Ok(ModelName::Hub { repo: repo.into(), revision: revision.into() })
    }

    #[test]
    fn names_mean_what_the_interface_says() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().to_str().unwrap();
        let file = dir.path().join("model.safetensors");
        std::fs::write(&file, "").unwrap();
        let missing = dir.path().join("missing");
        let table: Vec<(&str, Result<ModelName, NameError>)> = vec![
            ("demo", Ok(ModelName::Demo)),
            ("flan-t5-xxl", hub("google/flan-t5-xxl", "main")),
            ("cappy-large@v1", hub("btan2/cappy-large", "v1")),
            ("google/flan-t5-small", hub("google/flan-t5-small", "main")),
            ("roberta-large", hub("roberta-large", "main")),
            ("a/b@refs/pr/3", hub("a/b", "refs/pr/3")),
            (there, Ok(ModelName::Directory(dir.path().to_owned()))),
            (file.to_str().unwrap(), Err(NameError::File)),
            (missing.to_str().unwrap(), Err(NameError::NoDirectory)),
            ("./nowhere", Err(NameError::NoDirectory)),
            ("a/b/c", Err(NameError::NoDirectory)),
            ("", Err(NameError::Empty)),
            ("a/..b", Err(NameError::NotAnId)),
            ("a--b/c", Err(NameError::NotAnId)),
            ("mod el", Err(NameError::NotAnId)),
            ("a/b@../../etc", Err(NameError::Revision("../../etc".into()))),
            ("a/b@", Err(NameError::Revision(String::new()))),
        ];
        for (name, expected) in table {
            assert_eq!(ModelName::parse(name), expected, "{name}");
        }
    }

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        assert_eq!(similar_short_names("flan-t5-smal"), ["flan-t5-small"]);
        assert_eq!(similar_short_names("google/flan-t5-xxxl"), ["flan-t5-xxl"]);
        assert_eq!(similar_short_names("capy-large"), ["cappy-large"]);
        assert!(similar_short_names("llama-3").is_empty());
    }
}
