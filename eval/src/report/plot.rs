//! Gains per subset as a picture: an SVG that reads well on light and dark pages.

use std::fmt::Write as _;

use indexmap::IndexSet;

use super::ModelResults;
use crate::selection::BEAM;

const WIDTH: f64 = 900.0;
const MARGIN: f64 = 20.0;
const ROW_HEIGHT: f64 = 20.0;
/// Width of a character of the labels, on average and generously.
const CHAR_WIDTH: f64 = 6.6;
const MAX_LABEL_CHARS: usize = 48;
/// Room right of the longest bar for its figure.
const FIGURE_WIDTH: f64 = 48.0;

/// For generators in the order given; all are told apart on white and on near-black.
const COLOURS: [&str; 6] = ["#4ea1d9", "#1f9e77", "#d99a00", "#d9622b", "#b76ba3", "#8a8f98"];

/// Where the picture is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Follows the reader's light or dark page.
    Adaptive,
    /// White, for formats that cannot adapt.
    Light,
}

/// What each subset gained, by generator.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// What the figures are.
    pub title: String,
    /// How to read it.
    pub subtitle: String,
    /// Generators, one colour each.
    pub models: Vec<String>,
    /// Highest mean first.
    pub rows: Vec<PlotRow>,
}

/// One subset.
#[derive(Clone, Debug, PartialEq)]
pub struct PlotRow {
    /// The subset.
    pub label: String,
    /// One figure for each generator, in points (times 100).
    pub values: Vec<Option<f64>>,
}

/// Cappy's gains over beam search, in points of ROUGE-L, where every model has both; otherwise Cappy's ROUGE-L itself.
/// `None` without results.
pub fn gains(models: &[ModelResults]) -> Option<Plot> {
    let subsets: IndexSet<&str> =
        models.iter().flat_map(|model| model.subsets.keys().map(String::as_str)).collect();
    let has_beam =
        models.iter().all(|model| model.subsets.values().any(|result| result.baselines.contains_key(BEAM)));
    let value = |model: &ModelResults, subset: &str| {
        let result = model.subsets.get(subset)?;
        let from = if has_beam { *result.baselines.get(BEAM)? } else { 0.0 };
        Some(100.0 * (result.rouge_l - from)).filter(|x| x.is_finite())
    };
    let mut rows: Vec<PlotRow> = subsets
        .iter()
        .map(|subset| PlotRow {
            label: (*subset).to_owned(),
            values: models.iter().map(|model| value(model, subset)).collect(),
        })
        .filter(|row| row.values.iter().any(Option::is_some))
        .collect();
    rows.sort_by(|a, b| b.mean().total_cmp(&a.mean()));
    let (title, subtitle) = match has_beam {
        true => (
            "Cappy's gain over beam search per subset",
            "points of ROUGE-L; right of zero: Cappy chose better",
        ),
        false => ("ROUGE-L of Cappy per subset, x100", "give generations to see gains over beam search"),
    };
    (!rows.is_empty()).then(|| Plot {
        title: title.into(),
        subtitle: subtitle.into(),
        models: models.iter().map(|model| model.model.clone()).collect(),
        rows,
    })
}

impl PlotRow {
    fn mean(&self) -> f64 {
        let known: Vec<f64> = self.values.iter().copied().flatten().collect();
        known.iter().sum::<f64>() / known.len().max(1) as f64
    }
}

