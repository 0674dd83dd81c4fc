//! The schema in PostgreSQL: its text, and what a database lacks of it.

use tokio_postgres::types::Type;

use super::connection::{Connection, DatabaseError, Parameters, column};

/// The version that this relay needs.
pub(crate) const VERSION: i32 = 1;

/// The oldest server, as `server_version_num` has it.
const OLDEST_SERVER: i32 = 130_000;

const SQL: &str = include_str!("schema.sql");

/// True for what may stand unquoted in the text.
#[must_use]
pub(crate) fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    first
        && name.len() <= 63
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The migration. The names are plain identifiers.
#[must_use]
pub(crate) fn migration(schema: &str, app_role: &str, relay_role: &str) -> String {
    SQL.replace("{schema}", schema)
        .replace("{app_role}", app_role)
        .replace("{relay_role}", relay_role)
}

/// What the database lacks for a relay to work, each with what to do.
///
/// # Errors
/// The database's own.
pub(crate) async fn missing(
    connection: &Connection,
    schema: &str,
) -> Result<Vec<String>, DatabaseError> {
    let mut missing = Vec::new();
    let server = connection
        .one(
            "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), \
             current_setting('server_version'), pg_is_in_recovery()",
            &[],
        )
        .await?;
    let (number, encoding): (i32, &str) = (column(&server, 0)?, column(&server, 1)?);
    if number < OLDEST_SERVER {
        let version: &str = column(&server, 2)?;
        missing.push(format!("the server is PostgreSQL {version}: 13 or newer is needed"));
    }
    if encoding != "UTF8" {
        missing.push(format!("the database's encoding is {encoding}: UTF8 is needed"));
    }
    if column(&server, 3)? {
        missing.push(
            "the server is a standby, which takes no writes: connect to the primary (several hosts with \
             target_session_attrs=read-write find it)"
                .to_owned(),
        );
    }

    let migrate =
        format!("run `tollgate relay sql --schema {schema} | psql` as the schema's owner");
    let mut tables = true;
    for (table, rights) in [
        ("tollgate_outbox", "SELECT, INSERT, UPDATE, DELETE"),
        ("tollgate_outbox_dead", "SELECT, INSERT, DELETE"),
        ("tollgate_relay", "SELECT, UPDATE"),
    ] {
        let name = format!("{schema}.{table}");
        match rights_on(connection, &name, rights).await? {
            None => {
                tables = false;
                missing.push(format!("there is no table {name}: {migrate}"));
            }
            Some(lacking) if !lacking.is_empty() => {
                tables = false;
                missing.push(format!(
                    "this user lacks {} on {name}: GRANT it the relay's role (tollgate_relay)",
                    lacking.join(", ")
                ));
            }
            Some(_) => {}
        }
    }

    if tables {
        missing.extend(of_version(connection, schema, &migrate).await?);
    }
    Ok(missing)
}

/// The rights that the user lacks on a table; `None` if it does not exist, or is out of sight.
async fn rights_on<'r>(
    connection: &Connection,
    table: &str,
    rights: &'r str,
) -> Result<Option<Vec<&'r str>>, DatabaseError> {
    let found = connection
        .query("SELECT oid FROM pg_class WHERE oid = to_regclass($1)", &[(&table, Type::TEXT)])
        .await;
    // Without USAGE on the schema that is refused.
    let found = match found {
        Ok(rows) => rows,
        Err(DatabaseError::Denied(_)) => vec![],
        Err(error) => return Err(error),
    };
    if found.is_empty() {
        return Ok(None);
    }

    let mut lacking = Vec::new();
    for right in rights.split(", ") {
        let parameters: Parameters<'_> = &[(&table, Type::TEXT), (&right, Type::TEXT)];
        let row = connection.one("SELECT has_table_privilege($1, $2)", parameters).await?;
        if !column::<bool>(&row, 0)? {
            lacking.push(right);
        }
    }
    Ok(Some(lacking))
}

/// What the schema lacks beside its tables.
async fn of_version(
    connection: &Connection,
    schema: &str,
    migrate: &str,
) -> Result<Vec<String>, DatabaseError> {
    let mut missing = Vec::new();
    let sql = format!("SELECT version FROM {schema}.tollgate_relay");
    let version = match connection.query(&sql, &[]).await?.first() {
        Some(row) => column(row, 0)?,
        None => 0,
    };
    if version < VERSION {
        missing.push(format!(
            "the schema has version {version}, this relay needs {VERSION}: {migrate}"
        ));
    }

    let sql = format!(
        "SELECT to_regprocedure('{schema}.tollgate_publish(text, json, text, integer, integer, text)') IS NOT NULL, \
         EXISTS (SELECT FROM pg_trigger WHERE tgname = 'tollgate_wake' \
           AND tgrelid = '{schema}.tollgate_outbox'::regclass AND tgenabled <> 'D')"
    );
    let row = connection.one(&sql, &[]).await?;
    if !column::<bool>(&row, 0)? {
        missing.push(format!("there is no function {schema}.tollgate_publish: {migrate}"));
    }
    if !column::<bool>(&row, 1)? {
        // On purpose, perhaps: it costs a lock at each commit. Rows are found by the poll.
        tracing::info!(
            "the trigger tollgate_wake is off: rows are found by relay.poll_interval alone"
        );
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_migration_names_its_schema_everywhere() {
        let text = migration("shop", "web", "relay");
        assert!(!text.contains("schema}") && !text.contains("role}"), "a place was left out");
        assert!(text.contains("CREATE TABLE IF NOT EXISTS shop.tollgate_outbox ("));
        assert!(text.contains("TO web;") && text.contains("TO relay;"));
    }

    #[test]
    fn identifiers_need_no_quotes() {
        for (name, good) in [
            ("public", true),
            ("shop_1", true),
            ("", false),
            ("1a", false),
            ("Shop", false),
            ("a b", false),
            ("a\"b", false),
        ] {
            assert_eq!(is_identifier(name), good, "{name}");
        }
    }
}
