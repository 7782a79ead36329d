//! BIG-bench tasks as rows: the data folder of a benchmark run, made from the benchmark's own sources.
//!
//! [`import`] opens the sources (`source.rs`; an `archive.rs` is read once from front to back) and hands each
//! `task.json` of a wanted subset to `task.rs`, which keeps its prefixes and sets its examples aside on disk
//! (`spool.rs`). `gathered.rs` joins the parts of a task once all of them came in, `split.rs` cuts the shuffled
//! examples as the published copy of the benchmark was cut (`mersenne.rs` draws the same numbers), and the files are
//! written. [`inspect`] reads such a folder back and says what is wrong with it.

mod archive;
mod folder;
mod gathered;
mod import;
mod mersenne;
mod source;
mod split;
mod spool;
mod task;

pub use folder::{DataFolder, FolderError, SubsetFiles, inspect, split_file};
pub use import::{
    ImportError, ImportOptions, ImportReport, ImportedFile, ImportedSubset, SkippedTask, import,
};

/// The split of a subset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Split {
    /// What the scorer is fine-tuned on.
    Train,
    /// What results are measured on.
    Validation,
}

impl Split {
    /// Both, in the order in which their files are written.
    pub const ALL: [Self; 2] = [Self::Train, Self::Validation];

    /// The name in file names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The 45 generative subsets of the reference implementation, in its order.
pub const GENERATIVE_SUBSETS: [&str; 45] = [
    "ascii_word_recognition",
    "auto_categorization",
    "auto_debugging",
    "bridging_anaphora_resolution_barqa",
    "chess_state_tracking",
    "chinese_remainder_theorem",
    "codenames",
    "conlang_translation",
    "cryptonite",
    "disfl_qa",
    "few_shot_nlg",
    "gem",
    "gender_inclusive_sentences_german",
    "hindi_question_answering",
    "international_phonetic_alphabet_transliterate",
    "language_games",
    "linguistic_mappings",
    "linguistics_puzzles",
    "list_functions",
    "matrixshapes",
    "minute_mysteries_qa",
    "modified_arithmetic",
    "mult_data_wrangling",
    "object_counting",
    "operators",
    "paragraph_segmentation",
    "parsinlu_reading_comprehension",
    "physics_questions",
    "polish_sequence_labeling",
    "qa_wikidata",
    "repeat_copy_logic",
    "rephrase",
    "scientific_press_release",
    "semantic_parsing_in_context_sparc",
    "semantic_parsing_spider",
    "simp_turing_concept",
    "simple_arithmetic_json",
    "simple_text_editing",
    "sufficient_information",
    "tellmewhy",
    "tense",
    "topical_chat",
    "unnatural_in_context_learning",
    "word_sorting",
    "word_unscrambling",
];
