//! The network's one owner: leases, held ports, interfaces and the nf_tables table, changed by nobody else.
//!
//! It lives on a thread of its own (see [`crate::Network`]), so everything here is synchronous and one at a time; the
//! kernel takes these requests one at a time anyway. Order on the way up: lease, port sockets, cable, table. On the
//! way down the reverse, the cable excepted: it goes with the sandbox's namespace, which is many times cheaper.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use sampan_sys::namespace;
use sampan_sys::netlink::{Family, Message, NetlinkSocket};
use tokio::runtime::Handle;

use crate::config::{Names, NetworkConfig, check_sandbox, stable_hash};
use crate::error::{Attempted as _, NetworkError, PortHolder};
use crate::held_port::HeldPort;
use crate::leases::{self, Lease, Leases};
use crate::limits::{MTU_DEFAULT, MTU_MAX, MTU_MIN, PORTS_PER_SANDBOX_MAX};
use crate::nftables::{self, ForeignChain};
use crate::port::{PortMapping, Protocol};
use crate::rtnetlink::{self, AF_INET, AF_INET6, Counters, Link, Route};
use crate::{
    AttachOptions, Attachment, Obstacle, Usage, cable, conntrack, pools, ruleset, shaping, shared_firewall, sysctl,
};

pub(crate) struct Host {
    names: Names,
    leases: Leases,
    held: HashMap<String, Vec<HeldPort>>,
    /// Host interface indices of what is attached.
    interfaces: BTreeMap<String, u32>,
    /// The host's network namespace, which is this thread's.
    home: OwnedFd,
    route: NetlinkSocket,
    filter: NetlinkSocket,
    mtu: u32,
    runtime: Handle,
}

impl Host {
    /// Takes over what an earlier run of this service left, and sets up the rest. Runs in the host's namespace.
    pub(crate) fn open(config: &NetworkConfig, runtime: Handle) -> Result<Self, NetworkError> {
        config.validate()?;
        let names = Names::of(&config.instance);
        let socket = |family| {
            NetlinkSocket::open(family)
                .map_err(|source| NetworkError::System { operation: "open a netlink socket", source })
        };
        let (route, filter) = (socket(Family::Route)?, socket(Family::Netfilter)?);
        let home = namespace::current_network()
            .map_err(|source| NetworkError::System { operation: "open the host's network namespace", source })?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|source| NetworkError::System { operation: "read the boot id", source })?;
        let boot = boot.trim();
        let links = links(&route)?;
        let routes = routes(&route)?;

