//! A stream of requests on its way to a worker, and the answers on their way back.
//!
//! What was sent and is not answered yet is kept; when the worker dies it goes to another one. Little is kept: the client's
//! sending is slowed down to the worker's answering.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Poll, ready},
};

use cappy_proto::{WorkerId, v1};
use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::route::{Call, Client, Deadline, MAX_ATTEMPTS, Routed, Router, elsewhere, forward, outward};

/// Requests that are with a worker at the same time.
const WINDOW: usize = 16;
/// Answers that wait for the client to read them.
const UNREAD: usize = 16;

/// A request that is one of a stream.
pub(super) trait Streamed: Call {
    type Answer: Send + 'static;

    /// Answers that it gets.
    fn answers(&self) -> usize;
    /// The first answer has come: what is still to be answered.
    fn answered(&mut self);
    fn open(
        client: Client,
        requests: Request<ReceiverStream<Self>>,
    ) -> BoxFuture<'static, Result<Response<Streaming<Self::Answer>>, Status>>;
}

impl Call for v1::ScoreStreamRequest {
    fn backend(&self) -> &str {
        self.request.as_ref().map_or("", Call::backend)
    }
    fn models(&self) -> [&str; 2] {
        self.request.as_ref().map_or([""; 2], Call::models)
    }
    fn rows(&self) -> usize {
        self.request.as_ref().map_or(0, Call::rows)
    }
}

impl Streamed for v1::ScoreStreamRequest {
    type Answer = v1::ScoreStreamResponse;

    fn answers(&self) -> usize {
        1
    }
    fn answered(&mut self) {}
    fn open(
        mut client: Client,
        requests: Request<ReceiverStream<Self>>,
    ) -> BoxFuture<'static, Result<Response<Streaming<Self::Answer>>, Status>> {
        async move { client.score_stream(requests).await }.boxed()
    }
}

impl Call for v1::GenerateStreamRequest {
    fn backend(&self) -> &str {
        self.request.as_ref().map_or("", Call::backend)
    }
    fn models(&self) -> [&str; 2] {
        self.request.as_ref().map_or([""; 2], Call::models)
    }
    fn rows(&self) -> usize {
        self.request.as_ref().map_or(0, Call::rows)
    }
}

impl Streamed for v1::GenerateStreamRequest {
    type Answer = v1::GenerateStreamResponse;

    /// A request without rows is refused, which is an answer too.
    fn answers(&self) -> usize {
        self.request.as_ref().map_or(1, |request| request.instructions.len().max(1))
    }
    fn answered(&mut self) {
        if let Some(request) = self.request.as_mut().filter(|request| !request.instructions.is_empty()) {
            request.instructions.remove(0);
            request.first_row += 1;
        }
    }
    fn open(
        mut client: Client,
        requests: Request<ReceiverStream<Self>>,
    ) -> BoxFuture<'static, Result<Response<Streaming<Self::Answer>>, Status>> {
        async move { client.generate_stream(requests).await }.boxed()
    }
}

/// Answers on their way to the client. Dropped, the worker's call ends.
pub(crate) struct Relay<A> {
    answers: mpsc::Receiver<Result<A, Status>>,
    ended: bool,
}

impl<A> Stream for Relay<A> {
    type Item = Result<A, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = ready!(self.answers.poll_recv(context));
        self.ended = !matches!(next, Some(Ok(_)));
        Poll::Ready(next)
    }
}

/// Begins to relay.
pub(super) fn relay<Q: Streamed>(
    router: Router,
    request: Request<Streaming<Q>>,
) -> Result<Response<Relay<Q::Answer>>, Status> {
    let admitted = router.admit()?;
    let (metadata, _, requests) = request.into_parts();
    let (to_client, answers) = mpsc::channel(UNREAD);
    let deadline = Deadline::of(&metadata);
    let mut passage = Passage {
        router,
        metadata,
        deadline,
        requests,
        ended: false,
        open: VecDeque::new(),
        to_client: to_client.clone(),
        tried: Vec::new(),
    };
    tokio::spawn(async move {
        let _admitted = admitted;
        let result = tokio::select! {
            result = deadline.limit(passage.run()) => result.flatten(),
            () = to_client.closed() => return,
        };
        if let Err(status) = result {
            // A client that is gone does not mind.
            let _ = to_client.send(Err(status)).await;
        }
    });
    Ok(Response::new(Relay { answers, ended: false }))
}

struct Passage<Q: Streamed> {
    router: Router,
    metadata: MetadataMap,
    deadline: Deadline,
    requests: Streaming<Q>,
    /// The client has sent its last request.
    ended: bool,
    /// What is not answered yet.
    open: VecDeque<Q>,
    to_client: mpsc::Sender<Result<Q::Answer, Status>>,
    /// Workers that failed since the last answer.
    tried: Vec<WorkerId>,
}

impl<Q: Streamed> Passage<Q> {
    /// Until the last answer.
    async fn run(&mut self) -> Result<(), Status> {
        loop {
            if self.open.is_empty() {
                match self.requests.next().await.transpose()? {
                    Some(request) => self.open.push_back(request),
                    None => return Ok(()),
                }
            }
            let routed = self.router.route(&self.open[0], &self.tried)?;
            let worker = routed.turn.worker.clone();
            match self.through(routed).await {
                Ok(()) => return Ok(()),
                Err(status) => {
                    let again = elsewhere(&status) && self.tried.len() + 1 < MAX_ATTEMPTS;
                    let status = outward(status);
                    if !again {
                        return Err(status);
                    }
                    self.tried.push(worker);
                }
            }
        }
    }

    /// Through one worker, as far as it goes.
    async fn through(&mut self, routed: Routed) -> Result<(), Status> {
        let Routed { client, turn: _turn } = routed;
        let (to_worker, sent) = mpsc::channel(WINDOW);
        for request in &self.open {
            to_worker.try_send(request.clone()).map_err(|_| lost())?;
        }
        let mut to_worker = (!self.ended).then_some(to_worker);
        let request = forward(&self.metadata, ReceiverStream::new(sent), self.deadline)?;
        let mut answers = Q::open(client, request).await?.into_inner();
        loop {
            tokio::select! {
                biased;
                answer = answers.next() => match answer.transpose()? {
                    Some(answer) => {
                        self.tried.clear();
                        self.answered();
                        if self.to_client.send(Ok(answer)).await.is_err() {
                            return Ok(());
                        }
                    }
                    None if self.ended && self.open.is_empty() => return Ok(()),
                    None => return Err(lost()),
                },
                request = self.requests.next(), if !self.ended && self.open.len() < WINDOW => {
                    match request.transpose()? {
                        None => {
                            self.ended = true;
                            to_worker = None;
                        }
                        Some(request) => {
                            self.open.push_back(request.clone());
                            if let Some(to_worker) = &to_worker {
                                // Where the worker is gone its answers end, which is noticed above.
                                let _ = to_worker.send(request).await;
                            }
                        }
                    }
                }
            }
        }
    }

    fn answered(&mut self) {
        if let Some(first) = self.open.front_mut() {
            if first.answers() <= 1 {
                self.open.pop_front();
            } else {
                first.answered();
            }
        }
    }
}

fn lost() -> Status {
    Status::unavailable("the worker that was to answer ended the call")
}
