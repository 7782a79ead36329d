//! ROUGE-L of a response against references, as the `rouge_score` package computes it with stemming, to the last bit.
//!
//! `tokens.rs` cuts a text into words, [`porter`] stems them, [`lcs`] measures the longest common subsequence, and
//! [`RougeScorer`] puts them together, keeping the stems of the words it has seen. [`rows`] is the same over a file.

pub mod lcs;
pub mod porter;
pub mod rows;
mod tokens;

use tokens::Vocabulary;

/// There is nothing to compare the response with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the list of references is empty")]
pub struct NoReferences;

/// Scores responses; reuse one for many rows, it remembers words.
#[derive(Debug, Default)]
pub struct RougeScorer {
    vocabulary: Vocabulary,
    lcs: lcs::Scratch,
    response: Vec<u32>,
    reference: Vec<u32>,
}

impl RougeScorer {
    /// A scorer that has seen no words yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// ROUGE-L F1 in `[0, 1]`: the highest over the references.
    ///
    /// Source: `rouge_score` 0.1.2, `RougeScorer(["rougeL"], use_stemmer=True).score_multi`.
    ///
    /// # Errors
    /// [`NoReferences`] if there are none.
    pub fn rouge_l<S: AsRef<str>>(&mut self, references: &[S], response: &str) -> Result<f64, NoReferences> {
        self.begin(response);
        references
            .iter()
            .map(|reference| self.against(reference.as_ref()))
            .reduce(|best, f| if f > best { f } else { best })
            .ok_or(NoReferences)
    }

    /// ROUGE-L F1 of one pair of texts.
    pub fn pair(&mut self, reference: &str, response: &str) -> f64 {
        self.begin(response);
        self.against(reference)
    }

    fn begin(&mut self, response: &str) {
        self.vocabulary.forget_if_full();
        self.response.clear();
        self.vocabulary.tokenize(response, &mut self.response);
    }

    fn against(&mut self, reference: &str) -> f64 {
        self.reference.clear();
        self.vocabulary.tokenize(reference, &mut self.reference);
        if self.reference.is_empty() || self.response.is_empty() {
            return 0.0;
        }
        let common = self.lcs.length(&self.reference, &self.response) as f64;
        f_measure(common / self.response.len() as f64, common / self.reference.len() as f64)
    }
}

/// The harmonic mean in the package's order of operations, which decides the last bit.
fn f_measure(precision: f64, recall: f64) -> f64 {
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}
