//! Groups of ranks, each a process of its own on this machine.

mod data_parallel;
mod gradients;
mod losses;
mod memory;
mod processes;
mod random_t5;
mod rendezvous;
mod sums;
mod tensor_parallel;

/// Not a test of its own: the part of one rank, in the processes that the tests start. There it ends the process with
/// a failure when something is wrong; elsewhere it has no part.
#[test]
fn a_rank() {
    let scenes = [
        sums::SCENES,
        gradients::SCENES,
        losses::SCENES,
        rendezvous::SCENES,
        tensor_parallel::SCENES,
        memory::SCENES,
        data_parallel::SCENES,
    ]
    .concat();
    processes::play(&scenes);
}
