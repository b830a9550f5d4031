//! What people do every day, with the client alone: run, talk to, look at, limit and reach instances.

mod options;

use std::process::ExitCode;

use sampan_e2e::{harness, tests};

fn main() -> ExitCode {
    harness::run(
        "everyday",
        tests![
            options::output_and_exit_codes_are_the_commands_own,
            options::environment_comes_from_options_and_files,
            options::volumes_are_shared_with_the_host,
            options::directory_user_and_entrypoint_can_be_chosen,
            options::limits_are_seen_inside,
            options::pull_policies_are_obeyed,
            options::a_detached_instance_prints_its_name_and_runs_on,
        ],
        [],
    )
}
