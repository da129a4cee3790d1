"""README.md of an export: the data card. Every number is counted or comes from manifest.json."""

import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from targen_async.export.columns import card_features, columns_of
from targen_async.export.forms import KEYS, Form, Written, csv_columns
from targen_async.export.sieve import told
from targen_async.export.source import RunFacts, Source
from targen_async.records import Instance

Splits = Mapping[str, tuple[Sequence[Instance], Written]]

CATEGORIES: Mapping[str, str] = {
    "boolq": "question-answering",
    "copa": "multiple-choice",
    "multirc": "question-answering",
    "record": "question-answering",
}
"""The hub's task category where it is not text-classification."""
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_LARGEST = "1M<n<10M"
_LISTED = 10
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")
_NO_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_INNER = re.compile(r"(?<=\w)\\([_-])(?=\w)")

HOW = {
    "jsonl": "Official SuperGLUE JSONL: field names, types and folder as in the public release; "
    "unlike there, `test` keeps its labels.",
    "datasets": "An Arrow data set: `datasets.load_from_disk(FOLDER)`.",
    "parquet": 'Parquet with typed features: `datasets.load_dataset("FOLDER")`.',
    "csv": "CSV in UTF-8; labels by name, lists and structs as JSON. Texts are kept as they are.",
    "flat": "JSONL with `input` (all fields as `name: value` lines) and `output` (the label).",
}
OWN_JSONL = "JSONL: one object a row with the task's fields and `label`."


def make_card(form: Form, source: Source, splits: Splits) -> str:
    """The whole file: a YAML header for the hub and the text below."""
    facts, rows = source.facts, [row for part, _ in splits.values() for row in part]
    sections = [
        f"# {safe(source.task)}: {len(rows)} synthetic rows",
        _origin(source, rows),
        "## Contents\n\n" + _contents(form, source, splits),
        "## Labels\n\n" + _balance(source, splits),
        "## How it was made\n\n" + _making(source, rows),
        "## Self-correction\n\n" + _correction(facts, rows),
        "## Cost\n\n" + _cost(facts),
        "## Licence\n\n" + _licence(source, rows),
    ]
    return _header(form, source, splits, rows) + "\n" + "\n\n".join(sections) + "\n"


