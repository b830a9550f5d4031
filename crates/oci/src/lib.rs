//! References, manifests, configurations and layer streams of OCI and Docker images; no I/O
