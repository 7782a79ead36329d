//! Imports from archives and folders, good and hostile, made here; and from the real archive where it is at hand
//! (`BIGBENCH_SOURCE` names it).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use cappy_eval::bigbench::{self, FolderError, ImportError, ImportOptions, ImportReport, Split};
use cappy_eval::rows::{BadLinePolicy, Row, load};
use serde_json::json;
use tempfile::TempDir;

const TASKS: &str = "bigbench-1.0.0/bigbench/benchmark_tasks";

fn task(n: usize) -> String {
    let examples: Vec<_> =
        (0..n).map(|i| json!({"input": format!("in {i}"), "target": format!("out {i} ü")})).collect();
    json!({"name": "t", "examples": examples}).to_string()
}

fn multiple_choice(n: usize) -> String {
    let examples: Vec<_> =
        (0..n).map(|i| json!({"input": i.to_string(), "target_scores": {"a": 1, "b": 0}})).collect();
    json!({"examples": examples}).to_string()
}

/// Files of a made-up benchmark, below its folder of tasks.
fn benchmark() -> Vec<(&'static str, String)> {
    let part = |name: &str, n| {
        let mut part: serde_json::Value = serde_json::from_str(&task(n)).unwrap();
        part["name"] = name.into();
        part["task_prefix"] = format!("{name}:").into();
        part.to_string()
    };
    vec![
        ("tense/task.json", task(30)),
        ("gem/one/task.json", part("zweit", 20)),
        ("gem/two/task.json", part("erst é", 40)),
        ("gem/task.json", json!({"name": "gem", "task_prefix": "not inherited"}).to_string()),
        ("codenames/task.json", "{\"examples\": [".into()),
        ("rephrase/task.json", json!({"name": "rephrase"}).to_string()),
        ("word_sorting/task.json", multiple_choice(40)),
        ("operators/task.json", task(16)),
        ("unwanted/task.json", "not even JSON".into()),
        (
            "task_metadata.json",
            json!({"gem": {"subtask_names": ["gem:erst ?", "gem:zweit"]}, "odd": "x"}).to_string(),
        ),
    ]
}

