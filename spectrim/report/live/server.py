"""The page over HTTP, for one user on the same machine.

Every request needs the session's token, which only the printed address contains, and a Host
header that names this server: a foreign site that points its own name at this address
(DNS rebinding), or sends requests from another tab, gets neither page nor plan.
"""

from __future__ import annotations

import hmac
import json
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from spectrim.errors import InputError, SpectrimError
from spectrim.report.live.elastic import ElasticSession
from spectrim.report.live.session import Session
from spectrim.report.live.writer import Writer
from spectrim.report.page import report_page

SECONDS_OF_SILENCE = 10
"""After which a client that has not said what it wants is left."""
TOKEN_HEADER = "X-Spectrim-Token"
_LARGEST_BODY = 10_000
_NO_STORE = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """The token, and the host that the server listens on."""

    token: str
    host: str = "127.0.0.1"

    def names(self, port: int) -> set[str]:
        """Return the Host headers that name this server."""
        local = {"127.0.0.1", "localhost"} if self.host in ("127.0.0.1", "localhost") else set()
        return {f"{name}:{port}" for name in {self.host, *local}}


def make_server(
    session: Session | ElasticSession, access: Access, port: int = 0
) -> ThreadingHTTPServer:
    """Return a bound server that is not serving yet; port 0 chooses a free one."""
    handler = type("Handler", (_Handler,), {"session": session, "access": access})
    return _Server((access.host, port), handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what is ours; a client that leaves or falls silent is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    """A request that gets a status and a reason instead of an answer."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    session: Session | ElasticSession
    access: Access
    server_version = "spectrim"
    sys_version = ""
    timeout = SECONDS_OF_SILENCE

    def do_GET(self) -> None:
        pages = {"/": self._page, "/report": self.session.report}
        answers = {"/plan": self._plan, "/progress": self._progress, "/text": self._text}
        self._answer(pages, answers)

    def do_POST(self) -> None:
        answers = {"/save": self._save, "/start": self._start, "/stop": self._stop}
        self._answer({}, answers | {"/text": self._write})

    def _answer(
        self,
        pages: dict[str, Callable[[], str]],
        answers: dict[str, Callable[[], dict[str, Any]]],
    ) -> None:
        try:
            path = self._url.path
            self._check_sender()
            if path in pages:
                self._send(200, "text/html", pages[path]())
            elif path in answers:
                self._send(200, "application/json", json.dumps(answers[path]()))
            else:
                raise _Refused(404, "there is no such page")
        except _Refused as error:
            self._send_error(error.status, str(error))
        except SpectrimError as error:
            self._send_error(400, str(error))
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # the client gets an answer, the terminal the traceback
            traceback.print_exc()
            self._send_error(500, f"{type(error).__name__}: {error}")

    def _check_sender(self) -> None:
        server: Any = self.server
        names = self.access.names(server.server_port)
        if self.headers.get("Host") not in names:
            raise _Refused(403, "the Host header does not name this server")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{name}" for name in names}:
            raise _Refused(403, "requests from other origins are refused")
        given = self.headers.get(TOKEN_HEADER) or self._query("token")
        if not hmac.compare_digest(given.encode(), self.access.token.encode()):
            raise _Refused(403, "the token is missing or wrong; use the address as printed")

    def _page(self) -> str:
        return report_page(self.session.facts, {"token": self.access.token, **self._settings()})

    def _settings(self) -> dict[str, Any]:
        session, places = self.session, self.session.places
        return {
            "plan": places.plan and str(places.plan),
            "output": places.output and str(places.output),
            "percents": session.percents,
            "action": session.action,
            "prompt": session.prompt,
            "writes": session.writer is not None,
        }

    def _plan(self) -> dict[str, Any]:
        return self.session.answer(_budget(self._query("budget")))

    def _save(self) -> dict[str, Any]:
        return {"path": str(self.session.save(_budget(self._body("budget")["budget"])))}

    def _start(self) -> dict[str, Any]:
        self.session.start(_budget(self._body("budget")["budget"]))
        return self._progress()

    def _stop(self) -> dict[str, Any]:
        self.session.job.stop()
        return self._progress()

    def _text(self) -> dict[str, Any]:
        return asdict(self._writer.state)

    def _write(self) -> dict[str, Any]:
        given = self._body("budget", "prompt")
        budget, prompt = _budget(given["budget"]), str(given["prompt"])
        return asdict(self._writer.start(budget, prompt))

    @property
    def _writer(self) -> Writer:
        if self.session.writer is None:
            raise InputError("only an elastic checkpoint writes text at each of its sizes")
        return self.session.writer

    def _progress(self) -> dict[str, Any]:
        return asdict(self.session.job.state)

    @property
    def _url(self) -> SplitResult:
        try:
            return urlsplit(self.path)
        except ValueError as error:
            raise _Refused(400, f"the address cannot be read: {error}") from None

    def _query(self, name: str) -> str:
        return parse_qs(self._url.query).get(name, [""])[-1]

    def _body(self, *names: str) -> dict[str, Any]:
        """Return the named values of the request's JSON object."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > _LARGEST_BODY:
            raise _Refused(413, f"expected a body of at most {_LARGEST_BODY} bytes")
        try:
            given = json.loads(self.rfile.read(int(length)))
            return {name: given[name] for name in names}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _Refused(400, f"expected an object with {' and '.join(names)}") from error

    def _send_error(self, status: int, reason: str) -> None:
        self._send(status, "application/json", json.dumps({"error": reason}))

    def _send(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in _NO_STORE.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the address in a log would contain the token."""


def _budget(given: Any) -> float:
    try:
        return float(given)
    except (TypeError, ValueError):
        raise _Refused(400, f"budget is {given!r:.40}, expected a number") from None