        let pools = pools::choose(config, &names, boot, &links, &routes)?;
        leases::write_pools(&config.state_dir, &pools)?;
        let mtu = config.mtu.unwrap_or_else(|| uplink_mtu(&links, &routes));
        let leases = Leases::open(&config.lease_dir, boot, pools)?;
        for change in sysctl::enable_forwarding(&config.state_dir, pools.ipv6.is_some())? {
            tracing::info!(%change, "kernel setting changed for routing");
        }
        let mut host = Self {
            names,
            leases,
            held: HashMap::new(),
            interfaces: BTreeMap::new(),
            home,
            route,
            filter,
            mtu,
            runtime,
        };
        host.ensure_anchor(&links)?;
        host.learn_interfaces(&links);
        host.mend()?;
        Ok(host)
    }

    pub(crate) fn attach(
        &mut self,
        sandbox: &str,
        namespace: &OwnedFd,
        options: &AttachOptions,
    ) -> Result<Attachment, AttachFailure> {
        check_sandbox(sandbox)?;
        self.check_ports(sandbox, &options.ports)?;
        let lease = self.leases.take(sandbox, &options.ports, options.bandwidth)?;
        match self.connect(&lease, namespace) {
            Ok(()) => Ok(self.attachment_of(&lease)),
            Err(error) => Err(AttachFailure { error, released: self.undo(sandbox) }),
        }
    }

    fn connect(&mut self, lease: &Lease, namespace: &OwnedFd) -> Result<(), NetworkError> {
        let mut held = Vec::new();
        let holding = self.hold_ports(lease, &mut held);
        self.held.insert(lease.sandbox.clone(), held);
        holding?;
        let index = cable::lay(
            self.home.as_fd(),
            &self.route,
            &self.names,
            lease,
            self.leases.pools(),
            self.mtu,
            namespace.as_fd(),
        )?;
        self.interfaces.insert(lease.sandbox.clone(), index);
        self.police(lease)?;
        if !lease.ports.is_empty() {
            let requests = ruleset::add(&self.names, ruleset::elements(lease));
            self.change_table(requests)?;
            self.forget_datagrams(lease, &[]);
        }
        Ok(())
    }

    /// Takes a half-made attachment down; what cannot be taken down now is found by the next reconciliation.
    fn undo(&mut self, sandbox: &str) -> Vec<HeldPort> {
        let name = self.names.host_interface(sandbox);
        if let Ok(Some(link)) = self.find_link(&name)
            && let Err(error) = self.route.call(rtnetlink::delete_link(link.index))
        {
            tracing::warn!(sandbox, %error, "a half-made interface stays until the next reconciliation");
        }
        self.detach(sandbox).unwrap_or_else(|error| {
            tracing::warn!(sandbox, %error, "a half-made attachment stays until the next reconciliation");
            Vec::new()
        })
    }

    /// Forgets the sandbox; the caller releases the ports that come back.
    pub(crate) fn detach(&mut self, sandbox: &str) -> Result<Vec<HeldPort>, NetworkError> {
        let held = self.held.remove(sandbox).unwrap_or_default();
        self.interfaces.remove(sandbox);
        // The lease goes first, so that a table that has to be written whole is without it too.
        let Some(lease) = self.leases.release(sandbox)? else { return Ok(held) };
        if lease.bandwidth.egress.is_some() {
            self.stop_policing(&self.names.host_interface(sandbox))?;
        }
        if !lease.ports.is_empty() {
            self.change_table(ruleset::withdraw(&self.names, ruleset::elements(&lease)))?;
            self.forget_datagrams(&lease, &lease.addresses());
        }
        Ok(held)
    }

    /// Removes all that belongs to no sandbox in `keep`, and mends what the others should have.
    pub(crate) fn reconcile(&mut self, keep: &HashSet<String>) -> Result<(Vec<String>, Vec<HeldPort>), NetworkError> {
        let mut removed = Vec::new();
        let mut released = Vec::new();
        let gone: Vec<String> =
            self.leases.iter().map(|lease| &lease.sandbox).filter(|id| !keep.contains(*id)).cloned().collect();
        for sandbox in gone {
            released.extend(self.detach(&sandbox)?);
            removed.push(format!("address of sandbox {sandbox}"));
        }
        let links = links(&self.route)?;
        let strays: Vec<&Link> = links
            .iter()
            .filter(|link| link.name.starts_with(&self.names.prefix) && link.name != self.names.anchor)
            .filter(|link| !self.leases.iter().any(|lease| self.names.host_interface(&lease.sandbox) == link.name))
            .collect();
        removed.extend(strays.iter().map(|link| match self.names.sandbox_of_alias(&link.alias) {
            Some(sandbox) => format!("interface {} of sandbox {sandbox}", link.name),
            None => format!("interface {}", link.name),
        }));
        self.delete_links(&strays)?;
        self.ensure_anchor(&links)?;
        self.learn_interfaces(&links);
        self.mend()?;
        Ok((removed, released))
    }

    /// Takes the table and the anchor away when nothing is attached; `false` when something is, beside the ports
    /// that were held for it.
    pub(crate) fn close(&mut self) -> Result<(bool, Vec<HeldPort>), NetworkError> {
        let released = self.held.drain().flat_map(|(_sandbox, held)| held).collect();
        if !self.leases.is_empty() {
            return Ok((false, released));
        }
        shared_firewall::close(&self.filter, &self.names)
            .attempted(|| "take rules out of the shared firewall table".to_owned())?;
        for requests in [ruleset::remove(&self.names), shaping::remove(&self.names)] {
            match self.filter.transaction(requests) {
                Err(error) if !error.is(Errno::NOENT) => {
                    return Err(error).attempted(|| format!("remove nf_tables table {}", self.names.table));
                }
                _ => {}
            }
        }
        let links = links(&self.route)?;
        let ours: Vec<&Link> = links.iter().filter(|link| link.name.starts_with(&self.names.prefix)).collect();
        self.delete_links(&ours)?;
        Ok((true, released))
    }

    pub(crate) fn usage(&self, sandbox: &str) -> Result<Usage, NetworkError> {
        let not_attached = || NetworkError::NotAttached { sandbox: sandbox.to_owned() };
        self.leases.get(sandbox).ok_or_else(not_attached)?;
        let link = self.find_link(&self.names.host_interface(sandbox))?.ok_or_else(not_attached)?;
        Ok(guest_view(link.counters))
    }

    /// The usage of all sandboxes by one request.
    pub(crate) fn usage_of_all(&self) -> Result<HashMap<String, Usage>, NetworkError> {
        let mut by_index = HashMap::new();
        self.route
            .dump(rtnetlink::get_statistics(), |reply| by_index.extend(rtnetlink::read_statistics(reply)))
            .attempted(|| "read interface statistics".to_owned())?;
        Ok(self
            .interfaces
            .iter()
            .filter_map(|(sandbox, index)| Some((sandbox.clone(), guest_view(*by_index.get(index)?))))
            .collect())
    }

    pub(crate) fn attachment(&self, sandbox: &str) -> Option<Attachment> {
        self.leases.get(sandbox).map(|lease| self.attachment_of(lease))
    }

    fn attachment_of(&self, lease: &Lease) -> Attachment {
        Attachment {
            ipv4: Some(lease.ipv4),
            ipv6: lease.ipv6,
            host_interface: self.names.host_interface(&lease.sandbox),
        }
    }

    pub(crate) fn obstacles(&self) -> Result<Vec<Obstacle>, NetworkError> {
        let (_shared, others) =
            shared_firewall::dropping_chains(&self.filter).attempted(|| "list nf_tables chains".to_owned())?;
        let pool = self.leases.pools().ipv4;
        Ok(others.into_iter().map(|ForeignChain { table, chain, .. }| Obstacle { table, chain, pool }).collect())
    }

    /// Puts back what others have taken from the table, the shared firewall or the held ports.
    pub(crate) fn mend(&mut self) -> Result<(), NetworkError> {
        self.write_table()?;
        shared_firewall::open(&self.filter, &self.names)
            .attempted(|| "let sandboxes through the shared firewall table".to_owned())?;
        self.mend_policers()?;
        self.hold_missing_ports();
        Ok(())
    }

    /// Drops what the sandbox sends beyond its rate, whatever it does at its own end.
    fn police(&self, lease: &Lease) -> Result<(), NetworkError> {
        let name = self.names.host_interface(&lease.sandbox);
        let requests = lease.bandwidth.egress.and_then(|rate| shaping::police(&self.names, &name, rate, self.mtu));
        self.filter
            .transaction(requests.unwrap_or_default())
            .attempted(|| format!("limit the rate of interface {name}"))
    }

    /// Older kernels take the chain away with its interface.
    fn stop_policing(&self, interface: &str) -> Result<(), NetworkError> {
        match self.filter.transaction(shaping::stop_policing(&self.names, interface)) {
            Err(error) if error.is(Errno::NOENT) => Ok(()),
            other => other.attempted(|| format!("lift the rate of interface {interface}")),
        }
    }

    /// Puts policers back that others have taken away, and removes those whose sandbox is gone.
    fn mend_policers(&self) -> Result<(), NetworkError> {
        let mut found = HashSet::new();
        self.filter
            .dump(nftables::get_chains(), |reply| found.extend(shaping::policed(&self.names, reply)))
            .attempted(|| "list nf_tables chains".to_owned())?;
        for lease in self.leases.iter().filter(|lease| lease.bandwidth.egress.is_some()) {
            let present = found.remove(&self.names.host_interface(&lease.sandbox));
            if !present
                && self.interfaces.contains_key(&lease.sandbox)
                && let Err(error) = self.police(lease)
            {
                // The sandbox may be ending at this moment, and its interface with it.
                tracing::warn!(sandbox = %lease.sandbox, %error, "its rate is not enforced");
            }
        }
        found.iter().try_for_each(|interface| self.stop_policing(interface))
    }

    /// Datagrams that are under way to a port would keep the way that they found. Failing costs only that.
    fn forget_datagrams(&self, lease: &Lease, targets: &[IpAddr]) {
        for port in lease.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            match conntrack::forget_udp(&self.filter, port.host_port, targets) {
                Ok(0) => {}
                Ok(flows) => {
                    tracing::debug!(sandbox = %lease.sandbox, port = port.host_port, flows, "forgot UDP flows")
                }
                Err(error) => tracing::warn!(sandbox = %lease.sandbox, %error, "UDP flows may go on as before"),
            }
        }
    }

    fn check_ports(&self, sandbox: &str, ports: &[PortMapping]) -> Result<(), NetworkError> {
        if ports.len() > PORTS_PER_SANDBOX_MAX {
            return Err(NetworkError::PortsTooMany { count: ports.len() });
        }
        for (index, port) in ports.iter().enumerate() {
            if port.host_port == 0 || port.container_port == 0 {
                return Err(NetworkError::PortZero);
            }
            if ports.iter().take(index).any(|earlier| earlier.collides_with(port)) {
                return Err(NetworkError::PortRepeated { port: port.host_port, protocol: port.protocol });
            }
            let taken =
                self.leases.iter().filter(|lease| lease.sandbox != sandbox).find_map(|lease| {
                    lease.ports.iter().any(|other| other.collides_with(port)).then_some(&lease.sandbox)
                });
            if let (Some(holder), Some(address)) = (taken, port.host_addresses().first()) {
                return Err(NetworkError::PortTaken {
                    address: *address,
                    port: port.host_port,
                    protocol: port.protocol,
                    holder: PortHolder::Sandbox(holder.clone()),
                });
            }
        }
        Ok(())
    }

    /// Binds the lease's ports; those that were bound before one failed are in `held` too.
    fn hold_ports(&self, lease: &Lease, held: &mut Vec<HeldPort>) -> Result<(), NetworkError> {
        let targets = lease.addresses();
        lease.ports.iter().try_for_each(|port| HeldPort::hold(port, &targets, &self.runtime, held))
    }

    /// After a restart the sockets are new. A port that someone else bound meanwhile still leads to the sandbox.
    fn hold_missing_ports(&mut self) {
        let missing: Vec<Lease> =
            self.leases.iter().filter(|lease| !self.held.contains_key(&lease.sandbox)).cloned().collect();
        for lease in missing {
            let mut held = Vec::new();
            if let Err(error) = self.hold_ports(&lease, &mut held) {
                tracing::warn!(sandbox = %lease.sandbox, %error, "a published port is no longer held");
            }
            self.held.insert(lease.sandbox, held);
        }
    }

    fn learn_interfaces(&mut self, links: &[Link]) {
        let by_name: HashMap<&str, u32> = links.iter().map(|link| (link.name.as_str(), link.index)).collect();
        self.interfaces = self
            .leases
            .iter()
            .filter_map(|lease| {
                let index = by_name.get(self.names.host_interface(&lease.sandbox).as_str())?;
                Some((lease.sandbox.clone(), *index))
            })
            .collect();
    }

    /// The interface that holds the gateway addresses, and with them the pools' own routes.
    fn ensure_anchor(&self, links: &[Link]) -> Result<(), NetworkError> {
        let name = self.names.anchor.as_str();
        let attempted = || format!("make interface {name}");
        let index = match links.iter().find(|link| link.name == name) {
            Some(link) if !link.alias.is_empty() && link.alias != self.anchor_alias() => {
                return Err(NetworkError::InterfaceTaken { name: name.to_owned(), owner: link.alias.clone() });
            }
            Some(link) => link.index,
            None => self
                .route
                .pipeline(vec![rtnetlink::create_bridge(name), rtnetlink::get_link(name)])
                .attempted(attempted)?
                .iter()
                .find_map(Link::read)
                .map_or(0, |link| link.index),
        };
        let pools = self.leases.pools();
        let mut requests = vec![rtnetlink::set_alias(index, &self.anchor_alias())];
        if pools.ipv6.is_some() {
            requests.push(rtnetlink::set_quiet_ipv6(index));
        }
        requests.push(rtnetlink::set_up(index));
        for (gateway, pool) in pools.gateways().into_iter().zip([Some(pools.ipv4), pools.ipv6].into_iter().flatten()) {
            requests.push(rtnetlink::add_address(index, gateway, pool.length()));
        }
        self.route.pipeline(requests).attempted(attempted).map(|_replies| ())
    }

    fn anchor_alias(&self) -> String {
        format!("{}: gateway of its sandboxes", self.names.instance)
    }

    fn write_table(&self) -> Result<(), NetworkError> {
        self.filter
            .transaction(ruleset::write(&self.names, self.leases.pools(), self.leases.iter()))
            .attempted(|| format!("write nf_tables table {}", self.names.table))
    }

    /// Applies a small change. When the table is not as we left it (a firewall was reloaded, somebody flushed the
    /// rules), it is written whole instead.
    fn change_table(&self, requests: Vec<Message>) -> Result<(), NetworkError> {
        match self.filter.transaction(requests) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(table = %self.names.table, %error, "the table was changed by others and is written anew");
                self.write_table()
            }
        }
    }

    fn find_link(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        match self.route.pipeline(vec![rtnetlink::get_link(name)]) {
            Ok(replies) => Ok(replies.iter().find_map(Link::read)),
            Err(error) if error.is(Errno::NODEV) => Ok(None),
            Err(error) => Err(error).attempted(|| format!("look up interface {name}")),
        }
    }

    /// Many at once are first gathered in a group and deleted by it.
    fn delete_links(&self, links: &[&Link]) -> Result<(), NetworkError> {
        let unless_gone = |result: Result<_, sampan_sys::netlink::NetlinkError>| match result {
            Err(error) if error.is(Errno::NODEV) => Ok(()),
            other => other.map(drop),
        };
        let result = match links {
            [] => Ok(()),
            [one] => unless_gone(self.route.pipeline(vec![rtnetlink::delete_link(one.index)])),
            many => {
                // Groups are small numbers by custom; anything made of our name is used by nobody else.
                let group = (stable_hash(&self.names.instance) as u32) | 1 << 31;
                let gather = many.iter().map(|link| rtnetlink::set_group(link.index, group)).collect();
                unless_gone(self.route.pipeline(gather))
                    .and_then(|()| unless_gone(self.route.pipeline(vec![rtnetlink::delete_group(group)])))
            }
        };
        result.attempted(|| format!("delete {} interfaces", links.len()))
    }
}

