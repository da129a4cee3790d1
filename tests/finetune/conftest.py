"""Tests here read data sets with the `datasets` package: offline. Caches are of their own."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

HOME = tempfile.mkdtemp(prefix="targen-finetune-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HOME"] = os.environ["TARGEN_CACHE"] = HOME


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models as small as these are slower on two threads, and many times so on a busy machine."""
    torch = sys.modules.get("torch")  # Where the tests of a file need it, it is there by now.
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
