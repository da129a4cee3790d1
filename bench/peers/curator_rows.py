"""bespokelabs-curator: an LLM with a prompt and a parse method, over a dataset of rows."""

import tempfile

from workload import MAX_TOKENS, MODEL, SYSTEM, arguments, measure, offline, prompt, tell

offline(
    TELEMETRY_ENABLED="false",
    CURATOR_DISABLE_RICH_DISPLAY="1",
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    OPENAI_API_KEY="none",
)

from bespokelabs import curator  # noqa: E402
from datasets import Dataset  # noqa: E402


class Writer(curator.LLM):
    def prompt(self, row: dict[str, str]) -> list[dict[str, str]]:
        return [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": row["prompt"]},
        ]

    def parse(self, row: dict[str, str], response: str) -> dict[str, str]:
        return {"text": response}


def main() -> None:
    base, total, width = arguments()
    writer = Writer(
        model_name=MODEL,
        backend="openai",
        generation_params={"max_tokens": MAX_TOKENS, "temperature": 1.0},
        backend_params={
            "base_url": base,
            "max_concurrent_requests": width,
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 10_000_000_000,
        },
    )

    def run(calls: int) -> None:
        rows = Dataset.from_list([{"prompt": prompt(number)} for number in range(calls)])
        with tempfile.TemporaryDirectory() as folder:
            made = writer(rows, working_dir=folder).dataset
            assert len(made) == calls

    tell(measure(total, run))


if __name__ == "__main__":
    main()
