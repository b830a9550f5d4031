//! Client of OCI registries: authentication, ranges, retries, proxies; and image layout directories
