//! `pytorch_model.bin` and `flax_model.msgpack` become the tensors that PyTorch and transformers say they hold
//! (`fixtures/make_weights.py`), and hostile ones become nothing.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use cappy_hub::config::Architecture;
use cappy_hub::flax::{self, FlaxError};
use cappy_hub::pickle::{self, PickleError};
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name)
}

fn pickled(files: &[PathBuf]) -> Result<Vec<u8>, PickleError> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("model.safetensors");
    let result = pickle::convert(files, &output);
    assert_eq!(result.is_ok(), output.exists(), "whole or not at all");
    result.map(|()| std::fs::read(&output).unwrap()).map_err(|(_, error)| error)
}

fn pickled_bytes(content: &[u8]) -> Result<Vec<u8>, PickleError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    std::fs::write(&path, content).unwrap();
    pickled(&[path])
}

fn assert_same_tensors(found: &[u8], expected: &Path, what: &str) {
    let expected = std::fs::read(expected).unwrap();
    let (found, expected) =
        (SafeTensors::deserialize(found).unwrap(), SafeTensors::deserialize(&expected).unwrap());
    let sorted = |tensors: &SafeTensors<'_>| {
        let mut names: Vec<String> = tensors.names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(sorted(&found), sorted(&expected), "{what}");
    for (name, tensor) in expected.tensors() {
        assert_eq!(found.tensor(&name).unwrap(), tensor, "{what}: {name}");
    }
}

#[test]
fn pytorch_checkpoints_hold_what_pytorch_says() {
    let folder = fixture("pytorch");
    let expected = folder.join("expected.safetensors");
    for file in ["zip.bin", "legacy.bin"] {
        assert_same_tensors(&pickled(&[folder.join(file)]).unwrap(), &expected, file);
    }
    let shards =
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"].map(|f| folder.join(f));
    assert_same_tensors(&pickled(&shards).unwrap(), &expected, "shards");

    let twice = [folder.join("zip.bin"), folder.join("zip.bin")];
    assert!(matches!(pickled(&twice), Err(PickleError::TensorTwice(_))));

    let tied = pickled(&[folder.join("tied.bin")]).unwrap();
    let tied = SafeTensors::deserialize(&tied).unwrap();
    let mut names = tied.names();
    names.sort_unstable();
    assert_eq!(names, ["lm_head.weight", "shared.weight"], "safetensors of T5 hold the embedding once");
}

#[test]
fn flax_checkpoints_hold_what_transformers_says() {
    let table = [
        ("flax-roberta", Architecture::Roberta),
        ("flax-bert", Architecture::Bert),
        ("flax-distilbert", Architecture::DistilBert),
        ("flax-t5", Architecture::T5),
    ];
    for (name, architecture) in table {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("model.safetensors");
        flax::convert(&[fixture(name).join("flax_model.msgpack")], architecture, &output).unwrap();
        let found = std::fs::read(&output).unwrap();
        assert_same_tensors(&found, &fixture(name).join("expected.safetensors"), name);
    }
}

