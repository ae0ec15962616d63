"""The server of the live page: on this machine alone, read-only without the token that its address ends in."""

import asyncio
import errno
import hmac
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from pydantic import ValidationError

from slime_ray.config.experiment_file import parse_override
from slime_ray.config.strict import Strict
from slime_ray.errors import InputError, SlimeRayError
from slime_ray.live.view import LiveRun
from slime_ray.runs import control
from slime_ray.runs.instructions import Instructions, values_of
from slime_ray.runs.redaction import redact_sentence
from slime_ray.runs.store import RunStore, is_url

LOCAL = "127.0.0.1"
HOSTS = (LOCAL, "localhost")
LOOK_SECONDS, STORE_SECONDS = 2.0, 20.0
"""How often a folder and an object store are looked at."""
VIEWER_SECONDS = 30.0
"""For so long after its last question a page is believed to be open: for nobody the report is not built."""
QUIET_SECONDS, LINGER_SECONDS = 6.0, 60.0
"""Pages ask every two seconds until they have heard of the end: so long a silence says that all have."""
MOST_BYTES = 64 << 10
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""What a browser may do with the page around the report."""
REPORT_POLICY = "connect-src 'none'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
"""The same of the report, whose own policy allows its own scripts alone."""
FILES = {"live.js": "text/javascript", "live.css": "text/css", "report.css": "text/css"}


def watch(address: str, *, port: int, say: Callable[[str], None]) -> str:
    """Serve the live page of a run until its sweep has ended, then leave the report.

    Args:
        address: Folder of the run, or its address.
        port: Of 127.0.0.1; 0 takes a free one.
        say: Prints a line.

    Returns:
        A sentence that says how it ended.

    Raises:
        InputError: There is no such run, or the port is taken.
    """
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port {port}: give a number from 0 to 65535.")
    run = LiveRun(address)
    run.look(build=False)
    if not run.ended:
        # Training has the processor first.
        with suppress(OSError):
            os.nice(10)
        try:
            asyncio.run(_serve(run, port, say))
        except KeyboardInterrupt:
            return f"Closed. The sweep goes on; `slime-ray watch {run.display_address}` opens the page again."
    return _end(run)


def _end(run: LiveRun) -> str:
    """How the run stands after its sweep."""
    name, state, report = (run.snapshot[key] for key in ("name", "state", "report"))
    where = f"Its report: {report}" if report else f"It has no report: {run.snapshot['problem'] or 'no trial finished'}"
    more = f"\nIt goes on with `slime-ray extend {run.display_address}`." if state == "interrupted" else ""
    return f"{name}: {state}; no sweep is at work on it. {where}{more}"


async def _serve(run: LiveRun, port: int, say: Callable[[str], None]) -> None:
    token = secrets.token_urlsafe(24)
    app = build_app(run, token)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, LOCAL, port)
        try:
            await site.start()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "taken" if error.errno == errno.EADDRINUSE else "not for this user"
            way_out = f"Give another one, such as --port {_free_port()}."
            raise InputError(f"Port {port} of {LOCAL} is {why}. {way_out}") from None
        place = f"http://{LOCAL}:{runner.addresses[0][1]}/"
        say(f"{run.snapshot['name']} is at {place}#{token}")
        say(f"Who has that address can stop and clone trials; {place} alone is read-only. Ctrl-C closes it.")
        await _follow(run, app)
    finally:
        await runner.cleanup()


async def _follow(run: LiveRun, app: web.Application) -> None:
    """Look at the run until its sweep has ended and open pages have been told so."""
    seconds = STORE_SECONDS if is_url(run.address) else LOOK_SECONDS
    hurry: asyncio.Event = app[HURRY]
    while not run.ended:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(hurry.wait(), seconds)
        hurry.clear()
        try:
            await asyncio.to_thread(run.look, build=_has_viewer(app))
            app[TROUBLE].clear()
        except SlimeRayError as error:
            # A store may answer again; what is shown says how old it is.
            app[TROUBLE][:] = [redact_sentence(str(error))]
    ended = time.monotonic()
    while time.monotonic() < min(app[LAST_REQUEST][0] + QUIET_SECONDS, ended + LINGER_SECONDS):
        await asyncio.sleep(LOOK_SECONDS / 10)


def _has_viewer(app: web.Application) -> bool:
    return time.monotonic() - app[LAST_REQUEST][0] < VIEWER_SECONDS


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOCAL, 0))
        return int(listener.getsockname()[1])


HURRY = web.AppKey("hurry", asyncio.Event)
"""Something was asked of the run: look at it at once."""
LAST_REQUEST = web.AppKey("seen", list[float])
TROUBLE = web.AppKey("trouble", list[str])


def build_app(run: LiveRun, token: str) -> web.Application:
    """The pages and buttons of a run, for aiohttp. token: what a button has to know."""
    app = web.Application(middlewares=[_guard_requests(token)], client_max_size=MOST_BYTES)
    app[HURRY], app[LAST_REQUEST], app[TROUBLE] = asyncio.Event(), [float("-inf")], []

    async def state(request: web.Request) -> web.Response:
        if not _has_viewer(app):
            app[HURRY].set()
        app[LAST_REQUEST][0] = time.monotonic()
        trouble = app[TROUBLE][0] if app[TROUBLE] else None
        return web.json_response(run.snapshot | {"trouble": trouble})

    async def report(request: web.Request) -> web.Response:
        if run.page is None:
            raise web.HTTPNotFound(text="No trial has finished yet.")
        app[LAST_REQUEST][0] = time.monotonic()
        return _answer(run.page, "text/html", REPORT_POLICY)

    async def knobs(request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(run.knobs))

    async def empty(request: web.Request) -> web.Response:
        return web.Response(status=204)

    app.router.add_get("/", _static("live.html", "text/html"))
    for name, kind in FILES.items():
        app.router.add_get(f"/{name}", _static(name, kind))
    for path, handler in {"/state": state, "/report": report, "/knobs": knobs, "/favicon.ico": empty}.items():
        app.router.add_get(path, handler)
    for name, button in BUTTONS.items():
        app.router.add_post(f"/{name}", _button(run, app, button))
    return app


def _static(name: str, kind: str) -> Handler:
    folder = files("slime_ray.analysis") / "web" if name == "report.css" else files("slime_ray.live")
    text = (folder / name).read_text(encoding="utf-8")

    async def handler(request: web.Request) -> web.Response:
        return _answer(text, kind, POLICY)

    return handler


def _answer(text: str, kind: str, policy: str) -> web.Response:
    return web.Response(text=text, content_type=kind, headers={"Content-Security-Policy": policy})


def _guard_requests(token: str) -> Middleware:
    """Answer those alone who came by this machine's name, and buttons alone from this very page with the token."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        # A foreign name that leads to this machine would make its page one of the same origin.
        if _name_of(request.host) not in HOSTS:
            raise web.HTTPForbidden(text=f"Open it as http://{LOCAL}, with the port that the command printed.")
        if request.method == "POST":
            credentials = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(credentials.encode(errors="surrogateescape"), token.encode()):
                raise web.HTTPForbidden(text="This page is read-only: open the address that the command printed.")
            if request.headers.get("Origin") != f"http://{request.host}" or request.content_type != "application/json":
                raise web.HTTPForbidden(text="Only the page itself may ask for that.")
        response = await handler(request)
        response.headers.update(HEADERS)
        return response

    return guard


