//! PID 1 of every pod, and the zygote that makes it.
//!
//! ```text
//! zygote ── clone3 ──> agent (PID 1 of the pod) ── clone3 ──> container's own PID 1
//!                        │  poll loop: daemon link, children's reports,       (nested pid namespace)
//!                        │  output pipes and terminals, attached clients
//! ```
//!
//! Everything here is synchronous and single-threaded: processes are made without exec, so a second thread's locks would
//! be inherited for ever. There is no tokio, no shared memory, and nothing that a container can reach: the agent's root
//! is a read-only skeleton with proc and sysfs and nothing else.
//!
//! Invariants:
//! - Nothing that comes from an image, a container or its user is looked at before `pod` has dropped to the pod's own
//!   root; and what comes from the container's file system is looked at by the child that is already confined to it.
//! - The agent never waits for a child, a client or a daemon: whatever can block is a descriptor in the poll loop.
//! - An exit is told until it is acknowledged, to this daemon or the next.

mod container;
mod copy;
mod event_loop;
mod fault;
mod identity;
mod launch;
mod limits;
pub mod link;
mod log;
mod pod;
mod privileges;
mod requests;
mod rootfs;
mod stage;
mod streams;
mod tar;
pub mod zygote;

/// Entry point for fuzzing: reads the bytes as headers of an archive, and as account files.
pub fn exercise(bytes: &[u8]) {
    let (blocks, rest) = bytes.as_chunks::<{ tar::BLOCK }>();
    for block in blocks {
        if let Ok(Some(mut entry)) = tar::Entry::decode(block) {
            std::hint::black_box(entry.extend(rest).is_ok());
        }
    }
    let text = String::from_utf8_lossy(bytes);
    let (passwd, group) = text.split_once('\0').unwrap_or((&text, ""));
    let user = sampan_wire::agent::User::Named(text.chars().take(32).collect());
    std::hint::black_box(identity::resolve(&user, &[], false, passwd, group).is_ok());
}
