"""A process that does one thing when it is told to: a driver, or an engine beside it, both measured from outside.

Enters: a program of this folder and its settings. Leaves: its answers to the words it is sent, JSON both ways, on
lines of its own; whatever else it prints is shown. What a process costs is then its own, and no benchmark shares a GIL
with what it measures.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Child", "serve_words"]

_MARK = "\x1e"
"""Begins an answer."""


class Child:
    """A running program."""

    def __init__(self, program: str, settings: Mapping[str, Any], env: Mapping[str, str] | None = None) -> None:
        path = Path(__file__).with_name(f"{program}.py")
        self.name = program
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(path), json.dumps(settings)],
            env=None if env is None else dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, word: str) -> None:
        """Tell it to do something; `receive` waits for the answer."""
        assert self._process.stdin is not None  # noqa: S101 - it was asked for above
        print(word, file=self._process.stdin, flush=True)

    def receive(self) -> Any:
        """Its answer.

        Raises:
            SystemExit: it ended instead.
        """
        assert self._process.stdout is not None  # noqa: S101
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return json.loads(line[1:])
            print(f"  {self.name}: {line.rstrip()}", flush=True)
        raise SystemExit(f"{self.name} ended with status {self._process.wait()}")

    def ask(self, word: str) -> Any:
        """Both."""
        self.send(word)
        return self.receive()

    def close(self) -> None:
        """End it; the end of its input is the sign."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve_words(words: Mapping[str, Callable[[], Any]]) -> None:
    """The other side: answer every word of the standard input with what its function returns."""
    for line in sys.stdin:
        print(_MARK + json.dumps(words[line.strip()]()), flush=True)
