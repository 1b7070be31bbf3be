//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::row::Contender;

const HELP: &str = "\
bench-compare: cowl beside the raw floor, QEMU, imago and qcow2-rs

  serve            only the rows about serving; the same as --rows serve
  scale            instead of rows, curves of cowl alone: how costs grow
  --rows A,B,...   only rows whose key contains one of these (--rows list shows the keys)
  --contenders A,B only these of raw, qemu, imago, qcow2-rs and cowl
  --repeat N       repetitions of each row (7)
  --runs N         the whole table so many times; then the worst of each row (1)
  --sample MS      length of one sample of reading (700)
  --quick          small images, short samples, 1 repetition: to see that everything works
  --fill-memory    leave no memory free before each write, where a host takes free memory back
  --dir DIR        keep the images here, and use those that are here (a temporary folder)
  --json FILE      write all samples as JSON
  --svg FILE       draw the ratios and their bars
  --cowl FILE      the cowl program (built from this tree)
  --rqcow2 FILE    the command of qcow2-rs (rqcow2, if it is installed)
";

/// What was asked for.
pub(crate) struct Options {
    pub(crate) rows: Vec<String>,
    pub(crate) contenders: Vec<Contender>,
    pub(crate) repeat: usize,
    /// How often the whole table is measured.
    pub(crate) runs: usize,
    /// How long one sample of reading lasts, the warm-up not counted.
    pub(crate) sample: Duration,
    pub(crate) quick: bool,
    /// Whether the page cache has all memory before each sample that writes.
    pub(crate) fill_memory: bool,
    pub(crate) folder: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) svg: Option<PathBuf>,
    pub(crate) cowl: Option<PathBuf>,
    pub(crate) rqcow2: PathBuf,
    /// Curves instead of rows.
    pub(crate) scale: bool,
    /// The only thing this process does.
    pub(crate) child: Option<Child>,
}

/// Something done with an image in a process of its own, so that its memory can be measured.
pub(crate) enum Child {
    /// Reads at random.
    Read(PathBuf),
    Open(PathBuf),
    Check(PathBuf),
}

impl Options {
    /// `None` when the command line asked for help, which has been printed.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self {
            rows: Vec::new(),
            contenders: Contender::ALL.to_vec(),
            repeat: 7,
            runs: 1,
            sample: Duration::from_millis(700),
            quick: false,
            fill_memory: false,
            folder: None,
            json: None,
            svg: None,
            cowl: None,
            rqcow2: PathBuf::from("rqcow2"),
            scale: false,
            child: None,
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "scale" => options.scale = true,
                "serve" => options.rows = vec!["serve-".to_owned()],
                "--rows" => options.rows = value()?.split(',').map(str::to_owned).collect(),
                "--contenders" => {
                    let names = value()?;
                    let contenders = names.split(',').map(Contender::of_name);
                    options.contenders = contenders.collect::<Result<_, _>>()?;
                }
                "--repeat" => {
                    options.repeat = value()?.parse().map_err(|_| "--repeat needs a number")?;
                }
                "--runs" => {
                    options.runs = value()?.parse().map_err(|_| "--runs needs a number")?;
                }
                "--sample" => {
                    let sample = value()?.parse().map_err(|_| "--sample needs milliseconds")?;
                    options.sample = Duration::from_millis(sample);
                }
                "--quick" => {
                    (options.quick, options.repeat) = (true, 1);
                    options.sample = Duration::from_millis(200);
                }
                "--fill-memory" => options.fill_memory = true,
                "--dir" => options.folder = Some(value()?.into()),
                "--json" => options.json = Some(value()?.into()),
                "--svg" => options.svg = Some(value()?.into()),
                "--cowl" => options.cowl = Some(value()?.into()),
                "--rqcow2" => options.rqcow2 = value()?.into(),
                "--child-read" => options.child = Some(Child::Read(value()?.into())),
                "--child-open" => options.child = Some(Child::Open(value()?.into())),
                "--child-check" => options.child = Some(Child::Check(value()?.into())),
                "--help" | "-h" => {
                    println!("{HELP}");
                    return Ok(None);
                }
                other => return Err(format!("unknown option {other}\n{HELP}")),
            }
        }
        options.check()?;
        if options.rows == ["list"] {
            options.print_keys();
            return Ok(None);
        }
        Ok(Some(options))
    }

    fn check(&self) -> Result<(), String> {
        let rules = [
            (self.repeat == 0, "--repeat needs at least 1"),
            (self.runs == 0, "--runs needs at least 1"),
            (self.scale && self.runs != 1, "--runs has no meaning for scale"),
            (self.scale && self.fill_memory, "--fill-memory has no meaning for scale"),
            (
                self.scale && self.contenders != Contender::ALL,
                "scale measures cowl alone: --contenders has no meaning there",
            ),
        ];
        match rules.iter().find(|(is_broken, _)| *is_broken) {
            Some((_, message)) => Err((*message).to_owned()),
            None => Ok(()),
        }
    }

    /// What `--rows` can name.
    fn print_keys(&self) {
        if self.scale {
            return crate::scale::keys().for_each(|key| println!("{key}"));
        }
        for row in crate::groups(self).into_iter().flat_map(|group| group.rows) {
            println!("{:14} {}", row.key, row.title);
        }
    }

    pub(crate) fn wants(&self, key: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|row| key.contains(row.as_str()))
    }

    /// Size of the images that hold data.
    pub(crate) fn data_bytes(&self) -> u64 {
        if self.quick { 64 << 20 } else { 1 << 30 }
    }

    /// Size of the images that hold only tables.
    pub(crate) fn huge_bytes(&self) -> u64 {
        if self.quick { 64 << 30 } else { 1 << 40 }
    }
}
