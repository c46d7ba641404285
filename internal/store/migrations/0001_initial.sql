-- Times are microseconds since 1970 UTC. Documents are JSON that package
-- control alone reads. A null archived_at or revoked_at means it did not happen.

CREATE TABLE workspaces (
  id         TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
  name       TEXT NOT NULL UNIQUE CHECK (name <> ''),
  created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE keys (
  id           TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
  workspace_id TEXT NOT NULL REFERENCES workspaces (id),
  name         TEXT NOT NULL,
  kind         TEXT NOT NULL CHECK (kind IN ('api', 'environment', 'session')),
  scope        TEXT NOT NULL CHECK ((scope = '') = (kind = 'api')),
  hash         BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
  hint         TEXT NOT NULL CHECK (length(hint) <= 4),
  created_at   INTEGER NOT NULL,
  revoked_at   INTEGER
) STRICT;
CREATE INDEX keys_list ON keys (workspace_id, created_at, id);

CREATE TABLE environments (
  id           TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
  workspace_id TEXT NOT NULL REFERENCES workspaces (id),
  name         TEXT NOT NULL CHECK (name <> ''),
  document     TEXT NOT NULL CHECK (json_valid(document)),
  created_at   INTEGER NOT NULL,
  updated_at   INTEGER NOT NULL,
  archived_at  INTEGER
) STRICT;
CREATE UNIQUE INDEX environments_name ON environments (workspace_id, name) WHERE archived_at IS NULL;
CREATE INDEX environments_list ON environments (workspace_id, created_at, id);
CREATE INDEX environments_list_live ON environments (workspace_id, created_at, id) WHERE archived_at IS NULL;

CREATE TABLE agents (
  id           TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
  workspace_id TEXT NOT NULL REFERENCES workspaces (id),
  name         TEXT NOT NULL,
  version      INTEGER NOT NULL CHECK (version >= 1),
  created_at   INTEGER NOT NULL,
  archived_at  INTEGER
) STRICT;
CREATE INDEX agents_list ON agents (workspace_id, created_at, id);
CREATE INDEX agents_list_live ON agents (workspace_id, created_at, id) WHERE archived_at IS NULL;

CREATE TABLE agent_versions (
  agent_id   TEXT NOT NULL REFERENCES agents (id),
  version    INTEGER NOT NULL CHECK (version >= 1),
  document   TEXT NOT NULL CHECK (json_valid(document)),
  updated_at INTEGER NOT NULL,
  PRIMARY KEY (agent_id, version)
) STRICT;

-- A session carries a snapshot of its agent in its document, so it refers to
-- the agent by name only; the environment must outlive it.
CREATE TABLE sessions (
  id             TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
  workspace_id   TEXT NOT NULL REFERENCES workspaces (id),
  environment_id TEXT NOT NULL REFERENCES environments (id),
  agent_id       TEXT NOT NULL,
  agent_version  INTEGER NOT NULL,
  status         TEXT NOT NULL CHECK (status IN ('idle', 'running', 'rescheduling', 'terminated')),
  document       TEXT NOT NULL CHECK (json_valid(document)),
  created_at     INTEGER NOT NULL,
  updated_at     INTEGER NOT NULL,
  archived_at    INTEGER
) STRICT;
CREATE INDEX sessions_list ON sessions (workspace_id, created_at, id);
CREATE INDEX sessions_list_live ON sessions (workspace_id, created_at, id) WHERE archived_at IS NULL;
CREATE INDEX sessions_agent ON sessions (workspace_id, agent_id, created_at, id);
CREATE INDEX sessions_environment ON sessions (environment_id, archived_at);
CREATE INDEX sessions_live ON sessions (id) WHERE archived_at IS NULL;

CREATE TABLE builds (
  environment_id TEXT PRIMARY KEY NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
  wanted         TEXT NOT NULL,
  status         TEXT NOT NULL CHECK (status IN ('queued', 'building', 'ready', 'failed')),
  base_digest    TEXT NOT NULL,
  layers         TEXT NOT NULL CHECK (json_valid(layers)),
  document       TEXT NOT NULL CHECK (json_valid(document)),
  updated_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX builds_unfinished ON builds (environment_id) WHERE status IN ('queued', 'building');
