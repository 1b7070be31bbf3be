//! The table, its footnotes, and the same as JSON.

use serde_json::{Value, json};

use crate::measure::{Samples, median};
use crate::options::Options;
use crate::row::{Bar, Contender, Group, Unit};

/// A finished row.
struct Line {
    key: &'static str,
    title: String,
    unit: Unit,
    bars: Vec<Bar>,
    samples: Vec<(Contender, Result<Vec<f64>, String>)>,
}

impl Line {
    fn samples(&self, wanted: Contender) -> Option<&[f64]> {
        let (_, samples) = self.samples.iter().find(|(contender, _)| *contender == wanted)?;
        samples.as_deref().ok().filter(|samples| !samples.is_empty())
    }

    /// The median of cowl's samples, each divided by the reference's of the same repetition: the
    /// machine changes from minute to minute, and what is a minute apart says little.
    fn ratio(&self, bar: Bar) -> Option<f64> {
        let pairs = self.samples(Contender::Cowl)?.iter().zip(self.samples(bar.reference)?);
        let ratios: Vec<f64> = pairs.map(|(cowl, reference)| cowl / reference).collect();
        Some(median(&ratios))
    }

    fn is_met(&self, bar: Bar) -> Option<bool> {
        Some(bar.is_met_by(self.ratio(bar)?, self.unit))
    }

    /// Whether all bars are met; `None` where one cannot be judged and none is missed.
    fn are_all_met(&self) -> Option<bool> {
        let met: Vec<Option<bool>> = self.bars.iter().map(|bar| self.is_met(*bar)).collect();
        match met.contains(&Some(false)) {
            true => Some(false),
            false => met.into_iter().collect::<Option<Vec<bool>>>().map(|_| true),
        }
    }
}

/// All rows so far.
pub(crate) struct Report {
    lines: Vec<Line>,
    remarks: Vec<String>,
    wanted: Vec<String>,
}

impl Report {
    pub(crate) fn new(options: &Options) -> Self {
        Self { lines: Vec::new(), remarks: Vec::new(), wanted: options.rows.clone() }
    }

    pub(crate) fn add(&mut self, group: &Group, result: Vec<(Contender, Samples)>) {
        for (index, row) in group.rows.iter().enumerate() {
            let of_row = |samples: &Samples| match samples {
                Ok(lists) => Ok(lists[index].clone()),
                Err(reason) => Err(reason.clone()),
            };
            let line = Line {
                key: row.key,
                title: row.title.clone(),
                unit: row.unit,
                bars: row.bars.clone(),
                samples: result.iter().map(|(who, samples)| (*who, of_row(samples))).collect(),
            };
            print_line(&line, None);
            self.lines.push(line);
        }
        self.remarks.extend((group.note)());
    }

    pub(crate) fn print(&self) {
        let mut notes = Vec::new();
        println!();
        print!("{:50}", "");
        for contender in Contender::ALL {
            print!("{:>11}", contender.name());
        }
        println!("{:>8}  {:18} met", "ratio", "bar");
        for line in &self.lines {
            print_line(line, Some(&mut notes));
        }
        println!(
            "\nk/s: thousands of operations in a second; us: processor time of one operation."
        );
        for (number, note) in (1..).zip(&notes) {
            println!("{:>4} {note}", format!("-{number}"));
        }
        for remark in &self.remarks {
            println!("     {remark}");
        }
        let keys = |met| {
            let lines = self.lines.iter().filter(move |line| line.are_all_met() == met);
            lines.map(|line| line.key).collect::<Vec<_>>().join(", ")
        };
        let (missed, open) = (keys(Some(false)), keys(None));
        match (missed.as_str(), open.as_str()) {
            ("", "") => println!("\nEvery bar is met."),
            ("", open) => println!("\nNo bar is missed. Not judged: {open}"),
            (missed, "") => println!("\nNot met: {missed}"),
            (missed, open) => println!("\nNot met: {missed}\nNot judged: {open}"),
        }
        if !self.wanted.is_empty() {
            println!("Only some rows were asked for: {}", self.wanted.join(", "));
        }
    }

    /// The rows and remarks.
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self.lines.iter().map(line_json).collect();
        json!({ "rows": rows, "remarks": self.remarks })
    }

    /// All bars, row by row.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = Outcome> {
        self.lines.iter().flat_map(|line| {
            line.bars.iter().map(|bar| Outcome {
                title: line.title.clone(),
                unit: line.unit,
                bar: *bar,
                ratio: line.ratio(*bar),
            })
        })
    }
}

/// What one run says about one bar.
pub(crate) struct Outcome {
    pub(crate) title: String,
    pub(crate) unit: Unit,
    pub(crate) bar: Bar,
    /// `None` where one of the two was not measured.
    pub(crate) ratio: Option<f64>,
}

fn print_line(line: &Line, notes: Option<&mut Vec<String>>) {
    let mut text = format!("{:50}", line.title);
    let mut own = Vec::new();
    let notes = notes.unwrap_or(&mut own);
    for contender in Contender::ALL {
        let samples = line.samples.iter().find(|(other, _)| *other == contender);
        let cell = match samples.map(|(_, samples)| samples) {
            Some(Ok(samples)) if !samples.is_empty() => number(line.unit, median(samples)),
            Some(Err(reason)) => {
                let note = format!("{}: {reason}", contender.name());
                let known = notes.iter().position(|other| *other == note);
                let index = known.unwrap_or_else(|| {
                    notes.push(note);
                    notes.len() - 1
                });
                format!("-{}", index + 1)
            }
            _ => "-".to_owned(),
        };
        text.push_str(&format!("{cell:>11}"));
    }
    let width = text.chars().count();
    for bar in &line.bars {
        println!("{text:width$}{}", bar.text(line.ratio(*bar), line.unit));
        // Further bars of the same numbers stand below the first.
        text.clear();
    }
}

fn number(unit: Unit, value: f64) -> String {
    match unit {
        Unit::PerSecond => format!("{:.1} k/s", value / 1000.0),
        Unit::Seconds => format!("{value:.2} s"),
        Unit::CpuMicroseconds => format!("{value:.2} us"),
        Unit::Mebibytes => format!("{value:.1} MiB"),
    }
}

fn line_json(line: &Line) -> Value {
    let unit = match line.unit {
        Unit::PerSecond => "operations/s",
        Unit::Seconds => "s",
        Unit::CpuMicroseconds => "cpu us/operation",
        Unit::Mebibytes => "MiB",
    };
    let mut contenders = serde_json::Map::new();
    for (contender, samples) in &line.samples {
        let value = match samples {
            Ok(samples) if samples.is_empty() => json!({ "missing": "not measured" }),
            Ok(samples) => json!({ "median": median(samples), "samples": samples }),
            Err(reason) => json!({ "missing": reason }),
        };
        contenders.insert(contender.name().to_owned(), value);
    }
    let bars: Vec<Value> = line
        .bars
        .iter()
        .map(|bar| {
            json!({
                "reference": bar.reference.name(),
                "bar": bar.ratio,
                "ratio": line.ratio(*bar),
                "met": line.is_met(*bar),
            })
        })
        .collect();
    json!({
        "key": line.key,
        "title": line.title.trim(),
        "unit": unit,
        "contenders": contenders,
        "bars": bars,
        "met": line.are_all_met(),
    })
}
