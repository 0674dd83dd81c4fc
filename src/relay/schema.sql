-- Tollgate's outbox, version 1, for PostgreSQL 13 or newer. `tollgate relay sql` prints this. It may be run
-- again: what is there stays.

BEGIN;
SET LOCAL client_min_messages = warning;
-- Nobody who publishes waits for a migration that waits for somebody else.
SET LOCAL lock_timeout = '5s';

-- What the application has to say, in the transaction that makes it true. A row without published_at waits.
CREATE TABLE IF NOT EXISTS {schema}.tollgate_outbox (
  id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  -- The row's identity. After a failover that lost commits, ids are given out a second time.
  uuid         uuid NOT NULL DEFAULT gen_random_uuid(),
  channel      text NOT NULL,
  -- Not jsonb: clients receive the text to the byte.
  payload      json NOT NULL,
  key          text,
  ttl          integer,
  maxlen       integer,
  traceparent  text,
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  published_at timestamptz,
  "offset"     bigint,
  epoch        text
) WITH (
  -- The pending rows are few and change all the time: they must not wait for a large table's vacuum.
  autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 10000,
  autovacuum_vacuum_cost_delay = 0
);

-- Rows that can never be published, with the reason. `tollgate relay retry` puts them back. Ids and uuids
-- may come twice here, so that a row can die whatever it is.
CREATE TABLE IF NOT EXISTS {schema}.tollgate_outbox_dead (
  number       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id           bigint NOT NULL,
  uuid         uuid NOT NULL,
  channel      text NOT NULL,
  payload      json NOT NULL,
  key          text,
  ttl          integer,
  maxlen       integer,
  traceparent  text,
  created_at   timestamptz NOT NULL,
  reason       text NOT NULL,
  explanation  text NOT NULL,
  died_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row: which version this is, and which relay leads.
CREATE TABLE IF NOT EXISTS {schema}.tollgate_relay (
  one          boolean PRIMARY KEY DEFAULT true CHECK (one),
  version      integer NOT NULL,
  -- This outbox' name among those of other services that publish on the same channels.
  outbox       text NOT NULL DEFAULT "left"(replace(gen_random_uuid()::text, '-', ''), 12),
  term         bigint NOT NULL DEFAULT 0,
  leader       text,
  leader_since timestamptz,
  seen_at      timestamptz
);
-- Says something on a channel, if and when the transaction commits. The answer is the row's identity. With a
-- key that the channel has already, nothing is added, and the first row's identity is the answer.
-- It refuses no name and no event: a purchase must not fail because of its announcement. What cannot be
-- published becomes a dead row, which is counted and alerts.
CREATE OR REPLACE FUNCTION {schema}.tollgate_publish(
  channel text, payload json, key text DEFAULT NULL,
  ttl integer DEFAULT NULL, maxlen integer DEFAULT NULL, traceparent text DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  row_uuid uuid;
BEGIN
  IF tollgate_publish.channel IS NULL OR tollgate_publish.payload IS NULL THEN
    RAISE null_value_not_allowed USING MESSAGE = 'tollgate_publish: channel and payload must not be null';
  END IF;

  LOOP
    INSERT INTO {schema}.tollgate_outbox (channel, payload, key, ttl, maxlen, traceparent)
      VALUES (tollgate_publish.channel, tollgate_publish.payload, nullif(tollgate_publish.key, ''),
        tollgate_publish.ttl, tollgate_publish.maxlen, tollgate_publish.traceparent)
      ON CONFLICT (channel, key) WHERE key IS NOT NULL AND length(channel) <= 255 AND length(key) <= 256
      DO NOTHING
      RETURNING uuid INTO row_uuid;
    EXIT WHEN row_uuid IS NOT NULL;

    -- The first row may be deleted in between, at the end of its retention.
    SELECT o.uuid INTO row_uuid FROM {schema}.tollgate_outbox o
      WHERE o.channel = tollgate_publish.channel AND o.key = tollgate_publish.key
        AND length(o.channel) <= 255 AND length(o.key) <= 256;
    EXIT WHEN row_uuid IS NOT NULL;
  END LOOP;
  RETURN row_uuid;
END $$;

-- The part of a channel's name that stands for an id: did:privy:1 is did%3Aprivy%3A1.
CREATE OR REPLACE FUNCTION {schema}.tollgate_encode_id(id text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(string_agg(
    CASE WHEN strpos('%:*?[]{}\"''`<>' || U&'\1680\2000\2001\2002\2003\2004\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000', c) > 0
           -- Bytes are compared, whatever the database's collation says of letters.
           OR c COLLATE "C" <= ' ' OR c COLLATE "C" BETWEEN chr(127) AND U&'\00A0'
      THEN regexp_replace(upper(encode(convert_to(c, 'UTF8'), 'hex')), '(..)', '%\1', 'g')
      ELSE c END, '' ORDER BY n), '')
  FROM regexp_split_to_table(id, '') WITH ORDINALITY AS parts(c, n)
$$;

-- Wakes the relay, once for each transaction. Without it, rows are found by the poll.
CREATE OR REPLACE FUNCTION {schema}.tollgate_wake() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pg_notify('tollgate_outbox', '');
  RETURN NULL;
END $$;

-- What would lock the table against those who publish, and so is done only if it is not there.
DO $$
BEGIN
  IF to_regclass('{schema}.tollgate_outbox_pending') IS NULL THEN
    CREATE INDEX tollgate_outbox_pending
      ON {schema}.tollgate_outbox (id) WHERE published_at IS NULL;
  END IF;
  IF to_regclass('{schema}.tollgate_outbox_published') IS NULL THEN
    CREATE INDEX tollgate_outbox_published
      ON {schema}.tollgate_outbox (published_at) WHERE published_at IS NOT NULL;
  END IF;
  -- A longer key is none, and its row dies: an entry that is too large for the index would fail the
  -- application's transaction.
  IF to_regclass('{schema}.tollgate_outbox_key') IS NULL THEN
    CREATE UNIQUE INDEX tollgate_outbox_key
      ON {schema}.tollgate_outbox (channel, key)
      WHERE key IS NOT NULL AND length(channel) <= 255 AND length(key) <= 256;
  END IF;
  IF to_regclass('{schema}.tollgate_outbox_dead_id') IS NULL THEN
    CREATE INDEX tollgate_outbox_dead_id ON {schema}.tollgate_outbox_dead (id);
  END IF;

  -- Somebody may have switched it off, and it stays off.
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgname = 'tollgate_wake'
      AND tgrelid = '{schema}.tollgate_outbox'::regclass) THEN
    CREATE TRIGGER tollgate_wake AFTER INSERT ON {schema}.tollgate_outbox
      FOR EACH STATEMENT EXECUTE FUNCTION {schema}.tollgate_wake();
  END IF;
END $$;

-- Who may what. Grant the two roles to the users that the application and the relay log in as.
DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['{app_role}', '{relay_role}'] LOOP
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = name) THEN
      EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', name);
    END IF;
  END LOOP;
END $$;

REVOKE ALL ON FUNCTION {schema}.tollgate_publish(text, json, text, integer, integer, text) FROM PUBLIC;
GRANT USAGE ON SCHEMA {schema} TO {app_role}, {relay_role};
-- The function writes with its owner's rights: the application can add rows, and neither read nor change any.
GRANT EXECUTE ON FUNCTION {schema}.tollgate_publish(text, json, text, integer, integer, text) TO {app_role};
GRANT EXECUTE ON FUNCTION {schema}.tollgate_encode_id(text) TO {app_role};
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.tollgate_outbox TO {relay_role};
GRANT SELECT, INSERT, DELETE ON {schema}.tollgate_outbox_dead TO {relay_role};
GRANT SELECT, UPDATE ON {schema}.tollgate_relay TO {relay_role};

-- Last, because the leader waits for it.
INSERT INTO {schema}.tollgate_relay (version) VALUES (1)
  ON CONFLICT (one) DO UPDATE SET version = excluded.version
  WHERE tollgate_relay.version < excluded.version;

COMMIT;
