"""`--push`, against a stand-in for the hub. In processes of their own: the client reads its
environment when it is imported."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.export.hub import Hub, serve_hub
from tests.export.runs import make_task_run

pytest.importorskip("huggingface_hub", reason="uploads with huggingface_hub: targen-async[data]")

TOKEN = "hf_a-token-that-must-not-be-shown"
CODE = """
import argparse, sys
from targen_async.errors import TargenError, UserError
from targen_async.export.command import add_arguments, run
parser = argparse.ArgumentParser()
add_arguments(parser)
try:
    sys.exit(run(parser.parse_args()))
except TargenError as error:
    print(f"targen: {error}", file=sys.stderr)
    sys.exit(2 if isinstance(error, UserError) else 1)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as served:
        yield served


def export(
    tmp_path: Path, url: str, *arguments: str, token: str = TOKEN, form: str = "parquet"
) -> "subprocess.CompletedProcess[str]":
    run = tmp_path / "run"
    if not run.exists():
        make_task_run(run, "copa", times=4)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {
        **kept,
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **({"HF_TOKEN": token} if token else {}),
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(run), "--to", form, "--push", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "flat"])
def test_everything_arrives_as_it_lies_on_disk(form: str, hub: Hub, tmp_path: Path) -> None:
    done = export(tmp_path, hub.url, "me/set", "--split", "train=0.75,test=0.25", form=form)
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / f"run-{form}"
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in files.items()} == hub.files
    assert hub.lfs_paths == {name for name in files if name.endswith(".parquet")}
    assert bool(hub.lfs_paths) == (form == "parquet")
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert hub.repos == {"me/set": False}
    assert hub.commits == ["Upload by targen export"]
    assert f"pushed to {hub.url}/datasets/me/set" in done.stdout


def test_a_private_repository_is_made_private(hub: Hub, tmp_path: Path) -> None:
    assert export(tmp_path, hub.url, "me/set", "--private").returncode == 0
    assert hub.repos == {"me/set": True}


def test_nothing_goes_into_a_public_repository_that_was_to_be_private(
    hub: Hub, tmp_path: Path
) -> None:
    hub.repos["me/set"] = False
    done = export(tmp_path, hub.url, "me/set", "--private")
    assert done.returncode == 2
    assert "is public: nothing was uploaded" in done.stderr
    assert hub.files == {}


def test_a_repository_that_is_there_is_uploaded_to(hub: Hub, tmp_path: Path) -> None:
    hub.repos["me/set"] = True
    assert export(tmp_path, hub.url, "me/set").returncode == 0
    assert "README.md" in hub.files


@pytest.mark.parametrize(
    ("place", "status", "code", "told"),
    [
        ("/repos/create", 401, 2, "refuses HF_TOKEN for me/set (401)"),
        ("/repos/create", 403, 2, "refuses HF_TOKEN for me/set (403)"),
        ("/preupload/", 404, 2, "no place for me/set (404)"),
        ("/commit/", 400, 2, "refuses the upload to me/set (400)"),
        ("/commit/", 429, 1, "asks to wait (429)"),
        ("/repos/create", 500, 1, "failed (500)"),
        ("/validate-yaml", 400, 2, "does not take the upload: Invalid metadata"),
    ],
)
def test_a_refusal_is_one_sentence(
    place: str, status: int, code: int, told: str, hub: Hub, tmp_path: Path
) -> None:
    hub.refuse[place] = status
    done = export(tmp_path, hub.url, "me/set")
    assert done.returncode == code
    assert told in done.stderr
    assert done.stderr.startswith("targen: ")
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "run-parquet" / "README.md").is_file()


def test_a_hub_that_is_not_there_is_told_and_the_export_stays(tmp_path: Path) -> None:
    with serve_hub() as gone:
        url = gone.url
    done = export(tmp_path, url, "me/set")
    assert done.returncode == 1
    assert f"{url} cannot be reached" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "run-parquet" / "README.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "token", "form", "told"),
    [
        (["me/set"], "", "parquet", "a token with write access in HF_TOKEN"),
        (["../set"], TOKEN, "parquet", "no name of a repository"),
        (["a/b/c"], TOKEN, "parquet", "no name of a repository"),
        (["me/set"], TOKEN, "datasets", "push `--to parquet`"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_anything_is_written(
    arguments: list[str], token: str, form: str, told: str, hub: Hub, tmp_path: Path
) -> None:
    done = export(tmp_path, hub.url, *arguments, token=token, form=form)
    assert done.returncode == 2
    assert told in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert hub.requests == []
