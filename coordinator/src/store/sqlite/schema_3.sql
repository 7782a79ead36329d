-- Leases on their own: a shard may be with two workers at once, and the first commit wins.
DROP INDEX shards_leased;
DROP INDEX shards_by_worker;
ALTER TABLE leases ADD COLUMN deadline_ms INTEGER;
UPDATE leases SET deadline_ms = (SELECT s.deadline_ms FROM shards s
    WHERE s.id = leases.shard_id AND s.lease_id = leases.id AND s.state = 2)
    WHERE ended_ms IS NULL;
UPDATE leases SET ended_ms = granted_ms, outcome = 3 WHERE ended_ms IS NULL AND deadline_ms IS NULL;
ALTER TABLE shards DROP COLUMN deadline_ms;
ALTER TABLE shards DROP COLUMN granted_ms;
CREATE INDEX leases_open ON leases (deadline_ms) WHERE ended_ms IS NULL;
CREATE INDEX leases_by_worker ON leases (worker_id) WHERE ended_ms IS NULL;

-- Stages that compute the same, and stages that wait for such a one.
CREATE INDEX stages_by_fingerprint ON stages (fingerprint, state) WHERE fingerprint IS NOT NULL;

-- What keeps artifacts: jobs. `touched_ms` is when somebody who is about to use it has last uploaded it or asked for
-- it; 0 once a job holds it.
ALTER TABLE artifacts ADD COLUMN touched_ms INTEGER NOT NULL DEFAULT 0;
CREATE TABLE job_artifacts (
    job_id      TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    artifact_id TEXT NOT NULL,
    PRIMARY KEY (job_id, artifact_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_artifacts_by_artifact ON job_artifacts (artifact_id);
INSERT INTO job_artifacts (job_id, artifact_id)
    SELECT DISTINCT stages.job_id, json_extract(artifact.value, '$.id')
    FROM stages, json_each(stages.outputs) AS shard, json_each(shard.value, '$.artifacts') AS artifact
    WHERE stages.outputs IS NOT NULL;
INSERT INTO job_artifacts (job_id, artifact_id)
    SELECT DISTINCT shards.job_id, json_extract(artifact.value, '$.id')
    FROM shards, json_each(shards.output, '$.artifacts') AS artifact
    WHERE shards.output IS NOT NULL
    ON CONFLICT DO NOTHING;
-- What jobs before this were given is not written down: each holds whatever no job has made.
INSERT INTO job_artifacts (job_id, artifact_id)
    SELECT jobs.id, artifacts.id FROM jobs, artifacts
    WHERE artifacts.id NOT IN (SELECT artifact_id FROM job_artifacts);
