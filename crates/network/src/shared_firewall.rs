//! Room for sandboxes' packets in the firewall table that programs share.
//!
//! docker, ufw and others set the policy of `FORWARD` in iptables' `filter` tables to drop, and our own table cannot
//! overrule that. By custom whoever needs a way through adds rules there, and so do we: two at its head, for what
//! comes from and what goes to our interfaces (what must not go to them has been dropped by then, in our own chain).
//! They are in the form that `iptables` (the nf_tables kind) writes and lists. Chains of other tables are their
//! owners' own affair: they are reported as obstacles, with the way out.

use rustix::io::Errno;
use sampan_sys::netlink::{NetlinkError, NetlinkSocket};

use crate::config::Names;
use crate::nftables::{self, ForeignChain, NFPROTO_IPV4, NFPROTO_IPV6};
use crate::rule::{Compare, Rule};

/// Forward chains that drop, told apart by whether programs share them.
pub(crate) fn dropping_chains(socket: &NetlinkSocket) -> Result<(Vec<ForeignChain>, Vec<ForeignChain>), NetlinkError> {
    let mut chains = Vec::new();
    socket.dump(nftables::get_chains(), |reply| chains.extend(ForeignChain::read(reply)))?;
    Ok(chains.into_iter().partition(|chain| {
        [NFPROTO_IPV4, NFPROTO_IPV6].contains(&chain.family) && chain.table == "filter" && chain.chain == "FORWARD"
    }))
}

/// Makes sure that our two rules stand in every shared chain that drops.
pub(crate) fn open(socket: &NetlinkSocket, names: &Names) -> Result<(), NetlinkError> {
    for chain in dropping_chains(socket)?.0 {
        if !our_rules(socket, names, &chain)?.is_empty() {
            continue;
        }
        let ours = names.prefix.as_str();
        let rules = [
            Rule::default().came_from(Compare::Equal, ours).accept(),
            Rule::default().goes_to(Compare::Equal, ours).accept(),
        ];
        let requests = rules.map(|rule| nftables::insert_rule(&chain, rule, &names.table)).into();
        socket.transaction(requests)?;
        tracing::info!(chain = %chain.chain, table = %chain.table, "rules for sandboxes added to a shared chain");
    }
    Ok(())
}

/// Takes our rules out again.
pub(crate) fn close(socket: &NetlinkSocket, names: &Names) -> Result<(), NetlinkError> {
    for chain in dropping_chains(socket)?.0 {
        let handles = our_rules(socket, names, &chain)?;
        socket.transaction(handles.iter().map(|handle| nftables::delete_rule(&chain, *handle)).collect())?;
    }
    Ok(())
}

/// The handles of the rules that carry our comment.
fn our_rules(socket: &NetlinkSocket, names: &Names, chain: &ForeignChain) -> Result<Vec<u64>, NetlinkError> {
    let mut handles = Vec::new();
    let listed = socket.dump(nftables::get_rules(chain), |reply| {
        handles.extend(nftables::handle_of_commented_rule(reply, &names.table));
    });
    match listed {
        Err(error) if error.is(Errno::NOENT) => Ok(Vec::new()),
        other => other.map(|()| handles),
    }
}
