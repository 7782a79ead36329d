//! Whole-cluster stories: the real binaries in processes of their own, the demo's models, real training.
//!
//! The same small job runs embedded once ([`job::embedded`]); every story that ends with a finished job compares its
//! files with that run's, byte for byte.

mod bad_input;
mod control;
mod crashes;
mod embedded;
mod groups;
mod job;
mod online;
mod own_data;
mod pretrain;
mod promptsource;
mod separate_processes;
mod sharing;
