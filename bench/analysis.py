"""`targen analyze` on 100,000 rows of 60 words: time by measure, memory, size, and the naive way.

The rows are drawn at random: two fields, two labels that words tell, a twentieth near duplicates,
3 % of an evaluation file of 10,000 rows among them. The command is run as a user runs it, in a
process of its own: alone, which is what the limits are for, and once more beside another set of as
many rows, which is measured like the first. Self-BLEU and cosines are measured once more in the way
that most scripts do, NLTK's BLEU of each row against all others and a Python loop over all pairs,
on as many rows as that takes seconds for, and ours on the same rows in the same process; both must
come to the same number. Exit code 1 where a limit is passed.

    python bench/analysis.py [--rows 100000] [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np

WORDS, EVALUATED = 60, 10_000
LEAKED, NEAR = 0.03, 0.05
BLEU_ROWS, COSINE_ROWS = 300, 1_000
LIMIT_S, LIMIT_GIB, LIMIT_MB = 240.0, 1.5, 8.0


def texts(count: int, seed: int) -> list[list[str]]:
    """Words as Zipf would draw them, of 50,000."""
    drawn = (np.random.default_rng(seed).zipf(1.3, (count, WORDS)) - 1) % 50_000
    return [[f"w{number:x}" for number in line] for line in drawn.tolist()]


Line = tuple[list[str], str]
"""Words and label."""


def labelled(count: int, seed: int) -> list[Line]:
    """Of four lines in five, two words of the hypothesis tell the label."""
    rng = np.random.default_rng(seed)
    lines = []
    for words in texts(count, seed):
        label = int(rng.integers(2))
        if rng.random() < 0.8:
            words[-2:] = [f"{'ny'[label]}{n}" for n in rng.integers(0, 200, 2)]
        lines.append((words, ("no", "yes")[label]))
    return lines


def write_rows(path: Path, lines: Sequence[Line]) -> None:
    """A premise of 40 words and a hypothesis of 20."""
    with path.open("w", encoding="utf-8") as file:
        for words, label in lines:
            premise, hypothesis = " ".join(words[:40]), " ".join(words[40:])
            row = {"premise": premise, "hypothesis": hypothesis, "label": label}
            file.write(json.dumps(row) + "\n")


def make_files(folder: Path, rows: int) -> tuple[Path, Path, Path]:
    """(data, evaluation, another set of as many rows)."""
    evaluation = labelled(EVALUATED, 1)
    near, leaked = round(rows * NEAR), round(rows * LEAKED)
    own = labelled(rows - near - leaked, 2)
    copies = [(["other", *words[1:]], label) for words, label in own[:near]]
    write_rows(folder / "data.jsonl", [*own, *copies, *evaluation[:leaked]])
    write_rows(folder / "evaluation.jsonl", evaluation)
    write_rows(folder / "other.jsonl", labelled(rows, 3))
    return folder / "data.jsonl", folder / "evaluation.jsonl", folder / "other.jsonl"


def measure_command(data: Path, evaluation: Path, *more: str) -> dict[str, Any]:
    """Seconds by measure, wall and CPU seconds, peak GiB and size of the files of one command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "targen_async.cli", "analyze", str(data), "--out", folder]
        command += ["--evaluation", str(evaluation)]
        command += ["--text", "premise,hypothesis", "--label", "label", *more]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
        told = json.loads((Path(folder) / "analysis.json").read_bytes())
        sizes = {file.name: file.stat().st_size / 1e6 for file in Path(folder).iterdir()}
    return {
        "rows": told["data"]["rows"],
        "against": told["against"]["rows"] if told["against"] else None,
        "wall_s": wall,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_gib": used.ru_maxrss / 2**20,
        "report_mb": sizes["report.html"],
        "written_mb": sum(sizes.values()),
        "seconds": told["seconds"],
        "picture": told["projection"]["method"],
        "findings": [finding["text"] for finding in told["findings"]],
    }


