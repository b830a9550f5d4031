//! Every number that bounds this crate, with its reason.

use std::time::Duration;

/// `IFNAMSIZ` without its closing zero (linux/if.h).
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;
/// Four characters name the service instance; what remains names the sandbox.
pub const INTERFACE_PREFIX_BYTES: usize = 4;
/// How much of a sandbox id an interface name carries: 44 bits of a random id.
pub const INTERFACE_ID_BYTES: usize = INTERFACE_NAME_BYTES_MAX - INTERFACE_PREFIX_BYTES;
/// `IFALIASZ` is 256; the alias carries the service's name and the sandbox id.
pub const SANDBOX_ID_BYTES_MAX: usize = 64;
pub const INSTANCE_BYTES_MAX: usize = 64;
const _: () = assert!(SANDBOX_ID_BYTES_MAX + INSTANCE_BYTES_MAX + 1 < 256);

/// Ports that one sandbox may publish; each costs two sockets and up to two map elements.
pub const PORTS_PER_SANDBOX_MAX: usize = 512;
/// The shortest IPv4 pool prefix accepted: 16 million addresses.
pub const IPV4_POOL_PREFIX_MIN: u8 = 8;
/// The longest: 14 addresses, less network, gateway and broadcast.
pub const IPV4_POOL_PREFIX_MAX: u8 = 28;
/// An IPv6 address is the pool's prefix and the IPv4 address' offset, so 32 bits must be free.
pub const IPV6_POOL_PREFIX_MAX: u8 = 96;
pub const IPV6_POOL_PREFIX_MIN: u8 = 32;

/// Addresses are handed out round robin, so that a peer that still talks to the last owner does not meet the next.
/// The cursor is written ahead by this many, so that a restart costs at most so many skipped addresses.
pub const CURSOR_STEP: u32 = 64;

/// The smallest MTU that carries IPv6 (RFC 8200, section 5), and the largest that a veth takes.
pub const MTU_MIN: u32 = 1280;
pub const MTU_MAX: u32 = 65535;
pub const MTU_DEFAULT: u32 = 1500;

/// Elements in one nf_tables message: an element takes at most 100 bytes and the list's length field 16 bits.
pub const ELEMENTS_PER_MESSAGE: usize = 500;
const _: () = assert!(ELEMENTS_PER_MESSAGE * 100 < u16::MAX as usize);

/// Requests that wait for the network's thread; more wait at their sender.
pub const JOBS_QUEUED_MAX: usize = 256;

/// Connections that the user-space forwarder carries per published port. The kernel forwards all others; only `[::1]`
/// and link-local addresses need it.
pub const FORWARDED_CONNECTIONS_MAX: usize = 128;
pub const FORWARD_CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Waiting connections of a held port.
pub const HELD_PORT_BACKLOG: i32 = 128;

/// What Kubernetes takes for a bandwidth: 1 kbit/s to 1 Pbit/s.
pub const BITS_PER_SECOND_MIN: u64 = 1_000;
pub const BITS_PER_SECOND_MAX: u64 = 1_000_000_000_000_000;
/// A token bucket holds a hundredth of a second: enough that a timer's lateness costs nothing.
pub const BUCKET_PER_SECOND: u64 = 100;
pub const BUCKET_FRAMES_MIN: u64 = 2;
pub const BUCKET_BYTES_MAX: u64 = 16 << 20;
/// A queue before a token bucket holds a twentieth of a second, and at least as much as one segmented packet.
pub const QUEUE_PER_SECOND: u64 = 20;
pub const QUEUE_BYTES_MIN: u64 = 64 << 10;
pub const QUEUE_BYTES_MAX: u64 = 64 << 20;
/// The largest packet that a sender may leave to the interface to cut (`GSO_LEGACY_MAX_SIZE`).
pub const SEGMENTED_PACKET_BYTES_MAX: u32 = 64 << 10;
/// The kernel's limit counts nanoseconds times bytes in 64 bits.
pub const POLICED_BYTES_PER_SECOND_MAX: u64 = 10_000_000_000;
const _: () = assert!((POLICED_BYTES_PER_SECOND_MAX + (32 << 20)).checked_mul(1_000_000_000).is_some());

/// Chains of plugins are pages of text, results of them a few lines; both are read whole.
pub const CNI_CONFIG_BYTES_MAX: u64 = 1 << 20;
pub const CNI_OUTPUT_BYTES_MAX: usize = 256 << 10;
pub const CNI_PLUGINS_MAX: usize = 32;
/// Addresses, or interfaces, of one sandbox.
pub const CNI_ADDRESSES_MAX: usize = 64;
/// What is repeated of a plugin's complaint.
pub const CNI_MESSAGE_CHARS_MAX: usize = 300;
/// A plugin may have to ask a server for an address.
pub const CNI_PLUGIN_DEADLINE: Duration = Duration::from_secs(30);

/// What is read of a `resolv.conf`; the C library reads three name servers and lines of some 1,000 bytes.
pub const RESOLV_CONF_BYTES_MAX: u64 = 64 << 10;
/// `MAXNS` of the C library: name servers beyond the third are never asked.
pub const NAMESERVERS_MAX: usize = 3;
/// Processes whose descriptors are looked through to name the holder of a port.
pub const HOLDER_SEARCH_PROCESSES_MAX: usize = 10_000;
