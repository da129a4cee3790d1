"""Tests here read data sets with the `datasets` package: offline, in a cache of their own."""

import atexit
import os
import shutil
import tempfile

HOME = tempfile.mkdtemp(prefix="targen-finetune-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HOME"] = HOME