fn archive_of(path: &Path, members: &[(&str, &[u8], tar::EntryType)]) {
    let gz = flate2::write::GzEncoder::new(fs::File::create(path).unwrap(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(gz);
    for (name, content, kind) in members {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // The name goes in as it is: the crate's own setters refuse what this file is about.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if kind.is_symlink() {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap();
}

fn benchmark_archive(folder: &Path) -> PathBuf {
    let files: Vec<(String, String)> =
        benchmark().into_iter().map(|(name, content)| (format!("{TASKS}/{name}"), content)).collect();
    let members: Vec<_> = files
        .iter()
        .map(|(name, content)| (name.as_str(), content.as_bytes(), tar::EntryType::Regular))
        .collect();
    let path = folder.join("source.tar.gz");
    archive_of(&path, &members);
    path
}

fn benchmark_folder(root: &Path) {
    for (name, content) in benchmark() {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), content).unwrap();
    }
}

fn import(source: &Path, output: &Path, subsets: &[&str]) -> Result<ImportReport, ImportError> {
    let subsets = subsets.iter().map(|subset| (*subset).to_owned()).collect();
    bigbench::import(source, output, &ImportOptions { subsets, row_cap: None }, &mut |_| {})
}

fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn archive_and_checkout_give_the_same_files_and_name_what_they_leave_out() {
    let temporary = TempDir::new().unwrap();
    let (from_archive, from_checkout) = (temporary.path().join("a"), temporary.path().join("c"));
    let report = import(&benchmark_archive(temporary.path()), &from_archive, &[]).unwrap();
    let checkout = temporary.path().join("checkout");
    benchmark_folder(&checkout.join("bigbench/benchmark_tasks"));
    import(&checkout, &from_checkout, &[]).unwrap();
    assert_eq!(content(&from_archive), content(&from_checkout));

    let names: Vec<_> =
        report.subsets.iter().map(|s| (s.subset.as_str(), s.train.rows, s.validation.rows)).collect();
    // Parts of 40 and 20: at least 8 validation rows each.
    assert_eq!(names, [("gem", 32 + 12, 8 + 8), ("tense", 14, 16)]);
    assert_eq!(content(&from_archive).last().unwrap().0, "tense_validation.jsonl");
    assert!(report.absent.contains(&"tellmewhy".to_owned()) && report.absent.len() == 45 - 6);
    let skipped: Vec<_> = report.skipped.iter().map(|s| (s.task.as_str(), s.reason.as_str())).collect();
    for (task, reason) in [
        ("codenames", "codenames/task.json is not a task in JSON"),
        ("rephrase", "no `examples`"),
        ("word_sorting", "multiple choice"),
        ("operators", "16 examples are too few"),
    ] {
        assert!(
            skipped.iter().any(|(t, r)| *t == task && r.contains(reason)),
            "{task} {reason}: {skipped:?}"
        );
    }
    assert_eq!(skipped.len(), 4, "an unwanted task is nobody's business");

    let gem = load::<Row>(&from_archive.join("gem_train.jsonl"), BadLinePolicy::Strict).unwrap().rows;
    assert!(gem[0].instruction.starts_with("erst é:\nQ: in ") && gem[43].instruction.starts_with("zweit:"));
    assert!(gem.iter().enumerate().all(|(at, row)| row.example_idx == at as u64 && row.dataset == "gem"));
    let text = fs::read_to_string(from_archive.join("tense_train.jsonl")).unwrap();
    // Python: random.seed(42) shuffles thirty items to begin with 19.
    let first = r#"{"dataset": "tense", "example_idx": 0, "instruction": "Q: in 19\nA:", "references": ["out 19 \u00fc"]}"#;
    assert_eq!(text.lines().next().unwrap(), first);
}

#[test]
fn filters_caps_and_plain_folders_work() {
    let temporary = TempDir::new().unwrap();
    let (source, output) = (temporary.path().join("plain"), temporary.path().join("out"));
    benchmark_folder(&source);
    fs::remove_file(source.join("task_metadata.json")).unwrap();
    fs::write(source.join("unwanted/task.json"), task(100)).unwrap();

    import(&source, &output, &["tense"]).unwrap();
    let report = import(&source, &output, &["unwanted"]).unwrap();
    assert_eq!(report.subsets.len(), 1);
    let names: Vec<String> =
        serde_json::from_slice(&fs::read(output.join("subset_names.json")).unwrap()).unwrap();
    assert_eq!(names, ["tense", "unwanted"], "subsets imported before stay listed");

    let everything = import(&source, &temporary.path().join("all"), &[]).unwrap();
    assert_eq!(everything.subsets.len(), 3, "a plain folder's tasks are all wanted: {everything:?}");
    assert!(everything.absent.is_empty());

    let capped = ImportOptions { subsets: vec!["unwanted".into()], row_cap: Some(50) };
    let capped = bigbench::import(&source, &output, &capped, &mut |_| {}).unwrap();
    assert_eq!((capped.subsets[0].train.rows, capped.subsets[0].validation.rows), (50, 20));

    match import(&source, &output, &["tens"]).unwrap_err() {
        ImportError::UnknownSubset { subset, suggestion } => {
            assert_eq!((subset.as_str(), suggestion.as_deref()), ("tens", Some("tense")));
        }
        other => panic!("{other}"),
    }
    let nothing = temporary.path().join("nothing");
    fs::create_dir(&nothing).unwrap();
    assert!(matches!(import(&nothing, &output, &[]).unwrap_err(), ImportError::NoTasks { .. }));
}

#[test]
fn hostile_archives_are_refused_before_anything_is_written() {
    use tar::EntryType;
    let temporary = TempDir::new().unwrap();
    let good = task(30);
    let good_name = format!("{TASKS}/tense/task.json");
    let good = (good_name.as_str(), good.as_bytes(), EntryType::Regular);
    let bad_names = [
        ("a/../../evil", EntryType::Regular, "points outside"),
        ("/etc/cron.d/evil", EntryType::Regular, "points outside"),
        ("..\\evil", EntryType::Regular, "points outside"),
        ("a/link", EntryType::Symlink, "is a link"),
        ("a/hard", EntryType::Link, "is a link"),
        ("a/pipe", EntryType::Fifo, "neither a file nor a folder"),
    ];
    for (name, kind, complaint) in bad_names {
        let (source, output) = (temporary.path().join("bad.tar.gz"), temporary.path().join("out"));
        archive_of(&source, &[good, (name, b"", kind)]);
        let error = import(&source, &output, &[]).unwrap_err().to_string();
        assert!(error.contains(complaint) && error.contains(name), "{name}: {error}");
        assert!(content(&output).is_empty(), "{name}");
    }

    let cut = temporary.path().join("cut.tar.gz");
    archive_of(&cut, &[good]);
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(import(&cut, &temporary.path().join("out"), &[]), Err(ImportError::Read { .. })));
    fs::write(&cut, b"plain text").unwrap();
    assert!(import(&cut, &temporary.path().join("out"), &[]).is_err());
}

