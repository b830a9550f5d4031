//! Kubernetes' Pod Security Standards: what pods of a namespace may ask of the machine they run on.
//!
//! A namespace says its level by the label `pod-security.kubernetes.io/enforce`; one that says nothing is `privileged`, as in
//! Kubernetes, since whoever reaches this API is root already (decision 17). A level that nobody knows counts as the strictest.

use serde_json::Value;

use super::all_containers;

/// The label of a namespace.
const LABEL: &str = "pod-security.kubernetes.io/enforce";

/// What may be added to the default ones.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Sources of volumes that touch nothing of the machine.
const VOLUMES: [&str; 6] = ["configMap", "secret", "downwardAPI", "projected", "emptyDir", "image"];

const SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
];

/// How much pods may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Everything.
    Privileged,
    /// Nothing that is known to lead out of a container.
    Baseline,
    /// Only what follows today's best practice.
    Restricted,
}

impl Level {
    /// A namespace's.
    pub(crate) fn of(namespace: &Value) -> Self {
        match namespace["metadata"]["labels"][LABEL].as_str() {
            None | Some("privileged") => Self::Privileged,
            Some("baseline") => Self::Baseline,
            Some(_) => Self::Restricted,
        }
    }

    /// Why a pod may not be in a namespace of this level, if it may not.
    pub(crate) fn violations(self, pod: &Value) -> Option<String> {
        let mut found = Vec::new();
        if self >= Self::Baseline {
            host(pod, &mut found);
            all_containers(pod).for_each(|(_, container)| baseline(container, &mut found));
        }
        if self >= Self::Restricted {
            volumes(pod, &mut found);
            all_containers(pod)
                .for_each(|(_, container)| restricted(&pod["spec"]["securityContext"], container, &mut found));
        }
        let name = if self == Self::Baseline { "baseline" } else { "restricted" };
        (!found.is_empty()).then(|| format!("violates PodSecurity \"{name}:latest\": {}", found.join(", ")))
    }
}

fn host(pod: &Value, found: &mut Vec<String>) {
    let spec = &pod["spec"];
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| spec[field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    if !shared.is_empty() {
        found.push(format!("host namespaces ({})", shared.join(", ")));
    }
    for volume in spec["volumes"].as_array().into_iter().flatten().filter(|volume| volume.get("hostPath").is_some()) {
        found.push(format!("hostPath volumes (volume {})", volume["name"]));
    }
    profile(&spec["securityContext"], "pod", found);
    for sysctl in spec["securityContext"]["sysctls"].as_array().into_iter().flatten() {
        if !SYSCTLS.iter().any(|known| sysctl["name"] == *known) {
            found.push(format!("forbidden sysctls ({})", sysctl["name"]));
        }
    }
}

fn profile(security: &Value, whose: &str, found: &mut Vec<String>) {
    for (field, what) in [("seccompProfile", "seccompProfile"), ("appArmorProfile", "forbidden AppArmor profiles")] {
        if security[field]["type"] == "Unconfined" {
            found.push(format!("{what} ({whose} must not set securityContext.{field}.type to \"Unconfined\")"));
        }
    }
}

fn baseline(container: &Value, found: &mut Vec<String>) {
    let name = format!("container {}", container["name"]);
    let security = &container["securityContext"];
    if security["privileged"] == true {
        found.push(format!("privileged ({name} must not set securityContext.privileged=true)"));
    }
    for added in security["capabilities"]["add"].as_array().into_iter().flatten() {
        let short = added.as_str().unwrap_or_default().trim_start_matches("CAP_").to_ascii_uppercase();
        if !CAPABILITIES.contains(&short.as_str()) {
            found.push(format!("non-default capabilities ({name} must not include {added} in capabilities.add)"));
        }
    }
    for port in container["ports"].as_array().into_iter().flatten() {
        if port["hostPort"].as_i64().is_some_and(|port| port != 0) {
            found.push(format!("hostPort ({name} uses hostPort {})", port["hostPort"]));
        }
    }
    if security["procMount"].as_str().is_some_and(|mount| mount != "Default") {
        found.push(format!("procMount ({name} must not set securityContext.procMount)"));
    }
    profile(security, &name, found);
}

fn volumes(pod: &Value, found: &mut Vec<String>) {
    for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
        let sources = volume.as_object().into_iter().flatten().map(|(source, _)| source.as_str());
        for source in sources.filter(|source| *source != "name" && *source != "hostPath" && !VOLUMES.contains(source)) {
            found.push(format!("restricted volume types (volume {} uses {source})", volume["name"]));
        }
    }
}

