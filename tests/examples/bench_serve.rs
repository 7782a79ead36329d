//! The callers of `cargo xtask bench serve`: a service that scores pairs, asked over gRPC (Cappy) or HTTP (a peer).
//!
//! `bench_serve grpc|http ADDRESS MODEL CALLERS CALLS`: so many callers at the same time make so many calls in all, each of
//! one instruction with four responses. One JSON line comes out: seconds, latencies, how many were turned away, scores.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cappy_proto::v1::{ScoreRequest, ScoreRow, inference_service_client::InferenceServiceClient};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use tonic::{Code, transport::Channel};

/// Responses to an instruction.
const RESPONSES: usize = 4;

/// Calls of gRPC share so many connections, as a balancer's would.
const CONNECTIONS: usize = 4;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What became of a call.
enum Ended {
    Scored(Vec<f64>),
    TurnedAway,
}

#[derive(Clone)]
enum Target {
    Grpc { channels: Vec<Channel>, model: String },
    Http { address: String },
}

/// The texts of a call: words of a fixed list, the same for every side.
fn row(call: usize) -> (String, Vec<String>) {
    const WORDS: [&str; 8] = ["pear", "fig", "apple", "sort", "the", "words", "orange", "banana"];
    let mut state = (call as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut words = |count: usize| {
        let word = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            WORDS[(state >> 33) as usize % WORDS.len()]
        };
        (0..count).map(word).collect::<Vec<_>>().join(" ")
    };
    let instruction = format!("{call}: {}", words(6 + call % 12));
    (instruction, (0..RESPONSES).map(|response| words(1 + (call + response) % 4)).collect())
}

/// One caller's connection.
enum Connection {
    Grpc { client: InferenceServiceClient<Channel>, model: String },
    Http { stream: BufReader<TcpStream> },
}

impl Target {
    async fn connect(&self, caller: usize) -> Result<Connection, Failure> {
        Ok(match self {
            Self::Grpc { channels, model } => Connection::Grpc {
                client: InferenceServiceClient::new(channels[caller % channels.len()].clone()),
                model: model.clone(),
            },
            Self::Http { address } => {
                Connection::Http { stream: BufReader::new(TcpStream::connect(address).await?) }
            }
        })
    }
}

impl Connection {
    async fn call(&mut self, call: usize) -> Result<Ended, Failure> {
        let (instruction, responses) = row(call);
        match self {
            Self::Grpc { client, model } => {
                let rows = vec![ScoreRow { instruction, responses }];
                let request = ScoreRequest { model: model.clone(), rows, ..ScoreRequest::default() };
                match client.score(request).await {
                    Ok(answer) => {
                        let row = answer.into_inner().rows.pop().ok_or("no row came back")?;
                        Ok(Ended::Scored(row.scores.into_iter().map(f64::from).collect()))
                    }
                    Err(status) if status.code() == Code::ResourceExhausted => Ok(Ended::TurnedAway),
                    Err(status) => Err(status.into()),
                }
            }
            Self::Http { stream } => {
                let body = json!({ "instruction": instruction, "responses": responses }).to_string();
                let head =
                    format!("POST /score HTTP/1.1\r\nhost: bench\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.get_mut().write_all(format!("{head}{body}").as_bytes()).await?;
                let (mut status, mut length) = (0, 0);
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await? == 0 {
                        return Err("the peer hung up".into());
                    }
                    let line = line.trim().to_ascii_lowercase();
                    if let Some(rest) = line.strip_prefix("http/1.1 ") {
                        status = rest.split(' ').next().unwrap_or_default().parse()?;
                    } else if let Some(rest) = line.strip_prefix("content-length: ") {
                        length = rest.parse()?;
                    } else if line.is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await?;
                if status == 429 {
                    return Ok(Ended::TurnedAway);
                }
                let answer: Value = serde_json::from_slice(&body)?;
                let scores = answer["scores"].as_array().ok_or("the peer gave no scores")?;
                Ok(Ended::Scored(scores.iter().filter_map(Value::as_f64).collect()))
            }
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kind, address, model, callers, calls] = arguments.as_slice() else {
        return Err("bench_serve grpc|http ADDRESS MODEL CALLERS CALLS".into());
    };
    let (callers, calls): (usize, usize) = (callers.parse()?, calls.parse()?);
    let target = match kind.as_str() {
        "grpc" => {
            let mut channels = Vec::new();
            for _ in 0..CONNECTIONS.min(callers) {
                channels.push(Channel::from_shared(format!("http://{address}"))?.connect().await?);
            }
            Target::Grpc { channels, model: model.clone() }
        }
        "http" => Target::Http { address: address.clone() },
        other => return Err(format!("`{other}` is neither grpc nor http").into()),
    };
    // Nobody measures the loading of the model.
    target.connect(0).await?.call(calls).await?;

    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (target, next) = (target.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                let mut connection = target.connect(caller).await?;
                let mut ended = Vec::new();
                loop {
                    let call = next.fetch_add(1, Ordering::Relaxed);
                    if call >= calls {
                        return Ok::<_, Failure>(ended);
                    }
                    let started = Instant::now();
                    let end = connection.call(call).await?;
                    ended.push((call, started.elapsed(), end));
                }
            })
        })
        .collect();
    let (mut latencies, mut turned_away) = (Vec::new(), 0_u64);
    let mut scores = vec![Value::Null; calls];
    for task in tasks {
        for (call, latency, end) in task.await?? {
            match end {
                Ended::Scored(list) => {
                    latencies.push(latency);
                    scores[call] = list.into();
                }
                Ended::TurnedAway => turned_away += 1,
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    latencies.sort();
    let share = |share: f64| {
        let place = ((latencies.len() as f64 * share).ceil() as usize).clamp(1, latencies.len().max(1)) - 1;
        latencies.get(place).map_or(f64::NAN, Duration::as_secs_f64)
    };
    println!(
        "{}",
        json!({
            "callers": callers, "answered": latencies.len(), "turned_away": turned_away, "seconds": seconds,
            "calls_per_second": latencies.len() as f64 / seconds, "p50": share(0.5), "p99": share(0.99), "scores": scores,
        })
    );
    Ok(())
}
