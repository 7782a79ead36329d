-- Gangs: several workers compute one shard together. The leases of a gang share its name and end together.
ALTER TABLE leases ADD COLUMN gang TEXT;
ALTER TABLE shards ADD COLUMN ranks INTEGER NOT NULL DEFAULT 1;
