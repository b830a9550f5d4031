//! Which pods and containers a list is to hold. Pure.

use std::collections::HashMap;

use crate::proto::v1::{
    ContainerFilter, ContainerState, ContainerStatsFilter, PodSandboxFilter, PodSandboxState, PodSandboxStatsFilter,
};

/// The labels of something that is listed.
type Labels = HashMap<String, String>;

/// An id as people write it: whole, or its beginning. An empty one fits all.
fn fits(id: &str, wanted: &str) -> bool {
    id.starts_with(wanted)
}

fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl PodSandboxFilter {
    pub(crate) fn takes(&self, id: &str, state: PodSandboxState, labels: &Labels) -> bool {
        fits(id, &self.id)
            && self.state.as_ref().is_none_or(|wanted| wanted.state() == state)
            && selects(&self.label_selector, labels)
    }
}

impl ContainerFilter {
    pub(crate) fn takes(&self, id: &str, pod_id: &str, state: ContainerState, labels: &Labels) -> bool {
        fits(id, &self.id)
            && fits(pod_id, &self.pod_sandbox_id)
            && self.state.as_ref().is_none_or(|wanted| wanted.state() == state)
            && selects(&self.label_selector, labels)
    }
}

impl ContainerStatsFilter {
    pub(crate) fn takes(&self, id: &str, pod_id: &str, labels: &Labels) -> bool {
        fits(id, &self.id) && fits(pod_id, &self.pod_sandbox_id) && selects(&self.label_selector, labels)
    }
}

impl PodSandboxStatsFilter {
    pub(crate) fn takes(&self, id: &str, labels: &Labels) -> bool {
        fits(id, &self.id) && selects(&self.label_selector, labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::ContainerStateValue;

    #[test]
    fn every_part_of_a_filter_must_fit() {
        let labels: Labels = [("app", "web"), ("tier", "front")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let running = ContainerState::ContainerRunning;
        let check = |filter: ContainerFilter| filter.takes("0123", "pod-7", running, &labels);
        assert!(check(ContainerFilter::default()));
        assert!(check(ContainerFilter { id: "01".to_owned(), ..Default::default() }));
        assert!(!check(ContainerFilter { id: "012345".to_owned(), ..Default::default() }));
        assert!(!check(ContainerFilter { pod_sandbox_id: "pod-8".to_owned(), ..Default::default() }));
        let selector: Labels = [("app".to_owned(), "web".to_owned())].into();
        assert!(check(ContainerFilter { label_selector: selector, ..Default::default() }));
        let selector: Labels = [("app".to_owned(), "db".to_owned())].into();
        assert!(!check(ContainerFilter { label_selector: selector, ..Default::default() }));
        let state = Some(ContainerStateValue { state: ContainerState::ContainerExited.into() });
        assert!(!check(ContainerFilter { state, ..Default::default() }));
    }
}
