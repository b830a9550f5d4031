//! The contract of a sandbox and the process sandbox behind it
