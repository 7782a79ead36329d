//! Resolving hub names against a small server that speaks the hub's protocol, and misbehaves on demand.

mod support;

use std::path::Path;
use std::sync::Mutex;

use cappy_hub::{ErrorKind, Hub, HubSettings, Origin, Progress, ResolveError, Role, Silent, Token};
use support::{COMMIT, Faults, HubServer, REPO, settings, sha256, small_etag, tiny_model};

fn resolve(settings: &HubSettings) -> Result<cappy_hub::ResolvedModel, ResolveError> {
    Hub::new(settings.clone()).resolve(REPO, Role::Scorer, &Silent)
}

fn blobs(root: &Path) -> Vec<String> {
    let dir = root.join("hub/models--org--tiny/blobs");
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn weights() -> Vec<u8> {
    tiny_model("model.safetensors").pop().unwrap().1
}

#[test]
fn a_model_is_downloaded_once_into_the_hubs_layout() {
    let mut files = tiny_model("model.safetensors");
    for unneeded in ["pytorch_model.bin", "flax_model.msgpack", "README.md", "onnx/model.onnx"] {
        files.push((unneeded.into(), b"not to be downloaded".to_vec()));
    }
    let server = HubServer::start(&files);
    let root = tempfile::tempdir().unwrap();
    let mut settings = settings(root.path(), &server.endpoint());
    settings.token = Token::new("s3cret");

    let model = resolve(&settings).unwrap();
    assert_eq!(model.architecture.model_type(), "bert");
    assert_eq!(model.origin, Origin::Hub { repo: REPO.into(), commit: COMMIT.into() });
    assert!(model.tokenizer_file().exists() && model.dir.join("model.safetensors").exists());

    let requests = server.requests();
    let fetched = |name: &str| requests.iter().any(|request| request.path.ends_with(name));
    assert!(fetched("/vocab.txt") && !fetched(".bin") && !fetched(".msgpack") && !fetched("README.md"));
    assert!(requests.iter().any(|request| request.storage), "large files come from the storage");
    for request in &requests {
        let token = request.headers.get("authorization");
        let expected = "Bearer s3cret".to_owned();
        assert_eq!(token, (!request.storage).then_some(&expected), "{} {}", request.method, request.path);
    }

    let repo = root.path().join("hub/models--org--tiny");
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let link = std::fs::read_link(repo.join("snapshots").join(COMMIT).join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(&weights())));
    let config = small_etag(&files[0].1);
    assert!(blobs(root.path()).contains(&config), "small files are named by the weak etag's hash");

    assert_eq!(resolve(&settings).unwrap().fingerprint, model.fingerprint);
    settings.offline = true;
    assert_eq!(resolve(&settings).unwrap().dir, model.dir);
    let by_commit = format!("{REPO}@{COMMIT}");
    assert!(Hub::new(settings.clone()).resolve(&by_commit, Role::Scorer, &Silent).is_ok());
    assert!(server.requests().is_empty(), "what is cached needs no network");

    let listed = Hub::new(settings).list_cached();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].repo.as_str(), listed[0].refs.as_slice()), (REPO, &["main".to_owned()][..]));
    assert_eq!((listed[0].bytes, &listed[0].missing), (weights().len() as u64, &None));
}

