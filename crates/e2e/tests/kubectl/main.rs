//! The same service through the real kubectl: what people, scripts and other tools of Kubernetes do with pods.

mod forward;
mod health;
mod objects;
mod pods;
mod projected;

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
            health::a_long_log_is_cut_and_read_as_one,
            health::who_is_not_well_is_killed_and_started_again,
            health::readiness_follows_an_http_probe,
            health::a_startup_probe_holds_the_others_back,
            health::hooks_run_after_the_start_and_before_the_end,
            health::a_post_start_hook_that_fails_ends_its_container,
            health::last_words_come_from_a_file_or_from_the_log,
            health::a_life_is_told_as_the_kubelet_tells_it,
            projected::volumes_show_objects_and_follow_them,
            projected::a_pod_waits_for_what_its_volumes_show,
            projected::objects_of_another_namespace_are_out_of_reach,
            projected::a_debug_container_looks_at_another,
            projected::limits_change_while_it_runs,
            forward::ports_are_forwarded_to_the_loopback_inside,
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
