"""Values from the command line: whose mistake is named, and what is written down of them."""

import tomllib
from pathlib import Path

import pytest

from targen_async.config import load
from targen_async.errors import UserError
from tests.run.test_corpus import passage
from tests.running import targen


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, to go on with by other flags."""
    out = tmp_path_factory.mktemp("flags") / "run"
    done = targen("generate", "copa", "-n", 4, "--simulate", "--out", out, "--quiet")
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--max-usd", "nan"), "--max-usd: `delivery.budget.max_usd`: expected"),
        (("--max-usd", "inf"), "--max-usd: `delivery.budget.max_usd`: expected"),
        (("--requests-per-minute", "inf"), "--requests-per-minute: `delivery.limits"),
        (("-n", "0"), "-n: `delivery.n`: expected `int` >= 1"),
        (("--base-url", "nonsense"), "--base-url: `delivery.base_url` must be like"),
        (("--max-rows-per-seed", "2"), "--max-rows-per-seed: `delivery.max_rows_per_seed` is for"),
        (("--seeds-field", "text"), "--seeds-field: `data.corpus` names no file"),
        (("--exclude", ""), "--exclude: `data.exclude[0].file`: expected"),
        (("--set", "delivery.limit.x=3"), "--set: `delivery`: object contains unknown field"),
        (("--set", "delivery.limits.x=3"), "--set: `delivery.limits`: object contains unknown"),
        (("--set", "deliver.n=3"), "--set: Object contains unknown field `deliver`"),
        (("--set", "delivery.headers.X-Team=3"), "--set: `delivery.headers[...]`: expected `str`"),
    ],
)
def test_a_mistake_of_the_command_line_is_not_the_files(
    begun: Path, flags: tuple[str, ...], said: str
) -> None:
    written = (begun / "run.toml").read_text("utf-8")
    for place in (("--out", begun), ("copa", "--out", begun / "fresh")):
        done = targen("generate", *place, *flags)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"targen: {said}"), done.stderr
    assert (begun / "run.toml").read_text("utf-8") == written


def test_a_mistake_of_the_file_is_not_the_command_lines(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[data]\ntask = 'copa'\ntemperature = 9\n[delivery]\nn = 3\n", "utf-8")
    with pytest.raises(UserError, match=r"run\.toml: `data\.temperature`: expected"):
        load(file, [("delivery.n", 4)], {"delivery.n": "-n"})
    with pytest.raises(UserError, match=r"^the command line: `data`: object contains unknown"):
        load(None, {"data.task": "copa", "data.votes": 4})


def test_a_run_goes_on_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that it names are found from wherever it is started."""
    here, there, out = tmp_path / "here", tmp_path / "there", tmp_path / "run"
    here.mkdir()
    there.mkdir()
    (here / "ex.txt").write_text("The vase fell from the shelf in the hall.\n", "utf-8")
    table = '[[model]]\nnames = ["m"]\nprompt = 1.0\ncompletion = 2.0\nknown = 2026-01-01\n'
    (here / "prices.toml").write_text(table, "utf-8")
    (here / "seeds.txt").write_text("".join(f"{passage(i)}\n" for i in range(40)))
    monkeypatch.chdir(here)
    flags = ["--exclude", "ex.txt", "--set", "delivery.prices_file=prices.toml"]
    done = targen("generate", "boolq", "-n", 4, *flags, "--seeds", "seeds.txt", "--out", "../run")
    assert done.returncode == 0, done.stderr
    written = tomllib.loads((out / "run.toml").read_text("utf-8"))
    assert written["delivery"]["prices_file"] == str(here / "prices.toml")
    assert written["data"]["exclude"][0]["file"] == str(here / "ex.txt")
    assert written["data"]["corpus"]["file"] == str(here / "seeds.txt")
    monkeypatch.chdir(there)
    more = targen("generate", "--out", out, "-n", 6)
    assert more.returncode == 0, more.stderr
    monkeypatch.chdir(here)
    again = targen("generate", "boolq", "-n", 8, *flags, "--seeds", "seeds.txt", "--out", "../run")
    assert again.returncode == 0, again.stderr
    assert targen("verify", out).returncode == 0
