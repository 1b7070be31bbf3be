//! cowl beside the raw floor, QEMU, imago and qcow2-rs, in one run.
//!
//! Each row is one kind of work. All contenders do it in turn, several times over, and the medians
//! are compared, so that a machine that slows down slows down all of them. A row has a bar: a ratio
//! to a contender of the same run.
//!
//! What a row measures and what it does not is in README.md.

mod chart;
mod cowl_program;
mod fixtures;
mod job_rows;
mod measure;
mod offsets;
mod options;
mod own_memory;
mod process;
mod raw_copy;
mod read_rows;
mod readers;
mod report;
mod row;
mod runs;
mod scale;
mod serve_rows;
mod sys;
mod write_rows;
mod writers;

use std::process::ExitCode;

use crate::fixtures::Fixtures;
use crate::options::{Child, Options};
use crate::report::Report;
use crate::row::Group;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench-compare: {message}");
            return ExitCode::from(2);
        }
    };
    if let Some(child) = &options.child {
        return match child {
            Child::Read(image) => readers::cowl::read_as_child(image),
            Child::Open(image) => scale::open_as_child(image),
            Child::Check(image) => scale::check_as_child(image),
        };
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench-compare: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    if options.scale {
        return scale::run(options);
    }
    let fixtures = Fixtures::new(options)?;
    let mut reports = Vec::new();
    for number in 1..=options.runs {
        if 1 < options.runs {
            println!("\nrun {number} of {}\n", options.runs);
        }
        let report = run_once(options, &fixtures)?;
        report.print();
        reports.push(report);
        // What is measured is not lost if a later run is.
        runs::write_json(&reports, options)?;
    }
    runs::print_worst(&reports);
    runs::write_chart(&reports, options)
}

fn run_once(options: &Options, fixtures: &Fixtures) -> Result<Report, String> {
    let mut report = Report::new(options);
    for mut group in groups(options) {
        if !group.rows.iter().any(|row| options.wants(row.key)) {
            continue;
        }
        group.keep_only(&options.contenders);
        eprintln!("{} ...", group.rows[0].title);
        let result = measure::measure(&group, fixtures, options)?;
        report.add(&group, result);
    }
    Ok(report)
}

fn groups(options: &Options) -> Vec<Group> {
    let mut groups = read_rows::groups(options);
    groups.extend(write_rows::groups(options));
    groups.extend(job_rows::groups(options));
    groups.extend(serve_rows::groups(options));
    groups
}
