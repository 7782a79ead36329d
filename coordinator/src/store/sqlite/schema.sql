CREATE TABLE jobs (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    idempotency_key TEXT UNIQUE,
    kind            TEXT NOT NULL,
    title           TEXT NOT NULL,
    spec            BLOB NOT NULL,
    state           INTEGER NOT NULL,
    message         TEXT NOT NULL DEFAULT '',
    created_ms      INTEGER NOT NULL,
    updated_ms      INTEGER NOT NULL,
    ended_ms        INTEGER
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, seq);

CREATE TABLE stages (
    job_id       TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    idx          INTEGER NOT NULL,
    name         TEXT NOT NULL,
    kind         TEXT NOT NULL,
    plan         TEXT NOT NULL,
    state        INTEGER NOT NULL,
    message      TEXT NOT NULL DEFAULT '',
    fingerprint  TEXT,
    outputs      TEXT,
    shards_total INTEGER NOT NULL DEFAULT 0,
    shards_done  INTEGER NOT NULL DEFAULT 0,
    units_total  INTEGER NOT NULL,
    units_done   INTEGER NOT NULL DEFAULT 0,
    seconds      REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (job_id, idx)
) STRICT, WITHOUT ROWID;

CREATE TABLE shards (
    id              TEXT PRIMARY KEY,
    job_id          TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    stage           INTEGER NOT NULL,
    idx             INTEGER NOT NULL,
    local           INTEGER NOT NULL,
    task            BLOB NOT NULL,
    requirements    TEXT NOT NULL,
    units           INTEGER NOT NULL,
    state           INTEGER NOT NULL,
    attempts        INTEGER NOT NULL DEFAULT 0,
    interruptions   INTEGER NOT NULL DEFAULT 0,
    fencing_token   INTEGER NOT NULL DEFAULT 0,
    lease_id        TEXT,
    worker_id       TEXT,
    granted_ms      INTEGER,
    deadline_ms     INTEGER,
    not_before_ms   INTEGER NOT NULL DEFAULT 0,
    output          TEXT,
    failure_code    TEXT,
    failure_message TEXT,
    UNIQUE (job_id, stage, idx)
) STRICT, WITHOUT ROWID;
CREATE INDEX shards_by_state ON shards (job_id, state, local, stage, idx);
CREATE INDEX shards_leased ON shards (deadline_ms) WHERE state = 2;
CREATE INDEX shards_by_worker ON shards (worker_id) WHERE state = 2;

CREATE TABLE leases (
    id            TEXT PRIMARY KEY,
    shard_id      TEXT NOT NULL REFERENCES shards (id) ON DELETE CASCADE,
    fencing_token INTEGER NOT NULL,
    worker_id     TEXT NOT NULL,
    granted_ms    INTEGER NOT NULL,
    ended_ms      INTEGER,
    outcome       INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX leases_by_shard ON leases (shard_id);

CREATE TABLE stage_outputs (
    fingerprint TEXT PRIMARY KEY,
    outputs     TEXT NOT NULL,
    created_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE artifacts (
    id         TEXT PRIMARY KEY,
    size_bytes INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id    TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    time_ms   INTEGER NOT NULL,
    stage     TEXT NOT NULL,
    shard_id  TEXT NOT NULL,
    worker_id TEXT NOT NULL,
    level     TEXT NOT NULL,
    message   TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_job ON events (job_id, seq);
