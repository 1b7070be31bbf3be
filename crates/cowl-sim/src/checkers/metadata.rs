//! The format's own check: corruptions never, leaks up to a bound.

use crate::SimWorld;
use crate::checkers::Case;
use crate::executor::run_calm;
use crate::subject::{MetadataReport, Subject};

/// What the check says about the files of a calm world; `None` for formats without metadata.
pub(crate) fn look<S: Subject>(
    subject: &S,
    world: &SimWorld,
) -> Result<Option<MetadataReport>, String> {
    let report = run_calm(subject.check(world)).ok_or("the check is stuck")?;
    report.transpose().map_err(|error| format!("the check fails: {error}"))
}

pub(crate) fn check<S: Subject>(case: &Case<'_, S>) -> Result<(), String> {
    let Some(report) = look(case.subject, &case.world())? else { return Ok(()) };
    // Metadata that says itself that it needs a repair is not trusted, so it may be wrong.
    if report.needs_repair {
        return Ok(());
    }
    if 0 < report.corruptions {
        return Err(format!("{} corruptions: {}", report.corruptions, report.text));
    }
    if case.leaks_max < report.leaks {
        let (leaks, most) = (report.leaks, case.leaks_max);
        return Err(format!("{leaks} leaks, more than {most}: {}", report.text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::checkers::{Case, Depth, check};
    use crate::subject::{Made, Subject};
    use crate::{Extent, Model, Qcow2Subject, Random, Shape};

    /// An image with data, without snapshot and backing file, of 64 KiB of refcounts at 16 bits.
    fn made() -> (Qcow2Subject, Made) {
        let fits = |shape: &Shape| {
            shape.refcount_bits == 16
                && shape.filled_percent == 100
                && shape.backing == crate::Backing::None
                && shape.data_file == crate::DataFile::Internal
                && !shape.has_snapshot
        };
        let subjects = (0..).map(|seed| Qcow2Subject::draw(seed, Extent::Full));
        let subject = subjects.into_iter().find(|subject| fits(subject.shape()));
        let subject = subject.expect("some seed draws one");
        let made = subject.make().expect("it can be made");
        (subject, made)
    }

    /// Sets the refcount of host cluster `cluster`, and says what the checkers think of it.
    fn judge(cluster: usize, count: u8, leaks_max: u64) -> Result<(), (&'static str, String)> {
        let (subject, mut made) = made();
        let bytes = &mut made.files[0].bytes;
        let table = u64::from_be_bytes(bytes[48..56].try_into().expect("8 bytes"));
        let table = usize::try_from(table).expect("small");
        let block = u64::from_be_bytes(bytes[table..table + 8].try_into().expect("8 bytes"));
        bytes[usize::try_from(block).expect("small") + 2 * cluster + 1] = count;
        let model = Model::new(made.content);
        let case = Case {
            subject: &subject,
            model: &model,
            files: &made.files,
            original: &[],
            snapshots: &[],
            leaks_max,
        };
        check(&case, Depth::Quick, &mut Random::new(1))
    }

    #[test]
    fn a_sound_image_passes() {
        assert_eq!(judge(0, 1, 0), Ok(()));
    }

    #[test]
    fn a_cluster_in_use_with_refcount_zero_is_caught() {
        let (checker, text) = judge(3, 0, u64::MAX).expect_err("corrupt");
        assert_eq!(checker, "metadata");
        assert!(text.contains("corruptions"), "{text}");
    }

    #[test]
    fn leaks_are_legal_up_to_the_bound() {
        let (checker, text) = judge(0, 2, 0).expect_err("a leak");
        assert_eq!(checker, "metadata");
        assert!(text.contains("1 leaks"), "{text}");
        assert_eq!(judge(0, 2, 1), Ok(()));
    }
}
