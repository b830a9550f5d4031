//! Raw netlink sockets: one request, its answers, the kernel's verdict.
