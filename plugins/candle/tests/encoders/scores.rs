//! Scores of every family, in the fast form and the plain one.

use cappy_plugin_abi::{Backend, Code, LoadRequest, Trainer, TrainerOptions, Unattended};
use cappy_plugin_candle::CandleBackend;
use cappy_plugin_candle::encoder::config::EncoderConfig;
use cappy_plugin_candle::encoder::deberta::{self, DebertaConfig};
use cappy_plugin_candle::encoder::family::{Family, Identity};
use cappy_plugin_candle::encoder::fast::FastEncoder;
use cappy_plugin_candle::encoder::modernbert::{self, ModernBertConfig};
use cappy_plugin_candle::encoder::plain::PlainEncoder;
use cappy_plugin_candle::encoder::scorer::Classifier;
use cappy_plugin_candle::trainer::EncoderTrainer;
use cappy_plugin_candle::weights::Checkpoint;

use super::{Scores, close, config_json, device, folder, json, ragged};

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
                let plain = modernbert::Plain::load(config, checkpoint, device()).unwrap();
                (Box::new(fast), Box::new(plain))
            }
            Family::DebertaV2 => {
                let config = DebertaConfig::parse(json).unwrap();
                let fast = deberta::Fast::load(config.clone(), checkpoint).unwrap();
                let plain = deberta::Plain::load(config, checkpoint, device()).unwrap();
                (Box::new(fast), Box::new(plain))
            }
            _ => {
                let config = EncoderConfig::parse(json).unwrap();
                let fast = FastEncoder::load(config.clone(), checkpoint).unwrap();
                let plain = PlainEncoder::load(config, checkpoint, device()).unwrap();
                (Box::new(fast), Box::new(plain))
            }
        };
    [("fast", fast), ("plain", plain)]
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
        let request = LoadRequest {
            model_dir: folder(model).to_str().unwrap().into(),
            config_json: config_json(model),
            device: "cpu".into(),
            dtype: "f32".into(),
            options_json: String::new(),
        };
        let failure = CandleBackend.load_trainer(&request).err().unwrap();
        assert_eq!(failure.code, Code::Unsupported);
        assert!(failure.message.contains(name) && failure.message.contains("distilbert"), "{failure}");
    }
}
