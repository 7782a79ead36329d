//! What a table looks like: aligned text, Markdown, CSV or JSON.

use std::fmt::Write as _;

use super::{Cell, DECIMALS, Table, TableRow};

/// Aligned columns for a terminal, ending with a line end.
pub fn text(table: &Table) -> String {
    let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row.cells.iter().map(shown).collect()).collect();
    let widths: Vec<usize> = (0..table.columns.len())
        .map(|at| {
            let cells = rows.iter().filter_map(|row| row.get(at)).chain([&table.columns[at]]);
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| {
            if at == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let rule = widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>().join("  ") + "\n";
    let mut out = format!("{}\n\n{}{rule}", table.title, line(&table.columns));
    for (row, cells) in table.rows.iter().zip(&rows) {
        if row.emphasis && rows.len() > 1 {
            out.push_str(&rule);
        }
        out.push_str(&line(cells));
    }
    for (at, note) in table.notes.iter().enumerate() {
        let _ = writeln!(out, "{}{note}", if at == 0 { "\n" } else { "" });
    }
    out
}

/// A Markdown table below its title, notes as a list; rows that stand out are bold.
pub fn markdown(table: &Table) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('|', "\\|");
    let mut out = format!("**{}**\n\n|", table.title);
    for column in &table.columns {
        let _ = write!(out, " {} |", escape(column));
    }
    out.push_str("\n|");
    for at in 0..table.columns.len() {
        out.push_str(if at == 0 { "---|" } else { "---:|" });
    }
    out.push('\n');
    for TableRow { cells, emphasis } in &table.rows {
        out.push('|');
        for cell in cells {
            let text = escape(&shown(cell));
            let bold = if *emphasis && !text.is_empty() { "**" } else { "" };
            let _ = write!(out, " {bold}{text}{bold} |");
        }
        out.push('\n');
    }
    for (at, note) in table.notes.iter().enumerate() {
        let _ = writeln!(out, "{}- {note}", if at == 0 { "\n" } else { "" });
    }
    out
}

/// Comma-separated values (RFC 4180, `\n` line ends), heads first; figures in full precision, no title or notes.
pub fn csv(table: &Table) -> String {
    let quote = |text: String| match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    };
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = String>| {
        out.push_str(&cells.map(quote).collect::<Vec<_>>().join(","));
        out.push('\n');
    };
    line(&mut table.columns.iter().cloned());
    for row in &table.rows {
        line(&mut row.cells.iter().map(|cell| match cell {
            Cell::Number(x) => x.to_string(),
            other => shown(other),
        }));
    }
    out
}

/// `{"title", "columns", "rows": [{"cells", "emphasis"}], "notes"}`, figures in full precision, empty cells `null`.
pub fn json(table: &Table) -> String {
    serde_json::to_string(table).expect("a table of texts and finite figures serialises")
}

fn shown(cell: &Cell) -> String {
    match cell {
        Cell::Empty => String::new(),
        Cell::Text(text) => text.clone(),
        Cell::Number(x) => {
            let fixed = format!("{x:.DECIMALS$}");
            let short = fixed.trim_end_matches('0');
            // Whole figures keep one place, so that they read as measured.
            if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let row = |label: &str, x, emphasis| TableRow { cells: vec![Cell::Text(label.into()), x], emphasis };
        Table {
            title: "T".into(),
            columns: vec!["method".into(), "a|b".into()],
            rows: vec![
                row("Beam, 4", Cell::Number(20.711), false),
                row("é", Cell::Empty, false),
                row("Cappy", Cell::Number(100.0), true),
            ],
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn each_form_says_the_same() {
        assert_eq!(
            text(&table()),
            "T\n\nmethod      a|b\n-------  ------\nBeam, 4  20.711\né\n-------  ------\nCappy     100.0\n\na note\n"
        );
        assert_eq!(
            markdown(&table()),
            "**T**\n\n| method | a\\|b |\n|---|---:|\n| Beam, 4 | 20.711 |\n| é |  |\n| **Cappy** | **100.0** |\n\n- a note\n"
        );
        assert_eq!(csv(&table()), "method,a|b\n\"Beam, 4\",20.711\né,\nCappy,100\n");
        let read: serde_json::Value = serde_json::from_str(&json(&table())).unwrap();
        assert_eq!(read["rows"][0]["cells"], serde_json::json!(["Beam, 4", 20.711]));
        assert_eq!(read["rows"][1]["cells"][1], serde_json::Value::Null);
    }
}
