"""What the load service keeps, as tables and queries. Decides nothing: what is late or absurd is known before.

Functions that write are for jobs (`Database.submit`); the others may be called from any thread.
"""

import json

from controlplane.database import Database

MIGRATIONS = (  # never changed once released: another one is added
    """
    CREATE TABLE paths (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        agent_id TEXT NOT NULL, master_clock TEXT NOT NULL, domain INTEGER NOT NULL,
        accepted INTEGER NOT NULL DEFAULT 0, late INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE samples (  -- slave_clock: or the id that POST /v1/delay was given; then request_id is -1
        path INTEGER NOT NULL REFERENCES paths, ts_ns INTEGER NOT NULL,
        request_id INTEGER NOT NULL, slave_clock TEXT NOT NULL, delay_ns INTEGER NOT NULL,
        PRIMARY KEY (path, ts_ns, request_id, slave_clock)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE models (
        path TEXT NOT NULL, version INTEGER NOT NULL, set_ns INTEGER NOT NULL, document TEXT NOT NULL,
        PRIMARY KEY (path, version)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE page_loads (
        path TEXT NOT NULL, content TEXT NOT NULL, ts_ns INTEGER NOT NULL,
        seconds REAL NOT NULL, load REAL NOT NULL, bytes INTEGER,
        PRIMARY KEY (path, content, ts_ns)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX page_loads_latest ON page_loads (content, ts_ns);
    CREATE TABLE choices (  -- document: choice.State, the data centres in force
        aggregation TEXT NOT NULL, content TEXT NOT NULL, ts_ns INTEGER NOT NULL, document TEXT NOT NULL,
        PRIMARY KEY (aggregation, content)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    """,
)

SAMPLE = "ts_ns, request_id, slave_clock, delay_ns"
IDENTITY = "path, ts_ns, request_id, slave_clock"


class Store(Database):
    """The load service's state file. StateError if it cannot be used."""

    def __init__(self, path):
        super().__init__(path, MIGRATIONS)

    # --- paths and samples

    def paths(self):
        """[(name, agent_id, master_clock, domain, accepted, late)]."""
        return self.read("SELECT name, agent_id, master_clock, domain, accepted, late FROM paths ORDER BY name")

    def path_id(self, name, agent_id, master_clock, domain):
        """Number of a path, which is added if it is not there."""
        found = self.writing.execute("SELECT id FROM paths WHERE name = ?", (name,)).fetchone()
        if found:
            return found[0]
        sql = "INSERT INTO paths (name, agent_id, master_clock, domain) VALUES (?, ?, ?, ?)"
        return self.writing.execute(sql, (name, agent_id, master_clock, domain)).lastrowid

    def names_written(self):
        """Names of the paths, with those that the transaction has added so far."""
        return {name for (name,) in self.writing.execute("SELECT name FROM paths")}

    def add_samples(self, path, samples):
        """Add (ts_ns, request_id, slave_clock, delay_ns) to the path of this number; how many were not there yet."""
        before = self.writing.total_changes
        rows = ((path, *sample) for sample in samples)
        self.writing.executemany("INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?)", rows)
        return self.writing.total_changes - before

    def count_path(self, path, accepted, late):
        sql = "UPDATE paths SET accepted = accepted + ?, late = late + ? WHERE id = ?"
        self.writing.execute(sql, (accepted, late, path))

    def last_samples(self, name, count, horizon_ns):
        """The last ones of a path from `horizon_ns` on, in event-time order."""
        sql = f"""SELECT {SAMPLE} FROM samples WHERE path = (SELECT id FROM paths WHERE name = ?) AND ts_ns >= ?
                  ORDER BY ts_ns DESC, request_id DESC, slave_clock DESC LIMIT ?"""
        return self.read(sql, name, horizon_ns, count)[::-1]

    def samples(self, name, since_ns, count):
        """[(ts_ns, delay_ns)] of a path since then, in event-time order, the last `count` of them."""
        return [(ts_ns, delay_ns) for ts_ns, _, _, delay_ns in self.last_samples(name, count, since_ns)]

    def delete_samples(self, name, horizon_ns, count):
        """Delete at most `count` of a path from before `horizon_ns`; how many there were."""
        sql = f"""DELETE FROM samples WHERE ({IDENTITY}) IN (SELECT {IDENTITY} FROM samples
                  WHERE path = (SELECT id FROM paths WHERE name = ?) AND ts_ns < ? LIMIT ?)"""
        return self.writing.execute(sql, (name, horizon_ns, count)).rowcount

    def sample_count(self):
        return self.read("SELECT count(*) FROM samples")[0][0]

    # --- models

    def add_model(self, path, document, set_ns):
        """Version of a model document: the latest one's if that is the same, else one more."""
        sql = "SELECT version, document FROM models WHERE path = ? ORDER BY version DESC LIMIT 1"
        version, latest = self.writing.execute(sql, (path,)).fetchone() or (0, None)
        text = json.dumps(document, sort_keys=True)
        if text == latest:
            return version
        self.writing.execute("INSERT INTO models VALUES (?, ?, ?, ?)", (path, version + 1, set_ns, text))
        return version + 1

    def models(self):
        """{path: (version, document)} of the latest ones."""
        sql = "SELECT path, max(version), document FROM models GROUP BY path"
        return {path: (version, json.loads(text)) for path, version, text in self.read(sql)}

    def model(self, path, version):
        """A version's document. KeyError if there is none."""
        found = self.read("SELECT document FROM models WHERE path = ? AND version = ?", path, version)
        if not found:
            raise KeyError(version)
        return json.loads(found[0][0])

    # --- page loads and choices

    def add_page_loads(self, rows):
        """Add (path, content, ts_ns, seconds, load, bytes); how many were not there yet."""
        before = self.writing.total_changes
        self.writing.executemany("INSERT OR IGNORE INTO page_loads VALUES (?, ?, ?, ?, ?, ?)", rows)
        return self.writing.total_changes - before

    def page_loads(self, content, count):
        """[(load, seconds)] of a content, the latest `count`, latest first."""
        sql = "SELECT load, seconds FROM page_loads WHERE content = ? ORDER BY ts_ns DESC LIMIT ?"
        return self.read(sql, content, count)

    def trim_page_loads(self, content, count):
        """Keep the latest `count` of a content, and those of the same time."""
        sql = """DELETE FROM page_loads WHERE content = ?1 AND ts_ns <
                 (SELECT ts_ns FROM page_loads WHERE content = ?1 ORDER BY ts_ns DESC LIMIT 1 OFFSET ?2 - 1)"""
        self.writing.execute(sql, (content, count))

    def choose(self, aggregation, content, ts_ns, document):
        """Note what is in force from now on."""
        text = json.dumps(document, sort_keys=True)
        self.writing.execute("INSERT OR REPLACE INTO choices VALUES (?, ?, ?, ?)", (aggregation, content, ts_ns, text))

    def choices(self):
        """{(aggregation, content): document}."""
        rows = self.read("SELECT aggregation, content, document FROM choices")
        return {(aggregation, content): json.loads(text) for aggregation, content, text in rows}

    # --- numbers

    def count(self, counts):
        """Add {name: count} to the numbers."""
        sql = "INSERT INTO numbers VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
        self.writing.executemany(sql, [pair for pair in counts.items() if pair[1]])

    def set_number(self, name, value):
        self.writing.execute("INSERT OR REPLACE INTO numbers VALUES (?, ?)", (name, value))

    def numbers(self):
        """{name: value}."""
        return dict(self.read("SELECT name, value FROM numbers"))
