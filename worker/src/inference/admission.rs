//! How many calls a worker listens to at a time: the others are turned away before their messages are read.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Extensions, Request, Status, service::Interceptor};

use super::status::busy;

/// When another try is worth while.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Lets calls in. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    calls: Arc<Semaphore>,
}

/// A place among the calls that are listened to; held until the call is answered.
#[derive(Clone)]
pub struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Admission {
    /// At most `calls` at a time.
    pub fn new(calls: usize) -> Self {
        Self { calls: Arc::new(Semaphore::new(calls)) }
    }
}

impl Interceptor for Admission {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let permit = Arc::clone(&self.calls)
            .try_acquire_owned()
            .map_err(|_| busy("the worker has too many calls", RETRY_AFTER))?;
        request.extensions_mut().insert(Place { _permit: Arc::new(permit) });
        Ok(request)
    }
}

/// The place that a call was given.
pub fn place(extensions: &mut Extensions) -> Option<Place> {
    extensions.remove()
}
