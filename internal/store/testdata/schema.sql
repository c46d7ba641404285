CREATE TABLE agent_versions (
  agent_id   TEXT NOT NULL REFERENCES agents (id),
  version    INTEGER NOT NULL CHECK (version >= 1),
  document   TEXT NOT NULL CHECK (json_valid(document)),
  updated_at INTEGER NOT NULL,
  PRIMARY KEY (agent_id, version)
) STRICT;
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
CREATE TABLE builds (
  environment_id TEXT PRIMARY KEY NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
  wanted         TEXT NOT NULL,
  status         TEXT NOT NULL CHECK (status IN ('queued', 'building', 'ready', 'failed')),
  base_digest    TEXT NOT NULL,
  layers         TEXT NOT NULL CHECK (json_valid(layers)),
  document       TEXT NOT NULL CHECK (json_valid(document)),
  updated_at     INTEGER NOT NULL
, log BLOB) STRICT;
CREATE TABLE environments (
  id           TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
  workspace_id TEXT NOT NULL REFERENCES workspaces (id),
  name         TEXT NOT NULL CHECK (name <> ''),
  document     TEXT NOT NULL CHECK (json_valid(document)),
  created_at   INTEGER NOT NULL,
  updated_at   INTEGER NOT NULL,
  archived_at  INTEGER
) STRICT;
CREATE INDEX environments_list ON environments (workspace_id, created_at, id);
CREATE INDEX environments_list_live ON environments (workspace_id, created_at, id) WHERE archived_at IS NULL;
CREATE UNIQUE INDEX environments_name ON environments (workspace_id, name) WHERE archived_at IS NULL;
CREATE TABLE events (
  session_id   TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  seq          INTEGER NOT NULL CHECK (seq >= 1),
  id           TEXT NOT NULL UNIQUE CHECK (id <> ''),
  type         TEXT NOT NULL CHECK (type <> ''),
  place        INTEGER NOT NULL CHECK (place >= 0),
  fields       TEXT NOT NULL CHECK (json_valid(fields)),
  private      TEXT CHECK (json_valid(private)),
  created_at   INTEGER NOT NULL,
  processed_at INTEGER NOT NULL,
  PRIMARY KEY (session_id, seq)
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
CREATE TABLE migrations (
  name       TEXT PRIMARY KEY NOT NULL,
  applied_at INTEGER NOT NULL
) STRICT;
CREATE TABLE queued_events (
  place      INTEGER PRIMARY KEY AUTOINCREMENT,
  session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  id         TEXT NOT NULL UNIQUE CHECK (id <> ''),
  type       TEXT NOT NULL CHECK (type <> ''),
  fields     TEXT NOT NULL CHECK (json_valid(fields)),
  created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX queued_events_session ON queued_events (session_id, place);
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
CREATE INDEX sessions_agent ON sessions (workspace_id, agent_id, created_at, id);
CREATE INDEX sessions_environment ON sessions (environment_id, archived_at);
CREATE INDEX sessions_list ON sessions (workspace_id, created_at, id);
CREATE INDEX sessions_list_live ON sessions (workspace_id, created_at, id) WHERE archived_at IS NULL;
CREATE INDEX sessions_live ON sessions (id) WHERE archived_at IS NULL;
CREATE TABLE sqlite_sequence(name,seq);
CREATE TABLE workspaces (
  id         TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
  name       TEXT NOT NULL UNIQUE CHECK (name <> ''),
  created_at INTEGER NOT NULL
, layer_epoch INTEGER NOT NULL DEFAULT 0 CHECK (layer_epoch >= 0), archived_at INTEGER, max_sessions INTEGER NOT NULL DEFAULT 0 CHECK (max_sessions >= 0)) STRICT;
