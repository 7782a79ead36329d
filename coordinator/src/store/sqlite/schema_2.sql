-- Every kind of job: priorities, shards by row, registered models.
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;

ALTER TABLE stages DROP COLUMN plan;
ALTER TABLE stages ADD COLUMN spares_rows INTEGER NOT NULL DEFAULT 0;

ALTER TABLE shards ADD COLUMN row_start INTEGER;
ALTER TABLE shards ADD COLUMN row_end INTEGER;

CREATE TABLE models (
    id          TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    title       TEXT NOT NULL,
    files       TEXT NOT NULL,
    created_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Jobs that made a model, and jobs that name one.
CREATE TABLE job_models (
    job_id   TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    model_id TEXT NOT NULL REFERENCES models (id),
    made     INTEGER NOT NULL,
    PRIMARY KEY (job_id, model_id, made)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_models_by_model ON job_models (model_id);
