//! A small server of the tests' own that speaks the protocol, faults included.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cappy_proto::v1;
use cappy_worker::endpoint::{AllowedHosts, EndpointSettings, Endpoints, Key};
use serde_json::{Value, json};

pub const KEY: &str = "sk-test-0123456789";

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// As many choices as are asked for, or one.
    Answer { one: bool },
    /// A status with headers and a body.
    Refuse(u16, &'static str, &'static str),
    /// A success with this body.
    Say(&'static str),
    /// Half an answer, then nothing.
    Cut,
    /// Nothing at all.
    Silence,
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: Value,
}

impl Asked {
    pub fn prompt(&self) -> &str {
        self.body["messages"][0]["content"].as_str().unwrap_or_default()
    }
}

pub struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    over: Arc<AtomicBool>,
}

type Script = dyn Fn(usize, &Asked) -> Act + Send + Sync;

impl Server {
    /// `script` gets how many requests there were before.
    pub fn start(script: impl Fn(usize, &Asked) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (asked, over): (Arc<Mutex<Vec<Asked>>>, Arc<AtomicBool>) = Default::default();
        let script: Arc<Script> = Arc::new(script);
        std::thread::spawn({
            let (asked, over) = (Arc::clone(&asked), Arc::clone(&over));
            move || {
                for stream in listener.incoming().flatten() {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let (asked, script) = (Arc::clone(&asked), Arc::clone(&script));
                    std::thread::spawn(move || while serve(&stream, &asked, &*script).is_some() {});
                }
            }
        });
        Self { address, asked, over }
    }

    pub fn endpoint(&self) -> v1::Endpoint {
        v1::Endpoint {
            url: format!("http://{}/v1", self.address),
            model: "tiny".into(),
            requests_per_minute: 0,
        }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub fn endpoints(&self, dir: &Path) -> Endpoints {
        Endpoints::new(self.settings(), dir.join("answers"))
    }

    pub fn settings(&self) -> EndpointSettings {
        EndpointSettings {
            hosts: AllowedHosts { named: vec![self.address.clone()], file: None },
            key: Key::new(KEY),
            concurrency: 3,
            timeout: Duration::from_millis(600),
            tries: 4,
            first_pause: Duration::from_millis(1),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.address);
    }
}

/// One request of a connection; `None` ends it.
fn serve(mut stream: &TcpStream, asked: &Mutex<Vec<Asked>>, script: &Script) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request = Asked { path, headers, body: serde_json::from_slice(&body).unwrap_or_default() };
    let before = {
        let mut asked = asked.lock().unwrap();
        asked.push(request.clone());
        asked.len() - 1
    };
    let (status, headers, body) = match script(before, &request) {
        Act::Answer { one } => (200, "", answer(&request, one)),
        Act::Refuse(status, headers, body) => (status, headers, body.to_owned()),
        Act::Say(body) => (200, "", body.to_owned()),
        Act::Cut => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"choices\": [{\"mess").ok()?;
            stream.shutdown(std::net::Shutdown::Both).ok()?;
            return None;
        }
        Act::Silence => {
            std::thread::sleep(Duration::from_secs(2));
            return None;
        }
    };
    let head = format!("HTTP/1.1 {status} Some\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).ok()
}

/// Texts that tell prompt, temperature and seed.
fn answer(request: &Asked, one: bool) -> String {
    let count = if one { 1 } else { request.body["n"].as_u64().unwrap_or(1) };
    let text = |i| {
        let (temperature, seed) = (&request.body["temperature"], &request.body["seed"]);
        json!({ "message": { "content": format!(" {} {temperature} {seed} {i}\n", request.prompt()) } })
    };
    let choices: Vec<Value> = (0..count).map(text).collect();
    let usage = json!({ "prompt_tokens": 7, "completion_tokens": 5 * count });
    json!({ "choices": choices, "usage": usage }).to_string()
}
