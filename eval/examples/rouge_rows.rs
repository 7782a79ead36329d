//! Scores rows from a file or standard input on one core and says how fast: `rouge_rows FILE|-  > scored.jsonl`.

use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::time::Instant;

use cappy_eval::rouge::rows::score_rows;
use cappy_eval::rows::{BadLinePolicy, open_source};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: rouge_rows FILE|-")?);
    let started = Instant::now();
    let out = BufWriter::with_capacity(256 * 1024, io::stdout().lock());
    let name = path.display().to_string();
    let done = score_rows(&name, open_source(&path)?, out, BadLinePolicy::Collect, |bad| eprintln!("{bad}"))?;
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{} rows, {} bad, {seconds:.3} s, {:.0} rows/s",
        done.rows,
        done.bad,
        done.rows as f64 / seconds
    );
    Ok(())
}
