//! Brings a database to the schema that this program knows, by `user_version`. All steps and the new version are one
//! transaction: a migration killed midway leaves the old schema.

use rusqlite::{Connection, TransactionBehavior};

use crate::store::{Result, StoreError};

/// Step `i` takes the schema from version `i` to `i + 1`. Steps that were released are never edited.
const STEPS: [&str; 2] = [include_str!("schema.sql"), include_str!("schema_2.sql")];

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

        let broken = [STEPS[0], STEPS[1], "CREATE TABLE added (id INTEGER); CREATE TABLE jobs (id INTEGER);"];
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
}
