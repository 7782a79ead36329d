//! The pure domain of Cappy: rows and their files, ROUGE-L, the BIG-bench import, the scorer's training set, the
//! choice among candidates, and the tables that report it. No network, no async runtime, no models, no tensors.
//!
//! One benchmark run, followed through the files:
//!
//! 1. [`bigbench::import`] reads the benchmark's sources and writes a *data folder*: `subset_names.json` and, per
//!    subset, `<subset>_train.jsonl` and `<subset>_validation.jsonl`, whose lines are [`rows::Row`]s.
//!    [`bigbench::inspect`] checks such a folder before anything expensive starts.
//! 2. A generator answers every row with several candidates; the answers join the row as
//!    [`rows::GeneratedRow::flan_samples`]. [`rows::JsonLines`] reads and [`rows::JsonLinesWriter`] writes all of it.
//! 3. [`training_set::build`] turns the generated train rows of a subset into labelled text pairs: references are
//!    right, references of other rows are wrong, and candidates are as right as their ROUGE-L says
//!    ([`rouge::RougeScorer`], whose words are stemmed in [`rouge::porter`]).
//! 4. A scorer fine-tuned on those pairs scores the candidates of the validation rows; [`selection::select`] takes
//!    the best of each row and measures it beside the baselines and the oracle: a [`selection::SubsetResult`].
//! 5. [`report`] gathers the subsets of one or several generators into the tables of the reference implementation.
//!
//! Beside it stand [`promptsource`], classification tasks as prompts and the accuracy of a scorer on them, and
//! [`pretraining`], the mixture that a scorer is pretrained on.
//!
//! Everything random here is keyed ([`keyed`]): the same seed and rows give the same result on every machine.
//!
//! ```
//! use cappy_eval::rouge::RougeScorer;
//!
//! let mut rouge = RougeScorer::new();
//! let f = rouge.rouge_l(&["We bought an apartment", "We moved"], "we buy apartments").unwrap();
//! assert_eq!(f, 0.5714285714285715);
//! assert!(rouge.rouge_l::<&str>(&[], "no reference to compare with").is_err());
//! ```

pub mod bigbench;
pub mod keyed;
pub mod pretraining;
pub mod promptsource;
pub mod python_json;
pub mod report;
pub mod rouge;
pub mod rows;
pub mod selection;
mod text_key;
pub mod training_set;
