//! A real libvirtd.
