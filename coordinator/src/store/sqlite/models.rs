//! Registered models: made by jobs, named by jobs, gone with the last job that made them.

use cappy_proto::{JobId, ModelId};
use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use super::{
    jobs,
    rows::{self, collect, job_id, model_id},
};
use crate::store::*;

const COLUMNS: &str = "models.id, models.title, models.created_ms, models.fingerprint, models.files,
    (SELECT min(job_id) FROM job_models m WHERE m.model_id = models.id AND m.made = 1) AS job_id";

fn model_row(row: &Row<'_>) -> Result<ModelRecord> {
    Ok(ModelRecord {
        id: model_id(&row.get::<_, String>("id")?)?,
        job: job_id(&row.get::<_, Option<String>>("job_id")?.unwrap_or_default())?,
        title: row.get("title")?,
        created: row.get("created_ms")?,
        fingerprint: row.get("fingerprint")?,
        files: rows::decode(&row.get::<_, String>("files")?)?,
    })
}

/// Registers a model that `job` made; content that is known keeps its id.
pub(super) fn register(tx: &Transaction<'_>, now: Millis, job: &JobId, model: &NewModel) -> Result<ModelId> {
    let known: Option<String> = tx
        .query_row("SELECT id FROM models WHERE fingerprint = ?1", [&model.fingerprint], |row| row.get(0))
        .optional()?;
    let id = match known {
        Some(id) => model_id(&id)?,
        None => {
            let id = ModelId::generate();
            tx.execute(
                "INSERT INTO models (id, fingerprint, title, files, created_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![id.as_str(), model.fingerprint, model.title, rows::encode(&model.files)?, now],
            )?;
            id
        }
    };
    link(tx, job, &id, true)?;
    Ok(id)
}

/// Notes that a job made or names a model.
pub(super) fn link(tx: &Transaction<'_>, job: &JobId, model: &ModelId, made: bool) -> Result<()> {
    let known: bool =
        tx.query_row("SELECT EXISTS (SELECT 1 FROM models WHERE id = ?1)", [model.as_str()], |row| {
            row.get(0)
        })?;
    if !known {
        return Err(StoreError::NotFound { what: "model", id: model.to_string() });
    }
    tx.execute(
        "INSERT INTO job_models (job_id, model_id, made) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        params![job.as_str(), model.as_str(), made],
    )?;
    Ok(())
}

pub(super) fn find(tx: &Transaction<'_>, text: &str) -> Result<ModelRecord> {
    let id = jobs::find_id(tx, "model", ModelId::PREFIX, "models", text)?;
    let mut found = collect(tx, &format!("SELECT {COLUMNS} FROM models WHERE id = ?1"), [&id], model_row)?;
    found.pop().ok_or(StoreError::NotFound { what: "model", id })
}

pub(super) fn list(tx: &Transaction<'_>) -> Result<Vec<ModelRecord>> {
    collect(tx, &format!("SELECT {COLUMNS} FROM models ORDER BY created_ms DESC, id DESC"), [], model_row)
}

/// The models that a job names.
pub(super) fn named_by(tx: &Transaction<'_>, job: &JobId) -> Result<Vec<ModelRecord>> {
    collect(
        tx,
        &format!(
            "SELECT {COLUMNS} FROM models JOIN job_models n ON n.model_id = models.id
             WHERE n.job_id = ?1 AND n.made = 0 ORDER BY models.id"
        ),
        [job.as_str()],
        model_row,
    )
}

/// The models that no other job made. Refused if a job that has not ended needs one of them.
pub(super) fn made_by_alone(tx: &Transaction<'_>, job: &JobId) -> Result<Vec<ModelId>> {
    let orphans = collect(
        tx,
        "SELECT model_id FROM job_models a WHERE a.job_id = ?1 AND a.made = 1 AND NOT EXISTS
             (SELECT 1 FROM job_models b WHERE b.model_id = a.model_id AND b.made = 1 AND b.job_id != ?1)",
        [job.as_str()],
        |row| model_id(&row.get::<_, String>(0)?),
    )?;
    for model in &orphans {
        let user: Option<String> = tx
            .query_row(
                "SELECT jobs.id FROM job_models n JOIN jobs ON jobs.id = n.job_id
                 WHERE n.model_id = ?1 AND n.made = 0 AND n.job_id != ?2 AND jobs.state IN (1, 2, 3) LIMIT 1",
                params![model.as_str(), job.as_str()],
                |row| row.get(0),
            )
            .optional()?;
        if let Some(user) = user {
            return Err(StoreError::WrongState(format!(
                "job `{job}` made model `{model}`, which job `{user}` needs; wait for that job or cancel it first"
            )));
        }
    }
    Ok(orphans)
}

pub(super) fn remove(tx: &Transaction<'_>, model: &ModelId) -> Result<()> {
    // Ended jobs that named it keep their results and lose the link.
    tx.execute("DELETE FROM job_models WHERE model_id = ?1", [model.as_str()])?;
    tx.execute("DELETE FROM models WHERE id = ?1", [model.as_str()])?;
    Ok(())
}
