//! The worker from outside: tokenization against transformers, every task on the echo backend, whole sessions with a
//! coordinator that lives in the test, and online calls.

mod coordinator;
mod endpoint;
mod execution;
mod groups;
mod inference;
mod registered;
mod session;
mod support;
mod tokenization;
mod training;
