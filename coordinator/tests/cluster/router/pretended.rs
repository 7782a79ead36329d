//! A worker's inference service that a test can direct, in a runtime of its own so that it can die at once.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
};

use cappy_proto::v1::{self, inference_service_server as server};
use futures::{Stream, StreamExt as _};
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What it does with the next calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Answer,
    /// Take the call, then never end it.
    Hang,
    /// Turn the call away.
    Full,
    /// Answer so many messages of a stream, then hang.
    HangAfter(usize),
}

/// Shared with the service.
pub struct Seen {
    /// Metadata of each call.
    pub metadata: Vec<HashMap<String, String>>,
    /// Instructions in the order in which they came.
    pub instructions: Vec<String>,
    /// Calls that were dropped before they ended.
    pub dropped: usize,
}

pub struct Pretended {
    pub url: String,
    pub seen: Arc<Mutex<Seen>>,
    mood: watch::Sender<Mood>,
    /// Calls that hang now.
    pub hanging: watch::Receiver<usize>,
    runtime: Option<Runtime>,
}

#[derive(Clone)]
struct Service {
    name: &'static str,
    seen: Arc<Mutex<Seen>>,
    mood: watch::Receiver<Mood>,
    hanging: watch::Sender<usize>,
}

/// Counts a call that ends too soon.
struct Watch(Option<Arc<Mutex<Seen>>>);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(seen) = &self.0 {
            seen.lock().unwrap().dropped += 1;
        }
    }
}

impl Pretended {
    pub async fn start(name: &'static str, mood: Mood) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let seen = Seen { metadata: Vec::new(), instructions: Vec::new(), dropped: 0 };
        let seen = Arc::new(Mutex::new(seen));
        let (mood, moods) = watch::channel(mood);
        let (hanging, hangs) = watch::channel(0);
        let service = Service { name, seen: Arc::clone(&seen), mood: moods, hanging };
        let serving = runtime.spawn(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let service = server::InferenceServiceServer::new(service);
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            address
        });
        let url = format!("http://{}", serving.await.unwrap());
        Self { url, seen, mood: mood.clone(), hanging: hangs, runtime: Some(runtime) }
    }

    pub fn turn(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Waits until a call hangs.
    pub async fn hung(&mut self) {
        self.hanging.wait_for(|count| *count > 0).await.unwrap();
    }

    /// As when the process is killed: connections break.
    pub fn die(&mut self) {
        self.runtime.take().expect("it dies once").shutdown_background();
    }
}

impl Drop for Pretended {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Service {
    async fn begin(&self, metadata: &MetadataMap) -> Result<Watch, Status> {
        let pairs = metadata.iter().filter_map(|entry| match entry {
            tonic::metadata::KeyAndValueRef::Ascii(key, value) => {
                Some((key.to_string(), value.to_str().ok()?.to_owned()))
            }
            tonic::metadata::KeyAndValueRef::Binary(..) => None,
        });
        self.seen.lock().unwrap().metadata.push(pairs.collect());
        let watch = Watch(Some(Arc::clone(&self.seen)));
        let mood = *self.mood.borrow();
        match mood {
            Mood::Hang => self.hang().await,
            Mood::Full => {
                let details = ErrorDetails::with_retry_info(Some(std::time::Duration::from_millis(70)));
                Err(Status::with_error_details(tonic::Code::ResourceExhausted, "full", details))
            }
            Mood::Answer | Mood::HangAfter(_) => Ok(watch),
        }
    }

    async fn hang<T>(&self) -> T {
        self.hanging.send_modify(|count| *count += 1);
        std::future::pending().await
    }

    fn usage(&self) -> Option<v1::Usage> {
        Some(v1::Usage {
            model_fingerprint: "content".into(),
            backend: self.name.into(),
            ..Default::default()
        })
    }

    /// A response's score is its length.
    fn scored(&self, request: v1::ScoreRequest) -> v1::ScoreResponse {
        let row = |row: v1::ScoreRow| {
            self.seen.lock().unwrap().instructions.push(row.instruction);
            v1::ScoredRow { scores: row.responses.iter().map(|text| text.len() as f32).collect() }
        };
        v1::ScoreResponse { rows: request.rows.into_iter().map(row).collect(), usage: self.usage() }
    }

    /// An instruction's answer is the instruction with its index.
    fn generated(&self, instruction: &str, index: u64) -> v1::GenerateResponse {
        self.seen.lock().unwrap().instructions.push(instruction.to_owned());
        let response = format!("{instruction} {index}");
        let samples = vec![v1::Sample { response, ..Default::default() }];
        let decodings = vec![v1::DecodingSamples { name: "beam4".into(), samples }];
        v1::GenerateResponse { rows: vec![v1::GeneratedRow { decodings }], usage: self.usage() }
    }

    fn mood_after(&self, answered: usize) -> bool {
        matches!(*self.mood.borrow(), Mood::HangAfter(most) if answered >= most)
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl server::InferenceService for Service {
    type ScoreStreamStream = Answers<v1::ScoreStreamResponse>;
    type GenerateStreamStream = Answers<v1::GenerateStreamResponse>;

    async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        let mut watch = self.begin(request.metadata()).await?;
        watch.0 = None;
        Ok(Response::new(self.scored(request.into_inner())))
    }

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<v1::GenerateResponse>, Status> {
        let mut watch = self.begin(request.metadata()).await?;
        watch.0 = None;
        Ok(Response::new(self.generated(&request.get_ref().instructions[0], request.get_ref().first_row)))
    }

    async fn log_likelihood(
        &self,
        _: Request<v1::LogLikelihoodRequest>,
    ) -> Result<Response<v1::LogLikelihoodResponse>, Status> {
        Err(Status::unimplemented("not pretended"))
    }

    async fn boost(&self, _: Request<v1::BoostRequest>) -> Result<Response<v1::BoostResponse>, Status> {
        Err(Status::unimplemented("not pretended"))
    }

    async fn score_stream(
        &self,
        request: Request<Streaming<v1::ScoreStreamRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        let watch = self.begin(request.metadata()).await?;
        let this = self.clone();
        let answers = request.into_inner().enumerate().then(move |(index, message)| {
            let (this, _watch) = (this.clone(), &watch);
            async move {
                if this.mood_after(index) {
                    return this.hang().await;
                }
                let response = Some(this.scored(message?.request.unwrap()));
                Ok(v1::ScoreStreamResponse { response })
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn generate_stream(
        &self,
        request: Request<Streaming<v1::GenerateStreamRequest>>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        self.begin(request.metadata()).await?;
        let this = self.clone();
        let rows = request.into_inner().flat_map(|message| {
            let request = message.unwrap().request.unwrap();
            futures::stream::iter(request.instructions.into_iter().zip(request.first_row..))
        });
        let answers = rows.enumerate().then(move |(count, (instruction, index))| {
            let this = this.clone();
            async move {
                if this.mood_after(count) {
                    return this.hang().await;
                }
                Ok(v1::GenerateStreamResponse { response: Some(this.generated(&instruction, index)) })
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
