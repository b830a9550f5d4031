//! Known ways out of a container, and known ways to use up a machine, tried from inside real instances.
//!
//! None may succeed, and a neighbour keeps working meanwhile. Where it can be shown without harm, the same words work on
//! the host as root: a test whose attack fails everywhere shows nothing.

mod attempt;
mod exhaustion;
mod kernel;
mod reach;

use std::process::ExitCode;

use sampan_e2e::{harness, tests};

fn main() -> ExitCode {
    harness::run(
        "escape",
        tests![
            exhaustion::processes_are_bounded,
            exhaustion::memory_is_bounded,
            exhaustion::inodes_and_blocks_are_bounded,
            exhaustion::descriptors_are_bounded,
            kernel::calls_that_reach_the_kernel_are_refused,
            kernel::the_kernels_files_cannot_be_written,
            reach::processes_of_others_are_out_of_reach,
            reach::the_agent_cannot_be_touched_by_those_who_see_it,
            reach::no_descriptor_is_left_open,
            reach::our_program_cannot_be_overwritten,
            reach::a_swapped_link_leads_no_copy_outside,
            reach::a_link_in_a_volume_mounts_nothing_of_the_host,
            reach::sockets_of_the_host_are_out_of_reach,
            reach::the_service_survives_hostile_bytes,
        ],
        [],
    )
}
