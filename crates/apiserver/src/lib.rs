//! The Kubernetes API, driven by its published schemas
