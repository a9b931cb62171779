//! Wrong use, cancellation and damage: what fails, and what the error says.

mod machine;

use std::error::Error as _;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Mutex;
use std::time::Duration;

use machine::{new_memory, Directory, Machine};
use varve::{
    Cancellation, CaptureInput, Code, Dirty, Error, Id, OpenOptions, Repository, RestoreOptions,
    SessionOptions, Watch,
};

fn code<T>(result: Result<T, Error>) -> Code {
    match result {
        Ok(_) => panic!("it did not fail"),
        Err(error) => error.code(),
    }
}

#[test]
fn failures_of_repositories() {
    let directory = Directory::new();
    let path = directory.join("store");
    let error = Repository::open(&path).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert!(error.source().is_none() && error.corruption().is_none());
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
    assert_eq!(code(Repository::create("a\0b")), Code::InvalidArgument);
    let repository = Repository::create(&path).unwrap();
    assert_eq!(code(Repository::create(&path)), Code::Exists);
    let options =
        OpenOptions { writing: true, wait: Duration::from_millis(1), ..Default::default() };
    assert!([Code::Busy, Code::Locked].contains(&code(options.open(&path))));
    let cancellation = Cancellation::new().unwrap();
    cancellation.cancel();
    let options =
        OpenOptions { writing: true, wait: Duration::MAX, cancellation: Some(&cancellation) };
    assert_eq!(code(options.open(&path)), Code::Cancelled);
    assert_eq!(code(repository.find("nothing")), Code::NotFound);
    assert_eq!(code(repository.volumes(Id([1; 32]))), Code::NotFound);
    repository.close().unwrap();
    let reading = Repository::open(&path).unwrap();
    assert_eq!(code(reading.forget(&[Id([1; 32])])), Code::ReadOnly);
}

#[test]
fn failures_of_sessions() {
    let mut memory = new_memory();
    let machine = Machine::new(&mut memory);
    let repository = Repository::create_volatile().unwrap();
    let regions = machine.regions();
    let none = SessionOptions::default();
    assert_eq!(code(repository.session("-", &regions, &none)), Code::InvalidName);
    let wrong = SessionOptions { compression_level: 99, ..none };
    assert_eq!(code(repository.session("machine", &regions, &wrong)), Code::InvalidArgument);
    assert_eq!(
        code(repository.session("machine", &[regions[0], regions[0]], &none)),
        Code::InvalidArgument
    );
    let session = repository.session("machine", &regions, &none).unwrap();
    for bitmaps in [&[&[0][..], &[0][..]][..], &[&[0, 0][..]][..]] {
        let input =
            CaptureInput { dirty: Some(Dirty { bitmaps, frames: &[] }), ..Default::default() };
        assert_eq!(code(session.capture(&input, Watch::default())), Code::InvalidArgument);
    }
    let input = CaptureInput { label: Some("a\0b"), ..Default::default() };
    assert_eq!(code(session.capture(&input, Watch::default())), Code::InvalidArgument);
    assert_eq!(code(session.revert(Id([1; 32]), None, Watch::default())), Code::NotFound);
    let id = session.capture(&CaptureInput::default(), Watch::default()).unwrap().id;
    let options = RestoreOptions::default();
    assert_eq!(
        code(repository.restore(id, &regions[..1], &options, Watch::default())),
        Code::SizeMismatch
    );
    assert_eq!(code(repository.reader(id, Some("nothing"))), Code::NotFound);
    session.cancel().unwrap();
}

#[test]
fn progress_and_cancellation() {
    let directory = Directory::new();
    let mut memory = new_memory();
    let mut machine = Machine::new(&mut memory);
    let repository = Repository::create(directory.join("store")).unwrap();
    let session =
        repository.session("machine", &machine.regions(), &SessionOptions::default()).unwrap();
    session.capture(&CaptureInput::default(), Watch::default()).unwrap();
    let seen = Mutex::new(Vec::new());
    let watch = |progress: varve::Progress<'_>| {
        let code = repository.statistics().map_err(|error| error.code());
        seen.lock().unwrap().push((progress.phase.to_string(), code.err()));
        ControlFlow::Continue(())
    };
    repository.verify(Watch { progress: Some(&watch), cancellation: None }).unwrap();
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen[0], ("verifying".to_string(), Some(Code::InCallback)));
    let stop = |_: varve::Progress<'_>| ControlFlow::Break(());
    let watch = Watch { progress: Some(&stop), cancellation: None };
    assert_eq!(code(repository.verify(watch)), Code::Cancelled);
    let fail = |_: varve::Progress<'_>| panic!("mine");
    let watch = Watch { progress: Some(&fail), cancellation: None };
    let payload = catch_unwind(AssertUnwindSafe(|| repository.verify(watch))).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"mine"));
    let cancellation = Cancellation::new().unwrap();
    cancellation.cancel();
    let watch = Watch { cancellation: Some(&cancellation), progress: None };
    machine.run();
    let result = machine.with_dirty(|dirty| {
        session.capture(&CaptureInput { dirty: Some(dirty), ..Default::default() }, watch)
    });
    assert_eq!(code(result), Code::Cancelled);
    // Its pages are in the next one.
    let none = CaptureInput { dirty: Some(Dirty::default()), ..Default::default() };
    let id = session.capture(&none, Watch::default()).unwrap().id;
    let mut memory = new_memory();
    let other = Machine::new(&mut memory);
    let options = RestoreOptions::default();
    repository.restore(id, &other.regions(), &options, Watch::default()).unwrap();
    assert!(other.copy() == machine.copy());
}

#[test]
fn damage_says_where() {
    let directory = Directory::new();
    let path = directory.join("store");
    let mut memory = new_memory();
    let mut machine = Machine::new(&mut memory);
    machine.run();
    let repository = Repository::create(&path).unwrap();
    let session =
        repository.session("machine", &machine.regions(), &SessionOptions::default()).unwrap();
    let id = session.capture(&CaptureInput::default(), Watch::default()).unwrap().id;
    session.close().unwrap();
    repository.close().unwrap();
    let pack = File::options().write(true).open(path.join("packs/00000001.pack")).unwrap();
    pack.write_all_at(b"damaged!", 9000).unwrap();
    let repository = Repository::open(&path).unwrap();
    let report = repository.verify(Watch::default()).unwrap();
    assert!(report.finding_count > 0);
    assert_eq!(report.affected_checkpoint_count, 1);
    let options = RestoreOptions::default();
    let error = repository.restore(id, &machine.regions(), &options, Watch::default()).unwrap_err();
    assert_eq!(error.code(), Code::Corrupted);
    let corruption = error.corruption().unwrap();
    assert_eq!(corruption.file, "packs/00000001.pack");
    assert_eq!(corruption.checkpoint, Some(id));
    assert!(!corruption.reason.is_empty() && !corruption.object.is_empty());
}

#[test]
fn ids_as_text() {
    let id = Id([0xab; 32]);
    assert_eq!(id.to_string(), "ab".repeat(32));
    assert_eq!(id.to_string().parse(), Ok(id));
    for text in ["", "ab", &"zz".repeat(32), &"+a".repeat(32)] {
        assert!(text.parse::<Id>().is_err(), "{text}");
    }
    assert!(!varve::version().is_empty());
}
