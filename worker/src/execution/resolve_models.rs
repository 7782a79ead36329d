//! Finds the models of a job and tells what their content is.

use cappy_proto::v1;

use super::{Attempt, ExecutionError, Outcome};
use crate::{
    endpoint,
    engine::{Choice, Engine},
    residency::Role,
};

pub fn run(
    engine: &Engine,
    task: &v1::ResolveModelsTask,
    choice: Choice<'_>,
    attempt: &Attempt<'_>,
) -> Result<Outcome, ExecutionError> {
    let total = task.models.len() as u64;
    let mut outcome = Outcome::default();
    for (done, model) in (0..).zip(&task.models) {
        attempt.progress.set(done, total, &format!("resolving {}", model.name));
        if let Some(endpoint) = &model.endpoint {
            outcome.resolved_models.push(v1::ResolvedModel {
                name: model.name.clone(),
                fingerprint: engine.endpoints.probe(endpoint)?,
                architecture: endpoint::BACKEND.to_owned(),
                ..Default::default()
            });
            continue;
        }
        let role = match model.role() {
            v1::ModelRole::Scorer => Role::Scorer,
            v1::ModelRole::Generator => Role::Generator,
            v1::ModelRole::Unspecified => {
                let message = format!("the task does not say what `{}` is for", model.name);
                return Err(ExecutionError::permanent("invalid_argument", message));
            }
        };
        let located = engine.models.by_name(&model.name, role)?;
        let dtype = match engine.dtype_of(choice) {
            "auto" => "f32",
            dtype => dtype,
        };
        outcome.resolved_models.push(v1::ResolvedModel {
            name: model.name.clone(),
            weight_bytes: located.bytes_in(dtype),
            dtype: dtype.to_owned(),
            attention_heads: located.attention_heads(),
            fingerprint: located.fingerprint,
            architecture: located.architecture,
        });
    }
    outcome.stats.rows = total;
    Ok(outcome)
}
