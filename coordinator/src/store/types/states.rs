//! Where jobs, stages, shards and leases stand, with the codes that the database keeps.

macro_rules! stored_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// The code kept in the database; codes are never renumbered.
            pub(crate) const fn code(self) -> i64 {
                match self { $(Self::$variant => $code),+ }
            }

            /// The value of a code, unless a newer program wrote it.
            pub(crate) const fn from_code(code: i64) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

stored_enum!(
    /// State of a job. Codes equal the wire's.
    JobState {
        Queued = 1,
        Running = 2,
        Paused = 3,
        Succeeded = 4,
        Failed = 5,
        Cancelled = 6,
        Partial = 7,
    }
);

impl JobState {
    /// Whether the job has ended.
    pub(crate) const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Partial)
    }

    /// The word for people.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Partial => "partial",
        }
    }
}

stored_enum!(
    /// State of a stage. Codes equal the wire's.
    StageState {
        Waiting = 1,
        Running = 2,
        Succeeded = 3,
        Reused = 4,
        Failed = 5,
        Cancelled = 6,
        Skipped = 7,
    }
);

impl StageState {
    /// Whether the stage has ended.
    pub(crate) const fn is_terminal(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }

    /// Whether its outputs can be read.
    pub(crate) const fn has_outputs(self) -> bool {
        matches!(self, Self::Succeeded | Self::Reused)
    }
}

stored_enum!(
    /// State of a shard.
    ShardState {
        /// May be leased from its `not_before` on.
        Pending = 1,
        Leased = 2,
        Committed = 3,
        /// Set aside: it failed for good.
        Failed = 4,
        /// Its job was cancelled, or another shard of its stage failed for good.
        Cancelled = 5,
    }
);

stored_enum!(
    /// How a lease ended.
    LeaseOutcome {
        Completed = 1,
        Failed = 2,
        Expired = 3,
        /// Taken back: job cancelled or stage failed.
        Revoked = 4,
    }
);
