//! Giving back memory that was only needed to start or to work: an idle agent is a guest in somebody else's machine.

use std::{fs, ptr::NonNull};

use nix::sys::mman::{MmapAdvise, madvise};

/// Unmaps the program text this process has touched so far and trims the heap. What is needed again is mapped again
/// from the page cache, so this costs an idle process nothing. Never called while anything is held.
pub fn shed() {
    // JUSTIFICATION: malloc_trim has no safe counterpart.
    // SAFETY: it returns free heap pages to the kernel; live allocations are not touched (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(text) {
        // JUSTIFICATION: unmapping clean text needs madvise on a raw range.
        // SAFETY: the range is a whole executable, unwritable, private file mapping of this process, so every page is
        // clean and identical to the file; the next access maps it again.
        let _ = unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) };
    }
}

/// The range of an executable mapping of a file that nobody can write through.
fn text(line: &str) -> Option<(NonNull<core::ffi::c_void>, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_text = fields.next()? == "r-xp";
    let is_file = fields.nth(2)? != "0";
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let begin = NonNull::new(core::ptr::with_exposed_provenance_mut(start))?;
    (is_text && is_file).then_some((begin, end - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_file_mappings_are_given_back() {
        let text = |line| text(line).map(|(_, length)| length);
        assert_eq!(text("5000-7000 r-xp 00001000 fe:00 1234 /usr/bin/holdstill"), Some(0x2000));
        for other in [
            "5000-7000 r--p 00001000 fe:00 1234 /usr/bin/holdstill",
            "5000-7000 rw-p 00001000 fe:00 1234 /usr/bin/holdstill",
            "5000-7000 r-xp 00000000 00:00 0 [vdso]",
            "",
        ] {
            assert_eq!(text(other), None, "{other}");
        }
    }

    #[test]
    fn a_process_goes_on_after_shedding() {
        shed();
        assert_eq!(format!("{:?}", vec![1, 2, 3]), "[1, 2, 3]");
    }
}
