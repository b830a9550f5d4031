//! `sampan port-forward`: ports of this machine that lead to ports inside an instance, for as long as the command runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::Args;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::Context;
use crate::client::forward::{Carried, carry};
use crate::client::path;
use crate::failure::Failure;
use crate::limits::FORWARDED_CONNECTIONS_MAX;
use crate::output::{note, print_line};

const EXAMPLES: &str = "\
Examples:
  sampan port-forward web 8080:80         http://127.0.0.1:8080 is port 80 of web
  sampan port-forward web 5432            the same port on both sides
  sampan port-forward web :80             any free port of this machine
  sampan port-forward --address 0.0.0.0 web 8080:80

It needs no published port: connections go to the instance's own loopback. An instance does not see
that a client has closed its half of a connection before the other half ends.";

// Which ports lead where.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PortForwardArgs {
    /// The address of this machine to listen on.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// The instance.
    name: String,
    /// A port here and a port inside.
    #[arg(required = true, value_name = "[LOCAL:]PORT", value_parser = parse_ports)]
    ports: Vec<Ports>,
}

/// A port of this machine, 0 for any, and one inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    local: u16,
    inside: u16,
}

fn parse_ports(text: &str) -> Result<Ports, String> {
    const LIKE: &str = "write it like 8080:80, 80, or :80 for any free port here";
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let parsed = match text.split_once(':') {
        Some(("", inside)) => number(inside).map(|inside| Ports { local: 0, inside }),
        Some((local, inside)) => number(local).zip(number(inside)).map(|(local, inside)| Ports { local, inside }),
        None => number(text).map(|port| Ports { local: port, inside: port }),
    };
    parsed.ok_or_else(|| LIKE.to_owned())
}

/// Runs `sampan port-forward`.
pub(crate) async fn execute(args: &PortForwardArgs, context: &Context) -> Result<i32, Failure> {
    // Said now rather than at the first connection.
    context.pod(&args.name).await?;
    let mut listeners = JoinSet::new();
    for ports in &args.ports {
        let address = SocketAddr::new(args.address, ports.local);
        let taken = |error| Failure::explain(address, error, "choose another port of this machine, or :PORT for any");
        let listener = TcpListener::bind(address).await.map_err(taken)?;
        let bound = listener.local_addr().map_err(taken)?;
        print_line(&format!("forwarding {bound} to port {} of {}", ports.inside, args.name))?;
        listeners.spawn(serve(listener, context.clone(), args.name.clone(), ports.inside));
    }
    // Until somebody ends the command.
    while listeners.join_next().await.is_some() {}
    Ok(0)
}

/// Takes connections until the command ends.
async fn serve(listener: TcpListener, context: Context, name: String, port: u16) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < FORWARDED_CONNECTIONS_MAX => match accepted {
                Ok((connection, _)) => drop(connections.spawn(one(connection, context.clone(), name.clone(), port))),
                Err(error) => note(&format!("port-forward: a connection could not be taken: {error}")),
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn one(connection: TcpStream, context: Context, name: String, port: u16) {
    let address =
        format!("{}/portforward{}", path::pod(&context.namespace, &name), path::query([("ports", port.to_string())]));
    match carry(&context.client, &address, connection).await {
        Ok(Carried::ToTheEnd) => {}
        Ok(Carried::Refused(why)) => note(&format!("{name}: port {port}: {why}")),
        Err(error) => {
            if let Some(line) = error.about_pod(&context.namespace, &name).line {
                note(&line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Ports, parse_ports};

    #[test]
    fn ports_are_written_in_three_ways() {
        assert_eq!(parse_ports("8080:80"), Ok(Ports { local: 8080, inside: 80 }));
        assert_eq!(parse_ports("80"), Ok(Ports { local: 80, inside: 80 }));
        assert_eq!(parse_ports(":80"), Ok(Ports { local: 0, inside: 80 }));
        for bad in ["", ":", "80:", "0", "80:0", "70000", "a:b", "1:2:3"] {
            assert!(parse_ports(bad).is_err(), "{bad}");
        }
    }
}
