//! Scores and fine-tuning against transformers and PyTorch; `fixtures/make_encoders.py` made the expectations.

use std::path::PathBuf;

use candle_core::{Device, Var};
use cappy_plugin_abi::{Code, TokenRows, Trainer, TrainerOptions, Unattended, builtin};
use cappy_plugin_candle::CandleBackend;
use cappy_plugin_candle::encoder::config::EncoderConfig;
use cappy_plugin_candle::encoder::deberta::{self, DebertaConfig};
use cappy_plugin_candle::encoder::family::{Family, Identity};
use cappy_plugin_candle::encoder::fast::FastEncoder;
use cappy_plugin_candle::encoder::layout::Layout;
use cappy_plugin_candle::encoder::modernbert::{self, ModernBertConfig};
use cappy_plugin_candle::encoder::plain::PlainEncoder;
use cappy_plugin_candle::encoder::scorer::Classifier;
use cappy_plugin_candle::trainer::EncoderTrainer;
use cappy_plugin_candle::weights::Checkpoint;
use cappy_plugin_suite::{Fixture, Model};
use serde::Deserialize;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders").join(name)
}

fn open(name: &str) -> (EncoderConfig, Checkpoint) {
    let json = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
    (EncoderConfig::parse(&json).unwrap(), Checkpoint::open(&folder(name)).unwrap())
}

fn json<T: for<'a> Deserialize<'a>>(model: &str, file: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(folder(model).join(file)).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Scores {
    batches: Vec<Batch>,
}

#[derive(Deserialize)]
struct Batch {
    rows: Vec<Vec<u32>>,
    type_ids: Option<Vec<Vec<u8>>>,
    logits: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Training {
    micro_batches: Vec<MicroBatch>,
    accumulate: usize,
    learning_rates: Vec<f64>,
    losses: Vec<f64>,
    gradient_norms: Vec<f64>,
    final_scores: Vec<f32>,
    final_weights: std::collections::BTreeMap<String, Vec<f32>>,
}

#[derive(Deserialize)]
struct MicroBatch {
    rows: Vec<Vec<u32>>,
    labels: Vec<f32>,
}

fn ragged(rows: &[Vec<u32>], type_ids: Option<&Vec<Vec<u8>>>) -> TokenRows {
    let mut batch = TokenRows::new();
    rows.iter().for_each(|row| batch.push(row));
    batch.type_ids = type_ids.map(|types| types.concat()).unwrap_or_default();
    batch
}

fn close(got: &[f32], expected: &[f32], bound: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= bound, "{what}, element {i}: {got} not {expected}");
    }
}

const FAMILIES: [&str; 8] = [
    "roberta",
    "xlm-roberta",
    "bert",
    "distilbert",
    "modernbert",
    "modernbert-mean",
    "deberta-v3",
    "deberta-v2",
];

