//! A hub of one repository on a loopback port, and a tiny model to put into it.

#![allow(dead_code)] // each test file uses a part

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use cappy_hub::HubSettings;
use sha2::{Digest, Sha256};

pub const REPO: &str = "org/tiny";
pub const COMMIT: &str = "aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd";

/// Settings that never leave `root`.
pub fn settings(root: &Path, endpoint: &str) -> HubSettings {
    HubSettings {
        cache_dir: root.join("hub"),
        data_dir: root.join("data"),
        endpoint: endpoint.to_owned(),
        token: None,
        offline: false,
        retry_pause: Duration::from_millis(1),
    }
}

pub fn weights_fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name);
    std::fs::read(path).unwrap()
}

/// A BERT of 24 tokens as it was published in 2019, with weights in the given file.
pub fn tiny_model(weights: &str) -> Vec<(String, Vec<u8>)> {
    let content = match weights {
        "model.safetensors" => weights_fixture("flax-bert/expected.safetensors"),
        "flax_model.msgpack" => weights_fixture("flax-bert/flax_model.msgpack"),
        other => panic!("no fixture for {other}"),
    };
    let vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nquick\n##ly\n";
    vec![
        ("config.json".into(), weights_fixture("flax-bert/config.json")),
        ("vocab.txt".into(), vocab.into()),
        ("tokenizer_config.json".into(), b"{\"do_lower_case\": false}".to_vec()),
        (weights.into(), content),
    ]
}

pub fn write_model(dir: &Path, files: &[(String, Vec<u8>)]) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    for (name, content) in files {
        std::fs::write(dir.join(name), content).unwrap();
    }
    dir.to_owned()
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// Whether it came to the storage behind the hub.
    pub storage: bool,
}

/// What the server does wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Content transfers that end after so many bytes, one entry each.
    pub cut_after: VecDeque<usize>,
    /// Requests answered by this status before anything else, one entry each.
    pub status: VecDeque<u16>,
    /// Flip a bit of large files.
    pub corrupt: bool,
    /// Send more than announced.
    pub overlong: bool,
    /// `x-error-code` and status of every file and listing.
    pub refuse: Option<(u16, &'static str)>,
    /// No listing, as a plain mirror.
    pub no_listing: bool,
    /// The repository has moved here, by a redirect inside the hub.
    pub renamed_from: Option<&'static str>,
    /// Ignore `Range`.
    pub no_ranges: bool,
}

#[derive(Default)]
struct State {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    commit: Mutex<String>,
    faults: Mutex<Faults>,
    requests: Mutex<Vec<Request>>,
    storage: Mutex<String>,
    stop: AtomicBool,
}

/// The hub and its storage, which is another origin.
pub struct HubServer {
    state: Arc<State>,
    addresses: [SocketAddr; 2],
    threads: Vec<JoinHandle<()>>,
}

/// Files at least this large are kept in the storage, named by their SHA-256.
const LARGE: usize = 4000;

