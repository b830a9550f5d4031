//! The scheduler's loop and the small controllers beside it
