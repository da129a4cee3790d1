"""NVIDIA NeMo Data Designer: one LLM text column over a seed dataset."""

import tempfile

from workload import MAX_TOKENS, MODEL, SYSTEM, arguments, measure, offline, prompt, tell

offline(NEMO_TELEMETRY_ENABLED="false", DATA_DESIGNER_HOME=tempfile.mkdtemp())

import data_designer.config as dd  # noqa: E402
import pandas  # noqa: E402
from data_designer.interface import DataDesigner  # noqa: E402


def main() -> None:
    base, total, width = arguments()
    provider = dd.ModelProvider(name="bench", endpoint=base, api_key="none")
    model = dd.ModelConfig(
        alias="writer",
        model=MODEL,
        provider="bench",
        skip_health_check=True,
        inference_parameters=dd.ChatCompletionInferenceParams(
            temperature=1.0, max_tokens=MAX_TOKENS, max_parallel_requests=width
        ),
    )

    def run(calls: int) -> None:
        rows = pandas.DataFrame({"asked": [prompt(number) for number in range(calls)]})
        with tempfile.TemporaryDirectory() as folder:
            designer = DataDesigner(artifact_path=folder, model_providers=[provider])
            builder = dd.DataDesignerConfigBuilder(model_configs=[model])
            builder.with_seed_dataset(dd.DataFrameSeedSource(df=rows))
            builder.add_column(
                dd.LLMTextColumnConfig(
                    name="text", prompt="{{ asked }}", system_prompt=SYSTEM, model_alias="writer"
                )
            )
            made = designer.create(builder, num_records=calls)
            assert len(made.load_dataset()) == calls

    tell(measure(total, run))


if __name__ == "__main__":
    main()
