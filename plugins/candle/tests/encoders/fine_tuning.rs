//! Fine-tuning: PyTorch's losses and weights, candle's gradients, and what holds whatever the numbers are.

use candle_core::{Device, Var};
use cappy_plugin_abi::{Code, Scorer, Trainer, TrainerOptions, Unattended};
use cappy_plugin_candle::encoder::config::EncoderConfig;
use cappy_plugin_candle::encoder::layout::Layout;
use cappy_plugin_candle::encoder::plain::PlainEncoder;
use cappy_plugin_candle::encoder::scorer::EncoderScorer;
use cappy_plugin_candle::trainer::EncoderTrainer;
use cappy_plugin_candle::weights::Checkpoint;
use serde::Deserialize;

use super::{Scores, close, config_json, json, open, ragged};

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

fn trainer(model: &str, dropout: f64) -> EncoderTrainer {
    let (config, checkpoint) = open(model);
    EncoderTrainer::load(config, &checkpoint, TrainerOptions { dropout, ..TrainerOptions::default() })
        .unwrap()
}

#[test]
fn fine_tuning_follows_pytorch() {
    follows_pytorch("roberta");
    follows_pytorch("distilbert");
}

fn follows_pytorch(model: &str) {
    let expected: Training = json(model, "training.json");
    let mut trainer = trainer(model, 0.0);
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
            assert!(
                (got - expected).abs() <= 1e-3 * expected,
                "{model}, update {k}, {what}: {got} not {expected}"
            );
        }
    }
    let rows = ragged(&expected.micro_batches[0].rows, None);
    close(&trainer.score(rows.view(), &Unattended).unwrap(), &expected.final_scores, 1e-3, "final scores");

    let saved = tempfile::tempdir().unwrap();
    trainer.save_model(saved.path().to_str().unwrap()).unwrap();
    let checkpoint = Checkpoint::open(saved.path()).unwrap();
    let (config, _) = open(model);
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
        if !slot.name.ends_with("key.bias") && !slot.name.ends_with("k_lin.bias") {
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
    // What was fine-tuned keeps the configuration of the bare encoder, and is a scorer.
    let saved = tempfile::tempdir().unwrap();
    load(&headless, 1).unwrap().save_model(saved.path().to_str().unwrap()).unwrap();
    let bare = config_json("roberta").replace("RobertaForSequenceClassification", "RobertaForMaskedLM");
    let scorer = |dir: &std::path::Path| {
        EncoderScorer::load(&bare, &Checkpoint::open(dir).unwrap(), Device::Cpu)
            .map_err(|failure| failure.message)
    };
    let rows = ragged(&[vec![0, 9, 2]], None);
    close(&scorer(saved.path()).unwrap().score(rows.view(), &Unattended).unwrap(), &score(1), 2e-5, "saved");
    let message = scorer(directory.path()).err().unwrap();
    assert!(message.contains("without a classification head"), "{message}");
    let failure = load(&config, 1).err().expect("a classifier without head is damaged");
    assert!(failure.message.contains("classifier.dense.weight"), "{failure}");
}