#[test]
fn a_broken_transfer_is_resumed_where_it_ended() {
    let server = HubServer::start(&tiny_model("model.safetensors"));
    let root = tempfile::tempdir().unwrap();
    let settings = settings(root.path(), &server.endpoint());
    // More breaks than attempts: what moves counts as success.
    server.faults(Faults { cut_after: [1000, 700, 1, 600, 500, 400, 300].into(), ..Faults::default() });
    resolve(&settings).unwrap();
    let ranges: Vec<String> = server
        .requests()
        .into_iter()
        .filter(|request| request.storage)
        .map(|request| request.headers.get("range").cloned().unwrap_or_default())
        .collect();
    let expected =
        ["", "bytes=1000-", "bytes=1700-", "bytes=1701-", "bytes=2301-", "bytes=2801-", "bytes=3201-"];
    assert_eq!(ranges[..7], expected);

    // What an earlier process left is continued; a server without ranges starts over; garbage is found out.
    let blob = sha256(&weights());
    for (left, no_ranges) in [
        (weights()[..2000].to_vec(), false),
        (weights()[..2000].to_vec(), true),
        (vec![7; 2000], false),
        (vec![7; 99999], false),
    ] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("hub/models--org--tiny/blobs");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{blob}.incomplete")), left).unwrap();
        server.faults(Faults { no_ranges, ..Faults::default() });
        resolve(&support::settings(root.path(), &server.endpoint())).unwrap();
        assert_eq!(std::fs::read(dir.join(&blob)).unwrap(), weights());
        assert!(blobs(root.path()).iter().all(|name| !name.ends_with(".incomplete")));
    }
}

#[test]
fn what_arrives_damaged_is_not_kept() {
    for (faults, what) in [
        (Faults { corrupt: true, ..Faults::default() }, "its SHA-256 is"),
        (Faults { overlong: true, ..Faults::default() }, "its size is"),
    ] {
        let server = HubServer::start(&tiny_model("model.safetensors"));
        let root = tempfile::tempdir().unwrap();
        server.faults(faults);
        let error = resolve(&settings(root.path(), &server.endpoint())).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(!blobs(root.path()).contains(&sha256(&weights())));
        assert!(!root.path().join("hub/models--org--tiny/refs/main").exists());
    }
}

#[test]
fn refusals_say_what_to_do() {
    let refuse = |status, code| Faults { refuse: Some((status, code)), ..Faults::default() };
    let status = |status, times| Faults { status: vec![status; times].into(), ..Faults::default() };
    let table: Vec<(Faults, Option<&str>, ErrorKind, &str)> = vec![
        (refuse(401, "GatedRepo"), None, ErrorKind::Denied, "is gated: accept its terms at"),
        (refuse(403, "GatedRepo"), Some("t"), ErrorKind::Denied, "set HF_TOKEN"),
        (refuse(401, ""), Some("t"), ErrorKind::Denied, "refuses the token"),
        (refuse(401, ""), None, ErrorKind::NotFound, "or set HF_TOKEN if it is private"),
        (refuse(404, "RepoNotFound"), None, ErrorKind::NotFound, "has no repository `org/tiny`"),
        (refuse(404, "RevisionNotFound"), None, ErrorKind::NotFound, "no revision `main`"),
        (refuse(418, ""), None, ErrorKind::Unavailable, "418"),
        (status(503, 100), None, ErrorKind::Unavailable, "503"),
        (status(429, 100), None, ErrorKind::Unavailable, "429"),
    ];
    let server = HubServer::start(&tiny_model("model.safetensors"));
    for (faults, token, kind, expected) in table {
        let root = tempfile::tempdir().unwrap();
        let mut settings = settings(root.path(), &server.endpoint());
        settings.token = token.and_then(Token::new);
        server.faults(faults.clone());
        let error = resolve(&settings).unwrap_err();
        assert!(error.to_string().contains(expected), "{faults:?}: {error}");
        assert!(error.to_string().starts_with("model `org/tiny`: ") && !error.to_string().contains('\n'));
        assert_eq!(error.kind(), kind, "{error}");
    }

    let root = tempfile::tempdir().unwrap();
    server.faults(status(503, 4));
    resolve(&settings(root.path(), &server.endpoint())).expect("four failures in a row are survived");

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = settings(tempfile::tempdir().unwrap().path(), &format!("http://{free}"));
    let error = resolve(&nobody).unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("cannot be reached"),
        "{error}"
    );

    server.faults(refuse(404, "RepoNotFound"));
    let hub = Hub::new(settings(root.path(), &server.endpoint()));
    let error = hub.resolve("google/flan-t5-smal", Role::Generator, &Silent).unwrap_err();
    assert!(error.to_string().contains("did you mean `flan-t5-small`?"), "{error}");
}

