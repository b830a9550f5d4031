//! The framed protocol between daemon, zygote and agent