/// Why a sandbox could not be attached, and the ports to release before anybody is told.
pub(crate) struct AttachFailure {
    pub(crate) error: NetworkError,
    pub(crate) released: Vec<HeldPort>,
}

impl From<NetworkError> for AttachFailure {
    fn from(error: NetworkError) -> Self {
        Self { error, released: Vec::new() }
    }
}

/// The host receives what the sandbox sends.
fn guest_view(host: Counters) -> Usage {
    Usage { received_bytes: host.sent_bytes, sent_bytes: host.received_bytes }
}

fn links(route: &NetlinkSocket) -> Result<Vec<Link>, NetworkError> {
    let mut links = Vec::new();
    route
        .dump(rtnetlink::get_links(), |reply| links.extend(Link::read(reply)))
        .attempted(|| "list network interfaces".to_owned())?;
    Ok(links)
}

fn routes(route: &NetlinkSocket) -> Result<Vec<Route>, NetworkError> {
    let mut routes = Vec::new();
    for family in [AF_INET, AF_INET6] {
        route
            .dump(rtnetlink::get_routes(family), |reply| routes.extend(Route::read(reply)))
            .attempted(|| "list routes".to_owned())?;
    }
    Ok(routes)
}

/// The MTU of the interface that the default route takes: a larger one would only be cut there.
fn uplink_mtu(links: &[Link], routes: &[Route]) -> u32 {
    routes
        .iter()
        .filter(|route| route.destination.length() == 0)
        .find_map(|route| links.iter().find(|link| link.index == route.interface))
        .map_or(MTU_DEFAULT, |link| link.mtu.clamp(MTU_MIN, MTU_MAX))
}
