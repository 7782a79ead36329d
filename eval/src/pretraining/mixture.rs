//! The mixture, written.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::recipe::Recipe;
use super::sources::{self, Given, Kind};
use super::spool::{Cap, Record, Spool};
use crate::keyed::Keyed;
use crate::promptsource::{FindError, with_deep_stack};
use crate::rows::{BadLine, JsonLinesWriter, JsonStyle, TrainingExample, WriteError};
use crate::text_key::{TextKey, text_key};

const EXAMPLES_FILE: &str = "examples.jsonl";
const VALIDATION_FILE: &str = "validation.jsonl";
const PROMPTS_FILE: &str = "prompts.jsonl";

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mixture {
    /// `{"instruction", "response", "label"}`, shuffled.
    pub examples: PathBuf,
    /// Rows of it.
    pub example_rows: u64,
    /// Held-out rows of the same form; `None` if none are held out.
    pub validation: Option<PathBuf>,
    /// Rows of it.
    pub validation_rows: u64,
    /// `{"instruction", "references"}` for the generators; `None` without generators or prompts.
    pub prompts: Option<PathBuf>,
    /// Rows of it.
    pub prompt_rows: u64,
    /// Pairs that were there already.
    pub duplicates: u64,
    /// Rows, renderings and templates that could not be used.
    pub bad: u64,
    /// What each source gave, before caps and weights.
    pub sources: Vec<SourceCounts>,
    /// The recipe, to go with the results.
    pub settings: Recipe,
}

/// What one source gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceCounts {
    /// The dataset's folder, or the file.
    pub source: String,
    /// Right answers.
    pub right: u64,
    /// Wrong choices.
    pub wrong_choices: u64,
    /// Answers to other questions.
    pub mismatched: u64,
    /// Rows with labels of their own.
    pub labelled: u64,
    /// Questions for the generators.
    pub prompts: u64,
    /// What could not be used.
    pub bad: u64,
}

/// What is told while a mixture is made.
#[derive(Debug)]
pub enum Note<'a> {
    /// A source is read.
    Source(&'a SourceCounts),
    /// Something that cannot be used.
    Bad(BadLine),
}

