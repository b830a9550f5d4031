//! The new mount API: contexts, detached mounts, idmaps and moves.
