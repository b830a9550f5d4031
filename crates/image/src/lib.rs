//! From an image reference to files the kernel mounts: layer index, blob store, merge, pull