/// Why there is no mixture.
#[derive(Debug, thiserror::Error)]
pub enum MixtureError {
    /// A dataset is not there.
    #[error(transparent)]
    Find(#[from] FindError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// What is set aside until everything is read could not be kept.
    #[error("failed to set rows aside in {path}")]
    Spool {
        /// The folder of the output.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Nothing to train on.
    #[error("the recipe's sources gave no examples; see what was left out")]
    Empty,
}

#[derive(Deserialize, Serialize)]
struct PromptRow {
    instruction: String,
    references: Vec<String>,
}

impl Recipe {
    /// Makes the mixture in `folder`: `examples.jsonl`, and `validation.jsonl` and `prompts.jsonl` where the recipe asks
    /// for them. The same recipe and sources give the same bytes.
    ///
    /// An instruction is held out whole, so that no held-out question is trained on. Of equal pairs one stays: a right
    /// answer before labelled rows, those before wrong answers.
    ///
    /// # Errors
    /// See [`MixtureError`]. What cannot be used is told and counted.
    pub fn write(
        &self,
        folder: &Path,
        tell: &mut (dyn FnMut(Note<'_>) + Send),
    ) -> Result<Mixture, MixtureError> {
        with_deep_stack(|| {
            std::fs::create_dir_all(folder).map_err(|source| spool_error(folder, source))?;
            let mut mixer = Mixer::new(self, folder)?;
            mixer.read_sources(tell)?;
            mixer.write(folder)
        })
    }
}

fn spool_error(folder: &Path, source: io::Error) -> MixtureError {
    MixtureError::Spool { path: folder.display().to_string(), source }
}

struct Mixer<'a> {
    recipe: &'a Recipe,
    folder: PathBuf,
    pairs: Spool,
    prompts: Spool,
    /// By source.
    pair_caps: Vec<Cap>,
    prompt_caps: Vec<Cap>,
    weights: Vec<f64>,
    sources: Vec<SourceCounts>,
}

impl<'a> Mixer<'a> {
    fn new(recipe: &'a Recipe, folder: &Path) -> Result<Self, MixtureError> {
        let spool = || Spool::new(folder).map_err(|source| spool_error(folder, source));
        let entries = recipe.entries.iter().map(|entry| (entry.cap, entry.prompts, entry.weight));
        let rows = recipe.rows.iter().map(|entry| (entry.cap, 0, entry.weight));
        let caps: Vec<_> = entries.chain(rows).collect();
        Ok(Self {
            recipe,
            folder: folder.to_owned(),
            pairs: spool()?,
            prompts: spool()?,
            pair_caps: caps.iter().map(|(cap, _, _)| Cap::new(*cap)).collect(),
            prompt_caps: caps.iter().map(|(_, prompts, _)| Cap::new(Some(*prompts))).collect(),
            weights: caps.iter().map(|(_, _, weight)| *weight).collect(),
            sources: Vec::new(),
        })
    }

    fn read_sources(&mut self, tell: &mut (dyn FnMut(Note<'_>) + Send)) -> Result<(), MixtureError> {
        let recipe = self.recipe;
        for entry in &recipe.entries {
            self.start(entry.folder.clone());
            sources::from_dataset(recipe, entry, |given| self.take(given, tell))?;
            tell(Note::Source(self.current()));
        }
        for entry in &recipe.rows {
            self.start(entry.file.display().to_string());
            sources::from_rows(recipe, entry, |given| self.take(given, tell))?;
            tell(Note::Source(self.current()));
        }
        Ok(())
    }

    fn start(&mut self, source: String) {
        self.sources.push(SourceCounts { source, ..SourceCounts::default() });
    }

    fn current(&mut self) -> &mut SourceCounts {
        self.sources.last_mut().expect("a source has been started")
    }

    fn take(
        &mut self,
        given: Given<'_>,
        tell: &mut (dyn FnMut(Note<'_>) + Send),
    ) -> Result<(), MixtureError> {
        match given {
            Given::Pair { instruction, response, label, kind } => {
                let counts = self.current();
                match kind {
                    Kind::Right => counts.right += 1,
                    Kind::Labelled => counts.labelled += 1,
                    Kind::WrongChoice => counts.wrong_choices += 1,
                    Kind::Mismatched => counts.mismatched += 1,
                }
                self.take_pair(instruction, response, label, kind)
                    .map_err(|source| spool_error(&self.folder, source))
            }
            Given::Prompt { instruction, reference } => {
                self.current().prompts += 1;
                self.take_prompt(instruction, reference).map_err(|source| spool_error(&self.folder, source))
            }
            Given::Bad(bad) => {
                self.current().bad += 1;
                tell(Note::Bad(bad));
                Ok(())
            }
        }
    }

    fn take_pair(&mut self, instruction: &str, response: &str, label: f64, kind: Kind) -> io::Result<()> {
        let source = self.sources.len() - 1;
        let key = text_key([instruction, response]);
        // A right answer given by two sources is one row, but the second copy of a row with weight 2 is another.
        let weight = self.weights[source];
        let mut numbers = draws(self.recipe, "pretraining/weight", key);
        let part = numbers.next_u64() as f64 / u64::MAX as f64;
        let copies = weight.floor() as u64 + u64::from(part < weight.fract());
        if copies == 0 {
            return Ok(());
        }
        let example = TrainingExample { instruction: instruction.into(), response: response.into(), label };
        let payload = serde_json::to_vec(&example)?;
        for copy in 0..copies {
            let mut numbers = draws(self.recipe, &format!("pretraining/order/{copy}"), key);
            let record = Record {
                order: numbers.next_u64(),
                key: key ^ u128::from(copy),
                rank: kind as u8,
                source: source as u32,
                draw: numbers.next_u64(),
                payload: payload.clone(),
            };
            self.pair_caps[source].note(record.draw);
            self.pairs.push(&record)?;
        }
        Ok(())
    }

    fn take_prompt(&mut self, instruction: &str, reference: &str) -> io::Result<()> {
        if self.recipe.prompts.models.is_empty() || is_held_out(self.recipe, instruction) {
            return Ok(());
        }
        let source = self.sources.len() - 1;
        let key = text_key([instruction]);
        let mut numbers = draws(self.recipe, "pretraining/prompts", key);
        let row = PromptRow { instruction: instruction.into(), references: vec![reference.into()] };
        let record = Record {
            order: numbers.next_u64(),
            key,
            rank: 0,
            source: source as u32,
            draw: numbers.next_u64(),
            payload: serde_json::to_vec(&row)?,
        };
        self.prompt_caps[source].note(record.draw);
        self.prompts.push(&record)
    }

    fn write(self, folder: &Path) -> Result<Mixture, MixtureError> {
        let path = |name: &str| folder.join(name);
        let create = |name: &str| JsonLinesWriter::create(path(name), JsonStyle::Python);
        let mut examples = create(EXAMPLES_FILE)?;
        let mut validation = match self.recipe.validation_share > 0.0 {
            true => Some(create(VALIDATION_FILE)?),
            false => None,
        };
        let most = self.recipe.max_examples.unwrap_or(u64::MAX);
        let mut duplicates = 0;
        let Self { pairs, prompts, pair_caps, prompt_caps, sources, recipe, .. } = self;
        pairs
            .drain(
                |record| pair_caps[record.source as usize].keeps(record.draw),
                |mut records| {
                    let before = records.len();
                    records.dedup_by_key(|record| (record.order, record.key));
                    duplicates += (before - records.len()) as u64;
                    for record in records {
                        let pair: TrainingExample = serde_json::from_slice(&record.payload)?;
                        match &mut validation {
                            Some(writer) if is_held_out(recipe, &pair.instruction) => {
                                writer.write(&pair).map_err(io::Error::other)?;
                            }
                            _ if examples.rows() < most => examples.write(&pair).map_err(io::Error::other)?,
                            _ => {}
                        }
                    }
                    Ok(())
                },
            )
            .map_err(|source| spool_error(folder, source))?;
        let example_rows = examples.finish()?;
        let validation_rows = match validation {
            Some(writer) => writer.finish()?,
            None => 0,
        };
        let prompt_rows = match recipe.prompts.models.is_empty() {
            true => 0,
            false => write_prompts(folder, prompts, &prompt_caps, create(PROMPTS_FILE)?)?,
        };
        if example_rows == 0 {
            return Err(MixtureError::Empty);
        }
        Ok(Mixture {
            examples: path(EXAMPLES_FILE),
            example_rows,
            validation: (validation_rows > 0).then(|| path(VALIDATION_FILE)),
            validation_rows,
            prompts: (prompt_rows > 0).then(|| path(PROMPTS_FILE)),
            prompt_rows,
            duplicates,
            bad: sources.iter().map(|source| source.bad).sum(),
            sources,
            settings: recipe.clone(),
        })
    }
}

/// The prompts that stay, each instruction once with all its references.
fn write_prompts(
    folder: &Path,
    prompts: Spool,
    caps: &[Cap],
    mut writer: JsonLinesWriter,
) -> Result<u64, MixtureError> {
    prompts
        .drain(
            |record| caps[record.source as usize].keeps(record.draw),
            |records| {
                for same in records.chunk_by(|a, b| a.key == b.key) {
                    let mut row: PromptRow = serde_json::from_slice(&same[0].payload)?;
                    for other in &same[1..] {
                        let other: PromptRow = serde_json::from_slice(&other.payload)?;
                        for reference in other.references {
                            if !row.references.contains(&reference) {
                                row.references.push(reference);
                            }
                        }
                    }
                    writer.write(&row).map_err(io::Error::other)?;
                }
                Ok(())
            },
        )
        .map_err(|source| spool_error(folder, source))?;
    Ok(writer.finish()?)
}

/// Random numbers that belong to a text.
fn draws(recipe: &Recipe, purpose: &str, key: TextKey) -> Keyed {
    Keyed::new(recipe.seed ^ key as u64 ^ (key >> 64) as u64, purpose)
}

fn is_held_out(recipe: &Recipe, instruction: &str) -> bool {
    if recipe.validation_share <= 0.0 {
        return false;
    }
    let draw = draws(recipe, "pretraining/validation", text_key([instruction])).next_u64();
    (draw as f64 / u64::MAX as f64) < recipe.validation_share
}
