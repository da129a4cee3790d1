"""From rows to a measured model.

Read: schema, runs, official, data. Ask: posed, pairs, text2text, completions, forms, instructions.
Batch: batches. Measure: metrics, predictions. Choose: config, sizes, logits, prepare, command.
None of these needs torch. The others do: models, lora, tokens, feeds, optim, engine and sharded
(a step), ranks, checkpoints, curve, saved, loop (`train`), answering, generation and evaluate
(`evaluate`).
"""
