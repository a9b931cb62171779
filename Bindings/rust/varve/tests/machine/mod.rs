//! A machine with two regions of memory, and a bitmap for each.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs};

use varve::{Dirty, Region, PAGE_SIZE};

pub struct Machine<'m> {
    pub memories: [&'m [Cell<u8>]; 2],
    pub bitmaps: [Vec<u64>; 2],
    random: u64,
}

/// The memory of a machine, which borrows it.
pub fn new_memory() -> [Vec<u8>; 2] {
    [vec![0; 100 * PAGE_SIZE], vec![0; 30 * PAGE_SIZE]]
}

impl<'m> Machine<'m> {
    pub fn new(memory: &'m mut [Vec<u8>; 2]) -> Machine<'m> {
        let [first, second] = memory;
        let cells = |bytes: &'m mut Vec<u8>| Cell::from_mut(&mut bytes[..]).as_slice_of_cells();
        Machine { memories: [cells(first), cells(second)], bitmaps: clean(), random: 1 }
    }

    pub fn regions(&self) -> [Region<'m>; 2] {
        [Region::new(0, self.memories[0]), Region::new(200 * PAGE_SIZE as u64, self.memories[1])]
    }

    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1);
        self.random >> 33
    }

    pub fn write(&mut self, region: usize, page: usize) {
        for offset in 0..PAGE_SIZE {
            let byte = self.next() as u8;
            self.memories[region][page * PAGE_SIZE + offset].set(byte);
        }
        self.bitmaps[region][page / 64] |= 1 << (page % 64);
    }

    pub fn run(&mut self) {
        for _ in 0..10 {
            let (first, second) = (self.next() as usize % 100, self.next() as usize % 30);
            self.write(0, first);
            self.write(1, second);
        }
    }

    /// Calls a function with the dirty pages, and clears them.
    pub fn with_dirty<T>(&mut self, function: impl FnOnce(Dirty<'_>) -> T) -> T {
        let bitmaps = std::mem::replace(&mut self.bitmaps, clean());
        function(Dirty { bitmaps: &[&bitmaps[0], &bitmaps[1]], frames: &[] })
    }

    pub fn copy(&self) -> [Vec<u8>; 2] {
        self.memories.map(|memory| memory.iter().map(Cell::get).collect())
    }
}

fn clean() -> [Vec<u64>; 2] {
    [vec![0; 2], vec![0]]
}

/// A directory for a test, removed at its end.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("varve-rust-{}-{number}", process::id()));
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl AsRef<Path> for Directory {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}