def print_command(told: dict[str, Any]) -> None:
    beside = f" beside {told['against']} others" if told["against"] else ""
    print(f"{told['rows']} rows of {WORDS} words{beside}")
    whole = told["wall_s"]
    parts = {**told["seconds"], "reading, writing, start": whole - sum(told["seconds"].values())}
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"  {name:25} {seconds:7.1f} s  {seconds / whole:6.1%}")
    print(f"  {'wall':25} {whole:7.1f} s  (limit {LIMIT_S:.0f})")
    print(f"  {'CPU':25} {told['cpu_s']:7.1f} s")
    print(f"  {'peak memory':25} {told['peak_gib']:7.2f} GiB  (limit {LIMIT_GIB})")
    print(f"  {'report.html':25} {told['report_mb']:7.2f} MB  (limit {LIMIT_MB:.0f})")
    print(f"  written {told['written_mb']:.0f} MB; the picture is {told['picture']}")
    for finding in told["findings"]:
        print(f"  ! {finding}")


def within(told: dict[str, Any]) -> bool:
    """The limits of one set of 100,000 rows."""
    return bool(
        told["wall_s"] <= LIMIT_S
        and told["peak_gib"] <= LIMIT_GIB
        and told["report_mb"] <= LIMIT_MB
    )


# ---- the naive way


def naive_self_bleu(lines: Sequence[Sequence[str]]) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    scores = [
        sentence_bleu([*lines[:n], *lines[n + 1 :]], line, smoothing_function=smooth)
        for n, line in enumerate(lines)
    ]
    return sum(scores) / len(scores)


def naive_mean_cosine(lines: Sequence[Sequence[str]]) -> float:
    """TF-IDF as dictionaries, every pair in a loop."""
    found_in = Counter(word for line in lines for word in set(line))
    vectors = []
    for line in lines:
        vector = {
            word: count * (log((1 + len(lines)) / (1 + found_in[word])) + 1)
            for word, count in Counter(line).items()
        }
        norm = sqrt(sum(value * value for value in vector.values()))
        vectors.append({word: value / norm for word, value in vector.items()})
    total = 0.0
    for n, a in enumerate(vectors):
        for b in vectors[:n]:
            total += sum(value * b[word] for word, value in a.items() if word in b)
    return 2 * total / (len(lines) * (len(lines) - 1))


def timed(measure: Callable[[], float]) -> tuple[float, float]:
    start = time.process_time()
    value = measure()
    return value, time.process_time() - start


def measure_naive() -> list[dict[str, Any]]:
    """Both ways on the same rows: CPU seconds and their ratio. SystemExit where they disagree."""
    from targen_async.analysis.diversity import mean_cosine
    from targen_async.analysis.embedding import similarities
    from targen_async.analysis.rows import Row, Rows
    from targen_async.analysis.selfbleu import self_bleu
    from targen_async.analysis.tokens import tokenise

    found = []
    for name, count, naive in (
        ("Self-BLEU", BLEU_ROWS, naive_self_bleu),
        ("mean cosine", COSINE_ROWS, naive_mean_cosine),
    ):
        lines = texts(count, 5)
        joined = [" ".join(line) for line in lines]
        rows = Rows([Row(key=text, fields={"text": text}, label=None) for text in joined])
        ours: Callable[[], float] = (
            (lambda joined=joined: float(self_bleu(tokenise(joined)).mean()))
            if naive is naive_self_bleu
            else (lambda rows=rows: mean_cosine(similarities(rows, None)))
        )
        (own, own_s), (other, other_s) = timed(ours), timed(lambda: naive(lines))  # noqa: B023
        if abs(own - other) > 1e-9:
            raise SystemExit(f"{name}: {own} is not the naive way's {other}")
        found.append(
            {"measure": name, "rows": count, "cpu_s": own_s, "naive_s": other_s}
            | {"ratio": other_s / own_s}
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"load {load:.1f} before")
    with tempfile.TemporaryDirectory() as folder:
        data, evaluation, other = make_files(Path(folder), options.rows)
        alone = measure_command(data, evaluation)
        print_command(alone)
        beside = measure_command(data, evaluation, "--against", str(other))
        print_command(beside)
    naive = measure_naive()
    for one in naive:
        print(
            f"{one['measure']}, {one['rows']} rows: {one['cpu_s']:.3f} CPU s, the naive way "
            f"{one['naive_s']:.1f}: {one['ratio']:.0f} x"
        )
    if options.json:
        figures = {"python": sys.version.split()[0], "load": load}
        figures |= {"command": alone, "beside": beside, "naive": naive}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return 0 if within(alone) else 1


if __name__ == "__main__":
    sys.exit(main())
