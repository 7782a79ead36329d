//! A T5 v1.1 of any shape with random weights, written as a checkpoint.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use cappy_plugin_abi::random::{fold, key_of, mix};
use cappy_plugin_abi::{Group, GroupKind, LoadRequest, ModelOptions, TokenRows};
use serde_json::{Map, json};

/// What decides its size.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Rows of the embedding and of the logits' matrix.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of a head.
    pub head: usize,
    /// Heads of every attention.
    pub heads: usize,
    /// Inner width of the feed-forward network.
    pub inner: usize,
    /// Of each stack.
    pub layers: usize,
}

/// Removed with its content at the end.
pub struct Model(PathBuf);

impl Model {
    /// Writes one for process `owner`, whose ranks find it by [`directory`].
    pub fn write(owner: u32, name: &str, shape: &Shape) -> io::Result<Self> {
        let model = Self(directory(owner, name));
        std::fs::create_dir_all(&model.0)?;
        std::fs::write(model.0.join("config.json"), config(shape))?;
        checkpoint(&model.0.join("model.safetensors"), name, shape)?;
        Ok(model)
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // What cannot be removed is left to the machine.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where process `owner` has a model of this name.
pub fn directory(owner: u32, name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("cappy-t5-{owner}-{name}"))
}

/// To load it from `dir`, or a rank's part of it.
pub fn request(dir: &Path, group: Option<&Group>) -> LoadRequest {
    let group = group.map(|group| Group { kind: GroupKind::Tensor, ..group.clone() });
    LoadRequest {
        model_dir: dir.to_str().expect("utf-8").into(),
        config_json: std::fs::read_to_string(dir.join("config.json")).expect("a configuration"),
        device: cappy_plugin_suite::device(),
        dtype: "f32".into(),
        options_json: serde_json::to_string(&ModelOptions { group }).expect("text"),
    }
}

/// `rows` rows of up to `longest` tokens.
pub fn some_rows(seed: u64, rows: u64, longest: u64, vocab: usize) -> TokenRows {
    let mut made = TokenRows::new();
    for row in 0..rows {
        let key = fold(mix(seed), row);
        let length = fold(key, 0) % longest + 1;
        let row: Vec<u32> = (1..=length).map(|i| (fold(key, i) % (vocab as u64 - 2) + 2) as u32).collect();
        made.push(&row);
    }
    made
}

fn config(shape: &Shape) -> String {
    json!({
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": shape.vocab,
        "d_model": shape.width, "d_kv": shape.head, "d_ff": shape.inner, "num_heads": shape.heads,
        "num_layers": shape.layers, "num_decoder_layers": shape.layers, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": false, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0,
    })
    .to_string()
}

/// Names, shapes, and standard deviations as transformers initialises them; 0: ones. The logits' matrix is scaled down
/// so that logits have a deviation of about 2.
fn tensors(shape: &Shape) -> Vec<(String, [usize; 2], f64)> {
    let Shape { vocab, width, head, heads, inner, layers } = *shape;
    let all = head * heads;
    let deviation = |of: usize| (of as f64).powf(-0.5);
    let mut list = vec![
        ("shared.weight".to_owned(), [vocab, width], 1.0),
        ("lm_head.weight".to_owned(), [vocab, width], 2.0 * deviation(width)),
    ];
    for stack in ["encoder", "decoder"] {
        let decoder = stack == "decoder";
        for layer in 0..layers {
            let mut attention = |part: usize, name: &str| {
                let at = format!("{stack}.block.{layer}.layer.{part}");
                list.push((format!("{at}.layer_norm.weight"), [width, 0], 0.0));
                list.push((format!("{at}.{name}.q.weight"), [all, width], deviation(width * head)));
                list.push((format!("{at}.{name}.k.weight"), [all, width], deviation(width)));
                list.push((format!("{at}.{name}.v.weight"), [all, width], deviation(width)));
                list.push((format!("{at}.{name}.o.weight"), [width, all], deviation(all)));
                if layer == 0 && part == 0 {
                    let bias = format!("{at}.{name}.relative_attention_bias.weight");
                    list.push((bias, [32, heads], 0.5));
                }
            };
            attention(0, "SelfAttention");
            if decoder {
                attention(1, "EncDecAttention");
            }
            let at = format!("{stack}.block.{layer}.layer.{}", 1 + usize::from(decoder));
            list.push((format!("{at}.layer_norm.weight"), [width, 0], 0.0));
            for (part, size, of) in [
                ("wi_0", [inner, width], width),
                ("wi_1", [inner, width], width),
                ("wo", [width, inner], inner),
            ] {
                list.push((format!("{at}.DenseReluDense.{part}.weight"), size, deviation(of)));
            }
        }
        list.push((format!("{stack}.final_layer_norm.weight"), [width, 0], 0.0));
    }
    list
}

/// Writes tensor after tensor, in bf16, holding none of them.
fn checkpoint(path: &Path, seed: &str, shape: &Shape) -> io::Result<()> {
    let tensors = tensors(shape);
    let count = |size: &[usize; 2]| if size[1] == 0 { size[0] } else { size[0] * size[1] };
    let (mut header, mut end) = (Map::new(), 0);
    for (name, size, _) in &tensors {
        let start = end;
        end += 2 * count(size);
        let dims = if size[1] == 0 { &size[..1] } else { &size[..] };
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": dims, "data_offsets": [start, end]}));
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for (name, size, deviation) in &tensors {
        let key = key_of(&format!("{seed}/{name}"));
        // Uniform numbers, four from the bits of one draw.
        let spread = deviation * 12_f64.sqrt() / 65536.0;
        let mut draw = 0;
        for i in 0..count(size) {
            if i % 4 == 0 {
                draw = fold(key, i as u64 / 4);
            }
            let number = match deviation {
                0.0 => 1.0,
                _ => (((draw >> (16 * (i % 4))) & 0xffff) as f64 - 32767.5) * spread,
            };
            file.write_all(&((number as f32).to_bits() >> 16).to_le_bytes()[..2])?;
        }
    }
    file.flush()
}
