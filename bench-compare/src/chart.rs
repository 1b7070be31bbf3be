//! The table as a picture: how many times better than its reference cowl is in each row, on a
//! logarithmic scale, with a mark where the bar is.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

/// One row beside one reference.
pub(crate) struct Stripe {
    pub(crate) title: String,
    pub(crate) reference: &'static str,
    /// cowl divided by the reference, the other way round where less is better.
    pub(crate) times_better: f64,
    /// What the bar asks for, in the same measure.
    pub(crate) wanted: f64,
}

const WIDTH: u32 = 960;
const STRIPE_HEIGHT: i32 = 22;
const TOP: i32 = 56;
const BOTTOM: i32 = 40;
const TITLES_WIDTH: i32 = 430;
const FIGURES_WIDTH: i32 = 70;

/// The scale's ends. What lies beyond is cut, and its figure says by how much.
const LEAST: f64 = 0.25;
const MOST: f64 = 16.0;

pub(crate) const GRAY: RGBColor = RGBColor(140, 140, 140);
pub(crate) const MET: RGBColor = RGBColor(46, 125, 80);
pub(crate) const MISSED: RGBColor = RGBColor(192, 57, 43);

pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws `stripes` from top to bottom.
pub(crate) fn draw(path: &Path, stripes: &[Stripe]) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let rows = i32::try_from(stripes.len()).map_err(|error| failed(&error))?;
    let height = u32::try_from(TOP + BOTTOM + rows * STRIPE_HEIGHT).map_err(|e| failed(&e))?;
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    paint(&area, stripes).map_err(|error| failed(&error))?;
    area.present().map_err(|error| failed(&error))
}

fn paint(area: &Area<'_>, stripes: &[Stripe]) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    area.fill(&WHITE)?;
    let text = |size: i32, color: &RGBColor| ("sans-serif", size).into_font().color(color);
    let headline = "cowl beside its references: times better (log scale), and the bar";
    area.draw(&Text::new(headline, (12, 14), text(16, &BLACK)))?;
    let end = TOP + STRIPE_HEIGHT * stripes.len() as i32;
    for times in [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0] {
        let x = place(times);
        let style =
            if times == 1.0 { BLACK.stroke_width(1) } else { GRAY.mix(0.4).stroke_width(1) };
        area.draw(&PathElement::new([(x, TOP), (x, end)], style))?;
        area.draw(&Text::new(format!("{times}x"), (x - 8, end + 8), text(12, &GRAY)))?;
    }
    for (index, stripe) in (0..).zip(stripes) {
        let y = TOP + STRIPE_HEIGHT * index;
        let color = if stripe.wanted <= stripe.times_better { MET } else { MISSED };
        let title = format!("{} / {}", stripe.title, stripe.reference);
        area.draw(&Text::new(title, (12, y + 5), text(13, &BLACK)))?;
        let (from, to) = (place(1.0), place(stripe.times_better));
        let corners = [(from.min(to), y + 5), (from.max(to).max(from.min(to) + 1), y + 17)];
        area.draw(&Rectangle::new(corners, color.filled()))?;
        let mark = place(stripe.wanted);
        area.draw(&PathElement::new([(mark, y + 2), (mark, y + 20)], BLACK.stroke_width(2)))?;
        let figure = format!("{:.2}", stripe.times_better);
        let x = WIDTH as i32 - FIGURES_WIDTH + 14;
        area.draw(&Text::new(figure, (x, y + 5), text(13, &color)))?;
    }
    Ok(())
}

/// Where a ratio lies, in pixels.
fn place(times: f64) -> i32 {
    let room = f64::from(WIDTH as i32 - TITLES_WIDTH - FIGURES_WIDTH);
    let part = (times.clamp(LEAST, MOST) / LEAST).log2() / (MOST / LEAST).log2();
    TITLES_WIDTH + (room * part) as i32
}
