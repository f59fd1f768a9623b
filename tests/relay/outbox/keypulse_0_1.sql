-- The file that keypulse 0.1 made.
CREATE TABLE incidents (
    id TEXT NOT NULL, episode INTEGER NOT NULL, open INTEGER NOT NULL, latest_event INTEGER NOT NULL, PRIMARY KEY (id)
);
CREATE TABLE events (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, incident_id TEXT NOT NULL,
    receiver TEXT NOT NULL, alertname TEXT NOT NULL, status TEXT NOT NULL, fingerprint TEXT NOT NULL,
    accepted_at FLOAT NOT NULL, event BLOB NOT NULL, body BLOB NOT NULL, UNIQUE (id)
);
CREATE TABLE deliveries (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, event_seq INTEGER NOT NULL,
    incident_id TEXT NOT NULL, episode INTEGER NOT NULL, channel TEXT NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL, reason TEXT, accepted_at FLOAT NOT NULL, due_at FLOAT NOT NULL, lease TEXT,
    finished_at FLOAT, receipt TEXT, UNIQUE (id), FOREIGN KEY(event_seq) REFERENCES events (seq)
);
CREATE TABLE attempts (
    delivery_seq INTEGER NOT NULL, number INTEGER NOT NULL, started_at FLOAT NOT NULL, seconds FLOAT NOT NULL,
    reason TEXT NOT NULL, detail TEXT NOT NULL, PRIMARY KEY (delivery_seq, number),
    FOREIGN KEY(delivery_seq) REFERENCES deliveries (seq)
) WITHOUT ROWID;
CREATE TABLE quarantine (
    seq INTEGER NOT NULL, received_at FLOAT NOT NULL, source TEXT NOT NULL, code INTEGER NOT NULL,
    reason TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (seq)
);
CREATE INDEX deliveries_to_claim ON deliveries (channel, seq) WHERE finished_at IS NULL;
CREATE INDEX deliveries_in_order ON deliveries (channel, incident_id, seq) WHERE finished_at IS NULL;
CREATE INDEX deliveries_of_event ON deliveries (event_seq);
CREATE INDEX deliveries_of_episode ON deliveries (incident_id, episode, channel);
CREATE INDEX deliveries_counted ON deliveries (channel, state, accepted_at)
    WHERE state IN ('queued', 'sending', 'retrying', 'dead');
PRAGMA user_version = 1;