impl HubServer {
    pub fn start(files: &[(String, Vec<u8>)]) -> Self {
        let state = Arc::new(State::default());
        *state.commit.lock().unwrap() = COMMIT.to_owned();
        *state.files.lock().unwrap() = files.iter().cloned().collect();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = [0, 1].map(|i: usize| listeners[i].local_addr().unwrap());
        *state.storage.lock().unwrap() = format!("http://{}", addresses[1]);
        let threads = listeners
            .into_iter()
            .enumerate()
            .map(|(i, listener)| {
                let state = Arc::clone(&state);
                std::thread::spawn(move || {
                    for stream in listener.incoming() {
                        if state.stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let state = Arc::clone(&state);
                        std::thread::spawn(move || {
                            // A client that went away is no failure of the server.
                            let _ = stream.and_then(|stream| serve(&state, stream, i == 1));
                        });
                    }
                })
            })
            .collect();
        Self { state, addresses, threads }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addresses[0])
    }

    pub fn faults(&self, faults: Faults) {
        *self.state.faults.lock().unwrap() = faults;
    }

    pub fn publish(&self, commit: &str, files: &[(String, Vec<u8>)]) {
        *self.state.commit.lock().unwrap() = commit.to_owned();
        *self.state.files.lock().unwrap() = files.iter().cloned().collect();
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.requests.lock().unwrap())
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        for address in self.addresses {
            let _ = TcpStream::connect(address);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

pub fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// Stands for git's hash of small files.
pub fn small_etag(content: &[u8]) -> String {
    sha256(content)[..40].to_owned()
}

fn serve(state: &State, stream: TcpStream, storage: bool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let request = Request { method, path, headers, storage };
    state.requests.lock().unwrap().push(request.clone());
    answer(state, &request, stream)
}

fn answer(state: &State, request: &Request, stream: TcpStream) -> std::io::Result<()> {
    let mut faults = state.faults.lock().unwrap();
    let faulty_status = faults.status.pop_front();
    let now = faults.clone();
    drop(faults);
    let reply = |status: u16, headers: &[(&str, String)], body: &[u8], announced: usize| {
        let mut head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {announced}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut stream = &stream;
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method != "HEAD" {
            stream.write_all(body)?;
        }
        stream.flush()
    };
    if let Some(status) = faulty_status {
        return reply(status, &[("retry-after", "0".into())], b"", 0);
    }
    let files = state.files.lock().unwrap().clone();
    if request.storage {
        let name = request.path.trim_start_matches('/').split('?').next().unwrap_or("");
        return match files.values().find(|content| sha256(content) == name) {
            Some(content) => send_content(state, request, content, &now, reply),
            None => reply(404, &[], b"", 0),
        };
    }
    if let Some((status, code)) = now.refuse {
        return reply(status, &[("x-error-code", code.into())], b"", 0);
    }
    if let Some(old) = now.renamed_from
        && request.path.contains(old)
    {
        return reply(307, &[("location", request.path.replace(old, REPO))], b"", 0);
    }
    let commit = state.commit.lock().unwrap().clone();
    if let Some(revision) = request.path.strip_prefix(&format!("/api/models/{REPO}/revision/")) {
        if now.no_listing {
            return reply(404, &[], b"", 0);
        }
        if revision != "main" && revision != commit {
            return reply(404, &[("x-error-code", "RevisionNotFound".into())], b"", 0);
        }
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": commit, "siblings": siblings}).to_string();
        return reply(200, &[], body.as_bytes(), body.len());
    }
    let Some(rest) = request.path.strip_prefix(&format!("/{REPO}/resolve/")) else {
        return reply(404, &[("x-error-code", "RepoNotFound".into())], b"", 0);
    };
    let (_, name) = rest.split_once('/').unwrap_or(("", ""));
    let Some(content) = files.get(name) else {
        return reply(404, &[("x-error-code", "EntryNotFound".into())], b"", 0);
    };
    if content.len() >= LARGE {
        let hash = sha256(content);
        let location = format!("{}/{hash}?signature=x", state.storage.lock().unwrap());
        let headers = [
            ("x-repo-commit", commit),
            ("x-linked-etag", format!("\"{hash}\"")),
            ("x-linked-size", content.len().to_string()),
            ("location", location),
        ];
        return reply(302, &headers, b"", 0);
    }
    if request.method == "HEAD" {
        let headers = [("x-repo-commit", commit), ("etag", format!("W/\"{}\"", small_etag(content)))];
        return reply(200, &headers, b"", content.len());
    }
    send_content(state, request, content, &now, reply)
}

fn send_content(
    state: &State,
    request: &Request,
    content: &[u8],
    faults: &Faults,
    reply: impl Fn(u16, &[(&str, String)], &[u8], usize) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut content = content.to_vec();
    if faults.corrupt && content.len() >= LARGE {
        content[LARGE / 2] ^= 1;
    }
    if faults.overlong {
        content.push(0);
    }
    let range = request.headers.get("range").filter(|_| !faults.no_ranges);
    let start =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let rest = &content[start.unwrap_or(0).min(content.len())..];
    let cut = if content.len() >= LARGE { state.faults.lock().unwrap().cut_after.pop_front() } else { None };
    let sent = &rest[..cut.unwrap_or(rest.len()).min(rest.len())];
    match start {
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            reply(206, &[("content-range", range)], sent, rest.len())
        }
        None => reply(200, &[], sent, rest.len()),
    }
}