#[test]
fn long_names_are_followed_in_both_dialects() {
    let temporary = TempDir::new().unwrap();
    let source = temporary.path().join("long.tar.gz");
    let name = format!("{}/{TASKS}/tense/task.json", "d".repeat(120));
    let pax = |record: String| format!("{} {record}", record.len() + 4);
    let pax = pax(format!("path={}\n", name.replace("tense", "rephrase")));
    let task = task(30);
    let kind = tar::EntryType::Regular;
    archive_of(
        &source,
        &[
            ("././@LongLink", format!("{name}\0").as_bytes(), tar::EntryType::GNULongName),
            ("cut", task.as_bytes(), kind),
            ("pax", pax.as_bytes(), tar::EntryType::XHeader),
            ("cut", task.as_bytes(), kind),
        ],
    );
    let report = import(&source, &temporary.path().join("out"), &[]).unwrap();
    let names: Vec<_> = report.subsets.iter().map(|s| s.subset.as_str()).collect();
    assert_eq!(names, ["rephrase", "tense"]);
}

#[test]
fn a_data_folder_is_checked_before_it_is_used() {
    let temporary = TempDir::new().unwrap();
    let folder = temporary.path();
    assert!(matches!(bigbench::inspect(folder, &[]), Err(FolderError::Empty { .. })));
    import(&benchmark_archive(folder), &folder.join("data"), &[]).unwrap();
    let data = folder.join("data");
    let found = bigbench::inspect(&data, &["tense".into()]).unwrap();
    assert_eq!((found.subsets[0].train_rows, found.subsets[0].validation_rows), (14, 16));
    assert_eq!(bigbench::inspect(&data, &[]).unwrap().subsets.len(), 2);

    let mut train = fs::OpenOptions::new().append(true).open(data.join("tense_train.jsonl")).unwrap();
    train.write_all(b"{\"instruction\": 3}\n\nnot a row\n").unwrap();
    let tense = &bigbench::inspect(&data, &[]).unwrap().subsets[1];
    assert_eq!((tense.train_rows, tense.bad_lines), (14, 2));
    assert!(tense.bad[0].to_string().contains("tense_train.jsonl:15: invalid type"), "{}", tense.bad[0]);
    assert_eq!(tense.bad[1].line, 17);

    let error = bigbench::inspect(&data, &["tenes".into()]).unwrap_err().to_string();
    assert!(error.ends_with("has no subset `tenes`; did you mean `tense`?"), "{error}");
    fs::remove_file(data.join("gem_validation.jsonl")).unwrap();
    let error = bigbench::inspect(&data, &[]).unwrap_err().to_string();
    assert!(error.ends_with("gem_validation.jsonl is missing"), "{error}");
    assert_eq!(bigbench::split_file(&data, "gem", Split::Validation), None);
}

#[test]
fn the_real_archive_gives_the_published_files() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/bigbench_golden.tsv");
    let (Some(source), Ok(golden)) = (std::env::var_os("BIGBENCH_SOURCE"), fs::read_to_string(golden)) else {
        return eprintln!("skipped: set BIGBENCH_SOURCE to bigbench-1.0.0.tar.gz, beside the golden files");
    };
    let output = TempDir::new().unwrap();
    let report = import(Path::new(&source), output.path(), &[]).unwrap();
    assert_eq!(report.absent, ["tellmewhy"]);
    assert_eq!(report.skipped, []);
    for line in golden.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let subset = report.subsets.iter().find(|subset| subset.subset == fields[0]).expect(fields[0]);
        let file = if fields[1] == "train" { &subset.train } else { &subset.validation };
        assert_eq!((file.rows.to_string().as_str(), file.sha256.as_str()), (fields[2], fields[3]), "{line}");
    }
}
