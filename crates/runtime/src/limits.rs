//! Every limit of this room.

use std::time::Duration;

/// First host id that pods are mapped to. The range up to 2³¹ is claimed by no distribution, nor by systemd.
pub const ID_RANGE_FIRST: u32 = 0x7000_0000;
/// Ids per pod, as Kubernetes asks for.
pub const ID_RANGE_LENGTH: u32 = 65_536;
/// Pods that can have a range of their own at once.
pub const ID_RANGES_MAX: u32 = 4095;
const _: () = assert!(
    ID_RANGE_FIRST as u64 + ID_RANGES_MAX as u64 * ID_RANGE_LENGTH as u64 <= i32::MAX as u64,
    "some file systems and tools still read ids as signed"
);

/// The writable layer of a pod that does not say its size.
pub const DISK_BYTES_DEFAULT: u64 = 10 << 30;
/// The smallest writable layer: below this, ext4 has no room for itself.
pub const DISK_BYTES_MIN: u64 = 4 << 20;
/// The largest writable layer.
pub const DISK_BYTES_MAX: u64 = 16 << 40;

/// A writable layer with less than this left counts as full.
pub const FULL_BELOW_BYTES: u64 = 1 << 20;

/// Making a sandbox, its network or its disk takes milliseconds; this long means it will not come.
pub const CREATE_DEADLINE: Duration = Duration::from_secs(30);
/// Killing a pod and taking its parts away.
pub const DESTROY_DEADLINE: Duration = Duration::from_secs(30);
/// Clearing away what an ended pod has left, for which nobody waits, begins so much later: first those go on who wait for its end.
pub const CLEAR_AWAY_DELAY: Duration = Duration::from_millis(2);
/// Making a file-system template by `mkfs.ext4`.
pub const TEMPLATE_DEADLINE: Duration = Duration::from_secs(60);

/// Sandboxes that are kept ready where nobody says how many.
pub const POOL_DEFAULT: usize = 4;
/// The most that are.
pub const POOL_MAX: usize = 256;
/// How long making one waits for pods that are being made.
pub const POOL_PATIENCE: Duration = Duration::from_millis(50);
/// It waits until nothing has happened to any for so long: a container's start, and a short run, are over by then.
pub const POOL_QUIET: Duration = Duration::from_millis(12);
/// How long the end of the service waits for one that is being made: it takes milliseconds, unless what makes it has gone.
pub const POOL_CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a new daemon that has pods to take up leaves what nobody uses as it is.
pub const POOL_DELAY_AFTER_RESTART: Duration = Duration::from_secs(1);
/// How long making one waits after a failure.
pub const POOL_RETRY: Duration = Duration::from_secs(5);

/// Writes into a database between two checkpoints of its log.
pub const LEDGER_WRITES_A_CHECKPOINT: u32 = 200;
/// Pages of the log (4 KiB each) beyond which a writer makes the checkpoint itself.
pub const LEDGER_LOG_PAGES_MAX: u32 = 10_000;

/// Removed sandboxes' folders that wait to be deleted.
pub const TRASH_QUEUED_MAX: usize = 64;

/// Kept of each output stream of a command that is run to its end (the kubelet reads no more either).
pub const EXEC_OUTPUT_BYTES_MAX: usize = 16 << 20;
/// What such a command has left running may still say this long after its end.
pub const EXEC_DRAIN_MAX: Duration = Duration::from_secs(1);
/// Sizes of a client's terminal that wait to be applied; what is more is forgotten, another follows.
pub const RESIZES_QUEUED: usize = 8;
/// Connecting to a port of a pod, which is on this machine.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How often, and how far apart, a loop device is looked at that is just being let go: it takes milliseconds.
pub const DETACH_ATTEMPTS_MAX: u32 = 200;
/// See [`DETACH_ATTEMPTS_MAX`].
pub const DETACH_PAUSE: Duration = Duration::from_millis(5);
