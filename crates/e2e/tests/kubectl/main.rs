//! The same service through the real kubectl: what people, scripts and other tools of Kubernetes do with pods.

mod objects;
mod pods;

use std::process::ExitCode;

use sampan_e2e::{harness, tests};

fn main() -> ExitCode {
    harness::run(
        "kubectl",
        tests![
            pods::two_containers_share_one_localhost,
            pods::init_containers_run_first_and_in_order,
            pods::a_failing_init_container_keeps_the_pod_from_starting,
            pods::the_environment_tells_about_the_pod,
            pods::volumes_of_a_pod_are_what_they_say,
            objects::pods_are_shown_in_every_form,
            objects::a_watch_sees_a_pod_come_and_go,
            objects::logs_and_exec_work,
            objects::exec_gives_a_terminal,
            objects::run_wait_and_delete_work,
            objects::apply_changes_what_may_change,
            objects::selectors_choose,
            objects::namespaces_keep_pods_apart,
            objects::the_node_is_described,
            objects::bad_manifests_are_refused_with_a_reason,
        ],
        [],
    )
}
