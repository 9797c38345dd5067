"""Times the influence function of MoA's own code on the same machine, so that `bench influence` has its neighbor.

It runs one function of a clone that MOA_REFERENCE names, unchanged, on random tensors of one layer; nothing of the clone is copied. The
function's sums are checked against double precision first. Milliseconds are wall time: it leaves its result on the host, as its callers
want it. Usage: MOA_REFERENCE=CLONE python3 reference.py [length ...]
"""

import importlib.util
import os
import pathlib
import sys
import time
import types

import torch

BLOCK = 64
HEADS, DIM = 32, 128


def function(clone):
    """The function; the one module that it wants beside torch and transformers only ever empties a cache for it."""
    # First, since it looks whether that module is installed.
    importlib.import_module("transformers.models.llama.modeling_llama")
    stub = types.ModuleType("deepspeed")
    stub.get_accelerator = lambda: types.SimpleNamespace(empty_cache=torch.cuda.empty_cache)
    sys.modules["deepspeed"] = stub
    sys.path.insert(0, str(clone))
    spec = importlib.util.spec_from_file_location("reference", clone / "MoA/models/llama/modify_llama_profile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LlamaModel_get_attention_matrix_log


def layer(heads, length):
    """What the function reads of a layer."""
    tensor = lambda: torch.randn(1, heads, length, DIM, device="cuda", dtype=torch.bfloat16)
    mask = torch.full((length, length), torch.finfo(torch.bfloat16).min, device="cuda", dtype=torch.bfloat16).triu(1)
    attention = types.SimpleNamespace(
        query_states=tensor(), key_states=tensor(), value_states=tensor(), causal_mask=mask[None, None], head_dim=DIM,
        attn_output=types.SimpleNamespace(grad=tensor()),
    )
    return types.SimpleNamespace(layers=[types.SimpleNamespace(self_attn=attention)])


def check(run):
    """Block sums of |E| beside double precision; the first block holds a row that the function treats by a rule of its own."""
    model = layer(2, 512)
    got = run(model, 512, take_abs=True, aggregating_block_size=BLOCK)["sum_effect"][0, 0].double()
    attention = model.layers[0].self_attn
    q, k, v, grad = (x.double() for x in (attention.query_states, attention.key_states, attention.value_states, attention.attn_output.grad))
    hidden = torch.ones(512, 512, dtype=torch.bool, device="cuda").triu(1)
    p = (q @ k.mT / DIM**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    by_p = grad @ v.mT
    effect = (p * (by_p - (p * by_p).sum(-1, keepdim=True)) / (1 - p)).nan_to_num(posinf=0, neginf=0).abs()
    sums = effect.unflatten(-1, (-1, BLOCK)).sum(-1).unflatten(-2, (-1, BLOCK)).sum(-2).cpu()
    difference = (got - sums).abs()
    difference[:, 0, 0] = 0
    error = (difference.max() / sums.max()).item()
    assert error < 0.05, f"the reference differs from double precision by {error}"
    print(f"largest difference from double precision, in parts of the largest block: {error:.1e}")


def main():
    clone = os.environ.get("MOA_REFERENCE")
    if not clone:
        sys.exit("MOA_REFERENCE is not set: it names a clone of MoA's own code, which is timed only where there is one")
    run = function(pathlib.Path(clone))
    print(torch.__version__, torch.cuda.get_device_name(0))
    check(run)
    print("\n| reference's influence | heads | D | S | ms | GiB beyond inputs |\n|---|---|---|---|---|---|")
    for length in [int(x) for x in sys.argv[1:]] or [2048, 4096, 8192]:
        try:
            model = layer(HEADS, length)
            times = []
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            for _ in range(6):
                start = time.perf_counter()
                run(model, length, take_abs=True, aggregating_block_size=BLOCK)
                torch.cuda.synchronize()
                times.append(1e3 * (time.perf_counter() - start))
            peak = (torch.cuda.max_memory_allocated() - before) / 2**30
            print(f"| as it is | {HEADS} | {DIM} | {length} | {sorted(times[1:])[2]:.1f} | {peak:.1f} |", flush=True)
        except torch.OutOfMemoryError:
            print(f"| as it is | {HEADS} | {DIM} | {length} | out of memory | |", flush=True)


if __name__ == "__main__":
    main()
