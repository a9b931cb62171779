use std::io::{self, Read, Seek, SeekFrom};
use std::os::raw::c_void;
use std::ptr;

use crate::error::check;
use crate::{c_optional, pointer, Id, Repository, Result};

/// Reads one volume of a checkpoint, whose pages are not pruned meanwhile.
///
/// It remains usable when the repository is closed. It has no end, because what does not exist
/// reads as zeros: take a part with [`Read::take`]. Seeking from the end is an error.
#[derive(Debug)]
pub struct Reader {
    handle: *mut varve_sys::varve_reader,
    position: u64,
}

// SAFETY: every function of the library may be called from any thread.
unsafe impl Send for Reader {}
unsafe impl Sync for Reader {}

impl Reader {
    pub(crate) fn open(repository: &Repository, id: Id, volume: Option<&str>) -> Result<Reader> {
        let volume = c_optional(volume)?;
        let mut handle = ptr::null_mut();
        // SAFETY: the arguments are valid for the call.
        check(unsafe {
            varve_sys::varve_reader_open(
                repository.handle(),
                &id.packed(),
                pointer(&volume),
                &mut handle,
            )
        })?;
        Ok(Reader { handle, position: 0 })
    }

    /// Fills a buffer from an offset, without moving the position; each page is verified. After a
    /// failure nothing unverified is in it. Threads are served one at a time. Blocks.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: the library writes to the slice during the call alone.
        check(unsafe {
            varve_sys::varve_reader_read(
                self.handle,
                offset,
                bytes.as_mut_ptr() as *mut c_void,
                bytes.len(),
            )
        })
    }
}

impl Read for Reader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.read_at(self.position, bytes)?;
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }
}

impl Seek for Reader {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let target = match position {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(offset) if offset < 0 => {
                self.position.checked_sub(offset.unsigned_abs())
            }
            SeekFrom::Current(offset) => self.position.checked_add(offset.unsigned_abs()),
            SeekFrom::End(_) => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "a volume has no end"));
            }
        };
        self.position = target.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "there is nothing before the beginning")
        })?;
        Ok(self.position)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // SAFETY: the handle is this reader's.
        unsafe { varve_sys::varve_reader_close(self.handle) };
    }
}
