//! The command line.

use cowl_sim::{Plan, SubjectKind};

pub(crate) const HELP: &str = "\
cowl-sim [OPTIONS]

  --minutes N        run new histories for N minutes (1)
  --histories N      run N new histories instead
  --seed S           the first seed (1)
  --threads N        histories side by side (2)
  --subject NAME     only this subject; may be given again
  --exhaustive       few requests in each history, and all its crash states
  --keep-lengths     lengths that writes gave a file survive every power cut
  --fixed-size       disks never change their size
  --scenarios        each history written by hand, with every crash state, in 4 orders
                     (or as many as --histories says)
  --drops            the same, each request dropped wherever it waits
  --canary           ignore each edge of the engine's order until it is noticed
  --replay LINE      run the history of a replay line, and print what happened
  --shrink LINE      make the failing history of a replay line small
";

/// What a run over many histories takes.
pub(crate) struct Options {
    pub(crate) limit: Limit,
    pub(crate) seed: u64,
    pub(crate) threads: u64,
    pub(crate) subjects: Vec<SubjectKind>,
    pub(crate) exhaustive: bool,
    pub(crate) keep_lengths: bool,
    pub(crate) fixed_size: bool,
}

/// How long it goes on.
#[derive(Clone, Copy)]
pub(crate) enum Limit {
    Minutes(u64),
    Histories(u64),
}

/// What to do.
pub(crate) enum Command {
    /// Histories, one after the other.
    Swarm(Options),
    /// One history, with its log.
    Replay(Plan),
    /// One history, made small.
    Shrink(Plan),
    /// Every scenario, completely.
    Scenarios(Options),
    /// Every request of every scenario, dropped wherever it waits.
    Drops(Options),
    /// Each edge ignored.
    Canaries {
        seed: u64,
    },
    Help,
}

pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut options = Options {
        limit: Limit::Minutes(1),
        seed: 1,
        threads: 2,
        subjects: Vec::new(),
        exhaustive: false,
        keep_lengths: false,
        fixed_size: false,
    };
    let mut survey: Option<fn(Options) -> Command> = None;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("not a number: {text}"));
        match argument.as_str() {
            "--minutes" => options.limit = Limit::Minutes(number(value()?)?),
            "--histories" => options.limit = Limit::Histories(number(value()?)?),
            "--seed" => options.seed = number(value()?)?,
            "--threads" => options.threads = number(value()?)?.max(1),
            "--subject" => options.subjects.push(SubjectKind::from_name(&value()?)?),
            "--keep-lengths" => options.keep_lengths = true,
            "--fixed-size" => options.fixed_size = true,
            "--canary" => survey = Some(|options| Command::Canaries { seed: options.seed }),
            "--scenarios" => survey = Some(Command::Scenarios),
            "--drops" => survey = Some(Command::Drops),
            "--exhaustive" => options.exhaustive = true,
            "--replay" => return Ok(Command::Replay(value()?.parse()?)),
            "--shrink" => return Ok(Command::Shrink(value()?.parse()?)),
            "--help" | "-h" => return Ok(Command::Help),
            other => return Err(format!("no such option: {other}")),
        }
    }
    if let Some(survey) = survey {
        return Ok(survey(options));
    }
    if options.subjects.is_empty() {
        options.subjects = SubjectKind::REAL.to_vec();
    }
    Ok(Command::Swarm(options))
}
