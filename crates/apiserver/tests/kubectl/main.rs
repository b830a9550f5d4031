//! The API server as the real kubectl sees it: every command people use, against a node that is a fake.
//!
//! kubectl is taken from the PATH, or from `SAMPAN_TEST_KUBECTL`. Without one the tests say so loudly and pass; the service's
//! own end-to-end tests insist on it.

mod commands;
mod fake_node;
mod fixture;
mod protocol;
mod wire;
