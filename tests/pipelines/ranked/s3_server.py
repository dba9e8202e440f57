"""A bucket server on loopback that speaks the S3 protocol, and fails as a file tells it: `s3_server.py RULES.json`.

A process of its own: the library that calls it holds Python's lock while it waits. Prints its port. A rule is
`{"method", "contains", "status", "times", "after"}`: the next `times` requests of that method whose path contains that
are answered with `status`, before or after they are done.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def main(rules: Path) -> None:
    app = DomainDispatcherApplication(create_backend_app)
    used: Counter[str] = Counter()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        for rule in json.loads(rules.read_text()):
            name = json.dumps(rule)
            matches = environ["REQUEST_METHOD"] == rule["method"] and rule["contains"] in environ["PATH_INFO"]
            if matches and used[name] < rule["times"]:
                used[name] += 1
                if rule["after"]:
                    list(app(environ, lambda *_: None))
                else:
                    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(f"{rule['status']} as told", [("Content-Length", "0")])
                return [b""]
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