/// A pickle of the second protocol, as `torch.save` begins.
fn protocol_2(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn zipped(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in members {
        archive.start_file(*name, stored).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// `{name: _rebuild_tensor_v2(storage 0 of `elements` floats, offset, shape, strides, False, OrderedDict())}`.
fn one_tensor(elements: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let int = |n: i32| [b"J", &n.to_le_bytes()[..]].concat();
    let tuple = |numbers: &[i32]| {
        let items: Vec<u8> = numbers.iter().flat_map(|n| int(*n)).collect();
        [b"(", items.as_slice(), b"t"].concat()
    };
    let storage = [
        b"(".as_slice(),
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        &int(elements),
        b"tQ",
    ]
    .concat();
    let arguments = [
        b"(".as_slice(),
        &storage,
        &int(offset),
        &tuple(shape),
        &tuple(strides),
        b"\x89ccollections\nOrderedDict\n)R",
        b"t",
    ]
    .concat();
    protocol_2(
        &[b"}".as_slice(), &text("w"), b"ctorch._utils\n_rebuild_tensor_v2\n", &arguments, b"Rs"].concat(),
    )
}

#[test]
fn a_malicious_pickle_runs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let canary = dir.path().join("canary");
    let command = text(&format!("touch {}", canary.display()));
    let call = |global: &[u8]| [global, b"(", &command, b"tR"].concat();
    let attacks: Vec<(Vec<u8>, &str)> = vec![
        (call(b"cposix\nsystem\n"), "posix.system"),
        (call(b"cbuiltins\nexec\n"), "builtins.exec"),
        (call(b"cbuiltins\neval\n"), "builtins.eval"),
        (call(b"csubprocess\nPopen\n"), "subprocess.Popen"),
        (call(b"ctorch.serialization\nload\n"), "torch.serialization.load"),
        (call(b"ctorch\nload\n"), "torch.load"),
        (call(b"ctorch._utils\n_rebuild_wrapper_subclass\n"), "torch._utils._rebuild_wrapper_subclass"),
        ([&text("os")[..], &text("system"), b"\x93(", &command, b"tR"].concat(), "os.system"),
        ([b"(".as_slice(), &command, b"ios\nsystem\n"].concat(), "0x69"),
        ([b"(cos\nsystem\n".as_slice(), &command, b"o"].concat(), "os.system"),
        ([b"}".as_slice(), &text("w"), &call(b"cnt\nsystem\n"), b"s"].concat(), "nt.system"),
        (b"\x82\x01".to_vec(), "0x82"),
        (b"Pname\n".to_vec(), "0x50"),
    ];
    for (body, named) in attacks {
        let pickle = protocol_2(&body);
        for container in [pickle.clone(), zipped(&[("archive/data.pkl", &pickle)])] {
            let error = pickled_bytes(&container).expect_err(named).to_string();
            assert!(error.contains(named) && error.contains("nothing was executed"), "{named}: {error}");
        }
    }
    assert!(!canary.exists(), "the canary ran");
}

#[test]
fn damaged_checkpoints_are_refused() {
    use PickleError as E;
    let floats = vec![0; 48];
    let whole =
        |pickle: &[u8]| zipped(&[("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", &floats)]);
    assert!(pickled_bytes(&whole(&one_tensor(12, 0, &[3, 4], &[4, 1]))).is_ok());

    type Expected = fn(&E) -> bool;
    let outside: Expected = |e| matches!(e, E::OutsideStorage(_));
    let malformed: Expected = |e| matches!(e, E::Malformed(_));
    let storage: Expected = |e| matches!(e, E::Storage(_));
    let table: Vec<(&str, Vec<u8>, Expected)> = vec![
        ("view beyond", whole(&one_tensor(12, 1, &[3, 4], &[4, 1])), outside),
        ("expanded", whole(&one_tensor(12, 0, &[i32::MAX, 12], &[0, 1])), outside),
        ("overflow", whole(&one_tensor(12, 0, &[i32::MAX; 4], &[i32::MAX; 4])), outside),
        ("negative", whole(&one_tensor(12, -1, &[1], &[1])), malformed),
        ("strides", whole(&one_tensor(12, 0, &[3, 4], &[1])), malformed),
        ("claimed storage", whole(&one_tensor(13, 0, &[13], &[1])), storage),
        ("no storage", zipped(&[("m/data.pkl", &one_tensor(1, 0, &[1], &[1]))]), storage),
        ("no pickle", zipped(&[("m/other", b"")]), malformed),
        ("big-endian", zipped(&[("m/data.pkl", b""), ("m/byteorder", b"big")]), malformed),
        ("a number", whole(&protocol_2(b"K\x01")), malformed),
        (
            "no tensor",
            whole(&protocol_2(&[b"}".as_slice(), &text("w"), b"K\x01s"].concat())),
            |e| matches!(e, E::NotATensor(name) if name == "w"),
        ),
        ("empty stack", whole(&protocol_2(b"0")), malformed),
        ("no mark", whole(&protocol_2(b"t")), malformed),
        ("below the mark", whole(&protocol_2(b"K\x01(0")), malformed),
        ("unknown memo", whole(&protocol_2(b"h\x07")), malformed),
        ("cut pickle", whole(b"\x80\x02}"), |e| matches!(e, E::Truncated)),
        ("not a checkpoint", b"hello, world".to_vec(), |e| {
            matches!(e, E::Malformed(_) | E::ForbiddenOpcode(_))
        }),
        ("empty", Vec::new(), |e| matches!(e, E::Truncated)),
    ];
    for (what, content, expected) in table {
        let error = pickled_bytes(&content).expect_err(what);
        assert!(expected(&error), "{what}: {error:?}");
    }
    // Deep nesting costs no stack, neither when read nor when dropped.
    let deep = [vec![b']'; 1 << 20], vec![b'a'; (1 << 20) - 1]].concat();
    assert!(pickled_bytes(&whole(&protocol_2(&deep))).is_err());
}

#[test]
fn truncated_checkpoints_are_refused_wherever_they_end() {
    let folder = fixture("pytorch");
    for file in ["zip.bin", "legacy.bin"] {
        let content = std::fs::read(folder.join(file)).unwrap();
        for end in (0..content.len()).step_by(97) {
            assert!(pickled_bytes(&content[..end]).is_err(), "{file} cut at {end}");
        }
    }
    let content = std::fs::read(fixture("flax-t5").join("flax_model.msgpack")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("flax_model.msgpack"), dir.path().join("out"));
    for end in (0..content.len()).step_by(97) {
        std::fs::write(&input, &content[..end]).unwrap();
        let error = flax::convert(std::slice::from_ref(&input), Architecture::T5, &output).unwrap_err().1;
        assert!(matches!(error, FlaxError::Truncated | FlaxError::Malformed(_)), "cut at {end}: {error:?}");
        assert!(!output.exists());
    }
}

#[test]
fn hostile_msgpack_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("flax_model.msgpack"), dir.path().join("out"));
    let convert = |content: &[u8]| {
        std::fs::write(&input, content).unwrap();
        flax::convert(std::slice::from_ref(&input), Architecture::T5, &output).unwrap_err().1
    };
    let array = |shape: u8, dtype: &[u8], bytes: u8| {
        let body = [&[0x93, 0x91, shape, 0xa0 | dtype.len() as u8][..], dtype, &[0xc4, bytes]].concat();
        let body = [body, vec![0; bytes.into()]].concat();
        [&[0x81, 0xa1, b'w', 0xc7, body.len() as u8, 1][..], &body].concat()
    };
    assert!(matches!(convert(&[b"\x81\xa1a".repeat(1000), vec![0x80]].concat()), FlaxError::Malformed(_)));
    assert!(matches!(convert(b"\xdf\xff\xff\xff\xff"), FlaxError::Truncated));
    assert!(matches!(convert(b"\x81\xdb\xff\xff\xff\xff"), FlaxError::Malformed(_)));
    assert!(matches!(convert(b"\x81\xa1w\xc9\xff\xff\xff\xff\x01"), FlaxError::Truncated));
    assert!(matches!(convert(b"\x81\xa1w\xa1x"), FlaxError::Foreign("a text", 3)));
    assert!(matches!(convert(b"\x90"), FlaxError::Foreign(..)));
    assert!(matches!(convert(&array(3, b"float32", 8)), FlaxError::Size(name) if name == "w"));
    assert!(
        matches!(convert(&array(2, b"float99", 8)), FlaxError::Dtype { dtype, .. } if dtype == "float99")
    );
}
