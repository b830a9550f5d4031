//! Limits. Zero and empty mean not asked for, as everywhere in the interface.

use sampan_sandbox::{HugePages, Resources};

use crate::error::CallError;
use crate::proto::v1::LinuxContainerResources;

/// What the control groups are told.
pub(crate) fn resources(wanted: &LinuxContainerResources) -> Result<Resources, CallError> {
    let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let mut unified: Vec<(String, String)> =
        wanted.unified.iter().map(|(file, value)| (file.clone(), value.clone())).collect();
    unified.sort();
    if let Some((file, _)) = unified.iter().find(|(file, _)| file.contains('/') || file.is_empty()) {
        return Err(CallError::Invalid(format!("unified: {file:?} is not the name of a control group's file")));
    }
    Ok(Resources {
        cpu_shares: positive(wanted.cpu_shares),
        cpu_quota_us: Some(wanted.cpu_quota).filter(|quota| *quota != 0),
        cpu_period_us: positive(wanted.cpu_period),
        cpuset_cpus: text(&wanted.cpuset_cpus),
        cpuset_mems: text(&wanted.cpuset_mems),
        memory_limit_bytes: positive(wanted.memory_limit_in_bytes),
        huge_pages: wanted
            .hugepage_limits
            .iter()
            .map(|limit| HugePages { page_size: limit.page_size.clone(), bytes: limit.limit })
            .collect(),
        unified,
        ..Resources::default()
    })
}

/// What a container has after an update: what the update does not name stays.
pub(crate) fn merged(now: &LinuxContainerResources, update: &LinuxContainerResources) -> LinuxContainerResources {
    let number = |update: i64, now: i64| if update == 0 { now } else { update };
    let text = |update: &str, now: &str| if update.is_empty() { now.to_owned() } else { update.to_owned() };
    let mut unified = now.unified.clone();
    unified.extend(update.unified.clone());
    LinuxContainerResources {
        cpu_period: number(update.cpu_period, now.cpu_period),
        cpu_quota: number(update.cpu_quota, now.cpu_quota),
        cpu_shares: number(update.cpu_shares, now.cpu_shares),
        memory_limit_in_bytes: number(update.memory_limit_in_bytes, now.memory_limit_in_bytes),
        oom_score_adj: number(update.oom_score_adj, now.oom_score_adj),
        cpuset_cpus: text(&update.cpuset_cpus, &now.cpuset_cpus),
        cpuset_mems: text(&update.cpuset_mems, &now.cpuset_mems),
        hugepage_limits: if update.hugepage_limits.is_empty() { &now.hugepage_limits } else { &update.hugepage_limits }
            .clone(),
        unified,
        memory_swap_limit_in_bytes: number(update.memory_swap_limit_in_bytes, now.memory_swap_limit_in_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_leaves_alone_what_it_does_not_name() {
        let now = LinuxContainerResources { cpu_shares: 512, memory_limit_in_bytes: 64, ..Default::default() };
        let update = LinuxContainerResources { memory_limit_in_bytes: 128, cpu_quota: -1, ..Default::default() };
        let after = merged(&now, &update);
        assert_eq!((after.cpu_shares, after.memory_limit_in_bytes, after.cpu_quota), (512, 128, -1));
        let limits = resources(&update).unwrap();
        assert_eq!((limits.cpu_shares, limits.memory_limit_bytes, limits.cpu_quota_us), (None, Some(128), Some(-1)));
    }

    #[test]
    fn files_of_a_group_cannot_lead_out_of_it() {
        let unified = [("../memory.max".to_owned(), "1".to_owned())].into();
        let error = resources(&LinuxContainerResources { unified, ..Default::default() }).unwrap_err();
        assert!(error.to_string().contains("../memory.max"), "{error}");
    }
}
