//! Resolving directories and the demo: conversion happens once, content decides the fingerprint, and everything
//! wrong is named in one line.

mod support;

use std::path::{Path, PathBuf};

use cappy_hub::{ErrorKind, Hub, Role, Silent};
use support::{settings, tiny_model, weights_fixture, write_model};

fn hub(root: &Path) -> Hub {
    Hub::new(settings(root, "http://127.0.0.1:1"))
}

fn name(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

#[test]
fn a_published_directory_is_converted_once() {
    let root = tempfile::tempdir().unwrap();
    let hub = hub(root.path());
    let [here, there] =
        ["here", "there"].map(|dir| write_model(&root.path().join(dir), &tiny_model("flax_model.msgpack")));
    let first = hub.resolve(name(&here), Role::Scorer, &Silent).unwrap();
    assert_ne!(first.dir, here);
    let made = std::fs::metadata(first.dir.join("model.safetensors")).unwrap().modified().unwrap();
    let mut held: Vec<_> = std::fs::read_dir(&first.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    held.sort();
    assert_eq!(held, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!((first.vocab_size, first.architecture.model_type()), (24, "bert"));
    assert!(first.parameters > 0 && first.weight_bytes == 4 * first.parameters);

    for dir in [&here, &there] {
        let again = hub.convert(name(dir), &Silent).unwrap();
        assert_eq!((&again.dir, &again.fingerprint), (&first.dir, &first.fingerprint));
    }
    let now = std::fs::metadata(first.dir.join("model.safetensors")).unwrap().modified().unwrap();
    assert_eq!(now, made, "not converted again");

    // A converted directory is itself a model, with the same content.
    let converted = hub.resolve(name(&first.dir), Role::Scorer, &Silent).unwrap();
    assert_eq!((&converted.dir, &converted.fingerprint), (&first.dir, &first.fingerprint));

    // Damage to what was made is repaired from what it was made of.
    std::fs::write(first.dir.join("model.safetensors"), "damaged").unwrap();
    assert_eq!(hub.resolve(name(&here), Role::Scorer, &Silent).unwrap().fingerprint, first.fingerprint);
}

#[test]
fn only_the_tokenizer_is_made_where_only_that_is_missing() {
    let root = tempfile::tempdir().unwrap();
    let hub = hub(root.path());
    let dir = write_model(&root.path().join("model"), &tiny_model("model.safetensors"));
    let model = hub.resolve(name(&dir), Role::Scorer, &Silent).unwrap();
    assert_ne!(model.dir, dir);
    assert!(
        std::fs::symlink_metadata(model.dir.join("model.safetensors")).unwrap().is_symlink(),
        "not copied"
    );

    // A directory that has everything is used as it is.
    std::fs::copy(model.tokenizer_file(), dir.join("tokenizer.json")).unwrap();
    let whole = hub.resolve(name(&dir), Role::Scorer, &Silent).unwrap();
    assert_eq!((&whole.dir, &whole.fingerprint), (&dir, &model.fingerprint));
}

#[test]
fn the_demo_resolves_in_both_roles() {
    let root = tempfile::tempdir().unwrap();
    let hub = hub(root.path());
    let scorer = hub.resolve("demo", Role::Scorer, &Silent).unwrap();
    let generator = hub.resolve("demo", Role::Generator, &Silent).unwrap();
    assert_eq!((scorer.architecture.role(), generator.architecture.role()), (Role::Scorer, Role::Generator));
    assert_ne!(scorer.fingerprint, generator.fingerprint);
    assert_eq!(hub.resolve("demo", Role::Scorer, &Silent).unwrap().fingerprint, scorer.fingerprint);
    cappy_hub::load_tokenizer(&generator.dir).unwrap();
}

#[test]
fn a_classifier_of_several_labels_ranks_by_one() {
    let root = tempfile::tempdir().unwrap();
    let hub = hub(root.path());
    // DistilBERT with three labels, in Flax's form: converted once, then once more for each label.
    let mut files = tiny_model("flax_model.msgpack");
    for (file, content) in &mut files {
        if file != "vocab.txt" && file != "tokenizer_config.json" {
            *content = weights_fixture(&format!("flax-distilbert/{file}"));
        }
    }
    let config = &mut files[0].1;
    let text = String::from_utf8(config.clone()).unwrap();
    let named = text.replacen("LABEL_0", "contradiction", 1).replacen("LABEL_1", "entailment", 1);
    *config = named.clone().into_bytes();
    let dir = write_model(&root.path().join("nli"), &files);

    let meant = hub.resolve(name(&dir), Role::Scorer, &Silent).unwrap();
    assert_eq!(meant.labels, ["contradiction", "entailment", "LABEL_2"]);
    assert_eq!(meant.ranking_label.as_ref().unwrap().index, 1);
    assert_eq!(meant.architecture.model_type(), "distilbert");
    assert!(std::fs::symlink_metadata(meant.dir.join("model.safetensors")).unwrap().is_symlink());
    let by = |label: &str| hub.resolve(&format!("{}#{label}", name(&dir)), Role::Scorer, &Silent);
    let named_label = by("entailment").unwrap();
    assert_eq!((&named_label.dir, &named_label.fingerprint), (&meant.dir, &meant.fingerprint));
    let other = by("0").unwrap();
    assert_ne!(other.fingerprint, meant.fingerprint);
    assert!(other.config_json.contains(r#""ranking_label":{"name":"contradiction","index":0,"of":3}"#));

    // What is only brought or checked needs no label, and a made directory is itself a model.
    let whole = hub.convert(name(&dir), &Silent).unwrap();
    assert_eq!((whole.labels.len(), &whole.ranking_label), (3, &None));
    assert_eq!(hub.verify(name(&dir), None, &Silent).unwrap().0.fingerprint, whole.fingerprint);
    let again = hub.resolve(name(&other.dir), Role::Scorer, &Silent).unwrap();
    assert_eq!((again.dir, again.fingerprint), (other.dir, other.fingerprint));

    std::fs::write(dir.join("config.json"), named.replacen("entailment", "unrelated", 1)).unwrap();
    for (error, expected) in [
        (
            by("neutral").unwrap_err(),
            "it has no label `neutral`; it has 0 contradiction, 1 unrelated, 2 LABEL_2",
        ),
        (by("").unwrap_err(), "nothing follows `#`"),
        (hub.resolve(name(&dir), Role::Scorer, &Silent).unwrap_err(), "say which one ranks, as NAME#LABEL"),
        (hub.resolve("demo#x", Role::Generator, &Silent).unwrap_err(), "a t5 is no classifier"),
    ] {
        let text = error.to_string();
        assert!(error.kind() == ErrorKind::Invalid && text.contains(expected), "{text}");
    }
}

#[test]
fn bad_directories_are_named_in_one_line() {
    let root = tempfile::tempdir().unwrap();
    let hub = hub(root.path());
    let good = {
        let dir = write_model(&root.path().join("good"), &tiny_model("model.safetensors"));
        let model = hub.resolve(name(&dir), Role::Scorer, &Silent).unwrap();
        std::fs::copy(model.tokenizer_file(), dir.join("tokenizer.json")).unwrap();
        dir
    };
    let read = |file: &str| std::fs::read(good.join(file)).unwrap();
    let weights = read("model.safetensors");
    let config = String::from_utf8(read("config.json")).unwrap();
    let tokenizer = String::from_utf8(read("tokenizer.json")).unwrap();
    let beyond = tokenizer.replace("\"##ly\":7", "\"##ly\":24");
    assert_ne!(beyond, tokenizer);
    let other_vocabulary = config.replace(r#""vocab_size": 24"#, r#""vocab_size": 25"#);
    assert_ne!(other_vocabulary, config);

    type Change = Box<dyn Fn(&Path)>;
    let write = |file: &'static str, content: Vec<u8>| -> Change {
        Box::new(move |dir| std::fs::write(dir.join(file), &content).unwrap())
    };
    let remove =
        |file: &'static str| -> Change { Box::new(move |dir| std::fs::remove_file(dir.join(file)).unwrap()) };
    let length = |n: u64| [&n.to_le_bytes()[..], &weights[8..]].concat();
    let table: Vec<(Change, ErrorKind, &str)> = vec![
        (remove("config.json"), ErrorKind::NotFound, "`config.json` is missing"),
        (
            remove("model.safetensors"),
            ErrorKind::NotFound,
            "`model.safetensors` is missing; nor is there a pytorch_model.bin",
        ),
        (write("config.json", b"{".to_vec()), ErrorKind::Invalid, "`config.json`: it is not JSON"),
        (
            write("config.json", br#"{"model_type":"gpt2"}"#.to_vec()),
            ErrorKind::Invalid,
            "architecture `gpt2` is not supported; supported: scorers roberta, xlm-roberta, bert, distilbert, modernbert, deberta-v2; generators t5",
        ),
        (
            write("config.json", other_vocabulary.into_bytes()),
            ErrorKind::Invalid,
            "says vocab_size 25, the embedding `bert.embeddings.word_embeddings.weight` has 24 rows",
        ),
        (
            write("tokenizer.json", b"{}".to_vec()),
            ErrorKind::Invalid,
            "`tokenizer.json`: it is not a tokenizer",
        ),
        (
            write("tokenizer.json", beyond.into_bytes()),
            ErrorKind::Invalid,
            "has token id 24, `config.json` says vocab_size 24",
        ),
        (
            write("model.safetensors", weights[..weights.len() - 1].to_vec()),
            ErrorKind::Invalid,
            "`model.safetensors`: the tensors need",
        ),
        (
            write("model.safetensors", weights[..100].to_vec()),
            ErrorKind::Invalid,
            "`model.safetensors`: the header claims",
        ),
        (
            write("model.safetensors", length(1 << 63)),
            ErrorKind::Invalid,
            "the header claims 9223372036854775808 bytes",
        ),
        (write("model.safetensors", Vec::new()), ErrorKind::Invalid, "too few for a safetensors file"),
    ];
    for (at, (change, kind, expected)) in table.into_iter().enumerate() {
        let dir: PathBuf = root.path().join(format!("bad-{at}"));
        std::fs::create_dir(&dir).unwrap();
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            std::fs::copy(good.join(file), dir.join(file)).unwrap();
        }
        hub.resolve(name(&dir), Role::Scorer, &Silent).unwrap();
        change(&dir);
        let error = hub.resolve(name(&dir), Role::Scorer, &Silent).expect_err(expected);
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains(name(&dir)) && !text.contains('\n'), "{text}");
        assert_eq!(error.kind(), kind, "{text}");
    }

    let missing = root.path().join("nowhere");
    let error = hub.resolve(name(&missing), Role::Scorer, &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("no such directory"), "{error}");

    let bin = root.path().join("bin");
    write_model(&bin, &tiny_model("model.safetensors")[..3]);
    std::fs::write(bin.join("pytorch_model.bin"), b"\x80\x02cposix\nsystem\n(X\x02\0\0\0lstR.").unwrap();
    let error = hub.resolve(name(&bin), Role::Scorer, &Silent).unwrap_err().to_string();
    assert!(error.contains("`pytorch_model.bin`: it would load `posix.system`"), "{error}");
    let left = std::fs::read_dir(root.path().join("data/models/converted")).unwrap();
    assert!(
        left.flatten().all(|entry| !entry.file_name().to_string_lossy().starts_with('.')),
        "nothing half-made stays"
    );
}
