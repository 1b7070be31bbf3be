//! All curves as small charts: each one's values from point to point, and its bound.

use std::path::Path;

use plotters::prelude::*;

use crate::chart::{Area, GRAY, MET, MISSED};
use crate::scale::curve::{Curve, Plot};

const COLUMNS: usize = 3;
const WIDTH: i32 = 320;
const HEIGHT: i32 = 190;

/// What the text around a chart takes.
const TOP: i32 = 46;
const BOTTOM: i32 = 26;
const SIDE: i32 = 22;

const PLAIN: RGBColor = RGBColor(60, 90, 140);

type Failed = DrawingAreaErrorKind<std::io::Error>;

/// Draws a chart for each curve of `plots`.
pub(crate) fn draw(path: &Path, plots: &[Plot]) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let curves = || plots.iter().flat_map(|plot| plot.curves.iter().map(move |c| (plot, c)));
    let rows = curves().count().div_ceil(COLUMNS);
    let size = (COLUMNS as u32 * WIDTH as u32, rows.max(1) as u32 * HEIGHT as u32);
    let area = SVGBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    for (index, (plot, curve)) in curves().enumerate() {
        let corner = ((index % COLUMNS) as i32 * WIDTH, (index / COLUMNS) as i32 * HEIGHT);
        paint(&area, corner, plot, curve).map_err(|error| failed(&error))?;
    }
    area.present().map_err(|error| failed(&error))
}

fn paint(
    area: &Area<'_>,
    (left, top): (i32, i32),
    plot: &Plot,
    curve: &Curve,
) -> Result<(), Failed> {
    let text = |size: i32, color: &RGBColor| ("sans-serif", size).into_font().color(color);
    let color = match curve.is_kept() {
        None => PLAIN,
        Some(true) => MET,
        Some(false) => MISSED,
    };
    let count = plot.labels.len();
    let values: Vec<f64> = (0..count).map(|point| curve.value(point)).collect();
    let highest = values.iter().copied().fold(0.0, f64::max);
    let place = |point: usize, value: f64| {
        let room = f64::from(WIDTH - 2 * SIDE);
        let x = room * point as f64 / (count.max(2) - 1) as f64;
        let part = value / (highest * 1.1).max(f64::MIN_POSITIVE);
        let y = f64::from(HEIGHT - TOP - BOTTOM) * (1.0 - part);
        (left + SIDE + x as i32, top + TOP + y as i32)
    };
    area.draw(&Text::new(plot.title, (left + 10, top + 8), text(9, &GRAY)))?;
    let named = format!("{}: {}", curve.title, curve.unit.text(highest));
    area.draw(&Text::new(named, (left + 10, top + 22), text(12, &color)))?;
    let ground = [place(0, 0.0), place(count.max(2) - 1, 0.0)];
    area.draw(&PathElement::new(ground, GRAY.stroke_width(1)))?;
    let bound = |point| curve.value_max(point).or_else(|| curve.value_min(point));
    for point in curve.reference..count.saturating_sub(1) {
        let next = point + 1;
        // A bound far above all values would only flatten them: it is left out.
        if let (Some(here), Some(there)) = (bound(point).or_else(|| bound(next)), bound(next))
            && here.max(there) <= highest * 1.1
        {
            let line = [place(point, here), place(next, there)];
            area.draw(&PathElement::new(line, BLACK.mix(0.5).stroke_width(1)))?;
        }
    }
    let line: Vec<_> = (0..count).map(|point| place(point, values[point])).collect();
    area.draw(&PathElement::new(line.clone(), color.stroke_width(2)))?;
    for (at, label) in line.iter().zip(&plot.labels) {
        area.draw(&Circle::new(*at, 3, color.filled()))?;
        let below = (at.0 - 3 * label.chars().count() as i32, top + HEIGHT - BOTTOM + 6);
        area.draw(&Text::new(label.replace("iB", ""), below, text(9, &GRAY)))?;
    }
    Ok(())
}
