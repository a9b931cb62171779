//! Captures, reverts, restores and readers, with memory compared.

mod machine;

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::os::unix::io::AsRawFd;
use std::time::Duration;

use machine::{new_memory, Directory, Machine};
use varve::{
    CaptureInput, Dirty, Id, Range, Region, Repository, RestoreOptions, Selection, SessionOptions,
    Watch, PAGE_SIZE,
};

struct Taken {
    id: Id,
    copy: [Vec<u8>; 2],
    state: Vec<u8>,
}

#[test]
fn captures_reverts_and_restores() -> varve::Result<()> {
    let directory = Directory::new();
    let mut memory = new_memory();
    let mut machine = Machine::new(&mut memory);
    let repository = Repository::create(directory.join("store"))?;
    let mut taken = Vec::new();
    let session = repository.session("machine", &machine.regions(), &SessionOptions::default())?;
    assert_eq!(session.parent()?, None);
    for number in 0..20 {
        machine.run();
        let (state, label) = (format!("state {number}"), format!("label-{number}"));
        let result = machine.with_dirty(|dirty| {
            let input =
                CaptureInput { label: Some(&label), dirty: Some(dirty), state: state.as_bytes() };
            session.capture(&input, Watch::default())
        })?;
        assert!(number == 0 || (1..=20).contains(&result.changed_page_count));
        taken.push(Taken { id: result.id, copy: machine.copy(), state: state.into_bytes() });
    }
    assert_eq!(session.parent()?, Some(taken[19].id));
    for number in [3, 19, 0, 11] {
        machine.run();
        let reverted = machine
            .with_dirty(|dirty| session.revert(taken[number].id, Some(dirty), Watch::default()))?;
        assert!(machine.copy() == taken[number].copy);
        assert_eq!(reverted.state, taken[number].state);
    }
    session.close()?;
    check_restore(&repository, &taken[7])?;
    check_branch(&repository, &mut machine, &taken[7])?;
    check_lists(&repository, &taken)?;
    repository.close()
}

fn check_restore(repository: &Repository, taken: &Taken) -> varve::Result<()> {
    let mut memory = new_memory();
    let other = Machine::new(&mut memory);
    let options = RestoreOptions { starts_zeroed: true, ..Default::default() };
    let restored = repository.restore(taken.id, &other.regions(), &options, Watch::default())?;
    assert!(other.copy() == taken.copy);
    assert_eq!(restored.state, taken.state);
    assert_eq!(repository.state(taken.id)?, taken.state);
    for name in ["label-7", "machine~12", &taken.id.to_string()[..16]] {
        assert_eq!(repository.find(name)?, taken.id);
    }
    Ok(())
}

fn check_branch(
    repository: &Repository, machine: &mut Machine<'_>, from: &Taken,
) -> varve::Result<()> {
    let options = SessionOptions { parent: Some(from.id), worker_count: 1, ..Default::default() };
    let session = repository.session("branch", &machine.regions(), &options)?;
    session.revert(from.id, None, Watch::default())?;
    machine.write(1, 4);
    let dirty = Dirty { frames: &[204], ..Default::default() };
    let input = CaptureInput { dirty: Some(dirty), ..Default::default() };
    let branched = session.capture(&input, Watch::default())?.id;
    let checkpoint = repository.checkpoint(branched)?;
    assert_eq!(checkpoint.parent, Some(from.id));
    assert_eq!((checkpoint.lineage.as_str(), checkpoint.label), ("branch", None));
    let ranges = repository.difference(from.id, branched, None)?;
    assert_eq!(ranges, [Range { first: 204, count: 1 }]);
    Ok(())
}

fn check_lists(repository: &Repository, taken: &[Taken]) -> varve::Result<()> {
    let ids: Vec<Id> = taken.iter().map(|taken| taken.id).collect();
    let machine = Selection { lineage: Some("machine"), ..Default::default() };
    assert_eq!(repository.checkpoints(&machine)?, ids);
    let some = Selection { newest: 2, before: Some(ids[5]), ..machine };
    assert_eq!(repository.checkpoints(&some)?, &ids[3..5]);
    let checkpoint = repository.checkpoint(ids[9])?;
    assert_eq!(checkpoint.label.as_deref(), Some("label-9"));
    assert!(checkpoint.time.elapsed().unwrap() < Duration::from_secs(3600));
    let until = Selection { until: Some(checkpoint.time), ..machine };
    assert_eq!(repository.checkpoints(&until)?.len(), 10);
    let volumes = repository.volumes(ids[0])?;
    assert_eq!(volumes.len(), 1);
    assert_eq!((volumes[0].name.as_str(), volumes[0].page_count), ("memory", 130));
    assert_eq!(volumes[0].extent_byte_count, 230 * 4096);
    repository.set_label(ids[16], Some("given-later"))?;
    assert_eq!(repository.find("given-later")?, ids[16]);
    repository.set_label(ids[16], None)?;
    assert_eq!(repository.checkpoint(ids[16])?.label, None);
    assert_eq!(repository.statistics()?.checkpoint_count, 21);
    repository.forget(&ids[..15])?;
    assert!(repository.prune(0.0, Watch::default())?.freed_byte_count > 0);
    let report = repository.verify(Watch::default())?;
    assert_eq!((report.checkpoint_count, report.finding_count), (6, 0));
    Ok(())
}

