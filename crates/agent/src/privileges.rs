//! What a child gives up before it becomes a container's program.

use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use sampan_sys::seccomp::{self, Instruction};
use sampan_wire::agent::{ProcessSpec, Refusal, ResourceLimit};

use crate::fault::AtStage;
use crate::identity::Identity;

/// The highest capability that Linux has ever had room for (`_LINUX_CAPABILITY_U32S_3`).
const CAPABILITY_BITS: u32 = 64;

/// Becomes the identity with the capabilities, the filter and nothing more.
///
/// Without no-new-privileges the filter can only be installed while the process still has `CAP_SYS_ADMIN`; with it, it
/// goes in last.
pub(crate) fn confine(process: &ProcessSpec, identity: &Identity) -> Result<(), Refusal> {
    if let Some(profile) = &process.apparmor_profile {
        take_apparmor_profile(profile)?;
    }
    for limit in &process.limits {
        apply_limit(limit)?;
    }
    if !process.no_new_privileges {
        install_filter(&process.seccomp)?;
    }
    drop_bounding_set(process.capabilities)?;
    set_keep_capabilities(true).at("keep capabilities")?;
    become_identity(identity)?;
    set_keep_capabilities(false).at("keep capabilities")?;
    // What the service itself lacks (containers, hardened units) cannot be granted, and is no reason to fail.
    let held = capabilities(None).at("read capabilities")?.permitted;
    let granted = CapabilitySet::from_bits_retain(process.capabilities) & held;
    clear_ambient_capability_set().at("clear ambient capabilities")?;
    let ambient = CapabilitySet::from_bits_retain(process.ambient_capabilities) & granted;
    let sets = CapabilitySets { effective: granted, permitted: granted, inheritable: ambient };
    set_capabilities(None, sets).at("set capabilities")?;
    for capability in ambient.iter() {
        configure_capability_in_ambient_set(capability, true).at("set ambient capabilities")?;
    }
    if process.no_new_privileges {
        set_no_new_privs(true).at("set no-new-privileges")?;
        install_filter(&process.seccomp)?;
    }
    Ok(())
}

/// Takes on user and groups for good; the calling process is single-threaded.
pub(crate) fn become_identity(identity: &Identity) -> Result<(), Refusal> {
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    set_thread_groups(&groups).at("set groups")?;
    set_thread_res_gid(gid, gid, gid).at(&format!("set group {}", identity.gid))?;
    set_thread_res_uid(uid, uid, uid).at(&format!("set user {}", identity.uid))
}

fn drop_bounding_set(keep: u64) -> Result<(), Refusal> {
    for bit in (0..CAPABILITY_BITS).filter(|bit| keep & (1 << bit) == 0) {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // Past the last capability that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error).at("drop capabilities"),
        }
    }
    Ok(())
}

/// The program that comes next is confined by the profile (apparmor_parser(8) has loaded it).
fn take_apparmor_profile(profile: &str) -> Result<(), Refusal> {
    let attempt = |file: &str| std::fs::write(file, format!("exec {profile}"));
    attempt("/proc/thread-self/attr/apparmor/exec")
        .or_else(|_older| attempt("/proc/thread-self/attr/exec"))
        .at(&format!("take on the AppArmor profile {profile}"))
}

fn install_filter(bytes: &[u8]) -> Result<(), Refusal> {
    if bytes.is_empty() {
        return Ok(());
    }
    let (instructions, _) = bytes.as_chunks::<8>();
    let program: Vec<Instruction> = instructions.iter().map(|bytes| Instruction::from_bytes(*bytes)).collect();
    seccomp::install(&program).at("install the seccomp filter")
}

fn apply_limit(limit: &ResourceLimit) -> Result<(), Refusal> {
    const RESOURCES: [Resource; 16] = [
        Resource::Cpu,
        Resource::Fsize,
        Resource::Data,
        Resource::Stack,
        Resource::Core,
        Resource::Rss,
        Resource::Nproc,
        Resource::Nofile,
        Resource::Memlock,
        Resource::As,
        Resource::Locks,
        Resource::Sigpending,
        Resource::Msgqueue,
        Resource::Nice,
        Resource::Rtprio,
        Resource::Rttime,
    ];
    let resource = usize::try_from(limit.resource).ok().and_then(|number| RESOURCES.get(number).copied());
    let Some(resource) = resource else {
        return Err(Refusal::Failed { stage: format!("set resource limit {}", limit.resource), errno: libc::EINVAL });
    };
    let wanted = Rlimit { current: limit.soft, maximum: limit.hard };
    setrlimit(resource, wanted).at("set a resource limit")
}
