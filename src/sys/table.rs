//! A file mapped and shared between processes, read and written only through atomics; and waiting on a word of it.

use std::{
    fs::File,
    io,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The mapping. Offsets are in bytes; one that is out of range or not aligned is a bug and panics.
#[derive(Debug)]
pub struct Table {
    start: NonNull<u8>,
    length: usize,
}

// JUSTIFICATION: a raw pointer makes a type !Send; this one may be used from any thread.
// SAFETY: the memory is only ever reached through atomics and stays mapped until the last owner drops it.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// Maps `file`, which must be (and stay) at least `length` bytes long.
    ///
    /// # Errors
    /// mmap(2)'s; `InvalidInput` if the file is shorter.
    pub fn map(file: &File, length: NonZeroUsize) -> io::Result<Table> {
        if file.metadata()?.len() < length.get() as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is shorter than its table"));
        }
        // JUSTIFICATION: shared memory is what outlives every process of ours.
        // SAFETY: a new mapping at an address the kernel picks; nothing of ours truncates the file.
        let start =
            unsafe { mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Table { start: start.cast(), length: length.get() })
    }

    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.length, "a word inside the table");
        // JUSTIFICATION: an offset into shared memory has no safe form.
        // SAFETY: inside the mapping, aligned (mmap's start is page aligned), and never accessed but atomically.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.length, "a double word inside the table");
        // JUSTIFICATION: as above.
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    pub fn bytes(&self, offset: usize, length: usize) -> &[AtomicU8] {
        assert!(offset + length <= self.length, "bytes inside the table");
        // JUSTIFICATION: as above.
        // SAFETY: as above; AtomicU8 has u8's layout and no alignment.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset).cast(), length) }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // JUSTIFICATION: unmapping is the reverse of the constructor.
        // SAFETY: exactly what mmap returned; every reference given out borrows from `self`.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}

/// With this a program writes down that it is under way: itself, after the fork and before it is executed, so that there
/// is no instant at which it runs and nobody knows.
#[derive(Debug, Clone)]
pub struct Pen {
    pub table: Arc<Table>,
    /// when (CLOCK_BOOTTIME in nanoseconds, 8 bytes), and its pid (4 bytes)
    pub at: usize,
    /// what this says of its state, and where; written last
    pub state: Option<(usize, u32)>,
}

impl Pen {
    /// To be called between fork and exec: nothing but atomics and system calls.
    pub(super) fn sign(&self) {
        let now = u64::try_from(super::clock::boottime().as_nanos()).unwrap_or(u64::MAX);
        self.table.u64(self.at).store(now, Ordering::Release);
        self.table.u32(self.at + 8).store(std::process::id(), Ordering::Release);
        if let Some((offset, state)) = self.state {
            self.table.u32(offset).store(state, Ordering::Release);
        }
    }
}

/// Waits until `word` is no longer `was`, or until `limit` has passed (futex(2), across processes).
pub fn wait_while(word: &AtomicU32, was: u32, limit: Duration) {
    let until = super::clock::monotonic() + limit;
    while word.load(Ordering::Acquire) == was {
        let left = until.saturating_sub(super::clock::monotonic());
        if left.is_zero() {
            return;
        }
        let left = libc::timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        // JUSTIFICATION: std's wait is private to one process.
        // SAFETY: both pointers are live for the call; a wrong or early return only loops.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, was, &raw const left) };
    }
}

/// Wakes everyone in [`wait_while`] on this word.
pub fn wake(word: &AtomicU32) {
    // JUSTIFICATION: std's wake is private to one process.
    // SAFETY: the pointer is live for the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
