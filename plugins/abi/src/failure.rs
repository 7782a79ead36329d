//! Why a call did not do what was asked.

use std::fmt;

/// Kinds of failure that callers treat differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u32)]
pub enum Code {
    /// The input is wrong; it will be wrong everywhere.
    InvalidArgument = 1,
    /// The device's memory did not suffice; a smaller batch may.
    OutOfMemory = 2,
    /// This backend cannot do this: architecture, dtype, device, feature.
    Unsupported = 3,
    /// Cancelled through [`crate::Control`].
    Cancelled = 4,
    /// A file is missing or damaged.
    BadModel = 5,
    /// The call does not fit the object's state.
    FailedPrecondition = 6,
    /// A defect: a panic, a violated assertion.
    Internal = 7,
    /// The result is not finite: NaN or infinity.
    NotFinite = 8,
    /// Another rank of the group is gone or did not answer in time; nothing is wrong with the input or this process.
    PeerLost = 9,
}

/// A failed call: a code for programs, a line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub code: Code,
    /// One line, lowercase, that names what is wrong.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

macro_rules! constructors {
    ($($name:ident $code:ident),*) => {
        impl Failure {
            $(
                #[doc = concat!("A failure with code `", stringify!($code), "`.")]
                pub fn $name(message: impl Into<String>) -> Self {
                    Self { code: Code::$code, message: message.into() }
                }
            )*
        }
    };
}

constructors!(
    invalid_argument InvalidArgument, out_of_memory OutOfMemory, unsupported Unsupported, cancelled Cancelled,
    bad_model BadModel, failed_precondition FailedPrecondition, internal Internal, not_finite NotFinite,
    peer_lost PeerLost
);
