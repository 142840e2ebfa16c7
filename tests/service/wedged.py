"""A worker that a request can wedge, for tests of who watches it."""

from __future__ import annotations

import time
from typing import Any

from service.worker_process import serve_worker


def serve_wedged(*given: Any) -> None:
    """As `serve_worker`, with two more routes."""
    import service.app  # only now: its figures are where a variable of the parent says

    made = service.app.create_app

    def create_app(*args: Any, **options: Any) -> Any:
        app = made(*args, **options)

        @app.get("/wedge")
        async def wedge(seconds: float = 3600.0) -> None:
            """Hold the event loop, for good if not told otherwise."""
            time.sleep(seconds)  # noqa: ASYNC251 - that is the fault

        @app.get("/busy")
        def busy(seconds: float) -> None:
            """Compute in a thread, as Python does: no other thread gets much."""
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                sum(range(1000))

        return app

    service.app.create_app = create_app
    serve_worker(*given)
