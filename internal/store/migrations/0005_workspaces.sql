-- When a workspace was archived: from then on its keys open nothing. Null: it was not.
ALTER TABLE workspaces ADD COLUMN archived_at INTEGER;
-- How many sessions that are not archived a workspace may have. 0: as many as the server admits.
ALTER TABLE workspaces ADD COLUMN max_sessions INTEGER NOT NULL DEFAULT 0 CHECK (max_sessions >= 0);
