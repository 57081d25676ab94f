"""The flow on a source that is fetched: within the task `ingest`, and once."""

import logging
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.segment import segment
from masklet.errors import UserError


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_the_flow_fetches_its_source(
    job_fields: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clip = Path(job_fields["file"])
    monkeypatch.setenv("MASKLET_SOURCE_CACHE", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(clip.parent)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/{clip.name}?sig=SECRET"
        state = segment({**job_fields, "file": address}, tmp_path / "out", return_state=True)
        with pytest.raises(UserError, match="leads to a private or reserved network address"):
            state.result()
        assert not (tmp_path / "out").exists()

        monkeypatch.setenv("MASKLET_ALLOW_ADDRESSES", "127.0.0.1")
        with caplog.at_level(logging.INFO):
            segment({**job_fields, "file": address}, tmp_path / "out")
            segment({**job_fields, "file": str(clip)}, tmp_path / "out")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert f"{clip.name}: 20 frames of 160x96" in caplog.text
    assert any("propagate 1" in line and "reused" in line for line in caplog.messages)
    assert "SECRET" not in caplog.text
