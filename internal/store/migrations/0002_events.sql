-- The log of a session: append-only, ordered by seq, without gaps. Fields are
-- what clients see of an event beside its head; private is the agent loop's.
-- place is where the event stood in the queue; 0 when it never did.
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

-- Input that the agent loop has not taken yet, in the order of place. A place is
-- never used again, so that a list of events has something to go on from.
CREATE TABLE queued_events (
  place      INTEGER PRIMARY KEY AUTOINCREMENT,
  session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  id         TEXT NOT NULL UNIQUE CHECK (id <> ''),
  type       TEXT NOT NULL CHECK (type <> ''),
  fields     TEXT NOT NULL CHECK (json_valid(fields)),
  created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX queued_events_session ON queued_events (session_id, place);
