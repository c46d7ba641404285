-- When a workspace was archived: from then on its keys open nothing. Null: it was not.
ALTER TABLE workspaces ADD COLUMN archived_at INTEGER;
