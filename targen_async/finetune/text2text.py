"""Encoder-decoders: T5's own formats of SuperGLUE.

Raffel et al. 2020 (JMLR 21:140), section 2.4 and appendix D; field names, their order and target
words are those of `t5.data.preprocessors` (`glue`, `record`, `wsc`) and `t5.data.glue_utils`, which
put AX-b and AX-g as `rte` and take the target words from the label classes of tensorflow_datasets'
`super_glue` 1.0.2 (of COPA `choice1` and `choice2`). Of WSC it is the `wsc` format with both spans
marked and a target of True or False: the paper's own (name the noun) can be trained on the true
half of the rows only, so it cannot be put beside the other families at equal size.
"""

from collections.abc import Callable, Mapping

from targen_async.finetune.posed import Posed, marked, plain_paragraph, plain_passage, posed
from targen_async.finetune.schema import Example, entities_of
from targen_async.layouts import LAYOUTS


def _glue(name: str, *features: str, **renamed: str) -> Callable[[Example], Posed]:
    """`name feature: value feature: value`; `renamed` is T5's name of a feature to ours."""

    def form(example: Example) -> Posed:
        values = ((f, example.fields[renamed.get(f, f)]) for f in features)
        source = " ".join((name, *(f"{feature}: {value}" for feature, value in values)))
        if example.task == "multirc":
            source = plain_paragraph(source)
        return posed(example, source, tuple(LAYOUTS[example.task].classes.values()))

    return form


def _record(example: Example) -> Posed:
    """All answers are right; T5 trains on one example for each of them."""
    fields = example.fields
    entities = ", ".join(entities_of(example))
    passage = plain_passage(fields["passage"])
    source = f"record query: {fields['query']} entities: {entities} passage: {passage}"
    return posed(example, source, by_length=True)


def _wsc(example: Example) -> Posed:
    spans = example.spans
    text = marked(example.fields["text"], (spans.get("span1"), "*"), (spans.get("span2"), "#"))
    return posed(example, f"wsc text: {text}", tuple(LAYOUTS["wsc"].classes.values()))


TEXT2TEXT: Mapping[str, Callable[[Example], Posed]] = {
    "axb": _glue("rte", "hypothesis", "premise", premise="sentence1", hypothesis="sentence2"),
    "axg": _glue("rte", "hypothesis", "premise"),
    "boolq": _glue("boolq", "passage", "question"),
    "cb": _glue("cb", "hypothesis", "premise"),
    "copa": _glue("copa", "choice1", "choice2", "premise", "question"),
    "multirc": _glue("multirc", "question", "answer", "paragraph"),
    "record": _record,
    "rte": _glue("rte", "hypothesis", "premise"),
    "wic": _glue("wic", "sentence1", "sentence2", "word"),
    "wsc": _wsc,
}
