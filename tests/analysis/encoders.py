"""A tiny encoder with random weights, saved as any other."""

from pathlib import Path

from targen_async.analysis.rows import Rows


def tiny_encoder(folder: Path, rows: Rows) -> Path:
    """A layer of 32 that reads 64 tokens, and a tokenizer trained on the rows. Needs the extra
    `train`."""
    import torch
    import transformers

    from targen_async.finetune.models import train_tokenizer

    tokenizer = train_tokenizer(rows.texts, 1200, "encoder")
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=65,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    transformers.RobertaModel(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder
