-- What the tools of an environment's newest build printed, compressed; null
-- while it runs.
ALTER TABLE builds ADD COLUMN log BLOB;
DROP INDEX builds_unfinished; -- they are found by what their environments say, too
