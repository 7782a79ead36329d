//! Progress on stderr, of a job and of a transfer: a bar on a terminal, now and then a line elsewhere.

use std::time::{Duration, Instant};

use cappy_proto::v1::{Job, StageState};
use indicatif::{ProgressBar, ProgressStyle};

use crate::printer::Printer;

/// Pause between lines where no bar can be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Steps of the bar.
const BAR_STEPS: u64 = 1000;
/// Smaller transfers are over before they are seen.
const LARGE_BYTES: u64 = 32 * 1024 * 1024;
/// Rows between two looks at a file that is read.
const ROWS_A_STEP: u64 = 20_000;

/// Shows snapshots of one job.
pub struct Progress {
    printer: Printer,
    bar: Option<ProgressBar>,
    last_line: Option<(Instant, String)>,
    told: Vec<String>,
}

impl Progress {
    /// Nothing shown yet.
    pub fn new(printer: &Printer) -> Self {
        let bar = printer.draws().then(|| {
            let style = ProgressStyle::with_template("{bar:24.cyan/blue} {percent:>3}%  {wide_msg}");
            ProgressBar::new(BAR_STEPS).with_style(style.expect("the template is valid"))
        });
        Self { printer: *printer, bar, last_line: None, told: Vec::new() }
    }

    /// Shows a new snapshot.
    pub fn show(&mut self, job: &Job) {
        for stage in &job.stages {
            let words = match StageState::try_from(stage.state) {
                Ok(StageState::Failed) => "failed",
                _ => continue,
            };
            if !self.told.contains(&stage.name) {
                self.told.push(stage.name.clone());
                self.line(&format!("{}: {words}: {}", stage.name, stage.message));
            }
        }
        let Some(progress) = &job.progress else { return };
        let text = match eta(progress.eta_seconds) {
            Some(eta) => format!("{}  {eta} left", progress.activity),
            None => progress.activity.clone(),
        };
        match &self.bar {
            Some(bar) => {
                bar.set_position((progress.fraction * BAR_STEPS as f64) as u64);
                bar.set_message(text);
            }
            None => {
                let due = self
                    .last_line
                    .as_ref()
                    .is_none_or(|(time, last)| time.elapsed() >= LINE_INTERVAL && *last != text);
                if due && !text.is_empty() {
                    self.printer.note(format!("{:>3.0}%  {text}", progress.fraction * 100.0));
                    self.last_line = Some((Instant::now(), text));
                }
            }
        }
    }

    /// Removes the bar.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => self.printer.note(text),
        }
    }
}

/// Shows how much of a file has gone through, if it is a large one.
pub struct Bytes(Option<ProgressBar>);

impl Bytes {
    /// `doing` a file called `title`.
    pub fn new(doing: &str, title: &str, total: u64, printer: &Printer) -> Self {
        if total < LARGE_BYTES {
            return Self(None);
        }
        if !printer.draws() {
            printer.note(format!("{doing} {title} ({} MB)", total / 1_000_000));
            return Self(None);
        }
        let template = "{msg}  {bar:24.cyan/blue}  {bytes}/{total_bytes}  {bytes_per_sec}  {eta}";
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        Self(Some(ProgressBar::new(total).with_style(style).with_message(format!("{doing} {title}"))))
    }

    /// So many bytes are through.
    pub fn set(&self, done: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(done);
        }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Shows how many rows of a file have been read, once they are many.
pub struct Rows {
    title: String,
    rows: u64,
    draws: bool,
    bar: Option<ProgressBar>,
}

impl Rows {
    /// None yet, of a file called `title`.
    pub fn new(title: String, printer: &Printer) -> Self {
        Self { title, rows: 0, draws: printer.draws(), bar: None }
    }

    /// One more.
    pub fn count(&mut self) {
        self.rows += 1;
        if self.draws && self.rows.is_multiple_of(ROWS_A_STEP) {
            let bar = self.bar.get_or_insert_with(ProgressBar::new_spinner);
            bar.set_message(format!("reading {}: {} rows", self.title, self.rows));
            bar.tick();
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `1h 02m`, `3m 20s`, `45s`; nothing when unknown.
fn eta(seconds: f64) -> Option<String> {
    (seconds.is_finite() && seconds >= 0.0).then(|| duration(seconds))
}

/// A duration for people.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m {s:02}s"),
        (h, m, _) => format!("{h}h {m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        for (seconds, text) in [(0.2, "0s"), (59.6, "1m 00s"), (200.0, "3m 20s"), (3720.0, "1h 02m")] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(eta(-1.0), None);
    }
}
