//! Directories made from a model that a backend could not open as it is: weights converted to safetensors, a
//! tokenizer built, the label chosen that ranks. Each is named by the content that it was made from, made once, and appears whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::lock_file;
use crate::check::check_ready;
use crate::config::{CONFIG_FILE, ModelConfig};
use crate::error::{Problem, While};
use crate::fingerprint::Fingerprints;
use crate::label::{RankingLabel, config_of};
use crate::progress::Progress;
use crate::tokenizer::{SETTINGS_FILES, TOKENIZER_FILE, TokenizerSource};
use crate::weights::{WeightFiles, WeightFormat};
use crate::{flax, pickle};

/// Changes when conversion makes something else from the same files.
const CONVERSION_VERSION: &str = "v1";

/// Finds or makes the directory for a model.
pub(crate) fn derive(
    converted: &Path,
    fingerprints: &Fingerprints,
    source: &Path,
    config: &ModelConfig,
    weights: &WeightFiles,
    tokenizer: TokenizerSource,
    progress: &dyn Progress,
) -> Result<PathBuf, Problem> {
    let mut inputs = vec![CONFIG_FILE];
    inputs.extend(tokenizer.vocabulary_files());
    if tokenizer != TokenizerSource::Ready {
        inputs.extend(SETTINGS_FILES.into_iter().filter(|file| source.join(file).exists()));
    }
    inputs.extend(weights.files.iter().map(String::as_str));
    inputs.extend(weights.index);
    let key = fingerprints.of_model(source, inputs).trying(|| "read the model's files".into())?;
    let name = format!("{}-{CONVERSION_VERSION}", &key[..32]);
    let note = match weights.format {
        WeightFormat::Safetensors => "building tokenizer.json, once".to_owned(),
        _ => format!("converting {} to safetensors, once", weights.files.join(", ")),
    };
    once(converted, &name, || progress.note(&note), |making| fill(making, source, config, weights, tokenizer))
}

/// Finds or makes the directory for a model that ranks by one label of several. `source` holds what a backend can open.
pub(crate) fn derive_label(
    converted: &Path,
    fingerprints: &Fingerprints,
    source: &Path,
    config: &ModelConfig,
    weights: &WeightFiles,
    label: &RankingLabel,
) -> Result<PathBuf, Problem> {
    let mut files = vec![TOKENIZER_FILE];
    files.extend(weights.files.iter().map(String::as_str));
    files.extend(weights.index);
    let inputs = files.iter().copied().chain([CONFIG_FILE]);
    let key = fingerprints.of_model(source, inputs).trying(|| "read the model's files".into())?;
    let name = format!("{}-{CONVERSION_VERSION}-label-{}", &key[..32], label.index);
    once(
        converted,
        &name,
        || {},
        |making| {
            fs::write(making.join(CONFIG_FILE), config_of(&config.json, label))
                .trying(|| format!("write {CONFIG_FILE}"))?;
            files.iter().try_for_each(|file| link(source, making, file))
        },
    )
}

/// The directory `converted/name`, made by `fill` unless it is there and whole.
fn once(
    converted: &Path,
    name: &str,
    announce: impl FnOnce(),
    fill: impl FnOnce(&Path) -> Result<(), Problem>,
) -> Result<PathBuf, Problem> {
    let target = converted.join(name);
    // Linked files may have been removed from the cache since.
    let whole = || check_ready(&target).is_ok();
    if whole() {
        return Ok(target);
    }
    fs::create_dir_all(converted).trying(|| format!("make {}", converted.display()))?;
    let _lock = lock_file(&converted.join(format!("{name}.lock"))).trying(|| "lock the conversion".into())?;
    if whole() {
        return Ok(target);
    }
    let making = converted.join(format!(".{name}"));
    for stale in [&making, &target] {
        if stale.exists() {
            fs::remove_dir_all(stale).trying(|| format!("remove {}", stale.display()))?;
        }
    }
    announce();
    fs::create_dir(&making).trying(|| format!("make {}", making.display()))?;
    let made = fill(&making).and_then(|()| check_ready(&making));
    if let Err(problem) = made {
        let _ = fs::remove_dir_all(&making);
        return Err(problem);
    }
    fs::rename(&making, &target).trying(|| format!("rename to {}", target.display()))?;
    Ok(target)
}

fn link(source: &Path, making: &Path, file: &str) -> Result<(), Problem> {
    let real = source.join(file).canonicalize().trying(|| format!("find {file}"))?;
    std::os::unix::fs::symlink(real, making.join(file)).trying(|| format!("link {file}"))
}

fn fill(
    making: &Path,
    source: &Path,
    config: &ModelConfig,
    weights: &WeightFiles,
    tokenizer: TokenizerSource,
) -> Result<(), Problem> {
    let write =
        |file: &str, content: &[u8]| fs::write(making.join(file), content).trying(|| format!("write {file}"));
    write(CONFIG_FILE, config.json.as_bytes())?;
    write(TOKENIZER_FILE, &tokenizer.build(source)?)?;
    let paths: Vec<PathBuf> = weights.files.iter().map(|file| source.join(file)).collect();
    let output = making.join(WeightFormat::Safetensors.single_file());
    match weights.format {
        WeightFormat::Safetensors => {
            let mut files = weights.files.iter().map(String::as_str).chain(weights.index);
            files.try_for_each(|file| link(source, making, file))
        }
        WeightFormat::PyTorch => pickle::convert(&paths, &output)
            .map_err(|(at, reason)| Problem::Pickle { file: weights.files[at].clone(), reason }),
        WeightFormat::Flax => flax::convert(&paths, config.architecture, &output)
            .map_err(|(at, reason)| Problem::Flax { file: weights.files[at].clone(), reason }),
    }
}
