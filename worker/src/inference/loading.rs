//! Models by name, for async callers: however many ask for one at a time, it is looked up and loaded once, and goes on
//! being loaded when they leave.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use cappy_plugin_abi::{Generator, Scorer};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tonic::Status;

use crate::{
    engine::{Choice, Engine},
    execution::ExecutionError,
    residency::{Loaded, Resident, Role},
};

/// Which model a call is for, as the caller says it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    /// Directory, hub id, short name or model id.
    pub model: String,
    /// Empty: any.
    pub backend: String,
    /// Empty: the worker's.
    pub dtype: String,
}

type Load = Shared<BoxFuture<'static, Result<Loaded, ExecutionError>>>;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Loading {
    engine: Arc<Engine>,
    under_way: Arc<Mutex<HashMap<(Named, Role), Load>>>,
}

impl Loading {
    /// Loads with `engine`.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, under_way: Arc::default() }
    }

    /// What is loaded with.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// A scorer in memory.
    ///
    /// # Errors
    /// When it cannot be found or loaded.
    pub async fn scorer(&self, named: Named) -> Result<Arc<Resident<dyn Scorer>>, Status> {
        match self.load(named, Role::Scorer).await? {
            Loaded::Scorer(scorer) => Ok(scorer),
            Loaded::Generator(_) => Err(wrong_role()),
        }
    }

    /// A generator in memory.
    ///
    /// # Errors
    /// When it cannot be found or loaded.
    pub async fn generator(&self, named: Named) -> Result<Arc<Resident<dyn Generator>>, Status> {
        match self.load(named, Role::Generator).await? {
            Loaded::Generator(generator) => Ok(generator),
            Loaded::Scorer(_) => Err(wrong_role()),
        }
    }

    async fn load(&self, named: Named, role: Role) -> Result<Loaded, Status> {
        let load = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (named, role);
            match under_way.get(&key) {
                Some(load) => load.clone(),
                None => {
                    let load = self.start(key.clone());
                    under_way.insert(key, load.clone());
                    load
                }
            }
        };
        Ok(load.await?)
    }

    fn start(&self, key: (Named, Role)) -> Load {
        let this = self.clone();
        // A task of its own, so that it ends whoever of its callers leaves.
        let task = tokio::spawn(async move {
            let engine = Arc::clone(&this.engine);
            let (named, role) = key.clone();
            let result = tokio::task::spawn_blocking(move || {
                let choice = Choice { backend: &named.backend, dtype: &named.dtype };
                engine.by_name(&named.model, role, choice)
            })
            .await
            .unwrap_or_else(|_| {
                Err(ExecutionError::internal("loading the model met a defect; the worker's log tells more"))
            });
            this.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            result
        });
        async move {
            task.await
                .unwrap_or_else(|_| Err(ExecutionError::infrastructure("unavailable", "the worker ends")))
        }
        .boxed()
        .shared()
    }
}

fn wrong_role() -> Status {
    ExecutionError::internal("a model was loaded in another role").into()
}
