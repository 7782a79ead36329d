//! What the store keeps and what it answers, in the words of the design. Times are milliseconds of the store's clock.

mod leases;
mod outputs;
mod plan;
mod records;
mod states;

pub(crate) use leases::*;
pub(crate) use outputs::*;
pub(crate) use plan::*;
pub(crate) use records::*;
pub(crate) use states::*;
