//! What `qemu-img check` says, where it is installed.

use std::process::Command;
use std::sync::OnceLock;

use crate::checkers::Case;
use crate::subject::Subject;

/// Exit codes of `qemu-img check`: clean, and leaks only.
const LEGAL: [i32; 2] = [0, 3];

fn is_installed() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let output = Command::new("qemu-img").arg("--version").output();
        let installed = output.is_ok_and(|output| output.status.success());
        if !installed {
            #[expect(clippy::print_stderr, reason = "a skipped comparison must be seen")]
            {
                eprintln!("SKIP: qemu-img is not installed; it was not asked about any state");
            }
        }
        installed
    })
}

pub(crate) fn check<S: Subject>(case: &Case<'_, S>) -> Result<(), String> {
    let Some(format) = case.subject.qemu_format() else { return Ok(()) };
    if !is_installed() {
        return Ok(());
    }
    let report = super::look(case.subject, &case.world())?.unwrap_or_default();
    if report.needs_repair {
        return Ok(());
    }
    let failed = |error: std::io::Error| format!("no temporary file: {error}");
    let folder = tempfile::tempdir().map_err(failed)?;
    for file in case.files {
        std::fs::write(folder.path().join(&file.name), &file.bytes).map_err(failed)?;
    }
    let mut command = Command::new("qemu-img");
    command.args(["check", "-f", format, &case.files[0].name]);
    let output = command.current_dir(folder.path()).env("LC_ALL", "C").output().map_err(failed)?;
    if output.status.code().is_some_and(|code| LEGAL.contains(&code)) {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&text)))
}

#[cfg(test)]
mod tests {
    use crate::checkers::Case;
    use crate::checkers::qemu_check::{check, is_installed};
    use crate::subject::Subject;
    use crate::{Extent, Model, Qcow2Subject};

    #[test]
    fn qemu_img_agrees_on_new_images_and_sees_damage() {
        if !is_installed() {
            return;
        }
        for seed in 0..40 {
            let subject = Qcow2Subject::draw(seed, Extent::Full);
            let mut made = subject.make().expect("it can be made");
            let model = Model::new(made.content);
            let judge = |files: &[crate::SimFile]| {
                check(&Case {
                    subject: &subject,
                    model: &model,
                    files,
                    original: &[],
                    snapshots: &[],
                    leaks_max: 0,
                })
            };
            assert_eq!(judge(&made.files), Ok(()), "seed {seed}");
            // The refcount table is never at cluster 0.
            made.files[0].bytes[48..56].fill(0);
            assert!(judge(&made.files).is_err(), "seed {seed}");
        }
    }
}
