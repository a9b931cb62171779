//! A little emulator that takes checkpoints of its machine with the crate `varve`.
//!
//!     PKG_CONFIG_PATH=PREFIX/lib/pkgconfig cargo build --offline
//!     LD_LIBRARY_PATH=PREFIX/lib target/debug/emulator DIRECTORY
//!
//! DIRECTORY is the repository, which does not exist yet. The machine has 16 MiB of memory and two
//! registers. Each store marks its page in a bitmap, as `KVM_GET_DIRTY_LOG` has it. The emulator
//! takes 100 checkpoints while the machine runs, reverts it to some of them in place, begins a
//! branch from one, and fills the memory of another machine. Each time it compares the whole memory
//! with what it was when the checkpoint was taken.

use std::cell::Cell;
use std::env;

use varve::{
    Capture, CaptureInput, Dirty, Id, Region, Repository, RestoreOptions, Session, SessionOptions,
    Watch, PAGE_SIZE,
};

const PAGE_COUNT: usize = 4096;
const CHECKPOINT_COUNT: usize = 100;

// ---- The machine ----

struct Machine<'m> {
    memory: &'m [Cell<u8>],
    counter: u64,
    accumulator: u64,
    dirty: Vec<u64>,
}

impl<'m> Machine<'m> {
    fn new(memory: &'m mut [u8]) -> Machine<'m> {
        let memory = Cell::from_mut(memory).as_slice_of_cells();
        Machine { memory, counter: 0, accumulator: 0, dirty: vec![0; PAGE_COUNT / 64] }
    }

    /// One instruction: stores somewhere, and marks the page.
    fn step(&mut self) {
        self.counter += 1;
        self.accumulator =
            self.accumulator.wrapping_mul(6364136223846793005).wrapping_add(self.counter);
        let page = (self.accumulator >> 40) as usize % PAGE_COUNT;
        let offset = page * PAGE_SIZE + (self.accumulator >> 20) as usize % (PAGE_SIZE / 8) * 8;
        for (cell, byte) in self.memory[offset..].iter().zip(self.accumulator.to_le_bytes()) {
            cell.set(byte);
        }
        self.dirty[page / 64] |= 1 << (page % 64);
    }

    fn run(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    /// A number that depends on every byte of the memory, and on the registers.
    fn fingerprint(&self) -> u64 {
        let mut sum = self.counter ^ self.accumulator << 1;
        for cell in self.memory {
            sum = (sum ^ u64::from(cell.get())).wrapping_mul(0x9e3779b97f4a7c15);
            sum ^= sum >> 29;
        }
        sum
    }

    fn registers(&self) -> Vec<u8> {
        [self.counter, self.accumulator].iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn load(&mut self, registers: &[u8]) {
        let value = |index: usize| {
            u64::from_le_bytes(registers[index * 8..index * 8 + 8].try_into().unwrap())
        };
        (self.counter, self.accumulator) = (value(0), value(1));
    }

    // ---- Its checkpoints ----

    fn regions(&self) -> [Region<'m>; 1] {
        [Region::new(0, self.memory)]
    }

    /// Begins a checkpoint. When this returns the machine may run again, and the disk is busy.
    fn begin(&mut self, session: &Session<'_>) -> varve::Result<Capture> {
        let (bitmaps, registers) = ([&self.dirty[..]], self.registers());
        let dirty = Dirty { bitmaps: &bitmaps, frames: &[] };
        let input = CaptureInput { dirty: Some(dirty), state: &registers, label: None };
        let capture = session.begin(&input, None)?;
        // What the bitmap said is with the session now, also if the checkpoint should fail.
        self.dirty.fill(0);
        Ok(capture)
    }

    fn revert(&mut self, session: &Session<'_>, id: Id) -> varve::Result<()> {
        let bitmaps = [&self.dirty[..]];
        let dirty = Dirty { bitmaps: &bitmaps, frames: &[] };
        let reverted = session.revert(id, Some(dirty), Watch::default())?;
        self.load(&reverted.state);
        self.dirty.fill(0);
        Ok(())
    }

    fn compare(&self, expected: u64, what: &str) {
        assert!(self.fingerprint() == expected, "the memory differs after {what}");
    }
}

/// Takes the checkpoints, and reverts to some of them.
fn travel(
    repository: &Repository, machine: &mut Machine<'_>,
) -> varve::Result<(Vec<Id>, Vec<u64>)> {
    let session = repository.session("machine", &machine.regions(), &SessionOptions::default())?;
    let (mut ids, mut fingerprints) = (Vec::new(), Vec::new());
    let mut capture: Option<Capture> = None;
    for _ in 0..CHECKPOINT_COUNT {
        machine.run(100);
        let next = machine.begin(&session)?;
        fingerprints.push(machine.fingerprint());
        // While this one is written, the machine has run for the next.
        if let Some(capture) = capture.replace(next) {
            ids.push(capture.wait()?.id);
        }
    }
    if let Some(capture) = capture {
        ids.push(capture.wait()?.id);
    }
    println!("checkpoints: {}", ids.len());
    let mut revert_count = 0;
    for number in (0..CHECKPOINT_COUNT).rev().step_by(11) {
        machine.revert(&session, ids[number])?;
        machine.compare(fingerprints[number], "a revert");
        machine.run(1000);
        revert_count += 1;
    }
    println!("reverts: {revert_count}, the memory was equal each time");
    session.close()?;
    Ok((ids, fingerprints))
}

/// The machine goes another way from a checkpoint on.
fn branch(repository: &Repository, machine: &mut Machine<'_>, parent: Id) -> varve::Result<Id> {
    let options = SessionOptions { parent: Some(parent), ..Default::default() };
    let session = repository.session("branch", &machine.regions(), &options)?;
    machine.revert(&session, parent)?;
    machine.accumulator ^= 1;
    machine.run(100);
    let branched = machine.begin(&session)?.wait()?.id;
    let ranges = repository.difference(parent, branched, None)?;
    let pages: u64 = ranges.iter().map(|range| range.count).sum();
    println!("branch: differs from its parent in 1 to 100 pages: {}", (1..=100).contains(&pages));
    session.close()?;
    Ok(branched)
}

fn main() -> varve::Result<()> {
    let directory = env::args_os().nth(1).expect("usage: emulator DIRECTORY");
    let mut memory = vec![0; PAGE_COUNT * PAGE_SIZE];
    let mut machine = Machine::new(&mut memory);
    let repository = Repository::create(directory)?;
    let (ids, fingerprints) = travel(&repository, &mut machine)?;
    let branched = branch(&repository, &mut machine, ids[50])?;

    let mut memory = vec![0; PAGE_COUNT * PAGE_SIZE];
    let mut other = Machine::new(&mut memory);
    let options = RestoreOptions { starts_zeroed: true, ..Default::default() };
    let restored = repository.restore(branched, &other.regions(), &options, Watch::default())?;
    other.load(&restored.state);
    other.compare(machine.fingerprint(), "a restore");
    assert!(other.fingerprint() != fingerprints[50], "the branch has the memory of its parent");
    println!("restore: the memory is equal");

    let report = repository.verify(Watch::default())?;
    println!(
        "verified: {} checkpoints, {} damaged places",
        report.checkpoint_count, report.finding_count
    );
    repository.close()
}
