//! Images against three judges: our own reader, erofs-utils and the kernel.
//!
//! The kernel mounts each image file-backed and detached, so nothing is ever attached to the machine's mount table.
//! That needs root and EROFS in the kernel; `fsck.erofs` needs Debian's erofs-utils. What is missing is said loudly.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod check;
mod fsck;
mod hostile;
mod kernel;
mod random;
mod refused;
mod sample;
mod shapes;