def safe(text: str) -> str:
    """Text of others for Markdown: one line, no HTML, no markup."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text).split())
    marked = _MARKDOWN.sub(r"\\\1", html.escape(line, quote=False))
    # Within a word these mean nothing, and names such as not_entailment stay readable.
    return _INNER.sub(r"\1", marked)


def _header(form: Form, source: Source, splits: Splits, rows: Sequence[Instance]) -> str:
    open_label = "text-classification" if source.labels else "question-answering"
    tags = ["synthetic", "targen", *(["simulated"] if _simulated(source.facts, rows) else [])]
    values: dict[str, Any] = {
        "license": "other",
        "license_name": "see-licence-section",
        "pretty_name": f"{source.task} (synthetic)",
        "task_categories": [CATEGORIES.get(source.task, open_label)],
        "size_categories": [next((n for most, n in _SIZES if len(rows) < most), _LARGEST)],
        "tags": tags,
    }
    if source.layout is not None:
        values["language"] = ["en"]
    if form in ("csv", "parquet"):
        columns = csv_columns(source) if form == "csv" else columns_of(source)
        values["dataset_info"] = {"features": card_features(columns)}
    if form != "datasets":
        files = [{"split": name, "path": written.path} for name, (_, written) in splits.items()]
        # Without this, a text "None" or "NA" would be read as a missing value.
        reader = {"keep_default_na": False} if form == "csv" else {}
        values["configs"] = [{"config_name": "default", "data_files": files, **reader}]
    # A JSON value is a YAML value, whatever a label is called.
    lines = [f"{name}: {_yaml(value)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "---", ""])


def _yaml(value: Any) -> str:  # noqa: ANN401
    """One line: YAML also ends lines, and forbids characters, where JSON does not."""
    text = json.dumps(value, ensure_ascii=False)
    return _NO_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _simulated(facts: RunFacts, rows: Sequence[Instance]) -> int:
    """How many rows no language model wrote."""
    found = sum(row.provenance.simulated for row in rows)
    return found or (len(rows) if facts.simulated else 0)


def _origin(source: Source, rows: Sequence[Instance]) -> str:
    simulated = _simulated(source.facts, rows)
    if simulated == len(rows):
        return (
            "**SIMULATED.** No language model wrote these rows: they come from targen's built-in "
            "simulator, which fills in templates. They show the form of the data and are no "
            "material to train or judge a model for use."
        )
    if simulated:
        return (
            f"**{simulated} of the {len(rows)} rows are SIMULATED**: they come from targen's "
            "built-in simulator and not from a language model."
        )
    return (
        "Language models wrote every row and its label, and no person has checked them. "
        "None comes from the simulator."
    )


def _contents(form: Form, source: Source, splits: Splits) -> str:
    how = OWN_JSONL if form == "jsonl" and source.layout is None else HOW[form]
    lines = [how, "", "| split | rows | file |", "|---|---|---|"]
    for name, (rows, written) in splits.items():
        lines.append(f"| {safe(name)} | {len(rows)} | `{written.path}` |")
    lines += ["", f"`{KEYS}` names the row of the run that each exported row is."]
    if len(splits) > 1:
        lines.append(
            "Rows of one seed, and rows that share a seed's text or a passage, are in one split."
        )
    if source.sieved is not None:
        lines.append(f"Left out by `targen analyze`: {told(source.sieved)}.")
    if source.facts.state != "complete":
        lines.append(
            f"The run was not complete (state: {safe(source.facts.state)}; "
            f"{source.facts.n} rows were asked for)."
        )
    if formulas := sum(written.formulas for _, written in splits.values()):
        lines.append(
            f"{formulas} cells begin like a spreadsheet's formula: import the columns as text."
        )
    return "\n".join(lines)


def _balance(source: Source, splits: Splits) -> str:
    if not source.labels:
        different = len({row.label for rows, _ in splits.values() for row in rows})
        return f"The label is a text of each row's own: {different} different ones."
    lines = [
        "| split | " + " | ".join(safe(label) for label in source.labels) + " |",
        "|---" * (len(source.labels) + 1) + "|",
    ]
    for name, (rows, _) in splits.items():
        counts = Counter(row.label for row in rows)
        cells = (f"{counts[lb]} ({counts[lb] / len(rows):.1%})" for lb in source.labels)
        lines.append(f"| {safe(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _names(counts: Counter[str]) -> str:
    """`a` (12), `b` (3), the most frequent first."""
    listed = [f"{safe(name)} ({count})" for name, count in counts.most_common(_LISTED)]
    rest = len(counts) - len(listed)
    return ", ".join([*listed, *([f"{rest} more"] if rest > 0 else [])]) or "none"


def _making(source: Source, rows: Sequence[Instance]) -> str:
    facts, data = source.facts, source.facts.config.get("data", {})
    writers = Counter(row.provenance.model for row in rows)
    judges = Counter(vote.model for row in rows for vote in row.provenance.votes)
    corpus = sum(row.provenance.seed_source == "corpus" for row in rows)
    seeds = f"{corpus} of the rows build on texts of a corpus" if corpus else "all generated"
    if corpus and facts.corpus:
        seeds += f" ({facts.corpus.usable} usable texts, SHA-256 `{safe(facts.corpus.sha256)}`)"
    lines = [
        "targen (the method of arXiv 2310.17876): contexts, then seeds within them, then rows "
        "written to a planned label, then a judge's self-correction of the label.",
        "",
        f"- models that wrote (rows): {_names(writers)}; asked for as {safe(facts.model)}",
        f"- models that judged (votes): {_names(judges)}",
        f"- seeds: {seeds}",
        f"- task: {safe(source.task)}, version {facts.task_version}, "
        f"digest `{safe(facts.task_digest[:16])}`",
    ]
    settings = {name: data[name] for name in ("temperature", "random_seed") if name in data}
    if settings:
        told = ", ".join(f"{safe(name)} {safe(str(value))}" for name, value in settings.items())
        lines.append(f"- settings: {told}; configuration `{safe(facts.data_digest[:16])}`")
    versions = ", ".join(f"{safe(name)} {safe(v)}" for name, v in facts.versions.items())
    return "\n".join([*lines, *([f"- versions: {versions}"] if versions else [])])


def _correction(facts: RunFacts, rows: Sequence[Instance]) -> str:
    judged = sum(bool(row.provenance.votes) for row in rows)
    changed = sum(row.label != row.label_before_correction for row in rows)
    lines = [f"Judged: {judged} of {len(rows)} rows. Label changed: {changed}."]
    if facts.transitions:
        columns = list(dict.fromkeys(c for counts in facts.transitions.values() for c in counts))
        lines += [
            "",
            "What became of the planned labels in the whole run, rows that were not delivered "
            "included:",
            "",
            "| before | " + " | ".join(safe(name) for name in columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for before, counts in facts.transitions.items():
            cells = " | ".join(str(counts.get(name, 0)) for name in columns)
            lines.append(f"| {safe(before)} | {cells} |")
    refused = Counter({**facts.rejected, **{f"failed {k}": v for k, v in facts.failed.items()}})
    return "\n".join([*lines, "", f"Not delivered, by stage and reason: {_names(refused)}."])


def _cost(facts: RunFacts) -> str:
    spent, wasted = facts.spent, facts.wasted
    cost = "prices were not configured"
    if spent.usd is not None:
        cost = f"{spent.usd:.4f} US dollars"
    elif facts.usd_at_most is not None:
        cost = f"at most {facts.usd_at_most:.4f} US dollars: not every answer was counted"
    return (
        f"{facts.calls.served} calls answered; {spent.prompt_tokens} prompt and "
        f"{spent.completion_tokens} completion tokens ({cost}), of which "
        f"{wasted.prompt_tokens} and {wasted.completion_tokens} bought no row. "
        "This is for the whole run."
    )


def _licence(source: Source, rows: Sequence[Instance]) -> str:
    lines = [
        "No licence is granted by this card: whoever publishes the rows names one. The terms of "
        "the models above govern their output; some forbid to train competing models with it."
    ]
    if any(row.provenance.seed_source == "corpus" for row in rows):
        lines.append("Texts of the corpus keep the corpus's own licence.")
    if source.layout is not None:
        lines.append("The form is SuperGLUE's; no row of SuperGLUE is in it.")
    return " ".join(lines)
