//! The Cappy command line.
fn main() {}
