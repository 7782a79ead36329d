//! Brings a database to the schema that this program knows, by `user_version`. All steps and the new version are one
//! transaction: a migration killed midway leaves the old schema.

use rusqlite::{Connection, TransactionBehavior};

use crate::store::{Result, StoreError};

/// Step `i` takes the schema from version `i` to `i + 1`. Steps that were released are never edited.
const STEPS: [&str; 4] = [
    include_str!("schema.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
];

pub(super) fn migrate(connection: &mut Connection) -> Result<()> {
    apply(connection, &STEPS)
}

fn apply(connection: &mut Connection, steps: &[&str]) -> Result<()> {
    let known = i64::try_from(steps.len()).expect("few steps");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > known {
        return Err(StoreError::NewerSchema { found, known });
    }
    for step in &steps[usize::try_from(found).unwrap_or(0)..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: i64 = STEPS.len() as i64;

    fn version(connection: &Connection) -> i64 {
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_migration_is_atomic_and_a_newer_schema_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        migrate(&mut connection).unwrap();
        assert_eq!(version(&connection), KNOWN);

        let broken = [
            STEPS[0],
            STEPS[1],
            STEPS[2],
            STEPS[3],
            "CREATE TABLE added (id INTEGER); CREATE TABLE jobs (id INTEGER);",
        ];
        assert!(apply(&mut connection, &broken).is_err());
        assert_eq!(version(&connection), KNOWN);
        let added: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'added'", [], |row| row.get(0))
            .unwrap();
        assert_eq!(added, 0, "the first half of the broken step was rolled back");

        connection.pragma_update(None, "user_version", 7).unwrap();
        let error = migrate(&mut connection).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "the store has schema 7, this program knows up to {KNOWN}; run a newer cappy-coordinator"
            )
        );
    }

    /// A database of the first schema with a job in the midst of its work comes out whole.
    #[test]
    fn leases_and_artifacts_survive_the_migrations() {
        let mut connection = Connection::open_in_memory().unwrap();
        apply(&mut connection, &STEPS[..1]).unwrap();
        connection
            .execute_batch(
                r#"INSERT INTO jobs (id, kind, title, spec, state, created_ms, updated_ms) VALUES
                       ('j', 'bigbench', '', x'', 2, 1, 1);
                   INSERT INTO stages (job_id, idx, name, kind, plan, state, outputs, units_total) VALUES
                       ('j', 0, 's', 'label', '{}', 3, '[{"artifacts":[{"name":"x","id":"made","size_bytes":1}]}]', 1);
                   INSERT INTO shards (id, job_id, stage, idx, local, task, requirements, units, state, lease_id,
                                       worker_id, granted_ms, deadline_ms, fencing_token) VALUES
                       ('held', 'j', 0, 0, 0, x'', '{}', 1, 2, 'l2', 'w', 5, 35, 2);
                   INSERT INTO leases (id, shard_id, fencing_token, worker_id, granted_ms) VALUES
                       ('l1', 'held', 1, 'w', 1), ('l2', 'held', 2, 'w', 5);
                   INSERT INTO artifacts (id, size_bytes, created_ms) VALUES ('made', 1, 1), ('given', 1, 1);"#,
            )
            .unwrap();
        migrate(&mut connection).unwrap();
        let open: (String, i64) = connection
            .query_row("SELECT id, deadline_ms FROM leases WHERE ended_ms IS NULL", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(open, ("l2".to_owned(), 35));
        let held: i64 =
            connection.query_row("SELECT count(*) FROM job_artifacts", [], |row| row.get(0)).unwrap();
        assert_eq!(held, 2, "the job holds what it made and what it may have been given");
    }
}