#[test]
fn incomplete_repositories_are_named_before_gigabytes_move() {
    let with = |name: &str, content: &[u8]| {
        let mut files = tiny_model("model.safetensors");
        files.retain(|(file, _)| {
            file != name && !(name.ends_with("index.json") && file.ends_with("safetensors"))
        });
        if !content.is_empty() {
            files.push((name.to_owned(), content.to_vec()));
        }
        files
    };
    let gpt2 = br#"{"model_type": "gpt2"}"#;
    let outside = br#"{"weight_map": {"a": "../../../etc/passwd"}}"#;
    let shard = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
    type Files = Vec<(String, Vec<u8>)>;
    let table: [(&str, Files, &str); 6] = [
        ("no config", with("config.json", b""), "`config.json` is missing"),
        (
            "unknown architecture",
            with("config.json", gpt2),
            "architecture `gpt2` is not supported; supported: scorers",
        ),
        (
            "no tokenizer",
            with("vocab.txt", b""),
            "`tokenizer.json` is missing; it could be built from vocab.txt",
        ),
        (
            "no weights",
            with("model.safetensors", b""),
            "neither it nor pytorch_model.bin nor flax_model.msgpack",
        ),
        ("index outside", with("model.safetensors.index.json", outside), "not a file of the same directory"),
        (
            "missing shard",
            with("model.safetensors.index.json", shard),
            "`model-00001-of-00002.safetensors` is missing",
        ),
    ];
    for (what, files, expected) in table {
        let server = HubServer::start(&files);
        let root = tempfile::tempdir().unwrap();
        let error = resolve(&settings(root.path(), &server.endpoint())).unwrap_err().to_string();
        assert!(error.contains(expected), "{what}: {error}");
        assert!(server.requests().iter().all(|request| !request.storage), "{what}: weights were downloaded");
    }
    let server = HubServer::start(&tiny_model("model.safetensors"));
    let root = tempfile::tempdir().unwrap();
    let hub = Hub::new(settings(root.path(), &server.endpoint()));
    let error = hub.resolve(REPO, Role::Generator, &Silent).unwrap_err().to_string();
    assert!(error.contains("`bert` cannot be used as a generator (these can: t5)"), "{error}");
    assert!(server.requests().iter().all(|request| !request.storage));
}

#[test]
fn mirrors_and_renamed_repositories_work() {
    for faults in [
        Faults { no_listing: true, ..Faults::default() },
        Faults { renamed_from: Some("old/name"), ..Faults::default() },
    ] {
        let server = HubServer::start(&tiny_model("flax_model.msgpack"));
        let name = faults.renamed_from.unwrap_or(REPO);
        server.faults(faults);
        let root = tempfile::tempdir().unwrap();
        let hub = Hub::new(settings(root.path(), &server.endpoint()));
        let model = hub.resolve(name, Role::Scorer, &Silent).unwrap();
        assert!(model.dir.join("model.safetensors").exists(), "converted");
    }
}

#[test]
fn pull_sees_that_the_branch_moved_and_resolve_does_not_ask() {
    let server = HubServer::start(&tiny_model("model.safetensors"));
    let root = tempfile::tempdir().unwrap();
    let hub = Hub::new(settings(root.path(), &server.endpoint()));
    let first = hub.resolve(REPO, Role::Scorer, &Silent).unwrap();
    let next = COMMIT.replace('a', "e");
    let mut files = tiny_model("model.safetensors");
    files[1].1.extend_from_slice(b"new\n");
    server.publish(&next, &files);
    server.requests();

    assert_eq!(hub.resolve(REPO, Role::Scorer, &Silent).unwrap().fingerprint, first.fingerprint);
    assert!(server.requests().is_empty());
    let pulled = hub.pull(REPO, None::<Role>, &Silent).unwrap();
    assert_eq!(pulled.origin, Origin::Hub { repo: REPO.into(), commit: next });
    assert_ne!(pulled.fingerprint, first.fingerprint);
    assert!(
        server.requests().iter().all(|request| !request.storage),
        "unchanged weights are not moved again"
    );
    assert_eq!(hub.list_cached().len(), 2);
}

