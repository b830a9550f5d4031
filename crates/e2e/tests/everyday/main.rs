//! What people do every day, with the client alone: run, talk to, look at, limit and reach instances.

mod copies;
mod isolation;
mod lifecycle;
mod lists;
mod network;
mod options;
mod streams;
mod terminals;

use std::process::ExitCode;

use sampan_e2e::{harness, tests};

fn main() -> ExitCode {
    harness::run(
        "everyday",
        tests![
            // The long ones first.
            streams::binary_data_passes_an_exec_unharmed,
            lists::python_computes_with_numpy,
            isolation::privileges_of_files_work_inside,
            network::nginx_answers_on_a_published_port,
            lifecycle::a_failed_container_is_started_again,
            options::output_and_exit_codes_are_the_commands_own,
            options::environment_comes_from_options_and_files,
            options::volumes_are_shared_with_the_host,
            options::directory_user_and_entrypoint_can_be_chosen,
            options::limits_are_seen_inside,
            options::pull_policies_are_obeyed,
            options::a_detached_instance_prints_its_name_and_runs_on,
            streams::binary_data_passes_a_run_unharmed,
            streams::signals_reach_a_foreground_instance,
            streams::logs_can_be_cut_and_followed,
            streams::attaching_shows_and_feeds_the_main_process,
            terminals::a_terminal_inside_has_the_size_of_the_one_outside,
            terminals::ctrl_c_goes_to_the_program_inside,
            terminals::the_detach_keys_leave_it_running,
            terminals::exec_gives_a_terminal_too,
            lifecycle::stopping_asks_first_and_kills_then,
            lifecycle::a_grace_period_is_kept,
            lifecycle::too_much_memory_ends_an_instance,
            lifecycle::a_full_disk_is_an_error_inside_and_an_event_outside,
            isolation::every_instance_has_ids_of_its_own,
            isolation::the_main_process_is_number_one,
            isolation::dangerous_things_are_out_of_reach,
            network::a_port_can_be_bound_to_one_address_and_to_udp,
            network::instances_have_both_kinds_of_addresses,
            network::names_are_resolved_by_files_of_its_own,
            network::a_start_on_a_taken_port_leaves_nothing,
            network::the_way_out_goes_by_the_hosts_address,
            lists::instances_are_listed_in_every_form,
            lists::use_and_times_are_shown,
            lists::images_come_and_go,
            lists::versions_and_the_machine_are_shown,
            copies::trees_are_copied_in_and_out,
            copies::a_link_inside_leads_nowhere_outside,
            copies::tar_streams_pass_by_the_dash,
        ],
        [],
    )
}
