//! A table without a look: [`super::render`] gives it one.

use serde::Serialize;

/// A titled table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Column heads; the first column is text, the others are figures.
    pub columns: Vec<String>,
    /// One cell a column.
    pub rows: Vec<TableRow>,
    /// What a reader must know beside the figures.
    pub notes: Vec<String>,
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableRow {
    /// One for each column.
    pub cells: Vec<Cell>,
    /// Stands out: the row that the table is about.
    pub emphasis: bool,
}

/// One figure or text.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Cell {
    /// Nothing to show.
    Empty,
    /// As it is.
    Text(String),
    /// Shown with [`super::DECIMALS`] places, trailing zeros cut as in the published tables.
    Number(f64),
}
