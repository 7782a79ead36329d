//! Ids are newtypes: a job id cannot be passed for a worker id. Each is a prefix and a ULID, so ids of one kind
//! sort by time of creation.

use std::{fmt, str::FromStr};

use ulid::Ulid;

/// The text is not an id of this kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a {kind} id: expected `{prefix}` followed by 26 characters")]
pub struct IdError {
    text: String,
    kind: &'static str,
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// What every id of this kind starts with.
            pub const PREFIX: &'static str = $prefix;

            /// A fresh id, greater than those made before in other milliseconds.
            pub fn generate() -> Self {
                Self(format!("{}{}", $prefix, Ulid::new().to_string().to_lowercase()))
            }

            /// The id as it is written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = || IdError { text: text.chars().take(64).collect(), kind: $kind, prefix: $prefix };
                let rest = text.strip_prefix($prefix).ok_or_else(error)?;
                Ulid::from_string(rest).map_err(|_| error())?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id!(
    /// Names a job.
    JobId, "job_", "job"
);
id!(
    /// Names a shard of a stage.
    ShardId, "shd_", "shard"
);
id!(
    /// Names one attempt of a shard by one worker.
    LeaseId, "lse_", "lease"
);
id!(
    /// Names a worker process, from one hello to the end of its session.
    WorkerId, "wrk_", "worker"
);
id!(
    /// Names a model that a job has trained and registered.
    ModelId, "mdl_", "model"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_refuse_other_kinds() {
        let id = JobId::generate();
        assert_eq!(id.as_str().parse::<JobId>().as_ref(), Ok(&id));
        for bad in ["", "job_", "job_x", "wrk_01hzzzzzzzzzzzzzzzzzzzzzzz", WorkerId::generate().as_str()] {
            let error = bad.parse::<JobId>().unwrap_err();
            assert!(error.to_string().contains("job id"), "{error}");
        }
    }
}
