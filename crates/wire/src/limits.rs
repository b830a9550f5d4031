//! Every limit of the protocol.

/// The most payload bytes of one frame. Arguments and environment dominate: Linux itself ends at about 2 MiB
/// (`MAX_ARG_STRLEN` is 128 KiB a string, an eighth of the default stack for all).
pub const PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The most descriptors with one frame (`SCM_MAX_FD` is 253, and one frame is one `sendmsg`).
pub const DESCRIPTORS_MAX: usize = 250;

/// The most bytes of one packet on the zygote's socket; its messages are far smaller.
pub const PACKET_BYTES_MAX: usize = 4096;

/// Exit records that an agent keeps until they are acknowledged; beyond that the oldest goes.
pub const EXIT_RECORDS_MAX: usize = 256;

const _: () = assert!(PACKET_BYTES_MAX < PAYLOAD_BYTES_MAX, "a packet is a frame too");
