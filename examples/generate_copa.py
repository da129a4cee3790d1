"""Twenty labelled rows without a key: the built-in simulator answers in a model's place.

    python examples/generate_copa.py runs/copa-example

Run it again and nothing is asked: the rows are there. For a real model add `model="…"` to Data and
put its key into OPENAI_API_KEY, or add `base_url="http://…/v1"` to Delivery.
"""

import sys
from itertools import islice

from targen_async import Data, Delivery, RunConfig, generate_sync, read_shards


def main(out: str) -> None:
    config = RunConfig(data=Data(task="copa"), delivery=Delivery(n=20))
    manifest = generate_sync(config, out, say=print)
    for row in islice(read_shards(out), 3):
        print(f"\n{row.fields['premise']}  What is the {row.fields['question']}?")
        for label in ("choice1", "choice2"):
            print(f"  {'*' if row.label == label else ' '} {row.fields[label]}")
    print(f"\n{manifest.delivered} rows in {out}, by label: {manifest.balance}")


if __name__ == "__main__":
    main(sys.argv[1])
