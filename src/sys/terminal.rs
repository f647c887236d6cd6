//! How wide the terminal is that stdout leads to.

use std::os::fd::{AsRawFd, BorrowedFd};

nix::ioctl_read_bad!(window_size, libc::TIOCGWINSZ, libc::winsize);

/// Its columns; `None`: it is no terminal, or does not say (TIOCGWINSZ(2const)).
pub fn columns(of: BorrowedFd<'_>) -> Option<u16> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // JUSTIFICATION: there is no safe wrapper for this ioctl in nix.
    // SAFETY: the descriptor is borrowed, so open, and the kernel writes one winsize.
    unsafe { window_size(of.as_raw_fd(), &raw mut size) }.ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    #[test]
    fn a_file_is_no_terminal_and_a_terminal_says_how_wide_it_is() {
        let file = tempfile::tempfile().expect("a temporary file");
        assert_eq!(super::columns(file.as_fd()), None);
        let size = nix::pty::Winsize { ws_row: 24, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None).expect("a pseudoterminal");
        assert_eq!(super::columns(pty.slave.as_fd()), Some(97));
    }
}
