"""ONNX exports of a GGUF file's own weights, laid out as transformers.js reads them: OUT/fp32, OUT/fp16, OUT/q4.

    pip install torch transformers accelerate gguf onnx onnx-ir onnxruntime onnxruntime-genai
    python web/bench/export_onnx.py MODEL.gguf OUT [fp32 fp16 q4]

fp32 and fp16 are the dequantized weights; q4 is the exporter's own quantization of them, so not the same weights.
"""

import json
import pathlib
import shutil
import subprocess
import sys

import onnx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# Our name: the exporter's precision, its execution provider, the file that transformers.js looks for.
TYPES = {
    "fp32": ("fp32", "cpu", "model.onnx"),
    "fp16": ("fp16", "webgpu", "model_fp16.onnx"),
    "q4": ("int4", "webgpu", "model_q4.onnx"),
}


def dequantize(gguf: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the model as a folder in the style of Hugging Face."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A model read from GGUF counts as quantized and refuses to be saved; a plain one of the same shape takes its weights.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def export(folder: pathlib.Path, name: str, out: pathlib.Path) -> None:
    """Exports one type."""
    precision, provider, file = TYPES[name]
    built = out / f"{name}.part"
    shutil.rmtree(built, ignore_errors=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", folder, "-o", built, "-p", precision, "-e", provider]
    if precision == "int4":
        command += ["--extra_options", "shared_embeddings=false"]
    subprocess.run([str(word) for word in command], check=True)

    head_dim = json.loads((built / "genai_config.json").read_text())["model"]["decoder"]["head_size"]
    model = onnx.load(built / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            # transformers.js makes an empty cache from the declared shape, so the last extent must be a number.
            value.type.tensor_type.shape.dim[3].ClearField("dim_param")
            value.type.tensor_type.shape.dim[3].dim_value = head_dim
    target = out / name
    shutil.rmtree(target, ignore_errors=True)
    (target / "onnx").mkdir(parents=True)
    # One file: transformers.js is not told of external data.
    onnx.save_model(model, target / "onnx" / file, save_as_external_data=False)
    for path in folder.glob("*.json"):
        shutil.copy(path, target)
    shutil.rmtree(built)


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    gguf, out = (pathlib.Path(word).resolve() for word in sys.argv[1:3])
    names = sys.argv[3:] or list(TYPES)
    if unknown := [name for name in names if name not in TYPES]:
        sys.exit(f"no type is called {unknown[0]}; the types are {', '.join(TYPES)}")
    folder = out / "huggingface"
    if not (folder / "config.json").exists():
        dequantize(gguf, folder)
    for name in names:
        export(folder, name, out)


if __name__ == "__main__":
    main()
