//! The scheduler and the small controllers beside it.
//!
//! Scheduling happens inside admission: a pod is stored already bound, its reservation made ([`Scheduler`]). What finds
//! no room waits, with its reason, until something ends. [`cleanup`] removes finished `--rm` pods and old events.

pub mod cleanup;
mod scheduler;

pub use scheduler::Scheduler;