fn restricted(pods: &Value, container: &Value, found: &mut Vec<String>) {
    let name = format!("container {}", container["name"]);
    let security = &container["securityContext"];
    let own_or_pods = |field: &str| security.get(field).or_else(|| pods.get(field));
    if security["allowPrivilegeEscalation"] != false {
        found.push(format!("allowPrivilegeEscalation != false ({name} must set it to false)"));
    }
    let drops_all = security["capabilities"]["drop"].as_array().is_some_and(|list| list.iter().any(|one| one == "ALL"));
    let adds = security["capabilities"]["add"].as_array().into_iter().flatten();
    if !drops_all || adds.into_iter().any(|one| one != "NET_BIND_SERVICE") {
        found.push(format!("unrestricted capabilities ({name} must drop ALL and add nothing but NET_BIND_SERVICE)"));
    }
    if own_or_pods("runAsNonRoot").is_none_or(|flag| flag != true) {
        found.push(format!("runAsNonRoot != true (pod or {name} must set it to true)"));
    }
    if own_or_pods("runAsUser").is_some_and(|user| user == 0) {
        found.push(format!("runAsUser=0 (pod and {name} must not set it to 0)"));
    }
    let is_filtered = |profile: &Value| profile["type"] == "RuntimeDefault" || profile["type"] == "Localhost";
    if !own_or_pods("seccompProfile").is_some_and(is_filtered) {
        found.push(format!("seccompProfile (pod or {name} must set its type to \"RuntimeDefault\" or \"Localhost\")"));
    }
}

#[cfg(test)]
mod tests {
    use super::Level;
    use serde_json::{Value, json};

    fn pod(spec: Value, container: Value) -> Value {
        let mut pod = json!({"spec": spec});
        let mut container = container;
        container["name"] = json!("main");
        pod["spec"]["containers"] = json!([container]);
        pod
    }

    #[test]
    fn a_namespace_says_its_level() {
        for (label, level) in [
            (json!({}), Level::Privileged),
            (json!({"pod-security.kubernetes.io/enforce": "baseline"}), Level::Baseline),
            (json!({"pod-security.kubernetes.io/enforce": "restricted"}), Level::Restricted),
            (json!({"pod-security.kubernetes.io/enforce": "bsaeline"}), Level::Restricted),
        ] {
            assert_eq!(Level::of(&json!({"metadata": {"labels": label}})), level);
        }
        assert_eq!(Level::of(&json!({"metadata": {}})), Level::Privileged);
    }

    #[test]
    fn what_leads_out_of_a_container_is_not_baseline() {
        for (spec, container, why) in [
            (
                json!({"hostNetwork": true, "hostPID": true}),
                json!({}),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
                json!({}),
                "hostPath volumes (volume \"v\")",
            ),
            (json!({}), json!({"securityContext": {"privileged": true}}), "privileged (container \"main\""),
            (json!({}), json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}), "\"SYS_ADMIN\""),
            (json!({}), json!({"ports": [{"hostPort": 80}]}), "hostPort 80"),
            (json!({}), json!({"securityContext": {"procMount": "Unmasked"}}), "procMount"),
            (json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}), json!({}), "Unconfined"),
            (json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}), json!({}), "kernel.msgmax"),
        ] {
            let pod = pod(spec, container);
            assert_eq!(Level::Privileged.violations(&pod), None);
            let said = Level::Baseline.violations(&pod).expect(why);
            assert!(said.starts_with("violates PodSecurity \"baseline:latest\": ") && said.contains(why), "{said}");
        }
        let plain = pod(json!({"volumes": [{"name": "v", "emptyDir": {}}]}), json!({"ports": [{"containerPort": 80}]}));
        assert_eq!(Level::Baseline.violations(&plain), None);
        assert!(Level::Restricted.violations(&plain).is_some());
    }

    #[test]
    fn the_best_practice_is_restricted() {
        let good = json!({
            "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 1000,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        assert_eq!(Level::Restricted.violations(&pod(json!({}), json!({"securityContext": good}))), None);
        for field in ["allowPrivilegeEscalation", "runAsNonRoot", "capabilities", "seccompProfile"] {
            let mut bad = good.clone();
            bad.as_object_mut().expect("an object").shift_remove(field);
            assert!(
                Level::Restricted.violations(&pod(json!({}), json!({"securityContext": bad}))).is_some(),
                "{field}"
            );
        }
    }
}
