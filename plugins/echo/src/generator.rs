//! Repeats sources.
//!
//! The model: at each step one token is right, the source's next, then the end token; its probability is 1/2, and
//! all others share the rest. Every decoding takes the right token, so temperature and the like change nothing and
//! all samples are alike. Where a minimum length forbids the end token, the last source token is repeated.

use std::collections::HashMap;

use cappy_plugin_abi::{
    Control, Decoding, EncodingId, Failure, Generated, Generator, MinLengthRule, ModelInfo, RaggedTokens,
    TokenRows,
};

use crate::config::Config;

const END: u32 = 1;

pub(crate) struct EchoGenerator {
    config: Config,
    encodings: HashMap<EncodingId, TokenRows>,
    next_id: u64,
}

impl EchoGenerator {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, encodings: HashMap::new(), next_id: 0 }
    }

    fn sources(&self, encoding: EncodingId) -> Result<&TokenRows, Failure> {
        let unknown = || Failure::invalid_argument(format!("unknown encoding {}", encoding.0));
        self.encodings.get(&encoding).ok_or_else(unknown)
    }

    /// Log-probability of `token` as number `step` of the output for `source`.
    fn log_prob(&self, source: &[u32], step: usize, token: u32) -> f32 {
        if token == source.get(step).copied().unwrap_or(END) {
            0.5_f32.ln()
        } else {
            (0.5 / (self.config.vocab_size - 1) as f32).ln()
        }
    }
}

impl Generator for EchoGenerator {
    fn info(&self) -> ModelInfo {
        self.config.info(0)
    }

    fn encode(&mut self, sources: RaggedTokens<'_>, control: &dyn Control) -> Result<EncodingId, Failure> {
        cancellable(control)?;
        let id = EncodingId(self.next_id);
        self.next_id += 1;
        // Slices are lent for the call; what is needed later is copied.
        let kept = TokenRows {
            tokens: sources.tokens.to_vec(),
            offsets: sources.offsets.to_vec(),
            type_ids: sources.type_ids.to_vec(),
        };
        self.encodings.insert(id, kept);
        Ok(id)
    }

    fn generate(
        &mut self,
        encoding: EncodingId,
        decodings: &[Decoding],
        _seed: u64,
        row_keys: &[u64],
        control: &dyn Control,
    ) -> Result<Generated, Failure> {
        let sources = self.sources(encoding)?.view();
        let mut generated = Generated { offsets: vec![0], ..Generated::default() };
        for row in 0..sources.rows() {
            for decoding in decodings {
                cancellable(control)?;
                let source = sources.row(row);
                let output = repeated(source, decoding);
                for _ in 0..decoding.num_samples {
                    generated.tokens.extend_from_slice(&output);
                    generated.offsets.push(generated.tokens.len() as u32);
                    let steps = output.iter().enumerate();
                    generated
                        .log_probs
                        .extend(steps.map(|(step, &token)| self.log_prob(source, step, token)));
                }
            }
            control.progress(row as u64 + 1, row_keys.len() as u64);
        }
        Ok(generated)
    }

    fn log_likelihood(
        &mut self,
        encoding: EncodingId,
        targets: RaggedTokens<'_>,
        rows: &[u32],
        control: &dyn Control,
    ) -> Result<Vec<f32>, Failure> {
        let sources = self.sources(encoding)?.view();
        let mut values = Vec::with_capacity(targets.tokens.len());
        for (target, &row) in rows.iter().enumerate() {
            cancellable(control)?;
            let source = sources.row(row as usize);
            let steps = targets.row(target).iter().enumerate();
            values.extend(steps.map(|(step, &token)| self.log_prob(source, step, token)));
        }
        Ok(values)
    }

    fn forget(&mut self, encoding: EncodingId) {
        self.encodings.remove(&encoding);
    }
}

fn cancellable(control: &dyn Control) -> Result<(), Failure> {
    if control.cancelled() { Err(Failure::cancelled("cancelled by the caller")) } else { Ok(()) }
}

fn repeated(source: &[u32], decoding: &Decoding) -> Vec<u32> {
    let mut output = Vec::new();
    // The start token counts.
    while (output.len() as u32 + 1) < decoding.max_length {
        let length = output.len() as u32 + 1;
        let may_end = match decoding.min_length_rule {
            MinLengthRule::Pytorch => length >= decoding.min_length,
            MinLengthRule::Flax => length > decoding.min_length,
        };
        match (source.get(output.len()), source.last()) {
            (Some(&token), _) => output.push(token),
            (None, Some(&last)) if !may_end => output.push(last),
            _ => {
                output.push(END);
                break;
            }
        }
    }
    output
}
