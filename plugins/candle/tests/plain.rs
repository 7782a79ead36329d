//! The plain form in candle's operations: against transformers' stored scores, and, by autograd, against the
//! hand-written backward pass. (The fast form is compared in `conformance.rs`.)

use candle_core::{Device, Tensor, Var};
use cappy_plugin_abi::{Backend, Code, LoadRequest, Trainer, TrainerOptions, Unattended};
use cappy_plugin_candle::CandleBackend;
use cappy_plugin_candle::encoder::config::EncoderConfig;
use cappy_plugin_candle::encoder::deberta::{self, DebertaConfig};
use cappy_plugin_candle::encoder::family::{Family, Identity};
use cappy_plugin_candle::encoder::layout::Layout;
use cappy_plugin_candle::encoder::modernbert::{self, ModernBertConfig};
use cappy_plugin_candle::encoder::plain::PlainEncoder;
use cappy_plugin_candle::encoder::scorer::Classifier;
use cappy_plugin_candle::trainer::EncoderTrainer;
use cappy_plugin_candle::weights::Checkpoint;
use cappy_plugin_suite::golden::stored::{self, CLASSIFIERS, one_label};
use cappy_plugin_suite::golden::{close, request};

/// Where the plain form computes.
fn device() -> Device {
    match cappy_plugin_suite::device().as_str() {
        "cpu" => Device::Cpu,
        name => {
            let ordinal = name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
            Device::new_cuda(ordinal.unwrap_or_else(|| panic!("`{name}` is no `cpu` or `cuda:0`"))).unwrap()
        }
    }
}

fn checkpoint(request: &LoadRequest) -> Checkpoint {
    Checkpoint::open(request.model_dir.as_ref()).unwrap()
}

fn plain(request: &LoadRequest) -> Box<dyn Classifier> {
    let (json, checkpoint) = (request.config_json.as_str(), checkpoint(request));
    match Identity::parse(json).unwrap().family {
        Family::ModernBert => {
            let config = ModernBertConfig::parse(json).unwrap();
            Box::new(modernbert::Plain::load(config, &checkpoint, device()).unwrap())
        }
        Family::DebertaV2 => {
            let config = DebertaConfig::parse(json).unwrap();
            Box::new(deberta::Plain::load(config, &checkpoint, device()).unwrap())
        }
        _ => {
            let config = EncoderConfig::parse(json).unwrap();
            Box::new(PlainEncoder::load(config, &checkpoint, device()).unwrap())
        }
    }
}

#[test]
fn plain_scores_are_those_of_transformers() {
    for model in CLASSIFIERS {
        let mut plain = plain(&request(model));
        for (i, batch) in stored::scores(model).iter().enumerate() {
            let got = plain.score(batch.batch().view(), &Unattended).unwrap();
            close(&got, &batch.logits.concat(), 2e-5, &format!("{model}, batch {i}"));
        }
    }
}

/// Of a model with three labels, one is loaded.
#[test]
fn one_label_of_several_ranks() {
    for model in ["xlm-roberta", "deberta-v2"] {
        let batch = &stored::scores(model)[3];
        let mut plain = plain(&one_label(&request(model), 2, 3));
        assert_eq!(plain.info().labels, 1, "{model}");
        let expected: Vec<f32> = batch.logits.iter().map(|logits| logits[2]).collect();
        close(&plain.score(batch.batch().view(), &Unattended).unwrap(), &expected, 2e-5, model);
    }
}

fn trainer(model: &str, dropout: f64) -> EncoderTrainer {
    let request = request(model);
    let config = EncoderConfig::parse(&request.config_json).unwrap();
    let options = TrainerOptions { dropout, ..TrainerOptions::default() };
    EncoderTrainer::load(config, &checkpoint(&request), options).unwrap()
}

/// Loss and gradient norm of the hand-written backward pass against candle's autograd over the plain model. The pad
/// entry of the word embeddings (BERT's rows here begin with it) gets no gradient, as PyTorch's `padding_idx` says.
#[test]
fn every_family_follows_candles_autograd() {
    for model in ["roberta", "bert", "distilbert"] {
        let request = request(model);
        let config = EncoderConfig::parse(&request.config_json).unwrap();
        let checkpoint = checkpoint(&request);
        let batch = &stored::scores(model)[3];
        let rows = batch.batch();
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
        let loss = (Tensor::cat(&losses, 0).unwrap().sum_all().unwrap() / count as f64).unwrap();
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
    let data = stored::training("roberta");
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut trainer = trainer("roberta", 0.1);
            for (step, micro) in data.micro_batches[..12].iter().enumerate() {
                let batch = micro.batch();
                trainer.accumulate(batch.view(), &micro.labels, step as u64, &Unattended).unwrap();
                trainer.update(1e-3).unwrap();
            }
            let rows = data.micro_batches[0].batch();
            trainer.score(rows.view(), &Unattended).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    let alone = run(1);
    assert_eq!(run(3), alone);
    assert_eq!(run(8), alone);
}

#[test]
fn families_without_a_backward_pass_are_not_trained() {
    for (model, name) in [("modernbert", "modernbert"), ("deberta-v3", "deberta-v2")] {
        let request = LoadRequest { device: "cpu".into(), ..request(model) };
        let failure = CandleBackend.load_trainer(&request).err().unwrap();
        assert_eq!(failure.code, Code::Unsupported);
        assert!(failure.message.contains(name) && failure.message.contains("distilbert"), "{failure}");
    }
}
