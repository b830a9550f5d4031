//! Every kind of image that there is, and every kind of bad input: one runs, the other leaves one line and nothing else.

mod faults;
mod full_disk;
mod kinds;
mod lazy;
mod lazy_faults;
mod published;
mod refusals;

use std::process::ExitCode;

use sampan_e2e::{harness, tests};

fn main() -> ExitCode {
    harness::run(
        "images",
        tests![
            full_disk::a_full_disk_of_the_host_is_an_error_with_a_reason,
            refusals::layers_that_are_far_larger_than_they_look,
            faults::registries_that_throttle_and_fail_for_a_while,
            faults::a_registry_that_asks_for_more_patience_than_is_sensible,
            faults::slow_and_silent_registries,
            faults::tokens_that_expire_and_credentials_that_are_revoked,
            faults::ranges_that_are_cut_shortened_or_ignored,
            faults::signed_addresses_that_expire,
            faults::bytes_that_are_wrong,
            faults::a_registry_that_goes_away_and_comes_back,
            lazy_faults::readers_outlast_throttling_and_outages,
            lazy_faults::readers_outlast_bad_ranges,
            lazy_faults::readers_outlast_expiry,
            lazy_faults::wrong_bytes_are_fetched_again,
            lazy_faults::readers_wait_while_the_registry_is_away,
            lazy_faults::complete_images_need_no_registry,
            lazy::an_image_that_was_here_runs_before_it_has_arrived,
            lazy::an_image_with_tables_of_contents_of_its_own_runs_before_it_has_arrived,
            kinds::every_compression_and_flavour_runs,
            kinds::an_index_gives_this_machines_image,
            kinds::a_hundred_and_twenty_seven_layers_are_one,
            kinds::every_kind_of_entry_is_kept,
            kinds::a_layout_directory_is_an_image,
            kinds::a_saved_archive_is_loaded,
            kinds::a_registry_with_a_login_is_entered,
            kinds::a_digest_names_an_image,
            published::a_published_index_is_used_by_those_who_trust_its_maker,
            published::a_start_pack_of_a_real_start_serves_elsewhere,
            published::what_cannot_be_published_is_explained,
            refusals::unknown_hosts_and_images,
            refusals::content_that_is_not_what_its_digest_says,
            refusals::damaged_layers,
            refusals::entries_that_lead_outside,
            refusals::media_types_and_machines,
            refusals::commands_that_cannot_be_run,
            refusals::names_and_ports_that_are_taken,
            refusals::values_that_make_no_sense,
            refusals::manifests_that_are_no_yaml,
            refusals::volumes_that_are_not_there,
        ],
        [],
    )
}
