"""From rows to a measured model.

Read: schema, runs, official, data. Ask: posed, pairs, text2text, completions, forms, instructions.
Feed: batches. Measure: metrics, predictions. None of these needs torch.
"""
