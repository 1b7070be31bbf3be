//! The simulated host keeps the promises of `Storage`, and no others.

use std::cell::Cell;
use std::rc::Rc;

use cowl_format::{ByteCount, HostOffset};
use cowl_sim::{
    CrashState, Cut, EIO, EXHAUSTIVE_PARTS_MAX, Executor, Fault, FaultKind, Random, SimFile,
    SimStorage, SimWorld, Step, WorldOptions,
};
use cowl_storage::{IoBuffer, Operation, Purpose, Storage};

fn world(faults: Vec<Fault>) -> SimWorld {
    let file = SimFile { name: "file".to_owned(), bytes: vec![0; 2048], read_only: false };
    let options = WorldOptions { calm: false, seed: 5, faults, ..WorldOptions::calm() };
    SimWorld::new(options, vec![file])
}

async fn write(storage: &SimStorage, at: u64, byte: u8) -> bool {
    let buffer = IoBuffer::from_slice(&[byte; 512]);
    storage.write(HostOffset::new(at), buffer, Purpose::GuestData).await.0.is_ok()
}

fn run(world: &SimWorld, task: impl Future<Output = ()> + 'static) {
    let mut executor = Executor::new(Random::new(1), 50);
    executor.spawn(Box::pin(task));
    assert!(executor.run(world), "stuck");
}

fn contents(states: &[CrashState]) -> Vec<Vec<u8>> {
    let firsts = |state: &CrashState| -> Vec<u8> {
        state.files[0].bytes.iter().step_by(512).copied().collect()
    };
    let mut contents: Vec<Vec<u8>> = states.iter().map(firsts).collect();
    contents.sort();
    contents.dedup();
    contents
}

fn all_states(world: &SimWorld) -> Vec<CrashState> {
    let cut = Cut::of(world);
    let all = cut.all_states(EXHAUSTIVE_PARTS_MAX).expect("few parts");
    (0..all.count()).map(|number| all.state(number)).collect()
}

#[test]
fn any_subset_of_what_no_barrier_covers_survives() {
    let world = world(Vec::new());
    let storage = world.storage(0);
    run(&world, async move {
        assert!(write(&storage, 0, 1).await);
        storage.barrier(Purpose::Barrier).await.expect("no fault");
        assert!(write(&storage, 512, 2).await);
        assert!(write(&storage, 1024, 3).await);
    });
    let states = all_states(&world);
    let all = [[1, 0, 0, 0], [1, 0, 3, 0], [1, 2, 0, 0], [1, 2, 3, 0]];
    assert_eq!(contents(&states), all.map(|state| state.to_vec()));
    let killed = Cut::of(&world).killed(&mut Random::new(1));
    assert_eq!(contents(&[killed]), [[1, 2, 3, 0]]);
}

#[test]
fn a_later_write_of_a_sector_hides_the_earlier_one() {
    let world = world(Vec::new());
    let storage = world.storage(0);
    run(&world, async move {
        assert!(write(&storage, 0, 1).await);
        assert!(write(&storage, 0, 2).await);
    });
    let states = all_states(&world);
    assert_eq!(contents(&states), [[0, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]]);
}

#[test]
fn lengths_and_punches_are_part_of_the_game() {
    let world = world(Vec::new());
    let storage = world.storage(0);
    run(&world, async move {
        assert!(write(&storage, 0, 1).await);
        storage.barrier(Purpose::Barrier).await.expect("no fault");
        let sector = ByteCount::new(512);
        storage.discard(HostOffset::ZERO, sector, Purpose::GuestData).await.expect("no fault");
        storage.set_len(sector, Purpose::FileLength).await.expect("no fault");
    });
    let states = all_states(&world);
    assert_eq!(contents(&states), [vec![0], vec![0, 0, 0, 0], vec![1], vec![1, 0, 0, 0]]);
}

#[test]
fn dropping_a_future_does_not_cancel_its_write() {
    let world = world(Vec::new());
    let storage = world.storage(0);
    let mut executor = Executor::new(Random::new(1), 0);
    let dropped = storage.clone();
    executor.spawn_dropping(Box::pin(async move { assert!(write(&dropped, 0, 7).await) }), 1);
    assert_eq!(executor.step(&world), Step::Polled);
    drop(executor);
    assert!(world.has_orphans());
    assert_eq!(world.files()[0].bytes[0], 0);
    let settled = Rc::new(Cell::new(false));
    let flag = settled.clone();
    run(&world, async move {
        storage.settle().await;
        flag.set(true);
    });
    assert!(settled.get() && !world.has_orphans());
    assert_eq!(world.files()[0].bytes[0], 7);
}

#[test]
fn a_barrier_covers_what_had_completed_when_it_was_issued() {
    // Whichever of the two ends first: the write was not complete when the barrier was issued.
    for seed in 0..20 {
        let world = world(Vec::new());
        let storage = world.storage(0);
        let mut executor = Executor::new(Random::new(seed), 0);
        let other = storage.clone();
        executor.spawn(Box::pin(async move { assert!(write(&other, 0, 1).await) }));
        executor.spawn(Box::pin(async move {
            storage.barrier(Purpose::Barrier).await.expect("no fault");
        }));
        assert!(executor.run(&world));
        assert_eq!(contents(&[Cut::of(&world).nothing_survives()]), [[0, 0, 0, 0]]);
    }
}

#[test]
fn a_barrier_that_failed_fails_for_ever_and_covers_nothing() {
    let fault = Fault {
        operation: Some(Operation::Barrier),
        purpose: None,
        nth: 0,
        kind: FaultKind::Nothing,
        errno: EIO,
    };
    let world = world(vec![fault]);
    let storage = world.storage(0);
    run(&world, async move {
        assert!(write(&storage, 0, 1).await);
        for _ in 0..2 {
            let error = storage.barrier(Purpose::Barrier).await.expect_err("it fails");
            assert_eq!(error.errno(), EIO);
        }
    });
    assert_eq!(world.faults_injected(), 1);
    assert_eq!(contents(&[Cut::of(&world).nothing_survives()]), [[0, 0, 0, 0]]);
}

#[test]
fn faults_do_nothing_all_or_some_of_it() {
    for (kind, least, most) in
        [(FaultKind::Nothing, 0, 0), (FaultKind::All, 4, 4), (FaultKind::Part, 0, 4)]
    {
        let purpose = Some(Purpose::GuestData);
        let fault = Fault { operation: None, purpose, nth: 0, kind, errno: EIO };
        let world = world(vec![fault]);
        let storage = world.storage(0);
        run(&world, async move {
            let buffer = IoBuffer::from_slice(&[9; 2048]);
            let (result, _) = storage.write(HostOffset::ZERO, buffer, Purpose::GuestData).await;
            assert_eq!(result.expect_err("it fails").errno(), EIO);
        });
        let bytes = world.files()[0].bytes.clone();
        let written = bytes.iter().step_by(512).filter(|byte| **byte == 9).count();
        assert!((least..=most).contains(&written), "{kind:?}: {written} sectors");
    }
}