#[test]
fn readers_and_exports() {
    let directory = Directory::new();
    let mut memory = new_memory();
    let mut machine = Machine::new(&mut memory);
    let repository = Repository::create(directory.join("store")).unwrap();
    machine.run();
    let session =
        repository.session("machine", &machine.regions(), &SessionOptions::default()).unwrap();
    let id = session.capture(&CaptureInput::default(), Watch::default()).unwrap().id;
    let copy = machine.copy();
    let mut whole = vec![0; 230 * PAGE_SIZE];
    whole[..100 * PAGE_SIZE].copy_from_slice(&copy[0]);
    whole[200 * PAGE_SIZE..].copy_from_slice(&copy[1]);

    let file = directory.join("export");
    repository.export(id, Some("memory"), &File::create(&file).unwrap(), Watch::default()).unwrap();
    assert!(fs::read(&file).unwrap() == whole);

    let mut reader = repository.reader(id, None).unwrap();
    drop(session);
    repository.close().unwrap();
    let mut read = Vec::new();
    reader.by_ref().take(whole.len() as u64).read_to_end(&mut read).unwrap();
    assert!(read == whole);
    let mut part = [1; 100];
    assert_eq!(reader.seek(SeekFrom::Current(-60)).unwrap(), whole.len() as u64 - 60);
    reader.read_exact(&mut part).unwrap();
    assert!(part[..60] == whole[whole.len() - 60..] && part[60..] == [0; 40]);
    reader.seek(SeekFrom::Start(7)).unwrap();
    reader.read_exact(&mut part).unwrap();
    assert!(part == whole[7..107]);
    assert!(reader.seek(SeekFrom::End(0)).is_err());
    assert!(reader.seek(SeekFrom::Current(-1000)).is_err());
    assert_eq!(reader.stream_position().unwrap(), 107);
}

#[test]
fn a_capture_that_has_begun() {
    let mut memory = new_memory();
    let mut machine = Machine::new(&mut memory);
    let repository = Repository::create_volatile().unwrap();
    let session =
        repository.session("machine", &machine.regions(), &SessionOptions::default()).unwrap();
    machine.run();
    let capture = session.begin(&CaptureInput::default(), None).unwrap();
    let copy = machine.copy();
    machine.run();
    assert!(capture.as_raw_fd() >= 0);
    // Another thread may wait for it.
    let result = std::thread::scope(|scope| scope.spawn(|| capture.wait()).join().unwrap());
    let result = result.unwrap();
    assert_eq!(capture.wait_timeout(Duration::ZERO).unwrap(), result);
    let mut memory = new_memory();
    let other = Machine::new(&mut memory);
    let options = RestoreOptions::default();
    repository.restore(result.id, &other.regions(), &options, Watch::default()).unwrap();
    assert!(other.copy() == copy);
}

#[test]
fn a_region_of_a_file() {
    let directory = Directory::new();
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(directory.join("memory"))
        .unwrap();
    let content: Vec<u8> = (0..8 * PAGE_SIZE).map(|index| (index % 251) as u8).collect();
    file.write_all_at(&content, PAGE_SIZE as u64).unwrap();
    let repository = Repository::create_volatile().unwrap();
    let region = Region::from_file(0, &file, PAGE_SIZE as u64, content.len() as u64);
    let session = repository.session("machine", &[region], &SessionOptions::default()).unwrap();
    let id = session.capture(&CaptureInput::default(), Watch::default()).unwrap().id;
    file.write_all_at(b"something else", 3 * PAGE_SIZE as u64).unwrap();
    session.revert(id, None, Watch::default()).unwrap();
    session.close().unwrap();
    let mut read = vec![0; content.len()];
    file.read_exact_at(&mut read, PAGE_SIZE as u64).unwrap();
    assert!(read == content);
}

#[test]
fn threads_and_values_that_are_dropped() {
    let mut memory = new_memory();
    let machine = Machine::new(&mut memory);
    let repository = Repository::create_volatile().unwrap();
    let session =
        repository.session("machine", &machine.regions(), &SessionOptions::default()).unwrap();
    let id = session.capture(&CaptureInput::default(), Watch::default()).unwrap().id;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let reader = repository.reader(id, None).unwrap();
                    reader.read_at(0, &mut [0; PAGE_SIZE]).unwrap();
                }
            });
        }
        let none = CaptureInput { dirty: Some(Dirty::default()), ..Default::default() };
        for _ in 0..10 {
            session.capture(&none, Watch::default()).unwrap();
        }
    });
    drop(session);
    // The session was closed: the memory is the program's alone, and so is the repository.
    memory[0][0] = 1;
    assert_eq!(Cell::from_mut(&mut memory[0][0]).get(), 1);
    repository.close().unwrap();
}
