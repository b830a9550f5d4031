//! The kernel's edges: mounts, loop devices, processes and namespaces, descriptors over sockets, netlink.
//!
//! This is the only crate in which `unsafe` may stand. Whatever `rustix` already offers safely is used from there;
//! here is the rest, one thin function per kernel operation, without policy. Every function names the kernel
//! interface it speaks (man page or header) and returns [`std::io::Error`] with the kernel's own error number.

pub mod device_filter;
pub mod loop_device;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod process;
pub mod read_ahead;
pub mod seccomp;
pub mod socket;