/// The fast and the plain form of a classifier.
fn forms(json: &str, checkpoint: &Checkpoint) -> [(&'static str, Box<dyn Classifier>); 2] {
    let (fast, plain): (Box<dyn Classifier>, Box<dyn Classifier>) =
        match Identity::parse(json).unwrap().family {
            Family::ModernBert => {
                let config = ModernBertConfig::parse(json).unwrap();
                let fast = modernbert::Fast::load(config.clone(), checkpoint).unwrap();
                let plain = modernbert::Plain::load(config, checkpoint, Device::Cpu).unwrap();
                (Box::new(fast), Box::new(plain))
            }
            Family::DebertaV2 => {
                let config = DebertaConfig::parse(json).unwrap();
                let fast = deberta::Fast::load(config.clone(), checkpoint).unwrap();
                let plain = deberta::Plain::load(config, checkpoint, Device::Cpu).unwrap();
                (Box::new(fast), Box::new(plain))
            }
            _ => {
                let config = EncoderConfig::parse(json).unwrap();
                let fast = FastEncoder::load(config.clone(), checkpoint).unwrap();
                let plain = PlainEncoder::load(config, checkpoint, Device::Cpu).unwrap();
                (Box::new(fast), Box::new(plain))
            }
        };
    [("fast", fast), ("plain", plain)]
}

fn config_json(model: &str) -> String {
    std::fs::read_to_string(folder(model).join("config.json")).unwrap()
}

#[test]
fn scores_are_those_of_transformers() {
    for model in FAMILIES {
        let checkpoint = Checkpoint::open(&folder(model)).unwrap();
        let batches = json::<Scores>(model, "scores.json").batches;
        for (form, mut classifier) in forms(&config_json(model), &checkpoint) {
            for (i, batch) in batches.iter().enumerate() {
                let rows = ragged(&batch.rows, batch.type_ids.as_ref());
                let got = classifier.score(rows.view(), &Unattended).unwrap();
                close(&got, &batch.logits.concat(), 2e-5, &format!("{model}, batch {i}, {form}"));
            }
        }
    }
}

#[test]
fn a_row_alone_scores_as_in_a_batch() {
    for model in FAMILIES {
        let checkpoint = Checkpoint::open(&folder(model)).unwrap();
        let [(_, mut fast), _] = forms(&config_json(model), &checkpoint);
        let batch = &json::<Scores>(model, "scores.json").batches[3];
        let types = batch.type_ids.as_ref();
        let together = fast.score(ragged(&batch.rows, types).view(), &Unattended).unwrap();
        let labels = together.len() / batch.rows.len();
        for (i, row) in batch.rows.iter().enumerate() {
            let types = types.map(|types| vec![types[i].clone()]);
            let rows = ragged(std::slice::from_ref(row), types.as_ref());
            let alone = fast.score(rows.view(), &Unattended).unwrap();
            close(&alone, &together[i * labels..][..labels], 1e-6, &format!("{model}, row {i}"));
        }
    }
}

/// Of a model with three labels, one is loaded: as a scorer, and to be fine-tuned.
#[test]
fn one_label_of_several_ranks() {
    for model in ["xlm-roberta", "deberta-v2"] {
        let checkpoint = Checkpoint::open(&folder(model)).unwrap();
        let batch = &json::<Scores>(model, "scores.json").batches[3];
        let rows = ragged(&batch.rows, batch.type_ids.as_ref());
        let mut config: serde_json::Value = serde_json::from_str(&config_json(model)).unwrap();
        config["id2label"] = serde_json::json!({"0": "entailment"});
        config["ranking_label"] = serde_json::json!({"name": "entailment", "index": 2, "of": 3});
        let config = config.to_string();
        let expected: Vec<f32> = batch.logits.iter().map(|logits| logits[2]).collect();
        for (form, mut classifier) in forms(&config, &checkpoint) {
            assert_eq!(classifier.info().labels, 1, "{model}, {form}");
            let got = classifier.score(rows.view(), &Unattended).unwrap();
            close(&got, &expected, 2e-5, &format!("{model}, {form}"));
        }
        if model != "xlm-roberta" {
            continue;
        }
        let options = TrainerOptions::default();
        let encoder = EncoderConfig::parse(&config).unwrap();
        let mut trainer = EncoderTrainer::load(encoder.clone(), &checkpoint, options).unwrap();
        close(&trainer.score(rows.view(), &Unattended).unwrap(), &expected, 2e-5, "trainer");
        let saved = tempfile::tempdir().unwrap();
        trainer.save_model(saved.path().to_str().unwrap()).unwrap();
        let saved = Checkpoint::open(saved.path()).unwrap();
        assert_eq!(saved.shape("classifier.out_proj.weight"), Some(&[1, 32][..]), "one label is left");
        let mut again = FastEncoder::load(encoder, &saved).unwrap();
        close(&again.score(rows.view(), &Unattended).unwrap(), &expected, 2e-5, "saved");
    }
}

/// Files that were saved as the bare encoder, or converted from TensorFlow, have other names.
#[test]
fn other_names_of_tensors_are_found() {
    for model in ["bert", "distilbert", "deberta-v3", "modernbert"] {
        let checkpoint = Checkpoint::open(&folder(model)).unwrap();
        let bytes = std::fs::read(folder(model).join("model.safetensors")).unwrap();
        let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let base = Identity::parse(&config_json(model)).unwrap().family.base();
        let renamed = stored.tensors().into_iter().map(|(name, tensor)| {
            let name = name.strip_prefix(base).and_then(|rest| rest.strip_prefix('.')).unwrap_or(&name);
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
            (name.replace("LayerNorm.bias", "LayerNorm.beta"), tensor)
        });
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("model.safetensors");
        safetensors::serialize_to_file(renamed, None, &file).unwrap();
        let other = Checkpoint::open(directory.path()).unwrap();
        let rows = ragged(&json::<Scores>(model, "scores.json").batches[1].rows, None);
        let [expected, got] = [&checkpoint, &other].map(|checkpoint| {
            let [(_, mut fast), _] = forms(&config_json(model), checkpoint);
            fast.score(rows.view(), &Unattended).unwrap()
        });
        assert_eq!(got, expected, "{model}");
    }
}

#[test]
fn families_without_a_backward_pass_are_not_trained() {
    for (model, name) in [("modernbert", "modernbert"), ("deberta-v3", "deberta-v2")] {
        let request = cappy_plugin_abi::LoadRequest {
            model_dir: folder(model).to_str().unwrap().into(),
            config_json: config_json(model),
            device: "cpu".into(),
            dtype: "f32".into(),
            options_json: String::new(),
        };
        let failure = cappy_plugin_abi::Backend::load_trainer(&CandleBackend, &request).err().unwrap();
        assert_eq!(failure.code, Code::Unsupported);
        assert!(failure.message.contains(name) && failure.message.contains("distilbert"), "{failure}");
    }
}

fn trainer(model: &str, dropout: f64) -> EncoderTrainer {
    let (config, checkpoint) = open(model);
    EncoderTrainer::load(config, &checkpoint, TrainerOptions { dropout, ..TrainerOptions::default() })
        .unwrap()
}

#[test]
fn fine_tuning_follows_pytorch() {
    let expected: Training = json("roberta", "training.json");
    let mut trainer = trainer("roberta", 0.0);
    for (k, micro_batches) in expected.micro_batches.chunks(expected.accumulate).enumerate() {
        let mut loss = 0.0;
        for (i, micro) in micro_batches.iter().enumerate() {
            let batch = ragged(&micro.rows, None);
            let step = (k * expected.accumulate + i) as u64;
            loss += f64::from(trainer.accumulate(batch.view(), &micro.labels, step, &Unattended).unwrap());
        }
        let loss = loss / expected.accumulate as f64;
        let norm = trainer.update(expected.learning_rates[k]).unwrap();
        for (what, got, expected) in
            [("loss", loss, expected.losses[k]), ("gradient norm", norm, expected.gradient_norms[k])]
        {
            assert!((got - expected).abs() <= 1e-3 * expected, "update {k}, {what}: {got} not {expected}");
        }
    }
    let rows = ragged(&expected.micro_batches[0].rows, None);
    close(&trainer.score(rows.view(), &Unattended).unwrap(), &expected.final_scores, 1e-3, "final scores");

    let saved = tempfile::tempdir().unwrap();
    trainer.save_model(saved.path().to_str().unwrap()).unwrap();
    let checkpoint = Checkpoint::open(saved.path()).unwrap();
    let (config, _) = open("roberta");
    let layout = Layout::new(&config);
    assert_eq!(
        expected.final_weights.len(),
        layout.slots.list().len(),
        "every parameter of transformers has its place"
    );
    for slot in layout.slots.list() {
        let values = checkpoint.read(&slot.name, &slot.shape).unwrap();
        let expected = &expected.final_weights[&slot.name];
        // Keys' biases have no gradient but rounding, which AdamW makes as large as any other.
        if !slot.name.ends_with("key.bias") {
            close(&values[..expected.len()], expected, 1e-3, &slot.name);
        }
    }
}

/// Loss and gradient norm of the hand-written backward pass against candle's autograd over the plain model. The pad
/// entry of the word embeddings (BERT's rows here begin with it) gets no gradient, as PyTorch's `padding_idx` says.
#[test]
fn every_family_follows_candles_autograd() {
    for model in ["roberta", "bert", "distilbert"] {
        let (config, checkpoint) = open(model);
        let batches: Scores = json(model, "scores.json");
        let batch = &batches.batches[3];
        let rows = ragged(&batch.rows, batch.type_ids.as_ref());
        let layout = Layout::new(&config);
        let vars: Vec<(String, Var)> = layout
            .slots
            .list()
            .iter()
            .map(|slot| {
                let values = layout.slots.read(&checkpoint, &slot.range).unwrap();
                let var = Var::from_vec(values, slot.shape.as_slice(), &Device::Cpu).unwrap();
                (slot.name.clone(), var)
            })
            .collect();
        let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let plain = PlainEncoder::from_tensors(config.clone(), tensors, Device::Cpu);
        let count = batch.rows.len();
        let losses: Vec<_> = (0..count)
            .map(|row| (plain.forward(rows.view(), &[row]).unwrap() - 0.25).unwrap().sqr().unwrap())
            .collect();
        let loss = (candle_core::Tensor::cat(&losses, 0).unwrap().sum_all().unwrap() / count as f64).unwrap();
        let gradients = loss.backward().unwrap();
        let mut square = 0.0;
        for (name, var) in &vars {
            let gradient = gradients.get(var.as_tensor()).unwrap_or_else(|| panic!("{name} got no gradient"));
            let skipped =
                if name.contains("word_embeddings") { Some(config.pad_token_id as usize) } else { None };
            let values = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (i, row) in values.chunks(gradient.dims().get(1).copied().unwrap_or(1)).enumerate() {
                if Some(i) != skipped {
                    square += row.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
                }
            }
        }
        let mut trainer = trainer(model, 0.0);
        let got = trainer.accumulate(rows.view(), &vec![0.25; count], 0, &Unattended).unwrap();
        let expected = loss.to_scalar::<f32>().unwrap();
        assert!((got - expected).abs() < 1e-5 * expected.max(1.0), "{model}: loss {got} not {expected}");
        let norm = trainer.update(0.0).unwrap();
        assert!((norm / square.sqrt() - 1.0).abs() < 1e-4, "{model}: norm {norm} not {}", square.sqrt());
    }
}

/// With dropout, so masks too; parallel sums run in a fixed order.
#[test]
fn training_does_not_depend_on_the_number_of_threads() {
    let data: Training = json("roberta", "training.json");
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut trainer = trainer("roberta", 0.1);
            for (step, micro) in data.micro_batches[..12].iter().enumerate() {
                let batch = ragged(&micro.rows, None);
                trainer.accumulate(batch.view(), &micro.labels, step as u64, &Unattended).unwrap();
                trainer.update(1e-3).unwrap();
            }
            let rows = ragged(&data.micro_batches[0].rows, None);
            trainer.score(rows.view(), &Unattended).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    let alone = run(1);
    assert_eq!(run(3), alone);
    assert_eq!(run(8), alone);
}

/// What was accumulated is gone, and the caller is told what to do.
#[test]
fn an_exploded_model_says_so() {
    let mut trainer = trainer("roberta", 0.0);
    let batch = ragged(&[vec![0, 9, 2], vec![0, 77, 2]], None);
    trainer.accumulate(batch.view(), &[0.5, 0.1], 0, &Unattended).unwrap();
    trainer.update(1e30).unwrap();
    let failure = trainer.accumulate(batch.view(), &[0.5, 0.1], 1, &Unattended).unwrap_err();
    assert_eq!(failure.code, Code::NotFinite);
    assert!(failure.message.contains("step 1") && failure.message.contains("learning rate"), "{failure}");
    assert_eq!(trainer.update(1e-3).unwrap_err().code, Code::FailedPrecondition);
}

/// A model whose head is missing trains from a keyed initial one; a scorer refuses it.
#[test]
fn an_encoder_without_head_gets_one() {
    let (config, checkpoint) = open("roberta");
    let layout = Layout::new(&config);
    let directory = tempfile::tempdir().unwrap();
    let body: Vec<_> = layout.slots.list()[..layout.head().start]
        .iter()
        .map(|slot| {
            let values = checkpoint.read(&slot.name, &slot.shape).unwrap();
            (
                slot.name.clone(),
                candle_core::Tensor::from_vec(values, slot.shape.as_slice(), &Device::Cpu).unwrap(),
            )
        })
        .collect();
    candle_core::safetensors::save(&body.into_iter().collect(), directory.path().join("model.safetensors"))
        .unwrap();
    let headless = EncoderConfig { classifier: false, ..config.clone() };
    let load = |config: &EncoderConfig, seed: u64| {
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        EncoderTrainer::load(
            config.clone(),
            &checkpoint,
            TrainerOptions { seed, ..TrainerOptions::default() },
        )
    };
    let score = |seed: u64| {
        let rows = ragged(&[vec![0, 9, 2]], None);
        load(&headless, seed).unwrap().score(rows.view(), &Unattended).unwrap()
    };
    assert_eq!(score(1), score(1));
    assert_ne!(score(1), score(2));
    let failure = load(&config, 1).err().expect("a classifier without head is damaged");
    assert!(failure.message.contains("classifier.dense.weight"), "{failure}");
}

/// The backend with one of its scorers.
fn with_scorer(model: &str) -> Fixture {
    Fixture::new(builtin(CandleBackend).expect("describes itself"))
        .scorer(Model::new(folder(model).to_str().unwrap()))
        .generator(Model::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/t5_v1_1")))
        .trainer(trained("roberta"))
}

fn trained(model: &str) -> Model {
    Model { learning_rate: 2e-3, ..Model::new(folder(model).to_str().unwrap()) }
}

cappy_plugin_suite::backend_suite!(linked, with_scorer("roberta"));
cappy_plugin_suite::backend_suite!(
    distilbert_suite,
    with_scorer("distilbert").trainer(trained("distilbert"))
);
cappy_plugin_suite::backend_suite!(modernbert_suite, with_scorer("modernbert"));
cappy_plugin_suite::backend_suite!(deberta_suite, with_scorer("deberta-v3"));
