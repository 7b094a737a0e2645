//! Questions to the query service over the Postgres wire.

use std::time::Duration;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::output::{Kind, Table};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The answer to one question.
pub async fn ask(endpoints: &Endpoints, sql: &str) -> Result<Table, Error> {
    let client = connect(&endpoints.pg).await?;
    // The simple protocol gives every type as text but does not name the types; describing the statement does. Where that is refused, the
    // same refusal follows.
    let described = client.prepare(sql).await;
    let kinds: Vec<Kind> = described.iter().flat_map(|statement| statement.columns()).map(|column| kind(column.type_())).collect();
    let mut table = Table::default();
    for message in client.simple_query(sql).await.map_err(refusal)? {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                table = Table::default();
                table.columns = columns
                    .iter()
                    .enumerate()
                    .map(|(index, column)| (column.name().to_owned(), kinds.get(index).copied().unwrap_or(Kind::Text)))
                    .collect();
            }
            SimpleQueryMessage::Row(row) => table.rows.push((0..row.len()).map(|index| row.get(index).map(str::to_owned)).collect()),
            SimpleQueryMessage::CommandComplete(_) => {}
            // The library may add kinds of messages; what is neither header nor row shows nothing.
            _ => {}
        }
    }
    Ok(table)
}

async fn connect(address: &str) -> Result<Client, Error> {
    let config = config(address)?;
    let (client, connection) = config.connect(NoTls).await.map_err(|error| Error::NoQuery { address: address.to_owned(), detail: cause(&error) })?;
    // Ends by itself when the client is dropped; its error reaches whoever waits for an answer.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

fn config(address: &str) -> Result<Config, Error> {
    let wrong =
        |detail: String| Error::Usage(format!("{address:?} is no address of a query service ({detail}): give host:port or a postgres:// URL"));
    let mut config = if address.contains("://") || address.contains('=') {
        address.parse::<Config>().map_err(|error| wrong(error.to_string()))?
    } else {
        let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("no port".to_owned()))?;
        let mut config = Config::new();
        config.host(host).port(port.parse().map_err(|_| wrong(format!("{port:?} is no port")))?);
        config
    };
    if config.get_user().is_none() {
        config.user("plimsoll");
    }
    if config.get_dbname().is_none() {
        config.dbname("plimsoll");
    }
    config.connect_timeout(CONNECT_TIMEOUT).application_name("plimsoll");
    Ok(config)
}

fn refusal(error: tokio_postgres::Error) -> Error {
    Error::Refused(match error.as_db_error() {
        Some(refused) => refused.hint().map_or_else(|| refused.message().to_owned(), |hint| format!("{} ({hint})", refused.message())),
        None => format!("the query service went away: {}", cause(&error)),
    })
}

/// The innermost cause: the library's own words hide it.
fn cause(error: &tokio_postgres::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn kind(of: &Type) -> Kind {
    const NUMBERS: [Type; 7] = [Type::INT2, Type::INT4, Type::INT8, Type::FLOAT4, Type::FLOAT8, Type::NUMERIC, Type::OID];
    if *of == Type::BOOL {
        Kind::Boolean
    } else if NUMBERS.contains(of) {
        Kind::Number
    } else {
        Kind::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port_or_a_url() {
        let plain = config("127.0.0.1:8432").expect("host and port");
        assert_eq!((plain.get_ports(), plain.get_user()), ([8432].as_slice(), Some("plimsoll")));
        assert_eq!(config("postgres://me@db:1/x").expect("a URL").get_user(), Some("me"));
        for wrong in ["localhost", "localhost:pg", "postgres://:::"] {
            assert!(config(wrong).expect_err(wrong).to_string().contains("host:port"), "{wrong}");
        }
    }
}
