//! Which ports are used: the documented ones, chosen ones, or any free ones.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};

use clap::Args;

use crate::error::Error;
use crate::up::PortChoice;

/// Flags that choose single ports; 0 = any free one.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// Port of nats-server [default: 14222]
    #[arg(long, value_name = "PORT")]
    nats_port: Option<u16>,
    /// Port of the processor's HTTP [default: 9411]
    #[arg(long, value_name = "PORT")]
    processor_port: Option<u16>,
    /// Port of the processor's tail [default: 9412]
    #[arg(long, value_name = "PORT")]
    tail_port: Option<u16>,
    /// Port of SQL over HTTP [default: 8600]
    #[arg(long, value_name = "PORT")]
    query_port: Option<u16>,
    /// Port of SQL over the Postgres wire [default: 8432]
    #[arg(long, value_name = "PORT")]
    pg_port: Option<u16>,
    /// Port of the agent's HTTP [default: 9410]
    #[arg(long, value_name = "PORT")]
    agent_port: Option<u16>,
}

/// The ports in use; 0 = not known yet, the part chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// nats-server.
    pub nats: u16,
    /// The processor's HTTP.
    pub processor: u16,
    /// The processor's tail.
    pub tail: u16,
    /// The query service's HTTP.
    pub query: u16,
    /// The query service's Postgres wire.
    pub pg: u16,
    /// The agent's HTTP.
    pub agent: u16,
}

impl Ports {
    /// The ports by flag and choice. A port that is taken is an error that names it and the flag that changes it.
    pub fn choose(flags: &Flags, choice: PortChoice) -> Result<Self, Error> {
        let pick = |flag: Option<u16>, fixed: u16| {
            flag.unwrap_or(match choice {
                PortChoice::Fixed => fixed,
                PortChoice::Auto => 0,
            })
        };
        let ports = Self {
            nats: pick(flags.nats_port, 14222),
            processor: pick(flags.processor_port, 9411),
            tail: pick(flags.tail_port, 9412),
            query: pick(flags.query_port, 8600),
            pg: pick(flags.pg_port, 8432),
            agent: pick(flags.agent_port, 9410),
        };
        probe(ports.processor, "the processor's HTTP", "--processor-port")?;
        probe(ports.tail, "the processor's tail", "--tail-port")?;
        probe(ports.query, "SQL over HTTP", "--query-port")?;
        probe(ports.pg, "SQL over the Postgres wire", "--pg-port")?;
        probe(ports.agent, "the agent's HTTP", "--agent-port")?;
        // nats-server does not tell on its output which port it took, so a free one is chosen for it.
        Ok(Self { nats: probe(ports.nats, "nats-server", "--nats-port")?, ..ports })
    }
}

/// The port, or a free one for 0, after checking that nobody listens there.
fn probe(port: u16, what: &'static str, flag: &'static str) -> Result<u16, Error> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr()) {
        Ok(address) => Ok(address.port()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(Error::PortTaken { port, what, flag }),
        Err(error) => Err(Error::io(format!("cannot listen on port {port} for {what} (another one: {flag})"))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Flags = Flags { nats_port: None, processor_port: None, tail_port: None, query_port: None, pg_port: None, agent_port: None };

    #[test]
    fn a_taken_port_is_named_with_the_flag_that_changes_it() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("any free port");
        let port = taken.local_addr().expect("bound").port();
        let error = Ports::choose(&Flags { pg_port: Some(port), ..NONE }, PortChoice::Auto).expect_err("taken").to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--pg-port") && error.contains("Postgres"), "{error}");
    }

    #[test]
    fn only_the_broker_is_given_a_free_port_the_others_choose_their_own() {
        let ports = Ports::choose(&NONE, PortChoice::Auto).expect("all free");
        assert!(ports.nats > 0);
        assert_eq!((ports.processor, ports.tail, ports.query, ports.pg, ports.agent), (0, 0, 0, 0, 0));
    }
}
