"""A JupyterLab server of its own and a headless Chromium, for tests; nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import nbformat
import psutil
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PATIENCE_MS = 60_000
QUIET = {"notification": {"fetchNews": "false", "checkForUpdates": False}}


@contextmanager
def open_browser(path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def watch(page: Page) -> list[str]:
    """Return a list that fills with the errors of a page."""
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors


def keep(page: Page, name: str) -> None:
    """Keep a screenshot where ``RLBOOK_SCREENSHOT_DIR`` says, if it does."""
    if folder := os.environ.get("RLBOOK_SCREENSHOT_DIR"):
        page.screenshot(path=Path(folder) / f"{name}.png")


@contextmanager
def serve(*folders: Path) -> Iterator[str]:
    """Serve the files of some folders; yield the address."""

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            name = path.partition("?")[0].lstrip("/")
            return str(next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / "missing"))

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Lab:
    """JupyterLab on a folder, on a free port, with settings and kernels of its own."""

    def __init__(self, folder: Path, home: Path, theme: str = "JupyterLab Light"):
        self.folder = folder
        settings = home / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        for name, values in (QUIET | {"themes": {"theme": theme}}).items():
            (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
        places = {name: str(home / name.lower()) for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
        own = {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
        path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "RLBOOK_RUN_MODE": "thread"}
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", "--ServerApp.ip=127.0.0.1", "--allow-root"]
        command += [f"--ServerApp.root_dir={folder}", "--IdentityProvider.token=test"]
        self.log = (home / "server.log").open("w")
        self.server = subprocess.Popen(
            command, env=os.environ | places | own | path, stdout=self.log, stderr=self.log, start_new_session=True
        )
        self.address = self._address(Path(places["JUPYTER_RUNTIME_DIR"]) / f"jpserver-{self.server.pid}.json")

    def _address(self, file: Path) -> str:
        for _ in range(600):
            if self.server.poll() is not None:
                break
            if file.exists() and file.read_text().strip().endswith("}"):
                return json.loads(file.read_text())["url"]
            time.sleep(0.1)
        self.close()
        raise RuntimeError("JupyterLab did not start:\n" + Path(self.log.name).read_text()[-2000:])

    def write(self, name: str, cells: Sequence[str]) -> None:
        """Write a notebook of code cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.folder / name)

    def save(self, page: Page, name: str, mime: str) -> None:
        """Save the open notebook, until the file holds an output of that type in its first cell."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not self._has(name, mime):
            if time.monotonic() > deadline:
                raise AssertionError(f"the saved notebook has no {mime}")
            page.get_by_role("button", name="Save and create checkpoint").click()
            time.sleep(0.3)

    def _has(self, name: str, mime: str) -> bool:
        outputs = nbformat.read(self.folder / name, as_version=4).cells[0].outputs
        return any(mime in output.get("data", {}) for output in outputs)

    def open(self, page: Page, name: str) -> None:
        """Open a notebook and wait until its kernel is ready."""
        page.goto(f"{self.address}lab/tree/{name}?token=test&reset")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=PATIENCE_MS)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=PATIENCE_MS)

    def run_all(self, page: Page) -> None:
        """Choose Run All; JupyterLab sometimes drops it right after opening, so look whether the first prompt changed."""
        prompt = page.locator(".jp-CodeCell .jp-InputPrompt").first
        for _ in range(5):
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            try:
                expect(prompt).not_to_have_text("[ ]:", timeout=3_000)
                return expect(prompt).to_have_text("[1]:", timeout=PATIENCE_MS)
            except AssertionError:
                continue
        raise RuntimeError("JupyterLab ignored Run All five times")

    def close(self) -> list[psutil.Process]:
        """Stop the server and its kernels; return what had to be killed."""
        try:
            family = psutil.Process(self.server.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        self.server.terminate()
        try:
            self.server.wait(15)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait(5)
        _, alive = psutil.wait_procs(family, timeout=5)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=5)
        self.log.close()
        return alive
