//! Under construction.
use super::Table;
/// Aligned columns for a terminal.
pub fn text(table: &Table) -> String {
    let _ = table;
    unimplemented!()
}
/// Markdown.
pub fn markdown(table: &Table) -> String {
    let _ = table;
    unimplemented!()
}
/// Comma-separated values.
pub fn csv(table: &Table) -> String {
    let _ = table;
    unimplemented!()
}
/// JSON, figures in full precision.
pub fn json(table: &Table) -> String {
    let _ = table;
    unimplemented!()
}
