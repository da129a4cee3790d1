"""A task of your own: tell whether a support ticket is a bug, a question or a wish.

    python examples/own_task.py runs/own-task

The task is written into the folder `tickets` there and can be edited like any text; the simulator,
which does not know it, answers with made-up words. prompts/README.md explains every key.
"""

import sys
from pathlib import Path

from targen_async import Data, Delivery, RunConfig, generate_sync, load_task, read_shards

FILES = {
    "task.toml": """
name = "tickets"
version = 1
description = "Tell what the writer of a support ticket wants."

[labels]
bug = "the writer reports something that used to work or should work, and does not"
question = "the writer wants to know how something is done"
wish = "the writer asks for something that does not exist yet"

[fields]
ticket = { source = "output", about = "the ticket", words = [5, 60] }

[contexts.axes]
trade = ["online shops", "accounting", "photography", "public transport"]

[instances]
distinct_on = ["ticket"]

[instances.outputs]
ticket = "the ticket"
explanation = "what in the ticket shows what the writer wants"

[instances.axes]
mood = ["calm", "in a hurry", "annoyed"]
""",
    "contexts.txt": """
Name programs that people use, such as "an app that sorts holiday photos".

Trade: {{ trade }}
Write exactly {{ count }}. Answer with a JSON object that has the one key "contexts".
""",
    "seeds.txt": """
Name parts of the program below that its support gets letters about, each in 3 to 10 words.

Program: {{ context }}
Write exactly {{ count }}. Answer with a JSON object that has the one key "seeds".
""",
    "instances.txt": """
Write a support ticket of 10 to 40 words about the part of the program given below.
Do not use the words "bug", "question" and "wish".

Program: {{ context }}
Part: {{ seed }}
The writer is {{ mood }}.
What must hold: {{ label_meaning }}.
Answer with a JSON object that has the keys "ticket" and "explanation".
""",
    "correction.txt": """
Give each ticket below the label that fits, judged by itself.

{{ labels }}
- none: no label fits

Answer with a JSON object that has the one key "items": for every id exactly one
object with the keys "id", "explanation" and "label".

{{ items }}
""",
}


def main(out: Path) -> None:
    folder = out / "tickets"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text.lstrip(), "utf-8")
    task = load_task(folder)  # raises UserError that lists every mistake with line and column
    config = RunConfig(data=Data(task=str(folder)), delivery=Delivery(n=30))
    manifest = generate_sync(config, out / "run", say=print)
    for row in read_shards(out / "run"):
        print(f"{row.label:10} {row.fields['ticket']}")
    print(f"{manifest.delivered} rows of {task.name}, by label: {manifest.balance}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
