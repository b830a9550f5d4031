//! Pods and containers from images, sandboxes, networks and volumes
