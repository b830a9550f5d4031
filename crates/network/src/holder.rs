//! Which process has a port: looked up only to name it in an error.
//!
//! The kernel's socket tables (proc_net(5)) give the socket's inode, the processes' descriptors the process. Both
//! change while they are read; a miss gives [`PortHolder::Unknown`].

use std::fs;
use std::path::Path;

use crate::error::PortHolder;
use crate::limits::HOLDER_SEARCH_PROCESSES_MAX;
use crate::port::Protocol;

/// The holder of a port on any address of the calling thread's network namespace.
pub(crate) fn of_port(port: u16, protocol: Protocol) -> PortHolder {
    let tables = match protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
    };
    tables
        .iter()
        .filter_map(|table| fs::read_to_string(Path::new("/proc/thread-self/net").join(table)).ok())
        .find_map(|table| socket_inode(&table, port, protocol))
        .and_then(process_with_socket)
        .unwrap_or(PortHolder::Unknown)
}

/// The inode of the socket that has the port: a listening one for TCP, any for UDP.
fn socket_inode(table: &str, port: u16, protocol: Protocol) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let found = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        let serves = protocol == Protocol::Udp || state == LISTEN;
        (found == port && serves).then(|| fields.nth(5)?.parse().ok()).flatten()
    })
}

fn process_with_socket(inode: u64) -> Option<PortHolder> {
    let link = format!("socket:[{inode}]");
    fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .take(HOLDER_SEARCH_PROCESSES_MAX)
        .find(|pid| {
            fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|mut descriptors| {
                descriptors.any(|descriptor| {
                    descriptor.is_ok_and(|descriptor| {
                        fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == link.as_str())
                    })
                })
            })
        })
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            PortHolder::Process { pid, name: name.trim_end().to_owned() }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        \u{20}  0: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 111 1 0\n\
        \u{20}  1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0\n";

    #[test]
    fn the_listening_socket_is_found_not_the_connected_one() {
        assert_eq!(socket_inode(TABLE, 8080, Protocol::Tcp), Some(222));
        assert_eq!(socket_inode(TABLE, 8080, Protocol::Udp), Some(111));
        assert_eq!(socket_inode(TABLE, 8081, Protocol::Tcp), None);
    }

    #[test]
    fn this_process_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let holder = of_port(port, Protocol::Tcp);
        assert!(matches!(holder, PortHolder::Process { pid, .. } if pid == std::process::id()), "{holder:?}");
    }

    proptest! {
        #[test]
        fn any_table_is_read(table in "(?s).{0,300}", port: u16) {
            socket_inode(&table, port, Protocol::Tcp);
        }
    }
}