def _name_of(host: str) -> str | None:
    """The name in a Host header without its port; None where it is no host."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Stop(Strict):
    """The button that ends a running trial."""

    trial: str

    def act(self, run: Path, run_store: RunStore) -> str:
        """Do it and give the sentence that says so. Raises InputError."""
        if self.trial in Instructions.read(run).stops:
            raise InputError(f"{self.trial} was asked to stop already: it ends at its next report.")
        return control.stop_trial(run, run_store, self.trial)


class Clone(Strict):
    """The button that runs a trial again. changes: as `--set` takes them."""

    trial: str
    changes: list[str]

    def act(self, run: Path, run_store: RunStore) -> str:
        """Do it and give the sentence that says so. Raises InputError."""
        changes = dict(map(parse_override, self.changes))
        values = values_of(run, self.trial) | changes
        for clone in Instructions.read(run).clones:
            if clone.of == self.trial and clone.values == values:
                raise InputError(f"{clone.trial_id} has these knobs already.")
        return f"{control.clone_trial(run, run_store, self.trial, changes).trial_id} runs next."


class Extend(Strict):
    """The button that gives the search more trials. budget: those that its reader saw."""

    trials: int
    budget: int

    def act(self, run: Path, run_store: RunStore) -> str:
        """Do it and give the sentence that says so. Raises InputError."""
        control.extend_search(run, run_store, self.budget, self.trials)
        return f"The search will go on for {self.trials} trials more."


BUTTONS: dict[str, type[Stop | Clone | Extend]] = {"stop": Stop, "clone": Clone, "extend": Extend}


def _button(run: LiveRun, app: web.Application, button: type[Stop | Clone | Extend]) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        try:
            action = button.model_validate_json(await request.read())
        except ValidationError:
            return web.json_response({"done": False, "said": "That is no request of this page."}, status=400)
        try:
            sentence = await asyncio.to_thread(run.act, action.act)
        except SlimeRayError as error:
            # Not a status of 4xx, which a browser takes for an error of the page.
            return web.json_response({"done": False, "said": redact_sentence(str(error))})
        app[HURRY].set()
        return web.json_response({"done": True, "said": sentence})

    return handler
