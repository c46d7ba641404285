-- The epoch of a workspace's package layers: part of their keys, so that after
-- it was raised nothing that was installed before is used for new sandboxes. 0
-- leaves the keys as they were.
ALTER TABLE workspaces ADD COLUMN layer_epoch INTEGER NOT NULL DEFAULT 0 CHECK (layer_epoch >= 0);