/// Draws the plot: bars with figures for one generator, a row of dots for several.
pub fn svg(plot: &Plot, look: Look) -> String {
    let longest = plot.rows.iter().map(|row| shortened(&row.label).chars().count()).max().unwrap_or(0);
    let left = MARGIN + longest as f64 * CHAR_WIDTH + 10.0;
    let legend = if plot.models.len() > 1 { 26.0 } else { 0.0 };
    let top = 66.0 + legend;
    let bottom = top + plot.rows.len() as f64 * ROW_HEIGHT;
    let height = bottom + 44.0;
    let figures = if plot.models.len() == 1 { FIGURE_WIDTH } else { 12.0 };
    let axis = Axis::over(
        plot,
        left + if plot.models.len() == 1 { FIGURE_WIDTH } else { 12.0 },
        WIDTH - MARGIN - figures,
    );
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" font-family=\"Roboto, system-ui, sans-serif\" font-size=\"12\" role=\"img\" \
         aria-label=\"{}\">\n{}<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n",
        escaped(&plot.title),
        style(look)
    );
    let _ = writeln!(
        out,
        "<text class=\"ink\" x=\"{MARGIN}\" y=\"30\" font-size=\"17\">{}</text>",
        escaped(&plot.title)
    );
    let _ = writeln!(out, "<text class=\"soft\" x=\"{MARGIN}\" y=\"50\">{}</text>", escaped(&plot.subtitle));
    if plot.models.len() > 1 {
        draw_legend(plot, top - 20.0, &mut out);
    }
    axis.draw(top, bottom, &mut out);
    for (at, row) in plot.rows.iter().enumerate() {
        let y = top + (at as f64 + 0.5) * ROW_HEIGHT;
        let _ = writeln!(
            out,
            "<text class=\"ink\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left,
            y + 4.0,
            escaped(&shortened(&row.label))
        );
        match row.values.as_slice() {
            [value] => draw_bar(&axis, *value, y, &mut out),
            values => draw_dots(&axis, values, y, &mut out),
        }
    }
    out.push_str("</svg>\n");
    out
}

fn draw_legend(plot: &Plot, y: f64, out: &mut String) {
    let mut x = MARGIN + 6.0;
    for (at, model) in plot.models.iter().enumerate() {
        let name = shortened(model);
        let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{}\"/>", colour(at));
        let _ = writeln!(
            out,
            "<text class=\"ink\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x + 10.0,
            y + 4.0,
            escaped(&name)
        );
        x += 32.0 + name.chars().count() as f64 * CHAR_WIDTH;
    }
}

fn draw_bar(axis: &Axis, value: Option<f64>, y: f64, out: &mut String) {
    let Some(value) = value else { return };
    let (zero, end) = (axis.x(0.0), axis.x(value));
    let class = if value < 0.0 { "loss" } else { "gain" };
    let _ = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" rx=\"2\"/>",
        zero.min(end),
        y - 6.0,
        (end - zero).abs().max(0.5)
    );
    let (x, anchor) = if value < 0.0 { (end - 5.0, "end") } else { (end + 5.0, "start") };
    let sign = if axis.low < 0.0 || value < 0.0 { "+" } else { "" };
    let figure = if value < 0.0 { format!("\u{2212}{:.1}", -value) } else { format!("{sign}{value:.1}") };
    let _ = writeln!(
        out,
        "<text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" font-size=\"11\">{figure}</text>",
        y + 4.0
    );
}

fn draw_dots(axis: &Axis, values: &[Option<f64>], y: f64, out: &mut String) {
    let known = || values.iter().copied().flatten();
    let (low, high) = (known().fold(f64::INFINITY, f64::min), known().fold(f64::NEG_INFINITY, f64::max));
    if low < high {
        let (from, to) = (axis.x(low), axis.x(high));
        let _ = writeln!(out, "<path class=\"span\" d=\"M{from:.1} {y:.1}H{to:.1}\"/>");
    }
    for (at, value) in values.iter().enumerate() {
        if let Some(value) = value {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{}\"/>",
                axis.x(*value),
                colour(at)
            );
        }
    }
}

/// The horizontal axis: figures to places.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
    left: f64,
    right: f64,
}

impl Axis {
    fn over(plot: &Plot, left: f64, right: f64) -> Self {
        let values = || plot.rows.iter().flat_map(|row| row.values.iter().copied().flatten());
        let low = values().fold(0.0, f64::min);
        let high = values().fold(low + 1e-3, f64::max).max(0.0);
        // About six ticks, at 1, 2 or 5 times a power of ten.
        let rough = (high - low) / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
        Self { low, high, step, left, right }
    }

    fn x(&self, value: f64) -> f64 {
        self.left + (value - self.low) / (self.high - self.low) * (self.right - self.left)
    }

    fn draw(&self, top: f64, bottom: f64, out: &mut String) {
        let (first, last) = ((self.low / self.step).ceil() as i64, (self.high / self.step).floor() as i64);
        for tick in first..=last {
            let value = tick as f64 * self.step;
            let x = self.x(value);
            let class = if tick == 0 { "zero" } else { "grid" };
            let _ = writeln!(out, "<path class=\"{class}\" d=\"M{x:.1} {top:.1}V{bottom:.1}\"/>");
            let places = if self.step < 1.0 { 1 } else { 0 };
            let figure = format!("{value:.places$}").replace('-', "\u{2212}");
            let _ = writeln!(
                out,
                "<text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{figure}</text>",
                bottom + 18.0
            );
        }
    }
}

