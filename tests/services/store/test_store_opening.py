"""Many open the same SQLite file at once: gateway, drivers and CLI start together.

Why: the switch to WAL is refused with "database is locked" at once, whatever the busy timeout, while somebody else
makes it or closes the file as the last one. A gateway that meets that moment must not fail to start.
"""

import threading
from pathlib import Path

from services.store.engine import make_engine


def test_opening_and_closing_from_many_threads_never_finds_the_file_locked(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def open_and_close(url: str, together: threading.Barrier) -> None:
        engine = make_engine(url)
        together.wait()
        try:
            for _ in range(5):
                with engine.connect() as connection:
                    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS t (a)")
                engine.dispose()
        except Exception as error:  # noqa: BLE001 - collected for the main thread
            failures.append(error)

    for number in range(40):  # before the fix about one in ten of these rounds failed
        together = threading.Barrier(6)
        url = f"sqlite:///{tmp_path}/{number}.db"
        threads = [threading.Thread(target=open_and_close, args=(url, together)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
