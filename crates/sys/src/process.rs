//! clone3, pidfds, capabilities, and what a process does to itself before exec.
