//! Unix sockets that carry descriptors.
