//! Loop devices: attach a file, read-only or not, and detach it again.
