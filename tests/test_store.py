"""The state file: one writer, groups in a transaction, migrations, what is refused; what fails leaves nothing."""

import sqlite3
import threading

import pytest

from controlplane import database
from controlplane.database import Busy, Database, StateError
from controlplane.store import MIGRATIONS, Store

TABLE = "CREATE TABLE t (x INTEGER PRIMARY KEY)"


@pytest.fixture
def base(tmp_path):
    made = Database(tmp_path / "state", (TABLE,))
    yield made
    made.close()


def adding(base, x, answer="done"):
    """A job that adds x."""

    def job():
        base.writing.execute("INSERT INTO t VALUES (?)", (x,))
        return lambda: answer

    return job


def held(base, count=1):
    """Keep the writer busy: (event that lets it go on, future)."""
    inside, go = threading.Event(), threading.Event()

    def job():
        inside.set()
        go.wait(10)
        return lambda: "held"

    future = base.submit(job, count)
    inside.wait(10)
    return go, future


def test_a_job_is_answered_when_it_is_there(base):
    assert base.submit(adding(base, 1)).result(10) == "done"
    assert base.read("SELECT x FROM t") == [(1,)]


def test_jobs_that_wait_are_one_transaction_and_one_that_fails_undoes_its_own(base):
    go, _ = held(base)
    commits = []
    base.writing.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)

    def failing():
        adding(base, 2)()
        raise ValueError("no")

    futures = [base.submit(job) for job in (adding(base, 1), failing, adding(base, 1), adding(base, 3))]
    go.set()
    assert futures[3].result(10) == "done" and futures[0].result(10) == "done"
    with pytest.raises(ValueError, match="no"):
        futures[1].result(10)
    with pytest.raises(sqlite3.IntegrityError):
        futures[2].result(10)
    assert base.read("SELECT x FROM t") == [(1,), (3,)]
    assert len(commits) == 2  # of the one that held it, and of these


def test_an_answer_that_fails_is_its_own(base):
    def job():
        return lambda: 1 / 0

    with pytest.raises(ZeroDivisionError):
        base.submit(job).result(10)
    assert base.submit(adding(base, 1)).result(10) == "done"


def test_a_transaction_that_fails_is_told_and_leaves_nothing(base):
    """A full disk, here by a limit of pages; once there is room it goes on."""
    (pages,) = base.writing.execute("PRAGMA page_count").fetchone()
    base.writing.execute(f"PRAGMA max_page_count = {pages}")

    def large():
        base.writing.execute("CREATE TABLE big AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c "
                             "WHERE n < 5000) SELECT n FROM c")  # fmt: skip
        return lambda: None

    go, _ = held(base)
    futures = [base.submit(adding(base, 1)), base.submit(large)]
    go.set()
    for future in futures:
        with pytest.raises(StateError, match="cannot be written"):
            future.result(10)
    assert "full" in base.trouble and base.read("SELECT x FROM t") == []
    base.writing.execute("PRAGMA max_page_count = 1000000")
    assert base.submit(adding(base, 1)).result(10) == "done" and base.trouble is None


def test_too_much_that_waits_is_refused(base, monkeypatch):
    monkeypatch.setattr(database, "WAITING_rows", 10)
    go, _ = held(base)
    last = base.submit(adding(base, 1), 20)  # one is always taken
    with pytest.raises(Busy):
        base.submit(adding(base, 2))
    go.set()
    last.result(10)
    assert base.submit(adding(base, 3)).result(10) == "done"


def test_a_job_that_nobody_waits_for_is_left_out(base):
    go, _ = held(base)
    dropped, last = base.submit(adding(base, 1)), base.submit(adding(base, 2))
    assert dropped.cancel()
    go.set()
    last.result(10)
    assert base.read("SELECT x FROM t") == [(2,)] and base.waiting_rows == 0


def test_closing_writes_what_waits(tmp_path):
    base = Database(tmp_path / "state", (TABLE,))
    go, _ = held(base)
    futures = [base.submit(adding(base, x)) for x in range(5)]
    go.set()
    base.close()
    assert all(future.done() for future in futures)
    again = Database(tmp_path / "state", (TABLE,))
    assert len(again.read("SELECT x FROM t")) == 5
    again.close()


def test_migrations_are_done_once_and_in_order(tmp_path):
    path = tmp_path / "state"
    Database(path, (TABLE,)).close()
    more = (TABLE, "ALTER TABLE t ADD COLUMN y INTEGER; INSERT INTO t VALUES (1, 2)")
    for _ in range(2):
        base = Database(path, more)
        assert base.read("SELECT x, y FROM t") == [(1, 2)] and base.read("PRAGMA user_version") == [(2,)]
        base.close()


def test_a_migration_that_fails_changes_nothing(tmp_path):
    path = tmp_path / "state"
    Database(path, (TABLE,)).close()
    with pytest.raises(StateError, match="cannot be used"):
        Database(path, (TABLE, "INSERT INTO t VALUES (1); INSERT INTO nowhere VALUES (1)"))
    base = Database(path, (TABLE,))
    assert base.read("SELECT x FROM t") == [] and base.read("PRAGMA user_version") == [(1,)]
    base.close()


def foreign(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (x)")
    connection.close()


def newer(path):
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()


@pytest.mark.parametrize(
    "prepare, sentence",
    [
        (newer, "update it, or name another file"),
        (foreign, "is a database of another program: name another file"),
        (lambda path: path.write_bytes(b"no database at all" * 100), "cannot be used as state file"),
        (lambda path: path.mkdir(), "cannot be used as state file"),
    ],
)
def test_what_is_no_state_file_is_refused(tmp_path, prepare, sentence):
    """In one sentence that names it, and it stays as it was."""
    path = tmp_path / "state"
    prepare(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StateError, match=sentence) as told:
        Store(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)
    assert before is None or path.read_bytes() == before


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StateError, match="cannot be opened"):
        Store(tmp_path / "nowhere" / "state")


def test_one_process_has_it(tmp_path):
    store = Store(tmp_path / "state")
    with pytest.raises(StateError, match="another process has it in use"):
        Store(tmp_path / "state")
    store.close()
    Store(tmp_path / "state").close()


def test_what_is_committed_is_safe(tmp_path):
    store = Store(tmp_path / "state")
    assert store.read("PRAGMA journal_mode") == [("wal",)]
    assert store.writing.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()


def test_versions_of_a_model(tmp_path):
    store = Store(tmp_path / "state")

    def set_model(document):
        return store.submit(lambda: (lambda version: lambda: version)(store.add_model("p", document, 5))).result(10)

    assert [set_model({"b": 1}), set_model({"b": 2}), set_model({"b": 2}), set_model({"b": 1})] == [1, 2, 2, 3]
    assert store.models() == {"p": (3, {"b": 1})} and store.model("p", 2) == {"b": 2}
    with pytest.raises(KeyError):
        store.model("p", 4)
    store.close()
