//! Plots as files: SVG as it is drawn, PNG by resvg with a font of our own.

use std::{fs, path::Path, sync::Arc};

use cappy_eval::report::plot::{self, Look, Plot};
use resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg::{Options, Tree, fontdb::Database},
};

use crate::failure::{Context as _, Failure, Outcome};

/// See `assets/README.md`.
const FONT: &[u8] = include_bytes!("../../assets/Roboto-Regular-subset.ttf");

/// Pixels a unit of the drawing: sharp on dense screens and in print.
const SCALE: f32 = 2.0;

/// What a plot is written as.
#[derive(Clone, Copy, Debug)]
pub enum Picture {
    Svg,
    Png,
}

impl Picture {
    /// Judges by the file's name.
    pub fn of(file: &Path) -> Outcome<Self> {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => Err(Failure::usage(format!(
                "cannot tell the format of the plot `{}`; name it .svg or .png",
                file.display()
            ))),
        }
    }

    /// Draws the plot into the file.
    pub fn write(self, plot: &Plot, file: &Path) -> Outcome<()> {
        let bytes = match self {
            Self::Svg => plot::svg(plot, Look::Adaptive).into_bytes(),
            Self::Png => png(&plot::svg(plot, Look::Light))?,
        };
        fs::write(file, bytes).context(format!("cannot write `{}`", file.display()))
    }
}

fn png(svg: &str) -> Outcome<Vec<u8>> {
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("cannot draw the plot: {error}"));
    let mut fonts = Database::new();
    fonts.load_font_data(FONT.to_vec());
    let options = Options { fontdb: Arc::new(fonts), font_family: "Roboto".into(), ..Options::default() };
    let tree = Tree::from_str(svg, &options).map_err(|error| failed(&error))?;
    let size = tree.size().to_int_size();
    let pixels = |side: u32| (side as f32 * SCALE) as u32;
    let mut pixmap =
        Pixmap::new(pixels(size.width()), pixels(size.height())).ok_or_else(|| failed(&"it is too large"))?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixmap.as_mut());
    pixmap.encode_png().map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_eval::report::plot::PlotRow;

    #[test]
    fn a_plot_is_written_in_the_format_of_its_name() {
        let plot = Plot {
            title: "Gains".into(),
            subtitle: "points".into(),
            models: vec!["m".into()],
            rows: vec![PlotRow { label: "tense".into(), values: vec![Some(4.5)] }],
        };
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let file = folder.path().join(name);
            Picture::of(&file).and_then(|picture| picture.write(&plot, &file))
        };
        write("a.svg").unwrap();
        assert!(fs::read_to_string(folder.path().join("a.svg")).unwrap().starts_with("<svg"));
        write("a.png").unwrap();
        let pixmap = Pixmap::load_png(folder.path().join("a.png")).unwrap();
        assert_eq!(pixmap.width(), 1800);
        // The page is white, and something is written on it.
        let white = pixmap.pixels().iter().filter(|pixel| pixel.red() == 255).count();
        assert!(white < pixmap.pixels().len() && white > pixmap.pixels().len() / 2);
        // Letters: dark pixels left of the axis and below the subtitle, where only the row's label is.
        let label = (120..170).flat_map(|y| (40..126).map(move |x| (x, y)));
        assert!(label.into_iter().any(|(x, y)| pixmap.pixel(x, y).is_some_and(|pixel| pixel.red() < 100)));
        assert!(write("a.jpeg").is_err());
    }
}
