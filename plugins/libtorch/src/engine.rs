//! What goes wrong inside libtorch, and what the host hears of it.

use cappy_plugin_abi::Failure;
use tch::TchError;

/// Why a computation stopped.
#[derive(Debug)]
pub enum Error {
    /// An operation of libtorch refused its arguments, or there was no memory for its result.
    Engine(TchError),
    /// What the host shall hear as it is.
    Failed(Failure),
}

/// Of a computation in libtorch's operations.
pub type Result<T> = std::result::Result<T, Error>;

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        Self::Engine(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = match error {
            Error::Failed(failure) => return failure,
            Error::Engine(error) => error.to_string(),
        };
        let lower = text.to_lowercase();
        if ["out of memory", "can't allocate memory", "not enough memory"].iter().any(|of| lower.contains(of))
        {
            return Failure::out_of_memory("the device's memory did not suffice; use a smaller batch");
        }
        // The first line; C++ frames follow.
        let line = text.lines().next().unwrap_or_default();
        Failure::internal(format!("libtorch: {}", line.trim_start_matches("Internal torch error: ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::Code;

    #[test]
    fn failures_say_what_the_host_can_act_upon() {
        let torch = |text: &str| Failure::from(Error::from(TchError::Torch(text.into())));
        let memory = torch(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried",
        );
        assert_eq!(memory.code, Code::OutOfMemory);
        assert_eq!(torch("CUDA out of memory. Tried to allocate 2 GiB").code, Code::OutOfMemory);
        let other = torch("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)\nException raised from");
        assert_eq!(other.code, Code::Internal);
        assert_eq!(other.message, "libtorch: mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)");
        let own = Failure::not_finite("the score of row 3 is NaN");
        assert_eq!(Failure::from(Error::from(own.clone())), own);
    }
}
