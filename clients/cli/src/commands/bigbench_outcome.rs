//! What a finished `bigbench` job prints: the tables of its result files, and where they lie.

use std::path::Path;

use cappy_eval::{
    report::{self, ModelResults, render},
    selection::SubsetResult,
};
use cappy_proto::v1::{Job, ResultFile, job_spec::Kind};
use serde_json::{Value, json};

use super::job_view;
use crate::{
    failure::{Failure, Outcome},
    line_input::explain,
    printer::Printer,
};

/// Reads the files that were just written below `directory`, and prints.
pub fn print(job: &Job, files: &[ResultFile], directory: &Path, printer: &Printer) -> Outcome<()> {
    let mut model = ModelResults::default();
    let Some(Kind::Bigbench(spec)) = job.spec.as_ref().and_then(|spec| spec.kind.as_ref()) else {
        return Err(Failure::failed("the coordinator told nothing of what the job was"));
    };
    for file in files {
        let Some((folder, name)) = file.path.split_once('/') else { continue };
        let Some(subset) = name.strip_suffix(".json") else { continue };
        if !spec.subsets.iter().any(|wanted| wanted.name == subset) {
            continue;
        }
        let result =
            SubsetResult::load(&directory.join(&file.path)).map_err(|e| Failure::failed(explain(&e)))?;
        model.model = folder.to_owned();
        model.subsets.insert(subset.to_owned(), result);
    }
    let models = [model];
    let (scores, methods) = (report::scores_table(&models), report::methods_table(&models));
    let [model] = models;
    let results: Value = model
        .subsets
        .iter()
        .map(|(subset, result)| {
            let text = result.to_json().expect("a loaded result serialises");
            let mut value: Value = serde_json::from_str(&text).expect("a serialised result parses");
            if let Some(fields) = value.as_object_mut() {
                // The long arrays are in the files.
                fields.remove("per_row");
            }
            (subset.clone(), value)
        })
        .collect();
    let value = json!({
        "job": job.id,
        "state": job_view::state_name(job),
        "model": model.model,
        "directory": directory.join(&model.model),
        "results": results,
        "methods": super::report::json(&methods),
        "scores": super::report::json(&scores),
    });
    printer.value(&value, || format!("{}\n{}", render::text(&scores), render::text(&methods)))?;
    printer.note(format!("results and generations: {}", directory.join(&model.model).display()));
    Ok(())
}
