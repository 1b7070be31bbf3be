//! Curves: what grows, what is measured along it, and whether it stays as flat as it has to.

use serde_json::{Value, json};

use crate::measure::median;

/// What the numbers of a curve mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Operations in a second; more is better.
    PerSecond,
    /// Time of one operation.
    Microseconds,
    Mebibytes,
    /// A number as it is.
    Ratio,
}

impl Unit {
    pub(crate) fn text(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{:.1} k/s", value / 1000.0),
            Self::Microseconds if 100_000.0 <= value => format!("{:.1} ms", value / 1000.0),
            Self::Microseconds if 100.0 <= value => format!("{value:.0} us"),
            Self::Microseconds => format!("{value:.2} us"),
            Self::Mebibytes => format!("{value:.1} MiB"),
            Self::Ratio => format!("{value:.2}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "operations/s",
            Self::Microseconds => "us",
            Self::Mebibytes => "MiB",
            Self::Ratio => "ratio",
        }
    }
}

/// What every point of a curve has to keep. Ratios are to the point of reference.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Limit {
    /// Nothing: it is there to be looked at, or a floor.
    None,
    /// A cost: at most this many times the reference.
    RatioMax(f64),
    /// A rate: from the point of reference on, at least this many times the reference.
    RatioMin(f64),
    /// At most this, anywhere.
    ValueMax(f64),
    /// At most this, point by point.
    ValuesMax(Vec<f64>),
}

/// A limit, and why it is that one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bound {
    pub(crate) limit: Limit,
    pub(crate) why: &'static str,
}

impl Bound {
    pub(crate) const NONE: Self = Self { limit: Limit::None, why: "" };

    fn text(&self, unit: Unit) -> String {
        match &self.limit {
            Limit::None => "no bound".to_owned(),
            Limit::RatioMax(ratio) => format!("at most {ratio} x"),
            Limit::RatioMin(ratio) => format!("at least {ratio} x"),
            Limit::ValueMax(value) => format!("at most {}", unit.text(*value)),
            Limit::ValuesMax(values) => {
                let texts: Vec<_> = values.iter().map(|value| unit.text(*value)).collect();
                format!("at most {}", texts.join(", "))
            }
        }
    }
}

/// One number along the axis.
pub(crate) struct Curve {
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
    pub(crate) bound: Bound,
    /// The point that the ratios refer to; what is before it is work of another kind.
    pub(crate) reference: usize,
    /// A list for each point.
    samples: Vec<Vec<f64>>,
}

impl Curve {
    pub(crate) fn new(title: &'static str, unit: Unit, bound: Bound) -> Self {
        Self { title, unit, bound, reference: 0, samples: Vec::new() }
    }

    /// A cost per operation, in time, that must not grow.
    pub(crate) fn flat(title: &'static str, times: f64, why: &'static str) -> Self {
        Self::new(title, Unit::Microseconds, Bound { limit: Limit::RatioMax(times), why })
    }

    pub(crate) fn value(&self, point: usize) -> f64 {
        median(&self.samples[point])
    }

    pub(crate) fn ratio(&self, point: usize) -> f64 {
        self.value(point) / self.value(self.reference)
    }

    /// The largest value that the bound allows at a point.
    pub(crate) fn value_max(&self, point: usize) -> Option<f64> {
        match &self.bound.limit {
            Limit::None | Limit::RatioMin(_) => None,
            Limit::RatioMax(ratio) => Some(ratio * self.value(self.reference)),
            Limit::ValueMax(value) => Some(*value),
            Limit::ValuesMax(values) => Some(values[point]),
        }
    }

    /// The smallest value that the bound allows at a point.
    pub(crate) fn value_min(&self, point: usize) -> Option<f64> {
        match &self.bound.limit {
            Limit::RatioMin(ratio) if self.reference < point => {
                Some(ratio * self.value(self.reference))
            }
            _ => None,
        }
    }

    fn is_kept_at(&self, point: usize) -> bool {
        let value = self.value(point);
        self.value_max(point).is_none_or(|most| value <= most)
            && self.value_min(point).is_none_or(|least| least <= value)
    }

    /// Whether the bound is kept; `None` where there is none.
    pub(crate) fn is_kept(&self) -> Option<bool> {
        let all = || (self.reference..self.samples.len()).all(|point| self.is_kept_at(point));
        (self.bound.limit != Limit::None).then(all)
    }

    fn json(&self) -> Value {
        let points = self.samples.len();
        json!({
            "title": self.title,
            "unit": self.unit.name(),
            "reference": self.reference,
            "medians": (0..points).map(|point| self.value(point)).collect::<Vec<_>>(),
            "ratios": (0..points).map(|point| self.ratio(point)).collect::<Vec<_>>(),
            "samples": self.samples,
            "bound": self.bound.text(self.unit),
            "why": self.bound.why,
            "kept": self.is_kept(),
        })
    }
}

/// Curves along one axis.
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    /// What grows.
    pub(crate) axis: &'static str,
    /// The points on the axis.
    pub(crate) labels: Vec<String>,
    pub(crate) curves: Vec<Curve>,
}

impl Plot {
    /// Measures all points in turn, `repeat` times over, so that a machine that slows down slows
    /// down all of them. `once` gives a number for each curve.
    pub(crate) fn measure<X: Copy>(
        &mut self,
        repeat: usize,
        points: &[X],
        mut once: impl FnMut(X) -> Result<Vec<f64>, String>,
    ) -> Result<(), String> {
        assert_eq!(points.len(), self.labels.len());
        for curve in &mut self.curves {
            curve.samples = vec![Vec::new(); points.len()];
        }
        for _ in 0..repeat {
            for (index, point) in points.iter().enumerate() {
                let numbers = once(*point)?;
                assert_eq!(numbers.len(), self.curves.len());
                for (curve, number) in self.curves.iter_mut().zip(numbers) {
                    curve.samples[index].push(number);
                }
            }
        }
        Ok(())
    }

    /// A table as Markdown knows it, and below it what each bound is.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}\n\n| {} |", self.title, self.axis);
        let mut rule = "|---|".to_owned();
        for curve in &self.curves {
            text.push_str(&format!(" {} | x |", curve.title));
            rule.push_str("---|---|");
        }
        text.push_str(&format!("\n{rule}\n"));
        for (point, label) in self.labels.iter().enumerate() {
            text.push_str(&format!("| {label} |"));
            for curve in &self.curves {
                let value = curve.unit.text(curve.value(point));
                text.push_str(&format!(" {value} | {:.2} |", curve.ratio(point)));
            }
            text.push('\n');
        }
        for curve in &self.curves {
            if let Some(is_kept) = curve.is_kept() {
                let verdict = if is_kept { "kept" } else { "NOT KEPT" };
                let bound = curve.bound.text(curve.unit);
                text.push_str(&format!(
                    "\n- {}: {bound}: {verdict}. {}",
                    curve.title, curve.bound.why
                ));
            }
        }
        text + "\n"
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "title": self.title,
            "axis": self.axis,
            "points": self.labels,
            "curves": self.curves.iter().map(Curve::json).collect::<Vec<_>>(),
        })
    }
}
