"""`trimode dashboards import`: the boards into a Grafana, through its HTTP API.

What is sent is the committed JSON as it is: the data source is a variable that the board asks for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    import httpx

GENERATED = Path(__file__).resolve().parent.parent / "dashboards" / "generated"
Json = Mapping[str, Any]


class Grafana:
    """The few calls of Grafana's HTTP API that an import needs. Every failure is one line.

    Raises:
        click.ClickException: what is wrong with the address, the token, the folder or the board.
    """

    def __init__(self, url: str, token: str, timeout_s: float = 15.0) -> None:
        import httpx

        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
        self._client = httpx.Client(headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def version(self) -> str:
        """Grafana's version; answers without a token, so it tells a wrong address from a wrong
        token."""
        body = self._json(self._send("GET", "/api/health"))
        if not isinstance(body, dict) or "database" not in body:
            raise click.ClickException(f"{self.url} answers, but is no Grafana; --grafana is wrong")
        return str(body.get("version", "of unknown version"))

    def folder_uid(self, name: str, *, create: bool) -> str:
        """The uid of the folder with this title or uid."""
        listed = self._json(self._send("GET", "/api/folders", params={"limit": "1000"}))
        found = [row["uid"] for row in listed if name in (row["title"], row["uid"])]
        if len(found) > 1:
            raise click.ClickException(f"{len(found)} folders are named {name!r}; give a uid")
        if found:
            return str(found[0])
        if not create:
            titles = ", ".join(sorted(str(row["title"]) for row in listed)) or "none"
            raise click.ClickException(
                f"no folder {name!r} that this token may see; there is: {titles}. "
                "--create-folder makes it"
            )
        made = self._json(self._send("POST", "/api/folders", json={"title": name}))
        return str(made["uid"])

    def has_prometheus(self) -> bool | None:
        """Whether there is a Prometheus data source; None if the token may not ask."""
        response = self._send("GET", "/api/datasources", may=(403,))
        if response.status_code == 403:
            return None
        return any(row.get("type") == "prometheus" for row in self._json(response))

    def save(self, board: Json, folder_uid: str | None) -> str:
        """Creates the board or replaces the one with its uid; where it can be seen."""
        body: dict[str, Any] = {"dashboard": {**board, "id": None}, "overwrite": True}
        body["message"] = "trimode dashboards import"
        if folder_uid is not None:
            body["folderUid"] = folder_uid
        answer = self._json(self._send("POST", "/api/dashboards/db", json=body))
        return f"{self.url}{answer.get('url', '/d/' + board['uid'])}"

    def _send(
        self, method: str, path: str, *, may: tuple[int, ...] = (), **content: Any
    ) -> httpx.Response:
        with _readable(self.url):
            response = self._client.request(method, f"{self.url}{path}", **content)
        if response.is_success or response.status_code in may:
            return response
        raise click.ClickException(self._complaint(path, response))

    def _complaint(self, path: str, response: httpx.Response) -> str:
        said = _message(response)
        if response.is_redirect:
            target = response.headers.get("location", "elsewhere")
            return f"{self.url} redirects to {target}; give --grafana as it is after that"
        if response.status_code == 401:
            return f"Grafana refuses the token ({said}); give a valid one with --token"
        if response.status_code == 403:
            return (
                f"the token may not do this ({path}: {said}); its service account needs the role "
                "Editor, or the right to edit this folder"
            )
        if path == "/api/health" or (response.status_code == 404 and said == ""):
            status = response.status_code
            return f"{self.url} answers with status {status}, so it is no Grafana; see --grafana"
        return f"Grafana answers {path} with status {response.status_code}: {said or 'no reason'}"

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError:
            message = f"{self.url} answers, but not as Grafana does; --grafana is wrong"
            raise click.ClickException(message) from None


@contextmanager
def _readable(url: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise click.ClickException(f"{url!r} is no address; write http://host:3000") from None
    except httpx.TransportError as error:
        raise click.ClickException(
            f"{url} does not answer ({str(error) or type(error).__name__}); is it running?"
        ) from None


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def boards(folder: Path = GENERATED) -> list[dict[str, Any]]:
    """The committed boards."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise click.ClickException(f"no boards in {folder}; python -m dashboards.build makes them")
    return found


@click.group(short_help="The Grafana boards.")
def dashboards() -> None:
    """The Grafana boards."""


@dashboards.command("import", short_help="Put the boards into a Grafana.")
@click.option("--grafana", required=True, envvar="GRAFANA_URL", help="Address, http://host:3000.")
@click.option("--token", default="", envvar="GRAFANA_TOKEN", help="Or GRAFANA_TOKEN.")
@click.option("--folder", help="Title or uid of the folder; by default the top level.")
@click.option("--create-folder", is_flag=True, help="Make the folder if there is none.")
def import_boards(grafana: str, token: str, folder: str | None, create_folder: bool) -> None:
    """Create the boards in a Grafana, or bring them up to date."""
    if not token.strip():
        raise click.UsageError(
            "no token; in Grafana, Administration > Service accounts makes one with the role "
            "Editor; give it with --token or GRAFANA_TOKEN"
        )
    if create_folder and folder is None:
        raise click.UsageError("--create-folder needs --folder")
    found = boards()
    with Grafana(grafana, token.strip()) as server:
        version = server.version()
        uid = None if folder is None else server.folder_uid(folder, create=create_folder)
        for board in found:
            click.echo(f"{board['title']}: {server.save(board, uid)}")
        if server.has_prometheus() is False:
            click.echo(f"Grafana {version} has no Prometheus data source yet; the boards need one.")
