//! `plimsoll`: starts the whole pipeline on one machine, and is the operator's tool for one that runs.

mod amount;
mod broker;
mod commands;
mod endpoint;
mod error;
mod http;
mod output;
mod outputs;
mod past;
mod postgres;
mod progress;
mod sink;
mod standing;
mod up;
mod visible;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Error;

/// The load line for GPU fleets: how loaded every GPU is and was, where the next job fits, and capacity questions in SQL.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything on this machine: nats-server, processor, query and an agent
    Up(up::Options),
    /// Show the cell: hosts, GPUs by state, how fresh the answers are
    Status(commands::status::Options),
    /// Ask a question in SQL
    Sql(commands::sql::Options),
    /// Ask for GPUs and wait for the decision
    Place(Box<commands::place::Options>),
    /// Withdraw a request that waits
    Cancel(commands::cancel::Options),
    /// List the requests that wait
    Queue(commands::queue::Options),
    /// Give a lease back
    Release(commands::release::Options),
    /// List the leases that have not ended
    Leases(commands::leases::Options),
    /// List the newest placement decisions, or follow them
    Decisions(commands::decisions::Options),
    /// Say why a decision came out as it did
    Explain(commands::explain::Options),
    /// Make hosts placeable
    Enrol(commands::control::Enrol),
    /// Take a host or a GPU out of service for new placements
    Cordon(commands::control::Target),
    /// Take a host or a GPU out of service and let its leases end
    Drain(commands::control::Drain),
    /// Put a host or a GPU back into service
    Uncordon(commands::control::Target),
    /// Take a lease back, whoever holds it
    Revoke(commands::control::Revoke),
    /// Rebuild the state from the log into a folder, and show its hash
    Replay(commands::tools::Options),
    /// Fold the log again and compare it with the checkpoints, the store and OUT
    Verify(commands::tools::Options),
    /// Show what stands in the processor's store or a checkpoint, or what a record of the log says and made
    Inspect(commands::tools::Options),
    /// Show and change what is in force: settings, alert rules, policies, paces
    Policy(commands::policy::Options),
    /// List what fires, follow it, or send it to a webhook
    Alerts(commands::alerts::Options),
    /// Run recorded cases against the pure core and show what was expected and what was given
    Conformance(commands::conformance::Options),
    /// Compare placement policies on recorded requests
    Bench(commands::bench::Options),
    /// Run a program that ends when its parent does
    #[command(hide = true)]
    Child(up::child::Exec),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: `up` starts its parts from it, and a part is told to end when the thread that started it does.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Error::Io { what: "cannot start the async runtime".to_owned(), source: error }),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(code) => code,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn run(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Up(options) => up::run(options).await,
        Command::Status(options) => commands::status::run(options).await,
        Command::Sql(options) => commands::sql::run(options).await,
        Command::Place(options) => commands::place::run(*options).await,
        Command::Cancel(options) => commands::cancel::run(options).await,
        Command::Queue(options) => commands::queue::run(options).await,
        Command::Release(options) => commands::release::run(options).await,
        Command::Leases(options) => commands::leases::run(options).await,
        Command::Decisions(options) => commands::decisions::run(options).await,
        Command::Explain(options) => commands::explain::run(options).await,
        Command::Enrol(options) => commands::control::enrol(options).await,
        Command::Cordon(options) => commands::control::cordon(options).await,
        Command::Drain(options) => commands::control::drain(options).await,
        Command::Uncordon(options) => commands::control::uncordon(options).await,
        Command::Revoke(options) => commands::control::revoke(options).await,
        Command::Replay(options) => Err(commands::tools::become_tool("replay", &options)),
        Command::Verify(options) => Err(commands::tools::become_tool("verify", &options)),
        Command::Inspect(options) => Err(commands::tools::become_tool("inspect", &options)),
        Command::Policy(options) => commands::policy::run(options).await,
        Command::Alerts(options) => commands::alerts::run(options).await,
        Command::Conformance(options) => commands::conformance::run(&options),
        Command::Bench(options) => commands::bench::run(&options),
        Command::Child(exec) => Err(up::child::become_program(&exec)),
    }
}

fn fail(error: &Error) -> ExitCode {
    // Nothing is left to do where even stderr is gone.
    let _ = writeln!(std::io::stderr(), "plimsoll: {error}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_can_be_parsed_as_it_is_declared() {
        Cli::command().debug_assert();
    }
}