fn style(look: Look) -> String {
    let rules = |page: &str, ink: &str, soft: &str, grid: &str, gain: &str, loss: &str| {
        format!(
            ".page{{fill:{page}}}.ink{{fill:{ink}}}.soft{{fill:{soft}}}.gain{{fill:{gain}}}.loss{{fill:{loss}}}\
             .grid{{stroke:{grid};fill:none}}.zero{{stroke:{soft};fill:none}}\
             .span{{stroke:{grid};stroke-width:3;fill:none}}"
        )
    };
    let light = rules("#ffffff", "#1f2328", "#59636e", "#d8dee4", "#2f7fc1", "#c4602d");
    let dark = match look {
        Look::Light => String::new(),
        Look::Adaptive => format!(
            "@media (prefers-color-scheme: dark){{{}}}",
            rules("#0d1117", "#e6edf3", "#9198a1", "#3d444d", "#58a6ff", "#f0883e")
        ),
    };
    format!("<style>{light}{dark}</style>\n")
}

fn colour(at: usize) -> &'static str {
    COLOURS[at % COLOURS.len()]
}

fn shortened(label: &str) -> String {
    if label.chars().count() <= MAX_LABEL_CHARS {
        return label.to_owned();
    }
    label.chars().take(MAX_LABEL_CHARS - 1).chain(['\u{2026}']).collect()
}

fn escaped(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::SubsetResult;

    fn model(name: &str, results: &[(&str, f64, Option<f64>)]) -> ModelResults {
        let result = |rouge_l: f64, beam: Option<f64>| SubsetResult {
            rouge_l,
            baselines: beam.map(|beam| (BEAM.to_owned(), beam)).into_iter().collect(),
            ..SubsetResult::default()
        };
        ModelResults {
            model: name.into(),
            subsets: results
                .iter()
                .map(|(subset, r, beam)| ((*subset).to_owned(), result(*r, *beam)))
                .collect(),
        }
    }

    #[test]
    fn gains_are_sorted_and_drawn_from_zero() {
        let models = [model(
            "m<1>",
            &[("worse", 0.25, Some(0.5)), ("better", 0.75, Some(0.5)), ("no beam", 0.5, None)],
        )];
        let plot = gains(&models).unwrap();
        let rows: Vec<_> = plot.rows.iter().map(|row| (row.label.as_str(), row.values[0])).collect();
        assert_eq!(rows, [("better", Some(25.0)), ("worse", Some(-25.0))]);
        let picture = svg(&plot, Look::Adaptive);
        assert_eq!(picture.matches("class=\"gain\"").count(), 1);
        assert_eq!(picture.matches("class=\"loss\"").count(), 1);
        assert!(picture.contains(">+25.0</text>") && picture.contains(">\u{2212}25.0</text>"));
        assert!(picture.contains("prefers-color-scheme: dark"));
        assert!(!svg(&plot, Look::Light).contains("@media"));
    }

    #[test]
    fn several_generators_are_dots_with_a_legend() {
        let models =
            [model("s<mall", &[("a", 0.1, None), ("b", 0.3, None)]), model("large", &[("a", 0.2, None)])];
        let plot = gains(&models).unwrap();
        assert_eq!(plot.title, "ROUGE-L of Cappy per subset, x100");
        let picture = svg(&plot, Look::Light);
        assert_eq!(picture.matches("<circle").count(), 3 + 2);
        assert!(picture.contains("s&lt;mall"));
        assert_eq!(gains(&[]), None);
    }

    #[test]
    fn any_figures_make_a_picture_without_holes() {
        for values in [&[0.0][..], &[1e-9], &[-1.0, -1.0], &[1e3, -1e3], &[f64::NAN, 0.5]] {
            let results: Vec<_> = values.iter().map(|x| ("a", *x, None)).collect();
            if let Some(plot) = gains(&[model("m", &results)]) {
                let picture = svg(&plot, Look::Light);
                assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
            }
        }
    }
}
