//! `resolve`: a worker finds the models that a job names and says what they are.

use cappy_proto::v1::{self, shard_task::Task};

use super::{model::Model, shards::Run};
use crate::{
    planner::graph::{Graph, Node, OpenError, Opening, Outputs, Registry, StageId, Work},
    store::Requirements,
};

/// A model that a job names.
pub(in crate::planner) enum Wanted<'a> {
    Scorer(&'a str),
    Generator(&'a str, Option<&'a v1::Endpoint>),
}

/// Adds the stage that finds `wanted`, unless all of them are registered, and says how tasks name each.
pub(in crate::planner) fn resolve(
    graph: &mut Graph,
    run: &Run,
    registry: Registry<'_>,
    wanted: &[Wanted<'_>],
) -> Vec<Model> {
    let mut found = Vec::new();
    let mut to_find = Vec::new();
    for wanted in wanted {
        let (name, role, endpoint) = match wanted {
            Wanted::Scorer(name) => (*name, v1::ModelRole::Scorer, None),
            Wanted::Generator(name, endpoint) => (*name, v1::ModelRole::Generator, *endpoint),
        };
        found.push(match registry.get(name) {
            Some(model) => {
                Ok(Model::Registered { files: model.files.clone(), fingerprint: model.fingerprint.clone() })
            }
            None => Err((to_find.len(), name, endpoint)),
        });
        if registry.get(name).is_none() {
            to_find.push(v1::ResolveModel {
                name: name.to_owned(),
                role: role.into(),
                endpoint: endpoint.cloned(),
            });
        }
    }
    let stage = (!to_find.is_empty())
        .then(|| graph.add(Node::new("resolve", 1, Resolve { run: run.clone(), models: to_find })));
    found
        .into_iter()
        .map(|model| {
            model.unwrap_or_else(|(place, name, endpoint)| {
                let stage = stage.expect("there is a stage where there is a model to find");
                match endpoint {
                    Some(endpoint) => Model::Endpoint { stage, place, endpoint: endpoint.clone() },
                    None => Model::Resolved { stage, place, name: name.to_owned() },
                }
            })
        })
        .collect()
}

struct Resolve {
    run: Run,
    models: Vec<v1::ResolveModel>,
}

impl Work for Resolve {
    fn kind(&self) -> &'static str {
        "resolve"
    }

    fn needs(&self) -> Vec<StageId> {
        Vec::new()
    }

    /// Always runs: what a name means may have changed since the last job.
    fn open(&self, _: &Outputs<'_>) -> Result<Opening, OpenError> {
        let task = Task::ResolveModels(v1::ResolveModelsTask { models: self.models.clone() });
        Ok(Opening {
            fingerprint: None,
            shards: vec![self.run.remote(task, 1, Requirements::default())],
            ..Default::default()
        })
    }
}
