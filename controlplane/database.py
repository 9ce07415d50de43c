"""A state file: SQLite in WAL mode, no server to start. Every service of the control plane keeps its state in one.

One thread writes. Whoever wants something written submits a job; jobs that wait are done in one transaction, and each
is answered when that is on disk (synchronous=FULL), so that what was answered outlives a crash, a kill and a power
cut. Reads see what was committed last. Knows nothing of what is in the tables: see `store.py`.
"""

import contextlib
import fcntl
import os
import sqlite3
import threading
from concurrent.futures import Future
from queue import Empty, SimpleQueue

APPLICATION_ID = 0x716F6574  # "qoet", in the file's header: it is ours
GROUP_jobs = 256  # in one transaction at most
WAITING_rows = 200_000  # of jobs that wait, all together; more are refused
BUSY_seconds = 5.0  # for another process that reads, such as sqlite3(1)
OF_THE_JOB = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError)


class StateError(Exception):
    """The state file cannot be used; str() is one sentence."""


class Busy(Exception):
    """More waits to be written than may: try again later."""


class Database:
    """The state file at `path`, made if it is not there. migrations: SQL scripts, number n takes version n - 1 to n.

    StateError: it is no state file, of a newer program, in use by another one, or cannot be opened.
    """

    def __init__(self, path, migrations):
        self.path = path
        with contextlib.ExitStack() as opened:  # closes what is open if the rest fails
            self.lock = opened.enter_context(_locked(path))
            try:
                self.writing = opened.enter_context(contextlib.closing(_connect(path)))
                _migrate(self.writing, migrations, path)
                self.reading = opened.enter_context(contextlib.closing(_connect(path)))
                self.reading.execute("PRAGMA query_only = 1")
            except sqlite3.Error as error:
                raise StateError(f"{path}: cannot be used as state file ({error})") from error
            self.opened = opened.pop_all()
        self.asking, self.queue = threading.Lock(), SimpleQueue()
        self.counting, self.waiting_rows = threading.Lock(), 0
        self.trouble = None  # why the last transaction failed; None: it did not
        self.thread = threading.Thread(target=self._write, name="qoetap-state", daemon=True)
        self.thread.start()

    def read(self, sql, *values):
        """All rows of a query, as of the last commit. StateError if it cannot be read."""
        try:
            with self.asking:
                return self.reading.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StateError(f"{self.path}: cannot be read ({error})") from error

    def submit(self, job, rows=1):
        """Future of a job: job() is called in the writer's thread and transaction, and may call self.writing.

        What it returns is called in turn, once that is durable; the future gives what this returns. What the job raises
        undoes its own writes only, and comes from the future. StateError from the future: the transaction failed.
        Busy at once: too many rows wait; rows tells how many the job writes, about.
        """
        with self.counting:
            if self.waiting_rows and self.waiting_rows + rows > WAITING_rows:
                raise Busy(f"{self.waiting_rows} rows wait to be written")
            self.waiting_rows += rows
        future = Future()
        self.queue.put((job, rows, future))
        return future

    def close(self):
        """Write what waits, and end."""
        self.queue.put(None)
        self.thread.join()
        self.opened.close()

    # --- in the writer's thread

    def _write(self):
        while (first := self.queue.get()) is not None:
            group, ended = [first], False
            with contextlib.suppress(Empty):
                while len(group) < GROUP_jobs and not ended:
                    one = self.queue.get_nowait()
                    ended = one is None
                    group += [] if ended else [one]
            self._answer(group)
            if ended:
                return

    def _answer(self, group):
        """Do the jobs and answer each."""
        group = [(job, rows, future) for job, rows, future in group if self._begun(rows, future)]
        outcomes = self._commit([job for job, _, _ in group])
        for (_, _, future), outcome in zip(group, outcomes, strict=True):
            try:
                future.set_result(outcome())
            except Exception as error:
                future.set_exception(error)

    def _begun(self, rows, future):
        with self.counting:
            self.waiting_rows -= rows
        return future.set_running_or_notify_cancel()

    def _commit(self, jobs):
        """Do jobs in one transaction; what each has to be answered with, as a function."""
        try:
            self.writing.execute("BEGIN IMMEDIATE")
            outcomes = [self._one(job) for job in jobs]
            self.writing.execute("COMMIT")
        except sqlite3.Error as error:
            self._undo()
            self.trouble = f"{self.path}: cannot be written ({error})"
            return [_raising(StateError(self.trouble))] * len(jobs)
        self.trouble = None
        return outcomes

    def _one(self, job):
        self.writing.execute("SAVEPOINT job")
        try:
            outcome = job()
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not isinstance(error, OF_THE_JOB):
                raise  # of the file: a full disk, say
            self.writing.execute("ROLLBACK TO job")
            outcome = _raising(error)
        self.writing.execute("RELEASE job")
        return outcome

    def _undo(self):
        with contextlib.suppress(sqlite3.Error):
            if self.writing.in_transaction:  # a full disk ends it by itself
                self.writing.execute("ROLLBACK")


def _raising(error):
    def outcome():
        raise error

    return outcome


def _locked(path):
    """A file that only one process has locked: the state in memory is of one. Not the state file itself, whose own
    locks (POSIX) would be lost when any descriptor of it is closed."""
    try:
        file = open(f"{path}.lock", "ab")  # noqa: SIM115
    except OSError as error:
        raise StateError(f"{path}: cannot be opened ({error.strerror})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StateError(f"{path}: another process has it in use: end that, or name another file") from error
    return file


def _connect(path):
    connection = sqlite3.connect(path, BUSY_seconds, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = 1")
    return connection


def _migrate(connection, migrations, path):
    """Bring the file to the newest version."""
    (version,), (owner,), (tables,) = (
        connection.execute(sql).fetchone()
        for sql in ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_schema")
    )
    if owner != APPLICATION_ID and (tables or version):
        raise StateError(f"{path}: is a database of another program: name another file")
    if version > len(migrations):
        raise StateError(
            f"{path}: has state of version {version}, but this qoetap knows {len(migrations)}: update it, "
            "or name another file"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for number in range(version + 1, len(migrations) + 1):
        connection.executescript(f"BEGIN; {migrations[number - 1]}; PRAGMA user_version = {number}; COMMIT")


def size_bytes(path):
    """Of the state file and its log."""
    return sum(os.path.getsize(name) for name in (path, f"{path}-wal") if os.path.exists(name))