#[test]
fn several_at_once_download_once() {
    let server = HubServer::start(&tiny_model("model.safetensors"));
    let root = tempfile::tempdir().unwrap();
    let settings = settings(root.path(), &server.endpoint());
    let prints: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| resolve(&settings).unwrap().fingerprint)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(prints.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(
        server.requests().iter().filter(|request| request.storage && request.method == "GET").count(),
        1
    );
}

#[test]
fn offline_says_what_is_missing_and_where() {
    let root = tempfile::tempdir().unwrap();
    let mut settings = settings(root.path(), "http://127.0.0.1:1");
    settings.offline = true;
    let error = resolve(&settings).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let cache = settings.cache_dir.display().to_string();
    for part in ["`org/tiny` (revision main)", cache.as_str(), "HF_HUB_OFFLINE"] {
        assert!(error.to_string().contains(part), "{error}");
    }

    let snapshot = settings.cache_dir.join("models--org--tiny/snapshots").join(COMMIT);
    let mut files = tiny_model("model.safetensors");
    files.pop();
    support::write_model(&snapshot, &files);
    let refs = settings.cache_dir.join("models--org--tiny/refs");
    std::fs::create_dir_all(&refs).unwrap();
    std::fs::write(refs.join("main"), COMMIT).unwrap();
    let error = resolve(&settings).unwrap_err().to_string();
    assert!(error.contains("`model.safetensors` of `org/tiny` is not in the cache"), "{error}");
    let listed = Hub::new(settings.clone()).list_cached();
    assert_eq!(listed[0].missing.as_deref(), Some("model.safetensors"));
}

#[test]
fn verify_reads_what_the_cache_holds() {
    let server = HubServer::start(&tiny_model("model.safetensors"));
    let root = tempfile::tempdir().unwrap();
    let hub = Hub::new(settings(root.path(), &server.endpoint()));
    hub.resolve(REPO, Role::Scorer, &Silent).unwrap();
    let (_, files) = hub.verify(REPO, None::<Role>, &Silent).unwrap();
    let weights_file = files.iter().find(|file| file.name == "model.safetensors").unwrap();
    assert_eq!(weights_file.sha256, sha256(&weights()));

    let blob = root.path().join("hub/models--org--tiny/blobs").join(sha256(&weights()));
    let mut content = weights();
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(blob, content).unwrap();
    let error = hub.verify(REPO, None::<Role>, &Silent).unwrap_err().to_string();
    assert!(error.contains("`model.safetensors` is damaged"), "{error}");
}

#[test]
fn progress_is_told() {
    #[derive(Default)]
    struct Told(Mutex<Vec<(String, u64, u64)>>);
    impl Progress for Told {
        fn started(&self, file: &str, have: u64, total: u64) {
            self.0.lock().unwrap().push((file.to_owned(), have, total));
        }
        fn advanced(&self, file: &str, done: u64, total: u64) {
            self.0.lock().unwrap().push((file.to_owned(), done, total));
        }
        fn note(&self, _text: &str) {}
    }
    let server = HubServer::start(&tiny_model("model.safetensors"));
    let root = tempfile::tempdir().unwrap();
    let told = Told::default();
    Hub::new(settings(root.path(), &server.endpoint())).resolve(REPO, Role::Scorer, &told).unwrap();
    let total = weights().len() as u64;
    let told = told.0.into_inner().unwrap();
    let of_weights: Vec<_> = told.iter().filter(|(file, ..)| file == "model.safetensors").collect();
    assert_eq!(of_weights.first().unwrap(), &&("model.safetensors".to_owned(), 0, total));
    assert_eq!(of_weights.last().unwrap(), &&("model.safetensors".to_owned(), total, total));
}
